"""What process does a step run in? A fresh kernel of this interpreter, slow imports done at its start.

Run as ``python -m diag_lib.workbook.kernel -f CONNECTION_FILE``. The workbook starts the next step's kernel
while the current step still computes, so that start and imports cost no waiting; steps share no state.
"""

import contextlib
import importlib
import sys
from pathlib import Path

# What practically every step needs; a missing one fails in the step itself, where the reader sees it.
WARM = (
    "numpy",
    "pandas",
    "torch",
    "matplotlib.figure",
    "matplotlib_inline.backend_inline",
    "diag_lib.display",
)


def main() -> None:
    """Import what steps need, then serve as an ordinary IPython kernel."""
    if sys.path and Path(sys.path[0] or ".").resolve() == Path.cwd():
        del sys.path[0]  # put back by IPython itself once its own imports are done
    for module in WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    kernelapp = importlib.import_module("ipykernel.kernelapp")
    kernelapp.launch_new_instance()


if __name__ == "__main__":
    main()
