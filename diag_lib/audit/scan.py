"""What can be measured on each file in one pass over its bytes?

Workers are given nothing but paths, so that joblib's processes (or a dask cluster, through
`joblib.parallel_config`) run the same code. Files measured before are not opened again: results are kept by
file identity (path, size, modification time).
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from tqdm import tqdm

from diag_lib.audit import jpeg, spectrum
from diag_lib.images import hashing
from diag_lib.images.decode import Decoded, DecodeError, Pixels, decode_bytes, name_disagrees, read_bytes
from diag_lib.images.readability import identities, write_parquet
from diag_lib.images.store import parallel
from diag_lib.images.views import fit, path_keys

SCAN_VERSION = 2
SAMPLE = 2000
"""Images (evenly from every split and class) that get the measures that cost more than decoding."""

WINDOW = 256
"""Pixel statistics look at the central WINDOW x WINDOW native pixels, colour at every second one each way,
sharpness at every second row: a quarter of the cost, and no difference that matters to a distribution."""

IN_PROCESS = 1500
"""Fewer files than this are not worth starting processes for."""

CHUNK = 64
COLUMNS = (
    "reason", "file_hash", "pixel_hash", "thumbnail", "centre_thumbnail", "format", "mode", "width", "height",
    "frames", "orientation", "has_exif", "software", "camera", "has_alpha", "jpeg_quality", "jpeg_tables",
    "subsampling", "wrong_suffix",
    "bytes_per_pixel", "brightness", "contrast", "sharpness", "colourfulness", "entropy", "grayscale", "gray_tail",
)  # fmt: skip
SAMPLE_COLUMNS = ("mean", "square", "high_frequency", "spectral_slope", "lost", "jpeg_trace")

Row = dict[str, Any]


def scan_all(rows: pd.DataFrame, cache: Path, *, workers: int, progress: bool) -> pd.DataFrame:
    """`rows` (columns of `ImageTable.frame`) with `COLUMNS` added; `cache` is read and rewritten."""
    return _incremental(
        rows, cache, COLUMNS, str(SCAN_VERSION), measure, (), workers, "Reading images" * progress
    )


def _incremental(
    rows: pd.DataFrame,
    cache: Path,
    columns: Sequence[str],
    version: str,
    work: Callable[..., Row],
    options: tuple[Any, ...],
    workers: int,
    title: str,
) -> pd.DataFrame:
    """`rows` with `columns` added: from the cache of the same version, else by `work(file, *options)`."""
    names = identities(rows)
    known = _read(cache, columns, version)
    todo = [i for i, name in enumerate(names) if name not in known.index]
    if todo:
        files = rows["file"].tolist()
        measured = over_files(work, [files[i] for i in todo], workers, title, *options)
        new = pd.DataFrame(measured, columns=list(columns), index=[names[i] for i in todo])
        known = new if known.empty else pd.concat([known, new])
        known = known[~known.index.duplicated(keep="last")]
    found = known.loc[names].reset_index(names="identity")
    left = rows.drop(columns=["file", "identity"], errors="ignore").reset_index(drop=True)
    table = pd.concat([left, found], axis=1)
    if todo or len(table) != len(known):
        write_parquet(table.assign(version=version), cache)
    # `object`, not pandas' own strings: those cannot hold the undecodable bytes of a file name.
    return table.assign(file=pd.Series(rows["file"].tolist(), index=table.index, dtype="object"))


def sample_of(frame: pd.DataFrame, seed: int, size: int = SAMPLE) -> pd.DataFrame:
    """At most `size` rows, drawn evenly from every (split, label), train before val before test.

    A row is drawn by a hash of (seed, path), so that new files displace few of those drawn before. What a small
    group leaves goes to the larger ones.
    """
    keys = path_keys(frame["path"].tolist(), seed)
    group = pd.Series(keys).groupby([frame["split"].to_numpy(), frame["label"].to_numpy()])
    counts = np.asarray(group.size(), dtype=np.int64)
    drawn = np.asarray(group.rank(method="first")) <= _even_share(counts, size)
    return frame[drawn].reset_index(drop=True)


def _even_share(counts: npt.NDArray[np.int64], size: int) -> int:
    """The largest number of rows a group that keeps the sum over the groups at `size` or below, at least 1."""
    low, high = 1, max(1, int(counts.max(initial=1)))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() <= size else (low, middle - 1)
    return low


def scan_sample(
    rows: pd.DataFrame, cache: Path, mode: str, size: int, *, workers: int, progress: bool
) -> pd.DataFrame:
    """`rows` with `SAMPLE_COLUMNS` added: colour moments of the fitted image, spectrum, JPEG history."""
    version, title = f"{SCAN_VERSION} {mode} {size}", "Measuring a sample" * progress
    return _incremental(rows, cache, SAMPLE_COLUMNS, version, measure_more, (mode, size), workers, title)


def over_files(
    work: Callable[..., Row], files: Sequence[str], workers: int, title: str, *options: Any
) -> list[Row]:
    """`[work(file, *options) for file in files]`: by threads when they are few, else by joblib's processes.

    Inside `joblib.parallel_config("dask")` (or any backend that was chosen there) that backend gets the files
    however few, and decides how many work at once; it must see the same file system.
    """
    chosen = _chosen_jobs()
    if chosen is None and (len(files) < IN_PROCESS or workers <= 1):
        shown = tqdm(files, desc=title, unit="image", disable=not title, leave=False)
        return parallel(lambda file: work(file, *options), shown, workers)
    from joblib import Parallel, delayed

    chunks = [list(files[start : start + CHUNK]) for start in range(0, len(files), CHUNK)]
    results = Parallel(n_jobs=workers if chosen is None else chosen, return_as="generator")(
        delayed(_chunk)(work, chunk, options) for chunk in chunks
    )
    shown = tqdm(results, desc=title, total=len(chunks), unit="chunk", disable=not title, leave=False)
    return [row for rows in shown for row in rows]


def _chosen_jobs() -> int | None:
    """How many jobs the caller's own `joblib.parallel_config` asks for (-1: all); None where none was chosen."""
    from joblib.parallel import BACKENDS, DEFAULT_BACKEND, get_active_backend

    backend, jobs = get_active_backend()
    if isinstance(backend, BACKENDS[DEFAULT_BACKEND]):
        return None
    return -1 if jobs is None else int(jobs)


