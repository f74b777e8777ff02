"""How does the recorded training move? Step sizes, gradients, the fit to the teacher, collapse, BatchNorm."""

import math
from collections.abc import Callable

import numpy as np

from diag_lib.evidence import Answer, Finding
from diag_lib.recording import Event, entry, value, values
from diag_lib.statistics import mean_interval
from diag_lib.symptoms.code import Floats, Log, made, median

# ||step|| / ||weights|| is about 1e-3 in a training that works (Karpathy, makemore part 4). In the demo's healthy
# loops the median is 3e-3; a rate 1,000 times lower gives 6e-6, one 1,000 times higher .12 (and blown-up weights).
STEP_LOW, STEP_HIGH = 3e-5, 0.1
RATE_DIFFERS = 10.0  # times the configured learning rate: another optimiser than the settings say
FOLLOWS, STRANGER = 0.3, 0.1  # correlation with the teacher's patches
TOGETHER = 0.3  # normalised cosine of the two losses' gradients; healthy runs reach about .9
COLLAPSED = 1e-3  # standard deviation of all patch logits
STILL = 1e-4  # drift of BatchNorm's running means over an epoch, in running standard deviations


def update_ratio(log: Log) -> Finding:
    ratios = np.array([step_ratio(e) for e in log.recording.updates])
    ratio = median(ratios)
    if not math.isfinite(ratio):
        return made("update_ratio", "undecided", "No optimiser step was examined.")
    rates = [entry(e, "lr", 0) for e in log.recording.updates]
    rate = float(np.nanmax(rates)) if any(map(math.isfinite, rates)) else math.nan
    chosen = log.settings.training
    configured = max(chosen.lr_s1 if chosen.epochs_s1 else 0.0, chosen.lr_s2 if chosen.epochs_s2 else 0.0)
    away = rate / configured if configured > 0 and rate > 0 else math.nan
    direction = "low" if ratio < STEP_LOW else "high" if ratio > STEP_HIGH else ""
    other = "low" if away < 1 / RATE_DIFFERS else "high" if away > RATE_DIFFERS else ""
    data = {"direction": direction or other, "rate": rate, "configured": configured}
    said = f"A step moves the weights by {ratio:.1e} of their length (median of {len(ratios)} examined steps"
    said += f", learning rate {rate:.1e})" if math.isfinite(rate) else ")"
    if direction:
        said += ": next to nothing" if direction == "low" else ": each step overwrites what was learned"
    if other:
        said += f"; the settings say {configured:.1e}"
    answer: Answer = "yes" if direction or other else "no"
    limit = STEP_HIGH if direction == "high" else STEP_LOW
    return made(
        "update_ratio", answer, f"{said}.", severity="warning", value=ratio, threshold=limit, data=data
    )


def step_ratio(event: Event) -> float:
    """||step|| / ||weights|| of an examined update, over the tensors that moved."""
    table = event.get("tensors")
    names = [n for n in table if entry(table, n, 2) > 0] if isinstance(table, dict) else []
    if not names:  # nothing moved, or nobody knows: NaN weights
        still = isinstance(table, dict) and any(entry(table, n, 2) == 0 for n in table)
        return 0.0 if still else math.nan
    step, length = (math.hypot(*(entry(table, n, i) for n in names)) for i in (2, 0))
    return step / length if length > 0 else math.nan


