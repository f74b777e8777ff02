"""What do a manifest (path, label[, split, source]) and a curation file (path, action[, label]) say?

Text files may be separated by comma, semicolon or tab, with or without a byte-order mark. The first bad row
is named in one `UserError`; rows count from the header, which is row 1.
"""

# ruff: noqa: PTH100, PTH117, PTH118, PTH120
# File names may hold undecodable bytes and are compared as text, hence no `Path`.

import csv
import dataclasses
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath

import pandas as pd

from diag_lib.errors import UserError
from diag_lib.images.sources import CLASS_LABELS, Entry, printable, shown_path, split_names, stat_of
from diag_lib.settings import Settings, is_url

LABELS: dict[str, int] = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, **CLASS_LABELS}
ALLOWED_LABELS = "0, 1, real, fake"
ACTIONS = ("exclude", "relabel")
VAL_SHARE = 0.25
MAX_BYTES = 4 * 2**30
_MEANT = frozenset({"path", "label", "split", "source", "action"})

Row = Mapping[str, str]


def read(file: Path, settings: Settings, notes: list[tuple[str, str]]) -> list[Entry]:
    """The entries of a manifest.

    Relative paths start at its folder and may not leave it; absolute ones are taken as they are and shown
    from the folder that holds them all.
    """
    name = printable(file.name)
    rows = _rows(file, ("path", "label"))
    if not rows:
        raise UserError(
            f"{name}: no rows below the header; it needs path, label and optionally split, source"
        )
    has_split = "split" in rows[0][1]
    splits = split_names([row["split"].strip() for _, row in rows], settings) if has_split else {}
    folder = os.path.abspath(file.parent)
    files: list[str] = []
    first_row: dict[str, int] = {}
    for number, row in rows:
        where = f"{name}, row {number}"
        files.append(_located(row["path"], folder, where))
        if first_row.setdefault(files[-1], number) != number:
            raise UserError(f"{where}: repeats the path of row {first_row[files[-1]]}; keep one of them")
    entries: list[Entry] = []
    for (number, row), file_path, path in zip(rows, files, _shown(files, folder), strict=True):
        where = f"{name}, row {number}"
        label = label_of(row["label"], where)
        split = _split(row["split"], splits, where) if has_split else ""
        source = printable(row.get("source", "").strip())
        entries.append(Entry(path, file_path, label, split, source, *stat_of(file_path)))
    if all(entry.size < 0 for entry in entries):
        raise UserError(
            f"{name}: none of its {len(entries)} files exists; paths are relative to the manifest's folder"
        )
    if not has_split:
        notes.append(
            (name, f"no split column: {VAL_SHARE:.0%} of each class and source was set aside as validation")
        )
        entries = assign_splits(entries, settings.training.seed)
    return entries


def relative_paths(file: Path) -> list[str]:
    """The posix paths, from its folder, that a manifest names.

    For one that came from elsewhere: an absolute path, which would be a file of this machine, is refused.
    """
    name, folder = printable(file.name), os.path.abspath(file.parent)
    found = []
    for number, row in _rows(file, ("path", "label")):
        where, path = f"{name}, row {number}", row["path"].strip()
        if os.path.isabs(path) or is_url(path) or PureWindowsPath(path).drive:
            raise UserError(
                f"{where}: path {printable(path)[:80]!r} is absolute, which a remote table may not name; write it "
                "relative to the table"
            )
        found.append(_located(path, folder, where)[len(folder.rstrip(os.sep)) + 1 :].replace(os.sep, "/"))
    return found


def curate(
    file: Path, entries: Sequence[Entry], notes: list[tuple[str, str]]
) -> tuple[list[Entry], dict[str, int]]:
    """Apply a curation file: (remaining entries, counts of excluded, relabelled and unmatched rows)."""
    name = printable(file.name)
    if not file.is_file():
        problem = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(
            f"dataset.curation: {printable(str(file))} {problem}; it is a CSV with path, action, label"
        )
    actions: dict[str, tuple[str, int | None]] = {}
    known = {entry.path for entry in entries}
    for number, row in _rows(file, ("path", "action")):
        where = f"{name}, row {number}"
        action, path = row["action"].strip().lower(), row["path"].strip()
        path = path if path in known else shown_path(path)  # as reports show it, or as the disk has it
        if action not in ACTIONS:
            raise UserError(
                f"{where}: action {printable(row['action'])!r} is not allowed; allowed: exclude, relabel"
            )
        label = label_of(row.get("label", ""), where) if action == "relabel" else None
        if actions.setdefault(path, (action, label)) != (action, label):
            raise UserError(f"{where}: contradicts an earlier row for {printable(path)}; keep one")
    counts = {"excluded": 0, "relabelled": 0, "unmatched": 0}
    kept: list[Entry] = []
    for entry in entries:
        action, label = actions.get(entry.path, ("", None))
        counts["excluded"] += action == "exclude"
        counts["relabelled"] += action == "relabel" and label != entry.label
        if action != "exclude":
            kept.append(entry if label is None else dataclasses.replace(entry, label=label))
    unmatched = sorted(set(actions) - known)
    counts["unmatched"] = len(unmatched)
    notes += [(path, "named by the curation file, not in the dataset") for path in unmatched[:100]]
    return kept, counts


def read_curation(file: Path) -> pd.DataFrame:
    """The rows of a curation file as they stand: path, action, label (text, empty where none is given)."""
    rows = [
        (row["path"].strip(), row["action"], row.get("label", ""))
        for _, row in _rows(file, ("path", "action"))
    ]
    return pd.DataFrame(rows, columns=["path", "action", "label"])


