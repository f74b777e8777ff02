"""The workbook's promises: honest pages after any failure, resume, nothing leaked, nothing hostile executed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import sample_run as sample
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from diag_lib import resources, workbook
from diag_lib.errors import UserError
from diag_lib.evidence import STEPS, Evidence, Finding, RunFolder
from diag_lib.settings import Settings, load
from diag_lib.workbook import comparing, index, render
from diag_lib.workbook.bars import Row, bars
from diag_lib.workbook.comparison_page import write_comparison
from diag_lib.workbook.sanitize import clean
from diag_lib.workbook.scrub import Scrubber
from diag_lib.workbook.state import RunState, StepState

# --- start, the first line of every notebook ---------------------------------------------------------------


def test_start_writes_the_settings_and_counts_from_the_working_directory(tmp_path, monkeypatch):
    sample.settings_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings, run_dir = workbook.start("audit", "my.yaml", "out/a", {"training.seed": 7})
    assert run_dir == tmp_path / "out" / "a"
    assert settings.training.seed == 7
    assert load(run_dir / "settings.yaml").to_dict() == settings.to_dict()


def test_start_in_a_checkouts_notebooks_folder_counts_from_the_checkout(tmp_path, monkeypatch):
    sample.settings_file(tmp_path)
    (tmp_path / "diag_lib" / "workbook").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert workbook.start("audit", "my.yaml", "reports/x", {})[1] == tmp_path / "reports" / "x"
    assert Path.cwd() == tmp_path / "notebooks"


@pytest.mark.parametrize(
    ("step", "config", "run_dir", "overrides", "names"),
    [
        ("audits", "base", "out", {}, "audits"),
        ("audit", 3, "out", {}, "config"),
        ("audit", "base", "", {}, "run_dir"),
        ("audit", "base", "out", [1], "overrides"),
        ("audit", "base", "out", {"training.sead": 1}, "sead"),
        ("audit", "no_such.yaml", "out", {}, "no_such.yaml"),
    ],
)
def test_start_refuses_a_wrong_parameter_in_one_line(
    tmp_path, monkeypatch, step, config, run_dir, overrides, names
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        workbook.start(step, config, run_dir, overrides)
    assert names in str(error.value)
    assert "\n" not in str(error.value)


# --- cleaning ------------------------------------------------------------------------------------------------


class _Seen(HTMLParser):
    """An independent look at what tags and attributes a page holds."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))


HARMFUL = [
    "<script>hit()</script>",
    "<ScRiPt src=//evil.example/x.js></ScRiPt>",
    "<img src=x onerror=hit()>",
    "<img src='http://evil.example/pixel.png'>",
    "<svg onload=hit()><script>hit()</script><use href='http://evil.example/x#y'/></svg>",
    "<a href=' javascript:hit()'>x</a>",
    "<a href='JAVASCRIPT&colon;hit()'>x</a>",
    "<iframe srcdoc='<script>hit()</script>'></iframe>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "<style>@import 'http://evil.example/x.css'; * {display:none}</style>",
    "<form action=http://evil.example><input name=a autofocus onfocus=hit()></form>",
    "<div style='background:url(http://evil.example/x)'>x</div>",
    "<div style='position:fixed;top:0;left:0;width:100%'>over everything</div>",
    "<base href='http://evil.example/'>",
    "<math><mtext><table><mglyph><style><img src=x onerror=hit()></style></mglyph></table></mtext></math>",
    "<!--<img src=x onerror=hit()>-->",
    "<noscript><p title='</noscript><img src=x onerror=hit()>'></noscript>",
]


def _assert_harmless(markup: str) -> None:
    for tag, attributes in _Seen(markup).tags:
        assert tag not in {
            "script",
            "iframe",
            "object",
            "embed",
            "meta",
            "link",
            "base",
            "form",
            "style",
            "input",
        }
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert "javascript" not in value.lower()
            if name == "src":
                assert value.startswith("data:image/")
            if name == "style":
                assert "url(" not in value
                assert "position" not in value


def test_a_page_leaves_out_how_to_install_but_its_notebook_says_it(tmp_path):
    book = nbformat.read(resources.notebooks_dir() / "02_teacher.ipynb", 4)
    assert "pip install" in book.cells[0].source
    folder = RunFolder(tmp_path / "run").create()
    (folder.root / "notebooks").mkdir()
    nbformat.write(book, folder.root / "notebooks" / "02_teacher.ipynb")
    page = render.write_page(folder, RunState("run"), "teacher", None).read_text(encoding="utf-8")
    assert "pip install" not in page and "Writes" in page and "The question" in page


def test_cleaning_keeps_sort_keys_that_are_numbers():
    assert 'data-sort="3"' in clean('<table><tr><td data-sort="3">x</td></tr></table>')
    assert "data-sort" not in clean("<table><tr><td data-sort='x\"'>x</td></tr></table>")


