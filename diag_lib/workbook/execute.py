"""How does one notebook run headless, and what exactly happened when it did not finish?"""

import contextlib
import copy
import datetime
import logging
import os
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diag_lib import progress
from diag_lib.files import USERS, disk_errors, disk_line, whole
from diag_lib.progress import noted
from diag_lib.settings import Settings

Outcome = Literal["done", "error", "kernel died", "cell time-out", "time limit", "interrupted"]
START_TIMEOUT = 300
PROGRESS = "progress.txt"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_REASONS: dict[str, str] = {
    "kernel died": "The kernel died (killed, out of memory, or crashed in native code).",
    "cell time-out": "The cell ran longer than the cell time-out and was stopped.",
    "time limit": "The time limit of the whole run was reached and the step was stopped.",
    "interrupted": "The run was interrupted.",
}


@dataclass(frozen=True)
class Execution:
    """One notebook's run. `cell` is the index (in the saved notebook) of the code cell that failed."""

    outcome: Outcome
    why: str
    seconds: float
    cell: int | None = None
    not_run: int = 0


class Kernel:
    """A kernel of the current interpreter, booting in the background from the moment it is made."""

    def __init__(self, settings: Settings, cwd: Path) -> None:
        from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager
        from jupyter_core.utils import run_sync

        class OurKernel(KernelSpecManager):  # type: ignore[misc,unused-ignore]
            def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
                argv = [sys.executable, "-m", "diag_lib.workbook.kernel", "-f", "{connection_file}"]
                return KernelSpec(argv=argv, display_name="Python 3", language="python")

        self._home = tempfile.TemporaryDirectory(prefix="diag-kernel-", ignore_cleanup_errors=True)
        home = Path(self._home.name)
        connection_file = str(home / "kernel.json")
        # Sockets in a private folder rather than open TCP ports, where the system and the path's length allow it.
        transport = "ipc" if sys.platform != "win32" and len(connection_file) < 80 else "tcp"
        self.manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=OurKernel(),
            connection_file=connection_file,
            transport=transport,
        )
        self._log = home / "stderr.txt"
        with self._log.open("wb") as log:
            run_sync(self.manager.start_kernel)(cwd=str(cwd), env=_environment(settings, home), stderr=log)

    def stop(self) -> None:
        """Kill the kernel and forget its files; safe to call twice."""
        from jupyter_core.utils import run_sync

        with contextlib.suppress(Exception):  # a kernel that is gone already cannot be stopped
            run_sync(self.manager.shutdown_kernel)(now=True)
        self._home.cleanup()

    def doing(self) -> str:
        """The progress bar that the kernel shows right now, as one line."""
        return noted(Path(self._home.name) / PROGRESS)

    def last_words(self) -> str:
        """What a crashed kernel wrote about its end (`Fatal Python error: ...`), or nothing."""
        with contextlib.suppress(OSError):
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            return next((line.strip() for line in lines if line.startswith("Fatal Python error")), "")
        return ""

    def kill(self) -> None:
        """Send SIGKILL at once (from another thread than the one that waits for the kernel)."""
        process = getattr(self.manager.provisioner, "process", None)
        if process is not None:
            process.kill()


def _environment(settings: Settings, home: Path) -> dict[str, str]:
    """The kernel's environment: our package importable, no user start-up files, threads as configured."""
    environment = dict(os.environ)
    environment["IPYTHONDIR"] = str(home)
    environment["PYTHONUNBUFFERED"] = "1"
    environment[progress.FILE] = str(home / PROGRESS)
    environment["DIAG_STATIC"] = "1"  # nobody can move a control here: boards are pictures
    parent = str(Path(__file__).resolve().parents[2])
    if parent not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (parent, environment.get("PYTHONPATH"))))
    threads = settings.runtime.threads
    if isinstance(threads, int) and threads > 0:
        environment.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    return environment


