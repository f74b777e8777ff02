"""Disks of a chosen size, or read-only ones, for a process of its own: mounts nobody else sees, which end with it.

`inside(script, *arguments)` runs Python code in a mount namespace of its own (as root, or as anyone where the system
lets users have one). The code may use `mount_small`, `fill`, `free` and `read_only` of this module.
"""

import contextlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
FILLER = "filler"


@cache
def _refused() -> str:
    """Why no mount can be made here, "" when it can."""
    try:
        command = [*NAMESPACE, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def inside(script: str, *arguments: object, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
    """Run the Python code where it may mount. Skips the test where the system lets nobody mount."""
    if why := _refused():
        pytest.skip(f"NOT TESTED: a full or read-only disk, no mount can be made here ({why})")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    command = [*NAMESPACE, sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


def mount_small(place: Path, size: str) -> None:
    """An empty disk of that size (as `mount` spells it) at `place`."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)


def read_only(place: Path) -> None:
    """From now on nobody writes below `place`."""
    subprocess.run(["mount", "--bind", str(place), str(place)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)


def fill(place: Path) -> None:
    """Take every free byte of the disk at `place`."""
    block = bytes(1 << 16)
    with contextlib.suppress(OSError), (place / FILLER).open("ab", buffering=0) as file:
        while True:
            file.write(block)


def free(place: Path) -> None:
    """Give them back."""
    (place / FILLER).unlink(missing_ok=True)
