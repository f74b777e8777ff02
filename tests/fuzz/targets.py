"""What must hold for any bytes: a sound result or one line of `UserError`, nothing else."""

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `odd_files`

from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.history import COLUMNS, read_history
from diag_lib.images.decode import DecodeError, decode_bytes
from diag_lib.images.sources import read_table
from diag_lib.recording import is_recording
from diag_lib.settings import Settings, load
from diag_lib.symptoms import diagnose

Result = TypeVar("Result")
_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz"))


def decode(data: bytes) -> None:
    """The content of an image file."""
    try:
        pixels = decode_bytes(data, max_pixels=1_000_000).pixels
    except DecodeError as error:
        assert 0 < len(error.reason) < 40 and error.reason.isprintable()
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size


def manifest(data: bytes) -> None:
    """A text manifest beside four images that may be named in it."""
    for name in ("a.png", "b.png", "c.png", "d.png"):
        (_FOLDER / name).touch()
    file = _written("m.csv", data)
    table = _or_one_line(lambda: read_table(Settings().with_overrides({"dataset.root": str(file)})))
    if table is not None:
        assert set(table.frame["label"]) == {0, 1} and {"train", "val"} <= set(table.frame["split"])
        assert all(path.isprintable() and ".." not in path.split("/") for path in table.frame["path"])


def history(data: bytes) -> None:
    """A history; the first byte chooses the name's ending."""
    ending = (".json", ".csv", ".jsonl", ".txt", ".tsv")[data[0] % 5] if data else ".json"
    _history(_written(f"h{ending}", data[1:]))


def recording(data: bytes) -> None:
    """A recorder's JSONL behind a sound first line."""
    start = json.dumps({"event": "start", "schema": "diag/recorder/1"}).encode() + b"\n"
    assert is_recording(start.decode())
    _history(_written("r.jsonl", start + data))


def settings(data: bytes) -> None:
    """A settings file."""
    file = _written("s.yaml", data)
    loaded = _or_one_line(lambda: load(file))
    if loaded is not None:
        again = load(_written("t.yaml", loaded.to_yaml().encode()))
        assert again.to_dict() == loaded.to_dict()


def _history(file: Path) -> None:
    found = _or_one_line(lambda: read_history(file))
    if found is not None:
        assert len(found) and list(found.epochs)[1:] == list(COLUMNS)
        assert all(column.dtype == np.float64 for column in map(found.values, COLUMNS))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning would stand in the user's notebook
            evidence = diagnose(found, Settings()).evidence
        RunFolder(_FOLDER / "run").create().write_evidence(evidence)
        assert all(len(finding.message.splitlines()) == 1 for finding in evidence.findings)


def _written(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.write_bytes(data)
    return path


def _or_one_line(work: Callable[[], Result]) -> Result | None:
    try:
        return work()
    except UserError as error:
        assert str(error) and len(str(error).splitlines()) == 1 and len(str(error)) < 2_100
        return None


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (decode, manifest, history, recording, settings)
}


def seeds() -> dict[str, list[bytes]]:
    """Sound and nearly sound inputs to start from."""
    import odd_files

    guide = {name: [0.1 * row + number for row in range(3)] for number, name in enumerate(COLUMNS)}
    guide |= {"val_auc": [0.5, 0.6, 0.7], "val_acc": [0.5, 0.6, 0.7], "stage": [1, 1, 2]}
    rows = [dict(zip(guide, values, strict=True)) for values in zip(*guide.values(), strict=True)]
    lines = "\n".join(json.dumps({"event": "epoch", "epoch": n, **row}) for n, row in enumerate(rows))
    table = "\n".join([",".join(guide), *(",".join(map(str, row.values())) for row in rows)])
    steps = [
        {"event": "step", "step": n, "loss": 2.0, "distill": 3.5, "task": 0.7, "student": {"min": -1, "max": "inf"},
         "counts": [3, 4], "norms": {"fc": [1.0, 0.5]}} for n in range(3)
    ]  # fmt: skip
    seen = {"labels": "0101", "scores": {"logits": [0.1, 2, -1, "nan"], "max": [1, 2, 3, 4]}}
    events = [*steps, {"event": "update", "tensors": {"fc": [1.0, 2.0, "inf"]}, "lr": 0.1},
              {"event": "epoch", "epoch": 1, "stage": 1, **rows[0], "seen": seen,
               "tensors": {"fc": [9, True, True, 0.1]}},
              {"event": "note", "where": "x", "said": "y"}, {"event": "end"}]  # fmt: skip
    return {
        "decode": [make() for make in odd_files.SOUND.values()],
        "manifest": [
            b"path,label,split,source\na.png,0,train,x\nb.png,1,train,y\nc.png,real,val,\nd.png,fake,val,z\n",
            "path;label\na.png;0\nb.png;1\nc.png;1\nd.png;0\n".encode("utf-16"),
            b"\xef\xbb\xbfpath\tlabel\tsplit\n\"a.png\"\t0.0\ttrain\n../b.png\t1\tval\n",
        ],
        "history": [b"\0" + json.dumps(guide).encode(), b"\1" + table.encode(), b"\2" + lines.encode(),
                    b"\0" + json.dumps({"history": rows}).encode(),
                    b"\4" + table.replace(",", "\t").replace(".", ",").encode()],
        "recording": ["\n".join(map(json.dumps, events)).encode()],
        "settings": [Settings().to_yaml().encode(), b"training: {lr_s1: 1e-3, seed: 7}\nhistory: null\n"],
    }  # fmt: skip
