"""What does the network really see: raw pixels, neighbouring-pixel residuals or gradients?"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from diag_lib.errors import UserError

# Unscaled Sobel kernels, as in LaDeDa (arXiv 2406.09398, section on preprocessing).
SOBEL: dict[str, tuple[tuple[float, ...], ...]] = {
    "x_grad": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "y_grad": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "left_diag": ((0, 1, 2), (-1, 0, 1), (-2, -1, 0)),
    "right_diag": ((-2, -1, 0), (-1, 0, 1), (0, 1, 2)),
}
PREPROCESS: tuple[str, ...] = ("raw", "NPR", *SOBEL)


def check_preprocess(name: str) -> str:
    """`name` itself, or a UserError that lists what exists."""
    if name not in PREPROCESS:
        raise UserError(f"preprocess {name!r} does not exist: choose from {', '.join(PREPROCESS)}")
    return name


def apply_preprocess(x: Tensor, name: str) -> Tensor:
    """Preprocess normalised images (B, 3, H, W) of any size; the shape stays."""
    if name == "raw":
        return x
    if name == "NPR":
        return neighbouring_pixel_residual(x)
    kernel = _kernel(check_preprocess(name), x.dtype, x.device)
    return F.conv2d(x, kernel.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])


def neighbouring_pixel_residual(x: Tensor) -> Tensor:
    """Every pixel minus the top-left pixel of its 2x2 block (NPR, arXiv 2312.10461), for odd sizes too."""
    height, width = x.shape[-2:]
    corners = x[..., ::2, ::2]
    blocks = corners.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    return x - blocks[..., :height, :width]


@lru_cache(maxsize=32)
def _kernel(name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(SOBEL[name], dtype=dtype, device=device)[None, None]
