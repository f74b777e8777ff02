"""Which pictures should a person look at, issue by issue, and what did the person decide?

Decisions go into `curation.csv` (path, action = exclude | relabel, label) in the run folder, which `dataset.curation`
honours; the dataset itself is never touched.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from diag_lib.audit import AuditResult
from diag_lib.audit.oddities import ODDITIES
from diag_lib.audit.part import CLASS_NAMES
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.images.manifest import read_curation

FILE = "curation.csv"
COLUMNS = ("path", "action", "label")
Action = Literal["exclude", "relabel"]
Marks = dict[str, Action]


def issues(result: AuditResult) -> dict[str, pd.DataFrame]:
    """Readable images by issue, the gravest issue first, as tables path, split, label, why; empty ones left out."""
    pairs = result.tables["pairs"]
    found = {
        "both labels": _conflicts(pairs),
        "leaked": _leaked(result.tables["leakage"]),
        "doubtful label": _suspects(result.tables["suspects"]),
        **_odd(result.tables["odd_images"]),
        "repeated": _repeated(pairs),
    }
    return {name: table.reset_index(drop=True) for name, table in found.items() if len(table)}


def _table(path: object, split: object, label: object, why: object) -> pd.DataFrame:
    table = pd.DataFrame({"path": path, "split": split, "label": label, "why": why})
    return table.drop_duplicates("path")


def _copy_of(kinds: "pd.Series[str]", paths: "pd.Series[str]") -> list[str]:
    return [f"{kind} copy of {path}" for kind, path in zip(kinds, paths, strict=True)]


def _conflicts(pairs: pd.DataFrame) -> pd.DataFrame:
    """Both sides of every pair with two labels, side by side."""
    rows = []
    for row in pairs[pairs["a_label"] != pairs["b_label"]].to_dict("records"):
        for side, other in ("ab", "ba"):
            why = f"also {CLASS_NAMES[int(row[f'{other}_label'])]}: {row[f'{other}_path']}"
            rows.append((row[f"{side}_path"], row[f"{side}_split"], row[f"{side}_label"], why))
    return _table(*zip(*rows, strict=True)) if rows else _table([], [], [], [])


def _leaked(leaks: pd.DataFrame) -> pd.DataFrame:
    why = _copy_of(leaks["kind"], leaks["train_path"])
    return _table(leaks["val_path"], "val", leaks["val_label"], why)


def _suspects(suspects: pd.DataFrame) -> pd.DataFrame:
    judged = zip(suspects["probability_of_label"], suspects["judges"], strict=True)
    why = [f"{probability:.0%} by {judges}" for probability, judges in judged]
    return _table(suspects["path"], suspects["split"], suspects["label"], why)


def _odd(odd: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """One issue an oddity, in the order of `ODDITIES` (the broken pictures first)."""
    kinds = [set(text.split(", ")) for text in odd["oddities"]]
    chosen = {o: odd[np.array([o.name in kind for kind in kinds], dtype=bool)] for o in ODDITIES}
    return {
        o.name.replace("_", " "): _table(rows["path"], rows["split"], rows["label"], o.says)
        for o, rows in chosen.items()
    }


def _repeated(pairs: pd.DataFrame) -> pd.DataFrame:
    """Of every pair within a split and class the second picture."""
    same = pairs[(pairs["a_split"] == pairs["b_split"]) & (pairs["a_label"] == pairs["b_label"])]
    why = _copy_of(same["kind"], same["a_path"])
    return _table(same["b_path"], same["b_split"], same["b_label"], why)


def saved(run: RunFolder) -> Marks:
    """The decisions in the run folder's file; none when there is no file.

    Raises `UserError` when the file is there and is no curation file.
    """
    rows = _rows(run.root / FILE)
    return {path: "relabel" if action == "relabel" else "exclude" for path, action, _ in rows.values()}


def save(result: AuditResult, run: RunFolder, marks: Mapping[str, Action]) -> Path:
    """Write `curation.csv` of the run folder: these decisions, on top of the settings' own curation file.

    `relabel` gives an image the other class than it has now; a decision that an earlier file holds already (and that
    may be in force) stays as it is. Returns the file. Raises `UserError` when a newly marked path is not in the
    dataset, or a file cannot be read.
    """
    label_of = dict(zip(result.frame["path"], result.frame["label"], strict=True))
    own = result.settings.dataset.curation
    kept = _rows(own) if own is not None and own != run.root / FILE else {}
    known = {**kept, **_rows(run.root / FILE)}
    rows = dict(kept)
    for path, action in marks.items():
        if path in known and known[path][1] == action:
            rows[path] = known[path]
        elif path in label_of:
            other = CLASS_NAMES[1 - int(label_of[path])]
            rows[path] = (path, action, other if action == "relabel" else "")
        else:
            raise UserError(f"curation: {path} is not in the dataset; run the audit again")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows[path] for path in sorted(rows))
    return run.write_text(FILE, text.getvalue())


def _rows(file: Path) -> dict[str, tuple[str, str, str]]:
    """path -> (path, action, label) of a curation file; empty where there is none."""
    if not file.is_file():
        return {}
    table = read_curation(file)
    actions = table["action"].str.strip().str.lower()
    return {row[0]: row for row in zip(table["path"], actions, table["label"], strict=True)}
