"""Are images in a store read as those on disk are, with leave only, fetched once, and hostile names refused?

`memory://` and `file://` always run; the same on S3 runs against a server of this process where moto and s3fs are.
"""

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from diag_lib import settings as settings_module
from diag_lib import workbook
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.images import ImageTable, beside_run, cache, read_table, refuse_missing, remote
from diag_lib.images.sources import stat_of
from diag_lib.widgets import settings_panel
from diag_lib.workbook import run_workbook

S3_NEEDS = ("moto", "boto3", "flask", "s3fs")


def encoded(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


FOLDERS = {
    f"{split}/{kind}/{at}.png": encoded(at + 10 * (kind == "fake") + 100 * (split == "val"))
    for split in ("train", "val")
    for kind in ("real", "fake")
    for at in range(2)
}


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """The store of `memory://`, empty before and after."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()


def put(store: MemoryFileSystem, objects: dict[str, bytes], top: str = "/set") -> None:
    for name, content in objects.items():
        store.pipe(f"{top}/{name}", content)


def configured(url: str, place: Path, **keys: Any) -> settings_module.Settings:
    fixed = {"dataset.root": url, "dataset.remote": True, "runtime.cache_dir": str(place / "cache")}
    return settings_module.load("base", {**fixed, **keys})


def contents(table: ImageTable) -> dict[str, bytes]:
    return {row.path: Path(row.file).read_bytes() for row in table.frame.itertuples()}


def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What is asked of `memory://` from now on: (path, start, end)."""
    asked: list[tuple[str, int, int]] = []
    real = MemoryFileSystem.cat_file

    def cat_file(self: Any, path: str, start: Any = None, end: Any = None, **rest: Any) -> bytes:
        asked.append((path, start, end))
        return real(self, path, start=start, end=end, **rest)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return asked


# ---- only with leave


def test_without_leave_nothing_is_contacted_and_the_line_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda *a, **k: pytest.fail("contacted"))
    refused = configured("s3://bucket/photos", tmp_path, **{"dataset.remote": False})
    for act in (
        lambda: read_table(refused),
        lambda: refuse_missing(refused),
        lambda: run_workbook(refused, tmp_path / "run"),
        lambda: workbook.start("audit", "base", tmp_path / "run", {"dataset.root": "s3://bucket/photos"}),
    ):
        with pytest.raises(UserError, match=r"^dataset\.root: s3:// .*\(--set dataset\.remote=true\)$"):
            act()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://AKIA:geheim@bucket/photos", "could be a secret"),
        ("https://geheim@host/a.tar", "could be a secret"),
        ("https://host/a.tar?X-Amz-Signature=geheim", "could be a secret"),
        ("zip://a.zip", "is not allowed; allowed: a path, or one URL of s3"),
        ("sftp://host/photos", "is not allowed"),
        ("s3://bucket::file:///etc", "is not allowed"),
        ("s3://bucket/\x1b[31m", "is not allowed"),
    ],
)
def test_addresses_that_hold_secrets_or_do_more_than_read_are_refused(url: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        settings_module.load("base", {"dataset.root": url, "dataset.remote": True})
    assert said in str(error.value) and "dataset.root" in str(error.value)
    assert "geheim" not in str(error.value) and str(error.value).isprintable()


@pytest.mark.parametrize("key", ["dataset.curation", "history", "runtime.cache_dir", "runtime.weights_dir"])
def test_only_the_dataset_may_be_remote(key: str) -> None:
    with pytest.raises(UserError, match=f"{key}: a path on this machine is expected"):
        settings_module.load("base", {key: "s3://bucket/x"})


def test_a_store_whose_package_is_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"s3:// needs a package .* pip install 'diag-lib\[s3\]'"):
        read_table(configured("s3://bucket/photos", tmp_path))


