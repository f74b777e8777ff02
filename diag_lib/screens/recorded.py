"""Which causes does the recording of the user's own training loop show?"""

from typing import Literal

from diag_lib.screens.case import (
    Case,
    RuledOut,
    Screen,
    Suspicion,
)


def recorded(name: str, *, needs_harm: bool = True) -> Screen:
    """The screen of a slip in the code of the recorded loop, from the finding `symptoms.<name>`.

    `needs_harm`: what the finding shows is a cause only if the recorded training fails; some people want it so.
    """

    def screen(case: Case) -> Suspicion | RuledOut | None:
        found = case.finding(f"symptoms.{name}")
        if found is None or found.answer == "undecided":
            return None
        if found.answer == "no":
            return RuledOut(found.message)
        fails = case.recording_fails if needs_harm else True
        if fails is False:
            return RuledOut(f"{found.message} But the recorded training learns all the same.")
        evidence = (found.id, "symptoms.auc_at_chance")
        return Suspicion(found.message, evidence, weak=fails is None, direct=bool(fails))

    return screen


def either(own: Screen, other: Screen) -> Screen:
    """A suspicion of the first screen if it has one, else what the second says (or the first, if it says nothing)."""

    def screen(case: Case) -> Suspicion | RuledOut | None:
        first, second = own(case), other(case)
        return first if isinstance(first, Suspicion) else second or first

    return screen


def recorded_step(direction: Literal["low", "high"]) -> Screen:
    """Steps of the recorded training that are far off, where the same settings learn here: another learning rate."""

    def screen(case: Case) -> Suspicion | RuledOut | None:
        found = case.finding("symptoms.update_ratio")
        if found is None or found.data.get("direction") != direction:
            return None
        proven = case.status_quo_learns and case.recording_fails is True
        evidence = (found.id, "symptoms.auc_at_chance")
        return Suspicion(found.message, evidence, direct=True) if proven else None

    return screen
