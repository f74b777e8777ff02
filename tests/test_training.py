"""Does the student learn under these settings, and under which others would it?"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from training_data import small_settings, write_dataset

from diag_lib import training
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.images import ImageSet, epoch_batches, open_split, to_input
from diag_lib.models import build_student, build_teacher, save_weights
from diag_lib.settings import Settings
from diag_lib.statistics import auc
from diag_lib.teacher_cache import TeacherMaps, teacher_maps
from diag_lib.training import launch, loop, runner, shared
from diag_lib.training.signals import GradientSignals, gradient_signals, sampled_epochs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "a").create()


def train(settings: Settings, run: RunFolder, *ids: str, **options) -> training.ArmResults:
    return training.train_arms(settings, run, ids, progress=False, **options)


# ---- the loop


def by_hand(settings: Settings, run: RunFolder) -> tuple[nn.Module, list[float], list[float]]:
    """The guide's training written out once more, for mean pooling, MSE and equal geometries."""
    t, alpha = settings.training, settings.training.distillation
    images = open_split(settings, "train", run)
    maps = teacher_maps(settings, images, run, progress=False)
    model, _ = build_student(settings)
    stages = [
        (t.epochs_s1, settings.student.trainable_s1, t.lr_s1),
        (t.epochs_s2, settings.student.trainable_s2, t.lr_s2),
    ]
    distill_losses, task_losses, epoch = [], [], 0
    for stage, (epochs, names, rate) in enumerate(stages):
        chosen = [p for n, p in model.named_parameters() if n.split(".")[0] in names]
        for parameter in model.parameters():
            parameter.requires_grad_(any(parameter is p for p in chosen))
        optimizer = torch.optim.Adam(chosen, lr=rate, weight_decay=t.weight_decay)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, epochs))
        for _ in range(epochs):
            model.train()
            sums = np.zeros(2)
            for index in epoch_batches(len(images), t.batch_size, t.seed, epoch):
                views = images.view_of_epoch(index, epoch)
                mean, std = settings.dataset.normalize_mean, settings.dataset.normalize_std
                patches = model(to_input(images.pixels(index, views), mean, std))
                y = torch.from_numpy(images.labels[index]).float()
                distill = F.mse_loss(patches, maps.get(index, views))
                task = F.binary_cross_entropy_with_logits(patches.mean((1, 2, 3)), y)
                optimizer.zero_grad()
                (alpha.alpha_distill * distill + alpha.alpha_task * task).backward()
                optimizer.step()
                sums += np.array([distill.item(), task.item()]) * len(index)
            if stage == 1:
                cosine.step()
            distill_losses.append(sums[0] / len(images))
            task_losses.append(sums[1] / len(images))
            epoch += 1
    return model.eval(), distill_losses, task_losses


