"""Step 04: the BCE baseline and the probes of what holds it back, on real images and trained students."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from steps_data import SIZE, tiny_settings, write_images, write_teacher
from torch import Tensor

from diag_lib import baseline, training
from diag_lib import settings as settings_module
from diag_lib.evidence import Evidence, Finding, RunFolder
from diag_lib.images import open_split
from diag_lib.models import Geometry, PatchModel
from diag_lib.plots import baseline as pictures
from diag_lib.probes import baseline_findings as say
from diag_lib.probes import retrain
from diag_lib.probes.student import (
    overfit_batch,
    pooling_variants,
    promising_factor,
    rate_ladder,
    recalibrated,
    repooled,
)
from diag_lib.settings import PoolingSettings, Settings
from diag_lib.statistics import auc

PICTURES = ("learning_curves", "scores", "changes", "optimisation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("baseline")
    write_images(tmp / "data")
    write_teacher(tmp / "teacher.safetensors")
    return tmp


@pytest.fixture(scope="module")
def settings(folder: Path) -> Settings:
    return tiny_settings(folder)


@pytest.fixture(scope="module")
def result(folder: Path, settings: Settings) -> baseline.BaselineResult:
    return baseline.run(settings, RunFolder(folder / "run").create(), progress=False)


@pytest.fixture(scope="module")
def hopeless(tmp_path_factory: pytest.TempPathFactory) -> baseline.BaselineResult:
    """Both classes are the same noise."""
    tmp = tmp_path_factory.mktemp("hopeless")
    write_images(tmp / "data", 120, 150, signal=False)
    settings = tiny_settings(tmp, student__trainable_s2=["layer1", "fc"])
    settings = settings.with_overrides({"training.epochs_s2": 2, "dataset.image_size": 24})
    return baseline.run(settings, RunFolder(tmp / "run").create(), progress=False)


def test_learns_from_labels_and_skips_what_is_settled(result) -> None:
    found = result.finding("auc")
    assert (found.answer, found.severity) == ("yes", "ok") and found.ci[0] > 0.6
    assert set(result.probes.skipped) == {
        "overfit_batch",
        "learning_rate",
        "frozen",
        "undertrained",
        "resize",
        "heldout_train",
        "val_learnable",
    }
    assert "every parameter is trained already" in result.probes.skipped["frozen"]
    assert len(baseline.skipped_table(result)) == 7
    assert "works" in baseline.reading(result)


def test_no_teacher_is_asked(folder, settings) -> None:
    missing = settings.with_overrides({"teacher.weights": str(folder / "absent.safetensors")})
    assert baseline.run(
        missing, RunFolder(folder / "run_no_teacher").create(), progress=False
    ).arm.auc.defined


def test_loss_is_compared_with_a_coin(result) -> None:
    scores = result.arm.val_scores
    reference = F.binary_cross_entropy_with_logits(
        torch.tensor(scores["score"].to_numpy()), torch.tensor(scores["label"].to_numpy()).double()
    )
    found = result.finding("loss")
    assert found.value == pytest.approx(float(reference))
    assert found.threshold == pytest.approx(0.6931, abs=1e-4) and found.answer == "yes"


def test_bce_of_extreme_logits_is_finite() -> None:
    assert baseline.bce([1, 0, 0], [800.0, -800.0, 800.0]) == pytest.approx([0, 0, 800])


def test_permuted_labels_give_one_half(result) -> None:
    assert result.permuted.mean() == pytest.approx(0.5, abs=0.02)
    assert result.finding("permutation").answer == "yes"


def test_an_unlearnable_set_is_probed_from_all_sides(hopeless) -> None:
    assert hopeless.finding("auc").answer == "no"
    for probe in ("heldout_train", "val_learnable"):
        found = hopeless.finding(probe)
        assert found.answer != "yes" and found.ci[0] < 0.5 < found.ci[1], probe
    assert hopeless.finding("overfit_batch") is not None and hopeless.finding("learning_rate") is not None
    longer = hopeless.finding("undertrained").data["settings"]["training"]
    steps = hopeless.arm.image_steps / 16 / 3  # an epoch's; the schedule has one of the first stage and two
    assert longer["epochs_s2"] == 2 * longer["epochs_s1"] and 400 <= steps * 3 * longer["epochs_s1"] < 500
    frozen = hopeless.finding("frozen").data["settings"]
    assert frozen == {"student": {"trainable_s1": ["all"], "trainable_s2": ["all"]}}
    assert hopeless.finding("resize") is not None, "32-pixel files squashed to 24 are worth a crop"
    assert "dataset problem" in baseline.reading(hopeless)
    assert hopeless.probes.held_out.n_real == 120, "every training image is judged once"


def test_shuffled_train_labels_show_in_train_below_val(tmp_path) -> None:
    """With this seed the shuffle leans towards the truth, so that val is ranked well in spite of it."""
    write_images(tmp_path / "data", shuffle_train=True, seed=0)
    found = baseline.run(tiny_settings(tmp_path), RunFolder(tmp_path / "run").create(), progress=False)
    assert found.arm.auc.value > 0.9 and found.arm.train_auc.value < 0.85
    assert found.finding("train_below_val").answer == "yes"
    assert "train labels" in baseline.next_step(found)


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("which", ["result", "hopeless"])
def test_pictures_have_titles(which, name, request) -> None:
    figure = getattr(pictures, name)(request.getfixturevalue(which))
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    assert all(ax.get_title(loc="left") for ax in figure.axes)


def test_a_far_too_low_rate_is_found_by_the_ladder_and_proven(folder, settings) -> None:
    """A thousandth of the rate: neither ten times nor a tenth would show it."""
    low = settings.with_overrides({"training.lr_s1": 5e-6, "training.lr_s2": 5e-6})
    ladder = rate_ladder(low, open_split(low, "train"))
    assert promising_factor(ladder) >= 100
    found = baseline.run(low, folder / "run_low", progress=False)
    assert found.finding("learning_rate").answer == "yes"
    assert found.finding("learning_rate").data["settings"]["training"]["lr_s2"] >= 100 * 5e-6
    tried = {name for name in found.probes.rate_aucs if name.startswith("bce_lr_x")}
    rungs = [f"bce_lr_x{10**power}" for power in range(1, int(math.log10(promising_factor(ladder))) + 1)]
    assert tried == set(rungs)  # none on the way is left out: short runs flatter high rates


def test_a_rate_that_breaks_the_training_is_infinitely_bad(settings) -> None:
    ladder = rate_ladder(settings, open_split(settings, "train"), factors=(1.0, 1e30), steps=12)
    assert ladder["loss"].iloc[1] > ladder["loss"].iloc[0] and promising_factor(ladder) == 1.0


def test_a_ranking_the_wrong_way_round_asks_for_the_labels_not_for_another_rate(result) -> None:
    """No change that leaves val below one half is advised either."""
    auc_of_val = say.learns(result.arm, 0.6)
    low = replace(auc_of_val, answer="no", value=0.2, ci=(0.15, 0.25))
    rate = {"before_ci": (0.15, 0.25), "after_ci": (0.25, 0.35), "settings": None}
    better = Finding("baseline.learning_rate", "warning", "yes", "10 times the rate: 0.20 to 0.30", data=rate)
    turned = replace(result, evidence=Evidence("baseline", [low, better]))
    assert "wrong way round" in baseline.next_step(turned) and "wrong way round" in baseline.reading(turned)
    assert "10 times the rate" not in baseline.reading(turned)
    chance = replace(low, value=0.5, ci=(0.45, 0.55))
    helps = replace(better, data={**rate, "after_ci": (0.9, 0.95)})
    held = Finding("baseline.heldout_train", "error", "no", "Train does not predict train.")
    slow = replace(result, evidence=Evidence("baseline", [chance, held, helps]))
    assert "lr_s1" in baseline.next_step(slow), (
        "what helps comes before what the failing run says of the labels"
    )


def test_evidence_reads_back(result, folder) -> None:
    kept = RunFolder(folder / "run").read_evidence("baseline")
    assert kept is not None and kept.finding("baseline.auc").value == pytest.approx(result.arm.auc.value)
    assert kept.numbers["skipped_learning_rate"]


class Spike(PatchModel):
    """Patch logits are the brightness of 4x4 patches."""

    def __init__(self) -> None:
        super().__init__("spike")
        self.scale = torch.nn.Parameter(torch.ones(1))

    def patch_logits(self, prepared: Tensor) -> Tensor:
        return self.scale * F.avg_pool2d(prepared.mean(1, keepdim=True), 4)

    def geometry(self, size: int) -> Geometry:
        return Geometry(4.0, 1.5, 4.0)


def test_pooling_swap_finds_one_bright_patch(tmp_path, settings) -> None:
    """Fakes differ in one patch only: the maximum sees it, the mean hardly."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("real", "fake"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(30):
                pixels = rng.normal(100 + rng.normal(0, 8), 20, (SIZE, SIZE, 3))
                if name == "fake":
                    pixels[8:12, 8:12] += 90
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                    tmp_path / split / name / f"{number}.png"
                )
    chosen = settings.with_overrides({"dataset.root": str(tmp_path)})
    val = open_split(chosen, "val")
    scores = repooled(chosen, Spike(), val, pooling_variants(chosen.pooling))
    by_max, by_mean = auc(val.labels, scores["maximum"]), auc(val.labels, scores["as configured"])
    assert by_max.value > 0.95 and by_mean.ci[1] < by_max.ci[0]


