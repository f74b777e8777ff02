"""Under which settings does a fault that only the user's hand can repair no longer act?

The second look trains there. The user's files stay as they are: a curation file or a derived dataset below the run
folder stands in for the repair, most of them made by the experiment that proved the fault.
"""

from collections.abc import Callable
from typing import Any

from diag_lib import images
from diag_lib.experiments.on_data import ENLARGED_ALIKE, leaked_paths, write_curation
from diag_lib.experiments.trials import Trials
from diag_lib.settings import load

Changes = dict[str, Any]
"""Dotted settings; empty where nothing can stand in."""


def labels_unused(trials: Trials) -> Changes:
    """All weight on the teacher, where it is known to be good; nothing where labels are all there is."""
    known, weights = trials.case.interval("teacher.auc"), trials.settings.training.distillation
    if weights.alpha_distill == 0 or known is None or known[0] <= trials.case.limits.teacher_auc_good:
        return {}
    everything = weights.alpha_distill + weights.alpha_task
    return {
        "training.distillation.alpha_distill": everything,
        "training.distillation.alpha_task": 0.0,
    }


def labels_swapped_back(trials: Trials) -> Changes:
    """The curation file of the experiment that swapped the train labels."""
    file = trials.run.artifact("experiments/train_labels_flipped/curation.csv")
    return {"dataset.curation": str(file)} if file.is_file() else {}


def leaks_excluded(trials: Trials) -> Changes:
    """A curation file without the validation images that also stand in train."""
    table = images.read_table(trials.settings).frame
    leaks = table[table["path"].isin(leaked_paths(trials.source)) & (table["split"] == "val")]
    return {"dataset.curation": str(write_curation(trials, "leaks_excluded", leaks, "exclude"))}


def saved_alike(trials: Trials) -> Changes:
    """The dataset of the experiment that saved all files alike; where it had to enlarge a class, of that one."""
    for name in (ENLARGED_ALIKE, "encoded_alike"):
        file = trials.run.artifact(f"experiments/{name}/settings.yaml")
        if file.is_file():
            return {"dataset.root": str(load(file).dataset.root), "dataset.curation": None}
    return {}


REPAIRS: dict[str, Callable[[Trials], Changes]] = {
    "labels_unused": labels_unused,
    "labels_swapped_back": labels_swapped_back,
    "leaks_excluded": leaks_excluded,
    "saved_alike": saved_alike,
}
