"""A training loop of a second, recorded, whose parts a test may replace."""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diag_lib.recorder import TrainingRecorder
from diag_lib.recorder_signals import rank_auc

SIZE, BATCH = 12, 16


class Net(nn.Module):
    """Patch logits (B, 1, 4, 4) of images (B, 3, 12, 12)."""

    def __init__(self, dropout: float = 0.0, auxiliary: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.drop = nn.Dropout(dropout)
        self.head = nn.Conv2d(8, 1, 3, stride=2)
        self.unused = nn.Linear(2, 2) if auxiliary else None
        self.cut = False

    def forward(self, x: Tensor) -> Tensor:
        features = self.drop(self.stem(x))
        return self.head(features.detach() if self.cut else features)


def scene(images: int = 128, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise (real, 0) and smoothed noise of the same spread (fake, 1), in turns."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images, 3, SIZE + 2, SIZE + 2, generator=generator)
    smooth = 2 * F.avg_pool2d(noise, 3, stride=1)
    labels = torch.arange(images) % 2
    return torch.where(labels[:, None, None, None] == 1, smooth, noise[..., 1:-1, 1:-1]), labels


def teacher_maps(x: Tensor, gain: float = 5.0) -> Tensor:
    """A teacher that knows: local smoothness on the student's grid."""
    rough = (x - F.avg_pool2d(x, 3, stride=1, padding=1)).square().mean(1, keepdim=True)
    return gain * (0.7 - F.avg_pool2d(rough, 5, stride=2)[..., :4, :4])


def network(seed: int = 1, **options: Any) -> Net:
    torch.manual_seed(seed)
    return Net(**options)


def train(
    path: Path | None,
    *,
    epochs: int = 4,
    lr: float = 0.01,
    alpha: float = 0.5,
    model: Net | None = None,
    distill: Any = F.mse_loss,
    task: Any = F.binary_cross_entropy_with_logits,
    total: Any = None,
    outputs: Any = lambda patches: patches,
    optimised: Any = lambda model: model.parameters(),
    reported: Any = lambda y, z, epoch: rank_auc(y, z),
    evaluated: Any = lambda model, start, epoch: model,
    before_validation: Any = lambda model, epoch: None,
    after_validation: Any = lambda model, epoch: None,
    step_arguments: Any = lambda arguments: arguments,
    call: str = "before",
    wrap: Any = lambda model, optimizer: (model, optimizer),
    accumulate: int = 1,
    teacher: Any = teacher_maps,
    every: int = 5,
    look_every: int = 2,
    **options: Any,
) -> tuple[Net, torch.optim.Optimizer]:
    """Train on the scene, recorded at `path` (None: not recorded); returns network and optimiser."""
    (x, y), (vx, vy) = scene(), scene(96, seed=1)
    target = teacher(x)
    own = network() if model is None else model
    start = copy.deepcopy(own)
    inner = torch.optim.Adam(optimised(own), lr)
    model_, optimizer = wrap(own, inner)
    recorder = None
    if path is not None:
        recorder = TrainingRecorder(path, model_, optimizer, every=every, look_every=look_every, **options)
    for epoch in range(epochs):
        model_.train()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for number, rows in enumerate(order.split(BATCH)):
            patches = outputs(model_(x[rows]))
            logits, labels = patches.mean((1, 2, 3)), y[rows].float()
            parts = {"distill": distill(patches, target[rows]), "task": task(logits, labels)}
            loss = total(**parts) if total else alpha * parts["distill"] + (1 - alpha) * parts["task"]
            given = step_arguments({"loss": loss, **parts, "logits": logits, "labels": labels,
                                    "student_patches": patches, "teacher_patches": target[rows]})  # fmt: skip
            if recorder and call == "before":
                recorder.step(**given)
            (loss / accumulate).backward() if loss.requires_grad else None
            if (number + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
            if recorder and call == "after":
                recorder.step(**given)
        before_validation(own, epoch)
        judged = evaluated(model_, start, epoch)
        judged.eval()
        with torch.no_grad():
            maps = outputs(judged(vx))
        scores = maps.mean((1, 2, 3))
        after_validation(own, epoch)
        if recorder:
            recorder.epoch(val_auc=reported(vy, scores, epoch), val_logits=scores, val_labels=vy, val_patches=maps,
                           evaluated=judged if judged is not model_ else None)  # fmt: skip
    if recorder:
        recorder.close()
    return own, inner
