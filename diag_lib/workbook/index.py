"""What does the reader see first? The verdict, its proof, what to paste, and how far each step got."""

import contextlib
import html
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from markupsafe import Markup

from diag_lib.display import SEVERITY_LOOK, asked, limit, meaning, number, sentence, with_interval
from diag_lib.evidence import STEP_TITLES, STEPS, Finding, RunFolder, mappings
from diag_lib.settings import Settings
from diag_lib.statistics import SIGNIFICANT
from diag_lib.workbook.bars import Row, bars, row
from diag_lib.workbook.render import environment, navigation, scrubber, step_cards
from diag_lib.workbook.scrub import Scrubber
from diag_lib.workbook.start import SETTINGS_FILE
from diag_lib.workbook.state import RUN_FILE, RunState

MAX_KEY_FINDINGS = 10
HOME_PARENT, HOME_PAGE = "reports", "index.html"
HEAD_CHARACTERS = 4096
_MARK = re.compile(r'<meta name="diag" content="(?:comparison|faults)">')
_TITLE = re.compile(r"<title>([^<]*)</title>")
TITLES = {
    "labels_inverted_train": "train labels inverted",
    "lr_too_low": "learning rate too low",
    "lr_too_high": "learning rate too high",
}
"""Causes whose id reads badly as a title."""
PROOF_SENTENCE = {
    "gain": "Removing the cause raises the AUC.",
    "inflation_removed": "Removing the cause takes a flattering AUC down to the true one.",
    "direct": "Shown directly, without training.",
}


def write_index(folder: RunFolder, state: RunState, settings: Settings | None) -> Path:
    """Write `index.html` from whatever is there: `verdict.json`, the evidence, `run.json`; nothing is required."""
    hide = scrubber(folder, settings)
    page = environment().get_template("index.html.j2").render(**context(folder, state, settings, hide))
    return folder.write_text("index.html", page)


def context(folder: RunFolder, state: RunState, settings: Settings | None, hide: Scrubber) -> dict[str, Any]:
    """All that the overview's template shows; every text is free of paths and names of the machine."""
    raw = folder.read_json("verdict.json")
    verdict = hide.tree(raw) if isinstance(raw, dict) else None
    causes = mappings(verdict, "causes")
    first = causes[0] if causes else None
    findings = list(_findings(folder))
    cards = hide.tree([{**card, "line": vars(card["line"])} for card in step_cards(folder, state)])
    return {
        "title": hide(f"{_headline(verdict)} · {state.name}"),
        "nav": navigation(folder, state, None, hide),
        "hero": hero(verdict, state, hide),
        "first": first,
        "broken": [card for card in cards if card["status"] in ("failed", "stopped")],
        "stale": [card for card in cards if card["status"] == "out of date"],
        "cards": cards,
        "gates": hide.tree(_gates(findings)),
        "proof": _proof(first),
        "patch": hide(_patch(folder)),
        "together": _together(verdict),
        "by_hand": [title_of(cause.get("id")) for cause in causes if _is_by_hand(cause)],
        "others": [{**cause, "measured": _proof(cause)} for cause in causes[1:]],
        "title_of": title_of,
        "meaning": lambda cause: Markup(meaning(cause, "What this cause means")),  # noqa: S704 - escaped there
        "undecided": mappings(verdict, "undecided"),
        "ruled_out": mappings(verdict, "ruled_out"),
        "not_raised": _not_raised(verdict) if mappings(verdict, "ruled_out") else [],
        "arms": _arms(verdict, settings),
        "findings": _finding_rows(findings, hide),
        "max_findings": MAX_KEY_FINDINGS,
        "facts": hide.tree(_facts(state)),
    }