@pytest.mark.parametrize("markup", HARMFUL)
def test_cleaning_removes_what_could_run_fetch_or_cover(markup):
    cleaned = clean(f"<p>before</p>{markup}<p>after</p>")
    _assert_harmless(cleaned)
    assert "before" in cleaned


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(HARMFUL), st.text("<>/\"'= abionsrc:&#;", max_size=25)), max_size=6)
)
def test_cleaning_holds_for_any_mixture(parts):
    _assert_harmless(clean("".join(parts)))


def test_cleaning_keeps_tables_figures_and_links_and_makes_them_accessible():
    image = "data:image/png;base64,iVBORw0KGgo="
    page = clean(
        f"<table><caption>Sources</caption><tr><td>a</td></tr></table><img src='{image}'>"
        f"<img src='{image}' alt='A histogram'><a href='https://example.org/x'>paper</a><pre>wide</pre>"
    )
    seen = _Seen(page).tags
    assert ("div", {"class": "diag-scroll", "tabindex": "0", "role": "region", "aria-label": "Sources"}) in [
        (
            tag,
            dict(
                sorted(attrs.items(), key=lambda kv: ("class", "tabindex", "role", "aria-label").index(kv[0]))
            ),
        )
        for tag, attrs in seen
        if tag == "div"
    ]
    assert [attrs["alt"] for tag, attrs in seen if tag == "img"] == [
        "Figure without a description",
        "A histogram",
    ]
    assert any(tag == "a" and attrs["href"] == "https://example.org/x" for tag, attrs in seen)


def test_cleaning_survives_absurd_nesting():
    assert "<script" not in clean("<div>" * 20_000 + "<script>hit()</script>")


# --- scrubbing -----------------------------------------------------------------------------------------------


def test_scrubbing_hides_places_but_keeps_meaning(tmp_path):
    hide = Scrubber([(tmp_path / "run", "RUN"), (tmp_path / "photos", "DATASET")])
    assert hide(f"see {tmp_path}/run/evidence/audit.json") == "see RUN/evidence/audit.json"
    assert hide(f"'{tmp_path}/photos/val/fake/1.png'") == "'DATASET/val/fake/1.png'"
    assert hide(str(Path.home() / "x.pth")) == "~/x.pth"
    assert hide("/home/jane/secret/w.pth") == "~/secret/w.pth"
    assert hide("read /mnt/store/team/w.pth now") == "read …/w.pth now"
    assert hide(r"C:\Users\jane\w.pth") == "…/w.pth"
    assert hide(f"{tmp_path}/running/x") == "…/x"


@pytest.mark.parametrize(
    "text",
    [
        "real/fake",
        "AUC 3/4 and/or",
        "https://arxiv.org/abs/2001.00001",
        "training/distillation/alpha",
        "1 / 2 / 3",
        "",
    ],
)
def test_scrubbing_leaves_ordinary_text_alone(text):
    assert Scrubber()(text) == text


# --- the overview --------------------------------------------------------------------------------------------


def _folder(tmp_path: Path, verdict: dict | None = None, findings: list[Finding] | None = None) -> RunFolder:
    folder = RunFolder(tmp_path / "reports" / "case").create()
    if verdict is not None:
        folder.write_json("verdict.json", verdict)
    folder.write_text("settings.yaml", Settings().to_yaml())
    if findings:
        folder.write_evidence(Evidence("teacher", findings))
    return folder


def _text(page: Path) -> str:
    plain = re.sub(r"<style>.*?</style>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", plain).split())


def test_overview_without_anything_says_so(tmp_path):
    folder = _folder(tmp_path)
    text = _text(index.write_index(folder, RunState("case"), None))
    assert "No verdict yet" in text
    assert "The verdict step has not run" in text
    assert text.count("not run") >= len(STEPS)


def test_overview_names_every_cause_once_what_was_not_asked_about_too(tmp_path):
    from diag_lib.causes import CAUSES

    folder = _folder(tmp_path, sample.verdict())
    text = _text(index.write_index(folder, RunState("case"), Settings()))
    not_asked = text.partition("nothing that was measured raised them:")[2].partition(" . ")[0]
    for cause in CAUSES:
        told = cause.id in (
            "teacher_domain_shift",
            "label_noise",
            "labels_shuffled",
            "scale_mismatch",
            "split_shift",
        )
        assert (index.title_of(cause.id) in not_asked) is not told, cause.id


