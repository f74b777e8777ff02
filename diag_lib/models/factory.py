"""Which network does the setting `arch` stand for, and with which weights was it built?"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from diag_lib.errors import UserError
from diag_lib.models.base import Geometry, PatchModel, geometry_from_map
from diag_lib.models.ladeda import LARGE_KERNELS, LaDeDa
from diag_lib.models.tiny_ladeda import TinyLaDeDa
from diag_lib.models.weights import LoadReport, load_into, read_state, resolve_weights
from diag_lib.user_code import imported, require_trust

if TYPE_CHECKING:
    from diag_lib.settings import Settings

OWN_FACTORIES = "diag_lib.faults.factories:"
"""The fault lab's networks, part of this package: they need no trust."""
DEFAULT_IMAGE_SIZE = 256
FEW_CHANNELS = 8

ARCHITECTURES: dict[str, Callable[[str, str, float], PatchModel]] = {
    **dict.fromkeys(LARGE_KERNELS, LaDeDa),
    "tiny_ladeda": TinyLaDeDa,
}


class FactoryModel(PatchModel):
    """A network of the user's own that returns patch logits (B, 1, h, w) or (B, h, w)."""

    def __init__(self, arch: str, net: nn.Module) -> None:
        super().__init__(arch)
        self.net = net

    @property
    def weights_module(self) -> nn.Module:
        return self.net

    @property
    def supports_preprocess(self) -> bool:
        return False

    def geometry(self, size: int) -> Geometry:
        """The network's own `geometry(size)` (stride, offset, receptive_field), else equal patches."""
        own = getattr(self.net, "geometry", None)
        if callable(own):
            given = own(size)
            if isinstance(given, Geometry):
                return given
            raise UserError(
                f"geometry() of {self.arch} must return a diag_lib.models.Geometry, not {given!r}"
            )
        return geometry_from_map(size, self.map_size(size)[0])

    def patch_logits(self, prepared: Tensor) -> Tensor:
        out = self.net(prepared)
        if not isinstance(out, Tensor) or out.ndim not in (3, 4):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UserError(
                f"{self.arch} returns {shape}: patch logits of shape (B, 1, h, w) or (B, h, w) are needed"
            )
        patches = out.unsqueeze(1) if out.ndim == 3 else out
        if patches.shape[0] != prepared.shape[0] or patches.shape[1] != 1 or patches.numel() == 0:
            raise UserError(
                f"{self.arch} returns shape {tuple(out.shape)} for {prepared.shape[0]} images: "
                "one logit a patch is needed, (B, 1, h, w) or (B, h, w)"
            )
        return patches


def build(
    arch: str,
    weights: Path | str | None,
    preprocess: str = "raw",
    input_scale: float = 1.0,
    weights_dir: str | Path | None = None,
    seed: int = 0,
    settings: "Settings | None" = None,
) -> tuple[PatchModel, LoadReport]:
    """Build a network in eval mode on the CPU and load its weights.

    Parameters
    ----------
    arch : `ladeda5|9|17|33`, `tiny_ladeda`, `timm/<name>` or (trusted only) `package.module:factory`.
    weights : alias, file, name inside `weights_dir`, or None for a seeded random start.
    preprocess, input_scale : for the LaDeDa family only; other networks get the normalised image as it is.
    seed : decides the random start of whatever the file does not fill; the global generator stays untouched.
    settings : gives the image size that size-bound networks are built for.

    Raises
    ------
    UserError : unknown architecture, file absent or unsafe, class count other than 1 or 2, untrusted code.
    """
    size = settings.dataset.image_size if settings is not None else DEFAULT_IMAGE_SIZE
    file = None if weights is None else resolve_weights(weights, weights_dir, arch)
    state = None if file is None else read_state(file)
    with _seeded(seed, arch):
        model = _construct(arch, preprocess, input_scale, size, state)
    report = _random_report(model, seed) if state is None or file is None else load_into(model, state, file)
    if not model.supports_preprocess and (preprocess != "raw" or input_scale != 1.0):
        ignored = f"preprocess {preprocess} x {input_scale:g} is for the LaDeDa family and not applied"
        report = replace(report, message=f"{report.message}; {ignored}")
    return model.eval(), report


