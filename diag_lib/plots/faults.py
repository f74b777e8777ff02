"""Which injected faults were recognised, and what were the others taken for?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
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
padding:0 1rem;color-scheme:light dark}} img{{max-width:100%}}</style></head>
<body><main><h1>Fault lab</h1>{body}</main></body></html>
"""


@style.styled
def confusion(rows: Sequence[dict[str, Any]]) -> Figure:
    """Injected case against the first cause named, counts over seeds."""
    injected = [row["case"] for row in rows]
    named = [row["named"][0] if row["named"] else NOTHING for row in rows]
    table = pd.crosstab(pd.Series(injected, name="injected"), pd.Series(named, name="named first"))
    figure, ax = style.new_figure(width=2.5 + 0.5 * table.shape[1] + 2, height=2.5 + 0.32 * table.shape[0])
    sns.heatmap(table, annot=True, fmt="d", cmap=style.SEQUENTIAL, cbar=False, linewidths=0.5, ax=ax)
    ax.tick_params(axis="x", rotation=60)
    for label in ax.get_xticklabels():
        label.set_ha("right")
    right = np.mean([row["first_right"] for row in rows if row["kind"] != "control"] or [np.nan])
    style.finding_title(figure, f"{right:.0%} of the injected faults were named first")
    return figure


def write_report(rows: Sequence[dict[str, Any]], figures: dict[str, Any], folder: RunFolder) -> None:
    """Write `confusion.png` and the page `index.html` below the folder."""
    picture = confusion(rows)
    picture.savefig(folder.root / "confusion.png")
    columns = ["case", "seed", "kind", "expected", "named", "status", "healthy", "seconds"]
    table = pd.DataFrame(rows)[columns]
    for column in ("expected", "named"):
        table[column] = table[column].map(", ".join)
    described = "; ".join(f"{row['case']}: {', '.join(row['named']) or 'nothing'}" for row in rows)
    parts = [
        display.figure(picture, alt=f"Injected fault against first named cause. {described}"),
        display.facts({name: display.number(v) for name, v in figures.items() if name != "dropped"}, "Score"),
        display.table(table, "Every case"),
    ]
    folder.write_text("index.html", _PAGE.format(body="".join(str(part.data) for part in parts)))
