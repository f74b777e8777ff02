"""Step 03: what teacher and student say about the same patches, on real images and trained students."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from steps_data import SIZE, tiny_settings, write_images, write_teacher

from diag_lib import logits, training
from diag_lib.evidence import RunFolder
from diag_lib.images import open_split
from diag_lib.models import align, build_teacher
from diag_lib.plots import logits as pictures
from diag_lib.probes.pairs import image_limit, spread
from diag_lib.settings import Settings

TEACHERS = f"""
import torch, torch.nn as nn, torch.nn.functional as F

class Local(nn.Module):
    '''Answers by the residual noise in 4x4 patches: something that pictures predict.'''
    def __init__(self, after):
        super().__init__()
        self.after, self.unused = after, nn.Parameter(torch.zeros(1))
    def forward(self, x):
        grey = x.mean(1, keepdim=True)
        energy = (grey - F.avg_pool2d(grey, 3, 1, 1, count_include_pad=False)).abs()
        return self.after(F.avg_pool2d(energy, 4))

def as_is(): return Local(lambda m: 10 * m - 3)
def turned(): return Local(lambda m: (10 * m - 3).transpose(-1, -2).contiguous())
def squashed(): return Local(lambda m: torch.sigmoid(10 * m - 3))
def outliers(): return Local(lambda m: torch.where(m > m.mean() + 2.5 * m.std(), 5000.0, m))
def broken(): return Local(lambda m: m * float("nan"))
SIZE = {SIZE}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("logits")
    write_images(tmp / "data")
    write_teacher(tmp / "teacher.safetensors")
    (tmp / "own_teachers.py").write_text(TEACHERS, encoding="utf-8")
    return tmp


@pytest.fixture(scope="module")
def settings(folder: Path) -> Settings:
    return tiny_settings(folder)


@pytest.fixture(scope="module")
def result(folder: Path, settings: Settings) -> logits.LogitsResult:
    return logits.run(settings, folder / "run", progress=False)


def with_teacher(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> logits.LogitsResult:
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    changed = tiny_settings(folder, teacher__arch=f"own_teachers:{name}", teacher__weights=None)
    changed = changed.with_overrides({"training.epochs_s2": 1, "teacher.preprocess": "raw"})
    return logits.run(changed, RunFolder(folder / f"run_{name}").create(), progress=False)


def test_the_guides_numbers_are_those_of_the_maps(result, folder, settings) -> None:
    """Recomputed from the networks, without the step's own code."""
    import torch

    run = RunFolder(folder / "run")
    val = open_split(settings, "val", run)
    teacher, _ = build_teacher(settings)
    student = training.train_arms(settings, run, ["status_quo"], progress=False)["status_quo"].model(settings)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1)
        for v in (settings.dataset.normalize_mean, settings.dataset.normalize_std)
    )
    with torch.no_grad():
        x = (val.pixels(np.arange(len(val))).float() / 255 - mean) / std
        t = teacher(x)
        s = align(student(x), student.geometry(SIZE), teacher.geometry(SIZE), tuple(t.shape[-2:]))
    sides = result.sides
    for side, maps in (("teacher", t), ("student, trained", s)):
        for name, value in (
            ("min", maps.min()),
            ("max", maps.max()),
            ("mean", maps.mean()),
            ("std", maps.std(correction=0)),
        ):
            assert sides.loc[side, name] == pytest.approx(float(value), rel=2e-2, abs=2e-2), (side, name)
    assert result.after is not None
    assert result.after.mse.value == pytest.approx(float(((t - s) ** 2).mean()), rel=1e-2)
    assert result.after.scale_ratio.value == pytest.approx(float(t.std() / s.std()), rel=1e-2)


def test_evidence_holds_every_answer_and_reads_back(result, folder) -> None:
    kept = RunFolder(folder / "run").read_evidence("logits")
    assert kept is not None
    names = {finding.id for finding in kept.findings}
    assert names == {
        f"logits.{name}"
        for name in ("scale_ratio", "mse", "fit", "offset", "heavy_tail", "alignment", "activation")
    }
    assert {"teacher_min", "student_std", "mse", "r2", "rho", "gradient_cosine", "tail_share"} <= set(
        kept.numbers
    )
    assert all(
        finding.n == 80
        for finding in kept.findings
        if finding.n is not None and finding.id != "logits.alignment"
    )
    table = pd.read_parquet(folder / "run" / "artifacts" / "logits.parquet")
    assert len(table) == 80 and table["mse"].mean() == pytest.approx(result.after.mse.value)


