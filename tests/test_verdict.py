"""The verdict: the form of the interface, the rules that turn experiments into claims, the chain on images."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from diag_lib import baseline, distillation, logits, teacher, verdict
from diag_lib.causes import CAUSES
from diag_lib.evidence import UNUSED_TEACHER, Answer, Evidence, Finding, RunFolder, muted
from diag_lib.experiments import Comparison, Measured, Trials, compare
from diag_lib.fixes import Fix
from diag_lib.screens import Case, RuledOut, Suspicion
from diag_lib.settings import Settings, dotted, load, nested
from diag_lib.statistics import MATERIAL_GAIN, Auc, n_for_gain
from diag_lib.verdict.decide import decide
from diag_lib.verdict.result import recommended_yaml
from diag_lib.verdict.second_seed import held_back
from diag_lib.verdict.words import summary
from tests.steps_data import tiny_settings, write_images, write_teacher

SHIFT = next(cause for cause in CAUSES if cause.id == "teacher_domain_shift")
LEAK = next(cause for cause in CAUSES if cause.id == "leakage")


def auc_of(value: float, half: float = 0.03) -> Auc:
    return Auc(value, (value - half, value + half), half / 2, 300, 300, True)


def moved(before: float, after: float, half: float = 0.04, p: float = 1e-6) -> Comparison:
    delta = after - before
    sides = Measured("status_quo", auc_of(before)), Measured("bce_only", auc_of(after))
    return Comparison("training on the labels alone", *sides, delta, (delta - half, delta + half), p, 0.5)


def judged(
    proof: Comparison | None, *, weak: bool = False, p: float = 1e-6, cause: object = SHIFT
) -> verdict.NamedCause | verdict.Open | RuledOut:
    suspicion = Suspicion(
        "the teacher is useless", ("teacher.auc",), weak, {"n_val_per_class": 412} if weak else {}
    )
    return verdict.judge(cause, suspicion, proof, p, Case(Settings(), {}, {}))  # type: ignore[arg-type]


def test_a_repair_after_which_the_student_is_still_dead_stays_open() -> None:
    """Both sides give every image the same score: there is no difference, and no number of images to ask for."""
    labels = np.repeat([0, 1], 30)
    table = pd.DataFrame({"path": [str(i) for i in range(60)], "label": labels, "score": 0.25})
    proof = compare("training longer", "status_quo", table, "longer", table)
    assert proof is not None and not proof.defined
    cause = next(cause for cause in CAUSES if cause.id == "undertrained")
    found = verdict.judge(cause, Suspicion("the loss still falls", ()), proof, 1.0, Case(Settings(), {}, {}))
    assert isinstance(found, verdict.Open) and "same score" in found.text and "nan" not in found.text


def test_established_needs_strong_evidence_and_a_shown_effect() -> None:
    found = judged(moved(0.5, 0.95))
    assert isinstance(found, verdict.NamedCause) and found.status == "established" and found.kind == "gain"
    found = judged(moved(0.5, 0.95), weak=True)
    assert isinstance(found, verdict.NamedCause) and found.status == "likely"


def test_an_experiment_without_effect_rules_the_cause_out() -> None:
    assert isinstance(judged(moved(0.5, 0.5, half=0.015, p=0.9)), RuledOut)


def test_a_handful_of_steps_rules_nothing_out() -> None:
    """Two trainings of 16 steps differ in nothing, whatever is changed."""
    counts = Finding("audit.imbalance", "ok", "no", "64 images", 0.5, n=64)
    settings = Settings().with_overrides(
        {"training.batch_size": 8, "training.epochs_s1": 0, "training.epochs_s2": 2}
    )
    evidence = {"audit": Evidence("audit", [counts])}
    cause = next(cause for cause in CAUSES if cause.id == "frozen_parameters")
    proof, suspicion = moved(0.5, 0.5, half=0.015, p=0.9), Suspicion("frozen layers", ())
    for arms, open_ in (({"status_quo": auc_of(0.5)}, True), ({"status_quo": auc_of(0.8)}, False)):
        found = verdict.judge(cause, suspicion, proof, 0.9, Case(settings, evidence, arms))
        assert isinstance(found, verdict.Open if open_ else RuledOut)
        assert not isinstance(found, verdict.Open) or "16 steps are too few" in found.text


def test_a_schedule_of_a_handful_of_steps_is_named_even_where_the_student_gets_far() -> None:
    """A measured shortness and a gain from two seeds; without the first, AUC .90 is nobody's illness."""
    cause = next(cause for cause in CAUSES if cause.id == "undertrained")
    proof = replace(moved(0.89, 0.98, half=0.03), confirmation=moved(0.88, 0.97, half=0.03))
    for measured in (True, False):
        case = Case(Settings(), {}, {"status_quo": auc_of(0.89)})
        found = verdict.judge(cause, Suspicion("longer is better", (), measured=measured), proof, 1e-6, case)
        assert isinstance(found, verdict.NamedCause if measured else RuledOut)


