"""What do teacher and student see in this picture, and what exactly do they say about this patch?"""

from pathlib import Path

import ipywidgets as ipw
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from IPython.display import HTML

from diag_lib import display
from diag_lib.evidence import RunFolder
from diag_lib.images import ImageSet, open_split
from diag_lib.logits import LogitsResult
from diag_lib.models import pool
from diag_lib.plots import gallery as pictures
from diag_lib.plots.style import CLASS_NAMES
from diag_lib.probes.gallery import ORDERS, Gallery
from diag_lib.probes.pairs import image_limit, spread
from diag_lib.settings import Settings
from diag_lib.teacher import TeacherResult
from diag_lib.teacher_cache import teacher_maps
from diag_lib.widgets.board import LABEL, Board, buttons, slider_layout

ALL = -1  # not None, which would be no button pressed


class HeatmapBrowser(Board):
    """The controls are `shown` (class), `order`, `place`, `previous`, `next`, `row` and `column` (all from 1)."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        present = [label for label in (0, 1) if (gallery.labels == label).any()]
        classes = [(f"only {CLASS_NAMES[label]}", label) for label in present]
        self.shown = buttons("show", [("all", ALL), *classes], ALL)
        self.order = buttons("order", ORDERS, ORDERS[0])
        self.previous = ipw.Button(description="Previous", tooltip="the picture before")
        self.next = ipw.Button(description="Next", tooltip="the picture after")
        rows, columns = gallery.grid
        self.place = _slider("picture", len(gallery.labels), 1)
        self.row = _slider("row", rows, (rows + 1) // 2)
        self.column = _slider("column", columns, (columns + 1) // 2)
        self._rows = gallery.order()
        self.previous.on_click(lambda _: self._step(-1))
        self.next.on_click(lambda _: self._step(+1))
        for control in (self.shown, self.order):
            control.observe(self._reorder, names="value")
        super().__init__(
            [[self.shown, self.order], [self.place, self.previous, self.next], [self.row, self.column]]
        )

    @property
    def image(self) -> int:
        """Index in the gallery of the picture that is shown."""
        return int(self._rows[self.place.value - 1])

    def draw(self) -> list[HTML]:
        """The picture, its maps, and the numbers of the chosen patch."""
        cell = (self.row.value - 1, self.column.value - 1)
        where = f"row {self.row.value}, column {self.column.value}"
        values = {name: float(maps[cell]) for name, maps in self.gallery.maps(self.image).items()}
        label = CLASS_NAMES[int(self.gallery.labels[self.image])]
        said = ", ".join(f"{pictures.TITLES[name]} {value:+.4g}" for name, value in values.items())
        alt = f"A {label} picture and its patch logits. Patch {where}: {said}."
        told = {
            "picture": f"{self.place.value} of {len(self._rows)}",
            "label": label,
            f"{self.gallery.judge}'s image logit": f"{self.gallery.scores[self.image]:+.4g}",
            **{f"patch: {pictures.TITLES[name]}": f"{value:+.4g}" for name, value in values.items()},
            "file": self.gallery.paths[self.image],
        }
        return [
            display.figure(pictures.card(self.gallery, self.image, cell), alt=alt),
            display.table(
                pd.DataFrame([told]), f"Patch at {where} (the first is top left); above 0 means fake"
            ),
        ]

    def _step(self, by: int) -> None:
        """Next or previous picture, round and round."""
        self.place.value = (self.place.value - 1 + by) % len(self._rows) + 1

    def _reorder(self, change: object) -> None:
        with self.together():
            label = None if self.shown.value == ALL else self.shown.value
            self._rows = self.gallery.order(label, self.order.value)
            self.place.value = 1
            self.place.max = len(self._rows)


def heatmap_browser(result: LogitsResult | TeacherResult, run_dir: RunFolder | str | Path) -> HeatmapBrowser:
    """Validation pictures with the maps of step 02 (teacher) or step 03 (teacher and student), one at a time."""
    run = run_dir if isinstance(run_dir, RunFolder) else RunFolder(run_dir)
    images = open_split(result.settings, "val", run)
    made = _of_both(result, images) if isinstance(result, LogitsResult) else _of_teacher(result, images, run)
    return HeatmapBrowser(made)


def _of_both(result: LogitsResult, images: ImageSet) -> Gallery:
    pairs = result.pairs
    place = {path: row for row, path in reversed(list(enumerate(images.frame["path"])))}
    chosen = np.array([place[path] for path in pairs.frame["path"]], np.int64)
    shape = (len(chosen), *pairs.examples[0].teacher.shape)
    sides = pairs.teacher.reshape(shape), pairs.trained.reshape(shape)
    judge, maps = ("student", sides[1]) if np.isfinite(sides[1]).any() else ("teacher", sides[0])
    return _gallery(result.settings, images, chosen, sides[0], sides[1], judge, maps)


def _of_teacher(result: TeacherResult, images: ImageSet, run: RunFolder) -> Gallery:
    known = teacher_maps(result.settings, images, run, progress=False)
    chosen = spread(images.labels, image_limit(int(np.prod(known.shape))), result.settings.training.seed)
    maps = known.get(chosen)[:, 0].numpy()
    return _gallery(result.settings, images, chosen, maps, None, "teacher", maps)


def _gallery(
    settings: Settings,
    images: ImageSet,
    chosen: npt.NDArray[np.int64],
    teacher: npt.NDArray[np.float32],
    student: npt.NDArray[np.float32] | None,
    judge: str,
    judging: npt.NDArray[np.float32],
) -> Gallery:
    def pixels(image: int) -> npt.NDArray[np.uint8]:
        found: npt.NDArray[np.uint8] = images.pixels(chosen[[image]])[0].permute(1, 2, 0).numpy()
        return found

    scores = pool(torch.as_tensor(judging, dtype=torch.float64)[:, None], settings.pooling).numpy()
    paths = images.frame["path"].iloc[chosen].tolist()
    return Gallery(paths, images.labels[chosen], teacher, student, scores, judge, pixels)


def _slider(name: str, last: int, value: int) -> ipw.IntSlider:
    return ipw.IntSlider(
        value, min=1, max=last, description=name, tooltip=name, style=LABEL, layout=slider_layout()
    )
