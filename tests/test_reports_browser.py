"""The pages in a real browser, network cut: nothing fetched or run, no sideways scrolling, readable in the dark."""

import os
import zipfile
from pathlib import Path

import axe_core
import nbformat
import pytest
import sample_run as sample

from diag_lib import workbook
from diag_lib.evidence import STEPS, Evidence, Finding, RunFolder
from diag_lib.faults.page import write_report
from diag_lib.settings import Settings
from diag_lib.workbook import index, render
from diag_lib.workbook.comparing import comparison
from diag_lib.workbook.comparison_page import write_comparison
from diag_lib.workbook.state import RunState, StepState

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHROMIUM = Path("/usr/bin/chromium")
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PHONE = {"width": 390, "height": 844}


def _missing() -> str:
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return "" if CHROMIUM.exists() else f"{CHROMIUM} does not exist"


@pytest.fixture(scope="module")
def browser():
    reason = _missing()
    if reason:
        text = f"THE REPORT WAS NOT LOOKED AT IN A BROWSER: {reason}"
        (pytest.fail if os.environ.get("DIAG_REQUIRE_BROWSER") == "1" else pytest.skip)(text)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


def _outputs() -> list[nbformat.NotebookNode]:
    """What notebooks put out: hostile markup of every kind, wide tables, figures of our own, raw pictures."""
    import numpy as np
    import pandas as pd

    from diag_lib import display
    from diag_lib.plots import style

    fig, ax = style.new_figure()
    ax.plot([0, 1], [0, 1], color=style.STUDENT)
    style.finding_title(ax, "The student follows " + sample.HOSTILE)
    finding = Finding("teacher.auc", "error", "no", sample.HOSTILE, 0.5, (0.4, 0.6), 0.55, 100)
    wide = pd.DataFrame({f"column {i} {sample.HOSTILE}": ["x" * 30, sample.HOSTILE] for i in range(12)})
    pixel = np.zeros((8, 8, 3), dtype=np.uint8)
    ours = [
        display.figure(fig, alt=sample.HOSTILE, caption=sample.HOSTILE),
        display.answer(finding),
        display.findings_table([finding, finding], sample.HOSTILE),
        display.table(wide, sample.HOSTILE),
        display.table(wide, "Ruled out"),  # as a section of the overview: the export holds both
        display.facts({sample.HOSTILE: sample.HOSTILE, "long": "y" * 400}),
        display.thumbnails([pixel] * 3, [sample.HOSTILE] * 3, sample.HOSTILE),
        *(
            display.callout(severity, sample.HOSTILE, sample.HOSTILE)
            for severity in ("ok", "note", "warning", "error")
        ),
    ]
    raw = [sample.HOSTILE, "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>", wide.to_html()]
    data = [{"text/html": item.data} for item in ours] + [{"text/html": text} for text in raw]
    data += [
        {"text/markdown": sample.HOSTILE + "![x](http://127.0.0.1:9/x.png)"},
        {"application/javascript": "window.hacked = 1", "text/plain": "js"},
        {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "slider"},
        {"image/png": PIXEL},
    ]
    made = [nbformat.v4.new_output("display_data", item) for item in data]
    made.append(
        nbformat.v4.new_output(
            "stream", name="stdout", text="\x1b[31mred\x1b[0m " + "z" * 500 + sample.HOSTILE
        )
    )
    made.append(
        nbformat.v4.new_output(
            "error", ename="ValueError", evalue=sample.HOSTILE, traceback=["\x1b[31m" + sample.HOSTILE]
        )
    )
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """A report full of hostile texts, with a failed, a stopped and a missing step."""
    folder = RunFolder(tmp_path_factory.mktemp("browser") / "reports" / "case").create()
    state, settings = RunState(sample.HOSTILE), Settings()
    verdict = sample.verdict(summary=sample.HOSTILE)
    verdict["causes"][0]["fix"]["actions"] = [sample.HOSTILE, "w" * 300]
    verdict["arms"].append({"id": sample.HOSTILE, "auc": 0.7, "ci": [0.6, 0.8]})
    folder.write_json("verdict.json", verdict)
    folder.write_text("settings.yaml", settings.to_yaml())
    changed = settings.with_overrides({"teacher.weights": sample.HOSTILE.replace("/", "")})
    folder.write_text("recommended.yaml", changed.to_yaml())
    finding = Finding("teacher.auc", "error", "no", sample.HOSTILE, 0.5, (0.4, 0.6), 0.55, 100)
    folder.write_evidence(Evidence("teacher", [finding] * 12))
    (folder.root / "notebooks").mkdir()
    for step in ("audit", "teacher", "logits"):
        made = sample.notebook(
            step, f"## Numbers {sample.HOSTILE}", f"print({sample.HOSTILE!r})  # " + "c" * 200
        )
        made.cells[-1].outputs = _outputs() if step == "teacher" else []
        made.cells[-1].metadata["diag"] = {"state": "not run" if step == "audit" else "failed"}
        nbformat.write(made, folder.root / "notebooks" / f"{STEPS.index(step):02d}_{step}.ipynb")
        state.steps[step] = StepState("failed", 3.0, sample.HOSTILE, cell=len(made.cells) - 1, not_run=1)
    for step in ("audit", "teacher", "logits"):
        render.write_page(folder, state, step, settings)
    state.steps["logits"].status = "stopped"
    index.write_index(folder, state, settings)
    state.save(folder)
    render.refresh_navigation(folder, state)
    workbook.export_single_file(folder.root, folder.root / "export.html")
    other = RunFolder(folder.root.parent / f"other {sample.HOSTILE.replace('/', '')}").create()
    other.write_text("settings.yaml", changed.to_yaml())
    other.write_json("verdict.json", sample.verdict(healthy=True, causes=[], summary=sample.HOSTILE))
    RunState(sample.HOSTILE).save(other)
    index.write_index(other, RunState.load(other), changed)
    write_comparison(comparison([folder.root, other.root]), folder.root.parent / "both.html")
    write_report(
        _lab(), {"right_first": 0.5, "controls": 1}, RunFolder(folder.root.parent / "faults").create()
    )
    return folder