def test_pooling_variants_do_not_repeat_the_configured_one() -> None:
    assert list(pooling_variants(PoolingSettings())) == [
        "as configured",
        "top 10%, mean",
        "top 50%, mean",
        "maximum",
    ]
    top = PoolingSettings(kind="topk", r=0.1, min_k=5, aggregation="mean")
    assert "top 10%, mean" not in pooling_variants(top) and "mean" in pooling_variants(top)


def test_recalibration_repairs_ruined_statistics(result, folder, settings) -> None:
    train = open_split(settings, "train", RunFolder(folder / "run"))
    intact, ruined = result.arm.model(settings), result.arm.model(settings)
    ruined.bn1.running_var.mul_(1e6)
    before = training.predict(ruined, train, settings).logits
    repaired = training.predict(recalibrated(settings, ruined, train), train, settings).logits
    fresh = training.predict(recalibrated(settings, intact, train), train, settings).logits
    assert np.allclose(repaired, fresh, atol=1e-5) and not np.allclose(before, fresh, atol=1e-2)


def test_a_momentum_too_low_to_follow_is_said(result) -> None:
    followed, stuck = (say.batchnorm(result.recalibration, share) for share in (0.3, 0.004))
    assert followed.data["still"] is False and "momentum" not in followed.message
    assert stuck.data["still"] is True and "only 0.40% of them" in stuck.message
    assert 0.01 < result.finding("batchnorm").data["taken_in"] < 1


