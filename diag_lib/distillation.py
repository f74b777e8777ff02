"""Which weighting of the distillation works: the status quo, less of it, on another scale, or none at all?

All arms share start, batches, augmentation and one teacher pass, so that every difference is paired. The best arm
is chosen on half A of the validation images and proven on half B; the last epoch counts, not the best one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diag_lib import training
from diag_lib.checks import with_own
from diag_lib.evidence import Answer, Evidence, Finding, RunFolder, Severity
from diag_lib.probes.compare import (
    Choice,
    Scores,
    choose_and_prove,
    common_scores,
    gains,
    rows,
)
from diag_lib.settings import Settings
from diag_lib.statistics import MATERIAL_GAIN, SIGNIFICANT, Auc, AucDifference, answer_above, holm, n_for_gain
from diag_lib.training import ArmResult, ArmResults

STATUS_QUO = "status_quo"
BCE_ONLY = "bce_only"
LADDER = ("alpha_0.01", "alpha_0.05", "alpha_0.1", "alpha_0.2", "alpha_0.3", "alpha_0.5")
NORMALISED = ("standardized", "centered", "robust")
IDS = (STATUS_QUO, BCE_ONLY, *LADDER, *NORMALISED, "unfrozen")
FEW = (STATUS_QUO, BCE_ONLY, "alpha_0.01", "standardized", "unfrozen")
"""The arms that separate causes; the others draw the curve, or are trained when a suspicion asks for them."""

CURES = {
    "alpha_0.01": "a tiny weight (alpha 0.01)",
    "standardized": "standardising",
    "centered": "centring",
    "robust": "robust standardising with a Huber loss",
    "unfrozen": "training every layer",
    BCE_ONLY: "no teacher at all",
}
"""The interventions that name a cause, by what they change; the other alphas only draw the curve."""


@dataclass(frozen=True)
class DistillationResult:
    """What step 05 measured.

    `table` has one row an arm: `arm`, `differs` (False for the status quo and arms
    that are the same training), `what`, `alpha`, `auc`, `low`, `high`, `delta`, `delta_low`,
    `delta_high`, `p`, `p_holm` (against the status quo, paired, half B), `auc_a`, `auc_b`, `r2`, `rho`, `stopped`.
    `trend` is AUC at the smallest minus AUC at the largest trained alpha. `not_run`: arms the budget left out.
    """

    arms: ArmResults
    scores: Scores
    table: pd.DataFrame
    choice: Choice
    trend: AucDifference | None
    not_run: dict[str, str]
    evidence: Evidence
    settings: Settings

    def finding(self, name: str) -> Finding:
        """The finding `distillation.<name>`."""
        found = self.evidence.finding(f"distillation.{name}")
        if found is None:
            raise KeyError(name)
        return found


def run(
    settings: Settings, run_dir: RunFolder | str | Path, *, ids: Sequence[str] = IDS, progress: bool = True
) -> DistillationResult:
    """Train the arms in lockstep within the budget and compare them; writes `evidence/distillation.json`.

    ids : arms to train, `FEW` for the decisive ones alone.
    """
    folder = run_dir if isinstance(run_dir, RunFolder) else RunFolder(run_dir).create()
    arms = training.train_arms(settings, folder, ids, progress=progress)
    scores = common_scores({name: arm.val_scores for name, arm in arms.items()})
    table = arm_table(settings, arms, scores)
    choice = choose_and_prove(scores, STATUS_QUO)
    ladder = [name for name in LADDER if name in arms]
    trend = scores.difference(ladder[-1], ladder[0]) if len(ladder) > 1 else None
    findings = [
        _status_quo(arms[STATUS_QUO], settings.thresholds.baseline_auc),
        _best_arm(choice, arms, scores),
        _rescued_by(table, settings.thresholds.baseline_auc),
    ]
    if trend is not None:
        findings.append(_alpha_trend(trend, ladder))
    numbers: dict[str, Any] = {f"auc_{row.arm}": row.auc for row in rows(table)}
    numbers |= {f"not_run_{name}": why for name, why in arms.not_run.items()}
    numbers["image_steps_per_arm"] = arms.plan.image_steps
    numbers["schedule_fraction"] = arms.plan.schedule_fraction
    evidence = Evidence("distillation", findings, numbers, {"settings": settings.digest()})
    folder.write_parquet("arms.parquet", table)
    evidence = with_own(evidence, settings, folder)
    folder.write_evidence(evidence)
    return DistillationResult(arms, scores, table, choice, trend, arms.not_run, evidence, settings)


def arm_table(settings: Settings, arms: Mapping[str, ArmResult], scores: Scores) -> pd.DataFrame:
    """One row an arm, as `DistillationResult.table` describes it."""
    table = pd.DataFrame([_row(settings, name, arm, scores) for name, arm in arms.items()])
    others = table["differs"]
    adjusted = holm(dict(zip(table.loc[others, "arm"], table.loc[others, "p"], strict=True)))
    table["p_holm"] = table["arm"].map(adjusted)
    return table


def _row(settings: Settings, name: str, arm: ArmResult, scores: Scores) -> dict[str, Any]:
    measured, difference = scores.auc(name), scores.difference_b(STATUS_QUO, name)
    fit = arm.evidence.get("fit") or {}
    alpha = arm.overrides.get(
        "training.distillation.alpha_distill", settings.training.distillation.alpha_distill
    )
    return {
        "arm": name,
        "differs": name != STATUS_QUO and arm.linked_to != STATUS_QUO,
        "what": describe(name, settings),
        "alpha": float(alpha),
        "auc": measured.value,
        "low": measured.ci[0],
        "high": measured.ci[1],
        "delta": difference.delta,
        "delta_low": difference.ci[0],
        "delta_high": difference.ci[1],
        "p": difference.p,
        "auc_a": scores.auc_a(name),
        "auc_b": difference.after.value,
        "r2": _number(fit.get("r2")),
        "rho": _number(fit.get("rho")),
        "stopped": arm.stopped,
    }


def describe(arm: str, settings: Settings) -> str:
    """The arm in words."""
    weights = settings.training.distillation
    words = {
        STATUS_QUO: f"your settings ({weights.alpha_distill:g} distillation + {weights.alpha_task:g} labels)",
        BCE_ONLY: "labels only, no teacher",
        "standardized": "teacher divided by its spread and centred",
        "centered": "teacher's mean taken away",
        "robust": "teacher centred and scaled by median and MAD, Huber loss",
        "unfrozen": "your weights, every layer trained",
    }
    return words.get(arm) or f"{arm.removeprefix('alpha_')} distillation, the rest labels"


def settings_patch(arm: ArmResult) -> dict[str, Any]:
    """The settings in which the arm differs from the run's, nested as in YAML."""
    patch: dict[str, Any] = {}
    for key, value in arm.overrides.items():
        *sections, leaf = key.split(".")
        place = patch
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    return patch


