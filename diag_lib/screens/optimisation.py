"""Which causes that lie in the optimisation, the student or its pooling does the evidence make suspect?"""

from dataclasses import replace
from typing import Any, Literal

from diag_lib.screens.case import (
    CLEARLY_WORKS,
    OPTIMISATION,
    Case,
    RuledOut,
    Screen,
    Suspicion,
    interval_text,
)


def from_finding(finding_id: str, *, unless_rescued: bool = True) -> Screen:
    """The screen of a cause that one probe decides; weak where the standardised arm does what BCE only cannot."""

    def screen(case: Case) -> Suspicion | RuledOut | None:
        found = case.finding(finding_id)
        if found is None:
            return None
        # Two trainings that are both too short differ in nothing; one that is long enough does say something.
        too_short = case.nothing_moved and found.id != "baseline.undertrained"
        if found.answer == "no" and not too_short:
            return RuledOut(found.message)
        if found.answer == "undecided" and case.baseline_learns is True:
            return RuledOut("the student learns without it")
        # A standardised teacher can rescue a student that is frozen or trained too briefly: what brings more counts.
        weak = found.answer != "yes" or (unless_rescued and case.rescued)
        return Suspicion(found.message, (found.id, "baseline.auc"), weak=weak)

    return screen


def student_batchnorm(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("baseline.batchnorm")
    opinion = from_finding("baseline.batchnorm", unless_rescued=False)(case)
    still = found is not None and found.data.get("still") is True
    return replace(opinion, measured=still) if isinstance(opinion, Suspicion) else opinion


def undertrained(case: Case) -> Suspicion | RuledOut | None:
    opinion = from_finding("baseline.undertrained")(case)
    return replace(opinion, measured=case.hardly_trained) if isinstance(opinion, Suspicion) else opinion


def detached_graph(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("baseline.gradients")
    if found is None or found.answer == "undecided":
        return None
    if found.answer == "yes":
        return RuledOut(found.message)
    baseline = case.arms.get("bce_only")
    if baseline is not None and baseline.defined and baseline.ci[0] > CLEARLY_WORKS:
        return RuledOut(f"{found.message} The student learns all the same: AUC {interval_text(baseline.ci)}")
    return Suspicion(found.message, (found.id, "baseline.auc"))


def lr(direction: Literal["low", "high"]) -> Screen:
    probe = from_finding("baseline.learning_rate")

    def screen(case: Case) -> Suspicion | RuledOut | None:
        found = case.finding("baseline.learning_rate")
        factor = float(found.data.get("factor", 1.0)) if found else 1.0
        if found is not None and found.answer != "no" and (factor > 1) != (direction == "low"):
            return RuledOut(f"the better learning rate is the {'higher' if factor > 1 else 'lower'} one")
        return probe(case)

    return screen


def pooling_patch(case: Case) -> dict[str, Any] | None:
    """Mean pooling, which patch-logit teachers are trained with; from there, what the probe found to rank best."""
    if case.settings.pooling.kind != "mean":
        return {"pooling": {"kind": "mean"}}
    found = case.finding("baseline.pooling")
    return found.data.get("settings") if found is not None else None


def pooling_mismatch(case: Case) -> Suspicion | RuledOut | None:
    found, baseline = case.finding("baseline.pooling"), case.arms.get("bce_only")
    if found is None:
        return None
    works = baseline is not None and baseline.defined and baseline.ci[0] > CLEARLY_WORKS
    if case.settings.pooling.kind != "mean" and not works:
        kind = case.settings.pooling.kind
        because = f"the student is pooled by {kind}, patch-logit teachers by the mean; {found.message}"
        return Suspicion(because, (found.id, "baseline.auc"), weak=found.answer == "no")
    return from_finding("baseline.pooling", unless_rescued=False)(case)


def capacity(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("baseline.overfit_batch")
    if found is None or case.baseline_learns is True:
        return None
    if found.answer != "no":
        return RuledOut(found.message)
    flows = found.data.get("gradients_flow", False) and found.data.get("parameters_move", False)
    helped = any(case.says(name, "yes") for name in OPTIMISATION)
    return Suspicion(found.message, (found.id, "baseline.auc"), weak=not flows or helped or case.rescued)
