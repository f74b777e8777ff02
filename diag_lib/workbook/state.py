"""What has happened in this run so far? `run.json`, read and written as a whole."""

import contextlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from diag_lib import __version__
from diag_lib.errors import UserError
from diag_lib.evidence import STEPS, RunFolder
from diag_lib.settings import Settings
from diag_lib.workbook.execute import Execution, now

SCHEMA = "diag/run/1"
RUN_FILE = "run.json"
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pandas",
    "scikit-learn",
    "scipy",
    "matplotlib",
    "papermill",
)

Status = Literal["done", "failed", "stopped", "running", "not run", "out of date"]
STATUSES: tuple[Status, ...] = ("done", "failed", "stopped", "running", "not run", "out of date")


@dataclass
class StepState:
    """One step's line in `run.json`; `reused` says that this run kept an earlier result."""

    status: Status = "not run"
    seconds: float | None = None
    why: str = ""
    cell: int | None = None
    not_run: int = 0
    outcome: str = ""
    reused: bool = False
    key: str = ""
    started: str = ""
    finished: str = ""

    def record(self, result: Execution) -> None:
        """Take over how an execution went."""
        stopped = result.outcome in ("interrupted", "time limit")
        self.status = "done" if result.outcome == "done" else "stopped" if stopped else "failed"
        self.seconds, self.why, self.outcome = round(result.seconds, 2), result.why, result.outcome
        self.cell, self.not_run, self.finished, self.reused = result.cell, result.not_run, now(), False


@dataclass
class RunState:
    """The run as a whole; `save` writes it atomically."""

    name: str
    steps: dict[str, StepState] = field(default_factory=lambda: {step: StepState() for step in STEPS})
    facts: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    started: str = ""
    finished: str | None = None

    @classmethod
    def load(cls, folder: RunFolder) -> Self:
        """The state on disk; a fresh one when there is none or it is not ours."""
        raw = folder.read_json(RUN_FILE)
        state = cls(folder.root.name)
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            return state
        known = set(StepState.__dataclass_fields__)
        with contextlib.suppress(TypeError, AttributeError):
            for step, line in raw.get("steps", {}).items():
                if step in state.steps and line.get("status") in STATUSES:
                    state.steps[step] = StepState(**{key: line[key] for key in known & line.keys()})
            state.inputs = dict(raw.get("inputs") or {})
            state.facts = {key: raw[key] for key in FACTS if key in raw}
            state.started, state.finished = str(raw.get("started") or ""), raw.get("finished")
        return state

    def save(self, folder: RunFolder) -> None:
        """Write `run.json`."""
        steps = {step: asdict(line) for step, line in self.steps.items()}
        whole = {"schema": SCHEMA, "name": self.name, **self.facts, "inputs": self.inputs, "steps": steps}
        folder.write_json(RUN_FILE, {**whole, "started": self.started, "finished": self.finished})


FACTS = ("versions", "platform", "device", "precision", "threads", "kernels", "cores", "seeds", "budget")


def gather_facts(settings: Settings) -> dict[str, Any]:
    """What a reader needs to run the same thing again: versions, platform, hardware chosen, seeds."""
    versions = {"python": platform.python_version(), "diag-lib": __version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "versions": versions,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        **_hardware(settings),
        "cores": os.cpu_count(),
        "seeds": [settings.training.seed],
        "budget": settings.runtime.budget,
    }


def _hardware(settings: Settings) -> dict[str, Any]:
    from diag_lib import devices

    return dict(devices.choose(settings).describe())


@contextlib.contextmanager
def only_one(folder: RunFolder) -> Iterator[None]:
    """Hold the run folder for this process. Raises `UserError` when another run is writing to it."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    path = folder.root / ".lock"
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder.root}: another run is writing to this folder; wait for it or choose another --out"
            ) from None
        except OSError:  # a file system without locks: the user has to take care
            pass
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                Path(path).unlink()