def _lab() -> list[dict[str, object]]:
    """Rows of a fault lab: one right, one wrong, one that did no harm, one control."""
    cases = [
        ("leakage", ["leakage"], True),
        ("capacity", ["<img src=x onerror=hit()>"], True),
        ("lr", [], False),
    ]
    common = {"seed": 201, "status": "likely", "healthy": False, "seconds": 12.5, "all_named": False}
    rows = [
        {"case": case, "kind": "fault", "expected": [case], "named": named, "first_right": case in named}
        | {"harm": {"kills": kills}}
        for case, named, kills in cases
    ]
    rows.append({"case": "quiet", "kind": "control", "expected": [], "named": [], "first_right": False})
    return [{**common, **each} for each in rows]


PAGES = (
    "index.html",
    "02_teacher.html",
    "03_logits.html",
    "export.html",
    "../index.html",
    "../both.html",
    "../faults/index.html",
)


@pytest.fixture(params=PAGES)
def page(request, browser, run):
    """One page, opened offline; requests and dialogs are collected in `page.requested`."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True)
    opened = context.new_page()
    opened.requested = []
    opened.on("request", lambda request: opened.requested.append(request.url))
    opened.goto((run.root / request.param).resolve().as_uri())
    yield opened
    context.close()


def test_pages_request_nothing_and_run_nothing(page):
    page.wait_for_timeout(300)
    assert [url for url in page.requested if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in page.requested if url.startswith("file:")]) == 1
    # The policy forbids foreign scripts; the debugger's own context shows what they would have left.
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('iframe, object, link, form').length") == 0
    assert page.evaluate("[...document.scripts].map(s => s.textContent)") == [render.sort_script()]


def test_every_picture_has_a_description_and_the_page_has_landmarks(page):
    assert page.evaluate("[...document.images].filter(i => !i.alt.trim()).length") == 0
    unnamed = "[...document.querySelectorAll('svg')].filter(s => !s.getAttribute('aria-label')).length"
    assert page.evaluate(unnamed) == 0
    assert page.evaluate("document.querySelectorAll('main').length") == 1
    assert page.evaluate("document.querySelectorAll('h1').length") >= 1
    assert page.evaluate("document.documentElement.lang") == "en"
    loaded = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert page.evaluate(loaded)


def test_no_sideways_scrolling_on_a_phone(page):
    page.set_viewport_size(PHONE)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


# WCAG relative luminance of every visible text against the nearest opaque (or blended) background.
CONTRAST = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m.length > 3 ? m[3] : 1]; };
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3]));
  const curve = v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
  const light = rgb => { const [r, g, b] = rgb.map(curve);
    return .2126 * r + .7152 * g + .0722 * b; };
  const ground = e => { const layers = []; for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c[3] > 0) layers.push(c); if (c[3] === 1) break; }
    let base = [255, 255, 255];
    for (const layer of layers.reverse()) base = over(layer, base); return base; };
  const opacity = e => { let o = 1; for (; e; e = e.parentElement) o *= +getComputedStyle(e).opacity; return o; };
  document.querySelectorAll('details').forEach(d => d.open = true);
  const bad = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) { const e = walker.currentNode.parentElement; if (!walker.currentNode.data.trim()) continue;
    const box = e.getBoundingClientRect(); if (box.width < 2 || box.right < 0) continue;
    const back = ground(e), ink = parse(getComputedStyle(e).color); ink[3] *= opacity(e);
    const a = light(over(ink, back)), b = light(back), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5)
      bad.push([e.tagName, e.className, walker.currentNode.data.trim().slice(0, 30), ratio.toFixed(2)]); }
  return bad; }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(page, scheme):
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate(CONTRAST) == []
    dark = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 100"
    )
    assert dark == (scheme == "dark")


def test_print_shows_the_content_without_the_bar(page):
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(
        "[...document.querySelectorAll('header.top')].every(e => getComputedStyle(e).display === 'none')"
    )
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_links_between_pages_lead_somewhere(run, browser):
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto((run.root / "index.html").as_uri())
    page.click("a[href='02_teacher.html'] >> nth=0")
    assert page.locator("h1").first.inner_text().startswith("02 · Teacher AUC")
    page.click("a[rel=next]")
    assert "03_logits" in page.url
    page.click("a.home")
    assert page.url.endswith("index.html")
    context.close()


def _opened(browser, url: str, **how):
    page = browser.new_context(offline=True, viewport={"width": 1200, "height": 900}, **how).new_page()
    page.goto(url)
    return page


def test_the_policy_runs_the_sorting_and_no_other_script(run, browser, tmp_path):
    """Even markup that no cleaning has seen: the page's own policy holds."""
    text = (run.root / "02_teacher.html").read_text(encoding="utf-8")
    hostile = (
        sample.HOSTILE + "<svg onload='window.hacked=1'></svg><a href='javascript:window.hacked=1'>go</a>"
    )
    (tmp_path / "page.html").write_text(text.replace("<article", hostile + "<article", 1), encoding="utf-8")
    page = _opened(browser, (tmp_path / "page.html").as_uri())
    page.click("text=go")
    page.wait_for_timeout(300)
    assert page.evaluate("document.scripts.length") == 2
    assert page.evaluate("window.hacked") is None
    assert page.locator("th button").count() > 0
    page.context.close()


