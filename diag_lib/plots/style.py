"""Do all figures look alike? Fixed colours, finding-as-title, drawn thresholds, direct labels.

The colours are those of Okabe and Ito (2008) and Tol (2021): they stay apart under every common colour
vision deficiency. Meaning is never carried by colour alone: lines have labels, thresholds are dashed.
"""

import functools
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

REAL = "#0072B2"
FAKE = "#D55E00"
TEACHER = "#009E73"
STUDENT = "#AA3377"
GOOD = "#117733"
BAD = "#882255"
NEUTRAL = "#595959"
INK = "#1A1A1A"
GRID = "#E3E3E3"
PAPER = "#FFFFFF"

CLASS_COLOURS: dict[int, str] = {0: REAL, 1: FAKE}
CLASS_NAMES: dict[int, str] = {0: "real", 1: "fake"}
MODEL_COLOURS: dict[str, str] = {"teacher": TEACHER, "student": STUDENT}
SERIES: tuple[str, ...] = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#AA3377",
    "#E69F00",
    "#56B4E9",
    "#595959",
    "#882255",
)
SEQUENTIAL = "cividis"
DIVERGING = LinearSegmentedColormap.from_list("real-fake", ["#003a5d", REAL, "#f5f5f5", FAKE, "#6e3000"])
"""Of values around 0: towards real in the colour of real images, towards fake in that of fake ones."""

Kind = Literal["good", "bad", "neutral"]
KIND_COLOURS: dict[str, str] = {"good": GOOD, "bad": BAD, "neutral": NEUTRAL}

RC: dict[str, Any] = {
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9A9A9A",
    "xtick.color": "#4A4A4A",
    "ytick.color": "#4A4A4A",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "patch.linewidth": 0,
    "axes.prop_cycle": cycler(color=list(SERIES)),
    "image.cmap": SEQUENTIAL,
    "image.interpolation": "nearest",
    "axes.unicode_minus": False,
    "svg.hashsalt": "diag",
}

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def context() -> Iterator[None]:
    """The house style for the duration of a block; the caller's matplotlib settings come back after it."""
    rc: Any = {**mpl.rcParamsDefault, **RC}
    with mpl.rc_context({key: value for key, value in rc.items() if "backend" not in key}):
        yield


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorator for a drawing function: everything in it is drawn in the house style."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with context():
            return draw(*args, **kwargs)

    return inside


def plain(text: object, limit: int = 60) -> str:
    """A name from outside (file, source, arm) as a label: no math markup, no control characters, short."""
    shown = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c)[0] == "C" else c for c in str(text)
    )
    if len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return shown.replace("$", r"\$")


