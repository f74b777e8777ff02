"""How do I open the notebooks? JupyterLab on the checkout's, or on writable copies of the installed ones."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from diag_lib import resources
from diag_lib.errors import UserError

COPIES = "diag-notebooks"

# Nothing is fetched from the internet: no news, no update check, and no question whether to.
_SETTINGS = Path(__file__).resolve().parent / "lab_config"
_OFFLINE = ("--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=")


def open_lab(arguments: Sequence[str] = ()) -> int:
    """Run JupyterLab until it is stopped and return its exit code; `arguments` are passed to it."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise UserError("JupyterLab is not installed: pip install 'diag-lib[notebook]'")
    process = subprocess.Popen(lab_command(workspace(Path.cwd()), arguments), env=lab_environment())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches JupyterLab too, which asks its own question
            continue


def workspace(folder: Path) -> Path:
    """The folder JupyterLab opens: the checkout's notebooks, else copies in `folder`/diag-notebooks.

    Copies that are already there are kept, so that nobody's edits are lost.
    """
    if resources.checkout_dir():
        return resources.notebooks_dir()
    copies = folder / COPIES
    try:
        copies.mkdir(exist_ok=True)
        for source in sorted(resources.notebooks_dir().glob("*.ipynb")):
            if not (copies / source.name).exists():
                shutil.copyfile(source, copies / source.name)
    except OSError as error:
        raise UserError(
            f"{copies}: cannot be written ({error.strerror}); start from a folder of yours"
        ) from None
    return copies


def lab_environment() -> dict[str, str]:
    """The environment JupyterLab starts in: our defaults come before the system's, the user's own before ours."""
    paths = [str(_SETTINGS), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    return {**os.environ, "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, paths))}


def lab_command(root: Path, arguments: Sequence[str]) -> list[str]:
    """The command line that starts JupyterLab on `root`; it listens on this machine only, behind a token."""
    # In containers one is root, and JupyterLab refuses to start as root unless told so.
    as_root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={root}",
        *_OFFLINE,
        *as_root,
        *arguments,
    ]
