"""How sure is a figure? AUC and its interval, paired differences, three-way answers, needed sample sizes.

The unit is always the image (or its near-duplicate group), never the patch. Intervals are two-sided 95%
unless told otherwise; an answer is "yes" or "no" only when the whole displayed interval lies on one side.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, owens_t

from diag_lib.roc import (
    Auc,
    AucDifference,
    Floats,
    Ints,
    auc,
    auc_difference,
    auc_difference_unpaired,
    normal_quantile,
)

__all__ = [
    "HEALTHY_GAIN",
    "MATERIAL_GAIN",
    "NEVER",
    "Auc",
    "AucDifference",
    "Estimate",
    "answer_above",
    "answer_below",
    "auc",
    "auc_difference",
    "auc_difference_unpaired",
    "claim_power",
    "cluster_bootstrap",
    "holm",
    "mean_interval",
    "n_for_gain",
    "n_per_class_needed",
    "ratio_interval",
    "robust_summary",
    "split_halves",
]

Answer = Literal["yes", "no", "undecided"]

NEVER = 10_000_000
"""Sample size that stands for "no realistic number of images decides this"."""
SIGNIFICANT = 0.05
"""The p value below which a difference is claimed."""
MATERIAL_GAIN = 0.02
"""Paired gain in AUC below which a change of settings, a repair or an intervention counts for nothing."""
HEALTHY_GAIN = 0.05
"""What the lower bound of a gain must exceed where student or teacher is good already: head-room is no illness."""


@dataclass(frozen=True)
class Estimate:
    """A quantity over `n` units (images, or groups where given) with its interval."""

    value: float
    ci: tuple[float, float]
    se: float
    n: int


def answer_below(ci: tuple[float, float], threshold: float) -> Answer:
    """Is the quantity below the threshold? "yes" or "no" only when the whole interval says so."""
    if ci[1] < threshold:
        return "yes"
    return "no" if ci[0] >= threshold else "undecided"


def answer_above(ci: tuple[float, float], threshold: float) -> Answer:
    """Is the quantity above the threshold? "yes" or "no" only when the whole interval says so."""
    if ci[0] > threshold:
        return "yes"
    return "no" if ci[1] <= threshold else "undecided"


def claim_power(
    truth: float, threshold: float, n: int, *, confidence: float = 0.95, sides: Literal[1, 2] = 1
) -> float:
    """P(an AUC of `truth` is shown to be on its side of `threshold`) with n images per class, binormal."""
    gap = abs(threshold - truth) / np.sqrt(_binormal_variance(truth, n))
    return float(ndtr(gap - normal_quantile(confidence, sides)))


def n_per_class_needed(
    truth: float, threshold: float, power: float = 0.8, *, confidence: float = 0.95, sides: Literal[1, 2] = 1
) -> int:
    """Images per class for which `claim_power` reaches `power`; `NEVER` at most, 2 at least.

    `sides=1` is the usual one-sided 95% bound; `sides=2` is the bound of the two-sided 95% interval that is
    displayed, which needs about 1.27 times as many images.
    """
    truth = float(np.clip(truth, 1e-6, 1 - 1e-6))
    allowed = ((threshold - truth) / (normal_quantile(confidence, sides) + ndtri(power))) ** 2
    slope = 2 * _binormal_component(truth)
    constant = truth * (1 - truth) - slope
    # variance (slope n + constant) / n^2 = allowed, solved for n
    if allowed * NEVER <= slope:
        return NEVER
    n = (slope + np.sqrt(slope**2 + 4 * allowed * constant)) / (2 * allowed)
    return int(min(NEVER, max(2, np.ceil(n - 1e-9))))


def n_for_gain(
    delta: float, auc: float = 0.7, correlation: float = 0.8, power: float = 0.8, *, confidence: float = 0.95
) -> int:
    """Images per class to detect an AUC gain `delta` between paired arms around `auc`, two-sided."""
    z = normal_quantile(confidence, 2) + float(ndtri(power))
    slope = 2 * _binormal_component(float(np.clip(auc, 1e-6, 1 - 1e-6)))
    needed = z**2 * slope * 2 * (1 - correlation)
    return NEVER if needed >= NEVER * delta**2 else max(2, round(needed / delta**2))


def holm(pvalues: Mapping[str, float]) -> dict[str, float]:
    """Holm's (1979) adjusted p-values, in the given order. Raises ValueError for NaN or outside [0, 1]."""
    for key, p in pvalues.items():
        if not 0 <= p <= 1:
            raise ValueError(f"p-value of {key!r} is {p}; it must lie in 0 to 1")
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, key in enumerate(sorted(pvalues, key=lambda k: pvalues[k])):
        running = max(running, min(1.0, (len(pvalues) - rank) * pvalues[key]))
        adjusted[key] = running
    return {key: adjusted[key] for key in pvalues}


