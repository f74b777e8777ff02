"""`python -m docs.make_causes [FAULT_LAB_DIR]`: writes causes.md from the table of causes, and a picture for each.

The folder is what `diag faults --suite full --out FAULT_LAB_DIR` has left. A cause whose verdict is missing there, or
names another cause first, keeps the picture that it has. Without a folder only the page is written.
"""

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diag_lib.causes import CAUSES, Cause
from diag_lib.causes_words import EVIDENCE, proof, told_apart
from diag_lib.faults.inject import FAULTS
from diag_lib.screens import Case
from diag_lib.settings import Settings, dotted

HERE = Path(__file__).parent
PAGE, PICTURES = HERE / "causes.md", HERE / "causes"
ALT = PICTURES / "alt.json"
DPI = 120

HEAD = """# The causes

What each cause is, what raises suspicion, what looks like it, and the experiment that proves it. The page is made
from the table in [diag_lib/causes.py](../diag_lib/causes.py) by `python -m docs.make_causes`; `[recorded]` marks
evidence that needs a [recording of your own loop](recorder.md). Causes stand in the order of decision: a cause that is
established silences those after it that the same evidence would explain.

Each picture is one run of [the fault lab](fault_lab.md), in which that very fault was injected: 64-pixel crops, 300
training and 420 validation images a class. *Before* and *after* are the two sides of the experiment, on the half of the
validation images that chose nothing; the arms above them are judged on all.
"""


def page(alts: Mapping[str, str]) -> str:
    """The whole page; `alts` holds the text alternative of each picture that there is, by cause."""
    listed = [f"| [{cause.id}](#{cause.id}) | {cause.group} | {cause.sentence} |" for cause in CAUSES]
    table = "\n".join(["| cause | lies in | |", "|---|---|---|", *listed])
    return "\n".join([HEAD, table, *(_section(cause, alts.get(cause.id)) for cause in CAUSES)])


def _section(cause: Cause, alt: str | None) -> str:
    fix = cause.fix(Case(Settings(), {}, {}))
    patch = [f"`{key}: {_yaml(value)}`" for key, value in dotted(fix.settings or {}).items()]
    lines = [f"\n## {cause.id}\n", f"**{cause.sentence}**\n"]
    picture = f"![{alt}](causes/{cause.id}.png)" if alt else "*No picture: no run of the lab named it first.*"
    lines.append(f"{picture}\n")
    lines.append(f"- **Suspected when** {EVIDENCE[cause.id]}")
    lines.append(f"- **Told apart:** {told_apart(cause)}")
    lines.append(f"- **Proof:** {proof(cause)}")
    lines.append(f"- **Fix:** {fix.text}{' Settings: ' + ', '.join(patch) + '.' if patch else ''}")
    lines += [f"  - {action}" for action in fix.actions]
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    return json.dumps(value).replace('"', "")


def verdict_of(cause_id: str, lab: Path) -> dict[str, Any] | None:
    """The verdict of a case whose only fault is this cause, and which names it first; the lowest seed counts."""
    faults = [name for name, fault in FAULTS.items() if (fault.cause or name) == cause_id]
    cases = [
        (int(folder.name.rpartition("-s")[2]), faults.index(name), folder / "run" / "verdict.json")
        for folder in (lab / "cases").glob("*-s*")
        if (name := folder.name.rpartition("-s")[0]) in faults
    ]
    for _, _, file in sorted(cases):
        if file.is_file():
            verdict: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if verdict["causes"] and verdict["causes"][0]["id"] == cause_id:
                return verdict
    return None


def draw(cause: Cause, verdict: Mapping[str, Any]) -> str:
    """Write the picture of a cause, return its text alternative."""
    from diag_lib.plots import causes as pictures

    figure, buffer = pictures.signature(verdict, cause.sentence), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    small = Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    small.save(PICTURES / f"{cause.id}.png", optimize=True)
    return pictures.describe(verdict)


def main(arguments: Sequence[str]) -> int:
    """Write the page, and the pictures where a folder of the fault lab is given."""
    if len(arguments) > 1 or (arguments and not (Path(arguments[0]) / "cases").is_dir()):
        print("usage: python -m docs.make_causes [FAULT_LAB_DIR]; the folder holds cases/", file=sys.stderr)
        return 2
    PICTURES.mkdir(exist_ok=True)
    alts = json.loads(ALT.read_text(encoding="utf-8")) if ALT.is_file() else {}
    for cause in CAUSES if arguments else ():
        verdict = verdict_of(cause.id, Path(arguments[0]))
        if verdict is None:
            print(f"{cause.id}: no verdict there names it first")
        else:
            alts[cause.id] = draw(cause, verdict)
    ALT.write_text(json.dumps(alts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    PAGE.write_text(page(alts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
