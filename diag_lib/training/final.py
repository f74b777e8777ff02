"""What does a student say at the end of its training, and how well does it follow its teacher?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diag_lib.losses import NORMALIZATIONS, LogitScale
from diag_lib.models import align, pool
from diag_lib.statistics import robust_summary
from diag_lib.training.data import Batch
from diag_lib.training.loop import Student, evaluate
from diag_lib.training.signals import Fit

SUMMARISED_PATCHES = 2_000_000  # patch logits that the robust summary looks at


@dataclass
class Final:
    """Raw image logits (float64) of both splits, and what the last pass over the training images found."""

    val: npt.NDArray[np.float64]
    train: npt.NDArray[np.float64]
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Gathered:
    logits: list[Tensor] = field(default_factory=list)
    patches: list[Tensor] = field(default_factory=list)
    kept: int = 0
    raw: Fit = field(default_factory=Fit)
    target: Fit = field(default_factory=Fit)
    images: Fit = field(default_factory=Fit)


@torch.inference_mode()
def final_pass(students: Sequence[Student]) -> list[Final]:
    """Scores of both splits, and the fit to the teacher over the training images as they are (view 0).

    The numbers: `fit` compares patches with the teacher's raw logits, `fit_target` with what the arm's
    normalisation makes of them, `fit_images` the means of each image; `student_patches` is a robust summary.
    """
    if not students:
        return []
    data = students[0].data
    val = evaluate(students)
    gathered = [_Gathered() for _ in students]
    with_teacher = any(student.distills for student in students)
    for batch in data.evaluation_batches(data.train, with_teacher=with_teacher):
        for student, found in zip(students, gathered, strict=True):
            _gather(student, batch, found)
    return [_final(logits, found) for logits, found in zip(val, gathered, strict=True)]


def _gather(student: Student, batch: Batch, found: _Gathered) -> None:
    patches = student.model(batch.x).float()
    found.logits.append(pool(patches.cpu().double(), student.settings.pooling))
    if found.kept < SUMMARISED_PATCHES:
        found.patches.append(patches.flatten().cpu())
        found.kept += patches.numel()
    if batch.teacher is None or student.data.maps is None or not student.distills:
        return
    grid = (batch.teacher.shape[-2], batch.teacher.shape[-1])
    aligned = align(patches, student.geometry, student.data.maps.geometry, grid).cpu()
    teacher = batch.teacher.cpu()
    normalize = NORMALIZATIONS[student.settings.training.distillation.normalize]
    found.raw.add(aligned, teacher)
    found.target.add(*normalize(aligned, teacher, student.scale or LogitScale.of(teacher)))
    found.images.add(aligned.mean((1, 2, 3)), teacher.mean((1, 2, 3)))


def _final(val: npt.NDArray[np.float64], found: _Gathered) -> Final:
    fits = {"fit": found.raw, "fit_target": found.target, "fit_images": found.images}
    numbers: dict[str, Any] = {name: fit.numbers() for name, fit in fits.items() if fit.count}
    numbers["student_patches"] = robust_summary(torch.cat(found.patches).numpy())
    return Final(val, torch.cat(found.logits).numpy(), numbers)
