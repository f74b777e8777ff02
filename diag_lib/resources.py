"""Where are the notebooks and the demo teachers: in this checkout, or inside the installed package?"""

from pathlib import Path

from diag_lib.errors import UserError

_PACKAGE = Path(__file__).resolve().parent


def checkout_dir() -> Path | None:
    """The repository root when the package is used from a checkout (also an editable install), else None."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


def base_dir() -> Path:
    """From where relative paths count: the working directory, but from a checkout's `notebooks/` the checkout."""
    here = Path.cwd()
    in_checkout = here.name == "notebooks" and (here.parent / "diag_lib" / "workbook").is_dir()
    return here.parent if in_checkout else here


def notebooks_dir() -> Path:
    """Folder of the step notebooks `NN_step.ipynb`; read-only in an installed package."""
    return _locate("notebooks", "_notebooks")


def teachers_dir() -> Path:
    """Folder of the demo teachers' weights; read-only in an installed package."""
    return _locate("data/teachers", "_data/teachers")


def _locate(in_checkout: str, in_package: str) -> Path:
    root = checkout_dir()
    folder = root / in_checkout if root else _PACKAGE / in_package
    if not folder.is_dir():
        raise UserError(f"{folder}: this folder is missing from the installation; reinstall diag-lib")
    return folder
