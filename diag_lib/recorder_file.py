"""Where a recording is written: one line an event, continued where the file exists, and never in a training's way."""

import json
import warnings
from pathlib import Path
from typing import IO, Any

from diag_lib.errors import UserError

SCHEMA = "diag/recorder/1"


class RecordingFile:
    """The JSONL file of one training. A file of another training that still writes is left alone, with a warning.

    `open`: whether lines are taken. `epochs`, `stage`: the last ones that an earlier recording in it speaks of.
    Raises `UserError` if the path cannot be written or holds something else than a recording.
    """

    def __init__(self, path: Path) -> None:
        self.epochs, self.stage = 0, 1
        self._file: IO[str] | None = None
        try:
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            if text.strip() and f'"{SCHEMA}"' not in text.partition("\n")[0]:
                raise UserError(
                    f"recorder {path.name}: this file is no recording; name another one or remove it"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a", encoding="utf-8", buffering=1)
            if not _alone(file):
                file.close()
                told = f"recorder {path.name}: another training is writing to it; nothing is recorded here"
                warnings.warn(told, RuntimeWarning, stacklevel=3)
                return
            if text and not text.endswith("\n"):  # a line that a kill has cut off
                file.write("\n")
        except OSError as error:
            raise UserError(f"recorder {path.name}: cannot be written ({error.strerror})") from None
        self._file = file
        for line in text.splitlines():
            try:
                event = json.loads(line)
                self.epochs = int(event["epoch"]) if event["event"] == "epoch" else self.epochs
                self.stage = int(event.get("stage", self.stage))
            except (ValueError, TypeError, KeyError, AttributeError):
                continue

    @property
    def open(self) -> bool:
        return self._file is not None

    def write(self, record: dict[str, Any]) -> None:
        """One line. Where the disk does not take it the recording ends, with a warning."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
        except (OSError, ValueError, TypeError) as error:
            self._file = None
            warnings.warn(f"recorder: recording ended, {error}", RuntimeWarning, stacklevel=4)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _alone(file: IO[str]) -> bool:
    """Lock the file for this process until it is closed; True where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
