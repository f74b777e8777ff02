"""The plain way, which the workbook is measured against: a PyTorch script that trains one arm a run.

It is what the training of the weighted distillation looks like without a cache: files are decoded every
epoch, the teacher answers at every step of an arm that uses it, and the next arm starts from nothing. To
compare nothing but that, it is given the workbook's own networks (folded stem), channels_last memory, the
same start and the same batches.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from diag_lib.images import epoch_batches
from diag_lib.models import build_student, build_teacher
from diag_lib.settings import Settings

EPS = 1e-8


class Folder(Dataset[tuple[Tensor, float]]):
    """Normalised images of `root/real` (0) and `root/fake` (1), in the order of their names."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.files = [(file, label) for label, name in enumerate(("real", "fake"))
                      for file in sorted((root / name).iterdir())]  # fmt: skip
        self.files.sort(key=lambda item: item[0].relative_to(root).as_posix())
        data = settings.dataset
        self.size = (data.image_size, data.image_size)
        self.mean = np.asarray(data.normalize_mean, np.float32)
        self.std = np.asarray(data.normalize_std, np.float32)
        self.flips = data.augment == "flip" and root.name == data.train_split

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, float]:
        file, label = self.files[index]
        image = Image.open(file).convert("RGB")
        if image.size != self.size:
            image = image.resize(self.size, Image.Resampling.BICUBIC)
        if self.flips and torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = (np.asarray(image, np.float32) / 255 - self.mean) / self.std
        return torch.from_numpy(x.transpose(2, 0, 1)), float(label)


def train_plain(settings: Settings) -> list[float]:
    """Train the arm of these settings from nothing; the mean training loss of each epoch."""
    t, chosen = settings.training, settings.training.distillation
    root = Path(settings.dataset.root)
    train, val = (Folder(root / split, settings) for split in ("train", "val"))
    student = build_student(settings, t.seed)[0].to(memory_format=torch.channels_last)
    teacher = None
    if chosen.alpha_distill > 0:
        teacher = build_teacher(settings)[0].eval().to(memory_format=torch.channels_last)
    losses, epoch = [], 0
    stages = ((t.epochs_s1, t.lr_s1, settings.student.trainable_s1),
              (t.epochs_s2, t.lr_s2, settings.student.trainable_s2))  # fmt: skip
    for stage, (epochs, rate, names) in enumerate(stages):
        trainable(student, names)
        optimizer = torch.optim.Adam(
            [p for p in student.parameters() if p.requires_grad], lr=rate, weight_decay=t.weight_decay
        )
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=2)
        for _ in range(epochs):
            student.train()
            total = 0.0
            for x, y in batches(train, epoch_batches(len(train), t.batch_size, t.seed, epoch)):
                loss = loss_of(settings, student(x), None if teacher is None else ask(teacher, x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(y)
            losses.append(total / len(train))
            score = validate(student, val, t.batch_size)
            plateau.step(score) if stage == 0 else cosine.step()
            epoch += 1
    return losses


def trainable(model: nn.Module, names: tuple[str, ...] | list[str]) -> None:
    """Let only the named layers train."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("all" in names or name.split(".")[0] in names)


def batches(images: Folder, order: list[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
    """The images in batches of the given indices."""
    loader = DataLoader(images, batch_sampler=[batch.tolist() for batch in order])
    for x, y in loader:
        yield x.contiguous(memory_format=torch.channels_last), y.float()


@torch.no_grad()
def ask(teacher: nn.Module, x: Tensor) -> Tensor:
    """The teacher's patch logits (B, 1, h, w)."""
    maps: Tensor = teacher(x)
    return maps


def loss_of(settings: Settings, patches: Tensor, teacher: Tensor | None, y: Tensor) -> Tensor:
    """alpha_distill x MSE to the teacher's patches + alpha_task x BCE of the pooled logits.

    Any normalisation of the settings is the one of a script without a second pass: that of the batch.
    """
    chosen = settings.training.distillation
    loss = chosen.alpha_task * F.binary_cross_entropy_with_logits(patches.mean((1, 2, 3)), y)
    if teacher is None:
        return loss
    aligned = F.avg_pool2d(patches, 3, stride=4)  # LaDeDa9's grid over Tiny-LaDeDa's
    if chosen.normalize != "none":
        aligned, teacher = ((m - m.mean()) / (m.std() + EPS) for m in (aligned, teacher))
    return loss + chosen.alpha_distill * F.mse_loss(aligned, teacher)


@torch.inference_mode()
def validate(student: nn.Module, val: Folder, size: int) -> float:
    """AUC on the validation images."""
    student.eval()
    order = [np.arange(at, min(at + size, len(val))) for at in range(0, len(val), size)]
    answers = [(student(x).mean((1, 2, 3)), y) for x, y in batches(val, order)]
    scores, labels = (torch.cat(part) for part in zip(*answers, strict=True))
    return float(roc_auc_score(labels.numpy(), scores.double().numpy()))