def test_a_repair_that_two_measurements_ask_for_is_likely_before_its_gain_is_certain() -> None:
    """The weights' statistics and the AUC name the same preprocessing; so few images cannot show what it brings."""
    cause = next(cause for cause in CAUSES if cause.id == "teacher_preprocessing")
    for corroborated, delta, named in ((True, 0.06, True), (False, 0.06, False), (True, -0.01, False)):
        suspicion = Suspicion("fed otherwise it does better", (), corroborated=corroborated)
        case = Case(Settings(), {}, {"status_quo": auc_of(0.52)})
        found = verdict.judge(cause, suspicion, moved(0.52, 0.52 + delta, half=0.1, p=0.2), 0.3, case)
        assert isinstance(found, verdict.NamedCause) is named
        assert not named or found.status == "likely"


@pytest.mark.parametrize(("n", "told"), [(600, True), (60_000, False)])
def test_a_healthy_training_of_few_steps_says_what_more_of_them_bring(n: int, told: bool) -> None:
    counts = Finding("audit.imbalance", "ok", "no", "balanced", 0.5, n=n)
    settings = Settings().with_overrides({"training.epochs_s1": 0, "training.epochs_s2": 1})
    case = Case(settings, {"audit": Evidence("audit", [counts])}, {"status_quo": auc_of(0.9)})
    item = verdict.Open("undertrained", "longer is better", proof=moved(0.89, 0.98))
    said = summary(True, case, [], [item], ())
    assert ("steps are few" in said and "0.98 after" in said) is told


def test_a_mistake_that_is_seen_is_mentioned_of_a_healthy_training() -> None:
    case = Case(Settings(), {}, {"status_quo": auc_of(0.95)})
    for seen in (True, False):
        item = verdict.Open("student_normalization", "pixels far from zero", seen=seen)
        assert ("putting right" in summary(True, case, [], [item], ())) is seen


def test_an_unclear_effect_of_weak_evidence_stays_open_and_says_how_many_images_it_needs() -> None:
    found = judged(moved(0.5, 0.53, half=0.06, p=0.3), weak=True)
    assert isinstance(found, verdict.Open) and found.needs["n_val_per_class"] == 412


def test_images_are_asked_for_only_where_more_of_them_would_tell() -> None:
    """A proof looks at half of val: 300 of 600 a class here."""
    case = Case(Settings(), {}, {"status_quo": replace(auc_of(0.5), n_real=600, n_fake=640)})
    suspicion = Suspicion("frozen layers hold it back.", ())
    cause = next(cause for cause in CAUSES if cause.id == "frozen_parameters")
    open_gain, small_gain = moved(0.5, 0.51, half=0.04, p=0.6), moved(0.5, 0.57, half=0.03)
    found = verdict.judge(cause, suspicion, open_gain, 1.0, case)
    assert isinstance(found, verdict.Open)
    alone = n_for_gain(MATERIAL_GAIN, 0.5, open_gain.correlation)
    assert found.needs["n_val_per_class"] == 2 * alone > 600
    found = verdict.judge(
        cause, suspicion, small_gain, 1.0, case
    )  # certain, but far from a student that learns
    assert isinstance(found, verdict.Open) and "n_val_per_class" not in found.needs
    assert found.text.startswith("frozen layers hold it back; ")


