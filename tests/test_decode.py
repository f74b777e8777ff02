"""Is a file decoded completely, in the right colours, or refused with a reason?"""

import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from diag_lib.images import DecodeError, decode, decode_bytes
from diag_lib.images.decode import FORMATS, name_disagrees


def photo(height: int = 61, width: int = 75, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(1, height // 5), max(1, width // 5), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


LOSSLESS = [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {})] + [
    (name, {"lossless": True} if name == "WEBP" else {}) for name in ("WEBP", "JPEG2000") if name in FORMATS
]
EVERY = [
    *LOSSLESS,
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("GIF", {}),
    *[(name, {}) for name in ("WEBP", "AVIF") if name in FORMATS],
]


@pytest.mark.parametrize(("format", "options"), LOSSLESS)
def test_lossless_formats_come_back_exactly(tmp_path: Path, format: str, options: dict[str, object]) -> None:
    file = tmp_path / "x.any"
    file.write_bytes(saved(Image.fromarray(photo()), format, **options))
    assert np.array_equal(decode(file), photo())


@pytest.mark.parametrize(("format", "options"), EVERY)
@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=25, deadline=None)
def test_a_cut_file_is_refused_or_complete_never_half(
    format: str, options: dict[str, object], share: float
) -> None:
    data = saved(Image.fromarray(photo()), format, **options)
    whole = decode_bytes(data).pixels
    try:
        pixels = decode_bytes(data[: int(len(data) * share)]).pixels
    except DecodeError as error:
        assert 0 < len(error.reason) < 30
    else:
        assert np.array_equal(pixels, whole)


@pytest.mark.skipif("JPEG2000" not in FORMATS, reason="Pillow without JPEG 2000")
def test_a_jpeg2000_cut_before_its_first_tile_is_not_taken_for_gray() -> None:
    data = saved(Image.fromarray(photo()), "JPEG2000")
    for cut in range(data.index(b"\xff\x90") - 4, data.index(b"\xff\x93") + 8):
        with pytest.raises(DecodeError):
            decode_bytes(data[:cut])


