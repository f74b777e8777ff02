"""Trains one arm with torchdistill; runs in the peer's own environment. Usage: peer_script.py SETTINGS.

As in `plain.py` it is given the workbook's networks, memory format, start and images; the loop, the hooks, the losses
and the schedule are torchdistill's. Prints one line of JSON: seconds without imports, training losses, version.
"""

import importlib.metadata
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import RandomSampler
from torchdistill.core.distillation import get_distillation_box
from torchdistill.core.training import get_training_box
from torchdistill.losses.registry import register_low_level_loss

from benchmarks.plain import EPS, Folder, validate
from diag_lib.models import build_student, build_teacher
from diag_lib.settings import Settings, load


@register_low_level_loss
class PooledBce(nn.Module):
    """BCE of the mean patch logit."""

    def forward(self, patches: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(patches.mean((1, 2, 3)), labels.float())


@register_low_level_loss
class PatchMse(nn.Module):
    """MSE of the student's patches on LaDeDa9's grid, if asked after normalising both by the batch."""

    def __init__(self, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, patches: Tensor, teacher: Tensor) -> Tensor:
        aligned = F.avg_pool2d(patches, 3, stride=4)
        if self.normalize:
            aligned, teacher = ((m - m.mean()) / (m.std() + EPS) for m in (aligned, teacher))
        return F.mse_loss(aligned, teacher)


def stage(settings: Settings, number: int, part: str) -> dict[str, Any]:
    """torchdistill's configuration of stage 1 or 2; `part` names the trained model there."""
    t, chosen = settings.training, settings.training.distillation
    epochs, rate = ((t.epochs_s1, t.lr_s1), (t.epochs_s2, t.lr_s2))[number - 1]
    names = settings.student.trainable_s1 if number == 1 else settings.student.trainable_s2
    frozen = (
        [] if "all" in names else [m for m in ("conv1", "conv2", "bn1", "layer1", "fc") if m not in names]
    )
    student = {"is_from_teacher": False, "module_path": ".", "io": "output"}
    terms = {"task": {
        "criterion": {"key": "PooledBce", "kwargs": {}},
        "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": {"input": student, "target": {"uses_label": True}}},
        "weight": chosen.alpha_task,
    }}  # fmt: skip
    if chosen.alpha_distill > 0:
        target = {"is_from_teacher": True, "module_path": ".", "io": "output"}
        terms["distill"] = {
            "criterion": {"key": "PatchMse", "kwargs": {"normalize": chosen.normalize != "none"}},
            "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": {"input": student, "target": target}},
            "weight": chosen.alpha_distill,
        }
    plateau = {"key": "ReduceLROnPlateau", "kwargs": {"mode": "max", "factor": 0.5, "patience": 2}}
    cosine = {"key": "CosineAnnealingLR", "kwargs": {"T_max": max(1, epochs)}}
    loader = {
        "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
        "kwargs": {"batch_size": t.batch_size},
    }
    forward = {"forward_proc": "forward_batch_only"}
    return {
        "num_epochs": epochs,
        "train_data_loader": {"dataset_id": "train", "requires_supp": True, **loader},
        "val_data_loader": {"dataset_id": "val", **loader},
        "teacher": {**forward, "requires_grad": False},
        part: {**forward, "frozen_modules": frozen},
        "optimizer": {"key": "Adam", "kwargs": {"lr": rate, "weight_decay": t.weight_decay}},
        "scheduler": plateau if number == 1 else cosine,
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }


def main(file: str) -> dict[str, Any]:
    """Train the arm of these settings."""
    settings = load(file)
    threads = settings.runtime.threads
    torch.set_num_threads(threads if isinstance(threads, int) else 1)
    wall, cpu = time.perf_counter(), time.process_time()
    t, root = settings.training, Path(settings.dataset.root)
    torch.manual_seed(t.seed)
    data = {split: Folder(root / split, settings) for split in ("train", "val")}
    student = build_student(settings, t.seed)[0].to(memory_format=torch.channels_last)
    distills = t.distillation.alpha_distill > 0
    part = "student" if distills else "model"
    stages = [number for number, epochs in ((1, t.epochs_s1), (2, t.epochs_s2)) if epochs]
    config = {f"stage{k + 1}": stage(settings, number, part) for k, number in enumerate(stages)}
    common = (data, config, torch.device("cpu"), None, False, 1)
    if distills:
        teacher = build_teacher(settings)[0].eval().to(memory_format=torch.channels_last)
        box = get_distillation_box(teacher, student, *common)
    else:
        box = get_training_box(student, *common)
    losses = []
    for epoch in range(t.epochs_s1 + t.epochs_s2):
        box.pre_epoch_process(epoch=epoch)
        total = 0.0
        for x, y, more in box.train_data_loader:
            x = x.contiguous(memory_format=torch.channels_last)
            loss = box.forward_process(x, y, more)
            box.post_forward_process(loss=loss)
            total += loss.item() * len(y)
        losses.append(total / len(data["train"]))
        box.post_epoch_process(metrics=validate(student, data["val"], t.batch_size))
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "losses": losses,
        "version": importlib.metadata.version("torchdistill"),
    }


if __name__ == "__main__":
    logging.disable(logging.INFO)
    print(json.dumps(main(sys.argv[1])))
