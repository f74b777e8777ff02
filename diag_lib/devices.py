"""Which processor, precision, memory layout and number of threads does a run use?

On a GPU the fastest way is measured, once a process. On a CPU it is fixed, because each way rounds differently and
the same settings give the same numbers there: fp32 (bf16 without hardware support is many times slower),
channels_last (measured faster for LaDeDa and Tiny-LaDeDa, see `benchmarks`), not compiled (40 s for a third of a
step of 15 ms).
"""

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import nn

from diag_lib.errors import UserError
from diag_lib.settings import Settings

# Up to this many pixels a batch, one thread trains a small student faster than several do: the tensors are
# too small to share out (32 images of 64 px: 0.8 ms an image with one thread, up to 14 ms with two on a busy
# machine).
ONE_THREAD_PIXELS = 32 * 128 * 128

MARGIN = 1.1  # another way than the usual one must be this much faster
TRIES = 3
COMPILING_PAYS = 2.0  # seconds saved over the whole budget for each second of compiling
WORTH_COMPILING = 100_000  # steps of the budget below which compiling is not even tried

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_DEFAULT_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class Hardware:
    """Where the arithmetic happens and how; `dtype` is that of the forward pass, parameters are always fp32.

    `measured` holds the seconds of a training step each way that was tried, by name; empty on a CPU.
    """

    device: torch.device
    dtype: torch.dtype
    threads: int
    channels_last: bool = True
    compiled: bool = False
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The device's name."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return self.device.type

    @property
    def memory_format(self) -> torch.memory_format:
        """How images and activations lie in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context of a training forward pass."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def describe(self) -> dict[str, object]:
        """For run.json and arm folders."""
        kernels = {
            "stem_folded": True,  # always: exact, and never slower
            "channels_last": self.channels_last,
            "compiled": self.compiled,
            "chosen_by": "measurement" if self.measured else "rule",
            "seconds": {name: round(seconds, 6) for name, seconds in self.measured.items()},
        }
        precision = str(self.dtype).removeprefix("torch.")
        return {"device": self.name, "precision": precision, "threads": self.threads, "kernels": kernels}


def choose(settings: Settings) -> Hardware:
    """Hardware for these settings.

    `device: auto` takes CUDA, then MPS, then the CPU. On CUDA the memory layout, compiling and, for `precision:
    auto`, fp32 or bf16 are what a measured training step of the student finds fastest; elsewhere auto is fp32.
    `threads: auto` takes one thread for small batches of the tiny student and when several processes train, else
    the machine's cores.

    On the CPU it also lets the process keep freed memory (see `keep_memory`).

    Raises UserError when the device that was asked for is not there.
    """
    device, wanted = _device(settings.runtime.device), settings.runtime.precision
    usual = Hardware(device, _PRECISIONS.get(wanted, torch.float32), _threads(settings, device))
    if device.type == "cpu":
        keep_memory()
    return _measured_on_gpu(settings, usual) if device.type == "cuda" else usual


@cache
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


def fastest(
    ways: Mapping[str, Callable[[], float]], usual: str, margin: float = MARGIN
) -> tuple[str, dict[str, float]]:
    """The way to go and the seconds of each: the fastest, unless the usual one is nearly as fast.

    `ways` time themselves once a call; they take turns, the best of three counts. A way that fails is left out.
    """
    seconds: dict[str, float] = {}
    broken: set[str] = set()
    for _ in range(TRIES):
        for name, work in ways.items():
            if name in broken:
                continue
            try:
                seconds[name] = min(work(), seconds.get(name, float("inf")))
            except Exception:  # no such kernel, no compiler, not enough memory: it is only a candidate
                broken.add(name)
                seconds.pop(name, None)
    if not seconds:
        return usual, {}
    best = min(seconds, key=lambda name: seconds[name])
    stay = usual in seconds and seconds[usual] < margin * seconds[best]
    return usual if stay else best, seconds


def step_timer(student: Callable[[], nn.Module], way: Hardware, batch: int, size: int) -> Callable[[], float]:
    """A function that takes one training step of a new student on noise and returns its seconds.

    What happens once (building, compiling, choice of algorithms) comes with the first call's untimed step.
    """
    kept: list[Callable[[], None]] = []

    def prepared() -> Callable[[], None]:
        model = student().to(way.device, memory_format=way.memory_format).train()  # type: ignore[call-overload]
        if way.compiled:
            model.compile()
        optimizer = torch.optim.Adam(model.parameters())
        noise = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        x = noise.to(way.device).contiguous(memory_format=way.memory_format)

        def step() -> None:
            with way.autocast():
                loss = model(x).float().square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return step

    def work() -> float:
        if not kept:
            kept.append(prepared())
            kept[0]()
        _wait(way.device)
        started = time.perf_counter()
        kept[0]()
        _wait(way.device)
        return time.perf_counter() - started

    return work


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _measured_on_gpu(settings: Settings, usual: Hardware) -> Hardware:
    runtime, t = settings.runtime, settings.training
    bf16 = runtime.precision == "auto" and torch.cuda.is_bf16_supported()
    dtypes = (usual.dtype, torch.bfloat16) if bf16 else (usual.dtype,)
    steps = settings.image_steps // t.batch_size
    shape = (min(t.batch_size, 64), settings.dataset.image_size)
    found = _measured(
        settings.student.arch, settings.student.preprocess, shape, str(usual.device), dtypes, steps
    )
    chosen, seconds = found
    return replace(usual, dtype=chosen.dtype, channels_last=chosen.channels_last, compiled=chosen.compiled,
                   measured=seconds)  # fmt: skip


@cache
def _measured(
    arch: str,
    preprocess: str,
    shape: tuple[int, int],
    device: str,
    dtypes: tuple[torch.dtype, ...],
    steps: int,
) -> tuple[Hardware, dict[str, float]]:
    """The fastest way of a student's step on a device, measured once a process."""
    from diag_lib.models import build

    ways = {
        _way_name(way): way
        for dtype in dtypes
        for layout in (True, False)
        for way in (Hardware(torch.device(device), dtype, 1, channels_last=layout),)
    }

    def student() -> nn.Module:
        with torch.random.fork_rng():  # measuring leaves no trace in what is drawn later
            return build(arch, None, preprocess)[0]

    def timer(way: Hardware) -> Callable[[], float]:
        return step_timer(student, way, *shape)

    name, seconds = fastest({name: timer(way) for name, way in ways.items()}, next(iter(ways)))
    chosen = ways[name]
    if steps < WORTH_COMPILING:
        return chosen, seconds
    compiled = replace(chosen, compiled=True)
    started = time.perf_counter()
    _, tried = fastest({_way_name(compiled): timer(compiled)}, _way_name(compiled))
    cost = time.perf_counter() - started
    saved = steps * (seconds.get(name, 0.0) - tried.get(_way_name(compiled), float("inf")))
    return (compiled if saved > COMPILING_PAYS * cost else chosen), seconds | tried


def _way_name(way: Hardware) -> str:
    layout = "channels_last" if way.channels_last else "contiguous"
    return f"{str(way.dtype).removeprefix('torch.')} {layout}{' compiled' if way.compiled else ''}"


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
