"""How does the score of the fault lab look to a reader? One page of the reports' design."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from IPython.display import HTML
from markupsafe import Markup

from diag_lib import display
from diag_lib.evidence import RunFolder
from diag_lib.plots.faults import confusion, harmless, missed
from diag_lib.workbook.index import refresh_home
from diag_lib.workbook.render import environment
from diag_lib.workbook.sanitize import clean

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
COLUMNS = {
    "case": "case",
    "seed": "seed",
    "kind": "kind",
    "expected": "injected",
    "named": "named by the verdict",
    "status": "status of the first",
    "healthy": "called healthy",
    "seconds": "seconds",
}
"""Keys of a row of `faults.json`, and how the tables head them."""


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
        _cases([row for row in rows if harmless(row)], "Injections that did no harm: not scored"),
        _cases(rows, "Every case"),
    ]
    body = Markup(clean("".join(str(part.data) for part in parts)))  # noqa: S704 - cleaned
    page = environment().get_template("faults.html.j2").render(title="Fault lab", nav="", body=body)
    folder.write_text("index.html", page)
    refresh_home(folder.root.parent)


def _figure(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{value[0]:.2f}, {value[1]:.2f}]"
    return display.number(value)


def _cases(rows: Sequence[dict[str, Any]], caption: str) -> HTML:
    if not rows:
        return display.callout("ok", "None.", caption)
    table = pd.DataFrame(rows)[list(COLUMNS)]
    for column in ("expected", "named"):
        table[column] = table[column].map(", ".join)
    words = {True: "yes", False: "no"}
    table["healthy"] = table["healthy"].map(lambda value: words.get(value, "undecided"))
    table["seconds"] = [f"{seconds:.1f}" for seconds in table["seconds"]]
    return display.table(table.rename(columns=COLUMNS), caption)
