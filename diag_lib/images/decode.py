"""What are this file's pixels - all of them, or a short reason why not?

A file is decoded completely or not at all. The format is found from the content, never from the name, and
only formats of `FORMATS` are tried: no decoder that starts another program (EPS, WMF) can be reached. Colour:

* EXIF orientation is applied; colour profiles are ignored, as every common training pipeline does.
* Transparency is laid on white, so that hidden colours under it cannot inform a detector.
* 16-bit values are divided by 257; 32-bit and float values are scaled by their range, not clipped.
* Of animations and multi-page files the first frame is taken.
"""

import importlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 100_000_000
MAX_BYTES = 512 * 1024 * 1024
LARGE_PIXELS = 16_000_000
"""Larger images are decoded one at a time in a process: eight threads on files that unpack to 100 million pixels
would need eight times their memory."""
BAND_PIXELS = 1_000_000
MAX_SCANS = 100
"""Scans of a progressive JPEG (libjpeg's own script has 10): each, however short, costs a pass over the picture."""
_PLUGINS = {
    "JPEG": "Jpeg", "PNG": "Png", "WEBP": "WebP", "BMP": "Bmp", "TIFF": "Tiff", "GIF": "Gif",
    "PPM": "Ppm", "JPEG2000": "Jpeg2K", "AVIF": "Avif",
}  # fmt: skip
_OPTIONAL = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}
_SUPPORTED = features.get_supported()  # unlike `check`, silent about what an older Pillow has never heard of
FORMATS: tuple[str, ...] = tuple(
    name for name in _PLUGINS if name not in _OPTIONAL or _OPTIONAL[name] in _SUPPORTED
)
for _name in FORMATS:  # Image.open(formats=...) knows only imported plugins
    importlib.import_module(f"PIL.{_PLUGINS[_name]}ImagePlugin")  # JPEG opens MPO files too
SUFFIX_FORMAT = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".mpo": "MPO", ".png": "PNG",
    ".apng": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".dib": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
    ".gif": "GIF", ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM", ".pfm": "PPM",
    ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".jpx": "JPEG2000", ".jpf": "JPEG2000", ".j2c": "JPEG2000", ".avif": "AVIF",
}  # fmt: skip
_MAGIC = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"II+\0",
    b"MM\0+", b"\xff\x4f\xff\x51", b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n", b"Pf\n", b"PF\n",
)  # fmt: skip
_BOX_MAGIC = (b"jP  \r\n\x87\n", b"ftypavif", b"ftypavis")
_SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF tags
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


class DecodeError(Exception):
    """The file gives no complete image; `reason` is short and stable enough to count by."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Decoded:
    """A decoded file: `pixels` uint8 (H, W, 3) RGB, and what its container said."""

    pixels: Pixels
    format: str
    mode: str
    width: int
    height: int
    has_alpha: bool = False
    frames: int = 1
    orientation: int = 1
    quantization: dict[int, list[int]] | None = None
    subsampling: str = ""
    software: str = ""
    camera: str = ""
    has_exif: bool = False
    notes: tuple[str, ...] = field(default=())


class _StrictPillow:
    """While any thread is inside: Pillow refuses truncated files, and its warnings are collected per thread.

    `LOAD_TRUNCATED_IMAGES` and the warning filters belong to the process, hence the counter; they are put
    back as they were when the last thread leaves.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved: tuple[Any, Any] = (False, None)
        self._catcher: Any = None
        self._show: Any = None
        self._local = threading.local()

    def __enter__(self) -> list[str]:
        with self._lock:
            if self._inside == 0:
                self._saved = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
                ImageFile.LOAD_TRUNCATED_IMAGES = False
                Image.MAX_IMAGE_PIXELS = None  # our own limit is checked instead
                self._catcher = warnings.catch_warnings()
                self._catcher.__enter__()
                warnings.simplefilter("always")
                self._show = warnings.showwarning
                warnings.showwarning = self._collect
            self._inside += 1
        self._local.messages = []
        messages: list[str] = self._local.messages
        return messages

    def __exit__(self, *error: object) -> None:
        self._local.messages = None
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self._saved
                self._catcher.__exit__(None, None, None)

    def _collect(self, message: Any, *rest: Any, **named: Any) -> None:
        messages = getattr(self._local, "messages", None)
        if messages is None:  # a warning of some other thread, not ours to swallow
            self._show(message, *rest, **named)
        else:
            messages.append(" ".join(str(message).split())[:120])


_STRICT = _StrictPillow()
_ONE_LARGE = threading.Lock()