def _not_raised(verdict: dict[str, Any] | None) -> list[str]:
    """Titles of the causes of which the verdict says nothing: no evidence asked about them, or none was gathered."""
    from diag_lib.causes import CAUSES  # a page without a verdict needs no table of causes

    parts = [mappings(verdict, part) for part in ("causes", "undecided", "ruled_out")]
    told = {str(item.get("id")) for part in parts for item in part}
    alike = [cause.get("equivalent") for cause in parts[0]]
    told |= {str(name) for names in alike if isinstance(names, list) for name in names}
    return [title_of(cause.id) for cause in CAUSES if cause.id not in told]


def title_of(cause: object) -> str:
    """`Teacher domain shift` for "teacher_domain_shift"."""
    text = TITLES.get(str(cause), str(cause).replace("_", " ").strip())
    return text[:1].upper() + text[1:]


def _headline(verdict: dict[str, Any] | None) -> str:
    if verdict is None:
        return "No verdict yet"
    causes = mappings(verdict, "causes")
    if verdict.get("healthy") is True:
        return "Healthy"
    if verdict.get("healthy") is False and causes:
        return title_of(causes[0].get("id", "cause found"))
    return "Undecided"


def hero(verdict: dict[str, Any] | None, state: RunState, hide: Scrubber) -> dict[str, str]:
    """Badge, headline and sentence of the verdict, or why there is none."""
    line = state.steps["verdict"]
    if verdict is None:
        reasons = {
            "failed": f"The verdict step failed. {line.why}",
            "stopped": f"The run was stopped. {line.why}",
        }
        text = reasons.get(
            line.status, "The verdict step has not run; the findings of the other steps are below."
        )
        return {
            "kind": "none",
            "badge": "No verdict",
            "headline": "No verdict yet",
            "summary": hide(text),
            "note": "",
        }
    causes = mappings(verdict, "causes")
    status = str(causes[0].get("status", "")) if causes else ""
    looks = {True: ("ok", "Healthy"), False: ("error", f"Cause {status}" if status else "Not healthy")}
    healthy = verdict.get("healthy")
    kind, badge = looks[healthy] if isinstance(healthy, bool) else ("open", "Undecided")
    notes = []
    if verdict.get("complete") is False:
        notes.append("Incomplete: not every step or experiment took part in this verdict.")
    if line.status == "out of date":
        notes.append("Out of date: steps have run again since this verdict was reached.")
    return {
        "kind": kind,
        "badge": badge,
        "headline": _headline(verdict),
        "summary": str(verdict.get("summary") or ""),
        "note": " ".join(notes),
    }


def _findings(folder: RunFolder) -> Iterator[Finding]:
    for step in STEPS:
        try:
            evidence = folder.read_evidence(step)
        except (TypeError, ValueError, KeyError):
            continue  # a file that is not ours any more must not take the page down
        if evidence is not None:
            yield from evidence.findings


def _gates(findings: list[Finding]) -> list[dict[str, str]]:
    """The order of decision, with this run's answers."""
    from diag_lib.verdict import GATES

    known = {finding.id: finding for finding in findings}
    rows = []
    for question, finding_id, passes in GATES:
        found = known.get(finding_id)
        if found is None or found.data.get("muted"):
            why = "" if found is None else "The teacher is not used."
            rows.append(
                {"kind": "none", "state": "Not asked", "question": question, "message": why, "figures": ""}
            )
            continue
        state, kind = ("Undecided", "open") if found.answer == "undecided" else ("Fails", "error")
        if found.answer == passes:
            state, kind = "Passes", "ok"
        figures = "" if found.value is None else with_interval(found.value, found.ci)
        figures += f" (threshold {limit(found.threshold)})" if found.threshold is not None and figures else ""
        rows.append(
            {
                "kind": kind,
                "state": state,
                "question": question,
                "message": sentence(found.message),
                "figures": figures,
            }
        )
    return rows


