"""Step 05: arms trained in lockstep, chosen on half A, proven on half B."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from steps_data import tiny_settings, write_images, write_teacher

from diag_lib import distillation
from diag_lib.evidence import RunFolder
from diag_lib.plots import distillation as pictures
from diag_lib.settings import Settings
from diag_lib.statistics import auc, auc_difference

PICTURES = ("alpha_curve", "forest", "curves", "imitation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("distillation")
    write_images(tmp / "data")
    write_teacher(tmp / "teacher.safetensors")
    return tmp


@pytest.fixture(scope="module")
def settings(folder: Path) -> Settings:
    return tiny_settings(folder)


@pytest.fixture(scope="module")
def result(folder: Path, settings: Settings) -> distillation.DistillationResult:
    """A loud teacher that was never taught anything drags the student to the wrong side."""
    return distillation.run(settings, RunFolder(folder / "run").create(), progress=False)


def test_the_wrong_cures_fail_and_the_right_one_is_proven(result) -> None:
    assert result.finding("status_quo").answer == "no"
    best = result.finding("best_arm")
    assert best.answer == "yes" and best.ci[0] > 0.5 and best.data["p"] < 1e-6
    rescued = result.finding("rescued_by")
    assert "bce_only" in rescued.data["arms"] and "centered" not in rescued.data["arms"]
    assert result.finding("alpha_trend").answer == "yes"


def test_the_proof_is_half_b_of_the_arms_own_scores(result) -> None:
    best = result.arms[result.choice.best].val_scores
    before = result.arms["status_quo"].val_scores
    b = (best["half"] == "B").to_numpy()
    expected = auc_difference(best["label"][b], before["score"][b], best["score"][b])
    assert result.choice.proof.delta == pytest.approx(expected.delta)
    a = best["half"] == "A"
    assert result.choice.on_a[result.choice.best] == pytest.approx(
        auc(best["label"][a], best["score"][a]).value
    )


def test_the_best_arms_settings_can_be_laid_over_the_users(result, settings) -> None:
    patch = result.finding("best_arm").data["settings"]
    dotted = {f"training.distillation.{k}": v for k, v in patch["training"]["distillation"].items()}
    assert settings.with_overrides(dotted).training.distillation.alpha_distill < 0.5


def test_arms_that_are_the_same_training_are_neither_cures_nor_failures(result) -> None:
    table = result.table.set_index("arm")
    assert not table.loc[["status_quo", "alpha_0.5", "unfrozen"], "differs"].any()
    assert table.loc[["status_quo", "alpha_0.5", "unfrozen"], "p_holm"].isna().all()
    data = result.finding("rescued_by").data
    assert "unfrozen" not in data["failed"] + data["arms"] + data["gained"]


def test_the_table_is_written_with_what_readers_build_on(result, folder) -> None:
    kept = pd.read_parquet(folder / "run" / "artifacts" / "arms.parquet")
    assert set(distillation.IDS) == set(kept["arm"])
    assert {
        "arm",
        "alpha",
        "auc",
        "low",
        "high",
        "delta",
        "delta_low",
        "delta_high",
        "p",
        "p_holm",
        "r2",
        "rho",
    } <= set(kept)
    row = kept.set_index("arm").loc["bce_only"]
    assert row["alpha"] == 0 and np.isnan(row["rho"]) and row["low"] <= row["auc"] <= row["high"]
    shown = distillation.shown_table(result)
    assert shown["AUC"].iloc[0].startswith("1.00")


def test_a_gain_that_stays_below_the_threshold_rescues_nobody() -> None:
    rows = [
        {"arm": "bce_only", "differs": True, "delta": 0.5, "delta_high": 0.6, "p": 1e-9, "low": 0.9},
        {"arm": "standardized", "differs": True, "delta": 0.05, "delta_high": 0.07, "p": 1e-9, "low": 0.46},
        {"arm": "centered", "differs": True, "delta": 0.0, "delta_high": 0.01, "p": 0.9, "low": 0.4},
    ]
    found = distillation._rescued_by(pd.DataFrame(rows), 0.6)
    assert found.answer == "yes" and found.data["only_without_teacher"]
    assert found.data["gained"] == ["standardized"] and found.data["failed"] == ["centered"]


def test_reading_and_next_step_follow_the_evidence(result) -> None:
    text = distillation.reading(result)
    assert "Safest first" in text and result.finding("status_quo").message in text
    assert distillation.next_step(result)


def test_arms_beyond_the_budget_are_named(folder, settings, monkeypatch) -> None:
    from diag_lib import settings as module

    monkeypatch.setitem(module.BUDGET_IMAGE_STEPS, "quick", 80 * 6 * 5)
    small = settings.with_overrides({"runtime.budget": "quick"})
    found = distillation.run(small, RunFolder(folder / "run_small").create(), progress=False)
    assert "alpha_0.3" in found.not_run and "budget" in found.not_run["alpha_0.3"]
    assert "alpha_0.3" not in set(found.table["arm"])
    assert found.evidence.numbers["not_run_alpha_0.3"]
    for name in PICTURES:
        getattr(pictures, name)(found)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_have_titles(result, name) -> None:
    figure = getattr(pictures, name)(result)
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    assert figure.axes[0].get_title(loc="left")


def test_evidence_reads_back(result, folder) -> None:
    kept = RunFolder(folder / "run").read_evidence("distillation")
    assert kept is not None
    assert {f.id.partition(".")[2] for f in kept.findings} == {
        "status_quo",
        "best_arm",
        "rescued_by",
        "alpha_trend",
    }
    assert kept.numbers["auc_bce_only"] == pytest.approx(result.arms["bce_only"].auc.value)
