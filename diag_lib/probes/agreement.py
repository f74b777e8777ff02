"""How well does the student speak the teacher's language: spread, mean, MSE, R^2 and correlation of their patches?

Everything is a function of six sums an image, so that intervals can resample whole images (patches of one
picture are never independent) at the price of one matrix product.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
FLAT_SD = 1e-3  # a student whose sd is below this share of the teacher's predicts a constant
HEAVY_TAIL_QUANTILE = 0.99


@dataclass(frozen=True)
class Interval:
    """A value with its two-sided 95% interval over images."""

    value: float
    ci: tuple[float, float]

    def __str__(self) -> str:
        return f"{_short(self.value)} [{_short(self.ci[0])}, {_short(self.ci[1])}]"


@dataclass(frozen=True)
class Agreement:
    """Teacher and student patches side by side, over n images.

    `scale_ratio` = sd(teacher) / sd(student); `slope` = least-squares slope of the teacher on the student;
    `offset` = (mean(teacher) - mean(student)) / sd(teacher); `r2` = 1 - MSE / Var(teacher); `rho` = Pearson over
    all patches, `rho_within` = mean over images of the correlation inside a picture, `rho_across` = correlation
    of the image means. `shares` splits the MSE into mean, spread and pattern terms (they add up to 1); it is None
    where the student is flat, because the spread term is then nearly 1 whatever the cause.
    """

    n: int
    patches: int
    scale_ratio: Interval
    slope: Interval
    offset: Interval
    mse: Interval
    r2: Interval
    rho: Interval
    rho_within: Interval
    rho_across: Interval
    teacher_mean: float
    teacher_sd: float
    student_mean: float
    student_sd: float
    flat: bool
    shares: dict[str, float] | None

    @property
    def sd_floor(self) -> float:
        """The MSE that predicting the teacher's mean costs: its variance."""
        return self.teacher_sd**2


def agreement(teacher: npt.ArrayLike, student: npt.ArrayLike, seed: int = 0) -> Agreement:
    """Compare patch logits of shape (images, patches), both finite; the image is the unit of every interval.

    The MSE identity is MSE = (m_t - m_s)^2 + (s_t - s_s)^2 + 2 s_t s_s (1 - rho) (Murphy 1988, skill score).
    """
    t, s = _pairs(teacher, student)
    base_t, base_s = float(t.mean()), float(s.mean())
    sums = _image_sums(t - base_t, s - base_s)
    weights = resampling_weights(len(t), seed)
    names = ("scale_ratio", "slope", "offset", "mse", "r2", "rho")
    observed = _from_sums(sums.sum(axis=0), base_t - base_s)
    resampled = _from_sums(weights @ sums, base_t - base_s)
    intervals = {name: Interval(float(observed[name]), percentile(resampled[name])) for name in names}
    within = _within(t, s)
    t_means, s_means = t.mean(axis=1), s.mean(axis=1)
    mean_sums = _image_sums((t_means - base_t)[:, None], (s_means - base_s)[:, None])
    across = Interval(
        float(_from_sums(mean_sums.sum(axis=0), 0.0)["rho"]),
        percentile(_from_sums(weights @ mean_sums, 0.0)["rho"]),
    )
    flat = bool(s.std() <= FLAT_SD * t.std())
    return Agreement(
        n=len(t),
        patches=t.shape[1],
        **intervals,
        rho_within=_mean_interval(within, weights),
        rho_across=across,
        teacher_mean=base_t,
        teacher_sd=float(t.std()),
        student_mean=base_s,
        student_sd=float(s.std()),
        flat=flat,
        shares=None if flat else _shares(t, s),
    )


def tail_share(values: npt.ArrayLike, seed: int = 0) -> Interval:
    """Share of the squared deviation from the median that the most extreme 1% of patches hold, (images, patches).

    About .09 for a normal and .25 for a Laplace distribution; near 1 when a few patches rule every squared loss.
    """
    x = np.asarray(values, dtype=np.float64)
    squared = (x - np.median(x)) ** 2
    cut = np.quantile(squared, HEAVY_TAIL_QUANTILE)
    sums = np.stack([np.where(squared >= cut, squared, 0.0).sum(axis=1), squared.sum(axis=1)], axis=1)
    share: Callable[[Floats], Floats] = lambda total: _ratio(total[..., 0], total[..., 1])
    return Interval(
        float(share(sums.sum(axis=0))), percentile(share(resampling_weights(len(x), seed) @ sums))
    )


