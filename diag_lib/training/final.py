"""What does a student say at the end of its training, and how well does it follow its teacher?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diag_lib.losses import NORMALIZATIONS, LogitScale
from diag_lib.models import align, pool
from diag_lib.statistics import robust_summary
from diag_lib.training.data import Batch
from diag_lib.training.loop import Student, evaluate, shared_stem
from diag_lib.training.shared import patch_logits
from diag_lib.training.signals import BatchNormInputs, Fit, Spread

NORM_IMAGES = 32  # images from which the inputs of BatchNorm layers are measured
ASK_FOR_VALUES = frozenset({"mse", "huber"})  # losses that want the teacher's values, not only order or odds
SUMMARISED_PATCHES = 2_000_000  # patch logits that the robust summary looks at


@dataclass
class Final:
    """Raw image logits (float64) of both splits, and what the last pass over the training images found."""

    val: npt.NDArray[np.float64]
    train: npt.NDArray[np.float64]
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Gathered:
    norms: BatchNormInputs
    logits: list[Tensor] = field(default_factory=list)
    patches: list[Tensor] = field(default_factory=list)
    kept: int = 0
    raw: Fit = field(default_factory=Fit)
    target: Fit = field(default_factory=Fit)
    images: Fit = field(default_factory=Fit)
    spread: Spread = field(default_factory=Spread)
    teacher_spread: Spread = field(default_factory=Spread)

    @property
    def listens(self) -> bool:
        """Whether the inputs of BatchNorm layers are still measured: each student has to compute them then."""
        return sum(map(len, self.logits)) < NORM_IMAGES


@torch.inference_mode()
def final_pass(students: Sequence[Student]) -> list[Final]:
    """Scores of both splits, and the fit to the teacher over the training images as they are (view 0).

    The numbers: `fit` compares patches with the teacher's raw logits, `fit_target` with what the arm's
    normalisation makes of them, `fit_images` the means of each image (see `Fit`); `student_patches` is a robust
    summary; `student_spread` and `teacher_spread` tell a collapsed student (see `Spread`), `batch_norms` one
    whose running statistics do not describe what it sees (see `BatchNormInputs`; first images).
    """
    if not students:
        return []
    data = students[0].data
    val = evaluate(students)
    gathered = [_Gathered(BatchNormInputs(student.model)) for student in students]
    with_teacher = any(student.distills for student in students)
    for batch in data.evaluation_batches(data.train, with_teacher=with_teacher):
        listening = any(found.listens for found in gathered)
        ask = partial(_patches, students, batch, listening)
        answers = data.asked.run(len(batch.y), ask)
        for student, found, patches in zip(students, gathered, answers, strict=True):
            _gather(student, batch, found, patches)
    for found in gathered:
        found.norms.close()
    return [_final(*parts) for parts in zip(students, val, gathered, strict=True)]


def _patches(
    students: Sequence[Student], batch: Batch, each_alone: bool, parts: Sequence[slice]
) -> list[Tensor]:
    """Each student's patch logits (B, 1, h, w) of a batch, in fp32; `each_alone`: no shared stem."""
    answers: list[list[Tensor]] = [[] for _ in students]
    for rows in parts:
        x = batch.x[rows]
        features = [None] * len(students) if each_alone else shared_stem(students, x)
        for student, answer, shared in zip(students, answers, features, strict=True):
            answer.append(patch_logits(student.model, x, shared).float())
    return [torch.cat(answer) for answer in answers]


def _gather(student: Student, batch: Batch, found: _Gathered, patches: Tensor) -> None:
    found.logits.append(pool(patches.cpu().double(), student.settings.pooling))
    found.spread.add(patches)
    if not found.listens:
        found.norms.close()
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
    found.teacher_spread.add(teacher)


def _final(student: Student, val: npt.NDArray[np.float64], found: _Gathered) -> Final:
    chosen = student.settings.training.distillation
    values = chosen.loss in ASK_FOR_VALUES
    fits = {
        "fit": (found.raw, values and chosen.normalize == "none"),
        "fit_target": (found.target, values),
        "fit_images": (found.images, values and chosen.normalize == "none"),
    }
    numbers: dict[str, Any] = {name: fit.numbers(parts) for name, (fit, parts) in fits.items() if fit.count}
    numbers["student_spread"] = found.spread.numbers()
    numbers |= {"teacher_spread": found.teacher_spread.numbers()} if found.raw.count else {}
    numbers["batch_norms"] = found.norms.numbers()
    numbers["student_patches"] = robust_summary(torch.cat(found.patches).numpy())
    return Final(val, torch.cat(found.logits).numpy(), numbers)
