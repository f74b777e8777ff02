"""Which causes does the evidence make suspect, which does it contradict, and what is still open?

A screen asks one cause's questions of the evidence that the steps left. It runs nothing and proves nothing;
the experiment beside it in `diag_lib.causes.CAUSES` does.
"""

from diag_lib.screens.case import (
    CLEARLY_WORKS,
    LARGER_STUDENT,
    Case,
    RuledOut,
    Screen,
    Suspicion,
)
from diag_lib.screens.data import (
    class_imbalance,
    corrupt_images,
    label_noise,
    labels_inverted_train,
    labels_shuffled,
    leakage,
    no_signal,
    normalization_patch,
    patch_misalignment,
    shortcut,
    split_shift,
    student_normalization,
    too_little_data,
    wrong_activation,
)
from diag_lib.screens.loss import heavy_tail, offset, scale, weight_too_high
from diag_lib.screens.optimisation import (
    capacity,
    detached_graph,
    from_finding,
    lr,
    pooling_mismatch,
    pooling_patch,
    student_batchnorm,
    undertrained,
)
from diag_lib.screens.recorded import either, recorded, recorded_step
from diag_lib.screens.teacher import (
    teacher_domain_shift,
    teacher_inverted,
    teacher_preprocessing,
    teacher_stale_cache,
    teacher_train_mode,
    weights_not_loaded,
)

__all__ = [
    "CLEARLY_WORKS",
    "LARGER_STUDENT",
    "Case",
    "RuledOut",
    "Screen",
    "Suspicion",
    "capacity",
    "class_imbalance",
    "corrupt_images",
    "detached_graph",
    "either",
    "from_finding",
    "heavy_tail",
    "label_noise",
    "labels_inverted_train",
    "labels_shuffled",
    "leakage",
    "lr",
    "no_signal",
    "normalization_patch",
    "offset",
    "patch_misalignment",
    "pooling_mismatch",
    "pooling_patch",
    "recorded",
    "recorded_step",
    "scale",
    "shortcut",
    "split_shift",
    "student_batchnorm",
    "student_normalization",
    "teacher_domain_shift",
    "teacher_inverted",
    "teacher_preprocessing",
    "teacher_stale_cache",
    "teacher_train_mode",
    "too_little_data",
    "undertrained",
    "weight_too_high",
    "weights_not_loaded",
    "wrong_activation",
]
