"""Do teacher and student speak on one scale, about the same patches, and what does their disagreement cost?

The guide asks for min, max, mean and std of both sides, their MSE and their ratio. All are here; but neither the
ratio nor the MSE names a cause, so R^2, correlation, offset, tails and the grid stand beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from diag_lib.checks import with_own
from diag_lib.evidence import (
    SEVERITIES,
    UNUSED_TEACHER,
    Answer,
    Evidence,
    Finding,
    RunFolder,
    Severity,
    muted,
)
from diag_lib.probes.agreement import Agreement, Interval, agreement, tail_share
from diag_lib.probes.grid import IDENTITY, GridCheck
from diag_lib.probes.pairs import LogitPairs, collect
from diag_lib.settings import Settings
from diag_lib.statistics import answer_above, robust_summary

STATUS_QUO = "status_quo"
UNTRAINED = "untrained"

OFFSET_SD = 1.0  # beyond one teacher sd the constant costs more than all the teacher's content
TAIL_SHARE = 0.5  # more than half of the squared deviation in 1% of the patches (a normal has .09)
R2_FOLLOWS = 0.1  # a student that explains less than a tenth of the teacher's variance does not imitate it
FEW_IMAGES = 4


@dataclass(frozen=True)
class LogitsResult:
    """What step 03 measured on validation images.

    `sides` has one row for teacher, status-quo student and untrained student (min, max, mean, std, median, mad,
    q01, q99, kurtosis, n). `after` compares teacher and trained student, `before` teacher and untrained student;
    None where fewer than four images have finite logits. `gradients` has one row an epoch: `epoch`, `distill`,
    `task` (gradient norms of the weighted losses) and `cosine`. `per_image` has one row an image.
    """

    pairs: LogitPairs
    sides: pd.DataFrame
    before: Agreement | None
    after: Agreement | None
    tail: Interval
    grid: GridCheck | None
    gradients: pd.DataFrame
    per_image: pd.DataFrame
    evidence: Evidence
    settings: Settings

    def finding(self, name: str) -> Finding:
        """The finding `logits.<name>`."""
        found = self.evidence.finding(f"logits.{name}")
        if found is None:
            raise KeyError(name)
        return found


def run(settings: Settings, run_dir: RunFolder | str | Path, *, progress: bool = True) -> LogitsResult:
    """Compare patch logits of teacher, trained and untrained student; writes `evidence/logits.json`.

    Trains the status-quo arm when no step has done so yet.
    """
    folder = run_dir if isinstance(run_dir, RunFolder) else RunFolder(run_dir).create()
    pairs = collect(settings, folder, progress=progress)
    summaries = {
        "teacher": robust_summary(pairs.teacher),
        "student, trained": robust_summary(pairs.trained),
        "student, untrained": robust_summary(pairs.untrained),
    }
    sides = pd.DataFrame(summaries).T.rename_axis("logits of")
    before, after = _compare(pairs.teacher, pairs.untrained), _compare(pairs.teacher, pairs.trained)
    finite = np.isfinite(pairs.teacher).all(axis=1)
    tail = (
        tail_share(pairs.teacher[finite])
        if finite.sum() >= FEW_IMAGES
        else Interval(np.nan, (-np.inf, np.inf))
    )
    findings = [
        _scale_ratio(before, after, settings.thresholds.scale_ratio),
        _mse(after, settings.thresholds.mse_dominates),
        _fit(after),
        _offset(before, after),
        _heavy_tail(tail, summaries["teacher"]),
        _alignment(pairs.grid),
        _activation(summaries["teacher"], summaries["student, trained"], pairs.squashed),
    ]
    if not settings.training.distillation.alpha_distill:
        findings = muted(findings, UNUSED_TEACHER)
    evidence = Evidence(
        "logits", findings, _numbers(summaries, before, after, tail, pairs.gradients), pairs.inputs
    )
    table = _per_image(pairs)
    folder.write_parquet("logits.parquet", table)
    evidence = with_own(evidence, settings, folder)
    folder.write_evidence(evidence)
    return LogitsResult(
        pairs, sides, before, after, tail, pairs.grid, pairs.gradients, table, evidence, settings
    )


def guide_table(result: LogitsResult) -> pd.DataFrame:
    """The guide's own numbers, in its own words: min, max, mean, std of both sides, then MSE and ratio."""
    wanted = result.sides.loc[
        ["teacher", "student, trained", "student, untrained"], ["min", "max", "mean", "std"]
    ]
    table = wanted.map(lambda value: f"{value:.4g}")
    table["MSE to the teacher"] = ["", _shown(result.after, "mse"), _shown(result.before, "mse")]
    table["scale ratio"] = ["", _shown(result.after, "scale_ratio"), _shown(result.before, "scale_ratio")]
    return table.reset_index()


