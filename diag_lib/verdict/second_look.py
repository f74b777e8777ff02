"""Which faults does an established one hide, and do they show once it is repaired or taken out of play?

With a learning rate of nearly nothing no other repair gains anything, and with labels dealt at random no setting of the
loss seems to matter. So where the repaired training still falls short, the suspects are tried again there.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from diag_lib.causes import CAUSES, Cause, inflating
from diag_lib.experiments import BCE_ONLY, REPAIRS, STATUS_QUO, Comparison, Trials, experiment
from diag_lib.screens import CLEARLY_WORKS, Case, Suspicion
from diag_lib.settings import dotted
from diag_lib.statistics import SIGNIFICANT, Auc
from diag_lib.training import ArmResult
from diag_lib.verdict.judging import CLEARLY_LESS, Trial, judge_all, strongest_rival
from diag_lib.verdict.result import NamedCause, Open

STUDENTS_OWN = ("optimisation", "model")
HIDDEN_GROUPS = ("teacher", "loss", *STUDENTS_OWN)
"""Groups whose causes another fault can hide. Their evidence is that of the unrepaired run: only the trial is new."""


def behind(
    trials: Trials, named: Sequence[NamedCause], after: ArmResult | None
) -> tuple[list[NamedCause], list[Open]]:
    """The causes that are shown only where the named ones are repaired, and those that stay open there.

    `after` is the training with all fixes.
    Where the repaired student clearly works or does as well as the proof of a repair promised, only what would
    flatter it is looked for; where no proof promised anything (a flattered AUC was put right), learning is enough.
    """
    sure = [cause for cause in named if cause.status != "possible"]
    changes = _repairs(trials, sure)
    if not changes:
        return [], []
    gains = [cause.proof.after.auc.value for cause in sure if cause.proof and cause.kind == "gain"]
    flattered = any(cause.id in inflating() for cause in sure)  # then what a proof promised was flattered too
    promised = max(gains) if gains and not flattered else None
    learns = trials.case.limits.baseline_auc
    known = {one for cause in named for one in (cause.id, *cause.equivalent)}
    by_hand = any(cause.fix.settings is None for cause in sure)
    reached = after.auc if after is not None and not by_hand else None
    if reached is None:
        reached = trials.world(changes, STATUS_QUO).case.arms.get(STATUS_QUO)
    if reached is None:
        return [], []
    flattering = _satisfied(reached, promised, learns)
    if flattering and not _suspects(trials.case, known, flattering):
        return [], []
    world = trials.world(changes, STATUS_QUO, *_labels_alone(changes))
    told = " and ".join(cause.id for cause in sure)
    tried: list[Trial] = [
        (cause, opinion, proof)
        for cause, opinion in _suspects(world.case, known, flattering)
        if (proof := _proof(cause, world, told)) is not None
    ]
    no_surer = {cause.id for cause, opinion, _ in tried if opinion.weak or opinion.corroborated}
    judged = strongest_rival(judge_all(tried, world.case), world.case)
    shown = [
        replace(found, because=f"{found.because}; {_when(found, told)}")
        for found in judged
        if isinstance(found, NamedCause) and (found.status == "established" or found.id in no_surer)
    ]
    yields_to = {cause.id: set(cause.yields_to) for cause, _, _ in tried}
    names = {found.id for found in shown}
    shown = [found for found in shown if not names & yields_to[found.id]]
    return shown, [found for found in judged if isinstance(found, Open)]


def _when(found: NamedCause, told: str) -> str:
    if found.proof is not None and found.proof.p < SIGNIFICANT:
        return f"it shows once {told} is repaired"
    return f"what it costs is open, also with {told} repaired"


def _suspects(case: Case, known: Collection[str], flattering: bool) -> list[tuple[Cause, Suspicion]]:
    """The causes worth a trial: unnamed, not explained by a named one, and suspected for certain.

    Too few images leave open what a teacher knows. What imitating it costs can be seen all the same, where the student
    is able to learn.
    """
    groups = {cause.group for cause in CAUSES if cause.id in known}
    # A longer schedule, a higher rate and all layers are rivals for one weakness: of them one is named.
    hidden = set(HIDDEN_GROUPS) - (set(STUDENTS_OWN) if groups & set(STUDENTS_OWN) else set())
    return [
        (cause, opinion)
        for cause in CAUSES
        if (cause.id in inflating() or (cause.group in hidden and not flattering))
        and cause.id not in known
        and not set(known) & set(cause.yields_to)
        and isinstance(opinion := cause.screen(case), Suspicion)
        and (not opinion.weak or cause.group == "teacher")
        and not opinion.direct
    ]


def _satisfied(reached: Auc, promised: float | None, learns: float) -> bool:
    """Whether a repaired student leaves nothing to explain: it works, or keeps the promise, or (without one) learns."""
    if not reached.defined:
        return False
    if promised is None:
        return reached.ci[0] > learns
    return reached.ci[0] > CLEARLY_WORKS or reached.value > promised - CLEARLY_LESS


def _proof(cause: Cause, world: Trials, told: str) -> Comparison | None:
    """The cause's fix as the only change in the repaired training; what no setting repairs by its own experiment."""
    patch = cause.fix(world.case).settings
    if cause.proof == "gain" and patch:
        found = world.repaired(cause.id, patch)
    elif cause.id in inflating():
        found = experiment(world, str(cause.experiment))
    else:
        return None
    return found and replace(found, what=f"{found.what}, with {told} repaired,")


def _repairs(trials: Trials, sure: Sequence[NamedCause]) -> dict[str, Any]:
    """Dotted settings under which the causes no longer act, as far as a setting or a derived dataset can do that."""
    stands_in = {cause.id: cause.stands_in for cause in CAUSES}
    changes: dict[str, Any] = {}
    for cause in sure:
        name = stands_in[cause.id]
        if cause.fix.settings:
            changes = {**dotted(cause.fix.settings), **changes}
        elif name is not None:
            changes |= REPAIRS[name](trials)
    return changes


def _labels_alone(changes: Mapping[str, Any]) -> tuple[str, ...]:
    """The arm that learns from the labels alone, unless they are what was taken out of play."""
    return () if changes.get("training.distillation.alpha_task") == 0.0 else (BCE_ONLY,)