def decode(file: str | Path, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The pixels of an image file, uint8 (H, W, 3) RGB.

    Raises
    ------
    DecodeError : missing, empty, not an image, truncated, corrupt, or more than `max_pixels` pixels.
    """
    return decode_bytes(read_bytes(file), max_pixels=max_pixels).pixels


def read_bytes(file: str | Path) -> bytes:
    """The content of a regular file of at most `MAX_BYTES`. Raises `DecodeError`."""
    try:
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise DecodeError("missing file") from None
    except PermissionError:
        raise DecodeError("no permission to read") from None
    except (OSError, ValueError):
        raise DecodeError("cannot be opened") from None
    try:
        with os.fdopen(handle, "rb") as stream:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                raise DecodeError("not a regular file")
            if info.st_size > MAX_BYTES:
                raise DecodeError("file too large")
            data = stream.read(MAX_BYTES)
    except OSError:
        raise DecodeError("cannot be read") from None
    if not data:
        raise DecodeError("empty file")
    return data


def decode_bytes(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode the content of an image file; the same rules and errors as `decode`."""
    if not data:
        raise DecodeError("empty file")
    with _STRICT as messages:
        image = _opened(data)
        with image:
            if image.width * image.height > max_pixels:
                raise DecodeError("too many pixels")
            if image.width < 1 or image.height < 1:
                raise DecodeError("no pixels")
            with _ONE_LARGE if image.width * image.height > LARGE_PIXELS else nullcontext():
                return _loaded(image, data, messages)


def format_of_name(name: str) -> str:
    """The format a file name promises ("" when its suffix promises none)."""
    return SUFFIX_FORMAT.get(Path(name).suffix.lower(), "")


def name_disagrees(name: str, actual: str) -> bool:
    """Whether the suffix promises another format than the content has."""
    promised = format_of_name(name)
    return bool(promised) and _SAME_FORMAT.get(promised, promised) != _SAME_FORMAT.get(actual, actual)


def looks_like_image(head: bytes) -> bool:
    """Whether the first 16 bytes of a file are those of a format that `decode` reads."""
    return (
        head.startswith(_MAGIC) or head[4:12] in _BOX_MAGIC or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
    )


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise DecodeError("damaged header" if looks_like_image(data[:16]) else "not an image") from None
    except Exception as error:  # decoders of hostile bytes raise anything: struct.error, IndexError, ...
        raise DecodeError(_reason(error)) from None


def _loaded(image: Image.Image, data: bytes, messages: list[str]) -> Decoded:
    kind, mode, (width, height) = image.format or "", image.mode, image.size
    notes: list[str] = []
    try:
        frames = _frames(image, kind)
        _refuse_short_file(kind, data)
        _refuse_excess(image, kind, data)
        image.load()
        orientation, software, camera, has_exif = _exif(image, notes)
        has_alpha = mode in _WITH_ALPHA or "transparency" in image.info
        pixels = _rgb(image)
        if orientation != 1:
            pixels = _oriented(pixels, orientation)
        tables = getattr(image, "quantization", None) if kind in ("JPEG", "MPO") else None
        subsampling = _subsampling(image) if kind in ("JPEG", "MPO") else ""
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(_reason(error)) from None
    if frames > 1:
        notes.append("several frames, first taken")
    notes += [f"decoder: {text}" for text in messages[:3]]
    return Decoded(
        np.ascontiguousarray(pixels), kind, mode, width, height, has_alpha, frames, orientation,
        tables or None, subsampling, software, camera, has_exif, tuple(notes),
    )  # fmt: skip


def _reason(error: Exception) -> str:
    text = str(error).lower()
    if isinstance(error, MemoryError):
        return "not enough memory"
    return "truncated" if "truncat" in text or "unexpected end" in text or "eof" in text else "corrupt"


def _frames(image: Image.Image, kind: str) -> int:
    if kind in ("MPO", "JPEG"):  # an MPO's further frames are other views of the same photograph
        return 1
    if kind == "GIF":  # counting a GIF's frames would decode them all
        several = bool(getattr(image, "is_animated", False))
        image.seek(0)
        return 2 if several else 1
    return int(getattr(image, "n_frames", 1))


def _refuse_short_file(kind: str, data: bytes) -> None:
    """Refuse what a decoder would fill up silently."""
    if kind == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data) + 1:
        raise DecodeError("truncated")  # shorter than the container declares
    # A code stream cut before its first tile is decoded as plain gray: demand tile data, then the end marker
    # (neither can occur inside entropy-coded data).
    if kind == "JPEG2000" and not 0 < data.rfind(b"\xff\x93") < data.rfind(b"\xff\xd9"):
        raise DecodeError("truncated")


