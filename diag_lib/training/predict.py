"""What does a network say about each image of a set?"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from diag_lib.device_memory import Portion, forward_in_parts
from diag_lib.devices import choose
from diag_lib.images import ImageSet, to_input
from diag_lib.models import PatchModel, pool
from diag_lib.progress import Bar
from diag_lib.settings import Settings
from diag_lib.training.data import EVALUATION_PIXELS


@dataclass(frozen=True)
class Prediction:
    """Raw image logits (n,), float64, and, when asked for, patch logits (n, 1, h, w), float32."""

    logits: npt.NDArray[np.float64]
    maps: torch.Tensor | None = None


@torch.inference_mode()
def predict(
    model: PatchModel,
    images: ImageSet,
    settings: Settings,
    *,
    maps: bool = False,
    train_mode: bool = False,
    progress: bool = False,
) -> Prediction:
    """Ask a network about every image as it is (view 0), in fp32, normalised and pooled as the settings say.

    The network is put back on its device and in its mode afterwards. `train_mode` asks it in train mode
    (batch statistics in BatchNorm; its running statistics are restored): a probe, not an evaluation.
    """
    device, before, was_training = choose(settings).device, next(model.parameters()).device, model.training
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    size = max(1, EVALUATION_PIXELS // images.image_size**2)
    logits, kept, portion = [torch.zeros(0, dtype=torch.float64)], [], Portion("prediction")
    model.to(device, memory_format=torch.channels_last).train(train_mode)  # type: ignore[call-overload]
    try:
        with Bar(total=len(images.frame), desc="evaluation", unit="image", disable=not progress) as bar:
            for start in range(0, len(images.frame), size):
                index = np.arange(start, min(start + size, len(images.frame)))
                x = to_input(
                    images.pixels(index).to(device),
                    settings.dataset.normalize_mean,
                    settings.dataset.normalize_std,
                )
                x = x.contiguous(memory_format=torch.channels_last)
                patches = portion.run(len(x), partial(forward_in_parts, model, x))
                logits.append(pool(patches.double(), settings.pooling))
                if maps:
                    kept.append(patches)
                bar.update(len(index))
    finally:
        model.to(before).train(was_training)
        if train_mode:
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    return Prediction(torch.cat(logits).numpy(), torch.cat(kept) if kept else None)
