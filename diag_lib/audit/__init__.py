"""Is the data sound: readable, balanced, free of duplicates, leaks, shortcuts and drift, rightly normalised?

One pass over the bytes measures every image (`scan`); each check then calculates, scores and marks on that
table, so that another threshold needs no decoding.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from diag_lib.audit import (
    balance,
    drift,
    duplicates,
    integrity,
    labels,
    normalization,
    oddities,
    polarity,
    shortcuts,
)
from diag_lib.audit.cluster import on_cluster
from diag_lib.audit.part import Case, Part
from diag_lib.audit.scan import Fitting, in_sample, scan_images
from diag_lib.checks import with_own
from diag_lib.evidence import Evidence, Finding, RunFolder
from diag_lib.files import disk_errors
from diag_lib.images import ImageTable, read_table
from diag_lib.images.store import worker_count
from diag_lib.settings import Settings

__all__ = ["CHECKS", "AuditResult", "next_step", "run"]

CHECKS = (integrity, balance, duplicates, shortcuts, drift, normalization, oddities, polarity, labels)
"""In the order of the report; each module's `check(Case) -> Part` is one family."""


@dataclass(frozen=True)
class AuditResult:
    """What the audit found.

    `frame`: a row per image with all measures (`file`: where it is). `sample`: the rows with the dearer
    measures. `tables`: counts, files, unreadable, pairs, leakage, leak_sources, shortcuts, shortcut_sources, drift,
    channels, oddities, odd_images, polarity, suspects.
    """

    settings: Settings
    frame: pd.DataFrame
    sample: pd.DataFrame
    evidence: Evidence
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)

    def finding(self, check: str) -> Finding:
        """The finding `audit.<check>`. Raises `KeyError` when there is none."""
        found = self.evidence.finding(f"audit.{check}")
        if found is None:
            raise KeyError(f"audit.{check}")
        return found


def run(settings: Settings, run_dir: str | Path | RunFolder, *, progress: bool = True) -> AuditResult:
    """Audit the dataset of the settings and write `evidence/audit.json`.

    Also writes `artifacts/audit.parquet` (a row per image), `duplicates.parquet`, `leakage.parquet` (val_path,
    train_path, distance, ...), `unreadable.parquet`, `ignored.parquet` and `label_issues.parquet`. Scores that later
    steps of this run have left are asked about the labels.

    Raises
    ------
    UserError : see `images.read_table`.
    """
    folder = run_dir if isinstance(run_dir, RunFolder) else RunFolder(run_dir)
    folder.create()
    table = read_table(settings)
    case = measured(settings, folder, table, progress)
    parts = [module.check(case) for module in CHECKS]
    evidence = Evidence(
        "audit",
        [finding for part in parts for finding in part.findings],
        {"n_images": len(case.frame), **_merged(parts)},
        {"dataset": table.fingerprint, "settings": settings.digest("dataset", "training.seed")},
    )
    evidence = with_own(evidence, settings, folder)
    folder.write_evidence(evidence)
    tables = {name: frame for part in parts for name, frame in part.tables.items()}
    return AuditResult(settings, case.frame, case.sample, evidence, tables)


def measured(settings: Settings, run: RunFolder, table: ImageTable, progress: bool) -> Case:
    """Scan all images (files known from an earlier run of this folder are not opened), and a sample in depth."""
    workers = worker_count(settings)
    with disk_errors(run.root), on_cluster(settings):
        frame, sample = scan_images(
            table.frame,
            in_sample(table.frame, settings.training.seed),
            (run.artifact("audit.parquet"), run.artifact("audit_sample.parquet")),
            Fitting(settings.dataset.resize, settings.dataset.image_size),
            workers=workers,
            progress=progress,
        )
    # "file" stays `object`: pandas' own strings cannot hold the undecodable bytes of a name.
    sample = sample.drop(columns="file").infer_objects().assign(file=sample["file"])
    return Case(settings, run, frame, sample, table.notes, table.curated)


def next_step(result: AuditResult) -> str:
    """What to do now, in a sentence or two."""
    for check, advice in ADVICE.items():
        found = result.evidence.finding(f"audit.{check}")
        if found is not None and found.answer == "yes" and found.severity in ("warning", "error"):
            return advice
    return "The data gives no reason for a failing training. Next: does the teacher know anything here (step 02)?"


ADVICE = {
    "polarity": "Look at 20 images of each class: if the folders are swapped, everything else follows from that.",
    "unreadable": "Restore or remove the unreadable files first: every figure below rests on the others only.",
    "normalization": "Correct normalize_mean and normalize_std first; the measured values are in the table above.",
    "label_conflict": "Look at the pictures that carry both labels, and exclude or relabel them in a curation file.",
    "leakage": (
        "Exclude the leaked val images (dataset.curation) or split again by picture; "
        "the verdict gives the AUC without them."
    ),
    "shortcut.joint": (
        "Save both classes alike (codec, quality, size) before believing any AUC; "
        "the verdict measures how much it flatters."
    ),
    "imbalance": "Weight or resample the classes, or collect the rarer one; the arms show whether it matters here.",
    "oddities": "Look at the odd pictures below and exclude the broken ones in a curation file.",
    "drift": "Compare the AUC within train (step 04) with that on val before blaming the model.",
    "duplicates": "Thin out the repeats: they weight some pictures more than others.",
}


def _merged(parts: list[Part]) -> dict[str, float | int | str | None]:
    return {name: value for part in parts for name, value in part.numbers.items()}
