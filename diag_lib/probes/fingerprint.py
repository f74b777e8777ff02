"""With which preprocessing was the teacher trained? Its BatchNorm statistics remember, no label is needed.

A network's first normalisation layers keep the variance of what came in during training. Fed with the
right preprocessing, the activations on new images have nearly those variances, channel by channel; fed with
another, they do not.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from diag_lib.models import PatchModel, batch_norms
from diag_lib.models.batchnorm import BatchNorm
from diag_lib.statistics import Answer

Floats = npt.NDArray[np.float64]
Moments = Mapping[str, tuple[Floats, Floats]]

LAYERS = 3  # deeper layers mostly repeat what the first ones were given
RESAMPLES = 400
SUPPORT = 0.95  # share of image resamples in which the best must stay the best
OFFSET_WEIGHT = 0.25  # a common factor counts little: contrast differs between datasets, a pattern does not
MATCH = 0.5  # distance beyond which a variant is no match: about a factor of 1.6 a channel, or 7 in common
PATTERN = 0.65  # correlation over the first layer's channels without which nothing was recognised
CLEAR = 1.5  # the runner-up's distance must be this many times the best's
FLOOR = 1e-6  # of the layer's median variance; below it a channel is dead and its logarithm is noise


@dataclass(frozen=True)
class Fingerprint:
    """How well each variant's activations fit the running statistics.

    `table` has one row a variant, best first: `variant`, `distance`, `correlation` and `ratio` (of the first
    layer: Pearson over channels of the two log variances, geometric mean of activation / running variance),
    `scale` (the input_scale that would bring the ratio to 1), `support` (share of image resamples it wins).
    With q = log activation variance - log running variance of a channel, the distance is
    sqrt(sd(q)^2 + (mean(q) / 4)^2), averaged over the first layers.
    `answer`: "yes" when the statistics clearly name another variant than `configured`, "no" when it is that.
    `reason` is set where the statistics cannot tell.
    """

    configured: str
    best: str | None
    answer: Answer
    reason: str
    layers: tuple[str, ...]
    n: int
    table: pd.DataFrame

    @property
    def clear(self) -> bool:
        """The best stays the best in at least 95% of the image resamples."""
        return self.best is not None and self.row(self.best)["support"] >= SUPPORT

    @property
    def certain(self) -> bool:
        """Clear, a match, and every other variant is at least 1.5 times as far away."""
        distances = self.table["distance"] if self.clear else pd.Series(dtype=float)
        return len(distances) > 1 and distances.iloc[0] <= min(MATCH, distances.iloc[1] / CLEAR)

    def row(self, variant: str) -> dict[str, float]:
        """Distance, correlation, ratio, scale and support of a variant."""
        found = self.table[self.table["variant"] == variant].drop(columns="variant")
        return {str(name): float(value) for name, value in found.iloc[0].items()}


def untouched_norms(model: nn.Module) -> list[str]:
    """Normalisation layers whose statistics are exactly those of a new network: mean 0 and variance 1."""
    return [
        name
        for name, norm in batch_norms(model).items()
        if bool((_stat(norm, "running_mean") == 0).all() and (_stat(norm, "running_var") == 1).all())
    ]


def fingerprint(
    model: PatchModel,
    activate: Mapping[str, Callable[[], Iterable[Tensor]]],
    configured: str,
    *,
    seed: int = 0,
) -> Fingerprint:
    """Compare running and actual variances for several variants of the input.

    Parameters
    ----------
    activate : for each variant a function that yields its prepared inputs (B, 3, H, W), the same images in
        the same order; they go straight to `model.patch_logits`.
    configured : the variant in use, a key of `activate`.
    """
    norms = batch_norms(model)
    fresh = untouched_norms(model)
    if not norms or len(fresh) == len(norms):
        reason = "it has no batch normalisation" if not norms else "its batch normalisation was never trained"
        return Fingerprint(configured, None, "undecided", reason, (), 0, pd.DataFrame({"variant": []}))
    moments = {name: early_moments(model, make()) for name, make in activate.items()}
    layers = tuple(next(iter(moments.values())))
    n = len(next(iter(moments[configured].values()))[0])
    rng = np.random.default_rng([seed, 0xF1])
    weights = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
    kept = {layer: _stat(norms[layer], "running_var").double().cpu().numpy() for layer in layers}
    settled = {layer: settled_variance(norms[layer]) for layer in layers}
    tables = [_table(moments, running, weights) for running in (kept, settled)]
    table = min(tables, key=lambda found: float(found["distance"].iloc[0]))
    answer, reason = _decide(table, configured)
    return Fingerprint(configured, str(table["variant"].iloc[0]), answer, reason, layers, n, table)


def _table(moments: Mapping[str, Moments], running: Mapping[str, Floats], weights: Floats) -> pd.DataFrame:
    """One row a variant, the closest first; `support` from the resamples in `weights`."""
    rows, resampled = [], []
    for name, of_layer in moments.items():
        distances = [
            _distance(_log_quotients(weights, of_layer[layer], variance))
            for layer, variance in running.items()
        ]
        resampled.append(np.mean(distances, axis=0))
        rows.append({"variant": name, **_summary(of_layer, running)})
    wins = np.bincount(np.argmin(np.stack(resampled), axis=0), minlength=len(rows)) / len(weights)
    table = pd.DataFrame(rows).assign(support=wins)
    return table.sort_values("distance", kind="stable").reset_index(drop=True)


def _decide(table: pd.DataFrame, configured: str) -> tuple[Answer, str]:
    best = table.iloc[0]
    if not (best["distance"] <= MATCH and best["correlation"] >= PATTERN):
        return "undecided", f"no variant fits its statistics (closest: {best['variant']})"
    rivals = table[(table["variant"] != best["variant"]) & (table["distance"] < CLEAR * best["distance"])]
    if best["support"] < SUPPORT or len(rivals):
        if configured == best["variant"]:
            return "no", ""
        return "undecided", "several variants fit its statistics about equally well"
    return ("no", "") if best["variant"] == configured else ("yes", "")


class _EnoughSeen(Exception):  # noqa: N818 - it is no error
    """The early layers have been reached; the rest of the forward pass is of no interest."""


@torch.inference_mode()
def early_moments(model: PatchModel, inputs: Iterable[Tensor]) -> dict[str, tuple[Floats, Floats]]:
    """Mean and mean square per image and channel of what enters the first norms: {layer: two (n, C)}."""
    seen: dict[str, tuple[list[Floats], list[Floats]]] = {}
    order: list[str] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, entering: tuple[Tensor, ...]) -> None:
            if name not in seen and len(seen) == LAYERS:
                raise _EnoughSeen
            if name not in seen:
                order.append(name)
            variance, mean = torch.var_mean(entering[0].float().flatten(2), dim=2, correction=0)
            means, squares = seen.setdefault(name, ([], []))
            means.append(mean.cpu().double().numpy())
            squares.append((variance.cpu().double() + mean.cpu().double() ** 2).numpy())
            if name == order[-1] and len(seen) == LAYERS:
                raise _EnoughSeen

        return hook

    handles = [norm.register_forward_pre_hook(note(name)) for name, norm in batch_norms(model).items()]
    model.eval()
    try:
        for batch in inputs:
            try:
                model.patch_logits(batch)
            except _EnoughSeen:
                continue
    finally:
        for handle in handles:
            handle.remove()
    return {name: (np.concatenate(means), np.concatenate(squares)) for name, (means, squares) in seen.items()}


def _log_quotients(weights: Floats, moments: tuple[Floats, Floats], running: Floats) -> Floats:
    """log activation variance - log running variance, (resamples, C)."""
    total = weights.sum(axis=1, keepdims=True)
    mean, square = (weights @ part / total for part in moments)
    floor = FLOOR * float(np.median(running)) + np.finfo(np.float64).tiny
    variance = np.maximum(square - mean**2, floor)
    quotients: Floats = np.log(variance) - np.log(np.maximum(running, floor))
    return quotients


def _summary(of_layer: Moments, running: Mapping[str, Floats]) -> dict[str, float]:
    quotients = {
        layer: _log_quotients(np.ones((1, len(of_layer[layer][0]))), of_layer[layer], variance)[0]
        for layer, variance in running.items()
    }
    layer, first = next(iter(quotients.items()))
    own = np.log(np.maximum(running[layer], np.finfo(np.float64).tiny))
    return {
        "distance": float(np.mean([_distance(quotient) for quotient in quotients.values()])),
        "correlation": _correlation(first + own, own),
        "ratio": float(np.exp(first.mean())),
        "scale": float(np.exp(-first.mean() / 2)),
    }


def settled_variance(norm: BatchNorm) -> Floats:
    """The running variance (C,) without what is left of its start at 1.

    After T updates with momentum m the start still counts (1 - m)^T; LaDeDa's m = .001 makes that large for
    thousands of updates. Left as it is where T or m is unknown or the correction would not be positive. (It
    is wrong for statistics that were recalibrated as plain averages: `fingerprint` takes what fits better.)
    """
    running = _stat(norm, "running_var").double().cpu().numpy()
    updates = norm.num_batches_tracked
    if norm.momentum is None or updates is None or int(updates) == 0:
        return running
    rest = (1 - norm.momentum) ** int(updates)
    settled: Floats = (running - rest) / (1 - rest) if rest < 1 else running
    return settled if bool((settled > 0).all()) else running


def _distance(quotients: Floats) -> Floats:
    result: Floats = np.hypot(quotients.std(axis=-1), OFFSET_WEIGHT * quotients.mean(axis=-1))
    return result


def _correlation(a: Floats, b: Floats) -> float:
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _stat(norm: BatchNorm, name: str) -> Tensor:
    value = getattr(norm, name)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is not kept")
    return value
