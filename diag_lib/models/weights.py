"""Which weights does the network really carry, and did all of them arrive?"""

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from diag_lib.errors import UserError
from diag_lib.files import whole
from diag_lib.models.base import PatchModel
from diag_lib.resources import teachers_dir

# alias -> file names that are looked for in runtime.weights_dir, by kind of architecture
ALIASES: dict[str, dict[str, tuple[str, ...]]] = {
    "wildrf": {"ladeda": ("WildRF_LaDeDa.pth",), "tiny_ladeda": ("WildRF_Tiny_LaDeDa.pth",)},
    "forensynth": {"ladeda": ("ForenSynth_LaDeDa.pth",), "tiny_ladeda": ("ForenSynth_Tiny_LaDeDa.pth",)},
    "finetuned": {
        "ladeda": ("finetuned.safetensors", "finetuned.pth"),
        "tiny_ladeda": ("finetuned.safetensors", "finetuned.pth"),
    },
}
WHERE_TO_GET = {
    "wildrf": "from the LaDeDa authors' repository (research licence)",
    "forensynth": "from the LaDeDa authors' repository (research licence)",
    "finetuned": "by running `diag finetune-teacher`",
}
DEMO_TEACHERS = ("demo-foreign", "demo-artefact")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "ema")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
MAX_BYTES = 8 * 2**30  # the largest timm classifiers are below this
SHOWN_KEYS = 4


@dataclass(frozen=True)
class LoadReport:
    """What a weights file gave the model.

    `missing` are tensors of the model that keep their random start (not in the file, or of another shape),
    `unexpected` are tensors of the file that no part of the model took, `mismatched` says both shapes.
    """

    arch: str
    file: str | None
    sha256: str | None
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    loaded: int = 0
    random: bool = False
    message: str = ""

    @property
    def complete(self) -> bool:
        """Every tensor of the model came from the file, and every tensor of the file was used."""
        return not (self.random or self.missing or self.unexpected)


def resolve_weights(name: str | Path, weights_dir: str | Path | None, arch: str) -> Path:
    """The weights file that an alias, a path, or a name inside `weights_dir` stands for.

    Raises UserError saying which file to get and where to put it.
    """
    folder = Path(weights_dir) if weights_dir is not None else Path("weights")
    name_text = str(name)
    if name_text in DEMO_TEACHERS:
        return _existing([teachers_dir() / f"{name_text}.safetensors"], f"the demo teacher {name_text!r}")
    if name_text in ALIASES:
        family = "tiny_ladeda" if arch == "tiny_ladeda" else "ladeda"
        files = [folder / file for file in ALIASES[name_text][family]]
        return _existing(files, f"weights {name_text!r} for {arch}", f" {WHERE_TO_GET[name_text]}", folder)
    return _existing([Path(name), folder / name], f"weights file {name_text!r}", "", folder)


def _existing(candidates: list[Path], what: str, source: str = "", folder: Path | None = None) -> Path:
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if odd := next((candidate for candidate in candidates if candidate.exists()), None):
        raise UserError(
            f"{what}: {odd.name} is a {'folder' if odd.is_dir() else 'device or pipe'}; name a file"
        )
    names = " or ".join(dict.fromkeys(candidate.name for candidate in candidates))
    place = folder if folder is not None else candidates[0].parent
    known = ", ".join([*ALIASES, *DEMO_TEACHERS])
    raise UserError(
        f"{what} is not there: get {names}{source} and put it into {_shown(place)} (runtime.weights_dir), "
        f"or name another file or alias ({known}), or null for random weights"
    )


def _shown(folder: Path) -> Path:
    """The folder as seen from the working directory, where it lies inside."""
    full = folder.absolute()
    return full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else folder


def read_state(file: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors or PyTorch file on the CPU, never running code that the file carries.

    Unwraps checkpoints (`state_dict`, `model`, ...). Raises UserError for all that is not tensors by name.
    """
    path = Path(file)
    _check_size(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path, device="cpu")
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path.name} is not a readable safetensors file{_damage(error)}") from None
    return _unwrap(_torch_load(path), path.name)


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(entry.file_size for entry in archive.infolist()))
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path.name} cannot be read: {_first_line(error)}") from None
    if size > MAX_BYTES:
        raise UserError(
            f"{path.name} unpacks to {size / 2**30:.0f} GiB: a detector's weights are below 8 GiB"
        )
    if size == 0:
        raise UserError(f"{path.name} is empty: download it again")


def _damage(error: Exception) -> str:
    """What most likely happened to a file, and what the library said of it."""
    return f"; damaged or cut short? ({_first_line(error)})"


def _torch_load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the outcome says it all
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(_why_refused(path)) from None
    except Exception as error:  # what a damaged or foreign file makes the unpickler raise has no bounds
        if not _starts_like_torch(path):
            raise UserError(_why_refused(path)) from None
        if isinstance(error, (MemoryError, OverflowError, IndexError)):
            raise UserError(f"{path.name} is damaged: its tensors do not fit what the file holds") from None
        raise UserError(f"{path.name} is not a readable PyTorch weights file{_damage(error)}") from None


def _starts_like_torch(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2).startswith((b"PK", b"\x80"))


def _why_refused(path: Path) -> str:
    """Why PyTorch's safe loader did not take a file: it is something else altogether, or more than tensors."""
    with path.open("rb") as file:
        start = file.read(200)
    if start[8:9] == b"{":
        return f"{path.name} is a safetensors file: give it that ending"
    if start.startswith(b"version https://git-lfs"):
        return f"{path.name} is a pointer of Git LFS, not the weights: fetch them with git lfs pull"
    if start.lstrip()[:1] == b"<":
        return f"{path.name} is a web page, not weights: download the file itself"
    if not _starts_like_torch(path):
        return f"{path.name} is no weights file: a PyTorch state_dict or a safetensors file is expected"
    return (
        f"{path.name} holds pickled code or a whole model, which could run anything and is not loaded: "
        "save model.state_dict() instead"
    )


def _unwrap(loaded: Any, name: str) -> dict[str, Tensor]:
    """The mapping of names to tensors inside a checkpoint, at most a few levels deep."""
    for _ in range(4):
        if not isinstance(loaded, Mapping):
            break
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            tensors = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors
            break
        loaded = inner
    raise UserError(
        f"{name} holds no tensors by name: save model.state_dict() or a checkpoint with state_dict"
    )


def strip_prefixes(state: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """Drop what wrappers put before every name (`module.` and the like), unless the model has it too."""
    wanted = set(expected)
    result = dict(state)
    while result and not wanted & result.keys():
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in result)), None)
        if prefix is None:
            break
        result = {key.removeprefix(prefix): value for key, value in result.items()}
    return result