def test_a_probe_asks_for_images_in_proportion_to_those_that_it_compared() -> None:
    """75 a class of 150 were compared; about twice what the half needs, not 150 times."""
    sides = {"before": 0.49, "before_ci": (0.43, 0.56), "after": 0.53, "after_ci": (0.46, 0.6)}
    data = {**sides, "p": 0.09, "correlation": 0.9}
    seen = Finding("baseline.frozen", "warning", "yes", "better", 0.04, (-0.01, 0.09), 0.0, 150, data)
    whole = replace(auc_of(0.5), n_real=150, n_fake=150)
    case = Case(Settings(), {"baseline": Evidence("baseline", [seen])}, {"status_quo": whole})
    proof = Trials.probed(SimpleNamespace(case=case), "baseline.frozen")  # type: ignore[arg-type]
    assert proof is not None and proof.before.auc.n_real == 75
    cause = next(cause for cause in CAUSES if cause.id == "frozen_parameters")
    found = verdict.judge(cause, Suspicion("frozen", ()), proof, 0.3, case)
    assert isinstance(found, verdict.Open)
    needed = n_for_gain(0.04, 0.49, 0.9)
    assert found.needs["n_val_per_class"] == 2 * needed > 150


def test_a_significant_effect_that_holm_takes_back_is_not_established() -> None:
    found = judged(moved(0.5, 0.56, half=0.05, p=0.03), p=0.2)
    assert not (isinstance(found, verdict.NamedCause) and found.status == "established")


def test_head_room_of_a_student_that_learns_is_no_illness() -> None:
    assert isinstance(judged(moved(0.90, 0.94, half=0.02)), RuledOut)
    found = judged(moved(0.75, 0.95, half=0.04))
    assert isinstance(found, verdict.NamedCause) and found.status == "established"


def test_what_a_mistake_that_is_seen_costs_need_not_be_much() -> None:
    """0-255 pixels are a mistake whatever the student makes of them; a gain must still be material and certain."""
    cause = next(cause for cause in CAUSES if cause.id == "student_normalization")
    for seen, delta, named in ((True, 0.04, True), (False, 0.04, False), (True, 0.01, False)):
        suspicion = Suspicion("far from zero", (), seen=seen)
        proof = moved(0.94, 0.94 + delta, half=0.015)
        found = verdict.judge(
            cause, suspicion, proof, 1e-6, Case(Settings(), {}, {"status_quo": auc_of(0.94)})
        )
        assert isinstance(found, verdict.NamedCause) is named


def test_a_gain_that_another_seed_does_not_show_again_is_not_established() -> None:
    """The interval speaks of images; how much a training's luck matters only a second training tells."""
    first = moved(0.88, 0.99, half=0.02)
    again = replace(first, confirmation=moved(0.86, 0.99, half=0.02))
    found = judged(again)
    assert isinstance(found, verdict.NamedCause) and found.status == "established"
    luck = replace(first, confirmation=moved(0.98, 0.99, half=0.01))
    found = judged(luck)
    assert not isinstance(found, verdict.NamedCause) or found.status != "established"
    assert "from another seed +0.01" in luck.in_full()


def test_a_lucky_gain_of_labels_that_teach_already_is_not_even_likely() -> None:
    """The user's own training fails, but it is no unlucky training on the labels alone that tells why."""
    rate = next(cause for cause in CAUSES if cause.id == "lr_too_low")
    case = Case(Settings(), {}, {"status_quo": auc_of(0.5), "bce_only": auc_of(0.71)})
    for second, named in ((moved(0.70, 0.99), True), (moved(0.97, 0.995, half=0.01), False)):
        proof = replace(moved(0.71, 0.99, half=0.04), confirmation=second)
        found = verdict.judge(rate, Suspicion("it may be", ()), proof, 1e-30, case)
        assert isinstance(found, verdict.NamedCause) is named