def _refuse_excess(image: Image.Image, kind: str, data: bytes) -> None:
    """Refuse what would cost far more memory or time than the picture's size says."""
    if kind in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_SCANS:
        raise DecodeError("too many scans")
    if kind == "TIFF":
        wide, tall = (_whole_number(image, tag) for tag in (_TILE_WIDTH, _TILE_LENGTH))
        if wide * tall > 4 * image.width * image.height + BAND_PIXELS:
            raise DecodeError("corrupt")


def _whole_number(image: Image.Image, tag: int) -> int:
    value = getattr(image, "tag_v2", {}).get(tag, 0)
    return value if isinstance(value, int) else 0


def _exif(image: Image.Image, notes: list[str]) -> tuple[int, str, str, bool]:
    """(orientation 1..8, software, camera, whether EXIF exists); a damaged block does not cost the image."""
    try:
        exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        software = str(exif.get(ExifTags.Base.Software, "") or "")[:80]
        makers = (str(exif.get(tag, "") or "").strip() for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
        camera = " ".join(name for name in makers if name)[:80]
        has_exif = bool(image.info.get("exif")) or (len(exif) > 0 and image.format != "TIFF")
    except Exception:
        notes.append("damaged EXIF")
        return 1, "", "", False
    software = software or _text_chunk_software(image)
    return (orientation if orientation in range(1, 9) else 1), software, camera, has_exif


def _text_chunk_software(image: Image.Image) -> str:
    for key in ("Software", "software", "parameters", "prompt", "Comment"):
        value = image.info.get(key)
        if isinstance(value, str) and value:
            return value[:80] if key.lower() == "software" else key
    return ""


def _subsampling(image: Image.Image) -> str:
    """Chroma subsampling of a JPEG from its sampling factors: "4:4:4", "4:2:2", "4:2:0", "gray", ..."""
    layers = getattr(image, "layer", None) or []
    if len(layers) == 1:
        return "gray"
    if len(layers) < 3:
        return ""
    (_, h0, v0, *_), (_, h1, v1, *_) = layers[0], layers[1]
    table = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1"}
    return table.get((h0 // max(h1, 1), v0 // max(v1, 1)), f"{h0}x{v0}/{h1}x{v1}")


def _rgb(image: Image.Image) -> Pixels:
    """uint8 (H, W, 3) of a loaded Pillow image in any mode, converted in bands: no second copy of a large image."""
    mode = image.mode
    deep = mode.startswith("I") or mode == "F"
    if mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image)
    if deep:
        image.info.pop("transparency", None)
        convert = _gray_scaling(image)
    elif mode in _WITH_ALPHA or "transparency" in image.info:
        convert = _on_white
    else:
        convert = _opaque
    out = np.empty((image.height, image.width, 3), np.uint8)
    for top, band in _bands(image):
        out[top : top + band.height] = convert(band)
    return out


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, rows as an image) from top to bottom, about `BAND_PIXELS` at a time."""
    rows = max(1, BAND_PIXELS // image.width)
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _opaque(band: Image.Image) -> Pixels:
    try:
        return np.asarray(band.convert("RGB"))
    except ValueError:
        raise DecodeError("unsupported colour mode") from None


def _on_white(band: Image.Image) -> Pixels:
    rgba = band.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return np.asarray(rgba)[:, :, :3]
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba))[:, :, :3]


def _gray_scaling(image: Image.Image) -> Callable[[Image.Image], Pixels]:
    """What makes uint8 (h, w, 1) of a band of deep gray values; its scale is that of the whole image.

    `I;16*`, and 32-bit integers within 0..65535: divided by 257. Floats within 0..1: times 255; within
    0..255: as they are. Anything else: its own minimum..maximum is spread over 0..255.
    """
    low, high = np.inf, -np.inf
    for _, band in _bands(image):
        values = np.asarray(band)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise DecodeError("non-finite pixel values")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if image.mode.startswith("I") and low >= 0 and high <= 65535:
        zero, divisor, factor = 0.0, 257.0, 1.0
    elif image.mode == "F" and low >= 0 and high <= 255:
        zero, divisor, factor = 0.0, 1.0, 255.0 if high <= 1 else 1.0
    else:
        zero, divisor, factor = low, 1.0, 255.0 / (high - low) if high > low else 0.0

    def scaled(band: Image.Image) -> Pixels:
        wide = (np.asarray(band).astype(np.float64) - zero) / divisor * factor
        gray: Pixels = np.rint(wide).astype(np.uint8)
        return gray[:, :, None]

    return scaled


def _oriented(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation (2..8) to an (H, W, 3) array."""
    turned = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return turned[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
