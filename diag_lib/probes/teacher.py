"""Is the teacher that answers really the teacher that was trained: weights, mode, numbers, polarity?"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from diag_lib.images import ImageSet, to_input
from diag_lib.models import LoadReport, PatchModel, batch_norms, build, pool
from diag_lib.probes.fingerprint import untouched_norms
from diag_lib.settings import PoolingSettings, Settings
from diag_lib.statistics import Answer, AucDifference, auc, auc_difference

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RANDOM_STARTS = 5
BATCH = 16
TINY = 1e-12
SAME = 1e-3  # of the spread of the outputs: larger changes are no rounding
TIED_AUC = 0.005  # AUC lost to ties that is worth a warning
BATCH_PIXELS = {"cpu": 8 * 256 * 256, "cuda": 128 * 256 * 256, "mps": 32 * 256 * 256}


def batches(
    images: ImageSet, indices: Ints, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Iterator[Tensor]:
    """Normalised inputs (b, 3, H, W) of view 0 of those images, in order."""
    size = max(1, BATCH_PIXELS[device.type] // images.image_size**2)
    for start in range(0, len(indices), size):
        yield to_input(images.pixels(indices[start : start + size]).to(device), mean, std)


@torch.inference_mode()
def image_logits(model: PatchModel, inputs: Iterator[Tensor], pooling: PoolingSettings) -> Floats:
    """Raw image logits in float64, pooled from the model's patches."""
    found = [pool(model(batch).float().cpu().double(), pooling).numpy() for batch in inputs]
    return np.concatenate(found) if found else np.zeros(0)


# --- weights ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightsCheck:
    """Do the weights come from training?

    `spread` is the standard deviation of the teacher's patch logits on a few images, `random_spreads` that of
    freshly initialised networks (empty for code of the user's own). `fresh_norms` of `norms` normalisation
    layers still have the statistics of a new network.
    """

    report: LoadReport
    answer: Answer
    reason: str
    spread: float
    random_spreads: tuple[float, ...]
    fresh_norms: int
    norms: int

    @property
    def looks_random(self) -> bool:
        """The spread lies within three (logarithmic) standard deviations and a factor 2 of fresh networks'."""
        logs = np.log(np.maximum(self.random_spreads, TINY))
        if len(logs) < 2:
            return False
        return bool(abs(np.log(max(self.spread, TINY)) - logs.mean()) <= 3 * logs.std(ddof=1) + np.log(2))


def check_weights(model: PatchModel, report: LoadReport, settings: Settings, inputs: Tensor) -> WeightsCheck:
    """Compare the load report, the normalisation statistics and the output spread with a random start."""
    spread = _spread(model, inputs)
    random_spreads = tuple(_random_spreads(settings, inputs)) if ":" not in model.arch else ()
    fresh, norms = len(untouched_norms(model)), len(batch_norms(model))
    check = WeightsCheck(report, "yes", report.message, spread, random_spreads, fresh, norms)
    answer, reason = _loaded(check)
    return WeightsCheck(report, answer, reason, spread, random_spreads, fresh, norms)


def _loaded(check: WeightsCheck) -> tuple[Answer, str]:
    report = check.report
    if report.random:
        return "no", report.message
    if report.missing:
        return "no", f"{report.message}: what is missing answers at random"
    never = check.norms > 0 and check.fresh_norms == check.norms
    if never and (check.looks_random or not check.random_spreads):
        return "no", f"{report.message}, but its batch normalisation was never trained"
    if never:
        return (
            "undecided",
            f"{report.message}; its batch normalisation was never trained, the other tensors were",
        )
    return "yes", report.message


def _random_spreads(settings: Settings, inputs: Tensor) -> Iterator[float]:
    teacher = settings.teacher
    for seed in range(RANDOM_STARTS):
        fresh = build(
            teacher.arch, None, teacher.preprocess, teacher.input_scale, seed=1000 + seed, settings=settings
        )
        yield _spread(fresh[0].to(inputs.device), inputs)


@torch.inference_mode()
def _spread(model: PatchModel, inputs: Tensor) -> float:
    return float(model.eval()(inputs).float().cpu().double().std())