def test_a_student_that_may_work_already_is_not_held_up_by_its_rate() -> None:
    rate = next(cause for cause in CAUSES if cause.id == "lr_too_low")
    case = Case(Settings(), {}, {"status_quo": auc_of(0.5), "bce_only": auc_of(0.91)})
    for before, named in ((0.91, False), (0.80, True)):
        proof = replace(moved(before, 0.999), confirmation=moved(before, 0.999))
        found = verdict.judge(rate, Suspicion("it may be", ()), proof, 1e-30, case)
        assert isinstance(found, verdict.NamedCause) is named
        assert named or "is not held up" in found.because


@pytest.mark.parametrize(
    ("second", "healthy"),
    [
        (moved(0.94, 0.98, half=0.01), None),  # gains again, but not enough to be named
        (moved(0.97, 0.98, half=0.02), True),  # nothing from another seed: the start was unlucky
    ],
)
def test_what_gains_from_both_seeds_is_not_called_healthy(second: Comparison, healthy: bool | None) -> None:
    case = Case(Settings(), {}, {"status_quo": auc_of(0.79)})
    scale = next(cause for cause in CAUSES if cause.id == "scale_mismatch")
    proof = replace(moved(0.79, 0.99), confirmation=second)
    found = verdict.judge(scale, Suspicion("40 times larger", ()), proof, 1e-9, case)
    assert isinstance(found, verdict.Open)
    told_by_its_number = verdict.judge(scale, Suspicion("40 times", (), measured=True), proof, 1e-9, case)
    assert isinstance(told_by_its_number, verdict.NamedCause) is (healthy is None)
    assert isinstance(told_by_its_number, verdict.Open) or told_by_its_number.status == "likely"
    assert (True if held_back([found]) is None else None) is healthy
    text = summary(healthy, case, (), [found], ())
    assert ("scale_mismatch may hold it back" in text) == (healthy is None)
    assert ("another seed the same training reaches 0.97" in text) == (healthy is True)


@pytest.mark.parametrize(
    ("sigmoid", "named"),
    [
        ("symptoms.activation", ["wrong_activation", "patch_misalignment"]),
        ("logits.activation", ["wrong_activation"]),
    ],
)
def test_a_sigmoid_in_the_recorded_loop_hides_no_fault_of_the_teacher(tmp_path, sigmoid, named):
    """The workbook asked the teacher itself; only a sigmoid in the teacher's own logits spoils what it was told."""

    def said(finding_id: str, answer: Answer, ci: tuple[float, float] | None = None) -> Finding:
        return Finding(finding_id, "error", answer, f"{finding_id} says {answer}.", 0.5, ci)

    symptoms = [said("symptoms.auc_at_chance", "yes", (0.48, 0.52)), said("symptoms.evaluation", "no")]
    found = [*symptoms, said(sigmoid, "yes"), said("logits.alignment", "no")]
    evidence = {
        step: Evidence(step, [finding for finding in found if finding.id.startswith(step)])
        for step in ("symptoms", "logits")
    }
    result = decide(Trials(Settings(), RunFolder(tmp_path), evidence), missing=())
    assert [cause.id for cause in result.causes] == named
    assert {cause.status for cause in result.causes} == {"established"}


def test_a_mistake_that_is_seen_need_only_gain_again() -> None:
    normalization = next(cause for cause in CAUSES if cause.id == "student_normalization")
    case = Case(Settings(), {}, {"status_quo": auc_of(0.89)})
    for second, named in ((moved(0.97, 0.985, half=0.01), True), (moved(0.98, 0.98, half=0.01), False)):
        proof = replace(moved(0.89, 0.99, half=0.03), confirmation=second)
        found = verdict.judge(normalization, Suspicion("0 to 255", (), seen=True), proof, 1e-9, case)
        assert isinstance(found, verdict.NamedCause) is named