def test_the_status_quo_is_the_guides_training(root, run):
    settings = small_settings(
        root, student__trainable_s1=["fc"], student__trainable_s2=["layer1", "fc"], training__epochs_s1=2
    )
    arm = train(settings, run, "status_quo")["status_quo"]
    model, distill, task = by_hand(settings, run)
    np.testing.assert_allclose(arm.history["train_distill_loss"], distill, rtol=1e-4)
    np.testing.assert_allclose(arm.history["train_task_loss"], task, rtol=1e-4)
    np.testing.assert_allclose(arm.history["train_loss"], (np.array(distill) + task) / 2, rtol=1e-4)
    assert arm.history["stage"] == [1, 1, 2, 2]
    trained = dict(arm.model(settings).named_parameters())
    start = dict(build_student(settings)[0].named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(trained[name], parameter, rtol=1e-3, atol=1e-4)
        moved = not torch.equal(trained[name], start[name])
        assert moved == (name.split(".")[0] in ("layer1", "fc"))
        assert arm.evidence["parameters"][name]["trained"] == moved
        assert (arm.evidence["parameters"][name]["delta"] > 0) == moved


def test_frozen_batch_norm_layers_go_on_counting(root, run):
    settings = small_settings(root, student__trainable_s1=["fc"], student__trainable_s2=["fc"])
    model = train(settings, run, "bce_only")["bce_only"].model(settings)
    start, _ = build_student(settings)
    assert torch.equal(model.bn1.weight, start.bn1.weight)
    assert not torch.equal(model.bn1.running_mean, start.bn1.running_mean)


def test_scores_are_those_of_the_last_epoch(root, run):
    settings = small_settings(root)
    arm = train(settings, run, "bce_only")["bce_only"]
    val = open_split(settings, "val", run)
    again = training.predict(arm.model(settings), val, settings)
    np.testing.assert_allclose(arm.val_scores["score"], again.logits, rtol=1e-5, atol=1e-6)
    assert list(arm.val_scores["path"]) == list(val.frame["path"])
    assert arm.val_scores["score"].dtype == np.float64
    assert arm.auc == auc(val.labels, arm.val_scores["score"].to_numpy())
    assert arm.history["val_auc"][-1] == arm.auc.value
    expected = F.binary_cross_entropy_with_logits(
        torch.tensor(arm.val_scores["score"]), torch.tensor(val.labels).double()
    )
    assert arm.history["val_loss"][-1] == pytest.approx(float(expected))
    accuracy = np.mean((arm.val_scores["score"] > 0) == (val.labels == 1))
    assert arm.history["val_acc"][-1] == pytest.approx(accuracy)
    assert len(arm.train_scores) == 48 and arm.image_steps == 48 * 3


def test_a_learnable_task_is_learned(root, run):
    arm = train(small_settings(root, training__epochs_s2=8), run, "bce_only")["bce_only"]
    assert arm.auc.ci[0] > 0.8
    assert arm.history["train_task_loss"][-1] < 0.6 < arm.history["train_task_loss"][0]
    assert np.isnan(arm.history["train_distill_loss"]).all()


def test_a_batch_of_one_image_that_has_no_statistics_is_the_users_to_know(root, run):
    """Five pixels leave the student a map of 1 x 1."""
    alone = small_settings(root, training__batch_size=1, dataset__image_size=5)
    with pytest.raises(UserError, match=r"training\.batch_size: a batch of one"):
        train(alone, run, "bce_only")


def test_a_single_image_left_over_does_not_stop_the_training(root, run):
    n = len(open_split(small_settings(root), "train").frame)
    chosen = small_settings(root, training__batch_size=n - 1, dataset__image_size=5)
    assert train(chosen, run, "bce_only")["bce_only"].image_steps > 0


def test_plateau_reduces_the_rate_by_half_a_alone(root, run, monkeypatch):
    settings = small_settings(root, training__epochs_s1=6, training__epochs_s2=0)
    seen = []
    real = torch.optim.lr_scheduler.ReduceLROnPlateau.step
    monkeypatch.setattr(
        torch.optim.lr_scheduler.ReduceLROnPlateau,
        "step",
        lambda self, value: (seen.append(value), real(self, value)),
    )
    arm = train(settings, run, "bce_only")["bce_only"]
    half = arm.val_scores[arm.val_scores["half"] == "A"]
    assert seen[-1] == auc(half["label"], half["score"]).value and len(seen) == 6


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_optimizers_and_clipping(root, run, optimizer):
    settings = small_settings(root, training__optimizer=optimizer, training__clip_grad_norm=1e-9)
    frozen = train(settings, run, "bce_only")["bce_only"].evidence["parameters"]["fc.weight"]["delta"]
    free = train(small_settings(root, training__optimizer=optimizer), run, "bce_only")["bce_only"]
    moved = free.evidence["parameters"]["fc.weight"]["delta"]
    assert moved > 1e-4
    if optimizer == "sgd":  # Adam is blind to the gradient's size
        assert frozen < moved / 10


# ---- pairing, lockstep, processes, resume


def scores(arm: training.ArmResult) -> pd.DataFrame:
    return arm.val_scores[["path", "label", "half", "score"]]


def same(a: training.ArmResult, b: training.ArmResult) -> None:
    """Bit for bit the same training."""
    pd.testing.assert_frame_equal(scores(a), scores(b), check_exact=True)
    np.testing.assert_equal(a.history, b.history)
    assert (a.folder / "student.safetensors").read_bytes() == (b.folder / "student.safetensors").read_bytes()


def test_arms_do_not_depend_on_which_others_are_trained_beside_them(root, tmp_path):
    settings = small_settings(root)
    ids = ("status_quo", "standardized", "bce_only")
    together = train(settings, RunFolder(tmp_path / "a"), *ids)
    for arm in ids:
        same(train(settings, RunFolder(tmp_path / "b"), arm)[arm], together[arm])


def test_one_decoding_and_one_look_up_a_batch_serve_all_arms(root, tmp_path, monkeypatch):
    """What is asked of the images and of the teacher does not grow with the number of arms."""
    asked = {}
    for name, owner in (("pixels", ImageSet), ("get", TeacherMaps)):
        real = getattr(owner, name)

        def counted(self, *arguments, name=name, real=real, **options):
            asked[name] = asked.get(name, 0) + 1
            return real(self, *arguments, **options)

        monkeypatch.setattr(owner, name, counted)
    ids = ("status_quo", "standardized", "alpha_0.1", "alpha_0.01")
    counts = []
    for count in (1, 4):
        asked.clear()
        train(small_settings(root), RunFolder(tmp_path / str(count) / "run"), "standardized", *ids[:count])
        counts.append(dict(asked))
    assert counts[0] == counts[1] and counts[0]["pixels"] > 3


def test_arms_that_share_a_frozen_stem_compute_it_once_and_stay_the_same(root, tmp_path, monkeypatch):
    """Of three arms two have the guide's frozen stem; each is to the bit what it is alone."""
    settings = small_settings(
        root, student__trainable_s1=["fc"], student__trainable_s2=["layer1", "fc"], training__epochs_s1=2
    )
    alone = {
        arm: train(settings, RunFolder(tmp_path / arm / "run"), arm)[arm]
        for arm in ("status_quo", "bce_only", "unfrozen")
    }
    sizes = []
    real = shared.stem_features

    def noted(models, x):
        found = real(models, x)
        sizes.append(sum(features is not None for features in found))
        return found

    monkeypatch.setattr(loop, "stem_features", noted)
    together = train(settings, RunFolder(tmp_path / "together" / "run"), *alone)
    for arm, result in alone.items():
        same(result, together[arm])
    assert set(sizes) >= {2} and max(sizes) <= 3


@pytest.mark.slow
def test_processes_give_the_same_arms(root, tmp_path):
    ids = ("status_quo", "bce_only", "centered")
    here = train(small_settings(root), RunFolder(tmp_path / "a"), *ids)
    there = train(small_settings(root, runtime__processes=2), RunFolder(tmp_path / "b"), *ids)
    for arm in ids:
        same(here[arm], there[arm])


@pytest.mark.slow
def test_a_notebook_starts_the_processes_of_several_gpus(root, tmp_path, monkeypatch):
    """Here gloo stands for NCCL: torchrun is started, splits the arms and leaves them in the run folder."""
    ids = ("status_quo", "bce_only", "cropped")
    extra = {"cropped": {"training.distillation.loss": "huber"}}
    here = train(small_settings(root), RunFolder(tmp_path / "a"), *ids, extra=extra)
    monkeypatch.setattr(runner, "_launched", lambda settings: 2)
    monkeypatch.setattr(runner, "_train_pending", lambda *_: None)  # nothing is left for this process
    there = train(small_settings(root), RunFolder(tmp_path / "b"), *ids, extra=extra)
    for arm in ids:
        same(here[arm], there[arm])


def test_what_a_process_finds_wrong_is_said_here(root, run, monkeypatch):
    monkeypatch.setattr(launch, "_run", lambda command: launch.serve(Path(command[-1])))
    with pytest.raises(UserError, match="'nonsense' does not exist"):
        launch.launch(small_settings(root), run, ["nonsense"], None, 2, False)
    monkeypatch.setattr(launch, "_run", lambda command: 9)
    with pytest.raises(RuntimeError, match="exit code 9"):
        launch.launch(small_settings(root), run, ["bce_only"], None, 2, False)


def test_trained_arms_are_not_trained_again(root, run, monkeypatch):
    settings = small_settings(root)
    first = train(settings, run, "status_quo", "bce_only")
    monkeypatch.setattr(runner, "train", lambda *_: pytest.fail("trained again"))
    second = train(settings, run, "bce_only", "status_quo")
    same(first["bce_only"], second["bce_only"])
    same(training.load_arm(run, "bce_only"), first["bce_only"])
    assert training.load_arm(run, "robust") is None


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"training__lr_s1": 0.02}, {"status_quo", "bce_only"}),
        ({"dataset__normalize_mean": [0.5, 0.5, 0.5]}, {"status_quo", "bce_only"}),
        ({"teacher__preprocess": "raw"}, {"status_quo"}),
        ({"training__distillation__loss": "huber"}, {"status_quo"}),
        ({"thresholds__baseline_auc": 0.7, "runtime__workers": 1}, set()),
    ],
)
def test_only_arms_whose_dependencies_changed_are_trained_again(root, run, monkeypatch, change, again):
    ids = ("status_quo", "bce_only")
    train(small_settings(root), run, *ids)
    trained = []
    real = runner.train
    monkeypatch.setattr(
        runner, "train", lambda students, *rest: (trained.extend(students), real(students, *rest))
    )
    train(small_settings(root, **change), run, *ids)
    assert {"status_quo" if s.distills else "bce_only" for s in trained} == again


