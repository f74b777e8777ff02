"""The demo set: made from photographs of installed packages, the same bytes every time, faults on purpose."""

import hashlib
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as property_settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import laplace

from diag_lib.demo import Recipe, artefacts, build, ensure_data, photos, prepare
from diag_lib.demo.dataset import crops, read_stamp, stamp_path
from diag_lib.errors import UserError
from diag_lib.settings import load
from diag_lib.statistics import auc

SMALL = Recipe(train=12, val=15)
README = Path(__file__).resolve().parent.parent / "data" / "README.md"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "demo"
    ensure_data(load("demo", {"dataset.root": str(root)}))
    return root


def images(root, split, name):
    return {path.stem: np.asarray(Image.open(path)) for path in sorted((root / split / name).iterdir())}


def contents(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_set_has_the_promised_size_and_format(demo):
    counts = {(s, c): len(list((demo / s / c).iterdir())) for s in ("train", "val") for c in ("real", "fake")}
    assert counts == {
        ("train", "real"): 300,
        ("train", "fake"): 300,
        ("val", "real"): 600,
        ("val", "fake"): 600,
    }
    files = [path for path in demo.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".png"}
    assert len({path.stat().st_size for path in files}) == 1, "the file size must not tell the classes apart"
    with Image.open(files[0]) as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")


def test_real_crops_are_pixels_of_the_right_half(demo):
    halves = {split: dict(photos.halves(split)) for split in ("train", "val")}
    for split in ("train", "val"):
        for stem, pixels in images(demo, split, "real").items():
            photo, row, column = re.fullmatch(r"([a-z]+)-(\d+)-(\d+)", stem).groups()
            r, c = int(row), int(column)
            np.testing.assert_array_equal(pixels, halves[split][photo][r : r + 64, c : c + 64])


def test_no_place_serves_two_images_of_a_split(demo):
    for split in ("train", "val"):
        places = sorted(path.stem.rsplit("-", 2) for path in (demo / split).rglob("*.png"))
        assert len({tuple(place) for place in places}) == len(places)
        for (name, *a), (other, *b) in pairwise(places):
            if name == other:
                assert sum(abs(int(x) - int(y)) for x, y in zip(a, b, strict=True)) >= 16


def test_brightness_and_sharpness_hardly_tell_the_classes_apart(demo):
    for measure in (np.mean, np.std, lambda x: np.abs(laplace(x.astype(float).mean(2))).mean()):
        scores = [[measure(pixels) for pixels in images(demo, "val", c).values()] for c in ("real", "fake")]
        found = auc(np.repeat([0, 1], [len(s) for s in scores]), np.concatenate(scores))
        assert 0.35 < found.value < 0.65, found


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    for name, recipe in (("a", SMALL), ("b", SMALL), ("c", replace(SMALL, seed=1))):
        assert build(tmp_path / name, recipe)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")


def test_it_is_made_again_only_when_the_recipe_differs(tmp_path):
    root = tmp_path / "demo"
    assert build(root, SMALL)
    first = (root / "train" / "real").stat().st_mtime_ns
    assert not build(root, SMALL)
    assert (root / "train" / "real").stat().st_mtime_ns == first
    assert build(root, replace(SMALL, val=16))
    assert len(list((root / "val" / "fake").iterdir())) == 16
    assert stamp_path(root).parent == root.parent, "the stamp lies beside the set, not within"


def test_a_failed_build_leaves_what_was_there(tmp_path):
    root = tmp_path / "demo"
    build(root, SMALL)
    before = contents(root)

    def fail(folder, rng):
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        build(root, replace(SMALL, seed=3), alter=fail, name="fail")
    assert contents(root) == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["demo"]
    assert not build(root, SMALL)


def test_a_users_folder_is_never_touched(tmp_path):
    mine = tmp_path / "demo" / "train" / "real" / "mine.png"
    mine.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(mine)
    ensure_data(load("demo", {"dataset.root": str(tmp_path / "demo")}))
    assert [p for p in (tmp_path / "demo").rglob("*") if p.is_file()] == [mine]
    with pytest.raises(UserError, match="is no demo set"):
        build(tmp_path / "demo", SMALL)


def test_ensure_data_leaves_an_injected_fault_alone(tmp_path):
    root = tmp_path / "demo-x"
    build(root, SMALL, alter=lambda folder, rng: (folder / "val" / "note.txt").write_text("x"), name="x")
    before = contents(root)
    ensure_data(load("demo", {"dataset.root": str(root)}))
    assert contents(root) == before
    assert read_stamp(root)["altered"] == "x"


def test_too_many_crops_are_refused_in_one_line():
    with pytest.raises(UserError, match=r"hold only \d+ crops"):
        crops("train", 400, 190, np.random.default_rng(0))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(photos, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        photos.locate(photos.PHOTOS[0])


def test_every_photograph_is_credited_in_the_readme():
    text = README.read_text(encoding="utf-8")
    for photo in photos.PHOTOS:
        row = next(line for line in text.splitlines() if line.startswith(f"| {photo.name} |"))
        assert photo.licence in row
        assert photos.locate(photo).is_file()


def test_an_unknown_fault_lists_those_that_exist(tmp_path):
    with pytest.raises(UserError, match=r"did you mean leakage\?.*teacher_domain_shift"):
        prepare("leakege", folder=tmp_path)


@property_settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    half=st.integers(4, 20),
    strength=st.floats(0, 1),
)
def test_the_decoder_keeps_what_a_half_resolution_image_shows(seed, half, strength):
    rng = np.random.default_rng(seed)
    crop = rng.uniform(0, 255, (2 * half, 2 * half, 3))
    fake = artefacts.decoder(crop, rng, strength)
    assert fake.shape == crop.shape
    if strength == 0:
        np.testing.assert_allclose(fake, crop)
    assert abs(fake.mean() - crop.mean()) < 15


@property_settings(max_examples=25, deadline=None)
@given(half=st.integers(1, 12), slope=st.floats(-5, 5), level=st.floats(-100, 100))
def test_upsampling_continues_straight_lines(half, slope, level):
    small = (level + slope * (2 * np.arange(half) + 0.5))[:, None, None] * np.ones((1, half, 1))
    big = artefacts.upsample(small)
    expected = level + slope * np.arange(2 * half)
    np.testing.assert_allclose(big[1:-1, 0, 0], expected[1:-1], atol=1e-9)


def test_the_checkerboard_has_the_promised_amplitude():
    board = artefacts.checkerboard(np.full((8, 8, 3), 100.0), np.random.default_rng(0), 1.5) - 100
    assert set(np.unique(board)) == {-1.5, 1.5}
    assert board.mean() == 0


def test_the_teachers_are_what_the_readme_says(demo):
    import torch

    from diag_lib.evidence import RunFolder
    from diag_lib.images import open_split, to_input
    from diag_lib.models import build_teacher, pool

    found = {}
    for name in ("demo-artefact", "demo-foreign"):
        settings = load("demo", {"dataset.root": str(demo), "teacher.weights": name})
        model, report = build_teacher(settings)
        assert report.complete
        model.eval()
        for split in ("train", "val"):
            data = open_split(settings, split, RunFolder(demo.parent / "run"))
            d = settings.dataset
            x = to_input(data.pixels(np.arange(len(data.labels))), d.normalize_mean, d.normalize_std)
            with torch.inference_mode():
                maps = model(x)
            if split == "train":
                assert maps.square().mean().item() == pytest.approx(450, rel=0.01)
            else:
                found[name] = auc(data.labels, pool(maps, settings.pooling).double().numpy())
    assert found["demo-artefact"].ci[0] > 0.97
    assert found["demo-foreign"].ci[1] < 0.55
    assert found["demo-foreign"].ci[0] < 0.5 < found["demo-foreign"].ci[1]