@pytest.mark.parametrize("name", ["teacher_preprocessing", "scale_mismatch"])
def test_a_repaired_teacher_that_falls_far_short_of_the_labels_alone_is_not_the_cause(name) -> None:
    cause = next(cause for cause in CAUSES if cause.id == name)
    proof = moved(0.59, 0.67, half=0.02)
    for labels, named in ((0.95, False), (0.68, True)):
        case = Case(Settings(), {}, {"bce_only": auc_of(labels), "status_quo": auc_of(0.59)})
        found = verdict.judge(cause, Suspicion("another input", ()), proof, 1e-6, case)
        assert isinstance(found, verdict.NamedCause) is named


def test_inflation_is_proven_by_an_auc_that_falls() -> None:
    found = judged(moved(0.9, 0.7), cause=LEAK)
    assert isinstance(found, verdict.NamedCause) and found.kind == "inflation_removed"
    assert isinstance(judged(moved(0.7, 0.9), cause=LEAK), RuledOut)


def test_a_comparison_pairs_the_same_images_only() -> None:
    import pandas as pd

    left = pd.DataFrame({"path": list("abcdefgh"), "label": [0, 0, 0, 0, 1, 1, 1, 1], "score": range(8)})
    right = left.assign(score=-left["score"]).iloc[::-1].iloc[:-1]
    found = compare("x", "l", left, "r", right)
    assert found is not None and found.before.auc.value == 1 and found.after.auc.value == 0
    assert found.before.auc.n_real == 3
    assert compare("x", "l", left, "r", right.assign(path="z")) is None


def test_dotted_and_nested_are_inverse() -> None:
    patch = {
        "training": {"distillation": {"alpha_distill": 0.0, "alpha_task": 1.0}, "lr_s1": 0.1},
        "teacher": {"weights": "x"},
    }
    assert nested(dotted(patch)) == patch


def test_without_any_evidence_the_verdict_is_open_and_incomplete(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 4, 4)
    write_teacher(tmp_path / "teacher.safetensors")
    result = verdict.run(tiny_settings(tmp_path), tmp_path / "run", progress=False)
    assert result.healthy is None and not result.complete and not result.causes
    assert "have not run" in result.summary


@pytest.fixture(scope="module")
def noise_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path]:
    """The steps 02 to 05 on a tiny set with a loud teacher that knows nothing."""
    tmp = tmp_path_factory.mktemp("noise")
    write_images(tmp / "data", 60, 100)
    write_teacher(tmp / "teacher.safetensors")
    settings = tiny_settings(tmp, training__epochs_s2=4)
    for step in (teacher, logits, baseline, distillation):
        step.run(settings, RunFolder(tmp / "run").create(), progress=False)
    return settings, tmp / "run"


@pytest.mark.slow
def test_the_verdict_has_the_form_of_the_interface_and_is_the_same_again(
    noise_run: tuple[Settings, Path],
) -> None:
    settings, folder = noise_run
    verdict.run(settings, folder, progress=False)
    first = (folder / "verdict.json").read_bytes()
    verdict.run(settings, folder, progress=False)
    assert (folder / "verdict.json").read_bytes() == first
    found = json.loads(first)
    assert list(found) == [
        "schema", "healthy", "complete", "summary", "causes", "ruled_out", "undecided", "arms", "findings",
    ]  # fmt: skip
    assert found["schema"] == "diag/verdict/1"
    known = {cause.id for cause in CAUSES}
    for cause in found["causes"]:
        assert set(cause) == {"id", "equivalent", "status", "evidence", "fix", "proof"}
        assert cause["id"] in known and cause["status"] in ("established", "likely", "possible")
        assert set(cause["fix"]) == {"text", "settings", "actions"}
        assert set(cause["proof"]) == {"kind", "before", "after", "delta", "delta_ci", "p"}
    assert {"status_quo", "bce_only", "standardized", "alpha_0.01"} <= {arm["id"] for arm in found["arms"]}
    for arm in found["arms"]:
        assert set(arm) == {"id", "settings", "auc", "ci", "seeds"}
    named = {cause["id"] for cause in found["causes"]}
    assert not named & {item["id"] for item in found["ruled_out"]}