def reading(result: DistillationResult) -> str:
    """The guide's ladder of quick fixes, answered for this run."""
    lines = [result.finding("status_quo").message]
    if "alpha_0.01" in result.arms:
        tiny = result.table.set_index("arm").loc["alpha_0.01"]
        verb = "may help"
        if tiny["delta_high"] < MATERIAL_GAIN:
            verb = "does not help"
        elif tiny["delta_low"] > 0:
            enough = tiny["low"] > result.settings.thresholds.baseline_auc
            verb = "helps" if enough else "helps, but not enough"
        lines.append(
            f"Safest first (alpha 0.01) {verb}: AUC {tiny['auc']:.2f} "
            f"({tiny['delta']:+.2f} [{tiny['delta_low']:+.2f}, {tiny['delta_high']:+.2f}] on half B)."
        )
    lines.append(result.finding("rescued_by").message)
    return "\n\n".join(lines)


def next_step(result: DistillationResult) -> str:
    """What to do after this page."""
    rescued = result.finding("rescued_by").data
    if rescued["only_without_teacher"]:
        return (
            "Skip the teacher (alpha_distill 0, alpha_task 1), or fine-tune it "
            "on these images. Step 06 weighs this against the rest."
        )
    if rescued["arms"]:
        return f"Use {result.choice.best}; step 06 confirms it on a new seed and writes recommended.yaml."
    if result.finding("status_quo").answer == "yes":
        return "Your weighting works; nothing here is worth changing. Step 06 sums up."
    return (
        "No weighting rescues the student, so the weighting is not the "
        "cause. Step 06 looks at data, optimisation and model."
    )


