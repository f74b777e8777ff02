"""Which causes does the evidence make suspect, which does it contradict, and what is still open?

A screen asks one cause's questions of the evidence that the steps left. It runs nothing and proves nothing;
the experiment beside it in `diag_lib.causes.CAUSES` does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from diag_lib.evidence import Answer, Evidence, Finding
from diag_lib.settings import Settings
from diag_lib.statistics import Auc, n_per_class_needed

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLEARLY_WORKS = 0.90
"""A BCE-only AUC whose interval lies above it leaves nothing for a cause of the data or the optimisation to explain."""
ENOUGH_A_CLASS = 412
"""Images a class with which "AUC below .55" can be established; a train set of that size is not called too small."""
LARGER_STUDENT: dict[str, Any] = {
    "arch": "tiny_ladeda",
    "weights": None,
    "preprocess": "right_diag",
    "trainable_s1": ["all"],
    "trainable_s2": ["all"],
}
"""What a student without capacity is measured against, all of it trained."""
OPTIMISATION = ("baseline.learning_rate", "baseline.frozen", "baseline.undertrained")
MATERIAL_GAIN = 0.02
"""An intervention counts when its paired gain is at least this AUC and its interval is above zero."""


@dataclass(frozen=True)
class Suspicion:
    """The evidence fits. `weak`: a needed answer is still undecided, `needs` says what would decide it."""

    because: str
    evidence: tuple[str, ...]
    weak: bool = False
    needs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RuledOut:
    """Evidence contradicts the cause."""

    because: str


class Case:
    """Everything known about a run, with the questions that screens ask of it."""

    def __init__(self, settings: Settings, evidence: Mapping[str, Evidence], arms: Mapping[str, Auc]) -> None:
        self.settings = settings
        self.evidence = evidence
        self.arms = arms
        self.limits = settings.thresholds

    def finding(self, finding_id: str) -> Finding | None:
        """The finding of that id, if its step has run and made it."""
        step = self.evidence.get(finding_id.partition(".")[0])
        return step.finding(finding_id) if step else None

    def says(self, finding_id: str, answer: Answer) -> bool:
        """Whether the finding exists and has that answer."""
        found = self.finding(finding_id)
        return found is not None and found.answer == answer

    def interval(self, finding_id: str) -> tuple[float, float] | None:
        """The finding's 95% interval."""
        found = self.finding(finding_id)
        return found.ci if found else None

    @property
    def teacher_useless(self) -> bool | None:
        """Whether the teacher's validation AUC is below `teacher_auc_low` (None: undecided or unknown)."""
        ci = self.interval("teacher.auc")
        if ci is None:
            return None
        if ci[1] < self.limits.teacher_auc_low:
            return True
        return False if ci[0] > self.limits.teacher_auc_low else None

    @property
    def teacher_inverted(self) -> bool:
        """Whether the teacher's AUC is as far below one half as `teacher_auc_low` is above."""
        ci = self.interval("teacher.auc")
        return ci is not None and ci[1] < 1 - self.limits.teacher_auc_low

    @property
    def status_quo_learns(self) -> bool:
        """Whether the status-quo student's AUC interval lies above `baseline_auc`."""
        arm = self.arms.get("status_quo")
        return arm is not None and arm.defined and arm.ci[0] > self.limits.baseline_auc

    @property
    def status_quo_collapsed(self) -> bool:
        """Whether the status-quo student gives every image the same score, or none that is finite."""
        arm = self.arms.get("status_quo")
        return arm is not None and not arm.defined

    @property
    def baseline_learns(self) -> bool | None:
        """Whether the BCE-only student's AUC interval lies above `baseline_auc` (None: undecided)."""
        arm = self.arms.get("bce_only")
        if arm is None or not arm.defined:
            return None
        if arm.ci[0] > self.limits.baseline_auc:
            return True
        return False if arm.ci[1] < self.limits.baseline_auc else None


Screen = Callable[[Case], Suspicion | RuledOut | None]
"""None: the cause does not come up (its evidence was not gathered or its question does not arise)."""


def _text(ci: tuple[float, float] | None) -> str:
    return f"[{ci[0]:.2f}, {ci[1]:.2f}]" if ci else "unknown"


# --- data -------------------------------------------------------------------------------------------------


