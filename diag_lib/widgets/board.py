"""What do all boards share? Controls above a picture that redraws, and a still picture where nobody can move them."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ipywidgets as ipw
from IPython.display import HTML

from diag_lib.live import live

VIEW = "application/vnd.jupyter.widget-view+json"
WORDS = 170
LABEL = {"description_width": "8em"}


class Board(ABC):
    """Controls and the picture that they redraw.

    Displayed in JupyterLab it is live; its `text/html` is the picture as it is now, so that executed notebooks and
    reports show that picture and no control.
    """

    def __init__(self, rows: Sequence[Sequence[ipw.Widget]]) -> None:
        self._quiet = False
        # `overflow: visible` and no scroll bars of their own: the boxes are as high as what they hold.
        lines = [
            ipw.HBox(list(row), layout=ipw.Layout(flex_flow="row wrap", overflow="visible")) for row in rows
        ]
        self.picture = ipw.HTML(layout=ipw.Layout(width="100%"))
        self.picture.add_class("jp-RenderedHTMLCommon")  # tables and text as in the other outputs
        self.view = ipw.VBox([*lines, self.picture], layout=ipw.Layout(width="100%", overflow="visible"))
        self.picture.value = self.still()
        for row in rows:
            for control in row:
                if "value" in control.traits():
                    control.observe(self._changed, names="value")

    @abstractmethod
    def draw(self) -> list[HTML]:
        """The picture and what stands below it for the controls' values, made by `diag_lib.display`."""

    def still(self) -> str:
        """The board as it is now, as escaped markup."""
        return "".join(str(part.data) for part in self.draw())

    def redraw(self) -> None:
        """Show the controls' values."""
        self.picture.value = self.still()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Several changes of controls, one redrawing after them."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False
        self.redraw()

    def _changed(self, change: Any) -> None:
        if not self._quiet:
            self.redraw()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {"text/plain": f"<{type(self).__name__}>", "text/html": self.picture.value}
        if live():
            view = self.view._repr_mimebundle_()
            bundle[VIEW] = (view[0] if isinstance(view, tuple) else view)[VIEW]
        return bundle


def place(pixels: int = WORDS) -> int:
    """Pixels kept for the words below a picture where controls change them, so that nothing below them jumps."""
    return pixels if live() else 0


def slider_layout() -> ipw.Layout:
    """Wide enough for the label, the slider and its value; narrower where the page is."""
    return ipw.Layout(width="26em", max_width="100%")


def buttons(
    name: str, options: Iterable[Any], value: Any, label: Mapping[str, str] = LABEL
) -> ipw.ToggleButtons:
    """One of a few: all to be seen, reached by Tab and pressed by Space.

    Not a drop-down menu: JupyterLab takes the arrow keys away from menus and moves to another cell.
    """
    return ipw.ToggleButtons(
        options=list(options), value=value, description=name, tooltip=name,
        style={**label, "button_width": "auto"},
        layout=ipw.Layout(display="flex", flex_flow="row wrap", max_width="100%", margin="2px 2em 2px 2px"),
    )  # fmt: skip
