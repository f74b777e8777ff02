"""How often does the verdict name the fault that was put there, and how often does it cry wolf?

Every case is a small pipeline built from the demo photographs, run through the steps without notebooks. An
injection that does no harm is no fault: it is listed as dropped and not scored. Controls are healthy
pipelines that look suspicious.
"""

import importlib
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
from tqdm import tqdm

from diag_lib import training
from diag_lib.distillation import FEW
from diag_lib.errors import UserError
from diag_lib.evidence import STEPS, RunFolder
from diag_lib.faults.controls import CONTROLS
from diag_lib.faults.inject import FAULTS, Fault, combined, find, prepare
from diag_lib.settings import load
from diag_lib.statistics import auc_difference_unpaired

SCHEMA = "diag/faults/1"
FIRST_SCORED_SEED = 101
"""Injections and thresholds were chosen on seeds below 100; scored runs use this seed and those after it."""

SMALL: dict[str, Any] = {"val": 420}
"""With 412 validation images a class "AUC below .55" can be established; more only cost time."""

QUICK = (
    "teacher_domain_shift",
    "teacher_inverted",
    "teacher_preprocessing",
    "teacher_weights_not_loaded",
    "scale_mismatch",
    "labels_shuffled",
    "labels_inverted_train",
    "shortcut",
    "leakage",
    "lr_too_low",
)
QUICK_CONTROLS = tuple(c for c in CONTROLS if c.id in ("control_few_fakes_loud", "control_few_val_as_is"))
COMPOUND = (
    ("teacher_domain_shift", "leakage"),
    ("teacher_domain_shift", "lr_too_low"),
    ("scale_mismatch", "labels_shuffled"),
)
FLATTERING = frozenset({"leakage", "shortcut"})
"""Faults that raise the reported AUC: their harm is the inflation."""

NAMED = ("established", "likely")


@dataclass(frozen=True)
class Case:
    """One pipeline of the suite: what is injected, and which causes an ideal verdict names."""

    fault: Fault
    seed: int
    expected: tuple[str, ...]


def run_suite(suite: str, *, causes: Sequence[str] | None = None, seeds: int = 1, out: Path) -> int:
    """Run and score the cases, write `faults.json`, `index.html` and `confusion.png` below `out`; returns 0.

    suite : `quick` (ten causes, two controls) or `full` (every injection, control and compound case).
    causes : only these causes (no controls). seeds : runs of each case with different crops and starts.
    Raises `UserError` for an unknown suite or cause.
    """
    cases = plan(suite, causes, range(FIRST_SCORED_SEED, FIRST_SCORED_SEED + seeds))
    folder = RunFolder(out).create()
    workers = min(len(cases), os.cpu_count() or 1)
    jobs = (joblib.delayed(run_case)(case, folder.root / "cases") for case in cases)
    done = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")(jobs)
    rows = list(tqdm(done, total=len(cases), desc="cases", file=sys.stderr))
    rows.sort(key=lambda row: (row["kind"], row["case"], row["seed"]))
    folder.write_json("faults.json", {"schema": SCHEMA, **score(rows), "cases": rows})
    from diag_lib.plots import faults as pictures  # matplotlib only when there is something to draw

    pictures.write_report(rows, score(rows), folder)
    print("\n".join(summary(rows)))
    return 0


