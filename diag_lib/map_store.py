"""Which patch maps are already computed, and can each of them still be trusted?

A store is a folder of append-only files: raw maps (`maps.f16`, `maps.f32`) and an index whose records name a
map, say where it lies and carry a checksum. A map counts only when its record is there, which is written
after the map was flushed: a killed run leaves unused bytes, never a wrong map.
"""

import contextlib
import errno
import json
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from diag_lib.files import whole

SCHEMA = "diag/maps/1"
FP32_ABOVE = 1024.0  # beyond it fp16 steps are >= 1 logit, and beyond 65504 fp16 is infinite
MISSING, HALF, SINGLE, MEMORY = 0, 1, 2, 3

_FILES: dict[int, tuple[str, "np.dtype[Any]"]] = {
    HALF: ("maps.f16", np.dtype("<f2")),
    SINGLE: ("maps.f32", np.dtype("<f4")),
}
_RECORD = np.dtype([("key", "V16"), ("kind", "<u4"), ("crc", "<u4"), ("row", "<u8"), ("check", "<u4")])
_CHECKED = _RECORD.itemsize - 4

Maps = npt.NDArray[np.float32]


def round_map(values: Maps) -> Maps:
    """The map as the store would give it back: rounded to fp16, unless some |x| > 1024 or is not finite."""
    if needs_single(values):
        return values.astype(np.float32)
    return values.astype(np.float16).astype(np.float32)


