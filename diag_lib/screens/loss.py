"""Which causes that lie in the distillation loss does the evidence make suspect?"""

from diag_lib.screens.case import (
    Case,
    RuledOut,
    Suspicion,
    interval_text,
)
from diag_lib.statistics import MATERIAL_GAIN


def _teacher_knows(case: Case) -> RuledOut | None:
    if case.teacher_useless is not False:
        return RuledOut(
            f"the teacher's AUC {interval_text(case.interval('teacher.auc'))} leaves nothing worth rescaling"
        )
    return None


def offset(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("logits.offset")
    if found is None or found.answer == "undecided":
        return None
    if found.answer == "no":
        return RuledOut(found.message)
    return _teacher_knows(case) or Suspicion(
        found.message, (found.id, "logits.fit", "teacher.auc"), measured=True
    )


def heavy_tail(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("logits.heavy_tail")
    if found is None or found.answer == "undecided":
        return None
    if found.answer == "no":
        return RuledOut(found.message)
    return _teacher_knows(case) or Suspicion(
        found.message, (found.id, "logits.fit", "teacher.auc"), measured=True
    )


def scale(case: Case) -> Suspicion | RuledOut | None:
    ratio, mse = case.finding("logits.scale_ratio"), case.finding("logits.mse")
    if ratio is None:
        return None
    if ratio.answer == "no" and (mse is None or mse.answer != "yes"):
        return RuledOut(ratio.message)
    knows = _teacher_knows(case)
    if knows:
        return knows
    weak = ratio.answer == "undecided" and not case.status_quo_collapsed
    evidence = (ratio.id, "logits.mse", "logits.fit", "teacher.auc", "distillation.status_quo")
    return Suspicion(ratio.message, evidence, weak=weak, measured=ratio.answer == "yes")


def weight_too_high(case: Case) -> Suspicion | RuledOut | None:
    status_quo, baseline = case.arms.get("status_quo"), case.arms.get("bce_only")
    alpha = case.settings.training.distillation.alpha_distill
    if status_quo is None or baseline is None or alpha == 0 or case.teacher_useless is not False:
        return None
    if not (status_quo.defined and baseline.defined):
        return None
    if baseline.value > status_quo.value + MATERIAL_GAIN:
        because = (
            f"with the distillation AUC {status_quo.value:.2f} {interval_text(status_quo.ci)}, "
            f"without {baseline.value:.2f} {interval_text(baseline.ci)}, though the teacher is informative"
        )
        return Suspicion(because, ("distillation.best_arm", "teacher.auc", "baseline.auc"))
    return RuledOut(
        f"BCE only ({baseline.value:.2f}) is not better than the status quo ({status_quo.value:.2f})"
    )
