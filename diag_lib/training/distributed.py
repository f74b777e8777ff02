"""How do several processes share the work? Only under torchrun; otherwise there is a world of one.

One arm over several processes is the same training as in one, up to float rounding: every process computes the
losses of the whole batch (whatever they compare within it), BatchNorm takes its statistics over the whole batch,
and gradients are summed.
"""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diag_lib.models.batchnorm import BatchNorm


@dataclass(frozen=True)
class World:
    """This process's `rank` among `size` processes."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of the tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, rows: Tensor, n: int) -> Tensor:
        """The n rows of which each process holds every `size`-th from its rank on; gradients go to one's own."""
        if self.size == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, n, self)
        return gathered

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """The gradient of a loss of the whole batch, from each process's part of it."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.add(torch.cat([g.flatten() for g in gradients]))
        parts = torch.split(flat, [p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def share_batch_norms(self, model: nn.Module) -> None:
        """Let every BatchNorm of the model train with the statistics of the whole batch."""
        if self.size == 1:
            return
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.forward = partial(_shared_batch_norm, module)  # type: ignore[method-assign]


class _Gather(torch.autograd.Function):
    """All rows in their order; the loss made of them is the same everywhere, so each process keeps its rows' share."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, n: int, world: World) -> Tensor:
        ctx.world = world
        most = -(-n // world.size)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(world.size)]
        dist.all_gather(parts, padded)
        whole = rows.new_empty(n, *rows.shape[1:])
        for rank, part in enumerate(parts):
            place = whole[rank :: world.size]
            place.copy_(part[: len(place)])
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0][ctx.world.rank :: ctx.world.size].contiguous(), None, None


class _Sum(torch.autograd.Function):
    """The sum over all processes, of the values and, backwards, of the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _shared_batch_norm(norm: BatchNorm, x: Tensor) -> Tensor:
    """What `norm` does with the whole batch, of which x is this process's part (possibly empty)."""
    if not norm.training:
        evaluated: Tensor = type(norm).forward(norm, x)
        return evaluated
    wide, dims = x.float(), [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = torch.tensor([x.numel() / x.shape[1]], dtype=torch.float64)
    if x.is_cuda:
        count = count.to(x.device)
    dist.all_reduce(count)
    n = float(count)
    mean = _total(wide.sum(dims)) / n
    centred = wide - mean.view(shape)
    var = _total(centred.square().sum(dims)) / n
    _follow(norm, mean.detach(), var.detach() * (n / max(1.0, n - 1)))
    out = centred * torch.rsqrt(var + norm.eps).view(shape)
    if norm.affine:
        out = out * norm.weight.view(shape) + norm.bias.view(shape)
    return out.to(x.dtype)


def _total(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)
    return total


@torch.no_grad()
def _follow(norm: BatchNorm, mean: Tensor, unbiased: Tensor) -> None:
    """Move the running statistics as the layer itself would."""
    if norm.running_mean is None or norm.running_var is None:
        return
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    rate = 1 / float(norm.num_batches_tracked or 1) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), rate)
    norm.running_var.lerp_(unbiased.to(norm.running_var), rate)


@cache
def world() -> World:
    """The processes that torchrun started (joined on the first call), or this one alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" not in os.environ or size == 1:
        return World()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if not dist.is_initialized():  # gloo for what lies in memory, NCCL for what lies on a GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(dist.destroy_process_group)
    return World(dist.get_rank(), dist.get_world_size())
