"""Step 02: does it tell a teacher that knows from one that does not, and the cheap reasons from the true one?"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve

from diag_lib import models, teacher
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.images import open_split
from diag_lib.plots import teacher as pictures
from diag_lib.probes.fingerprint import fingerprint, settled_variance
from diag_lib.probes.preprocessing import Variant, probe
from diag_lib.probes.teacher import check_mode, check_saturation, check_weights
from diag_lib.settings import Settings
from diag_lib.statistics import n_per_class_needed, split_halves

SIZE = 32
PER_CLASS = 48


def natural(rng, size=SIZE):
    """Noise with the 1/f spectrum of photographs, uint8 (size, size, 3)."""
    down, across = np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None]
    frequency = np.hypot(down, across) + 1 / size
    channels = [
        np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) / frequency**1.2).real for _ in range(3)
    ]
    x = np.stack(channels, axis=-1)
    return np.clip(110 + 55 * x / x.std(), 0, 255).astype(np.uint8)


def generated(rng):
    """A picture up-sampled from half the resolution, as generators do."""
    return natural(rng, SIZE // 2).repeat(2, axis=0).repeat(2, axis=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for source, name, make in (("photos", "real", natural), ("gan", "fake", generated)):
            folder = root / split / source / name
            folder.mkdir(parents=True)
            for index in range(PER_CLASS):
                Image.fromarray(make(rng)).save(folder / f"{index:03}.png")
    return root


@pytest.fixture(scope="module")
def base(dataset, tmp_path_factory):
    return Settings().with_overrides(
        {
            "dataset.root": str(dataset),
            "dataset.image_size": SIZE,
            "teacher.arch": "tiny_ladeda",
            "teacher.preprocess": "NPR",
            "runtime.cache_dir": str(tmp_path_factory.mktemp("cache")),
            "runtime.device": "cpu",
            "runtime.threads": 1,
        }
    )


def normalised(settings, split):
    images = open_split(settings, split)
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (settings.dataset.normalize_mean, settings.dataset.normalize_std)
    )
    return (images.pixels(np.arange(len(images.labels))).float() / 255 - mean) / std, images.labels


@pytest.fixture(scope="module")
def knowing(base, tmp_path_factory):
    """Weights of a teacher that knows this data when it is fed with NPR: random features, fitted head."""
    model = models.build("tiny_ladeda", None, "NPR", seed=3)[0]
    x, y = normalised(base, "train")
    models.recalibrate(model, [x])
    seen = []
    model.layer1.register_forward_hook(lambda module, inputs, output: seen.append(output.mean((2, 3))))
    with torch.no_grad():
        model(x)
        fitted = LogisticRegression(C=100.0, max_iter=5000).fit(seen[0].numpy(), y)
        model.fc.weight.copy_(torch.tensor(fitted.coef_, dtype=torch.float32))
        model.fc.bias.copy_(torch.tensor(fitted.intercept_, dtype=torch.float32))
    return models.save_weights(model, tmp_path_factory.mktemp("weights") / "knowing.safetensors")


def run(base, weights, folder, **overrides):
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    settings = base.with_overrides({"teacher.weights": str(weights) if weights else None, **changes})
    return teacher.run(settings, RunFolder(folder).create(), progress=False)


@pytest.fixture(scope="module")
def good(base, knowing, tmp_path_factory):
    return run(base, knowing, tmp_path_factory.mktemp("good"))


# --- the step ---


def test_a_knowing_teacher_is_recognised(good):
    answers = {finding.id: (finding.answer, finding.severity) for finding in good.evidence.findings}
    for name in ("auc", "auc_train", "good", "weights_loaded"):
        assert answers[f"teacher.{name}"] == ("yes", "ok"), name
    for name in ("inverted", "preprocessing", "bn_fingerprint"):
        assert answers[f"teacher.{name}"] == ("no", "ok"), name
    assert good.finding("bn_fingerprint").data["best"] == "NPR"
    table = good.of_split("val")
    assert good.val.value == pytest.approx(roc_auc_score(table["label"], table["score"]))
    assert good.finding("auc").ci[0] > 0.55
    assert teacher.next_step(good)[0] == "ok"


def test_scores_are_the_float64_mean_of_the_patches(good, base, knowing):
    model = models.build("tiny_ladeda", knowing, "NPR")[0]
    x, y = normalised(base, "val")
    with torch.no_grad():
        expected = model(x).double().mean((1, 2, 3)).numpy()
    table = good.of_split("val")
    np.testing.assert_allclose(table["score"], expected, atol=0.02)  # maps are kept in half precision
    np.testing.assert_array_equal(table["label"], y)
    assert table["score"].dtype == np.float64
    patches = good.patches.loc["all"]
    assert patches["images"] == 2 * PER_CLASS
    with torch.no_grad():
        assert patches["std"] == pytest.approx(float(model(x).std()), rel=0.01)


def test_every_source_is_judged_against_the_other_class(good):
    row = good.sources.set_index(["split", "source"]).loc[("val", "gan")]
    assert row["against"] == "all real"
    assert (row["n_real"], row["n_fake"]) == (0, PER_CLASS)
    assert row["auc"] == pytest.approx(good.val.value)


def test_artifacts_and_evidence_are_written(good, base, knowing, tmp_path):
    folder = RunFolder(tmp_path).create()
    first = run(base, knowing, tmp_path)
    evidence = folder.read_evidence("teacher")
    assert [f.id for f in evidence.findings] == [f.id for f in first.evidence.findings]
    assert json.loads(folder.evidence_path("teacher").read_text())["findings"] == json.loads(
        json.dumps([f.to_dict() for f in good.evidence.findings])
    )  # the same settings give the same numbers
    import pandas as pd

    table = pd.read_parquet(folder.artifact("teacher_scores.parquet"))
    assert list(table.columns) == ["path", "split", "label", "source", "score"]
    assert len(table) == 4 * PER_CLASS


@pytest.mark.parametrize("wrong", ["raw", "left_diag"])
def test_wrong_preprocessing_is_named(base, knowing, tmp_path, wrong):
    result = run(base, knowing, tmp_path, teacher__preprocess=wrong)
    prints = result.finding("bn_fingerprint")
    assert (prints.answer, prints.data["best"]) == ("yes", "NPR")
    found = result.finding("preprocessing")
    assert found.answer == "yes" and found.ci[0] > 0
    assert found.data["settings"]["teacher"]["preprocess"] == "NPR"
    assert "teacher.preprocess: NPR" in teacher.next_step(result)[1]


def test_inverted_teacher(base, knowing, tmp_path):
    model = models.build("tiny_ladeda", knowing, "NPR")[0]
    with torch.no_grad():
        model.fc.weight.neg_()
        model.fc.bias.neg_()
    weights = models.save_weights(model, tmp_path / "negated.safetensors")
    result = run(base, weights, tmp_path / "run")
    assert result.finding("inverted").answer == "yes"
    assert result.finding("inverted").data["train"] == "yes"
    assert result.finding("auc").answer == "no"
    assert "wrong way round" in result.finding("auc").message
    assert result.finding("preprocessing").answer == "no"
    assert result.preprocessing.flipped


def test_random_and_incomplete_weights(base, knowing, tmp_path):
    result = run(base, None, tmp_path / "random")
    assert result.finding("weights_loaded").answer == "no"
    assert "RANDOM" in result.finding("weights_loaded").message
    assert result.finding("weights_loaded").data["looks_random"]
    assert "Load the teacher's weights" in teacher.next_step(result)[1]
    state = models.read_state(knowing)
    torch.save({k: v for k, v in state.items() if not k.startswith("fc")}, tmp_path / "part.pth")
    result = run(base, tmp_path / "part.pth", tmp_path / "part")
    found = result.finding("weights_loaded")
    assert (found.answer, found.severity) == ("no", "error")
    assert found.data["missing"] == ["fc.weight", "fc.bias"]


def test_a_file_of_random_weights_is_seen_through(base, tmp_path):
    fresh = models.build("tiny_ladeda", None, "NPR", seed=77)[0]
    settings = base.with_overrides(
        {"teacher.weights": str(models.save_weights(fresh, tmp_path / "fresh.safetensors"))}
    )
    model, report = models.build_teacher(settings)
    assert report.complete
    check = check_weights(model, report, settings, normalised(base, "val")[0][:8])
    assert check.answer == "no" and "never trained" in check.reason


def test_one_class_is_undecided_not_half(base, knowing):
    from diag_lib.teacher.findings import needed
    from diag_lib.teacher.step import _by_source

    check = check_saturation(np.ones(20, int), np.arange(20.0))
    assert check.answer == "undecided"
    assert needed(float("nan"), 0.55, 0.5) == needed(0.5, 0.55, 0.5) == n_per_class_needed(0.5, 0.55)
    import pandas as pd

    frame = pd.DataFrame(
        {"path": ["a", "b"], "split": "val", "label": 1, "source": ["x", "y"], "score": [0.0, 1.0]}
    )
    assert _by_source(frame)["auc"].isna().all()


def test_pictures_and_words(good):
    for draw in (pictures.roc, pictures.scores, pictures.heatmaps, pictures.preprocessing, pictures.fingerprint,
                 pictures.patches):  # fmt: skip
        assert draw(good).axes
    curve = pictures.equal_binormal(np.linspace(0, 1, 2001), 0.7)
    assert np.trapezoid(curve, np.linspace(0, 1, 2001)) == pytest.approx(0.7, abs=0.002)
    assert list(teacher.guide_table(good)["answer"]) == ["no", "yes"]
    assert f"{good.val.value:.2f}" in teacher.describe_roc(good)
    assert "0.55" in pictures.roc(good).axes[1].texts[-2].get_text()
    limits = [image.get_clim() for image in pictures.heatmaps(good).axes[-2].images[1:]]
    assert all(low == -high for low, high in limits)


def test_notebook_tells_the_story(base, knowing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(__file__).parents[1] / "notebooks" / "02_teacher.ipynb"
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert "".join(cells[0]["source"]) == 'config = "demo"\nrun_dir = "reports/demo"\noverrides = {}'
    (tmp_path / "mine.yaml").write_text(base.with_overrides({"teacher.weights": str(knowing)}).to_yaml())
    names = {"config": "mine.yaml", "run_dir": "out", "overrides": {}}
    for cell in cells[1:]:
        assert len(cell["source"]) <= 8 and not cell["outputs"]
        exec("".join(cell["source"]), names)
    assert (tmp_path / "out" / "evidence" / "teacher.json").is_file()


# --- the curve ---


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), min_size=4, max_size=40))
@hypothesis_settings(max_examples=50, deadline=None)
def test_roc_curve_against_scikit_learn(pairs):
    labels, scores = np.array([0, 1, *(p[0] for p in pairs)]), np.array([0, 1, *(p[1] for p in pairs)], float)
    curve = teacher.roc_band(labels, scores, seed=0)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    grid = curve["fpr"].to_numpy()
    strictly = np.setdiff1d(grid, fpr)
    np.testing.assert_allclose(
        curve["tpr"][np.isin(grid, strictly)], np.interp(strictly, fpr, tpr), atol=1e-12
    )
    assert curve["tpr"].is_monotonic_increasing and curve["tpr"].iloc[-1] == 1


# --- fingerprint ---


@pytest.fixture(scope="module")
def photographs():
    rng = np.random.default_rng(5)
    pixels = np.stack([natural(rng, 48) for _ in range(64)])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (x - 0.45) / 0.225


@pytest.mark.parametrize("trained", models.PREPROCESS)
def test_fingerprint_names_the_preprocessing_of_the_training(photographs, trained):
    model = models.build("tiny_ladeda", None, trained, seed=11)[0]
    models.recalibrate(model, [photographs[:32]])
    shown = {
        p: lambda p=p: (models.apply_preprocess(b, p) for b in photographs[32:].split(8))
        for p in models.PREPROCESS
    }
    other = "raw" if trained != "raw" else "NPR"
    found = fingerprint(model, shown, other)
    assert found.best == trained and found.answer == "yes"
    assert found.row(trained)["correlation"] > 0.98
    assert found.row(trained)["ratio"] == pytest.approx(1, abs=0.3)
    assert fingerprint(model, shown, trained).answer == "no"


def test_fingerprint_of_a_network_without_memory(photographs):
    model = models.build("tiny_ladeda", None, "raw")[0]
    found = fingerprint(model, {"raw": lambda: [photographs]}, "raw")
    assert (found.best, found.answer) == (None, "undecided") and "never trained" in found.reason


def test_statistics_that_fit_nothing_name_nothing(photographs):
    model = models.build("tiny_ladeda", None, "raw", seed=11)[0]
    models.recalibrate(model, [photographs])
    norm = model.bn1
    norm.running_var.copy_(
        norm.running_var[torch.randperm(8, generator=torch.Generator().manual_seed(0))] ** 2 * 40
    )
    shown = {p: lambda p=p: [models.apply_preprocess(photographs, p)] for p in models.PREPROCESS}
    for configured in models.PREPROCESS:
        assert fingerprint(model, shown, configured).answer == "undecided"


def test_labels_leave_open_what_the_statistics_settle(good):
    from dataclasses import replace

    from diag_lib.statistics import auc_difference
    from diag_lib.teacher.findings import _preprocessing

    labels = np.arange(80) % 2
    rng = np.random.default_rng(0)
    gain = auc_difference(labels, rng.normal(size=80), rng.normal(size=80) + 0.1 * labels)
    rival = replace(good.preprocessing.configured, preprocess="left_diag")
    trials = good.preprocessing.trials
    open_probe = replace(good.preprocessing, best=rival, confirmation=gain, answer="undecided", trials=trials)
    assert _preprocessing(open_probe, good.fingerprint).answer == "no"
    unclear = replace(good.fingerprint, table=good.fingerprint.table.assign(support=0.5))
    found = _preprocessing(open_probe, unclear)
    assert found.answer == "undecided" and found.data["best"] == "left_diag"


def test_settled_variance_removes_the_start():
    norm = torch.nn.BatchNorm2d(4, momentum=0.001)
    true = torch.tensor([0.01, 0.1, 0.5, 3.0])
    x = torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * true.sqrt().view(1, 4, 1, 1)
    for _ in range(300):
        norm(x)
    assert norm.running_var[0] > 50 * true[0]
    np.testing.assert_allclose(settled_variance(norm), true, rtol=0.05)


# --- preprocessing probe ---

START = Variant("NPR", 1.0, "ImageNet", "resize")


def scorer(strengths, n, seed=0):
    """Scores whose separation depends on the variant's preprocessing; the noise is partly shared."""
    labels = np.arange(n) % 2
    rng = np.random.default_rng(seed)
    common = rng.normal(size=n)

    def scores(variant, rows):
        strength = strengths(variant)
        own = np.random.default_rng([seed, zlib.crc32(str(variant).encode())]).normal(size=n)
        return (strength * labels + 0.8 * common + 0.6 * own)[rows]

    return labels, scores


