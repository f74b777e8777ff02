"""How do several processes share the work? Only under torchrun; otherwise there is a world of one."""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn


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

    def average_gradients(self, parameters: Sequence[nn.Parameter], share: float) -> None:
        """The batch's gradient from its shards' mean gradients; `share` = this shard's share of the images."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.add(torch.cat([g.flatten() for g in gradients]) * share)
        parts = torch.split(flat, [p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def average_buffers(self, model: nn.Module) -> None:
        """The same BatchNorm statistics everywhere: their mean over the processes."""
        if self.size == 1:
            return
        for buffer in model.buffers():
            if buffer.is_floating_point():
                self.add(buffer).div_(self.size)


@cache
def world() -> World:
    """The processes that torchrun started (joined on the first call), or this one alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" not in os.environ or size == 1:
        return World()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(dist.destroy_process_group)
    return World(dist.get_rank(), dist.get_world_size())