def losses_agree(log: Log) -> Finding:
    """The cosine of both gradients, divided by the noise of each (the cosines between halves of a batch)."""
    updates = [e for e in log.recording.updates if math.isfinite(value(e, "gradients", "cosine"))]
    if not updates:
        said = "The gradients of both losses were not recorded (call step before backward, with distill and task)."
        return made("losses_agree", "undecided", said)
    cosine = values(updates, "gradients", "cosine")
    halves = values(updates, "gradients", "task_halves") * values(updates, "gradients", "distill_halves")
    with np.errstate(all="ignore"):
        clean = np.where(halves > 0.01, cosine / np.sqrt(halves), np.nan)
    normalised = float(np.clip(median(clean), -1, 1))
    raw = median(cosine)
    strength = median(values(updates, "gradients", "distill_norm")) / max(
        1e-30, median(values(updates, "gradients", "task_norm"))
    )
    shown = f"cosine {raw:.2f}" + (
        f", {normalised:.2f} without batch noise" if math.isfinite(normalised) else ""
    )
    data = {"cosine": raw, "normalised": normalised, "strength": strength, "steps": len(updates)}
    judged = normalised if math.isfinite(normalised) else raw
    low, high = _mean_interval(cosine)
    answer: Answer = "no" if high < 0 else "yes" if low > 0 and judged > TOGETHER else "undecided"
    words = {"yes": "the same way", "no": "against each other", "undecided": "mostly past each other"}[answer]
    said = (
        f"Teacher and labels pull the student {words} ({shown}); before weighting the distillation's gradient is "
        f"{strength:.3g} times as long."
    )
    return made("losses_agree", answer, said, severity="ok", otherwise="warning", value=judged,
                threshold=TOGETHER, data=data)  # fmt: skip


def _mean_interval(numbers: Floats) -> tuple[float, float]:
    """95% interval of the mean over the examined steps (Student's t); all of (-1, 1) for fewer than three."""
    if numbers.size < 3:
        return -1.0, 1.0
    return mean_interval(numbers).ci


def teacher_fit(log: Log) -> Finding:
    late = log.recording.steps[-max(3, len(log.recording.steps) // 4) :]
    rho, r2 = median(values(late, "fit", "rho")), median(values(late, "fit", "r2"))
    if not math.isfinite(rho):
        return made(
            "teacher_fit", "undecided", "The patches of both were not recorded, or one of them is constant."
        )
    answer: Answer = "yes" if rho > FOLLOWS else "no" if rho < STRANGER else "undecided"
    verb = {"yes": "follow", "no": "do not follow", "undecided": "hardly follow"}[answer]
    said = f"At the end the student's patches {verb} the teacher's: correlation {rho:.2f}, R^2 {r2:.2f}."
    return made("teacher_fit", answer, said, severity="ok", otherwise="note", value=rho, threshold=FOLLOWS,
                data={"r2": r2})  # fmt: skip


def collapse(log: Log) -> Finding:
    late = log.recording.steps[-max(3, len(log.recording.steps) // 4) :]
    name = "student" if any(math.isfinite(value(e, "student", "std")) for e in late) else "logits"
    spread, within = median(values(late, name, "std")), median(values(late, name, "within"))
    if not math.isfinite(spread):
        return made("collapse", "undecided", "No student outputs were recorded, or they are not finite.")
    what = "patches" if name == "student" else "image logits"
    more = f", {within:.3g} within an image" if math.isfinite(within) else ""
    said = f"At the end the student's {what} spread by {spread:.3g}{more}"
    said += ": it says the same of everything." if spread < COLLAPSED else "."
    return made("collapse", "yes" if spread < COLLAPSED else "no", said, value=spread, threshold=COLLAPSED)


def batchnorm(log: Log) -> Finding:
    epochs = [e for e in log.recording.epochs if math.isfinite(value(e, "norms", "drift"))]
    if not epochs:
        return made(
            "batchnorm",
            "undecided",
            "The student has no BatchNorm with running statistics, or no epoch ended.",
        )
    drift, momentum = values(epochs, "norms", "drift"), value(epochs[-1], "norms", "momentum")
    still = bool((drift < STILL).all())
    in_eval = [entry(e, "norms", 1) for e in log.recording.updates]
    held = bool(in_eval) and min(in_eval) > 0
    said = f"BatchNorm's running means move by {drift[-1]:.2g} standard deviations in the last epoch"
    if still:
        why = "the layers are in eval mode" if held else f"momentum {momentum:g}"
        said = f"BatchNorm's running statistics never move ({why}), so evaluation may see other numbers than training"
    data = {"drift": drift.tolist(), "momentum": momentum, "held": held}
    return made("batchnorm", "yes" if still else "no", f"{said}.", severity="warning", value=float(drift[-1]),
                threshold=STILL, data=data)  # fmt: skip


CHECKS: tuple[Callable[[Log], Finding], ...] = (update_ratio, losses_agree, teacher_fit, collapse, batchnorm)
