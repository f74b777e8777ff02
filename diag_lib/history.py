"""What did the user's own training write down? One table of epochs, whatever the file it comes from.

Read are the two-stage script's JSON (lists `stage, train_loss, train_distill_loss, train_task_loss, val_loss,
val_acc, val_auc`), JSON or JSONL with one record an epoch, recordings of `TrainingRecorder`, CSV, and TensorBoard
events. Nothing is unpickled.
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diag_lib.errors import UserError
from diag_lib.recording import Recording, epoch_rows, is_recording, read_recording

COLUMNS = ("stage", "train_loss", "train_distill_loss", "train_task_loss", "val_loss", "val_acc", "val_auc")
"""The guide's lists, in its order."""

MAX_BYTES = 64_000_000
MISSING = frozenset({"", "-", "na", "n/a", "nan", "none", "null", "+nan", "-nan", "nat"})

_PICKLES = (b"\x80", b"PK\x03\x04", b"(dp", b"\x1f\x8b")  # pickle protocols 2+ and 0, zip (torch.save), gzip


@dataclass(frozen=True)
class History:
    """One row an epoch: `epoch` (1, 2, ...) and the guide's columns as float64, NaN where nothing is known.

    `source` is the file's name without its folder; `kind` is json, jsonl, recorder, csv, tensorboard or arm;
    `notes` say what was interpreted on the way; `recording` holds all that a `TrainingRecorder` wrote.
    """

    epochs: pd.DataFrame
    source: str
    kind: str
    notes: tuple[str, ...] = ()
    recording: Recording | None = None

    def __len__(self) -> int:
        return len(self.epochs)

    def known(self, column: str) -> bool:
        """Whether the column holds any finite value."""
        return bool(np.isfinite(self.epochs[column]).any())

    def values(self, column: str) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """The column as an array (epochs,)."""
        return self.epochs[column].to_numpy(dtype=np.float64)


def read_history(path: str | Path) -> History:
    """Read a training history.

    Parameters
    ----------
    path : a .json, .jsonl or .csv/.tsv file (recognised by content too), an events file of TensorBoard or a
        folder that holds one run's.

    Raises
    ------
    UserError : missing, too large, a pickle, not numbers, lists of unequal length, no known column.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"history {path.name}: no such file; name your training's JSON, CSV or events, or set null"
        )
    if path.is_dir() or "tfevents" in path.name:
        return _checked(*_from_tensorboard(path), path.name or str(path), "tensorboard")
    text = _text(path)
    if is_recording(text):
        return _from_recording(text, path.name)
    kind = _kind(path, text)
    rows_or_lists, notes = {"json": _from_json, "jsonl": _from_jsonl, "csv": _from_csv}[kind](text, path.name)
    return _checked(rows_or_lists, notes, path.name, kind)


def from_lists(lists: Mapping[str, Sequence[Any]], source: str, kind: str = "arm") -> History:
    """A history of lists in memory, e.g. those of a trained arm; the same checks as for a file."""
    return _checked(_pick(lists, source, []), [], source, kind)


def write_guide_json(history: History, path: str | Path) -> Path:
    """Write the history as the guide's JSON: one list a column; unknown values are null."""
    frame = history.epochs
    lists: dict[str, list[float | int | None]] = {
        column: [float(v) if math.isfinite(v) else None for v in frame[column]] for column in COLUMNS
    }
    lists["stage"] = [int(v) if math.isfinite(v) else 1 for v in frame["stage"]]
    path = Path(path)
    path.write_text(json.dumps(lists, indent=1) + "\n", encoding="utf-8")
    return path


# ---- which column is this?

_WORDS: dict[str, frozenset[str]] = {
    "train": frozenset({"train", "training", "trn", "tr"}),
    "val": frozenset({"val", "valid", "validation", "test", "eval", "dev", "heldout"}),
    "auc": frozenset({"auc", "auroc", "rocauc", "roc"}),
    "acc": frozenset({"acc", "accuracy"}),
    "distill": frozenset({"distill", "distillation", "kd", "kl", "mse", "teacher", "distil"}),
    "task": frozenset({"task", "bce", "ce", "cls", "classification", "hard"}),
    "loss": frozenset({"loss", "total", "objective"}),
}
_IGNORED = frozenset({"step", "lr", "time", "grad", "norm", "weight", "alpha", "best", "std", "min", "max"})


