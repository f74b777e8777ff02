"""The order of decision: every cause speaks, suspects are tried, and what is established silences what it explains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diag_lib.causes import CAUSES, Cause, inflating, rivals
from diag_lib.experiments import BCE_ONLY, STATUS_QUO, Comparison, Trials, experiment
from diag_lib.screens import CLEARLY_WORKS, Case, RuledOut, Suspicion
from diag_lib.statistics import SIGNIFICANT
from diag_lib.training import ArmResult
from diag_lib.verdict.gates import gates
from diag_lib.verdict.judging import Trial, established, judge_all, strongest_rival
from diag_lib.verdict.result import NamedCause, Open, VerdictResult
from diag_lib.verdict.second_look import STUDENTS_OWN, behind
from diag_lib.verdict.second_seed import held_back
from diag_lib.verdict.words import summary

GAIN_GROUPS = ("optimisation", "model", "loss")
"""Groups whose proofs are gains that mean nothing while the AUC is inflated."""


NO_MATTER_ONCE_LEARNED = ("data", *STUDENTS_OWN)
"""Groups whose causes keep a student from learning: one that learns the same images so well has none of them."""


@dataclass(frozen=True)
class Examined:
    """What became of every cause: named (the surest first), left open, or ruled out with the reason."""

    named: tuple[NamedCause, ...]
    undecided: tuple[Open, ...]
    ruled_out: tuple[tuple[str, str], ...]


def decide(trials: Trials, missing: tuple[str, ...]) -> VerdictResult:
    """Examine all causes, look behind those that hide others, try all fixes at once, and sum up."""
    case = trials.case
    first = examine(trials, CAUSES)
    recommended, after = _all_fixes(trials, first.named)
    hidden, still_open = behind(trials, first.named, after)
    if hidden:
        recommended, after = _all_fixes(trials, [*first.named, *hidden])
    named = (*first.named, *hidden)
    known = {cause.id for cause in hidden} | {item.id for item in still_open}
    ruled_out = tuple((name, because) for name, because in first.ruled_out if name not in known)
    undecided = (*still_open, *(item for item in first.undecided if item.id not in known))
    undecided, needless = _still_of_interest(undecided, named, after)
    ruled_out += needless
    healthy = _healthy(case, named, undecided)
    return VerdictResult(
        healthy=healthy,
        complete=not missing,
        summary=summary(healthy, case, named, undecided, missing),
        causes=named,
        ruled_out=ruled_out,
        undecided=undecided,
        arms=trials.arm_table(),
        findings=tuple(finding for step in case.evidence.values() for finding in step.findings),
        recommended=recommended,
        recommended_auc=after.auc if after else None,
        missing_steps=missing,
        gates=gates(case),
    )


def examine(trials: Trials, causes: Sequence[Cause]) -> Examined:
    """Let the causes speak in their order, try the suspects by experiment and judge them."""
    case = trials.case
    opinions = [(cause, cause.screen(case)) for cause in causes]
    ruled_out = [(cause.id, opinion.because) for cause, opinion in opinions if isinstance(opinion, RuledOut)]
    suspects = [(cause, opinion) for cause, opinion in opinions if isinstance(opinion, Suspicion)]
    flatters, contending = inflating(), rivals()
    tried: list[Trial] = []
    undecided: list[Open] = []
    slips = {cause.id for cause, suspicion in suspects if suspicion.direct}
    # Weak suspicions come last: an experiment is spent on them only while nothing is established.
    for cause, suspicion in sorted(suspects, key=lambda suspect: suspect[1].weak):
        sure = established(judge_all(tried, case))
        explained = [other for other in sure if other in cause.yields_to]
        # A slip of the student or of its loop changes nothing of what the teacher was asked.
        if cause.group == "teacher":
            explained = [other for other in explained if other not in slips]
        flattered = [other for other in sure if other in flatters and cause.group in GAIN_GROUPS]
        if explained:
            ruled_out.append((cause.id, f"{explained[0]} explains the same evidence"))
        elif flattered:
            text = (
                f"{suspicion.because}; not tested while {flattered[0]} flatters every AUC: repair that first"
            )
            undecided.append(Open(cause.id, text))
        elif suspicion.weak and [other for other in sure if not (cause.rival and other in contending)]:
            text = f"{suspicion.because}; not tested, since {sure[0]} is established"
            undecided.append(Open(cause.id, text, suspicion.needs))
        else:
            shown = cause.experiment is None or suspicion.direct
            proof = None if shown else experiment(trials, str(cause.experiment))
            tried.append((cause, suspicion, _confirmed(cause, proof, trials)))
    judged = strongest_rival(judge_all(tried, case), case)
    named = [found for found in judged if isinstance(found, NamedCause)]
    undecided = [*(found for found in judged if isinstance(found, Open)), *undecided]
    ruled_out += [
        (cause.id, found.because)
        for (cause, _, _), found in zip(tried, judged, strict=True)
        if isinstance(found, RuledOut)
    ]
    named.sort(key=lambda cause: ("established", "likely", "possible").index(cause.status))
    return Examined(tuple(named), tuple(undecided), tuple(ruled_out))


def _confirmed(cause: Cause, proof: Comparison | None, trials: Trials) -> Comparison | None:
    """The proof with a second training from another seed, where the student learns and could just have been unlucky.

    The fix is applied to the user's own training there, or to the labels alone where a useless teacher would hide what
    it does or only they teach anything. A fix that is no setting cannot be tried again so.
    """
    patch, case = cause.fix(trials.case).settings, trials.case
    if proof is None or proof.direct or proof.confirmation is not None:
        return proof
    gained = proof.p < SIGNIFICANT and proof.delta > 0
    if not (gained and patch and cause.proof == "gain"):
        return proof
    from_labels = proof.before.arm == BCE_ONLY
    if not (case.status_quo_learns or (from_labels and proof.before.auc.ci[0] > case.limits.baseline_auc)):
        return proof
    alone = from_labels and (case.teacher_useless is True or not case.status_quo_learns)
    return replace(proof, confirmation=trials.again(cause.id, patch, BCE_ONLY if alone else STATUS_QUO))


def _still_of_interest(
    undecided: tuple[Open, ...], named: Sequence[NamedCause], after: ArmResult | None
) -> tuple[tuple[Open, ...], tuple[tuple[str, str], ...]]:
    """Open causes that a student which clearly works without their repair leaves open, and those that it rules out."""
    flattered = any(cause.id in inflating() for cause in named)
    if after is None or flattered or not after.auc.defined or after.auc.ci[0] <= CLEARLY_WORKS:
        return undecided, ()
    groups = {cause.id: cause.group for cause in CAUSES}
    moot = [item.id for item in undecided if groups[item.id] in NO_MATTER_ONCE_LEARNED]
    because = f"what is recommended brings AUC {after.auc.value:.2f} without its repair"
    return tuple(item for item in undecided if item.id not in moot), tuple((name, because) for name in moot)


def _healthy(case: Case, named: Sequence[NamedCause], undecided: Sequence[Open]) -> bool | None:
    if any(cause.status in ("established", "likely") for cause in named):
        return False
    learns = case.status_quo_learns and not case.own_training_fails
    return True if learns and held_back(undecided) is None else None


def _all_fixes(trials: Trials, named: Sequence[NamedCause]) -> tuple[dict[str, Any] | None, ArmResult | None]:
    """The settings patches of the named causes, the earlier cause winning where they disagree, and their training."""
    patches = [cause.fix.settings for cause in named if cause.status != "possible" and cause.fix.settings]
    merged: dict[str, Any] = {}
    for patch in reversed(patches):
        merged = _overlay(merged, patch)
    return (merged, trials.recommended(merged)) if merged else (None, None)


def _overlay(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in patch.items():
        old = result.get(key)
        result[key] = (
            _overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    return result