def test_a_changed_image_trains_again(tmp_path, run, monkeypatch):
    settings = small_settings(write_dataset(tmp_path / "data", 8, 8))
    before = train(settings, run, "bce_only")["bce_only"]
    (tmp_path / "data" / "train" / "real" / "000.png").unlink()
    after = train(settings, run, "bce_only")["bce_only"]
    assert len(after.train_scores) == 15 and not scores(after).equals(scores(before))


@pytest.mark.parametrize("killed_after", [1, 2, 4])
def test_a_killed_training_goes_on_bit_for_bit(root, tmp_path, monkeypatch, killed_after):
    settings = small_settings(root, training__epochs_s1=2)
    ids = ("status_quo", "bce_only")
    whole = train(settings, RunFolder(tmp_path / "a"), *ids)
    broken = RunFolder(tmp_path / "b")
    real, count = runner.save_checkpoint, 0

    def killed(*arguments):
        nonlocal count
        real(*arguments)
        count += 1
        if count == killed_after * 2 - 1:  # one of the two arms is an epoch ahead
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings, broken, *ids)
    assert training.load_arm(broken, "status_quo") is None
    epochs = []
    real_step = loop.Student.begin_epoch
    monkeypatch.setattr(
        loop.Student, "begin_epoch", lambda self: (epochs.append(self.epoch), real_step(self))
    )
    resumed = train(settings, broken, *ids)
    assert len(epochs) == 2 * 4 - (2 * killed_after - 1)
    for arm in ids:
        same(resumed[arm], whole[arm])
        assert resumed[arm].image_steps == whole[arm].image_steps
        assert resumed[arm].evidence["gradients"] == whole[arm].evidence["gradients"]
        assert not (resumed[arm].folder / "checkpoint.pt").exists()


