"""What do the measurements on the teacher say, one finding a question?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from diag_lib.evidence import Answer, Finding, Severity
from diag_lib.probes.compare import sides
from diag_lib.probes.fingerprint import Fingerprint
from diag_lib.probes.preprocessing import PreprocessingProbe, Trial
from diag_lib.probes.teacher import ModeCheck, SaturationCheck, WeightsCheck
from diag_lib.settings import Settings
from diag_lib.statistics import (
    MATERIAL_GAIN,
    NEVER,
    Auc,
    AucDifference,
    answer_above,
    answer_below,
    n_per_class_needed,
)

REPEATS = 0.99  # correlation of an image's logits asked twice; rounding to 16 bits leaves .9999
LISTED = 50  # tensor names kept in the evidence


def findings(
    settings: Settings,
    val: Auc,
    train: Auc,
    scores: pd.DataFrame,
    weights: WeightsCheck,
    feeding: PreprocessingProbe,
    prints: Fingerprint,
    mode: ModeCheck,
    saturation: SaturationCheck,
) -> list[Finding]:
    """All findings of step 02, in the order in which one asks."""
    low, good = settings.thresholds.teacher_auc_low, settings.thresholds.teacher_auc_good
    broken = {split: int((~np.isfinite(rows["score"])).sum()) for split, rows in scores.groupby("split")}
    return [
        _weights(weights),
        _informative("teacher.auc", "validation", val, low, broken.get("val", 0)),
        _informative("teacher.auc_train", "train", train, low, broken.get("train", 0)),
        _good(val, good),
        _inverted(val, train, low),
        _preprocessing(feeding, prints),
        _fingerprint(prints),
        _mode(mode),
        _repeatable(mode),
        _saturation(saturation),
    ]


def needed(value: float, threshold: float, fallback: float) -> int | None:
    """Images a class that would tell on which side of the threshold an AUC of `value` lies (80% power).

    Where the observed value is too close to the threshold, `fallback` is taken for the truth.
    """
    truth = value if np.isfinite(value) and abs(value - threshold) > 0.01 else fallback
    n = n_per_class_needed(truth, threshold)
    return None if n >= NEVER else n


def _text(found: Auc) -> str:
    if not found.defined:
        return "cannot be computed (constant scores, or one class only)"
    return f"is {found.value:.3f} [{found.ci[0]:.3f}, {found.ci[1]:.3f}]"


def _severity(answer: Answer, of: Mapping[Answer, Severity]) -> Severity:
    return of[answer]


def _informative(name: str, split: str, found: Auc, low: float, broken: int) -> Finding:
    """The guide's first question: AUC < 0.55, hence not informative?"""
    answer = answer_above(found.ci, low) if found.defined else "undecided"
    n_needed = needed(found.value, low, 0.5) if answer == "undecided" else None
    said = {
        "yes": f"above {low:g}: it knows something about these images",
        "no": f"not above {low:g}: it tells the student nothing useful about these labels",
        "undecided": f"too close to {low:g} to call"
        + (f", {n_needed} images a class would" if n_needed else ""),
    }[answer]
    if found.defined and found.ci[1] < 1 - low:
        said = "far below one half: it separates the classes, but the wrong way round"
    text = f"The teacher's AUC on {split} images {_text(found)}" + (f", {said}." if found.defined else ".")
    text += f" {broken} of its image logits are not finite." if broken else ""
    severity = _severity(answer, {"yes": "ok", "no": "error", "undecided": "warning"})
    data: dict[str, Any] = {
        "n_real": found.n_real,
        "n_fake": found.n_fake,
        "n_per_class_needed": n_needed,
        "nonfinite": broken,
        "below_low": answer_below(found.ci, low) if found.defined else "undecided",
    }
    n = found.n_real + found.n_fake
    return Finding(name, severity, answer, text, found.value, found.ci, low, n, data)


