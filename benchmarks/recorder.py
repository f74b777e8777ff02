"""What does recording a training cost? The same plain loop with and without `TrainingRecorder`."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.timing import Report, alternate
from diag_lib.devices import thread_count
from diag_lib.models import build
from diag_lib.recorder import TrainingRecorder


@dataclass(frozen=True)
class Size:
    """One batch of so many images of so many pixels, steps in a repetition, and repetitions."""

    images: int
    pixels: int
    steps: int
    repetitions: int


SIZES: dict[str, Size] = {
    "small": Size(images=16, pixels=64, steps=400, repetitions=5),
    "full": Size(images=32, pixels=256, steps=200, repetitions=3),
}

MEANINGS: dict[str, str] = {
    "recorder_ratio": "a plain training loop, recorded / the same loop",
    "look_ratio": "a step at which values are looked at (one in 20) / the same step",
    "examination_ratio": "a step at which gradients are examined too (one in 200) / the same step",
}


def run(size: Size, threads: int, report: Report) -> None:
    """Measure everything; the numbers go into the report."""
    report.conditions |= asdict(size) | {"precision": "fp32", "device": "cpu", "network": "tiny_ladeda"}
    with thread_count(threads), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plain, recorded = loop(size), loop(size, folder / "run.jsonl")
        pairs = alternate(lambda: recorded(size.steps), lambda: plain(size.steps), size.repetitions)
        report.add("recorder_ratio", pairs)
        for name, every, few in (("look_ratio", size.steps * 100, 20), ("examination_ratio", 1, 10)):
            dense = loop(size, folder / f"{name}.jsonl", every=every, look_every=1)
            few = min(few, size.steps)
            report.add(name, alternate(lambda d=dense, n=few: d(n), lambda n=few: plain(n), size.repetitions))
        report.seconds["step"] = float(np.median([plain_.wall for _, plain_ in pairs])) / size.steps


def loop(size: Size, path: Path | None = None, **options: int) -> Callable[[int], None]:
    """A student that learns from maps in memory; `work(n)` takes n steps. Warm when it is returned."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size.images, 3, size.pixels, size.pixels, generator=generator)
    y = (torch.arange(size.images) % 2).float()
    model, _ = build("tiny_ladeda", None, "raw", seed=0)
    with torch.no_grad():
        target = 20 * torch.randn(model(x).shape, generator=generator)
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    recorder = TrainingRecorder(path, model, optimizer, **options) if path is not None else None

    def work(steps: int) -> None:
        for _ in range(steps):
            patches = model(x)
            logits = patches.mean((1, 2, 3))
            distill = F.mse_loss(patches, target)
            task = F.binary_cross_entropy_with_logits(logits, y)
            loss = 0.5 * distill + 0.5 * task
            if recorder is not None:
                recorder.step(loss, distill=distill, task=task, logits=logits, labels=y,
                              student_patches=patches, teacher_patches=target)  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if recorder is not None:
            recorder.epoch()

    work(2)
    return work