def test_probe_proves_the_better_variant_on_the_other_half():
    labels, scores = scorer(lambda v: 2.0 if v.preprocess == "left_diag" else 0.3, 400)
    found = probe(scores, START, labels, split_halves(labels, seed=1))
    assert found.answer == "yes" and found.best.preprocess == "left_diag"
    assert found.confirmation.ci[0] > 0
    assert found.confirmation.after.n_real + found.confirmation.after.n_fake == 200
    assert found.best.patch(START)["teacher"]["preprocess"] == "left_diag"


def test_probe_finds_combinations():
    def strength(v):
        return (
            2.5
            if (v.preprocess, v.input_scale) == ("x_grad", 2 / 3)
            else 1.2
            if v.preprocess == "x_grad"
            else 0.2
        )

    labels, scores = scorer(strength, 600)
    found = probe(scores, START, labels, split_halves(labels, seed=1))
    assert found.best.patch(START)["teacher"] == {"preprocess": "x_grad", "input_scale": 2 / 3}
    assert found.best.label(START).startswith("x_grad, input scale 0.667")


@pytest.mark.parametrize("seed", range(4))
def test_probe_is_not_fooled_by_the_best_of_many(seed):
    labels, scores = scorer(lambda v: 0.0, 400, seed)
    assert probe(scores, START, labels, split_halves(labels, seed=seed)).answer != "yes"
    labels, scores = scorer(lambda v: 3.5, 2000, seed)
    assert probe(scores, START, labels, split_halves(labels, seed=seed)).answer == "no"


