"""What does a training curve say: learning, flat, wandering, falling apart, or stopped too early?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal[
    "unknown",
    "short",
    "non-finite",
    "oscillating",
    "worsening",
    "turned",
    "still improving",
    "improved",
    "flat",
]

SAID: dict[str, str] = {
    "unknown": "not in the history",
    "short": "too few epochs to judge",
    "non-finite": "is not a finite number from epoch {epoch} on",
    "oscillating": "jumps up and down by about {noise:.2g} an epoch",
    "worsening": "gets worse, from {start:.3g} to {end:.3g}",
    "turned": "was best ({best:.3g}) in epoch {epoch} and has got worse since, to {end:.3g}",
    "still improving": "still improves at the end, from {start:.3g} to {end:.3g}",
    "improved": "improves from {start:.3g} to {end:.3g} and has settled",
    "flat": "stays where it started, at {end:.3g}",
}
"""What each kind means, in words."""

ENOUGH = 3  # epochs
LOSS_TOLERANCE = 0.02  # of the start: smaller changes of a loss are no change
AUC_TOLERANCE = 0.02
WILD_LOSS = 0.1  # an epoch-to-epoch noise of a tenth of the loss
WILD_AUC = 0.05


@dataclass(frozen=True)
class Curve:
    """One curve in numbers and words.

    `start`, `end`: medians of the first and last sixth of the epochs; `last`, `best`: single epochs; `epoch` is
    that of the best value, or of the first that is not finite; `noise` is the sd of the epoch-to-epoch scatter
    around the trend.
    """

    kind: Kind
    start: float
    end: float
    last: float
    best: float
    epoch: int
    noise: float

    @property
    def said(self) -> str:
        """The curve in a phrase, to follow its name."""
        fields = {name: getattr(self, name) for name in ("start", "end", "best", "epoch", "noise")}
        return SAID[self.kind].format(**fields)

    @property
    def diverges(self) -> bool:
        """Whether it ends at more than twice its start: a loss that has exploded."""
        return self.kind in {"worsening", "turned"} and self.end > 2 * self.start > 0


def describe(values: Sequence[float] | NDArray[np.float64], better: Literal["lower", "higher"]) -> Curve:
    """What the curve of one value an epoch says; `better` is "lower" for losses, "higher" for AUC and accuracy.

    Gaps (epochs without a value, between others) are passed over; infinities, and NaN that lasts to the end, are not.
    """
    y = np.asarray(values, dtype=np.float64)
    broken = _first_broken(y)
    finite = np.flatnonzero(np.isfinite(y))
    y = y[finite]
    if y.size == 0:
        kind: Kind = "unknown" if broken is None else "non-finite"
        return Curve(kind, math.nan, math.nan, math.nan, math.nan, broken or 0, math.nan)
    sign = 1.0 if better == "lower" else -1.0
    edge = max(1, y.size // 6)
    start, end = float(np.median(y[:edge])), float(np.median(y[-edge:]))
    best = int(np.argmin(sign * y))
    noise = _noise(y)
    kind = "non-finite" if broken is not None else _kind(sign * y, sign, start, end, noise)
    epoch = broken if broken is not None else int(finite[best]) + 1
    return Curve(kind, start, end, float(y[-1]), float(y[best]), epoch, noise)


def _kind(y: NDArray[np.float64], sign: float, start: float, end: float, noise: float) -> Kind:
    """`y` is signed such that lower is better."""
    if y.size < ENOUGH:
        return "short"
    level = float(np.median(np.abs(y)))
    tolerance = LOSS_TOLERANCE * abs(start) if sign > 0 else AUC_TOLERANCE
    edge = max(1, y.size // 6)
    change = max(tolerance, 4.5 * noise / math.sqrt(edge))  # 2.5 sd of a difference of two such medians
    gain = sign * (start - end)
    if noise > (WILD_LOSS * level if sign > 0 else WILD_AUC) and abs(gain) < 4 * noise:
        return "oscillating"
    smooth = np.array([np.median(y[max(0, i - 1) : i + 2]) for i in range(y.size)])
    lowest, turn = float(smooth.min()), int(smooth.argmin())
    if (
        edge <= turn < y.size - 2 * edge
        and sign * start - lowest > change
        and sign * end - lowest > max(tolerance, 4 * noise)
    ):
        return "turned"
    if gain < -change:
        return "worsening"
    if _improves_at_the_end(y, tolerance, noise):
        return "still improving"
    return "improved" if gain > change else "flat"


def _improves_at_the_end(y: NDArray[np.float64], tolerance: float, noise: float) -> bool:
    """Kendall's trend test (one-sided 1%) over the last third, at least five epochs, and more than a trifle."""
    window = y[-max(5, y.size // 3) :]
    if window.size < 5:
        return False
    from scipy.stats import kendalltau

    found = kendalltau(np.arange(window.size), window, alternative="less")
    half = window.size // 2
    dropped = float(np.median(window[:half]) - np.median(window[-half:]))
    return bool(found.pvalue < 0.01) and dropped > max(tolerance / 2, 2 * noise / math.sqrt(half))


def _noise(y: NDArray[np.float64]) -> float:
    """sd of the scatter around a local straight line, from second differences (robust)."""
    if y.size < 4:
        return 0.0
    second = np.diff(y, 2)
    return float(1.4826 * np.median(np.abs(second)) / math.sqrt(6))


def _first_broken(y: NDArray[np.float64]) -> int | None:
    """Epoch (from 1) of the first value that is not finite and no mere gap."""
    if np.isinf(y).any():
        return int(np.flatnonzero(np.isinf(y))[0]) + 1
    known = np.flatnonzero(np.isfinite(y))
    if known.size == 0:
        return None
    trailing = y.size - 1 - int(known[-1])
    gap = int(np.diff(known).max()) - 1 if known.size > 1 else 0
    return int(known[-1]) + 2 if trailing > gap else None
