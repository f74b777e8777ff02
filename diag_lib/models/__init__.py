"""Which networks are compared, and how do their patch logits fit together?"""

from diag_lib.models.alignment import align, exact_window
from diag_lib.models.base import Geometry, PatchModel, preprocessing, select_trainable
from diag_lib.models.batchnorm import batch_norms, recalibrate, taken_in
from diag_lib.models.factory import build, build_student, build_teacher, derived_seed
from diag_lib.models.pooling import pool
from diag_lib.models.preprocess import PREPROCESS, apply_preprocess
from diag_lib.models.weights import (
    LoadReport,
    file_sha256,
    load_into,
    read_state,
    resolve_weights,
    save_weights,
    state_sha,
)

__all__ = [
    "PREPROCESS",
    "Geometry",
    "LoadReport",
    "PatchModel",
    "align",
    "apply_preprocess",
    "batch_norms",
    "build",
    "build_student",
    "build_teacher",
    "derived_seed",
    "exact_window",
    "file_sha256",
    "load_into",
    "pool",
    "preprocessing",
    "read_state",
    "recalibrate",
    "resolve_weights",
    "save_weights",
    "select_trainable",
    "state_sha",
    "taken_in",
]
