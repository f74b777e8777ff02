"""How does the cost of an experiment grow with its images and its arms, and what of it is linear?"""

from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.pictures import write_dataset
from benchmarks.timing import timed
from diag_lib.evidence import RunFolder
from diag_lib.settings import Settings
from diag_lib.training import train_arms

ORDER = (
    "status_quo",
    "bce_only",
    "standardized",
    "alpha_0.01",
    "alpha_0.1",
    "centered",
    "robust",
    "alpha_0.2",
)
PAIR = 2  # arms of the curves over images
REPETITIONS = 2


class Steps(Protocol):
    """How far the curves go."""

    @property
    def growth_images(self) -> tuple[int, ...]: ...
    @property
    def growth_arms(self) -> tuple[int, ...]: ...
    @property
    def growth_pixels(self) -> int: ...


def growth(settings: Settings, root: Path, steps: Steps) -> dict[str, Any]:
    """Seconds of `train_arms` over the number of training images (two arms, cold and warm) and of arms (warm).

    Each curve is {"x", "seconds", "cpu_seconds", "fixed", "per_unit", "r2"}: the straight line through the seconds
    of the clock, and how much of their variation it explains. The least of two runs counts.
    """
    size = {"dataset.image_size": steps.growth_pixels}
    numbers, cold, warm = count(), [], []
    for images in steps.growth_images:
        data = write_dataset(root / f"grown-{images}", images, 16, steps.growth_pixels, "png")
        chosen = settings.with_overrides({"dataset.root": str(data), **size})
        caches = [root / f"growth-cache-{images}-{k}" for k in range(REPETITIONS)]
        cold.append(_least([_one(chosen, root, numbers, PAIR, cache) for cache in caches]))
        warm.append(_least([_one(chosen, root, numbers, PAIR, caches[0]) for _ in range(REPETITIONS)]))
    arms = [
        _least([_one(chosen, root, numbers, number, caches[0]) for _ in range(REPETITIONS)])
        for number in steps.growth_arms
    ]
    return {
        "pixels": steps.growth_pixels,
        "images_cold": curve(steps.growth_images, cold),
        "images_warm": curve(steps.growth_images, warm),
        "arms_warm": curve(steps.growth_arms, arms) | {"images": steps.growth_images[-1]},
    }


def _one(
    settings: Settings, root: Path, numbers: "count[int]", arms: int, cache: Path
) -> tuple[float, float]:
    chosen = settings.with_overrides({"runtime.cache_dir": str(cache)})
    run = RunFolder(root / f"growth-{next(numbers)}")
    took = timed(lambda: train_arms(chosen, run, ORDER[:arms], progress=False))
    return took.wall, took.cpu


def _least(times: list[tuple[float, float]]) -> tuple[float, float]:
    return min(wall for wall, _ in times), min(cpu for _, cpu in times)


def curve(x: tuple[int, ...], times: list[tuple[float, float]]) -> dict[str, Any]:
    """The measured points and their straight line."""
    wall, cpu = (np.array(part) for part in zip(*times, strict=True))
    slope, fixed = np.polyfit(x, wall, 1)
    left = wall - (fixed + slope * np.array(x))
    spread = float(((wall - wall.mean()) ** 2).sum())
    r2 = 1 - float((left**2).sum()) / spread if spread > 0 else 1.0
    seconds = {"seconds": wall.round(4).tolist(), "cpu_seconds": cpu.round(4).tolist()}
    return {"x": list(x), **seconds, "fixed": float(fixed), "per_unit": float(slope), "r2": r2}
