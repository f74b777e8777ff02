"""How much fine detail does an image hold, and how much of it does the configured resize destroy?"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import rfft2

WINDOW = 256
FINE = 0.25
"""Cycles per pixel from which detail counts as fine: the upper half of each axis' band."""

SLOPE_FROM = 0.02
"""Cycles per pixel above which the slope is fitted: below lies the composition of the picture."""

Gray = npt.NDArray[np.uint8]
Power = npt.NDArray[np.float32]
Waves = npt.NDArray[np.complex64]


@dataclass(frozen=True)
class Spectrum:
    """`fine_share`: share of spectral energy that is fine, 0..1. `slope`: of log power over log frequency
    (natural images about -2 to -3). `lost`: share of the fine energy that the resize destroys, 0..1.
    """

    fine_share: float
    slope: float
    lost: float


def measure(gray: Gray, mode: str, size: int) -> Spectrum:
    """The spectrum of the central native window of 8-bit gray (H, W), and what fitting to `size` does to it."""
    waves = _waves(gray)
    power = waves.real**2 + waves.imag**2
    fine, frequency, ring, rings = _plane(*_window_of(gray))
    counted = _both_halves(power, _window_of(gray)[1])
    total = float(counted.sum())
    if total <= 0:
        return Spectrum(0.0, 0.0, 0.0)
    mean = np.bincount(ring, power.ravel(), rings) / np.maximum(np.bincount(ring, minlength=rings), 1)
    used = (frequency >= SLOPE_FROM) & (mean > 0)
    slope = float(np.polyfit(np.log(frequency[used]), np.log(mean[used]), 1)[0]) if used.sum() > 2 else 0.0
    return Spectrum(float(counted[fine].sum()) / total, slope, _lost(gray, waves, mode, size))


def _window_of(gray: Gray) -> tuple[int, int]:
    """Height and width of the window that is looked at."""
    return min(WINDOW, gray.shape[0]), min(WINDOW, gray.shape[1])


def _lost(gray: Gray, waves: Waves, mode: str, size: int) -> float:
    """Simulated: the image is fitted, enlarged to its own size again (Lanczos), and its fine waves compared.

    Kept is what comes back in phase with the original: aliasing fills the same frequencies with something else.
    The resize is that of `views.fit`; `crop`, and a resize that only enlarges, destroy nothing.
    """
    if mode == "shortest" and gray.shape[0] != gray.shape[1]:
        side = min(gray.shape)
        top, left = (gray.shape[0] - side) // 2, (gray.shape[1] - side) // 2
        seen = np.ascontiguousarray(gray[top : top + side, left : left + side])
        return _lost(seen, _waves(seen), "resize", size)
    if mode == "crop" or max(gray.shape) <= size:
        return 0.0
    fitted = Image.fromarray(gray).resize((size, size), Image.Resampling.BILINEAR)
    back = _waves(np.asarray(fitted.resize(gray.shape[::-1], Image.Resampling.LANCZOS)))
    fine, _, _, _ = _plane(*_window_of(gray))
    before, after = waves[fine], back[fine]
    power = before.real**2 + before.imag**2
    total = float(power.sum())
    if total <= 0:
        return 0.0
    common = before.real * after.real + before.imag * after.imag
    gain = np.clip(common / np.maximum(power, np.float32(1e-12)), 0, 1)
    return float(np.clip(1 - float((gain**2 * power).sum()) / total, 0.0, 1.0))


def _waves(gray: Gray) -> Waves:
    """Fourier coefficients (h, w // 2 + 1) of the central window (mean removed, Hann taper)."""
    side_y, side_x = _window_of(gray)
    top, left = (gray.shape[0] - side_y) // 2, (gray.shape[1] - side_x) // 2
    window = gray[top : top + side_y, left : left + side_x].astype(np.float32)
    waves: Waves = rfft2((window - window.mean()) * _taper(side_y, side_x))
    return waves


def _both_halves(power: Power, width: int) -> Power:
    """Power with the half of the plane counted that `rfft2` leaves out."""
    counted = power.copy()
    counted[:, 1 : (width + 1) // 2] *= 2
    return counted


@lru_cache(maxsize=32)
def _taper(height: int, width: int) -> npt.NDArray[np.float32]:
    taper = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    return taper.astype(np.float32)


@lru_cache(maxsize=32)
def _plane(
    height: int, width: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], npt.NDArray[np.int64], int]:
    """Which places are fine; the rings' frequencies; the ring of each place (flat); how many rings."""
    fy, fx = np.abs(np.fft.fftfreq(height))[:, None], np.fft.rfftfreq(width)[None, :]
    radius = np.hypot(fy, fx)
    rings = max(2, min(height, width) // 4)
    ring = np.minimum((radius * 2 * rings).astype(np.int64), rings - 1).ravel()
    ring = np.where(radius.ravel() > 0.5, rings, ring)  # the corners, beyond the last ring
    frequency = np.append((np.arange(rings) + 0.5) / (2 * rings), 0.0)
    return np.maximum(fy, fx) >= FINE, frequency, ring, rings + 1
