"""Is every kind of mistake in a manifest, a curation file or a history one clear line - and never a hang?"""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from steps_data import tiny_settings, write_images

from diag_lib.errors import MAX_LENGTH, UserError
from diag_lib.evidence import RunFolder
from diag_lib.history import read_history
from diag_lib.images import open_split, read_table
from diag_lib.workbook.fingerprint import inputs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data", train=4, val=2)


def rows(data: Path) -> list[str]:
    files = sorted(data.rglob("*.png"))
    return [f"{f.relative_to(data)},{int('fake' in f.parts)},{f.relative_to(data).parts[0]}" for f in files]


def refused(work: Callable[[], object]) -> str:
    """The one line, within ten seconds."""
    said: list[str] = []

    def attempt() -> None:
        with pytest.raises(UserError) as caught:
            work()
        said.append(str(caught.value))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(10)
    assert said, "no line within ten seconds"
    assert said[0] == " ".join(said[0].split()) and len(said[0]) <= MAX_LENGTH + 4
    return said[0]


def table(data: Path, content: bytes, name: str = "m.csv") -> Callable[[], object]:
    (data / name).write_bytes(content)
    return lambda: read_table(tiny_settings(data.parent, dataset__root=str(data / name)))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-with-mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_sound_manifest_in_any_dress(data: Path, encoding: str, end: str) -> None:
    text = end.join(["PATH , Label,split", *rows(data), "", ""])
    raw = b"\xff\xfe" + text.encode("utf-16-le") if "mark" in encoding else text.encode(encoding)
    assert len(table(data, raw)().frame) == 12  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.replace("path,label", "path,label,label", 1), "column 'label' stands twice"),
        (lambda t: t.replace("path,", "file,", 1), "column path missing"),
        (lambda t: t.replace(",0,train", ",nan,train", 1), "label 'nan' is not allowed"),
        (lambda t: t.replace(",0,train", ",Infinity,train", 1), "'Infinity' is not allowed"),
        (lambda t: t.replace(",0,train", ";0;train", 1), "1 cells where the header has 3"),
        (lambda t: t.replace(",0,train", ",0,", 1), "split '' is not allowed"),
        (lambda t: t + t.splitlines()[1] + "\n", "repeats the path of row 2"),
        (lambda t: t + "x" * 200_000 + ",0,train\n", "field"),
        (lambda t: t + "../secret.png,0,train\n", "leaves the manifest's folder"),
        (lambda t: t + '"a\n', "not readable as CSV"),
        (lambda t: t.replace("train", "holdout"), "split 'holdout' is not allowed"),
        (lambda t: "".join(f"c{n}," * 3_000 for n in range(9)) + "\n" + t, "column 'c0' stands twice"),
    ],
)
def test_a_mistake_in_a_manifest_is_one_line(data: Path, change: Callable[[str], str], words: str) -> None:
    text = "\n".join(["path,label,split", *rows(data)]) + "\n"
    assert words in refused(table(data, change(text).encode()))


def test_utf_32_and_binary_are_one_line(data: Path) -> None:
    text = "\n".join(["path,label,split", *rows(data)])
    refused(table(data, text.encode("utf-32")))
    refused(table(data, bytes(range(256)) * 40))
    refused(table(data, b"PAR1" + bytes(90), "m.parquet"))


def test_columns_of_other_types_in_parquet(data: Path) -> None:
    frame = pd.DataFrame({"path": [["a.png"], ["b.png"]], "label": [0, 1], "split": ["train", "val"]})
    frame.to_parquet(data / "m.parquet")
    refused(lambda: read_table(tiny_settings(data.parent, dataset__root=str(data / "m.parquet"))))


def test_a_file_that_the_manifest_names_but_is_no_image_is_listed(data: Path) -> None:
    sound = rows(data)
    os.mkfifo(data / "pipe.png")
    names = ["/dev/zero,0,train", "pipe.png,1,train", f"{'x' * 5_000}.png,0,val", "m.csv,1,val"]
    (data / "m.csv").write_text("\n".join(["path,label,split", *sound, *names]))
    settings = tiny_settings(data.parent, dataset__root=str(data / "m.csv"))
    lost = [
        reason
        for split in ("train", "val")
        for reason in open_split(settings, split, RunFolder(data.parent / "run").create()).unreadable[
            "reason"
        ]
    ]
    assert sorted(lost)[1:] == ["not a regular file", "not a regular file", "not an image"]


def test_pipes_and_devices_in_the_settings_do_not_hang(data: Path) -> None:
    pipe = data.parent / "pipe.csv"
    os.mkfifo(pipe)
    settings = tiny_settings(data.parent)
    refused(lambda: read_history(pipe))
    refused(lambda: read_history("/dev/zero"))
    refused(lambda: read_table(tiny_settings(data.parent, dataset__root=str(pipe))))
    refused(lambda: read_table(tiny_settings(data.parent, dataset__curation=str(pipe))))
    done: list[object] = []
    odd = settings.with_overrides({"history": str(pipe)})
    thread = threading.Thread(target=lambda: done.append(inputs(odd)), daemon=True)
    thread.start()
    thread.join(10)
    assert done


def test_a_run_notices_new_events_in_a_folder_of_history(data: Path) -> None:
    events = data.parent / "events"
    events.mkdir()
    (events / "events.out.tfevents.1").write_bytes(b"one")
    settings = tiny_settings(data.parent, history=str(events))
    before = inputs(settings)["history"]
    assert inputs(settings)["history"] == before != "missing"
    (events / "events.out.tfevents.1").write_bytes(b"one and two")
    assert inputs(settings)["history"] != before


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("h.csv", "val_auc,val_auc\n0.5,0.6\n", "column 'val_auc' stands twice"),
        ("h.csv", "epoch,val_auc\n1,0.5\nepoch,val_auc\n1,0.5\n", "'val_auc'"),
        ("h.csv", "epoch,val_auc\n1,0.5,0.6\n", "3 values"),
        ("h.json", '{"val_auc": ["0.5", {"a": 1}]}', "entry 2"),
        ("h.json", '{"val_auc": [0.5, "high"]}', "entry 2, is 'high'"),
        ("h.json", '{"val_auc": [NaN, Infinity, -Infinity]}', "no finite number"),
        ("h.json", json.dumps({"x" * 3_000_000: [1]}), "wanted are columns"),
        ("h.jsonl", '{"val_auc": 0.5}\n{"val_auc": \n{"val_auc": 0.6}\n', "line 2"),
    ],
)
def test_a_mistake_in_a_history_is_one_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    assert words in refused(lambda: read_history(tmp_path / name)) or len(text) > 1_000_000
