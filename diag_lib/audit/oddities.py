"""Which pictures look odd - too dark, flat, blurred, half gone - also when a whole class does?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from diag_lib.audit.part import CLASS_NAMES, Case, Part, listed
from diag_lib.evidence import Finding, Severity

MANY = 0.05
"""Share of a class that has an oddity, from which a finding is raised; single pictures are only listed."""


SIZE_RATIO = 4.0
"""Times the typical side from which a size is odd: beyond what one camera's or generator's settings span."""

SHARP = 1.6
"""Sharpness (log variance of the Laplacian) below which no edge is left: 8-bit rounding alone gives 0.5."""


@dataclass(frozen=True)
class Oddity:
    """One oddity: which rows have it. `broken`: the picture carries no information, however rare it is."""

    name: str
    says: str
    of: Callable[[pd.DataFrame], "pd.Series[bool]"]
    broken: bool = False


def _odd_size(frame: pd.DataFrame) -> "pd.Series[bool]":
    area = frame["width"] * frame["height"]
    usual, ratio = area.median(), SIZE_RATIO**2
    return (area * ratio <= usual) | (area >= usual * ratio)


ODDITIES: tuple[Oddity, ...] = (
    Oddity("constant", "one colour only", lambda f: f["contrast"] < 1 / 255, broken=True),
    Oddity(
        "half_gray",
        "lower part plain gray (decoded from a truncated file)",
        lambda f: f["gray_tail"] >= 0.1,
        True,
    ),
    Oddity("dark", "nearly black", lambda f: (f["brightness"] < 0.05) & (f["contrast"] >= 1 / 255)),
    Oddity("bright", "nearly white", lambda f: (f["brightness"] > 0.97) & (f["contrast"] >= 1 / 255)),
    Oddity("low_information", "few gray levels", lambda f: (f["entropy"] < 2) & (f["contrast"] >= 1 / 255)),
    Oddity("blurred", "no sharp edge", lambda f: (f["sharpness"] < SHARP) & (f["contrast"] >= 0.02)),
    Oddity("gray", "no colour", lambda f: f["grayscale"].astype(bool) & (f["contrast"] >= 1 / 255)),
    Oddity(
        "elongated",
        "longer than 1:3",
        lambda f: (f["width"] > 3 * f["height"]) | (f["height"] > 3 * f["width"]),
    ),
    Oddity("odd_size", f"sides {SIZE_RATIO:g} times shorter or longer than usual", _odd_size),
    Oddity("several_frames", "animated or several pages", lambda f: f["frames"] > 1),
    Oddity("transparent", "with an alpha channel", lambda f: f["has_alpha"].astype(bool)),
    Oddity("misnamed", "suffix contradicts the content", lambda f: f["wrong_suffix"].astype(bool)),
)


def check(case: Case) -> Part:
    """Count every oddity by class; list the odd images."""
    frame = case.readable
    marks = mark(frame)
    table = share_table(frame, marks)
    odd = marks.any(axis=1)
    names = np.array(marks.columns)
    listing = frame.loc[odd, ["path", "split", "label"]].assign(
        oddities=[", ".join(names[row]) for row in marks[odd].to_numpy()]
    )
    return Part(
        [_finding(frame, marks, table)], {}, {"oddities": table, "odd_images": listing.reset_index(drop=True)}
    )


def mark(frame: pd.DataFrame) -> pd.DataFrame:
    """A boolean column per oddity."""
    numbers = frame.drop(columns="file", errors="ignore").infer_objects()
    return pd.DataFrame(
        {odd.name: odd.of(numbers).astype(bool).to_numpy() for odd in ODDITIES}, index=frame.index
    )


def share_table(frame: pd.DataFrame, marks: pd.DataFrame) -> pd.DataFrame:
    """A row per oddity that occurs: name, meaning, images, share of the real, share of the fake."""
    rows = []
    for odd in ODDITIES:
        if not marks[odd.name].any():
            continue
        shares = [float(marks.loc[frame["label"] == label, odd.name].mean()) for label in (0, 1)]
        rows.append((odd.name, odd.says, int(marks[odd.name].sum()), *shares, odd.broken))
    return pd.DataFrame(rows, columns=["oddity", "meaning", "images", "real", "fake", "broken"])


def _finding(frame: pd.DataFrame, marks: pd.DataFrame, table: pd.DataFrame) -> Finding:
    n = len(frame)
    share = float(marks.any(axis=1).mean()) if n else 0.0
    if table.empty:
        return Finding("audit.oddities", "ok", "no", "no odd picture", 0.0, None, MANY, n)
    largest = table[["real", "fake"]].max(axis=1)
    raised = table[table["broken"] | (largest >= MANY)]
    counts = dict(zip(table["oddity"].tolist(), table["images"].tolist(), strict=True))
    told = listed([_told(row) for row in (raised if len(raised) else table).to_dict("records")])
    broken = table.loc[table["broken"], ["real", "fake"]].to_numpy()
    severity: Severity = "note"
    if broken.size and broken.max() >= MANY:
        severity = "error"
    elif broken.size:
        severity = "warning"
    answer = "yes" if len(raised) else "no"
    return Finding(
        "audit.oddities", severity if answer == "yes" else "ok", "yes" if answer == "yes" else "no", told, share, None,
        MANY, n, {"counts": counts},
    )  # fmt: skip


def _told(row: Mapping[Any, Any]) -> str:
    shares = ", ".join(f"{row[name]:.0%} of {name}" for name in CLASS_NAMES)
    return f"{row['images']} {row['meaning']} ({shares})"
