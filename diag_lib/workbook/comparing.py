"""What differs between runs: their verdicts, what each training reached, and the settings?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from diag_lib.errors import UserError
from diag_lib.evidence import STEPS, Finding, RunFolder, mappings
from diag_lib.settings import dotted
from diag_lib.workbook.bars import row
from diag_lib.workbook.scrub import Scrubber
from diag_lib.workbook.start import SETTINGS_FILE

MAX_CELL = 44
ABSENT = "–"
# Findings whose answers tell runs apart at a glance.
KEY_FINDINGS = ("audit.leakage", "teacher.auc", "logits.scale_ratio", "logits.mse", "baseline.auc")


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side; every row of a block is its label and one cell a run."""

    folders: list[RunFolder]
    names: list[str]
    verdicts: list[dict[str, Any]]
    blocks: dict[str, list[list[str]]]


VERDICT, ARMS, GAINS = "Verdict", "AUC of the arms [95%]", "Gain over the first run, same images [95%]"
FINDINGS, SETTINGS = "Findings", "Settings that differ"


def compare(runs: Sequence[str | Path]) -> str:
    """A text table, one column a run: verdict, causes, AUC of every arm, key findings, settings that differ.

    Raises `UserError` when fewer than two folders are named or one of them is no run folder.
    """
    return in_text(comparison(runs))


def in_text(found: Comparison) -> str:
    """The comparison as the terminal shows it."""
    lines = [["", *found.names]]
    for title, rows in found.blocks.items():
        if rows:
            lines += [[title.upper(), *[""] * len(found.names)], *rows]
    return _laid_out(lines)


def comparison(runs: Sequence[str | Path]) -> Comparison:
    """What the runs say, the first one being the reference. Raises `UserError` as `compare` does."""
    if len(runs) < 2:
        raise UserError("compare: name at least two run folders")
    folders = [RunFolder(run) for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        if not (folder.root / SETTINGS_FILE).is_file():
            raise UserError(f"{run}: is no run folder (it holds no {SETTINGS_FILE})")
    verdicts = [_mapping(folder.read_json("verdict.json")) for folder in folders]
    blocks = {
        VERDICT: _verdict_rows(verdicts),
        ARMS: _arm_rows(verdicts),
        GAINS: _gain_rows(folders, verdicts),
        FINDINGS: _finding_rows(folders),
        SETTINGS: _setting_rows(folders),
    }
    return Comparison(folders, _names(folders), verdicts, blocks)


def _names(folders: Sequence[RunFolder]) -> list[str]:
    names = [folder.root.name for folder in folders]
    distinct = len(set(names)) == len(names)
    return names if distinct else [f"{folder.root.parent.name}/{folder.root.name}" for folder in folders]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _verdict_rows(verdicts: Sequence[dict[str, Any]]) -> list[list[str]]:
    health = [_health(verdict) for verdict in verdicts]
    causes = [
        "; ".join(f"{c.get('id')} ({c.get('status')})" for c in mappings(v, "causes")) or ABSENT
        for v in verdicts
    ]
    open_ones = [", ".join(str(c.get("id")) for c in mappings(v, "undecided")) or ABSENT for v in verdicts]
    return [["healthy", *health], ["causes", *causes], ["still open", *open_ones]]


def _health(verdict: dict[str, Any]) -> str:
    if not verdict:
        return "no verdict"
    said = verdict.get("healthy")
    words = {True: "healthy", False: "not healthy", None: "undecided"}
    return words[said] if said is None or isinstance(said, bool) else ABSENT


def _arm_rows(verdicts: Sequence[dict[str, Any]]) -> list[list[str]]:
    arms = [{str(arm.get("id")): row("", arm) for arm in mappings(verdict, "arms")} for verdict in verdicts]
    ids = list(dict.fromkeys(name for found in arms for name in found))
    return [[name, *(_auc(found.get(name)) for found in arms)] for name in ids]


def _gain_rows(folders: Sequence[RunFolder], verdicts: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Each arm's AUC minus that of the first run's; only between runs on the very same dataset."""
    from diag_lib.probes.compare import common_scores
    from diag_lib.training import load_arm

    data = [
        _mapping(_mapping(folder.read_json("run.json")).get("inputs")).get("dataset") for folder in folders
    ]
    first, *others = folders
    same = [bool(data[0]) and one == data[0] for one in data[1:]]
    ids = dict.fromkeys(str(arm.get("id")) for verdict in verdicts for arm in mappings(verdict, "arms"))
    table = []
    for name in ids if any(same) else ():
        before = load_arm(first, name)
        cells = [ABSENT if before is None else "reference"]
        for folder, comparable in zip(others, same, strict=True):
            after = load_arm(folder, name) if comparable else None
            if before is None or after is None:
                cells.append(ABSENT)
                continue
            scores = common_scores({"before": before.val_scores, "after": after.val_scores})
            found = scores.difference("before", "after")
            cells.append(f"{found.delta:+.2f} [{found.ci[0]:+.2f}, {found.ci[1]:+.2f}]")
        if any(cell not in (ABSENT, "reference") for cell in cells):
            table.append([name, *cells])
    return table


def _auc(item: Any) -> str:
    if item is None or item.value is None:
        return ABSENT
    return f"{item.value:.2f}" + (f" [{item.ci[0]:.2f}, {item.ci[1]:.2f}]" if item.ci else "")


def _finding_rows(folders: Sequence[RunFolder]) -> list[list[str]]:
    found = [{item.id: item.answer for item in findings(folder)} for folder in folders]
    return [
        [name, *(answers.get(name, ABSENT) for answers in found)]
        for name in KEY_FINDINGS
        if any(name in answers for answers in found)
    ]


def findings(folder: RunFolder) -> list[Finding]:
    """What the steps of a run found, in their order."""
    evidence = [one for step in STEPS if (one := folder.read_evidence(step)) is not None]
    return [item for one in evidence for item in one.findings]


def _setting_rows(folders: Sequence[RunFolder]) -> list[list[str]]:
    hide = Scrubber()
    flat = []
    for folder in folders:
        try:
            tree = yaml.safe_load((folder.root / SETTINGS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            tree = None
        flat.append(dotted(_mapping(tree)))
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    return [
        [key, *(hide(str(settings.get(key, ABSENT))) for settings in flat)]
        for key in keys
        if len({str(settings.get(key)) for settings in flat}) > 1
    ]


def _laid_out(lines: Sequence[Sequence[str]]) -> str:
    cells = [[_short(cell) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _short(cell: str) -> str:
    text = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in cell
    )
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"
