"""What does a step look like to someone without Jupyter? One self-contained page, readable anywhere."""

import base64
import contextlib
import hashlib
import logging
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from diag_lib import __version__
from diag_lib.evidence import STEP_TITLES, STEPS, RunFolder
from diag_lib.progress import duration
from diag_lib.settings import Settings
from diag_lib.workbook.sanitize import clean
from diag_lib.workbook.scrub import Scrubber
from diag_lib.workbook.state import RunState

TEMPLATES = Path(__file__).resolve().parent / "templates"
# How to install where a notebook runs alone says nothing to the reader of its page.
_NOTEBOOK_ONLY = re.compile(r"\n\n\*Where `diag_lib` is missing\*.*?(?=\n\n|\Z)", re.DOTALL)
_NAV = re.compile(r"<!--nav-->.*?<!--/nav-->", re.DOTALL)
SHORT_TITLES = {
    "symptoms": "Symptoms",
    "audit": "Audit",
    "teacher": "Teacher",
    "logits": "Logits",
    "baseline": "Baseline",
    "distillation": "Distillation",
    "verdict": "Verdict",
}
# status -> (glyph, kind of badge)
STATUS_LOOK = {
    "done": ("✓", "ok"),
    "failed": ("✕", "error"),
    "stopped": ("■", "error"),
    "running": ("…", "note"),
    "not run": ("–", "none"),
    "out of date": ("!", "warning"),
}


def page_name(step: str) -> str:
    """`02_teacher.html` for "teacher"."""
    return f"{STEPS.index(step):02d}_{step}.html"


def scrubber(folder: RunFolder, settings: Settings | None) -> Scrubber:
    """What hides this run's places; the run folder and the dataset keep telling names."""
    places: list[tuple[str | Path, str]] = [(folder.root, "RUN")]
    if settings is not None:
        cache = settings.runtime.cache_dir or folder.default_cache
        places += [
            (settings.dataset.root, "DATASET"),
            (settings.runtime.weights_dir, "WEIGHTS"),
            (cache, "CACHE"),
        ]
    return Scrubber(places)


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The page templates, escaping everything by default."""
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    jinja.filters["seconds"] = duration
    jinja.globals["css"] = Markup(  # noqa: S704 - our own file
        re.sub(r"\s*\n\s*", "\n", (TEMPLATES / "style.css").read_text(encoding="utf-8")).strip()
    )
    script = sort_script()
    jinja.globals["sort_script"] = Markup(script)  # noqa: S704 - our own file
    jinja.globals["script_source"] = Markup("'sha256-{}'").format(_sha256(script))
    jinja.globals["footer"] = (
        f"diag {__version__} · this page is one file and makes no requests; its only script sorts tables"
    )
    return jinja


def sort_script() -> str:
    """The one script of a page; the page's policy names it by its hash, so that no other text can run."""
    return (TEMPLATES / "sort.js").read_text(encoding="utf-8").strip()


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def step_cards(folder: RunFolder, state: RunState) -> list[dict[str, Any]]:
    """One mapping a step for navigation and overview; `page` is None when there is none."""
    cards = []
    for number, step in enumerate(STEPS):
        line = state.steps[step]
        glyph, kind = STATUS_LOOK[line.status]
        page = page_name(step) if (folder.root / page_name(step)).is_file() else None
        cards.append(
            {
                "id": step,
                "number": f"{number:02d}",
                "title": SHORT_TITLES[step],
                "long_title": STEP_TITLES[step],
                "status": line.status,
                "glyph": "" if line.status == "done" else glyph,
                "kind": kind,
                "page": page,
                "line": line,
            }
        )
    return cards


def navigation(folder: RunFolder, state: RunState, current: str | None, hide: Scrubber) -> Markup:
    """The bar on top of every page."""
    cards = step_cards(folder, state)
    for card in cards:
        if card["id"] == current:
            card["page"] = page_name(card["id"])
    text = (
        environment().get_template("nav.html.j2").render(steps=cards, current=current, name=hide(state.name))
    )
    return Markup(text)  # noqa: S704 - rendered with escaping


