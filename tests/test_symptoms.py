"""Does step 00 see in a history what a person would see, and leave open what it cannot know?"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps_data import tiny_settings, write_images, write_teacher

from diag_lib import symptoms
from diag_lib.errors import UserError
from diag_lib.evidence import FINDINGS, RunFolder
from diag_lib.history import from_lists
from diag_lib.plots import symptoms as pictures
from diag_lib.settings import Settings
from diag_lib.statistics import Auc
from diag_lib.symptoms import code, describe, flow

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "00_symptoms.ipynb"


def lists(epochs=25, *, alpha=0.5, distill=450.0, task=0.7, auc=0.5, seed=0, **more):
    """A flat history with a little noise; arrays in place of levels make curves."""
    rng = np.random.default_rng(seed)
    d, t = (
        level + 0.005 * level * rng.normal(size=epochs) for level in (np.asarray(distill), np.asarray(task))
    )
    made = {
        "stage": [1] * (epochs // 5) + [2] * (epochs - epochs // 5),
        "train_loss": list(alpha * d + (1 - alpha) * t),
        "train_distill_loss": list(d),
        "train_task_loss": list(t),
        "val_loss": list(np.asarray(task) + 0.003 * rng.normal(size=epochs)),
        "val_acc": [0.5] * epochs,
        "val_auc": list(np.clip(np.asarray(auc) + 0.01 * rng.normal(size=epochs), 0, 1)),
    }
    return {**made, **more}


def diagnose(content, auc=None, **overrides):
    chosen = Settings().with_overrides({key.replace("__", "."): value for key, value in overrides.items()})
    return symptoms.diagnose(from_lists(content, "history.json", "json"), chosen, auc)


def answers(result):
    return {finding.id.removeprefix("symptoms."): finding.answer for finding in result.evidence.findings}


def test_the_guides_symptom_is_recognised():
    result = diagnose(lists())
    found = answers(result)
    assert [found[name] for name in ("guide", "distill_share", "task_at_chance", "auc_at_chance")] == [
        "yes"
    ] * 4
    assert found["non_finite"] == found["negative"] == found["unstable"] == found["still_improving"] == "no"
    assert found["adds_up"] == "yes"
    assert result.finding("distill_share").value == pytest.approx(0.998, abs=0.001)
    for figure in ("99.8%", "BCE 0.7", "AUC 0."):
        assert figure in result.summary
    assert {curve.kind for curve in result.curves.values()} == {"flat"}
    assert "does not learn" in symptoms.next_step(result)


def test_a_healthy_run_is_not_accused():
    t = np.arange(25)
    good = lists(
        distill=30 + 400 * np.exp(-t / 4), task=0.3 + 0.4 * np.exp(-t / 4), auc=0.95 - 0.45 * np.exp(-t / 4)
    )
    result = diagnose(good)
    found = answers(result)
    assert found["guide"] == found["task_at_chance"] == found["auc_at_chance"] == "no"
    assert found["distill_share"] == "yes"  # a large share alone is no symptom
    assert result.curves["train_task_loss"].kind in {"improved", "still improving"}
    assert "learns" in symptoms.next_step(result)


def test_a_run_that_fails_in_another_way():
    result = diagnose(
        lists(alpha=0.0, distill=math.nan),
        training__distillation__alpha_distill=0.0,
        training__distillation__alpha_task=1.0,
    )
    assert answers(result)["guide"] == "no"
    assert answers(result)["auc_at_chance"] == "yes"
    assert "not in the guide's way" in result.summary
    assert result.finding("distill_share").value == 0
    wrong = diagnose(lists(task=1.3))
    assert "above a coin's" in wrong.finding("task_at_chance").message
    assert answers(wrong)["guide"] == "yes"


def test_what_the_history_lacks_stays_open():
    result = diagnose({"train_loss": [225.0, 225.1, 225.0, 224.9]})
    found = answers(result)
    assert [found[name] for name in ("guide", "distill_share", "task_at_chance", "auc_at_chance")] == [
        "undecided"
    ] * 4
    assert found["adds_up"] == found["overfit"] == "undecided"
    on_the_line = diagnose(lists(auc=np.tile([0.57, 0.63], 13)[:25]))
    assert answers(on_the_line)["auc_at_chance"] == "undecided"


def test_with_an_interval_the_interval_decides():
    for ci, answer in (((0.45, 0.55), "yes"), ((0.62, 0.8), "no"), ((0.5, 0.65), "undecided")):
        measured = Auc(sum(ci) / 2, ci, 0.02, 200, 200, True)
        finding = diagnose(lists(), measured).finding("auc_at_chance")
        assert (finding.answer, finding.ci, finding.n) == (answer, ci, 400)
        assert ("would decide" in finding.message) == (answer == "undecided")
    broken = diagnose(lists(val_auc=[math.nan] * 25), Auc(math.nan, (0, 1), math.nan, 200, 200, False))
    assert broken.finding("auc_at_chance").answer == "undecided"
    assert "not even .5" in broken.finding("auc_at_chance").message


@pytest.mark.parametrize(
    ("value", "name"), [(math.nan, "non_finite"), (math.inf, "non_finite"), (-1.0, "negative")]
)
def test_broken_numbers_are_the_headline(value, name):
    content = lists()
    content["train_loss"] = content["train_loss"][:20] + [value] * 5
    result = diagnose(content)
    finding = result.finding(name)
    assert (finding.answer, finding.severity) == ("yes", "error")
    assert result.summary == finding.message
    if name == "non_finite":
        assert "total loss is not a finite number from epoch 21 on" in finding.message
        assert "finite" in symptoms.next_step(result)


def test_weights_other_than_the_configured_are_found():
    result = diagnose(lists(alpha=0.9))
    finding = result.finding("adds_up")
    assert (finding.answer, finding.severity) == ("no", "warning")
    assert "alpha_distill 0.9" in finding.message
    assert result.alpha == pytest.approx((0.9, 0.1), abs=1e-3)
    odd = diagnose(lists(train_loss=[999.0] * 25))
    assert odd.finding("adds_up").answer == "no"
    assert odd.alpha == (0.5, 0.5)


def test_the_saturation_artefact_is_suspected_only_where_it_can_be():
    def saturated(**changes):
        return diagnose(lists(**changes)).finding("saturated_auc")

    assert (saturated().answer, saturated().severity) == ("undecided", "note")
    contradiction = saturated(val_acc=[0.85] * 25, task=0.3)
    assert contradiction.severity == "warning"
    assert "accuracy 0.85" in contradiction.message
    assert saturated(auc=0.9).answer == "no"
    measured = diagnose(lists(), Auc(0.5, (0.45, 0.55), 0.025, 200, 200, True))
    assert measured.finding("saturated_auc").answer == "no"


def test_overfitting_and_an_early_end():
    t = np.arange(25)
    falling = 0.1 + 0.6 * np.exp(-t / 5)
    overfit = diagnose(lists(task=falling, val_loss=list(0.6 + 0.03 * t)))
    assert overfit.finding("overfit").answer == "yes"
    early = diagnose(lists(task=0.7 - 0.01 * t, auc=0.5 + 0.012 * t))
    assert early.finding("still_improving").answer == "yes"
    assert early.curves["val_auc"].kind == "still improving"


t30 = np.arange(30)


@pytest.mark.parametrize(
    ("values", "better", "kind"),
    [
        ([0.7] * 20, "lower", "flat"),
        (0.7 * np.exp(-t30 / 4) + 0.2, "lower", "improved"),
        (1.0 - 0.02 * t30, "lower", "still improving"),
        (0.5 + 0.01 * t30, "higher", "still improving"),
        (0.7 * 1.2**t30, "lower", "worsening"),
        (1 - 0.06 * t30 + 0.0025 * t30**2, "lower", "turned"),
        (0.7 + 0.3 * (-1.0) ** t30, "lower", "oscillating"),
        (0.5 + 0.2 * (-1.0) ** t30, "higher", "oscillating"),
        (0.9 - 0.013 * t30, "higher", "worsening"),
        ([0.7, 0.6], "lower", "short"),
        ([math.nan] * 5, "lower", "unknown"),
        ([0.7, 0.6, math.inf, 0.6], "lower", "non-finite"),
        ([0.7, 0.6, 0.5, math.nan, math.nan], "lower", "non-finite"),
        ([math.nan, 0.5, math.nan, 0.5, math.nan, 0.5, math.nan], "higher", "flat"),
    ],
)
def test_curves_are_named_as_a_person_would(values, better, kind):
    curve = describe(values, better)
    assert curve.kind == kind
    assert "{" not in curve.said
    if kind == "worsening" and better == "lower":
        assert curve.diverges


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_not_taken_for_a_trend(seed):
    rng = np.random.default_rng([seed, 1])
    assert describe(0.7 + 0.005 * rng.normal(size=25), "lower").kind == "flat"
    assert describe(0.5 + 0.012 * rng.normal(size=25), "higher").kind == "flat"


number = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0])


@given(
    st.lists(
        st.tuples(number, number, number, number, st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12
    )
)
def test_any_history_gives_a_whole_diagnosis(rows):
    names = list(symptoms.NAMES)
    content = {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    result = diagnose(content)
    own = {finding.id for finding in result.evidence.findings}
    recorded = {f"symptoms.{check.__name__}" for check in (*code.CHECKS, *flow.CHECKS)}
    assert own | recorded == {i for i in FINDINGS if i.startswith("symptoms.")}
    assert not own & recorded  # there is no recording
    for finding in result.evidence.findings:
        assert finding.message.endswith(".")
        json.dumps(finding.to_dict(), allow_nan=False)
    assert len(symptoms.curve_table(result)) == len(symptoms.NAMES)


@pytest.mark.parametrize(
    "content",
    [
        lists(),
        lists(epochs=2),
        {"train_loss": [1.0]},
        {"val_auc": [0.5, 0.7]},
        {"train_task_loss": [0.7, math.nan, math.inf]},
    ],
)
def test_the_figure_shows_what_is_known(content):
    result = diagnose(content)
    figure = pictures.curves(result)
    figure.canvas.draw()
    shown = " ".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))
    for threshold in ("chance, .5", "signal, 0.60"):
        assert threshold in shown
    assert " ".join(figure.get_suptitle().split()) == " ".join(result.summary.split())
    if result.history.known("train_task_loss"):
        assert "a coin's BCE, 0.693" in shown
    assert "validation AUC" in pictures.describe_curves(result)


def test_a_history_file_is_read_and_evidence_written(tmp_path):
    path = tmp_path / "training_history_two_stage.json"
    path.write_text(json.dumps(lists()))
    result = symptoms.run(Settings().with_overrides({"history": str(path)}), tmp_path / "run", progress=False)
    folder = RunFolder(tmp_path / "run")
    kept = folder.read_evidence("symptoms")
    assert kept is not None
    assert kept.finding("symptoms.guide").answer == "yes"
    assert kept.numbers["val_auc_last"] == pytest.approx(result.curves["val_auc"].last)
    assert str(tmp_path) not in folder.evidence_path("symptoms").read_text()
    assert not (tmp_path / "run" / "artifacts" / "arms" / "status_quo").exists()
    with pytest.raises(UserError, match=r"absent\.json"):
        symptoms.run(Settings().with_overrides({"history": str(tmp_path / "absent.json")}), tmp_path / "run")


def test_without_a_history_the_status_quo_is_trained(tmp_path):
    write_images(tmp_path / "data", 16, 16)
    write_teacher(tmp_path / "teacher.safetensors")
    folder = RunFolder(tmp_path / "run").create()
    result = symptoms.run(tiny_settings(tmp_path), folder, progress=False)
    assert len(result.history) == 6
    assert result.history.kind == "arm"
    assert result.auc is not None
    assert result.finding("auc_at_chance").ci == result.auc.ci
    assert result.finding("auc_at_chance").n == 32
    assert result.finding("adds_up").answer == "yes"
    assert (folder.root / "artifacts" / "arms" / "status_quo" / "history.json").is_file()


def test_the_notebook_runs_on_a_history(tmp_path, monkeypatch):
    path = tmp_path / "history.json"
    path.write_text(json.dumps(lists()))
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)
    assert max(len(cell["source"]) for cell in cells) <= 8
    (parameters,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    names: dict[str, object] = {}
    exec("".join(parameters["source"]), names)
    assert names["config"] == "demo"
    names |= {"config": "base", "run_dir": str(tmp_path / "run"), "overrides": {"history": str(path)}}
    monkeypatch.chdir(tmp_path)
    for cell in cells:
        if cell is not parameters:
            exec("".join(cell["source"]), names)
    assert (tmp_path / "run" / "evidence" / "symptoms.json").is_file()
