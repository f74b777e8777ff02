"""What if a batch does not fit into the memory of the GPU?"""

from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import small_settings, write_dataset

from diag_lib import training
from diag_lib.device_memory import Portion, is_refusal
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.images import open_split
from diag_lib.models import build_teacher
from diag_lib.probes.student import overfit_batch, rate_ladder
from diag_lib.settings import Settings
from diag_lib.teacher_cache import TeacherMaps

NETWORK = """
import os
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=2)
        self.fc = torch.nn.Conv2d(8, 1, 1)
    def forward(self, x):
        if x.any() and len(x) > int(os.environ.get("HOLDS", "1000")):  # what is only built has zeros
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")
        return self.fc(torch.relu(self.conv(x)))
def make():
    return Net()
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture
def card(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose student refuses batches of more than HOLDS images."""
    (tmp_path / "net_on_a_small_card.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    return small_settings(root, student__arch="net_on_a_small_card:make", student__preprocess="raw")


def test_a_batch_that_is_refused_goes_through_in_parts_with_the_same_result(
    card, tmp_path, monkeypatch, capfd
):
    """Gradient accumulation: three optimiser steps an epoch as before, the same losses, scores and weights."""
    arms = []
    for name, holds in (("roomy", 1000), ("small", 5)):
        monkeypatch.setenv("HOLDS", str(holds))
        run = RunFolder(tmp_path / name).create()
        arms.append(training.train_arms(card, run, ["status_quo", "bce_only"], progress=False))
    assert "going on with 8 at a time" in capfd.readouterr().err
    for arm in ("status_quo", "bce_only"):
        roomy, small = (found[arm] for found in arms)
        assert roomy.image_steps == small.image_steps
        for key in ("train_loss", "val_auc", "train_task_loss", "val_loss"):
            np.testing.assert_allclose(roomy.history[key], small.history[key], rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(roomy.val_scores["score"], small.val_scores["score"], atol=5e-3)


def test_the_arm_says_how_many_images_went_through_at_once(card, tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDS", "6")
    run = RunFolder(tmp_path / "run").create()
    training.train_arms(card, run, ["bce_only"], progress=False)
    result = run.read_json("artifacts/arms/bce_only/result.json")
    assert result is not None and result["hardware"]["images_at_once"] == 4


def test_a_card_that_does_not_hold_one_image_is_the_users_to_know(card, tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDS", "0")
    run = RunFolder(tmp_path / "run").create()
    with pytest.raises(UserError, match=r"does not hold one image .*image_size"):
        training.train_arms(card, run, ["bce_only"], progress=False)
    assert not (run.root / "artifacts/arms/bce_only/result.json").exists()


def test_probes_and_predictions_go_in_parts_too(card, root, monkeypatch):
    images = open_split(card, "train")
    found = []
    for holds in ("1000", "7"):
        monkeypatch.setenv("HOLDS", holds)
        fit = overfit_batch(card, images, steps=20, factors=(1.0,))
        found.append(
            (fit.curves[1.0], rate_ladder(card, images, factors=(1.0, 10.0), steps=8)["loss"].tolist())
        )
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-3)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-3)


def test_the_teacher_pass_goes_in_parts(root, tmp_path, monkeypatch, capfd):
    settings = small_settings(root)
    images = open_split(settings, "val")

    class SmallCard(torch.nn.Module):
        def __init__(self, whole: torch.nn.Module, holds: int) -> None:
            super().__init__()
            self.whole, self.holds = whole, holds

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > self.holds:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.whole(x)  # type: ignore[no-any-return]

    maps = []
    for holds in (1000, 6):
        known = TeacherMaps(
            settings,
            images,
            build_teacher(settings)[0].eval(),
            torch.device("cpu"),
            tmp_path / str(holds),
            False,
        )
        monkeypatch.setattr(known, "_network", SmallCard(known._network, holds))
        maps.append(known.get(np.arange(20)))
    assert "teacher pass: the memory does not hold 32 images" in capfd.readouterr().err
    torch.testing.assert_close(*maps)


@pytest.mark.parametrize("n, most, sizes", [(8, None, [8]), (8, 3, [3, 3, 2]), (2, 5, [2]), (0, None, [])])
def test_parts_cover_the_batch(n, most, sizes):
    parts = Portion("training", most).parts(n)
    assert [part.stop - part.start for part in parts] == sizes
    assert [row for part in parts for row in range(n)[part]] == list(range(n))


def test_other_errors_are_not_taken_for_a_full_memory():
    def broken(parts):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        Portion("training").run(8, broken)
    assert is_refusal(torch.OutOfMemoryError("CUDA out of memory")) and is_refusal(MemoryError())
    assert is_refusal(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"))
    assert not is_refusal(ValueError("out of memory"))
