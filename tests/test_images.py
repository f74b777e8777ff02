"""Does every layout give the right labels, and every view the right pixels, whatever order and machine?"""

import csv
import hashlib
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from diag_lib import settings as settings_module
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.images import (
    Reencode,
    decode,
    epoch_batches,
    hashing,
    open_split,
    printable,
    read_table,
    steps_of_epoch,
    store,
    to_input,
)
from diag_lib.images.views import CROP_MARGIN, CROP_STEP, fit
from diag_lib.settings import Settings

FOLDERS = ("train/real", "train/fake", "val/real", "val/fake")


def picture(seed: int, size: tuple[int, int] = (40, 48)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    return np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC))


def put(path: Path, seed: int, size: tuple[int, int] = (40, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, size)).save(path)
    return path


def make(root: Path, folders: tuple[str, ...] = FOLDERS, each: int = 2) -> Path:
    for number, folder in enumerate(folders):
        for index in range(each):
            put(root / folder / f"{index}.png", 100 * number + index)
    return root


def configured(root: Path, **keys: Any) -> Settings:
    defaults = {"dataset.root": str(root), "dataset.image_size": 32, "dataset.augment": "none"}
    return settings_module.load("base", {**defaults, **keys})


def summary(root: Path, **keys: Any) -> set[tuple[str, int, str]]:
    frame = read_table(configured(root, **keys)).frame
    return set(zip(frame["split"], frame["label"], frame["source"], strict=True))


# ---- folders


@pytest.mark.parametrize(
    ("folders", "sources"),
    [
        (FOLDERS, {""}),
        (("train/0_real", "train/1_fake", "val/0_real", "val/1_fake"), {""}),
        (("Train/Nature", "Train/AI", "VAL/nature", "VAL/ai"), {""}),
        (("train/sd14/0_real", "train/sd14/1_fake", "val/sd14/0_real", "val/sd14/1_fake"), {"sd14"}),
        (("biggan/train/nature", "biggan/train/ai", "biggan/val/nature", "biggan/val/ai"), {"biggan"}),
        (("train/real/ffhq", "train/fake/sg2", "val/real/ffhq", "val/fake/sg2"), {"ffhq", "sg2"}),
        (("a/train/b/real/c/d", "a/train/b/fake/c/d", "a/val/b/real/c/d", "a/val/b/fake/c/d"), {"a/b/c/d"}),
        (("train/train/0_real", "train/train/1_fake", "val/train/0_real", "val/train/1_fake"), {"train"}),
        (("training/real", "training/fake", "validation/real", "validation/fake"), {""}),
    ],
)
def test_layouts(tmp_path: Path, folders: tuple[str, ...], sources: set[str]) -> None:
    found = summary(make(tmp_path, folders))
    assert {(split, label) for split, label, _ in found} == {
        ("train", 0),
        ("train", 1),
        ("val", 0),
        ("val", 1),
    }
    assert {source for _, _, source in found} == sources


def test_real_is_0_although_fake_sorts_first(tmp_path: Path) -> None:
    frame = read_table(configured(make(tmp_path))).frame
    assert all(
        ("real" in path) == (label == 0) for path, label in zip(frame["path"], frame["label"], strict=True)
    )


def test_a_synonym_counts_only_without_the_configured_name(tmp_path: Path) -> None:
    make(tmp_path, (*FOLDERS, "valid/real", "valid/fake", "test/real", "test/fake"))
    frame = read_table(configured(tmp_path)).frame
    assert not frame["path"].str.startswith("valid/").any()
    assert set(frame.loc[frame["path"].str.startswith("test/"), "split"]) == {"test"}
    renamed = read_table(configured(tmp_path, **{"dataset.val_split": "test"})).frame
    assert renamed.loc[renamed["split"] == "val", "path"].str.startswith("test/").all()


