"""Does each injection break exactly what it says, and nothing else?"""

import dataclasses
import re
import signal

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from diag_lib.causes import CAUSES
from diag_lib.errors import UserError
from diag_lib.faults import FAULTS, VARIANTS, prepare, suite
from diag_lib.faults.loops import Loop, reported_auc
from diag_lib.faults.scenes import Fault
from diag_lib.history import read_history
from diag_lib.resources import teachers_dir
from diag_lib.settings import load

# Small scenes: what an injection does to files does not depend on their number.
SMALL = {"train": 40, "val": 40}
ALL = {**FAULTS, **VARIANTS}
IN_IMAGES = [f.id for f in ALL.values() if f.alter is not None]
IN_WEIGHTS = [f.id for f in FAULTS.values() if f.teacher is not None]


def small(fault_id: str) -> Fault:
    fault = ALL[fault_id]
    brief = {"training.epochs_s1": 0, "training.epochs_s2": 1} if fault.loop else {}
    around = {**fault.around, **brief}
    return dataclasses.replace(fault, around=around, around_recipe={**fault.around_recipe, **SMALL})


def listing(root):
    """(split, class, file name) -> bytes."""
    return {
        path.relative_to(root).parts: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


@pytest.fixture
def scenes(tmp_path):
    """The listings with and without a fault, made small."""

    def make(fault_id):
        fault = small(fault_id)
        broken, repaired = prepare(fault, tmp_path), prepare(fault, tmp_path, repaired=True)
        return listing(broken.root), listing(repaired.root)

    return make


def labels(files, split):
    return {name: cls for s, cls, name in files if s == split}


def pixels(data, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(data)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("fault_id", ALL)
def test_every_fault_has_valid_settings_and_its_own_folder(fault_id, tmp_path):
    fault = small(fault_id)
    prepared = prepare(fault, tmp_path)
    settings = load("demo", prepared.overrides)
    assert settings.dataset.root == prepared.root == tmp_path / f"demo-{fault_id}"
    assert (prepared.root / "val" / "real").is_dir()
    repaired = prepare(fault, tmp_path, repaired=True)
    if fault_id != "healthy":
        assert (repaired.overrides | {"dataset.root": ""}, listing(repaired.root)) != (
            prepared.overrides | {"dataset.root": ""},
            listing(prepared.root),
        ), "the injection changes nothing"


def test_a_variant_has_a_name_of_its_own_and_a_cause_that_a_verdict_can_name():
    assert not set(VARIANTS) & set(FAULTS)
    assert {variant.cause for variant in VARIANTS.values()} <= {cause.id for cause in CAUSES}
    assert suite.plan("full", ["leakage_exact_quarter"], [208])[0].expected == ("leakage",)
    planned = {part for case in suite.plan("full", None, [208]) for part in case.fault.id.split("+")}
    assert not planned & set(VARIANTS), "no suite's score hangs on them"


@pytest.mark.parametrize("fault_id", IN_IMAGES)
def test_injections_are_the_same_each_time_and_differ_between_seeds(fault_id, tmp_path):
    fault = small(fault_id)
    first, again = (prepare(fault, tmp_path / name) for name in "ab")
    other = prepare(fault, tmp_path / "a", seed=1)
    assert listing(first.root) == listing(again.root) != listing(other.root)
    assert load("demo", other.overrides).training.seed == load("demo", first.overrides).training.seed + 1


@pytest.mark.parametrize(
    ("fault_id", "wrong"),
    [
        ("labels_inverted_train", {"train": 1.0, "val": 0.0}),
        ("labels_inverted", {"train": 1.0, "val": 1.0}),
        ("label_noise", {"train": 0.4, "val": 0.0}),
        ("labels_shuffled", {"train": 0.5, "val": 0.0}),
    ],
)
def test_label_faults_move_images_and_change_none(scenes, fault_id, wrong):
    broken, repaired = scenes(fault_id)
    assert sorted(broken.values()) == sorted(repaired.values())
    for split, share in wrong.items():
        before, after = labels(repaired, split), labels(broken, split)
        moved = np.mean([before[name] != after[name] for name in before])
        assert moved == pytest.approx(share, abs=0.2 if fault_id == "labels_shuffled" else 0.01)
        assert sum(cls == "real" for cls in after.values()) == SMALL[split]


def test_shortcut_gives_one_class_another_format(scenes):
    broken, _ = scenes("shortcut")
    assert {(cls, name.rpartition(".")[2]) for _, cls, name in broken} == {("real", "png"), ("fake", "jpg")}


def test_leakage_copies_half_of_val_from_the_same_class_of_train(scenes, tmp_path):
    broken, repaired = scenes("leakage")
    for cls in ("real", "fake"):
        train = [
            pixels(data, tmp_path) for (split, c, _), data in repaired.items() if (split, c) == ("train", cls)
        ]
        copies = [
            data for (split, c, name), data in broken.items() if (split, c) == ("val", cls) and "copy" in name
        ]
        assert len(copies) == SMALL["val"] // 2
        for data in copies:
            assert min(np.abs(pixels(data, tmp_path) - image).max() for image in train) == 1
    assert {k: v for k, v in broken.items() if k[0] == "train"} == {
        k: v for k, v in repaired.items() if k[0] == "train"
    }


def test_class_imbalance_leaves_six_fakes_to_train_on(scenes):
    broken, _ = scenes("class_imbalance")
    assert list(labels(broken, "train").values()).count("fake") == 6
    assert list(labels(broken, "val").values()).count("fake") == SMALL["val"]


def test_corrupt_images_are_found_unreadable_or_flat(scenes, tmp_path):
    broken, repaired = scenes("corrupt_images")
    whole = 0
    for key, data in broken.items():
        try:
            whole += pixels(data, tmp_path).std() > 1
        except OSError:
            assert key[0] == "train"
    assert whole == 2 * SMALL["val"] + 2 * (SMALL["train"] // 20)
    assert {k: v for k, v in broken.items() if k[0] == "val"} == {
        k: v for k, v in repaired.items() if k[0] == "val"
    }


@pytest.mark.parametrize("fault_id", IN_WEIGHTS)
def test_broken_teachers_are_files_of_their_own(fault_id, tmp_path):
    ours = load_file(teachers_dir() / "demo-artefact.safetensors")
    prepared = prepare(small(fault_id), tmp_path)
    file = tmp_path / f"demo-{fault_id}-teacher.safetensors"
    assert prepared.overrides["teacher.weights"] == str(file)
    changed = load_file(file)
    assert any(name not in changed or not np.array_equal(changed[name], ours[name]) for name in ours)
    assert load_file(teachers_dir() / "demo-artefact.safetensors").keys() == ours.keys()


@pytest.mark.parametrize("fault_id", [f.id for f in FAULTS.values() if f.loop is not None])
def test_loops_are_recorded_with_and_without_their_mistake(fault_id, tmp_path):
    fault = small(fault_id)
    assert fault.loop != Loop()
    histories = []
    for repaired in (False, True):
        prepared = prepare(fault, tmp_path, repaired=repaired)
        path = load("demo", prepared.overrides).history
        assert path is not None and path.parent == tmp_path
        histories.append(read_history(path))
    assert [history.kind for history in histories] == ["recorder"] * 2
    assert [len(history) for history in histories] == [1, 1]
    steps, clean = (history.recording.steps for history in histories)
    assert len(steps) == len(clean) > 0
    assert steps != clean or histories[0].recording.epochs != histories[1].recording.epochs
    assert reported_auc(tmp_path / f"demo-{fault_id}-repaired-training.jsonl").defined


def logits(prepared):
    import torch

    from diag_lib.evidence import RunFolder
    from diag_lib.images import open_split, to_input
    from diag_lib.models import build_teacher

    settings = load("demo", prepared.overrides)
    model, report = build_teacher(settings)
    data = open_split(settings, "val", RunFolder(prepared.root.parent / "run"))
    d = settings.dataset
    x = to_input(data.pixels(np.arange(len(data.labels))), d.normalize_mean, d.normalize_std)
    with torch.inference_mode():
        return model.eval()(x).double().numpy(), report


@pytest.mark.parametrize(
    ("fault_id", "expected"),
    [
        ("teacher_inverted", lambda good: -good),
        ("scale_mismatch", lambda good: 40 * good),
        ("offset_mismatch", lambda good: good + 300),
    ],
)
def test_what_broken_teachers_say(fault_id, expected, tmp_path):
    fault = small(fault_id)
    good, _ = logits(prepare(fault, tmp_path, repaired=True))
    bad, report = logits(prepare(fault, tmp_path))
    assert report.complete
    np.testing.assert_allclose(bad, expected(good), rtol=1e-3, atol=1e-2)


def test_the_heavy_tailed_teacher_is_itself_but_for_few_patches(tmp_path):
    fault = small("heavy_tailed_teacher")
    good, _ = logits(prepare(fault, tmp_path, repaired=True))
    bad, _ = logits(prepare(fault, tmp_path))
    far = bad < good.min() - 1
    assert 0 < far.mean() < 0.02
    assert bad.min() < -1000
    near = np.abs(bad - good) < 3 * good.std()
    assert near.mean() > 0.95
    assert np.corrcoef(good[near], bad[near])[0, 1] > 0.9


def test_the_partly_named_weights_leave_the_body_random(tmp_path):
    _, report = logits(prepare(small("teacher_weights_not_loaded"), tmp_path))
    assert "conv1.weight" in report.missing
    assert "encoder.conv1.weight" in report.unexpected
    assert not {"fc.weight", "fc.bias"} & set(report.missing)


def test_an_unknown_fault_is_one_line_that_lists_what_exists(tmp_path):
    with pytest.raises(UserError) as caught:
        prepare("lekage", tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    assert "did you mean leakage?" in text
    assert all(re.search(rf"\b{fault_id}\b", text) for fault_id in ALL)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_process_of_the_lab_that_dies_is_one_line(tmp_path, monkeypatch):
    def dies(case, folder):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(suite, "_kept", dies)
    with pytest.raises(UserError, match="fault lab died"):
        suite.run_suite("quick", causes=["leakage", "shortcut"], out=tmp_path)
    assert not (tmp_path / "faults.json").exists()


@pytest.mark.slow
def test_the_demo_shows_the_symptom_and_the_healthy_demo_does_not(tmp_path):
    """The demo's promise: a foreign teacher keeps the student from learning, labels alone or a good teacher do not."""
    from diag_lib.evidence import RunFolder
    from diag_lib.training import train_arms

    found = {}
    for fault_id, arms in (("teacher_domain_shift", ["status_quo", "bce_only"]), ("healthy", ["status_quo"])):
        settings = load("demo", {**prepare(fault_id, tmp_path).overrides, "runtime.threads": 1})
        results = train_arms(settings, RunFolder(tmp_path / fault_id), arms, progress=False)
        found |= {(fault_id, arm): result for arm, result in results.items()}
    symptom = found["teacher_domain_shift", "status_quo"]
    assert symptom.auc.ci[1] < 0.70
    assert 240 < symptom.history["train_distill_loss"][-1] < 600
    assert 120 < symptom.history["train_loss"][-1] < 300
    assert found["teacher_domain_shift", "bce_only"].auc.ci[0] > 0.90
    assert found["healthy", "status_quo"].auc.ci[0] > 0.90