def test_a_host_that_loads_truncated_images_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = saved(Image.fromarray(photo(200, 200)), "JPEG")
    with pytest.raises(DecodeError, match="truncated"):
        decode_bytes(data[: len(data) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True  # the host's own setting is put back


def test_threads_share_the_strict_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    good, filters = saved(Image.fromarray(photo(200, 200)), "JPEG"), list(warnings.filters)

    def attempt(cut: bool) -> str:
        try:
            decode_bytes(good[: len(good) // 2] if cut else good)
        except DecodeError as error:
            return error.reason
        return "decoded"

    with ThreadPoolExecutor(8) as pool:
        outcome = list(pool.map(attempt, [i % 2 == 0 for i in range(200)]))
    assert outcome == ["truncated", "decoded"] * 100
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True and list(warnings.filters) == filters


def test_refusals_have_short_stable_reasons(tmp_path: Path) -> None:
    def reason(name: str, data: bytes | None, **options: int) -> str:
        file = tmp_path / name
        if data is not None:
            file.write_bytes(data)
        with pytest.raises(DecodeError) as caught:
            decode(file, **options)
        return caught.value.reason

    assert reason("missing.png", None) == "missing file"
    assert reason("zero.png", b"") == "empty file"
    assert reason("text.png", b"<html>not found</html>") == "not an image"
    assert reason("eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not an image"
    assert (
        reason("large.png", saved(Image.new("1", (2000, 2000)), "PNG"), max_pixels=3_999_999)
        == "too many pixels"
    )
    os.mkfifo(tmp_path / "pipe.png")
    assert reason("pipe.png", None) == "not a regular file"
    (tmp_path / "folder.png").mkdir()
    assert reason("folder.png", None) in ("cannot be read", "cannot be opened", "not a regular file")


def test_a_bomb_is_refused_before_its_pixels_exist() -> None:
    header = saved(Image.new("1", (20_000, 20_000)), "PNG")  # 50 KB that would become 1.2 GB
    with pytest.raises(DecodeError, match="too many pixels"):
        decode_bytes(header)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied_once(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format == "JPEG" else {}
    data = saved(Image.fromarray(photo()), format, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(decode_bytes(data).pixels, expected)


def test_a_damaged_exif_block_does_not_cost_the_image() -> None:
    data = saved(Image.fromarray(photo()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_bytes(data)
    assert decoded.pixels.shape == (61, 75, 3)


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, :3] = (255, 0, 0, 255)
    rgba[:, 3:] = (10, 200, 30, 0)  # a colour hidden under full transparency
    for image in (Image.fromarray(rgba), Image.fromarray(rgba).convert("LA")):
        decoded = decode_bytes(saved(image, "PNG"))
        assert decoded.has_alpha
        assert (decoded.pixels[:, 3:] == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    decoded = decode_bytes(saved(palette, "PNG", transparency=1))
    assert decoded.has_alpha and (decoded.pixels == 255).all()


def test_deep_gray_is_scaled_by_its_range_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = decode_bytes(saved(Image.fromarray(ramp), "PNG")).pixels
    assert pixels[..., 0].ravel().tolist() == list(range(256))
    floats = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    assert decode_bytes(saved(Image.fromarray(floats), "TIFF")).pixels[..., 0].ravel().tolist() == list(
        range(256)
    )
    wide = np.linspace(-1e6, 1e6, 256).astype(np.float32).reshape(16, 16)
    assert decode_bytes(saved(Image.fromarray(wide), "TIFF")).pixels[..., 2].ravel().tolist() == list(
        range(256)
    )
    wide[0, 0] = np.nan
    with pytest.raises(DecodeError, match="non-finite"):
        decode_bytes(saved(Image.fromarray(wide), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(photo()).convert(mode)
    format = "TIFF" if mode == "CMYK" else "PNG"
    assert np.array_equal(decode_bytes(saved(image, format)).pixels, np.asarray(image.convert("RGB")))


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.fromarray(photo(seed=s)) for s in (1, 2)]
    for format in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        decoded = decode_bytes(saved(frames[0], format, save_all=True, append_images=frames[1:], **options))
        if format != "GIF":
            assert np.array_equal(decoded.pixels, photo(seed=1))
        assert decoded.frames > 1 and "several frames, first taken" in decoded.notes


def test_one_pixel_and_odd_sizes() -> None:
    for size in ((1, 1), (1, 300), (301, 1), (7, 13)):
        assert decode_bytes(saved(Image.new("RGB", size, (1, 2, 3)), "PNG")).pixels.shape == (
            size[1],
            size[0],
            3,
        )


def test_the_container_is_described() -> None:
    decoded = decode_bytes(saved(Image.fromarray(photo()), "JPEG", quality=75, subsampling=2))
    assert (decoded.format, decoded.subsampling, decoded.width, decoded.height) == ("JPEG", "4:2:0", 75, 61)
    assert decoded.quantization is not None and decoded.quantization[0][0] == 8
    assert decode_bytes(saved(Image.fromarray(photo()), "JPEG", subsampling=0)).subsampling == "4:4:4"
    assert decode_bytes(saved(Image.fromarray(photo()).convert("L"), "JPEG")).subsampling == "gray"
    assert name_disagrees("a.png", "JPEG") and not name_disagrees("a.JPG", "MPO")
    assert not name_disagrees("no_suffix", "JPEG")


def test_warnings_are_collected_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(saved(Image.fromarray(photo()), "PNG"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_bytes(bytes(data), max_pixels=10**12)
    assert capsys.readouterr() == ("", "")


@given(
    data=st.binary(max_size=200),
    head=st.sampled_from([b"", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"BM", b"P6\n"]),
)
@settings(max_examples=150, deadline=None)
def test_random_bytes_never_raise_anything_else(data: bytes, head: bytes) -> None:
    try:
        pixels = decode_bytes(head + data, max_pixels=1_000_000).pixels
    except DecodeError:
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
