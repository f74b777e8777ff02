"""May a finished step be kept? Its key covers all it depends on: settings, data, weights, code."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from diag_lib.errors import UserError
from diag_lib.evidence import STEPS, RunFolder
from diag_lib.images.sources import stat_of
from diag_lib.settings import Settings
from diag_lib.user_code import source_hash

# Of the runtime section only the budget can change a result; the rest says where and how fast.
SETTINGS_PARTS = (
    "dataset",
    "teacher",
    "student",
    "pooling",
    "training",
    "history",
    "thresholds",
    "runtime.budget",
    "runtime.precision",
)
# Rendering, command line and the fault lab do not take part in a step's numbers.
_NOT_COUNTED = ("workbook", "cli.py", "faults", "faults.py", "doctor.py", "lab.py", "runs.py")


def inputs(settings: Settings) -> dict[str, str]:
    """Hashes of what all steps depend on, by name. Raises `UserError` when the dataset cannot be listed."""
    from diag_lib.images import read_table

    return {
        "settings": settings.digest(*SETTINGS_PARTS),
        "dataset": str(read_table(settings).fingerprint),
        "weights": _weights(settings),
        "history": _file_hash(settings.history) if settings.history else "",
        "curation": _file_hash(settings.dataset.curation) if settings.dataset.curation else "",
        "code": code_version(),
        "user_code": source_hash(settings),
    }


def dataset_of(settings: Settings) -> str:
    """The fingerprint of the dataset as it is now, "" when it cannot be listed any more."""
    from diag_lib.images import read_table

    try:
        return str(read_table(settings).fingerprint)
    except UserError:
        return ""


def step_key(step: str, notebook: Path, common: dict[str, str], folder: RunFolder) -> str:
    """The key of one step: the common inputs, its notebook, and for the verdict the evidence it reads."""
    parts = {**common, "step": step, "notebook": _file_hash(notebook)}
    if step == "verdict":
        parts.update(
            {f"evidence.{name}": _file_hash(folder.evidence_path(name)) for name in STEPS if name != step}
        )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def code_version() -> str:
    """Hash of the package's sources that can change a number or a figure."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.parts[0] not in _NOT_COUNTED:
            digest.update(relative.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _weights(settings: Settings) -> str:
    """Hashes of the weight files; an alias that cannot be resolved yet counts by its name."""
    from diag_lib.models import resolve_weights

    found = []
    for model in (settings.teacher, settings.student):
        if model.weights is None:
            found.append("random")
            continue
        try:
            found.append(_file_hash(resolve_weights(model.weights, settings.runtime.weights_dir, model.arch)))
        except UserError:
            found.append(f"unresolved {model.weights}")
    return " ".join(found)


def _file_hash(path: Path) -> str:
    """Hash of a file's bytes; of a folder (a history of events) the names, sizes and times in it."""
    if path.is_dir():
        listing = [
            (str(f.relative_to(path)), *stat_of(str(f))) for f in sorted(path.rglob("*")) if f.is_file()
        ]
        return hashlib.sha256(repr(listing).encode("utf-8", "surrogateescape")).hexdigest()
    if not path.is_file():  # nothing there, or a pipe that would never end
        return "missing"
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "missing"