def test_gradients_are_those_of_the_weighted_losses(result) -> None:
    assert list(result.gradients["epoch"]) == [1, 3, 6]  # five steps an epoch: every eighth at most
    assert (result.gradients["distill"] > result.gradients["task"]).all()
    assert result.gradients["cosine"].between(-1, 1).all()


def test_a_louder_teacher_is_a_scale_mismatch_with_a_huge_mse(folder, settings) -> None:
    write_teacher(folder / "loud.safetensors", gain=400)
    loud = settings.with_overrides({"teacher.weights": str(folder / "loud.safetensors")})
    found = logits.run(loud, RunFolder(folder / "run_loud").create(), progress=False)
    ratio, mse = found.finding("scale_ratio"), found.finding("mse")
    assert (ratio.answer, mse.answer) == ("yes", "yes")
    assert "names no cause" in ratio.message and "names no cause" in mse.message
    assert "scale mismatch" in logits.reading(found) and logits.reading_severity(found) == "warning"


def test_a_turned_teacher_map_is_named(folder, monkeypatch) -> None:
    right = with_teacher(folder, "as_is", monkeypatch).finding("alignment")
    wrong = with_teacher(folder, "turned", monkeypatch)
    assert right.answer == "yes"
    found = wrong.finding("alignment")
    assert (found.answer, found.severity, found.data["best"]) == ("no", "error", "transposed")
    assert "transposed" in logits.next_step(wrong)


def test_probabilities_and_outliers_are_told(folder, monkeypatch) -> None:
    squashed = with_teacher(folder, "squashed", monkeypatch)
    assert squashed.finding("activation").answer == "yes"
    assert "raw logits" in logits.next_step(squashed)
    assert with_teacher(folder, "outliers", monkeypatch).finding("heavy_tail").answer == "yes"


def test_a_student_that_ends_in_a_sigmoid_is_told_from_one_whose_logits_are_small(
    folder, monkeypatch
) -> None:
    """A sigmoid is seen, bias and range are not: a few small positive logits are nothing unusual."""
    source = """
import torch, torch.nn as nn
class Net(nn.Module):
    def __init__(self, last):
        super().__init__(); self.conv = nn.Conv2d(3, 1, 4, 4); self.last = last
        nn.init.constant_(self.conv.bias, 0.5); nn.init.normal_(self.conv.weight, std=1e-3)
    def forward(self, x): return self.last(self.conv(x))
def squashed(): return Net(nn.Sigmoid())
def small(): return Net(nn.Identity())
def dead(): return Net(nn.Threshold(1e9, 0.5))
"""
    (folder / "bounded_students.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    for name, answer in (("squashed", "yes"), ("small", "no"), ("dead", "no")):
        own = {"student__arch": f"bounded_students:{name}", "training__lr_s1": 1e-6, "training__lr_s2": 1e-6}
        found = logits.run(
            tiny_settings(folder, **own), RunFolder(folder / f"run_{name}").create(), progress=False
        )
        activation = found.finding("activation")
        assert activation.answer == answer, name
        assert activation.data.get("side") == ("student" if answer == "yes" else None)


def test_a_teacher_that_is_not_finite_leaves_everything_open(folder, monkeypatch) -> None:
    found = with_teacher(folder, "broken", monkeypatch)
    assert found.after is None
    assert found.finding("scale_ratio").answer == found.finding("alignment").answer == "undecided"
    assert "not finite" in logits.reading(found)
    for name in ("maps", "histograms", "scatter", "decomposition", "gradients", "grid"):
        getattr(pictures, name)(found)


@pytest.mark.parametrize("name", ["maps", "histograms", "scatter", "decomposition", "gradients", "grid"])
def test_pictures_have_titles(result, name) -> None:
    figure = getattr(pictures, name)(result)
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    titled = [ax.get_title(loc="left") for ax in figure.axes]
    assert any(titled) or figure.get_suptitle()


def test_tables_speak_the_guides_language(result) -> None:
    table = logits.guide_table(result)
    assert list(table["logits of"]) == ["teacher", "student, trained", "student, untrained"]
    assert {"min", "max", "mean", "std", "MSE to the teacher", "scale ratio"} <= set(table.columns)
    assert "kurtosis" in logits.robust_table(result)


def test_large_sets_are_sampled_by_class() -> None:
    labels = np.repeat([0, 1], [3000, 1000])
    chosen = spread(labels, 400, seed=1)
    assert len(chosen) == 400 and (labels[chosen] == 1).mean() == pytest.approx(0.25, abs=0.01)
    assert np.array_equal(chosen, spread(labels, 400, seed=1))
    assert image_limit(961) == 2000 and image_limit(126 * 126) == 256