def column_of(name: str) -> str | None:
    """The guide's column that a name from another program means, None when it is something else.

    >>> [column_of(name) for name in ("val/AUC", "validation_loss", "kd_loss", "Loss/train", "lr")]
    ['val_auc', 'val_loss', 'train_distill_loss', 'train_loss', None]
    """
    if name in COLUMNS or name == "epoch":
        return name
    words = _words(name)
    if words and words <= {"epoch", "epochs"}:
        return "epoch"
    if words and words <= {"stage", "phase"}:
        return "stage"
    said = {meaning for meaning, synonyms in _WORDS.items() if words & synonyms}
    if words & _IGNORED or not said & {"auc", "acc", "distill", "task", "loss"}:
        return None
    for metric in ("auc", "acc"):
        if metric in said:
            return None if "train" in said and "val" not in said else f"val_{metric}"
    if "val" in said:
        return None if "distill" in said else "val_loss"
    if "distill" in said:
        return "train_distill_loss"
    return "train_task_loss" if "task" in said else "train_loss"


def _words(name: str) -> set[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", str(name))
    return set(re.findall(r"[a-z]+", spaced.lower()))


def _rank(name: str) -> tuple[bool, bool, bool]:
    """Of several names for one column the smallest wins.

    The guide's own name; then one that says its split (beside Keras' `val_auc_1` the plain `auc_1` is the training's);
    then validation before test.
    """
    words = _words(name)
    return name not in COLUMNS, not words & (_WORDS["val"] | _WORDS["train"]), "test" in words


def _pick(lists: Mapping[str, Sequence[Any]], source: str, notes: list[str]) -> dict[str, list[Any]]:
    """The known columns among named lists; of several for one the best by `_rank`, then the first."""
    chosen: dict[str, str] = {}
    empty: list[str] = []
    for name in sorted(lists, key=_rank):
        column = column_of(name)
        if column is None:
            continue
        if len(lists[name]) == 0:
            empty.append(name)
            continue
        if column in chosen:
            notes.append(f"{name!r} was left out: {chosen[column]!r} is read as {column}")
        else:
            chosen[column] = name
    if not set(chosen) - {"epoch", "stage"}:
        if empty:
            names = ", ".join(map(str, empty[:4]))
            raise UserError(f"history {source}: {names}: empty; wanted is one value an epoch in each")
        seen = ", ".join(map(str, list(lists)[:8])) or "nothing"
        raise UserError(
            f"history {source}: found {seen}; wanted are columns such as {', '.join(COLUMNS[1:])}"
        )
    sizes = {name: len(lists[name]) for name in chosen.values()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(f"history {source}: lists differ in length ({told}); give one value an epoch in each")
    return {column: list(lists[name]) for column, name in chosen.items()}


# ---- file formats


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"history {path.name}: has {size:,} bytes; the limit is {MAX_BYTES:,}")
        if not path.is_file():  # a pipe or a device would never end
            raise UserError(
                f"history {path.name}: is no regular file; name your training's JSON, CSV or events"
            )
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"history {path.name}: cannot be read ({error.strerror})") from None
    if content.startswith(_PICKLES) or path.suffix.lower() in {".pkl", ".pickle", ".pt", ".pth"}:
        raise UserError(
            f"history {path.name}: is a pickle or archive, which is not opened; save it as JSON or CSV"
        )
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise UserError(f"history {path.name}: is not UTF-8 text; save it as UTF-8 JSON or CSV") from None


def _kind(path: Path, text: str) -> str:
    suffix = path.suffix.lower()
    if suffix in {".jsonl", ".ndjson"}:
        return "jsonl"
    if suffix in {".csv", ".tsv"}:
        return "csv"
    start = text.lstrip()[:1]
    if start == "{" and suffix != ".json" and re.search(r"\}\s*\n\s*\{", text):
        return "jsonl"
    return "json" if start in {"{", "["} or suffix == ".json" else "csv"


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"history {where}: not readable as JSON ({error.msg}, line {error.lineno})") from None
    except (RecursionError, ValueError):
        raise UserError(
            f"history {where}: not readable as JSON (nested too deeply or numbers too long)"
        ) from None


