"""How far is it? Bars in a terminal and in notebooks; whole lines now and then in a log file."""

import os
import sys
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

FILE = "DIAG_PROGRESS_FILE"
"""Environment variable: a file that always holds the bar of this process as one line (the workbook reads it)."""
QUIET_SECONDS, LINE_SECONDS = 30.0, 60.0
"""In a log a short bar says nothing, a longer one a line this often."""
LINE = "{desc}: {percentage:.0f} %, {n_fmt} of {total_fmt} UNITS, {elapsed} so far, about {remaining} left"


class Bar(tqdm):  # type: ignore[misc,type-arg,unused-ignore]
    """`tqdm` with the same parameters; where standard error is neither a terminal nor a notebook it writes lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("disable") and not _redrawn():
            total = kwargs.get("total", len(args[0]) if args and hasattr(args[0], "__len__") else None)
            line = LINE.replace("UNITS", _units(kwargs.get("unit", "it"))) if total else None
            look = {"file": _Lines(sys.stderr), "delay": QUIET_SECONDS, "bar_format": line}
            kwargs = {**look, "mininterval": LINE_SECONDS, "maxinterval": LINE_SECONDS, **kwargs}
        super().__init__(*args, **kwargs)

    def display(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the bar, and note it for who watches this process."""
        of = f" of {self.total:.12g}" if self.total else ""
        _note(f"{self.desc.removesuffix(': ')}: {self.n:.12g}{of} {_units(self.unit)}")
        return super().display(*args, **kwargs)

    def close(self) -> None:
        """End the bar; nothing is noted any more."""
        shown = not self.disable
        super().close()  # may draw the bar once more, and disables it
        if shown:
            _note("")


def duration(seconds: float | None) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def noted(path: Path, most: int = 100) -> str:
    """What the process that was given `path` as `FILE` is doing, or nothing."""
    try:
        said = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "".join(character for character in said if character.isprintable())[:most]


def _units(unit: str) -> str:
    return f"{unit}s" if len(unit) > 2 else unit


def _note(line: str) -> None:
    path = os.environ.get(FILE)
    if path:
        try:
            Path(path).write_text(line, encoding="utf-8")
        except OSError:  # a full disk stops the work itself soon enough
            return


def _redrawn() -> bool:
    """Whether a line can be drawn over: in a terminal, and in a kernel, whose notebook keeps the last state only."""
    if "ipykernel" in sys.modules:
        return True
    return bool(getattr(sys.stderr, "isatty", lambda: False)())


class _Lines:
    """A file for `tqdm` that gets a line for every redrawing, without carriage returns."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        said = text.replace("\x1b[A", "").strip()
        if said:
            self._file.write(f"{said}\n")

    def flush(self) -> None:
        self._file.flush()
