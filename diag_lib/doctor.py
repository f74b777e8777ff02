"""Is this machine ready, what is here, and how long do training and teacher take on it?"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from diag_lib import __version__
from diag_lib.settings import BUDGET_IMAGE_STEPS, WEIGHT_SUFFIXES, load

if TYPE_CHECKING:
    from diag_lib.devices import Hardware
    from diag_lib.models import PatchModel

MIN_TORCH = (2, 6)  # earlier `weights_only` loading was unsafe (CVE-2025-32434)
MIN_FREE_GB = 5.0

Level = Literal["ok", "note", "error"]

EXTRAS = {  # module that must be importable -> (extra that brings it, what it is for)
    "papermill": ("notebook", "running the workbook"),
    "jupyterlab": ("notebook", "diag lab"),
    "skimage": ("demo", "diag demo"),
    "cleanlab": ("labels", "label-noise estimates"),
    "tensorboard": ("tensorboard", "reading TensorBoard histories"),
    "dask": ("dask", "audits on a cluster"),
}
_OPTIONAL = {"cleanlab", "tensorboard", "dask"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass(frozen=True)
class Check:
    """One line of the examination; an `error` keeps `diag` from working, a `note` limits it."""

    name: str
    level: Level
    text: str


def examine(weights_dir: Path) -> Iterator[Check]:
    """Yield one `Check` per question; slow ones (importing torch) come late, so that lines appear at once."""
    yield Check("diag", "ok", f"{__version__} ({Path(__file__).resolve().parent})")
    old = sys.version_info < (3, 11)
    yield Check(
        "python",
        "error" if old else "ok",
        f"{platform.python_version()} ({sys.executable}), 3.11 or newer is needed",
    )
    yield Check("system", "ok", f"{platform.system()} {platform.machine()}, {_cores()}")
    yield _disk(Path.cwd())
    yield from _extras()
    yield _kernel()
    yield _browser()
    yield _weights(weights_dir)
    yield from _torch()
    if importlib.util.find_spec("torch"):
        yield from _speed()


def _cores() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{usable} usable CPU core{'s' if usable > 1 else ''}"


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK):
        return Check(
            "disk", "note", f"this folder is not writable; give --out a folder that is ({free:.0f} GB free)"
        )
    few = free < MIN_FREE_GB
    return Check(
        "disk", "note" if few else "ok", f"{free:.1f} GB free here" + (", little for caches" if few else "")
    )


def _extras() -> Iterator[Check]:
    for module, (extra, purpose) in EXTRAS.items():
        if importlib.util.find_spec(module):
            distribution = {"skimage": "scikit-image"}.get(module, module)
            yield Check(module, "ok", importlib.metadata.version(distribution))
        else:
            level: Level = "note" if module in _OPTIONAL else "error"
            yield Check(module, level, f"missing, for {purpose}: pip install 'diag-lib[{extra}]'")


def _kernel() -> Check:
    """The kernel that runs the notebooks must be this very Python."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        return Check("kernel", "error", "no Jupyter kernel: pip install 'diag-lib[notebook]'")
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except (NoSuchKernel, OSError, json.JSONDecodeError) as error:
        return Check("kernel", "error", f"kernel python3 is not usable ({error}): pip install ipykernel")
    resolved = shutil.which(command) or command
    own = Path(resolved).name.startswith("python") and Path(resolved).parent == Path(sys.executable).parent
    if own or command in {"python", "python3"}:
        return Check("kernel", "ok", f"python3 is {sys.executable}")
    return Check(
        "kernel",
        "note",
        f"python3 is {resolved}, not this Python; repair: python -m ipykernel install --sys-prefix",
    )


def _browser() -> Check:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return (
        Check("browser", "ok", f"{found}; only the browser tests use it")
        if found
        else Check("browser", "ok", "no Chromium; only the browser tests use it")
    )


def _weights(folder: Path) -> Check:
    if not folder.is_dir():
        return Check(
            "weights",
            "note",
            f"no folder {folder}; published teachers are looked for there (the demo needs none)",
        )
    files = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    return Check("weights", "ok" if files else "note", f"{folder}: {', '.join(files) or 'empty'}")


def _torch() -> Iterator[Check]:
    try:
        import torch
        import torchvision
    except (ImportError, OSError, RuntimeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        yield Check(
            "torch", "error", f"cannot be imported ({lines[0]}); torch and torchvision must fit together"
        )
        return
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    old = version < MIN_TORCH
    text = f"{torch.__version__}, torchvision {torchvision.__version__}" + (
        ", 2.6 or newer is needed" if old else ""
    )
    yield Check("torch", "error" if old else "ok", text)
    yield Check("device", "ok", _device())
    yield Check(
        "threads",
        "ok",
        f"{torch.get_num_threads()} (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')})",
    )


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return (
            f"cuda: {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"
        )
    if torch.backends.mps.is_available():
        return "mps (Apple)"
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
    return f"cpu; no GPU is seen, {built}"


def _speed() -> Iterator[Check]:
    """What the default student and teacher take here, measured in a few seconds; rough, other programs count too."""
    from diag_lib.devices import choose, step_timer
    from diag_lib.models import build, build_student

    settings = load("base")
    way = choose(settings)
    precision = str(way.dtype).removeprefix("torch.")
    size, batch = settings.dataset.image_size, settings.training.batch_size
    step = step_timer(lambda: build_student(settings)[0], way, batch, size)
    trained = batch / median(step() for _ in range(3))
    yield Check(
        "training",
        "ok",
        f"about {trained:.0f} images/s: Tiny-LaDeDa, {size} pixels, batches of {batch}, {precision}",
    )
    asked = 1 / _seconds_of_teacher(build(settings.teacher.arch, None)[0], way, size)
    yield Check(
        "teacher",
        "ok",
        f"about {asked:.1f} images/s: LaDeDa9, {size} pixels; each image is asked once, then remembered",
    )
    times = [f"{name} {_duration(steps / trained)}" for name, steps in BUDGET_IMAGE_STEPS.items()]
    yield Check(
        "budgets",
        "ok",
        f"runtime.budget: {', '.join(times)} of training; the teacher {_duration(1000 / asked)} for 1,000 images"
        f"{_busy()}",
    )


def _busy() -> str:
    """A warning where other programs had the processors during the measurement."""
    load_now, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    return f"; this machine is busy (load {load_now:.0f}), alone it is faster" if load_now > cores + 1 else ""


def _seconds_of_teacher(teacher: "PatchModel", way: "Hardware", size: int) -> float:
    """Seconds of one image's forward pass, the best of two after one to warm up."""
    import torch

    model = teacher.to(way.device)
    x = torch.zeros(8 if way.device.type == "cuda" else 1, 3, size, size, device=way.device)
    taken = []
    with torch.inference_mode():
        for _ in range(3):
            started = time.perf_counter()
            float(model(x).sum())  # waits for the device
            taken.append(time.perf_counter() - started)
    return min(taken[1:]) / len(x)


def _duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
