"""Experiments that change the training, the student or the teacher's input."""

from dataclasses import replace

from diag_lib import images, training
from diag_lib.experiments.comparison import Comparison, compare, half_b
from diag_lib.experiments.trials import AGAIN, ALPHA_ARMS, BCE_ONLY, STATUS_QUO, WORDS, Trials
from diag_lib.probes.student import recalibrated
from diag_lib.screens import LARGER_STUDENT, pooling_patch
from diag_lib.settings import dotted
from diag_lib.statistics import SIGNIFICANT, auc
from diag_lib.training import ArmResult


def longer(trials: Trials) -> Comparison | None:
    """The status quo against the same training on the longer schedule that the baseline's probe tried."""
    (before,) = trials.arms(STATUS_QUO)
    found = trials.case.finding("baseline.undertrained")
    patch = found.data.get("settings") if found is not None else None
    if before is None or not patch:
        return None
    after = trials.variant("longer", dotted(patch))
    if after is None or after.image_steps < 2 * before.image_steps:
        return None
    what, name = "training longer", f"{STATUS_QUO}, trained longer"
    return compare(what, STATUS_QUO, half_b(before.val_scores), name, half_b(after.val_scores))


def recalibrated_norms(trials: Trials) -> Comparison | None:
    """The probe's comparison; for a status quo that learns its own students instead, untrained anew.

    A student that learns may only have been unlucky at its last step: then a second seed must show the same.
    """
    learns = trials.case.status_quo_learns
    first = _with_fresh_norms(trials, STATUS_QUO) if learns else trials.probed("baseline.batchnorm")
    if first is None or first.p >= SIGNIFICANT or first.delta <= 0:
        return first
    if not learns and first.before.auc.ci[0] <= trials.case.limits.baseline_auc:
        return first
    again = (STATUS_QUO if learns else BCE_ONLY) + AGAIN
    return replace(first, confirmation=_with_fresh_norms(trials, again))


def _with_fresh_norms(trials: Trials, name: str) -> Comparison | None:
    (arm,) = trials.arms(name)
    if arm is None or arm.stopped:
        return None
    settings = trials.settings.with_overrides(arm.overrides)
    train, val = (images.open_split(settings, split, trials.run) for split in ("train", "val"))
    logits = training.predict(recalibrated(settings, arm.model(settings), train), val, settings).logits
    fresh = val.frame[["path", "label"]].assign(score=logits)
    fresh = fresh.merge(arm.val_scores[["path", "half"]], on="path")
    what = WORDS["baseline.batchnorm"]
    return compare(what, name, half_b(arm.val_scores), f"{name}, recalibrated", half_b(fresh))


def larger_student(trials: Trials) -> Comparison | None:
    """BCE only with the configured student against BCE only with Tiny-LaDeDa; None where it is that already."""
    (before,) = trials.arms(BCE_ONLY)
    if before is None or trials.settings.student.arch == LARGER_STUDENT["arch"]:
        return None
    after = trials.variant("larger_student", dotted({"student": LARGER_STUDENT}), BCE_ONLY)
    if after is None:
        return None
    what, name = "a larger student", f"{BCE_ONLY} with {LARGER_STUDENT['arch']}"
    return compare(what, BCE_ONLY, half_b(before.val_scores), name, half_b(after.val_scores))


def other_pooling(trials: Trials) -> Comparison | None:
    """BCE only with the configured pooling against BCE only trained and judged with the better one."""
    (before,) = trials.arms(BCE_ONLY)
    patch = pooling_patch(trials.case)
    if before is None or patch is None:
        return None
    after = trials.variant("other_pooling", dotted(patch), BCE_ONLY)
    if after is None:
        return None
    what, name = "another pooling of the patch logits", f"{BCE_ONLY}, pooled otherwise"
    return compare(what, BCE_ONLY, half_b(before.val_scores), name, half_b(after.val_scores))


def teacher_variant(trials: Trials) -> Comparison | None:
    """The status quo against the same training with the teacher's better preprocessing."""
    found = trials.case.finding("teacher.preprocessing")
    (before,) = trials.arms(STATUS_QUO)
    if found is None or before is None or not found.data.get("settings"):
        return None
    after = trials.variant("teacher_variant", dotted(found.data["settings"]))
    if after is None:
        return None
    name = f"{STATUS_QUO} with the teacher's own preprocessing"
    return compare(
        "the teacher's own preprocessing",
        STATUS_QUO,
        half_b(before.val_scores),
        name,
        half_b(after.val_scores),
    )


def best_alpha(trials: Trials) -> Comparison | None:
    """The status quo against the weighting that was best on half A, proven on half B."""
    known = [arm for arm in ALPHA_ARMS if arm in trials.results]
    trained = [arm for arm in trials.arms(BCE_ONLY, *(known or ALPHA_ARMS)) if arm is not None]
    if not trained:
        return None
    best = max(trained, key=lambda arm: (_half_a_auc(arm), arm.id))
    return trials.instead(best.id)


def _half_a_auc(arm: ArmResult) -> float:
    scores = arm.val_scores[arm.val_scores["half"] == "A"]
    measured = auc(scores["label"].to_numpy(), scores["score"].to_numpy(), nan="undefined")
    return measured.value if measured.defined else 0.0