MISSING = "–"
COLUMNS = {
    "with interval": ["0.51 [0.47, 0.55]", MISSING, "-0.20 [-0.30, -0.10]", "0.098", "+1e-3"],
    "grouped": ["1,234", "987", MISSING, "12,345,678", "−3"],
    "per cent": ["12 %", "9%", "100 %", "", "9.5 %"],
    "named": ["arm 10", "arm 9", "Arm 1", MISSING, "<b>bold</b>"],
    "mixed": ["3 seeds", "<0.001", "none of it", "∞", "nan"],
}
ASCENDING = {
    "with interval": ["-0.20 [-0.30, -0.10]", "+1e-3", "0.098", "0.51 [0.47, 0.55]", MISSING],
    "grouped": ["−3", "987", "1,234", "12,345,678", MISSING],
    "per cent": ["9%", "9.5 %", "12 %", "100 %", ""],
    "named": ["<b>bold</b>", "Arm 1", "arm 9", "arm 10", MISSING],
    "mixed": ["<0.001", "3 seeds", "∞", "none of it", "nan"],
}
DESCENDING = {
    "with interval": ["0.51 [0.47, 0.55]", "0.098", "+1e-3", "-0.20 [-0.30, -0.10]", MISSING],
    "mixed": ["∞", "3 seeds", "<0.001", "none of it", "nan"],
}


@pytest.fixture(scope="module")
def table_page(tmp_path_factory) -> Path:
    """A step's page with the table of `COLUMNS` under a hostile caption."""
    import pandas as pd

    from diag_lib import display

    folder = RunFolder(tmp_path_factory.mktemp("tables") / "run").create()
    made = sample.notebook("teacher", "## Numbers", "table")
    shown = display.table(pd.DataFrame(COLUMNS), sample.HOSTILE)
    # Headings of two lines, as they stand in narrow windows.
    wide = display.table(
        pd.DataFrame({f"a heading of many words {i}": ["x" * 20, "y"] for i in range(9)}), "Wide"
    )
    made.cells[-1].outputs = [
        nbformat.v4.new_output("display_data", {"text/html": part.data}) for part in (shown, wide)
    ]
    (folder.root / "notebooks").mkdir()
    nbformat.write(made, folder.root / "notebooks" / "02_teacher.ipynb")
    state = RunState("run")
    state.steps["teacher"] = StepState("done", 1.0)
    path = render.write_page(folder, state, "teacher", Settings())
    index.write_index(folder, state, Settings())
    return path


