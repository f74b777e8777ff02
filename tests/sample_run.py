"""Small notebooks, images and verdicts that the workbook's tests run and render."""

import json
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from PIL import Image

from diag_lib.evidence import STEP_TITLES, STEPS

HOSTILE = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"

START = """from diag_lib import display, workbook
from diag_lib.evidence import Evidence, Finding, RunFolder
settings, run_dir = workbook.start("{step}", config, run_dir, overrides)
"""
WRITE = """finding = Finding("{finding}", "{severity}", "{answer}", "{message}", .51, (.47, .55), .55, 824)
RunFolder(run_dir).write_evidence(Evidence("{step}", [finding], {{}}, {{}}))
display.answer(finding)"""
WRITE_VERDICT = """undecided = {"healthy": None, "complete": True, "summary": "Nothing is decided.", "causes": []}
RunFolder(run_dir).write_json("verdict.json", undecided);"""
FINDINGS = {
    "symptoms": ("symptoms.total_loss", "note", "yes"),
    "audit": ("audit.leakage", "ok", "no"),
    "teacher": ("teacher.auc", "error", "no"),
    "logits": ("logits.scale_ratio", "warning", "yes"),
    "baseline": ("baseline.auc", "ok", "yes"),
    "distillation": ("distillation.best_arm", "ok", "yes"),
    "verdict": ("distillation.best_arm", "ok", "yes"),
}


def images(root: Path, n: int = 3) -> Path:
    """A readable dataset of 4n tiny pictures."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("real", "fake"):
            for i in range(n):
                path = root / split / kind / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    return root


def settings_file(folder: Path, **runtime: Any) -> Path:
    """A settings file for `images(folder / "data")` without teacher weights."""
    images(folder / "data")
    runtime = {"device": "cpu", "threads": 1, **runtime}
    tree = {"dataset": {"root": "data"}, "teacher": {"weights": None}, "runtime": runtime}
    path = folder / "my.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def notebook(step: str, *cells: str) -> nbformat.NotebookNode:
    """A step's notebook: title, parameters, start, the given code cells (markdown when they start with #)."""
    v4 = nbformat.v4
    parameters = v4.new_code_cell('config = "demo"\nrun_dir = "reports/demo"\noverrides = {}')
    parameters.metadata["tags"] = ["parameters"]
    title = v4.new_markdown_cell(f"# {STEPS.index(step):02d} · {STEP_TITLES[step]}\n\nA question.")
    made = [v4.new_markdown_cell(c) if c.startswith("#") else v4.new_code_cell(c) for c in cells]
    return v4.new_notebook(cells=[title, parameters, v4.new_code_cell(START.format(step=step)), *made])


def evidence_cell(step: str, message: str = "What was found.") -> str:
    """A code cell that writes the step's evidence."""
    finding, severity, answer = FINDINGS[step]
    if finding.startswith("symptoms."):
        finding = "audit.unreadable"
    cell = WRITE.format(step=step, finding=finding, severity=severity, answer=answer, message=message)
    return f"{cell}\n{WRITE_VERDICT}" if step == "verdict" else cell


def notebooks(folder: Path, **special: nbformat.NotebookNode) -> Path:
    """All seven notebooks; `special` replaces some by step name."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(STEPS):
        made = special.get(step) or notebook(step, "## What the numbers say", evidence_cell(step))
        nbformat.write(made, folder / f"{number:02d}_{step}.ipynb")
    return folder


def verdict(**changes: Any) -> dict[str, Any]:
    """A verdict of the interface's shape."""
    before = {"arm": "status_quo", "auc": 0.51, "ci": [0.47, 0.55]}
    after = {"arm": "bce_only", "auc": 0.98, "ci": [0.97, 0.99]}
    fix = {
        "text": "Train without this teacher, or fine-tune it on your data first.",
        "settings": {"training": {"distillation": {"alpha_distill": 0.0, "alpha_task": 1.0}}},
        "actions": ["diag finetune-teacher my.yaml"],
    }
    proof = {
        "kind": "gain",
        "before": before,
        "after": after,
        "delta": 0.47,
        "delta_ci": [0.43, 0.51],
        "p": 1e-9,
    }
    first = {
        "id": "teacher_domain_shift",
        "equivalent": [],
        "status": "established",
        "evidence": ["teacher.auc"],
    }
    second = {"id": "label_noise", "equivalent": ["labels_shuffled"], "status": "likely", "evidence": []}
    clean = {"text": "Clean the listed images.", "settings": None, "actions": ["artifacts/suspects.csv"]}
    arms = [(0.51, 0.47, 0.55, "status_quo"), (0.98, 0.97, 0.99, "bce_only"), (0.6, 0.56, 0.64, "alpha_0.01")]
    return {
        "schema": "diag/verdict/1",
        "healthy": False,
        "complete": True,
        "summary": "The teacher knows nothing about these images; without it the student learns.",
        "causes": [
            {**first, "fix": fix, "proof": proof},
            {**second, "fix": clean, "proof": {"kind": "direct"}},
        ],
        "ruled_out": [{"id": "scale_mismatch", "because": "standardised arm AUC 0.51 [0.47, 0.55]"}],
        "undecided": [
            {"id": "split_shift", "needs": {"n_val_per_class": 1412}, "text": "Val may differ from train."}
        ],
        "arms": [
            {"id": name, "settings": {}, "auc": auc, "ci": [low, high], "seeds": 1}
            for auc, low, high, name in arms
        ],
        "findings": [],
        **changes,
    }
