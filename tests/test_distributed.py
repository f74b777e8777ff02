"""How do several processes share the work?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import small_settings, write_dataset

from diag_lib import training
from diag_lib.evidence import RunFolder
from diag_lib.images import open_split
from diag_lib.settings import Settings
from diag_lib.teacher_cache import teacher_maps

pytestmark = pytest.mark.slow

RECORD_BYTES = 36  # of the cache's index
SCRIPT = """
import json, os, signal, sys
from diag_lib import settings, training
from diag_lib.evidence import RunFolder
from diag_lib.images import open_split

from diag_lib import teacher_cache
from diag_lib.training import loop

def die_at(owner, name, call):
    real, calls = getattr(owner, name), [0]
    def counted(*arguments, **options):
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(owner, name, counted)

if os.environ["RANK"] == "1" and "DIE_IN" in os.environ:  # preempted
    die_at(*{"training": (loop.Student, "train_batch", 8), "pass": (teacher_cache.TeacherMaps, "_forward", 1)}[
        os.environ["DIE_IN"]])

chosen = settings.load(sys.argv[1])
run = RunFolder(sys.argv[2])
if sys.argv[3] == "alone":  # one by one: each is shared by both processes
    extra = json.load(open(sys.argv[4]))
    for arm in extra:
        training.train_arms(chosen, run, [arm], extra=extra, progress=False)
elif sys.argv[3] == "finetune":
    training.finetune_teacher(chosen, run, epochs=1, progress=False)
else:
    training.train_arms(chosen, run, sys.argv[3:], progress=False)
"""


def torchrun(folder: Path, settings: Settings, run: RunFolder, *what: str, die_in: str = "") -> None:
    """Run `what` on two processes, as torchrun starts them; with `die_in` the second is killed in the middle."""
    (folder / "script.py").write_text(SCRIPT)
    (folder / "settings.yaml").write_text(settings.to_yaml())
    path = os.pathsep.join([str(Path(training.__file__).parents[2]), str(folder)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    more = {"DIE_IN": die_in} if die_in else {}
    done = subprocess.run(
        [*command, str(folder / "script.py"), str(folder / "settings.yaml"), str(run.root), *what],
        env={**os.environ, **more, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DIAG_TRUST_CODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if die_in:
        assert done.returncode != 0 and "Signal 9 (SIGKILL)" in done.stderr, done.stderr[-3000:]
    else:
        assert done.returncode == 0, done.stderr[-3000:]


LOSSES = [("mse", "none"), ("correlation", "standardize"), ("huber", "batch"), ("bernoulli_kl", "layer")]


def test_one_arm_over_two_processes_is_the_same_training(tmp_path):
    """Whatever the loss compares within a batch, with BatchNorm, and with a last batch of one image."""
    root = write_dataset(tmp_path / "data", train=13, val=7)
    arms = {f"{loss}_{normalize}": {
        "training.distillation.loss": loss, "training.distillation.normalize": normalize,
    } for loss, normalize in LOSSES}  # fmt: skip
    settings = small_settings(
        root,
        training__batch_size=5,
        runtime__budget="full",
        training__optimizer="sgd",
        training__weight_decay=0.0,
    )
    two, one = (RunFolder(tmp_path / name / "run") for name in ("two", "one"))
    (tmp_path / "arms.json").write_text(json.dumps(arms))
    torchrun(tmp_path, settings, two, "alone", str(tmp_path / "arms.json"))
    here = training.train_arms(settings, one, list(arms), extra=arms, progress=False)
    shifted = settings.with_overrides({"training.seed": 5})
    other = training.train_arms(
        shifted, RunFolder(tmp_path / "other" / "run"), list(arms), extra=arms, progress=False
    )
    for arm, alone in here.items():
        there = training.load_arm(two, arm)
        assert (
            np.abs(other[arm].val_scores["score"] - alone.val_scores["score"]).max() > 0.05
        )  # so this tells:
        np.testing.assert_allclose(there.val_scores["score"], alone.val_scores["score"], rtol=1e-3, atol=1e-4)
        for name in ("train_loss", "train_distill_loss", "val_loss", "val_auc"):
            np.testing.assert_allclose(there.history[name], alone.history[name], rtol=1e-3)
        assert there.image_steps == alone.image_steps == 26 * 3
        for found, wanted in zip(there.evidence["gradients"], alone.evidence["gradients"], strict=True):
            for name in ("distill_norm", "task_norm", "cosine"):
                assert found[name] == pytest.approx(wanted[name], rel=1e-2, abs=1e-3)
        kept, expected = (dict(run.model(settings).named_buffers()) for run in (there, alone))
        for name, buffer in kept.items():
            torch.testing.assert_close(buffer, expected[name], rtol=1e-3, atol=1e-4)


def test_the_teacher_is_asked_once_by_both_together(tmp_path):
    """The pass is shared out; afterwards the cache holds all of it, to the bit what one process would write."""
    root = write_dataset(tmp_path / "data", train=9, val=4)
    settings = small_settings(root, dataset__augment="none")
    two = RunFolder(tmp_path / "two" / "run")
    torchrun(tmp_path, settings, two, "status_quo")
    maps = teacher_maps(settings, open_split(settings, "train", two), two, progress=False)
    everything = np.arange(18)
    there = maps.get(everything)
    assert maps.computed == 0
    alone = teacher_maps(settings, maps.images, RunFolder(tmp_path / "one" / "run").create(), progress=False)
    assert torch.equal(there, alone.get(everything))
    (index,) = two.default_cache.rglob("index")
    assert index.stat().st_size == 18 * RECORD_BYTES  # nobody computed what the other had


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


def test_a_preempted_process_resumes_the_training_with_the_same_numbers(tmp_path):
    """Killed in the third of four epochs of one data-parallel arm; then the same command again."""
    root = write_dataset(tmp_path / "data", train=12, val=6)
    settings = small_settings(root, training__epochs_s2=3, training__batch_size=8, dataset__augment="none")
    calm, killed = (RunFolder(tmp_path / name / "run") for name in ("calm", "killed"))
    torchrun(tmp_path, settings, calm, "status_quo")
    torchrun(tmp_path, settings, killed, "status_quo", die_in="training")
    kept = torch.load(killed.arm_dir("status_quo") / "checkpoint.pt", weights_only=True)
    assert kept["epoch"] == 2 and training.load_arm(killed, "status_quo") is None
    torchrun(tmp_path, settings, killed, "status_quo")
    wanted, found = (training.load_arm(run, "status_quo") for run in (calm, killed))
    np.testing.assert_array_equal(found.val_scores["score"], wanted.val_scores["score"])
    np.testing.assert_equal(found.history, wanted.history)
    assert found.image_steps == wanted.image_steps == 24 * 4


def test_a_process_preempted_in_the_teachers_pass_leaves_maps_that_count(tmp_path):
    root = write_dataset(tmp_path / "data", train=9, val=4)
    settings = small_settings(root, dataset__augment="none")
    run = RunFolder(tmp_path / "killed" / "run")
    torchrun(tmp_path, settings, run, "status_quo", die_in="pass")
    torchrun(tmp_path, settings, run, "status_quo")
    maps = teacher_maps(settings, open_split(settings, "train", run), run, progress=False)
    everything = np.arange(18)
    there = maps.get(everything)
    assert maps.computed == 0
    alone = teacher_maps(settings, maps.images, RunFolder(tmp_path / "one" / "run").create(), progress=False)
    assert torch.equal(there, alone.get(everything))