def robust_table(result: LogitsResult) -> pd.DataFrame:
    """The numbers that a few extreme patches cannot move."""
    shown = result.sides[["median", "mad", "q01", "q99", "kurtosis"]].map(lambda value: f"{value:.4g}")
    return shown.reset_index()


def reading(result: LogitsResult) -> str:
    """What the guide's rules say about this run, and what the other numbers make of it."""
    if result.after is None:
        return (
            "The student's or the teacher's logits are not finite: repair "
            "that first, every other number depends on it."
        )
    ratio, mse = result.finding("scale_ratio").answer, result.finding("mse").answer
    limits = result.settings.thresholds
    rules = {
        "yes": f"The guide's rule (spreads {limits.scale_ratio:g} times apart or more) calls this a scale mismatch.",
        "no": f"By the guide's rule ({limits.scale_ratio:g} times) the spreads are alike enough.",
        "undecided": f"The spreads are too close to the guide's {limits.scale_ratio:g} times to call.",
    }
    loud = {
        "yes": f"Its MSE rule (above {limits.mse_dominates:g}) says that the distillation drowns the labels.",
        "no": f"Its MSE rule (above {limits.mse_dominates:g}) gives no alarm.",
        "undecided": f"The MSE is too close to the guide's {limits.mse_dominates:g} to call.",
    }
    return f"{rules[ratio]} {loud[mse]}\n\n{_beyond_the_rules(result, result.after)}"


def reading_severity(result: LogitsResult) -> Severity:
    """The more serious of the guide's two answers."""
    return max(result.finding("scale_ratio").severity, result.finding("mse").severity, key=SEVERITIES.index)


def _beyond_the_rules(result: LogitsResult, after: Agreement) -> str:
    if after.r2.ci[1] < R2_FOLLOWS:
        size = f"about the {after.sd_floor:.3g} + {after.teacher_mean**2:.3g} that predicting zero costs"
        near = abs(after.mse.value / (after.sd_floor + after.teacher_mean**2) - 1) < 0.2
        tail = f": {size}" if near else ""
        return (
            f"But R² is {after.r2.value:.2f}: the student does not follow "
            "this teacher at all, so the MSE only measures how "
            f"loud the teacher is{tail}. Loudness is cured by scaling, silence "
            "about the label is not: only the arms of step 05 "
            "tell the two apart."
        )
    if result.finding("scale_ratio").answer == "yes" or result.finding("offset").answer == "yes":
        return (
            f"The student does follow the teacher (correlation {after.rho.value:.2f}), "
            "so the scale is a real obstacle if the "
            "standardised or centred arm of step 05 does better."
        )
    return (
        f"The student follows the teacher (R² {after.r2.value:.2f}) on "
        "a comparable scale: the scale is not the trouble."
    )


def next_step(result: LogitsResult) -> str:
    """What to do after this page."""
    if result.finding("activation").answer == "yes":
        return "Feed raw logits, not probabilities, into the distillation loss; then run this page again."
    if result.finding("alignment").answer == "no":
        return (
            f"Put the teacher's map back first ({result.finding('alignment').data['best']}): "
            "until then every patch learns from another."
        )
    if result.finding("heavy_tail").answer == "yes":
        return (
            "A few patches rule the loss: watch the robust arm in step 05. "
            "Step 04 asks first whether the labels alone suffice."
        )
    return "Step 04 asks whether the student learns from the labels alone; step 05 tries other scales and weights."


def _compare(teacher: npt.NDArray[np.float32], student: npt.NDArray[np.float32]) -> Agreement | None:
    finite = np.isfinite(teacher).all(axis=1) & np.isfinite(student).all(axis=1)
    return agreement(teacher[finite], student[finite]) if finite.sum() >= FEW_IMAGES else None


def _undecided(name: str, what: str) -> Finding:
    return Finding(
        f"logits.{name}", "warning", "undecided", f"{what}: too few images have finite logits on both sides."
    )