def test_probe_passes_over_what_the_teacher_was_not_trained_with():
    labels, scores = scorer(lambda v: 2.0 if v.preprocess == "raw" else 0.2, 400)
    found = probe(scores, START, labels, split_halves(labels, seed=1), own="NPR")
    assert found.best.preprocess == "NPR" and found.answer != "yes"
    assert found.table()["preprocess"].iloc[0] == "raw"  # measured and shown all the same


def test_probe_of_an_inverted_teacher_compares_like_with_like():
    labels, scores = scorer(lambda v: -2.5 if v == START else 0.0, 400)
    found = probe(scores, START, labels, split_halves(labels, seed=1))
    assert found.flipped and found.answer == "no" and found.best == START


def test_probe_skips_what_cannot_be_scored_and_leaves_constants_open():
    labels, scores = scorer(lambda v: 1.0, 100)

    def refusing(variant, rows):
        if variant.resize == "crop":
            raise UserError("images are too small")
        return scores(variant, rows)

    found = probe(refusing, START, labels, split_halves(labels, seed=1))
    assert any("too small" in line for line in found.skipped)
    constant = probe(lambda v, rows: np.zeros(len(rows)), START, labels, split_halves(labels, seed=1))
    assert constant.answer == "undecided"


@pytest.mark.parametrize("collapsed", [0.0, np.nan])
def test_a_teacher_that_collapses_as_it_is_fed_and_ranks_otherwise_is_fed_wrongly(collapsed):
    labels, scores = scorer(lambda v: 2.0 if v.preprocess == "raw" else 0.0, 400)

    def fed(variant, rows):
        return np.full(len(rows), collapsed) if variant == START else scores(variant, rows)

    found = probe(fed, START, labels, split_halves(labels, seed=1))
    assert found.answer == "yes" and found.best.preprocess == "raw"
    assert found.confirmation.before.value == 0.5 and found.confirmation.p < 1e-6


