"""How do I share a comparison of runs? As one page of the reports' design, beside the terminal's table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diag_lib.display import ANSWER_WORD, SEVERITY_LOOK, with_interval
from diag_lib.errors import UserError
from diag_lib.evidence import FINDINGS, SEVERITIES, Finding, RunFolder, mappings
from diag_lib.workbook import comparing
from diag_lib.workbook.bars import bars
from diag_lib.workbook.bars import row as bar_row
from diag_lib.workbook.comparing import ABSENT, Comparison
from diag_lib.workbook.export import refuse_place
from diag_lib.workbook.index import HOME_PAGE, hero, refresh_home, title_of
from diag_lib.workbook.render import environment
from diag_lib.workbook.scrub import Scrubber
from diag_lib.workbook.state import RunState

SHOWN_BY_BARS = {"status_quo": "Your training as configured", "recommended": "With the recommended settings"}
MOST_NAMES = 3


def write_comparison(found: Comparison, out: str | Path) -> Path:
    """Write the runs side by side as the page `out`; a reports home beside it then lists the page.

    Raises
    ------
    UserError : `out` is no .html, is a page of one of the runs, lies in one of their datasets or cannot be written.
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{out}: the page to write must end in .html")
    if out.name == HOME_PAGE:
        raise UserError(f"{out}: {HOME_PAGE} is the name of overviews; choose another file")
    for folder in found.folders:
        refuse_place(folder, out)
    page = environment().get_template("comparison.html.j2").render(**_context(found, out.resolve().parent))
    try:
        written = RunFolder(out.parent).write_text(out.name, page)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another file") from None
    refresh_home(out.resolve().parent)
    return written


def _context(found: Comparison, place: Path) -> dict[str, Any]:
    """All that the template shows; every text is free of paths and names of the machine."""
    hide = Scrubber([(folder.root, name) for folder, name in zip(found.folders, found.names, strict=True)])
    names = [hide(name) for name in found.names]
    looks = [
        hero(hide.tree(verdict) or None, RunState.load(folder), hide)
        for folder, verdict in zip(found.folders, found.verdicts, strict=True)
    ]
    whole = len(names) <= MOST_NAMES
    said = [f"{name}: {look['headline']}" for name, look in zip(names, looks, strict=True)]
    return {
        "title": f"Comparison: {', '.join(names) if whole else f'{len(names)} runs'}",
        "headline": " · ".join(said) if whole else f"{len(names)} runs side by side",
        "nav": "",
        "names": names,
        "runs": [
            {
                "name": name,
                "link": _link(folder, place),
                "hero": look,
                "causes": [_named(cause, hide) for cause in mappings(verdict, "causes")],
                "open": [title_of(hide(str(item.get("id")))) for item in mappings(verdict, "undecided")],
            }
            for folder, name, look, verdict in zip(found.folders, names, looks, found.verdicts, strict=True)
        ],
        "pictures": _pictures(found, names),
        "arms": hide.tree(found.blocks[comparing.ARMS]),
        # Without the column of the first run, which says "reference" in every row.
        "gains": [[row[0], *row[2:]] for row in hide.tree(found.blocks[comparing.GAINS])],
        "findings": _findings(found.folders, hide),
        "settings": hide.tree(found.blocks[comparing.SETTINGS]),
    }


def _link(folder: RunFolder, place: Path) -> str | None:
    """The run's overview as seen from the page, where it lies below the page's folder: else it would tell places."""
    page = folder.root.resolve() / HOME_PAGE
    return page.relative_to(place).as_posix() if page.is_file() and page.is_relative_to(place) else None


def _named(cause: dict[str, Any], hide: Scrubber) -> str:
    return hide(f"{title_of(cause.get('id'))} ({cause.get('status')})")


def _pictures(found: Comparison, names: Sequence[str]) -> list[dict[str, Any]]:
    """The arms that every reader asks for first, one bar a run."""
    pictures = []
    for arm, title in SHOWN_BY_BARS.items():
        rows = []
        for name, verdict in zip(names, found.verdicts, strict=True):
            raw = next((item for item in mappings(verdict, "arms") if item.get("id") == arm), None)
            rows.append(bar_row(name, raw))
        if any(item.value is not None for item in rows):
            pictures.append({"title": title, "bars": bars(rows)})
    return pictures


def _findings(folders: Sequence[RunFolder], hide: Scrubber) -> list[dict[str, Any]]:
    """Findings on which the runs do not agree, the most severe first; one cell a run."""
    known = [{item.id: item for item in comparing.findings(folder)} for folder in folders]
    ids = list(dict.fromkeys(name for found in known for name in found))
    rows = []
    for name in ids:
        found = [one.get(name) for one in known]
        if len({(item.severity, item.answer) if item else None for item in found}) > 1:
            worst = max(SEVERITIES.index(item.severity) for item in found if item)
            statement = FINDINGS.get(name, "")
            rows.append(
                (worst, {"id": hide(name), "asked": statement, "cells": [_cell(item) for item in found]})
            )
    rows.sort(key=lambda pair: -pair[0])
    return [shown for _, shown in rows]


def _cell(finding: Finding | None) -> dict[str, str]:
    if finding is None:
        return {"kind": "none", "word": ABSENT, "answer": "", "figures": "", "rank": str(len(SEVERITIES))}
    word, glyph, *_ = SEVERITY_LOOK[finding.severity]
    return {
        "kind": finding.severity,
        "word": f"{glyph} {word}",
        "answer": ANSWER_WORD[finding.answer],
        "figures": "" if finding.value is None else with_interval(finding.value, finding.ci),
        "rank": str(len(SEVERITIES) - 1 - SEVERITIES.index(finding.severity)),
    }
