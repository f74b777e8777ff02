"""What do the baseline's probes say, in a sentence and as an answer with its interval?"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from diag_lib.evidence import Answer, Finding, Severity
from diag_lib.probes.agreement import Interval
from diag_lib.probes.compare import Choice, gains, sides
from diag_lib.probes.student import BatchFit, pooling_variants
from diag_lib.settings import Settings
from diag_lib.statistics import (
    Auc,
    AucDifference,
    answer_above,
    answer_below,
    auc_difference_unpaired,
    n_per_class_needed,
)
from diag_lib.training import ArmResult

CONFIGURED = "as configured"
COIN = math.log(2)
"""The BCE of a coin, 0.6931: what an untrained student costs."""
GUIDE_LOSS = 0.45
"""The BCE that the guide expects of a working baseline."""

LISTED = 50  # tensor names kept in the evidence
STILL = 0.01  # running statistics of which the training makes up less are those from before it

_PROBLEM: dict[Answer, Severity] = {"yes": "warning", "no": "ok", "undecided": "note"}
_VIRTUE: dict[Answer, Severity] = {"yes": "ok", "no": "error", "undecided": "warning"}


def learns(arm: ArmResult, threshold: float) -> Finding:
    """The guide's question: is the val AUC of the BCE-only student above 0.60?"""
    measured = arm.auc
    if not measured.defined:
        text = (
            f"The BCE-only student gives every image the same score{_stopped(arm)}: it has learned nothing."
        )
        return Finding(
            "baseline.auc", "error", "undecided", text, threshold=threshold, data={"stopped": arm.stopped}
        )
    answer = answer_above(measured.ci, threshold)
    said = {
        "yes": f"The student learns from the labels alone: val AUC {_auc(measured)}, above {threshold:.2f}",
        "no": f"The student does not learn from the labels alone: val AUC {_auc(measured)}, not above {threshold:.2f}",
        "undecided": f"It is open whether the student learns from the labels alone: val AUC {_auc(measured)} against "
        f"{threshold:.2f}{_needs(measured, threshold)}",
    }[answer]
    text = f"{said}; on train {_auc(arm.train_auc)}{_stopped(arm)}."
    data = {
        "train_auc": arm.train_auc.value,
        "train_ci": arm.train_auc.ci,
        "stopped": arm.stopped,
        "settings": {"training": {"distillation": {"alpha_distill": 0.0, "alpha_task": 1.0}}},
    }
    return Finding(
        "baseline.auc",
        _VIRTUE[answer],
        answer,
        text,
        measured.value,
        measured.ci,
        threshold,
        _n(measured),
        data,
    )


def loss(value: Interval, arm: ArmResult) -> Finding:
    """Does the val loss fall below a coin's 0.6931, and to the guide's 0.45?"""
    answer = answer_below(value.ci, COIN)
    first, last = arm.history["train_task_loss"][0], arm.history["train_task_loss"][-1]
    guide = {"yes": "reached", "no": "not reached", "undecided": "neither reached nor missed for sure"}[
        answer_below(value.ci, GUIDE_LOSS)
    ]
    said = {"yes": "below", "no": "not below", "undecided": "not clearly below"}[answer]
    text = (
        f"Train BCE went from {first:.3f} in the first epoch to {last:.3f} "
        f"in the last; on val it ends at {value}, {said} "
        f"a coin's 0.6931; the guide's 0.45 is {guide}."
    )
    severity: Severity = "ok" if answer == "yes" else "note"
    return Finding(
        "baseline.loss",
        severity,
        answer,
        text,
        value.value,
        value.ci,
        COIN,
        len(arm.val_scores),
        {"first_epoch": first, "last_epoch": last, "guide": GUIDE_LOSS},
    )


def permutation(arm: ArmResult, permuted: npt.NDArray[np.float64]) -> Finding:
    """Do shuffled labels give .5, as they must, and does the real AUC stand out of them?"""
    finite = permuted[np.isfinite(permuted)]
    if not finite.size or not arm.auc.defined:
        return Finding(
            "baseline.permutation", "note", "undecided", "No permutation control: the scores are constant."
        )
    low, high = (float(v) for v in np.quantile(finite, [0.025, 0.975]))
    p = float((1 + (np.abs(finite - 0.5) >= abs(arm.auc.value - 0.5)).sum()) / (1 + finite.size))
    answer: Answer = "yes" if low <= 0.5 <= high else "no"
    beyond = "outside" if not low <= arm.auc.value <= high else "inside"
    text = (
        f"Against shuffled labels the same scores give AUC {finite.mean():.3f} "
        f"(95% of shuffles in [{low:.3f}, {high:.3f}]); "
        f"the true labels' {arm.auc.value:.3f} lies {beyond} that band, p = {p:.3g}."
    )
    return Finding(
        "baseline.permutation",
        "ok" if answer == "yes" else "error",
        answer,
        text,
        float(finite.mean()),
        (low, high),
        0.5,
        _n(arm.auc),
        {"p": p},
    )