def _chunk(work: Callable[..., Row], files: Sequence[str], options: tuple[Any, ...]) -> list[Row]:
    return [work(file, *options) for file in files]


def measure(file: str) -> Row:
    """`COLUMNS` of one file; what needs pixels is None when it cannot be decoded."""
    row: Row = dict.fromkeys(COLUMNS)
    row |= {"reason": "", "file_hash": ""}
    try:
        data = read_bytes(file)
        row["file_hash"] = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        decoded = decode_bytes(data)
    except DecodeError as error:
        return row | {"reason": error.reason}
    gray = Image.fromarray(decoded.pixels).convert("L")
    row |= _container(decoded, file, len(data))
    row |= _hashes(decoded.pixels, gray)
    return row | pixel_statistics(decoded.pixels, gray)


def measure_more(file: str, mode: str, size: int) -> Row:
    """`SAMPLE_COLUMNS` of one file (NaN when it cannot be decoded any more)."""
    try:
        decoded = decode_bytes(read_bytes(file))
    except DecodeError:
        return dict.fromkeys(SAMPLE_COLUMNS, np.nan) | {"mean": [np.nan] * 3, "square": [np.nan] * 3}
    fitted = Image.fromarray(fit(decoded.pixels, mode, size))
    counts = np.array(fitted.histogram(), dtype=np.float64).reshape(3, 256) / (size * size)
    found = spectrum.measure(np.asarray(Image.fromarray(decoded.pixels).convert("L")), mode, size)
    return {
        "mean": (counts @ _LEVELS).tolist(),
        "square": (counts @ _LEVELS**2).tolist(),
        "high_frequency": found.fine_share,
        "spectral_slope": found.slope,
        "lost": found.lost,
        "jpeg_trace": jpeg.trace(decoded.pixels),
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