def test_overview_says_that_settings_do_not_repair_what_is_to_be_done_by_hand(tmp_path):
    """What all settings reach together is no success where it is worse, and not the whole cure."""
    told = sample.verdict()
    told["arms"].append({"id": "recommended", "settings": {}, "auc": 0.2, "ci": [0.16, 0.26], "seeds": 1})
    folder = _folder(tmp_path, told)
    fixed = Settings().with_overrides({"training.distillation.alpha_distill": 0.0})
    folder.write_text("recommended.yaml", fixed.to_yaml())
    page = index.write_index(folder, RunState("case"), Settings())
    text = _text(page)
    assert "They do not repair what has to be done by hand (Label noise)" in text
    assert "As recommended" in text and "0.20 [0.16, 0.26]" in text
    together = (
        page.read_text(encoding="utf-8")
        .partition("Your own training with all of them")[2]
        .partition("</section>")[0]
    )
    assert "ok" not in re.findall(r'class="bar ([a-z]+)', together)


def test_overview_puts_the_verdict_first_with_proof_patch_and_open_questions(tmp_path):
    finding = Finding("teacher.auc", "error", "no", "Teacher AUC is chance.", 0.49, (0.45, 0.53), 0.55, 824)
    folder = _folder(tmp_path, sample.verdict(), [finding])
    fixed = Settings().with_overrides({"training.distillation.alpha_distill": 0.0})
    folder.write_text("recommended.yaml", fixed.to_yaml())
    text = _text(index.write_index(folder, RunState("case"), Settings()))
    for part in (
        "Cause established",
        "Teacher domain shift",
        "+0.47 [+0.43, +0.51], p &lt; 0.0001",
        "0.51 [0.47, 0.55]",
        "1,412 validation images per class",
        "Scale mismatch",
        "diag finetune-teacher my.yaml",
        "alpha_distill: 0.0",
        "Teacher AUC is chance.",
    ):
        assert part in text, part
    assert "alpha_task" not in text  # only what changes is to be pasted
    assert text.index("Teacher domain shift") < text.index("The chain of evidence") < text.index("Steps")


def test_each_named_cause_unfolds_what_it_means(tmp_path):
    """The words of the table of causes, offline; nothing where the id is none of ours."""
    folder = _folder(tmp_path, sample.verdict())
    text = index.write_index(folder, RunState("case"), None).read_text(encoding="utf-8")
    assert text.count('<details class="diag-meaning">') == 2
    first = text[text.index("<details") : text.index("</details>")]
    for part in (
        "<code>teacher.auc</code> lies below .55",
        "The AUC is near one half with every input",
        "Proof",
    ):
        assert part in first, part
    assert "](#" not in text
    odd = sample.verdict(causes=[{"id": sample.HOSTILE, "fix": {"text": "x"}}, {"id": ["a"]}])
    folder = _folder(tmp_path / "odd", odd)
    page = index.write_index(folder, RunState("case"), None).read_text(encoding="utf-8")
    assert "diag-meaning" not in page


@pytest.mark.parametrize(("healthy", "word"), [(True, "Healthy"), (None, "Undecided")])
def test_overview_of_a_healthy_and_an_undecided_run(tmp_path, healthy, word):
    folder = _folder(tmp_path, sample.verdict(healthy=healthy, causes=[], complete=False))
    text = _text(index.write_index(folder, RunState("case"), None))
    assert word in text
    assert "Incomplete" in text
    assert "before and after" not in text


def test_overview_escapes_every_text_of_verdict_and_evidence(tmp_path):
    hostile = json.loads(
        json.dumps(sample.verdict()).replace("teacher", sample.HOSTILE).replace("arm", "a<b>rm")
    )
    finding = Finding("teacher.auc", "error", "no", sample.HOSTILE, 0.5)
    page = index.write_index(_folder(tmp_path, hostile, [finding]), RunState(sample.HOSTILE), None)
    tags = _Seen(page.read_text(encoding="utf-8")).tags
    assert [tag for tag, _ in tags if tag in ("script", "img")] == ["script"]  # the one that sorts
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]


def test_overview_survives_files_that_are_not_ours(tmp_path):
    odd = {
        "schema": "diag/verdict/1",
        "causes": [3, {"id": None, "proof": {"before": 1}}],
        "arms": [{"auc": "x"}],
    }
    folder = _folder(tmp_path, odd)
    folder.write_json("evidence/teacher.json", {"schema": "diag/evidence/1", "findings": [{"id": "x"}]})
    folder.write_text("recommended.yaml", "a: [")
    assert "Undecided" in _text(index.write_index(folder, RunState("case"), None))


def test_failed_and_outdated_steps_are_told_on_the_overview(tmp_path):
    state = RunState("case")
    state.steps["teacher"] = StepState("failed", 3.0, "KeyError: '/data/secret/layer1'")
    state.steps["verdict"] = StepState("out of date")
    text = _text(index.write_index(_folder(tmp_path, sample.verdict()), state, None))
    assert "02 Teacher AUC failed." in text
    assert "/data/secret" not in text
    assert "Out of date" in text


def test_bars_say_their_numbers_in_words():
    markup = bars([Row("After", 0.98, (0.97, 0.99)), Row("<b>", None, None)])
    assert 'aria-label="After: AUC 0.98, 95% interval 0.97 to 0.99"' in markup
    assert "<b>" not in markup
    assert "not measured" in markup


