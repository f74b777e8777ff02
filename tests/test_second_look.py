"""The second look: which causes show only once an established one is repaired, and when nothing more is looked for."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diag_lib.evidence import Evidence, Finding, RunFolder
from diag_lib.experiments import Comparison, Measured
from diag_lib.fixes import Fix
from diag_lib.screens import Case
from diag_lib.settings import Settings
from diag_lib.statistics import Auc
from diag_lib.verdict import NamedCause
from diag_lib.verdict.second_look import behind


def auc_of(value: float, half: float = 0.02) -> Auc:
    return Auc(value, (value - half, value + half), half / 2, 500, 500, True)


def moved(before: float, after: float) -> Comparison:
    sides = Measured("status_quo", auc_of(before)), Measured("status_quo repaired", auc_of(after))
    delta = after - before
    return Comparison("this repair", *sides, delta, (delta - 0.03, delta + 0.03), 1e-9, 0.5)


USELESS_TEACHER = {
    "teacher": Evidence(
        "teacher", [Finding("teacher.auc", "error", "no", "it is useless", 0.5, (0.47, 0.53), 0.55, 1000)]
    )
}


class World:
    """A run whose trainings are known beforehand: what the repaired student reaches, and with which further repair."""

    def __init__(self, folder: Path, reached: float, further: Mapping[str, float]) -> None:
        self.settings, self.evidence = Settings(), USELESS_TEACHER
        self.run = self.source = RunFolder(folder)
        self.case = Case(self.settings, self.evidence, {"status_quo": auc_of(0.5)})
        self.reached, self.further = reached, further
        self.changes: dict[str, Any] = {}

    def world(self, changes: Mapping[str, Any], *arms: str) -> "World":
        self.changes = dict(changes)
        made = World(self.run.root, self.reached, self.further)
        made.case = Case(self.settings, self.evidence, {arm: auc_of(self.reached) for arm in arms})
        return made

    def repaired(self, name: str, patch: Mapping[str, Any]) -> Comparison:
        return moved(self.reached, self.further.get(name, self.reached))


def established(promised: float) -> NamedCause:
    fix = Fix("Raise it.", {"training": {"lr_s1": 0.1, "lr_s2": 0.1}})
    return NamedCause(
        "lr_too_low", "established", "It is.", "so", (), fix, "gain", moved(promised - 0.4, promised)
    )


@pytest.mark.parametrize(
    ("reached", "further", "found"),
    [
        (0.50, {"teacher_domain_shift": 0.93}, ["teacher_domain_shift"]),  # the promise of .93 is not kept
        (0.50, {"teacher_domain_shift": 0.50}, []),  # nor does skipping the teacher keep it
        (0.92, {"teacher_domain_shift": 0.99}, []),  # kept: head-room is no illness
        (0.75, {"teacher_domain_shift": 0.78}, []),  # a student that learns needs more than that
    ],
)
def test_a_cause_behind_another_is_named_where_the_repaired_student_falls_short(
    tmp_path: Path, reached: float, further: dict[str, float], found: list[str]
) -> None:
    trials = World(tmp_path, reached, further)
    named, _ = behind(trials, [established(0.93)], None)  # type: ignore[arg-type]
    assert [cause.id for cause in named] == found
    assert trials.changes == {"training.lr_s1": 0.1, "training.lr_s2": 0.1}
    for cause in named:
        assert "once lr_too_low is repaired" in cause.because
        assert cause.proof is not None and "with lr_too_low repaired" in cause.proof.sentence()


def test_a_teacher_of_which_too_few_images_tell_is_tried_where_the_student_is_able_to_learn(
    tmp_path: Path,
) -> None:
    """Its AUC is open, but skipping it at the repaired rate brings what the labels alone promised: likely."""
    little = Finding("teacher.auc", "warning", "undecided", "too few", 0.52, (0.45, 0.58), 0.55, 150)
    for reached, expected in ((0.72, ["teacher_domain_shift"]), (0.53, [])):
        trials = World(tmp_path, 0.53, {"teacher_domain_shift": reached})
        trials.evidence = {"teacher": Evidence("teacher", [little])}
        named, still_open = behind(trials, [established(0.72)], None)  # type: ignore[arg-type]
        assert [(cause.id, cause.status) for cause in named] == [(name, "likely") for name in expected]
        assert [item.id for item in still_open] == (
            [] if expected else still_open and ["teacher_domain_shift"]
        )


def test_nothing_is_looked_for_behind_a_cause_that_is_merely_possible(tmp_path: Path) -> None:
    trials = World(tmp_path, 0.5, {"teacher_domain_shift": 0.93})
    possible = replace(established(0.93), status="possible")
    assert behind(trials, [possible], None) == ([], []) and trials.changes == {}  # type: ignore[arg-type]


def test_labels_dealt_at_random_are_taken_out_of_play_only_beside_a_good_teacher(tmp_path: Path) -> None:
    shuffled = NamedCause("labels_shuffled", "established", "It is.", "so", (), Fix("Join."), "direct", None)
    trials = World(tmp_path, 0.5, {})
    assert behind(trials, [shuffled], None) == ([], []) and trials.changes == {}  # type: ignore[arg-type]
    good = Finding("teacher.auc", "ok", "yes", "it knows", 0.98, (0.97, 0.99), 0.55, 1000)
    trials.case = Case(Settings(), {"teacher": Evidence("teacher", [good])}, {})
    behind(trials, [shuffled], None)  # type: ignore[arg-type]
    assert trials.changes == {
        "training.distillation.alpha_distill": 1.0,
        "training.distillation.alpha_task": 0.0,
    }


def test_what_a_flattered_auc_promised_need_not_be_kept(tmp_path: Path) -> None:
    leakage = NamedCause(
        "leakage", "established", "It is.", "so", (), Fix("Split."), "inflation_removed", None
    )
    for also, found in (([], ["teacher_domain_shift"]), ([leakage], [])):
        trials = World(tmp_path, 0.70, {"teacher_domain_shift": 0.90})
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                "diag_lib.verdict.second_look._repairs", lambda trials, sure: {"training.lr_s1": 0.1}
            )
            named, _ = behind(trials, [established(0.93), *also], None)  # type: ignore[arg-type]
        assert [cause.id for cause in named] == found
