"""Does the recorder write down what happens in a user's own loop, and leave the training alone?"""

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from recorded_loop import network, scene, teacher_maps, train
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.checkpoint import checkpoint

from diag_lib import recorder as module
from diag_lib.errors import UserError
from diag_lib.history import read_history
from diag_lib.recorder import RecorderCallback, TrainingRecorder
from diag_lib.recorder_signals import fingerprint, rank_auc


def events(path, kind=None):
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [event for event in lines if kind in (None, event["event"])]


# ---- what it needs


def test_the_example_of_the_docstring_runs():
    assert doctest.testmod(module).failed == 0


def test_it_needs_nothing_but_torch(tmp_path):
    """With every other package of the project out of reach, a training can be recorded."""
    code = f"""
import sys
for name in ("numpy", "pandas", "pydantic", "scipy", "sklearn", "PIL", "yaml", "matplotlib", "timm", "tqdm",
             "joblib", "pyarrow", "safetensors", "torchvision", "seaborn", "typer"):
    sys.modules[name] = None
import torch
from diag_lib.recorder import TrainingRecorder
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with TrainingRecorder({str(tmp_path / "run.jsonl")!r}, model, optimizer, every=1) as rec:
    x, y = torch.randn(8, 3), torch.arange(8) % 2
    z = model(x)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(z[:, 0], y.float())
    rec.step(loss, task=loss, logits=z, labels=y)
    loss.backward()
    optimizer.step()
    rec.epoch(val_logits=z, val_labels=y)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [e["event"] for e in events(tmp_path / "run.jsonl")] == ["start", "step", "update", "epoch", "end"]


# ---- what it leaves alone


def state(model, optimizer):
    moments = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    grads = [p.grad if p.grad is not None else torch.zeros(0) for p in model.parameters()]
    return [*model.state_dict().values(), *moments, *grads, torch.get_rng_state()]


def poisoned():
    calls = []

    def task(z, y):
        calls.append(1)
        return F.binary_cross_entropy_with_logits(z, y) * (float("nan") if len(calls) == 27 else 1.0)

    return task


@pytest.mark.parametrize(
    "options",
    [
        dict,
        lambda: {"call": "after"},
        lambda: {"accumulate": 2},
        lambda: {"task": poisoned()},
        lambda: {"wrap": lambda model, optimizer: (Checkpointed(model), optimizer)},
    ],
    ids=["plain", "after", "accumulating", "nan", "checkpointed"],
)
@pytest.mark.filterwarnings("ignore:recorder")
def test_the_training_is_the_same_bit_for_bit(tmp_path, options):
    """Dropout, BatchNorm, NaN and all: weights, moments, gradients, statistics and the random state."""
    runs = []
    for path in (None, tmp_path / "run.jsonl"):
        model = network(dropout=0.3)
        torch.manual_seed(3)
        trained = train(path, model=model, every=1, look_every=1, **options())
        runs.append((trained[0].training, state(*trained)))
    assert runs[0][0] == runs[1][0]
    assert len(runs[0][1]) == len(runs[1][1])
    for plain, recorded in zip(runs[0][1], runs[1][1], strict=True):
        assert torch.equal(torch.nan_to_num(plain, nan=9e9), torch.nan_to_num(recorded, nan=9e9))
    assert len(events(tmp_path / "run.jsonl", "update")) >= 31 // options().get("accumulate", 1)


class Checkpointed(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return checkpoint(self.model, x, use_reentrant=False)


def test_nothing_is_left_behind_on_model_and_optimiser(tmp_path):
    model, optimizer = train(tmp_path / "run.jsonl")
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


# ---- what it measures


def test_a_step_is_measured_as_torch_and_numpy_would(tmp_path):
    (x, y), model = scene(16), network()
    target = teacher_maps(x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with TrainingRecorder(tmp_path / "r.jsonl", model, optimizer, every=1) as rec:
        s = model(x)
        z = s.mean((1, 2, 3))
        distill, task = F.mse_loss(s, target), F.binary_cross_entropy_with_logits(z, y.float())
        rows = [slice(0, None, 2), slice(1, None, 2)]
        halves = {
            "task": [F.binary_cross_entropy_with_logits(z[r], y[r].float()) for r in rows],
            "distill": [F.mse_loss(s[r], target[r]) for r in rows],
        }
        flat = {
            name: [
                torch.cat(
                    [
                        g.flatten()
                        for g in torch.autograd.grad(part, list(model.parameters()), retain_graph=True)
                    ]
                )
                for part in (whole, *halves[name])
            ]
            for name, whole in (("task", task), ("distill", distill))
        }
        loss = 0.3 * distill + 0.7 * task
        rec.step(
            loss, distill=distill, task=task, logits=z, labels=y, student_patches=s, teacher_patches=target
        )
        loss.backward()
        optimizer.step()
        rec.epoch()
    (step,), (update,), (epoch,) = (
        events(tmp_path / "r.jsonl", kind) for kind in ("step", "update", "epoch")
    )
    sn, tn = s.detach().double().numpy().ravel(), target.double().numpy().ravel()
    assert step["fit"]["rho"] == pytest.approx(np.corrcoef(sn, tn)[0, 1], rel=1e-4)
    assert step["fit"]["r2"] == pytest.approx(1 - np.mean((sn - tn) ** 2) / tn.var(), rel=1e-4)
    assert step["student"]["within"] == pytest.approx(
        np.sqrt(sn.reshape(16, -1).var(1, ddof=1).mean()), rel=1e-4
    )
    assert (step["student"]["min"], step["student"]["max"]) == pytest.approx((sn.min(), sn.max()), rel=1e-5)
    assert step["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert step["formula"]["mse"] == pytest.approx(float(distill.detach()), rel=1e-5)
    assert step["slopes"]["distill"] == pytest.approx([0.3, 0.0], abs=1e-4)
    assert step["slopes"]["task"] == pytest.approx([0.7, 0.0], abs=1e-4)

    def cos(a, b):
        return float(F.cosine_similarity(a, b, dim=0))

    said = update["gradients"]
    assert said["task_norm"] == pytest.approx(float(flat["task"][0].norm()), rel=1e-3)
    assert said["distill_norm"] == pytest.approx(float(flat["distill"][0].norm()), rel=1e-3)
    assert said["cosine"] == pytest.approx(cos(flat["task"][0], flat["distill"][0]), abs=1e-3)
    assert said["task_halves"] == pytest.approx(cos(*flat["task"][1:]), abs=1e-3)
    assert said["distill_halves"] == pytest.approx(cos(*flat["distill"][1:]), abs=1e-3)
    moved = torch.cat([(p.detach() - before[n]).flatten() for n, p in model.named_parameters()])
    assert update["along"]["task"] == pytest.approx(cos(flat["task"][0], moved), abs=1e-3)
    assert update["along"]["task"] < 0  # the step lowers the loss
    for name, p in model.named_parameters():
        weight, gradient, length = update["tensors"][name]
        assert weight == pytest.approx(float(before[name].norm()), rel=1e-4)
        assert gradient == pytest.approx(float(p.grad.norm()), rel=1e-4)
        assert length == pytest.approx(float((p.detach() - before[name]).norm()), rel=1e-4)
        size, trains, optimised, away = epoch["tensors"][name]
        assert (size, trains, optimised) == (p.numel(), True, True)
        scale = float(before[name].norm()) or 1.0
        assert away == pytest.approx(float((p.detach() - before[name]).norm()) / scale, rel=1e-4)
    assert update["lr"] == [0.1]
    norm = model.stem[1]
    drift = (norm.running_mean.square() / (norm.running_var + norm.eps)).mean().sqrt()  # it began at 0
    assert epoch["norms"] == {"layers": 1, "drift": pytest.approx(float(drift), rel=1e-3), "momentum": 0.1}


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from([-2.0, 0.0, 0.5, 1.0, 7.0])), min_size=2, max_size=30
    )
)
def test_the_auc_is_the_rank_auc_with_ties(rows):
    labels, scores = map(np.array, zip(*rows, strict=True))
    found = rank_auc(torch.tensor(labels), torch.tensor(scores))
    if len(set(labels)) == 2:
        assert found == pytest.approx(roc_auc_score(labels, scores))
    else:
        assert np.isnan(found)


def test_the_epochs_are_a_history_with_the_means_of_all_batches(tmp_path):
    seen = []
    train(tmp_path / "r.jsonl", step_arguments=lambda a: seen.append(float(a["loss"])) or a, look_every=3)
    history = read_history(tmp_path / "r.jsonl")
    assert history.kind == "recorder"
    assert history.values("train_loss") == pytest.approx(np.reshape(seen, (4, 8)).mean(1), rel=1e-4)
    assert history.known("val_loss") and history.known("val_acc")
    assert history.values("val_auc")[-1] > 0.9


def test_two_column_logits_and_floats_are_understood(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = torch.randn(8, 3), torch.arange(8) % 2
    with TrainingRecorder(tmp_path / "r.jsonl", model, optimizer, every=1, look_every=1) as rec:
        z = model(x)
        loss = F.cross_entropy(z, y)
        rec.step(loss, task=loss.item(), logits=z, labels=y)
        loss.backward()
        optimizer.step()
        rec.epoch(val_logits=[z[:4], z[4:]], val_labels=[y[:4], y[4:]])
    (step,) = events(tmp_path / "r.jsonl", "step")
    assert step["formula"]["bce"] == pytest.approx(step["task"], rel=1e-4)
    assert step["slopes"]["task"] == pytest.approx([1.0, 0.0], abs=1e-4)
    (epoch,) = events(tmp_path / "r.jsonl", "epoch")
    exact = roc_auc_score(y, (z[:, 1] - z[:, 0]).detach().numpy())
    assert epoch["seen"]["exact"] == pytest.approx(exact)


# ---- wrapped by others


class AcceleratedLike(torch.optim.Optimizer):
    """Wraps like accelerate's: an Optimizer by class, without the hooks of one."""

    def __init__(self, optimizer, scaler=None):
        self.optimizer, self.scaler = optimizer, scaler

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