def test_a_variant_nominated_without_labels_is_proven_on_all_images():
    labels, scores = scorer(lambda v: 1.0 if v.preprocess == "y_grad" else 0.4, 400)
    nominated = Variant("y_grad", 1.0, "ImageNet", "resize")
    found = probe(scores, START, labels, split_halves(labels, seed=1), nominated=nominated)
    assert found.label_free and found.best == nominated and found.answer == "yes"
    assert found.confirmation.after.n_real + found.confirmation.after.n_fake == 400


# --- mode and saturation ---


class StuckInTrainMode(models.PatchModel):
    """Normalises by the batch whatever mode it is told, and its scores drift with the batch."""

    def __init__(self, harm):
        super().__init__("stuck")
        self.norm = torch.nn.BatchNorm2d(1, affine=False)
        self.harm = harm

    def train(self, mode=True):
        return super().train(True)

    def patch_logits(self, prepared):
        x = (prepared - prepared.roll(1, -1)).abs().mean((1, 2, 3)).view(-1, 1, 1, 1)
        drift = x.mean() if self.training else 0.0
        gain = 1e6 * torch.sin(1e5 * drift) if self.training and self.harm else 1.0
        return -x * gain + (0 if self.harm else drift * 0.001)


@pytest.mark.parametrize(("harm", "answer"), [(True, "yes"), (False, "no")])
def test_train_mode_counts_only_where_it_costs(base, harm, answer):
    images = open_split(base, "val")
    model = StuckInTrainMode(harm)
    found = check_mode(model, images, np.arange(len(images.labels)), base, torch.device("cpu"))
    assert found.answer == answer and found.change > 1e-3
    assert found.effect is not None


