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
from tqdm import tqdm

from diag_lib.audit import jpeg, spectrum
from diag_lib.images import hashing
from diag_lib.images.decode import Decoded, DecodeError, Pixels, decode_bytes, name_disagrees, read_bytes
from diag_lib.images.readability import identities, write_parquet
from diag_lib.images.store import parallel
from diag_lib.images.views import fit

SCAN_VERSION = 1
SAMPLE = 2000
"""Images (half of each class as far as possible) that get the measures that cost more than decoding."""

WINDOW = 256
"""Pixel statistics look at the central WINDOW x WINDOW native pixels."""

IN_PROCESS = 1500
"""Fewer files than this are not worth starting processes for."""

CHUNK = 64
COLUMNS = (
    "reason", "file_hash", "pixel_hash", "thumbnail", "centre_thumbnail", "format", "mode", "width", "height",
    "frames", "orientation", "has_exif", "software", "has_alpha", "jpeg_quality", "subsampling", "wrong_suffix",
    "bytes_per_pixel", "brightness", "contrast", "sharpness", "colourfulness", "entropy", "grayscale", "gray_tail",
)  # fmt: skip
SAMPLE_COLUMNS = ("mean", "square", "high_frequency", "lost", "jpeg_trace")

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
    """At most `size` rows, drawn evenly from every (split, label), train before val before test."""
    groups = [rows for _, rows in frame.groupby(["split", "label"], sort=True)]
    each = max(1, size // max(1, len(groups)))
    rng = np.random.default_rng([seed, 0xA0D17])
    chosen = [np.sort(rng.permutation(len(rows))[:each]) for rows in groups]
    return pd.concat([rows.iloc[index] for rows, index in zip(groups, chosen, strict=True)]).reset_index(
        drop=True
    )


def scan_sample(
    rows: pd.DataFrame, cache: Path, mode: str, size: int, *, workers: int, progress: bool
) -> pd.DataFrame:
    """`rows` with `SAMPLE_COLUMNS` added: colour moments of the fitted image, spectrum, JPEG history."""
    version, title = f"{SCAN_VERSION} {mode} {size}", "Measuring a sample" * progress
    return _incremental(rows, cache, SAMPLE_COLUMNS, version, measure_more, (mode, size), workers, title)


def over_files(
    work: Callable[..., Row], files: Sequence[str], workers: int, title: str, *options: Any
) -> list[Row]:
    """`[work(file, *options) for file in files]`, by processes when there are many."""
    if len(files) < IN_PROCESS or workers <= 1:
        shown = tqdm(files, desc=title, unit="image", disable=not title, leave=False)
        return parallel(lambda file: work(file, *options), shown, workers)
    from joblib import Parallel, delayed

    chunks = [list(files[start : start + CHUNK]) for start in range(0, len(files), CHUNK)]
    results = Parallel(n_jobs=workers, return_as="generator")(
        delayed(_chunk)(work, chunk, options) for chunk in chunks
    )
    shown = tqdm(results, desc=title, total=len(chunks), unit="chunk", disable=not title, leave=False)
    return [row for rows in shown for row in rows]


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
    return (
        row
        | _container(decoded, file, len(data))
        | _hashes(decoded.pixels)
        | pixel_statistics(decoded.pixels)
    )


def measure_more(file: str, mode: str, size: int) -> Row:
    """`SAMPLE_COLUMNS` of one file (NaN when it cannot be decoded any more)."""
    try:
        decoded = decode_bytes(read_bytes(file))
    except DecodeError:
        return dict.fromkeys(SAMPLE_COLUMNS, np.nan) | {"mean": [np.nan] * 3, "square": [np.nan] * 3}
    fitted = fit(decoded.pixels, mode, size).reshape(-1, 3) / 255.0
    high, lost = spectrum.energies(decoded.pixels, mode, size)
    return {
        "mean": fitted.mean(axis=0).tolist(),
        "square": (fitted**2).mean(axis=0).tolist(),
        "high_frequency": high,
        "lost": lost,
        "jpeg_trace": jpeg.trace(decoded.pixels),
    }


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
        "has_alpha": decoded.has_alpha,
        "jpeg_quality": jpeg.quality(decoded.quantization),
        "subsampling": decoded.subsampling,
        "wrong_suffix": name_disagrees(file, decoded.format),
        "bytes_per_pixel": n_bytes / (decoded.width * decoded.height),
    }


def _hashes(pixels: Pixels) -> Row:
    height, width = pixels.shape[:2]
    top, left = height // 16, width // 16  # the central 7/8, as in CenterCrop(224) of 256
    centre = pixels[top : height - top, left : width - left]
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
    digest.update(str(pixels.shape).encode())
    return {
        "pixel_hash": digest.hexdigest(),
        "thumbnail": hashing.thumbnail(pixels).tobytes(),
        "centre_thumbnail": hashing.thumbnail(centre).tobytes(),
    }


def pixel_statistics(pixels: Pixels) -> Row:
    """Statistics of the central window of an image, in units of 0..1 gray unless stated.

    `sharpness`: natural logarithm of the variance of the Laplacian of 0..255 gray. `colourfulness`: Hasler and
    Suesstrunk (2003), of 0..255 values. `entropy`: bits of the gray histogram.
    """
    height, width = pixels.shape[:2]
    top, left = max(0, height - WINDOW) // 2, max(0, width - WINDOW) // 2
    rgb = pixels[top : top + WINDOW, left : left + WINDOW].astype(np.float32)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    gray = 0.299 * red + 0.587 * green + 0.114 * blue
    red_green, yellow_blue = red - green, 0.5 * (red + green) - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    histogram = np.bincount(np.rint(gray).astype(np.int64).ravel(), minlength=256) / gray.size
    used = histogram[histogram > 0]
    return {
        "brightness": float(gray.mean() / 255),
        "contrast": float(gray.std() / 255),
        "sharpness": float(np.log(_laplacian_variance(gray) + 1e-3)),
        "colourfulness": float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean())),
        "entropy": float(-(used * np.log2(used)).sum()),
        "grayscale": bool(max(np.abs(red_green).max(), np.abs(green - blue).max()) <= 2),
        "gray_tail": gray_tail(pixels),
    }


def _laplacian_variance(gray: npt.NDArray[np.float32]) -> float:
    if min(gray.shape) < 3:
        return 0.0
    inner = gray[1:-1, 1:-1]
    laplacian = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * inner
    return float(laplacian.var())


def gray_tail(pixels: Pixels) -> float:
    """Share of rows at the bottom that are the plain middle gray a forgiving decoder puts for missing data.

    A picture saved again after such a decoding can be read; only its lower part is gone.
    """
    rows: npt.NDArray[np.bool_] = np.all((pixels >= 126) & (pixels <= 130), axis=(1, 2))
    differing = np.flatnonzero(~rows)
    tail = len(rows) - 1 - int(differing[-1]) if len(differing) else 0
    return tail / len(rows)


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