def train_below_val(arm: ArmResult) -> Finding:
    """Is the student better on val than on the images it was taught? Then the train labels disagree with it."""
    difference = auc_difference_unpaired(arm.train_auc, arm.auc)
    answer = gains(difference)
    said = {
        "yes": "ranks val better than the images it was taught: many train labels contradict what it learned from them",
        "no": "does not rank val better than the images it was taught",
        "undecided": "may rank val better than the images it was taught",
    }[answer]
    text = f"The student {said} (train AUC {_auc(arm.train_auc)}, val {_auc(arm.auc)})."
    return _comparison("train_below_val", answer, text, difference)


def gradients(arm: ArmResult) -> Finding:
    """Does a gradient reach every trained parameter? One without any stays exactly where it was, decay or not.

    A part that no loss uses, an auxiliary head say, is no cut: only what lies before a part that learns counts.
    """
    name, trained = "baseline.gradients", arm.evidence.get("parameters", {})
    moved = {key: bool(found["delta"] > 0) for key, found in trained.items() if found["trained"]}
    if not moved or arm.settings["training"]["weight_decay"] == 0 or arm.stopped:
        return Finding(name, "note", "undecided", "Whether gradients reach every parameter cannot be judged.")
    learning = [place for place, key in enumerate(moved) if moved[key]]
    cut = [
        key for place, key in enumerate(moved) if not moved[key] and (not learning or place < learning[-1])
    ]
    data = {"unreached": cut[:LISTED], "n_unreached": len(cut), "n_trained": len(moved)}
    if not cut:
        text = f"Gradients reach all {len(moved)} trained tensors."
        return Finding(name, "ok", "yes", text, 0.0, None, 0.0, len(moved), data)
    text = (
        f"No gradient ever reached {len(cut)} of {len(moved)} trained tensors ({', '.join(cut[:3])}"
        f"{', ...' if len(cut) > 3 else ''}), though the loss depends on what comes after them."
    )
    return Finding(name, "error", "no", text, len(cut) / len(moved), None, 0.0, len(moved), data)


def batchnorm(difference: AucDifference, taken_in: float | None) -> Finding:
    """Do fresh BatchNorm statistics raise the AUC of the very same weights?

    `taken_in`: the share of the statistics that the training's own batches make up (`diag_lib.models.taken_in`).
    """
    answer = gains(difference)
    said = {"yes": "raises", "no": "does not raise", "undecided": "may change"}[answer]
    text = f"Measuring the BatchNorm statistics anew on train {said} the AUC: {_change(difference)}."
    still = taken_in is not None and taken_in < STILL
    if still:
        text += f" In a layer only {taken_in:.2%} of them come from this training: its momentum is too low to follow."
    return _comparison("batchnorm", answer, text, difference, {"taken_in": taken_in, "still": still})


def pooling(choice: Choice, settings: Settings) -> Finding:
    """Does another pooling of the very same patch logits rank the images better?"""
    text = (
        "No other pooling of the same patch logits ranks the images better."
        if choice.best == choice.reference
        else f"Pooling the same patch logits by {choice.best} instead: "
        f"{_change(choice.proof)} on images that chose nothing."
    )
    best = pooling_variants(settings.pooling)[choice.best]
    patch = {"pooling": best.model_dump()} if choice.best != choice.reference else None
    return _comparison("pooling", choice.answer, text, choice.proof, {"best": choice.best, "settings": patch})


def overfit(fit: BatchFit) -> Finding:
    """Can the student memorise one batch?"""
    best = fit.table.iloc[int(fit.table["auc"].fillna(0).to_numpy().argmax())]
    reached = (
        f"AUC {best['auc']:.2f} on its own {fit.images} images after "
        f"{best['steps']:.0f} steps at {best['factor']:g} times the rate"
    )
    if fit.passed:
        text = f"The student can overfit one batch: {reached}. Gradients arrive and parameters move."
    elif not fit.flows:
        text = "No gradient reaches the trained parameters: the output is detached from them, or the loss is flat."
    elif not fit.moved:
        text = "Gradients arrive but no parameter moves."
    else:
        text = f"The student cannot overfit one batch: {reached} is its best. What it trains is too small, or frozen."
    return Finding(
        "baseline.overfit_batch",
        "ok" if fit.passed else "warning",
        "yes" if fit.passed else "no",
        text,
        float(best["auc"]),
        None,
        0.95,
        fit.images,
        {"factor": fit.factor, "gradients_flow": fit.flows, "parameters_move": fit.moved},
    )


def learning_rate(
    choice: Choice, factors: Mapping[str, float], extra: Mapping[str, Mapping[str, Any]], ladder: pd.DataFrame
) -> Finding:
    """Does another learning rate serve better? A tenth, ten times, and the most promising of a short ladder."""
    if choice.best == choice.reference:
        tried = ", ".join(f"{factor:g}" for factor in sorted(factors.values()))
        text = f"No other learning rate serves better (tried in full: {tried} times yours)."
        data: dict[str, Any] = {"factor": 1.0, "settings": None}
    else:
        factor = factors[choice.best]
        text = f"{factor:g} times the learning rate: {_change(choice.proof)} on images that chose nothing."
        rates = {key.rpartition(".")[2]: value for key, value in extra[choice.best].items() if ".lr_" in key}
        data = {"factor": factor, "settings": {"training": rates}}
    data |= {"on_half_a": choice.on_a, "ladder": ladder.to_dict("list")}
    return _comparison("learning_rate", choice.answer, text, choice.proof, data)