def test_eval_mode_is_independent_of_the_batch(base, knowing):
    images = open_split(base, "val")
    model = models.build("tiny_ladeda", knowing, "NPR")[0]
    before = models.state_sha(model)
    found = check_mode(model, images, np.arange(len(images.labels)), base, torch.device("cpu"))
    assert found.answer == "no" and found.effect is None and found.batch_statistics is not None
    assert models.state_sha(model) == before and not model.training


def test_saturation():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    logits = 40 + 3 * labels + rng.normal(size=400)
    found = check_saturation(labels, logits)
    assert found.answer == "yes" and found.auc_sigmoid == 0.5 and found.auc_logits > 0.95 and found.tied == 1
    assert check_saturation(labels, logits - 41).answer == "no"


def test_other_architectures_are_probed_by_normalisation(base, tmp_path):
    import timm

    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=2)
    torch.save(net.state_dict(), tmp_path / "resnet.pth")
    result = run(base, tmp_path / "resnet.pth", tmp_path / "run", teacher__arch="timm/resnet18")
    assert result.fingerprint.best is None  # its normalisation was never trained
    tried = {trial.variant.preprocess for trial in result.preprocessing.trials}
    assert tried == {"raw"}
    assert {trial.variant.normalisation for trial in result.preprocessing.trials} >= {"ImageNet", "0 to 1"}
    assert result.finding("weights_loaded").answer == "no"
