"""Which healthy pipelines look suspicious enough to provoke a false alarm?"""

from pathlib import Path

import numpy as np

from diag_lib.faults import weights
from diag_lib.faults.images import files
from diag_lib.faults.inject import Fault


def _one_to_four(folder: Path, rng: np.random.Generator) -> None:
    """Keep a quarter of the train fakes."""
    fakes = files(folder, "train", "fake")
    for index in rng.permutation(len(fakes))[len(fakes) // 4 :]:
        fakes[index].unlink()


CONTROLS: tuple[Fault, ...] = (
    Fault(
        "control_scale",
        "teacher logits five times larger, harmless under Adam",
        teacher=weights.multiplied(5.0),
    ),
    Fault(
        "control_imbalance", "one fake to four real images in train, which does no harm", alter=_one_to_four
    ),
    Fault("control_plain", "the healthy demo"),
    Fault("control_few_val", "sixty validation images a class", recipe={"val": 60}),
    Fault(
        "control_weak_artefact",
        "a fainter artefact, a strong but imperfect teacher",
        recipe={"strength_train": 0.45, "strength_val": 0.45},
    ),
    Fault("control_small_train", "half the training images", recipe={"train": 150}),
    Fault(
        "control_bce_only",
        "no distillation",
        settings={"training.distillation.alpha_distill": 0.0, "training.distillation.alpha_task": 1.0},
    ),
    Fault(
        "control_standardized",
        "a standardised teacher",
        settings={"training.distillation.normalize": "standardize"},
    ),
    Fault(
        "control_light_distillation",
        "little weight on the teacher",
        settings={"training.distillation.alpha_distill": 0.1, "training.distillation.alpha_task": 0.9},
    ),
    Fault("control_large_batch", "batches of 32", settings={"training.batch_size": 32}),
    Fault(
        "control_npr_student",
        "a student with another preprocessing than the teacher",
        settings={"student.preprocess": "left_diag"},
    ),
)
