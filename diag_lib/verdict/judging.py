"""What do evidence and experiment say together about one suspected cause, and which of several is it?"""

import math
from collections.abc import Mapping
from dataclasses import replace

from diag_lib.causes import Cause, Status, rivals
from diag_lib.experiments import Comparison
from diag_lib.screens import CLEARLY_WORKS, Case, RuledOut, Suspicion
from diag_lib.statistics import HEALTHY_GAIN, MATERIAL_GAIN, SIGNIFICANT, holm, n_for_gain
from diag_lib.verdict.result import NamedCause, Open
from diag_lib.verdict.second_seed import gains_twice
from diag_lib.verdict.words import reached_text

CLEARLY_LESS = 0.03
"""AUC by which one intervention must fall short of another to be no explanation beside it."""
HARDLY_ANY = 0.05
"""Share of the rarer class below which a student has hardly seen it, whatever else makes the most of the few."""


Trial = tuple[Cause, Suspicion, Comparison | None]
"""A suspected cause and what its experiment showed."""


def judge_all(tried: list[Trial], case: Case) -> list[NamedCause | Open | RuledOut]:
    """Every trial judged, with Holm's correction over all experiments that were made."""
    p = holm({cause.id: proof.p for cause, _, proof in tried if proof is not None})
    return [judge(cause, suspicion, proof, p.get(cause.id, 1.0), case) for cause, suspicion, proof in tried]


def strongest_rival(
    judged: list[NamedCause | Open | RuledOut], case: Case
) -> list[NamedCause | Open | RuledOut]:
    """Of the causes that make a student learn worse keep the one whose removal brings most.

    Another learning rate, a longer schedule or a gentler teacher softens many a failure. One whose AUC stays
    `CLEARLY_LESS` below the best is ruled out; one that is about as good is named as equivalent. After a handful of
    steps, though, everything that speeds the training helps: then it is too short. So it is with a class of which there
    are hardly any images: what makes the most of them does not replace the missing ones. And where the student ranks
    unseen images of train, and val is of another kind, what makes it more robust does not make them of one kind.
    """
    known = rivals()
    contenders = [
        found for found in judged if isinstance(found, NamedCause) and found.id in known and found.proof
    ]
    if len(contenders) < 2:
        return judged
    reached = {found.id: found.proof.after.auc.value for found in contenders if found.proof}
    plain = _plain_cause({found.id: found.proof.delta for found in contenders if found.proof}, case)
    top = reached[plain] if plain else max(reached.values())
    level = [found for found in contenders if abs(reached[found.id] - top) < CLEARLY_LESS]
    best = min(level, key=lambda found: (found.id != plain, found.status != "established"))
    told = "The interventions bring the same; apply one, run again, and see whether the other still helps."
    others = tuple(found.id for found in level if found is not best)

    def keep(found: NamedCause | Open | RuledOut) -> NamedCause | Open | RuledOut:
        if found is best and others:
            return replace(
                best, equivalent=(*best.equivalent, *others), told_apart_by=best.told_apart_by or told
            )
        if isinstance(found, NamedCause) and found in contenders and found is not best:
            repaired = f"AUC {reached[best.id]:.2f} against {reached[found.id]:.2f}"
            if reached[found.id] > reached[best.id]:
                return RuledOut(
                    f"{found.because}; but {best.id} comes first ({repaired}): repair that, run again"
                )
            return RuledOut(f"{found.because}; but {best.id} explains it: {repaired}")
        return found

    return [keep(found) for found in judged]


