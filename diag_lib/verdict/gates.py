"""The order of decision as questions, and how a run answers each of them."""

from dataclasses import dataclass
from typing import Literal

from diag_lib.evidence import Answer
from diag_lib.screens import Case


@dataclass(frozen=True)
class Gate:
    """One question of the order of decision and how this run answers it."""

    question: str
    state: Literal["passed", "failed", "undecided", "not asked"]
    answer: str


GATES: tuple[tuple[str, str, Answer], ...] = (
    ("Can every image be read?", "audit.unreadable", "no"),
    ("Is val free of pictures from train?", "audit.leakage", "no"),
    ("Do the files hide the label?", "audit.shortcut.joint", "no"),
    ("Are the teacher's weights loaded?", "teacher.weights_loaded", "yes"),
    ("Is the teacher's preprocessing its own?", "teacher.preprocessing", "no"),
    ("Does the teacher know these images?", "teacher.auc", "yes"),
    ("Can the student learn from labels alone?", "baseline.auc", "yes"),
    ("Do teacher and student share a scale?", "logits.scale_ratio", "no"),
    ("Does the configured training learn?", "distillation.status_quo", "yes"),
)
"""The order of decision: the question, the finding that answers it, and the answer that passes."""


def gates(case: Case) -> tuple[Gate, ...]:
    """How the run answers each question of `GATES`."""
    return tuple(_gate(case, *gate) for gate in GATES)


def _gate(case: Case, question: str, finding_id: str, passes: Answer) -> Gate:
    found = case.finding(finding_id)
    if found is None:
        return Gate(question, "not asked", "its step has not run")
    if found.data.get("muted"):
        return Gate(question, "not asked", "the teacher is not used")
    value = f"{found.value:.2f}" if found.value is not None else found.answer
    answer = (
        f"{value} [{found.ci[0]:.2f}, {found.ci[1]:.2f}]" if found.ci and found.value is not None else value
    )
    if found.answer == "undecided":
        return Gate(question, "undecided", answer)
    return Gate(question, "passed" if found.answer == passes else "failed", answer)
