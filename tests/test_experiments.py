"""Experiments: what is compared with what, on which images, and what a collapsed student counts as."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from diag_lib.evidence import Evidence, Finding, RunFolder
from diag_lib.experiments import Trials, compare, experiment, half_b
from diag_lib.experiments.on_data import write_curation
from diag_lib.images.manifest import read_curation
from diag_lib.screens import Case
from diag_lib.settings import load
from diag_lib.statistics import auc
from diag_lib.training import ArmResult
from tests.steps_data import tiny_settings, write_images, write_teacher

N = 200


def scores(separation: float, seed: int = 0, *, on_a: float | None = None) -> pd.DataFrame:
    """Scores of 2 N images, fakes `separation` sd above the reals; on half A `on_a` where given."""
    rng = np.random.default_rng(seed)
    label = np.repeat([0, 1], N)
    half = np.tile(["A", "B"], N)
    shift = np.where((half == "A") & (on_a is not None), on_a or 0.0, separation)
    score = rng.normal(size=2 * N) + label * shift
    path = [f"val/{('real', 'fake')[y]}/{i}.png" for i, y in enumerate(label)]
    return pd.DataFrame({"path": path, "label": label, "source": "", "half": half, "score": score})


def arm(name: str, table: pd.DataFrame) -> ArmResult:
    measured = auc(table["label"], table["score"], nan="undefined")
    return ArmResult(name, {}, {}, {}, table, table, measured, 42, 1000, 1.0, 1.0)


def trials(tmp_path: Path, **arms: pd.DataFrame) -> Trials:
    made = Trials(load("base"), RunFolder(tmp_path / "run").create(), {}, progress=False)
    made.results.update({name: arm(name, table) for name, table in arms.items()})
    return made


def test_a_gain_is_measured_on_half_b_and_confirmed_on_a_new_seed(tmp_path: Path) -> None:
    made = trials(
        tmp_path,
        **{
            "status_quo": scores(0.0, on_a=5.0),  # flattering on the half that may choose
            "bce_only": scores(2.0),
            "status_quo@seed1": scores(0.0, 1),
            "bce_only@seed1": scores(2.0, 1),
        },
    )
    found = experiment(made, "arm:bce_only")
    assert found is not None and found.before.auc.n_fake == N // 2
    assert found.before.auc.value == pytest.approx(auc(*_columns(half_b(scores(0.0, on_a=5.0)))).value)
    assert found.ci[0] > 0.2 and found.confirmation is not None and found.confirmation.ci[0] > 0.2


def test_no_second_seed_is_spent_on_an_arm_that_changes_nothing(tmp_path: Path) -> None:
    made = trials(tmp_path, status_quo=scores(1.0), bce_only=scores(1.0))
    found = experiment(made, "arm:bce_only")
    assert found is not None and found.delta == 0 and found.confirmation is None


def test_the_best_weight_is_chosen_on_half_a_and_judged_on_half_b(tmp_path: Path) -> None:
    lucky, steady = scores(0.0, 1, on_a=4.0), scores(1.5, 2)
    made = trials(
        tmp_path,
        **{"status_quo": scores(0.0), "bce_only": steady, "alpha_0.01": lucky, "alpha_0.01@seed1": lucky},
        **{
            name: scores(0.0, 3)
            for name in ("alpha_0.05", "alpha_0.1", "alpha_0.2", "alpha_0.3", "alpha_0.5")
        },
        **{"status_quo@seed1": scores(0.0, 4)},
    )
    found = experiment(made, "best_alpha")
    assert found is not None and found.after.arm == "alpha_0.01"
    assert found.after.auc.value < 0.65  # the luck of half A is not on half B


def test_leaving_out_leaks_lowers_a_flattered_auc(tmp_path: Path) -> None:
    table = scores(0.5)
    leaked = table.index % 2 == 0
    table.loc[leaked & (table["label"] == 1), "score"] += 4
    made = trials(tmp_path, status_quo=table, bce_only=scores(0.0, 5))
    assert experiment(made, "without_leaks") is None  # the audit found none
    pd.DataFrame({"val_path": table.loc[leaked, "path"]}).to_parquet(made.run.artifact("leakage.parquet"))
    found = experiment(made, "without_leaks")
    assert found is not None and found.ci[1] < 0 and found.p < 0.01
    assert found.after.auc.value == pytest.approx(auc(*_columns(table[~leaked])).value)


@pytest.mark.parametrize("broken", [np.nan, np.inf, 3.0])
def test_a_student_that_overflowed_or_froze_counts_as_ranking_by_chance(broken: float) -> None:
    before, after = scores(1.0).assign(score=broken), scores(3.0)
    found = compare("x", "status_quo", before, "standardized", after)
    assert found is not None and found.before.auc.value == 0.5 and found.before.auc.ci == (0.5, 0.5)
    assert found.delta == pytest.approx(found.after.auc.value - 0.5) and found.ci[0] > 0.3


def test_a_probe_that_was_run_is_not_run_again(tmp_path: Path) -> None:
    data: dict[str, Any] = {
        "before": 0.6,
        "before_ci": (0.55, 0.65),
        "after": 0.9,
        "after_ci": (0.88, 0.92),
        "p": 1e-9,
    }
    frozen = Finding("baseline.frozen", "warning", "yes", "m", 0.3, (0.25, 0.35), 0.0, 400, data)
    made = trials(tmp_path)
    made.case = Case(made.settings, {"baseline": Evidence("baseline", [frozen])}, {})
    found = experiment(made, "probe:baseline.frozen")
    assert found is not None and (found.before.auc.value, found.after.auc.value) == (0.6, 0.9)
    assert (found.delta, found.ci, found.p) == (0.3, (0.25, 0.35), 1e-9)


def _columns(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return table["label"].to_numpy(), table["score"].to_numpy()


def test_an_experiment_keeps_the_users_own_curation_in_any_form_that_is_read(tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_text(
        "path;action;label\nval/real/1.png;exclude;\ntrain/fake/2.png;relabel;0\n", encoding="utf-8-sig"
    )
    made = trials(tmp_path)
    made.settings = made.settings.with_overrides({"dataset.curation": str(own)})
    rows = pd.DataFrame({"path": ["train/fake/2.png", "train/real/3.png"], "label": [0, 0]})
    written = read_curation(write_curation(made, "flipped", rows, "relabel"))
    assert dict(zip(written["path"], written["action"], strict=True)) == {
        "val/real/1.png": "exclude",
        "train/fake/2.png": "relabel",
        "train/real/3.png": "relabel",
    }
    assert written.set_index("path").loc["train/fake/2.png", "label"] == "1"


def test_a_repair_is_tried_again_from_another_seed_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trials(tmp_path, **{"status_quo@seed1": scores(0.5, 1)})
    asked: list[tuple[str, dict[str, Any], str]] = []

    def variant(name: str, overrides: dict[str, Any], arm_id: str) -> ArmResult:
        asked.append((name, overrides, arm_id))
        return arm(arm_id, scores(2.0, 1))

    monkeypatch.setattr(made, "variant", variant)
    found = made.again("lr_too_low", {"training": {"lr_s1": 0.01}})
    assert asked == [("again_lr_too_low", {"training.lr_s1": 0.01}, "status_quo@seed1")]
    assert found is not None and found.ci[0] > 0.1 and found.before.auc.n_fake == N // 2


@pytest.mark.slow
def test_a_recommended_schedule_is_trained_in_its_full_length(tmp_path: Path) -> None:
    """Arms share the run's schedule; a fix that is the schedule itself must not be shortened to it again."""
    write_images(tmp_path / "data", 8, 8)
    write_teacher(tmp_path / "teacher.safetensors")
    settings = tiny_settings(tmp_path, training__epochs_s1=0, training__epochs_s2=1)
    made = Trials(settings, RunFolder(tmp_path / "run").create(), {}, progress=False)
    (short,) = made.arms("status_quo")
    longer = made.recommended({"training": {"epochs_s2": 3}})
    assert short is not None and longer is not None
    assert made.results["recommended"].image_steps == longer.image_steps == 3 * short.image_steps