@pytest.mark.slow
def test_arms_that_an_earlier_run_left_of_other_data_or_settings_are_not_listed(
    noise_run: tuple[Settings, Path], tmp_path: Path
) -> None:
    settings, folder = noise_run
    run = shutil.copytree(folder, tmp_path / "run")
    for name, changes in {
        "left_alike": {},
        "left_of_other_images": {"dataset": {"root": "/another"}},
        "left_of_other_settings": {"training": {"optimizer": "sgd"}},
    }.items():
        arm = shutil.copytree(
            run / "artifacts/arms/alpha_0.01", run / "artifacts/arms" / name, dirs_exist_ok=True
        )
        kept = json.loads((arm / "settings.json").read_text())
        for part, change in changes.items():
            kept["settings"][part] |= change
        (arm / "settings.json").write_text(json.dumps(kept))
    listed = {arm["id"] for arm in verdict.run(settings, run, progress=False).arms}
    assert [name for name in listed if name.startswith("left")] == ["left_alike"]


@pytest.mark.slow
def test_the_recommended_settings_load_and_carry_the_patch(noise_run: tuple[Settings, Path]) -> None:
    settings, folder = noise_run
    result = verdict.run(settings, folder, progress=False)
    recommended = load(folder / "recommended.yaml")
    wanted = settings.with_overrides(dotted(result.recommended or {}))
    parts = ("dataset", "teacher", "student", "pooling", "training", "thresholds")
    assert recommended.digest(*parts) == wanted.digest(*parts)


@pytest.mark.slow
def test_a_teacher_that_was_never_loaded_is_a_direct_finding(
    tmp_path: Path, noise_run: tuple[Settings, Path]
) -> None:
    settings, _ = noise_run
    blank = settings.with_overrides({"teacher.weights": None})
    run = RunFolder(tmp_path / "run").create()
    teacher.run(blank, run, progress=False)
    result = verdict.run(blank, run.root, progress=False)
    assert result.causes[0].id == "teacher_weights_not_loaded" and result.causes[0].kind == "direct"
    assert result.healthy is False and not result.complete


@pytest.mark.parametrize(("ended", "healthy"), [(0.50, None), (0.94, True)])
def test_a_history_that_fails_where_the_same_settings_learn_is_not_called_healthy(
    tmp_path: Path, ended: float, healthy: bool | None
) -> None:
    """Nobody knows what the user's own loop does otherwise, but it does something."""
    told = Finding("symptoms.auc_at_chance", "error", "yes", "The AUC at the end.", ended)
    settings = Settings().with_overrides({"history": str(tmp_path / "history.json")})
    trials = Trials(settings, RunFolder(tmp_path), {"symptoms": Evidence("symptoms", [told])})
    trials.case = Case(settings, trials.case.evidence, {"status_quo": auc_of(0.95)})
    result = decide(trials, missing=())
    assert result.healthy is healthy
    assert ("your own training ends at AUC 0.50" in result.summary) == (healthy is None)


def test_a_recommendation_leaves_the_history_of_the_failing_run_behind(tmp_path: Path) -> None:
    settings = Settings().with_overrides({"history": str(tmp_path / "history.json")})
    trials = Trials(settings, RunFolder(tmp_path), {})
    result = decide(trials, missing=())
    for patch, kept in ((None, True), ({"training": {"lr_s1": 0.5}}, False)):
        written = tmp_path / "recommended.yaml"
        written.write_text(recommended_yaml(settings, replace(result, recommended=patch)))
        assert (load(written).history is not None) is kept


@pytest.mark.slow
def test_what_is_wrong_with_a_teacher_that_is_not_used_is_a_note(
    noise_run: tuple[Settings, Path], tmp_path: Path
) -> None:
    settings, _ = noise_run
    alone = {"training.distillation.alpha_distill": 0.0, "training.distillation.alpha_task": 1.0}
    for alpha, severe in ((settings, True), (settings.with_overrides(alone), False)):
        run = RunFolder(tmp_path / str(severe)).create()
        found = teacher.run(alpha, run, progress=False).evidence.findings
        found += logits.run(alpha, run, progress=False).evidence.findings
        assert any(finding.severity in ("warning", "error") for finding in found) is severe
        known = next(finding for finding in found if finding.id == "teacher.auc")
        assert known.answer == "no" and ("does not use its teacher" in known.message) is not severe


