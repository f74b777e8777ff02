"""Whose code may run here, where is it, and has it changed? Networks, losses, checks and causes of the user's own."""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diag_lib.errors import UserError
from diag_lib.settings import Settings

TRUST_VARIABLE = "DIAG_TRUST_CODE"

_loaded: dict[str, str] = {}  # plug-in -> hash of the source that was run


def trust_code() -> bool:
    """Whether the user allowed code of their own (`--trust-code`, or DIAG_TRUST_CODE=1)."""
    return os.environ.get(TRUST_VARIABLE) == "1"


def require_trust(what: str) -> None:
    """Raise `UserError` unless the user allowed code of their own; `what` names the setting that asks for it."""
    if not trust_code():
        raise UserError(f"{what} runs code of yours: allow it with --trust-code (or {TRUST_VARIABLE}=1)")


def imported(reference: str, what: str) -> Any:
    """What `package.module:name` stands for; modules in the working directory are found too.

    Raises `UserError` where module or name do not exist, or the module fails.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        with _working_directory_importable():
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{what}: {error}; run from the folder that holds {module_name}") from None
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f"{what}: {module_name} failed with {type(error).__name__}: {error}") from None
    if not hasattr(module, attribute):
        raise UserError(f"{what}: module {module_name} has no {attribute!r}")
    return getattr(module, attribute)


def load_plugins(settings: Settings) -> None:
    """Import the modules that `plugins` names, each once, and again when its source has changed.

    Raises `UserError` where the user has not allowed it, or a module is missing or fails.
    """
    for plugin in settings.plugins:
        what = f"plugins: {Path(plugin).name!r}"
        require_trust(what)
        source = _hash(_files_of(plugin))
        if _loaded.get(plugin) == source:
            continue
        if plugin.endswith(".py"):
            _run_file(Path(plugin), what)
        else:
            _import_again(plugin, what)
        _loaded[plugin] = source


def source_hash(settings: Settings) -> str:
    """Hash of all code of the user's own that the settings name, found without importing anything; "" for none."""
    references = (settings.teacher.arch, settings.student.arch, settings.training.distillation.loss)
    modules = [reference.partition(":")[0] for reference in references if ":" in reference]
    files = [file for name in (*modules, *settings.plugins) for file in _files_of(name)]
    return _hash(files) if files else ""


def module_files(module: str) -> list[Path]:
    """The source files of a module or package, found as an import from here would, without importing it."""
    relative = Path(*module.split("."))
    for place in (*map(Path, sys.path), Path.cwd()):
        if (place / relative.with_suffix(".py")).is_file():
            return [place / relative.with_suffix(".py")]
        if (place / relative / "__init__.py").is_file():
            return sorted((place / relative).glob("*.py"))
    return []


def _files_of(plugin: str) -> list[Path]:
    return [Path(plugin)] if plugin.endswith(".py") else module_files(plugin)


def _hash(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(_bytes(file) for file in files)).hexdigest()


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _run_file(file: Path, what: str) -> None:
    """Run a .py file as a module of its own; it need not lie where imports are looked for."""
    if not file.is_file():
        raise UserError(f"{what}: {file} does not exist; paths are relative to the settings file")
    name = f"diag_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{what}: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # the user's own code may raise anything
        del sys.modules[name]
        raise UserError(f"{what}: failed with {type(error).__name__}: {error}") from None


def _import_again(name: str, what: str) -> None:
    try:
        with _working_directory_importable():
            if name in sys.modules:
                importlib.reload(sys.modules[name])
            else:
                importlib.import_module(name)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{what}: {error}; name a module that can be imported, or a .py file") from None
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f"{what}: failed with {type(error).__name__}: {error}") from None


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)