@pytest.mark.parametrize("given", ["s3://bucket/runs", Path("s3://bucket/runs"), "gs://b/r", "file:///tmp/r"])
def test_a_run_folder_is_local(given: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for act in (
        lambda: RunFolder(given),
        lambda: workbook.start("audit", "base", given),
        lambda: settings_panel("base", given),
    ):
        with pytest.raises(UserError, match=r"^run folder: \w+:// is an address.*name a folder"):
            act()
    assert not list(tmp_path.iterdir())


def test_out_is_local_on_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diag_lib.cli", "run", "base", "--out", "s3://bucket/runs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "a run folder lies on this machine" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


# ---- what is read


def test_a_remote_folder_is_read_as_a_local_one(tmp_path: Path, memory: MemoryFileSystem) -> None:
    put(memory, {**FOLDERS, "readme.txt": b"words"})
    found = read_table(configured("memory://set", tmp_path))
    assert contents(found) == FOLDERS
    assert found.frame.groupby(["split", "label"]).size().tolist() == [2, 2, 2, 2]
    assert [note for note in found.notes if note[0] == "readme.txt"] == [("readme.txt", "not an image")]


def test_a_remote_table_brings_what_it_names_and_nothing_else(
    tmp_path: Path, memory: MemoryFileSystem
) -> None:
    rows = [f"img/{name},{name.split('/')[1]},{name.split('/')[0]}" for name in FOLDERS]
    put(memory, {f"img/{name}": content for name, content in FOLDERS.items()})
    put(memory, {"m.csv": "\n".join(["path,label,split", *rows, "img/gone.png,real,val"]).encode()})
    put(memory, {"img/other.png": encoded(1)})
    found = read_table(configured("memory://set/m.csv", tmp_path))
    there = found.frame[found.frame["size"] >= 0]
    assert {row.path: Path(row.file).read_bytes() for row in there.itertuples()} == {
        f"img/{name}": content for name, content in FOLDERS.items()
    }
    assert found.frame[found.frame["size"] < 0]["path"].tolist() == ["img/gone.png"]
    assert not list(tmp_path.rglob("other.png"))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_remote_shards_are_copied_then_unpacked(tmp_path: Path, memory: MemoryFileSystem, kind: str) -> None:
    from test_packed_images import as_parquet, samples, webdataset, write_tar

    root = {"tar": webdataset, "parquet": as_parquet}[kind](tmp_path / "here")
    put(memory, {file.name: file.read_bytes() for file in root.iterdir()})
    found = read_table(configured("memory://set", tmp_path))
    local = read_table(configured(str(root), tmp_path / "other"))
    assert sorted(contents(found).values()) == sorted(contents(local).values())
    assert found.frame["label"].tolist() == local.frame["label"].tolist()
    one = next(file for file in sorted(root.iterdir()) if "train" in file.name)
    one = write_tar(one, samples(0, 16)) if kind == "tar" else one
    put(memory, {f"one.{kind}": one.read_bytes()}, "/single")
    single = read_table(configured(f"memory://single/one.{kind}", tmp_path))
    assert set(single.frame["split"]) == {"train", "val"}


# ---- fetched once


def test_only_what_changed_is_fetched_again_and_what_is_gone_goes(
    tmp_path: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(memory, FOLDERS)
    settings = configured("memory://set", tmp_path)
    asked = fetched(monkeypatch)
    first = read_table(settings)
    assert len(asked) == len(FOLDERS)
    asked.clear()
    assert read_table(settings).fingerprint == first.fingerprint and not asked
    put(memory, {"train/real/0.png": FOLDERS["train/real/1.png"][::-1]})  # same size, another version
    memory.rm("/set/val/fake/1.png")
    put(memory, {"val/fake/new.png": encoded(7)})
    second = read_table(settings)
    assert sorted(path for path, *_ in asked) == ["/set/train/real/0.png", "/set/val/fake/new.png"]
    assert second.fingerprint != first.fingerprint
    paths = set(second.frame["path"])
    assert "val/fake/1.png" not in paths and "val/fake/new.png" in paths
    assert contents(second)["train/real/0.png"] == FOLDERS["train/real/1.png"][::-1]


def test_a_stopped_copy_goes_on_inside_the_file(
    tmp_path: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 100)
    monkeypatch.setattr(remote, "WORKERS", 1)
    put(memory, FOLDERS)
    settings = configured("memory://set", tmp_path)
    real, count = remote._Store.read, [0]

    def stops(self: Any, item: Any, start: int, end: int) -> bytes:
        count[0] += 1
        if count[0] == 30:
            raise ConnectionError("cut")
        return real(self, item, start, end)

    monkeypatch.setattr(remote._Store, "read", stops)
    with pytest.raises((UserError, ConnectionError)):
        read_table(settings)
    monkeypatch.setattr(remote._Store, "read", real)
    asked = fetched(monkeypatch)
    assert contents(read_table(settings)) == FOLDERS
    blocks = sum(-(-len(content) // 100) for content in FOLDERS.values())
    assert 0 < len(asked) <= blocks - 29  # other files may have come before the copy stopped
    assert asked[0][1] > 0  # the file that was cut goes on where it was cut
    assert not list((tmp_path / "cache").rglob("partial"))


def test_a_store_that_fails_is_one_line_without_its_words(
    tmp_path: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(memory, FOLDERS)

    def fails(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("https://host/?token=geheim")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fails)
    with pytest.raises(
        UserError, match=r"cannot be read \(RuntimeError\).*the same command continues"
    ) as error:
        read_table(configured("memory://set", tmp_path))
    assert "geheim" not in str(error.value)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *a, **k: b"short")
    with pytest.raises(UserError, match="another length"):
        read_table(configured("memory://set", tmp_path))
    with pytest.raises(UserError, match="there is nothing at this memory:// address"):
        read_table(configured("memory://absent", tmp_path))


def test_too_little_room_is_said_before_anything_is_fetched(
    tmp_path: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(memory, FOLDERS)
    asked = fetched(monkeypatch)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda place: SimpleNamespace(free=100))
    with pytest.raises(UserError, match=r"copying needs about .* GB are free"):
        read_table(configured("memory://set", tmp_path))
    assert not asked


# ---- hostile names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../evil.png", "leaves the folder"),
        ("train/../../evil.png", "leaves the folder"),
        ("train//evil.png", "has an empty part"),
        ("train/./evil.png", "has an empty part"),
        ("train/real/0.png/evil.png", "both an object and a folder"),
        ("train/real/evil\0.png", "has an empty part"),
        ("train/real/" + "e" * 300 + ".png", "too long"),
        ("a/" * 70 + "evil.png", "too deep"),
    ],
)
def test_names_that_leave_collide_or_fit_no_disk_are_refused(
    tmp_path: Path, memory: MemoryFileSystem, name: str, said: str
) -> None:
    put(memory, FOLDERS)
    memory.store[f"/set/{name}"] = memory.store["/set/train/real/1.png"]
    with pytest.raises(UserError, match=said) as error:
        read_table(configured("memory://set", tmp_path / "in"))
    assert str(error.value).isprintable()
    assert not list(tmp_path.rglob("*evil*"))


def test_two_names_that_are_one_on_this_disk_are_refused(
    tmp_path: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(memory, {**FOLDERS, "train/real/A.png": encoded(1), "train/real/a.png": encoded(2)})
    assert {"train/real/A.png", "train/real/a.png"} <= set(
        contents(read_table(configured("memory://set", tmp_path)))
    )
    home = next((tmp_path / "cache" / "remote").iterdir())
    (home / "LOCK").touch()  # as on a disk that takes upper and lower case for the same
    with pytest.raises(UserError, match="would be one file on this disk"):
        read_table(configured("memory://set", tmp_path))


def test_control_characters_are_spelled_out_and_still_opened(
    tmp_path: Path, memory: MemoryFileSystem
) -> None:
    put(memory, {**FOLDERS, "train/real/\x1b[2J\u202egnp.png": encoded(3)})
    found = contents(read_table(configured("memory://set", tmp_path)))
    assert found["train/real/\\u001b[2J\\u202egnp.png"] == encoded(3)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/etc/passwd", "is absolute"),
        ("s3://other/a.png", "is absolute"),
        ("../../etc/passwd", "leaves the manifest's folder"),
        ("C:\\Users\\a.png", "is absolute"),
    ],
)
def test_a_remote_table_names_no_file_of_this_machine(
    tmp_path: Path, memory: MemoryFileSystem, path: str, said: str
) -> None:
    put(
        memory,
        {"m.csv": f"path,label,split\na.png,real,train\n{path},fake,train\n".encode(), "a.png": encoded(1)},
    )
    with pytest.raises(UserError, match=rf"m\.csv, row 3: .*{said}"):
        read_table(configured("memory://set/m.csv", tmp_path))


# ---- from end to end


def on_disk(root: Path) -> Path:
    for name, content in FOLDERS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def audited(url: str, place: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diag_lib.cli", "run", "--steps", "01", "--out", "out/run"]
    command += [
        "--set",
        f"dataset.root={url}",
        "--set",
        "dataset.remote=true",
        "--set",
        "dataset.image_size=16",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_run_reads_the_copy_and_its_pages_tell_no_address(tmp_path: Path) -> None:
    url = on_disk(tmp_path / "hidden-place").as_uri()
    done = audited(url, tmp_path)
    assert done.returncode == 0, done.stderr
    check_run(tmp_path / "out", "hidden-place/")
    before = {file: stat_of(str(file)) for file in (tmp_path / "out" / ".cache" / "remote").rglob("*.png")}
    again = audited(url, tmp_path)
    assert again.returncode == 0 and "kept, its inputs have not changed" in again.stderr
    assert before == {file: stat_of(str(file)) for file in before} and len(before) == len(FOLDERS)
    source = tmp_path / "hidden-place"
    assert {file.relative_to(source).as_posix() for file in source.rglob("*.*")} == set(FOLDERS)


def check_run(out: Path, secret: str) -> None:
    run = out / "run"
    assert json.loads((run / "evidence" / "audit.json").read_text())["numbers"]["n_images"] == len(FOLDERS)
    for file in [run / "run.json", *run.glob("*.html"), *run.glob("evidence/*.json")]:
        assert secret not in file.read_text(encoding="utf-8"), file.name
        assert "://bucket" not in file.read_text(encoding="utf-8"), file.name
    kept = settings_module.load(run / "settings.yaml")
    assert isinstance(kept.dataset.root, Path) and kept.dataset.root.is_dir()


def test_the_cache_may_not_lie_in_the_dataset(tmp_path: Path) -> None:
    root = on_disk(tmp_path / "set")
    with pytest.raises(UserError, match="inside the dataset"):
        read_table(configured(root.as_uri(), tmp_path, **{"runtime.cache_dir": str(root / "cache")}))
    assert not (root / "cache").exists()


def test_a_run_names_the_copy_in_its_settings(tmp_path: Path, memory: MemoryFileSystem) -> None:
    put(memory, FOLDERS)
    run = RunFolder(tmp_path / "reports" / "x")
    asked = settings_module.load("base", {"dataset.root": "memory://set", "dataset.remote": True})
    found = beside_run(asked, run.root, run.default_cache)
    assert found.dataset.folder.is_relative_to(tmp_path / "reports" / ".cache" / "remote")
    assert contents(read_table(found)) == FOLDERS


# ---- S3


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, dict[str, str]]]:
    """A bucket on an S3 server of this process, and the environment that finds it."""
    if missing := [name for name in S3_NEEDS if importlib.util.find_spec(name) is None]:
        pytest.skip(f"S3 IS NOT TESTED: no {', '.join(missing)}; pip install 'moto[s3,server]' boto3 s3fs")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        variables = {
            "AWS_ACCESS_KEY_ID": "keyid-geheim",
            "AWS_SECRET_ACCESS_KEY": "secret-geheim",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": address,
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        made = boto3.resource("s3", endpoint_url=address).Bucket("bucket")
        made.create()
        yield made, variables
        made.objects.all().delete()  # the server's memory is this process's
    finally:
        server.stop()


def upload(made: Any, objects: dict[str, bytes]) -> None:
    for name, content in objects.items():
        made.put_object(Key=name, Body=content)


def test_s3_folders_tables_and_shards(tmp_path: Path, bucket: tuple[Any, dict[str, str]]) -> None:
    from test_packed_images import webdataset

    made, _ = bucket
    upload(made, {"set/": b"", **{f"set/{name}": content for name, content in FOLDERS.items()}})
    found = read_table(configured("s3://bucket/set", tmp_path))
    assert contents(found) == FOLDERS
    rows = [f"{name},{name.split('/')[1]},{name.split('/')[0]}" for name in FOLDERS]
    upload(made, {"set/m.csv": "\n".join(["path,label,split", *rows]).encode()})
    assert contents(read_table(configured("s3://bucket/set/m.csv", tmp_path))) == FOLDERS
    shards = webdataset(tmp_path / "tars")
    upload(made, {f"tars/{file.name}": file.read_bytes() for file in shards.iterdir()})
    assert len(read_table(configured("s3://bucket/tars", tmp_path)).frame) == 14
    upload(made, {"set/train/real/0.png": encoded(77)})
    made.delete_objects(Delete={"Objects": [{"Key": "set/m.csv"}]})
    again = read_table(configured("s3://bucket/set", tmp_path))
    assert contents(again) == {**FOLDERS, "train/real/0.png": encoded(77)}


@pytest.mark.parametrize("name", ["set/../evil.png", "set/train//evil.png", "set/train/real/0.png/evil.png"])
def test_s3_hostile_keys(tmp_path: Path, bucket: tuple[Any, dict[str, str]], name: str) -> None:
    made, _ = bucket
    upload(made, {f"set/{key}": content for key, content in FOLDERS.items()})
    upload(made, {name: encoded(1)})
    with pytest.raises(UserError, match="rename"):
        read_table(configured("s3://bucket/set", tmp_path))
    assert not list(tmp_path.rglob("evil*"))


def test_s3_that_is_absent_or_gone_is_one_line(
    tmp_path: Path, bucket: tuple[Any, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("s3://nobody/set", "s3://bucket/nothing"):
        with pytest.raises(UserError, match="there is nothing at this s3:// address"):
            read_table(configured(url, tmp_path))


@pytest.mark.slow
def test_s3_a_run_tells_neither_address_nor_credentials(
    tmp_path: Path, bucket: tuple[Any, dict[str, str]]
) -> None:
    made, variables = bucket
    upload(made, {f"set/{key}": content for key, content in FOLDERS.items()})
    done = audited("s3://bucket/set", tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert "geheim" not in done.stderr + done.stdout
    check_run(tmp_path / "out", "geheim")
    assert "geheim" not in (tmp_path / "out" / "run" / "settings.yaml").read_text()