KILLED = """
import os, signal, sys
from diag_lib import settings, training
from diag_lib.evidence import RunFolder
from diag_lib.training import loop

real, steps = loop.Student.train_batch, 0

def train_batch(self, *arguments):
    global steps
    real(self, *arguments)
    steps += 1
    if steps == 14:  # within the third epoch of two arms of three steps an epoch
        os.kill(os.getpid(), signal.SIGKILL)

loop.Student.train_batch = train_batch
training.train_arms(settings.load(sys.argv[1]), RunFolder(sys.argv[2]), sys.argv[3:], progress=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_process_killed_within_an_epoch_goes_on_bit_for_bit(root, tmp_path):
    settings = small_settings(root, training__epochs_s2=3)
    ids = ("status_quo", "bce_only")
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(tmp_path / "settings.yaml"),
        str(tmp_path / "b" / "run"),
        *ids,
    ]
    died = subprocess.run(command, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert died.returncode == -signal.SIGKILL
    killed = RunFolder(tmp_path / "b" / "run")
    assert load_checkpoint_epochs(killed, ids) == [2, 2]
    resumed = train(settings, killed, *ids)
    whole = train(settings, RunFolder(tmp_path / "a" / "run"), *ids)
    for arm in ids:
        same(resumed[arm], whole[arm])
        assert resumed[arm].evidence["gradients"] == whole[arm].evidence["gradients"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_training_process_that_dies_is_one_line_and_its_epochs_are_kept(root, tmp_path):
    psutil = pytest.importorskip("psutil")
    settings = small_settings(root, training__epochs_s2=30)
    ids, run = ("status_quo", "bce_only"), RunFolder(tmp_path / "b" / "run")
    killed: list[int] = []

    def kill_one() -> None:
        while not (run.arm_dir("bce_only") / "checkpoint.pt").exists():
            time.sleep(0.01)
        workers = psutil.Process().children(recursive=True)
        [worker, *_] = [each for each in workers if "LokyProcess" in " ".join(each.cmdline())]
        worker.kill()
        killed.append(worker.pid)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    with pytest.raises(UserError, match=r"training process died .* runtime\.processes"):
        train(settings.with_overrides({"runtime.processes": 2}), run, *ids)
    killer.join(10)
    assert len(killed) == 1
    assert max(load_checkpoint_epochs(run, ("bce_only",))) >= 1
    resumed = train(settings, run, *ids)
    whole = train(settings, RunFolder(tmp_path / "a" / "run"), *ids)
    for arm in ids:
        same(resumed[arm], whole[arm])


TRAIN = """
import sys
import threading
import time
from diag_lib import settings, training
from diag_lib.evidence import RunFolder
training.train_arms(settings.load(sys.argv[1]), RunFolder(sys.argv[2]), sys.argv[3:], progress=False)
"""


def test_two_trainings_at_once_into_one_folder_and_cache_take_turns(root, tmp_path):
    settings = small_settings(root, runtime__cache_dir=str(tmp_path / "cache"))
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    ids, run = ("status_quo", "bce_only"), RunFolder(tmp_path / "both" / "run")
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "settings.yaml"), str(run.root), *ids]
    both = [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    own = settings.with_overrides({"runtime.cache_dir": str(tmp_path / "own")})
    alone = train(own, RunFolder(tmp_path / "alone" / "run"), *ids)
    for arm in ids:
        same(training.load_arm(run, arm), alone[arm])
    maps = [sum(f.stat().st_size for f in (tmp_path / name).rglob("maps.f*")) for name in ("cache", "own")]
    assert maps[0] <= 2 * maps[1]  # at worst both asked the teacher at the same time


def load_checkpoint_epochs(run: RunFolder, ids: tuple[str, ...]) -> list[int]:
    files = [run.arm_dir(arm) / "checkpoint.pt" for arm in ids]
    return [torch.load(file, weights_only=True)["epoch"] for file in files]


def test_a_torn_checkpoint_is_ignored(root, run):
    settings = small_settings(root)
    folder = run.arm_dir("bce_only")
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(b"PK torn")
    assert train(settings, run, "bce_only")["bce_only"].auc.defined


def test_seeds_change_start_and_order_but_not_the_halves(root, run):
    arms = train(small_settings(root), run, "bce_only", "bce_only@seed1")
    first, second = arms["bce_only"], arms["bce_only@seed1"]
    assert second.seed == first.seed + 1
    assert not np.allclose(first.val_scores["score"], second.val_scores["score"])
    assert list(first.val_scores["half"]) == list(second.val_scores["half"])
    counts = first.val_scores.groupby(["half", "label"]).size()
    assert set(counts) == {8}


# ---- broken trainings


def test_statistics_that_overflow_before_any_weight_end_the_arm_too(root, run, monkeypatch):
    """Such a network cannot be loaded again; step 03 must hear that it is lost."""
    end_epoch = loop.Student.end_epoch

    def overflowing(student, val_logits):
        student.model.get_submodule("bn1").running_var.fill_(torch.inf)
        end_epoch(student, val_logits)

    monkeypatch.setattr(loop.Student, "end_epoch", overflowing)
    arm = train(small_settings(root), run, "bce_only")["bce_only"]
    assert arm.stopped is not None and "the BatchNorm statistics are no longer finite" in arm.stopped
    assert not arm.auc.defined


def test_a_training_that_overflows_is_reported(root, run, tmp_path):
    teacher, _ = build_teacher(small_settings(root))
    with torch.no_grad():
        teacher.fc.weight.fill_(3e38)
    weights = save_weights(teacher, tmp_path / "infinite.safetensors")
    arms = train(small_settings(root, teacher__weights=str(weights)), run, "status_quo", "bce_only")
    broken = arms["status_quo"]
    assert "no longer finite" in broken.stopped and not broken.auc.defined
    assert broken.evidence["nonfinite_steps"] == 3 and len(broken.history["stage"]) == 1
    assert arms["bce_only"].stopped is None and arms["bce_only"].auc.defined


def test_a_network_that_detaches_its_output_is_reported(root, run, tmp_path, monkeypatch):
    (tmp_path / "detached_net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(3, 1, 3)\n"
        "    def forward(self, x):\n"
        "        return self.conv(x).detach()\n"
        "def make():\n"
        "    return Net()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    settings = small_settings(root, student__arch="detached_net:make", student__preprocess="raw")
    arm = train(settings, run, "bce_only")["bce_only"]
    assert arm.evidence["unreached_steps"] == 9
    assert all(part["delta"] == 0 and part["trained"] for part in arm.evidence["parameters"].values())


def test_a_clearly_lost_rung_of_the_ladder_stops_and_says_why(root, run):
    """No progress and an AUC that is surely low end the arms that prove nothing; all others go on."""
    still = small_settings(
        root, training__lr_s1=1e-12, training__lr_s2=1e-12, training__epochs_s1=1, training__epochs_s2=11,
        training__seed=1,
    )  # fmt: skip
    arms = train(still, run, "alpha_0.1", "alpha_0.01", "status_quo")
    lost = arms["alpha_0.1"]
    assert len(lost.history["stage"]) == lost.evidence["epochs"] == 6 and lost.image_steps == 48 * 6
    assert "clearly lost after epoch 6 of 12" in lost.stopped and "99.9%" in lost.stopped
    assert lost.auc.defined and len(lost.val_scores) == 32
    for arm in ("alpha_0.01", "status_quo"):
        assert arms[arm].stopped is None and len(arms[arm].history["stage"]) == 12


@pytest.mark.parametrize(
    "change", [{"training__lr_s1": 0.01, "training__lr_s2": 0.01}, {"thresholds__baseline_auc": 0.3}]
)
def test_an_arm_that_moves_or_may_be_good_enough_goes_on(root, run, change):
    chosen = {"training__lr_s1": 1e-12, "training__lr_s2": 1e-12, "thresholds__baseline_auc": 0.9, **change}
    settings = small_settings(root, training__epochs_s1=1, training__epochs_s2=11, **chosen)
    arm = train(settings, run, "alpha_0.1")["alpha_0.1"]
    assert arm.stopped is None and len(arm.history["stage"]) == 12


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs limits on the size of files")
def test_a_limit_on_the_size_of_files_is_said_in_one_line(root, run):
    """The checkpoint does not fit; `test_full_disk` has real disks, which not everybody may mount."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(UserError, match=rf"^{run.root}: File too large; free some space, then the same"):
            train(small_settings(root), run, "bce_only")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [file.name for file in run.arm_dir("bce_only").iterdir()] == []
    assert train(small_settings(root), run, "bce_only")["bce_only"].auc.defined


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_changes_the_training_a_little(root, run, precision):
    arms = train(small_settings(root, runtime__precision=precision), run, "bce_only")
    exact = train(small_settings(root), RunFolder(run.root.parent / "b"), "bce_only")["bce_only"]
    difference = np.abs(arms["bce_only"].val_scores["score"] - exact.val_scores["score"])
    assert 0 < difference.max() < 0.2


