"""What do the images look like when both classes have been saved alike?

Writes a derived dataset in which format, JPEG tables, chroma subsampling and size no longer depend on the
class. The class that was compressed hardest keeps its bytes and is the untouched control; the other class is
re-encoded with tables drawn from it, since a codec can be added but not taken away. So it is with enlarging: what one
class may have gone through, the other one is put through as well.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from diag_lib.images.decode import DecodeError, decode, decode_bytes, read_bytes

_BLOCK = 16  # JPEG's largest coding unit: crops on its grid keep a second encoding close to the first
_NAMES = ("real", "fake")
_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
_LARGER = 1.05  # ratio of the classes' typical sides from which one may have been enlarged
_MOST = 4.0  # times as wide: more costs memory and shows no more
_LOOKS = 64  # images a class that tell whether one of them was enlarged
_NEARER = 0.5  # a generator's images are somewhat smooth too; enlarged ones are as smooth as that
_FLAT = 1e-3  # grey levels; a picture of one colour has no fineness
_SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")

Tables = dict[int, list[int]]


@dataclass(frozen=True)
class Encoding:
    """How a file was saved. `tables` is None unless it is a JPEG; `subsampling` as Pillow names it."""

    format: str
    size: tuple[int, int]
    tables: Tables | None
    subsampling: str

    @property
    def coarseness(self) -> float:
        """Mean luminance quantisation step; 0 for a lossless file."""
        return float(np.mean(self.tables[0])) if self.tables else 0.0


@dataclass(frozen=True)
class AlikeDataset:
    """The derived dataset: its root, what was made equal, and which image came from which.

    `enlarged`: one class's images are larger than the other's, and look as if they had been enlarged; False where
    the other class has been enlarged to match.
    """

    root: Path
    what: str
    origin: pd.DataFrame  # path in the derived set -> path in the original
    enlarged: bool = False


def read_encoding(file: str | Path) -> Encoding:
    """How the file was saved. Raises `DecodeError` when it cannot be decoded completely."""
    decoded = decode_bytes(read_bytes(file))
    subsampling = decoded.subsampling if decoded.subsampling in _SUBSAMPLINGS else _SUBSAMPLINGS[-1]
    return Encoding(
        decoded.format, (decoded.width, decoded.height), decoded.quantization or None, subsampling
    )


def write_alike(
    frame: pd.DataFrame, out: Path, *, seed: int, limit: int = 2000, enlarge: bool = False
) -> AlikeDataset | None:
    """Write the images of `frame` (columns path, file, label, split) alike below `out`.

    At most `limit` images a split and class are taken, drawn by `seed`. `enlarge` brings the class of smaller images
    to the sizes of the other one, by a filter drawn for each image, before both are cropped. Returns None when the
    classes are saved alike already, so that nothing can be learned from it.
    """
    frame, encodings = _readable(_sample(frame, limit, seed))
    of_class = {
        label: [e for e, y in zip(encodings, frame["label"], strict=True) if y == label] for label in (0, 1)
    }
    if not of_class[0] or not of_class[1]:
        return None
    coarse = _coarser_class(of_class)
    crop = _common_size(of_class)
    if coarse is None and crop is None and {e.format for e in of_class[0]} == {e.format for e in of_class[1]}:
        return None
    if out.exists():
        shutil.rmtree(out)
    rng = np.random.default_rng([seed, 0xA11C])
    small = _smaller_class(of_class)
    large_sizes = [e.size for e in of_class[1 - small]] if small is not None else []
    donors = [e for e in of_class[coarse] if e.tables] if coarse is not None else []
    origin = []
    columns = (frame[name] for name in ("path", "file", "label", "split"))
    for number, (path, file, label, split, encoding) in enumerate(zip(*columns, encodings, strict=True)):
        folder = out / split / _NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        control = label == coarse and encoding.tables is not None
        donor = encoding if control else donors[rng.integers(len(donors))] if donors else None
        target = folder / f"{number:07d}{'.jpg' if donor else '.png'}"
        enlarged = enlarge and label == small
        if control and crop is None and not enlarged:
            shutil.copyfile(file, target)
        else:
            image = Image.fromarray(decode(file))
            _save(_enlarged(image, large_sizes, rng) if enlarged else image, target, donor, crop)
        origin.append((target.relative_to(out).as_posix(), path))
    what = _describe(coarse, crop, donors, small if enlarge else None)
    looks = small is not None and not enlarge and _looks_enlarged(frame, small, large_sizes, seed)
    return AlikeDataset(out, what, pd.DataFrame(origin, columns=["path", "original"]), looks)


def _sample(frame: pd.DataFrame, limit: int, seed: int) -> pd.DataFrame:
    parts = [
        group if len(group) <= limit else group.sample(limit, random_state=seed)
        for _, group in frame.groupby(["split", "label"], sort=True)
    ]
    return pd.concat(parts).sort_index().reset_index(drop=True)


def _readable(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Encoding]]:
    encodings, kept = [], []
    for index, file in enumerate(frame["file"]):
        try:
            encodings.append(read_encoding(file))
            kept.append(index)
        except DecodeError:
            continue
    return frame.iloc[kept].reset_index(drop=True), encodings


def _coarser_class(of_class: dict[int, list[Encoding]]) -> int | None:
    """The class whose files were compressed harder; None when the medians agree."""
    medians = [float(np.median([e.coarseness for e in of_class[label]])) for label in (0, 1)]
    if abs(medians[0] - medians[1]) < 0.5:  # half a quantisation step: the same quality setting
        return None
    return int(medians[1] > medians[0])


def _common_size(of_class: dict[int, list[Encoding]]) -> tuple[int, int] | None:
    """Width and height to crop all but the smallest images to, when the classes differ; else None."""
    sizes = [np.array([e.size for e in of_class[label]]) for label in (0, 1)]
    if np.array_equal(np.median(sizes[0], axis=0), np.median(sizes[1], axis=0)):
        return None
    width, height = np.quantile(np.concatenate(sizes), 0.02, axis=0).astype(int)
    return max(int(width), 1), max(int(height), 1)


def _smaller_class(of_class: dict[int, list[Encoding]]) -> int | None:
    """The class of the clearly smaller images, by the median of the shorter side; None when they are of one size."""
    sides = [float(np.median([min(e.size) for e in of_class[label]])) for label in (0, 1)]
    if max(sides) < _LARGER * min(sides):
        return None
    return int(sides[1] < sides[0])


def _looks_enlarged(frame: pd.DataFrame, small: int, sizes: Sequence[tuple[int, int]], seed: int) -> bool:
    """Whether the larger images are as smooth as the smaller ones become by enlarging, rather than as they are."""
    rng = np.random.default_rng([seed, 0xE41A])
    files = {label: frame.loc[frame["label"] == label, "file"].to_numpy() for label in (0, 1)}
    drawn = {label: rng.choice(of, min(_LOOKS, len(of)), replace=False) for label, of in files.items()}
    native = [Image.fromarray(decode(file)) for file in drawn[small]]
    large = [Image.fromarray(decode(file)) for file in drawn[1 - small]]
    as_is, put_through, other = (
        float(np.median([_fineness(image) for image in group]))
        for group in (native, [_enlarged(image, sizes, rng) for image in native], large)
    )
    return abs(other - put_through) < _NEARER * abs(other - as_is)


def _fineness(image: Image.Image) -> float:
    """How fast brightness changes its slope: the log of mean |second difference| / mean |first difference|.

    Enlarging lowers it whatever the picture shows.
    """
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    first, second = (np.abs(np.diff(grey, n, axis=1)).mean() for n in (1, 2))
    return float(np.log((second + _FLAT) / (first + _FLAT)))


def _enlarged(image: Image.Image, sizes: Sequence[tuple[int, int]], rng: np.random.Generator) -> Image.Image:
    """The image, its proportions kept, as large as one drawn from `sizes`, at most by `_MOST`, and never smaller."""
    width, height = sizes[int(rng.integers(len(sizes)))]
    scale = min(_MOST, max(width / image.width, height / image.height))
    resample = _FILTERS[int(rng.integers(len(_FILTERS)))]
    if scale <= 1:
        return image
    return image.resize((round(image.width * scale), round(image.height * scale)), resample)


def _save(image: Image.Image, target: Path, donor: Encoding | None, crop: tuple[int, int] | None) -> None:
    if crop is not None:
        width, height = min(crop[0], image.width), min(crop[1], image.height)
        left = (image.width - width) // 2 // _BLOCK * _BLOCK
        top = (image.height - height) // 2 // _BLOCK * _BLOCK
        image = image.crop((left, top, left + width, top + height))
    if donor is None:
        image.save(target, "PNG")
    else:
        image.save(target, "JPEG", qtables=donor.tables, subsampling=donor.subsampling)


def _describe(
    coarse: int | None, crop: tuple[int, int] | None, donors: list[Encoding], enlarged: int | None
) -> str:
    parts = []
    if enlarged is not None:
        parts.append(
            f"the {_NAMES[enlarged]} images enlarged to the sizes of the {_NAMES[1 - enlarged]} ones"
        )
    if coarse is not None and donors:
        parts.append(
            f"the {_NAMES[1 - coarse]} images saved as JPEG with the tables of the {_NAMES[coarse]} ones"
        )
    elif coarse is None:
        parts.append("all images saved in one format")
    if crop is not None:
        parts.append(f"both classes cropped to {crop[0]} x {crop[1]}")
    return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"