def new_figure(
    rows: int = 1,
    cols: int = 1,
    *,
    width: float = 8.0,
    height: float | None = None,
    sharex: bool = False,
    sharey: bool = False,
    **grid: Any,
) -> tuple[Figure, Any]:
    """A figure outside pyplot's list, so that nothing leaks and nothing shows twice.

    Parameters: `width`, `height` in inches (default height 3.4 a row); `grid` goes to `Figure.subplots`.
    Returns `(figure, axes)`: one Axes, or an array of them of shape (rows, cols) squeezed as matplotlib does.
    """
    with context():
        figure = Figure(figsize=(width, height or 3.4 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, cols, sharex=sharex, sharey=sharey, **grid)


def fix_layout(figure: Figure, **margins: float) -> None:
    """Places the axes once and for all: figures that are redrawn must not move, and they are drawn twice as fast.

    Parameters: those of `Figure.subplots_adjust`.
    """
    with context():  # the house style asks for no layout engine, so None takes the constrained one away
        figure.set_layout_engine(None)
    figure.subplots_adjust(**margins)


def finding_title(target: Axes | Figure, text: str, subtitle: str | None = None) -> None:
    """Title = the sentence a reader should take away; it wraps to the width of its axes or figure."""
    with context():
        if isinstance(target, Figure):
            lines = _wrapped(text, target.get_figwidth(), 9.6)
            lines = f"{lines}\n{_wrapped(subtitle, target.get_figwidth(), 9.6)}" if subtitle else lines
            title = target.suptitle(lines, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
        else:
            whole = target.get_figure(root=True)
            width = (whole.get_figwidth() if whole else 8.0) * target.get_position().width
            below = _wrapped(subtitle, width * 1.05, 14) if subtitle else ""
            if below:
                look: dict[str, Any] = {"color": NEUTRAL, "fontsize": 9, "va": "bottom", "parse_math": False}
                target.annotate(
                    below, (0, 1), xytext=(0, 3), xycoords="axes fraction", textcoords="offset points", **look
                )
            pad = 10 + 12 * (1 + below.count("\n")) if below else 10
            title = target.set_title(_wrapped(text, width * 1.05, 12), loc="left", pad=pad)
        title.set_parse_math(False)


def _wrapped(text: str, inches: float, characters_per_inch: float) -> str:
    return "\n".join(textwrap.wrap(text, max(24, int(inches * characters_per_inch))) or [""])


def threshold_line(
    ax: Axes, value: float, label: str, *, axis: Literal["x", "y"] = "y", kind: Kind = "neutral"
) -> Line2D:
    """A dashed line at `value` on the given axis, labelled where it stands (no legend entry)."""
    colour = KIND_COLOURS[kind]
    with context():
        if axis == "y":
            line = ax.axhline(value, color=colour, linestyle=(0, (5, 3)), linewidth=1.3, zorder=1.5)
            ax.annotate(
                label,
                (1, value),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                va="bottom",
                **_halo(colour),
            )
        else:
            line = ax.axvline(value, color=colour, linestyle=(0, (5, 3)), linewidth=1.3, zorder=1.5)
            ax.annotate(
                label,
                (value, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -2),
                textcoords="offset points",
                ha="left",
                va="top",
                **_halo(colour),
            )
    return line


def direct_label(
    ax: Axes, x: float, y: float, text: str, colour: str = INK, *, dx: float = 5, dy: float = 0
) -> Annotation:
    """Text next to a data point, in the colour of its line, on a white halo; offsets in points."""
    with context():
        return ax.annotate(
            text,
            (x, y),
            xytext=(dx, dy),
            textcoords="offset points",
            va="center",
            ha="left" if dx >= 0 else "right",
            annotation_clip=False,
            **_halo(colour),
        )


def _halo(colour: str) -> dict[str, Any]:
    return {
        "color": colour,
        "fontsize": 9,
        "parse_math": False,
        "zorder": 6,
        "bbox": {"facecolor": PAPER, "alpha": 0.8, "edgecolor": "none", "pad": 1.0},
    }


def label_lines(ax: Axes, labels: Sequence[tuple[Line2D, str]], *, gap: float = 0.08) -> None:
    """Labels lines at their right ends instead of a legend, at least `gap` axes heights apart.

    Call it last: later changes of the limits move the lines but not their labels.
    """
    with context():
        ax.get_xlim(), ax.get_ylim()  # settles autoscaling, so that data positions are final
        low, high = ax.transAxes.inverted(), ax.transData
        ends = []
        for line, text in labels:
            x, y = (np.asarray(v, dtype=float) for v in line.get_data())
            good = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
            if good.size:
                ends.append((float(low.transform(high.transform((x[good[-1]], y[good[-1]])))[1]), line, text))
        ends.sort(key=lambda end: end[0])
        place = -np.inf
        for height, line, text in ends:
            place = max(height, place + gap)
            ax.annotate(
                text,
                (1, place),
                xycoords="axes fraction",
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                annotation_clip=False,
                **_halo(str(line.get_color())),
            )


def interval_bars(
    ax: Axes,
    names: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    colours: Sequence[str] | str = NEUTRAL,
) -> None:
    """Horizontal dots with intervals, first name on top: "AUC with its 95% interval"."""
    shades = [colours] * len(names) if isinstance(colours, str) else list(colours)
    with context():
        for row, (value, (low, high), shade) in enumerate(zip(values, intervals, shades, strict=True)):
            ax.plot([low, high], [row, row], color=shade, linewidth=3, alpha=0.45)
            ax.plot([value], [row], "o", color=shade, markersize=7)
            if np.isfinite(value):
                direct_label(ax, value, row, f"{value:.2f}", dx=0, dy=10).set_horizontalalignment("center")
        ax.set_yticks(range(len(names)), [plain(name, 34) for name in names])
        ax.set_ylim(len(names) - 0.5, -0.7)
        ax.grid(visible=False, axis="y")
