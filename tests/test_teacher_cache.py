"""What does the teacher say about every image and view, asked once and then remembered?"""

import importlib
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_data import SIZE, picture, small_settings, write_dataset

from diag_lib.evidence import RunFolder
from diag_lib.images import open_split, to_input
from diag_lib.losses import LogitScale
from diag_lib.map_store import round_map
from diag_lib.models import build_teacher, pool, save_weights
from diag_lib.settings import Settings
from diag_lib.teacher_cache import TeacherMaps, teacher_maps


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", train=4, val=2)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create()


def ask(settings: Settings, run: RunFolder, views: tuple[int, ...] = (0,), **options) -> TeacherMaps:
    """All training images in those views."""
    maps = teacher_maps(settings, open_split(settings, "train", run), run, progress=False, **options)
    everything = np.arange(len(maps.images.frame))
    for view in views:
        maps.ensure(everything, np.full_like(everything, view))
    return maps


def expected(settings: Settings, run: RunFolder, index: int, view: int) -> np.ndarray:
    """The map computed alone, without the cache."""
    images = open_split(settings, "train", run)
    teacher, _ = build_teacher(settings)
    x = to_input(
        images.pixels([index], [view]), settings.dataset.normalize_mean, settings.dataset.normalize_std
    )
    with torch.no_grad():
        return teacher(x)[0, 0].numpy()


@pytest.mark.parametrize("augment", ["flip", "flip_crop"])
def test_maps_are_the_teachers_answers_for_each_view(root, run, augment):
    settings = small_settings(root, dataset__augment=augment)
    maps = ask(settings, run)
    got = maps.get([5, 6, 5], [1, 0, 0])
    assert got.shape == (3, 1, *maps.shape) and got.dtype == torch.float32
    for row, (index, view) in enumerate([(5, 1), (6, 0), (5, 0)]):
        np.testing.assert_allclose(got[row, 0], expected(settings, run, index, view), rtol=2e-3, atol=2e-3)
    assert not torch.equal(got[0], got[2])


def test_the_second_run_computes_nothing_and_gets_the_same(root, run):
    settings = small_settings(root)
    first = ask(settings, run, (0, 1))
    second = ask(settings, run, (0, 1))
    assert (first.computed, second.computed) == (16, 0)
    index, view = np.tile(np.arange(8), 2), np.repeat([0, 1], 8)
    assert torch.equal(first.get(index, view), second.get(index, view))


def test_order_and_grouping_of_the_questions_do_not_change_the_answers(root, tmp_path):
    settings = small_settings(root)
    together = ask(settings, RunFolder(tmp_path / "a" / "run"), (0, 1))
    apart = ask(settings, RunFolder(tmp_path / "b" / "run"), ())
    for index in (5, 0, 7):
        for view in (1, 0):
            assert torch.equal(apart.get([index], [view]), together.get([index], [view]))


def test_only_what_changed_is_computed_again(root, run):
    settings = small_settings(root)
    ask(settings, run)
    Image.fromarray(picture(np.random.default_rng(9), True)).save(root / "train" / "fake" / "new.png")
    changed = root / "train" / "real" / "000.png"
    Image.fromarray(picture(np.random.default_rng(8), False)).save(changed)
    status = changed.stat()
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    maps = ask(settings, run)
    assert maps.computed == 2
    index = int(maps.images.frame.index[maps.images.frame["path"].str.endswith("real/000.png")][0])
    np.testing.assert_allclose(
        maps.get([index])[0, 0], expected(settings, run, index, 0), rtol=2e-3, atol=2e-3
    )


@pytest.mark.parametrize(
    "change",
    [
        {"teacher__preprocess": "raw"},
        {"teacher__input_scale": 0.5},
        {"training__seed": 7},  # another random teacher
        {"dataset__normalize_mean": [0.5, 0.5, 0.5]},
        {"dataset__image_size": SIZE + 8},
        {"dataset__resize": "crop", "dataset__image_size": SIZE - 8},
    ],
)
def test_another_teacher_or_transform_is_another_cache(root, run, change):
    first = ask(small_settings(root), run)
    second = ask(small_settings(root, **change), run)
    assert second.computed == first.computed and second.key != first.key


