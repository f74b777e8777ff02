"""Progress where nobody can draw over a line: in log files of cron, SLURM and CI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diag_lib import progress

LONG = """
import sys, time
from diag_lib import progress
progress.QUIET_SECONDS, progress.LINE_SECONDS = float(sys.argv[1]), 0.05
with progress.Bar(total=10, desc="training bce_only", unit="epoch") as bar:
    for _ in range(10):
        time.sleep(0.03)
        bar.update(1)
for _ in progress.Bar(range(3), desc="short", unit="image"):
    pass
"""


def _log(quiet: float, **environment: str) -> str:
    command = [sys.executable, "-c", LONG, str(quiet)]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, **environment})
    assert done.stdout == b""
    return done.stderr.decode()


def test_a_log_gets_whole_lines_with_share_and_estimate() -> None:
    text = _log(0.01)
    assert "\r" not in text and "\x1b" not in text
    lines = text.splitlines()
    assert 2 <= len(lines) <= 10
    assert all(line.startswith("training bce_only: ") and " of 10 epochs, " in line for line in lines)
    assert any(" so far, about " in line for line in lines) and lines[-1].startswith(
        "training bce_only: 100 %"
    )


def test_a_log_hears_nothing_of_short_work() -> None:
    assert _log(60) == ""


def test_a_terminal_gets_a_bar_that_is_drawn_over() -> None:
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")
    host, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    done = subprocess.run([sys.executable, "-c", LONG, "60"], stderr=terminal, timeout=60)
    os.close(terminal)
    shown = os.read(host, 65536).decode()
    os.close(host)
    assert done.returncode == 0
    assert shown.count("\r") > 3 and "10/10" in shown


def test_what_a_process_does_can_be_read_while_it_does_it(tmp_path: Path, monkeypatch) -> None:
    place = tmp_path / "progress.txt"
    assert progress.noted(place) == ""
    monkeypatch.setenv(progress.FILE, str(place))
    with progress.Bar(total=4, desc="teacher pass", unit="image", file=open(os.devnull, "w")) as bar:
        bar.update(3)
        bar.refresh()
        assert progress.noted(place) == "teacher pass: 3 of 4 images"
    assert progress.noted(place) == ""
    monkeypatch.setattr(
        progress, "_redrawn", lambda: True
    )  # as in a terminal: the bar is drawn when it closes
    with progress.Bar(total=2, desc="audit", unit="image", file=open(os.devnull, "w")) as bar:
        bar.update(2)
    assert progress.noted(place) == ""
    place.write_text("\x1b[31m" + "x" * 500, encoding="utf-8")
    assert progress.noted(place) == ("[31m" + "x" * 500)[:100]  # nothing commands the terminal
