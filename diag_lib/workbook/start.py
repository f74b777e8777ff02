"""What does a notebook need before its first step: checked settings, its images, and a folder to write to."""

import contextlib
import importlib
import os
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

from diag_lib import live, resources
from diag_lib.errors import UserError
from diag_lib.evidence import STEPS, RunFolder
from diag_lib.images import beside_run
from diag_lib.settings import Settings, check_parameters, load

SETTINGS_FILE = "settings.yaml"


def start(
    step: str,
    config: str | os.PathLike[str],
    run_dir: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Settings, Path]:
    """First line of every notebook: validate its three parameters, write `settings.yaml` into the run folder.

    Parameters
    ----------
    step : name of the step, e.g. "teacher".
    config : path of a settings file, or a preset's name; "demo" also makes the demo images when missing.
    run_dir : folder of the run, made when missing. Relative paths are relative to the working directory; a
        notebook opened in a checkout's `notebooks/` counts from the checkout, as the command line does there.
    overrides : dotted settings keys to values.

    Returns
    -------
    (settings, run_dir) with run_dir absolute.

    Raises
    ------
    UserError : a parameter or a setting is not allowed, or the folder cannot be written.
    """
    if step not in STEPS:
        raise UserError(f"step {step!r} does not exist; steps: {', '.join(STEPS)}")
    check_parameters(config, run_dir, overrides)
    with contextlib.chdir(resources.base_dir()):
        settings = load(Path(config) if not isinstance(config, str) else config, dict(overrides or {}))
        folder = RunFolder(Path(run_dir).expanduser())
        settings = beside_run(settings, folder.root, folder.default_cache)
        folder.create()
        prepare_data(settings, config)
    text = settings.to_yaml()
    path = folder.root / SETTINGS_FILE
    if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
        folder.write_text(SETTINGS_FILE, text)
    live.end_well_when_stopped(lambda: _stopped(folder))
    if live.kernel_shell() is not None:
        from diag_lib.widgets.stop import stop_button

        stop_button()
    return settings, folder.root


def _stopped(folder: RunFolder) -> object:
    """What a cell that was stopped leaves: one line on what is kept and how to go on."""
    from diag_lib import display

    arms = folder.root / "artifacts" / "arms"
    done = {path.parent for path in arms.glob("*/result.json")}
    begun = {path.parent for path in arms.glob("*/checkpoint.pt")} - done
    kept = [f"{len(done)} finished {_trainings(done)}"] if done else []
    kept += [f"{len(begun)} begun {_trainings(begun)} up to the last whole epoch"] if begun else []
    told = f"Kept: {' and '.join(kept)}. " if kept else ""
    return display.callout("warning", f"{told}Run this cell again to go on from there.", "Stopped")


def _trainings(which: Sized) -> str:
    return "training" if len(which) == 1 else "trainings"


def prepare_data(settings: Settings, config: str | os.PathLike[str]) -> None:
    """Make the demo images when `config` is the demo preset; every other dataset is the user's own."""
    if config == "demo":
        # The demo stands above this module: it is looked up only when it is asked for.
        importlib.import_module("diag_lib.demo").ensure_data(settings)
