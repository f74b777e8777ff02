"""Which parameters does a run have, and is this value allowed?

Settings are YAML in the nesting of the training script they diagnose. Every key is validated; an unknown
key or an impossible value raises `UserError` with one line that names the key and what is allowed.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from diag_lib.errors import UserError
from diag_lib.plain_yaml import parse_yaml

PREPROCESS = ("raw", "NPR", "x_grad", "y_grad", "left_diag", "right_diag")
DISTILLATION_LOSSES = ("mse", "huber", "bernoulli_kl", "correlation")
ARCHITECTURES = ("ladeda5", "ladeda9", "ladeda17", "ladeda33", "tiny_ladeda")
BUDGET_IMAGE_STEPS = {"quick": 20_000, "standard": 400_000, "full": 4_000_000}
REMOTE_SCHEMES = (
    "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "hdfs", "http", "https", "file", "memory",
)  # fmt: skip
"""Of fsspec's, those that read a store and do nothing else: no archives, caches or shells."""
WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
OVERRIDE = "override"  # where a value on the command line or of a notebook stands, in messages

_MAX_BYTES = 1_000_000
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # one letter is a Windows drive
_REFERENCE = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # package.module:name


def is_url(value: object) -> bool:
    """Whether a text is an address (`s3://...`) and no path."""
    return isinstance(value, str) and _URL.match(value) is not None


def _as_path(value: Any) -> Any:
    if isinstance(value, Path):
        return value
    if is_url(value):
        raise ValueError("a path on this machine is expected; only dataset.root may be a URL")
    if isinstance(value, str) and value and "\0" not in value:
        return Path(value).expanduser()
    raise ValueError("a path is expected (text)")


def _as_root(value: Any) -> Any:
    """A path, or the text of a URL. What may hold a secret is refused, and not repeated in the message."""
    if not is_url(value):
        return _as_path(value)
    try:
        parts = urlsplit(value)
        named, secret = parts.username is not None, parts.password is not None
    except ValueError:
        raise ValueError("is no valid URL") from None
    web = parts.scheme.startswith("http")
    if secret or (web and (named or parts.query)):
        raise ValueError(
            "the URL holds a user name, password or query, which could be a secret; leave credentials to the "
            "store's own configuration (environment variables, ~/.aws, ...)"
        )
    if value.partition("://")[0] not in REMOTE_SCHEMES or "::" in value or not value.isprintable():
        raise ValueError(
            f"{_show(value)} is not allowed; allowed: a path, or one URL of {', '.join(REMOTE_SCHEMES)}"
        )
    return value


def _check_arch(value: Any) -> Any:
    allowed = ", ".join((*ARCHITECTURES, "timm/<name>", "package.module:factory"))
    if not isinstance(value, str):
        raise ValueError(f"text is expected, one of {allowed}")
    if value in ARCHITECTURES or re.fullmatch(rf"timm/[\w.\-]+|{_REFERENCE}", value):
        return value
    raise ValueError(f"{value!r} is not allowed; allowed: {allowed}{_suggestion(value, ARCHITECTURES)}")


def _check_loss(value: Any) -> Any:
    allowed = ", ".join((*DISTILLATION_LOSSES, "package.module:function"))
    if value in DISTILLATION_LOSSES or (isinstance(value, str) and re.fullmatch(_REFERENCE, value)):
        return value
    near = _suggestion(value, DISTILLATION_LOSSES)
    raise ValueError(f"{_show(value)} is not allowed{near}; allowed: {allowed}")


