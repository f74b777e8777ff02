"""What if a batch does not fit into the memory of the GPU, which others may share?

It goes through the network in parts, half as large after each refusal. In training the gradients of the parts add
up, so that the optimiser still takes one step a batch; only BatchNorm in train mode (and a loss that compares the
images of a batch) then sees a part at a time, as on a smaller card.
"""

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from diag_lib.errors import UserError

T = TypeVar("T")

# CUDA's and MPS's allocators, the CPU's, and the two libraries that ask for memory of their own
_REFUSALS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@dataclass
class Portion:
    """How many images go through a network at once: all of a batch until the device refuses that many.

    `most` is None as long as nothing was refused. `what` names the work in the line that says so on stderr.
    """

    what: str
    most: int | None = None

    def parts(self, n: int) -> list[slice]:
        """The rows of a batch of `n` images, part by part."""
        size = n if self.most is None else self.most
        return [slice(at, min(at + size, n)) for at in range(0, n, max(1, size))]

    def run(self, n: int, work: Callable[[Sequence[slice]], T]) -> T:
        """`work(parts)` on a batch of `n` images, from the start again in smaller parts after each refusal.

        `work` must be ready to be called again: it leaves nothing behind before its last part is through, or clears it.
        Raises `UserError` where the memory does not hold a single image.
        """
        while True:
            try:
                return work(self.parts(n))
            except (RuntimeError, MemoryError) as error:
                if not is_refusal(error):
                    raise
                reason = str(error).split("\n")[0]
            # only here, where the traceback no longer holds the tensors, their memory is free again
            self._halve(n, reason)

    def _halve(self, n: int, reason: str) -> None:
        size = min(n, self.most or n)
        if size <= 1:
            raise UserError(
                f"{self.what}: the memory does not hold one image ({reason}); make dataset.image_size smaller, "
                "free the device, or set runtime.device: cpu"
            )
        self.most = (size + 1) // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(
            f"{self.what}: the memory does not hold {size} images at once, going on with {self.most} at a time",
            file=sys.stderr,
            flush=True,
        )


def is_refusal(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _REFUSALS)


def forward_in_parts(model: Callable[[Tensor], Tensor], x: Tensor, parts: Sequence[slice]) -> Tensor:
    """A network's answers to a batch, part by part, in fp32 on the CPU."""
    return torch.cat([model(x[rows]).float().cpu() for rows in parts])
