"""The pages in a real browser, network cut: no request, no script, no sideways scrolling, readable in the dark."""

import os
from pathlib import Path

import axe_core
import nbformat
import pytest
import sample_run as sample

from diag_lib import workbook
from diag_lib.evidence import STEPS, Evidence, Finding, RunFolder
from diag_lib.settings import Settings
from diag_lib.workbook import index, render
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
    wide = pd.DataFrame({f"column {i} {sample.HOSTILE}": ["x" * 30] for i in range(12)})
    pixel = np.zeros((8, 8, 3), dtype=np.uint8)
    ours = [
        display.figure(fig, alt=sample.HOSTILE, caption=sample.HOSTILE),
        display.answer(finding),
        display.findings_table([finding], sample.HOSTILE),
        display.table(wide, sample.HOSTILE),
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
    index.write_home(folder)
    workbook.export_single_file(folder.root, folder.root / "export.html")
    return folder


PAGES = ("index.html", "02_teacher.html", "03_logits.html", "export.html", "../index.html")


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
    # The policy forbids scripts in the page; the debugger's own context shows what they would have left.
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('script, iframe, object, link, form').length") == 0


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
