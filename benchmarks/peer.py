"""The same training by a peer: torchdistill, in an environment of its own.

The environment is made here on the first call, below the user's cache folder: torchdistill from the package index,
everything else (torch above all) is that of this environment, so that all ways compute with the same kernels.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.timing import Report, Times
from diag_lib.settings import Settings

PACKAGE = "torchdistill"
INSTALL_SECONDS = 180
SCRIPT = Path(__file__).with_name("peer_script.py")


def home() -> Path:
    """Where the environment is kept between benchmarks."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "diag-benchmarks" / PACKAGE


def environment() -> Path:
    """The Python of the peer's environment, made when it is not there. Raises RuntimeError where it cannot be."""
    folder = home()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if python.is_file() and _works(python):
        return python
    try:
        venv.create(folder, clear=True, with_pip=True)
        inside = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        Path(inside, "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", PACKAGE]
        subprocess.run(install, check=True, capture_output=True, timeout=INSTALL_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"{PACKAGE} cannot be installed ({type(error).__name__})") from None
    if not _works(python):
        raise RuntimeError(f"{PACKAGE} does not run in its environment")
    return python


def _works(python: Path) -> bool:
    return _run(python, "-c", f"import torch, {PACKAGE}").returncode == 0


def _run(python: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The environment may have been made from another checkout: this one comes first on the path."""
    path = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.run([str(python), *arguments], capture_output=True, text=True, env=os.environ | path)


class Peer:
    """torchdistill's times of the arms, each measured right after the plain run of that arm."""

    def __init__(self, root: Path, report: Report) -> None:
        self.root, self.report = root, report
        self.times: dict[str, Times] = {}
        self.python: Path | None = None
        self.found: dict[str, object] = {}
        try:
            self.python = environment()
        except RuntimeError as error:
            self._skip(str(error))

    def measure(self, arm: str, settings: Settings) -> None:
        """Time one arm: of those with a teacher the first stands for all, they do the same work."""
        kind = "bce_only" if arm == "bce_only" else "with_teacher"
        if self.python is None or kind in self.times:
            return
        file = self.root / "peer.yaml"
        file.write_text(settings.to_yaml(), encoding="utf-8")
        done = _run(self.python, str(SCRIPT), str(file))
        if done.returncode:
            self._skip(f"{PACKAGE} failed on {arm}: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}")
            return
        told = json.loads(done.stdout.splitlines()[-1])
        self.times[kind] = Times(told["wall"], told["cpu"])
        self.found |= {
            "version": told["version"],
            f"{kind}_losses": told["losses"],
            f"{kind}_seconds": told["wall"],
        }

    def compare(self, arms: Sequence[str], cold: Sequence[Times], warm: Sequence[Times]) -> None:
        """The ratios of all arms through the peer to ours."""
        if self.python is not None:
            whole = Times(0, 0)
            for arm in arms:
                whole += self.times["bce_only" if arm == "bce_only" else "with_teacher"]
            self.report.add("torchdistill_over_ours_cold", [(whole, time) for time in cold])
            self.report.add("torchdistill_over_ours_warm", [(whole, time) for time in warm])
        self.report.further[PACKAGE] = self.found

    def _skip(self, why: str) -> None:
        print(f"  skipped: {why}", file=sys.stderr)
        self.found, self.python = {"skipped": why}, None
