"""Are images in Arrow, parquet and tar files read as those in folders are, and bad shards refused in one line?"""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from diag_lib import audit
from diag_lib import settings as settings_module
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.images import beside_run, decode, read_table, unpack
from diag_lib.images.tar_shards import MAX_TEXT

SPLITS = {"train": 8, "validation": 6}


def encoded(seed: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def configured(root: Path, cache: Path, **keys: Any) -> settings_module.Settings:
    fixed = {"dataset.root": str(root), "dataset.image_size": 24, "runtime.cache_dir": str(cache)}
    return settings_module.load("base", {**fixed, **keys})


def table(root: Path, **keys: Any) -> pd.DataFrame:
    return read_table(configured(root, root.parent / "cache", **keys)).frame


# ---- what the tests write, as `datasets` and `webdataset` write it


def columns(start: int, n: int, label: Callable[[bool], Any], struct: bool = True) -> dict[str, pa.Array]:
    """n rows, even ones real; each image's seed is its number."""
    images: list[Any] = [encoded(start + at) for at in range(n)]
    if struct:
        images = [{"bytes": image, "path": f"no {at}/x.png"} for at, image in enumerate(images)]
    return {
        "image": pa.array(
            images, pa.struct({"bytes": pa.binary(), "path": pa.string()}) if struct else pa.binary()
        ),
        "label": pa.array([label(bool(at % 2)) for at in range(n)]),
    }


def hugging_face(names: Sequence[str]) -> dict[str, str]:
    label = {"names": list(names), "_type": "ClassLabel"}
    return {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})}