# --- export and comparison -----------------------------------------------------------------------------------


def _report(tmp_path: Path) -> RunFolder:
    """A rendered run without running anything: executed notebooks made by hand."""
    folder, state = _folder(tmp_path, sample.verdict()), RunState("case")
    for step in ("audit", "teacher"):
        made = sample.notebook(step, "## Numbers", "1 + 1")
        picture = {"image/png": "iVBORw0KGgo="}
        made.cells[-1].outputs = [
            nbformat.v4.new_output("display_data", picture, metadata={"image/png": {"alt": "Dots"}})
        ]
        target = folder.root / "notebooks" / f"{STEPS.index(step):02d}_{step}.ipynb"
        target.parent.mkdir(exist_ok=True)
        nbformat.write(made, target)
        state.steps[step] = StepState("done", 1.0)
        render.write_page(folder, state, step, None)
    index.write_index(folder, state, None)
    render.refresh_navigation(folder, state)
    return folder


def test_export_joins_all_pages_with_working_links(tmp_path):
    page = workbook.export_single_file(_report(tmp_path).root, tmp_path / "one.html").read_text(
        encoding="utf-8"
    )
    tags = _Seen(page).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for tag, attrs in tags if tag == "a"]
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert "Teacher AUC" in page
    assert [attrs["alt"] for tag, attrs in tags if tag == "img"] == ["Dots", "Dots"]


def test_export_without_images_leaves_only_their_descriptions(tmp_path):
    folder = _report(tmp_path)
    page = workbook.export_single_file(folder.root, tmp_path / "a.html", images=False).read_text(
        encoding="utf-8"
    )
    assert "iVBORw0KGgo" not in page
    assert page.count("Picture left out: Dots") == 2
    path = workbook.export_single_file(folder.root, tmp_path / "a.zip", images=False)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert "a/index.html" in names
        assert "a/02_teacher.html" in names
        assert all(b"iVBORw0KGgo" not in archive.read(name) for name in names)


def test_pages_do_not_link_to_steps_that_never_ran(tmp_path):
    folder = _report(tmp_path)
    for page in folder.root.glob("*.html"):
        for _, attributes in _Seen(page.read_text(encoding="utf-8")).tags:
            target = attributes.get("href", "#")
            assert target.startswith(("#", "http")) or (folder.root / target).is_file(), (page.name, target)


