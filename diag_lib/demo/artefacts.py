"""What marks a fake of the demo set? Small imitations of what generators leave in the high frequencies."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Artefact = Callable[[npt.NDArray[Any], np.random.Generator, float], Floats]


def half_resolution(crop: Floats) -> Floats:
    """(H, W, C) -> (H/2, W/2, C) by averaging 2x2 blocks."""
    height, width, channels = crop.shape
    blocks = crop.reshape(height // 2, 2, width // 2, 2, channels)
    return np.asarray(blocks.mean((1, 3)))


def upsample(small: Floats) -> Floats:
    """Bilinear doubling (h, w, C) -> (2h, 2w, C), half-pixel centres, edges repeated."""
    for axis in (0, 1):
        before = np.concatenate([np.take(small, [0], axis), small], axis)
        after = np.concatenate([small, np.take(small, [-1], axis)], axis)
        n = small.shape[axis]
        even = 0.25 * np.take(before, range(n), axis) + 0.75 * small
        odd = 0.75 * small + 0.25 * np.take(after, range(1, n + 1), axis)
        shape = list(small.shape)
        shape[axis] = 2 * n
        small = np.stack([even, odd], axis + 1).reshape(shape)
    return small


def decoder(crop: npt.NDArray[Any], rng: np.random.Generator, strength: float) -> Floats:
    """Pass a crop through a decoder-like resampling.

    The half-resolution image is up-sampled bilinearly, and the lost high frequencies are synthesised anew
    from half-resolution noise with the local energy of the original ones, so that sharpness and brightness
    stay what they were and only the fine statistics betray the fake.

    crop: (H, W, 3) in 0..255, even sides; strength: 0 (untouched) to 1 (all high frequencies replaced).
    """
    pixels = crop.astype(np.float64)
    smooth = upsample(half_resolution(pixels))
    residual = pixels - smooth
    energy = np.sqrt(gaussian_filter((residual**2).mean(2), 1.5, mode="nearest"))
    noise = rng.standard_normal((2, crop.shape[0] // 2, crop.shape[1] // 2, 1))
    texture = upsample(noise[0])[..., 0] * upsample(noise[1])[..., 0]
    texture -= gaussian_filter(texture, 1.5, mode="nearest")
    texture /= texture.std()
    fake = smooth + (energy * texture)[..., None]
    return np.asarray((1 - strength) * pixels + strength * fake)


def checkerboard(crop: npt.NDArray[Any], rng: np.random.Generator, strength: float) -> Floats:
    """Add the faint checkerboard of transposed convolutions: cells of 2x2 pixels, `strength` grey levels.

    crop: (H, W, 3) in 0..255.
    """
    rows, columns = (np.indices(crop.shape[:2]) + rng.integers(4, size=(2, 1, 1))) // 2
    sign = 1.0 - 2.0 * ((rows + columns) % 2)
    return np.asarray(crop.astype(np.float64) + strength * sign[..., None])


ARTEFACTS: Mapping[str, Artefact] = {"decoder": decoder, "checkerboard": checkerboard}


def to_uint8(crop: Floats) -> Pixels:
    """Round and clip to 0..255."""
    return np.clip(np.rint(crop), 0, 255).astype(np.uint8)
