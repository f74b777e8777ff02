"""What does a training depend on, and which images does it see?"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diag_lib
from diag_lib.devices import choose
from diag_lib.evidence import RunFolder
from diag_lib.images import ImageSet, open_split
from diag_lib.images.contents import content_hashes
from diag_lib.images.store import worker_count
from diag_lib.models import resolve_weights
from diag_lib.settings import Settings
from diag_lib.statistics import split_halves
from diag_lib.teacher_cache import code_hash
from diag_lib.training.arms import Overrides, Plan, arm_settings, effective

CODE = (
    "training/*.py",
    "models/*.py",
    "images/*.py",
    "losses.py",
    "teacher_cache.py",
    "map_store.py",
    "devices.py",
)


@dataclass(frozen=True)
class Job:
    """One arm to train: its settings with the plan's schedule, and the key of what it depends on."""

    id: str
    settings: Settings
    overrides: dict[str, Any]
    key: str


class Splits:
    """The image sets of the run and of arms with another dataset, opened once."""

    def __init__(self, settings: Settings, run: RunFolder) -> None:
        self.settings, self.run = settings, run
        self._open: dict[tuple[str, str], ImageSet] = {}
        self._prints: dict[tuple[str, str], str] = {}

    def of(self, settings: Settings, split: str) -> ImageSet:
        """The train or val images as these settings see them."""
        key = (_data_key(settings), split)
        if key not in self._open:
            self._open[key] = open_split(settings, split, self.run)
        return self._open[key]

    def fingerprint(self, settings: Settings, split: str) -> str:
        """Hash of the paths, labels and file contents of a split."""
        key = (_data_key(settings), split)
        if key not in self._prints:
            frame = self.of(settings, split).frame
            cache = settings.runtime.cache_dir or self.run.default_cache
            contents = content_hashes(frame["file"].tolist(), cache, worker_count(settings))
            digest = hashlib.sha256()
            for path, label, content in zip(frame["path"], frame["label"], contents, strict=True):
                digest.update(repr((path, int(label), content)).encode())
            self._prints[key] = digest.hexdigest()
        return self._prints[key]

    def halves(self, settings: Settings) -> np.ndarray[Any, np.dtype[np.str_]]:
        """Half A or B of each validation image; an image is in the same half in every arm of the run."""
        own = self._split(self.of(settings, "val"))
        if _data_key(settings) == _data_key(self.settings):
            return own
        base = self.of(self.settings, "val")
        known = dict(zip(base.frame["path"], self._split(base), strict=True))
        paths = self.of(settings, "val").frame["path"]
        return np.array([known.get(path, half) for path, half in zip(paths, own, strict=True)])

    def _split(self, images: ImageSet) -> np.ndarray[Any, np.dtype[np.str_]]:
        return split_halves(images.labels, getattr(images, "groups", None), self.settings.training.seed)


def _data_key(settings: Settings) -> str:
    return settings.digest("dataset", "training.seed")


def make_job(
    settings: Settings, splits: Splits, made: Plan, arm: str, extra: Mapping[str, Overrides] | None = None
) -> Job:
    """The job of an admitted arm."""
    chosen = made.shorten(arm_settings(settings, arm, extra))
    parts = effective(chosen)
    depends = {
        "settings": {key: value for key, value in parts.items() if key != "dataset"},
        "transform": {
            key: value for key, value in parts["dataset"].items() if key not in ("root", "curation")
        },
        "train": splits.fingerprint(chosen, "train"),
        "val": splits.fingerprint(chosen, "val"),
        "halves": settings.training.seed,
        "weights": [_weights_hash(chosen, part) for part in ("teacher", "student") if part in parts],
        "code": [
            _own_code(),
            *(code_hash(parts[part]["arch"]) for part in ("teacher", "student") if part in parts),
            code_hash(parts["training"]["distillation"].get("loss", "")),
        ],
        "torch": torch.__version__,
        "device": choose(chosen).name,
        "precision": chosen.runtime.precision,
    }
    key = hashlib.sha256(repr(sorted(depends.items())).encode()).hexdigest()
    return Job(arm, chosen, _differences(made.shorten(settings), chosen), key)


def _differences(shortened: Settings, chosen: Settings) -> dict[str, Any]:
    """Dotted keys in which the arm differs from the run's settings (on the plan's schedule)."""
    before, after = _leaves(shortened.to_dict()), _leaves(chosen.to_dict())
    return {key: value for key, value in after.items() if before.get(key) != value}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def _weights_hash(settings: Settings, part: str) -> str:
    chosen = getattr(settings, part)
    if chosen.weights is None:
        return "random"
    path = resolve_weights(chosen.weights, settings.runtime.weights_dir, chosen.arch)
    return content_hashes([str(path)], None)[0]


@cache
def _own_code() -> str:
    """Hash of our source that a training's result depends on."""
    root = Path(diag_lib.__file__).parent
    files = [file for name in CODE for file in sorted(root.glob(name))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
