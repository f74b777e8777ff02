"""What does Tiny-LaDeDa, the student of 1,297 parameters, say about each patch?

Written from the architecture's published description (arXiv 2406.09398), without its code or weights.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from diag_lib.models.base import Geometry, PatchModel
from diag_lib.models.ladeda import STEM_MOMENTUM, initialise, patch_head, stem, unpadded_geometry

CHANNELS = 8


class TinyBlock(nn.Module):
    """1x1 and 3x3 stride-2 convolutions, each with batch norm and ReLU; no residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)), inplace=True)


class TinyLaDeDa(PatchModel):
    """Tiny-LaDeDa: cells of 5 pixels, stride 2; its grid refines LaDeDa9's exactly."""

    def __init__(
        self, arch: str = "tiny_ladeda", preprocess: str = "right_diag", input_scale: float = 1.0
    ) -> None:
        super().__init__(arch, preprocess, input_scale)
        self.conv1 = nn.Conv2d(3, CHANNELS, 1, bias=False)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS, momentum=STEM_MOMENTUM)
        self.layer1 = nn.Sequential(TinyBlock(CHANNELS))
        self.fc = nn.Linear(CHANNELS, 1)
        initialise(self)
        self._geometry = unpadded_geometry([(3, 1), (3, 2)])

    @property
    def min_size(self) -> int:
        return int(self._geometry.receptive_field)

    def geometry(self, size: int) -> Geometry:
        return self._geometry

    def patch_logits(self, prepared: Tensor) -> Tensor:
        features = F.relu(self.bn1(stem(prepared, self.conv1, self.conv2)), inplace=True)
        return patch_head(self.layer1(features), self.fc)
