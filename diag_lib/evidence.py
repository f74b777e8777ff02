"""What did each step find, how sure is it, and where in the run folder is it written?"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from diag_lib.errors import UserError
from diag_lib.files import disk_errors, whole

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "diag/evidence/1"

Severity = Literal["ok", "note", "warning", "error"]
Answer = Literal["yes", "no", "undecided"]
SEVERITIES: tuple[Severity, ...] = ("ok", "note", "warning", "error")

STEPS = ("symptoms", "audit", "teacher", "logits", "baseline", "distillation", "verdict")
"""The steps in the order of the notebooks 00 to 06."""

STEP_TITLES = {
    "symptoms": "Training symptoms",
    "audit": "Dataset audit",
    "teacher": "Teacher AUC",
    "logits": "Logit-scale histograms",
    "baseline": "BCE baseline",
    "distillation": "Weighted distillation training",
    "verdict": "Verdict",
}

FINDINGS: dict[str, str] = {
    # 00 training symptoms
    "symptoms.guide": "the guide's symptom: distillation fills the loss, BCE no better than a coin's, AUC at chance",
    "symptoms.distill_share": "the distillation term is more than nine tenths of the loss",
    "symptoms.task_at_chance": "the BCE ends no lower than that of a coin (ln 2)",
    "symptoms.auc_at_chance": "the validation AUC ends below the baseline threshold",
    "symptoms.non_finite": "a recorded value is NaN or infinite",
    "symptoms.negative": "a loss that cannot be negative is",
    "symptoms.unstable": "a curve oscillates or diverges",
    "symptoms.still_improving": "a curve still improves in the last epochs",
    "symptoms.overfit": "the train BCE falls while the validation loss does not",
    "symptoms.saturated_auc": "the printed AUC is an artefact of a saturated sigmoid",
    "symptoms.adds_up": "the printed total is the configured weighted sum",
    # 00, from a recording of the user's own loop
    "symptoms.evaluation": "the AUC that the loop reports is not that of its validation logits",
    "symptoms.checkpoint": "older weights than the trained ones are evaluated",
    "symptoms.pooling": "another pooling of the recorded validation patches raises the AUC",
    "symptoms.overflow": "steps or weights are lost to numbers that are not finite",
    "symptoms.gradient_reach": "weights that should train get no gradient",
    "symptoms.moved": "weights that should train never move",
    "symptoms.loss_sign": "the loss falls where BCE or distance rise",
    "symptoms.loss_reduction": "a reported loss is a sum in place of a mean",
    "symptoms.activation": "a loss takes outputs of a sigmoid for logits",
    "symptoms.update_ratio": "steps are far too small or too large for the weights",
    "symptoms.losses_agree": "both losses pull the student the same way",
    "symptoms.teacher_fit": "the student's patches follow the teacher's at the end",
    "symptoms.collapse": "the student says the same of everything",
    "symptoms.batchnorm": "BatchNorm's running statistics never move",
    # 01 dataset audit
    "audit.unreadable": "files that cannot be decoded completely",
    "audit.imbalance": "one class is much rarer than the other",
    "audit.duplicates": "the same picture stands several times within a split",
    "audit.leakage": "validation pictures that also stand in train",
    "audit.label_conflict": "the same picture carries both labels",
    "audit.shortcut.joint": "file properties together predict the label",
    "audit.drift": "train and val differ in their file or image properties",
    "audit.normalization": "the pixel statistics do not fit the configured normalisation",
    "audit.resize": "the resize removes most of the fine detail",
    "audit.content": "a simple property of the pictures separates the classes",
    "audit.sample_size": "val holds too few images to establish a useless teacher",
    "audit.sources": "val holds sources that train does not",
    "audit.oddities": "pictures are broken, or many of a class look odd",
    "audit.labels": "labels that contradict held-out scores of teacher, student or picture statistics",
    "audit.polarity": "names, marks in the files or the teacher say that the classes are swapped",
    "audit.ignored": "files were ignored, or changed by the curation file",
    # 02 teacher AUC
    "teacher.auc": "the teacher separates real from fake on the validation images",
    "teacher.auc_train": "the teacher separates real from fake on the train images",
    "teacher.inverted": "the teacher ranks real above fake",
    "teacher.weights_loaded": "the teacher's weights were loaded completely",
    "teacher.preprocessing": "another preprocessing serves the teacher better (data.best)",
    "teacher.bn_fingerprint": "its BatchNorm statistics were made by another preprocessing (data.best) than configured",
    "teacher.good": "the teacher is so good that a failing student has another reason",
    "teacher.train_mode": "the teacher runs in train mode and its AUC suffers",
    "teacher.repeatable": "the teacher gives an image the same logits whenever it is asked",
    "teacher.saturation": "ranking rounded probabilities instead of logits misstates the teacher's AUC",
    # 03 logit scale
    "logits.scale_ratio": "teacher and student patch logits differ in spread",
    "logits.mse": "the distillation MSE is so large that it dominates the loss",
    "logits.fit": "the student reproduces the teacher's patch logits (R^2)",
    "logits.offset": "teacher and student patch logits differ in their mean",
    "logits.heavy_tail": "few teacher patches of enormous magnitude rule the loss",
    "logits.alignment": "teacher and student patch grids fit together",
    "logits.activation": "teacher or student gives probabilities where raw logits are needed",
    # 04 BCE baseline
    "baseline.auc": "the student learns from the labels alone",
    "baseline.loss": "the loss falls below a coin's 0.6931",
    "baseline.permutation": "shuffled labels give AUC .5, as they must",
    "baseline.train_below_val": "the student ranks val better than the train images it was taught (noisy train labels)",
    "baseline.gradients": "a gradient reaches every part of the student that the schedule trains",
    "baseline.overfit_batch": "the student can overfit one batch",
    "baseline.learning_rate": "another learning rate serves the student better",
    "baseline.frozen": "frozen parameters hold the student back",
    "baseline.undertrained": "a longer schedule serves the student better",
    "baseline.resize": "native pixels serve better than squashed ones",
    "baseline.heldout_train": "a student trained on part of train ranks the rest of train",
    "baseline.val_learnable": "a student trained on half of val ranks the other half",
    "baseline.batchnorm": "recalibrated BatchNorm statistics raise the AUC",
    "baseline.pooling": "another pooling of the same patch logits raises the AUC",
    # 05 weighted distillation
    "distillation.status_quo": "the configured training learns",
    "distillation.best_arm": "the weighting that serves best",
    "distillation.rescued_by": "some intervention certainly raises the AUC, and above baseline_auc (data.arms)",
    "distillation.alpha_trend": "the more distillation, the lower the AUC",
}
"""Every finding id and what a "yes" means; `audit.shortcut.<property>` stands for one id a property."""

_READ: set[str] = set()
# `Path` keeps one slash of two; a drive has one letter
_ADDRESS = re.compile(
    r"(s3a?|gc?s|az|abfss?|adl|wasbs?|hf|hdfs|webhdfs|https?|s?ftp|ssh|memory|file):/", re.IGNORECASE
)


@dataclass(frozen=True)
class Finding:
    """One answered question.

    `value` with its two-sided 95% interval `ci` is compared with `threshold`; `n` counts images (the unit
    of all intervals, never patches). `answer` says whether the statement of `FINDINGS[id]` holds.
    """

    id: str
    severity: Severity
    answer: Answer
    message: str
    value: float | None = None
    ci: tuple[float, float] | None = None
    threshold: float | None = None
    n: int | None = None
    data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.id not in FINDINGS and self.id not in _READ and not self.id.startswith("audit.shortcut."):
            raise ValueError(f"finding id {self.id!r} is not in evidence.FINDINGS")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of the interface, keys in a fixed order."""
        order = ("id", "severity", "answer", "value", "ci", "threshold", "n", "message", "data")
        return {key: plain(getattr(self, key)) for key in order}

    @staticmethod
    def from_dict(raw: Any) -> "Finding":
        """The finding that `to_dict` wrote; what else stands there is passed over. ValueError for anything else."""
        if not isinstance(raw, dict):
            raise ValueError("a finding is an object")
        known = {field.name: raw[field.name] for field in dataclasses.fields(Finding) if field.name in raw}
        ci = known.get("ci")
        if not (
            all(isinstance(known.get(name), str) for name in ("id", "message"))
            and known.get("severity") in SEVERITIES
            and known.get("answer") in get_args(Answer)
            and all(_number_or_none(known.get(name)) for name in ("value", "threshold", "n"))
            and (ci is None or (isinstance(ci, list) and len(ci) == 2 and all(map(_number_or_none, ci))))
            and isinstance(known.get("data", {}), dict)
        ):
            raise ValueError(f"finding {str(raw.get('id'))[:60]!r} has another form")
        _READ.add(known["id"])  # a check of the user's own may have made it, which this process does not know
        return Finding(**{**known, "ci": tuple(ci) if ci is not None else None})


