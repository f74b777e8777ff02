"""How are settings laid over settings, and what is a relative path in them relative to?"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diag_lib.errors import UserError
from diag_lib.settings.fields import WEIGHT_SUFFIXES, is_url
from diag_lib.settings.words import kind_of, suggestion

OVERRIDE = "override"  # where a value on the command line or of a notebook stands, in messages

# Dotted keys whose values are paths; weights are paths only when they look like files (else aliases).
_PATH_KEYS = ("dataset.root", "dataset.curation", "history", "runtime.cache_dir", "runtime.weights_dir")
_WEIGHT_KEYS = ("teacher.weights", "student.weights")


def dotted(patch: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` to `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in patch.items():
        flat.update(
            dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        )
    return flat


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` to `{"a": {"b": 1}}`."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        *parents, leaf = key.split(".")
        branch = tree
        for part in parents:
            branch = branch.setdefault(part, {})
        branch[leaf] = value
    return tree


def merged_with(tree: dict[str, Any], overrides: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """A complete tree with dotted keys replaced; their relative paths count from `base`."""
    for key, value in overrides.items():
        if not isinstance(key, str):
            raise UserError(f"overrides: keys are dotted text such as training.seed, found {key!r}")
        tree = merge(tree, absolute(nested({key: value}), base), OVERRIDE)
    return tree


def merge(tree: dict[str, Any], new: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A complete tree with `new` laid over it; unknown keys and values in place of sections are refused here."""

    def laid(old: dict[str, Any], new: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        merged = dict(old)
        for key, value in new.items():
            place = f"{prefix}{key}"
            if key not in old:
                raise UserError(
                    f"{where}: {place or 'the empty key'}: unknown key{suggestion(str(key), list(old))}; "
                    f"allowed here: {', '.join(old)}{_elsewhere(tree, str(key), place)}"
                )
            if not isinstance(old[key], dict):
                merged[key] = value
            elif isinstance(value, Mapping):
                merged[key] = laid(old[key], value, f"{place}.")
            # in a file nothing stands for a section whose keys are all commented out
            elif value is not None or where == OVERRIDE:
                inside = ", ".join(old[key])
                raise UserError(
                    f"{where}: {place}: is a section with the keys {inside}, found {kind_of(value)}"
                )
        return merged

    return laid(tree, new, "")


def absolute(tree: Any, base: Path) -> Any:
    """The nested mapping with relative paths made absolute against `base`."""
    if not isinstance(tree, Mapping):
        return tree
    return _map_leaves(tree, base, "")


def _map_leaves(tree: Mapping[str, Any], base: Path, prefix: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in tree.items():
        place = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result[key] = _map_leaves(value, base, f"{place}.")
        elif isinstance(value, str) and value and "\0" not in value and _is_path(place, value):
            result[key] = str((base / Path(value).expanduser()).absolute())
        elif place == "plugins" and isinstance(value, list):
            result[key] = [_map_leaves({"plugins": item}, base, "")["plugins"] for item in value]
        else:
            result[key] = value
    return result


def _is_path(key: str, value: str) -> bool:
    if is_url(value):
        return False
    if key == "plugins":
        return value.endswith(".py")
    return key in _PATH_KEYS or (
        key in _WEIGHT_KEYS and (value.endswith(WEIGHT_SUFFIXES) or "/" in value or "\\" in value)
    )


def every_key(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of sections and values."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from every_key(value, f"{prefix}{key}.")


def _elsewhere(tree: Mapping[str, Any], key: str, place: str) -> str:
    """Where a known key really lives, when it was written in the wrong section."""
    for known in every_key(tree):
        if known.rpartition(".")[2] == key and known != place:
            return f" ({key} belongs at {known})"
    return ""


def lookup(tree: Mapping[str, Any], key: str) -> Any:
    """The section or value at a dotted key."""
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value
