"""Are the arms' curves in TensorBoard those of their histories, and does the option change nothing else?"""

import sys
from pathlib import Path

import numpy as np
import pytest
from training_data import small_settings, write_dataset

from diag_lib import training
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.history import read_history
from diag_lib.tensorboard_events import FILE, read_scalars
from diag_lib.workbook import fingerprint
from diag_lib.workbook.preflight import refuse_mistakes


def test_curves_are_read_back_and_change_no_result(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", train=8, val=8)
    run, plain = RunFolder(tmp_path / "runs" / "a"), RunFolder(tmp_path / "runs" / "b")
    settings = small_settings(root, runtime__tensorboard=True)
    arms = training.train_arms(settings, run, ["status_quo", "bce_only"], progress=False)
    for name, arm in arms.items():
        folder = run.root / "artifacts" / "tensorboard" / name
        read = read_scalars(folder, 10**6)
        assert [step for step, _ in read["val_auc"]] == [1, 2, 3]
        assert ("train_distill_loss" in read) == (name == "status_quo")
        for tag, points in read.items():
            np.testing.assert_allclose([value for _, value in points], arm.history[tag], rtol=1e-6)
        assert read_history(folder).values("train_loss") == pytest.approx(arm.history["train_loss"], rel=1e-6)
    off = small_settings(root)
    without = training.train_arms(off, plain, ["bce_only"], progress=False)
    for tag, values in without["bce_only"].history.items():
        np.testing.assert_array_equal(values, arms["bce_only"].history[tag])
    assert not (plain.root / "artifacts" / "tensorboard").exists()
    assert fingerprint.inputs(off)["settings"] == fingerprint.inputs(settings)["settings"]

    events = run.root / "artifacts" / "tensorboard" / "bce_only" / FILE
    before = events.stat().st_ino
    training.train_arms(settings, run, ["bce_only"], progress=False)
    assert events.stat().st_ino == before  # nothing new, nothing written
    training.train_arms(small_settings(root, runtime__tensorboard=True), plain, ["bce_only"], progress=False)
    assert (
        plain.root / "artifacts" / "tensorboard" / "bce_only" / FILE
    ).is_file()  # trained before it was asked


def test_without_the_extra_it_is_one_line_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(write_dataset(tmp_path / "data", train=2, val=2), runtime__tensorboard=True)
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"runtime\.tensorboard: .*pip install 'diag-lib\[tensorboard\]'"):
        training.train_arms(settings, RunFolder(tmp_path / "run"), ["bce_only"], progress=False)
    with pytest.raises(UserError, match=r"runtime\.tensorboard"):
        refuse_mistakes(settings, ["audit"], tmp_path / "run")
    assert not (tmp_path / "run").exists()
