"""How much fine detail does an image hold, and how much of it does the configured resize destroy?"""

import numpy as np

from diag_lib.images.decode import Pixels

WINDOW = 256
FINE = 0.25
"""Cycles per pixel from which detail counts as fine: the upper half of each axis' band."""


def energies(pixels: Pixels, mode: str, size: int) -> tuple[float, float]:
    """(share of spectral energy that is fine, share of the fine energy that the resize removes), 0..1.

    From the power spectrum of the central native window (Hann, mean removed). `crop` removes none; the other
    modes remove what lies beyond half the new sampling rate along either axis.
    """
    height, width = pixels.shape[:2]
    side_y, side_x = min(WINDOW, height), min(WINDOW, width)
    top, left = (height - side_y) // 2, (width - side_x) // 2
    gray = pixels[top : top + side_y, left : left + side_x].astype(np.float64).mean(axis=2)
    taper = np.outer(np.hanning(side_y + 2)[1:-1], np.hanning(side_x + 2)[1:-1])
    power = np.abs(np.fft.rfft2((gray - gray.mean()) * taper)) ** 2
    power[:, 1:-1] *= 2  # the half of the plane that rfft2 leaves out
    fy, fx = np.abs(np.fft.fftfreq(side_y))[:, None], np.fft.rfftfreq(side_x)[None, :]
    fine = np.maximum(fy, fx) >= FINE
    total, fine_energy = float(power.sum()), float(power[fine].sum())
    if total <= 0 or fine_energy <= 0:
        return 0.0, 0.0
    scale_y, scale_x = _scales(height, width, mode, size)
    gone = fine & ((fy > 0.5 * scale_y) | (fx > 0.5 * scale_x))
    return fine_energy / total, float(power[gone].sum()) / fine_energy


def _scales(height: int, width: int, mode: str, size: int) -> tuple[float, float]:
    if mode == "crop":
        return 1.0, 1.0
    if mode == "shortest":
        return min(1.0, size / min(height, width)), min(1.0, size / min(height, width))
    return min(1.0, size / height), min(1.0, size / width)
