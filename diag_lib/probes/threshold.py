"""Which images are called fake at this threshold, and how many of these calls are right?"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Confusion:
    """Counts of images: `fake_hit` fakes called fake, `fake_miss` fakes called real, and so on."""

    real_hit: int
    real_miss: int
    fake_miss: int
    fake_hit: int

    @property
    def tpr(self) -> float:
        """Share of the fakes that are called fake; NaN without fakes."""
        return _share(self.fake_hit, self.fake_miss)

    @property
    def fpr(self) -> float:
        """Share of the reals that are called fake; NaN without reals."""
        return _share(self.real_miss, self.real_hit)

    @property
    def accuracy(self) -> float:
        """Share of right calls over all images."""
        return _share(self.real_hit + self.fake_hit, self.real_miss + self.fake_miss)

    @property
    def balanced_accuracy(self) -> float:
        """Mean of both classes' shares of right calls: .5 for whoever calls all images alike."""
        return (self.tpr + 1 - self.fpr) / 2


def confusion(labels: Ints, scores: Floats, threshold: float) -> Confusion:
    """Calls `scores > threshold` fake; images whose score is NaN are left out."""
    known = ~np.isnan(scores)
    fake, called = labels[known] == 1, scores[known] > threshold
    counts = [int((side & call).sum()) for side in (~fake, fake) for call in (~called, called)]
    return Confusion(counts[0], counts[1], counts[2], counts[3])


def mistakes(labels: Ints, scores: Floats, threshold: float, label: int) -> Ints:
    """Rows of the images of class `label` that `scores > threshold` calls wrongly, the worst first; never NaN ones."""
    wrong = scores > threshold if label == 0 else scores <= threshold
    rows = np.flatnonzero((labels == label) & wrong)
    return rows[np.argsort(scores[rows] if label else -scores[rows], kind="stable")]


def candidates(scores: Floats, most: int = 101) -> list[float]:
    """At most about `most` thresholds between neighbouring scores, evenly spread over the images, and 0."""
    finite = np.unique(scores[np.isfinite(scores)])
    if finite.size == 0:
        return [0.0]
    middles = (finite[1:] + finite[:-1]) / 2
    chosen = np.unique(
        np.linspace(0, max(len(middles) - 1, 0), min(most, max(len(middles), 1))).round().astype(int)
    )
    inner = middles[chosen].tolist() if len(middles) else []
    spread = float(finite[-1] - finite[0]) or 1.0
    ends = [float(finite[0]) - 0.01 * spread, float(finite[-1]) + 0.01 * spread]
    return sorted({0.0, *inner, *ends})


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else float("nan")
