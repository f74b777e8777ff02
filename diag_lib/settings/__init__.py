"""Which parameters does a run have, and is this value allowed?

Settings are YAML in the nesting of the training script they diagnose. Every key is validated; an unknown
key or an impossible value raises `UserError` with one line that names the key and what is allowed.
"""

from diag_lib.settings.fields import (
    ARCHITECTURES,
    BUDGET_IMAGE_STEPS,
    DISTILLATION_LOSSES,
    PREPROCESS,
    REMOTE_SCHEMES,
    WEIGHT_SUFFIXES,
    Preprocess,
    is_url,
)
from diag_lib.settings.merging import dotted, nested
from diag_lib.settings.reading import check_parameters, load, parse_assignments, preset_names
from diag_lib.settings.schema import (
    DatasetSettings,
    DistillationSettings,
    PoolingSettings,
    RuntimeSettings,
    Settings,
    StudentSettings,
    TeacherSettings,
    ThresholdSettings,
    TrainingSettings,
)

__all__ = [
    "ARCHITECTURES",
    "BUDGET_IMAGE_STEPS",
    "DISTILLATION_LOSSES",
    "PREPROCESS",
    "REMOTE_SCHEMES",
    "WEIGHT_SUFFIXES",
    "DatasetSettings",
    "DistillationSettings",
    "PoolingSettings",
    "Preprocess",
    "RuntimeSettings",
    "Settings",
    "StudentSettings",
    "TeacherSettings",
    "ThresholdSettings",
    "TrainingSettings",
    "check_parameters",
    "dotted",
    "is_url",
    "load",
    "nested",
    "parse_assignments",
    "preset_names",
]
