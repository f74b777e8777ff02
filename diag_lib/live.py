"""Does somebody sit at this kernel, and how do they stop a cell so that it ends well?"""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

STATIC = "DIAG_STATIC"
"""Environment variable: set to 1, boards are shown as pictures only (the workbook sets it for its kernels)."""


def live() -> bool:
    """Whether controls can be moved here: a notebook's cells may ask for input, those of a batch run may not."""
    if os.environ.get(STATIC) == "1":
        return False
    kernel = getattr(_shell(), "kernel", None)
    if kernel is None:
        return True  # plain Python: who displays a board there knows why
    content = (kernel.get_parent() or {}).get("content", {})
    return bool(content.get("allow_stdin", True))


def running() -> bool:
    """Whether the kernel's main thread runs a cell: only then does it let itself be interrupted."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def stop() -> bool:
    """Interrupt the running cell, from another thread; False when none runs.

    Since JupyterLab 4.4 and ipykernel 7 a button's click reaches the kernel in a thread of its own while a cell
    runs. Elsewhere it is handled only after the cell, in the main thread: nothing is left to be stopped then.
    """
    if threading.current_thread() is threading.main_thread() or not running():
        return False
    import _thread

    _thread.interrupt_main()
    return True


def reachable_while_running(widget: Any) -> None:
    """Let the browser choose the thread that handles the widget's events.

    ipykernel answers a widget in the thread that last wrote to it: for one made by a cell that is the main one, which
    is busy. Without that note the browser's own choice counts, a subshell.
    """
    getattr(widget.comm, "__dict__", {}).pop("_reply_subshell_id", None)


def end_well_when_stopped(say: Callable[[], object]) -> None:
    """From now on a stopped cell of this kernel displays `say()` in place of a traceback; the cells after it wait."""
    shell = _shell()
    if shell is None or not live():
        return

    def handler(shell: Any, kind: Any, value: Any, traceback: Any, tb_offset: Any = None) -> list[str]:
        from IPython.display import display

        display(say())  # type: ignore[no-untyped-call,unused-ignore]
        return []

    shell.set_custom_exc((KeyboardInterrupt,), handler)


def _shell() -> Any:
    from IPython import get_ipython

    return get_ipython()
