"""What can be measured on each file in one pass over its bytes?

Workers are given nothing but paths, so that joblib's processes (or a dask cluster, through
`joblib.parallel_config`) run the same code. Files measured before are not opened again: results are kept by
file identity (path, size, modification time).
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from diag_lib.audit import jpeg, spectrum
from diag_lib.images import hashing
from diag_lib.images.decode import Decoded, DecodeError, Pixels, decode_bytes, name_disagrees, read_bytes
from diag_lib.images.readability import identities, write_parquet
from diag_lib.images.store import parallel
from diag_lib.images.views import fit, path_keys
from diag_lib.progress import Bar
from diag_lib.workers import deaths_told

SCAN_VERSION = 2
SAMPLE = 2000
"""Images (evenly from every split and class) that get the measures that cost more than decoding."""

WINDOW = 256
"""Pixel statistics look at the central WINDOW x WINDOW native pixels, colour at every second one each way,
sharpness at every second row: a quarter of the cost, and no difference that matters to a distribution."""

IN_PROCESS = 1500
"""Fewer files than this are not worth starting processes for."""

CHUNK = 64
BLOCK = 20_000
COLUMNS = (
    "reason", "file_hash", "pixel_hash", "thumbnail", "centre_thumbnail", "format", "mode", "width", "height",
    "frames", "orientation", "has_exif", "software", "camera", "has_alpha", "jpeg_quality", "jpeg_tables",
    "subsampling", "wrong_suffix",
    "bytes_per_pixel", "brightness", "contrast", "sharpness", "colourfulness", "entropy", "grayscale", "gray_tail",
)  # fmt: skip
SAMPLE_COLUMNS = ("mean", "square", "high_frequency", "spectral_slope", "lost", "jpeg_trace")

Row = dict[str, Any]


class Fitting(NamedTuple):
    """How images are fitted to the network's square: `dataset.resize` and `dataset.image_size`."""

    mode: str
    size: int


