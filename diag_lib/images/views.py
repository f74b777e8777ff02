"""Which pixels does the network see: how is an image fitted to the square, and how is it augmented?

Every view is a function of (seed, path, view) alone, so that teacher maps can be cached per view and no run
depends on the order, the epoch it started from, or the number of workers.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from diag_lib.errors import UserError
from diag_lib.images.decode import Pixels

Keys = npt.NDArray[np.uint64]

CROP_STEP = 8
CROP_MARGIN = 32
"""`flip_crop` cuts the square out of one `CROP_MARGIN` pixels larger, at multiples of `CROP_STEP` (the
stride of the LaDeDa teachers): the teacher's map of a crop is a slice of its map of the larger square."""

N_VIEWS = {"none": 1, "flip": 2, "flip_crop": 8}
_VIEW_STREAM, _EPOCH_STREAM = 1, 2


def fit(pixels: Pixels, mode: str, size: int) -> Pixels:
    """An image (H, W, 3) as uint8 (size, size, 3).

    `resize` squashes with an antialiased bilinear filter (LaDeDa's own way); `shortest` scales the shorter
    side to `size` and cuts the centre; `crop` cuts the native pixels of the centre and never interpolates:
    an image smaller than the square is continued by reflection.
    """
    return FITS[mode](pixels, size)


def _squash(pixels: Pixels, size: int) -> Pixels:
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))


def _centre(pixels: Pixels, size: int) -> Pixels:
    missing = [max(0, size - side) for side in pixels.shape[:2]]
    if any(missing):
        around = [(side // 2, side - side // 2) for side in missing]
        pixels = np.pad(pixels, [*around, (0, 0)], mode="reflect")
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def _shortest(pixels: Pixels, size: int) -> Pixels:
    side = min(pixels.shape[:2])
    return _squash(_centre(pixels, side), size)  # cutting first keeps a 1 x 100,000 image harmless


FITS: dict[str, Callable[[Pixels, int], Pixels]] = {"resize": _squash, "crop": _centre, "shortest": _shortest}


@dataclass(frozen=True)
class Reencode:
    """A lossy round trip at native size, before the image is fitted; `label` limits it to one class.

    `subsampling` is Pillow's: 0 = 4:4:4, 1 = 4:2:2, 2 = 4:2:0.
    """

    format: str = "JPEG"
    quality: int = 75
    subsampling: int = 2
    label: int | None = None

    def __call__(self, pixels: Pixels, label: int) -> Pixels:
        if self.label is not None and label != self.label:
            return pixels
        buffer = io.BytesIO()
        options = {"subsampling": self.subsampling} if self.format == "JPEG" else {}
        Image.fromarray(pixels).save(buffer, self.format, quality=self.quality, **options)
        with Image.open(buffer, formats=[self.format]) as image:
            return np.asarray(image.convert("RGB"))


PixelChange = Callable[[Pixels, int], Pixels]
"""(pixels, label) -> pixels, applied to the decoded image before it is fitted."""


def reencoder(spec: "Reencode | PixelChange | tuple[object, ...] | None") -> PixelChange | None:
    """A pixel change from None, a callable, or a tuple (format, quality, subsampling[, label])."""
    if spec is None or callable(spec):
        return spec
    try:
        return Reencode(*spec)  # type: ignore[arg-type]
    except TypeError:
        raise UserError(f"reencode {spec!r}: expected (format, quality, subsampling[, label])") from None


def path_keys(paths: Sequence[str], seed: int) -> Keys:
    """One 64-bit key a path, from (seed, path) alone."""
    digests = (hashlib.blake2b(f"{seed}\0{path}".encode(), digest_size=8).digest() for path in paths)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def draw(keys: Keys, stream: int, number: npt.NDArray[np.int64] | int) -> Keys:
    """Uniform 64-bit values from (key, stream, number): the splitmix64 finaliser (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        counter = np.asarray(number).astype(np.uint64) * np.uint64(2) + np.uint64(stream & 1)
        z = keys + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Keys = z ^ (z >> np.uint64(31))
    return mixed


def view_of_epoch(keys: Keys, epoch: int, n_views: int) -> npt.NDArray[np.int64]:
    """Which view each image shows in an epoch, uniform over 0..n_views-1."""
    return (draw(keys, _EPOCH_STREAM, epoch) % np.uint64(n_views)).astype(np.int64)


def crop_of_view(
    keys: Keys, views: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """(top, left, mirrored) of `flip_crop` views >= 1 within the larger square, offsets in pixels."""
    value = draw(keys, _VIEW_STREAM, views)
    places = np.uint64(CROP_MARGIN // CROP_STEP + 1)
    top = (value % places).astype(np.int64) * CROP_STEP
    left = (value // places % places).astype(np.int64) * CROP_STEP
    mirrored = (value >> np.uint64(63)).astype(bool)
    return top, left, mirrored
