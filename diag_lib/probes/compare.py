"""Which of several trainings is best, and is that proven on images that did not choose it?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm

from diag_lib.statistics import MATERIAL_GAIN, Answer, Auc, AucDifference, auc, auc_difference

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """The image logits of several candidates on the same validation images, `half_a` marks those that may choose."""

    labels: npt.NDArray[np.int64]
    half_a: npt.NDArray[np.bool_]
    of: dict[str, Floats]

    def auc(self, name: str) -> Auc:
        """On all validation images."""
        return auc(self.labels, self.of[name], nan="undefined")

    def auc_a(self, name: str) -> float:
        """The number that chooses; 0 where undefined, so that it is never chosen."""
        measured = auc(self.labels[self.half_a], self.of[name][self.half_a], nan="undefined")
        return measured.value if measured.defined else 0.0

    def difference(self, before: str, after: str) -> AucDifference:
        """Paired, on all validation images."""
        return paired(self.labels, self.of[before], self.of[after])

    def difference_b(self, before: str, after: str) -> AucDifference:
        """Paired, on the images that chose nothing."""
        b = ~self.half_a
        return paired(self.labels[b], self.of[before][b], self.of[after][b])


@dataclass(frozen=True)
class Choice:
    """`best` has the highest AUC on half A; `proof` is its paired gain over `reference` on half B."""

    reference: str
    best: str
    on_a: dict[str, float]
    proof: AucDifference

    @property
    def answer(self) -> Answer:
        """Does another candidate serve better than the reference?"""
        if self.best == self.reference:
            return "no"
        return gains(self.proof)


def paired(
    labels: npt.NDArray[np.int64],
    before: Floats,
    after: Floats,
    groups: npt.NDArray[np.generic] | None = None,
) -> AucDifference:
    """`auc_difference` of two networks' scores (n,), one of which may have collapsed.

    A network whose scores are constant or not finite ranks no image: against one that does, its ties count as
    the AUC of exactly 0.5 that they are, and the interval is that of the other. Two of them stay undefined.
    """
    difference = auc_difference(labels, _ranked(before), _ranked(after), groups=groups, nan="undefined")
    measured = {side.defined: side for side in (difference.before, difference.after)}
    if len(measured) < 2:
        return difference
    told = measured[True]
    tied = Auc(0.5, (0.5, 0.5), 0.0, told.n_real, told.n_fake, True)
    sides = (tied, told) if told is difference.after else (told, tied)
    sign = 1.0 if told is difference.after else -1.0
    ends = sorted(sign * (end - 0.5) for end in told.ci)
    p = float(2 * norm.sf(abs(told.value - 0.5) / told.se)) if told.se > 0 else 1.0
    return AucDifference(sign * (told.value - 0.5), (ends[0], ends[1]), told.se, p, 0.0, *sides)


def _ranked(scores: Floats) -> Floats:
    """The scores, or nothing but ties when one of them is not finite."""
    return scores if np.isfinite(scores).all() else np.zeros_like(scores)


def gains(difference: AucDifference) -> Answer:
    """yes: a material gain whose interval excludes 0; no: the interval, or the room up to 1, excludes one."""
    if difference.before.defined and 1 - difference.before.value < MATERIAL_GAIN:
        return "no"
    if difference.delta >= MATERIAL_GAIN and difference.ci[0] > 0:
        return "yes"
    return "no" if difference.ci[1] < MATERIAL_GAIN else "undecided"


def sides(difference: AucDifference) -> dict[str, Any]:
    """Both sides of a comparison as a finding's `data` keeps them, for the verdict to read again."""
    return {
        "before": difference.before.value,
        "before_ci": difference.before.ci,
        "after": difference.after.value,
        "after_ci": difference.after.ci,
        "p": difference.p,
        "correlation": difference.correlation,
    }


def choose_and_prove(scores: Scores, reference: str) -> Choice:
    """Choose on half A among all candidates (a tie keeps the reference), prove on half B."""
    on_a = {name: scores.auc_a(name) for name in scores.of}
    best = max(on_a, key=lambda name: (on_a[name], name == reference))
    return Choice(reference, best, on_a, scores.difference_b(reference, best))


def rows(table: pd.DataFrame) -> list[Any]:
    """The rows as named tuples."""
    return list(table.itertuples())


def common_scores(tables: Mapping[str, pd.DataFrame]) -> Scores:
    """Bring score tables (columns path, label, half, score) onto their common validation images, in one order."""
    if not tables:
        raise ValueError("no score tables")
    indexed = {name: table.drop_duplicates("path").set_index("path") for name, table in tables.items()}
    paths = next(iter(indexed.values())).index
    for table in indexed.values():
        paths = paths.intersection(table.index, sort=False)
    first = next(iter(indexed.values())).loc[paths]
    return Scores(
        first["label"].to_numpy(np.int64),
        (first["half"] == "A").to_numpy(),
        {name: table.loc[paths, "score"].to_numpy(np.float64) for name, table in indexed.items()},
    )
