"""Which of the costly questions about a failing baseline are open, and what do their trainings answer?

Every probe decides itself whether it is needed and leaves the reason in `Probes.skipped` when it is not.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from diag_lib import training
from diag_lib.evidence import Finding, RunFolder
from diag_lib.images import open_split
from diag_lib.probes import baseline_findings as say
from diag_lib.probes import retrain
from diag_lib.probes.compare import Choice, choose_and_prove, common_scores
from diag_lib.probes.student import LADDER, BatchFit, overfit_batch, promising_factor, rate_ladder
from diag_lib.settings import Settings
from diag_lib.statistics import Auc, AucDifference, answer_above
from diag_lib.training import ArmResult

BCE_ONLY, STATUS_QUO = "bce_only", "status_quo"
CLEARLY_WORKS = 0.90  # an AUC interval above it leaves no question that a training run could answer
LONGER = 4
MANY_STEPS = 400
"""Steps that a longer schedule makes at least: a multiple of a handful is still a handful.

From so many on a schedule is not called short while a higher learning rate is all that it lacks.
"""
MANY_PIXELS = 1.25  # images this many times larger than image_size lose something when they are squashed


@dataclass
class Probes:
    """What the conditional probes found; None or empty where they were not run, `skipped` says why."""

    overfit: BatchFit | None = None
    ladder: pd.DataFrame | None = None
    rates: Choice | None = None
    rate_aucs: dict[str, Auc] = field(default_factory=dict)
    better_rate: float = 1.0
    unfrozen: AucDifference | None = None
    longer: AucDifference | None = None
    crop: AucDifference | None = None
    held_out: Auc | None = None
    val_halves: Auc | None = None
    curves: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def _works_clearly(arm: ArmResult, run: RunFolder) -> str | None:
    """Why no probe of the optimisation is needed, or None: the labels alone, or the user's own training, suffice."""
    for name, trained in (("the baseline", arm), ("your own training", training.load_arm(run, STATUS_QUO))):
        if trained is not None and trained.auc.defined and trained.auc.ci[0] > CLEARLY_WORKS:
            return (
                f"{name} clearly works: AUC {trained.auc.value:.2f}, its interval above {CLEARLY_WORKS:.2f}"
            )
    return None


def _learns(settings: Settings, arm: ArmResult) -> str | None:
    """Why no question about the labels is open, or None."""
    limit = settings.thresholds.baseline_auc
    if answer_above(arm.auc.ci, limit) == "yes":
        return f"the baseline learns: AUC {arm.auc.value:.2f}, its interval above {limit:.2f}"
    return None


Probe = Callable[[Settings, RunFolder, ArmResult, Probes, bool], Finding | None]


def _arms(
    settings: Settings, run: RunFolder, wanted: Mapping[str, Mapping[str, Any]], progress: bool
) -> dict[str, ArmResult]:
    """BCE only with each of the changes, by name: in lockstep as far as the arms' budget goes, else one by one.

    These trainings decide what a failing baseline fails of; a budget that the arms have used up must not stop them.
    """
    extra = {
        name: {**_NO_TEACHER, **changed} for name, changed in wanted.items() if name not in training.ARMS
    }
    found: dict[str, ArmResult] = dict(
        training.train_arms(settings, run, list(wanted), extra=extra, progress=progress)
    )
    for name, changed in wanted.items():
        if name not in found:
            other = retrain.variant(settings, run, name, changed, progress=progress)
            found |= {name: other} if other is not None else {}
    return found


def _overfit(
    settings: Settings, run: RunFolder, arm: ArmResult, probes: Probes, progress: bool
) -> Finding | None:
    why = _learns(settings, arm)
    if why:
        probes.skipped["overfit_batch"] = why
        return None
    probes.overfit = overfit_batch(settings, open_split(settings, "train", run))
    return say.overfit(probes.overfit)


def _learning_rate(
    settings: Settings, run: RunFolder, arm: ArmResult, probes: Probes, progress: bool
) -> Finding | None:
    why = _works_clearly(arm, run)
    if why:
        probes.skipped["learning_rate"] = why
        return None
    probes.ladder = rate_ladder(settings, open_split(settings, "train", run))
    factors = {f"bce_lr_x{factor:g}": factor for factor in _worth_training(promising_factor(probes.ladder))}
    t = settings.training
    extra = {
        name: {"training.lr_s1": t.lr_s1 * factor, "training.lr_s2": t.lr_s2 * factor}
        for name, factor in factors.items()
    }
    arms = _arms(settings, run, extra, progress)
    if not arms:
        probes.skipped["learning_rate"] = _NO_BUDGET
        return None
    scores = common_scores(
        {BCE_ONLY: arm.val_scores, **{name: other.val_scores for name, other in arms.items()}}
    )
    probes.rates = choose_and_prove(scores, BCE_ONLY)
    probes.better_rate = factors[probes.rates.best] if probes.rates.answer == "yes" else 1.0
    probes.rate_aucs = {name: scores.auc(name) for name in scores.of}
    probes.curves |= {name: other.history["val_auc"] for name, other in arms.items()}
    return say.learning_rate(probes.rates, factors, extra, probes.ladder)


def _worth_training(promising: float) -> list[float]:
    """The rungs of the ladder on the way to the promising one, which a short run may have flattered.

    The other direction is hopeless; where no rung is better than the configured rate, both neighbours are tried.
    """
    if promising == 1.0:
        return [0.1, 10.0]
    low, high = sorted((1.0, promising))
    return [factor for factor in LADDER if low <= factor <= high and factor != 1.0]