def _rows(file: Path, needed: Sequence[str]) -> list[tuple[int, Row]]:
    """(row number, column -> cell) of a manifest or curation file; the header is row 1."""
    name = printable(file.name)
    parquet = file.suffix.lower() == ".parquet"
    columns, cells = _parquet_cells(file, name) if parquet else _text_cells(file, name, needed)
    twice = next((column for column in columns if column and columns.count(column) > 1), None)
    if twice is not None:
        raise UserError(f"{name}: the column {printable(twice)[:40]!r} stands twice; keep one of them")
    missing = [column for column in needed if column not in columns]
    if missing:
        found = ", ".join(printable(column)[:40] for column in columns if column) or "none"
        raise UserError(
            f"{name}: column {' and '.join(missing)} missing (found {found}); needed: {', '.join(needed)}"
        )
    rows: list[tuple[int, Row]] = []
    for number, row in enumerate(cells, start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(columns):
            raise UserError(f"{name}, row {number}: {len(row)} cells where the header has {len(columns)}")
        rows.append((number, dict(zip(columns, row, strict=True))))
    return rows


def _text_cells(file: Path, name: str, needed: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Lower-case column names and the cells below them."""
    try:
        raw = _content(file, name)
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = raw.decode("utf-16", errors="replace")
    else:
        text = os.fsdecode(raw.removeprefix(b"\xef\xbb\xbf"))  # keeps file names that are not UTF-8
    separator = max(",;\t|", key=text.split("\n", 1)[0].count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise UserError(f"{name}: not readable as CSV ({error})") from None
    if not rows or not any(cell.strip() for cell in rows[0]):
        example = "path,action,label" if "action" in needed else "path,label,split,source"
        raise UserError(f"{name}: empty; its first line names the columns, e.g. {example}")
    return [cell.strip().lower() for cell in rows[0]], rows[1:]


def _content(file: Path, name: str) -> bytes:
    """Raises `OSError`, and `UserError` for what is no file or would not fit into memory."""
    if not file.is_file():  # a pipe or a device would never end
        raise UserError(f"{name}: is no regular file; name a .csv or .parquet file")
    if file.stat().st_size > MAX_BYTES:
        raise UserError(f"{name}: has more than {MAX_BYTES:,} bytes; save a table of that size as parquet")
    return file.read_bytes()


def _parquet_cells(file: Path, name: str) -> tuple[list[str], list[list[str]]]:
    """The same of a parquet file, of the columns that can mean something here; the others are named, not read."""
    from diag_lib.images import table_cells

    try:
        return table_cells.read(file, name, _MEANT)
    except UserError:
        raise
    except Exception as error:  # pyarrow raises its own kinds for damaged files
        raise UserError(f"{name}: not readable as parquet ({type(error).__name__})") from None


def label_of(text: str, where: str) -> int:
    """0 (real) or 1 (fake) as a cell names it. Raises `UserError` that begins with `where`."""
    label = LABELS.get(text.strip().lower())
    if label is None:
        shown = printable(text.strip())[:40]
        problem = f"label {shown!r} is not allowed" if shown else "the label is missing"
        raise UserError(f"{where}: {problem}; allowed: {ALLOWED_LABELS}")
    return label


def _split(text: str, splits: Mapping[str, str], where: str) -> str:
    split = splits.get(text.strip().lower())
    if split is None:
        shown = printable(text.strip())[:40]
        raise UserError(f"{where}: split {shown!r} is not allowed; allowed: {', '.join(sorted(splits))}")
    return split


def _located(text: str, folder: str, where: str) -> str:
    """The absolute path that a row names; a relative one may not leave the manifest's folder."""
    path = text.strip()
    if not path or "\0" in path:
        raise UserError(f"{where}: the path is empty")
    if "\\" in path and not os.path.lexists(os.path.join(folder, path)):
        path = path.replace("\\", "/")
    full = os.path.normpath(os.path.join(folder, path))
    if not os.path.isabs(path) and not full.startswith(folder.rstrip(os.sep) + os.sep):
        raise UserError(
            f"{where}: path {printable(path)[:80]!r} leaves the manifest's folder; write it as an "
            "absolute path, or put the manifest into a folder that contains all images"
        )
    return full


def _shown(files: Sequence[str], folder: str) -> list[str]:
    """Printable posix paths relative to the folder, or to what files elsewhere have in common."""
    inside = folder.rstrip(os.sep) + os.sep
    elsewhere = [os.path.dirname(file) for file in files if not file.startswith(inside)]
    common = os.path.commonpath(elsewhere) if elsewhere else folder
    relative = (
        file[len(inside) :] if file.startswith(inside) else os.path.relpath(file, common) for file in files
    )
    return [shown_path(path.replace(os.sep, "/")) for path in relative]


def assign_splits(entries: Sequence[Entry], seed: int) -> list[Entry]:
    """Set aside `VAL_SHARE` of each (label, source) by a hash of (seed, path), so that no order matters."""
    groups: dict[tuple[int, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.label, entry.source].append(entry)
    result = []
    for members in groups.values():
        ranked = sorted(members, key=lambda e: hashlib.sha256(f"{seed}\0{e.path}".encode()).digest())
        held_out = round(len(ranked) * VAL_SHARE)
        result += [
            dataclasses.replace(e, split="val" if i < held_out else "train") for i, e in enumerate(ranked)
        ]
    return result
