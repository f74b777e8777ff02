"""Where does each cell of a padded convolutional network's last map look?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diag_lib.models.base import Geometry

SPATIAL = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True)
class Reduction:
    """One layer that changes the side of a map: `before` to `after` cells."""

    before: int
    after: int
    kernel: int
    stride: int
    left: float


@torch.no_grad()
def trace_geometry(
    net: nn.Module, features: Callable[[Tensor], Tensor], size: int, cells: int, like: Tensor
) -> Geometry | None:
    """Stride and centres of `cells` last cells, from the layers that shrink a `size`-pixel image on the way.

    Parallel branches shrink alike, so one layer per step is enough (the widest). None where the layers seen
    do not lead from `size` to `cells`.
    """
    seen = _reductions(net, features, size, like)
    position, stride, side = 0.0, 1, size
    while side != cells:
        layers = [layer for layer in seen if layer.before == side]
        if not layers:
            return None
        layer = max(layers, key=lambda layer: layer.kernel)
        position += ((layer.kernel - 1) / 2 - layer.left) * stride
        stride *= layer.stride
        side = layer.after
    return Geometry(stride=float(stride), offset=position, receptive_field=float(stride))


def _reductions(
    net: nn.Module, features: Callable[[Tensor], Tensor], size: int, like: Tensor
) -> list[Reduction]:
    found: list[Reduction] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        before, after = inputs[0].shape[-1], output.shape[-1]
        if after < before:
            kernel, stride, padding = (
                _side(getattr(module, key)) for key in ("kernel_size", "stride", "padding")
            )
            found.append(
                Reduction(
                    before, after, kernel, stride, _left_padding(before, after, kernel, stride, padding)
                )
            )

    handles = [module.register_forward_hook(note) for module in net.modules() if isinstance(module, SPATIAL)]
    was_training = net.training
    net.eval()
    try:
        features(torch.zeros(1, 3, size, size, device=like.device, dtype=like.dtype))
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    return found


def _left_padding(before: int, after: int, kernel: int, stride: int, padding: int) -> float:
    """The module's padding, or TensorFlow's "same" (the smaller half in front) where that gives `after`."""
    if (before + 2 * padding - kernel) // stride + 1 == after:
        return padding
    return ((after - 1) * stride + kernel - before) // 2


def _side(value: Any) -> int:
    if isinstance(value, str):
        return 0
    return int(value[-1]) if isinstance(value, (tuple, list)) else int(value)