@pytest.mark.parametrize("first", ["lr_too_low", "leakage"])
def test_a_repaired_student_that_clearly_works_leaves_no_cause_of_not_learning_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Unless something flatters its AUC; what the teacher may lack is another question."""
    left_open = (verdict.Open("too_little_data", "few"), verdict.Open("teacher_preprocessing", "maybe"))
    named = replace(_rival("lr_too_low", 0.97), id=first)
    after = SimpleNamespace(auc=auc_of(0.97))
    module = sys.modules["diag_lib.verdict.decide"]
    monkeypatch.setattr(module, "examine", lambda *_: module.Examined((named,), left_open, ()))
    monkeypatch.setattr(module, "behind", lambda *_: ([], []))
    monkeypatch.setattr(module, "_all_fixes", lambda *_: ({"training": {"lr_s1": 0.5}}, after))
    result = decide(Trials(Settings(), RunFolder(tmp_path), {}), missing=())
    still = [item.id for item in result.undecided]
    assert still == (["teacher_preprocessing"] if first == "lr_too_low" else [item.id for item in left_open])
    assert [name for name, _ in result.ruled_out] == ([] if first == "leakage" else ["too_little_data"])


def test_gates_follow_the_findings() -> None:
    good = Finding("teacher.auc", "ok", "yes", "m", 0.9, (0.85, 0.95))
    bad = replace(good, answer="no", value=0.5, ci=(0.45, 0.54))
    states = []
    for finding in (good, bad, replace(good, answer="undecided")):
        gates = verdict.gates(Case(Settings(), {"teacher": Evidence("teacher", [finding])}, {}))
        states.append(next(gate.state for gate in gates if "know these images" in gate.question))
    assert states == ["passed", "failed", "undecided"]
    (unused,) = muted([replace(bad, severity="error")], UNUSED_TEACHER)
    gates = verdict.gates(Case(Settings(), {"teacher": Evidence("teacher", [unused])}, {}))
    assert unused.severity == "note" and {gate.state for gate in gates} == {"not asked"}


def _rival(cause_id: str, after: float) -> verdict.NamedCause:
    proof = moved(0.5, after)
    return verdict.NamedCause(cause_id, "established", "It is.", "so", (), Fix("Do."), "gain", proof)


@pytest.mark.parametrize(
    ("epochs", "found", "named", "equivalent"),
    [
        (
            10,
            {"undertrained": 0.70, "destructive_resize": 0.82, "lr_too_low": 0.75},
            "destructive_resize",
            (),
        ),
        (10, {"frozen_parameters": 0.95, "lr_too_low": 0.94}, "frozen_parameters", ("lr_too_low",)),
        (1, {"undertrained": 0.85, "scale_mismatch": 0.90}, "undertrained", ()),
    ],
)
def test_of_causes_that_all_gain_the_one_that_brings_most_is_named(epochs, found, named, equivalent) -> None:
    settings = Settings().with_overrides({"training.epochs_s1": 0, "training.epochs_s2": epochs})
    counts = Finding("audit.imbalance", "ok", "no", "balanced", n=800)
    case = Case(settings, {"audit": Evidence("audit", [counts])}, {})
    judged = verdict.strongest_rival([_rival(name, after) for name, after in found.items()], case)
    left = [item for item in judged if isinstance(item, verdict.NamedCause)]
    assert [item.id for item in left] == [named]
    assert left[0].equivalent == equivalent
    assert sum(isinstance(item, RuledOut) for item in judged) == len(found) - 1


@pytest.mark.parametrize(("share", "named"), [(0.02, "class_imbalance"), (0.2, "lr_too_low")])
def test_a_class_with_hardly_any_images_comes_before_what_makes_the_most_of_them(share, named) -> None:
    counts = Finding("audit.imbalance", "error", "yes", "few", value=share, n=306)
    case = Case(Settings(), {"audit": Evidence("audit", [counts])}, {})
    judged = verdict.strongest_rival([_rival("class_imbalance", 0.66), _rival("lr_too_low", 0.72)], case)
    assert [item.id for item in judged if isinstance(item, verdict.NamedCause)] == [named]
    (other,) = [item for item in judged if isinstance(item, RuledOut)]
    assert ("comes first" if named == "class_imbalance" else "explains it") in other.because


@pytest.mark.parametrize(("drift", "named"), [("yes", "split_shift"), ("no", "lr_too_low")])
def test_a_shift_of_kind_comes_before_what_makes_the_student_more_robust(drift: Answer, named: str) -> None:
    seen = Finding("audit.drift", "warning", drift, "train and val")
    case = Case(Settings(), {"audit": Evidence("audit", [seen])}, {})
    judged = verdict.strongest_rival([_rival("split_shift", 0.92), _rival("lr_too_low", 0.98)], case)
    assert [item.id for item in judged if isinstance(item, verdict.NamedCause)] == [named]


@pytest.mark.parametrize(
    ("kind", "repooled", "named"),
    [
        ("topk", 0.80, "pooling_mismatch"),
        ("topk", 0.60, "lr_too_low"),
        ("mean", 0.80, "lr_too_low"),
    ],
)
def test_logits_that_another_pooling_ranks_are_not_the_learning_rates(
    kind: str, repooled: float, named: str
) -> None:
    settings = Settings().with_overrides({"pooling.kind": kind})
    seen = Finding("baseline.pooling", "warning", "yes", "the mean ranks better")
    case = Case(settings, {"baseline": Evidence("baseline", [seen])}, {})
    judged = verdict.strongest_rival([_rival("pooling_mismatch", repooled), _rival("lr_too_low", 0.98)], case)
    assert [item.id for item in judged if isinstance(item, verdict.NamedCause)] == [named]


@pytest.mark.parametrize(("still", "named"), [(True, "student_batchnorm"), (False, "lr_too_low")])
def test_weights_that_fresh_statistics_rank_are_not_the_learning_rates(still: bool, named: str) -> None:
    """A momentum of nearly nothing is measured; that another rate gets by without good statistics is luck."""
    seen = Finding("baseline.batchnorm", "warning", "yes", "fresh ones rank better", data={"still": still})
    case = Case(Settings(), {"baseline": Evidence("baseline", [seen])}, {})
    judged = verdict.strongest_rival([_rival("student_batchnorm", 0.93), _rival("lr_too_low", 0.98)], case)
    assert [item.id for item in judged if isinstance(item, verdict.NamedCause)] == [named]


@pytest.mark.parametrize(("n_train", "told"), [(120, True), (12_000, False), (None, False)])
def test_an_open_verdict_says_that_hardly_anything_was_trained(n_train: int | None, told: bool) -> None:
    settings = Settings().with_overrides(
        {"training.epochs_s1": 1, "training.epochs_s2": 3, "training.batch_size": 32}
    )
    counts = Finding("audit.imbalance", "ok", "no", "balanced", n=n_train)
    case = Case(settings, {"audit": Evidence("audit", [counts])}, {"status_quo": auc_of(0.5)})
    assert ("makes 16 optimisation steps, too few" in summary(None, case, (), (), ())) is told


def test_what_helps_another_training_is_no_cause_where_the_users_own_learns() -> None:
    """Labels alone fail at this rate, but the user's training has a good teacher and lacks nothing."""
    rate = next(cause for cause in CAUSES if cause.id == "lr_too_low")
    sides = Measured("bce_only", auc_of(0.65)), Measured("bce_only, another learning rate", auc_of(0.96))
    proof = Comparison("another learning rate", *sides, 0.31, (0.27, 0.35), 1e-30)
    for status_quo, named in ((0.97, False), (0.55, True)):
        case = Case(Settings(), {}, {"status_quo": auc_of(status_quo), "bce_only": auc_of(0.65)})
        judged = verdict.judge(rate, Suspicion("it may be", ()), proof, 1e-30, case)
        assert isinstance(judged, verdict.NamedCause) == named
        assert named or "your own training reaches AUC 0.97" in judged.because
