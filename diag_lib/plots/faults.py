"""Which injected faults were recognised, and what were the others taken for?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from diag_lib.plots import style

NOTHING = "(nothing)"

CONTROLS = "(healthy controls)"


@style.styled
def confusion(rows: Sequence[dict[str, Any]]) -> Figure:
    """Injected fault against the first cause named, counts over seeds; all healthy controls in one row.

    Injections that did no harm are left out, as they are from the score.
    """
    scored = [row for row in rows if not harmless(row)]
    injected = [CONTROLS if row["kind"] == "control" else row["case"] for row in scored]
    named = [row["named"][0] if row["named"] else NOTHING for row in scored]
    table = pd.crosstab(pd.Series(injected, name="injected"), pd.Series(named, name="named first"))
    figure, ax = style.new_figure(
        width=max(8.0, 4.5 + 0.5 * table.shape[1]), height=2.5 + 0.32 * table.shape[0]
    )
    shown = table.astype(str).replace("0", "")
    sns.heatmap(table, annot=shown, fmt="", cmap=style.SEQUENTIAL, cbar=False, linewidths=0.5, ax=ax)
    ax.tick_params(axis="x", rotation=60)
    ax.tick_params(axis="y", rotation=0)
    for label in ax.get_xticklabels():
        label.set_ha("right")
    faults = [row["first_right"] for row in scored if row["kind"] == "fault"]
    alarms = [bool(row["named"]) for row in scored if row["kind"] == "control"]
    parts = [f"{np.mean(faults):.0%} of {len(faults)} harmful injections were named first"] if faults else []
    parts += [f"{sum(alarms)} of {len(alarms)} healthy controls raised an alarm"] if alarms else []
    style.finding_title(figure, "; ".join(parts) or "Nothing was injected")
    return figure


def harmless(row: dict[str, Any]) -> bool:
    """Whether an injection did no harm, and is not scored."""
    return row["kind"] == "fault" and not row["harm"]["kills"]


def missed(row: dict[str, Any]) -> bool:
    """Whether a row of the score counts against the verdict."""
    if row["kind"] == "control":
        return bool(row["named"])
    right = row["all_named"] if row["kind"] == "compound" else row["first_right"]
    return not harmless(row) and not right
