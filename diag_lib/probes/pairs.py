"""What do teacher, trained and untrained student say about each patch of the same validation images?"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from diag_lib import training
from diag_lib.evidence import RunFolder
from diag_lib.images import ImageSet, open_split
from diag_lib.models import Geometry, PatchModel, align, build_student
from diag_lib.probes.grid import GridCheck, check_grid, local_content
from diag_lib.probes.student import BLOCK, gives_probabilities
from diag_lib.settings import Settings
from diag_lib.statistics import split_halves
from diag_lib.teacher_cache import TeacherMaps, teacher_maps

STATUS_QUO = "status_quo"
MAX_IMAGES = 2000
MAX_PATCHES = 4_000_000
FEWEST_IMAGES = 256
GRID_IMAGES = 512
FEW_FOR_GRID = 8
FEW_FOR_BOUNDS = 8
EXAMPLES_A_CLASS = 3
GRADIENT_COLUMNS = ("epoch", "distill", "task", "cosine", "cosine_distill_halves", "cosine_task_halves")

Maps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Example:
    """One picture (H, W, 3) uint8 with the teacher's and the trained student's map (h, w), and its label."""

    path: str
    label: int
    pixels: npt.NDArray[np.uint8]
    teacher: Maps
    student: Maps


@dataclass(frozen=True)
class LogitPairs:
    """Patch logits of shape (images, patches), the student's on the teacher's grid, for the rows of `frame`.

    `squashed`: an untrained student stays within 0 and 1 whatever it is shown.
    """

    frame: pd.DataFrame
    teacher: Maps
    trained: Maps
    untrained: Maps
    grid: GridCheck | None
    gradients: pd.DataFrame
    examples: list[Example]
    inputs: dict[str, str]
    squashed: bool


def collect(settings: Settings, run: RunFolder, *, progress: bool = True) -> LogitPairs:
    """Ask all three on (at most 2,000) validation images; trains the status-quo arm if nobody has."""
    arm = training.train_arms(settings, run, [STATUS_QUO], progress=progress)[STATUS_QUO]
    val = open_split(settings, "val", run)
    teacher = teacher_maps(settings, val, run, progress=progress)
    chosen = spread(val.labels, image_limit(math.prod(teacher.shape)), settings.training.seed)
    maps = teacher.get(chosen)[:, 0].numpy()
    # A student whose weights overflowed has no file that loads: its answers are NaN.
    lost = np.full_like(maps, np.nan)
    trained = lost if arm.stopped else on_teacher_grid(settings, arm.model(settings), val, teacher, chosen)
    fresh = build_student(settings)[0]
    untrained = on_teacher_grid(settings, fresh, val, teacher, chosen)
    inputs = {"settings": settings.digest(), "teacher_maps": teacher.key}
    return LogitPairs(
        val.frame.iloc[chosen].reset_index(drop=True),
        _flat(maps),
        _flat(trained),
        _flat(untrained),
        _grid(settings, val, chosen, maps, trained, teacher.geometry),
        gradient_table(arm.evidence, settings),
        _examples(val, chosen, maps, trained),
        inputs,
        gives_probabilities(settings, fresh, val, chosen[:FEW_FOR_BOUNDS]),
    )


def image_limit(patches: int) -> int:
    """How many images are compared when each has this many patches."""
    return int(min(MAX_IMAGES, max(FEWEST_IMAGES, MAX_PATCHES // max(1, patches))))


def spread(labels: npt.NDArray[np.int64], limit: int, seed: int) -> npt.NDArray[np.int64]:
    """Sorted indices of at most `limit` images, each class in its proportion; the same seed, the same images."""
    if len(labels) <= limit:
        return np.arange(len(labels))
    rng = np.random.default_rng([seed, 0x10617])
    ranks = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        ranks[rng.permutation(rows)] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.sort(np.argsort(ranks, kind="stable")[:limit])


def on_teacher_grid(
    settings: Settings,
    student: PatchModel,
    images: ImageSet,
    teacher: TeacherMaps,
    chosen: npt.NDArray[np.int64],
) -> Maps:
    """The student's maps (n, h, w) for those images, aligned to the teacher's cells."""
    geometry = student.geometry(images.image_size)
    blocks = []
    for at in range(0, len(chosen), BLOCK):
        maps = training.predict(student, images.subset(chosen[at : at + BLOCK]), settings, maps=True).maps
        assert maps is not None
        blocks.append(align(maps, geometry, teacher.geometry, teacher.shape)[:, 0].numpy())
    return np.concatenate(blocks)


def gradient_table(evidence: dict[str, Any], settings: Settings) -> pd.DataFrame:
    """One row an examined epoch: norms of the *weighted* losses' gradients, their cosine, each loss's own halves."""
    weights = settings.training.distillation
    rows = [
        {
            "epoch": signal["epoch"] + 1,
            "distill": _times(weights.alpha_distill, signal["distill_norm"]),
            "task": _times(weights.alpha_task, signal["task_norm"]),
            **{name: _times(1.0, signal[name]) for name in GRADIENT_COLUMNS[3:]},
        }
        for signal in evidence.get("gradients", [])
    ]
    return pd.DataFrame(rows, columns=list(GRADIENT_COLUMNS)).astype(float)


def _times(weight: float, value: float | None) -> float:
    return math.nan if value is None else weight * value


def _flat(maps: Maps) -> Maps:
    return maps.reshape(len(maps), -1)


def _grid(
    settings: Settings,
    val: ImageSet,
    chosen: npt.NDArray[np.int64],
    teacher: Maps,
    student: Maps,
    geometry: Geometry,
) -> GridCheck | None:
    finite = np.isfinite(teacher).all(axis=(1, 2))
    if finite.sum() < FEW_FOR_GRID or min(teacher.shape[1:]) < 2:
        return None
    rows = np.flatnonzero(finite)
    rows = rows[spread(val.labels[chosen[rows]], GRID_IMAGES, settings.training.seed)]
    shape = (teacher.shape[1], teacher.shape[2])
    content = np.concatenate(
        [
            local_content(val.pixels(chosen[rows[at : at + 64]]), geometry, shape)
            for at in range(0, len(rows), 64)
        ]
    )
    half_a = split_halves(val.labels[chosen[rows]], seed=settings.training.seed) == "A"
    return check_grid(
        teacher[rows], content, half_a, student[rows] if np.isfinite(student[rows]).all() else None
    )


def _examples(val: ImageSet, chosen: npt.NDArray[np.int64], teacher: Maps, student: Maps) -> list[Example]:
    labels = val.labels[chosen]
    rows = [row for label in (0, 1) for row in np.flatnonzero(labels == label)[:EXAMPLES_A_CLASS]]
    return [
        Example(
            str(val.frame["path"].iloc[chosen[row]]),
            int(labels[row]),
            val.pixels(chosen[[row]])[0].permute(1, 2, 0).numpy(),
            teacher[row],
            student[row],
        )
        for row in rows
    ]
