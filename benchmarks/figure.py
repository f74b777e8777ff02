"""The ratios against their targets, and the curves of growth, as one picture."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diag_lib.plots.style import BAD, GOOD, INK, NEUTRAL, SERIES, styled

TARGETS: dict[str, tuple[float, str]] = {
    "speedup_cold": (8.0, "at least"),
    "speedup_warm": (40.0, "at least"),
    "step_ratio": (1.15, "at most"),
    "lone_step_ratio": (1.15, "at most"),
    "teacher_ratio": (1.10, "at most"),
}
BARS = (
    "speedup_cold", "speedup_warm", "speedup_flip_cold", "speedup_flip_warm",
    "torchdistill_over_ours_cold", "torchdistill_over_ours_warm", "step_ratio",
    "lone_step_ratio", "teacher_ratio",
)  # fmt: skip


def met(name: str, value: float) -> bool | None:
    """Whether a ratio meets its target; None for one without."""
    if name not in TARGETS:
        return None
    target, side = TARGETS[name]
    return value >= target if side == "at least" else value <= target


@styled
def draw(found: dict[str, Any], path: Path) -> None:
    """Write the picture of `results/experiments.json`."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    bars, images, arms = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _ratios(bars, found)
    growth = found["growth"]
    _curve(images, growth["images_cold"], "cold", SERIES[0], "images")
    _curve(images, growth["images_warm"], "warm", SERIES[1], "images")
    images.set(title="Cost over images (two arms)", xlabel="training images", ylabel="seconds")
    _curve(arms, growth["arms_warm"], "warm", SERIES[1], "arms")
    arms.set(
        title=f"Cost over arms ({growth['arms_warm']['images']} images)", xlabel="arms", ylabel="seconds"
    )
    figure.savefig(path)


def _ratios(ax: Axes, found: dict[str, Any]) -> None:
    names = [name for name in BARS if name in found][::-1]
    colours = {True: GOOD, False: BAD, None: NEUTRAL}
    for row, name in enumerate(names):
        value, (low, high) = found[name], found["spread"][name]
        ax.barh(row, value, color=colours[met(name, value)], height=0.62)
        ax.plot([low, high], [row, row], color=INK, linewidth=1.2)
        ax.annotate(f"{value:.3g}", (max(value, high), row), (5, 0), textcoords="offset points", va="center")
        if name in TARGETS:
            ax.plot([TARGETS[name][0]] * 2, [row - 0.4, row + 0.4], color=INK, linestyle="--", linewidth=1.4)
    ax.set(xscale="log", title="Ratios, with their targets (dashed)", xlabel="ratio by the clock")
    ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.15)


def _curve(ax: Axes, curve: dict[str, Any], name: str, colour: str, unit: str) -> None:
    x, seconds = np.array(curve["x"]), np.array(curve["seconds"])
    ax.plot(x, seconds, "o", color=colour)
    line = curve["fixed"] + curve["per_unit"] * x
    ax.plot(x, line, color=colour, linewidth=1.2)
    text = f"{name}: {curve['fixed']:.2g} s + {curve['per_unit']:.2g} s × {unit}"
    ax.annotate(text, (x[-1], line[-1]), (-4, 8), textcoords="offset points", ha="right", color=colour)
