"""Which of the known symptoms does the history show? One small function a symptom, all in one table."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diag_lib.evidence import Answer, Finding, Severity
from diag_lib.history import History
from diag_lib.settings import Settings
from diag_lib.statistics import Auc, answer_below, n_per_class_needed
from diag_lib.symptoms.curves import Curve

Floats = NDArray[np.float64]

LN2 = math.log(2)  # BCE of a coin
CHANCE_MARGIN = 0.05  # a BCE within this of ln 2, or above, is that of a guess
DOMINATES = 0.9  # share of the loss from which one term drowns the other; the guide's run has .998
ADDS_UP = 0.02  # relative difference between the printed total and the weighted sum

NAMES: dict[str, str] = {
    "train_loss": "total loss",
    "train_distill_loss": "distillation loss",
    "train_task_loss": "task loss (BCE)",
    "val_loss": "validation loss",
    "val_acc": "validation accuracy",
    "val_auc": "validation AUC",
}
"""The guide's columns in the order and words in which they are shown."""


@dataclass(frozen=True)
class Case:
    """What the checks look at: the history, what its curves say, and the shares of the two losses."""

    history: History
    curves: dict[str, Curve]
    settings: Settings
    shares: pd.DataFrame
    adds_up: Answer
    implied: float | None
    auc: Auc | None

    def end(self, column: str) -> Floats:
        """The finite values among the last fifth of the epochs (at least one epoch)."""
        values = self.history.values(column)[-max(1, len(self.history) // 5) :]
        return values[np.isfinite(values)]


def weights(history: History, alpha_distill: float, alpha_task: float) -> tuple[Answer, float | None]:
    """Does the total equal the configured weighted sum? If not, the alpha_distill (with 1 - it) that would fit."""
    total, distill, task = (history.values(f"train_{name}") for name in ("loss", "distill_loss", "task_loss"))
    with np.errstate(all="ignore"):
        parts = alpha_task * task if alpha_distill == 0 else alpha_distill * distill + alpha_task * task
        fits = _fits(total, parts)
        if fits is None:
            return "undecided", None
        if fits:
            return "yes", None
        guesses = (total - task) / (distill - task)
        guesses = guesses[np.isfinite(guesses)]
        implied = float(np.median(guesses)) if guesses.size else math.nan
        if 0 <= implied <= 1 and _fits(total, implied * distill + (1 - implied) * task):
            return "no", round(implied, 4)
    return "no", None


def _fits(total: Floats, parts: Floats) -> bool | None:
    known = np.isfinite(total) & np.isfinite(parts)
    if not known.any():
        return None
    off = np.abs(total[known] - parts[known]) / np.maximum(np.abs(total[known]), 1e-9)
    return bool(np.median(off) <= ADDS_UP)


def shares(history: History, alpha_distill: float, alpha_task: float) -> pd.DataFrame:
    """The parts of the weighted loss in each epoch, `distill` + `task` = 1; NaN where a loss is unknown."""
    distill = np.abs(history.values("train_distill_loss")) if alpha_distill > 0 else np.zeros(len(history))
    with np.errstate(all="ignore"):
        distill, task = alpha_distill * distill, alpha_task * np.abs(history.values("train_task_loss"))
        share = distill / (distill + task)
    return pd.DataFrame({"epoch": history.epochs["epoch"], "distill": share, "task": 1 - share})


def _all(values: Floats, holds: Callable[[float], bool]) -> Answer:
    """yes when it holds in every late epoch, no when in none, undecided between, and when nothing is known."""
    said = {holds(float(value)) for value in values}
    return "undecided" if len(said) != 1 else "yes" if said.pop() else "no"


def _severity(problem: Answer, when_yes: Severity = "warning") -> Severity:
    return {"yes": when_yes, "no": "ok", "undecided": "note"}[problem]


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None


def _distill_share(case: Case) -> Finding:
    share = case.shares["distill"].to_numpy()[-max(1, len(case.history) // 5) :]
    share = share[np.isfinite(share)]
    answer, value = _all(share, lambda s: s > DOMINATES), _mean(share)
    distill = case.curves["train_distill_loss"].last
    text = (
        f"The distillation term is {value:.1%} of the weighted loss (distillation loss {distill:.4g}); "
        "a share of the loss is not a share of the gradient, so this alone blames nobody."
        if value is not None and math.isfinite(distill)
        else "No distillation takes part in the loss." if value == 0
        else "The history does not hold both losses, so their shares are unknown."
    )  # fmt: skip
    return Finding("symptoms.distill_share", _severity(answer), answer, text, value, None, DOMINATES)


def _task_at_chance(case: Case) -> Finding:
    column = "train_task_loss" if case.history.known("train_task_loss") else "val_loss"
    late = case.end(column)
    limit = LN2 - CHANCE_MARGIN
    answer, value = _all(late, lambda loss: loss >= limit), _mean(late)
    if value is None:
        text = "The history holds no BCE at its end."
    elif value > LN2 + 2 * CHANCE_MARGIN:
        text = (
            f"The {NAMES[column]} ends at {value:.3g}, above a coin's {LN2:.4f}: confident and often wrong."
        )
    else:
        where = {"yes": "no better than", "no": "below", "undecided": "around"}[answer]
        text = f"The {NAMES[column]} ends at {value:.3g}, {where} {LN2:.4f}, the loss of a coin (ln 2)."
    return Finding("symptoms.task_at_chance", _severity(answer), answer, text, value, None, limit)


def _auc_at_chance(case: Case) -> Finding:
    threshold, curve = case.settings.thresholds.baseline_auc, case.curves["val_auc"]
    best = (
        f"; best epoch {curve.best:.3f}, which flatters: the last one counts"
        if curve.kind != "unknown" and curve.best > curve.last
        else ""
    )
    data: dict[str, float | bool] = {"best": curve.best, "best_epoch": curve.epoch, "last": curve.last}
    if case.auc is not None and case.auc.defined:
        a = case.auc
        answer = answer_below(a.ci, threshold)
        verb = {"yes": "below", "no": "above", "undecided": "on either side of"}[answer]
        shown = f"{a.value:.3f} [{a.ci[0]:.3f}, {a.ci[1]:.3f}]"
        text = f"The last epoch's validation AUC is {shown}, {verb} {threshold:g}{best}."
        if answer == "undecided":
            data["needs_n"] = n_per_class_needed(a.value, threshold)
            text += f" About {data['needs_n']:,.0f} images per class would decide."
        n = a.n_real + a.n_fake
        return Finding(
            "symptoms.auc_at_chance", _severity(answer), answer, text, a.value, a.ci, threshold, n, data
        )
    late = case.end("val_auc")
    value, answer = _mean(late), _all(late, lambda auc: auc < threshold)
    if case.auc is not None:
        text = "The student's validation scores are all equal or not finite: there is no AUC, not even .5."
        data["undefined"] = True
    elif value is None:
        text = "The history holds no validation AUC at its end."
    else:
        inverted = (
            "; below .5 the ranking is upside down: look at the labels' order"
            if value < 0.5 - CHANCE_MARGIN
            else ""
        )
        spread = (
            f" ({late.min():.3f} to {late.max():.3f} over the last {late.size} epochs)"
            if late.size > 1
            else ""
        )
        unsure = "The log does not say from how many images, so there is no interval."
        text = f"The validation AUC ends at {value:.3f}{spread}{best}{inverted}. {unsure}"
    return Finding(
        "symptoms.auc_at_chance", _severity(answer), answer, text, value, None, threshold, None, data
    )


def guide(case: Case, found: dict[str, Finding]) -> Finding:
    parts = [found[f"symptoms.{name}"] for name in ("distill_share", "task_at_chance", "auc_at_chance")]
    answers = {part.answer for part in parts}
    answer: Answer = "no" if "no" in answers else "yes" if answers == {"yes"} else "undecided"
    share, task, auc = (part.value for part in parts)
    numbers = ", ".join(
        shown
        for shown, known in (
            (f"distillation {share or 0:.1%} of the loss", share),
            (f"BCE {task or 0:.3g} (a coin: {LN2:.3f})", task),
            (f"AUC {auc or 0:.3f}", auc),
        )
        if known is not None
    )
    opening = {
        "yes": "Your run shows the guide's symptom",
        "no": "Your run does not show the guide's symptom" if parts[2].answer != "yes"
        else "Your run does not learn, but not in the guide's way",
        "undecided": "Whether your run shows the guide's symptom is open",
    }[answer]  # fmt: skip
    return Finding(
        "symptoms.guide", _severity(answer), answer, f"{opening}: {numbers or 'nothing is known'}."
    )


def _non_finite(case: Case) -> Finding:
    broken = [
        f"{NAMES[column]} {curve.said}" for column, curve in case.curves.items() if curve.kind == "non-finite"
    ]
    text = f"Broken numbers: {'; '.join(broken)}." if broken else "All recorded values are finite."
    return Finding("symptoms.non_finite", "error" if broken else "ok", "yes" if broken else "no", text)


def _negative(case: Case) -> Finding:
    losses = [c for c in NAMES if c.endswith("loss")]
    below = [NAMES[c] for c in losses if case.history.known(c) and np.nanmin(case.history.values(c)) < 0]
    text = (
        f"Below zero: {', '.join(below)}. Neither BCE nor a distance to the teacher can be: look for a flipped sign."
        if below
        else "No loss is negative."
    )
    return Finding("symptoms.negative", "error" if below else "ok", "yes" if below else "no", text)


def _unstable(case: Case) -> Finding:
    bad = {c: k for c, k in case.curves.items() if k.kind in {"oscillating", "worsening", "turned"}}
    text = "; ".join(f"{NAMES[c]} {k.said}{' (diverges)' if k.diverges else ''}" for c, k in bad.items())
    answer: Answer = "yes" if any(k.diverges or k.kind == "oscillating" for k in bad.values()) else "no"
    shown = f"{text[:1].upper()}{text[1:]}." if text else "No curve oscillates or diverges."
    return Finding(
        "symptoms.unstable", _severity(answer), answer, shown, data={c: k.kind for c, k in bad.items()}
    )


def _still_improving(case: Case) -> Finding:
    judged = [
        c
        for c in ("train_task_loss", "val_loss", "val_auc")
        if case.curves[c].kind not in {"unknown", "short"}
    ]
    rising = [c for c in judged if case.curves[c].kind == "still improving"]
    answer: Answer = "yes" if rising else "no" if judged else "undecided"
    text = "; ".join(f"{NAMES[c]} {case.curves[c].said}" for c in rising)
    text = (
        f"{text[:1].upper()}{text[1:]}: more epochs may help."
        if rising
        else "Nothing that matters still improves at the end."
    )
    if answer == "undecided":
        text = "Too few epochs to see whether training ended too early."
    return Finding("symptoms.still_improving", _severity(answer, "note"), answer, text)


def _overfit(case: Case) -> Finding:
    train, val = case.curves["train_task_loss"], case.curves["val_loss"]
    fell = train.kind in {"improved", "still improving"}
    if "unknown" in {train.kind, val.kind} or "short" in {train.kind, val.kind}:
        return Finding(
            "symptoms.overfit",
            "note",
            "undecided",
            "Train and validation BCE are not both known over enough epochs.",
        )
    if fell and val.kind in {"worsening", "turned", "flat"}:
        text = f"The train BCE {train.said}, the validation loss {val.said}: what is learned does not carry over."
        return Finding("symptoms.overfit", "warning", "yes", text)
    return Finding(
        "symptoms.overfit", "ok", "no", f"The train BCE {train.said}; the validation loss {val.said}."
    )


def _saturated_auc(case: Case) -> Finding:
    late, accuracy, task = case.end("val_auc"), case.end("val_acc"), case.end("train_task_loss")
    if case.auc is not None:
        return Finding(
            "symptoms.saturated_auc",
            "ok",
            "no",
            "This AUC ranks raw float64 logits, so no sigmoid can saturate it.",
        )
    if not late.size or late.min() >= case.settings.thresholds.baseline_auc:
        text = "The AUC of your log is above chance, or absent." if late.size else "Your log holds no AUC."
        return Finding("symptoms.saturated_auc", "ok", "no", text)
    signs = (
        [f"accuracy {accuracy.mean():.2f}"]
        if accuracy.size and accuracy.mean() > 0.5 + 2 * CHANCE_MARGIN
        else []
    )
    signs += [f"task loss {task.mean():.2f}"] if task.size and task.mean() < LN2 - 2 * CHANCE_MARGIN else []
    text = (
        "An AUC computed after a float32 sigmoid can be an artefact: logits above about 16.6 all become 1 and tie. "
        + (f"Yours does not fit its own {' and '.join(signs)}. " if signs else "")
        + "Compute it from raw logits in float64, as steps 02, 04 and 05 do."
    )
    return Finding("symptoms.saturated_auc", "warning" if signs else "note", "undecided", text, _mean(late))


def _adds_up(case: Case) -> Finding:
    d = case.settings.training.distillation
    said = f"{d.alpha_distill:g} x distillation + {d.alpha_task:g} x BCE"
    texts = {
        "yes": f"The printed total equals the configured {said}.",
        "no": f"The printed total is not the configured {said}"
        + (
            f"; it fits alpha_distill {case.implied:g}, alpha_task {1 - case.implied:g}."
            if case.implied is not None
            else "."
        ),
        "undecided": "The history does not hold total, distillation and task loss together.",
    }
    severity: Severity = {"yes": "ok", "no": "warning", "undecided": "note"}[case.adds_up]  # type: ignore[assignment]
    return Finding(
        "symptoms.adds_up", severity, case.adds_up, texts[case.adds_up], data={"alpha_implied": case.implied}
    )


CHECKS: tuple[Callable[[Case], Finding], ...] = (
    _distill_share,
    _task_at_chance,
    _auc_at_chance,
    _non_finite,
    _negative,
    _unstable,
    _still_improving,
    _overfit,
    _saturated_auc,
    _adds_up,
)
"""Every check of this step besides the guide's symptom, which is their sum."""
