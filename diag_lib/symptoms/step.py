"""What does *your* run show? The guide's symptom (a loss of 225, BCE .7, AUC .5), and what each curve says.

A symptom names no cause: a useless teacher, a learning rate that is too low and a frozen student look alike here.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from diag_lib.checks import with_own
from diag_lib.errors import UserError
from diag_lib.evidence import Evidence, Finding, RunFolder
from diag_lib.history import History, from_lists, read_history
from diag_lib.settings import Settings
from diag_lib.statistics import Auc
from diag_lib.symptoms import code, flow
from diag_lib.symptoms.checks import CHECKS, NAMES, Case, guide, shares, weights
from diag_lib.symptoms.code import Log
from diag_lib.symptoms.curves import Curve, describe

STATUS_QUO = "status_quo"


@dataclass(frozen=True)
class SymptomsResult:
    """What step 00 read from the history.

    `curves` has one entry a column of the history; `shares` one row an epoch: `distill` and `task`, the parts of
    the weighted loss (NaN where unknown); `alpha` are the weights used for it. `auc` is that of the status-quo arm,
    or of a recording's last validation logits, with its interval; None for any other history file, which does not
    say how many images stand behind its AUC. `summary`
    is the sentence to take away: what is broken, else whether the guide's symptom is there.
    """

    history: History
    curves: dict[str, Curve]
    shares: pd.DataFrame
    alpha: tuple[float, float]
    auc: Auc | None
    evidence: Evidence
    settings: Settings
    summary: str

    def finding(self, name: str) -> Finding:
        """The finding `symptoms.<name>`."""
        found = self.evidence.finding(f"symptoms.{name}")
        if found is None:
            raise KeyError(name)
        return found


def run(settings: Settings, run_dir: RunFolder | Path | str, *, progress: bool = True) -> SymptomsResult:
    """Read `settings.history`, or train the status-quo arm when it is null; writes `evidence/symptoms.json`.

    Raises UserError for an unreadable history.
    """
    folder = run_dir if isinstance(run_dir, RunFolder) else RunFolder(run_dir).create()
    if settings.history is not None:
        history, measured = read_history(settings.history), None
    else:
        history, measured = _status_quo(settings, folder, progress)
    result = diagnose(history, settings, measured)
    folder.write_json("artifacts/symptoms_history.json", history.epochs.to_dict("list"))
    result = replace(result, evidence=with_own(result.evidence, settings, folder))
    folder.write_evidence(result.evidence)
    return result


def diagnose(history: History, settings: Settings, auc: Auc | None = None) -> SymptomsResult:
    """What a history shows; nothing is written. `auc` is the last epoch's with its interval, where known.

    A recording brings its own, from its last validation logits.
    """
    log = None
    if history.recording is not None:
        scores = history.recording.last_scores()
        auc = auc if auc is not None or scores is None else scores.auc()
        log = Log(history.recording, settings, auc)
    d = settings.training.distillation
    adds_up, implied = weights(history, d.alpha_distill, d.alpha_task)
    alpha = (d.alpha_distill, d.alpha_task) if implied is None else (implied, 1 - implied)
    curves = {
        column: describe(history.values(column), "lower" if column.endswith("loss") else "higher")
        for column in NAMES
    }
    case = Case(history, curves, settings, shares(history, *alpha), adds_up, implied, auc)
    findings = [check(case) for check in CHECKS]
    recorded = [check(log) for check in (*code.CHECKS, *flow.CHECKS)] if log is not None else []
    findings = [guide(case, {finding.id: finding for finding in findings}), *recorded, *findings]
    content = history.epochs.to_json(double_precision=15).encode()
    inputs = {"history": hashlib.sha256(content).hexdigest(), "source": history.kind}
    evidence = Evidence("symptoms", findings, _numbers(case), inputs)
    summary = next(
        (finding.message for finding in findings if finding.severity == "error"), findings[0].message
    )
    return SymptomsResult(history, curves, case.shares, alpha, auc, evidence, settings, summary)


def recorded_findings(result: SymptomsResult) -> list[Finding]:
    """What the recorder saw inside the loop; none for a history that is no recording."""
    own = {f"symptoms.{check.__name__}" for check in (*code.CHECKS, *flow.CHECKS)}
    return [finding for finding in result.evidence.findings if finding.id in own]


HOW_TO_RECORD = (
    "This history holds curves alone. A recording of your own loop shows far more: whether gradients reach every "
    "layer, how the losses pull, whether the reported AUC is that of the scores. It takes a few lines: "
    'with TrainingRecorder("run.jsonl", model, optimizer) as rec, then rec.step(...) before each backward() and '
    "rec.epoch(...) after each validation; name the file in history. See docs/recorder.md."
)


def curve_table(result: SymptomsResult) -> pd.DataFrame:
    """One row a curve: first, last and best value, and what the curve does."""
    rows = []
    for column, name in NAMES.items():
        curve, values = result.curves[column], result.history.values(column)
        first = next((v for v in values if math.isfinite(v)), math.nan)
        shown = [f"{v:.4g}" if math.isfinite(v) else "–" for v in (first, curve.last, curve.best)]
        best = (
            f"{shown[2]} (epoch {curve.epoch})" if curve.kind not in {"unknown", "non-finite"} else shown[2]
        )
        rows.append(
            {"curve": name, "first": shown[0], "last": shown[1], "best": best, "what it does": curve.said}
        )
    return pd.DataFrame(rows)


def next_step(result: SymptomsResult) -> str:
    """What to look at next, in a sentence."""
    slip = next((f for f in recorded_findings(result) if f.severity == "error"), None)
    if slip is not None:
        return (
            f"First repair your own loop: {slip.message[0].lower()}{slip.message[1:]} Then record it again."
        )
    if result.finding("non_finite").answer == "yes":
        return "First make the numbers finite: fp32 or bf16 instead of fp16, a lower learning rate, gradient clipping."
    if result.finding("guide").answer == "no" and result.finding("auc_at_chance").answer == "no":
        return "The student learns. Steps 01 to 05 check whether the figure is real and what would better it."
    return (
        "The curves say that the student does not learn, not why. Step 01 checks the data, step 02 the teacher, "
        "step 04 what the labels alone can teach, step 05 which weighting helps."
    )


def _status_quo(settings: Settings, folder: RunFolder, progress: bool) -> tuple[History, Auc]:
    from diag_lib.training import train_arms

    arms = train_arms(settings, folder, [STATUS_QUO], progress=progress)
    if STATUS_QUO not in arms:
        raise UserError(f"the arm {STATUS_QUO} was not trained: {arms.not_run.get(STATUS_QUO, 'no result')}")
    arm = arms[STATUS_QUO]
    return from_lists(arm.history, "status-quo arm", "arm"), arm.auc


def _numbers(case: Case) -> dict[str, float | int | str | None]:
    numbers: dict[str, float | int | str | None] = {
        "epochs": len(case.history),
        "alpha_implied": case.implied,
    }
    for column, curve in case.curves.items():
        numbers |= {f"{column}_last": curve.last, f"{column}_best": curve.best, column: curve.kind}
    share = case.shares["distill"].dropna()
    numbers["distill_share"] = float(share.iloc[-1]) if len(share) else None
    return numbers
