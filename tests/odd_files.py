"""A few hundred broken, odd and hostile image files, the same every time, and what each must end as."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from diag_lib.images.decode import FORMATS

Ends = Literal["image", "refused", "either"]
"""An image, a reason, or whichever of the two: never anything else."""

SIDE = (40, 33)  # width, height of the sound pictures
BOMB_SIDE = 20_000
LARGE_SIDE = 9_990  # just below the limit of pixels


class Odd(NamedTuple):
    """A file by its name and content, and what it must end as."""

    name: str
    data: bytes
    ends: Ends


def picture(seed: int = 0, size: tuple[int, int] = SIDE) -> Image.Image:
    """A smooth colourful picture."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    """The image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def as_pillow_reads(data: bytes) -> Ends:
    """ "image" where this Pillow reads back what it wrote; Pillow 10.4 to 12.3 does not for every mode and format."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            image.load()
    except OSError:
        return "refused"
    return "image"


SOUND: dict[str, Callable[[], bytes]] = {
    "jpg": lambda: saved(picture(), "JPEG", quality=90),
    "progressive.jpg": lambda: saved(picture(), "JPEG", progressive=True),
    "png": lambda: saved(picture(), "PNG"),
    "bmp": lambda: saved(picture(), "BMP"),
    "gif": lambda: saved(picture(), "GIF"),
    "tif": lambda: saved(picture(), "TIFF"),
    "lzw.tif": lambda: saved(picture(), "TIFF", compression="tiff_lzw"),
    "jpeg.tif": lambda: saved(picture(), "TIFF", compression="jpeg"),
    "ppm": lambda: saved(picture(), "PPM"),
    **({"webp": lambda: saved(picture(), "WEBP")} if "WEBP" in FORMATS else {}),
    **({"lossless.webp": lambda: saved(picture(), "WEBP", lossless=True)} if "WEBP" in FORMATS else {}),
    **({"jp2": lambda: saved(picture(), "JPEG2000")} if "JPEG2000" in FORMATS else {}),
    **({"avif": lambda: saved(picture(), "AVIF")} if "AVIF" in FORMATS else {}),
}
"""One sound file of each kind, by the ending of its name."""


def cut() -> Iterator[Odd]:
    """Every kind, ended early at a dozen places."""
    for kind, make in SOUND.items():
        data = make()
        for place in range(1, 12):
            yield Odd(f"cut_{place:02d}.{kind}", data[: len(data) * place // 12], "either")
        yield Odd(f"cut_1_byte.{kind}", data[:1], "refused")
        yield Odd(f"cut_half.{kind}", data[: len(data) // 2], "refused")


def flipped() -> Iterator[Odd]:
    """Every kind with bits flipped, in the header and anywhere."""
    rng = np.random.default_rng(7)
    for kind, make in SOUND.items():
        for number in range(6):
            data = bytearray(make())
            reach = min(len(data), 64) if number < 3 else len(data)
            for at in rng.integers(0, reach, 1 + 3 * number):
                data[at] ^= 1 << int(rng.integers(8))
            yield Odd(f"flipped_{number}.{kind}", bytes(data), "either")


def wrong_headers() -> Iterator[Odd]:
    """Magic numbers before nonsense, headers of one format before the body of another, tails that are too long."""
    kinds = list(SOUND)
    for number, kind in enumerate(kinds):
        data, other = SOUND[kind](), SOUND[kinds[number - 1]]()
        yield Odd(f"head_only.{kind}", data[:16] + bytes(64), "refused")
        yield Odd(f"head_of_another.{kind}", other[:12] + data[12:], "either")
        yield Odd(f"zeros_in_front.{kind}", bytes(32) + data, "refused")
        yield Odd(f"more_behind.{kind}", data + b"<?php evil(); ?>" * 20, "either")
        yield Odd(f"zeroed_middle.{kind}", data[: len(data) // 3] + bytes(len(data) * 2 // 3), "either")
    yield Odd("a_jpeg_called.png", SOUND["jpg"](), "image")
    for name, data in FOREIGN.items():
        yield Odd(name, data, "refused")


FOREIGN: dict[str, bytes] = {
    "empty.png": b"",
    "one_zero.jpg": b"\0",
    "zeros.jpg": bytes(10_000),
    "page.jpg": b"<!DOCTYPE html><title>404</title><script>alert(1)</script>",
    "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><image href='file:///etc/passwd'/></svg>",
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch /tmp/x) (w) file\n",
    "metafile.png": b"\xd7\xcd\xc6\x9a" + bytes(18) + b"\x01\0\x09\0\0\x03" + bytes(40),
    "archive.jpg": b"PK\x03\x04" + bytes(60),
    "program.png": b"\x7fELF" + bytes(60),
    "pickled.jpg": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    "document.tif": b"%PDF-1.7\n" + bytes(60),
    "icon.png": saved(picture(size=(16, 16)), "ICO"),
    "targa.png": saved(picture(), "TGA"),
    "pcx.png": saved(picture(), "PCX"),
}
"""What is no image of the allowed formats, whatever its name says; some of it other decoders would obey."""


def modes() -> Iterator[Odd]:
    """Colour modes and depths, palettes with transparency, ICC profiles."""
    gray = np.arange(33 * 40).reshape(33, 40)
    rgb = picture()
    for mode in ("1", "L", "P", "LA", "RGBA"):
        yield Odd(f"mode_{mode}.png", saved(rgb.convert(mode), "PNG"), "image")
    for mode in ("CMYK", "YCbCr", "LAB", "1", "L"):
        data = saved(rgb.convert("RGB" if mode == "LAB" else mode), "TIFF")
        yield Odd(f"mode_{mode}.tif", data, as_pillow_reads(data))
    yield Odd("cmyk.jpg", saved(rgb.convert("CMYK"), "JPEG"), "image")
    yield Odd("gray.jpg", saved(rgb.convert("L"), "JPEG"), "image")
    yield Odd("gray_16.png", saved(Image.fromarray((gray * 49).astype(np.uint16)), "PNG"), "image")
    yield Odd("gray_16.tif", saved(Image.fromarray((gray * 49).astype(np.uint16)), "TIFF"), "image")
    yield Odd("gray_32.tif", saved(Image.fromarray((gray * 9_999 - 77).astype(np.int32)), "TIFF"), "image")
    for name, values, ends in (
        ("float", gray / gray.max(), "image"),
        ("float_wide", gray * 1e30 - 1e20, "image"),
        ("float_flat", gray * 0.0 - 3, "image"),
        ("float_nan", np.where(gray == 5, np.nan, 1.0), "refused"),
        ("float_infinite", np.where(gray == 5, np.inf, 1.0), "refused"),
    ):
        yield Odd(f"{name}.tif", saved(Image.fromarray(values.astype(np.float32)), "TIFF"), ends)
    for alpha in (0, b"\0\x80\xff" * 40):
        yield Odd(
            f"palette_{type(alpha).__name__}.png", saved(rgb.convert("P"), "PNG", transparency=alpha), "image"
        )
    yield Odd("transparent.gif", saved(rgb.convert("P"), "GIF", transparency=3), "image")
    yield Odd("rgb_key.png", saved(rgb, "PNG", transparency=(1, 2, 3)), "image")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, icc in (("icc", profile), ("icc_damaged", profile[:99]), ("icc_nonsense", b"\xff" * 3000)):
        yield Odd(f"{name}.jpg", saved(rgb, "JPEG", icc_profile=icc), "image")
        yield Odd(f"{name}.png", saved(rgb, "PNG", icc_profile=icc), "image")
    yield Odd("depth_3.png", png(8, 8, 3, 0), "refused")
    yield Odd("rgb_16.png", png(8, 8, 16, 2), "image")
    yield Odd("rgba_16.png", png(8, 8, 16, 6), "image")
    yield Odd("maxval_7.ppm", b"P5 4 2 7\n\0\1\2\3\4\5\6\7", "image")
    yield Odd("maxval_0.ppm", b"P5 4 2 0\n" + bytes(8), "refused")
    yield Odd("maxval_70000.ppm", b"P5 4 2 70000\n" + bytes(16), "refused")
    yield Odd("ascii.ppm", b"P3\n# a comment\n2 1\n255\n1 2 3 4 5 6\n", "image")
    yield Odd("ascii_too_few.ppm", b"P3\n2 2\n255\n1 2 3\n", "refused")
    yield Odd("ascii_words.ppm", b"P3\n2 1\n255\none two three 4 5 6\n", "refused")
    yield Odd("floats.ppm", b"Pf\n2 2\n-1.0\n" + struct.pack("<4f", 0, 0.5, 1, 0.25), "image")


def exif() -> Iterator[Odd]:
    """Orientations allowed and not, directories that point at themselves, entries that lie about their size."""
    for orientation in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65_535):
        block = Image.Exif()
        block[0x0112] = orientation
        yield Odd(f"orientation_{orientation}.jpg", saved(picture(), "JPEG", exif=block), "image")
    loop = ifd([(0x8769, 4, 1, 8), (0x8825, 4, 1, 8), (0x014A, 4, 1, 8)], after=8)
    liar = ifd([(0x0112, 3, 0xFFFFFFFF, 1), (0x0131, 2, 0x7FFFFFFF, 8), (0x010F, 2, 40, 0xFFFFFFF0)])
    odd = ifd([(0x0112, 2, 4, 0x00333333), (0x0131, 5, 1, 0), (0x010F, 99, 1, 1), (0x0110, 12, 1, 8)])
    many = ifd([(0x0131, 3, 1, number) for number in range(4_000)])
    for name, block in (
        ("loop", loop),
        ("liar", liar),
        ("odd_types", odd),
        ("many", many),
        ("cut", loop[:9]),
    ):
        yield Odd(f"exif_{name}.jpg", saved(picture(), "JPEG", exif=b"Exif\0\0" + block), "image")
        yield Odd(f"exif_{name}.png", saved(picture(), "PNG", exif=block), "image")
    yield Odd("pages_in_a_circle.tif", b"II*\0\x08\0\0\0" + loop[8:], "refused")
    camera = Image.Exif()
    camera[0x010F], camera[0x0131] = "<img src=x onerror=alert(1)>\x1b[31m", "=cmd|' /C calc'!A0\u202etxt.exe"
    yield Odd("exif_hostile.jpg", saved(picture(), "JPEG", exif=camera), "image")
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Software", "<script>alert(1)</script>")
    notes.add_text("parameters", "\x1b]0;owned\x07" * 50)
    yield Odd("text_hostile.png", saved(picture(), "PNG", pnginfo=notes), "image")
    yield Odd("software_of_numbers.tif", tiff_with_long_software(200_000), "image")


def animations() -> Iterator[Odd]:
    """Several frames or pages, also where a later one is damaged or larger."""
    frames = [picture(seed) for seed in (1, 2, 3)]
    for kind, format in (("gif", "GIF"), ("png", "PNG"), ("tif", "TIFF"), ("webp", "WEBP"), ("avif", "AVIF")):
        if format in FORMATS:
            data = saved(frames[0], format, save_all=True, append_images=frames[1:])
            yield Odd(f"animated.{kind}", data, "image")
            yield Odd(f"animated_cut.{kind}", data[: len(data) * 3 // 4], "either")
    yield Odd("no_frames.gif", b"GIF89a\x04\0\x04\0\x80\0\0" + bytes(6) + b";", "refused")
    views = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    yield Odd("views.mpo", views, as_pillow_reads(views))


def sizes() -> Iterator[Odd]:
    """No pixels, one pixel, thin strips, more pixels than allowed."""
    for width, height in ((1, 1), (1, 3000), (3000, 1), (2, 2), (3, 5), (9, 9)):
        yield Odd(f"size_{width}x{height}.png", saved(picture(size=(width, height)), "PNG"), "image")
    yield Odd("size_1x1.jpg", saved(picture(size=(1, 1)), "JPEG"), "image")
    for width, height in ((0, 0), (0, 9), (9, 0)):
        yield Odd(f"size_{width}x{height}.png", png(width, height, 8, 2), "refused")
        yield Odd(f"size_{width}x{height}.ppm", f"P6 {width} {height} 255\n".encode(), "refused")
        yield Odd(f"size_{width}x{height}.bmp", sized_bmp(width, height), "refused")
        yield Odd(
            f"size_{width}x{height}.gif", b"GIF89a" + struct.pack("<HH", width, height) + bytes(30), "refused"
        )
    for width, height in ((2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (1, 2**31 - 1), (65_535, 65_535)):
        yield Odd(f"claims_{width}x{height}.png", png(width, height, 8, 2, rows=3), "refused")
        yield Odd(
            f"claims_{width}x{height}.ppm", f"P6 {width} {height} 255\n".encode() + bytes(99), "refused"
        )
        yield Odd(f"claims_{width}x{height}.bmp", sized_bmp(width, height), "refused")
        yield Odd(f"claims_{width}x{height}.tif", tiff(width, height), "refused")
    yield Odd("negative.bmp", sized_bmp(-5, 5), "refused")
    yield Odd("negative.ppm", b"P6 -4 -4 255\n" + bytes(48), "refused")
    yield Odd("huge_number.ppm", b"P6 " + b"9" * 5_000 + b" 4 255\n" + bytes(48), "refused")
    yield Odd("claims_65535x65535.gif", b"GIF89a\xff\xff\xff\xff" + bytes(30), "refused")


def bombs() -> Iterator[Odd]:
    """Small files that unpack to much, in pixels, in text, in tiles or in time."""
    yield Odd("bomb_gray.png", png(BOMB_SIDE, BOMB_SIDE, 1, 0), "refused")
    yield Odd(
        "bomb_text.png",
        png(8, 8, 8, 2, extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(90_000_000), 9))),
        "either",
    )
    yield Odd(
        "bomb_profile.png",
        png(8, 8, 8, 2, extra=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(90_000_000), 9))),
        "either",
    )
    yield Odd(
        "bomb_of_texts.png",
        png(8, 8, 8, 2, extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000), 9)) * 99),
        "either",
    )
    yield Odd("bomb_tile.tif", tiff(64, 64, tile=46_336), "refused")
    base = saved(picture(size=(64, 64)).convert("L"), "JPEG", progressive=True)
    last = base[base.rfind(b"\xff\xda") : -2]
    yield Odd("bomb_scans.jpg", base[:-2] + last * 3_000 + base[-2:], "refused")


def every() -> list[Odd]:
    """All of them; names are unique."""
    families = (cut, flipped, wrong_headers, modes, exif, animations, sizes, bombs)
    return [odd for family in families for odd in family()]


def large_bombs() -> dict[str, bytes]:
    """Below the limit of pixels, so they are decoded: what matters is the memory that takes."""
    return {
        "deep.png": png(LARGE_SIDE, LARGE_SIDE, 16, 0),
        "transparent.png": png(LARGE_SIDE, LARGE_SIDE, 8, 6),
    }


def write_special(folder: Path) -> list[str]:
    """What is no regular file, named like an image: names of folders, pipes, sockets and links, in `folder`."""
    import socket

    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(folder)  # the name of a socket may have 108 bytes
    listener.bind("socket.png")
    os.chdir(here)
    listener.close()
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "ping.png").symlink_to("pong.png")
    (folder / "pong.png").symlink_to("ping.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "circle").symlink_to(".")
    return [
        "folder.png",
        "pipe.png",
        "socket.png",
        "dangling.png",
        "itself.png",
        "ping.png",
        "pong.png",
        "device.png",
        "circle",
    ]


# ---- writers that take what a proper one refuses


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, depth: int, colour: int, *, rows: int | None = None, extra: bytes = b""
) -> bytes:
    """A PNG of zeros that says it has this size; `rows` of it are there."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = bytes(1 + min(1_000_000, (width * channels * depth + 7) // 8))
    packer = zlib.compressobj(6)
    packed = b"".join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def sized_bmp(width: int, height: int) -> bytes:
    """A BMP that says it has this size."""
    data = bytearray(saved(picture(size=(4, 4)), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def ifd(entries: list[tuple[int, int, int, int]], after: int = 0) -> bytes:
    """A TIFF header and its first directory of (tag, type, count, value or offset)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + struct.pack("<I", after)


def tiff(width: int, height: int, *, tile: int = 0) -> bytes:
    """A deflated gray TIFF that says it has this size, in strips or in square tiles."""
    raw = zlib.compress(bytes(2_000), 9)
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
    ]
    at = 8 + 2 + 12 * (len(tags) + (4 if tile else 3)) + 4
    if tile:
        tags += [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, at), (325, 4, 1, len(raw))]
    else:
        tags += [(273, 4, 1, at), (278, 4, 1, height), (279, 4, 1, len(raw))]
    return ifd(sorted(tags)) + raw


def tiff_with_long_software(count: int) -> bytes:
    """A sound TIFF whose Software entry holds `count` numbers instead of a name."""
    pixels = bytes(64)
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    at = 8 + 2 + 12 * (len(tags) + 4) + 4
    tags += [(273, 4, 1, at), (278, 3, 1, 8), (279, 4, 1, 64), (305, 3, count, at + 64)]
    return ifd(sorted(tags)) + pixels + bytes(2 * count)
