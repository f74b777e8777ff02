"""A small dataset of real PNG files for the tests of training: fakes are locally smooth noise."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diag_lib.settings import Settings, load

SIZE = 40


def picture(rng: np.random.Generator, fake: bool, size: int = SIZE) -> np.ndarray:
    """Noise; a fake's is half-resolution noise, enlarged: a telling residual in every patch."""
    if not fake:
        return rng.integers(0, 256, (size, size, 3)).astype(np.uint8)
    small = rng.integers(0, 256, (size // 2, size // 2, 3)).astype(np.uint8)
    return small.repeat(2, axis=0).repeat(2, axis=1)


def write_dataset(root: Path, train: int = 24, val: int = 16, size: int = SIZE, seed: int = 0) -> Path:
    """`train` and `val` images a class."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(("real", "fake")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(picture(rng, bool(label), size)).save(folder / f"{number:03d}.png")
    return root


def small_settings(root: Path, **overrides: Any) -> Settings:
    """A random tiny teacher and a tiny student on 40-pixel images, a few epochs, everything trained.

    Keyword arguments are dotted settings keys with `__` for the dot.
    """
    chosen = {
        "dataset.root": str(root),
        "dataset.image_size": SIZE,
        "teacher.arch": "tiny_ladeda",
        "teacher.weights": None,
        "student.trainable_s1": ["all"],
        "student.trainable_s2": ["all"],
        "training.batch_size": 16,
        "training.epochs_s1": 1,
        "training.epochs_s2": 2,
        "training.lr_s1": 0.01,
        "training.lr_s2": 0.01,
        "runtime.device": "cpu",
        "runtime.budget": "quick",
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    return load("base", chosen)