def scan_images(
    rows: pd.DataFrame,
    sampled: npt.NDArray[np.bool_],
    caches: tuple[Path, Path],
    fitting: Fitting,
    *,
    workers: int,
    progress: bool,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`rows` (columns of `ImageTable.frame`) with `COLUMNS`, and the readable `sampled` ones with `SAMPLE_COLUMNS` too.

    Files that both caches know are not opened; the caches are rewritten when something is new or gone. A stopped scan
    leaves what it has beside them, for the next one.
    """
    names = np.array(identities(rows), dtype=object)
    core_version, deep_version = str(SCAN_VERSION), f"{SCAN_VERSION} {fitting.mode} {fitting.size}"
    core, deep = _known(caches[0], COLUMNS, core_version), _known(caches[1], SAMPLE_COLUMNS, deep_version)
    missing = ~pd.Index(names).isin(core.index) | (sampled & ~pd.Index(names).isin(deep.index))
    blocks = _blocks(np.flatnonzero(missing))
    unsaved = 0
    for number, block in enumerate(blocks, 1):
        files = [
            (file, fitting if far else None)
            for file, far in zip(rows["file"].iloc[block], sampled[block], strict=True)
        ]
        part_of = f" ({number} of {len(blocks)})" if len(blocks) > 1 else ""
        measured = over_files(measure, files, workers, f"Reading images{part_of}" * progress)
        new = pd.DataFrame(measured, columns=[*COLUMNS, *SAMPLE_COLUMNS], index=names[block])
        core = _joined(core, new[list(COLUMNS)])
        deep = _joined(deep, new.loc[sampled[block], list(SAMPLE_COLUMNS)])
        unsaved += len(block)
        # ever more seldom, as the tables are written whole
        if number < len(blocks) and unsaved >= len(core) // 3:
            _keep(core, core_version, caches[0])
            _keep(deep, deep_version, caches[1])
            unsaved = 0
    left = rows.drop(columns=["file", "identity"], errors="ignore").reset_index(drop=True)
    frame = pd.concat([left, core.loc[names].reset_index(names="identity")], axis=1)
    used = deep.loc[names[sampled]].reset_index(names="identity")
    if missing.any() or len(frame) != len(core):
        write_parquet(frame.assign(version=core_version), caches[0])
    if missing.any() or len(used) != len(deep):
        write_parquet(used.assign(version=deep_version), caches[1])
    for cache in caches:
        _partial(cache).unlink(missing_ok=True)
    # `object`, not pandas' own strings: those cannot hold the undecodable bytes of a file name.
    frame = frame.assign(file=pd.Series(rows["file"].tolist(), index=frame.index, dtype="object"))
    sample = pd.concat([frame[sampled].reset_index(drop=True), used.drop(columns="identity")], axis=1)
    return frame, sample[sample["reason"] == ""].reset_index(drop=True)


def _partial(cache: Path) -> Path:
    """Where a scan that is not through keeps what will stand in `cache`."""
    return cache.with_suffix(".partial.parquet")


def _keep(table: pd.DataFrame, version: str, cache: Path) -> None:
    write_parquet(table.reset_index(names="identity").assign(version=version), _partial(cache))


def _known(cache: Path, columns: Sequence[str], version: str) -> pd.DataFrame:
    """What finished and stopped scans have measured, by identity."""
    return _joined(_read(cache, columns, version), _read(_partial(cache), columns, version))


def _blocks(indices: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Pieces of at most `BLOCK`: a row takes far less memory in a table than by itself."""
    return [indices[start : start + BLOCK] for start in range(0, len(indices), BLOCK)]


def _joined(known: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    if new.empty:
        return known
    both = new if known.empty else pd.concat([known, new])
    return both[~both.index.duplicated(keep="last")]


def in_sample(rows: pd.DataFrame, seed: int, size: int = SAMPLE) -> npt.NDArray[np.bool_]:
    """Which rows (n,) are drawn: at most `size`, evenly from every (split, label), by a hash of (seed, path).

    New files displace few of those drawn before. What a small group leaves goes to the larger ones.
    """
    keys = path_keys(rows["path"].tolist(), seed)
    group = pd.Series(keys).groupby([rows["split"].to_numpy(), rows["label"].to_numpy()])
    counts = np.asarray(group.size(), dtype=np.int64)
    return np.asarray(group.rank(method="first")) <= _even_share(counts, size)


def _even_share(counts: npt.NDArray[np.int64], size: int) -> int:
    """The largest number of rows a group that keeps the sum over the groups at `size` or below, at least 1."""
    low, high = 1, max(1, int(counts.max(initial=1)))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() <= size else (low, middle - 1)
    return low


def over_files(
    work: Callable[..., Row], files: Sequence[tuple[Any, ...]], workers: int, title: str
) -> list[Row]:
    """`[work(*each) for each in files]`: by threads when they are few, else by joblib's processes.

    Inside `joblib.parallel_config("dask")` (or any backend that was chosen there) that backend gets the files
    however few, and decides how many work at once; it must see the same file system.

    Raises `UserError` when a process dies over it.
    """
    chosen = _chosen_jobs()
    if chosen is None and (len(files) < IN_PROCESS or workers <= 1):
        shown = Bar(files, desc=title, unit="image", disable=not title, leave=False)
        return parallel(lambda each: work(*each), shown, workers)
    from joblib import Parallel, delayed

    chunks = [list(files[start : start + CHUNK]) for start in range(0, len(files), CHUNK)]
    results = Parallel(n_jobs=workers if chosen is None else chosen, return_as="generator")(
        delayed(_chunk)(work, chunk) for chunk in chunks
    )
    shown = Bar(results, desc=title, total=len(chunks), unit="chunk", disable=not title, leave=False)
    told = (
        "a worker process died while it read images (killed, out of memory, or a decoder crashed): set "
        "runtime.workers lower, or to 1 to let threads of this process read them"
    )
    with deaths_told(told):
        return [row for rows in shown for row in rows]


def _chosen_jobs() -> int | None:
    """How many jobs the caller's own `joblib.parallel_config` asks for (-1: all); None where none was chosen."""
    from joblib.parallel import BACKENDS, DEFAULT_BACKEND, get_active_backend

    backend, jobs = get_active_backend()
    if isinstance(backend, BACKENDS[DEFAULT_BACKEND]):
        return None
    return -1 if jobs is None else int(jobs)


def _chunk(work: Callable[..., Row], files: Sequence[tuple[Any, ...]]) -> list[Row]:
    return [work(*each) for each in files]


def measure(file: str, fitting: Fitting | None = None) -> Row:
    """`COLUMNS` of one file, with `fitting` `SAMPLE_COLUMNS` too; what needs pixels is None where there are none."""
    row: Row = dict.fromkeys(COLUMNS)
    row |= {"reason": "", "file_hash": ""}
    try:
        data = read_bytes(file)
        row["file_hash"] = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        decoded = decode_bytes(data)
    except DecodeError as error:
        return row | {"reason": error.reason}
    rgb = Image.fromarray(decoded.pixels)
    gray = rgb.convert("L")
    row |= _container(decoded, file, len(data))
    row |= _hashes(decoded.pixels, gray)
    row |= pixel_statistics(decoded.pixels, gray)
    return row if fitting is None else row | _deeper(decoded.pixels, rgb, gray, fitting)


def _deeper(pixels: Pixels, rgb: Image.Image, gray: Image.Image, fitting: Fitting) -> Row:
    """`SAMPLE_COLUMNS`: colour moments of the fitted image, spectrum and resize, JPEG history."""
    fitted = (
        rgb if rgb.size == (fitting.size,) * 2 else Image.fromarray(fit(pixels, fitting.mode, fitting.size))
    )
    counts = np.array(fitted.histogram(), dtype=np.float64).reshape(3, 256) / fitting.size**2
    found = spectrum.measure(np.asarray(gray), fitting.mode, fitting.size)
    return {
        "mean": (counts @ _LEVELS).tolist(),
        "square": (counts @ _LEVELS**2).tolist(),
        "high_frequency": found.fine_share,
        "spectral_slope": found.slope,
        "lost": found.lost,
        "jpeg_trace": jpeg.trace(pixels),
    }


_LEVELS = np.arange(256) / 255.0


def _container(decoded: Decoded, file: str, n_bytes: int) -> Row:
    return {
        "format": decoded.format,
        "mode": decoded.mode,
        "width": decoded.width,
        "height": decoded.height,
        "frames": decoded.frames,
        "orientation": decoded.orientation,
        "has_exif": decoded.has_exif,
        "software": decoded.software,
        "camera": decoded.camera,
        "has_alpha": decoded.has_alpha,
        "jpeg_quality": jpeg.quality(decoded.quantization),
        "jpeg_tables": jpeg.tables_id(decoded.quantization),
        "subsampling": decoded.subsampling,
        "wrong_suffix": name_disagrees(file, decoded.format),
        "bytes_per_pixel": n_bytes / (decoded.width * decoded.height),
    }


def _hashes(pixels: Pixels, gray: Image.Image) -> Row:
    """`pixel_hash` of the exact pixels; thumbnails, from which 256-bit hashes (of the flip too) are taken."""
    width, height = gray.size
    top, left = height // 16, width // 16  # the central 7/8, as in CenterCrop(224) of 256
    digest = hashlib.sha1(np.ascontiguousarray(pixels).data, usedforsecurity=False)
    digest.update(str(pixels.shape).encode())
    return {
        "pixel_hash": digest.hexdigest(),
        "thumbnail": hashing.small(gray).tobytes(),
        "centre_thumbnail": hashing.small(gray, (left, top, width - left, height - top)).tobytes(),
    }


def pixel_statistics(pixels: Pixels, gray: Image.Image | None = None) -> Row:
    """Statistics of the central window of an image (`gray`: the same in 8-bit gray), in units of 0..1 gray.

    `sharpness`: natural logarithm of the variance of the Laplacian of 0..255 gray, whose rounding alone gives
    0.5. `colourfulness`: Hasler and Suesstrunk (2003), of 0..255 values. `entropy`: bits of the gray histogram.
    """
    height, width = pixels.shape[:2]
    top, left = max(0, height - WINDOW) // 2, max(0, width - WINDOW) // 2
    window = pixels[top : top + WINDOW, left : left + WINDOW]
    whole = Image.fromarray(pixels).convert("L") if gray is None else gray
    shown = whole.crop((left, top, left + window.shape[1], top + window.shape[0]))
    share = np.array(shown.histogram()) / (window.shape[0] * window.shape[1])
    used = share[share > 0]
    brightness = float(share @ _LEVELS)
    return {
        "brightness": brightness,
        "contrast": float(np.sqrt(share @ (_LEVELS - brightness) ** 2)),
        "sharpness": float(np.log(_laplacian_variance(np.asarray(shown)) + 1e-3)),
        "entropy": float(-(used * np.log2(used)).sum()),
        "gray_tail": gray_tail(pixels),
        **_colour(window),
    }


def _colour(window: Pixels) -> Row:
    red, green, blue = window[::2, ::2].transpose(2, 0, 1).astype(np.float32, order="C").reshape(3, -1)
    red_green, yellow_blue = red - green, 0.5 * (red + green) - blue
    means = float(red_green.mean()), float(yellow_blue.mean())
    squares = (float(x @ x) / x.size for x in (red_green, yellow_blue))
    spread = np.sqrt(sum(max(0.0, s - m * m) for s, m in zip(squares, means, strict=True)))
    gray = max(np.abs(red_green).max(), np.abs(green - blue).max()) <= 2
    if gray:  # so far: now every pixel
        deep = window.astype(np.int16)
        gray = np.abs(deep[..., 1:] - deep[..., :2]).max() <= 2
    return {
        "colourfulness": float(spread + 0.3 * np.hypot(*means)),
        "grayscale": bool(gray),
    }


def _laplacian_variance(gray: npt.NDArray[np.uint8]) -> float:
    if min(gray.shape) < 3:
        return 0.0
    levels = gray.astype(np.int16)
    rows = levels[1:-1:2]
    laplacian = levels[:-2:2, 1:-1] + levels[2::2, 1:-1][: len(rows)]
    laplacian += rows[:, :-2]
    laplacian += rows[:, 2:]
    laplacian -= rows[:, 1:-1] << 2
    values = laplacian.astype(np.float32).ravel()
    return max(0.0, float(values @ values) / values.size - float(values.mean()) ** 2)


def gray_tail(pixels: Pixels) -> float:
    """Share of rows at the bottom that are the plain middle gray a forgiving decoder puts for missing data.

    A picture saved again after such a decoding can be read; only its lower part is gone.
    """
    if not _middle_gray(pixels[-1:])[0]:
        return 0.0
    differing = np.flatnonzero(~_middle_gray(pixels))
    tail = len(pixels) - 1 - int(differing[-1]) if len(differing) else 0
    return tail / len(pixels)


def _middle_gray(pixels: Pixels) -> npt.NDArray[np.bool_]:
    rows: npt.NDArray[np.bool_] = np.all((pixels >= 126) & (pixels <= 130), axis=(1, 2))
    return rows


def _read(cache: Path, columns: Sequence[str], version: str) -> pd.DataFrame:
    empty = pd.DataFrame(columns=list(columns))
    if not cache.is_file():
        return empty
    try:
        table = pd.read_parquet(cache)
        if (table["version"] != version).any():
            return empty
        return table.set_index("identity")[list(columns)].loc[lambda t: ~t.index.duplicated()]
    except Exception:  # whatever a damaged file makes pyarrow raise: measure again
        return empty