def test_an_absent_device_is_the_users_mistake(root, run):
    if torch.cuda.is_available():
        pytest.skip("the machine has the device")
    with pytest.raises(UserError, match=r"runtime.device: cuda is not available"):
        train(small_settings(root, runtime__device="cuda"), run, "bce_only")


# ---- evidence


def test_gradients_of_the_two_losses():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    outputs = x @ weight

    def losses_of(rows: slice) -> loop.LossParts:
        task, distill = outputs[rows].mean(), -2 * outputs[rows].mean() + weight[1]
        return loop.LossParts(task + distill, distill, task)

    found = gradient_signals(losses_of, 4, [weight])
    task, distill = np.array([1.5, 0.5]), np.array([-3.0, 0.0])
    assert found.task_norm == pytest.approx(np.linalg.norm(task))
    assert found.distill_norm == pytest.approx(3.0)
    cosine = task @ distill / np.linalg.norm(task) / np.linalg.norm(distill)
    assert found.cosine == pytest.approx(cosine)
    first, second = np.array([1.0, 0.0]), np.array([2.0, 1.0])
    expected = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert found.cosine_task_halves == pytest.approx(expected)
    reliability = [2 * c / (1 + c) for c in (expected, found.cosine_distill_halves)]
    assert found.cosine_normalized == pytest.approx(cosine / np.sqrt(np.prod(reliability)))
    assert weight.grad is None and gradient_signals(losses_of, 3, [weight]) is None
    assert isinstance(found, GradientSignals)


