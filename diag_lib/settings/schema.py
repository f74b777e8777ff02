"""Every parameter of a run, with its default and the rules between parameters."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from diag_lib.errors import UserError
from diag_lib.settings.fields import (
    BUDGET_IMAGE_STEPS,
    Architecture,
    AutoCount,
    Channels,
    Count,
    Device,
    DistillationLoss,
    FilePath,
    Fraction,
    NonNegative,
    ParameterNames,
    PathOrUrl,
    Plugin,
    Positive,
    Preprocess,
)
from diag_lib.settings.merging import OVERRIDE, lookup, merged_with
from diag_lib.settings.words import explain


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class DatasetSettings(_Section):
    """Where the images are and how they become tensors."""

    root: PathOrUrl = Path("data/demo")
    remote: bool = False
    train_split: Annotated[str, Field(min_length=1)] = "train"
    val_split: Annotated[str, Field(min_length=1)] = "val"
    image_size: Annotated[int, Field(ge=1, le=4096)] = 256
    resize: Literal["resize", "crop", "shortest"] = "resize"
    normalize_mean: Channels = [0.485, 0.456, 0.406]
    normalize_std: Annotated[list[Positive], Field(min_length=3, max_length=3)] = [0.229, 0.224, 0.225]
    augment: Literal["none", "flip", "flip_crop"] = "flip"
    curation: FilePath | None = None

    @property
    def folder(self) -> Path:
        """`root` where it is a path. Raises `UserError` for a URL, which `images.remote` makes a path."""
        if isinstance(self.root, Path):
            return self.root
        raise UserError("dataset.root: is remote and has not been copied to this machine")

    @model_validator(mode="after")
    def _splits_differ(self) -> Self:
        if self.train_split == self.val_split:
            raise ValueError(f"train_split and val_split are both {self.val_split!r}; they must differ")
        return self


class TeacherSettings(_Section):
    """The patch-logit teacher; `weights: null` means random weights."""

    arch: Architecture = "ladeda9"
    weights: Annotated[str, Field(min_length=1)] | None = "wildrf"
    preprocess: Preprocess = "NPR"
    input_scale: Positive = 1.0


class StudentSettings(_Section):
    """The student and which of its parameters each stage trains (`[all]` for every one)."""

    arch: Architecture = "tiny_ladeda"
    weights: Annotated[str, Field(min_length=1)] | None = None
    preprocess: Preprocess = "right_diag"
    trainable_s1: ParameterNames = ["fc"]
    trainable_s2: ParameterNames = ["layer1", "fc"]


class PoolingSettings(_Section):
    """How patch logits become one image logit."""

    kind: Literal["mean", "topk"] = "mean"
    r: Annotated[float, Field(gt=0, le=1)] = 0.1
    min_k: Count = 5
    aggregation: Literal["mean", "max"] = "mean"


class DistillationSettings(_Section):
    """The weighted sum: alpha_distill x distillation loss + alpha_task x BCE."""

    alpha_distill: NonNegative = 0.5
    alpha_task: NonNegative = 0.5
    loss: DistillationLoss = "mse"
    normalize: Literal["none", "center", "standardize", "robust", "batch", "layer"] = "none"
    temperature: Positive = 1.0

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if self.alpha_distill + self.alpha_task == 0:
            raise ValueError("alpha_distill and alpha_task are both 0; at least one must be above 0")
        return self


class TrainingSettings(_Section):
    """The two-stage schedule."""

    batch_size: Count = 32
    epochs_s1: Annotated[int, Field(ge=0, le=100_000)] = 5
    epochs_s2: Annotated[int, Field(ge=0, le=100_000)] = 20
    lr_s1: Positive = 1.0e-3
    lr_s2: Positive = 1.0e-4
    weight_decay: NonNegative = 1.0e-4
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    clip_grad_norm: Positive | None = None
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    distillation: DistillationSettings = DistillationSettings()

    @model_validator(mode="after")
    def _some_epochs(self) -> Self:
        if self.epochs_s1 + self.epochs_s2 == 0:
            raise ValueError("epochs_s1 and epochs_s2 are both 0; at least one must be 1 or more")
        return self


class RuntimeSettings(_Section):
    """Where and how hard to compute; none of it may change a verdict but `budget`."""

    device: Device = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    processes: Annotated[int, Field(ge=1, le=1024)] = 1
    workers: AutoCount = "auto"
    threads: AutoCount = "auto"
    budget: Literal["quick", "standard", "full"] = "standard"
    cache_dir: FilePath | None = None
    weights_dir: FilePath = Path("weights")
    tensorboard: bool = False
    dask: str | None = None


class ThresholdSettings(_Section):
    """The guide's thresholds; each is answered with an interval, never with a bare comparison."""

    teacher_auc_low: Fraction = 0.55
    teacher_auc_good: Fraction = 0.70
    scale_ratio: Annotated[float, Field(gt=1)] = 3.0
    mse_dominates: Positive = 100.0
    baseline_auc: Fraction = 0.60

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.teacher_auc_low > self.teacher_auc_good:
            raise ValueError(
                f"teacher_auc_low ({self.teacher_auc_low}) must not be above "
                f"teacher_auc_good ({self.teacher_auc_good})"
            )
        return self


class Settings(_Section):
    """All parameters of a run, validated; relative paths have been made absolute by `load`."""

    dataset: DatasetSettings = DatasetSettings()
    teacher: TeacherSettings = TeacherSettings()
    student: StudentSettings = StudentSettings()
    pooling: PoolingSettings = PoolingSettings()
    training: TrainingSettings = TrainingSettings()
    history: FilePath | None = None
    plugins: list[Plugin] = []
    runtime: RuntimeSettings = RuntimeSettings()
    thresholds: ThresholdSettings = ThresholdSettings()

    _name: str = PrivateAttr(default="run")

    @property
    def name(self) -> str:
        """The settings' name: the file's stem or the preset's name; names the default run folder."""
        return self._name

    @property
    def image_steps(self) -> int:
        """The budget in training image-steps over all arms."""
        return BUDGET_IMAGE_STEPS[self.runtime.budget]

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values (paths as text), ready for YAML or JSON."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The settings as YAML that `load` reads back to the same settings."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def digest(self, *keys: str) -> str:
        """SHA-256 (hex) of the named dotted parts, of everything when none is named."""
        tree = self.to_dict()
        parts = {key: lookup(tree, key) for key in keys} if keys else tree
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def with_overrides(self, overrides: Mapping[str, Any], *, base: Path | None = None) -> "Settings":
        """A validated copy with dotted keys replaced; relative paths count from `base` (default: here)."""
        return build(merged_with(self.to_dict(), overrides, base or Path.cwd()), self._name, OVERRIDE)


def build(tree: dict[str, Any], name: str, where: str) -> Settings:
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error)}") from None
    settings._name = name
    return settings