# --- train and eval mode ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModeCheck:
    """Does an image's output depend on the other images of its batch, and what does it cost?

    `change` is the largest change of an image logit when its batch-mates change, in units of the logits'
    spread. `effect` compares the AUC of the logits that the run uses (before) with forced eval mode (after); None
    when nothing depends on the batch. `batch_statistics` compares eval mode (before) with normalisation by the
    batch's own statistics (after): a large gain means that the running statistics do not fit these images.
    `repeats` is the correlation of the logits that the run uses with those of the same images asked again, every
    module in eval mode where the mode matters: below .99 the teacher does not answer for the image it is shown.
    """

    answer: Answer
    change: float
    effect: AucDifference | None
    batch_statistics: AucDifference | None
    repeats: float | None = None


def check_mode(
    model: PatchModel,
    images: ImageSet,
    indices: Ints,
    settings: Settings,
    device: torch.device,
    known: Floats | None = None,
) -> ModeCheck:
    """Score the images in two different batchings, and with batch statistics, and compare the AUCs.

    known : the logits (of all images) that the run uses, from a pass in the dataset's order, which is sorted by class;
        by default those of a pass in random order.
    """
    data = settings.dataset
    order = np.random.default_rng([settings.training.seed, 0x40DE]).permutation(indices)

    def scores(rows: Ints, batch: int) -> Floats:
        parts = (images.pixels(rows[start : start + batch]) for start in range(0, len(rows), batch))
        inputs = (to_input(part.to(device), data.normalize_mean, data.normalize_std) for part in parts)
        return image_logits(model, inputs, settings.pooling)

    def compare(before: Floats, after: Floats) -> AucDifference:
        groups = np.asarray(images.groups)[order]
        return auc_difference(images.labels[order], before, after, groups=groups, nan="undefined")

    model.eval()
    used = scores(order, BATCH)
    alone = scores(order[:BATCH], 1)
    spread = float(used.std()) or 1.0
    change = float(np.abs(used[: len(alone)] - alone).max() / spread)
    asked = used if known is None else known[order]
    if not np.isfinite(change):
        return ModeCheck("undecided", change, None, None)
    if change <= SAME:
        repeats = correlation(asked, used)
        if not batch_norms(model):
            return ModeCheck("no", change, None, None, repeats)
        with _batch_statistics(model):
            return ModeCheck("no", change, None, compare(used, scores(order, BATCH)), repeats)
    with _everything_eval(model):
        forced = scores(order, BATCH)
        again = scores(order[:BATCH], 1)
        still = float(np.abs(forced[: len(alone)] - again).max() / spread)
    if still > SAME:
        return ModeCheck("undecided", change, None, None, correlation(asked, forced))
    effect = compare(asked, forced)
    return ModeCheck("yes" if effect.ci[0] > 0 else "no", change, effect, None)


def correlation(a: Floats, b: Floats) -> float | None:
    """Pearson; None where a side is constant or not finite."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


@contextmanager
def _everything_eval(model: nn.Module) -> Iterator[None]:
    """Eval mode for every module by hand, also where the network overrides `train`."""
    before = {module: module.training for module in model.modules()}
    for module in before:
        module.training = False
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise by the batch's own statistics; the running ones stay as they are."""
    norms = list(batch_norms(model).values())
    tracked = [(norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.running_mean = norm.running_var = None
    try:
        yield
    finally:
        for norm, (mean, variance) in zip(norms, tracked, strict=True):
            norm.running_mean, norm.running_var = mean, variance


# --- numbers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SaturationCheck:
    """What ranking rounded probabilities instead of logits costs.

    `auc_logits` is the rank AUC of the raw float64 logits, `auc_sigmoid` that of their fp32 sigmoid (above
    about 16.6 it is exactly 1 and ties), `tied` the share of images whose probability is exactly 0 or 1.
    """

    answer: Answer
    auc_logits: float
    auc_sigmoid: float
    tied: float


def check_saturation(labels: npt.ArrayLike, logits: Floats) -> SaturationCheck:
    """Compare the AUC of raw logits with that of their single-precision sigmoid."""
    probabilities = torch.sigmoid(torch.from_numpy(logits.astype(np.float32))).numpy()
    raw = auc(labels, logits, nan="undefined")
    rounded = auc(labels, probabilities, nan="undefined")
    tied = float(np.isin(probabilities, (0.0, 1.0)).mean()) if len(logits) else 0.0
    value = rounded.value if rounded.defined else 0.5  # all tied: what a script would report
    if not raw.defined:
        return SaturationCheck("undecided", raw.value, value, tied)
    lost = abs(raw.value - value) >= TIED_AUC
    return SaturationCheck("yes" if lost else "no", raw.value, value, tied)
