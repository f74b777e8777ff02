"""How does a dataset break? Each function changes the finished demo folder in place, as people do by accident."""

from pathlib import Path

import numpy as np
from PIL import Image

from diag_lib.demo.dataset import Alter, save_png

REAL, FAKE = "real", "fake"


def files(folder: Path, split: str, name: str) -> list[Path]:
    """The images of one class of one split, in a fixed order."""
    return sorted((folder / split / name).iterdir())


def some(items: list[Path], fraction: float, rng: np.random.Generator) -> list[Path]:
    """A random `fraction` of the items."""
    return [items[i] for i in sorted(rng.permutation(len(items))[: round(fraction * len(items))])]


def move(paths: list[Path], name: str) -> None:
    """Put images into the folder of class `name` of their own split; names are unique within a split."""
    for path in paths:
        path.rename(path.parent.parent / name / path.name)


def exchange_labels(splits: tuple[str, ...], fraction: float = 1.0) -> Alter:
    """A `fraction` of each class gets the other's label; 0.5 leaves labels that say nothing."""

    def alter(folder: Path, rng: np.random.Generator) -> None:
        for split in splits:
            real = some(files(folder, split, REAL), fraction, rng)
            fake = some(files(folder, split, FAKE), fraction, rng)
            move(real, FAKE)
            move(fake, REAL)

    return alter


def shuffle_labels(folder: Path, rng: np.random.Generator) -> None:
    """Deal the training images to the two folders at random; the counts stay."""
    real, fake = files(folder, "train", REAL), files(folder, "train", FAKE)
    dealt = rng.permutation(len(real) + len(fake))
    move([path for path, place in zip(real, dealt[: len(real)], strict=True) if place >= len(real)], FAKE)
    move([path for path, place in zip(fake, dealt[len(real) :], strict=True) if place < len(real)], REAL)


def save_one_class_as_jpeg(folder: Path, rng: np.random.Generator) -> None:
    """The fakes, and only they, are JPEG of quality 75 in both splits."""
    for split in ("train", "val"):
        for path in files(folder, split, FAKE):
            with Image.open(path) as image:
                image.save(path.with_suffix(".jpg"), quality=75)
            path.unlink()


def leak_training_images(folder: Path, rng: np.random.Generator) -> None:
    """Half of the validation images of each class are replaced by near-copies of training images."""
    for name in (REAL, FAKE):
        train = files(folder, "train", name)
        replaced = some(files(folder, "val", name), 0.5, rng)
        for target, index in zip(replaced, rng.permutation(len(train))[: len(replaced)], strict=False):
            with Image.open(train[index]) as image:
                pixels = np.asarray(image).astype(np.int16)
            target.unlink()
            save_png(np.clip(pixels + 1, 0, 255).astype(np.uint8), target.with_name(f"copy-{index:03d}.png"))


def drop_fakes(folder: Path, rng: np.random.Generator) -> None:
    """Only six fakes are left to train on."""
    fake = files(folder, "train", FAKE)
    for path in some(fake, 1 - 6 / len(fake), rng):
        path.unlink()


def corrupt_files(folder: Path, rng: np.random.Generator) -> None:
    """Of the training images a third is cut short, a third empty or no image, the rest nearly all one colour."""
    for name in (REAL, FAKE):
        paths = files(folder, "train", name)
        for index, place in enumerate(rng.permutation(len(paths))):
            if place < len(paths) // 20:
                continue
            path = paths[index]
            match index % 3:
                case 0:
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                case 1:
                    path.write_bytes(b"" if index % 2 else b"<html>404 Not Found</html>")
                case _:
                    save_png(np.full((64, 64, 3), int(rng.integers(256)), np.uint8), path)