def _scale_ratio(before: Agreement | None, after: Agreement | None, threshold: float) -> Finding:
    if after is None:
        return _undecided("scale_ratio", "Scale ratio")
    ratio = after.scale_ratio
    answer = _outside(ratio.ci, 1 / threshold, threshold)
    spread = f"Teacher patches spread {after.teacher_sd:.3g}, the trained student's {after.student_sd:.3g}"
    start = f"; before training the ratio was {before.scale_ratio.value:.3g}" if before is not None else ""
    if after.flat:
        answer = "yes"
        text = f"{spread}: the student is nearly constant, so the ratio says that it does not follow, not why"
    else:
        verb = {
            "yes": f"beyond {threshold:g}x",
            "no": f"within {threshold:g}x",
            "undecided": f"too close to {threshold:g}x to call",
        }
        text = f"{spread}: ratio {ratio}, {verb[answer]}{start}"
    data = {
        "slope": after.slope.value,
        "flat": after.flat,
        "untrained": before.scale_ratio if before else None,
    }
    return Finding(
        "logits.scale_ratio",
        _severity(answer),
        answer,
        f"{text}. The ratio alone names no cause.",
        ratio.value,
        ratio.ci,
        threshold,
        after.n,
        data,
    )


def _mse(after: Agreement | None, threshold: float) -> Finding:
    if after is None:
        return _undecided("mse", "MSE")
    answer = answer_above(after.mse.ci, threshold)
    verb = {"yes": "above", "no": "not above", "undecided": "too close to call against"}[answer]
    floor = f"predicting the teacher's mean everywhere would cost {after.sd_floor:.3g}"
    text = f"The MSE between the maps is {after.mse}, {verb} {threshold:g}; {floor}. The MSE alone names no cause."
    return Finding(
        "logits.mse",
        _severity(answer),
        answer,
        text,
        after.mse.value,
        after.mse.ci,
        threshold,
        after.n,
        {"predict_the_mean": after.sd_floor, "shares": after.shares},
    )


def _fit(after: Agreement | None) -> Finding:
    if after is None:
        return _undecided("fit", "Fit")
    answer = answer_above(after.r2.ci, R2_FOLLOWS)
    said = {
        "yes": "The student follows the teacher",
        "no": "The student does not follow the teacher",
        "undecided": "It is open whether the student follows the teacher",
    }[answer]
    text = f"{said}: R^2 {after.r2}, correlation {after.rho} over patches, {after.rho_across} over images."
    severity: Severity = "ok" if answer == "yes" else "note" if answer == "undecided" else "warning"
    data = {"rho": after.rho, "rho_within": after.rho_within, "rho_across": after.rho_across}
    return Finding(
        "logits.fit", severity, answer, text, after.r2.value, after.r2.ci, R2_FOLLOWS, after.n, data
    )


def _offset(before: Agreement | None, after: Agreement | None) -> Finding:
    if after is None:
        return _undecided("offset", "Offset")
    answer = _outside(after.offset.ci, -OFFSET_SD, OFFSET_SD)
    verb = {"yes": "more than one spread", "no": "less than one spread", "undecided": "about one spread"}[
        answer
    ]
    text = (
        f"Teacher patches average {after.teacher_mean:.3g}, the trained student's {after.student_mean:.3g}: "
        f"the gap is {after.offset} teacher sd, {verb}."
    )
    data = {"untrained": before.offset if before else None, "share_of_mse": (after.shares or {}).get("mean")}
    return Finding(
        "logits.offset",
        _severity(answer),
        answer,
        text,
        after.offset.value,
        after.offset.ci,
        OFFSET_SD,
        after.n,
        data,
    )


def _heavy_tail(tail: Interval, teacher: dict[str, float]) -> Finding:
    answer = answer_above(tail.ci, TAIL_SHARE) if np.isfinite(tail.value) else "undecided"
    text = (
        f"The most extreme 1% of the teacher's patches hold {tail.value:.0%} "
        f"[{tail.ci[0]:.0%}, {tail.ci[1]:.0%}] of its "
        f"squared deviation (a normal distribution: 9%); kurtosis {teacher['kurtosis']:.3g} (normal: 3), range "
        f"[{teacher['min']:.3g}, {teacher['max']:.3g}] but 98% lie in [{teacher['q01']:.3g}, {teacher['q99']:.3g}]."
        if np.isfinite(tail.value)
        else "The teacher's spread cannot be judged: it is constant or not finite."
    )
    data = {"kurtosis": teacher["kurtosis"], "robust_sd": 1.4826 * teacher["mad"], "sd": teacher["std"]}
    return Finding(
        "logits.heavy_tail", _severity(answer), answer, text, tail.value, tail.ci, TAIL_SHARE, None, data
    )