def _good(found: Auc, good: float) -> Finding:
    """The guide's second question: AUC > 0.70, hence look at the loss?"""
    answer = answer_above(found.ci, good) if found.defined else "undecided"
    n_needed = needed(found.value, good, 0.75) if answer == "undecided" else None
    said = {
        "yes": f"above {good:g}: a student that fails has its reason elsewhere, look at the loss next",
        "no": f"not above {good:g}: do not expect a good student from it alone",
        "undecided": f"too close to {good:g} to call"
        + (f", {n_needed} images a class would" if n_needed else ""),
    }[answer]
    text = f"The teacher's AUC {_text(found)}" + (f", {said}." if found.defined else ".")
    severity: Severity = "ok" if answer == "yes" else "note"
    data = {"n_per_class_needed": n_needed}
    n = found.n_real + found.n_fake
    return Finding("teacher.good", severity, answer, text, found.value, found.ci, good, n, data)


def _inverted(val: Auc, train: Auc, low: float) -> Finding:
    mirror = 1 - low
    answer = answer_below(val.ci, mirror) if val.defined else "undecided"
    on_train = answer_below(train.ci, mirror) if train.defined else "undecided"
    also = {
        "yes": "and so it does on train: either its polarity or the labels of both splits are swapped",
        "no": "but not on train: compare the labels of the two splits",
        "undecided": "on train this is open",
    }[on_train]
    text = {
        "yes": f"The teacher ranks real above fake: its AUC {_text(val)}, {also}. See the heat-maps to decide.",
        "no": f"The teacher does not rank real above fake: its AUC {_text(val)}.",
        "undecided": f"Whether the teacher ranks real above fake is open: its AUC {_text(val)}.",
    }[answer]
    n = val.n_real + val.n_fake
    severity = _severity(answer, {"yes": "error", "no": "ok", "undecided": "note"})
    return Finding(
        "teacher.inverted", severity, answer, text, val.value, val.ci, mirror, n, {"train": on_train}
    )


def _weights(check: WeightsCheck) -> Finding:
    report = check.report
    severity = _severity(check.answer, {"yes": "ok", "no": "error", "undecided": "warning"})
    if severity == "ok" and report.unexpected:
        severity = "warning"
    data = {
        "random": report.random,
        "file": report.file,
        "sha256": report.sha256,
        "loaded": report.loaded,
        "missing": report.missing[:LISTED],
        "n_missing": len(report.missing),
        "unexpected": report.unexpected[:LISTED],
        "n_unexpected": len(report.unexpected),
        "mismatched": report.mismatched[:LISTED],
        "spread": check.spread,
        "random_spreads": list(check.random_spreads),
        "looks_random": check.looks_random,
        "fresh_norms": check.fresh_norms,
        "norms": check.norms,
    }
    return Finding("teacher.weights_loaded", severity, check.answer, f"{check.reason}.", data=data)


def _preprocessing(probe: PreprocessingProbe, prints: Fingerprint) -> Finding:
    gain, answer = probe.confirmation, probe.answer
    other = probe.best.preprocess != probe.configured.preprocess
    if answer == "undecided" and gain is not None and other and _remembers_configured(prints):
        answer = "no"
    severity = _severity(answer, {"yes": "warning", "no": "ok", "undecided": "note"})
    own = probe.configured
    best = own if answer == "no" else probe.best
    data = {
        "best": best.label(own),
        "configured": own.label(own),
        **vars(best),
        "settings": best.patch(own),
        "label_free": probe.label_free,
        "flipped": probe.flipped,
        "n_per_class_needed": probe.n_needed if answer == "undecided" else None,
        "trials": probe.table().to_dict("records"),
        "skipped": list(probe.skipped),
    }
    if gain is not None:
        data |= sides(gain)
    told = gain if gain is not None and gain.defined else None
    value, ci, n = (None, None, probe.n) if told is None else (told.delta, told.ci, _images(told))
    text = _preprocessing_text(probe, answer, prints)
    return Finding("teacher.preprocessing", severity, answer, text, value, ci, MATERIAL_GAIN, n, data)