def write_page(folder: RunFolder, state: RunState, step: str, settings: Settings | None) -> Path:
    """Render the executed notebook of `step`, whatever state it is in, to its page in the run folder."""
    import nbformat

    hide = scrubber(folder, settings)
    line = state.steps[step]
    path = folder.root / "notebooks" / f"{STEPS.index(step):02d}_{step}.ipynb"
    notebook: Any = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call,unused-ignore]
    with contextlib.suppress(OSError, ValueError):  # not there, or a stop fell into its writing
        notebook = nbformat.read(str(path), as_version=4)  # type: ignore[no-untyped-call,unused-ignore]
    fragment = clean(_fragment(notebook), hide)
    if "<h1" not in fragment:
        fragment = f"<h1>{STEP_TITLES[step]}</h1>{fragment}"
    cards = step_cards(folder, state)
    here = STEPS.index(step)
    html = (
        environment()
        .get_template("step.html.j2")
        .render(
            title=hide(f"{STEP_TITLES[step]} · {state.name}"),
            nav=navigation(folder, state, step, hide),
            fragment=Markup(fragment),  # noqa: S704 - cleaned above
            line=_scrubbed(line, hide),
            where=_where(notebook, line.cell, hide),
            previous={**cards[here - 1], "page": page_name(STEPS[here - 1])} if here else None,
            next={**cards[here + 1], "page": page_name(STEPS[here + 1])} if here + 1 < len(STEPS) else None,
        )
    )
    return folder.write_text(page_name(step), html)


def _scrubbed(line: Any, hide: Scrubber) -> dict[str, Any]:
    return {**vars(line), "why": hide(line.why)}


def _fragment(notebook: Any) -> str:
    """The notebook's cells as HTML by nbconvert, with our templates and without anything fetched."""
    from nbconvert.exporters.html import HTMLExporter
    from traitlets.config import Config

    shown = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]
    exporter = HTMLExporter(  # type: ignore[no-untyped-call,unused-ignore]
        config=Config({"NbConvertBase": {"display_data_priority": shown}}),
        template_name="diag",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_anchor_links=True,
    )
    exporter.log.setLevel(logging.ERROR)
    for cell in notebook.cells[:1]:
        cell.source = _NOTEBOOK_ONLY.sub("", cell.source)
    injected = any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)
    return str(exporter.from_notebook_node(notebook, resources={"injected": injected})[0])


def _where(notebook: Any, cell: int | None, hide: Scrubber) -> dict[str, str] | None:
    """The failed cell in words: which heading it stands under, and its first line."""
    if cell is None or cell >= len(notebook.cells):
        return None
    heading = ""
    for earlier in notebook.cells[:cell]:
        if earlier.cell_type == "markdown":
            found = re.findall(r"^#+\s+(.+)$", earlier.source, re.MULTILINE)
            heading = found[-1] if found else heading
    number = sum(1 for earlier in notebook.cells[: cell + 1] if earlier.cell_type == "code")
    lines = [text for text in notebook.cells[cell].source.splitlines() if text.strip()]
    place = f"code cell {number}" + (f", under “{heading}”" if heading else "")
    return {"place": hide(place), "code": hide(lines[-1].strip() if lines else "(empty)")}


def refresh_navigation(folder: RunFolder, state: RunState) -> None:
    """Bring the bar of all pages up to date; remove links to pages that were never made."""
    hide = scrubber(folder, None)
    for step in STEPS:
        path = folder.root / page_name(step)
        if path.is_file():
            bar = f"<!--nav-->{navigation(folder, state, step, hide)}<!--/nav-->"
            old = path.read_text(encoding="utf-8")
            text = _NAV.sub(bar.replace("\\", r"\\"), old, count=1)
            folder.write_text(page_name(step), _without_dead_links(folder, text))


def _without_dead_links(folder: RunFolder, text: str) -> str:
    for step in STEPS:
        if not (folder.root / page_name(step)).is_file():
            text = re.sub(
                rf'<a rel="(?:prev|next)" href="{page_name(step)}">[^<]*</a>', "<span></span>", text
            )
    return text