def mean_interval_over_images(values: npt.ArrayLike, seed: int = 0) -> Interval:
    """Mean of one number an image with a bootstrap interval; non-finite entries are left out."""
    x = np.asarray(values, dtype=np.float64)
    return _mean_interval(x, resampling_weights(len(x), seed))


def resampling_weights(n: int, seed: int, resamples: int = RESAMPLES) -> Floats:
    """How often each of n images is drawn in each bootstrap resample, shape (resamples, n)."""
    rng = np.random.default_rng([seed, n])
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def percentile(resampled: Floats) -> tuple[float, float]:
    """The two-sided 95% percentile interval of the finite resamples."""
    finite = resampled[np.isfinite(resampled)]
    if not finite.size:
        return (float("-inf"), float("inf"))
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def _pairs(teacher: npt.ArrayLike, student: npt.ArrayLike) -> tuple[Floats, Floats]:
    t, s = np.asarray(teacher, dtype=np.float64), np.asarray(student, dtype=np.float64)
    if t.shape != s.shape or t.ndim != 2 or not t.size:
        raise ValueError(f"teacher {t.shape} and student {s.shape} must have one shape (images, patches)")
    if not (np.isfinite(t).all() and np.isfinite(s).all()):
        raise ValueError("patch logits must be finite")
    return t, s


def _image_sums(t: Floats, s: Floats) -> Floats:
    """Per image: count, sum t, sum s, sum t^2, sum s^2, sum t s; shape (images, 6)."""
    return np.stack(
        [
            np.full(len(t), t.shape[1], dtype=np.float64),
            t.sum(1),
            s.sum(1),
            (t**2).sum(1),
            (s**2).sum(1),
            (t * s).sum(1),
        ],
        axis=1,
    )


def _from_sums(sums: Floats, gap: float) -> dict[str, Floats]:
    count, t, s, tt, ss, ts = np.moveaxis(sums, -1, 0)
    mean_t, mean_s = t / count, s / count
    var_t = np.maximum(tt / count - mean_t**2, 0.0)
    var_s = np.maximum(ss / count - mean_s**2, 0.0)
    cov = ts / count - mean_t * mean_s
    bias = gap + mean_t - mean_s
    mse = np.maximum(var_t + var_s - 2 * cov, 0.0) + bias**2
    return {
        "scale_ratio": np.sqrt(_ratio(var_t, var_s)),
        "slope": _ratio(cov, var_s),
        "offset": _ratio(bias, np.sqrt(var_t)),
        "mse": mse,
        "r2": 1 - _ratio(mse, var_t),
        "rho": np.clip(_ratio(cov, np.sqrt(var_t * var_s)), -1.0, 1.0),
    }


def _within(t: Floats, s: Floats) -> Floats:
    t, s = t - t.mean(axis=1, keepdims=True), s - s.mean(axis=1, keepdims=True)
    return _ratio((t * s).sum(1), np.sqrt((t**2).sum(1) * (s**2).sum(1)))


def _mean_interval(values: Floats, weights: Floats) -> Interval:
    good = np.isfinite(values)
    if not good.any():
        return Interval(float("nan"), (float("-inf"), float("inf")))
    means = _ratio(weights[:, good] @ values[good], weights[:, good].sum(axis=1))
    return Interval(float(values[good].mean()), percentile(means))


def _shares(t: Floats, s: Floats) -> dict[str, float]:
    mse = float(((t - s) ** 2).mean())
    mean = float((t.mean() - s.mean()) ** 2)
    spread = float((t.std() - s.std()) ** 2)
    if mse == 0:
        return {"mean": 0.0, "spread": 0.0, "pattern": 0.0}
    return {"mean": mean / mse, "spread": spread / mse, "pattern": max(0.0, 1 - (mean + spread) / mse)}


def _ratio(top: Floats, bottom: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(bottom) > 0, np.asarray(top) / np.asarray(bottom), np.nan)


def _short(value: float) -> str:
    return f"{value:.3g}"
