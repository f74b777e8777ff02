"""Is the code of the recorded training wrong? Each check reads a recording and names a slip that it shows.

What is answered with yes or no here was computed from the loop's own tensors: a formula either gives the reported
number or it does not. Values within `SAME` of each other are taken as equal.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diag_lib.evidence import Answer, Finding, Severity
from diag_lib.recording import Event, Recording, entry, scores_of, value, values
from diag_lib.settings import Settings
from diag_lib.statistics import Auc, auc_difference

Floats = NDArray[np.float64]

SAME = 0.02  # relative difference of two numbers that are the same loss
CLOSE = 0.005  # the same for formulas whose values lie near each other
MOSTLY = 0.9  # share of the looks that must agree
ENOUGH = 2  # looks (or updates) without which nothing is claimed
AUC_SLIP = 0.02  # a reported AUC this far from the exact one, and by three standard errors, is another number
AUC_SAME = 0.005
CLEAN = 0.1  # part of a gradient that a formula may leave unexplained
NON_FINITE = 0.01  # share of the steps; fp16 loss scaling loses a few by design, see docs/recorder.md
SMALL_SCALE = (
    1.0  # fp16 scaling starts at 65,536: below this it has failed at least sixteen more times than not
)
PART = 0.05  # share of the weights from which a part that does not learn matters
FEW_PATCHES = 30  # below this many patches a sum cannot be told from a temperature squared


@dataclass(frozen=True)
class Log:
    """A recording, the settings it is judged by, and the exact AUC of its last validation."""

    recording: Recording
    settings: Settings
    auc: Auc | None


def made(
    name: str,
    answer: Answer,
    said: str,
    *,
    severity: Severity = "error",
    otherwise: Severity = "ok",
    **more: Any,
) -> Finding:
    """A finding `symptoms.<name>`: of that severity where the answer is yes, `otherwise` where it is no."""
    shown: dict[Answer, Severity] = {"yes": severity, "no": otherwise, "undecided": "note"}
    return Finding(f"symptoms.{name}", shown[answer], answer, said, **more)


def median(numbers: Floats) -> float:
    """The median of the finite numbers, NaN where there are none."""
    finite = numbers[np.isfinite(numbers)]
    return float(np.median(finite)) if finite.size else math.nan


def agree(holds: NDArray[np.bool_]) -> bool:
    """Whether it holds in nearly all of at least two looks."""
    return holds.size >= ENOUGH and float(holds.mean()) >= MOSTLY


# ---- evaluation

EXPLAINED = {
    "cut": "it is the AUC of scores cut at one half: rank the raw logits, not decisions",
    "inverted": "it is one minus the exact AUC: scores or labels are upside down",
    "sigmoid16": "it is the AUC after a sigmoid in fp16, where large logits tie: rank the raw logits",
    "sigmoid32": "it is the AUC after a sigmoid, where large logits tie: rank the raw logits",
}


def evaluation(log: Log) -> Finding:
    told_too = [e for e in log.recording.epochs if e.get("reported") is True]
    rows = [e for e in told_too if math.isfinite(value(e, "seen", "exact"))]
    if not rows:
        return made(
            "evaluation", "undecided",
            "The recording holds no reported AUC together with raw validation logits and labels, so your evaluation "
            "could not be checked.",
        )  # fmt: skip
    told = np.array([v / 100 if 1.5 < v <= 100 else v for v in values(rows, "val_auc")])
    exact = values(rows, "seen", "exact")
    off = told - exact
    last = rows[-1]
    scores = scores_of(last)
    se = scores.auc().se if scores is not None else 0.0
    limit = max(AUC_SLIP, 3 * se) if math.isfinite(se) else AUC_SLIP
    bad = ~(np.abs(off) <= limit)
    shown = f"your loop reports AUC {told[-1]:.3f}, the recorded logits rank at {exact[-1]:.3f}"
    more: dict[str, Any] = {
        "value": float(off[-1]) if math.isfinite(off[-1]) else None,
        "threshold": limit,
        "n": _images(last),
        "data": {"reported": float(told[-1]), "exact": float(exact[-1]), "explanation": ""},
    }
    running = np.maximum.accumulate(exact)
    if len(rows) > 1 and bad.any() and np.all(np.abs(told - running) <= AUC_SAME):
        said = (
            f"Your loop reports its best AUC so far ({told[-1]:.3f}), not the last epoch's ({exact[-1]:.3f})."
        )
        return made("evaluation", "no", said, **more)
    if bad[-1] and bad.mean() >= 0.5:
        why = _slip(last, float(told[-1]))
        more["data"]["explanation"] = why
        reason = EXPLAINED.get(
            why, "check that each score stays with its own label, and what is passed to the AUC"
        )
        return made("evaluation", "yes", f"The reported AUC is wrong: {shown}; {reason}.", **more)
    if np.all(np.abs(off) <= AUC_SLIP):
        return made("evaluation", "no", f"The reported AUC is right: {shown}.", **more)
    if not bad.any():
        said = f"The reported AUC is not the exact one, but {_images(last)} images are too few to judge: {shown}."
        return made("evaluation", "undecided", said, **more)
    said = f"In {int(bad.sum())} of {len(rows)} epochs the reported AUC is not the exact one; in the last, {shown}."
    return made("evaluation", "undecided", said, **more)


def _slip(event: Event, told: float) -> str:
    """Which known slip gives the reported number."""
    exact = value(event, "seen", "exact")
    candidates = {"inverted": 1 - exact} | {
        k: value(event, "seen", k) for k in ("cut", "sigmoid16", "sigmoid32")
    }
    return next((name for name, auc in candidates.items() if abs(auc - told) <= AUC_SAME), "")


def _images(event: Event) -> int | None:
    n = value(event, "seen", "n_real") + value(event, "seen", "n_fake")
    return int(n) if math.isfinite(n) else None


def checkpoint(log: Log) -> Finding:
    """Stale: the evaluated weights were there before this epoch, while the trained ones moved on."""
    seen = {_hash(start, "weights") for start in log.recording.starts[:1]} - {""}
    stale, judged, of_best, best = [], 0, False, (-math.inf, "")
    for event in log.recording.epochs:
        weights = event.get("weights")
        trained, evaluated = _hash(weights, "trained"), _hash(weights, "evaluated")
        if evaluated and value(event, "counts", "updates") > 0:
            judged += 1
            moved_on = trained != evaluated or (isinstance(weights, dict) and weights.get("replaced") is True)
            if evaluated in seen and moved_on:
                stale.append(event)
                of_best = evaluated == best[1]
        best = (
            max(best, (value(event, "val_auc"), evaluated))
            if math.isfinite(value(event, "val_auc"))
            else best
        )
        seen |= {trained, evaluated} - {""}
    if not judged:
        return made("checkpoint", "undecided", "The recording does not say which weights were evaluated.")
    data = {"stale_epochs": len(stale), "judged_epochs": judged}
    last = bool(stale) and stale[-1] is log.recording.epochs[-1]
    if last and len(stale) == 1 and judged > 1 and of_best:
        said = "The last validation is that of the best epoch's weights, as is usual."
        return made("checkpoint", "no", said, data=data)
    if last and len(stale) >= judged / 2:
        said = (
            f"In {len(stale)} of {judged} epochs the validation saw older weights than those that were trained: "
            "an old checkpoint, or a copy of the network that is never updated."
        )
        return made("checkpoint", "yes", said, data=data)
    answer: Answer = "undecided" if stale else "no"
    said = (
        f"In {len(stale)} of {judged} epochs older weights were evaluated."
        if stale
        else "Every validation saw weights of its own epoch."
    )
    return made("checkpoint", answer, said, data=data)


def _hash(record: Any, key: str) -> str:
    found = record.get(key) if isinstance(record, dict) else None
    return found if isinstance(found, str) else ""


def pooling(log: Log) -> Finding:
    """Which pooling is best is chosen on every second image and shown on the others."""
    scores = log.recording.last_scores()
    if scores is None or not scores.pooled:
        said = "No validation patches were recorded (val_patches), so no other pooling could be tried."
        return made("pooling", "undecided", said)
    chosen, proven = np.arange(len(scores.labels)) % 4 < 2, np.arange(len(scores.labels)) % 4 >= 2
    gains = {}
    for name, pooled in scores.pooled.items():
        if not (np.isfinite(pooled).all() and np.isfinite(scores.logits).all()):
            return made("pooling", "undecided", "The validation scores are not finite.")
        gains[name] = _gain(scores.labels[chosen], scores.logits[chosen], pooled[chosen])
    best = max(gains, key=lambda name: (gains[name], name))
    rows = proven
    found = auc_difference(scores.labels[rows], scores.logits[rows], scores.pooled[best][rows])
    words = {"mean": "their mean", "max": "their maximum", "top": "the mean of their top tenth"}
    shown = (
        f"pooling the recorded patches by {words.get(best, best)} changes the AUC by {found.delta:+.3f} "
        f"[{found.ci[0]:+.3f}, {found.ci[1]:+.3f}]"
    )
    answer: Answer = "yes" if found.ci[0] > AUC_SLIP else "no" if found.ci[1] < 2 * AUC_SLIP else "undecided"
    if found.after.ci[0] <= log.settings.thresholds.baseline_auc:  # less wrong is not right
        answer, shown = "no", f"{shown}, which leaves it without signal"
    more: dict[str, Any] = {"ci": found.ci, "threshold": AUC_SLIP, "n": int(rows.sum())}
    return made("pooling", answer, f"{shown[0].upper()}{shown[1:]}.", severity="warning",
                value=found.delta, data={"best": best}, **more)  # fmt: skip


def _gain(labels: Any, before: Floats, after: Floats) -> float:
    delta = auc_difference(labels, before, after).delta
    return delta if math.isfinite(delta) else -1.0


# ---- numbers


def overflow(log: Log) -> Finding:
    epochs, steps = log.recording.epochs, log.recording.steps
    counted, broken = values(epochs, "counts", "steps"), values(epochs, "counts", "nonfinite")
    total = float(np.nansum(counted))
    losses = values(steps, "loss")
    seen = float(np.mean(~np.isfinite(losses))) if losses.size else 0.0
    share = float(np.nansum(broken)) / total if total else seen
    weights_broken = bool(epochs) and epochs[-1].get("finite") is False
    scales = values((*steps, *epochs), "scale")
    scale = next((s for s in scales[::-1] if math.isfinite(s)), math.nan)
    said = []
    if weights_broken:
        said.append("the weights are no longer finite numbers")
    if share > 0:
        said.append(f"the loss is NaN or infinite in {share:.1%} of the steps")
    if scale < SMALL_SCALE:
        said.append(f"the fp16 loss scale has fallen to {scale:g}: nearly every step was skipped")
    answer: Answer = "yes" if weights_broken or share > NON_FINITE or scale < SMALL_SCALE else "no"
    if answer == "no" and share > 0:
        answer = "undecided"
    if not said:
        return made(
            "overflow", "no", "Losses, weights and the fp16 scale stay finite and in range.", value=share
        )
    text = "; ".join(said)
    return made("overflow", answer, f"{text[0].upper()}{text[1:]}.", value=share, threshold=NON_FINITE,
                data={"weights_finite": not weights_broken, "scale": scale})  # fmt: skip


# ---- what learns


def gradient_reach(log: Log) -> Finding:
    looks = [e for e in log.recording.steps if isinstance(e.get("differentiable"), bool)]
    if len(looks) >= ENOUGH and not any(e["differentiable"] for e in looks):
        said = "The loss has no gradient at all: it was cut from the network (detach, no_grad, item, numpy)."
        return made("gradient_reach", "yes", said, value=1.0, threshold=PART)
    tables = _update_tables(log)
    if not tables:
        return made("gradient_reach", "undecided", "No optimiser step was examined.")
    wanted = {n: r for n, r in log.recording.tensors().items() if r[1] is True}
    without = [n for n in wanted if all(_no_gradient(t, n) for t in tables)]
    share = _weight(wanted, without)
    data = {"tensors": without[:50], "share": share}
    if not without:
        return made(
            "gradient_reach", "no", "Every weight that should train gets a gradient.", value=0.0, data=data
        )
    said = (
        f"{share:.0%} of the weights that should train never get a gradient ({_named(without)}): "
        "the graph is cut before them."
    )
    return made(
        "gradient_reach",
        "yes" if share >= PART else "undecided",
        said,
        value=share,
        threshold=PART,
        data=data,
    )


def moved(log: Log) -> Finding:
    """Weights that the settings train but that stay: left out of the optimiser, frozen, or at rate 0."""
    table = {n: r for n, r in log.recording.tensors().items() if _meant(log.settings, n)}
    tables = _update_tables(log)
    if not table or not (tables or log.recording.epochs):
        return made("moved", "undecided", "The recording does not say which weights moved.")
    outside = [n for n, r in table.items() if r[1] is True and r[2] is False and not _moves(r, tables, n)]
    frozen = [n for n, r in table.items() if r[1] is False and not _moves(r, tables, n)]
    stuck = [n for n, r in table.items() if r[1] is True and r[2] is True and _gets_gradient(tables, n)
             and not _moves(r, tables, n)]  # fmt: skip
    share = _weight(table, [*outside, *frozen, *stuck])
    parts = [f"{what} ({_named(names)})" for what, names in (
        ("were not given to the optimiser", outside), ("have requires_grad off", frozen),
        ("get a gradient but a step of zero", stuck)) if names]  # fmt: skip
    data = {"outside": outside[:50], "frozen": frozen[:50], "stuck": stuck[:50], "share": share}
    if not parts:
        return made(
            "moved", "no", "Every weight that should train moves, or gets no gradient.", value=0.0, data=data
        )
    said = f"{share:.0%} of the weights that the settings train never move: they {' or '.join(parts)}."
    return made(
        "moved", "yes" if share >= PART else "undecided", said, value=share, threshold=PART, data=data
    )


def _update_tables(log: Log) -> list[Event]:
    return [t for e in log.recording.updates if isinstance(t := e.get("tensors"), dict)]


def _no_gradient(table: Event, name: str) -> bool:
    """None or exactly zero; NaN is no lack of a gradient."""
    row = table.get(name)
    return isinstance(row, list) and len(row) > 1 and (row[1] is None or row[1] == 0)


def _gets_gradient(tables: list[Event], name: str) -> bool:
    return any(entry(t, name, 1) > 0 for t in tables)


def _moves(row: list[Any], tables: list[Event], name: str) -> bool:
    away = entry({"row": row}, "row", 3)
    return away != 0 if math.isfinite(away) or not tables else any(entry(t, name, 2) > 0 for t in tables)


def _meant(settings: Settings, name: str) -> bool:
    names = {*settings.student.trainable_s1, *settings.student.trainable_s2}
    return "all" in names or bool(names & set(name.split(".")))


def _weight(table: dict[str, list[Any]], names: list[str]) -> float:
    sizes = {n: max(0.0, s) if math.isfinite(s := entry(table, n, 0)) else 0.0 for n in table}
    total = sum(sizes.values())
    return sum(sizes[n] for n in names) / total if total else 0.0


def _named(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# ---- losses

TERMS = {"task": "BCE", "distill": "distance to the teacher"}
PLAIN = {"task": "bce", "distill": "mse"}
FILLED = 0.5
"""Share of the range from 0 to 1 that a batch of probabilities spans and a student at chance does not."""


def loss_sign(log: Log) -> Finding:
    for term, words in TERMS.items():
        weight = np.array([entry(e.get("slopes"), term, 0) for e in log.recording.steps])
        rest = np.array([entry(e.get("slopes"), term, 1) for e in log.recording.steps])
        known = np.isfinite(weight) & np.isfinite(rest)
        if agree(weight[known] < 0) and median(rest[known]) < CLEAN:
            said = (
                f"The loss falls when the {words} rises: it enters with weight {median(weight[known]):.3g}, "
                "so every step makes it worse. A sign is wrong."
            )
            return made(
                "loss_sign", "yes", said, value=median(weight[known]), threshold=0.0, data={"term": term}
            )
        told, own = _reported(log, term)
        if agree(_equal(told, -own)):
            said = f"The reported {term} loss is minus the {words}: a sign is wrong."
            return made("loss_sign", "yes", said, threshold=0.0, data={"term": term})
    known = any(np.isfinite(entry(e.get("slopes"), t, 0)) for e in log.recording.steps for t in TERMS)
    if known:
        return made("loss_sign", "no", "Both losses enter with a positive weight.")
    return made("loss_sign", "undecided", "The gradient of the loss was not recorded (see the notes).")


def loss_reduction(log: Log) -> Finding:
    judged = False
    for term, words in TERMS.items():
        told, own = _reported(log, term)
        images = values(log.recording.steps, "batch")
        patches = values(log.recording.steps, "patches") if term == "distill" else np.ones(len(images))
        known = np.isfinite(told) & np.isfinite(own) & np.isfinite(images) & np.isfinite(patches)
        judged |= bool(known.any())
        told, own, images, patches = (a[known] for a in (told, own, images, patches))
        for factor, what in ((images * patches, "the batch"), (patches, "the patches of an image")):
            large = median(factor) >= (FEW_PATCHES if term == "distill" else ENOUGH + 2)
            if large and agree(_equal(told, own * factor)):
                said = (
                    f"The reported {term} loss is the sum over {what}, {median(factor):,.0f} times the mean "
                    f"{words}: it grows with batch and image size and outweighs the other loss."
                )
                return made("loss_reduction", "yes", said, value=median(factor), data={"term": term})
    if not judged:
        return made(
            "loss_reduction", "undecided", "The losses were not recorded together with what they are made of."
        )
    return made("loss_reduction", "no", "No reported loss is a sum in place of a mean.")


def activation(log: Log) -> Finding:
    """A sigmoid before the loss: the reported value is the formula's with, and not without, one."""
    steps = log.recording.steps
    for term, inputs in (("task", "logits"), ("distill", "student")):
        told, own = _reported(log, term)
        for key in ("bce_squashed",) if term == "task" else tuple(f"mse_squashed_{w}" for w in WHO):
            squashed = values(steps, "formula", key)
            if agree(_equal(told, squashed, CLOSE)) and not agree(_equal(told, own, CLOSE)):
                whose = WHO.get(key.removeprefix("mse_squashed_"), "")
                said = (
                    f"The reported {term} loss is that of outputs that went through a sigmoid first{whose}."
                )
                return made("activation", "yes", said, data={"term": term, "formula": key})
        by = _squashed_by(log, inputs)
        if by and agree(_equal(told, own)):
            said = f"The {inputs} outputs come out of a {by}, and the {term} loss takes them for logits."
            return made("activation", "yes", said, data={"term": term, "formula": by})
    if _in_unit_range(log, "teacher") and agree(_equal(*_reported(log, "distill"))):
        said = "The teacher's patches all lie between 0 and 1, and the student's logits are drawn to them."
        return made("activation", "yes", said, data={"term": "distill", "formula": "teacher"})
    if _in_unit_range(log, "logits") and not _is_raw(log, "logits"):
        said = "The recorded logits lie between 0 and 1: give the recorder raw logits, not probabilities."
        return made("activation", "undecided", said)
    if not steps or all("formula" not in e for e in steps):
        return made("activation", "undecided", "Neither logits nor patches were recorded.")
    return made("activation", "no", "The losses take raw logits.")


