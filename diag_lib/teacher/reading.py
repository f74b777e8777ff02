"""What does the teacher's result mean in the guide's words, and what should be done next?"""

import pandas as pd

from diag_lib.evidence import Severity
from diag_lib.teacher.step import TeacherResult

WIRING = ("weights_loaded", "inverted", "train_mode", "saturation")
ANSWER = {"yes": "yes", "no": "no", "undecided": "undecided"}
PATCH_COLUMNS = ["min", "max", "mean", "std", "median", "mad", "q01", "q99", "kurtosis", "images"]


def guide_table(result: TeacherResult) -> pd.DataFrame:
    """The guide's two questions with their three-valued answers and the images a class that would decide."""
    limits = result.settings.thresholds
    auc, good = result.finding("auc"), result.finding("good")
    rows = [
        ("AUC below", limits.teacher_auc_low, auc.data["below_low"], "domain shift", auc.data),
        ("AUC above", limits.teacher_auc_good, good.answer, "loss scaling", good.data),
    ]
    return pd.DataFrame(
        {
            "question": [f"{what} {limit:g}?" for what, limit, *_ in rows],
            "answer": [ANSWER[answer] for _, _, answer, *_ in rows],
            "if yes, the guide suspects": [suspect for *_, suspect, _ in rows],
            "images a class to decide": [str(data["n_per_class_needed"] or "") for *_, data in rows],
        }
    )


def patch_table(result: TeacherResult) -> pd.DataFrame:
    """Minimum, maximum, mean, standard deviation and the robust numbers, for all, real and fake images."""
    shown = result.patches[PATCH_COLUMNS].map(lambda value: f"{value:.4g}")
    return shown.reset_index()


def describe_roc(result: TeacherResult) -> str:
    """The ROC picture in words."""
    parts = [
        f"{name} AUC {found.value:.2f}, 95% interval {found.ci[0]:.2f} to {found.ci[1]:.2f}"
        for name, found in (("validation", result.val), ("train", result.train))
        if found.defined
    ]
    return (
        "ROC curve of the teacher with its band; " + ("; ".join(parts) or "the AUC cannot be computed") + "."
    )


def next_step(result: TeacherResult) -> tuple[Severity, str]:
    """Severity and text of the advice: the first of the things that stand in the way."""
    answers = {name: result.finding(name).answer for name in ("auc", "good", "inverted", "preprocessing")}
    if result.finding("weights_loaded").answer == "no":
        return "error", (
            "Load the teacher's weights first: nothing else on this page speaks about the teacher. "
            "Set teacher.weights and teacher.arch so that no tensor is missing."
        )
    if result.finding("train_mode").answer == "yes":
        return "error", "Put the teacher into eval mode, then run this page again."
    if answers["preprocessing"] == "yes":
        changes = result.finding("preprocessing").data["settings"]
        text = "; ".join(f"{s}.{k}: {v}" for s, values in changes.items() for k, v in values.items())
        return "warning", f"Feed the teacher as it was trained: set {text}. Then run again; the maps change."
    if answers["inverted"] == "yes":
        return "error", (
            "The teacher's polarity or the labels are swapped. Look at the heat-maps: if pictures labelled real "
            "look real, the teacher is inverted; if not, the label mapping is."
        )
    if answers["auc"] == "no":
        return "error", (
            "This teacher has nothing to teach here. Fine-tune it (diag finetune-teacher), or skip it: "
            "alpha_distill 0, alpha_task 1. Page 04 shows what the student reaches alone."
        )
    if answers["auc"] == "undecided":
        needed = result.finding("auc").data["n_per_class_needed"]
        more = f" ({needed} validation images a class would decide)" if needed else ""
        return (
            "warning",
            f"Whether this teacher is informative stays open{more}. Page 04 does not depend on it.",
        )
    if answers["good"] == "yes":
        return (
            "ok",
            "The teacher is good. If the student fails all the same, page 03 looks at the logit scale.",
        )
    return "note", "The teacher knows something, if not much. Page 03 looks at the logit scale."
