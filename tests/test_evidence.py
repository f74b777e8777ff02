"""Evidence: findings in the JSON form of the interface, written atomically."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from diag_lib.errors import UserError
from diag_lib.evidence import Evidence, Finding, RunFolder, plain

FINDING = Finding(
    "teacher.auc", "error", "no", "The teacher knows nothing here.", 0.5, (0.45, 0.55), 0.7, 900, {"k": 1}
)


def test_written_evidence_has_the_form_of_the_interface_and_reads_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").create()
    evidence = Evidence("teacher", [FINDING], {"auc": 0.5, "bad": math.nan}, {"weights": "abc"})
    run.write_evidence(evidence)
    raw = json.loads((tmp_path / "run/evidence/teacher.json").read_text())
    assert raw["schema"] == "diag/evidence/1" and raw["step"] == "teacher" and raw["numbers"]["bad"] is None
    assert list(raw["findings"][0]) == [
        "id",
        "severity",
        "answer",
        "value",
        "ci",
        "threshold",
        "n",
        "message",
        "data",
    ]
    back = run.read_evidence("teacher")
    assert back is not None and back.findings == [FINDING] and back.finding("teacher.inverted") is None


def test_an_unknown_finding_id_is_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher\.acu"):
        Finding("teacher.acu", "ok", "yes", "x")
    Finding("audit.shortcut.jpeg_quality", "ok", "no", "one id a property")


def test_absent_foreign_or_broken_files_are_no_evidence(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).create()
    assert run.read_evidence("audit") is None
    run.evidence_path("audit").write_text("{ half")
    assert run.read_evidence("audit") is None
    run.evidence_path("audit").write_text('{"schema": "other"}')
    assert run.read_evidence("audit") is None


@pytest.mark.parametrize(
    "change",
    [
        {"findings": 5},
        {"findings": [{}]},
        {"findings": [7]},
        {"numbers": None},
        {"inputs": []},
        *(
            {"findings": [FINDING.to_dict() | wrong]}
            for wrong in (
                {"severity": "fatal"},
                {"answer": 5},
                {"message": 7},
                {"value": "x"},
                {"ci": [1]},
                {"ci": ["a", "b"]},
                {"data": []},
            )
        ),
    ],
)
def test_a_file_of_another_form_is_no_evidence(tmp_path: Path, change: dict[str, object]) -> None:
    run = RunFolder(tmp_path).create()
    run.write_json("evidence/teacher.json", Evidence("teacher", [FINDING]).to_dict() | change)
    assert run.read_evidence("teacher") is None


def test_what_a_newer_version_adds_to_a_finding_is_passed_over(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).create()
    newer = {"findings": [FINDING.to_dict() | {"new_key": 1}]}
    run.write_json("evidence/teacher.json", Evidence("teacher", [FINDING]).to_dict() | newer)
    found = run.read_evidence("teacher")
    assert found is not None and found.findings == [FINDING]


def test_json_nested_without_end_is_unreadable(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).create()
    (tmp_path / "verdict.json").write_text('{"a":' + "[" * 200_000)
    assert run.read_json("verdict.json") is None


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).create()
    run.write_json("verdict.json", {"a": 1})
    with pytest.raises(TypeError):
        run.write_json("verdict.json", {"a": object()})
    assert run.read_json("verdict.json") == {"a": 1}
    assert [p.name for p in tmp_path.glob(".verdict*")] == []


def test_numpy_values_and_infinities_have_a_json_form() -> None:
    assert plain({"a": np.float32(1.5), "b": np.arange(2), "c": (np.inf, np.int64(3)), "d": Path("x")}) == {
        "a": 1.5,
        "b": [0, 1],
        "c": [None, 3],
        "d": "x",
    }


def test_a_run_folder_that_cannot_be_made_is_the_users_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        RunFolder(tmp_path / "file" / "run").create()
