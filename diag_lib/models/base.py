"""What does a patch-logit model promise to the rest of the workbook?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diag_lib.errors import UserError
from diag_lib.models.preprocess import apply_preprocess, check_preprocess


@dataclass(frozen=True)
class Geometry:
    """Where the cells of a patch map look, along one axis, in pixels (centre of the first pixel = 0).

    Cell i is centred on `offset + i * stride` and sees `receptive_field` pixels. For networks whose cells see
    nearly the whole image (ResNet, ViT) `receptive_field` is the part that the cell stands for: the stride.
    """

    stride: float
    offset: float
    receptive_field: float

    def centres(self, n: int) -> Tensor:
        """Pixel positions of the n cell centres, float64 (n,)."""
        return self.offset + self.stride * torch.arange(n, dtype=torch.float64)


def geometry_from_map(size: int, cells: int) -> Geometry:
    """Geometry of `cells` equal, gapless patches over `size` pixels: where nothing better is known."""
    stride = size / cells
    return Geometry(stride=stride, offset=(stride - 1) / 2, receptive_field=stride)


class PatchModel(nn.Module):
    """A network that gives one raw logit (fake against real) for every patch of an image.

    `forward` takes normalised images (B, 3, H, W) and returns patch logits (B, 1, h, w). The preprocessing is
    part of the network, as in LaDeDa; `input_scale` multiplies the preprocessed input.
    """

    def __init__(self, arch: str, preprocess: str = "raw", input_scale: float = 1.0) -> None:
        super().__init__()
        self.arch = arch
        self.preprocess = check_preprocess(preprocess)
        self.input_scale = float(input_scale)

    @property
    def weights_module(self) -> nn.Module:
        """The module whose state dict is what a weights file of this architecture holds."""
        return self

    @property
    def supports_preprocess(self) -> bool:
        """Whether `preprocess` and `input_scale` mean anything to this architecture."""
        return True

    @property
    def min_size(self) -> int:
        """Smallest image side, in pixels, that still gives one patch."""
        return 1

    @property
    def head_names(self) -> list[str]:
        """Names that `select_trainable` accepts: the first level of the parameter names."""
        return list(dict.fromkeys(name.split(".")[0] for name, _ in self.weights_module.named_parameters()))

    def prepare(self, x: Tensor) -> Tensor:
        """The preprocessed, scaled input of the first convolution, (B, 3, H, W)."""
        prepared = apply_preprocess(x, self.preprocess)
        return prepared if self.input_scale == 1.0 else prepared * self.input_scale

    def patch_logits(self, prepared: Tensor) -> Tensor:
        """Patch logits (B, 1, h, w) of an already preprocessed input."""
        raise NotImplementedError

    def geometry(self, size: int) -> Geometry:
        """Where the cells look for square images of `size` pixels."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3:
            raise UserError(f"{self.arch} takes images of shape (B, 3, H, W), not {tuple(x.shape)}")
        if min(x.shape[-2:]) < self.min_size:
            height, width = x.shape[-2:]
            raise UserError(
                f"images of {width}x{height} pixels are too small for one patch of {self.arch}: "
                f"it needs at least {self.min_size}x{self.min_size}, raise dataset.image_size"
            )
        return self.patch_logits(self.prepare(x))

    @torch.no_grad()
    def map_size(self, height: int, width: int | None = None) -> tuple[int, int]:
        """Rows and columns of the patch map for an image of this size (one forward pass of zeros)."""
        reference = next(self.parameters())
        was_training = self.training
        self.eval()
        try:
            zeros = torch.zeros(1, 3, height, width or height, device=reference.device, dtype=reference.dtype)
            out = self(zeros)
        finally:
            self.train(was_training)
        return int(out.shape[-2]), int(out.shape[-1])


@contextmanager
def preprocessing(model: PatchModel, preprocess: str, input_scale: float) -> Iterator[PatchModel]:
    """Lend the model another preprocessing for the length of a `with` block."""
    before = model.preprocess, model.input_scale
    model.preprocess, model.input_scale = check_preprocess(preprocess), float(input_scale)
    try:
        yield model
    finally:
        model.preprocess, model.input_scale = before


def select_trainable(model: PatchModel, names: list[str]) -> list[str]:
    """Let only the named parts train: sets `requires_grad` and returns the names of the parameters that do.

    `names` are dotted prefixes of the parameter names as in the weights file (`fc`, `layer1.0.conv2`) or
    `all`. Raises UserError where a name fits no parameter.
    """
    prefix = "" if model.weights_module is model else _name_of(model, model.weights_module) + "."
    parameters = dict(model.named_parameters())
    known = {name.removeprefix(prefix): name for name in parameters}
    chosen: set[str] = set()
    for wanted in names:
        fits = {
            full for short, full in known.items() if wanted == "all" or (short + ".").startswith(wanted + ".")
        }
        if not fits:
            raise UserError(
                f"{model.arch} has no part {wanted!r} to train: choose {', '.join(model.head_names)} or all"
            )
        chosen |= fits
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
    return [name for name in parameters if name in chosen]


def _name_of(model: nn.Module, part: nn.Module) -> str:
    names: list[str] = [name for name, module in model.named_modules() if module is part]
    return names[0]