def test_overfit_names_a_detached_network(folder, settings, monkeypatch) -> None:
    source = """
import torch, torch.nn as nn
class Net(nn.Module):
    def __init__(self):
        super().__init__(); self.conv = nn.Conv2d(3, 1, 4, 4)
    def forward(self, x): return (self.conv(x).detach() if self.cut else self.conv(x))
def cut():
    net = Net(); net.cut = True; return net
def whole():
    net = Net(); net.cut = False; return net
"""
    (folder / "own_students.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    fits = {}
    for name in ("cut", "whole"):
        changed = settings.with_overrides({"student.arch": f"own_students:{name}"})
        fits[name] = overfit_batch(changed, open_split(changed, "train"), steps=10)
    assert not fits["cut"].flows and not fits["cut"].moved and not fits["cut"].passed
    assert fits["whole"].flows and fits["whole"].moved


def test_overfit_uses_as_many_of_each_class(settings, folder) -> None:
    fit = overfit_batch(settings, open_split(settings, "train"), steps=20)
    assert fit.images == 64 and fit.passed and fit.factor == 1.0


def test_folds_are_stratified_and_keep_groups_together(settings) -> None:
    train = open_split(settings, "train")

    class Grouped:
        labels, groups = train.labels, np.arange(len(train.labels)) // 2

    folds = retrain.fold_of(Grouped, 3, seed=0)  # type: ignore[arg-type]
    assert (folds[0::2] == folds[1::2]).all()
    counts = np.array(
        [[((folds == fold) & (train.labels == label)).sum() for label in (0, 1)] for fold in range(3)]
    )
    assert counts.max() - counts.min() <= 2


def test_a_failing_baseline_is_probed_though_the_arms_have_used_the_budget_up(folder, monkeypatch) -> None:
    monkeypatch.setitem(settings_module.BUDGET_IMAGE_STEPS, "quick", 100)
    slow = tiny_settings(folder, training__lr_s1=5e-6, training__lr_s2=5e-6, runtime__budget="quick")
    run = RunFolder(folder / "used_up").create()
    assert training.planned(slow, run, ["lr_x10", "unfrozen_bce"]).not_run
    found = baseline.run(slow, run, progress=False)
    assert "learning_rate" not in found.probes.skipped
    assert found.finding("learning_rate").data["factor"] > 1
