"""If images above this score were called fake: who would be caught, who accused, and what do the mistakes look like?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ipywidgets as ipw
import numpy as np
import numpy.typing as npt
import pandas as pd
from IPython.display import HTML

from diag_lib import display
from diag_lib.distillation import DistillationResult
from diag_lib.evidence import RunFolder
from diag_lib.images import open_split
from diag_lib.live import live
from diag_lib.plots import threshold as pictures
from diag_lib.probes.threshold import Confusion, Floats, Ints, candidates, confusion, mistakes
from diag_lib.settings import Settings
from diag_lib.teacher import TeacherResult
from diag_lib.widgets.board import LABEL, Board, buttons, slider_layout

SHOWN = 6
PLACE = 230
"""Pixels kept for a row of mistakes where the slider can be moved: nothing below jumps when there are fewer."""
NAME_LENGTH = 48
MISTAKES = {0: ("Reals called fake", "highest"), 1: ("Fakes called real", "lowest")}


@dataclass(frozen=True)
class Files:
    """The scored images: `paths` beside the scores of each name, `pixels(path)` as uint8 (H, W, 3), read when asked."""

    paths: Mapping[str, list[str]]
    pixels: Callable[[str], npt.NDArray[np.uint8]]


class ThresholdBoard(Board):
    """The controls are `of` (whose scores, where there are several) and `threshold`; it starts at logit 0.

    With `files` the worst mistakes of both kinds are shown as pictures; only those that are shown are read.
    """

    def __init__(self, tables: Mapping[str, tuple[Ints, Floats]], files: Files | None = None) -> None:
        self._tables, self._files = dict(tables), files
        self._rows: dict[tuple[str, int, bytes, int], HTML] = {}
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
        """Scores, ROC curve and confusion matrix, and below them the worst mistakes."""
        now, value = self.now, self.threshold.value
        alt = (
            f"At threshold {value:.3g}, {now.fake_hit} of {now.fake_hit + now.fake_miss} fakes and "
            f"{now.real_miss} of {now.real_hit + now.real_miss} reals are called fake; accuracy {now.accuracy:.2f}."
        )
        figure = display.figure(pictures.board(*self._tables[self.of.value], value, now), alt=alt)
        return [figure, *([self._mistakes(label) for label in (0, 1)] if self._files else [])]

    def _mistakes(self, label: int) -> HTML:
        """The worst mistakes among the images of a class; kept, since most thresholds share them."""
        name = self.of.value
        labels, scores = self._tables[name]
        wrong = mistakes(labels, scores, self.threshold.value, label)
        key = (name, label, wrong[:SHOWN].tobytes(), len(wrong))
        if key not in self._rows:
            self._rows[key] = self._row(name, label, wrong)
        return self._rows[key]

    def _row(self, name: str, label: int, wrong: Ints) -> HTML:
        assert self._files is not None
        what, end = MISTAKES[label]
        place = PLACE if live() else 0
        if not len(wrong):
            return display.thumbnails([], [], f"{what}: none", place)
        rest = f"the {SHOWN} of {len(wrong):,} with the {end} scores" if len(wrong) > SHOWN else "all"
        paths = [self._files.paths[name][row] for row in wrong[:SHOWN]]
        captions = [
            f"{score:+#.3g}  {_short(path)}"
            for score, path in zip(self._tables[name][1][wrong], paths, strict=False)
        ]
        return display.thumbnails(
            [self._files.pixels(path) for path in paths], captions, f"{what}: {rest}", place
        )

    def _options(self, name: str) -> list[tuple[str, float]]:
        return [(f"{value:.3g}", value) for value in candidates(self._tables[name][1])]

    def _other_scores(self, change: object) -> None:
        with self.together():
            self.threshold.options = self._options(self.of.value)
            self.threshold.value = 0.0


def threshold_board(
    result: TeacherResult | DistillationResult, run_dir: RunFolder | str | Path
) -> ThresholdBoard:
    """The validation scores of step 02's teacher, or of the status quo and the best arm of step 05."""
    run = run_dir if isinstance(run_dir, RunFolder) else RunFolder(run_dir)
    if isinstance(result, TeacherResult):
        scored = {"teacher": result.of_split("val")}
    else:
        names = dict.fromkeys(["status_quo", "bce_only", result.choice.best])
        scored = {name: result.arms[name].val_scores for name in names if name in result.arms}
    tables = {name: (_ints(table["label"]), _floats(table["score"])) for name, table in scored.items()}
    return ThresholdBoard(tables, _files(result.settings, run, scored))


def _files(settings: Settings, run: RunFolder, scored: Mapping[str, pd.DataFrame]) -> Files:
    images = open_split(settings, "val", run)
    place = {path: row for row, path in reversed(list(enumerate(images.frame["path"])))}

    def pixels(path: str) -> npt.NDArray[np.uint8]:
        found: npt.NDArray[np.uint8] = images.pixels([place[path]])[0].permute(1, 2, 0).numpy()
        return found

    return Files({name: table["path"].tolist() for name, table in scored.items()}, pixels)


def _short(path: str) -> str:
    """The end of a path: that is where files differ."""
    return path if len(path) <= NAME_LENGTH else f"…{path[1 - NAME_LENGTH :]}"


def _ints(column: object) -> Ints:
    return np.asarray(column, dtype=np.int64)


def _floats(column: object) -> Floats:
    return np.asarray(column, dtype=np.float64)
