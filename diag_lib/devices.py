"""Which processor, precision and number of threads does a run use?"""

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from diag_lib.errors import UserError
from diag_lib.settings import Settings

# Up to this many pixels a batch, one thread trains a small student faster than several do: the tensors are
# too small to share out (32 images of 64 px: 0.8 ms an image with one thread, up to 14 ms with two on a busy
# machine).
ONE_THREAD_PIXELS = 32 * 128 * 128

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_DEFAULT_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class Hardware:
    """Where the arithmetic happens; `dtype` is that of the forward pass, parameters are always fp32."""

    device: torch.device
    dtype: torch.dtype
    threads: int

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context of a training forward pass."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def describe(self) -> dict[str, str | int]:
        """For run.json and arm folders."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {"device": name, "precision": str(self.dtype).removeprefix("torch."), "threads": self.threads}


def choose(settings: Settings) -> Hardware:
    """Hardware for these settings.

    `device: auto` takes CUDA, then MPS, then the CPU; `precision: auto` takes bf16 on CUDA devices that have
    it, else fp32 (bf16 on a CPU without hardware support is many times slower). `threads: auto` takes one
    thread for small batches of the tiny student and when several processes train, else the machine's cores.

    On the CPU it also lets the process keep freed memory (see `keep_memory`).

    Raises UserError when the device that was asked for is not there.
    """
    device = _device(settings.runtime.device)
    if device.type == "cpu":
        keep_memory()
    return Hardware(device, _dtype(settings.runtime.precision, device), _threads(settings, device))


@functools.cache
def keep_memory() -> bool:
    """Let glibc keep large freed blocks for the next batch; False where the C library is another.

    By default every activation map beyond a few megabytes is given back to the kernel and faulted in anew at each
    step: half of the CPU time of Tiny-LaDeDa at 256 pixels (20 against 8 ms an image, batch 32, one thread).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(mallopt(option, value) == 1 for option, value in _KEEP)


# M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h
_KEEP = ((-4, 0), (-1, 2**31 - 1), (-2, 64 * 2**20))


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not present[device.type] or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UserError(f"runtime.device: {name} is not available on this machine; use auto or cpu")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision != "auto":
        return _PRECISIONS[precision]
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def _threads(settings: Settings, device: torch.device) -> int:
    wanted = settings.runtime.threads
    if isinstance(wanted, int) and wanted > 0:
        return wanted
    if device.type != "cpu":
        return _DEFAULT_THREADS
    pixels = settings.training.batch_size * settings.dataset.image_size**2
    small = settings.student.arch == "tiny_ladeda" and pixels <= ONE_THREAD_PIXELS
    return 1 if small or settings.runtime.processes > 1 else _DEFAULT_THREADS


@contextlib.contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Compute with that many threads inside a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
