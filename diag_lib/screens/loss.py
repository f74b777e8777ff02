"""Which causes that lie in the distillation loss does the evidence make suspect?"""

from diag_lib.screens.case import (
    Case,
    RuledOut,
    Screen,
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


def _measured(finding_id: str) -> Screen:
    """The screen of a cause that one number of the logits shows, if the teacher knows anything worth imitating."""

    def screen(case: Case) -> Suspicion | RuledOut | None:
        found = case.finding(finding_id)
        if found is None or found.answer == "undecided":
            return None
        if found.answer == "no":
            return RuledOut(found.message)
        evidence = (found.id, "logits.fit", "teacher.auc")
        return _teacher_knows(case) or Suspicion(found.message, evidence, measured=True)

    return screen


offset = _measured("logits.offset")
heavy_tail = _measured("logits.heavy_tail")


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
    if case.nothing_moved:
        because = f"after {case.optimisation_steps} steps neither BCE only nor the status quo has learned"
        return Suspicion(because, ("distillation.best_arm", "baseline.auc"), weak=True)
    return RuledOut(
        f"BCE only ({baseline.value:.2f}) is not better than the status quo ({status_quo.value:.2f})"
    )
