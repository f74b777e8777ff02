"""From a file, a preset or the command line to settings."""

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from diag_lib.errors import UserError
from diag_lib.plain_yaml import parse_yaml
from diag_lib.settings.fields import as_path
from diag_lib.settings.merging import absolute, merge
from diag_lib.settings.schema import Settings, build
from diag_lib.settings.words import kind_of, suggestion

_MAX_BYTES = 1_000_000


def preset_names() -> list[str]:
    """Names that `load` and `--preset` accept."""
    folder = resources.files("diag_lib") / "presets"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def load(config: str | Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read and validate settings.

    Parameters
    ----------
    config : path of a YAML file, or the name of a preset (`base`, `demo`, `safest`, `test_bce_only`).
        Relative paths inside a file are relative to that file, inside a preset to the working directory.
    overrides : dotted keys to values, e.g. ``{"training.distillation.alpha_distill": 0.01}``; their
        relative paths are relative to the working directory.

    Raises
    ------
    UserError : the file is missing or not YAML, a key is unknown, a value is not allowed.
    """
    text, name, base, where = _read(config)
    tree = parse_yaml(text, where)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{where}: settings are a mapping of keys to values, this file holds {kind_of(tree)}")
    defaults = absolute(Settings().to_dict(), base)
    settings = build(merge(defaults, absolute(tree, base), where), name, where)
    return settings.with_overrides(overrides) if overrides else settings


def check_parameters(config: object, run_dir: object, overrides: object) -> None:
    """A notebook's three parameters are of the right kind. Raises `UserError` that names the first which is not."""
    for name, value in (("config", config), ("run_dir", run_dir)):
        if not isinstance(value, (str, os.PathLike)) or not str(value).strip() or "\0" in str(value):
            raise UserError(f"parameter {name}: a path as text is expected, found {value!r}")
    if overrides is not None and not isinstance(overrides, Mapping):
        raise UserError(
            f"parameter overrides: a mapping of dotted keys to values is expected, found {overrides!r};"
            ' for example {"training.seed": 7}'
        )


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1"]` to `{"a.b": 1}`; values are YAML. Raises `UserError` for a malformed one."""
    parsed: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text!r}: write it as key=value, e.g. --set training.seed=7")
        parsed[key.strip()] = parse_yaml(value, f"--set {key.strip()}")
    return parsed


def _read(config: str | Path) -> tuple[str, str, Path, str]:
    if isinstance(config, str) and config in preset_names():
        text = (resources.files("diag_lib") / "presets" / f"{config}.yaml").read_text(encoding="utf-8")
        return text, config, Path.cwd(), f"preset {config}"
    path = as_path(config) if config else None
    if path is None or not path.exists():
        known = preset_names()
        raise UserError(
            f"{config}: no such settings file; name a YAML file or a preset ({', '.join(known)})"
            f"{suggestion(str(config), known)}"
        )
    if not path.is_file():
        raise UserError(f"{config}: is not a file; name a YAML settings file")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(
                f"{config}: is {path.stat().st_size} bytes, no settings file; the limit is {_MAX_BYTES}"
            )
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{config}: is not UTF-8 text; save the settings file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{config}: cannot be read ({error.strerror})") from None
    return text, path.stem, path.resolve().parent, path.name
