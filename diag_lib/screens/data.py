"""Which causes that lie in the images or their labels does the evidence make suspect?"""

import math
from typing import Any

from diag_lib.evidence import Finding
from diag_lib.screens.case import (
    CLEARLY_WORKS,
    ENOUGH_A_CLASS,
    GAP,
    IMAGENET_MEAN,
    IMAGENET_STD,
    OPTIMISATION,
    Case,
    RuledOut,
    Suspicion,
    interval_text,
)
from diag_lib.statistics import MATERIAL_GAIN

RUINOUS_SHARE = 0.1
"""Unreadable share of a class from which it can be what a failing training fails of; fewer are listed and left out."""


WRECKED_SHARE = 1 / 3
"""Unreadable share of a class from which a dataset is called broken, whatever the student makes of the rest."""
MIRRORED = 0.05
"""AUC by which a mirrored ranking of val may fall short of the ranking within train; a mere shift costs far more."""


def corrupt_images(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("audit.unreadable")
    if found is None:
        return None
    if found.answer != "yes" or found.severity != "error":
        return RuledOut(found.message)
    share = found.data.get("worst", 1.0)
    few = share < RUINOUS_SHARE
    if share < WRECKED_SHARE and (case.status_quo_works_clearly or (few and case.status_quo_learns)):
        return RuledOut(f"{found.message}, but the student learns from the others")
    return Suspicion(found.message, (found.id,), weak=few)


def leakage(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("audit.leakage")
    if found is None:
        return None
    if found.answer == "yes":
        return Suspicion(found.message, (found.id,))
    return RuledOut(found.message)


def shortcut(case: Case) -> Suspicion | RuledOut | None:
    joint = case.finding("audit.shortcut.joint")
    if joint is None:
        return None
    if joint.answer == "yes":
        step = case.evidence["audit"]
        single = [f for f in step.findings if f.id.startswith("audit.shortcut.") and f.answer == "yes"]
        return Suspicion(joint.message, tuple(f.id for f in single))
    if joint.answer == "no":
        return RuledOut(f"file properties alone reach AUC {joint.value:.2f} {interval_text(joint.ci)}")
    return Suspicion(joint.message, (joint.id,), weak=True)


def normalization_patch(case: Case) -> dict[str, Any] | None:
    """The settings that normalise these pixels well, or None where the audit found nothing wrong.

    What the teacher's own probe proved comes first, else ImageNet's values, which pretrained networks expect.
    """
    if not case.says("audit.normalization", "yes"):
        return None
    probed = case.finding("teacher.preprocessing")
    if probed is not None and probed.answer == "yes":
        dataset = (probed.data.get("settings") or {}).get("dataset", {})
        if "normalize_mean" in dataset:
            return {"dataset": {name: dataset[name] for name in ("normalize_mean", "normalize_std")}}
    return {"dataset": {"normalize_mean": list(IMAGENET_MEAN), "normalize_std": list(IMAGENET_STD)}}


def student_normalization(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("audit.normalization")
    if found is None or found.answer == "undecided":
        return None
    if found.answer == "yes":
        return Suspicion(found.message, (found.id, "distillation.status_quo"), seen=True)
    return RuledOut(f"the normalisation fits the pixels: {found.message}")


def too_little_data(case: Case) -> Suspicion | RuledOut | None:
    """Few images a class, and a student that knows them far better than others."""
    counts, baseline = case.finding("audit.imbalance"), case.finding("baseline.auc")
    if counts is None or baseline is None or baseline.ci is None or baseline.value is None:
        return None
    fewest = min(int(counts.data.get(name, ENOUGH_A_CLASS)) for name in ("real", "fake"))
    told = f"train has {fewest} images of its rarer class"
    if fewest >= ENOUGH_A_CLASS:
        return RuledOut(told)
    if baseline.ci[0] > CLEARLY_WORKS:
        return RuledOut(
            f"{told}, but they suffice: BCE-only AUC {baseline.value:.2f} {interval_text(baseline.ci)}"
        )
    if case.says("audit.imbalance", "yes"):
        return RuledOut(f"{told}, but it is the other class that is not: {counts.message}")
    train, known = baseline.data.get("train_ci"), baseline.data.get("train_auc")
    memorised = known is not None and known > baseline.value + GAP
    because = (
        f"{told}; BCE-only AUC {interval_text(baseline.ci)} on val against {interval_text(train)} on them"
    )
    return Suspicion(because, (counts.id, baseline.id, "baseline.overfit_batch"), weak=not memorised)


def labels_inverted_train(case: Case) -> Suspicion | RuledOut | None:
    train, val = case.interval("teacher.auc_train"), case.interval("teacher.auc")
    if train is None or val is None:
        return None
    low = case.limits.teacher_auc_low
    if train[1] < 1 - low and val[0] > low:
        shown = f"{interval_text(train)} on train but {interval_text(val)} on val"
        because = f"the teacher's AUC is {shown}: train labels are swapped"
        return Suspicion(because, ("teacher.auc_train", "teacher.auc"))
    turned = _turned_round(case)
    if turned is not None:
        return turned
    # A teacher that knows nothing cannot tell swapped labels from right ones.
    if case.teacher_useless is not False and not case.teacher_inverted:
        return _labels_teach(case)
    return RuledOut(
        f"the teacher's AUC on train {interval_text(train)} is not the mirror of val {interval_text(val)}"
    )


def _labels_teach(case: Case) -> RuledOut | None:
    """Where nobody else judges the train labels: a student that learns val's order from them alone."""
    baseline = case.arms.get("bce_only")
    if case.baseline_learns is not True or baseline is None:
        return None
    return RuledOut(f"the train labels alone teach to rank val: BCE-only AUC {interval_text(baseline.ci)}")


def _turned_round(case: Case) -> Suspicion | None:
    """Without a teacher to tell: a student that ranks val as wrongly as it ranks other train images rightly."""
    baseline, held_out = case.arms.get("bce_only"), case.interval("baseline.heldout_train")
    if case.teacher_useless is False or baseline is None or not baseline.defined or held_out is None:
        return None
    if baseline.ci[1] >= 1 - case.limits.baseline_auc or 1 - baseline.value < held_out[0] - MIRRORED:
        return None
    because = (
        f"labels alone teach what holds within train (AUC {interval_text(held_out)}) "
        f"and is the wrong way round on val ({interval_text(baseline.ci)})"
    )
    return Suspicion(because, ("baseline.auc", "baseline.heldout_train"))


def labels_shuffled(case: Case) -> Suspicion | RuledOut | None:
    held_out, val = case.finding("baseline.heldout_train"), case.finding("baseline.val_learnable")
    train_auc, val_auc = case.interval("teacher.auc_train"), case.interval("teacher.auc")
    limits = case.limits
    teacher_disagrees = (
        train_auc is not None
        and val_auc is not None
        and train_auc[1] < limits.baseline_auc < limits.teacher_auc_good < val_auc[0]
        and train_auc[1] > 1 - limits.teacher_auc_low
    )
    if held_out is not None and held_out.answer == "yes":
        return RuledOut(
            f"a student trained on part of train ranks the rest: AUC {interval_text(held_out.ci)}"
        )
    if (
        train_auc is not None
        and val_auc is not None
        and val_auc[0] > limits.teacher_auc_good
        and train_auc[0] > limits.teacher_auc_low
    ):
        return RuledOut(
            f"the teacher, good on val, still agrees with the train labels: AUC {interval_text(train_auc)}"
        )
    if teacher_disagrees:
        because = f"the teacher ranks val {interval_text(val_auc)} but not train {interval_text(train_auc)}"
        return Suspicion(because, ("teacher.auc_train", "teacher.auc", "baseline.heldout_train"))
    if held_out is None or val is None or case.baseline_learns is not False:
        return None
    if held_out.answer == "no" and val.answer == "yes":
        because = (
            f"train labels cannot be learned (held-out train AUC {interval_text(held_out.ci)}), "
            f"val labels can ({interval_text(val.ci)})"
        )
        return Suspicion(because, ("baseline.heldout_train", "baseline.val_learnable"))
    return None


def label_noise(case: Case) -> Suspicion | RuledOut | None:
    """The teacher's AUC shrinks on train by about (1 - 2e) when a fraction e of the train labels is wrong."""
    train, val = case.finding("teacher.auc_train"), case.finding("teacher.auc")
    below = case.finding("baseline.train_below_val")
    if train is None or val is None or train.ci is None or val.ci is None or below is None:
        return None
    if val.ci[0] < case.limits.teacher_auc_good:  # it knows too little to judge labels by
        return _labels_teach(case)
    if train.ci[1] > val.ci[0] - MATERIAL_GAIN:
        return RuledOut(
            f"the teacher ranks train {interval_text(train.ci)} about as well as val {interval_text(val.ci)}"
        )
    evidence = ("teacher.auc_train", "teacher.auc", "baseline.train_below_val")
    because = (
        f"the teacher's AUC is {interval_text(train.ci)} on train against {interval_text(val.ci)} on val"
    )
    return Suspicion(f"{because}; {below.message}", evidence, weak=below.answer != "yes")


def patch_misalignment(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("logits.alignment")
    if found is None or found.answer == "undecided":
        return None
    return Suspicion(found.message, (found.id,)) if found.answer == "no" else RuledOut(found.message)


def wrong_activation(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("logits.activation")
    if found is None or found.answer == "undecided":
        return None
    if found.answer == "no":
        return RuledOut(found.message)
    if found.data.get("side") != "student":
        return Suspicion(found.message, (found.id,))
    if case.status_quo_works_clearly:
        return RuledOut(f"{found.message} It learns all the same")
    return Suspicion(found.message, (found.id,), direct=True)


def _far_above_val(held_out: Finding, case: Case) -> bool:
    """Whether the student ranks images of train that it was not taught far better than those of val."""
    val = case.arms.get("bce_only")
    return held_out.ci is not None and val is not None and val.defined and held_out.ci[0] > val.ci[1] + GAP


def split_shift(case: Case) -> Suspicion | RuledOut | None:
    held_out = case.finding("baseline.heldout_train")
    if held_out is None or case.baseline_learns is True:
        return None
    if held_out.answer == "yes" and (case.baseline_learns is False or _far_above_val(held_out, case)):
        because = (
            f"within train the student generalises (AUC {interval_text(held_out.ci)}), on val it does not"
        )
        # Where val cannot be learned from itself, its labels may be what is wrong: nothing is proven then.
        unlearnable = not case.says("baseline.val_learnable", "yes")
        evidence = ("baseline.heldout_train", "baseline.val_learnable", "baseline.auc", "audit.drift")
        return Suspicion(because, evidence, weak=unlearnable)
    if held_out.answer == "no":
        return RuledOut(
            f"the student does not generalise within train either: AUC {interval_text(held_out.ci)}"
        )
    return None


def class_imbalance(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("audit.imbalance")
    if found is None:
        return None
    if found.answer == "no":
        return RuledOut(found.message)
    # A teacher can carry the student a little way where labels of which one is hardly ever seen teach nothing.
    if case.baseline_learns is True or (case.baseline_learns is None and case.status_quo_learns):
        return RuledOut(f"{found.message}, but the student learns all the same")
    return Suspicion(found.message, (found.id,))


def no_signal(case: Case) -> Suspicion | RuledOut | None:
    """Neither split can be learned from itself, each for certain or both taken together."""
    held_out, val = case.finding("baseline.heldout_train"), case.finding("baseline.val_learnable")
    batch = case.finding("baseline.overfit_batch")
    if held_out is None or val is None or case.baseline_learns is not False:
        return None
    if held_out.answer != "no" or val.answer == "yes" or batch is None or batch.answer != "yes":
        return None
    because = (
        f"neither train {interval_text(held_out.ci)} nor val {interval_text(val.ci)} can be learned, "
        "yet one batch can be overfit"
    )
    evidence = (held_out.id, val.id, batch.id, *OPTIMISATION)
    open_still = any(_may_help(case, name) for name in (*OPTIMISATION, "baseline.resize"))
    open_still = open_still or case.rescued or case.teacher_useless is False
    if val.answer == "no":
        return Suspicion(because, evidence, weak=open_still)
    together = _mean_interval(held_out, val)
    unclear = together is None or val.value is None or max(val.value, together[1]) >= case.limits.baseline_auc
    because = f"train {interval_text(held_out.ci)} cannot be learned, and val {interval_text(val.ci)} hardly"
    if not unclear:
        because += f" (their mean {interval_text(together)}), yet one batch can be overfit"
    return Suspicion(because, evidence, weak=unclear or open_still)


def _mean_interval(one: Finding, other: Finding) -> tuple[float, float] | None:
    """The 95% interval of the mean of two AUCs on different images."""
    if one.value is None or other.value is None or one.ci is None or other.ci is None:
        return None
    mean = (one.value + other.value) / 2
    low = math.hypot(one.value - one.ci[0], other.value - other.ci[0]) / 2
    high = math.hypot(one.ci[1] - one.value, other.ci[1] - other.value) / 2
    return mean - low, mean + high


def _may_help(case: Case, probe: str) -> bool:
    """Whether what a probe changes leaves room for an AUC above `baseline_auc`."""
    found = case.finding(probe)
    if found is None or found.answer == "no":
        return False
    reached = found.data.get("after_ci")
    return reached is None or reached[1] >= case.limits.baseline_auc
