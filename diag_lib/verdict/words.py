"""A verdict in sentences and tables, for the notebook and the page."""

from collections.abc import Sequence

import pandas as pd
import yaml

from diag_lib.screens import Case
from diag_lib.statistics import Auc
from diag_lib.verdict.result import NamedCause, Open, VerdictResult
from diag_lib.verdict.second_seed import held_back, unlucky_start

HEADLINES = {True: ("ok", "Healthy"), False: ("error", "Cause found"), None: ("note", "Not decided")}
"""Severity and title of the answer, by `healthy`."""


def patch_text(result: VerdictResult) -> str:
    """The recommended settings patch as YAML, ready to paste."""
    if result.recommended is None:
        return "# no setting needs to change"
    return yaml.safe_dump(result.recommended, sort_keys=False, allow_unicode=True)


def describe_gates(result: VerdictResult) -> str:
    """The chain in words: the text alternative of its picture."""
    return "; ".join(f"{gate.question} {gate.state}, {gate.answer}" for gate in result.gates)


def cause_table(result: VerdictResult) -> pd.DataFrame:
    """One row a named cause: what it says, how sure it is, why, and what its experiment showed."""
    rows = [
        (
            cause.id,
            cause.status,
            cause.because,
            cause.proof.in_full() if cause.proof else "shown without training",
        )
        for cause in result.causes
    ]
    return pd.DataFrame(rows, columns=["cause", "status", "evidence", "experiment"])


def ruled_out_table(result: VerdictResult) -> pd.DataFrame:
    """One row a cause that the evidence contradicts."""
    return pd.DataFrame(result.ruled_out, columns=["cause", "because"])


def open_table(result: VerdictResult) -> pd.DataFrame:
    """One row a cause that stays open, with the images per class that would decide it."""
    rows = [(item.id, item.text, item.needs.get("n_val_per_class")) for item in result.undecided]
    return pd.DataFrame(rows, columns=["cause", "what is known", "validation images per class needed"])


def to_do(result: VerdictResult) -> str:
    """The fixes as sentences, settings first, then what is left to do by hand; paragraphs by blank lines."""
    if not result.causes:
        return (
            "Nothing needs to be repaired."
            if result.healthy
            else "Gather what would decide the open questions below."
        )
    parts = []
    for cause in result.causes:
        parts.append(f"{cause.id} ({cause.status}): {cause.fix.text}")
        parts.extend(cause.fix.actions)
        if cause.equivalent:
            parts.append(
                f"Cannot be told from {', '.join(cause.equivalent)} by numbers. {cause.told_apart_by}"
            )
    return "\n\n".join(parts)


def summary(
    healthy: bool | None,
    case: Case,
    named: Sequence[NamedCause],
    undecided: Sequence[Open],
    missing: tuple[str, ...],
) -> str:
    """The verdict in a sentence or three."""
    if named and healthy is False:
        return _cause_found(named)
    if healthy:
        return _nothing_found(case, undecided)
    return f"Not decided: {_why_open(case, undecided, missing)}"


def _cause_found(named: Sequence[NamedCause]) -> str:
    first = named[0]
    hedge = "" if first.status == "established" else "Probably: "
    proof = f" {first.proof.sentence()[0].upper()}{first.proof.sentence()[1:]}." if first.proof else ""
    more = f" Also: {', '.join(cause.id for cause in named[1:])}." if len(named) > 1 else ""
    return f"{hedge}{first.sentence}{proof}{more}"


def _nothing_found(case: Case, undecided: Sequence[Open]) -> str:
    """That all is well, and what could be better all the same."""
    reached = reached_text(case.arms.get("status_quo"))
    said = [f"The training is healthy: the student reaches {reached}, and no cause of failure was found."]
    if start := unlucky_start(undecided, case):
        said.append(f"From another seed the same training reaches {start:.2f}: train from several.")
    longer = next((item.proof for item in undecided if item.id == "undertrained"), None)
    if longer is not None and case.hardly_trained:
        said.append(f"Its {case.optimisation_steps} optimisation steps are few: {longer.in_full()}.")
    if seen := [item.id for item in undecided if item.seen]:
        said.append(f"Worth putting right all the same: {', '.join(seen)}.")
    return " ".join(said)


def _why_open(case: Case, undecided: Sequence[Open], missing: tuple[str, ...]) -> str:
    status_quo = case.arms.get("status_quo")
    if missing:
        return f"the steps {', '.join(missing)} have not run."
    if status_quo is None:
        return "the status-quo student could not be trained."
    reached = reached_text(status_quo)
    told = case.finding("symptoms.auc_at_chance")
    if case.status_quo_learns and case.own_training_fails and told is not None:
        ended = "without usable scores" if told.value is None else f"at AUC {told.value:.2f}"
        recorded = case.finding("symptoms.evaluation") is not None
        further = (
            "of which the recording shows no known mistake"
            if recorded
            else "so record your loop (diag_lib.recorder), name the recording in history, and run again"
        )
        return (
            f"your own training ends {ended}, but its settings and images reach {reached} here. "
            f"The difference must lie in its code, {further}."
        )
    limit = held_back(undecided) if case.status_quo_learns else None
    if limit is not None and limit.proof is not None:
        return (
            f"the student learns ({reached}), but {limit.id} may hold it back: {limit.proof.in_full()}. "
            "How much it costs depends on the seed: train from several."
        )
    still_open = ", ".join(item.id for item in undecided) or "no known cause fits the evidence"
    brief = (
        f" Your schedule makes {case.optimisation_steps} optimisation steps, too few to tell one training from "
        "another: train longer and run again."
        if case.hardly_trained
        else ""
    )
    return f"the student reaches {reached}; still open: {still_open}.{brief}"


def reached_text(arm: Auc | None) -> str:
    if arm is None or not arm.defined:
        return "no usable scores"
    return f"AUC {arm.value:.2f} [{arm.ci[0]:.2f}, {arm.ci[1]:.2f}]"
