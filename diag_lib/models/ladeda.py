"""What does LaDeDa, the patch-wise teacher with small receptive fields, say about each patch?

Written from the architecture's published description (arXiv 2406.09398), without its code or weights.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diag_lib.models.base import Geometry, PatchModel

# Which of layer1..layer4 have a 3x3 convolution in their first block: each adds 2 x its input stride.
LARGE_KERNELS: dict[str, tuple[bool, bool, bool, bool]] = {
    "ladeda5": (True, False, False, False),
    "ladeda9": (True, True, False, False),
    "ladeda17": (True, True, True, False),
    "ladeda33": (True, True, True, True),
}
DEPTHS = (3, 4, 6, 3)
STRIDES = (2, 2, 2, 1)
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4
STEM_MOMENTUM = 0.001


def unpadded_geometry(convolutions: Sequence[tuple[int, int]]) -> Geometry:
    """Geometry of unpadded convolutions given as (kernel, stride) in order: exact integers of pixels."""
    field, stride = 1, 1
    for kernel, step in convolutions:
        field += (kernel - 1) * stride
        stride *= step
    return Geometry(stride=float(stride), offset=(field - 1) / 2, receptive_field=float(field))


def stem(x: Tensor, conv1: nn.Conv2d, conv2: nn.Conv2d) -> Tensor:
    """conv2(conv1(x)) as one convolution: conv1 is 1x1 and nothing lies between, so the product is exact."""
    weight = torch.einsum("omhw,mi->oihw", conv2.weight, conv1.weight[:, :, 0, 0])
    return F.conv2d(x, weight)


def patch_head(features: Tensor, fc: nn.Linear) -> Tensor:
    """The linear head at every position: (B, C, h, w) -> (B, 1, h, w)."""
    return F.conv2d(features, fc.weight[:, :, None, None], fc.bias)


def initialise(model: nn.Module) -> None:
    """He initialisation (fan out, ReLU) of the convolutions; norms and head keep PyTorch's own."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Bottleneck(nn.Module):
    """1x1, kxk (stride), 1x1 convolutions without padding; the residual is cropped to its top-left."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, project: bool) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel, stride, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if project
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        residual = self.downsample(x)
        return F.relu(out + residual[..., : out.shape[-2], : out.shape[-1]], inplace=True)


class LaDeDa(PatchModel):
    """LaDeDa5/9/17/33: a ResNet-50 whose cells see 5, 9, 17 or 33 pixels, stride 8."""

    def __init__(self, arch: str = "ladeda9", preprocess: str = "NPR", input_scale: float = 1.0) -> None:
        super().__init__(arch, preprocess, input_scale)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 1, bias=False)
        self.conv2 = nn.Conv2d(WIDTHS[0], WIDTHS[0], 3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0], momentum=STEM_MOMENTUM)
        inputs = WIDTHS[0]
        for index, large in enumerate(LARGE_KERNELS[arch]):
            setattr(self, f"layer{index + 1}", _layer(inputs, index, 3 if large else 1))
            inputs = WIDTHS[index] * EXPANSION
        self.fc = nn.Linear(inputs, 1)
        initialise(self)
        kernels = [3 if large else 1 for large in LARGE_KERNELS[arch]]
        self._geometry = unpadded_geometry([(3, 1), *zip(kernels, STRIDES, strict=True)])

    @property
    def min_size(self) -> int:
        return int(self._geometry.receptive_field)

    def geometry(self, size: int) -> Geometry:
        return self._geometry

    def patch_logits(self, prepared: Tensor) -> Tensor:
        features = F.relu(self.bn1(stem(prepared, self.conv1, self.conv2)), inplace=True)
        for index in range(len(DEPTHS)):
            features = getattr(self, f"layer{index + 1}")(features)
        return patch_head(features, self.fc)


def _layer(inputs: int, index: int, kernel: int) -> nn.Sequential:
    width = WIDTHS[index]
    first = Bottleneck(inputs, width, kernel, STRIDES[index], project=True)
    rest = [Bottleneck(width * EXPANSION, width, 1, 1, project=False) for _ in range(DEPTHS[index] - 1)]
    return nn.Sequential(first, *rest)