def _check_plugin(value: Any) -> Any:
    if (
        isinstance(value, str)
        and "\0" not in value
        and (value.endswith(".py") or re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", value))
    ):
        return value
    raise ValueError(f"{_show(value)} is not allowed; allowed: a .py file, or an importable module")


def _check_device(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        return value
    raise ValueError(f"{value!r} is not allowed; allowed: auto, cpu, cuda, cuda:N, mps")


def _check_auto_count(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1024):
        return value
    raise ValueError(f"{value!r} is not allowed; allowed: auto or a whole number from 0 to 1024")


FilePath = Annotated[Path, BeforeValidator(_as_path)]
PathOrUrl = Annotated[Path | str, BeforeValidator(_as_root)]
Architecture = Annotated[str, BeforeValidator(_check_arch)]
DistillationLoss = Annotated[str, BeforeValidator(_check_loss)]
Plugin = Annotated[str, BeforeValidator(_check_plugin)]
Device = Annotated[str, BeforeValidator(_check_device)]
AutoCount = Annotated[Literal["auto"] | int, BeforeValidator(_check_auto_count)]
Preprocess = Literal["raw", "NPR", "x_grad", "y_grad", "left_diag", "right_diag"]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]
ParameterNames = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


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
        parts = {key: _lookup(tree, key) for key in keys} if keys else tree
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def with_overrides(self, overrides: Mapping[str, Any], *, base: Path | None = None) -> "Settings":
        """A validated copy with dotted keys replaced; relative paths count from `base` (default: here)."""
        return _build(_merged(self.to_dict(), overrides, base or Path.cwd()), self._name, OVERRIDE)


# Dotted keys whose values are paths; weights are paths only when they look like files (else aliases).
_PATH_KEYS = ("dataset.root", "dataset.curation", "history", "runtime.cache_dir", "runtime.weights_dir")
_WEIGHT_KEYS = ("teacher.weights", "student.weights")


def preset_names() -> list[str]:
    """Names that `load` and `--preset` accept."""
    folder = resources.files("diag_lib") / "presets"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def load(config: str | Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read and validate settings.

    Parameters
    ----------
    config : path of a YAML file, or the name of a preset (`base`, `demo`, `safest`, `test_bce_only`).
        Relative paths inside a file are relative to that file, inside a preset to the working directory.
    overrides : dotted keys to values, e.g. ``{"training.distillation.alpha_distill": 0.01}``; their
        relative paths are relative to the working directory.

    Raises
    ------
    UserError : the file is missing or not YAML, a key is unknown, a value is not allowed.
    """
    text, name, base, where = _read(config)
    tree = parse_yaml(text, where)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{where}: settings are a mapping of keys to values, this file holds {_kind(tree)}")
    defaults = _absolute(Settings().to_dict(), base)
    settings = _build(_merge(defaults, _absolute(tree, base), where), name, where)
    return settings.with_overrides(overrides) if overrides else settings


def check_parameters(config: object, run_dir: object, overrides: object) -> None:
    """A notebook's three parameters are of the right kind. Raises `UserError` that names the first which is not."""
    for name, value in (("config", config), ("run_dir", run_dir)):
        if not isinstance(value, (str, os.PathLike)) or not str(value).strip() or "\0" in str(value):
            raise UserError(f"parameter {name}: a path as text is expected, found {value!r}")
    if overrides is not None and not isinstance(overrides, Mapping):
        raise UserError(
            f"parameter overrides: a mapping of dotted keys to values is expected, found {overrides!r};"
            ' for example {"training.seed": 7}'
        )


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1"]` to `{"a.b": 1}`; values are YAML. Raises `UserError` for a malformed one."""
    parsed: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text!r}: write it as key=value, e.g. --set training.seed=7")
        parsed[key.strip()] = parse_yaml(value, f"--set {key.strip()}")
    return parsed


def dotted(patch: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` to `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in patch.items():
        flat.update(
            dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        )
    return flat


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` to `{"a": {"b": 1}}`."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        *parents, leaf = key.split(".")
        branch = tree
        for part in parents:
            branch = branch.setdefault(part, {})
        branch[leaf] = value
    return tree


def _read(config: str | Path) -> tuple[str, str, Path, str]:
    if isinstance(config, str) and config in preset_names():
        text = (resources.files("diag_lib") / "presets" / f"{config}.yaml").read_text(encoding="utf-8")
        return text, config, Path.cwd(), f"preset {config}"
    path = _as_path(config) if config else None
    if path is None or not path.exists():
        known = preset_names()
        raise UserError(
            f"{config}: no such settings file; name a YAML file or a preset ({', '.join(known)})"
            f"{_suggestion(str(config), known)}"
        )
    if not path.is_file():
        raise UserError(f"{config}: is not a file; name a YAML settings file")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(
                f"{config}: is {path.stat().st_size} bytes, no settings file; the limit is {_MAX_BYTES}"
            )
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{config}: is not UTF-8 text; save the settings file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{config}: cannot be read ({error.strerror})") from None
    return text, path.stem, path.resolve().parent, path.name


def _merged(tree: dict[str, Any], overrides: Mapping[str, Any], base: Path) -> dict[str, Any]:
    for key, value in overrides.items():
        if not isinstance(key, str):
            raise UserError(f"overrides: keys are dotted text such as training.seed, found {key!r}")
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        tree = _merge(tree, _absolute(nested, base), OVERRIDE)
    return tree


def _merge(base: dict[str, Any], new: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """`base` with `new` laid over it; unknown keys and values in place of sections are refused here."""
    merged = dict(base)
    for key, value in new.items():
        dotted = f"{prefix}{key}"
        if key not in base:
            allowed = list(base)
            raise UserError(
                f"{where}: {dotted or 'the empty key'}: unknown key{_suggestion(str(key), allowed)}; "
                f"allowed here: {', '.join(allowed)}"
                f"{_elsewhere(str(key), dotted)}"
            )
        if isinstance(base[key], dict):
            if value is None and where != OVERRIDE:  # in a file: a section whose keys are all commented out
                continue
            if not isinstance(value, Mapping):
                inside = ", ".join(base[key])
                raise UserError(
                    f"{where}: {dotted}: is a section with the keys {inside}, found {_kind(value)}"
                )
            merged[key] = _merge(base[key], value, where, f"{dotted}.")
        else:
            merged[key] = value
    return merged


def _build(tree: dict[str, Any], name: str, where: str) -> Settings:
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}") from None
    settings._name = name
    return settings


def _explain(error: ValidationError) -> str:
    """The first problem of a validation error as one line naming the key and what is allowed."""
    first = error.errors()[0]
    place = [
        str(part)
        for part in first["loc"]
        if not str(part).startswith(("function-", "literal[", "constrained-"))
    ]
    key = ".".join(part for part in place if part not in {"str", "int", "is-instance[Path]"})
    value = first.get("input")
    context = first.get("ctx", {})
    match first["type"]:
        case "literal_error":
            options = re.findall(r"'([^']*)'", context["expected"])
            hint = _suggestion(value, options) if isinstance(value, str) else ""
            return f"{key}: {_show(value)} is not allowed{hint}; allowed: {', '.join(options)}"
        case "value_error":
            return f"{key}: {context['error']}" if key else str(context["error"])
        case kind if kind.endswith("_type"):
            expected = kind.removesuffix("_type")
            names = {
                "int": "a whole number",
                "float": "a number",
                "string": "text",
                "list": "a list",
                "bool": "true/false",
            }
            return f"{key}: {names.get(expected, expected)} is expected, found {_kind(value)} {_show(value)}"
    if first["type"] in {"too_short", "too_long"}:
        side, count = (
            ("at least", "min_length") if first["type"] == "too_short" else ("at most", "max_length")
        )
        return f"{key}: {_show(value)} is not allowed; it must have {side} {context[count]} entries"
    return f"{key}: {_show(value)} is not allowed; it must be {first['msg'].removeprefix('Input should be ')}"


def _absolute(tree: Any, base: Path) -> Any:
    """The nested mapping with relative paths made absolute against `base`."""
    if not isinstance(tree, Mapping):
        return tree
    return _map_leaves(tree, base, "")


def _map_leaves(tree: Mapping[str, Any], base: Path, prefix: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result[key] = _map_leaves(value, base, f"{dotted}.")
        elif isinstance(value, str) and value and "\0" not in value and _is_path(dotted, value):
            result[key] = str((base / Path(value).expanduser()).absolute())
        elif dotted == "plugins" and isinstance(value, list):
            result[key] = [_map_leaves({"plugins": item}, base, "")["plugins"] for item in value]
        else:
            result[key] = value
    return result


def _is_path(dotted: str, value: str) -> bool:
    if is_url(value):
        return False
    if dotted == "plugins":
        return value.endswith(".py")
    return dotted in _PATH_KEYS or (
        dotted in _WEIGHT_KEYS and (value.endswith(WEIGHT_SUFFIXES) or "/" in value or "\\" in value)
    )


def _leaf_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaf_keys(value, f"{prefix}{key}.")


def _elsewhere(key: str, dotted: str) -> str:
    """Where a known key really lives, when it was written in the wrong section."""
    for known in _leaf_keys(Settings().to_dict()):
        if known.rpartition(".")[2] == key and known != dotted:
            return f" ({key} belongs at {known})"
    return ""


def _suggestion(value: Any, options: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(value), options, n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def _lookup(tree: Mapping[str, Any], dotted: str) -> Any:
    value: Any = tree
    for part in dotted.split("."):
        value = value[part]
    return value


def _kind(value: Any) -> str:
    kinds = {
        dict: "a mapping",
        list: "a list",
        str: "text",
        bool: "true/false",
        int: "a number",
        float: "a number",
    }
    return "nothing" if value is None else kinds.get(type(value), type(value).__name__)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