def _alignment(grid: GridCheck | None) -> Finding:
    if grid is None:
        return Finding(
            "logits.alignment",
            "note",
            "undecided",
            "Too few finite teacher maps, or one patch only: no grid to check.",
        )
    answer: Answer = grid.answer  # type: ignore[assignment]
    text = {
        "yes": "The teacher's map follows what its own patches show (R^2 "
        f"{grid.identity}) and no other grid does better.",
        "no": f"The teacher's map fits the pictures better {grid.best}: R^2 "
        f"rises by {grid.gain} on images that chose nothing.",
        "undecided": "The teacher's map does not visibly follow simple local "
        f"content (R^2 {grid.identity}); the grid stays open.",
    }[answer]
    best = grid.turned if grid.student_says_turned else grid.best
    if grid.student_says_turned:
        text = (
            f"The teacher's map agrees with the student's own when it is {best}: the correlation inside a "
            f"picture rises by {grid.turned_gain} on images that chose nothing."
        )
    severity: Severity = {"yes": "ok", "no": "error", "undecided": "note"}[answer]  # type: ignore[assignment]
    return Finding(
        "logits.alignment",
        severity,
        answer,
        text,
        grid.identity.value,
        grid.identity.ci,
        0.0,
        grid.n,
        {"best": best, "gain": grid.gain, "as_is": best == IDENTITY, "student_gain": grid.turned_gain},
    )


def _activation(teacher: dict[str, float], student: dict[str, float], squashed: bool) -> Finding:
    """Does one side give probabilities? `squashed`: a fresh student stays within 0 and 1 whatever it is shown."""
    low, high = teacher["min"], teacher["max"]
    if low >= 0 and high <= 1:
        side = "teacher"
        text = (
            f"All teacher patches lie in [{low:.3g}, {high:.3g}]: "
            "these look like probabilities, raw logits are needed."
        )
    elif squashed and student["min"] >= 0 and student["max"] <= 1:
        side = "student"
        text = (
            "The student's patches stay within 0 and 1 whatever it is shown: it ends in a sigmoid, and the "
            "losses, which need raw logits, take its probabilities for logits."
        )
    else:
        return Finding(
            "logits.activation", "ok", "no", f"The teacher gives raw logits, from {low:.3g} to {high:.3g}."
        )
    return Finding("logits.activation", "warning", "yes", text, data={"side": side})


def _outside(ci: tuple[float, float], low: float, high: float) -> Answer:
    """Does the quantity lie outside [low, high]? The whole interval has to say so."""
    if ci[0] > high or ci[1] < low:
        return "yes"
    return "no" if low <= ci[0] and ci[1] <= high else "undecided"


def _severity(problem: Answer) -> Severity:
    return {"yes": "warning", "no": "ok", "undecided": "note"}[problem]  # type: ignore[return-value]


def _shown(side: Agreement | None, name: str) -> str:
    return "not finite" if side is None else str(getattr(side, name))


def _numbers(
    summaries: dict[str, dict[str, float]],
    before: Agreement | None,
    after: Agreement | None,
    tail: Interval,
    gradients: pd.DataFrame,
) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for side, summary in zip(("teacher", "student", "untrained"), summaries.values(), strict=True):
        numbers |= {f"{side}_{name}": value for name, value in summary.items()}
    names: Sequence[str] = ("scale_ratio", "slope", "offset", "mse", "r2", "rho", "rho_within", "rho_across")
    for prefix, side_by_side in (("", after), ("untrained_", before)):
        if side_by_side is not None:
            numbers |= {f"{prefix}{name}": getattr(side_by_side, name).value for name in names}
    numbers["tail_share"] = tail.value
    if len(gradients):
        last = gradients.iloc[-1]
        numbers |= {f"gradient_{name}": float(last[name]) for name in ("distill", "task", "cosine")}
    return numbers


def _per_image(pairs: LogitPairs) -> pd.DataFrame:
    table = pairs.frame[["path", "label"]].reset_index(drop=True).copy()
    for name, maps in (
        ("teacher", pairs.teacher),
        ("student", pairs.trained),
        ("untrained", pairs.untrained),
    ):
        table[f"{name}_mean"] = maps.mean(axis=1, dtype=np.float64)
        table[f"{name}_sd"] = maps.std(axis=1, dtype=np.float64)
    table["mse"] = ((pairs.teacher.astype(np.float64) - pairs.trained) ** 2).mean(axis=1)
    return table