def _proof(cause: dict[str, Any] | None) -> dict[str, Any] | None:
    proof = cause.get("proof") if cause else None
    if not isinstance(proof, dict):
        return None
    before, after = proof.get("before"), proof.get("after")
    shown: dict[str, Any] = {
        "kind": proof.get("kind"),
        "sentence": PROOF_SENTENCE.get(str(proof.get("kind")), ""),
    }
    if isinstance(before, dict) and isinstance(after, dict):
        rows = [
            row("Before", before, "error", str(before.get("arm", ""))),
            row("After", after, "ok", str(after.get("arm", ""))),
        ]
        shown["bars"] = bars(rows)
        delta, ci, p = proof.get("delta"), proof.get("delta_ci"), proof.get("p")
        if isinstance(delta, (int, float)):
            if isinstance(p, (int, float)) and p >= SIGNIFICANT:
                shown["sentence"] = "What removing the cause brings is still open."
            shown["sides"] = " to ".join(with_interval(side.value, side.ci) for side in rows)
            shown["delta"] = f"{delta:+.2f}"
            if isinstance(ci, (list, tuple)) and len(ci) == 2:
                shown["delta"] += f" [{ci[0]:+.2f}, {ci[1]:+.2f}]"
            if isinstance(p, (int, float)):
                shown["delta"] += f", p {'< 0.0001' if p < 1e-4 else f'= {p:.2g}'}"
    return shown


def _together(verdict: dict[str, Any] | None) -> Markup | None:
    """The user's own training as it is and with every recommended setting at once; None where that was not tried."""
    arms = {str(arm.get("id")): arm for arm in mappings(verdict, "arms")}
    if not {"status_quo", "recommended"} <= arms.keys():
        return None
    now = row("As it is", arms["status_quo"], "error", "status_quo")
    then = row("As recommended", arms["recommended"], "ok", "recommended")
    better = now.value is None or (then.value is not None and then.value > now.value)
    return bars([now, then if better else replace(then, kind="error")])


def _is_by_hand(cause: dict[str, Any]) -> bool:
    fix = cause.get("fix")
    sure = cause.get("status") in ("established", "likely")
    return sure and isinstance(fix, dict) and fix.get("settings") is None


