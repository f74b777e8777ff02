"""What happens when a suspected cause is taken away?

Every experiment compares two trainings (or two evaluations) that differ in the suspected cause alone:
same initialisation, batches and augmentation. Gains are measured on half B of the validation images, which
chose nothing. Experiments on the data never touch the dataset: they write a derived one, or a curation
file, below the run folder and train on that.
"""

from collections.abc import Callable

from diag_lib.experiments import on_data, on_training
from diag_lib.experiments.comparison import Comparison, Measured, compare, half_b
from diag_lib.experiments.repairs import REPAIRS
from diag_lib.experiments.trials import BCE_ONLY, STATUS_QUO, Trials

__all__ = [
    "BCE_ONLY",
    "EXPERIMENTS",
    "REPAIRS",
    "STATUS_QUO",
    "Comparison",
    "Measured",
    "Trials",
    "compare",
    "experiment",
    "half_b",
]

EXPERIMENTS: dict[str, Callable[[Trials], Comparison | None]] = {
    "without_leaks": on_data.without_leaks,
    "encoded_alike": on_data.encoded_alike,
    "train_labels_flipped": on_data.train_labels_flipped,
    "normalized": on_data.normalized,
    "longer": on_training.longer,
    "recalibrated": on_training.recalibrated_norms,
    "larger_student": on_training.larger_student,
    "more_images": on_data.more_images,
    "teacher_variant": on_training.teacher_variant,
    "carried_over": on_data.carried_over,
    "teacher_on_train": on_data.teacher_on_train,
    "other_pooling": on_training.other_pooling,
    "best_alpha": on_training.best_alpha,
}


def experiment(trials: Trials, name: str) -> Comparison | None:
    """Run ``arm:<id>``, ``probe:<finding>`` or an entry of `EXPERIMENTS`; None when it cannot be run."""
    if name.startswith("arm:"):
        return trials.instead(name.removeprefix("arm:"))
    if name.startswith("probe:"):
        return trials.probed(name.removeprefix("probe:"))
    return EXPERIMENTS[name](trials)