def _column(page, name: str) -> list[str]:
    at = list(COLUMNS).index(name) + 1
    return page.locator(f"main table >> nth=0 >> tbody tr td:nth-child({at})").all_inner_texts()


def test_tables_sort_numbers_as_numbers_and_keep_missing_last(table_page, browser):
    page = _opened(browser, table_page.as_uri())
    for name, expected in ASCENDING.items():
        heading = page.locator("main th", has_text=name)
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == "ascending"
        assert page.locator("[aria-sort]").count() == 1
        assert _column(page, name) == expected
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == "descending"
        assert _column(page, name) == DESCENDING.get(name, [*expected[-2::-1], expected[-1]])
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") is None
        assert _column(page, name) == COLUMNS[name]  # as it was written
    page.context.close()


def test_tables_sort_by_the_keyboard(table_page, browser):
    page = _opened(browser, table_page.as_uri())
    heading = page.locator("main th", has_text="grouped")
    for _ in range(60):
        page.keyboard.press("Tab")
        if heading.locator("button:focus").count():
            break
    page.keyboard.press("Enter")
    assert _column(page, "grouped") == ASCENDING["grouped"]
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "descending"
    assert heading.locator("button:focus").count() == 1  # the focus stays where it was
    page.context.close()


BOXES = """() => [...document.querySelectorAll('main *:not(th button)')].map(e => {
  const b = e.getBoundingClientRect(); return [e.tagName, b.x, b.y, b.width, b.height].join(' '); })"""


@pytest.mark.parametrize("width", [390, 700, 1200])
def test_the_script_moves_nothing_and_the_page_is_whole_without_it(table_page, browser, width):
    found = []
    for script in (False, True):
        page = _opened(browser, table_page.as_uri(), java_script_enabled=script)
        page.set_viewport_size({"width": width, "height": 900})
        assert (page.locator("th button").count() > 0) == script
        assert _column(page, "grouped") == COLUMNS["grouped"]
        found.append(page.evaluate(BOXES))
        page.context.close()
    assert found[0] == found[1]


def test_tables_sort_in_exports_too(run, browser, tmp_path):
    """Rewriting a page for an export keeps the script to the byte, or its hash would not hold."""
    workbook.export_single_file(run.root, tmp_path / "out.zip")
    workbook.export_single_file(run.root, tmp_path / "out.html")
    zipfile.ZipFile(tmp_path / "out.zip").extractall(tmp_path)
    for name in ("out.html", "out/index.html", "out/02_teacher.html"):
        page = _opened(browser, (tmp_path / name).as_uri())
        assert page.locator("th button").count() > 0, name
        page.context.close()


def test_a_comparison_and_a_fault_lab_are_linked_from_the_home_page(run, browser):
    page = _opened(browser, (run.root.parent / "index.html").as_uri())
    for words in ("Comparison", "Fault lab"):
        page.click(f"main a:has-text('{words}')")
        assert page.locator("h1").count() == 1
        page.go_back()
    page.click("main a:has-text('Comparison')")
    page.click("main a:has-text('case')")
    assert page.url.endswith("case/index.html")
    page.context.close()


CUT = """() => [...document.querySelectorAll('.diag-scroll')].filter(
  e => getComputedStyle(e).overflowX !== 'visible').length"""


def test_print_cuts_no_table_and_shows_what_a_click_would(page):
    page.emulate_media(media="print")
    assert page.evaluate(CUT) == 0
    hidden = page.locator("details.card li")
    assert all(hidden.nth(i).bounding_box()["height"] > 0 for i in range(hidden.count()))


AXE = """async () => {
  document.querySelectorAll('details').forEach(d => d.open = true);
  const found = await axe.run(document, {resultTypes: ['violations']});
  return found.violations.map(v => `${v.id}: ${v.help}: ${v.nodes[0].html.slice(0, 200)}`); }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_core_finds_nothing(browser, run, scheme):
    """The pages' own policy forbids the checker too: it runs in a context that ignores the policy."""
    script = axe_core.source()
    context = browser.new_context(offline=True, bypass_csp=True, color_scheme=scheme)
    page = context.new_page()
    found = {}
    for name in PAGES:
        page.goto((run.root / name).resolve().as_uri())
        page.evaluate(script)
        found[name] = page.evaluate(AXE)
    context.close()
    assert {name: faults for name, faults in found.items() if faults} == {}