def test_seed_and_augmentation_share_what_does_not_depend_on_them(root, run, tmp_path):
    weights = save_weights(build_teacher(small_settings(root))[0], tmp_path / "teacher.safetensors")
    base = {"teacher__weights": str(weights)}
    ask(small_settings(root, **base), run, (0, 1))
    assert ask(small_settings(root, **base, training__seed=7), run, (0, 1)).computed == 0
    crops = {**base, "dataset__augment": "flip_crop"}
    assert ask(small_settings(root, **crops), run, (0, 1)).computed == 8  # view 0 is shared, crops are new
    assert ask(small_settings(root, **crops, training__seed=7), run, (0, 1)).computed == 8  # other crops


def test_an_edited_network_of_the_user_is_another_teacher(root, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIAG_TRUST_CODE", "1")
    keys = []
    for sign in ("", "-"):
        (tmp_path / "signed_net.py").write_text(
            "import torch\n"
            "class Net(torch.nn.Conv2d):\n"
            f"    def forward(self, x):\n        return {sign}super().forward(x)\n"
            "def make():\n    return Net(3, 1, 3)\n"
        )
        sys.modules.pop("signed_net", None)
        importlib.invalidate_caches()
        settings = small_settings(root, teacher__arch="signed_net:make", teacher__preprocess="raw")
        keys.append(ask(settings, run).key)
    assert keys[0] != keys[1]


def test_pixels_changed_by_the_caller_are_not_mixed_up(root, run):
    settings = small_settings(root)
    plain = ask(settings, run)
    lossy = teacher_maps(settings, open_split(settings, "train", run, reencode=("JPEG", 30, 2)), run)
    assert lossy.key != plain.key
    assert not torch.equal(lossy.get([6]), plain.get([6]))


def test_a_damaged_cache_is_computed_again(root, run):
    settings = small_settings(root)
    before = ask(settings, run).get(np.arange(8))
    (file,) = (run.default_cache / "teacher").rglob("maps.*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    again = ask(settings, run)
    assert again.computed == 1
    assert torch.equal(again.get(np.arange(8)), before)


def test_extreme_teachers_keep_their_magnitude(root, run, tmp_path):
    settings = small_settings(root)
    teacher, _ = build_teacher(settings)
    with torch.no_grad():
        teacher.fc.weight.mul_(1e5)
    loud = small_settings(root, teacher__weights=str(save_weights(teacher, tmp_path / "loud.safetensors")))
    values = ask(loud, run).get(np.arange(8))
    assert torch.isfinite(values).all() and values.abs().max() > 70_000
    np.testing.assert_allclose(values[6, 0], expected(loud, run, 6, 0), rtol=1e-4)


def test_without_a_writable_cache_the_maps_are_the_same(root, run, tmp_path):
    settings = small_settings(root)
    (tmp_path / "file").write_text("")
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        blocked = ask(small_settings(root, runtime__cache_dir=str(tmp_path / "file")), run)
    assert not blocked.on_disk
    assert torch.equal(blocked.get(np.arange(8)), ask(settings, run).get(np.arange(8)))


def test_image_logits_and_scale(root, run):
    settings = small_settings(root)
    maps = ask(settings, run)
    values = maps.get(np.arange(8))
    np.testing.assert_allclose(maps.image_logits(), values.double().mean((1, 2, 3)), rtol=1e-12)
    top = small_settings(root, pooling__kind="topk").pooling
    np.testing.assert_allclose(maps.image_logits(top), pool(values.double(), top), rtol=1e-12)
    assert maps.scale == LogitScale.of(values)
    np.testing.assert_array_equal(values[0, 0], round_map(values[0, 0].numpy()))