def _plain_cause(gained: Mapping[str, float], case: Case) -> str | None:
    """The rival that images or logits make the answer by themselves, if its repair was shown to help."""
    if "undertrained" in gained and case.hardly_trained:
        return "undertrained"
    if "split_shift" in gained and case.says("audit.drift", "yes"):
        return "split_shift"
    # The very same logits or weights rank better: that is no matter of training, unless training brings far more.
    norms = case.finding("baseline.batchnorm")
    untrained = {
        "pooling_mismatch": case.settings.pooling.kind != "mean" and case.says("baseline.pooling", "yes"),
        "student_batchnorm": norms is not None and norms.answer == "yes" and norms.data.get("still") is True,
    }
    for name, shown in untrained.items():
        if shown and gained.get(name, 0.0) >= max(gained.values()) / 2:
            return name
    share = case.finding("audit.imbalance")
    rare = share is not None and share.value is not None and share.value < HARDLY_ANY
    return "class_imbalance" if rare and "class_imbalance" in gained else None


def established(judged: list[NamedCause | Open | RuledOut]) -> list[str]:
    return [found.id for found in judged if isinstance(found, NamedCause) and found.status == "established"]


def judge(
    cause: Cause, suspicion: Suspicion, proof: Comparison | None, p: float, case: Case
) -> NamedCause | Open | RuledOut:
    """Evidence and experiment together: established, likely, possible, open or ruled out."""

    def name(status: Status) -> NamedCause:
        return NamedCause(
            cause.id,
            status,
            cause.sentence,
            suspicion.because,
            tuple(finding_id for finding_id in suspicion.evidence if case.finding(finding_id)),
            cause.fix(case),
            _kind(cause, suspicion, proof),
            proof,
            cause.equivalent,
            cause.told_apart_by,
        )

    if cause.experiment is None or suspicion.direct:
        return Open(cause.id, suspicion.because, suspicion.needs) if suspicion.weak else name("established")
    if proof is None:
        return Open(
            cause.id,
            f"{suspicion.because}; no experiment could be made with the images and the budget there are",
            suspicion.needs,
        )
    if not proof.defined:
        return Open(cause.id, f"{suspicion.because}; {proof.in_full()}", suspicion.needs)
    shown_otherwise = suspicion.seen or suspicion.measured
    if cause.group == "optimisation" and proof.before.auc.ci[1] >= CLEARLY_WORKS and not shown_otherwise:
        return RuledOut(
            f"{suspicion.because}; but a student that may be above {CLEARLY_WORKS:.2f} is not held up: "
            f"{proof.in_full()}"
        )
    effect = _effect(cause, suspicion, proof, p, case)
    if effect == "shown":
        return name("likely" if suspicion.weak else "established")
    if effect == "absent" and cause.proof == "gain" and case.nothing_moved and cause.id != "undertrained":
        brief = f"{case.optimisation_steps} steps are too few to rule it out"
        return Open(cause.id, f"{suspicion.because}; {proof.in_full()}; {brief}", suspicion.needs, proof)
    if effect == "absent":
        learns = f"; your own training reaches {reached_text(case.arms.get('status_quo'))}"
        return RuledOut(
            f"{suspicion.because}; but {proof.in_full()}{learns if case.status_quo_learns else ''}"
        )
    cured = cause.proof != "gain" or proof.after.auc.value > case.limits.baseline_auc
    cured = cured and not _falls_short(cause, proof, case)
    if suspicion.measured and not suspicion.weak and cured and proof.p < SIGNIFICANT and gains_twice(proof):
        return name("likely")
    if suspicion.corroborated and not suspicion.weak and not case.status_quo_learns and proof.delta > 0:
        return name("likely")
    promising = (
        cured
        and _again(suspicion, proof, _bar(cause, suspicion, proof, case))
        and proof.p < SIGNIFICANT
        and abs(proof.delta) >= MATERIAL_GAIN
    )
    if suspicion.weak or case.status_quo_learns or not promising:
        return Open(
            cause.id,
            f"{suspicion.because}; {proof.in_full()}",
            {**_images_for(proof, case), **suspicion.needs},
            proof,
            suspicion.seen,
        )
    return name("likely")


