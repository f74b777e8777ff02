"""What does the cure of a cause look like, and where do its particulars come from?

A row of `diag_lib.causes.CAUSES` has a function from the case to its `Fix`. The usual ones are made here: a fixed text,
settings that a probe measured, files that a step listed, or a line of the user's own code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diag_lib.screens import Case


@dataclass(frozen=True)
class Fix:
    """The cure: a sentence, a settings patch (nested as in YAML) or None, and things to do by hand."""

    text: str
    settings: dict[str, Any] | None = None
    actions: tuple[str, ...] = ()


Cure = Callable[[Case], Fix]


def distillation_patch(**distillation: float | str) -> dict[str, Any]:
    """The settings patch that replaces those keys of `training.distillation`."""
    return {"training": {"distillation": distillation}}


def plain_fix(text: str, patch: dict[str, Any] | None = None, *actions: str) -> Cure:
    """A fix that is the same whatever was measured."""
    return lambda case: Fix(text, patch, actions)


def measured_fix(finding_id: str, text: str, *actions: str) -> Cure:
    """A fix whose settings patch was measured by a probe (the finding's `data.settings`)."""

    def fix(case: Case) -> Fix:
        found = case.finding(finding_id)
        return Fix(text, found.data.get("settings") if found else None, actions)

    return fix


def fix_in_code(name: str, text: str, action: str, otherwise: Cure) -> Cure:
    """A fix by hand in the user's code where the recording shows the cause, `otherwise` the usual one."""
    return lambda case: (
        Fix(text, None, (action,)) if case.says(f"symptoms.{name}", "yes") else otherwise(case)
    )


def fix_listed_files(finding_id: str, text: str, *actions: str) -> Cure:
    """A fix by hand that names the list of files which a step wrote (the finding's `data.file`)."""

    def fix(case: Case) -> Fix:
        found = case.finding(finding_id)
        listed = found.data.get("file") if found else None
        return Fix(text, None, (*actions, *((f"the files are listed in {listed}",) if listed else ())))

    return fix
