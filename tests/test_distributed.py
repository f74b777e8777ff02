"""How do several processes share the work?"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training_data import small_settings, write_dataset

from diag_lib import training
from diag_lib.evidence import RunFolder
from diag_lib.settings import Settings

pytestmark = pytest.mark.slow

NET = """
import torch

def make():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Tanh(), torch.nn.Conv2d(4, 1, 3, 2))
"""

SCRIPT = """
import sys
from diag_lib import settings, training
from diag_lib.evidence import RunFolder

chosen = settings.load(sys.argv[1])
run = RunFolder(sys.argv[2])
if sys.argv[3] == "finetune":
    training.finetune_teacher(chosen, run, epochs=1, progress=False)
else:
    training.train_arms(chosen, run, sys.argv[3:], progress=False)
"""


def torchrun(folder: Path, settings: Settings, run: RunFolder, *what: str) -> None:
    """Run `what` on two processes, as torchrun starts them."""
    (folder / "script.py").write_text(SCRIPT)
    (folder / "settings.yaml").write_text(settings.to_yaml())
    path = os.pathsep.join([str(Path(training.__file__).parents[2]), str(folder)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(folder / "script.py"), str(folder / "settings.yaml"), str(run.root), *what],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DIAG_TRUST_CODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_one_arm_is_trained_data_parallel(tmp_path, monkeypatch):
    """Without BatchNorm the shards' gradients add up to the whole batch's, also for an odd last batch."""
    (tmp_path / "shared_net.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    root = write_dataset(tmp_path / "data", train=13, val=7)
    settings = small_settings(
        root, student__arch="shared_net:make", student__preprocess="raw", training__batch_size=5
    )
    torchrun(tmp_path, settings, RunFolder(tmp_path / "two" / "run"), "status_quo")
    two = training.load_arm(RunFolder(tmp_path / "two" / "run"), "status_quo")
    one = training.train_arms(settings, RunFolder(tmp_path / "one" / "run"), ["status_quo"], progress=False)
    alone = one["status_quo"]
    np.testing.assert_allclose(two.val_scores["score"], alone.val_scores["score"], rtol=1e-3, atol=1e-4)
    start = training.predict(
        training.train_arms(  # an untrained student scores differently: the comparison means something
            small_settings(
                root,
                student__arch="shared_net:make",
                student__preprocess="raw",
                training__lr_s1=1e-9,
                training__lr_s2=1e-9,
            ),
            RunFolder(tmp_path / "zero" / "run"),
            ["status_quo"],
            progress=False,
        )["status_quo"].model(settings),
        training.runner.Splits(settings, RunFolder(tmp_path / "one" / "run")).of(settings, "val"),
        settings,
    ).logits
    assert np.abs(start - alone.val_scores["score"]).max() > 0.05


def test_several_arms_are_split_and_stay_the_same(tmp_path):
    root = write_dataset(tmp_path / "data", train=8, val=4)
    settings = small_settings(root)
    ids = ["status_quo", "bce_only", "standardized"]
    torchrun(tmp_path, settings, RunFolder(tmp_path / "two" / "run"), *ids)
    here = training.train_arms(settings, RunFolder(tmp_path / "one" / "run"), ids, progress=False)
    for arm in ids:
        there = training.load_arm(RunFolder(tmp_path / "two" / "run"), arm)
        np.testing.assert_array_equal(there.val_scores["score"], here[arm].val_scores["score"])


def test_fine_tuning_is_shared_too(tmp_path):
    root = write_dataset(tmp_path / "data", train=8, val=4)
    settings = small_settings(root, runtime__weights_dir=str(tmp_path / "weights"))
    torchrun(tmp_path, settings, RunFolder(tmp_path / "run"), "finetune")
    assert (tmp_path / "weights" / "finetuned.safetensors").is_file()
