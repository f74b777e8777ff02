"""Which causes that lie in the teacher does the evidence make suspect?"""

from diag_lib.evidence import Finding
from diag_lib.screens.case import (
    Case,
    RuledOut,
    Suspicion,
    interval_text,
)
from diag_lib.statistics import HEALTHY_GAIN, n_per_class_needed


def weights_not_loaded(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("teacher.weights_loaded")
    if found is None:
        return None
    return Suspicion(found.message, (found.id,)) if found.answer == "no" else RuledOut(found.message)


def teacher_train_mode(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("teacher.train_mode")
    if found is None or found.answer == "undecided":
        return None
    return (
        Suspicion(found.message, (found.id, "teacher.auc"))
        if found.answer == "yes"
        else RuledOut(found.message)
    )


def teacher_stale_cache(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("teacher.repeatable")
    if found is None or found.answer == "undecided":
        return None
    return (
        Suspicion(found.message, (found.id, "teacher.auc"))
        if found.answer == "no"
        else RuledOut(found.message)
    )


def teacher_preprocessing(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("teacher.preprocessing")
    if found is None:
        return None
    if found.answer == "no":
        return RuledOut(found.message)
    if found.answer == "yes" and not _worth_feeding_otherwise(case):
        return RuledOut(f"{found.message} Even so it would know too little to teach")
    if found.answer == "yes" and _head_room(found, case):
        return RuledOut(
            f"{found.message} As it is fed the teacher knows the classes, and so little explains no failure"
        )
    if _crops(found) and case.says("baseline.resize", "yes"):
        return RuledOut("native pixels serve the student as well as the teacher: it is the resizing")
    # A few enormous patches spoil the image logits; whatever damps them looks like the right preprocessing.
    outliers = case.says("logits.heavy_tail", "yes") and not case.says("teacher.bn_fingerprint", "yes")
    weak = found.answer == "undecided" or outliers
    evidence = (found.id, "teacher.bn_fingerprint")
    return Suspicion(found.message, evidence, weak=weak, corroborated=_made_that_way(found, case))


def _made_that_way(found: Finding, case: Case) -> bool:
    """Whether the BatchNorm statistics were made by the very preprocessing with which the teacher does better."""
    statistics = case.finding("teacher.bn_fingerprint")
    return (
        found.answer == "yes"
        and statistics is not None
        and statistics.answer == "yes"
        and statistics.data.get("best") == found.data.get("preprocess")
    )


def _head_room(found: Finding, case: Case) -> bool:
    """Whether a teacher that is good as it is fed gains a little, and its statistics do not contradict its settings."""
    now = case.interval("teacher.auc")
    good = now is not None and now[0] > case.limits.teacher_auc_good
    little = found.ci is not None and found.ci[0] <= HEALTHY_GAIN
    return good and little and not case.says("teacher.bn_fingerprint", "yes")


def _crops(found: Finding) -> bool:
    """Whether native pixels are what the better input has, with the network's own preprocessing left as it is."""
    patch = found.data.get("settings") or {}
    return patch.get("dataset", {}).get("resize") == "crop" and "teacher" not in patch


def _worth_feeding_otherwise(case: Case) -> bool:
    """Whether the teacher, fed in the better way that its probe proved, knows something for certain."""
    found = case.finding("teacher.preprocessing")
    after = found.data.get("after_ci") if found is not None and found.answer == "yes" else None
    return after is not None and after[0] > case.limits.teacher_auc_low


def teacher_inverted(case: Case) -> Suspicion | RuledOut | None:
    train, val = case.interval("teacher.auc_train"), case.interval("teacher.auc")
    if val is None:
        return None
    fed = case.finding("teacher.preprocessing")
    if fed is not None and not fed.data.get("flipped", True) and _worth_feeding_otherwise(case):
        return RuledOut(f"fed otherwise the teacher is not inverted: {fed.message}")
    if case.teacher_inverted and (train is None or train[1] < 0.5):
        because = f"the teacher ranks real above fake: AUC {interval_text(val)} on val, {interval_text(train)} on train"
        return Suspicion(because, ("teacher.inverted", "teacher.auc", "teacher.auc_train"))
    return RuledOut(f"the teacher's AUC {interval_text(val)} is not on the wrong side of one half")


def teacher_domain_shift(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("teacher.auc")
    if found is None or found.ci is None:
        return None
    low = case.limits.teacher_auc_low
    evidence = ("teacher.auc", "teacher.weights_loaded", "teacher.preprocessing", "distillation.best_arm")
    if case.says("teacher.weights_loaded", "no"):
        return RuledOut("the teacher's weights were not loaded, so its knowledge was never asked")
    if case.teacher_inverted:
        return RuledOut("the teacher separates the classes, the wrong way round")
    if case.teacher_useless is False:
        return RuledOut(f"teacher AUC {found.value:.2f} {interval_text(found.ci)} is above {low:.2f}")
    if case.teacher_useless:
        # Another input that helps is tried first. Turned round as well, it is chance's pick among many.
        fed = case.finding("teacher.preprocessing")
        otherwise = fed is not None and not fed.data.get("flipped", False) and _worth_feeding_otherwise(case)
        because = f"teacher AUC {found.value:.2f} {interval_text(found.ci)} is below {low:.2f}"
        return Suspicion(because, evidence, weak=otherwise)
    value = found.value if found.value is not None else 0.5
    truth = value if abs(value - low) > 0.01 else 0.5
    return Suspicion(
        f"teacher AUC {value:.2f} {interval_text(found.ci)}: not yet decided whether below {low:.2f}",
        evidence,
        weak=True,
        needs={"n_val_per_class": n_per_class_needed(truth, low)},
    )