def load_into(model: PatchModel, state: Mapping[str, Tensor], file: Path) -> LoadReport:
    """Copy every tensor that fits into the model and report every one that does not."""
    target = model.weights_module.state_dict()
    given = strip_prefixes(state, target)
    _refuse_odd({k: v for k, v in given.items() if k in target}, target, file.name)
    mismatched = {k: v for k, v in given.items() if k in target and v.shape != target[k].shape}
    fits = {k: v for k, v in given.items() if k in target and k not in mismatched}
    broken = [k for k, v in fits.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise UserError(
            f"{file.name} holds NaN or infinite values in {_some(broken)}: use an earlier checkpoint"
        )
    model.weights_module.load_state_dict(fits, strict=False)
    missing = [k for k in target if k not in fits and not _may_be_absent(k)]
    unexpected = [k for k in given if k not in target]
    return LoadReport(
        arch=model.arch,
        file=file.name,
        sha256=file_sha256(file),
        missing=missing,
        unexpected=unexpected,
        mismatched=[
            f"{k}: {tuple(v.shape)} in the file, {tuple(target[k].shape)} in the model"
            for k, v in mismatched.items()
        ],
        loaded=len(fits),
        message=_report_message(file.name, len(fits), len(target), missing, unexpected, mismatched),
    )


def _refuse_odd(given: Mapping[str, Tensor], target: Mapping[str, Tensor], file: str) -> None:
    """Raise `UserError` for tensors that a network cannot take as they are, or only by losing a part of them."""
    for key, tensor in given.items():
        kinds = {
            "nested": tensor.is_nested,
            "quantized": tensor.is_quantized,
            "empty (on the device 'meta')": tensor.is_meta,
            "sparse": tensor.layout != torch.strided,
            str(tensor.dtype): target[key].is_floating_point() and tensor.dtype not in _FLOATS,
        }
        odd = next((kind for kind, found in kinds.items() if found), None)
        if odd is not None:
            raise UserError(
                f"{file}: {key} is {odd}: save the weights as plain float32 tensors (state_dict of model.float())"
            )


_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _may_be_absent(key: str) -> bool:
    """Counters that PyTorch before 0.4.1 did not write and that eval mode never reads."""
    return key.endswith("num_batches_tracked")


def _report_message(
    file: str, loaded: int, total: int, missing: list[str], unexpected: list[str], mismatched: Iterable[str]
) -> str:
    parts = [f"{loaded} of {total} tensors loaded from {file}"]
    absent = [key for key in missing if key not in set(mismatched)]
    if absent:
        parts.append(f"{len(absent)} missing and left random ({_some(absent)})")
    if wrong := list(mismatched):
        parts.append(f"{len(wrong)} of another shape and left random ({_some(wrong)})")
    if unexpected:
        parts.append(f"{len(unexpected)} of the file unused ({_some(unexpected)})")
    return "; ".join(parts)


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:SHOWN_KEYS])
    return shown + (", ..." if len(keys) > SHOWN_KEYS else "")


def save_weights(model: PatchModel, path: str | Path) -> Path:
    """Write the model's tensors to a safetensors file (atomically) under the names a loader expects."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.weights_module.state_dict().items()}
    with whole(target) as partial:
        partial.write_bytes(save(state))  # at once: a full disk is then an OSError that says so
    return target


def state_sha(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors of the model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(np.ascontiguousarray(raw.numpy()).data)
    return digest.hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    """The first line of what a library said, without a sentence that ends only on the next one."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    whole, stop, _ = lines[0].rpartition(". ")
    cut_off = len(lines) > 1 and not lines[0].rstrip().endswith((".", ":", ")", "!"))
    return (whole if stop and cut_off else lines[0])[:160]