def _preprocessing_text(probe: PreprocessingProbe, answer: Answer, prints: Fingerprint) -> str:
    gain = probe.confirmation
    if gain is None and answer == "no":
        text = "No other preprocessing, scale, normalisation or resizing did better on the half that chooses."
    elif gain is None:
        text = "The preprocessing probe needs both classes and scores that differ."
    else:
        what = probe.best.difference(probe.configured)
        where = f"all {probe.n} images tried" if probe.label_free else "the half that chose nothing"
        numbers = (
            f"AUC {gain.before.value:.3f} to {gain.after.value:.3f}, "
            f"{gain.delta:+.3f} [{gain.ci[0]:+.3f}, {gain.ci[1]:+.3f}] on {where}"
            if gain.defined
            else f"fed in either way, the teacher ranks nothing of {where}"
        )
        text = {
            "yes": f"Fed with {what} the teacher does better: {numbers}.",
            "no": f"The strongest rival ({what}) brings nothing that counts: {numbers}.",
            "undecided": f"Whether {what} serves the teacher better is open: {numbers}.",
        }[answer]
        if answer == "no" and probe.answer == "undecided":
            fit = prints.row(prints.configured)["correlation"]
            text = (
                f"The teacher's BatchNorm statistics fit the configured preprocessing (correlation {fit:.3f}); "
                f"labels alone leave the strongest rival ({what}) open: {numbers}."
            )
    passed_over = _passed_over(probe, prints)
    if passed_over is not None:
        text += (
            f" With {passed_over.variant.difference(probe.configured)} AUC {passed_over.auc.value:.3f} was seen, but "
            f"its BatchNorm statistics show that it was trained with {prints.best}: that is picture content."
        )
    if probe.flipped:
        text += " Its scores were negated for this comparison, because it ranks real above fake."
    return text


def _passed_over(probe: PreprocessingProbe, prints: Fingerprint) -> Trial | None:
    """The best trial, where it clearly beats the chosen one but the statistics exclude its preprocessing."""
    found = {trial.variant: trial for trial in probe.trials if trial.auc.defined}
    top = max(found.values(), key=lambda trial: trial.auc.value, default=None)
    chosen = found.get(probe.best)
    if top is None or chosen is None or not prints.certain:
        return None
    excluded = top.variant.preprocess not in {prints.best, probe.configured.preprocess}
    return top if excluded and top.auc.ci[0] > chosen.auc.value else None


def _remembers_configured(prints: Fingerprint) -> bool:
    """The statistics fit the configured preprocessing best, whichever images are drawn."""
    return prints.answer == "no" and prints.best == prints.configured and prints.clear


def _images(gain: AucDifference) -> int:
    return gain.after.n_real + gain.after.n_fake


def _fingerprint(prints: Fingerprint) -> Finding:
    name = "teacher.bn_fingerprint"
    if prints.best is None:
        text = f"The teacher keeps no trace of its preprocessing: {prints.reason}."
        data: dict[str, Any] = {"best": None, "configured": prints.configured}
        return Finding(name, "note", "undecided", text, data=data)
    best, own = prints.row(prints.best), prints.row(prints.configured)
    best_fit = f"correlation {best['correlation']:.3f}, ratio {best['ratio']:.3g}"
    own_fit = f"correlation {own['correlation']:.3f}, ratio {own['ratio']:.3g}"
    text = {
        "yes": f"The teacher's BatchNorm statistics were made by {prints.best} ({best_fit}), "
        f"not by the configured {prints.configured} ({own_fit}).",
        "no": f"The teacher's BatchNorm statistics fit the configured {prints.configured} ({own_fit}).",
        "undecided": f"The BatchNorm statistics do not tell: {prints.reason}; {prints.best} has {best_fit}.",
    }[prints.answer]
    severity = _severity(prints.answer, {"yes": "warning", "no": "ok", "undecided": "note"})
    data = {
        "best": prints.configured if prints.answer == "no" else prints.best,
        "closest": prints.best,
        "configured": prints.configured,
        "layers": list(prints.layers),
        "table": prints.table.to_dict("records"),
    }
    return Finding(name, severity, prints.answer, text, best["correlation"], None, None, prints.n, data)


