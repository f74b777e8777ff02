"""What does the teacher say about every image and view, asked once and then remembered?"""

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_data import SIZE, picture, small_settings, write_dataset

from diag_lib import training
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
    views = range(8)
    first = ask(small_settings(root, **crops), run, views)
    assert 8 < first.computed <= 16  # view 0 is shared; at most two larger squares an image hold all crops
    other = ask(small_settings(root, **crops, training__seed=7), run, views)
    assert first.computed + other.computed == 16  # another seed cuts elsewhere, from the same larger squares
    one = np.full(8, 3)
    assert not torch.equal(first.get(range(8), one), other.get(range(8), one))


@pytest.mark.parametrize(("arch", "preprocess", "exact"), [
    ("tiny_ladeda", "NPR", True), ("ladeda9", "NPR", True), ("ladeda9", "raw", True),
    ("tiny_ladeda", "right_diag", False), ("timm/resnet10t", "raw", False),
])  # fmt: skip
def test_crops_are_slices_exactly_where_the_network_allows_it(root, run, arch, preprocess, exact):
    """One look at the larger square answers for all crops, unless a border would change what a patch sees."""
    size = {"dataset__image_size": 33 if preprocess == "NPR" else SIZE}  # odd: a block of NPR is cut
    settings = small_settings(
        root, teacher__arch=arch, teacher__preprocess=preprocess, dataset__augment="flip_crop", **size
    )
    maps = teacher_maps(settings, open_split(settings, "train", run), run, progress=False)
    views = np.arange(1, 8)
    got = maps.get(np.full(7, 5), views)
    mirrored = maps.images.crops(np.full(7, 5), views)[2]
    assert maps.computed == (len(set(mirrored)) if exact else 7)
    for view, found in zip(views, got, strict=True):
        alone = expected(settings, run, 5, int(view))
        np.testing.assert_allclose(found[0], alone, rtol=2e-3, atol=2e-3 * np.abs(alone).max())


def test_files_that_change_places_are_asked_about_again(root, run):
    """Same paths, sizes and dates: only the bytes tell."""
    for name in ("000", "001"):
        source = root / "train" / "real" / f"{name}.png"
        Image.open(source).save(source.with_suffix(".bmp"))
        source.unlink()
    settings = small_settings(root)
    before = ask(settings, run).get(np.arange(8))
    first, second = (root / "train" / "real" / f"{name}.bmp" for name in ("000", "001"))
    status = first.stat()
    assert status.st_size == second.stat().st_size
    contents = first.read_bytes(), second.read_bytes()
    for file, content in ((first, contents[1]), (second, contents[0])):
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    maps = ask(settings, run)
    row = {path: int(i) for i, path in maps.images.frame["path"].items()}
    swapped = [next(i for path, i in row.items() if path.endswith(f"real/{n}.bmp")) for n in ("000", "001")]
    after = maps.get(np.arange(8))
    assert torch.equal(after[swapped], before[swapped[::-1]]) and not torch.equal(after, before)
    assert maps.computed == 0  # both were known, under their bytes


def test_new_dates_and_a_new_place_ask_nothing_again(root, run, tmp_path):
    settings = small_settings(root)
    ask(settings, run)
    moved = root.rename(tmp_path / "moved")
    for file in moved.rglob("*.png"):
        file.touch()
    assert ask(small_settings(moved), run).computed == 0


def test_overwritten_weights_are_another_teacher(root, run, tmp_path):
    file = tmp_path / "teacher.safetensors"
    settings = small_settings(root, teacher__weights=str(file))
    teacher, _ = build_teacher(small_settings(root))
    save_weights(teacher, file)
    status, before = file.stat(), ask(settings, run)
    with torch.no_grad():
        teacher.fc.bias.add_(1.0)
    save_weights(teacher, file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    after = ask(settings, run)
    assert after.computed == 8
    np.testing.assert_allclose(after.get([6]), before.get([6]) + 1, atol=2e-3)


FULL = """
import resource, signal, sys, warnings
from diag_lib import settings, training
from diag_lib import training
from diag_lib.evidence import RunFolder

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    chosen = settings.load(sys.argv[1])
    from diag_lib import map_store
    real = map_store._append_aligned
    def full(path, block, unit):  # the disk is full for the maps alone: files of the cache cannot grow
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
        try:
            return real(path, block, unit)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    map_store._append_aligned = full
    arms = training.train_arms(chosen, RunFolder(sys.argv[2]), ["status_quo"], progress=False)
print(arms["status_quo"].auc.value, [str(w.message) for w in said if "teacher cache" in str(w.message)])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_run_on_a_full_disk_says_so_and_goes_on_without_the_cache(root, run, tmp_path):
    settings = small_settings(root)
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "settings.yaml"), str(tmp_path / "full" / "run")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    value, said = done.stdout.split(" ", 1)
    assert "cannot be written" in said and "runtime.cache_dir" in said and said.count("teacher cache") == 1
    assert (
        float(value)
        == training.train_arms(settings, run, ["status_quo"], progress=False)["status_quo"].auc.value
    )


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
