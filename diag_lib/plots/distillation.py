"""What does each weighting of the distillation reach?"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diag_lib.distillation import BCE_ONLY, LADDER, STATUS_QUO, DistillationResult
from diag_lib.plots import style
from diag_lib.probes.compare import rows

CURVES = (STATUS_QUO, BCE_ONLY, "alpha_0.01", "standardized")
SPACING = 1.25
# None of the colours that mean a class or a model; indigo and olive are Tol's.
ARM_COLOURS = {
    STATUS_QUO: style.BAD,
    BCE_ONLY: "#332288",
    "standardized": "#999933",
    "centered": "#E69F00",
    "robust": "#56B4E9",
    "unfrozen": "#117733",
}


@style.styled
def alpha_curve(result: DistillationResult) -> Figure:
    """Validation AUC against the weight of the distillation, from none to the configured one."""
    table = result.table.set_index("arm")
    ladder = [name for name in (BCE_ONLY, *LADDER) if name in table.index]
    weights = table.loc[ladder].sort_values("alpha")
    places = [float(place) for place in range(len(weights))]
    figure, ax = style.new_figure(width=10, height=4.4)
    ax.fill_between(places, weights["low"], weights["high"], color=style.NEUTRAL, alpha=0.15, linewidth=0)
    ax.plot(places, weights["auc"], "o-", color=style.NEUTRAL)
    for place, row in zip(places, rows(weights), strict=True):
        style.direct_label(
            ax, place, row.auc, f"{row.auc:.2f}", style.NEUTRAL, dx=0, dy=12
        ).set_horizontalalignment("center")
    extra = [
        name for name in ("standardized", "centered", "robust", "unfrozen", STATUS_QUO) if name in table.index
    ]
    for step, name in enumerate(extra):
        row, place = table.loc[name].to_dict(), len(weights) + 0.6 + SPACING * step
        colour = ARM_COLOURS[name]
        ax.plot([place, place], [row["low"], row["high"]], color=colour, linewidth=3, alpha=0.45)
        ax.plot([place], [row["auc"]], "D", color=colour)
        style.direct_label(
            ax, place, row["high"], f"{row['auc']:.2f}", colour, dx=0, dy=9
        ).set_horizontalalignment("center")
    ax.axvline(len(weights) - 0.2, color=style.GRID, linewidth=1.5)
    names = ["0\n(labels only)" if alpha == 0 else f"{alpha:g}" for alpha in weights["alpha"]]
    ax.set_xticks(
        [*places, *(len(weights) + 0.6 + SPACING * i for i in range(len(extra)))],
        [*names, *(_short(name).replace(" ", "\n") for name in extra)],
    )
    ax.set_xlabel("weight of the distillation (the rest on the labels), then other arms at your weights")
    ax.set_ylabel("validation AUC, 95% interval")
    ax.set_xlim(-0.5, ax.get_xlim()[1] + SPACING)
    _guides(ax, result)
    style.finding_title(ax, _trend_headline(result))
    return figure


@style.styled
def forest(result: DistillationResult) -> Figure:
    """The paired gain of every arm over the status quo, on the images that chose nothing."""
    table = result.table[result.table["differs"] & np.isfinite(result.table["delta"])].sort_values(
        "delta", ascending=False
    )
    figure, ax = style.new_figure(width=8.5, height=1.3 + 0.4 * len(table))
    colours = [_verdict_colour(row) for row in rows(table)]
    style.interval_bars(
        ax,
        [_short(row.arm) for row in rows(table)],
        list(table["delta"]),
        list(zip(table["delta_low"], table["delta_high"], strict=True)),
        colours,
    )
    style.threshold_line(ax, 0.0, "your settings", axis="x")
    ax.set_xlabel("gain in AUC over your settings (paired, half B, 95% interval)")
    style.finding_title(ax, _rescue_headline(result))
    return figure


@style.styled
def curves(result: DistillationResult) -> Figure:
    """Validation AUC epoch by epoch of the arms that tell the causes apart."""
    figure, ax = style.new_figure(width=8.5, height=3.8)
    best = result.choice.best
    names = [name for name in dict.fromkeys((*CURVES, best)) if name in result.arms]
    lines = []
    for name in names:
        values = result.arms[name].history["val_auc"]
        line = ax.plot(
            range(1, len(values) + 1),
            values,
            "-",
            marker="o",
            markersize=3,
            color=ARM_COLOURS.get(name, style.NEUTRAL),
        )[0]
        lines.append((line, _short(name)))
    ax.set_xlabel("epoch")
    ax.set_ylabel("validation AUC")
    _guides(ax, result)
    style.label_lines(ax, lines)
    style.finding_title(ax, _curves_headline(result))
    return figure


@style.styled
def imitation(result: DistillationResult) -> Figure:
    """Whether following the teacher goes along with telling real from fake."""
    kept = result.table["differs"] | (result.table["arm"] == STATUS_QUO)
    table = result.table[kept & np.isfinite(result.table["rho"]) & np.isfinite(result.table["auc"])]
    figure, ax = style.new_figure(width=7.5, height=4)
    for row in rows(table):
        colour = ARM_COLOURS.get(row.arm, style.NEUTRAL)
        ax.plot([row.rho, row.rho], [row.low, row.high], color=colour, alpha=0.35, linewidth=2)
        ax.plot([row.rho], [row.auc], "o", color=colour)
    ax.set_xlabel("correlation of student and teacher patches (train)")
    ax.set_ylabel("validation AUC, 95% interval")
    ax.margins(x=0.1)
    _guides(ax, result)
    _label_points(ax, table)
    style.finding_title(ax, _imitation_headline(table))
    return figure


def _guides(ax: Axes, result: DistillationResult) -> None:
    limit = result.settings.thresholds.baseline_auc
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, 0.44), max(high, 0.7) + 0.05)
    style.threshold_line(ax, 0.5, "chance")
    style.threshold_line(ax, limit, f"guide: {limit:.2f}", kind="good")


def _label_points(ax: Axes, table: pd.DataFrame) -> None:
    """Names at the right edge, pushed apart, each with a thin line to its point."""
    low, high = ax.get_ylim()
    place = -np.inf
    for row in rows(table.sort_values("auc")):
        colour = ARM_COLOURS.get(row.arm, style.NEUTRAL)
        place = max((row.auc - low) / (high - low), place + 0.06)
        ax.annotate(
            _short(row.arm),
            (row.rho, row.auc),
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.35, "lw": 0.8},
        )


def _short(arm: str) -> str:
    names = {
        STATUS_QUO: "your settings",
        BCE_ONLY: "labels only",
        "standardized": "standardised",
        "unfrozen": "all layers",
    }
    return names.get(arm, arm.replace("alpha_", "alpha "))


def _verdict_colour(row: Any) -> str:
    if row.delta_low > 0:
        return style.GOOD
    return style.BAD if row.delta_high < 0 else style.NEUTRAL


def _trend_headline(result: DistillationResult) -> str:
    found = result.evidence.finding("distillation.alpha_trend")
    if found is None:
        return "The budget held too few weights for a curve"
    return {
        "yes": "The more distillation, the worse the student",
        "no": "More distillation does no harm",
        "undecided": "Whether more distillation harms is not decided",
    }[found.answer]


def _rescue_headline(result: DistillationResult) -> str:
    found = result.finding("rescued_by")
    raised = found.data["arms"]
    if found.data["only_without_teacher"]:
        return "Only leaving the teacher out rescues the student"
    if not raised:
        return "No change is proven to rescue the student"
    return f"What rescues the student: {', '.join(_short(name) for name in raised)}"


def _curves_headline(result: DistillationResult) -> str:
    if result.choice.answer == "yes":
        gain = result.choice.proof
        return f"{_short(result.choice.best)} ends {gain.delta:+.2f} above your settings".capitalize()
    return "No arm ends clearly above your settings"


def _imitation_headline(table: pd.DataFrame) -> str:
    if len(table) < 3:
        return "Following the teacher and telling real from fake"
    closest = table.iloc[int(np.argmax(table["rho"]))]
    return f"The closest imitation (correlation {closest['rho']:.2f}) reaches AUC {closest['auc']:.2f}"
