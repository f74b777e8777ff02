"""Is a file still the one that was seen, whatever its name, size and dates say?

The answer is a hash of its bytes. Reading every file again in every run would cost as much as decoding them, so
the hashes are remembered under what the system says about a file; that includes the time of its last change of
any kind, which nobody can set back: files that are swapped, edited in place or given old dates are read again.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from diag_lib.images.readability import write_parquet

CACHE_FILE = "contents-1.parquet"
ABSENT = ""
_BLOCK = 1 << 20

_known: dict[str, str] = {}


def content_hashes(files: Sequence[str], folder: Path | None, workers: int = 1) -> list[str]:
    """BLAKE2b (32 hex digits) of each file's bytes, `ABSENT` for one that cannot be read.

    `folder` keeps the hashes for the next run (None: in this process only); a damaged or unwritable one costs
    only time.
    """
    from diag_lib.images.store import parallel

    signatures = [_signature(file) for file in files]
    if any(signature not in _known for signature in signatures):
        _known.update(_read(folder))
    unknown = [at for at, signature in enumerate(signatures) if signature and signature not in _known]
    if unknown:
        found = parallel(_digest, [files[at] for at in unknown], workers)
        _known.update({signatures[at]: digest for at, digest in zip(unknown, found, strict=True) if digest})
        _write(folder, {signatures[at] for at in unknown})
    return [_known.get(signature, ABSENT) for signature in signatures]


def _signature(file: str) -> str:
    """What a changed file does not keep: path, bytes, times of modification and of any change, place on disk."""
    try:
        status = Path(file).stat()
    except OSError:
        return ""
    parts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino)
    return hashlib.blake2b(os.fsencode(file) + repr(parts).encode(), digest_size=16).hexdigest()


def _digest(file: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with Path(file).open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    except OSError:
        return ABSENT
    return digest.hexdigest()


def _read(folder: Path | None) -> dict[str, str]:
    if folder is None or not (folder / CACHE_FILE).is_file():
        return {}
    try:
        frame = pd.read_parquet(folder / CACHE_FILE)
        return dict(zip(frame["signature"].astype(str), frame["content"].astype(str), strict=True))
    except Exception:  # whatever a damaged file makes pyarrow raise: it is only a cache
        return {}


def _write(folder: Path | None, signatures: set[str]) -> None:
    if folder is None:
        return
    merged = {**_read(folder), **{name: _known[name] for name in signatures if name in _known}}
    frame = pd.DataFrame({"signature": list(merged), "content": list(merged.values())})
    with contextlib.suppress(OSError):
        write_parquet(frame, folder / CACHE_FILE)
