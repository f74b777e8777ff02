"""Can every file be decoded completely, and has that been found out already?

The cache is one parquet file: a hash of each file's identity (path, size, modification time), the reason why
it cannot be read ("" when it can) and a thumbnail. A damaged cache is made anew; a full disk costs only time.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from diag_lib.files import whole
from diag_lib.images import hashing
from diag_lib.images.decode import MAX_PIXELS, DecodeError, Pixels, decode

CACHE_FILE = f"images-1-{MAX_PIXELS}.parquet"
_BLANK = bytes(hashing.THUMBNAIL_SHAPE[0] * hashing.THUMBNAIL_SHAPE[1])


class Readability:
    """What is known about files, by identity; kept in `folder` (None: in memory only)."""

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / CACHE_FILE
        self._known: dict[str, tuple[str, bytes]] = _read(self._file)

    def check(self, rows: pd.DataFrame, keep: Callable[[int, Pixels], None], workers: int) -> int:
        """Decode the files of `rows` (columns file, size, mtime_ns) that are not known yet.

        `keep(row, pixels)` receives every image that is decoded. Returns how many were.
        """
        names = identities(rows)
        unknown = [row for row, name in enumerate(names) if name not in self._known]
        files = rows["file"].tolist()

        def look(row: int) -> tuple[str, bytes]:
            try:
                pixels = decode(files[row])
            except DecodeError as error:
                return error.reason, _BLANK
            keep(row, pixels)
            return "", hashing.thumbnail(pixels).tobytes()

        with ThreadPoolExecutor(max(1, workers)) as pool:
            for row, found in zip(unknown, pool.map(look, unknown), strict=True):
                self._known[names[row]] = found
        if unknown:
            self._write()
        return len(unknown)

    def reasons(self, rows: pd.DataFrame) -> npt.NDArray[Any]:
        """Why each file cannot be read, "" when it can; object (n,)."""
        return np.array([self._known[name][0] for name in identities(rows)], dtype=object)

    def thumbnails(self, rows: pd.DataFrame) -> hashing.Thumbnails:
        """Gray thumbnails uint8 (n, 16, 17)."""
        joined = b"".join(self._known[name][1] for name in identities(rows))
        return np.frombuffer(joined, np.uint8).reshape(-1, *hashing.THUMBNAIL_SHAPE)

    def _write(self) -> None:
        if self._file is None:
            return
        merged = {**_read(self._file), **self._known}  # another process may have written meanwhile
        frame = pd.DataFrame(
            {
                "identity": list(merged),
                "reason": [reason for reason, _ in merged.values()],
                "thumbnail": [thumbnail for _, thumbnail in merged.values()],
            }
        )
        with contextlib.suppress(OSError):
            write_parquet(frame, self._file)


def identities(rows: pd.DataFrame) -> list[str]:
    """Hashes of (path, size, modification time) of each row."""
    columns = zip(rows["file"], rows["size"], rows["mtime_ns"], strict=True)
    return [
        hashlib.blake2b(os.fsencode(file) + f"\0{size}\0{mtime}".encode(), digest_size=16).hexdigest()
        for file, size, mtime in columns
    ]


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write a table atomically (temporary file, then rename). Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        frame.to_parquet(partial, index=False)


def _read(file: Path | None) -> dict[str, tuple[str, bytes]]:
    if file is None or not file.is_file():
        return {}
    try:
        frame = pd.read_parquet(file)
        rows = zip(frame["identity"], frame["reason"], frame["thumbnail"], strict=True)
        return {str(name): (str(why), bytes(small)) for name, why, small in rows if len(small) == len(_BLANK)}
    except Exception:  # whatever a damaged file makes pyarrow raise: it is only a cache
        return {}
