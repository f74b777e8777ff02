"""Which of these pictures should go, or change their class? Ticks by issue become a curation file."""

import contextlib
import math
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import numpy as np
import numpy.typing as npt
import pandas as pd
from IPython.display import HTML

from diag_lib import display
from diag_lib.audit import AuditResult, curation
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.images import DecodeError, decode
from diag_lib.images.views import fit
from diag_lib.plots.style import CLASS_NAMES
from diag_lib.widgets.board import Board, buttons, place

PAGE = 6
TILE = 128
SAID = 100
KEEP = "keep"
CHOICES = (KEEP, "exclude", "relabel")
NOTHING = "The audit found no picture that needs a decision."


class CurationBoard(Board):
    """The controls are `issue`, `previous`, `next`, `tiles` (a choice each), `all_of_issue` and `write`.

    `marks` holds the decisions (path -> exclude | relabel), those of an earlier session of this run folder first.
    Its still picture shows the first pictures of every issue.
    """

    def __init__(self, result: AuditResult, run: RunFolder) -> None:
        self.result, self.run = result, run
        self.issues = curation.issues(result)
        self.marks: curation.Marks = curation.saved(run)
        self.page, self.said = 0, ""
        self._file_of = dict(zip(result.frame["path"], result.frame["file"], strict=True))
        names = [(f"{name} ({len(table)})", name) for name, table in self.issues.items()] or [("none", "")]
        self.issue = buttons("issue", names, names[0][1])
        self.previous = ipw.Button(description="Previous", tooltip="the pictures before")
        self.next = ipw.Button(description="Next", tooltip="the pictures after")
        self.all_of_issue = ipw.Button(
            description="Exclude all of this issue", layout=ipw.Layout(width="auto")
        )
        self.write = ipw.Button(description="Save curation.csv", button_style="primary")
        self.tiles = [_Tile() for _ in range(PAGE)]
        super().__init__(
            [
                [self.issue],
                [self.previous, self.next, self.all_of_issue, self.write],
                [tile.view for tile in self.tiles],
            ]
        )
        self.issue.observe(self._turn_to_first, names="value")
        self.previous.on_click(lambda _: self._turn(-1))
        self.next.on_click(lambda _: self._turn(+1))
        self.all_of_issue.on_click(lambda _: self._exclude_all())
        self.write.on_click(lambda _: self.save())
        for tile in self.tiles:
            tile.choice.observe(self._chosen, names="value")
        self._fill()

    @property
    def shown(self) -> pd.DataFrame:
        """The rows of the page: path, split, label, why."""
        table = self.issues.get(self.issue.value)
        return _NO_ROWS if table is None else table.iloc[self.page * PAGE : (self.page + 1) * PAGE]

    def save(self) -> Path | None:
        """Write the run folder's `curation.csv`; None where that is not possible, and the board says why."""
        try:
            file = curation.save(self.result, self.run, self.marks)
        except UserError as error:
            self.said = str(error)
            file = None
        else:
            self.said = (
                f"Saved. To use it set dataset.curation to {self.run.root.name}/{curation.FILE} (a run with it says "
                "how many images it leaves out or relabels); the dataset itself is unchanged."
            )
        self.redraw()
        return file

    def redraw(self) -> None:
        """Only what stands below the tiles: they show the pictures already."""
        self.picture.value = "".join(str(part.data) for part in self._summary())

    def draw(self) -> list[HTML]:
        """The first pictures of every issue, and the decisions so far."""
        parts = [
            display.thumbnails(
                [self._pixels(path) for path in table["path"].head(PAGE)],
                [_caption(row) for row in table.head(PAGE).to_dict("records")],
                f"{name}: {len(table)}" + (f", the first {PAGE}" if len(table) > PAGE else ""),
            )
            for name, table in self.issues.items()
        ]
        return [*parts, *self._summary()]

    def _summary(self) -> list[HTML]:
        if not self.issues:
            return [display.callout("ok", NOTHING, "Nothing to decide")]
        counts = pd.Series(list(self.marks.values()), dtype=object).value_counts()
        told = f"{counts.get('exclude', 0)} to exclude, {counts.get('relabel', 0)} to relabel"
        last = math.ceil(len(self.issues[self.issue.value]) / PAGE)
        where = f"{self.issue.value}, page {self.page + 1} of {last}"
        return [display.callout("note", f"{where}. {self.said}", f"Decisions: {told}", place(SAID))]

    def _pixels(self, path: str) -> npt.NDArray[np.uint8]:
        with contextlib.suppress(DecodeError, KeyError):
            return fit(decode(self._file_of[path]), "shortest", TILE)
        return np.full((TILE, TILE, 3), 255, np.uint8)

    def _fill(self) -> None:
        """Show the page's pictures with the decisions that are known."""
        rows = [*self.shown.to_dict("records"), *[None] * PAGE][:PAGE]
        self._quiet = True
        for tile, row in zip(self.tiles, rows, strict=True):
            path = None if row is None else str(row["path"])
            picture = (
                "" if path is None else str(display.thumbnails([self._pixels(path)], [_caption(row)]).data)
            )
            tile.show(path, picture, self.marks.get(path or "", KEEP))
        self._quiet = False
        self.redraw()

    def _turn(self, by: int) -> None:
        """Next or previous page, round and round."""
        table = self.issues.get(self.issue.value)
        if table is not None:
            self.page = (self.page + by) % math.ceil(len(table) / PAGE)
            self._fill()

    def _turn_to_first(self, change: Any) -> None:
        self.page = 0
        self._fill()

    def _chosen(self, change: Any) -> None:
        if self._quiet:
            return
        for tile in self.tiles:
            if tile.path is not None:
                self._mark(tile.path, tile.choice.value)
        self.redraw()

    def _exclude_all(self) -> None:
        for path in self.issues[self.issue.value]["path"] if self.issues else ():
            self._mark(path, "exclude")
        self._fill()

    def _mark(self, path: str, choice: str) -> None:
        self.said = ""
        if choice == KEEP:
            self.marks.pop(path, None)
        else:
            self.marks[path] = "relabel" if choice == "relabel" else "exclude"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {**super()._repr_mimebundle_(include, exclude), "text/html": self.still()}


class _Tile:
    """One picture above its choice."""

    def __init__(self) -> None:
        self.path: str | None = None
        # A height of its own: captions of one line or five do not move what stands below.
        self.picture = ipw.HTML(layout=ipw.Layout(height="17em", overflow="auto"))
        self.picture.add_class("jp-RenderedHTMLCommon")
        self.choice = ipw.ToggleButtons(options=list(CHOICES), value=KEEP, style={"button_width": "auto"})
        self.view = ipw.VBox([self.picture, self.choice], layout=ipw.Layout(width="17em", overflow="visible"))

    def show(self, path: str | None, picture: str, choice: str) -> None:
        self.path, self.picture.value, self.choice.value = path, picture, choice
        self.view.layout.visibility = "hidden" if path is None else "visible"


_NO_ROWS = pd.DataFrame(columns=["path", "split", "label", "why"])


def _caption(row: Any) -> str:
    return f"{row['split']}, {CLASS_NAMES[int(row['label'])]}: {row['path']} ({row['why']})"


def curation_board(result: AuditResult, run_dir: RunFolder | str | Path) -> CurationBoard:
    """The pictures that step 01 found doubtful, to be excluded or relabelled.

    Raises `UserError` when the run folder holds a curation.csv that is none.
    """
    return CurationBoard(result, run_dir if isinstance(run_dir, RunFolder) else RunFolder(run_dir))