def _kind(cause: Cause, suspicion: Suspicion, proof: Comparison | None) -> str:
    """The kind of proof that there is: a recording shows directly what else an experiment has to."""
    if suspicion.direct:
        return "direct"
    return "gain" if cause.proof == "direct" and proof is not None and not proof.direct else cause.proof


def _effect(cause: Cause, suspicion: Suspicion, proof: Comparison, p: float, case: Case) -> str:
    """`shown`, `absent` or `unclear`: what the experiment says, by its displayed interval and Holm's p."""
    falls = cause.proof == "inflation_removed"
    low, high = (-proof.ci[1], -proof.ci[0]) if falls else proof.ci
    delta = -proof.delta if falls else proof.delta
    bar = _bar(cause, suspicion, proof, case)
    status_quo = case.arms.get("status_quo")
    elsewhere = cause.proof == "gain" and proof.before.arm != "status_quo" and case.status_quo_learns
    if elsewhere and status_quo is not None and proof.after.auc.value < status_quo.value + HEALTHY_GAIN:
        return "absent"  # what another training gains explains nothing that the user's own does not lack
    # A gain that stays below `baseline_auc` has only moved towards a coin; it repairs nothing.
    cured = cause.proof != "gain" or proof.after.auc.ci[0] > case.limits.baseline_auc
    cured = cured and not _falls_short(cause, proof, case)
    clears = low > bar or (low > 0 and _over_both_seeds(proof) > bar)
    if clears and delta >= MATERIAL_GAIN and p < SIGNIFICANT:
        return "shown" if cured and _again(suspicion, proof, bar) else "unclear"
    return "absent" if high < MATERIAL_GAIN or (low > 0 and bar > 0) else "unclear"


def _bar(cause: Cause, suspicion: Suspicion, proof: Comparison, case: Case) -> float:
    """The gain that an interval must clear: where a student learns already, a little more is no fault repaired."""
    learns = proof.before.auc.ci[0] > case.limits.baseline_auc
    return HEALTHY_GAIN if cause.proof == "gain" and learns and not suspicion.seen else 0.0


def _falls_short(cause: Cause, proof: Comparison, case: Case) -> bool:
    """Whether another teacher or loss brings less than half of what the student gains without any distillation."""
    labels = case.arms.get("bce_only")
    if (
        cause.group not in ("teacher", "loss")
        or proof.before.arm != "status_quo"
        or labels is None
        or not labels.defined
    ):
        return False
    return proof.delta < (labels.value - proof.before.auc.value) / 2


def _over_both_seeds(proof: Comparison) -> float:
    """The lower bound of the mean gain of both trainings; minus one where only one was made."""
    second = proof.confirmation
    if second is None:
        return -1.0
    margin = math.hypot(proof.delta - proof.ci[0], second.delta - second.ci[0]) / 2
    return (proof.delta + second.delta) / 2 - margin


def _again(suspicion: Suspicion, proof: Comparison, bar: float) -> bool:
    """Whether the confirming training, if any, gained as well: an interval tells of images, not of seeds.

    By how much is asked only where nothing but the gain speaks for the cause.
    """
    second = proof.confirmation
    return second is None or (second.ci[0] > bar and (suspicion.seen or second.delta >= MATERIAL_GAIN))


def _images_for(proof: Comparison, case: Case) -> dict[str, int]:
    """How many validation images a class would show a material gain with 80% power; nothing where there are as many.

    A proof looks at the half that chose nothing, so that a whole validation set has to be larger in proportion.
    """
    judged, whole = proof.before.auc, case.arms.get("status_quo", proof.before.auc)
    have, all_of_it = min(judged.n_real, judged.n_fake), min(whole.n_real, whole.n_fake)
    delta = max(abs(proof.delta), MATERIAL_GAIN)
    needed = n_for_gain(delta, judged.value, proof.correlation)
    if needed <= have:  # more images would only confirm a gain that does not suffice
        return {}
    return {"n_val_per_class": math.ceil(needed * max(1.0, all_of_it / max(1, have)))}