@given(st.integers(1, 300), st.integers(1, 30))
def test_sampled_epochs_are_spread_and_few(epochs, steps):
    chosen = sampled_epochs(epochs, steps)
    assert 0 in chosen and chosen <= set(range(epochs))
    assert len(chosen) == max(1, min(16, epochs, epochs * steps // 8))
    assert len(chosen) == 1 or epochs - 1 in chosen


def test_evidence_describes_the_fit_to_the_teacher(root, run):
    settings = small_settings(root, training__epochs_s2=6)
    arms = train(settings, run, "standardized", "bce_only")
    arm = arms["standardized"]
    images = open_split(settings, "train", run)
    teacher = teacher_maps(settings, images, run, progress=False)
    maps = training.predict(arm.model(settings), images, settings, maps=True).maps.double().flatten()
    target = teacher.get(np.arange(len(images))).double().flatten()
    fit = arm.evidence["fit"]
    assert fit["rho"] == pytest.approx(float(np.corrcoef(maps, target)[0, 1]), abs=1e-4)
    assert fit["r2"] == pytest.approx(float(1 - ((maps - target) ** 2).mean() / target.var()), rel=1e-3)
    scaled = (target - teacher.scale.mean) / teacher.scale.std
    assert arm.evidence["fit_target"]["mse"] == pytest.approx(float(((maps - scaled) ** 2).mean()), rel=1e-3)
    assert "fit" not in arms["bce_only"].evidence
    assert arm.evidence["student_patches"]["mean"] == pytest.approx(float(maps.mean()), abs=1e-4)
    assert [sample["epoch"] for sample in arm.evidence["gradients"]] == [0, 6]
    assert all(0 < sample["update_to_weight"] < 1 for sample in arm.evidence["gradients"])


def test_evidence_takes_the_mse_apart_where_values_are_asked_for(root, run):
    asked = {"rank": {"training.distillation.loss": "correlation"}}
    arms = train(small_settings(root), run, "status_quo", "standardized", "rank", "bce_only", extra=asked)
    fit = arms["status_quo"].evidence["fit"]
    assert fit["mse_offset"] == pytest.approx((fit["student_mean"] - fit["teacher_mean"]) ** 2)
    assert fit["mse_scale"] == pytest.approx((fit["student_std"] - fit["teacher_std"]) ** 2)
    assert sum(fit[f"mse_{part}"] for part in ("offset", "scale", "pattern")) == pytest.approx(fit["mse"])
    scaled = arms["standardized"].evidence
    assert "mse_offset" not in scaled["fit"] and "mse_offset" in scaled["fit_target"]
    assert "mse_offset" not in arms["rank"].evidence["fit_target"]


def test_evidence_tells_a_collapsed_student_and_stale_batch_norms(root, run):
    settings = small_settings(root)
    arm = train(settings, run, "status_quo")["status_quo"]
    images, model = open_split(settings, "train", run), arm.model(settings)
    maps = training.predict(model, images, settings, maps=True).maps.double().flatten(1).numpy()
    spread = arm.evidence["student_spread"]
    assert spread["within"] == pytest.approx(np.sqrt(maps.var(1).mean()), rel=1e-4)
    assert spread["between"] == pytest.approx(maps.mean(1).std(), rel=1e-4)
    teacher = (
        teacher_maps(settings, images, run, progress=False).get(np.arange(48)).double().flatten(1).numpy()
    )
    assert arm.evidence["teacher_spread"]["within"] == pytest.approx(np.sqrt(teacher.var(1).mean()), rel=1e-4)
    mean, std = settings.dataset.normalize_mean, settings.dataset.normalize_std
    with torch.no_grad():
        x = model.prepare(to_input(images.pixels(np.arange(48)), mean, std))
        stem = F.conv2d(F.conv2d(x, model.conv1.weight), model.conv2.weight)
    real = stem.var((0, 2, 3), correction=0)
    found = arm.evidence["batch_norms"]["bn1"]
    expected = float((model.bn1.running_var / real).log().mean().exp())
    assert found["variance_ratio"] == pytest.approx(expected, rel=1e-3)
    shift = float(((model.bn1.running_mean - stem.mean((0, 2, 3))).abs() / real.sqrt()).max())
    assert found["mean_shift"] == pytest.approx(shift, rel=1e-3)
    assert found["batches"] == 9 and set(arm.evidence["batch_norms"]) == {
        "bn1",
        "layer1.0.bn1",
        "layer1.0.bn2",
    }
    assert abs(np.log(found["variance_ratio"])) > 0.5  # momentum .001: nine batches are far too few


# ---- arms and budget


def test_arms_change_what_they_say_and_nothing_else(root):
    settings = small_settings(root, student__trainable_s1=["fc"], student__trainable_s2=["layer1", "fc"])
    base = settings.to_dict()
    for arm in training.ARMS:
        changed = training.arm_settings(settings, arm).to_dict()
        assert {key for key in base if base[key] != changed[key]} <= {"student", "training"}
    ten = training.arm_settings(settings, "lr_x10").training
    assert (ten.lr_s1, ten.lr_s2) == (pytest.approx(0.1), pytest.approx(0.1))
    unfrozen = training.arm_settings(settings, "unfrozen")
    assert unfrozen.student.trainable_s1 == unfrozen.student.trainable_s2 == ["all"]
    assert unfrozen.training == settings.training
    half = training.arm_settings(settings, "alpha_0.2").training.distillation
    assert (half.alpha_distill, half.alpha_task) == (0.2, 0.8)


@pytest.mark.parametrize("arm", ["alpha_0.7", "recommended", "bce_only@seed0", "../../etc", "", "a@seed1"])
def test_unknown_arms_are_refused(root, run, arm):
    with pytest.raises(UserError, match="does not exist"):
        train(small_settings(root), run, arm)


def test_the_same_training_is_linked_not_repeated(root, run, monkeypatch):
    settings = small_settings(root)
    trained = []
    real = runner.train
    monkeypatch.setattr(
        runner, "train", lambda students, *rest: (trained.extend(students), real(students, *rest))
    )
    arms = train(
        settings,
        run,
        *("alpha_0.5", "unfrozen", "recommended"),
        extra={"recommended": {"training.distillation.alpha_distill": 0.5}},
    )
    assert len(trained) == 1 and set(arms) == {"alpha_0.5", "unfrozen", "recommended"}
    assert {arm.linked_to for arm in arms.values()} == {"status_quo"}
    assert arms["unfrozen"].id == "unfrozen"
    assert training.load_arm(run, "unfrozen").auc == training.load_arm(run, "status_quo").auc


def test_extra_arms_may_change_the_data(root, run):
    arms = train(
        small_settings(root),
        run,
        *("bce_only", "cropped"),
        extra={
            "cropped": {
                "dataset.resize": "crop",
                "dataset.image_size": 24,
                "training.distillation.alpha_distill": 0,
            }
        },
    )
    assert arms["cropped"].overrides["dataset.image_size"] == 24
    assert list(arms["cropped"].val_scores["half"]) == list(arms["bce_only"].val_scores["half"])


def big(root: Path, epochs: tuple[int, int], budget: str = "quick", **more) -> Settings:
    return small_settings(
        root,
        student__trainable_s1=["fc"],
        student__trainable_s2=["layer1", "fc"],
        training__epochs_s1=epochs[0],
        training__epochs_s2=epochs[1],
        runtime__budget=budget,
        **more,
    )


def test_the_budget_shortens_every_arm_alike(root):
    made = training.plan(big(root, (5, 20)), 1000, ["status_quo", "centered"])
    assert (made.epochs_s1, made.epochs_s2) == (1, 4) and made.schedule_fraction == 0.2
    assert made.spent == 20_000 and not made.over_budget
    assert set(made.admitted) >= set(training.CORE) and "centered" in made.not_run
    assert "20,000 image-steps" in made.not_run["centered"]
    assert made.shorten(big(root, (5, 20))).training.epochs_s2 == 4


def test_one_epoch_a_stage_remains_even_over_budget(root):
    made = training.plan(big(root, (5, 20)), 100_000, ["status_quo"])
    assert (made.epochs_s1, made.epochs_s2) == (1, 1) and made.over_budget
    only_second = training.plan(big(root, (0, 20)), 100_000, ["status_quo"])
    assert (only_second.epochs_s1, only_second.epochs_s2) == (0, 1)


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 5000),
    ids=st.lists(st.sampled_from([*training.ARMS, "bce_only@seed1", "lr_x10@seed2"]), unique=True),
    budget=st.sampled_from(["quick", "standard"]),
)
def test_every_step_makes_the_same_plan(n, ids, budget):
    settings = big(Path("/data"), (2, 5), budget)
    every = training.plan(settings, n, [*training.PRIORITY[:4], *training.ARMS])
    made = training.plan(settings, n, ids)
    assert (made.epochs_s1, made.epochs_s2) == (every.epochs_s1, every.epochs_s2)
    for arm in ids:
        assert (arm in made.admitted) != (arm in made.not_run)
        if arm in training.ARMS:
            assert (arm in made.admitted) == (arm in every.admitted)
    assert made.over_budget or made.spent <= settings.image_steps
    known = training.plan(settings, n, ids, {"recommended": {"training.lr_s2": 0.5}})
    assert [arm for arm in ids if arm in known.admitted] == [arm for arm in ids if arm in made.admitted]


