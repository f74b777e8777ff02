"""The fault lab: which cases it runs, how it scores them, and that an interrupted run goes on."""

from typing import Any

import pytest
from matplotlib.text import Text
from scipy.stats import binomtest

from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.faults import suite
from diag_lib.faults.controls import CONTROLS
from diag_lib.faults.inject import find
from diag_lib.faults.page import write_report
from diag_lib.faults.scoring import score, summary
from diag_lib.plots import faults as pictures


def row(case: str, named: list[str], **changed: Any) -> dict[str, Any]:
    """One killing, established, proven run of a fault; or whatever else is asked for."""
    kind = changed.get("kind", "fault")
    made = {
        "case": case,
        "seed": 101,
        "kind": kind,
        "expected": [] if kind == "control" else case.split("+"),
        "named": named,
        "first_right": bool(named) and named[0] == case,
        "all_named": set(case.split("+")) <= set(named),
        "healthy": None if kind == "control" else False,
        "status": "established" if named else None,
        "proof": {"kind": "gain", "p": 1e-4} if named else None,
        "harm": None if kind == "control" else {"kills": True, "delta": 0.3, "p": 1e-9},
        "seconds": 10.0,
    }
    return made | changed


def test_figures_count_only_what_does_harm() -> None:
    rows = [
        row("leakage", ["leakage"]),
        row("leakage", ["shortcut", "leakage"], seed=102, proof={"kind": "gain", "p": 0.2}),
        row("capacity", []),
        row("lr_too_high", ["leakage"], harm={"kills": False, "delta": 0.0, "p": 0.9}),
        row("quiet", [], kind="control", healthy=True),
        row("loud", ["scale_mismatch"], kind="control", healthy=False, seconds=30.0),
        row("a+b", ["b", "a"], kind="compound"),
        row("a+c", ["a"], kind="compound"),
    ]
    found = score(rows)
    assert found["right_first"] == pytest.approx(1 / 3) and found["killing"] == 3
    assert found["causes_per_case"] == 1.0
    assert (found["controls"], found["false_alarms"], found["controls_called_healthy"]) == (2, 1, 1)
    assert found["compound_both"] == 0.5 and found["proof_rate"] == 0.5
    assert found["by_cause"] == {"leakage": [1, 2], "capacity": [0, 1]}
    assert found["dropped"] == ["lr_too_high"] and found["median_seconds"] == 10.0
    low, high = found["right_first_ci"]
    assert low == 0.0 and high == pytest.approx(0.5)  # two faults are drawn, not three runs
    text = "\n".join(summary(rows))
    for words in ("false alarm", "does no harm", "both named", "33% of 3 killing"):
        assert words in text


def test_ten_of_ten_is_no_certainty() -> None:
    found = score([row(f"fault {number}", [f"fault {number}"]) for number in range(10)])
    low, high = found["right_first_ci"]
    exact = binomtest(10, 10).proportion_ci(method="exact")
    assert found["right_first"] == 1 and (low, high) == pytest.approx((exact.low, exact.high))


def test_nothing_to_score_is_said_as_nothing() -> None:
    found = score([])
    assert found["right_first"] is None and found["right_first_ci"] is None and found["controls"] == 0


def test_a_control_is_run_once_and_a_fault_once_a_seed() -> None:
    cases = suite.plan("full", None, [101, 102, 103])
    controls = [case for case in cases if not case.expected]
    assert len(controls) == len({case.fault.id for case in controls}) == len(CONTROLS) >= 60
    assert {case.seed for case in controls} == {101}
    leaks = [case for case in cases if case.fault.id == "leakage"]
    assert [case.seed for case in leaks] == [101, 102, 103]
    assert sum(len(case.expected) == 2 for case in cases) == 3 * len(suite.COMPOUND)
    assert all(not case.expected or case.seed > 100 for case in cases)
    quick = suite.plan("quick", None, [101])
    assert len(quick) == len(suite.QUICK) + len(suite.QUICK_CONTROLS) and len(suite.QUICK) >= 10
    for case in quick:
        size = case.fault.around["dataset.image_size"]
        assert size == case.fault.around_recipe["size"] < 64  # images and network's input alike
    asked_for = suite.plan("quick", ["leakage"], [101])[0].fault
    assert asked_for == find("leakage")
    for wrong in (("slow", None), ("quick", ["nonsense"])):
        with pytest.raises(UserError):
            suite.plan(*wrong, [101])


def test_an_interrupted_lab_goes_on_with_what_is_left(tmp_path, monkeypatch) -> None:
    ran: list[str] = []

    def run_case(case: suite.Case, folder: Any) -> dict[str, Any]:
        ran.append(case.fault.id)
        home = folder / f"{case.fault.id}-s{case.seed}"
        for name in ("data", "run"):
            (home / name).mkdir(parents=True, exist_ok=True)
        return row(case.fault.id, [case.fault.id])

    monkeypatch.setattr(suite, "run_case", run_case)
    case = suite.plan("quick", ["leakage"], [101])[0]
    first = suite._kept(case, tmp_path)
    assert suite._kept(case, tmp_path) == first and ran == ["leakage"]
    home = tmp_path / "leakage-s101"
    assert (home / "run").is_dir() and not (home / "data").exists()
    monkeypatch.setattr(suite, "_own_code", lambda: "changed since")
    suite._kept(case, tmp_path)
    assert ran == ["leakage", "leakage"]


def test_the_report_lists_misses_and_draws_what_was_scored(tmp_path) -> None:
    rows = [
        row("leakage", ["leakage"]),
        row("capacity", ["<script>"]),
        row("lr_too_high", ["leakage"], harm={"kills": False, "delta": 0.0, "p": 0.9}),
        row("quiet", [], kind="control", healthy=True),
    ]
    figures = score(rows) | {"workers": 2, "wall_seconds": 40}
    write_report(rows, figures, RunFolder(tmp_path / "lab").create())
    page = (tmp_path / "lab" / "index.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1 and "&lt;script&gt;" in page  # the one that sorts
    before, after = page.split("Injections that did no harm", 1)
    assert "capacity" in before.split("Missed, and false alarms", 1)[1] and "lr_too_high" in after
    assert [missed["case"] for missed in rows if pictures.missed(missed)] == ["capacity"]
    figure = pictures.confusion(rows)
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "(healthy controls)",
        "capacity",
        "leakage",
    ]
    texts = " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text))
    assert "50% of 2 harmful" in texts
    assert (tmp_path / "lab" / "confusion.png").stat().st_size > 1000
