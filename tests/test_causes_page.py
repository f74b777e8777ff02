"""Does docs/causes.md say what the table of causes says, and does each picture show its run?"""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from diag_lib import display
from diag_lib.causes import CAUSES
from diag_lib.causes_words import EVIDENCE, EXPERIMENTS, TOLD_APART, explained
from diag_lib.evidence import FINDINGS
from diag_lib.plots import causes as pictures
from docs import make_causes

IDS = [cause.id for cause in CAUSES]
AUC = {"auc": 0.61, "ci": [0.55, 0.66]}


def finding(name, value, answer="yes", **data):
    ci = None if value is None else [value - 0.02, value + 0.02]
    return {"id": name, "value": value, "ci": ci, "answer": answer, "data": data}


@pytest.fixture
def verdict():
    proof = {
        "before": {"arm": "status_quo", **AUC},
        "after": {"arm": "bce_only", "auc": 0.9, "ci": [0.8, 0.95]},
    }
    return {
        "causes": [{"id": "teacher_domain_shift", "proof": proof}],
        "findings": [finding("teacher.auc", 0.5)],
        "arms": [
            {"id": "status_quo", "auc": None, "ci": [0.0, 1.0]},
            {"id": "bce_only", "auc": 0.9, "ci": [0.85, 0.94]},
            {"id": "bce_lr_x10", **AUC},
        ],
    }


def test_page_is_that_of_the_table():
    alts = json.loads(make_causes.ALT.read_text(encoding="utf-8"))
    written = make_causes.PAGE.read_text(encoding="utf-8")
    assert written == make_causes.page(alts), "run: python -m docs.make_causes"


def test_words_fit_the_table():
    assert set(EVIDENCE) == set(IDS)
    assert set(TOLD_APART) == {cause.id for cause in CAUSES if not cause.told_apart_by}
    assert set(EXPERIMENTS) == {cause.experiment for cause in CAUSES if cause.experiment}
    named = {name for text in EVIDENCE.values() for name in re.findall(r"`([a-z]+\.[\w.]+)`", text)}
    assert named and named <= set(FINDINGS)


def test_a_cause_of_ones_own_is_explained_as_far_as_it_says():
    own = dataclasses.replace(
        CAUSES[0], id="few_steps", experiment="smaller_batches", proof="gain", told_apart_by="<b>A look.</b>"
    )
    assert set(explained(own)) == {"Told apart:", "Proof:"}
    assert explained(own)["Proof:"] == "the experiment `smaller_batches`; taking it away raises the AUC."
    for cause in CAUSES:
        assert list(explained(cause)) == ["Suspected when", "Told apart:", "Proof:"]
        assert "[recorded]" not in explained(cause)["Suspected when"]


def test_the_words_become_escaped_markup(monkeypatch):
    own = dataclasses.replace(
        CAUSES[0], id="few_steps", sentence="<i>x</i>", told_apart_by="<b>`a<b`</b> [x](#y)."
    )
    monkeypatch.setattr("diag_lib.causes.CAUSES", [own])
    markup = display.meanings(["few_steps", "unknown"]).data
    assert "&lt;b&gt;<code>a&lt;b</code>&lt;/b&gt; <code>x</code>." in markup
    assert "<i>" not in markup and markup.count("<details") == 1


def test_every_link_has_its_place():
    written = make_causes.PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", written, re.MULTILINE) == IDS
    assert set(re.findall(r"\]\(#(\w+)\)", written)) <= set(IDS)
    for target in re.findall(r"\]\(((?:\.\./|causes/|\w+\.md)[^)#]*)", written):
        assert (make_causes.HERE / target).exists(), target


def test_pictures_are_there_and_small():
    alts = json.loads(make_causes.ALT.read_text(encoding="utf-8"))
    assert set(alts) <= set(IDS) and len(alts) >= len(IDS) - 3
    assert {path.stem for path in make_causes.PICTURES.glob("*.png")} == set(alts)
    for name in alts:
        file = make_causes.PICTURES / f"{name}.png"
        assert file.stat().st_size < 25_000
        assert Image.open(file).width > 600


def test_rows_of_a_run(verdict):
    names = [row.name for row in pictures.rows(verdict)]
    assert names == [
        "teacher on val", "status_quo (as configured)", "bce_only (no teacher)",
        "before: status_quo", "after: bce_only",
    ]  # fmt: skip
    told = pictures.describe(verdict)
    assert "status_quo (as configured) without scores that rank" in told
    assert "after: bce_only 0.90 [0.80, 0.95]" in told


def test_rows_of_a_recording(verdict):
    verdict["findings"] += [
        finding("symptoms.evaluation", -0.4, reported=0.55),
        finding("symptoms.auc_at_chance", 0.95, "no"),
    ]
    values = {row.name: row.value for row in pictures.rows(verdict)}
    assert values["what the loop reports"] == pytest.approx(0.55)
    assert values["the recorded loop's scores"] == 0.95
    assert "status_quo (trained here)" in values


def test_pictures_come_from_the_fault_lab(verdict, tmp_path, monkeypatch, capsys):
    """The lowest seed that names the cause counts; one that names another draws nothing."""
    for case, first in (
        ("teacher_domain_shift-s201", "leakage"),
        ("teacher_domain_shift-s202", "teacher_domain_shift"),
        ("leakage-s201", "shortcut"),
    ):
        folder = tmp_path / "lab" / "cases" / case / "run"
        folder.mkdir(parents=True)
        found = {**verdict, "causes": [{**verdict["causes"][0], "id": first}]}
        (folder / "verdict.json").write_text(json.dumps(found), encoding="utf-8")
    for name, place in (("PAGE", "causes.md"), ("PICTURES", "causes"), ("ALT", "alt.json")):
        monkeypatch.setattr(make_causes, name, tmp_path / place)
    assert make_causes.main([str(tmp_path / "lab")]) == 0
    assert [path.name for path in (tmp_path / "causes").iterdir()] == ["teacher_domain_shift.png"]
    assert "](causes/teacher_domain_shift.png)" in (tmp_path / "causes.md").read_text(encoding="utf-8")
    assert "leakage: no verdict there names it first" in capsys.readouterr().out
    assert make_causes.main([str(Path("/nowhere"))]) == 2
