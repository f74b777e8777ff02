"""Generated images to measure on: smooth shapes with grain, so that they compress like photographs."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("real", "fake")


def picture(rng: np.random.Generator, size: int, fake: bool) -> Image.Image:
    """A square RGB image; a fake's grain is of half the resolution."""
    shapes = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    side = (size + 1) // 2 if fake else size
    grain = rng.normal(0, 12, (side, side, 1))
    if fake:
        grain = grain.repeat(2, axis=0).repeat(2, axis=1)[:size, :size]
    return Image.fromarray(np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8))


def write_pictures(folder: Path, names: list[str], size: int, fake: bool, seed: int, ending: str) -> None:
    """Write images of those names (no ending) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    options = {"quality": 90} if ending == "jpg" else {}
    for name in names:
        picture(rng, size, fake).save(folder / f"{name}.{ending}", **options)


def write_dataset(root: Path, train: int, val: int, size: int, ending: str = "jpg", seed: int = 0) -> Path:
    """`train|val / real|fake` with that many images a split, half of them of each class."""
    for s, (split, count) in enumerate((("train", train), ("val", val))):
        for label, name in enumerate(CLASSES):
            names = [f"{k:06d}" for k in range(count // 2)]
            write_pictures(root / split / name, names, size, bool(label), 4 * seed + 2 * s + label, ending)
    return root
