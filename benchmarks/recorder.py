"""What does recording a training cost? The same plain loop with and without `TrainingRecorder`."""

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
    "small": Size(images=16, pixels=64, steps=400, repetitions=9),
    "full": Size(images=32, pixels=256, steps=400, repetitions=3),
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
        work = loop(size, Path(temporary))
        pairs = alternate(lambda: work(size.steps, {}), lambda: work(size.steps), size.repetitions)
        report.add("recorder_ratio", pairs)
        few = min(size.steps, 40)
        for name, every in (("look_ratio", 10**9), ("examination_ratio", 1)):
            dense = {"every": every, "look_every": 1}
            report.add(name, alternate(lambda d=dense: work(few, d), lambda: work(few), size.repetitions))
        report.seconds["step"] = float(np.median([plain.wall for _, plain in pairs])) / size.steps


def loop(size: Size, folder: Path) -> Callable[..., None]:
    """A student that learns from maps in memory: `work(n)` takes n steps, `work(n, options)` records them.

    Both ways share network, optimiser and batch, so that they differ in nothing else. Warm when returned.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size.images, 3, size.pixels, size.pixels, generator=generator)
    y = (torch.arange(size.images) % 2).float()
    model = build("tiny_ladeda", None, "raw", seed=0)[0].train()
    with torch.no_grad():
        target = 20 * torch.randn(model(x).shape, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def steps(count: int, recorder: TrainingRecorder | None) -> None:
        for _ in range(count):
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

    def work(count: int, options: dict[str, int] | None = None) -> None:
        if options is None:
            return steps(count, None)
        with TrainingRecorder(folder / "run.jsonl", model, optimizer, **options) as recorder:
            steps(count, recorder)
            recorder.epoch()

    work(2, {"every": 1})
    work(2)
    return work
