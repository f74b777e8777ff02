"""Can this student learn at all, and does it say at evaluation what it learned? Small probes of one network.

The overfit probe is the oldest sanity check of training code: a network whose gradients flow can memorise one
batch, whatever its labels. The others move nothing but the evaluation: BatchNorm statistics and pooling.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from diag_lib.device_memory import Portion
from diag_lib.devices import choose, thread_count
from diag_lib.images import ImageSet, epoch_batches, to_input
from diag_lib.models import PatchModel, build_student, derived_seed, pool, recalibrate, select_trainable
from diag_lib.settings import PoolingSettings, Settings
from diag_lib.statistics import auc
from diag_lib.training import predict
from diag_lib.training.loop import OPTIMIZERS

BATCH_IMAGES = 64
STEPS = 150
RATE_FACTORS = (1.0, 10.0, 100.0, 1000.0)
MEMORISED_AUC = 0.95
HOPE_STEPS, HOPE_AUC = 50, 0.70  # a rate that has not come this far by then leaves the batch to the next rate
LADDER = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
LADDER_STEPS = 60
CLEARLY_LOWER = 0.01  # nats of BCE
EVALUATION_PIXELS = 64 * 128 * 128
RECALIBRATION_IMAGES = 512
FAR_OUT = 1000.0  # times the normalised pixels
BLOCK = 512  # images whose patch maps are held at a time

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchFit:
    """Trying to memorise one batch of `images` pictures.

    `table` has one row a learning-rate factor tried: `factor`, `rate`, `loss`, `auc`, `steps`. `curves` are the BCE
    values step by step. `flows` tells whether any gradient reached a parameter, `moved` whether one changed.
    """

    images: int
    table: pd.DataFrame
    curves: dict[float, list[float]]
    flows: bool
    moved: bool

    @property
    def passed(self) -> bool:
        """Whether some learning rate ranked the batch's own labels."""
        return bool((self.table["auc"] >= MEMORISED_AUC).any())

    @property
    def factor(self) -> float | None:
        """The smallest multiple of the configured learning rate that did."""
        good = self.table.loc[self.table["auc"] >= MEMORISED_AUC, "factor"]
        return float(good.min()) if len(good) else None


def overfit_batch(
    settings: Settings,
    images: ImageSet,
    *,
    steps: int = STEPS,
    parts: Sequence[str] | None = None,
    factors: Sequence[float] = RATE_FACTORS,
) -> BatchFit:
    """Train on one balanced batch of 64 until it is memorised, at 1, 10, 100 and 1,000 times the configured rate.

    Stops at the first rate that reaches AUC .95 on the batch itself (with batch statistics, as in training); a rate
    that is not at AUC .70 after 50 steps gives way to the next, the last one has all `steps`.
    `parts` are the trained parts (default: `student.trainable_s2`). Raises ValueError when a class is missing.
    """
    chosen = balanced(images.labels, BATCH_IMAGES, settings.training.seed)
    x, y = _inputs(settings, images, chosen), torch.from_numpy(images.labels[chosen]).float()
    rows, curves, flows, moved = [], {}, False, False
    for factor in factors:
        rate = factor * settings.training.lr_s2
        model = build_student(settings)[0].to(x.device)
        select_trainable(model, list(parts or settings.student.trainable_s2))
        with thread_count(choose(settings).threads):
            curve, score, reached, changed = _memorise(
                model, x, y.to(x.device), rate, steps, settings.pooling, last=factor == factors[-1]
            )
        curves[factor] = curve
        flows, moved = flows or reached, moved or changed
        rows.append({"factor": factor, "rate": rate, "loss": curve[-1], "auc": score, "steps": len(curve)})
        if score >= MEMORISED_AUC:
            break
    return BatchFit(len(chosen), pd.DataFrame(rows), curves, flows, moved)