def build_teacher(settings: "Settings") -> tuple[PatchModel, LoadReport]:
    """The teacher of the settings, frozen and in eval mode."""
    chosen = settings.teacher
    model, report = build(
        chosen.arch,
        chosen.weights,
        chosen.preprocess,
        chosen.input_scale,
        settings.runtime.weights_dir,
        derived_seed(settings.training.seed, "teacher"),
        settings,
    )
    return model.requires_grad_(False), report


def build_student(settings: "Settings", seed: int | None = None) -> tuple[PatchModel, LoadReport]:
    """The student of the settings; `seed` (default: training.seed) decides its random start."""
    chosen = settings.student
    return build(
        chosen.arch,
        chosen.weights,
        chosen.preprocess,
        weights_dir=settings.runtime.weights_dir,
        seed=derived_seed(settings.training.seed if seed is None else seed, "student"),
        settings=settings,
    )


def derived_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose, independent of those of other purposes."""
    state = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


@contextmanager
def _seeded(seed: int, arch: str) -> Iterator[None]:
    """Draw from a generator seeded by (seed, arch) and put the global one back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, arch))
        yield


def _construct(
    arch: str, preprocess: str, input_scale: float, size: int, state: dict[str, Tensor] | None
) -> PatchModel:
    if arch in ARCHITECTURES:
        return ARCHITECTURES[arch](arch, preprocess, input_scale)
    if arch.startswith("timm/"):
        from diag_lib.models.timm_patch import create_timm

        return create_timm(arch, state, size)
    if ":" in arch:
        return _from_user_code(arch, size)
    known = ", ".join([*ARCHITECTURES, "timm/<name>", "package.module:factory"])
    raise UserError(f"arch {arch!r} does not exist: choose from {known}")


def _from_user_code(arch: str, size: int) -> FactoryModel:
    if not arch.startswith(OWN_FACTORIES):
        require_trust(f"arch {arch!r}")
    factory = imported(arch, f"arch {arch!r}")
    try:
        net = factory()
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f"arch {arch!r}: the factory failed with {type(error).__name__}: {error}") from None
    if not isinstance(net, nn.Module):
        raise UserError(
            f"arch {arch!r}: the factory returned {type(net).__name__}, a torch.nn.Module is needed"
        )
    _avoid_broken_kernel(net)
    model = FactoryModel(arch, net)
    _check_factory_output(model, size)
    return model


def _avoid_broken_kernel(net: nn.Module) -> None:
    """Let 1x1 convolutions with a stride, of a few channels, take every so many pixels first: the same, but safe.

    Their backward pass in torch 2.14's CPU kernels (oneDNN, channels_last, 2 to 7 channels; seen on a processor without
    AVX-512) writes beyond its memory and ends the process.
    """
    for module in net.modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.kernel_size == (1, 1)
            and max(module.stride) > 1
            and module.in_channels < FEW_CHANNELS
            and module.padding == (0, 0)
        ):
            module.register_forward_pre_hook(_EveryFew(*module.stride))
            module.stride = (1, 1)


@dataclass(frozen=True)
class _EveryFew:
    """A hook: every so many rows and columns of the input of a layer."""

    rows: int
    columns: int

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][..., :: self.rows, :: self.columns], *inputs[1:])


@torch.no_grad()
def _check_factory_output(model: FactoryModel, size: int) -> None:
    model.eval()
    try:
        model(torch.zeros(2, 3, size, size))
    except UserError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise UserError(
            f"{model.arch} failed on {size}x{size} images: {type(error).__name__}: {error}"
        ) from None


def _random_report(model: PatchModel, seed: int) -> LoadReport:
    names = list(model.weights_module.state_dict())
    if isinstance(model, FactoryModel):
        message = "no weights file: the factory's own weights are used as they are"
        return LoadReport(arch=model.arch, file=None, sha256=None, message=message)
    message = (
        f"RANDOM WEIGHTS: no weights file was given, all {len(names)} tensors of {model.arch} are random"
    )
    return LoadReport(model.arch, None, None, missing=names, random=True, message=f"{message} (seed {seed})")
