"""Does the student learn under these settings, and under which others would it?"""

from diag_lib.training.arms import (
    ARMS,
    CORE,
    PRIORITY,
    Arm,
    Plan,
    alpha_ladder,
    arm_settings,
    effective,
    plan,
)
from diag_lib.training.finetune import Finetuned, finetune_teacher
from diag_lib.training.folder import ArmResult, load_arm
from diag_lib.training.predict import Prediction, predict
from diag_lib.training.runner import ArmResults, planned, train_arms

__all__ = [
    "ARMS",
    "CORE",
    "PRIORITY",
    "Arm",
    "ArmResult",
    "ArmResults",
    "Finetuned",
    "Plan",
    "Prediction",
    "alpha_ladder",
    "arm_settings",
    "effective",
    "finetune_teacher",
    "load_arm",
    "plan",
    "planned",
    "predict",
    "train_arms",
]