WHO = {"student": " (the student's)", "teacher": " (the teacher's)", "both": " (both)"}


def _in_unit_range(log: Log, name: str) -> bool:
    low, high = (values(log.recording.steps, name, end) for end in ("min", "max"))
    known = np.isfinite(low) & np.isfinite(high)
    inside = (low >= 0) & (high <= 1) & (high > low)
    return int(known.sum()) > ENOUGH and bool(inside[known].all())


def _squashed_by(log: Log, name: str) -> str:
    """What turned the outputs into probabilities: autograd saw it, or they fill the range as only probabilities do.

    That they lie in it is not enough: so do the raw logits of a student that has learned nothing yet.
    """
    seen = {_made_by(event, name) for event in log.recording.steps}
    if len(seen) == 1 and (by := seen.pop()) in ("sigmoid", "softmax"):
        return by
    low, high = (values(log.recording.steps, name, end) for end in ("min", "max"))
    fills = _in_unit_range(log, name) and not _is_raw(log, name) and median(high - low) > FILLED
    return "sigmoid" if fills else ""


def _is_raw(log: Log, name: str) -> bool:
    """Whether autograd saw no squashing behind the outputs."""
    return any(_made_by(event, name) == "none" for event in log.recording.steps)


def _made_by(event: Event, name: str) -> str:
    found = event.get(name)
    return str(found.get("made_by", "")) if isinstance(found, Mapping) else ""


def _reported(log: Log, term: str) -> tuple[Floats, Floats]:
    """(reported, plain formula) at each look."""
    return values(log.recording.steps, term), values(log.recording.steps, "formula", PLAIN[term])


def _equal(a: Floats, b: Floats, within: float = SAME) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        known = np.isfinite(a) & np.isfinite(b)
        return known & (np.abs(a - b) <= within * np.abs(b))


CHECKS: tuple[Callable[[Log], Finding], ...] = (
    evaluation,
    checkpoint,
    pooling,
    overflow,
    gradient_reach,
    moved,
    loss_sign,
    loss_reduction,
    activation,
)