def execute(
    source: Path,
    target: Path,
    parameters: Mapping[str, Any],
    kernel: Kernel,
    *,
    cell_timeout: float | None = None,
    deadline: float | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> Execution:
    """Run the notebook `source` in `kernel`, save it as `target`, and say honestly how it went.

    Parameters
    ----------
    cell_timeout : seconds a single cell may take, None for no limit.
    deadline : `time.monotonic()` value at which the kernel is killed, None for never.
    meanwhile : is called about ten times a second while the notebook runs.

    Whatever happens, `target` holds every output that was produced; cells that never ran are marked pending.
    A Ctrl-C is reported as outcome "interrupted"; the caller decides what to do with it.
    """
    started = time.monotonic()
    stopped: Outcome | None = None
    worker = _Worker(source, target, parameters, kernel, cell_timeout)
    worker.start()
    # Papermill runs in a thread: in the main one nbclient would swallow Ctrl-C and report a dead kernel.
    try:
        while worker.is_alive():
            worker.join(0.1 if deadline is None else max(0.01, min(0.1, deadline - time.monotonic())))
            if meanwhile is not None:
                meanwhile()
            if deadline is not None and time.monotonic() > deadline and worker.is_alive() and stopped is None:
                stopped = "time limit"
                kernel.kill()
    except KeyboardInterrupt:
        stopped = "interrupted"
        kernel.kill()
        worker.join(20)
    outcome, why = _outcome(worker.error, stopped, target.parent)
    if outcome != "done":
        # The tasks that waited for a dead kernel are thrown away with it; that is no news for the user.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if outcome == "kernel died":
        why = f"{why} {kernel.last_words()}".strip()
    seconds = time.monotonic() - started
    notebook, cell, not_run = _honest(source, target, outcome)
    _save(notebook, target)
    return Execution(outcome, why, seconds, cell, not_run)


class _Worker(threading.Thread):
    def __init__(
        self, source: Path, target: Path, parameters: Mapping[str, Any], kernel: Kernel, cell_timeout: Any
    ):
        super().__init__(daemon=True, name=f"notebook {source.stem}")
        self.error: BaseException | None = None
        self._job = (source, target, copy.deepcopy(dict(parameters)), kernel, cell_timeout)

    def run(self) -> None:
        from papermill.execute import execute_notebook
        from papermill.log import logger

        logger.setLevel("CRITICAL")  # what happened is said by the caller, once

        source, target, parameters, kernel, cell_timeout = self._job
        try:
            execute_notebook(
                str(source),
                str(target),
                parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=START_TIMEOUT,
                execution_timeout=cell_timeout,
                km=kernel.manager,
                coalesce_streams=True,
                store_widget_state=False,
            )
        except BaseException as error:  # it is reported by the thread that waits for this one
            self.error = error


def _outcome(error: BaseException | None, stopped: Outcome | None, folder: Path) -> tuple[Outcome, str]:
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    if stopped is not None:
        return stopped, _REASONS[stopped]
    if error is None:
        return "done", ""
    if isinstance(error, PapermillExecutionError):
        value = " ".join(str(error.evalue).split())
        return "error", value if error.ename == "UserError" else f"{error.ename}: {value}".rstrip(": ")
    if isinstance(error, CellTimeoutError):
        return "cell time-out", _REASONS["cell time-out"]
    if isinstance(error, OSError) and error.errno in USERS:  # the notebook itself could not be kept
        return "error", disk_line(error, folder)
    if isinstance(error, DeadKernelError) or "Kernel died" in str(error):
        return "kernel died", _REASONS["kernel died"]
    return "error", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _save(notebook: Any, target: Path) -> None:
    import nbformat

    with disk_errors(target.parent), whole(target) as partial:
        text = nbformat.writes(notebook)  # type: ignore[no-untyped-call,unused-ignore]
        partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _saved(source: Path, target: Path) -> Any:
    """What papermill has written so far; the notebook as it was where a full disk cut that off."""
    import nbformat

    try:
        return nbformat.read(str(target), as_version=4)  # type: ignore[no-untyped-call,unused-ignore]
    except (OSError, ValueError):
        target.unlink(missing_ok=True)
        return nbformat.read(str(source), as_version=4)  # type: ignore[no-untyped-call,unused-ignore]


def _honest(source: Path, target: Path, outcome: Outcome) -> tuple[Any, int | None, int]:
    """The saved notebook with true cell states (papermill calls every cell completed after a crash)."""
    notebook = _saved(source, target)
    notebook.cells = [
        c for c in notebook.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])
    ]
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    begun = [i for i in code if notebook.cells[i].metadata.get("papermill", {}).get("start_time")]
    failed = None if outcome == "done" or not begun else begun[-1]
    errors = [i for i in code if any(o.output_type == "error" for o in notebook.cells[i].get("outputs", []))]
    if outcome == "error" and errors:
        failed = errors[0]
    pending = [] if outcome == "done" else [i for i in code if i not in begun]
    for i in ([failed] if failed is not None else []) + pending:
        notebook.cells[i].metadata["diag"] = {"state": "failed" if i == failed else "not run"}
        if "papermill" in notebook.cells[i].metadata:
            notebook.cells[i].metadata["papermill"]["status"] = "failed" if i == failed else "pending"
    return notebook, failed, len(pending)


def now() -> str:
    """The time as ISO 8601 with the offset of UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
