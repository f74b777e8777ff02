"""LaDeDa as fast as a bare forward pass gets: every batch norm folded into its convolution."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from diag_lib.models import PatchModel


class Folded(nn.Module):
    """The same patch logits as `model` in eval mode, without a batch norm, its stem one convolution."""

    def __init__(self, model: PatchModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        conv1, conv2 = self.model.conv1, self.model.conv2
        stem = nn.Conv2d(3, conv2.out_channels, 3, bias=False)
        with torch.no_grad():
            stem.weight.copy_(torch.einsum("omhw,mi->oihw", conv2.weight, conv1.weight[:, :, 0, 0]))
        self.stem = fuse_conv_bn_eval(stem.eval(), self.model.bn1)
        for block in (b for layer in self._layers() for b in layer):
            for number in (1, 2, 3):
                convolution, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
                setattr(block, f"conv{number}", fuse_conv_bn_eval(convolution, norm))
                setattr(block, f"bn{number}", nn.Identity())
            if isinstance(block.downsample, nn.Sequential):
                block.downsample = fuse_conv_bn_eval(*block.downsample)

    def _layers(self) -> list[nn.Sequential]:
        return [getattr(self.model, f"layer{number}") for number in (1, 2, 3, 4)]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(self.model.prepare(x)), inplace=True)
        for layer in self._layers():
            x = layer(x)
        return F.conv2d(x, self.model.fc.weight[:, :, None, None], self.model.fc.bias)
