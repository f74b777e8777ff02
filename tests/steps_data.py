"""A tiny dataset and settings on which the training steps run in seconds."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from diag_lib.models import build, save_weights
from diag_lib.settings import Settings

SIZE = 32


def write_images(
    root: Path,
    train: int = 40,
    val: int = 40,
    *,
    seed: int = 0,
    shuffle_train: bool = False,
    signal: bool = True,
) -> Path:
    """Real: white noise. Fake: the same noise, smoothed. `train` and `val` images a class."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        labels = np.repeat([0, 1], count)
        shown = rng.permutation(labels) if shuffle_train and split == "train" else labels
        for name in ("real", "fake"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
        for number, (truth, label) in enumerate(zip(labels, shown, strict=True)):
            noise = torch.tensor(rng.normal(128, 50, (1, 3, SIZE + 2, SIZE + 2)))
            smooth = F.avg_pool2d(noise, 3, stride=1)
            picture = (128 + 2.2 * (smooth - 128)) if truth and signal else noise[..., 1:-1, 1:-1]
            pixels = picture[0].permute(1, 2, 0).clamp(0, 255).to(torch.uint8).numpy()
            Image.fromarray(pixels).save(root / split / ("real", "fake")[label] / f"{number:04d}.png")
    return root


def write_teacher(path: Path, gain: float = 20.0) -> Path:
    """A random patch-logit teacher with loud logits: it knows nothing that was taught to it."""
    teacher, _ = build("tiny_ladeda", None, "NPR", seed=5)
    with torch.no_grad():
        teacher.fc.weight.mul_(gain)
    save_weights(teacher, path)
    return path


def tiny_settings(tmp: Path, **overrides: Any) -> Settings:
    """Settings for the dataset in `tmp/data` and the teacher in `tmp/teacher.safetensors`."""
    return Settings().with_overrides(
        {
            "dataset.root": str(tmp / "data"),
            "dataset.image_size": SIZE,
            "dataset.augment": "none",
            "teacher.arch": "tiny_ladeda",
            "teacher.weights": str(tmp / "teacher.safetensors"),
            "student.trainable_s1": ["all"],
            "student.trainable_s2": ["all"],
            "training.batch_size": 16,
            "training.epochs_s1": 1,
            "training.epochs_s2": 5,
            "training.lr_s1": 5e-3,
            "training.lr_s2": 5e-3,
            "runtime.device": "cpu",
            "runtime.threads": 1,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
    )
