"""What does a cause look like? The AUCs of one run, by which it is told from the others."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diag_lib.plots import style

ARMS = {
    "status_quo": "status_quo (as configured)",
    "bce_only": "bce_only (no teacher)",
    "alpha_0.01": "alpha_0.01",
    "standardized": "standardized",
}
"""The arms that nearly every run has, and how they are labelled."""


@dataclass(frozen=True)
class Row:
    """One AUC with its 95% interval; `value` is NaN where the scores rank nothing."""

    name: str
    value: float
    ci: tuple[float, float]
    colour: str


def rows(verdict: Mapping[str, Any]) -> list[Row]:
    """The rows of the picture, from a parsed `verdict.json`: recording, teacher, arms, and the first cause's proof."""
    found = {finding["id"]: finding for finding in verdict["findings"]}
    shown = []
    recorded = "symptoms.evaluation" in found
    if recorded:
        loop, said = found["symptoms.auc_at_chance"], found["symptoms.evaluation"]
        if said["answer"] == "yes":
            reported = said["data"]["reported"]
            shown.append(_row("what the loop reports", reported, (reported, reported), style.BAD))
        shown.append(_row("the recorded loop's scores", loop["value"], loop["ci"], style.BAD))
    for name, split in (("teacher.auc_train", "train"), ("teacher.auc", "val")):
        if name in found:
            finding = found[name]
            shown.append(_row(f"teacher on {split}", finding["value"], finding["ci"], style.TEACHER))
    for arm in verdict["arms"]:
        if arm["id"] in ARMS:
            name = "status_quo (trained here)" if recorded and arm["id"] == "status_quo" else ARMS[arm["id"]]
            shown.append(_row(name, arm["auc"], arm["ci"], style.STUDENT))
    proof = verdict["causes"][0]["proof"] if verdict["causes"] else None
    for side, colour in (("before", style.BAD), ("after", style.GOOD)):
        if proof is not None and proof[side] is not None:
            measured = proof[side]
            shown.append(_row(f"{side}: {measured['arm']}", measured["auc"], measured["ci"], colour))
    return shown


def _row(name: str, value: float | None, ci: Any, colour: str) -> Row:
    known = value is not None and ci is not None and ci[0] is not None
    return (
        Row(name, float(value or 0), (ci[0], ci[1]), colour) if known else Row(name, np.nan, (0, 1), colour)
    )


@style.styled
def signature(verdict: Mapping[str, Any], sentence: str) -> Figure:
    """The AUCs of a run as a forest plot under the sentence of its cause; `verdict` is a parsed `verdict.json`."""
    table = rows(verdict)
    figure, ax = style.new_figure(width=7.6, height=1.25 + 0.42 * len(table))
    for place, row in enumerate(table):
        if not np.isfinite(row.value):
            style.direct_label(ax, 0, place, "no scores that rank the images", row.colour)
            continue
        ax.plot(row.ci, [place, place], color=row.colour, linewidth=3, alpha=0.45)
        ax.plot([row.value], [place], "o", color=row.colour, markersize=7)
        ax.annotate(
            f"{row.value:.2f}",
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=row.colour,
            fontweight="bold",
            annotation_clip=False,
        )
    ax.set_yticks(range(len(table)), ["\n".join(textwrap.wrap(style.plain(row.name), 32)) for row in table])
    ax.set(xlim=(-0.02, 1.02), ylim=(len(table) - 0.4, -0.6), xlabel="AUC with its 95% interval")
    ax.grid(visible=False, axis="y")
    ax.axvline(0.5, color=style.NEUTRAL, linestyle=(0, (5, 3)), linewidth=1.3, zorder=1.5)
    style.direct_label(ax, 0.5, len(table) - 0.62, "guessing", style.NEUTRAL, dx=3)
    split = next((place for place, row in enumerate(table) if row.name.startswith("before")), None)
    if split:
        ax.axhline(split - 0.5, color=style.GRID, linewidth=1.5)
    style.finding_title(figure, sentence)
    return figure


def describe(verdict: Mapping[str, Any]) -> str:
    """The picture in words: its text alternative."""
    told = [
        f"{row.name} {row.value:.2f} [{row.ci[0]:.2f}, {row.ci[1]:.2f}]"
        if np.isfinite(row.value)
        else f"{row.name} without scores that rank"
        for row in rows(verdict)
    ]
    return "AUC: " + "; ".join(told)
