"""Which injected faults were recognised, and what were the others taken for?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML
from matplotlib.figure import Figure

from diag_lib import display
from diag_lib.evidence import RunFolder
from diag_lib.plots import style

NOTHING = "(nothing)"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'none'">
<title>Fault lab</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;
padding:0 1rem;color-scheme:light dark}}
img{{max-width:100%}} table{{border-collapse:collapse;display:block;overflow-x:auto}}
th,td{{text-align:left;padding:.25em .7em;border-bottom:1px solid #8885}}</style></head>
<body><main><h1>Fault lab</h1>{body}</main></body></html>
"""


CONTROLS = "(healthy controls)"

SCORE: dict[str, str] = {
    "right_first": "right cause first",
    "right_first_ci": "its 95% interval over faults",
    "causes_per_case": "causes named a fault",
    "proof_rate": "established verdicts with a significant proof",
    "compound_both": "two faults at once: both named",
    "controls": "healthy controls",
    "false_alarms": "false alarms on them",
    "controls_called_healthy": "called healthy",
    "killing": "injections that do harm",
    "median_seconds": "median seconds of a case",
    "workers": "cases side by side",
    "wall_seconds": "seconds for all",
}
"""What the page says of the figures of `faults.json`."""


@style.styled
def confusion(rows: Sequence[dict[str, Any]]) -> Figure:
    """Injected fault against the first cause named, counts over seeds; all healthy controls in one row.

    Injections that did no harm are left out, as they are from the score.
    """
    scored = [row for row in rows if not _harmless(row)]
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


def _harmless(row: dict[str, Any]) -> bool:
    return row["kind"] == "fault" and not row["harm"]["kills"]


def missed(row: dict[str, Any]) -> bool:
    """Whether a row of the score counts against the verdict."""
    if row["kind"] == "control":
        return bool(row["named"])
    right = row["all_named"] if row["kind"] == "compound" else row["first_right"]
    return not _harmless(row) and not right


def write_report(rows: Sequence[dict[str, Any]], figures: dict[str, Any], folder: RunFolder) -> None:
    """Write `confusion.png` and the page `index.html` below the folder."""
    picture = confusion(rows)
    picture.savefig(folder.root / "confusion.png")
    described = "; ".join(f"{row['case']}: {', '.join(row['named']) or 'nothing'}" for row in rows)
    shown = {said: _figure(figures.get(name)) for name, said in SCORE.items()}
    parts = [
        display.facts(shown, "Score"),
        display.figure(picture, alt=f"Injected fault against first named cause. {described}"),
        _cases([row for row in rows if missed(row)], "Missed, and false alarms"),
        _cases([row for row in rows if _harmless(row)], "Injections that did no harm: not scored"),
        _cases(rows, "Every case"),
    ]
    folder.write_text("index.html", _PAGE.format(body="".join(str(part.data) for part in parts)))


def _figure(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{value[0]:.2f}, {value[1]:.2f}]"
    return display.number(value)


def _cases(rows: Sequence[dict[str, Any]], caption: str) -> HTML:
    if not rows:
        return display.callout("ok", "None.", caption)
    columns = ["case", "seed", "kind", "expected", "named", "status", "healthy", "seconds"]
    table = pd.DataFrame(rows)[columns]
    for column in ("expected", "named"):
        table[column] = table[column].map(", ".join)
    return display.table(table, caption)
