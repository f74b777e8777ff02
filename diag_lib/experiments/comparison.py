"""What did taking a cause away change? Two students (or two evaluations of one) on the same images."""

import math
from dataclasses import dataclass

import pandas as pd

from diag_lib.probes.compare import paired
from diag_lib.statistics import Auc, AucDifference


@dataclass(frozen=True)
class Measured:
    """An arm (or an evaluation of one) and its AUC on the compared images."""

    arm: str
    auc: Auc


@dataclass(frozen=True)
class Comparison:
    """Before and after taking a cause away; `delta` = after - before with its two-sided 95% interval."""

    what: str
    before: Measured
    after: Measured
    delta: float
    ci: tuple[float, float]
    p: float
    correlation: float = 0.0
    direct: bool = False
    confirmation: "Comparison | None" = None

    @property
    def defined(self) -> bool:
        """Whether there is a difference: not where the scores of both sides are constant, or a class is missing."""
        return math.isfinite(self.delta)

    def sentence(self) -> str:
        """The comparison in words, with intervals."""
        if not self.defined:
            return f"{self.what} leaves both sides without an AUC: the same score for every image, or a class missing"
        verb = "raises" if self.ci[0] > 0 else "lowers" if self.ci[1] < 0 else "does not clearly change"
        low, high = self.ci
        before, after = self.before.auc.value, self.after.auc.value
        return (
            f"{self.what} {verb} the AUC: {before:.2f} before, {after:.2f} after "
            f"({self.delta:+.2f} [{low:+.2f}, {high:+.2f}])"
        )

    def in_full(self) -> str:
        """The sentence, and what the same change did to a training from another seed."""
        second = self.confirmation
        if second is None:
            return self.sentence()
        if not second.defined:
            return f"{self.sentence()}; from another seed neither side has an AUC"
        low, high = second.ci
        return f"{self.sentence()}; from another seed {second.delta:+.2f} [{low:+.2f}, {high:+.2f}]"


def half_b(scores: pd.DataFrame) -> pd.DataFrame:
    """The validation images that chose nothing."""
    return scores[scores["half"] == "B"]


def compare(what: str, before: str, left: pd.DataFrame, after: str, right: pd.DataFrame) -> Comparison | None:
    """Paired comparison of two score tables (columns path, label, score) on their common images."""
    both = left.merge(right, on="path", suffixes=("_before", "_after"))
    if both.empty:
        return None
    labels, old, new = (both[name].to_numpy() for name in ("label_before", "score_before", "score_after"))
    return from_difference(what, before, after, paired(labels, old, new))


def from_difference(what: str, before: str, after: str, difference: AucDifference) -> Comparison:
    """The comparison of two sides by name, from the difference of their AUCs."""
    return Comparison(
        what,
        Measured(before, difference.before),
        Measured(after, difference.after),
        difference.delta,
        difference.ci,
        difference.p,
        difference.correlation,
    )
