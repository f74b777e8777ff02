"""Do train and val differ, within a class, in how their files were made or in what they show?

Effect size: the probability that a val image exceeds a train image of its class in a property (an AUC; 0.5 is no
difference), with DeLong's interval. For categories: of having the commonest value. All tests together are
corrected by Holm's method, and a difference must also be large to be claimed.
"""

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
    data = {"properties": [f"{row.label_name} {row.name}" for row in claimed.itertuples(index=False)]}
    if claimed.empty:
        message = "train and val agree in every measured property"
        return Part(
            [Finding("audit.drift", "ok", "no", message, value, ci, 0.5 + EFFECT, n)], {}, {"drift": table}
        )
    told = listed([f"{row.label_name} images in {row.says}" for row in claimed.itertuples(index=False)])
    message = f"train and val differ: {told}; an AUC on val then mixes the task with the change of domain"
    finding = Finding("audit.drift", "warning", "yes", message, value, ci, 0.5 + EFFECT, n, data)
    return Part([finding], {"n_drifting": len(claimed)}, {"drift": table})


def drift_table(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per class and property, the largest effect first: effect (AUC), low, high, p, p_holm, claimed."""
    rows = []
    for label, label_name in enumerate(CLASS_NAMES):
        part = frame[(frame["label"] == label) & frame["split"].isin(["train", "val"])]
        in_val = (part["split"] == "val").to_numpy(dtype=np.int64)
        if min(in_val.sum(), len(in_val) - in_val.sum()) < MIN_CLASS:
            continue
        for prop in PROPERTIES:
            values = comparable(part, prop)
            measured = auc(in_val, values)
            if not measured.defined:
                continue
            z = abs(measured.value - 0.5) / measured.se if measured.se > 0 else np.inf
            rows.append((label_name, prop.name, prop.says, measured.value, *measured.ci, float(2 * ndtr(-z))))
    table = pd.DataFrame(rows, columns=["label_name", "name", "says", "effect", "low", "high", "p"])
    adjusted = holm({str(i): p for i, p in enumerate(table["p"])})
    table["p_holm"] = [adjusted[str(i)] for i in range(len(table))]
    beyond = (table["low"] > 0.5 + EFFECT) | (table["high"] < 0.5 - EFFECT)
    table["claimed"] = beyond & (table["p_holm"] < LEVEL)
    order = (table["effect"] - 0.5).abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def comparable(frame: pd.DataFrame, prop: Property) -> npt.NDArray[np.float64]:
    """A property as numbers that can be ranked; a category as 1.0 where it has the commonest value."""
    values = codes(prop.of(frame), prop.categorical)
    if not prop.categorical:
        return values
    distinct, counts = np.unique(values, return_counts=True)
    common: npt.NDArray[np.float64] = (values == distinct[np.argmax(counts)]).astype(np.float64)
    return common
