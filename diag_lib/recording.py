"""What did `TrainingRecorder` write? Its events, read with tolerance for what a kill leaves behind.

The format is JSONL, schema diag/recorder/1: `start`, then `step` (values and ranges of a batch), `update` (one
optimiser step, tensor by tensor), `epoch` (the guide's columns and the validation scores), `stage`, `note`, `end`.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diag_lib.errors import UserError
from diag_lib.recorder_file import SCHEMA
from diag_lib.roc import Auc, auc

FAMILY = "diag/recorder/"
OWN = frozenset({"counts", "tensors", "differentiable", "norms"})  # keys that no other logger's events have
HEAD, LOOK_AT = 200_000, 20  # characters and lines of a file in which a recording shows itself
STEPS_AN_ENTRY = 10  # looks that stand for an epoch in a recording that ended before its first

Event = dict[str, Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Recording:
    """The events by kind, in order; of several records of one epoch (a resumed training) the last.

    `notes` say in words what could not be recorded or read.
    """

    starts: tuple[Event, ...]
    steps: tuple[Event, ...]
    updates: tuple[Event, ...]
    epochs: tuple[Event, ...]
    notes: tuple[str, ...]

    def last_scores(self) -> "Scores | None":
        """The validation scores of the last epoch that has any."""
        return next((s for event in reversed(self.epochs) if (s := scores_of(event)) is not None), None)

    def tensors(self) -> dict[str, list[Any]]:
        """Name -> [values, requires_grad, in an optimiser, (distance from the start)] as last recorded."""
        for event in reversed((*self.starts, *self.epochs)):
            table = event.get("tensors")
            if isinstance(table, dict) and table:
                return {n: row for n, row in table.items() if isinstance(row, list) and len(row) >= 3}
        return {}


@dataclass(frozen=True)
class Scores:
    """Validation labels (n,), raw logits (n,) and what other poolings of the patches give (n,) each."""

    labels: NDArray[np.int64]
    logits: Floats
    pooled: dict[str, Floats]

    def auc(self) -> Auc:
        """The rank AUC with its interval; undefined for constant or NaN scores."""
        return auc(self.labels, self.logits, nan="undefined")


def is_recording(text: str) -> bool:
    """Whether one of the first lines is a recorder's event (of any version)."""
    lines = [line for line in text.lstrip("\ufeff \r\n")[:HEAD].splitlines() if line.strip()]
    events = [event for line in lines[:LOOK_AT] if (event := _event(line)) is not None]
    if text.lstrip("\ufeff \r\n").startswith("{") and FAMILY in text[:200]:
        return True  # a start line longer than what is looked at
    return any(
        str(event.get("schema", "")).startswith(FAMILY) or not OWN.isdisjoint(event) for event in events
    )


def read_recording(text: str, source: str) -> Recording:
    """Sort the lines into events. Lines that a kill cut off, or that are none of ours, are counted and left out.

    Raises UserError for another version of the format.
    """
    events, lost = [], 0
    for line in text.splitlines():
        if line.strip():
            event = _event(line)
            events.append(event)
            lost += event is None
    known = [event for event in events if event is not None]
    schemas = {str(event.get("schema")) for event in known if event["event"] == "start"}
    if schemas - {SCHEMA}:
        other = sorted(schemas - {SCHEMA})[0][:40]
        raise UserError(f"history {source}: is a recording of format {other}; this version reads {SCHEMA}")
    notes = [f"{lost} line(s) are cut off or no events and were left out"] if lost else []
    if not schemas:
        notes.append("the line that starts a recording is missing: what it tells of the network is unknown")
    epochs = _of(known, "epoch")
    twice = len(epochs) - len(_last_of_each(epochs))
    if twice:
        notes.append(
            f"{twice} epoch(s) are recorded more than once, the last counts: was it resumed, or are these "
            "two trainings in one file?"
        )
    notes += [f"{e.get('where')} could not be recorded ({e.get('said')})" for e in _of(known, "note")]
    notes += [f"the training stopped with {e.get('error')}" for e in _of(known, "stopped")]
    return Recording(
        _of(known, "start") + _of(known, "stage"),
        _of(known, "step"),
        _of(known, "update"),
        _last_of_each(_of(known, "epoch")),
        tuple(str(note)[:300] for note in notes),
    )


def epoch_rows(recording: Recording) -> tuple[list[Event], list[str]]:
    """The rows of a history, with the guide's column names; where no epoch was finished, one for every few looks."""
    if recording.epochs:
        return list(recording.epochs), []
    names = {"loss": "train_loss", "distill": "train_distill_loss", "task": "train_task_loss"}
    chunks = [
        recording.steps[at : at + STEPS_AN_ENTRY] for at in range(0, len(recording.steps), STEPS_AN_ENTRY)
    ]
    rows = [
        {column: float(np.mean(values(chunk, name))) for name, column in names.items()} for chunk in chunks
    ]
    note = f"no epoch was finished: each row stands for up to {STEPS_AN_ENTRY} recorded steps"
    return rows, [note] if rows else []


def value(event: Any, *keys: str) -> float:
    """The number at that place, NaN where there is none; "inf" and "nan" are numbers that JSON has no word for."""
    for key in keys:
        event = event.get(key) if isinstance(event, dict) else None
    return _number(event)


def values(events: Iterable[Event], *keys: str) -> Floats:
    """That number of each event (n,)."""
    return np.array([value(event, *keys) for event in events], np.float64)


def entry(event: Any, key: str, index: int) -> float:
    """The number at a place of a list in the event, NaN where there is none."""
    row = event.get(key) if isinstance(event, dict) else None
    return _number(row[index]) if isinstance(row, list) and index < len(row) else math.nan


def scores_of(event: Event) -> Scores | None:
    """The validation scores of an epoch's record, None where there are none (or they do not fit together)."""
    seen = event.get("seen")
    if not isinstance(seen, dict) or not isinstance(seen.get("scores"), dict):
        return None
    labels = str(seen.get("labels", ""))
    columns = {str(n): [_number(v) for v in c] for n, c in seen["scores"].items() if isinstance(c, list)}
    if not labels or set(labels) - {"0", "1"} or any(len(c) != len(labels) for c in columns.values()):
        return None
    if "logits" not in columns:
        return None
    arrays = {name: np.array(column, np.float64) for name, column in columns.items()}
    return Scores(np.array([int(c) for c in labels], np.int64), arrays.pop("logits"), arrays)


def _number(found: Any) -> float:
    if isinstance(found, bool) or not isinstance(found, (int, float, str)):
        return math.nan
    try:
        return float(found)
    except (ValueError, OverflowError):
        return math.nan


def _event(line: str) -> Event | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _of(events: Sequence[Event], kind: str) -> tuple[Event, ...]:
    return tuple(event for event in events if event["event"] == kind)


def _last_of_each(epochs: Sequence[Event]) -> tuple[Event, ...]:
    kept: dict[tuple[float, float], Event] = {}
    for number, event in enumerate(epochs, 1):
        stage, epoch = value(event, "stage"), value(event, "epoch")
        key = (stage if math.isfinite(stage) else 1.0, epoch if math.isfinite(epoch) else float(number))
        kept[key] = event
    return tuple(kept[key] for key in sorted(kept))