class DistributedDataParallel(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.module = model

    def forward(self, x):
        return self.module(x)


def test_wrapped_networks_and_optimisers_are_seen_through(tmp_path):
    scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=1024.0)
    train(tmp_path / "plain.jsonl")
    train(
        tmp_path / "wrapped.jsonl",
        wrap=lambda model, optimizer: (DistributedDataParallel(model), AcceleratedLike(optimizer, scaler)),
    )
    plain, wrapped = (events(tmp_path / f"{name}.jsonl") for name in ("plain", "wrapped"))
    assert {e.pop("scale") for e in wrapped if "scale" in e} == {1024.0}
    for one, other in zip(plain, wrapped, strict=True):
        one.pop("seconds", None), other.pop("seconds", None), one.pop("scale", None)
        assert one == other


def test_only_the_first_process_records(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "rank", lambda: 1)
    train(tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


def test_a_trainer_that_owns_the_loop_uses_the_callback(tmp_path):
    model = nn.Linear(3, 1)
    callback = RecorderCallback(tmp_path / "r.jsonl", every=1)
    for stage in (1, 2):
        optimizer = torch.optim.SGD(model.parameters(), 0.1 / stage)
        callback.on_train_begin(model, optimizer)
        loss = model(torch.ones(4, 3)).square().mean()
        callback.on_step(loss)
        loss.backward()
        optimizer.step()
        callback.on_epoch_end(val_auc=0.6)
    callback.on_train_end()
    found = events(tmp_path / "r.jsonl")
    assert [e["stage"] for e in found if e["event"] == "epoch"] == [1, 2]
    assert [e["lr"] for e in found if e["event"] == "update"] == [[0.1], [0.05]]
    assert read_history(tmp_path / "r.jsonl").values("stage").tolist() == [1, 2]


# ---- the file


def test_a_killed_recording_is_read_and_continued(tmp_path):
    path = tmp_path / "r.jsonl"
    train(path, epochs=2)
    whole = path.read_text()
    cut = whole[: whole.rindex('"event":"epoch"') + 60]  # in the middle of the second epoch's line
    path.write_text(cut)
    torn = read_history(path)
    assert len(torn) == 1
    assert any("cut off" in note for note in torn.notes)
    train(path, epochs=2)
    history = read_history(path)
    assert history.epochs["epoch"].tolist() == [1, 2, 3]
    assert path.read_text().startswith(cut)
    assert any("cut off" in note for note in history.notes)


def test_an_epoch_that_is_repeated_after_a_restart_counts_once(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for numbers in ((1, 2, 3), (2, 3, 4)):
        with TrainingRecorder(tmp_path / "r.jsonl", model, optimizer) as rec:
            for number in numbers:
                rec.step(float(10 * number + len(numbers)))
                rec.epoch(epoch=number, val_auc=0.5 + number / 100)
    history = read_history(tmp_path / "r.jsonl")
    assert history.values("val_auc").tolist() == [0.51, 0.52, 0.53, 0.54]
    assert any("2 epoch(s) are recorded more than once" in note for note in history.notes)


def test_a_recording_without_an_epoch_is_a_history_of_steps(tmp_path):
    train(tmp_path / "r.jsonl", epochs=1)
    lines = [line for line in (tmp_path / "r.jsonl").read_text().splitlines() if '"epoch"' not in line]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    history = read_history(tmp_path / "r.jsonl")
    assert len(history) == 1 and history.known("train_loss")
    assert any("no epoch was finished" in note for note in history.notes)
    (tmp_path / "r.jsonl").write_text(lines[0])
    with pytest.raises(UserError, match="no step yet"):
        read_history(tmp_path / "r.jsonl")


def test_mistakes_are_one_line(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (tmp_path / "notes.txt").write_text("mine\n")
    for arguments, words in (
        ((tmp_path / "notes.txt", model, optimizer), "is no recording"),
        ((tmp_path, model, optimizer), "cannot be written"),
        ((tmp_path / "a.jsonl", nn.ReLU(), optimizer), "no parameters"),
        ((tmp_path / "a.jsonl", model, "adam"), "no torch optimiser"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            TrainingRecorder(*arguments)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "notes.txt").read_text() == "mine\n"
    (tmp_path / "new.jsonl").write_text('{"event":"start","schema":"diag/recorder/9"}\n')
    with pytest.raises(UserError, match="diag/recorder/9"):
        read_history(tmp_path / "new.jsonl")


def test_a_measurement_that_fails_does_not_stop_the_training(tmp_path):
    with pytest.warns(RuntimeWarning, match="no longer recorded"):
        train(tmp_path / "r.jsonl", step_arguments=lambda a: {**a, "labels": torch.zeros(3)})
    history = read_history(tmp_path / "r.jsonl")
    assert history.known("train_loss") and len(history) == 4
    assert any("could not be recorded" in note for note in history.notes)


@pytest.mark.parametrize("form", [np.float64, np.float16, list, torch.tensor])
def test_validation_numbers_come_in_any_form(tmp_path, form):
    logits, labels = [0.3, -1.5, 2.0, 0.1], [0, 0, 1, 1]
    model = nn.Linear(2, 1)
    with TrainingRecorder(tmp_path / "r.jsonl", model, torch.optim.SGD(model.parameters(), 0.1)) as rec:
        rec.step(1.0)
        whole = form(logits) if form in (list, torch.tensor) else np.array(logits, dtype=form)
        rec.epoch(val_auc=0.5, val_logits=whole, val_labels=np.array(labels))
        rec.step(1.0)
        rec.epoch(val_auc=0.5, val_logits=[whole[:2], whole[2:]], val_labels=[labels[:2], labels[2:]])
    for event in events(tmp_path / "r.jsonl", "epoch"):
        assert event["seen"]["exact"] == pytest.approx(roc_auc_score(labels, logits))


def test_a_reported_number_that_is_none_stops_nothing(tmp_path):
    model = nn.Linear(2, 1)
    with TrainingRecorder(tmp_path / "r.jsonl", model, torch.optim.SGD(model.parameters(), 0.1)) as rec:
        rec.step(1.0)
        with pytest.warns(RuntimeWarning, match="no longer recorded: val_auc"):
            rec.epoch(val_auc="x", val_loss=0.5)
    (event,) = events(tmp_path / "r.jsonl", "epoch")
    assert event["val_auc"] is None and event["reported"] is False and event["val_loss"] == 0.5


@pytest.mark.skipif(os.name == "nt", reason="no such locks")
def test_a_second_training_does_not_write_into_the_first_ones_file(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with TrainingRecorder(tmp_path / "r.jsonl", model, optimizer) as first:
        with pytest.warns(RuntimeWarning, match="another training is writing"):
            second = TrainingRecorder(tmp_path / "r.jsonl", model, optimizer)
        second.step(9.0)
        second.epoch(val_auc=0.9)
        second.close()
        first.step(1.0)
        first.epoch(val_auc=0.5)
    assert read_history(tmp_path / "r.jsonl").values("val_auc").tolist() == [0.5]
    with TrainingRecorder(tmp_path / "r.jsonl", model, optimizer) as third:  # the lock is gone with the first
        third.step(1.0)
        third.epoch(val_auc=0.6)
    assert len(read_history(tmp_path / "r.jsonl")) == 2


def test_a_recording_is_known_by_what_stands_in_it(tmp_path):
    train(tmp_path / "r.jsonl")
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    spaced = [json.dumps(json.loads(line)) for line in lines]  # written again by another tool
    for name, kept in {"spaced": spaced, "headless": spaced[1:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(kept) + "\n")
        history = read_history(tmp_path / f"{name}.jsonl")
        assert history.recording is not None and len(history.recording.epochs) == 4
        assert any("starts a recording is missing" in note for note in history.notes) is (name == "headless")
    other = [line.replace("diag/recorder/1", "diag/recorder/9") for line in spaced]
    (tmp_path / "other.jsonl").write_text("\n".join(other) + "\n")
    with pytest.raises(UserError, match="diag/recorder/9"):
        read_history(tmp_path / "other.jsonl")


def test_an_error_in_the_loop_is_noted_and_passed_on(tmp_path):
    model = nn.Linear(2, 1)
    with (
        pytest.raises(ZeroDivisionError),
        TrainingRecorder(tmp_path / "r.jsonl", model, torch.optim.SGD(model.parameters(), 0.1)) as rec,
    ):
        rec.step(1.0)
        1 / 0  # noqa: B018
    assert [e["event"] for e in events(tmp_path / "r.jsonl")][-2:] == ["stopped", "end"]
    assert not model._forward_pre_hooks


def test_equal_weights_have_equal_fingerprints():
    a, b = network(), network()
    assert fingerprint(a.parameters()) == fingerprint(b.parameters())
    with torch.no_grad():
        b.head.bias.add_(1e-7)
    assert fingerprint(a.parameters()) != fingerprint(b.parameters())