@dataclass(frozen=True)
class Evidence:
    """What one step leaves for the verdict: findings, named numbers, and hashes of what it depended on."""

    step: str
    findings: list[Finding]
    numbers: dict[str, float | int | str | None] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    def finding(self, finding_id: str) -> Finding | None:
        """The finding of that id, if the step made it."""
        return next((finding for finding in self.findings if finding.id == finding_id), None)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of the interface."""
        return {
            "schema": SCHEMA,
            "step": self.step,
            "findings": [finding.to_dict() for finding in self.findings],
            "numbers": plain(self.numbers),
            "inputs": dict(self.inputs),
        }


class RunFolder:
    """The files of one run; every write is atomic, so that a killed run leaves no half-written file."""

    def __init__(self, root: str | Path) -> None:
        refuse_address(root)
        self.root = Path(root).absolute()

    def create(self) -> "RunFolder":
        """Make the folder. Raises `UserError` when that is not possible."""
        try:
            (self.root / "evidence").mkdir(parents=True, exist_ok=True)
            (self.root / "artifacts" / "arms").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"run folder {self.root}: cannot be made ({error.strerror}); choose another --out"
            ) from None
        return self

    @property
    def default_cache(self) -> Path:
        """Where caches go when `runtime.cache_dir` is null: beside the run folders, shared by them."""
        return self.root.parent / ".cache"

    def artifact(self, name: str) -> Path:
        """The path of an artifact; its folder exists afterwards."""
        path = self.root / "artifacts" / name
        with disk_errors(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def arm_dir(self, arm: str) -> Path:
        """The folder of a training arm (not created here)."""
        return self.root / "artifacts" / "arms" / arm

    def evidence_path(self, step: str) -> Path:
        """Where a step's evidence is written."""
        return self.root / "evidence" / f"{step}.json"

    def write_evidence(self, evidence: Evidence) -> None:
        """Write `evidence/<step>.json`."""
        self.write_json(f"evidence/{evidence.step}.json", evidence.to_dict())

    def read_evidence(self, step: str) -> Evidence | None:
        """The step's evidence, or None when the step has not run (or its file is not what a step wrote)."""
        raw = self.read_json(f"evidence/{step}.json")
        if (
            not isinstance(raw, dict)
            or raw.get("schema") != SCHEMA
            or not isinstance(raw.get("findings"), list)
        ):
            return None
        numbers, inputs = raw.get("numbers"), raw.get("inputs")
        if not (isinstance(numbers, dict) and isinstance(inputs, dict)):
            return None
        try:
            return Evidence(step, [Finding.from_dict(item) for item in raw["findings"]], numbers, inputs)
        except ValueError:
            return None

    def write_json(self, name: str, value: Any) -> Path:
        """Write JSON (NaN and infinities become null) atomically, return its path."""
        return self.write_text(
            name, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )

    def read_json(self, name: str) -> Any | None:
        """The parsed JSON file, or None when it is absent or unreadable."""
        try:
            return json.loads((self.root / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None

    def write_text(self, name: str, text: str) -> Path:
        """Write text atomically. Raises `UserError` when the disk does not take it."""
        path = self.root / name
        with disk_errors(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as partial:
                partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        return path

    def write_parquet(self, name: str, table: "pd.DataFrame") -> Path:
        """Write the artifact `name` atomically. Raises `UserError` when the disk does not take it."""
        path = self.artifact(name)
        with disk_errors(self.root), whole(path) as partial:
            table.to_parquet(partial, index=False)
        return path


def _number_or_none(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def mappings(table: object, key: str) -> list[dict[str, Any]]:
    """The objects that a JSON object lists under `key`, whatever else a damaged or foreign file holds there."""
    listed = table.get(key) if isinstance(table, dict) else None
    return [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []


UNUSED_TEACHER = "this run does not use its teacher: alpha_distill is 0"
"""Why what would be wrong with a distillation is not."""


def muted(findings: Sequence[Finding], because: str) -> list[Finding]:
    """The same findings as notes: what would be an error or a warning concerns nothing that this run does."""
    return [
        dataclasses.replace(
            found,
            severity="note",
            message=f"{found.message.removesuffix('.')} ({because}).",
            data={**found.data, "muted": True},
        )
        if found.severity in ("warning", "error")
        else found
        for found in findings
    ]


def refuse_address(run_dir: object) -> None:
    """Raise `UserError` when a run folder is given as an address (`s3://...`)."""
    if found := _ADDRESS.match(str(run_dir)):
        raise UserError(
            f"run folder: {found[1]}:// is an address, and a run folder lies on this machine; name a folder and copy "
            "it or its export when the run is done (papermill's own output notebook may be remote)"
        )


def plain(value: Any) -> Any:
    """Plain JSON values: dataclasses to mappings, arrays and tuples to lists, NaN and infinities to null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form here")
