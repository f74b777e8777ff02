"""Which values may a single parameter have?"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from diag_lib.settings.words import show, suggestion

PREPROCESS = ("raw", "NPR", "x_grad", "y_grad", "left_diag", "right_diag")
DISTILLATION_LOSSES = ("mse", "huber", "bernoulli_kl", "correlation")
ARCHITECTURES = ("ladeda5", "ladeda9", "ladeda17", "ladeda33", "tiny_ladeda")
BUDGET_IMAGE_STEPS = {"quick": 20_000, "standard": 400_000, "full": 4_000_000}
REMOTE_SCHEMES = (
    "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "hdfs", "http", "https", "file", "memory",
)  # fmt: skip
"""Of fsspec's, those that read a store and do nothing else: no archives, caches or shells."""
WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # one letter is a Windows drive
_REFERENCE = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # package.module:name


def is_url(value: object) -> bool:
    """Whether a text is an address (`s3://...`) and no path."""
    return isinstance(value, str) and _URL.match(value) is not None


def as_path(value: Any) -> Any:
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
        return as_path(value)
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
            f"{show(value)} is not allowed; allowed: a path, or one URL of {', '.join(REMOTE_SCHEMES)}"
        )
    return value


def _check_arch(value: Any) -> Any:
    allowed = ", ".join((*ARCHITECTURES, "timm/<name>", "package.module:factory"))
    if not isinstance(value, str):
        raise ValueError(f"text is expected, one of {allowed}")
    if value in ARCHITECTURES or re.fullmatch(rf"timm/[\w.\-]+|{_REFERENCE}", value):
        return value
    raise ValueError(f"{value!r} is not allowed; allowed: {allowed}{suggestion(value, ARCHITECTURES)}")


def _check_loss(value: Any) -> Any:
    allowed = ", ".join((*DISTILLATION_LOSSES, "package.module:function"))
    if value in DISTILLATION_LOSSES or (isinstance(value, str) and re.fullmatch(_REFERENCE, value)):
        return value
    near = suggestion(value, DISTILLATION_LOSSES)
    raise ValueError(f"{show(value)} is not allowed{near}; allowed: {allowed}")


def _check_plugin(value: Any) -> Any:
    if (
        isinstance(value, str)
        and "\0" not in value
        and (value.endswith(".py") or re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", value))
    ):
        return value
    raise ValueError(f"{show(value)} is not allowed; allowed: a .py file, or an importable module")


def _check_device(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        return value
    raise ValueError(f"{value!r} is not allowed; allowed: auto, cpu, cuda, cuda:N, mps")


def _check_auto_count(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1024):
        return value
    raise ValueError(f"{value!r} is not allowed; allowed: auto or a whole number from 0 to 1024")


FilePath = Annotated[Path, BeforeValidator(as_path)]
PathOrUrl = Annotated[Path | str, BeforeValidator(_as_root)]
Architecture = Annotated[str, BeforeValidator(_check_arch)]
DistillationLoss = Annotated[str, BeforeValidator(_check_loss)]
Plugin = Annotated[str, BeforeValidator(_check_plugin)]
Device = Annotated[str, BeforeValidator(_check_device)]
AutoCount = Annotated[Literal["auto"] | int, BeforeValidator(_check_auto_count)]
Preprocess = Literal["raw", "NPR", "x_grad", "y_grad", "left_diag", "right_diag"]
LARGEST = 1e30  # what single precision still holds after the probes' factors
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]
ParameterNames = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
