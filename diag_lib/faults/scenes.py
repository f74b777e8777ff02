"""What is a fault, and in which scenes does it do harm by itself?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diag_lib.demo.dataset import Alter
from diag_lib.faults.loops import Loop
from diag_lib.faults.weights import Change

Overrides = Mapping[str, Any]

GOOD_TEACHER: Overrides = {"teacher.weights": "demo-artefact"}
# Labels lead and the teacher only helps: where a fault of the labels must not be hidden by a good teacher.
LABELS_LEAD: Overrides = {
    "training.distillation.alpha_distill": 0.01,
    "training.distillation.alpha_task": 0.99,
    "training.distillation.normalize": "standardize",
}
# The teacher leads: where a fault of the teacher must not be outvoted by the labels.
TEACHER_LEADS: Overrides = {
    "training.distillation.alpha_distill": 0.95,
    "training.distillation.alpha_task": 0.05,
}
# The labels are not used, and only the teacher's differences from its mean count.
TEACHER_ALONE: Overrides = {
    "training.distillation.alpha_distill": 1.0,
    "training.distillation.alpha_task": 0.0,
    "training.distillation.normalize": "center",
}
# Plain SGD takes the gradient as it is; under Adam, or with clipped gradients, a clash of scales does little harm.
PLAIN_SGD: Overrides = {
    "training.optimizer": "sgd",
    "training.distillation.normalize": "standardize",
    "training.lr_s1": 0.05,
    "training.lr_s2": 0.05,
}
# No teacher, so that nothing hides a mistake in the task loss; or one that knows nothing, kept in its place.
LABELS_ALONE: Overrides = {
    "training.distillation.alpha_distill": 0.0,
    "training.distillation.alpha_task": 1.0,
}
QUIET_STRANGER: Overrides = {
    "teacher.weights": "demo-foreign",
    "training.distillation.alpha_distill": 0.001,
    "training.distillation.alpha_task": 0.999,
}


@dataclass(frozen=True)
class Fault:
    """One cause and how it is injected into the healthy demo (the demo with the good teacher).

    around : settings and recipe that belong to the scene, with or without the fault. settings : the fault's
    own settings; recipe : changed fields of `Recipe`; alter : changes the finished dataset; teacher : changes
    the good teacher's weights; loop : a training loop with a mistake in its code, whose recording is the
    `history`. cause : the cause that should be named, if it has another id. parts : the faults of a compound.
    """

    id: str
    description: str
    settings: Overrides = field(default_factory=dict)
    recipe: Overrides = field(default_factory=dict)
    alter: Alter | None = None
    teacher: Change | None = None
    around: Overrides = field(default_factory=dict)
    around_recipe: Overrides = field(default_factory=dict)
    loop: Loop | None = None
    cause: str = ""
    parts: "tuple[Fault, ...]" = ()


def own_network(network: str, factory: str) -> Overrides:
    """The settings of a network of one's own: one of `diag_lib.faults.factories`."""
    weights = {f"{network}.weights": None, f"{network}.preprocess": "raw"}
    return {f"{network}.arch": f"diag_lib.faults.factories:{factory}", **weights}