def frozen(difference: AucDifference, settings: Settings) -> Finding:
    """Does training every parameter serve better than the configured parts?"""
    answer = gains(difference)
    trained = f"{', '.join(settings.student.trainable_s1)} then {', '.join(settings.student.trainable_s2)}"
    said = {"yes": "serves better", "no": "serves no better", "undecided": "may serve better"}[answer]
    text = f"Training every parameter instead of {trained} {said}: {_change(difference)}."
    patch = {"student": {"trainable_s1": ["all"], "trainable_s2": ["all"]}}
    return _comparison("frozen", answer, text, difference, {"settings": patch})


def undertrained(difference: AucDifference, times: float, epochs: Mapping[str, int]) -> Finding:
    """Does a longer schedule serve better?"""
    answer = gains(difference)
    said = {"yes": "serves better", "no": "serves no better", "undecided": "may serve better"}[answer]
    text = f"Training {times:.3g} times as long {said}: {_change(difference)}."
    patch = {"training": {key.rpartition(".")[2]: value for key, value in epochs.items()}}
    return _comparison("undertrained", answer, text, difference, {"times": times, "settings": patch})


def resize(difference: AucDifference, side: float, image_size: int) -> Finding:
    """Do native pixels serve better than squashed ones?"""
    answer = gains(difference)
    said = {"yes": "serves better", "no": "serves no better", "undecided": "may serve better"}[answer]
    text = (
        f"Images are about {side:.0f} pixels wide and squashed to {image_size}; cropping native pixels instead {said}: "
        f"{_change(difference)}."
    )
    return _comparison("resize", answer, text, difference, {"settings": {"dataset": {"resize": "crop"}}})


def heldout_train(measured: Auc, threshold: float) -> Finding:
    """Does what part of train teaches hold for the rest of train?"""
    answer = answer_above(measured.ci, threshold) if measured.defined else "undecided"
    then = {
        "yes": "the train labels can be learned, so the loss happens on the way from train to val",
        "no": "trained like this, the train labels teach nothing that generalises",
        "undecided": f"not clear against {threshold:.2f}{_needs(measured, threshold)}",
    }[answer]
    text = f"Trained on part of train, the student ranks the rest of train at AUC {_auc(measured)}: {then}."
    return Finding(
        "baseline.heldout_train",
        _VIRTUE[answer],
        answer,
        text,
        measured.value,
        measured.ci,
        threshold,
        _n(measured),
    )


def val_learnable(measured: Auc, threshold: float) -> Finding:
    """Can the val labels be learned from val images?"""
    answer = answer_above(measured.ci, threshold) if measured.defined else "undecided"
    then = {
        "yes": "the val labels can be learned by this student",
        "no": "the val labels cannot be learned by this student either",
        "undecided": f"not clear against {threshold:.2f}{_needs(measured, threshold)}",
    }[answer]
    text = f"Trained on half A of val, the student ranks half B at AUC {_auc(measured)}: {then}."
    severity: Severity = "ok" if answer == "yes" else "note"
    return Finding(
        "baseline.val_learnable", severity, answer, text, measured.value, measured.ci, threshold, _n(measured)
    )


def _comparison(
    name: str, answer: Answer, text: str, difference: AucDifference, data: dict[str, Any] | None = None
) -> Finding:
    return Finding(
        f"baseline.{name}",
        _PROBLEM[answer],
        answer,
        text,
        difference.delta,
        difference.ci,
        0.0,
        _n(difference.after),
        sides(difference) | (data or {}),
    )


def _change(difference: AucDifference) -> str:
    if not (difference.before.defined and difference.after.defined):
        return "not measurable (constant scores)"
    low, high = difference.ci
    return (
        f"AUC {difference.before.value:.2f} to {difference.after.value:.2f} "
        f"({difference.delta:+.2f} [{low:+.2f}, {high:+.2f}])"
    )


def _auc(measured: Auc) -> str:
    return (
        f"{measured.value:.2f} [{measured.ci[0]:.2f}, {measured.ci[1]:.2f}]"
        if measured.defined
        else "undefined"
    )


def _needs(measured: Auc, threshold: float) -> str:
    if not measured.defined or abs(measured.value - threshold) < 0.01:
        return ""
    return f" (about {n_per_class_needed(measured.value, threshold):,} images a class would decide it)"


def _n(measured: Auc) -> int:
    return measured.n_real + measured.n_fake


def _stopped(arm: ArmResult) -> str:
    return f" ({arm.stopped})" if arm.stopped else ""
