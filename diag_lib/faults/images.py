"""How does a dataset break? Each function changes the finished demo folder in place, as people do by accident."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

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


def enlarged(name: str, side: int) -> Alter:
    """The images of one class, and only they, are enlarged to this side in both splits."""

    def alter(folder: Path, rng: np.random.Generator) -> None:
        for split in ("train", "val"):
            for path in files(folder, split, name):
                with Image.open(path) as image:
                    large = image.resize((side, side), Image.Resampling.BICUBIC)
                save_png(np.asarray(large), path)

    return alter


def save_as_jpeg(name: str, quality: int) -> Alter:
    """The images of one class, and only they, are JPEG of this quality in both splits."""

    def alter(folder: Path, rng: np.random.Generator) -> None:
        for split in ("train", "val"):
            for path in files(folder, split, name):
                with Image.open(path) as image:
                    image.save(path.with_suffix(".jpg"), quality=quality)
                path.unlink()

    return alter


def leak(share: float, brighter: int = 0) -> Alter:
    """A `share` of the validation images of each class are copies of training images, `brighter` by so many of 255."""

    def alter(folder: Path, rng: np.random.Generator) -> None:
        for name in (REAL, FAKE):
            train = files(folder, "train", name)
            replaced = some(files(folder, "val", name), share, rng)
            for target, index in zip(replaced, rng.permutation(len(train))[: len(replaced)], strict=False):
                with Image.open(train[index]) as image:
                    pixels = np.asarray(image).astype(np.int16)
                target.unlink()
                copy = np.clip(pixels + brighter, 0, 255).astype(np.uint8)
                save_png(copy, target.with_name(f"copy-{index:03d}.png"))

    return alter


def keep_few(name: str, count: int) -> Alter:
    """Only so many images of one class are left to train on."""

    def alter(folder: Path, rng: np.random.Generator) -> None:
        paths = files(folder, "train", name)
        for path in some(paths, 1 - count / len(paths), rng):
            path.unlink()

    return alter


def one_colour(share: float) -> Alter:
    """A `share` of the training images of each class are of a single colour."""

    def alter(folder: Path, rng: np.random.Generator) -> None:
        for name in (REAL, FAKE):
            for path in some(files(folder, "train", name), share, rng):
                with Image.open(path) as image:
                    size = image.size
                save_png(np.full((size[1], size[0], 3), int(rng.integers(256)), np.uint8), path)

    return alter


def blurred_val(folder: Path, rng: np.random.Generator) -> None:
    """The validation images are out of focus."""
    for name in (REAL, FAKE):
        for path in files(folder, "val", name):
            with Image.open(path) as image:
                blurred = image.filter(ImageFilter.GaussianBlur(1.0))
            save_png(np.asarray(blurred), path)


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
