"""If images above this score were called fake: who would be caught, and who accused?"""

from collections.abc import Mapping

import ipywidgets as ipw
import numpy as np
from IPython.display import HTML

from diag_lib import display
from diag_lib.distillation import DistillationResult
from diag_lib.plots import threshold as pictures
from diag_lib.probes.threshold import Confusion, Floats, Ints, candidates, confusion
from diag_lib.teacher import TeacherResult
from diag_lib.widgets.board import LABEL, Board, buttons, slider_layout


class ThresholdBoard(Board):
    """The controls are `of` (whose scores, where there are several) and `threshold`; it starts at logit 0."""

    def __init__(self, tables: Mapping[str, tuple[Ints, Floats]]) -> None:
        self._tables = dict(tables)
        first = next(iter(self._tables))
        self.of = buttons("scores of", self._tables, first)
        self.threshold = ipw.SelectionSlider(
            options=self._options(first),
            value=0.0,
            description="threshold",
            tooltip="image logit above which an image is called fake",
            style=LABEL,
            layout=slider_layout(),
        )
        self.of.observe(self._other_scores, names="value")
        super().__init__([[self.of], [self.threshold]] if len(self._tables) > 1 else [[self.threshold]])

    @property
    def now(self) -> Confusion:
        """The calls at the controls' values."""
        return confusion(*self._tables[self.of.value], self.threshold.value)

    def draw(self) -> list[HTML]:
        """Scores, ROC curve and confusion matrix."""
        now, value = self.now, self.threshold.value
        alt = (
            f"At threshold {value:.3g}, {now.fake_hit} of {now.fake_hit + now.fake_miss} fakes and "
            f"{now.real_miss} of {now.real_hit + now.real_miss} reals are called fake; accuracy {now.accuracy:.2f}."
        )
        return [display.figure(pictures.board(*self._tables[self.of.value], value, now), alt=alt)]

    def _options(self, name: str) -> list[tuple[str, float]]:
        return [(f"{value:.3g}", value) for value in candidates(self._tables[name][1])]

    def _other_scores(self, change: object) -> None:
        with self.together():
            self.threshold.options = self._options(self.of.value)
            self.threshold.value = 0.0


def threshold_board(result: TeacherResult | DistillationResult) -> ThresholdBoard:
    """The validation scores of step 02's teacher, or of the status quo and the best arm of step 05."""
    if isinstance(result, TeacherResult):
        table = result.of_split("val")
        return ThresholdBoard({"teacher": (_ints(table["label"]), _floats(table["score"]))})
    names = dict.fromkeys(["status_quo", "bce_only", result.choice.best])
    tables = {name: result.arms[name].val_scores for name in names if name in result.arms}
    return ThresholdBoard(
        {name: (_ints(table["label"]), _floats(table["score"])) for name, table in tables.items()}
    )


def _ints(column: object) -> Ints:
    return np.asarray(column, dtype=np.int64)


def _floats(column: object) -> Floats:
    return np.asarray(column, dtype=np.float64)