def rate_ladder(
    settings: Settings, images: ImageSet, *, factors: Sequence[float] = LADDER, steps: int = LADDER_STEPS
) -> pd.DataFrame:
    """How far the BCE falls in a few steps at each multiple of the configured `lr_s2`: `factor`, `rate`, `loss`.

    All start alike and see the same batches; `loss` is the mean of the last quarter of the steps, infinite where the
    training broke. It says which rate to try in full, no more: short runs flatter high rates.
    """
    chosen = settings.training
    device = choose(settings).device
    batches = list(_batch_indices(len(images.labels), chosen.batch_size, chosen.seed, steps))
    rows = []
    for factor in factors:
        model = build_student(settings)[0].to(device)
        select_trainable(model, list(settings.student.trainable_s2))
        parameters = [p for p in model.parameters() if p.requires_grad]
        rate = factor * chosen.lr_s2
        optimizer = OPTIMIZERS[chosen.optimizer](parameters, lr=rate, weight_decay=chosen.weight_decay)
        model.train()
        losses = []
        portion = Portion("rate probe")
        with thread_count(choose(settings).threads):
            for index in batches:
                x = _inputs(settings, images, index)
                y = torch.from_numpy(images.labels[index]).float().to(device)
                _, loss, attached = portion.run(len(y), partial(_gradients, model, x, y, settings.pooling))
                losses.append(loss)
                if not attached or not np.isfinite(loss):
                    break
                if chosen.clip_grad_norm is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, chosen.clip_grad_norm)
                optimizer.step()
        last = float(np.mean(losses[-max(1, len(losses) // 4) :]))
        rows.append({"factor": factor, "rate": rate, "loss": last if np.isfinite(last) else np.inf})
    return pd.DataFrame(rows)


def promising_factor(ladder: pd.DataFrame) -> float:
    """The factor with the lowest loss, or 1 where none is clearly lower than the configured rate's."""
    configured = float(ladder.loc[ladder["factor"] == 1.0, "loss"].iloc[0])
    best = ladder.iloc[int(np.argmin(ladder["loss"]))]
    return float(best["factor"]) if best["loss"] < configured - CLEARLY_LOWER else 1.0


def _batch_indices(n: int, size: int, seed: int, steps: int) -> Iterator[Ints]:
    epoch = 0
    while steps > 0:
        for index in epoch_batches(n, size, seed, epoch)[:steps]:
            steps -= 1
            yield index
        epoch += 1


def balanced(labels: Ints, size: int, seed: int) -> Ints:
    """Indices of at most `size` images, as many of each class as the rarer one allows."""
    rng = np.random.default_rng([seed, 0xBA7C])
    classes = [np.flatnonzero(labels == label) for label in (0, 1)]
    count = min(size // 2, *(len(rows) for rows in classes))
    if count == 0:
        raise ValueError("one class has no readable image")
    return np.sort(np.concatenate([rng.choice(rows, count, replace=False) for rows in classes])).astype(
        np.int64
    )


def _memorise(
    model: PatchModel, x: Tensor, y: Tensor, rate: float, steps: int, pooling: PoolingSettings, *, last: bool
) -> tuple[list[float], float, bool, bool]:
    """Loss curve, final AUC on the batch, whether gradients arrived, whether a parameter moved."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    model.train()
    curve, reached, score, labels = [], False, float("nan"), y.cpu().numpy().astype(np.int64)
    portion = Portion("overfit probe")
    for step in range(steps):
        logits, loss, attached = portion.run(len(y), partial(_gradients, model, x, y, pooling))
        curve.append(loss)
        if step % 10 == 9 or step == steps - 1:
            score = auc(labels, logits.double().cpu().numpy(), nan="undefined").value
            hopeless = not last and step + 1 >= HOPE_STEPS and not score >= HOPE_AUC
            if score >= MEMORISED_AUC or hopeless:
                break
        if not attached or not np.isfinite(loss):
            break
        reached = reached or any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters)
        optimizer.step()
    moved = any(not torch.equal(old, p.detach()) for old, p in zip(start, parameters, strict=True))
    return curve, score, reached, moved


def _gradients(
    model: PatchModel, x: Tensor, y: Tensor, pooling: PoolingSettings, parts: Sequence[slice]
) -> tuple[Tensor, float, bool]:
    """Fill the parameters' gradients of the batch's mean BCE: image logits (B,), that BCE, whether it has any."""
    model.zero_grad(set_to_none=True)
    logits, summed, attached = [], 0.0, True
    for rows in parts:
        found = pool(model(x[rows]).float(), pooling)
        share = len(found) / len(y)
        loss = F.binary_cross_entropy_with_logits(found, y[rows]) * share
        attached = attached and loss.requires_grad
        if attached:
            torch.autograd.backward(loss)
        logits.append(found.detach())
        summed += loss.item()
    return torch.cat(logits), summed, attached


def repooled(
    settings: Settings, model: PatchModel, images: ImageSet, poolings: Mapping[str, PoolingSettings]
) -> dict[str, Floats]:
    """Image logits (n,), float64, of the same patch logits under several poolings."""
    parts: dict[str, list[Floats]] = {name: [] for name in poolings}
    everything = np.arange(len(images.labels))
    for at in range(0, len(everything), BLOCK):
        maps = predict(model, images.subset(everything[at : at + BLOCK]), settings, maps=True).maps
        assert maps is not None
        for name, pooling in poolings.items():
            parts[name].append(pool(maps.double(), pooling).numpy())
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def recalibrated(settings: Settings, model: PatchModel, train: ImageSet) -> PatchModel:
    """The network with the BatchNorm statistics of (at most 512) training images in place of its running ones."""
    count = min(RECALIBRATION_IMAGES, len(train.labels))
    rng = np.random.default_rng([derived_seed(settings.training.seed, "recalibration")])
    chosen = np.sort(rng.choice(len(train.labels), count, replace=False))
    recalibrate(model.to(choose(settings).device), _batches(settings, train, chosen))
    return model


def gives_probabilities(settings: Settings, model: PatchModel, images: ImageSet, indices: Ints) -> bool:
    """Whether the network's patch logits stay within 0 and 1 whatever it is shown: it ends in a sigmoid.

    Shown are these images, then the same far out of range on either side, where raw logits leave any bounds. A network
    that says the same to all of them says nothing about its bounds.
    """
    x = _inputs(settings, images, indices)
    model = model.to(x.device).eval()
    with torch.no_grad():
        said = torch.stack([model(factor * x) for factor in (1.0, FAR_OUT, -FAR_OUT)])
    return bool((said >= 0).all() and (said <= 1).all() and (said.max() > said.min()))


def pooling_variants(configured: PoolingSettings) -> dict[str, PoolingSettings]:
    """The configured pooling and its alternatives, by a name a reader understands."""
    table = {
        "mean": PoolingSettings(kind="mean"),
        "top 10%, mean": PoolingSettings(kind="topk", r=0.1, min_k=5, aggregation="mean"),
        "top 50%, mean": PoolingSettings(kind="topk", r=0.5, min_k=5, aggregation="mean"),
        "maximum": PoolingSettings(kind="topk", r=0.1, min_k=5, aggregation="max"),
    }
    others = {name: pooling for name, pooling in table.items() if not _alike(pooling, configured)}
    return {"as configured": configured, **others}


def _alike(a: PoolingSettings, b: PoolingSettings) -> bool:
    return (
        a.kind == b.kind == "mean" or a == b or (a.kind == b.kind and a.aggregation == b.aggregation == "max")
    )


def _inputs(settings: Settings, images: ImageSet, indices: Ints) -> Tensor:
    data = settings.dataset
    return to_input(
        images.pixels(indices).to(choose(settings).device), data.normalize_mean, data.normalize_std
    )


def _batches(settings: Settings, images: ImageSet, indices: Ints) -> Iterator[Tensor]:
    size = max(1, EVALUATION_PIXELS // images.image_size**2)
    return (_inputs(settings, images, indices[at : at + size]) for at in range(0, len(indices), size))
