"""What a screen is given, and what it can answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diag_lib.evidence import Answer, Evidence, Finding
from diag_lib.images import steps_of_epoch
from diag_lib.settings import Settings
from diag_lib.statistics import Auc

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLEARLY_WORKS = 0.90
"""A BCE-only AUC whose interval lies above it leaves nothing for a cause of the data or the optimisation to explain."""
GAP = 0.10
"""AUC by which a student that memorises knows its training images better than others."""
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
FEW_STEPS = 100
"""Optimisation steps below which no schedule has been tried: Adam moves a weight by at most its rate a step."""

RECORDED_LOSS = 0.05
"""How far a recorded training must end below the same settings trained here, interval from interval, to have failed."""


@dataclass(frozen=True)
class Suspicion:
    """The evidence fits. `weak`: a needed answer is still undecided, `needs` says what would decide it.

    `direct`: the student or the recording of the user's own training shows the cause itself, no experiment needs to.
    `seen`: the mistake stands in the settings or the files, the experiment only says what it costs. `measured`: not the
    gain alone speaks for the cause, but a number of its own (a scale, an offset, statistics that cannot follow, a
    handful of steps). `corroborated`: two measurements of different kinds ask for the same repair.
    """

    because: str
    evidence: tuple[str, ...]
    weak: bool = False
    needs: Mapping[str, int] = field(default_factory=dict)
    direct: bool = False
    seen: bool = False
    measured: bool = False
    corroborated: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "because", _clause(self.because))


@dataclass(frozen=True)
class RuledOut:
    """Evidence contradicts the cause."""

    because: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "because", _clause(self.because))


def _clause(text: str) -> str:
    """A finding's sentence without its full stop, for the verdict goes on behind it."""
    return text.removesuffix(".")


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
    def optimisation_steps(self) -> int:
        """How many steps the configured schedule makes; 0 where the number of training images is unknown."""
        t, counts = self.settings.training, self.finding("audit.imbalance")
        n_train = counts.n if counts is not None and counts.n else 0
        return steps_of_epoch(n_train, t.batch_size) * (t.epochs_s1 + t.epochs_s2)

    @property
    def hardly_trained(self) -> bool:
        """Whether so few steps are made that no schedule has been tried."""
        return 0 < self.optimisation_steps < FEW_STEPS

    @property
    def nothing_moved(self) -> bool:
        """Whether the trainings are too short to tell one from another, and none has learned for all that."""
        return self.hardly_trained and not self.status_quo_learns and self.baseline_learns is not True

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
    def status_quo_works_clearly(self) -> bool:
        """Whether the status-quo student's AUC interval lies above `CLEARLY_WORKS`."""
        arm = self.arms.get("status_quo")
        return arm is not None and arm.defined and arm.ci[0] > CLEARLY_WORKS

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

    @property
    def recording_fails(self) -> bool | None:
        """Whether the recorded training ends without signal, or clearly below the workbook's own status quo.

        None: undecided, unknown, or nothing was recorded.
        """
        return self._told_fails if self.finding("symptoms.evaluation") is not None else None

    @property
    def own_training_fails(self) -> bool:
        """Whether the user's own training, by its history or recording, ends as `recording_fails` asks."""
        return self.settings.history is not None and self._told_fails is True

    @property
    def _told_fails(self) -> bool | None:
        found, ours = self.finding("symptoms.auc_at_chance"), self.arms.get("status_quo")
        if found is None:
            return None
        if found.data.get("undefined") is True:
            return True
        low, high = found.ci or (found.value, found.value)
        if low is None or high is None:
            return None
        if high < self.limits.baseline_auc:
            return True
        if ours is not None and ours.defined and ours.ci[0] - high > RECORDED_LOSS:
            return True
        return False if low > self.limits.baseline_auc else None

    @property
    def rescued(self) -> bool:
        """Whether the standardised arm clearly does what BCE-only cannot: then optimisation is not to blame."""
        standardized, baseline = self.arms.get("standardized"), self.arms.get("bce_only")
        if standardized is None or not standardized.defined:
            return False
        above = baseline.ci[1] if baseline is not None and baseline.defined else 0.5
        return standardized.ci[0] > max(self.limits.baseline_auc, above)


Screen = Callable[[Case], Suspicion | RuledOut | None]
"""None: the cause does not come up (its evidence was not gathered or its question does not arise)."""


def interval_text(ci: tuple[float, float] | None) -> str:
    return f"[{ci[0]:.2f}, {ci[1]:.2f}]" if ci else "unknown"
