"""Does every broken, odd or hostile file end as an image or as a listed reason, in bounded memory and time?"""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import odd_files
import pandas as pd
import pytest
from PIL import Image
from steps_data import tiny_settings, write_images, write_teacher

from diag_lib import audit, baseline, distillation, logits, teacher
from diag_lib.evidence import RunFolder
from diag_lib.images import DecodeError, decode, decode_bytes, open_split, read_table
from diag_lib.settings import Settings

CELLS = ("train/real", "train/fake", "val/real", "val/fake")
SLOWEST = 20.0  # seconds a file of this corpus may take on a busy machine


@pytest.fixture(scope="module")
def odd() -> list[odd_files.Odd]:
    return odd_files.every()


def outcome(data: bytes) -> str:
    """ "image", or the reason."""
    try:
        pixels = decode_bytes(data).pixels
    except DecodeError as error:
        return error.reason
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
    return "image"


def test_every_file_ends_as_it_must(odd: list[odd_files.Odd]) -> None:
    assert len(odd) >= 400
    wrong, reasons = [], Counter()
    for file in odd:
        start = time.monotonic()
        found = outcome(file.data)
        reasons[found] += 1
        refused = found != "image"
        if (file.ends, refused) in {("image", True), ("refused", False)}:
            wrong.append((file.name, found))
        assert time.monotonic() - start < SLOWEST, file.name
    assert not wrong
    assert len(reasons) < 15  # reasons can be counted


def test_a_cut_file_is_never_decoded_halfway(odd: list[odd_files.Odd]) -> None:
    for file in odd:
        if file.name.startswith("cut_") and outcome(file.data) == "image":
            whole = decode_bytes(odd_files.SOUND[file.name.split(".", 1)[1]]()).pixels
            assert np.array_equal(decode_bytes(file.data).pixels, whole), file.name


def test_nothing_but_the_allowed_formats_is_ever_tried(
    odd: list[odd_files.Odd], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from diag_lib.images.decode import FORMATS

    def forbidden(*_: object) -> None:
        raise AssertionError("a program was started")

    for starter in ("Popen", "call", "check_call", "run"):
        monkeypatch.setattr(subprocess, starter, forbidden)
    monkeypatch.setattr(os, "system", forbidden)
    asked: list[object] = []
    opener = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: asked.append(k.get("formats")) or opener(*a, **k))
    Image.init()  # as if a notebook had loaded every plug-in of Pillow
    assert "EPS" in Image.OPEN and "WMF" in Image.OPEN
    for name, data in odd_files.FOREIGN.items():
        assert outcome(data) in ("not an image", "empty file", "damaged header"), name
    assert asked and all(formats == FORMATS for formats in asked)
    assert not {"EPS", "WMF", "PDF", "FITS", "HDF5", "GRIB", "BUFR"} & set(FORMATS)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    for name in odd_files.write_special(tmp_path):
        with pytest.raises(DecodeError):
            decode(tmp_path / name)


def test_several_bombs_at_once_stay_within_the_memory_of_one(tmp_path: Path) -> None:
    for number in range(3):
        data = odd_files.png(4_100, 4_100, *((8, 6) if number == 1 else (16, 0)))
        (tmp_path / f"{number}.png").write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from diag_lib.images.store import parallel\n"
        "from diag_lib.images.decode import decode\n"
        "def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024\n"
        "Path('/proc/self/clear_refs').write_text('5'); before = peak()\n"
        "print(parallel(lambda f: decode(f).shape[0], sys.argv[1:], 3), peak() - before)"
    )
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux' own measure of peak memory")
    files = [str(file) for file in sorted(tmp_path.iterdir())]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    shapes, megabytes = done.stdout.rsplit(" ", 1)
    assert shapes == "[4100, 4100, 4100]"
    assert float(megabytes) < 300  # 200 with one at a time; three at once, converted whole, took over 1000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, odd: list[odd_files.Odd]) -> tuple[Settings, Path]:
    """A sound tiny dataset with every odd file in one of its folders, and all that is no file in another."""
    tmp = tmp_path_factory.mktemp("odd")
    write_images(tmp / "data", train=12, val=12)
    write_teacher(tmp / "teacher.safetensors")
    for number, file in enumerate(odd):
        (tmp / "data" / CELLS[number % 4] / file.name).write_bytes(file.data)
    odd_files.write_special(tmp / "data" / "train" / "real")
    return tiny_settings(tmp, runtime__workers=2), tmp


