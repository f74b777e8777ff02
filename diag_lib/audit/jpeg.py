"""At which quality was this JPEG saved, and does a lossless file hold a JPEG past?"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.fft import dct

from diag_lib.images.decode import Pixels

# The luminance table of the JPEG standard (ITU-T T.81, annex K), natural order.
_STANDARD = np.array(
    [
        16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
        14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
        49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
    ]
)  # fmt: skip
TRACE_FOUND = 0.25
"""A trace above this is a JPEG past (see `trace`)."""

_FREQUENCIES = [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (0, 3), (3, 0), (2, 2)]
_STEPS = np.arange(3, 33)
_SIDE = 256
_MIN_COUNT = 60
_BIN, _BINS = 0.2, 1280


def _scaled_tables() -> npt.NDArray[np.int64]:
    """The standard table at quality 1..100 as libjpeg scales it, int64 (100, 64)."""
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables: npt.NDArray[np.int64] = np.clip((_STANDARD[None] * scale[:, None] + 50) // 100, 1, 255)
    return tables


_SORTED_TABLES = np.sort(_scaled_tables(), axis=1)


def quality(tables: Mapping[int, Sequence[int]] | None) -> float:
    """The libjpeg quality (1..100) whose luminance table is nearest; NaN when the file is no JPEG."""
    if not tables or len(tables.get(0, ())) != 64:
        return float("nan")
    return _nearest_quality(tuple(sorted(tables[0])))  # sorted: whatever order the table was stored in


def tables_id(tables: Mapping[int, Sequence[int]] | None) -> str:
    """Eight hex digits that stand for all quantisation tables of a JPEG (encoders differ in them); "" if none."""
    if not tables:
        return ""
    return _tables_hash(tuple((key, tuple(values)) for key, values in sorted(tables.items())))


@lru_cache(maxsize=4096)
def _nearest_quality(luminance: tuple[int, ...]) -> float:
    distance = np.abs(_SORTED_TABLES - np.array(luminance)).sum(axis=1)
    return float(len(distance) - int(np.argmin(distance[::-1])))


@lru_cache(maxsize=4096)
def _tables_hash(tables: tuple[tuple[int, tuple[int, ...]], ...]) -> str:
    return hashlib.blake2b(repr(tables).encode(), digest_size=4).hexdigest()


def trace(pixels: Pixels) -> float:
    """How clearly the DCT coefficients of the 8 x 8 grid cluster at multiples of a step, -1..1.

    The largest periodicity over low frequencies and steps, minus the same on a grid shifted by four pixels,
    which no JPEG has quantised: the image is its own control. Sees steps of 3 and more (quality below about
    93); a crop that is not on the grid hides the past.
    """
    gray = pixels[:_SIDE, :_SIDE].astype(np.float32) @ _LUMA
    if min(gray.shape) < 36:
        return 0.0
    return _periodicity(gray) - _periodicity(gray[4:, 4:])


_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_WAVES = dct(np.eye(8), axis=0, norm="ortho")
_BASIS = np.stack([np.outer(_WAVES[u], _WAVES[v]).ravel() for u, v in _FREQUENCIES], 1).astype(np.float32)
"""The chosen DCT waves of an 8 x 8 block, float32 (64, 10): one product instead of whole transforms."""


def _periodicity(gray: npt.NDArray[np.float32]) -> float:
    rows, columns = gray.shape[0] // 8, gray.shape[1] // 8
    blocks = (
        gray[: rows * 8, : columns * 8].reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3).reshape(-1, 64)
    )
    place = (np.abs(blocks @ _BASIS) / np.float32(_BIN)).astype(np.int64)
    counted = np.where(place < _BINS, place, _BINS) + (_BINS + 1) * np.arange(place.shape[1])
    counts = np.bincount(counted.ravel(), minlength=(_BINS + 1) * place.shape[1])
    histograms = counts.reshape(-1, _BINS + 1)[:, :_BINS].T.astype(np.float32)
    chosen = _BEYOND @ histograms
    enough = chosen >= _MIN_COUNT
    return max(0.0, float(((_COSINE @ histograms)[enough] / chosen[enough]).max(initial=0.0)))


def _cosines() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """For each step and histogram bin: is the bin beyond the cluster at zero, and its cosine if so."""
    centre = (np.arange(_BINS) + 0.5) * _BIN
    beyond = (centre[None] >= 0.75 * _STEPS[:, None]).astype(np.float32)  # any smooth image clusters at zero
    return beyond, (beyond * np.cos(2 * np.pi * centre[None] / _STEPS[:, None])).astype(np.float32)


_BEYOND, _COSINE = _cosines()