def _from_json(text: str, source: str) -> tuple[dict[str, list[Any]], list[str]]:
    content = _loads(text, source)
    if isinstance(content, dict) and isinstance(content.get("history"), (dict, list)):
        content = content["history"]
    if isinstance(content, dict) and isinstance(content.get("log_history"), list):
        # Hugging Face's trainer_state.json, whose last record sums up the whole training
        content = [r for r in content["log_history"] if not (isinstance(r, dict) and "train_runtime" in r)]
    if isinstance(content, list):
        return _from_records(content, source)
    if not isinstance(content, dict):
        raise UserError(
            f"history {source}: holds a single value; wanted is one list a column, or one record an epoch"
        )
    notes: list[str] = []
    lists: dict[str, list[Any]] = {}
    for name, value in content.items():
        inner = (
            {f"{name}_{key}": column for key, column in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
        lists |= {key: column for key, column in inner.items() if isinstance(column, list)}
    return _pick(lists, source, notes), notes


def _from_jsonl(text: str, source: str) -> tuple[dict[str, list[Any]], list[str]]:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    records, notes = [], []
    for number, line in lines:
        try:
            records.append(_loads(line, f"{source} line {number}"))
        except UserError:
            if number != lines[-1][0] or not records:
                raise
            notes.append("the last line is cut off and was left out")
    lists, more = _from_records(records, source)
    return lists, notes + more


def _from_recording(text: str, source: str) -> History:
    recording = read_recording(text, source)
    rows, notes = epoch_rows(recording)
    if not rows:
        raise UserError(f"history {source}: the recording holds no step yet; let the training run a little")
    lists = {name: [row.get(name) for row in rows] for name in ("epoch", *COLUMNS)}
    lists = {name: column for name, column in lists.items() if any(v is not None for v in column)}
    picked = _pick(lists, source, notes)
    return replace(_checked(picked, (*notes, *recording.notes), source, "recorder"), recording=recording)


def _from_records(records: Sequence[Any], source: str) -> tuple[dict[str, list[Any]], list[str]]:
    """Rows of named values; records of another `event` than "epoch" (steps, headers) are passed over."""
    rows = [r for r in records if isinstance(r, dict) and r.get("event", r.get("type", "epoch")) == "epoch"]
    if not rows:
        raise UserError(
            f"history {source}: holds no records of epochs; wanted is one object with named values an epoch"
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    notes: list[str] = []
    lists = _pick({name: [row.get(name) for row in rows] for name in names}, source, notes)
    return _one_row_an_epoch(lists, source), notes


def _from_csv(text: str, source: str) -> tuple[dict[str, list[Any]], list[str]]:
    header = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(",;\t|", key=header.count)
    try:
        rows = [
            row
            for row in csv.reader(text.splitlines(), delimiter=separator)
            if any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise UserError(f"history {source}: not readable as CSV ({error})") from None
    if len(rows) < 2:
        raise UserError(f"history {source}: holds no epochs; wanted are a header line and one line an epoch")
    names = [name.strip().strip('"') for name in rows[0]]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"history {source}: the column {twice[:40]!r} stands twice; keep one of them")
    for number, row in enumerate(rows[1:], 2):
        if len(row) > len(names) and any(cell.strip() for cell in row[len(names) :]):
            raise UserError(
                f"history {source}: row {number} has {len(row)} values but the header {len(names)}"
            )
    cells = [[cell.strip() for cell in row] + [""] * (len(names) - len(row)) for row in rows[1:]]
    if separator != ",":
        cells = [[re.sub(r"^([-+]?\d+),(\d+)", r"\1.\2", cell) for cell in row] for row in cells]
    notes: list[str] = []
    lists = _pick({name: [row[i] for row in cells] for i, name in enumerate(names) if name}, source, notes)
    return _one_row_an_epoch(lists, source), notes


def _one_row_an_epoch(lists: dict[str, list[Any]], source: str) -> dict[str, list[Any]]:
    """Join neighbouring rows of one epoch: some loggers put training and validation on separate rows.

    Fractions of an epoch, which loggers of steps give, belong to the epoch that they are part of.
    """
    if "epoch" not in lists:
        return lists
    frame = pd.DataFrame({column: _numbers(values, column, source) for column, values in lists.items()})
    frame["epoch"] = np.ceil(frame["epoch"] - 1e-6)
    keys = frame[[c for c in ("stage", "epoch") if c in frame]].ffill()
    joined = frame.groupby((keys != keys.shift()).any(axis=1).cumsum(), sort=False).last()
    return {str(column): joined[column].tolist() for column in joined}


def _from_tensorboard(path: Path) -> tuple[dict[str, list[Any]], list[str]]:
    from diag_lib.tensorboard_events import read_scalars

    series = read_scalars(path, MAX_BYTES)
    columns: dict[str, list[str]] = {}
    for tag in series:
        column = column_of(tag)
        if column in COLUMNS and column != "stage":
            columns.setdefault(str(column), []).append(tag)
    columns = {column: sorted(tags, key=_rank) for column, tags in columns.items()}
    doubled = next(
        (tags for tags in columns.values() if len({tag.rsplit("/", 1)[-1] for tag in tags}) < len(tags)), None
    )
    if doubled:
        raise UserError(
            f"history {path.name}: holds several runs ({', '.join(doubled[:3])}); name the folder of one"
        )
    if not columns:
        seen = ", ".join(list(series)[:8]) or "no scalars"
        raise UserError(
            f"history {path.name}: found {seen}; wanted are scalars such as {', '.join(COLUMNS[1:])}"
        )
    chosen = {column: sorted(series[tags[0]]) for column, tags in columns.items()}
    notes = [
        f"{tag!r} was left out: {tags[0]!r} is read as {c}" for c, tags in columns.items() for tag in tags[1:]
    ]
    return _on_epochs(chosen), notes


def _on_epochs(series: Mapping[str, list[tuple[int, float]]]) -> dict[str, list[float]]:
    """Series of (step, value) as one value an epoch; the epochs are the steps of the validation series."""
    reference = next(
        (c for c in ("val_auc", "val_loss", "val_acc") if c in series),
        min(series, key=lambda c: len(series[c])),
    )
    ends = np.array([step for step, _ in series[reference]])
    lists: dict[str, list[float]] = {}
    for column, points in series.items():
        values, steps = np.array([v for _, v in points]), np.array([s for s, _ in points])
        if len(points) == len(ends):
            lists[column] = values.tolist()
            continue
        same_clock = steps[-1] <= 1.5 * max(1, ends[-1])
        place = (
            np.searchsorted(ends, steps) if same_clock else np.arange(len(points)) * len(ends) // len(points)
        )
        lists[column] = [
            float(values[place == i].mean()) if (place == i).any() else math.nan for i in range(len(ends))
        ]
    return lists


# ---- numbers


def _checked(lists: Mapping[str, Sequence[Any]], notes: Iterable[str], source: str, kind: str) -> History:
    told = list(notes)
    frame = pd.DataFrame({column: _numbers(values, column, source) for column, values in lists.items()})
    if frame.empty:
        raise UserError(f"history {source}: holds no epochs")
    if "stage" not in frame:
        restarts = frame["epoch"].diff() < 0 if "epoch" in frame else pd.Series(False, index=frame.index)
        frame["stage"] = 1.0 + restarts.cumsum()
    frame = frame.reindex(columns=list(COLUMNS))
    for column in ("val_auc", "val_acc"):
        frame[column] = _share(frame[column], column, source, told)
    if not np.isfinite(frame[list(COLUMNS[1:])]).any(axis=None):
        raise UserError(
            f"history {source}: holds no finite number in any known column; if the losses were NaN from the first "
            "epoch on, leave the history out: the workbook's own training shows where they break"
        )
    frame.insert(0, "epoch", np.arange(1, len(frame) + 1))
    return History(frame.reset_index(drop=True), source, kind, tuple(told))


def _numbers(values: Sequence[Any], column: str, source: str) -> list[float]:
    if column == "stage":
        return _stages(values)
    return [_number(value, column, row, source) for row, value in enumerate(values, 1)]


def _number(value: Any, column: str, row: int, source: str) -> float:
    if value is None or (isinstance(value, str) and value.strip().lower() in MISSING):
        return math.nan
    try:
        if isinstance(value, (bool, list, dict)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"history {source}: {column}, entry {row}, is {str(value)[:40]!r}; a number is expected"
        ) from None


def _stages(values: Sequence[Any]) -> list[float]:
    """1, 2, ...: the number in each stage's name, else the order in which names appear."""
    names = list(dict.fromkeys(str(value) for value in values))
    digits = {name: re.search(r"\d+", name) for name in names}
    return [float(m[0][:9]) if (m := digits[str(v)]) else names.index(str(v)) + 1.0 for v in values]


def _share(values: "pd.Series[float]", column: str, source: str, notes: list[str]) -> "pd.Series[float]":
    finite = values[np.isfinite(values)]
    if len(finite) and finite.max() > 1.5 and finite.min() >= 0 and finite.max() <= 100:
        notes.append(f"{column} was given in percent")
        return values / 100
    bad = finite[(finite < 0) | (finite > 1 + 1e-6)]
    if len(bad):
        raise UserError(f"history {source}: {column} is {bad.iloc[0]:g}; it must lie between 0 and 1")
    return values