def cluster_bootstrap(
    statistic: Callable[[Ints], float],
    groups: ArrayLike,
    *,
    strata: ArrayLike | None = None,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of `statistic(row indices)` when whole groups are drawn with replacement.

    `groups` (n,) names the unit of each row; with `strata` (n,) the groups are drawn within strata (a group's
    stratum is that of its first row). Replicates without a finite statistic are left out; if none is
    left, the interval is (-inf, inf).
    """
    rows, stratum = _group_rows(np.asarray(groups), None if strata is None else np.asarray(strata))
    rng = np.random.default_rng([seed, 0xB007])
    pools = [np.flatnonzero(stratum == level) for level in np.unique(stratum)]
    values = np.empty(replicates)
    for i in range(replicates):
        drawn = np.concatenate([rng.choice(pool, pool.size) for pool in pools])
        values[i] = statistic(np.concatenate([rows[g] for g in drawn]))
    values = values[np.isfinite(values)]
    if values.size == 0:
        return (-np.inf, np.inf)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return (float(low), float(high))


def split_halves(labels: ArrayLike, groups: ArrayLike | None = None, seed: int = 0) -> NDArray[np.str_]:
    """Halves "A" and "B" (n,), as balanced within each label as whole groups allow; fixed by the seed.

    What is chosen on half A is proven on half B.
    """
    y = np.unique(np.asarray(labels), return_inverse=True)[1].reshape(-1)
    units = np.arange(y.size) if groups is None else np.asarray(groups)
    rows, _ = _group_rows(units, None)
    rng = np.random.default_rng([seed, 0x5117])
    order = sorted(rng.permutation(len(rows)), key=lambda g: -rows[g].size)
    excess = np.zeros(int(y.max(initial=0)) + 1)  # images of each label in A minus those in B
    half = np.empty(y.size, dtype="<U1")
    for unit in order:
        counts = np.bincount(y[rows[unit]], minlength=excess.size)
        to_a, to_b = np.abs(excess + counts).sum(), np.abs(excess - counts).sum()
        in_a = rng.random() < 0.5 if to_a == to_b else to_a < to_b
        excess += counts if in_a else -counts
        half[rows[unit]] = "A" if in_a else "B"
    return half


def robust_summary(values: ArrayLike) -> dict[str, float]:
    """min, max, mean, std, median, mad, q01, q99, kurtosis and n of the finite values, and `nonfinite`.

    `mad` is the raw median absolute deviation (a normal sd is 1.4826 mad); `kurtosis` is Pearson's, 3 for a
    normal distribution. Empty input gives NaN.
    """
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    finite = x[np.isfinite(x)]
    counts = {"n": float(finite.size), "nonfinite": float(x.size - finite.size)}
    if finite.size == 0:
        names = ("min", "max", "mean", "std", "median", "mad", "q01", "q99", "kurtosis")
        return dict.fromkeys(names, float("nan")) | counts
    low, q01, median, q99, high = map(float, np.quantile(finite, [0, 0.01, 0.5, 0.99, 1]))
    mean, std = float(finite.mean()), float(finite.std())
    kurtosis = float(np.mean(((finite - mean) / std) ** 4)) if std > 0 else float("nan")
    mad = float(np.median(np.abs(finite - median)))
    return {
        "min": low, "max": high, "mean": mean, "std": std, "median": median, "mad": mad,
        "q01": q01, "q99": q99, "kurtosis": kurtosis, **counts,
    }  # fmt: skip


def mean_interval(
    values: ArrayLike, confidence: float = 0.95, *, groups: ArrayLike | None = None, positive: bool = False
) -> Estimate:
    """Mean of one number an image, e.g. its MSE; `positive` puts the interval on the log scale.

    Fewer than two units (images, or groups where given) give an interval without bounds.
    """
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    return _from_influence(
        float(x.mean()) if x.size else float("nan"),
        x - x.mean() if x.size else x,
        groups,
        confidence,
        positive,
    )


def ratio_interval(
    teacher: ArrayLike, student: ArrayLike, confidence: float = 0.95, *, groups: ArrayLike | None = None
) -> Estimate:
    """Ratio of the standard deviations sd(teacher) / sd(student) of the same n images.

    Parameters: (n,) image logits or (n, patches...) patch logits, each with its own number of patches. The
    pooled sd runs over all patches, its uncertainty over images only (delta method on the log scale).
    A constant student gives inf, a constant teacher 0, both NaN, each with the interval (0, inf).
    """
    (t, t_influence), (s, s_influence) = _log_sd(teacher), _log_sd(student)
    if t_influence.size != s_influence.size:
        raise ValueError(
            f"{t_influence.size} teacher and {s_influence.size} student images; they must be the same"
        )
    if not np.isfinite(t - s):
        return Estimate(float(np.exp(t - s)), (0.0, float("inf")), float("nan"), t_influence.size)
    ratio = float(np.exp(t - s))
    return _from_influence(ratio, ratio * (t_influence - s_influence), groups, confidence, positive=True)


def _binormal_component(value: float) -> float:
    """Var(P(fake above | one real)) for equal-variance normal scores: Phi_2(h, h; 1/2) - value^2."""
    h = ndtri(value)
    return float(ndtr(h) - 2 * owens_t(h, 1 / np.sqrt(3)) - value**2)


def _binormal_variance(value: float, n: int) -> float:
    return (value * (1 - value) + 2 * (n - 1) * _binormal_component(value)) / n**2


def _group_rows(groups: NDArray[Any], strata: NDArray[Any] | None) -> tuple[list[Ints], NDArray[Any]]:
    """Rows of each group, and each group's stratum (that of its first row)."""
    inverse = np.unique(groups, return_inverse=True)[1].reshape(-1)
    order = np.argsort(inverse, kind="stable")
    rows = np.split(order, np.flatnonzero(np.diff(inverse[order])) + 1) if order.size else []
    return rows, np.array([0 if strata is None else strata[r[0]] for r in rows])


def _log_sd(values: ArrayLike) -> tuple[float, Floats]:
    """Log of the pooled sd, and each image's influence on it."""
    x = np.asarray(values, dtype=np.float64)
    x = x.reshape(len(x), -1)
    x = x - x.mean()
    square = np.mean(x**2, axis=1)
    variance = float(square.mean())
    if variance <= 0:
        return -np.inf, np.zeros(len(x))
    return 0.5 * float(np.log(variance)), (square - variance) / (2 * variance)


def _from_influence(
    value: float, influence: Floats, groups: ArrayLike | None, confidence: float, positive: bool
) -> Estimate:
    """value +- z se with the se of the mean of the influences, summed over groups first."""
    total = influence.size
    if groups is not None and total:
        inverse = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        influence = np.asarray(np.bincount(inverse, influence), dtype=np.float64)
    units = influence.size
    if units < 2 or not np.isfinite(value):
        return Estimate(value, (0.0 if positive else -np.inf, np.inf), float("nan"), units)
    se = float(np.sqrt(units / (units - 1) * np.sum(influence**2))) / total
    half = normal_quantile(confidence, 2) * se
    if positive and value > 0:
        factor = np.exp(min(half / value, 700.0))
        return Estimate(value, (float(value / factor), float(value * factor)), se, units)
    return Estimate(value, (max(0.0, value - half) if positive else value - half, value + half), se, units)
