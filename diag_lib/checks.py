"""Which questions of the user's own does a step answer beside its own ones?

A check is a function that is given the settings, the run folder (its artifacts are written by then) and the step's
evidence so far, and returns a finding, or None where its question does not arise. It is found by the module that
`plugins` names: `@checks.register("audit.tiny_files", "many files are tiny")`.
"""

from collections.abc import Callable
from dataclasses import replace

from diag_lib.errors import UserError
from diag_lib.evidence import FINDINGS, STEPS, Evidence, Finding, RunFolder
from diag_lib.settings import Settings
from diag_lib.user_code import load_plugins

Check = Callable[[Settings, RunFolder, Evidence], Finding | None]

CHECKS: dict[str, Check] = {}
"""Checks of the user's own, by the id of their finding."""


def register(finding_id: str, statement: str) -> Callable[[Check], Check]:
    """Add a check; used as a decorator.

    Parameters
    ----------
    finding_id : ``<step>.<name>``; the step (any but verdict) runs the check at its end. A check of the same id
        is replaced, so that an edited module can be run again.
    statement : what a "yes" means.

    Raises
    ------
    UserError : the step does not exist, or the id is one of the workbook's own.
    """
    step, dot, name = finding_id.partition(".")
    if step not in STEPS[:-1] or not dot or not name:
        steps = ", ".join(STEPS[:-1])
        raise UserError(f"check {finding_id!r}: the id must be <step>.<name>, with a step of {steps}")
    if finding_id in FINDINGS and finding_id not in CHECKS:
        raise UserError(f"check {finding_id!r}: the workbook has a finding of that id; choose another name")

    def add(check: Check) -> Check:
        FINDINGS[finding_id] = statement
        CHECKS[finding_id] = check
        return check

    return add


def with_own(evidence: Evidence, settings: Settings, run: RunFolder) -> Evidence:
    """The step's evidence with the findings of the user's own checks. Raises `UserError` where one fails."""
    load_plugins(settings)
    own = [
        _answer(finding_id, check, settings, run, evidence)
        for finding_id, check in CHECKS.items()
        if finding_id.partition(".")[0] == evidence.step
    ]
    found = [finding for finding in own if finding is not None]
    return replace(evidence, findings=[*evidence.findings, *found]) if found else evidence


def _answer(
    finding_id: str, check: Check, settings: Settings, run: RunFolder, evidence: Evidence
) -> Finding | None:
    try:
        finding = check(settings, run, evidence)
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f"check {finding_id} failed with {type(error).__name__}: {error}") from None
    if finding is not None and (not isinstance(finding, Finding) or finding.id != finding_id):
        shown = finding.id if isinstance(finding, Finding) else type(finding).__name__
        raise UserError(f"check {finding_id} returned {shown}; a Finding of that id is needed, or None")
    return finding
