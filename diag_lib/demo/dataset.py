"""What is the demo set made of? Crops of real photographs, half of them passed through a small decoder."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diag_lib.demo import artefacts, photos
from diag_lib.errors import UserError
from diag_lib.map_store import locked
from diag_lib.settings import Settings

CLASSES = ("real", "fake")
_PURPOSE = {"train": 1, "val": 2}
_MIN_DISTANCE = 16  # pixels between two crops of a photograph: they overlap, but are no near-duplicates
_MIN_SPREAD = 8.0  # grey levels: empty sky shows neither texture nor artefact
_TRIES = 400  # random places that are looked at for each crop

Alter = Callable[[Path, np.random.Generator], None]


@dataclass(frozen=True)
class Recipe:
    """Everything that the bytes of a demo set depend on, but for the photographs and this code.

    train, val : images per class. strength_* : how much of the high frequencies of a fake is synthesised,
    0 to 1. artefact_* : a name of `artefacts.ARTEFACTS`.
    """

    seed: int = 0
    train: int = 300
    val: int = 600
    size: int = 64
    artefact_train: str = "decoder"
    artefact_val: str = "decoder"
    strength_train: float = 0.6
    strength_val: float = 0.6


@dataclass(frozen=True)
class Crop:
    """A square of a photograph: which one, where, and its pixels uint8 (size, size, 3)."""

    photo: str
    row: int
    column: int
    pixels: np.ndarray

    @property
    def stem(self) -> str:
        """File name without ending; it says where the crop comes from, never its class."""
        return f"{self.photo}-{self.row:03d}-{self.column:03d}"


def crops(split: str, n: int, size: int, rng: np.random.Generator) -> list[Crop]:
    """`n` crops of the photographs' halves that belong to `split`, in random order, evenly over photographs."""
    halves = list(photos.halves(split))
    each = -(-n // len(halves))
    found = [crop for name, half in halves for crop in _crops_of(name, half, each, size, rng)]
    if len(found) < n:
        raise UserError(
            f"the photographs hold only {len(found)} crops of {size} pixels for {split}, {n} were asked for"
        )
    return [found[i] for i in rng.permutation(len(found))[:n]]


def _crops_of(name: str, half: np.ndarray, n: int, size: int, rng: np.random.Generator) -> list[Crop]:
    height, width = half.shape[0] - size + 1, half.shape[1] - size + 1
    found: list[Crop] = []
    for row, column in rng.integers((height, width), size=(_TRIES * n, 2)).tolist():
        if len(found) == n:
            break
        pixels = half[row : row + size, column : column + size]
        apart = all(abs(row - c.row) + abs(column - c.column) >= _MIN_DISTANCE for c in found)
        if apart and pixels.std() >= _MIN_SPREAD:
            found.append(Crop(name, row, column, pixels))
    return found


def write_images(recipe: Recipe, folder: Path) -> None:
    """Write `train|val/real|fake/*.png` into `folder`. Files of all images have one size: nothing to learn there."""
    for split, purpose in _PURPOSE.items():
        rng = np.random.default_rng([recipe.seed, purpose])
        count: int = getattr(recipe, split)
        artefact = artefacts.ARTEFACTS[getattr(recipe, f"artefact_{split}")]
        strength: float = getattr(recipe, f"strength_{split}")
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
        for index, crop in enumerate(crops(split, 2 * count, recipe.size, rng)):
            label = index % 2
            pixels = artefacts.to_uint8(artefact(crop.pixels, rng, strength)) if label else crop.pixels
            save_png(pixels, folder / split / CLASSES[label] / f"{crop.stem}.png")


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Uncompressed, so that the file's size tells nothing about its content."""
    Image.fromarray(pixels).save(path, compress_level=0)


def stamp_path(root: Path) -> Path:
    """The file beside a demo set that says how it was made."""
    return root.with_name(f"{root.name}.recipe.json")


def build(
    root: Path, recipe: Recipe, *, alter: Alter | None = None, name: str = "", code: Sequence[Path] = ()
) -> bool:
    """Make the demo set at `root` unless the one there was made the same way; True if it was made now.

    alter : changes the finished folder (with a generator of its own) before it appears at `root`.
    name : what `alter` is, and code : the files it is written in; both are part of the stamp.

    The set appears at once or not at all. Raises UserError if a folder at `root` is not a demo set, or cannot
    be written.
    """
    wanted = {"digest": _digest(recipe, name, code), "recipe": asdict(recipe), "altered": name}
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(root.with_name(f".{root.name}.lock")):
            if root.exists() and read_stamp(root) == wanted:
                return False
            if root.exists() and read_stamp(root) is None:
                raise UserError(f"{root} exists and is no demo set: move it, or name another folder")
            _replace(root, recipe, alter, name, wanted)
            return True
    except OSError as error:
        raise UserError(f"the demo set cannot be written to {root}: {error.strerror or error}") from None


def _replace(root: Path, recipe: Recipe, alter: Alter | None, name: str, stamp: Mapping[str, Any]) -> None:
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        fresh = work / "new"
        write_images(recipe, fresh)
        if alter is not None:
            alter(fresh, np.random.default_rng([recipe.seed, 3, *name.encode()]))
        if root.exists():
            root.rename(work / "old")
        # Before the set itself: a stamp without a set is rebuilt, a set without a stamp would look like the user's.
        partial = work / "stamp"
        partial.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
        partial.replace(stamp_path(root))
        fresh.rename(root)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def read_stamp(root: Path) -> dict[str, Any] | None:
    """How the demo set at `root` was made; None if it is none of ours."""
    try:
        stamp = json.loads(stamp_path(root).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and "digest" in stamp else None


def _digest(recipe: Recipe, name: str, code: Sequence[Path]) -> str:
    """Hash of the recipe, the photographs and the code that turns them into images."""
    digest = hashlib.sha256(json.dumps([asdict(recipe), name]).encode())
    here = Path(__file__).resolve().parent
    for file in [*map(photos.locate, photos.PHOTOS), *sorted(here.rglob("*.py")), *code]:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def ensure_data(settings: Settings) -> None:
    """Make the plain demo set at `settings.dataset.folder` if it is missing or out of date.

    A folder that is not a plain demo set (the user's own, or one with an injected fault) is left alone.
    """
    root = settings.dataset.folder
    stamp = read_stamp(root)
    if not root.exists() or (stamp is not None and not stamp.get("altered")):
        build(root, Recipe())
