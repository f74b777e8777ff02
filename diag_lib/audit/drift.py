"""Do train and val differ, within a class or a source of it, in how their files were made or in what they show?

Effect size: the probability that a val image exceeds a train image of its class in a property (an AUC; 0.5 is no
difference), with DeLong's interval. For categories: of having the commonest value. All tests together are
corrected by Holm's method, and a difference must also be large to be claimed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtr

from diag_lib.audit.part import CLASS_NAMES, Case, Part, listed
from diag_lib.audit.properties import PROPERTIES, Property, codes
from diag_lib.evidence import Answer, Finding
from diag_lib.statistics import auc, holm

EFFECT = 0.10
"""Distance of the AUC from 0.5 beyond which the whole interval must lie: about 0.36 standard deviations, between
Cohen's small and medium effect."""

LEVEL = 0.05
MIN_CLASS = 30


def check(case: Case) -> Part:
    """Train against val for each class and property."""
    table = drift_table(case.sample)
    n = len(case.sample)
    if table.empty:
        counts = case.sample.groupby(["split", "label"]).size()
        few = len(case.sample) and int(counts.min()) < MIN_CLASS
        message = (
            f"fewer than {MIN_CLASS} images in a split and class: whether train and val differ is open"
            if few
            else "no measured property differs between images"
        )
        answer: Answer = "undecided" if few else "no"
        return Part(
            [Finding("audit.drift", "note" if few else "ok", answer, message, n=n)], {}, {"drift": table}
        )
    worst = table.iloc[0]
    claimed = table[table["claimed"]]
    value, ci = float(worst["effect"]), (float(worst["low"]), float(worst["high"]))
    named = [
        f"{row.label_name} {row.source} {row.name}".replace("  ", " ")
        for row in claimed.itertuples(index=False)
    ]
    data = {"properties": named, "tests": len(table)}
    if claimed.empty:
        message = "train and val agree in every measured property"
        return Part(
            [Finding("audit.drift", "ok", "no", message, value, ci, 0.5 + EFFECT, n)], {}, {"drift": table}
        )
    told = listed([_told(row) for row in claimed.to_dict("records")])
    message = f"train and val differ: {told}; an AUC on val then mixes the task with the change of domain"
    finding = Finding("audit.drift", "warning", "yes", message, value, ci, 0.5 + EFFECT, n, data)
    return Part([finding], {"n_drifting": len(claimed)}, {"drift": table})


def _told(row: Mapping[Any, Any]) -> str:
    of = f" of {row['source']}" if row["source"] else ""
    return f"{row['label_name']} images{of} in {row['says']}"


def drift_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per class (and per class and source where there are several) and property, the largest effect first.

    Columns: label_name, source ("" for the whole class), name, says, effect (AUC), low, high, p, p_holm, claimed.
    """
    rows = []
    for label_name, source, part in _groups(frame):
        in_val = (part["split"] == "val").to_numpy(dtype=np.int64)
        if min(in_val.sum(), len(in_val) - in_val.sum()) < MIN_CLASS:
            continue
        for prop in PROPERTIES:
            values = comparable(part, prop)
            if (values == values[0]).all():
                continue
            measured = auc(in_val, values)
            if not measured.defined:
                continue
            z = abs(measured.value - 0.5) / measured.se if measured.se > 0 else np.inf
            p = float(2 * ndtr(-z))
            rows.append((label_name, source, prop.name, prop.says, measured.value, *measured.ci, p))
    columns = ["label_name", "source", "name", "says", "effect", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns)
    adjusted = holm({str(i): p for i, p in enumerate(table["p"])})
    table["p_holm"] = [adjusted[str(i)] for i in range(len(table))]
    beyond = (table["low"] > 0.5 + EFFECT) | (table["high"] < 0.5 - EFFECT)
    table["claimed"] = beyond & (table["p_holm"] < LEVEL)
    order = (table["effect"] - 0.5).abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def _groups(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(class, "" or source, its train and val images): each class, then its sources where it has several."""
    frame = frame[frame["split"].isin(["train", "val"])]
    for label, label_name in enumerate(CLASS_NAMES):
        part = frame[frame["label"] == label]
        yield label_name, "", part
        if len(set(part["source"])) > 1:
            for source in sorted(set(part["source"])):
                yield label_name, source, part[part["source"] == source]


def comparable(frame: pd.DataFrame, prop: Property) -> npt.NDArray[np.float64]:
    """A property as numbers that can be ranked; a category as 1.0 where it has the commonest value."""
    values = codes(prop.of(frame), prop.categorical)
    if not prop.categorical:
        return values
    distinct, counts = np.unique(values, return_counts=True)
    common: npt.NDArray[np.float64] = (values == distinct[np.argmax(counts)]).astype(np.float64)
    return common