def test_export_and_compare_refuse_what_is_no_run(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no report"):
        workbook.export_single_file(tmp_path / "empty", tmp_path / "x.html")
    with pytest.raises(UserError, match=r"\.html or \.zip"):
        workbook.export_single_file(_report(tmp_path).root, tmp_path / "x.pdf")
    run = _report(tmp_path).root
    before = (run / "index.html").read_bytes()
    (tmp_path / "data" / "train").mkdir(parents=True)
    (run / "settings.yaml").write_text(f"dataset: {{root: {tmp_path / 'data'}}}\n", encoding="utf-8")
    for place, words in (
        (run / "index.html", "a page of the run itself"),
        (tmp_path / "data" / "train" / "x.html", "inside the dataset"),
        (tmp_path / "absent" / "x.html", "does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            workbook.export_single_file(run, place)
    assert (run / "index.html").read_bytes() == before and not (tmp_path / "absent").exists()
    with pytest.raises(UserError, match="no run folder"):
        workbook.compare([tmp_path / "empty", tmp_path / "empty"])


def test_compare_shows_verdicts_arms_and_only_the_settings_that_differ(tmp_path):
    one, two = RunFolder(tmp_path / "before").create(), RunFolder(tmp_path / "after").create()
    for folder, seed, verdict in (
        (one, 1, sample.verdict()),
        (two, 2, sample.verdict(healthy=True, causes=[])),
    ):
        folder.write_text("settings.yaml", Settings().with_overrides({"training.seed": seed}).to_yaml())
        folder.write_json("verdict.json", verdict)
    lines = {line.split("  ")[0]: line for line in workbook.compare([one.root, two.root]).splitlines()}
    assert "not healthy" in lines["healthy"]
    assert lines["training.seed"].split() == ["training.seed", "1", "2"]
    assert lines["bce_only"].count("0.98 [0.97, 0.99]") == 2
    assert "training.lr_s1" not in lines


@pytest.mark.parametrize(
    "text",
    [
        '{"causes": 5, "arms": 5, "undecided": "x"}',
        '{"causes": [7, {}], "arms": [{"id": []}]}',
        '{"healthy": [1]}',
        "[" * 200_000,
    ],
)
def test_compare_and_overview_survive_a_verdict_of_another_form(tmp_path, text):
    runs = [RunFolder(tmp_path / name).create() for name in ("one", "two")]
    for folder in runs:
        folder.write_text("settings.yaml", Settings().to_yaml())
        folder.write_text("verdict.json", text)
    found = comparing.comparison([folder.root for folder in runs])
    assert "healthy" in comparing.in_text(found)
    assert write_comparison(found, tmp_path / "both.html").is_file()
    assert index.write_index(runs[0], RunState.load(runs[0]), None).is_file()


def test_compare_writes_a_page_of_the_same_content(tmp_path, capsys, monkeypatch):
    from diag_lib.cli import main

    runs = []
    for name, seed, verdict, answer in (
        ("before", 1, sample.verdict(), "no"),
        ("after <b>", 2, sample.verdict(healthy=True, causes=[], summary=f"Learns {tmp_path}/x."), "yes"),
    ):
        folder = RunFolder(tmp_path / "reports" / name).create()
        overrides = {"training.seed": seed, "dataset.root": str(tmp_path / f"data{seed}")}
        folder.write_text("settings.yaml", Settings().with_overrides(overrides).to_yaml())
        folder.write_json("verdict.json", verdict)
        finding = Finding("baseline.auc", "ok" if answer == "yes" else "error", answer, "m", 0.7, (0.6, 0.8))
        folder.write_evidence(Evidence("baseline", [finding]))
        runs.append(str(folder.root))
    assert main(["compare", *runs]) == 0
    text = capsys.readouterr().out
    out = tmp_path / "reports" / "both.html"
    assert main(["compare", *runs, "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(text)  # the page comes on top of the terminal's table
    page = out.read_text(encoding="utf-8")
    for shown in ("Teacher domain shift", "Healthy", "0.98 [0.97, 0.99]", "training.seed", "baseline.auc"):
        assert shown in page
    assert "training.lr_s1" not in page
    assert "after &lt;b&gt;" in page and "<b>" not in page
    assert str(tmp_path) not in page and "No paired difference" in page
    home = (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert 'href="both.html"' in home and "Comparison: before, after &lt;b&gt;" in home
    (tmp_path / "data1").mkdir()
    for place in (
        "both.pdf",
        "index.html",
        str(Path(runs[0]) / "02_teacher.html"),
        "none/x.html",
        "data1/x.html",
    ):
        assert main(["compare", *runs, "--out", str(tmp_path / place)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "before", "after <b>"]) == 0  # by the names that the runs have below reports
    assert "before" in capsys.readouterr().out


def _arm(folder: RunFolder, scores: list[float]) -> None:
    """A finished arm `bce_only` with these validation scores: real, fake, real, fake, ..."""
    place = folder.arm_dir("bce_only")
    place.mkdir(parents=True)
    labels = [i % 2 for i in range(len(scores))]
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(len(scores))], "label": labels, "score": scores})
    for name in ("val", "train"):
        table.assign(half="B", source="").to_parquet(place / f"{name}_scores.parquet")
    folder.write_json(
        "artifacts/arms/bce_only/settings.json", {"schema": "diag/arm/1", "overrides": {}, "settings": {}}
    )
    numbers = {
        "seed": 1,
        "image_steps": 1,
        "seconds": 1.0,
        "schedule_fraction": 1.0,
        "evidence": {},
        "stopped": None,
    }
    folder.write_json("artifacts/arms/bce_only/result.json", numbers)
    folder.write_json("artifacts/arms/bce_only/history.json", {})


@pytest.mark.parametrize(("other", "shown"), [("d1", "+0.50 ["), ("d2", None)])
def test_compare_pairs_arms_on_the_same_images_only(tmp_path, other, shown):
    one, two = RunFolder(tmp_path / "before").create(), RunFolder(tmp_path / "after").create()
    rng = np.random.default_rng(0)
    real_and_fake = [float(i % 2) + 0.01 * float(rng.normal()) for i in range(80)]
    for folder, data, scores in ((one, "d1", [0.0, 0.0, 1.0, 1.0] * 20), (two, other, real_and_fake)):
        folder.write_text("settings.yaml", Settings().to_yaml())
        folder.write_json("verdict.json", sample.verdict())
        folder.write_json("run.json", {"inputs": {"dataset": data}})
        _arm(folder, scores)
    text = workbook.compare([one.root, two.root])
    gains = text.partition("GAIN OVER THE FIRST RUN")[2]
    assert (shown in gains) if shown else not gains


# --- whole runs ----------------------------------------------------------------------------------------------


def test_a_missing_dataset_or_step_is_the_users_mistake(tmp_path):
    config = sample.settings_file(tmp_path)
    with pytest.raises(UserError, match="stepp"):
        workbook.run_workbook(config, tmp_path / "run", steps=["stepp"])
    with pytest.raises(UserError, match="nowhere"):
        books = sample.notebooks(tmp_path / "books")
        nowhere = {"dataset.root": str(tmp_path / "nowhere")}
        workbook.run_workbook(config, tmp_path / "run", overrides=nowhere, notebooks=books)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "steps", "says"),
    [
        ({"teacher.weights": "no_such.pth"}, ["teacher"], "no_such.pth"),
        ({"teacher.arch": "timm/no_such_net"}, ["logits"], "no_such_net"),
        ({"student.arch": "os:system"}, ["baseline"], "--trust-code"),
        ({"student.trainable_s1": ["fcx"]}, ["distillation"], "fcx"),
        ({"history": "no_such.json"}, ["symptoms"], "no_such.json"),
        ({"runtime.device": "mps" if sys.platform != "darwin" else "cuda"}, ["audit"], "runtime.device"),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_anything_is_written(tmp_path, overrides, steps, says):
    config = sample.settings_file(tmp_path)
    with pytest.raises(UserError, match=says):
        workbook.run_workbook(config, tmp_path / "run", overrides=overrides, steps=steps)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("share", "ending"), [(10_000, " left"), (0.01, "this step takes longer than estimated")]
)
def test_a_long_step_says_now_and_then_how_far_it_is(tmp_path, monkeypatch, share, ending):
    """The estimate for the second step comes from the first one's time and their shares."""
    from diag_lib.workbook import run

    monkeypatch.setattr(run, "TELL_SECONDS", 0.5)
    monkeypatch.setitem(run.SHARES, "audit", share)
    work = """import time
from diag_lib.progress import Bar
with Bar(total=9, desc="training one", unit="epoch") as bar:
    bar.update(4)
    bar.refresh()
    time.sleep(3)"""
    special = {"audit": sample.notebook("audit", work, sample.evidence_cell("audit"))}
    books, said = sample.notebooks(tmp_path / "books", **special), []
    config = sample.settings_file(tmp_path)
    code = workbook.run_workbook(
        config, tmp_path / "run", steps=["symptoms", "audit"], notebooks=books, say=said.append
    )
    assert code == 0
    told = [line for line in said if "training one: 4 of 9 epochs" in line]
    assert told and all(line.startswith("[2/2] Dataset audit: ") for line in told)
    assert all(line.endswith(ending) for line in told)


def test_nothing_is_written_into_the_dataset(tmp_path):
    config = sample.settings_file(tmp_path)
    inside = tmp_path / "data" / "run"
    with pytest.raises(UserError, match="inside the dataset"):
        workbook.run_workbook(config, inside, steps=["audit"])
    with pytest.raises(UserError, match="inside the dataset"):
        workbook.start("audit", str(config), str(inside), {})
    assert not inside.exists()
    cached = {"runtime.cache_dir": str(inside)}
    with pytest.raises(UserError, match=r"cache .* inside the dataset.*runtime.cache_dir"):
        workbook.start("audit", str(config), str(tmp_path / "run"), cached)
    assert not inside.exists()


LEAK = "import builtins, os, sys\nbuiltins.leaked = True\nos.environ['LEAKED'] = '1'\nprint(sys.executable)"
NO_LEAK = "import builtins, os\nassert not hasattr(builtins, 'leaked') and 'LEAKED' not in os.environ"
KILL = "import os, signal\nprint('still here')\nos.kill(os.getpid(), signal.SIGKILL)"
HOSTILE_OUTPUT = f"""from IPython.display import HTML, Markdown, display as show
show(HTML({sample.HOSTILE!r})); show(Markdown({sample.HOSTILE!r})); print({sample.HOSTILE!r})
display.callout("warning", {sample.HOSTILE!r})"""


@pytest.fixture(scope="module")
def failing_run(tmp_path_factory):
    """One run in which step 02 raises, 03 is killed, and the others finish."""
    base = tmp_path_factory.mktemp("workbook")
    books = sample.notebooks(
        base / "books",
        symptoms=sample.notebook("symptoms", LEAK, sample.evidence_cell("symptoms")),
        audit=sample.notebook("audit", NO_LEAK, HOSTILE_OUTPUT, sample.evidence_cell("audit")),
        teacher=sample.notebook("teacher", "## Weights", "open(run_dir / 'no_such.pth')", "print('after')"),
        logits=sample.notebook(
            "logits", "## Killed", sample.evidence_cell("logits"), KILL, "print('x')", "print('y')"
        ),
    )
    lines: list[str] = []
    out = base / "reports" / "run"
    config = sample.settings_file(base)
    code = workbook.run_workbook(config, out, notebooks=books, say=lines.append)
    return {"code": code, "out": out, "lines": lines, "books": books, "config": config, "base": base}


@pytest.mark.slow
def test_a_failed_step_gives_exit_3_and_the_others_still_run(failing_run):
    state = RunState.load(RunFolder(failing_run["out"]))
    assert failing_run["code"] == 3
    statuses = {step: line.status for step, line in state.steps.items()}
    assert statuses == {**dict.fromkeys(STEPS, "done"), "teacher": "failed", "logits": "failed"}
    assert "FileNotFoundError" in state.steps["teacher"].why
    assert "kernel died" in state.steps["logits"].why
    assert any(
        re.match(r"\[3/7\] Teacher AUC: failed after \d+ s: FileNotFoundError", line)
        for line in failing_run["lines"]
    )


@pytest.mark.slow
def test_a_killed_kernels_page_and_notebook_say_what_did_not_run(failing_run):
    text = _text(failing_run["out"] / "03_logits.html")
    assert "This step failed" in text
    assert "os.kill(os.getpid(), signal.SIGKILL)" in text
    assert "under “Killed”" in text
    assert "2 later cells did not run" in text
    saved = nbformat.read(failing_run["out"] / "notebooks" / "03_logits.ipynb", as_version=4)
    states = [cell.metadata.papermill.status for cell in saved.cells if cell.cell_type == "code"]
    assert states[-3:] == ["failed", "pending", "pending"]
    assert "What was found." in text  # what had been computed is still shown


@pytest.mark.slow
def test_steps_share_this_interpreter_but_no_state(failing_run):
    saved = (failing_run["out"] / "notebooks" / "00_symptoms.ipynb").read_text(encoding="utf-8")
    assert sys.executable in saved
    assert RunState.load(RunFolder(failing_run["out"])).steps["audit"].status == "done"


@pytest.mark.slow
def test_no_page_shows_a_path_or_runs_a_foreign_script(failing_run):
    pages = sorted(failing_run["out"].glob("*.html"))
    assert len(pages) == 8
    for page in pages:
        html = page.read_text(encoding="utf-8")
        for place in (str(failing_run["base"]), str(Path.home()) + "/", sys.prefix, "/tmp/"):
            assert place not in html, (page.name, place)
        tags = _Seen(html).tags
        assert [tag for tag, _ in tags if tag in ("script", "iframe", "link")] == ["script"]
        assert f"<script>{render.sort_script()}</script>" in html  # ours
        assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
        assert page.stat().st_size < 60_000


@pytest.mark.slow
def test_run_json_tells_how_to_run_it_again(failing_run):
    run = json.loads((failing_run["out"] / "run.json").read_text(encoding="utf-8"))
    assert run["schema"] == "diag/run/1"
    assert run["versions"]["python"]
    assert run["versions"]["torch"]
    assert run["seeds"] == [42]
    assert run["threads"] == 1
    assert run["finished"] >= run["started"]
    assert yaml.safe_load((failing_run["out"] / "settings.yaml").read_text())["teacher"]["weights"] is None


@pytest.mark.slow
def test_a_second_run_keeps_what_is_done_and_repeats_what_failed(failing_run):
    lines: list[str] = []
    books, out = failing_run["books"], failing_run["out"]
    mended = sample.notebook("logits", sample.evidence_cell("logits", "Something else was found."))
    nbformat.write(mended, books / "03_logits.ipynb")
    steps = ["symptoms", "audit", "logits"]
    code = workbook.run_workbook(failing_run["config"], out, steps=steps, notebooks=books, say=lines.append)
    assert code == 0
    assert [line.split(": ")[1].split(",")[0].split(" ")[0] for line in lines] == [
        "kept",
        "kept",
        "running",
        "done",
    ]
    # The logits' new evidence makes the earlier verdict old.
    assert RunState.load(RunFolder(out)).steps["verdict"].status == "out of date"
    lines.clear()
    changed = {"training.seed": 3}
    code = workbook.run_workbook(
        failing_run["config"], out, steps=["audit"], overrides=changed, notebooks=books, say=lines.append
    )
    assert code == 0
    assert any("running" in line for line in lines)
    assert RunState.load(RunFolder(out)).steps["symptoms"].status == "out of date"


@pytest.mark.slow
def test_a_dataset_that_changes_under_the_run_is_told_and_its_step_is_not_kept(tmp_path):
    config = sample.settings_file(tmp_path)
    picture = next(load(config).dataset.root.rglob("*.png"))
    change = f"import pathlib\npathlib.Path({str(picture)!r}).write_bytes(b'another')"
    books = sample.notebooks(
        tmp_path / "books", audit=sample.notebook("audit", change, sample.evidence_cell("audit"))
    )
    steps, out = ["symptoms", "audit", "teacher"], tmp_path / "run"
    with pytest.raises(UserError, match=r"changed during Dataset audit.*again"):
        workbook.run_workbook(config, out, steps=steps, notebooks=books, say=lambda line: None)
    lines = RunState.load(RunFolder(out)).steps
    assert [lines[step].status for step in ("audit", "teacher")] == ["failed", "not run"]
    assert "The dataset changed while the run was reading it" in _text(out / "01_audit.html")


@pytest.mark.slow
def test_a_report_on_another_dataset_is_not_replaced_unsaid(tmp_path):
    books, out = sample.notebooks(tmp_path / "books"), tmp_path / "run"
    lines: list[str] = []
    for folder in ("first", "first", "second"):
        (tmp_path / folder).mkdir(exist_ok=True)
        config = sample.settings_file(tmp_path / folder)
        workbook.run_workbook(config, out, steps=["symptoms"], notebooks=books, say=lines.append)
    told = [line for line in lines if "replaced" in line]
    assert len(told) == 1 and str(tmp_path / "first") in told[0] and "--out" in told[0]


@pytest.mark.slow
def test_fail_on_and_fresh(tmp_path):
    books = sample.notebooks(tmp_path / "books")
    config = sample.settings_file(tmp_path)
    run = {"steps": ["teacher"], "notebooks": books, "say": lambda line: None}
    assert workbook.run_workbook(config, tmp_path / "run", **run, fail_on="error") == 1
    before = RunState.load(RunFolder(tmp_path / "run")).steps["teacher"].started
    assert workbook.run_workbook(config, tmp_path / "run", **run) == 0
    assert RunState.load(RunFolder(tmp_path / "run")).steps["teacher"].started == before
    time.sleep(1)
    assert workbook.run_workbook(config, tmp_path / "run", **run, fresh=True) == 0
    assert RunState.load(RunFolder(tmp_path / "run")).steps["teacher"].started > before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "status", "why"),
    [({"cell_timeout": 15}, "failed", "time-out"), ({"time_limit": 15}, "stopped", "time limit")],
)
def test_time_outs_give_an_honest_page(tmp_path, limits, status, why):
    sleepy = sample.notebook(
        "audit", sample.evidence_cell("audit"), "import time\ntime.sleep(600)", "print('late')"
    )
    books = sample.notebooks(tmp_path / "books", audit=sleepy)
    out, began = tmp_path / "run", time.monotonic()
    code = workbook.run_workbook(
        sample.settings_file(tmp_path), out, steps=["audit"], notebooks=books, say=lambda line: None, **limits
    )
    assert code == 3
    assert time.monotonic() - began < 120
    line = RunState.load(RunFolder(out)).steps["audit"]
    assert (line.status, line.not_run) == (status, 1)
    assert why in line.why
    assert "time.sleep(600)" in _text(out / "01_audit.html")