def plan(suite: str, causes: Sequence[str] | None, seeds: Sequence[int]) -> list[Case]:
    """The cases of a suite. Raises `UserError` for an unknown suite or cause."""
    if suite not in ("quick", "full"):
        raise UserError(f"suite {suite!r} does not exist; choose quick or full")
    ids = causes or (QUICK if suite == "quick" else [name for name in FAULTS if name != "healthy"])
    faults: list[tuple[Fault, tuple[str, ...]]] = [(find(name), (name,)) for name in ids]
    if not causes:
        faults += [(control, ()) for control in (QUICK_CONTROLS if suite == "quick" else CONTROLS)]
        if suite == "full":
            faults += [(combined(find(a), find(b)), (a, b)) for a, b in COMPOUND]
    return [Case(fault, seed, expected) for fault, expected in faults for seed in seeds]


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    """One row of the table: inject, run the steps, read the verdict, measure the harm."""
    started = time.perf_counter()
    home = folder / f"{case.fault.id}-s{case.seed}"
    prepared = prepare(case.fault, home / "data", seed=case.seed, recipe=SMALL)
    single = {"runtime.threads": 1, "runtime.processes": 1, "runtime.cache_dir": str(home / "cache")}
    settings = load("demo", {**prepared.overrides, **single})
    run = RunFolder(home / "run").create()
    for step in STEPS:
        few = {"ids": FEW} if step == "distillation" else {}
        importlib.import_module(f"diag_lib.{step}").run(settings, run.root, progress=False, **few)
    seconds = time.perf_counter() - started
    verdict: dict[str, Any] = run.read_json("verdict.json") or {}
    named = [cause for cause in verdict["causes"] if cause["status"] in NAMED]
    names = [{cause["id"], *cause["equivalent"]} for cause in named]
    first = named[0] if named else None
    return {
        "case": case.fault.id,
        "seed": case.seed,
        "kind": "control" if not case.expected else "compound" if len(case.expected) > 1 else "fault",
        "expected": list(case.expected),
        "named": [cause["id"] for cause in named],
        "first_right": bool(names) and bool(names[0] & set(case.expected)),
        "all_named": bool(case.expected) and all(any(one in name for name in names) for one in case.expected),
        "healthy": verdict["healthy"],
        "status": first["status"] if first else None,
        "proof": first["proof"] if first else None,
        "harm": _harm(case, settings, single, run, home) if case.expected else None,
        "seconds": round(seconds, 1),
    }


def _harm(case: Case, settings: Any, single: dict[str, Any], run: RunFolder, home: Path) -> dict[str, Any]:
    """What the injection does to the reported AUC, against the same scene without it."""
    scene = prepare(case.fault, home / "data", seed=case.seed, repaired=True, recipe=SMALL)
    repaired = load("demo", {**scene.overrides, **single})
    clean = training.train_arms(repaired, RunFolder(home / "repaired"), ["status_quo"], progress=False)
    faulty = training.train_arms(settings, run, ["status_quo"], progress=False)
    if not clean or not faulty:
        return {"kills": None, "delta": None, "p": None}
    difference = auc_difference_unpaired(clean["status_quo"].auc, faulty["status_quo"].auc)
    if not faulty["status_quo"].auc.defined:  # constant scores rank nothing
        return {
            "kills": clean["status_quo"].auc.defined,
            "delta": clean["status_quo"].auc.value - 0.5,
            "p": None,
        }
    delta = difference.delta if set(case.expected) & FLATTERING else -difference.delta
    return {"kills": delta > 0 and difference.p < 0.05, "delta": delta, "p": difference.p}


def score(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of `faults.json`, over the injections that do harm; None where there was no such case."""
    killing = [row for row in rows if row["kind"] == "fault" and row["harm"]["kills"]]
    controls = [row for row in rows if row["kind"] == "control"]
    compound = [row for row in rows if row["kind"] == "compound"]
    established = [row for row in killing if row["status"] == "established"]
    proven = [row for row in established if row["proof"]["p"] is None or row["proof"]["p"] < 0.05]
    return {
        "right_first": _share(row["first_right"] for row in killing),
        "causes_per_case": statistics.fmean(len(row["named"]) for row in killing) if killing else None,
        "controls": len({row["case"] for row in controls}),
        "false_alarms": sum(bool(row["named"]) for row in controls),
        "compound_both": _share(row["all_named"] for row in compound),
        "proof_rate": len(proven) / len(established) if established else None,
        "median_seconds": statistics.median(row["seconds"] for row in rows) if rows else None,
        "killing": len(killing),
        "dropped": [row["case"] for row in rows if row["kind"] == "fault" and not row["harm"]["kills"]],
    }


def _share(answers: Any) -> float | None:
    values = [bool(answer) for answer in answers]
    return sum(values) / len(values) if values else None


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table as text, one line a case, the score last."""
    lines = []
    for row in rows:
        if row["kind"] == "control":
            word = "false alarm" if row["named"] else "silent"
        elif row["kind"] == "fault" and not row["harm"]["kills"]:
            word = "does no harm, not scored"
        else:
            word = "right" if row["first_right"] else "missed"
        named = ", ".join(row["named"]) or "nothing"
        lines.append(f"{row['case']:32} seed {row['seed']}  {word:26} named {named}  {row['seconds']:.0f} s")
    figures = score(rows)
    right = "-" if figures["right_first"] is None else f"{figures['right_first']:.0%}"
    lines.append(
        f"right cause first: {right} of {figures['killing']} killing injections; "
        f"{figures['false_alarms']} false alarms on {figures['controls']} controls"
    )
    return lines