def test_not_run_arms_are_absent_and_explained(root, run):
    settings = big(root, (100, 4), training__batch_size=48)  # 104 epochs of 48 images: 4,992 an arm
    arms = train(settings, run, "lr_x0.1")
    assert "lr_x0.1" not in arms and "budget" in arms.not_run["lr_x0.1"]


# ---- predict, fine-tuning


def test_predict_leaves_the_network_as_it_was(root, run):
    settings = small_settings(root)
    model, _ = build_student(settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    val = open_split(settings, "val", run)
    evaluated = training.predict(model, val, settings).logits
    batch = training.predict(model, val, settings, train_mode=True).logits
    assert not np.allclose(evaluated, batch) and not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_finetuning_writes_a_better_teacher_and_keeps_the_old(root, run, tmp_path):
    settings = small_settings(root, runtime__weights_dir=str(tmp_path / "weights"), teacher__preprocess="raw")
    first = training.finetune_teacher(settings, run, epochs=6, learning_rate=0.02, progress=False)
    assert first.path == tmp_path / "weights" / "finetuned.safetensors" and first.backup is None
    assert first.auc.after.value > 0.8 and first.auc.after.value > first.auc.before.value
    tuned = settings.with_overrides({"teacher.weights": "finetuned"})
    model, report = build_teacher(tuned)
    assert report.complete
    val = open_split(settings, "val", run)
    assert auc(val.labels, training.predict(model, val, settings).logits).value == first.auc.after.value
    content = first.path.read_bytes()
    second = training.finetune_teacher(tuned, run, epochs=1, progress=False)
    assert second.backup.read_bytes() == content and second.path.read_bytes() != content
    result = json.loads((run.root / "artifacts" / "finetune" / "result.json").read_text())
    assert result["epochs"] == 1 and result["auc"]["before"]["value"] == first.auc.after.value