def test_the_audit_counts_and_lists_every_one(
    corpus: tuple[Settings, Path], odd: list[odd_files.Odd], capfd: pytest.CaptureFixture[str]
) -> None:
    settings, tmp = corpus
    before = sorted((path.name, path.lstat().st_mtime_ns) for path in (tmp / "data").rglob("*"))
    result = audit.run(settings, tmp / "run", progress=False)
    assert "Traceback" not in "".join(capfd.readouterr())
    lost = pd.read_parquet(tmp / "run" / "artifacts" / "unreadable.parquet")
    ignored = pd.read_parquet(tmp / "run" / "artifacts" / "ignored.parquet")
    assert (lost["reason"] != "").all() and (ignored["reason"] != "").all()
    name_of = result.frame["path"].str.rsplit("/", n=1).str[-1]
    read, listed = set(name_of[result.frame["reason"] == ""]), {p.rsplit("/", 1)[-1] for p in lost["path"]}
    told = {path.rsplit("/", 1)[-1] for path in ignored["path"]}
    for file in odd:
        assert (file.name in read) + (file.name in listed) + (file.name in told) == 1, file.name
        assert file.ends != "image" or file.name in read, file.name
        assert file.ends != "refused" or file.name not in read, file.name
    for name in (
        "folder.png",
        "pipe.png",
        "socket.png",
        "dangling.png",
        "itself.png",
        "ping.png",
        "device.png",
    ):
        assert name in told, name
    assert result.finding("unreadable").data["reasons"] == lost["reason"].value_counts().to_dict()
    assert sum(result.finding("ignored").data["reasons"].values()) == len(ignored)
    after = sorted((path.name, path.lstat().st_mtime_ns) for path in (tmp / "data").rglob("*"))
    assert before == after


def test_a_link_out_of_the_dataset_is_followed_and_told(tmp_path: Path) -> None:
    write_images(tmp_path / "data", train=2, val=2)
    (tmp_path / "private.png").write_bytes(odd_files.SOUND["png"]())
    (tmp_path / "data/train/real/link.png").symlink_to(tmp_path / "private.png")
    (tmp_path / "data/train/real/inner.png").symlink_to(tmp_path / "data/val/real/0000.png")
    write_teacher(tmp_path / "teacher.safetensors")
    table = read_table(tiny_settings(tmp_path))
    assert table.notes == [("train/real/link.png", "link out of the dataset's folder, followed")]
    assert "train/real/link.png" in set(table.frame["path"])


@pytest.mark.slow
def test_steps_two_to_five_train_on_what_is_left(tmp_path: Path, odd: list[odd_files.Odd]) -> None:
    write_images(tmp_path / "data", train=8, val=8)
    write_teacher(tmp_path / "teacher.safetensors")
    for number, file in enumerate(odd[::9]):
        (tmp_path / "data" / CELLS[number % 4] / file.name).write_bytes(file.data)
    small = {"training__epochs_s1": 0, "training__epochs_s2": 1, "runtime__budget": "quick"}
    settings = tiny_settings(tmp_path, **small)
    folder = RunFolder(tmp_path / "run").create()
    kept = len(open_split(settings, "train", folder)) + len(open_split(settings, "val", folder))
    assert 32 < kept < len(read_table(settings).frame)
    for step in (teacher, logits, baseline, distillation):
        result = step.run(settings, folder, progress=False)
        assert result.evidence.findings
        for finding in result.evidence.findings:
            assert "\n" not in finding.message