def corrupt_images(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("audit.unreadable")
    if found is None:
        return None
    if found.answer == "yes" and found.severity == "error":
        return Suspicion(found.message, (found.id,))
    return RuledOut(found.message)


def leakage(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("audit.leakage")
    if found is None:
        return None
    if found.answer == "yes":
        return Suspicion(found.message, (found.id,))
    return RuledOut(found.message)


def shortcut(case: Case) -> Suspicion | RuledOut | None:
    joint = case.finding("audit.shortcut.joint")
    if joint is None:
        return None
    if joint.answer == "yes":
        step = case.evidence["audit"]
        single = [f for f in step.findings if f.id.startswith("audit.shortcut.") and f.answer == "yes"]
        return Suspicion(joint.message, tuple(f.id for f in single))
    if joint.answer == "no":
        return RuledOut(f"file properties alone reach AUC {joint.value:.2f} {_text(joint.ci)}")
    return Suspicion(joint.message, (joint.id,), weak=True)


def normalization_patch(case: Case) -> dict[str, Any] | None:
    """The settings that normalise these pixels well, or None where the audit found nothing wrong.

    What the teacher's own probe proved comes first, else ImageNet's values, which pretrained networks expect.
    """
    if not case.says("audit.normalization", "yes"):
        return None
    probed = case.finding("teacher.preprocessing")
    if probed is not None and probed.answer == "yes":
        dataset = (probed.data.get("settings") or {}).get("dataset", {})
        if "normalize_mean" in dataset:
            return {"dataset": {name: dataset[name] for name in ("normalize_mean", "normalize_std")}}
    return {"dataset": {"normalize_mean": list(IMAGENET_MEAN), "normalize_std": list(IMAGENET_STD)}}


def student_normalization(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("audit.normalization")
    if found is None or found.answer == "undecided":
        return None
    if found.answer == "yes":
        return Suspicion(found.message, (found.id, "distillation.status_quo"))
    return RuledOut(f"the normalisation fits the pixels: {found.message}")


def too_little_data(case: Case) -> Suspicion | RuledOut | None:
    """Few images a class, and a student that knows them far better than others."""
    counts, baseline = case.finding("audit.imbalance"), case.finding("baseline.auc")
    if counts is None or baseline is None or baseline.ci is None or baseline.value is None:
        return None
    fewest = min(int(counts.data.get(name, ENOUGH_A_CLASS)) for name in ("real", "fake"))
    told = f"train has {fewest} images of its rarer class"
    if fewest >= ENOUGH_A_CLASS:
        return RuledOut(told)
    if baseline.ci[0] > CLEARLY_WORKS:
        return RuledOut(f"{told}, but they suffice: BCE-only AUC {baseline.value:.2f} {_text(baseline.ci)}")
    train = baseline.data.get("train_ci")
    memorised = train is not None and train[0] > baseline.ci[1]
    because = f"{told}; BCE-only AUC {_text(baseline.ci)} on val against {_text(train)} on them"
    return Suspicion(because, (counts.id, baseline.id, "baseline.overfit_batch"), weak=not memorised)


def labels_inverted_train(case: Case) -> Suspicion | RuledOut | None:
    train, val = case.interval("teacher.auc_train"), case.interval("teacher.auc")
    if train is None or val is None:
        return None
    low = case.limits.teacher_auc_low
    if train[1] < 1 - low and val[0] > low:
        because = (
            f"the teacher's AUC is {_text(train)} on train but {_text(val)} on val: train labels are swapped"
        )
        return Suspicion(because, ("teacher.auc_train", "teacher.auc"))
    return RuledOut(f"the teacher's AUC on train {_text(train)} is not the mirror of val {_text(val)}")


def labels_shuffled(case: Case) -> Suspicion | RuledOut | None:
    held_out, val = case.finding("baseline.heldout_train"), case.finding("baseline.val_learnable")
    train_auc, val_auc = case.interval("teacher.auc_train"), case.interval("teacher.auc")
    limits = case.limits
    teacher_disagrees = (
        train_auc is not None
        and val_auc is not None
        and train_auc[1] < limits.baseline_auc < limits.teacher_auc_good < val_auc[0]
        and train_auc[1] > 1 - limits.teacher_auc_low
    )
    if held_out is not None and held_out.answer == "yes":
        return RuledOut(f"a student trained on part of train ranks the rest: AUC {_text(held_out.ci)}")
    if teacher_disagrees:
        because = f"the teacher ranks val {_text(val_auc)} but not train {_text(train_auc)}"
        return Suspicion(because, ("teacher.auc_train", "teacher.auc", "baseline.heldout_train"))
    if held_out is None or val is None or case.baseline_learns is not False:
        return None
    if held_out.answer == "no" and val.answer == "yes":
        because = (
            f"train labels cannot be learned (held-out train AUC {_text(held_out.ci)}), "
            f"val labels can ({_text(val.ci)})"
        )
        return Suspicion(because, ("baseline.heldout_train", "baseline.val_learnable"))
    return None


def label_noise(case: Case) -> Suspicion | RuledOut | None:
    """The teacher's AUC shrinks on train by about (1 - 2e) when a fraction e of the train labels is wrong."""
    train, val = case.finding("teacher.auc_train"), case.finding("teacher.auc")
    below = case.finding("baseline.train_below_val")
    if train is None or val is None or train.ci is None or val.ci is None or below is None:
        return None
    if train.ci[1] > val.ci[0] - MATERIAL_GAIN or val.ci[0] < case.limits.teacher_auc_good:
        return RuledOut(f"the teacher ranks train {_text(train.ci)} about as well as val {_text(val.ci)}")
    evidence = ("teacher.auc_train", "teacher.auc", "baseline.train_below_val")
    because = f"the teacher's AUC is {_text(train.ci)} on train against {_text(val.ci)} on val"
    return Suspicion(f"{because}; {below.message}", evidence, weak=below.answer != "yes")


def patch_misalignment(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("logits.alignment")
    if found is None or found.answer == "undecided":
        return None
    return Suspicion(found.message, (found.id,)) if found.answer == "no" else RuledOut(found.message)


def wrong_activation(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("logits.activation")
    if found is None or found.answer == "undecided":
        return None
    return Suspicion(found.message, (found.id,)) if found.answer == "yes" else RuledOut(found.message)


def split_shift(case: Case) -> Suspicion | RuledOut | None:
    held_out = case.finding("baseline.heldout_train")
    if held_out is None or case.baseline_learns is True:
        return None
    if held_out.answer == "yes" and case.baseline_learns is False:
        because = f"within train the student generalises (AUC {_text(held_out.ci)}), on val it does not"
        return Suspicion(because, ("baseline.heldout_train", "baseline.auc", "audit.drift"))
    if held_out.answer == "no":
        return RuledOut(f"the student does not generalise within train either: AUC {_text(held_out.ci)}")
    return None


def class_imbalance(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("audit.imbalance")
    if found is None:
        return None
    if found.answer == "yes" and not case.status_quo_learns:
        return Suspicion(found.message, (found.id,))
    return RuledOut(
        found.message if found.answer == "no" else f"{found.message}, but the student learns all the same"
    )


def no_signal(case: Case) -> Suspicion | RuledOut | None:
    held_out, val = case.finding("baseline.heldout_train"), case.finding("baseline.val_learnable")
    batch = case.finding("baseline.overfit_batch")
    if held_out is None or val is None or case.baseline_learns is not False:
        return None
    if held_out.answer == "no" and val.answer == "no" and batch is not None and batch.answer == "yes":
        because = (
            f"neither train {_text(held_out.ci)} nor val {_text(val.ci)} can be learned, "
            "yet one batch can be overfit"
        )
        evidence = (held_out.id, val.id, batch.id, *OPTIMISATION)
        open_still = [name for name in OPTIMISATION if (found := case.finding(name)) and found.answer != "no"]
        return Suspicion(
            because, evidence, weak=bool(open_still) or _rescued(case) or case.teacher_useless is False
        )
    return None


# --- teacher ----------------------------------------------------------------------------------------------


def weights_not_loaded(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("teacher.weights_loaded")
    if found is None:
        return None
    return Suspicion(found.message, (found.id,)) if found.answer == "no" else RuledOut(found.message)


def teacher_train_mode(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("teacher.train_mode")
    if found is None or found.answer == "undecided":
        return None
    return (
        Suspicion(found.message, (found.id, "teacher.auc"))
        if found.answer == "yes"
        else RuledOut(found.message)
    )


def teacher_stale_cache(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("teacher.repeatable")
    if found is None or found.answer == "undecided":
        return None
    return (
        Suspicion(found.message, (found.id, "teacher.auc"))
        if found.answer == "no"
        else RuledOut(found.message)
    )


def teacher_preprocessing(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("teacher.preprocessing")
    if found is None:
        return None
    if found.answer == "no":
        return RuledOut(found.message)
    if found.answer == "yes" and not _worth_feeding_otherwise(case):
        return RuledOut(f"{found.message} Even so it would know too little to teach")
    # A few enormous patches spoil the image logits; whatever damps them looks like the right preprocessing.
    outliers = case.says("logits.heavy_tail", "yes") and not case.says("teacher.bn_fingerprint", "yes")
    weak = found.answer == "undecided" or outliers
    return Suspicion(found.message, (found.id, "teacher.bn_fingerprint"), weak=weak)


def _worth_feeding_otherwise(case: Case) -> bool:
    """Whether the teacher, fed in the better way that its probe proved, knows something for certain."""
    found = case.finding("teacher.preprocessing")
    after = found.data.get("after_ci") if found is not None and found.answer == "yes" else None
    return after is not None and after[0] > case.limits.teacher_auc_low


def teacher_inverted(case: Case) -> Suspicion | RuledOut | None:
    train, val = case.interval("teacher.auc_train"), case.interval("teacher.auc")
    if val is None:
        return None
    fed = case.finding("teacher.preprocessing")
    if fed is not None and not fed.data.get("flipped", True) and _worth_feeding_otherwise(case):
        return RuledOut(f"fed otherwise the teacher is not inverted: {fed.message}")
    if case.teacher_inverted and (train is None or train[1] < 0.5):
        because = f"the teacher ranks real above fake: AUC {_text(val)} on val, {_text(train)} on train"
        return Suspicion(because, ("teacher.inverted", "teacher.auc", "teacher.auc_train"))
    return RuledOut(f"the teacher's AUC {_text(val)} is not on the wrong side of one half")


def teacher_domain_shift(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("teacher.auc")
    if found is None or found.ci is None:
        return None
    low = case.limits.teacher_auc_low
    evidence = ("teacher.auc", "teacher.weights_loaded", "teacher.preprocessing", "distillation.best_arm")
    if case.says("teacher.weights_loaded", "no"):
        return RuledOut("the teacher's weights were not loaded, so its knowledge was never asked")
    if _worth_feeding_otherwise(case):
        return RuledOut("with another preprocessing the teacher does know this data")
    if case.teacher_inverted:
        return RuledOut("the teacher separates the classes, the wrong way round")
    if case.teacher_useless is False:
        return RuledOut(f"teacher AUC {found.value:.2f} {_text(found.ci)} is above {low:.2f}")
    if case.teacher_useless:
        return Suspicion(f"teacher AUC {found.value:.2f} {_text(found.ci)} is below {low:.2f}", evidence)
    value = found.value if found.value is not None else 0.5
    truth = value if abs(value - low) > 0.01 else 0.5
    return Suspicion(
        f"teacher AUC {value:.2f} {_text(found.ci)}: not yet decided whether below {low:.2f}",
        evidence,
        weak=True,
        needs={"n_val_per_class": n_per_class_needed(truth, low)},
    )


# --- optimisation and model -------------------------------------------------------------------------------


def _rescued(case: Case) -> bool:
    """Whether the standardised arm clearly does what BCE-only cannot: then optimisation is not to blame."""
    standardized, baseline = case.arms.get("standardized"), case.arms.get("bce_only")
    if standardized is None or not standardized.defined:
        return False
    above = baseline.ci[1] if baseline is not None and baseline.defined else 0.5
    return standardized.ci[0] > max(case.limits.baseline_auc, above)


def from_finding(finding_id: str, *, unless_rescued: bool = True) -> Screen:
    """The screen of a cause that one probe decides; optimisation is blamed only if both arms fail."""

    def screen(case: Case) -> Suspicion | RuledOut | None:
        found = case.finding(finding_id)
        if found is None:
            return None
        if found.answer == "no":
            return RuledOut(found.message)
        if unless_rescued and _rescued(case):
            return RuledOut("the standardised teacher teaches this student without it")
        if found.answer == "undecided" and case.baseline_learns is True:
            return RuledOut("the student learns without it")
        return Suspicion(found.message, (found.id, "baseline.auc"), weak=found.answer == "undecided")

    return screen


def detached_graph(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("baseline.gradients")
    if found is None or found.answer == "undecided":
        return None
    if found.answer == "yes":
        return RuledOut(found.message)
    baseline = case.arms.get("bce_only")
    if baseline is not None and baseline.defined and baseline.ci[0] > CLEARLY_WORKS:
        return RuledOut(f"{found.message} The student learns all the same: AUC {_text(baseline.ci)}")
    return Suspicion(found.message, (found.id, "baseline.auc"))


def lr(direction: Literal["low", "high"]) -> Screen:
    probe = from_finding("baseline.learning_rate")

    def screen(case: Case) -> Suspicion | RuledOut | None:
        found = case.finding("baseline.learning_rate")
        factor = float(found.data.get("factor", 1.0)) if found else 1.0
        if found is not None and found.answer != "no" and (factor > 1) != (direction == "low"):
            return RuledOut(f"the better learning rate is the {'higher' if factor > 1 else 'lower'} one")
        return probe(case)

    return screen


def capacity(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("baseline.overfit_batch")
    if found is None or case.baseline_learns is True:
        return None
    if found.answer != "no":
        return RuledOut(found.message)
    flows = found.data.get("gradients_flow", False) and found.data.get("parameters_move", False)
    helped = any(case.says(name, "yes") for name in OPTIMISATION)
    return Suspicion(found.message, (found.id, "baseline.auc"), weak=not flows or helped or _rescued(case))


# --- loss -------------------------------------------------------------------------------------------------


def _teacher_knows(case: Case) -> RuledOut | None:
    if case.teacher_useless is not False:
        return RuledOut(
            f"the teacher's AUC {_text(case.interval('teacher.auc'))} leaves nothing worth rescaling"
        )
    return None


def offset(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("logits.offset")
    if found is None or found.answer == "undecided":
        return None
    if found.answer == "no":
        return RuledOut(found.message)
    return _teacher_knows(case) or Suspicion(found.message, (found.id, "logits.fit", "teacher.auc"))


def heavy_tail(case: Case) -> Suspicion | RuledOut | None:
    found = case.finding("logits.heavy_tail")
    if found is None or found.answer == "undecided":
        return None
    if found.answer == "no":
        return RuledOut(found.message)
    return _teacher_knows(case) or Suspicion(found.message, (found.id, "logits.fit", "teacher.auc"))


def scale(case: Case) -> Suspicion | RuledOut | None:
    ratio, mse = case.finding("logits.scale_ratio"), case.finding("logits.mse")
    if ratio is None:
        return None
    if ratio.answer == "no" and (mse is None or mse.answer != "yes"):
        return RuledOut(ratio.message)
    knows = _teacher_knows(case)
    if knows:
        return knows
    weak = ratio.answer == "undecided" and not case.status_quo_collapsed
    evidence = (ratio.id, "logits.mse", "logits.fit", "teacher.auc", "distillation.status_quo")
    return Suspicion(ratio.message, evidence, weak=weak)


def weight_too_high(case: Case) -> Suspicion | RuledOut | None:
    status_quo, baseline = case.arms.get("status_quo"), case.arms.get("bce_only")
    alpha = case.settings.training.distillation.alpha_distill
    if status_quo is None or baseline is None or alpha == 0 or case.teacher_useless is not False:
        return None
    if not (status_quo.defined and baseline.defined):
        return None
    if baseline.value > status_quo.value + MATERIAL_GAIN:
        because = (
            f"with the distillation AUC {status_quo.value:.2f} {_text(status_quo.ci)}, "
            f"without {baseline.value:.2f} {_text(baseline.ci)}, though the teacher is informative"
        )
        return Suspicion(because, ("distillation.best_arm", "teacher.auc", "baseline.auc"))
    return RuledOut(
        f"BCE only ({baseline.value:.2f}) is not better than the status quo ({status_quo.value:.2f})"
    )
