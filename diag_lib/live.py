"""Does somebody sit at this kernel, and does a cell that they stop end well?"""

import os
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


def kernel_shell() -> Any:
    """The shell of the notebook kernel that runs this, None anywhere else."""
    shell = _shell()
    return shell if getattr(shell, "kernel", None) is not None else None


def _shell() -> Any:
    from IPython import get_ipython

    return get_ipython()