def needs_single(values: Maps) -> bool:
    """Whether the map must be kept in fp32."""
    return not bool(np.all(np.abs(values) <= FP32_ABOVE))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; where the file system has no locks, go on without."""
    with path.open("a+b") as file:
        with contextlib.suppress(OSError):
            _lock(file)
        yield


def _lock(file: IO[bytes]) -> None:
    if os.name == "nt":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX)


class MapStore:
    """Maps of one shape, found by 16-byte keys; in memory only when the folder cannot be written.

    Parameters
    ----------
    folder : made when absent.
    description : what every map of the store depends on; must hold `shape`: [h, w]. It salts the checksums,
        so that records of another store are not taken for this one's.
    """

    def __init__(self, folder: Path, description: Mapping[str, Any]) -> None:
        self.folder = folder
        self.shape: tuple[int, int] = tuple(description["shape"])
        self._description = {"schema": SCHEMA, **description}
        self._salt = zlib.crc32(json.dumps(self._description, sort_keys=True).encode())
        self._memory: list[Maps] = []
        self._records: dict[bytes, tuple[int, int, int]] = {}
        self._mapped: dict[int, np.memmap[Any, Any]] = {}
        self._read_bytes = 0
        self.writable = self._open()
        self.refresh()

    def _open(self) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / "lock"):
                text = json.dumps(self._description, indent=1)
                if _read_text(self.folder / "meta.json") != text:
                    _write_whole(self.folder / "meta.json", text)
        except OSError as error:
            self._give_up(error)
            return False
        return True

    def _give_up(self, error: OSError) -> None:
        warnings.warn(
            f"the teacher cache cannot be written ({error.strerror or error}); the maps stay in memory and "
            "the next run computes them again: free some space, or set runtime.cache_dir to another disk",
            stacklevel=2,
        )
        self.writable = False

    def refresh(self) -> None:
        """Read the records that were appended since the last look, by this run or another."""
        try:
            with (self.folder / "index").open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._read_bytes:  # somebody emptied the folder under our feet
                    raise FileNotFoundError(errno.ENOENT, "the cache was deleted during the run")
                file.seek(self._read_bytes)
                raw = file.read()
        except OSError as error:
            if self._read_bytes and self.writable:
                self._give_up(error)
            return
        whole = len(raw) - len(raw) % _RECORD.itemsize
        for record in np.frombuffer(raw[:whole], _RECORD):
            head = record.tobytes()[:_CHECKED]
            if zlib.crc32(head, self._salt) == record["check"]:  # else torn, damaged or of another store
                self._records[head[:16]] = (int(record["kind"]), int(record["row"]), int(record["crc"]))
        self._read_bytes += whole
        self._mapped = {kind: mapped for kind in _FILES if (mapped := self._map_file(kind)) is not None}

    def _map_file(self, kind: int) -> "np.memmap[Any, Any] | None":
        name, dtype = _FILES[kind]
        row_bytes = dtype.itemsize * self.shape[0] * self.shape[1]
        try:
            rows = (self.folder / name).stat().st_size // row_bytes
            return np.memmap(self.folder / name, dtype, "r", shape=(rows, *self.shape)) if rows else None
        except OSError:
            return None

    def lookup(self, keys: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Where each key's map lies: (kind, row); kind MISSING where it is absent or its checksum fails."""
        kinds = np.zeros(len(keys), np.uint8)
        rows = np.zeros(len(keys), np.int64)
        for position, key in enumerate(keys):
            kind, row, crc = self._records.get(key, (MISSING, 0, 0))
            mapped = self._mapped.get(kind)
            if (
                mapped is not None
                and row < len(mapped)
                and zlib.crc32(mapped[row].tobytes(), zlib.crc32(key)) == crc
            ):
                kinds[position], rows[position] = kind, row
        return kinds, rows

    def append(
        self, keys: Sequence[bytes], maps: Maps
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Keep the maps (n, h, w), rounded by `round_map`; returns where they lie, as `lookup` does."""
        if self.writable:
            try:
                places = self._append_files(keys, maps)
                self.refresh()
                return places
            except OSError as error:
                self._give_up(error)
        first = len(self._memory)
        self._memory.extend(round_map(values) for values in maps)
        return np.full(len(keys), MEMORY, np.uint8), np.arange(first, first + len(keys), dtype=np.int64)

    def _append_files(
        self, keys: Sequence[bytes], maps: Maps
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        kinds = np.array([SINGLE if needs_single(values) else HALF for values in maps], np.uint8)
        rows = np.zeros(len(keys), np.int64)
        records = b""
        with locked(self.folder / "lock"):
            for kind, (name, dtype) in _FILES.items():
                chosen = np.flatnonzero(kinds == kind)
                blocks = [maps[position].astype(dtype).tobytes() for position in chosen]
                if not blocks:
                    continue
                first = _append_aligned(self.folder / name, b"".join(blocks), len(blocks[0]))
                rows[chosen] = first + np.arange(len(chosen))
                for position, block in zip(chosen, blocks, strict=True):
                    records += self._record(keys[int(position)], kind, int(rows[position]), block)
            _append_aligned(self.folder / "index", records, _RECORD.itemsize)
        return kinds, rows

    def _record(self, key: bytes, kind: int, row: int, block: bytes) -> bytes:
        record = np.zeros((), _RECORD)
        record["key"], record["kind"], record["row"] = np.void(key), kind, row
        record["crc"] = zlib.crc32(block, zlib.crc32(key))
        head = record.tobytes()[:_CHECKED]
        return head + zlib.crc32(head, self._salt).to_bytes(4, "little")

    def read(self, kinds: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> Maps:
        """The maps at those places, float32 (n, h, w)."""
        out = np.empty((len(kinds), *self.shape), np.float32)
        for kind, mapped in self._mapped.items():
            chosen = kinds == kind
            if chosen.any():
                out[chosen] = mapped[rows[chosen]]
        for position in np.flatnonzero(kinds == MEMORY):
            out[position] = self._memory[rows[position]]
        return out


def _append_aligned(path: Path, block: bytes, unit: int) -> int:
    """Append whole units after the last whole unit, flushed to disk; returns the index of the first."""
    path.touch()
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        # A torn record is overwritten (nobody took it for one), a torn map skipped (its row stays unused).
        first = end // unit if path.name == "index" else -(-end // unit)
        file.seek(first * unit)
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return first


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _write_whole(path: Path, text: str) -> None:
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