def write_arrow(folder: Path, data: pa.Table, batch: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "data-00000-of-00001.arrow"
    with pa.ipc.new_stream(file, data.schema) as writer:
        writer.write_table(data, max_chunksize=batch)
    state = {"_data_files": [{"filename": file.name}], "_split": folder.name, "_indices_data_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "cache-0123.arrow").write_bytes(b"of a map() that was interrupted")
    return file


def saved_to_disk(root: Path, names: Sequence[str] = ("fake", "real")) -> Path:
    for at, (split, n) in enumerate(SPLITS.items()):
        data = pa.table(columns(100 * at, n, lambda fake: names.index("fake" if fake else "real")))
        write_arrow(root / split, data.replace_schema_metadata(hugging_face(names)))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": list(SPLITS)}))
    return root


def as_parquet(root: Path, label: Callable[[bool], Any] = int, **kinds: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for at, (split, n) in enumerate(SPLITS.items()):
        data = pa.table(columns(100 * at, n, label, **kinds))
        parquet.write_table(data, root / f"{split}-00000-of-00001.parquet", row_group_size=5)
    return root


Member = tuple[str | tarfile.TarInfo, bytes]


def write_tar(file: Path, members: Sequence[Member]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = info.size if isinstance(name, tarfile.TarInfo) else len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


def samples(start: int, n: int) -> list[Member]:
    members: list[Member] = []
    for at in range(n):
        key = f"a/{start + at:04d}"
        fake = at % 2
        members.append((f"{key}.png", encoded(start + at)))
        members.append((f"{key}.cls", b"%d\n" % fake) if at < 4 else _json(key, fake))
        members.append((f"{key}.txt", b"a caption"))
    return members


def _json(key: str, fake: int) -> Member:
    return f"{key}.json", json.dumps({"label": ("real", "fake")[fake], "source": "sdxl"}).encode()


def webdataset(root: Path) -> Path:
    write_tar(root / "train-000000.tar", samples(0, 6))
    write_tar(root / "train-000001.tar", samples(6, 2))
    write_tar(root / "validation-000000.tar", samples(100, 6))
    return root


# ---- they are read


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "arrow, fake first": saved_to_disk,
    "arrow, real first": lambda root: saved_to_disk(root, ("real", "fake")),
    "parquet of structs, numbers": as_parquet,
    "parquet of bytes, words": lambda root: as_parquet(
        root, lambda fake: "Fake" if fake else "Real", struct=False
    ),
    "tar": webdataset,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_image_has_its_label_split_and_bytes(tmp_path: Path, layout: str) -> None:
    frame = table(LAYOUTS[layout](tmp_path / "set"))
    assert frame.groupby("split").size().to_dict() == {"train": 8, "val": 6}
    for split, start in (("train", 0), ("val", 100)):
        rows = frame[frame["split"] == split]
        for at, (file, label) in enumerate(zip(rows["file"], rows["label"], strict=True)):
            assert label == at % 2
            assert Path(file).read_bytes() == encoded(start + at)
            assert decode(file).shape == (24, 24, 3)


def test_sources_come_from_a_column_or_the_json(tmp_path: Path) -> None:
    frame = table(webdataset(tmp_path / "tars"))
    assert set(frame["source"]) == {"", "sdxl"}
    root = tmp_path / "rows"
    root.mkdir()
    for split in SPLITS:
        data = pa.table({**columns(0, 4, int), "generator": ["", "sd", None, "sd"]})
        parquet.write_table(data, root / f"{split}.parquet")
    assert table(root).groupby("label")["source"].unique().map(list).to_dict() == {0: [""], 1: ["sd"]}


@pytest.mark.parametrize("name", ["one.tar", "one.parquet", "one.arrow"])
def test_a_set_without_split_names_has_a_quarter_set_aside_and_says_so(tmp_path: Path, name: str) -> None:
    data = pa.table(columns(0, 16, int))
    if name.endswith("tar"):
        write_tar(tmp_path / name, samples(0, 16))
    elif name.endswith("parquet"):
        parquet.write_table(data, tmp_path / name)
    else:
        write_arrow(tmp_path, data).rename(tmp_path / name)
    found = read_table(configured(tmp_path / name, tmp_path / "cache"))
    assert found.frame.groupby(["split", "label"]).size().tolist() == [6, 6, 2, 2]
    assert any("set aside as validation" in reason for _, reason in found.notes)


def test_numbers_without_class_names_are_noted(tmp_path: Path) -> None:
    notes = read_table(configured(as_parquet(tmp_path / "set"), tmp_path / "cache")).notes
    again = read_table(configured(tmp_path / "set", tmp_path / "cache")).notes
    assert notes == again
    assert [reason for _, reason in notes] == ["labels without class names, taken as 0 = real, 1 = fake"] * 2


def test_shards_of_other_splits_are_noted_not_unpacked(tmp_path: Path) -> None:
    root = webdataset(tmp_path / "set")
    write_tar(root / "calibration-0.tar", samples(200, 2))
    found = read_table(configured(root, tmp_path / "cache"))
    assert ("calibration-0.tar", "no split in its name, not read") in found.notes
    assert len(found.frame) == 14


def test_folders_with_an_archive_beside_them_stay_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("real", "fake"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            (tmp_path / "set" / split / label / "a.png").write_bytes(encoded(0))
    write_tar(tmp_path / "set" / "train.tar", samples(0, 4))
    frame = table(tmp_path / "set")
    assert len(frame) == 4 and frame["path"].tolist()[0] == "train/fake/a.png"


# ---- where they are unpacked


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    found = (file for file in folder.rglob("*") if file.is_file() and file.name != "lock")
    return {str(f.relative_to(folder)): (f.stat().st_ino, f.stat().st_mtime_ns) for f in found}


def test_unpacked_once_never_into_the_dataset_and_anew_when_a_shard_changes(tmp_path: Path) -> None:
    root, cache = saved_to_disk(tmp_path / "set"), tmp_path / "cache"
    before = files_below(root)
    first = read_table(configured(root, cache))
    written = files_below(cache)
    assert read_table(configured(root, cache)).fingerprint == first.fingerprint
    assert files_below(cache) == written and files_below(root) == before
    os.utime(root / "train" / "data-00000-of-00001.arrow", ns=(5, 5))
    assert read_table(configured(root, cache)).fingerprint != first.fingerprint


def test_what_was_stopped_or_deleted_is_filled_in_and_the_same_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configured(webdataset(tmp_path / "set"), tmp_path / "cache")
    whole = read_table(configured(tmp_path / "set", tmp_path / "other"))
    put, written = unpack._put, []

    def stops(file: Path, content: bytes, mtime_ns: int) -> None:
        if len(written) == 9:
            raise KeyboardInterrupt
        put(file, content, mtime_ns)
        written.append(file)

    monkeypatch.setattr(unpack, "_put", stops)
    with pytest.raises(KeyboardInterrupt):
        read_table(settings)
    monkeypatch.undo()
    kept = {file: file.stat().st_ino for file in written}
    again = read_table(settings)
    assert again.fingerprint == whole.fingerprint
    assert {file: file.stat().st_ino for file in written} == kept
    written[3].unlink()
    written[5].write_bytes(b"half")
    assert read_table(settings).fingerprint == whole.fingerprint
    assert written[5].read_bytes() != b"half" and written[3].is_file()


def test_a_run_unpacks_beside_its_folder_and_folders_change_no_setting(tmp_path: Path) -> None:
    packed = settings_module.load("base", {"dataset.root": str(webdataset(tmp_path / "set"))})
    run = RunFolder(tmp_path / "reports" / "x")
    assert (
        beside_run(packed, run.root, run.default_cache).runtime.cache_dir == tmp_path / "reports" / ".cache"
    )
    (tmp_path / "photos" / "train" / "real").mkdir(parents=True)
    plain = packed.with_overrides({"dataset.root": str(tmp_path / "photos")})
    assert beside_run(plain, run.root, run.default_cache) is plain
    with pytest.raises(UserError, match="inside the dataset"):
        beside_run(packed, tmp_path / "set" / "run", run.default_cache)
    with pytest.raises(UserError, match="inside the dataset"):
        read_table(packed.with_overrides({"runtime.cache_dir": str(tmp_path / "set" / "cache")}))


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the cache should be")
    refused(webdataset(tmp_path / "set"), "runtime.cache_dir")


# ---- bad and hostile shards


def refused(root: Path, *expected: str) -> None:
    with pytest.raises(UserError) as error:
        table(root)
    line = str(error.value)
    assert "\n" not in line and len(line) < 500
    for part in expected:
        assert part in line, line
    assert not list(root.parent.parent.glob("evil*")), "a member left the dataset's surroundings"
    left = list((root.parent / "cache").rglob("*.png")) if (root.parent / "cache").is_dir() else []
    assert not [file for file in left if "train" in str(file)], "a refused shard leaves nothing behind"


def special(name: str, kind: bytes, target: str = "", size: int = 0) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info, bytes(size)


BAD_MEMBERS: dict[str, tuple[list[Member], tuple[str, ...]]] = {
    "parent": ([("../../evil.png", encoded(1))], ("leads out", "evil")),
    "parent in the middle": ([("a/../../evil.png", encoded(1))], ("leads out",)),
    "absolute": ([("/tmp/evil.png", encoded(1))], ("leads out",)),
    "symbolic link": ([special("evil.png", tarfile.SYMTYPE, "/etc/passwd")], ("no plain file",)),
    "hard link": ([special("evil.png", tarfile.LNKTYPE, "/etc/passwd")], ("no plain file",)),
    "device": ([special("evil.png", tarfile.CHRTYPE)], ("no plain file",)),
    "pipe": ([special("evil.cls", tarfile.FIFOTYPE)], ("no plain file",)),
    "huge label": ([("a.cls", b"0" * (MAX_TEXT + 1))], ("'a.cls'", "limit")),
    "huge name": ([special("x", tarfile.XHDTYPE, size=MAX_TEXT + 1)], ("damaged",)),
    "unknown class": (
        [("a.png", encoded(1)), ("a.cls", b"dog")],
        ("sample 'a'", "'dog' is not allowed", "real"),
    ),
    "no label": ([("a.png", encoded(1))], ("sample 'a'", "no label")),
    "json without label": ([("a.png", encoded(1)), ("a.json", b"{}")], ('no "label"',)),
    "json is no json": ([("a.png", encoded(1)), ("a.json", b"[" * 90_000)], ("not readable",)),
    "two images": ([("a.png", encoded(1)), ("a.jpg", encoded(1))], ("two images",)),
    "twice": ([("a.png", encoded(1)), ("a.png", encoded(1))], ("stands twice",)),
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_bad_members_are_refused_by_name(tmp_path: Path, case: str) -> None:
    members, expected = BAD_MEMBERS[case]
    root = webdataset(tmp_path / "in" / "set")
    write_tar(root / "train-000000.tar", [*samples(0, 2), *members])
    refused(root, "train-000000.tar", *expected)


def test_a_member_that_claims_a_terabyte_is_refused_unread(tmp_path: Path) -> None:
    root = webdataset(tmp_path / "in" / "set")
    info = tarfile.TarInfo("evil.png")
    info.size = 2**40
    (root / "train-000000.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    refused(root, "evil.png", "1,099,511,627,776 bytes", "limit")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.72, 0.9])
@pytest.mark.parametrize("kind", ["tar", "arrow", "parquet"])
def test_a_shard_that_was_cut_off_is_one_line(tmp_path: Path, kind: str, share: float) -> None:
    make = {"tar": webdataset, "arrow": saved_to_disk, "parquet": as_parquet}[kind]
    root = make(tmp_path / "in" / "set")
    file = next(f for f in sorted(root.rglob(f"*.{kind}")) if "train" in str(f) and "cache-" not in f.name)
    content = file.read_bytes()
    end = content.rstrip(b"\0") if kind == "tar" else content  # a tar is filled up with zeros
    file.write_bytes(content[: int(len(end) * share)])
    refused(root, "train", "cut off")


def test_a_tar_cut_between_two_members_is_noticed(tmp_path: Path) -> None:
    root = webdataset(tmp_path / "in" / "set")
    file = root / "train-000000.tar"
    with tarfile.open(file) as archive:
        second = archive.getmembers()[3].offset
    file.write_bytes(file.read_bytes()[:second])
    refused(root, "cut off")


def test_flipped_bytes_end_in_one_line_or_in_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    for kind, make in (("arrow", saved_to_disk), ("parquet", as_parquet), ("tar", webdataset)):
        root = make(tmp_path / kind)
        file = next(
            f for f in sorted(root.rglob(f"*.{kind}")) if "train" in str(f) and "cache-" not in f.name
        )
        content = np.frombuffer(file.read_bytes(), np.uint8)
        for _ in range(12):
            damaged = content.copy()
            damaged[rng.integers(0, len(content), 40)] ^= rng.integers(1, 256, 40).astype(np.uint8)
            file.write_bytes(damaged.tobytes())
            try:
                assert len(table(root)) <= 14
            except UserError as error:
                assert "\n" not in str(error)


def rewritten(root: Path, data: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    parquet.write_table(
        pa.table(data).replace_schema_metadata(metadata), root / "train-00000-of-00001.parquet"
    )
    return root


def test_bad_columns_are_refused_by_name(tmp_path: Path) -> None:
    root, good = as_parquet(tmp_path / "in" / "set"), columns(0, 4, int)
    refused(
        rewritten(root, {"picture": pa.array(["a"]), "label": [0]}), "no column of images", "picture, label"
    )
    refused(rewritten(root, {"image": good["image"], "kind": [0] * 4}), "no column of labels", "image, kind")
    refused(
        rewritten(root, {**good, "label": ["real", "fake", "cat", "real"]}), "row 2", "'cat' is not allowed"
    )
    refused(rewritten(root, {**good, "label": [0, None, 1, 1]}), "row 1", "label is missing")
    refused(rewritten(root, {**good, "label": [0, 2, 1, 1]}), "row 1", "'2' is not allowed")
    refused(rewritten(root, good, hugging_face(["real", "dog"])), "its classes", "'dog'")
    refused(
        rewritten(root, {**good, "label": [0, -1, 1, 1]}, hugging_face(["fake", "real"])), "row 1", "no class"
    )
    elsewhere = pa.array([{"bytes": None, "path": "/etc/passwd"}], good["image"].type)
    refused(rewritten(root, {"image": elsewhere, "label": [0]}), "row 0", "does not hold it")


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    root = saved_to_disk(tmp_path / "in" / "set")
    state = {"_data_files": [{"filename": "../../evil.arrow"}]}
    (root / "train" / "state.json").write_text(json.dumps(state))
    refused(root, "state.json", "outside its folder")
    (root / "train" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-9.arrow"}]}))
    refused(root, "state.json", "data-9.arrow", "missing")
    shards = as_parquet(tmp_path / "in" / "rows")
    (shards / "train-00000-of-00001.parquet").rename(shards / "train-00000-of-00002.parquet")
    refused(shards, "train-00001-of-00002", "missing")
    write_tar(shards / "x.tar", samples(0, 2))
    (shards / "train-00000-of-00002.parquet").unlink()
    refused(shards, ".parquet and .tar")


def test_an_image_that_is_empty_or_broken_is_counted_not_dropped(tmp_path: Path) -> None:
    root, good = as_parquet(tmp_path / "set"), columns(0, 4, int)
    images = [None, {"bytes": b"no image", "path": None}, *good["image"].to_pylist()[2:]]
    rewritten(root, {**good, "image": pa.array(images, good["image"].type)})
    settings = configured(root, tmp_path / "cache")
    evidence = audit.run(settings, tmp_path / "run", progress=False).evidence
    assert evidence.numbers["n_images"] == 10
    assert evidence.finding("audit.unreadable").value == pytest.approx(2 / 10)  # type: ignore[union-attr]


# ---- the command line


@pytest.mark.parametrize("layout", ["arrow, fake first", "tar"])
def test_the_audit_runs_on_them(tmp_path: Path, layout: str) -> None:
    root = LAYOUTS[layout](tmp_path / "set")
    command = [sys.executable, "-m", "diag_lib.cli", "run", "--steps", "01", "--set", f"dataset.root={root}"]
    done = subprocess.run(
        [*command, "--out", "out/run"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    evidence = json.loads((tmp_path / "out" / "run" / "evidence" / "audit.json").read_text())
    assert evidence["numbers"]["n_images"] == 14
    assert (tmp_path / "out" / ".cache" / "unpacked").is_dir()
    assert str(tmp_path) not in (tmp_path / "out" / "run" / "01_audit.html").read_text()
