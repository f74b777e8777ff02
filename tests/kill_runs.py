"""Does a run that was killed at any moment finish, when started again, with the same verdict?

`python tests/kill_runs.py --moments 20 --seed 0 [--out FOLDER]` prints a table. Each moment has folders and a cache
of its own, so that decoding, the teacher's maps, arms and pages are all cut off somewhere.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from steps_data import tiny_settings, write_images, write_teacher

ROOT = Path(__file__).resolve().parent.parent
FORGET = {"seconds", "started", "ended", "run_dir"}  # what may differ between two runs


def prepare(folder: Path) -> Path:
    """A dataset, a teacher and settings on which a whole run takes half a minute; returns the settings file."""
    write_images(folder / "data", train=16, val=16)
    write_teacher(folder / "teacher.safetensors")
    small = {"training__epochs_s1": 1, "training__epochs_s2": 2, "runtime__budget": "quick"}
    settings = folder / "my.yaml"
    settings.write_text(tiny_settings(folder, runtime__workers=1, **small).to_yaml(), encoding="utf-8")
    return settings


def start(settings: Path, out: Path, *options: str) -> "subprocess.Popen[str]":
    """`diag run` in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    return subprocess.Popen(
        [sys.executable, "-m", "diag_lib.cli", "run", str(settings), "--out", str(out), *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=settings.parent,
    )  # fmt: skip


def kill(process: "subprocess.Popen[str]", *, kernels: bool) -> None:
    """SIGKILL to the run, with or without the kernels it started; without, those have to notice by themselves."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    if kernels:
        for child in children:
            if child.is_running():
                child.send_signal(signal.SIGKILL)
    process.communicate()


def kill_kernel(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to the kernel of the step at work; a younger one is already booting for the next step."""
    kernels: list[psutil.Process] = []
    while not kernels:  # it may still be starting
        assert process.poll() is None, "the run is over, there is no kernel to kill"
        time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        kernels = [child for child in children if "diag_lib.workbook.kernel" in child.cmdline()]
    min(kernels, key=psutil.Process.create_time).kill()


def at_work(out: Path) -> str:
    """The step that `run.json` says is running."""
    try:
        steps = json.loads((out / "run.json").read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError):
        return "before the first step"
    running = [name for name, state in steps.items() if state.get("status") == "running"]
    return running[0] if running else "between steps"


def wait_until(process: "subprocess.Popen[str]", out: Path, step: str, seconds: float) -> str:
    """Wait until the run has been in `step` for `seconds`, or is over; what it is at then."""
    while process.poll() is None and at_work(out) != step:
        time.sleep(0.05)
    time.sleep(seconds)
    return at_work(out) if process.poll() is None else "finished"


def verdict(out: Path) -> Any:
    """The verdict without times."""
    return _without(json.loads((out / "verdict.json").read_text(encoding="utf-8")))


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(inner) for name, inner in value.items() if name not in FORGET}
    return [_without(inner) for inner in value] if isinstance(value, list) else value


def main() -> int:
    """Print the table; 1 when a moment made a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    base = chosen.out or Path(tempfile.mkdtemp(prefix="kills-"))
    settings = prepare(base)
    begun = time.monotonic()
    first = start(settings, base / "undisturbed" / "run")
    first.communicate()
    length = time.monotonic() - begun
    expected = verdict(base / "undisturbed" / "run")
    print(f"undisturbed: exit {first.returncode}, {length:.0f} s\n")
    print("| after (s) | in step | killed | then: exit | verdict |\n|---|---|---|---|---|", flush=True)
    failures = 0
    for number, moment in enumerate(np.random.default_rng(chosen.seed).uniform(1, length, chosen.moments)):
        out, whole = base / f"kill-{number:02d}" / "run", number % 2 == 0
        process = start(settings, out)
        time.sleep(moment)
        step = "finished" if process.poll() is not None else at_work(out)
        kill(process, kernels=whole)
        again = start(settings, out)
        said, _ = again.communicate()
        same = again.returncode == 0 and verdict(out) == expected and "Traceback" not in said
        failures += not same
        killed = "run and kernel" if whole else "run"
        print(
            f"| {moment:.1f} | {step} | {killed} | {again.returncode} | {'same' if same else 'DIFFERS'} |",
            flush=True,
        )
        if not same:
            print(said[-2000:])
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
