"""How do the logits of an image's patches become the logit of the image?"""

from typing import Protocol

import torch
from torch import Tensor

from diag_lib.errors import UserError


class PoolingSettings(Protocol):
    """What `pool` reads of the settings: kind mean|topk, r in (0, 1], min_k >= 1, aggregation mean|max."""

    @property
    def kind(self) -> str: ...
    @property
    def r(self) -> float: ...
    @property
    def min_k(self) -> int: ...
    @property
    def aggregation(self) -> str: ...


def top_k_count(patches: int, r: float, min_k: int) -> int:
    """How many of `patches` patches top-k pooling looks at: r of them, at least min_k, at most all."""
    return min(patches, max(min_k, int(r * patches)))


def pool(patch_logits: Tensor, settings: PoolingSettings) -> Tensor:
    """Image logits (B,) of patch logits (B, 1, h, w).

    `mean` averages all patches; `topk` takes the largest r of them (at least min_k) and averages them or
    takes their maximum. Raises UserError for an unknown kind or aggregation.
    """
    flat = patch_logits.flatten(1)
    if settings.kind == "mean":
        return flat.mean(dim=1)
    if settings.kind != "topk":
        raise UserError(f"pooling.kind {settings.kind!r} does not exist: choose mean or topk")
    top = torch.topk(flat, top_k_count(flat.shape[1], settings.r, settings.min_k), dim=1).values
    if settings.aggregation == "mean":
        return top.mean(dim=1)
    if settings.aggregation == "max":
        return top[:, 0]
    raise UserError(f"pooling.aggregation {settings.aggregation!r} does not exist: choose mean or max")