def _frozen(
    settings: Settings, run: RunFolder, arm: ArmResult, probes: Probes, progress: bool
) -> Finding | None:
    why = _works_clearly(arm, run)
    if "all" in settings.student.trainable_s1 and "all" in settings.student.trainable_s2:
        why = "every parameter is trained already"
    if why:
        probes.skipped["frozen"] = why
        return None
    unfrozen = {"student.trainable_s1": ["all"], "student.trainable_s2": ["all"]}
    other = _arms(settings, run, {"unfrozen_bce": unfrozen}, progress).get("unfrozen_bce")
    if other is None:
        probes.skipped["frozen"] = _NO_BUDGET
        return None
    probes.curves["unfrozen_bce"] = other.history["val_auc"]
    scores = common_scores({BCE_ONLY: arm.val_scores, "unfrozen_bce": other.val_scores})
    probes.unfrozen = scores.difference(BCE_ONLY, "unfrozen_bce")
    return say.frozen(probes.unfrozen, settings)


def _longer(
    settings: Settings, run: RunFolder, arm: ArmResult, probes: Probes, progress: bool
) -> Finding | None:
    why = _works_clearly(arm, run)
    t = settings.training
    if not why and probes.better_rate > 1 and arm.image_steps >= MANY_STEPS * t.batch_size:
        why = "a higher learning rate already brings more in the same time"
    if why:
        probes.skipped["undertrained"] = why
        return None
    times = max(LONGER, math.ceil(MANY_STEPS * t.batch_size / max(1, arm.image_steps)))
    epochs = {"training.epochs_s1": t.epochs_s1 * times, "training.epochs_s2": t.epochs_s2 * times}
    other = retrain.variant(settings, run, "longer", epochs, progress=progress)
    if other is None or other.image_steps < 2 * arm.image_steps:
        probes.skipped["undertrained"] = _NO_BUDGET
        return None
    probes.curves["longer"] = other.history["val_auc"]
    probes.longer = common_scores({BCE_ONLY: arm.val_scores, "longer": other.val_scores}).difference(
        BCE_ONLY, "longer"
    )
    return say.undertrained(probes.longer, other.image_steps / arm.image_steps, epochs)


def _crop(
    settings: Settings, run: RunFolder, arm: ArmResult, probes: Probes, progress: bool
) -> Finding | None:
    why = _works_clearly(arm, run)
    if settings.dataset.resize == "crop":
        why = "images are cropped already"
    side = (
        math.nan if why else retrain.typical_side(open_split(settings, "train", run), settings.training.seed)
    )
    if side < MANY_PIXELS * settings.dataset.image_size:
        why = f"images ({side:.0f} pixels) are hardly larger than image_size"
    if why:
        probes.skipped["resize"] = why
        return None
    other = _arms(settings, run, {"bce_crop": {"dataset.resize": "crop"}}, progress).get("bce_crop")
    if other is None:
        probes.skipped["resize"] = _NO_BUDGET
        return None
    probes.curves["bce_crop"] = other.history["val_auc"]
    probes.crop = common_scores({BCE_ONLY: arm.val_scores, "crop": other.val_scores}).difference(
        BCE_ONLY, "crop"
    )
    return say.resize(probes.crop, side, settings.dataset.image_size)


def _held_out(
    settings: Settings, run: RunFolder, arm: ArmResult, probes: Probes, progress: bool
) -> Finding | None:
    why = _learns(settings, arm)
    if why:
        probes.skipped["heldout_train"] = why
        return None
    train = open_split(settings, "train", run)
    probes.held_out = retrain.cross_fitted(settings, run, train, progress=progress)
    if probes.held_out is None:
        probes.skipped["heldout_train"] = _NO_BUDGET
        return None
    return say.heldout_train(probes.held_out, settings.thresholds.baseline_auc)


def _val_halves(
    settings: Settings, run: RunFolder, arm: ArmResult, probes: Probes, progress: bool
) -> Finding | None:
    why = _learns(settings, arm)
    if why:
        probes.skipped["val_learnable"] = why
        return None
    val = open_split(settings, "val", run)
    half = (
        val.frame[["path"]].merge(arm.val_scores[["path", "half"]], on="path", how="left")["half"].to_numpy()
        == "A"
    )
    # As many passes as make up for the smaller set, so that too few steps are not taken for unlearnable labels.
    times = max(1, round(arm.image_steps / max(1, int(half.sum()) * len(arm.history["stage"]))))
    t = settings.training
    epochs = {"training.epochs_s1": t.epochs_s1 * times, "training.epochs_s2": t.epochs_s2 * times}
    other = retrain.on_images(
        settings, run, "val_halves", val.frame[half], val.frame[~half], overrides=epochs, progress=progress
    )
    if other is None:
        probes.skipped["val_learnable"] = _NO_BUDGET
        return None
    probes.val_halves = other.auc
    return say.val_learnable(other.auc, settings.thresholds.baseline_auc)


_NO_TEACHER = {"training.distillation.alpha_distill": 0.0, "training.distillation.alpha_task": 1.0}
_NO_BUDGET = "the budget leaves no room for it; set runtime.budget to a larger one"

PROBES: tuple[Probe, ...] = (_overfit, _learning_rate, _frozen, _longer, _crop, _held_out, _val_halves)
"""The conditional probes in the order in which they are run; each decides itself whether it is needed."""