def test_a_stop_in_the_middle_of_writing_a_notebook_still_gives_a_page(tmp_path):
    folder = RunFolder(tmp_path / "run").create()
    (folder.root / "notebooks").mkdir()
    (folder.root / "notebooks" / "01_audit.ipynb").write_text("")
    state = RunState.load(folder)
    state.steps["audit"] = StepState("stopped", why="The run was interrupted.")
    assert "The run was interrupted." in _text(render.write_page(folder, state, "audit", None))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_a_consistent_folder_and_no_process(tmp_path, stop):
    mark = f"marker_{os.getpid()}_{stop}"
    sleepy = sample.notebook(
        "teacher", f"open(run_dir / '{mark}', 'w').close()\nimport time\ntime.sleep(600)"
    )
    books = sample.notebooks(tmp_path / "books", teacher=sleepy)
    config, out = sample.settings_file(tmp_path), tmp_path / "run"
    script = (
        "import sys; from pathlib import Path; from diag_lib.workbook import run_workbook\n"
        "run_workbook(sys.argv[1], sys.argv[2], steps=['audit', 'teacher', 'logits'], notebooks=Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", script, str(config), str(out), str(books)]
    environment = {**os.environ, "PYTHONPATH": str(Path(workbook.__file__).parents[2])}
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, cwd=tmp_path)
    signal.signal(signal.SIGINT, inherited)
    try:
        waited = time.monotonic()
        while not (out / mark).exists() and time.monotonic() - waited < 120 and process.poll() is None:
            time.sleep(0.1)
        assert (out / mark).exists(), (
            process.stderr.read().decode() if process.poll() is not None else "too slow"
        )
        process.send_signal(stop)
        process.wait(60)
    finally:
        process.kill()
    assert process.returncode != 0
    statuses = {step: line.status for step, line in RunState.load(RunFolder(out)).steps.items()}
    assert (statuses["audit"], statuses["teacher"], statuses["logits"]) == ("done", "stopped", "not run")
    assert "was stopped" in _text(out / "index.html")
    assert "interrupted" in _text(out / "02_teacher.html")
    assert not list(out.glob(".*.html*"))
    if Path("/proc").is_dir():
        time.sleep(1)
        alive = [_command(process) for process in Path("/proc").glob("[0-9]*")]
        assert not [line for line in alive if "diag_lib.workbook.kernel" in line and str(tmp_path) in line]


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    from diag_lib.workbook.state import only_one

    folder = RunFolder(tmp_path / "run").create()
    with only_one(folder), pytest.raises(UserError, match="another run"), only_one(folder):
        pass
    with only_one(folder):
        pass