def _mode(mode: ModeCheck) -> Finding:
    shown = mode.effect if mode.effect is not None else mode.batch_statistics
    gain = "" if shown is None else f"{shown.delta:+.3f} [{shown.ci[0]:+.3f}, {shown.ci[1]:+.3f}]"
    batch = mode.batch_statistics
    stale = batch is not None and batch.ci[0] > 0 and batch.delta >= MATERIAL_GAIN
    depends = "The teacher's output for an image depends on the other images of its batch"
    if not np.isfinite(mode.change):
        text = "The teacher's logits are not finite, so their dependence on the batch cannot be judged."
    elif mode.answer == "undecided":
        text = f"{depends}, even in eval mode."
    elif mode.answer == "yes":
        text = f"{depends}: it runs in train mode. Eval mode changes its AUC by {gain}."
    elif mode.effect is not None:
        text = f"{depends}, which does no harm: eval mode changes its AUC by {gain}."
    elif stale:
        text = (
            f"The teacher runs in eval mode, but its running statistics do not fit these images: with those of "
            f"the images its AUC changes by {gain}."
        )
    else:
        text = "The teacher's output for an image does not depend on the other images of its batch."
    severity = _severity(mode.answer, {"yes": "error", "no": "ok", "undecided": "warning"})
    if severity == "ok" and (stale or mode.effect is not None):
        severity = "note"
    data = {
        "change": mode.change,
        "batch_dependent": mode.effect is not None or mode.answer == "undecided",
        "stale_statistics": stale,
        "compared_with": "eval mode" if mode.effect is not None else "batch statistics",
    }
    value, ci = (None, None) if shown is None else (shown.delta, shown.ci)
    n = None if shown is None else _images(shown)
    if shown is not None:
        data |= sides(shown)
    return Finding("teacher.train_mode", severity, mode.answer, text, value, ci, 0.0, n, data)


def _repeatable(mode: ModeCheck) -> Finding:
    """Does the teacher give an image the same logits whenever it is asked?"""
    found = mode.repeats
    answer: Answer = "undecided" if found is None and mode.effect is None else "yes"
    if found is not None and found < REPEATS:
        answer = "no"
    text = {
        "yes": "Asked again for the same images, the teacher answers the same.",
        "no": "Asked again for the same images, the teacher answers otherwise "
        f"(correlation {_shown(found)}, {REPEATS} is needed): its logits belong to other images, or to chance.",
        "undecided": "Whether the teacher answers the same when asked again cannot be judged: "
        "its logits are constant or not finite.",
    }[answer]
    severity = _severity(answer, {"yes": "ok", "no": "error", "undecided": "note"})
    return Finding("teacher.repeatable", severity, answer, text, found, None, REPEATS)


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _saturation(check: SaturationCheck) -> Finding:
    text = {
        "yes": f"Ranking single-precision probabilities instead of logits would report AUC "
        f"{check.auc_sigmoid:.3f} where it is {check.auc_logits:.3f}, because {check.tied:.0%} of them are exactly "
        f"0 or 1. If your script reports the former, mistrust it.",
        "no": f"Ranking single-precision probabilities gives the AUC of the logits "
        f"({check.tied:.0%} are exactly 0 or 1).",
        "undecided": "The AUC cannot be computed, so nothing can be said about rounded probabilities.",
    }[check.answer]
    severity = _severity(check.answer, {"yes": "warning", "no": "ok", "undecided": "note"})
    data = {"auc_sigmoid_fp32": check.auc_sigmoid, "auc_logits": check.auc_logits, "tied": check.tied}
    value, threshold = check.auc_sigmoid, check.auc_logits
    return Finding("teacher.saturation", severity, check.answer, text, value, None, threshold, None, data)
