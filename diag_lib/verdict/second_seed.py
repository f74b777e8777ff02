"""How much does the start decide: what does the second seed of an experiment say where no cause is named?"""

from collections.abc import Sequence

from diag_lib.experiments import Comparison
from diag_lib.screens import Case
from diag_lib.statistics import HEALTHY_GAIN, MATERIAL_GAIN
from diag_lib.verdict.result import Open


def gains_twice(proof: Comparison) -> bool:
    """Whether a repair gains more than head-room, and something that counts from another seed too."""
    second = proof.confirmation
    again = second is not None and second.ci[0] > 0 and second.delta >= MATERIAL_GAIN
    return proof.ci[0] > HEALTHY_GAIN and again


def held_back(undecided: Sequence[Open]) -> Open | None:
    """The open cause whose repair gains most of those that gain twice.

    From which seed a student that learns has started decides too much for a cause to be named; "healthy" would be a lie
    all the same.
    """
    gained = [(found.proof.delta, found) for found in undecided if found.proof and gains_twice(found.proof)]
    return max(gained, key=lambda gain: gain[0])[1] if gained else None


def unlucky_start(undecided: Sequence[Open], case: Case) -> float | None:
    """The AUC of the unchanged training from another seed, where it is better than head-room would explain."""
    status_quo = case.arms.get("status_quo")
    others = [
        second.before.auc.value
        for found in undecided
        if found.proof is not None and (second := found.proof.confirmation) is not None and second.defined
        if second.before.arm.startswith("status_quo")
    ]
    best = max(others, default=0.0)
    return best if status_quo is not None and best > status_quo.ci[1] + HEALTHY_GAIN else None
