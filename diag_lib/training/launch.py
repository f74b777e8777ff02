"""Train on several GPUs from where one cannot fork: a notebook's kernel in which CUDA may be initialised already.

The processes are started by torchrun as a program of their own and leave their results in the run folder.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import diag_lib
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.settings import Settings
from diag_lib.training.arms import Overrides

STOP_SECONDS = 10  # that the processes have to end when the kernel is interrupted


def launch(
    settings: Settings,
    run: RunFolder,
    ids: Sequence[str],
    extra: Mapping[str, Overrides] | None,
    processes: int,
    progress: bool,
) -> None:
    """`train_arms` of those arms in `processes` processes on this machine; returns when all have ended.

    Raises
    ------
    UserError : what a process found wrong with the user's input.
    RuntimeError : the processes failed otherwise; what they printed stands above it.
    """
    with tempfile.TemporaryDirectory() as temporary:
        request, said = Path(temporary) / "request.json", Path(temporary) / "error.txt"
        (Path(temporary) / "settings.yaml").write_text(settings.to_yaml(), encoding="utf-8")
        wanted = {"run": str(run.root), "ids": list(ids), "extra": dict(extra or {}), "progress": progress}
        request.write_text(json.dumps(wanted), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", "-m", "diag_lib.training", str(request)]
        code = _run(command)
        if said.is_file():
            raise UserError(said.read_text(encoding="utf-8"))
        if code:
            raise RuntimeError(f"the {processes} training processes failed (exit code {code})")


def serve(request: Path) -> int:
    """One of the processes: train what the request asks for. 2 when the user's input is wrong."""
    from diag_lib.settings import load
    from diag_lib.training.distributed import world
    from diag_lib.training.runner import train_arms

    world()  # takes this process's GPU
    wanted = json.loads(request.read_text(encoding="utf-8"))
    settings = load(request.parent / "settings.yaml")
    try:
        train_arms(
            settings,
            RunFolder(wanted["run"]),
            wanted["ids"],
            extra=wanted["extra"],
            progress=wanted["progress"],
        )
    except UserError as error:
        partial = request.with_name(f"error.{os.getpid()}")
        partial.write_text(str(error), encoding="utf-8")
        partial.replace(request.with_name("error.txt"))
        return 2
    return 0


def _run(command: Sequence[str]) -> int:
    """The exit code of a program; it ends with us."""
    here = str(Path(diag_lib.__file__).parents[1])
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