def test_a_split_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    make(tmp_path, FOLDERS)
    with pytest.raises(UserError, match="no split 'test'"):
        read_table(configured(tmp_path, **{"dataset.val_split": "test"}))


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train/real", "train/fake"), ("val", "found train")),
        (("train/real", "train/fake", "val/real"), ("'val'", "no fake", "found 2 real")),
        (("real", "fake"), ("split folder", "found folders fake, real", "expected")),
        (("train/dogs", "val/cats"), ("class folder", "found folders cats, dogs, train, val")),
        (("train/real/fake", "train/fake", "val/real", "val/fake"), ("both classes",)),
        ((), ("no images", "found nothing", "expected")),
    ],
)
def test_a_wrong_layout_is_one_line_that_says_what_was_found(
    tmp_path: Path, folders: tuple[str, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        read_table(configured(make(tmp_path, folders)))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_table(configured(tmp_path / "nowhere"))


def test_junk_is_ignored_and_what_is_no_image_is_noted(tmp_path: Path) -> None:
    make(tmp_path)
    for junk in ("._0.png", ".DS_Store", ".hidden.png", "Thumbs.db"):
        (tmp_path / "train/real" / junk).write_bytes(b"\0\0")
    put(tmp_path / "__MACOSX/train/real/x.png", 1)
    (tmp_path / "train/real/readme.txt").write_text("hello")
    shutil.copy(tmp_path / "train/real/0.png", tmp_path / "train/real/without_suffix")
    os.symlink(tmp_path / "gone.png", tmp_path / "train/real/dangling.png")
    table = read_table(configured(tmp_path))
    assert len(table.frame) == 9 and "train/real/without_suffix" in set(table.frame["path"])
    assert ("train/real/readme.txt", "not an image") in table.notes
    assert ("train/real/dangling.png", "broken link") in table.notes


def test_a_link_loop_ends_and_linked_folders_count(tmp_path: Path) -> None:
    root = make(tmp_path / "data", FOLDERS[1:])
    put(tmp_path / "elsewhere/0.png", 7)
    (root / "train/real").symlink_to(tmp_path / "elsewhere")
    (root / "train/fake/again").symlink_to(root)
    table = read_table(configured(root))
    assert len(table.frame) == 7
    assert any(reason == "symbolic link loop" for _, reason in table.notes)


def test_hostile_names_are_escaped_and_still_opened(tmp_path: Path) -> None:
    make(tmp_path)
    names = [b"\xff\xfe.png", b"a\nb.png", b"\x1b[31mred.png", "\u202egnp.exe.png".encode(), b"back\\slash.png",
             b"<script>alert(1)</script>.png".replace(b"/", b"_")]  # fmt: skip
    folder = os.fsencode(tmp_path / "train/real")
    for name in names:
        shutil.copy(tmp_path / "train/real/0.png", os.path.join(folder, name))
    images = open_split(configured(tmp_path), "train", RunFolder(tmp_path / "run/x"))
    assert len(images) == 4 + len(names) and not len(images.unreadable)
    assert all(path.isprintable() for path in images.frame["path"])
    assert images.frame["path"].is_unique
    assert (images.pixels(range(len(images))).numpy().std(axis=(1, 2, 3)) > 0).all()
    images.frame.drop(columns="file").to_parquet(tmp_path / "names.parquet")  # printable means writable


@given(st.text(max_size=20), st.text(max_size=20))
def test_printable_is_injective(a: str, b: str) -> None:
    assert printable(a).isprintable()
    assert (printable(a) == printable(b)) == (a == b)


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    make(tmp_path)
    before = read_table(configured(tmp_path)).fingerprint
    assert read_table(configured(tmp_path)).fingerprint == before
    put(tmp_path / "val/fake/0.png", 999)
    assert read_table(configured(tmp_path)).fingerprint != before


def test_nothing_is_written_into_the_dataset(tmp_path: Path) -> None:
    root = make(tmp_path / "data")

    def state() -> set[tuple[str, int]]:
        return {(str(path), path.stat().st_mtime_ns) for path in root.rglob("*")}

    before = state()
    open_split(configured(root), "train", RunFolder(tmp_path / "run/x")).pixels([0])
    assert state() == before


# ---- manifests and curation


def manifest(
    root: Path, rows: list[Mapping[str, Any]], name: str = "list.csv", separator: str = ",", bom: bool = False
) -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if name.endswith(".parquet"):
        pd.DataFrame(rows).to_parquet(root / name)
        return root / name
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter=separator, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (root / name).write_text(
        text.getvalue(), encoding="utf-8-sig" if bom else "utf-8", errors="surrogateescape"
    )
    return root / name


def rows_of(root: Path) -> list[dict[str, Any]]:
    make(root)
    return [
        {"path": f"{split}/{kind}/{i}.png", "label": ("real", "fake").index(kind), "split": split, "source": "cam"}
        for split in ("train", "val") for kind in ("real", "fake") for i in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_text_manifests_equal_the_folder(tmp_path: Path, separator: str, bom: bool) -> None:
    rows = rows_of(tmp_path)
    by_folder = read_table(configured(tmp_path)).frame
    by_list = read_table(configured(manifest(tmp_path, rows, separator=separator, bom=bom))).frame
    columns = ["path", "label", "split", "file"]
    assert by_list[columns].equals(by_folder[columns]) and set(by_list["source"]) == {"cam"}


@pytest.mark.parametrize(
    "labels", [("REAL", "Fake"), ("0", "1"), ("0.0", "1.0"), ("nature", "ai"), (0.0, 1.0)]
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_label_spellings(tmp_path: Path, labels: tuple[Any, Any], kind: str) -> None:
    rows = [{**row, "label": labels[row["label"]]} for row in rows_of(tmp_path)]
    frame = read_table(configured(manifest(tmp_path, rows, f"m.{kind}"))).frame
    assert all(
        ("real" in path) == (label == 0) for path, label in zip(frame["path"], frame["label"], strict=True)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "2"}, ("row 4", "'2'", "0, 1, real, fake")),
        ({"label": ""}, ("row 4", "label is missing")),
        ({"path": "train/real/0.png"}, ("row 4", "repeats", "row 2")),
        ({"path": "../outside.png"}, ("row 4", "leaves the manifest's folder")),
        ({"path": "train/../../outside.png"}, ("row 4", "leaves")),
        ({"path": ""}, ("row 4", "path is empty")),
        ({"split": "holdout"}, ("row 4", "'holdout'", "train", "val")),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_bad_row_is_named(
    tmp_path: Path, change: dict[str, str], words: tuple[str, ...], kind: str
) -> None:
    rows = [{**row, "label": str(row["label"])} for row in rows_of(tmp_path)]
    rows[2].update(change)
    with pytest.raises(UserError) as caught:
        read_table(configured(manifest(tmp_path, rows, f"m.{kind}")))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_columns_bad_files_and_ragged_rows(tmp_path: Path) -> None:
    make(tmp_path)
    cases = {
        "a.csv": (b"file,label\nx.png,0\n", "column path missing"),
        "b.csv": (b"", "empty"),
        "c.csv": (b"path,label\n", "no rows"),
        "d.csv": (b"path,label,split\ntrain/real/0.png,0\n", "row 2: 2 cells"),
        "e.csv": (b"path,label\nnone/0.png,0\n", "none of its 1 files exists"),
        "f.parquet": (b"PAR1 nonsense", "not readable as parquet"),
        "g.json": (b"{}", "neither a folder nor"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=words):
            read_table(configured(tmp_path / name))


def test_absolute_paths_are_shown_relative(tmp_path: Path) -> None:
    root = make(tmp_path / "images")
    rows = [{**row, "path": str(root / row["path"])} for row in rows_of(root)]
    (tmp_path / "lists").mkdir()
    frame = read_table(configured(manifest(tmp_path / "lists", rows))).frame
    assert set(frame["path"]) == {row["path"] for row in rows_of(root)}


def test_without_a_split_column_a_fixed_share_is_held_out(tmp_path: Path) -> None:
    make(tmp_path, ("real", "fake"), each=8)
    rows = [{"path": f"{kind}/{i}.png", "label": kind} for kind in ("real", "fake") for i in range(8)]
    table = read_table(configured(manifest(tmp_path, rows)))
    assert table.frame.groupby(["split", "label"]).size().to_dict() == {
        ("train", 0): 6, ("train", 1): 6, ("val", 0): 2, ("val", 1): 2,
    }  # fmt: skip
    shuffled = read_table(configured(manifest(tmp_path, rows[::-1], "other.csv")))
    assert shuffled.frame.equals(table.frame) and "no split column" in table.notes[0][1]


def test_curation_is_applied_and_counted(tmp_path: Path) -> None:
    make(tmp_path / "d", each=3)
    file = manifest(tmp_path, [
        {"path": "train/real/0.png", "action": "exclude", "label": ""},
        {"path": "train/real/1.png", "action": "relabel", "label": "fake"},
        {"path": "train/real/9.png", "action": "exclude", "label": ""},
    ])  # fmt: skip
    table = read_table(configured(tmp_path / "d", **{"dataset.curation": str(file)}))
    assert table.curated == {"excluded": 1, "relabelled": 1, "unmatched": 1}
    frame = table.frame.set_index("path")
    assert "train/real/0.png" not in frame.index and frame.loc["train/real/1.png", "label"] == 1
    file.write_text("path,action\ntrain/real/0.png,delete\n")
    with pytest.raises(UserError, match=r"row 2: action 'delete'.*exclude, relabel"):
        read_table(configured(tmp_path / "d", **{"dataset.curation": str(file)}))
    with pytest.raises(UserError, match="is a folder"):
        read_table(configured(tmp_path / "d", **{"dataset.curation": str(tmp_path / "d")}))


# ---- views


def test_fit_modes() -> None:
    image = picture(3, (50, 90))
    assert np.array_equal(fit(image, "crop", 32), image[9:41, 29:61])
    squashed = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(fit(image, "resize", 32), squashed)
    centre = np.asarray(Image.fromarray(image[:, 20:70]).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(fit(image, "shortest", 32), centre)


def test_a_small_image_is_continued_by_reflection_when_cropped() -> None:
    image = picture(3, (10, 12))
    fitted = fit(image, "crop", 16)
    assert np.array_equal(fitted[3:13, 2:14], image)
    assert np.array_equal(fitted[2, 2:14], image[1]) and np.array_equal(fitted[13, 2:14], image[-2])


@pytest.mark.parametrize("mode", ["resize", "crop", "shortest"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (300, 31)])
def test_every_size_fits(mode: str, size: tuple[int, int]) -> None:
    assert fit(np.full((*size, 3), 7, np.uint8), mode, 24).shape == (24, 24, 3)
    assert (fit(np.full((*size, 3), 7, np.uint8), mode, 24) == 7).all()


def test_flip_views_are_mirrors(tmp_path: Path) -> None:
    images = open_split(configured(make(tmp_path), **{"dataset.augment": "flip"}), "train")
    plain, turned = images.pixels([0, 3]), images.pixels([0, 3], [1, 1])
    assert images.n_views == 2 and bool((plain.flip(3) == turned).all()) and not bool((plain == turned).all())
    assert bool((images.pixels([0, 3], [0, 1])[0] == plain[0]).all())


def test_validation_images_are_never_augmented(tmp_path: Path) -> None:
    images = open_split(configured(make(tmp_path), **{"dataset.augment": "flip_crop"}), "val")
    assert images.n_views == 1 and not images.view_of_epoch(np.arange(4), 3).any()


def test_crops_are_slices_of_the_larger_square_at_multiples_of_eight(tmp_path: Path) -> None:
    make(tmp_path, each=6)
    images = open_split(configured(tmp_path, **{"dataset.augment": "flip_crop"}), "train")
    wide = images.wide_pixels(range(12)).numpy()
    assert wide.shape[-1] == 32 + CROP_MARGIN
    seen = set()
    for view in range(1, images.n_views):
        pixels = images.pixels(range(12), [view] * 12).numpy()
        for i, (top, left, mirrored) in enumerate(zip(*images.crops(range(12), [view] * 12), strict=True)):
            assert top % CROP_STEP == 0 and left % CROP_STEP == 0
            part = wide[i][:, top : top + 32, left : left + 32]
            assert np.array_equal(pixels[i], part[:, :, ::-1] if mirrored else part)
            seen.add((top, left, mirrored))
    assert len(seen) > 25
    assert np.array_equal(
        images.pixels([5]).numpy()[0].transpose(1, 2, 0), fit(decode(images.frame["file"][5]), "resize", 32)
    )


def test_views_depend_on_seed_and_path_only(tmp_path: Path) -> None:
    make(tmp_path, each=40)
    images = open_split(configured(tmp_path, **{"dataset.augment": "flip_crop"}), "train")
    everything = np.arange(80)
    views = [images.view_of_epoch(everything, epoch) for epoch in range(50)]
    counts = np.bincount(np.concatenate(views), minlength=8)
    assert counts.min() > 0.8 * 500 and counts.max() < 1.2 * 500  # uniform over views
    part = images.subset(everything[::-2])
    assert np.array_equal(part.view_of_epoch(np.arange(40), 7), views[7][::-2])
    (tmp_path / "train/real/0.png").unlink()
    fewer = open_split(configured(tmp_path, **{"dataset.augment": "flip_crop"}), "train")
    left = images.frame["path"].isin(fewer.frame["path"]).to_numpy()
    assert np.array_equal(fewer.view_of_epoch(np.arange(79), 7), views[7][left])
    other = configured(tmp_path, **{"dataset.augment": "flip_crop", "training.seed": 1})
    assert not np.array_equal(open_split(other, "train").view_of_epoch(np.arange(79), 7), views[7][left])


# ---- image sets


@pytest.mark.parametrize("limit", [store.MEMORY_LIMIT, 0])
def test_pixels_are_the_same_from_memory_and_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(store, "MEMORY_LIMIT", limit)
    images = open_split(configured(make(tmp_path, each=5), **{"runtime.workers": 3}), "train")
    order = np.array([3, 0, 7, 3])
    pixels = images.pixels(order)
    assert pixels.shape == (4, 3, 32, 32) and str(pixels.dtype) == "torch.uint8"
    for i, row in enumerate(order):
        expected = fit(decode(images.frame["file"][row]), "resize", 32)
        assert np.array_equal(pixels[i].numpy().transpose(1, 2, 0), expected)


def test_the_caller_may_change_what_it_was_given(tmp_path: Path) -> None:
    images = open_split(configured(make(tmp_path), **{"dataset.augment": "flip"}), "train")
    first = images.pixels([0, 1]).clone()
    images.pixels([0, 1]).zero_()
    images.pixels([0, 1], [1, 1])
    assert bool((images.pixels([0, 1]) == first).all())


def test_unreadable_files_are_left_out_and_listed(tmp_path: Path) -> None:
    make(tmp_path, each=3)
    (tmp_path / "train/fake/0.png").write_bytes(b"")
    whole = (tmp_path / "train/real/1.png").read_bytes()
    (tmp_path / "train/real/1.png").write_bytes(whole[: len(whole) // 2])
    images = open_split(configured(tmp_path), "train")
    assert dict(images.unreadable.itertuples(index=False)) == {
        "train/fake/0.png": "empty file", "train/real/1.png": "truncated",
    }  # fmt: skip
    assert images.frame["path"].tolist() == [
        "train/fake/1.png", "train/fake/2.png", "train/real/0.png", "train/real/2.png",
    ]  # fmt: skip
    assert images.labels.tolist() == [1, 1, 0, 0] and len(images.groups) == 4
    for i, file in enumerate(images.frame["file"]):
        assert np.array_equal(
            images.pixels([i])[0].numpy().transpose(1, 2, 0), fit(decode(file), "resize", 32)
        )
    for file in (tmp_path / "train/real").iterdir():
        file.write_bytes(b"x")
    with pytest.raises(UserError, match="none of its 3 real images can be read"):
        open_split(configured(tmp_path), "train")


def test_readability_is_found_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, run = make(tmp_path / "data"), RunFolder(tmp_path / "reports/x")
    decoded: list[str] = []

    def counting(file: str) -> np.ndarray:
        decoded.append(file)
        return decode(file)

    monkeypatch.setattr("diag_lib.images.readability.decode", counting)
    open_split(configured(root), "train", run)
    assert len(decoded) == 4
    open_split(configured(root), "train", run)
    assert len(decoded) == 4
    put(root / "train/real/0.png", 5, (41, 44))
    assert len(open_split(configured(root), "train", run)) == 4 and len(decoded) == 5
    (cache,) = (tmp_path / "reports/.cache").iterdir()
    cache.write_bytes(b"PAR1 damaged")
    assert len(open_split(configured(root), "train", run)) == 4 and len(decoded) == 9


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where the cache folder should be")
    images = open_split(
        configured(make(tmp_path / "d"), **{"runtime.cache_dir": str(tmp_path / "occupied")}), "train"
    )
    assert len(images) == 4


def test_a_file_that_vanishes_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MEMORY_LIMIT", 0)
    images = open_split(configured(make(tmp_path)), "train")
    (tmp_path / "train/fake/0.png").unlink()
    with pytest.raises(UserError, match=r"'0\.png': missing file"):
        images.pixels([0])


def test_wrong_indices_and_views_are_refused(tmp_path: Path) -> None:
    images = open_split(configured(make(tmp_path)), "train")
    for index, view in ((4, 0), (-1, 0), (0, 1)):
        with pytest.raises(IndexError):
            images.pixels([index], [view])


def test_reencoding_happens_before_fitting_and_to_one_class_only(tmp_path: Path) -> None:
    settings = configured(make(tmp_path))
    plain = open_split(settings, "val")
    only_real = open_split(settings, "val", reencode=Reencode("JPEG", 20, 2, label=0))
    as_tuple = open_split(settings, "val", reencode=("JPEG", 20, 2))
    for i, label in enumerate(plain.labels):
        expected = fit(Reencode("JPEG", 20, 2)(decode(plain.frame["file"][i]), 0), "resize", 32)
        changed, untouched = as_tuple.pixels([i])[0].numpy(), plain.pixels([i])[0].numpy()
        assert np.array_equal(changed.transpose(1, 2, 0), expected) and not np.array_equal(changed, untouched)
        assert np.array_equal(only_real.pixels([i])[0].numpy(), changed if label == 0 else untouched)
    assert plain.transform != as_tuple.transform


def test_epoch_batches_cover_everything_once_and_differ() -> None:
    batches = epoch_batches(10, 4, seed=3, epoch=0)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(np.concatenate(batches)) == list(range(10))
    assert all(np.array_equal(a, b) for a, b in zip(batches, epoch_batches(10, 4, 3, 0), strict=True))
    assert not np.array_equal(np.concatenate(batches), np.concatenate(epoch_batches(10, 4, 3, 1)))


@given(n=st.integers(1, 200), size=st.integers(1, 70))
def test_no_image_of_an_epoch_is_lost_or_left_alone(n: int, size: int) -> None:
    batches = epoch_batches(n, size, seed=1, epoch=2)
    assert len(batches) == steps_of_epoch(n, size)
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert all(len(batch) == size for batch in batches[:-1])
    assert size == 1 or n == 1 or all(len(batch) > 1 for batch in batches)


def test_to_input_normalises() -> None:
    import torch

    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    x = to_input(pixels, [0.5, 0.5, 0.1], [0.5, 0.25, 0.2])
    assert torch.allclose(x.flatten(), torch.tensor([-1.0, 2.0, 0.5])) and x.dtype == torch.float32


# ---- groups and hashes


def test_copies_of_a_picture_share_a_group(tmp_path: Path) -> None:
    make(tmp_path, each=6)
    original = Image.fromarray(picture(0, (90, 120)))
    original.save(tmp_path / "train/real/0.png")
    original.save(tmp_path / "train/fake/copy.jpg", quality=60)
    original.resize((60, 45)).save(tmp_path / "train/fake/half.png")
    original.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "train/real/mirror.png")
    images = open_split(configured(tmp_path), "train")
    group = dict(zip(images.frame["path"], images.groups, strict=True))
    same = {
        group[f"train/{name}"] for name in ("real/0.png", "fake/copy.jpg", "fake/half.png", "real/mirror.png")
    }
    assert len(same) == 1 and len(set(group.values())) == 12
    part = images.subset(images.labels == 1)
    assert np.array_equal(part.groups, images.groups[images.labels == 1])


@given(
    hnp.arrays(
        np.uint16,
        st.tuples(st.integers(0, 12), st.just(16)),
        elements=st.sampled_from([0, 1, 3, 7, 255, 65535]),
    ),
    st.integers(0, 15),
)
@hypothesis_settings(max_examples=80, deadline=None)
def test_the_band_join_equals_brute_force(hashes: np.ndarray, most: int) -> None:
    def distance(a: np.ndarray, b: np.ndarray) -> int:
        return int(np.unpackbits((a ^ b).view(np.uint8)).sum())

    expected = {
        (i, j, distance(hashes[i], hashes[j]))
        for i in range(len(hashes)) for j in range(i + 1, len(hashes))
        if distance(hashes[i], hashes[j]) <= most
    }  # fmt: skip
    i, j, d, skipped = hashing.near_pairs(hashes, None, most)
    assert set(zip(i.tolist(), j.tolist(), d.tolist(), strict=True)) == expected and skipped == 0
    half = len(hashes) // 2
    i, j, d, _ = hashing.near_pairs(hashes[:half], hashes[half:], most)
    across = {(a, b - half, c) for a, b, c in expected if a < half <= b}
    assert set(zip(i.tolist(), j.tolist(), d.tolist(), strict=True)) == across


def test_smooth_pictures_whose_hashes_agree_by_chance_are_not_one_picture() -> None:
    """Two slopes give equal hashes; only their thumbnails tell them apart."""
    x = np.arange(64)
    steep, shallow = np.where(x < 32, 250 - 7 * x, 26 - x // 4), 250 - 2 * x
    pictures = [
        np.repeat(np.tile(v, (64, 1))[:, :, None], 3, axis=2).astype(np.uint8) for v in (steep, shallow)
    ]
    thumbnails = np.stack([hashing.thumbnail(pixels) for pixels in pictures])
    assert len(hashing.near_pairs(hashing.difference_hash(thumbnails))[0]) == 1
    assert not hashing.same_picture(thumbnails[:1], thumbnails[1:]).any()


def test_flat_pictures_have_no_stable_hash() -> None:
    flat = np.stack([hashing.thumbnail(np.full((32, 32, 3), v, np.uint8)) for v in (10, 12, 200)])
    assert not hashing.hashable(flat).any() and len(set(hashing.picture_groups(flat))) == 3


def test_the_view_draws_are_what_they_were() -> None:
    """Cached teacher maps are keyed by views: another draw needs another cache."""
    from diag_lib.images.views import crop_of_view, path_keys, view_of_epoch

    keys = path_keys([f"{i}.png" for i in range(100)], 42)
    drawn = np.stack(
        [view_of_epoch(keys, e, 8) for e in range(5)] + list(crop_of_view(keys, np.arange(100))[:2])
    )
    digest = hashlib.sha256(drawn.astype("<i8").tobytes()).hexdigest()[:16]
    assert digest == "997774d326eecf96"