def shown_table(result: DistillationResult) -> pd.DataFrame:
    """The arms as a reader wants them: best first, numbers with their intervals."""
    table = result.table.sort_values("auc", ascending=False)
    return pd.DataFrame(
        {
            "arm": table["arm"],
            "what": table["what"],
            "AUC": [f"{r.auc:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in rows(table)],
            "gain on half B": [
                f"{r.delta:+.2f} [{r.delta_low:+.2f}, {r.delta_high:+.2f}]"
                if r.differs
                else "the same training"
                for r in rows(table)
            ],
            "p (Holm)": [f"{r.p_holm:.2g}" if r.differs else "" for r in rows(table)],
            "R² to teacher": table["r2"],
            "correlation": table["rho"],
        }
    )


def _status_quo(arm: ArmResult, threshold: float) -> Finding:
    measured = arm.auc
    # A student that overflowed has no score to be undecided about: it does not learn.
    open_or_lost: Answer = "no" if arm.stopped else "undecided"
    answer = answer_above(measured.ci, threshold) if measured.defined else open_or_lost
    said = {"yes": "learns", "no": "does not learn", "undecided": "may or may not learn"}[answer]
    shown = (
        f"{measured.value:.2f} [{measured.ci[0]:.2f}, {measured.ci[1]:.2f}]"
        if measured.defined
        else "undefined"
    )
    ended = f" ({arm.stopped})" if arm.stopped else ""
    text = f"With your settings the student {said}: val AUC {shown} against {threshold:.2f}{ended}."
    severity: Severity = {"yes": "ok", "no": "error", "undecided": "warning"}[answer]  # type: ignore[assignment]
    return Finding(
        "distillation.status_quo",
        severity,
        answer,
        text,
        measured.value,
        measured.ci,
        threshold,
        measured.n_real + measured.n_fake,
    )


def _best_arm(choice: Choice, arms: Mapping[str, ArmResult], scores: Scores) -> Finding:
    proof, best = choice.proof, choice.best
    answer = choice.answer
    change = f"AUC {proof.before.value:.2f} to {proof.after.value:.2f} ({_signed(proof)}, p = {proof.p:.2g})"
    text = {
        "yes": f"The arm {best} serves better than your settings: {change} on images that did not choose it.",
        "no": f"Nothing serves clearly better than your settings; best on half A was {best}.",
        "undecided": f"The arm {best} was best on half A; whether it is better than "
        f"your settings stays open: {change} on half B"
        f"{_needs(proof)}.",
    }[answer]
    data = {
        "arm": best,
        "settings": settings_patch(arms[best]),
        "chosen_on_a": choice.on_a,
        "p": proof.p,
        "delta": proof.delta,
        "auc": scores.auc(best).value,
    }
    severity: Severity = {"yes": "warning", "no": "ok", "undecided": "note"}[answer]  # type: ignore[assignment]
    return Finding(
        "distillation.best_arm",
        severity,
        answer,
        text,
        proof.delta,
        proof.ci,
        0.0,
        proof.after.n_real + proof.after.n_fake,
        data,
    )


def _rescued_by(table: pd.DataFrame, threshold: float) -> Finding:
    """Which interventions bring the student above the threshold by a gain that is certain?

    The gain is that of half B, with Holm's correction over the interventions that name a cause. An arm that gains
    but stays below the threshold has only moved towards a coin; it rescues nobody.
    """
    cures = table[table["arm"].isin(CURES) & table["differs"]]
    adjusted = holm(dict(zip(cures["arm"], cures["p"], strict=True)))
    raised = [row for row in rows(cures) if row.delta >= MATERIAL_GAIN and adjusted[row.arm] < SIGNIFICANT]
    rescued = [row.arm for row in raised if row.low > threshold]
    short = [row.arm for row in raised if row.arm not in rescued]
    failed = [row.arm for row in rows(cures) if row.delta_high < MATERIAL_GAIN]
    answer: Answer = "yes" if rescued else "no" if len(failed) + len(short) == len(cures) else "undecided"
    teacherless = rescued == [BCE_ONLY]
    if teacherless:
        text = (
            f"Only training without the teacher raises the AUC above {threshold:.2f}: "
            "what the teacher says is the trouble, not how loudly it says it."
        )
    elif rescued:
        text = f"The student is better, and above {threshold:.2f}, with {_words(rescued)}."
    else:
        text = f"No intervention raises the AUC for certain and above {threshold:.2f}."
    text += f" A gain, but not above {threshold:.2f}: {_words(short)}." if short else ""
    text += f" No help: {_words(failed)}." if failed else ""
    severity: Severity = "warning" if rescued else "ok" if answer == "no" else "note"
    data = {
        "arms": rescued,
        "gained": short,
        "failed": failed,
        "only_without_teacher": teacherless,
        "p_holm": adjusted,
    }
    return Finding("distillation.rescued_by", severity, answer, text, threshold=threshold, data=data)


def _alpha_trend(trend: AucDifference, ladder: list[str]) -> Finding:
    small, large = ladder[0].removeprefix("alpha_"), ladder[-1].removeprefix("alpha_")
    answer = gains(trend)
    said = {
        "yes": "The more distillation, the lower the AUC",
        "no": "More distillation does not lower the AUC",
        "undecided": "It is open whether more distillation lowers the AUC",
    }[answer]
    text = (
        f"{said}: {trend.after.value:.2f} at alpha {small}, "
        f"{trend.before.value:.2f} at alpha {large} ({_signed(trend)})."
    )
    return Finding(
        "distillation.alpha_trend",
        "warning" if answer == "yes" else "note",
        answer,
        text,
        trend.delta,
        trend.ci,
        0.0,
        trend.after.n_real + trend.after.n_fake,
    )


def _signed(difference: AucDifference) -> str:
    return f"{difference.delta:+.2f} [{difference.ci[0]:+.2f}, {difference.ci[1]:+.2f}]"


def _needs(proof: AucDifference) -> str:
    if not (proof.before.defined and proof.after.defined) or abs(proof.delta) < 0.01:
        return ""
    middle = float(np.clip((proof.before.value + proof.after.value) / 2, 0.5, 0.98))
    needed = n_for_gain(abs(proof.delta), middle, float(np.clip(proof.correlation, 0, 0.95)))
    return f" (about {needed:,} images a class would decide it)"


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _words(arms: list[str]) -> str:
    names = [CURES[name] for name in arms]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def status_quo_auc(result: DistillationResult) -> Auc:
    """The AUC of the user's own weighting."""
    return result.scores.auc(STATUS_QUO)
