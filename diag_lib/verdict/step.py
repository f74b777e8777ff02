"""Step 06: decide, prove, and write the verdict."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from diag_lib.evidence import STEPS, Evidence, RunFolder
from diag_lib.experiments import Trials
from diag_lib.images import read_table
from diag_lib.probes.labels import doubtful
from diag_lib.settings import Settings
from diag_lib.user_code import load_plugins
from diag_lib.verdict.decide import decide
from diag_lib.verdict.result import NamedCause, VerdictResult, recommended_yaml

DOUBTFUL = "artifacts/doubtful_labels.csv"


def run(settings: Settings, run_dir: str | Path, *, progress: bool = True) -> VerdictResult:
    """Decide, prove and write the verdict of the run in `run_dir`.

    Needs the evidence of the earlier steps; steps that did not run make the verdict incomplete, and their
    causes stay silent. Raises `UserError` when the settings or the dataset are unusable.
    """
    load_plugins(settings)
    folder = RunFolder(run_dir).create()
    evidence = {step: found for step in STEPS[:-1] if (found := folder.read_evidence(step)) is not None}
    missing = tuple(step for step in STEPS[:-1] if step not in evidence)
    trials = Trials(settings, folder, evidence, progress=progress)
    verdict = decide(trials, missing)
    if any(cause.id == "label_noise" for cause in verdict.causes):
        verdict = replace(verdict, causes=with_labels_listed(verdict.causes, settings, folder))
    folder.write_json("verdict.json", verdict.to_dict())
    folder.write_text("recommended.yaml", recommended_yaml(settings, verdict))
    inputs = {step: _digest(found) for step, found in evidence.items()}
    folder.write_evidence(Evidence("verdict", [], {"causes": len(verdict.causes)}, inputs))
    return verdict


def with_labels_listed(
    causes: tuple[NamedCause, ...], settings: Settings, folder: RunFolder
) -> tuple[NamedCause, ...]:
    """Write `DOUBTFUL` by all judges that there are now (the audit came before them), and tell of it."""
    frame = read_table(settings).frame
    table = doubtful(folder, frame[frame["split"] == "train"], settings.training.seed)
    if table.empty:
        return causes
    folder.write_text(DOUBTFUL, table.to_csv(index=False))
    judges = " and ".join(dict.fromkeys(", ".join(table["judges"]).split(", ")))
    told = f"{DOUBTFUL} lists {len(table)} train labels that {judges} contradict, the worst first"
    return tuple(
        replace(cause, fix=replace(cause.fix, actions=(told, *cause.fix.actions)))
        if cause.id == "label_noise"
        else cause
        for cause in causes
    )


def _digest(evidence: Evidence) -> str:
    return hashlib.sha256(json.dumps(evidence.to_dict(), sort_keys=True).encode()).hexdigest()