def _patch(folder: RunFolder) -> str:
    """YAML of the settings that `recommended.yaml` changes; empty when it changes none."""
    trees = []
    for name in (SETTINGS_FILE, "recommended.yaml"):
        try:
            trees.append(yaml.safe_load((folder.root / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, yaml.YAMLError):
            return ""
    changed = _difference(trees[0], trees[1])
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True) if changed else ""


def _difference(old: Any, new: Any) -> Any:
    """The part of `new` that differs from `old`, as the same nesting; None when nothing does."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = {key: _difference(old.get(key), value) for key, value in new.items() if old.get(key) != value}
        return parts or None
    return new


def _arms(verdict: dict[str, Any] | None, settings: Settings | None) -> Markup | None:
    arms = mappings(verdict, "arms")
    least = settings.thresholds.baseline_auc if settings else None
    rows: list[Row] = []
    for arm in arms:
        item = row(str(arm.get("id", "")), arm, "note", _arm_note(arm, arms))
        if least is not None and item.ci is not None:
            item = Row(item.name, item.value, item.ci, _side(item.ci, least), item.note)
        rows.append(item)
    marks = [(0.5, "chance")] + ([(least, "the student learns")] if least is not None else [])
    return bars(rows, marks) if rows else None


def _side(ci: tuple[float, float], limit: float) -> str:
    return "ok" if ci[0] > limit else "error" if ci[1] < limit else "none"


def _arm_note(arm: dict[str, Any], arms: list[dict[str, Any]]) -> str:
    """How many seeds it was trained from; that it is an earlier arm over again, where its setting changes nothing."""
    seeds, measured = arm.get("seeds"), (arm.get("auc"), arm.get("ci"))
    same = next((other for other in arms if (other.get("auc"), other.get("ci")) == measured), arm)
    again = [f"the same as {same.get('id')}"] if same is not arm and measured[0] is not None else []
    return ", ".join(
        [*again, *([f"the first of {seeds} seeds"] if isinstance(seeds, int) and seeds > 1 else [])]
    )


def _finding_rows(findings: list[Finding], hide: Scrubber) -> list[dict[str, str]]:
    """All findings, the most severe first, as plain texts."""
    order = list(SEVERITY_LOOK)
    rows = []
    for finding in sorted(findings, key=lambda item: -order.index(item.severity)):
        word, glyph, *_ = SEVERITY_LOOK[finding.severity]
        rows.append(
            {
                "kind": finding.severity,
                "word": f"{glyph} {word}",
                "rank": str(len(order) - 1 - order.index(finding.severity)),
                "message": hide(sentence(finding.message)),
                "id": finding.id,
                "asked": asked(finding),
                "figures": with_interval(finding.value, finding.ci) if finding.value is not None else "",
                "threshold": limit(finding.threshold) if finding.threshold is not None else "",
                "n": number(finding.n) if finding.n is not None else "",
            }
        )
    return rows


def _threads(facts: dict[str, Any]) -> str:
    count = facts.get("threads")
    return "1 thread" if count == 1 else f"{count} threads" if count else ""


def _facts(state: RunState) -> dict[str, str]:
    facts = state.facts
    versions = facts.get("versions") or {}
    shown = {
        "Started": state.started,
        "Finished": state.finished or "",
        "Device": f"{facts.get('device', '')} · {facts.get('precision', '')} · {_threads(facts)}",
        "Platform": str(facts.get("platform", "")),
        "Budget": str(facts.get("budget", "")),
        "Seeds": ", ".join(map(str, facts.get("seeds") or [])),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Inputs": ", ".join(f"{name} {str(value)[:10]}" for name, value in state.inputs.items() if value),
    }
    return {name: text for name, text in shown.items() if text.strip(" ·")}


def write_home(folder: RunFolder) -> None:
    """List the runs beside this one in `reports/index.html`; only where that folder is called `reports`."""
    refresh_home(folder.root.parent)


def refresh_home(parent: Path) -> None:
    """List the runs, comparisons and fault labs of a folder called `reports` in its overview."""
    if parent.name != HOME_PARENT:
        return
    runs = [_home_card(RunFolder(path.parent)) for path in sorted(parent.glob(f"*/{RUN_FILE}"))]
    shown = sorted(filter(None, runs), key=lambda run: str(run["at"] or ""), reverse=True)
    page = (
        environment()
        .get_template("home.html.j2")
        .render(title="Runs", nav="", runs=shown, others=_other_pages(parent), total=len(STEP_TITLES))
    )
    RunFolder(parent).write_text(HOME_PAGE, page)


def _home_card(folder: RunFolder) -> dict[str, Any] | None:
    """What the home page says of a run; None before it has an overview."""
    if not (folder.root / HOME_PAGE).is_file():
        return None
    state, hide = RunState.load(folder), scrubber(folder, None)
    verdict = folder.read_json("verdict.json")
    return {
        "name": hide(folder.root.name),
        "link": folder.root.name,
        "hero": hero(hide.tree(verdict) if isinstance(verdict, dict) else None, state, hide),
        "done": sum(line.status == "done" for line in state.steps.values()),
        "at": state.finished,
        "when": f"{state.finished[:16].replace('T', ' ')} UTC" if state.finished else "running",
    }


def _other_pages(parent: Path) -> list[dict[str, str]]:
    """Comparisons and fault labs: pages of ours that are no run, known by what they say of themselves."""
    found = []
    for path in sorted([*parent.glob("*.html"), *parent.glob(f"*/{HOME_PAGE}")]):
        with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
            begin = file.read(HEAD_CHARACTERS)
            title = _TITLE.search(begin)
            if title and _MARK.search(begin):
                link = quote(path.relative_to(parent).as_posix())
                found.append({"name": html.unescape(title[1]), "link": link})
    return found
