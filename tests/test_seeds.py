"""The arm comparison: paired differences from every seed, and nothing that other settings left behind."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from steps_data import tiny_settings, write_images, write_teacher

from diag_lib import distillation, training, widgets
from diag_lib.evidence import RunFolder
from diag_lib.probes.compare import paired
from diag_lib.seeds import SeedPair, by_seed, headline, pair_up, reading
from diag_lib.settings import Settings

VIEW = "application/vnd.jupyter.widget-view+json"
IDS = ("status_quo", "alpha_0.5", "bce_only", "standardized")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    tmp = tmp_path_factory.mktemp("seeds")
    write_images(tmp / "data", train=24, val=30)
    write_teacher(tmp / "teacher.safetensors")
    return tiny_settings(tmp, training__epochs_s2=3)


@pytest.fixture(scope="module")
def run(settings: Settings) -> RunFolder:
    return RunFolder(Path(settings.dataset.root).parent / "run").create()


@pytest.fixture(scope="module")
def result(settings: Settings, run: RunFolder) -> distillation.DistillationResult:
    found = distillation.run(settings, run, ids=IDS, progress=False)
    training.train_arms(
        settings, run, ("status_quo@seed1", "bce_only@seed1", "bce_only@seed2"), progress=False
    )
    return found


@pytest.fixture
def board(result: distillation.DistillationResult, run: RunFolder) -> widgets.ArmBoard:
    return widgets.arm_board(result, run)


def size_of(markup: str) -> tuple[int, int]:
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', markup)
    return Image.open(io.BytesIO(base64.b64decode(data))).size


def test_each_seed_is_paired_on_half_b_of_its_own_trainings(
    board: widgets.ArmBoard, run: RunFolder, settings: Settings
) -> None:
    board.after.value = "bce_only"
    own, second, third = board.now
    assert [pair.seed for pair in board.now] == [settings.training.seed + k for k in (0, 1, 2)]
    for pair, suffix in ((own, ""), (second, "@seed1")):
        sides = [training.load_arm(run, f"{name}{suffix}").val_scores for name in ("status_quo", "bce_only")]
        b = (sides[0]["half"] == "B").to_numpy()
        expected = paired(
            *(np.asarray(column)[b] for column in (sides[0]["label"], *(s["score"] for s in sides)))
        )
        assert pair.found.delta == pytest.approx(expected.delta)
        assert pair.found.ci == pytest.approx(expected.ci)
        assert f"{expected.delta:+.2f} [{expected.ci[0]:+.2f}, {expected.ci[1]:+.2f}]" in board.picture.value
    assert third.found is None  # the status quo has no second seed there


def test_it_starts_at_the_status_quo_against_the_best(board: widgets.ArmBoard, result) -> None:
    assert (board.before.value, board.after.value) == ("status_quo", result.choice.best)
    assert result.choice.best in ("bce_only", "standardized")


def test_an_arm_that_is_the_same_training_shares_its_seeds(board: widgets.ArmBoard, result) -> None:
    assert result.arms["alpha_0.5"].linked_to == "status_quo"
    board.after.value = "bce_only"
    shown = [pair.shown for pair in board.now]
    board.before.value = "alpha_0.5"
    assert [pair.shown for pair in board.now] == shown
    board.after.value = "status_quo"
    assert "are the same training" in board.picture.value
    assert "nothing between these two" in board.picture.value


def test_controls_redraw_and_nothing_jumps(board: widgets.ArmBoard) -> None:
    before, size = board.picture.value, size_of(board.picture.value)
    board.before.value = "standardized"
    assert board.picture.value != before
    assert size_of(board.picture.value) == size
    board.after.value = "standardized"
    assert size_of(board.picture.value) == size
    assert board.before.description and board.after.description


def test_without_widgets_the_table_stays(board: widgets.ArmBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert VIEW in board._repr_mimebundle_()
    monkeypatch.setenv("DIAG_STATIC", "1")
    still = board._repr_mimebundle_()
    assert VIEW not in still
    assert "first: status_quo" in still["text/html"]
    assert f"second: {board.after.value}" in still["text/html"]
    assert "<script" not in still["text/html"]


def test_seeds_of_other_settings_do_not_count(result, run: RunFolder, settings: Settings) -> None:
    assert set(by_seed(settings, run, result.arms)["bce_only"]) == {0, 1, 2}
    other = settings.with_overrides({"training.weight_decay": 0.01})
    assert set(by_seed(other, run, result.arms)["bce_only"]) == {0}


def pairs(*ends: tuple[float, float] | None) -> list[SeedPair]:
    from diag_lib.experiments.comparison import Comparison, Measured
    from diag_lib.statistics import Auc

    side = Measured("arm", Auc(0.6, (0.5, 0.7), 0.05, 50, 50, True))
    return [
        SeedPair(42 + k, None if ci is None else Comparison("it", side, side, sum(ci) / 2, ci, 0.01))
        for k, ci in enumerate(ends)
    ]


@pytest.mark.parametrize(
    ("ends", "title", "words"),
    [
        ([(0.1, 0.3)], "better, from one seed", "One seed has trained both"),
        ([(0.1, 0.3), (0.2, 0.4)], "better from each of 2 seeds", "not the luck of one start"),
        ([(0.1, 0.3), (-0.1, 0.4)], "better from 1 of 2 seeds", "Not every interval excludes 0"),
        ([(0.1, 0.3), (-0.4, -0.1)], "contradict each other", "the start's, not the arm's"),
        ([(-0.1, 0.3), (-0.2, 0.1)], "no clear difference", "more validation images"),
        ([(-0.3, -0.1), None], "worse, from one seed", "One seed has trained both"),
        ([None], "no clear difference", "No seed has trained both arms"),
    ],
)  # fmt: skip
def test_what_the_seeds_say_together(ends: list[tuple[float, float] | None], title: str, words: str) -> None:
    assert title in headline("a", "b", pairs(*ends))
    assert words in reading(pairs(*ends))


def test_arms_that_rank_nothing_are_said(result) -> None:
    import dataclasses

    flat = result.arms["status_quo"].val_scores.assign(score=0.0)
    arm = dataclasses.replace(result.arms["status_quo"], val_scores=flat)
    found = pair_up({"a": {0: arm}, "b": {0: arm}}, "a", "b")
    assert found[0].shown == "neither ranks any image"
    assert "Neither arm ranks any image" in reading(found)
