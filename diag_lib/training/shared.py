"""What do several students compute alike? Their frozen first layers, which then one of them computes for all.

The guide's schedule never trains the stem of Tiny-LaDeDa, so that arms which start alike keep the same stem to the
last epoch. Its output at full resolution is about half of a student's forward pass. Nothing changes but the time:
only students whose stems are equal to the bit share, and each goes on from what it would have computed.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diag_lib.models import PatchModel
from diag_lib.models.ladeda import patch_head, stem
from diag_lib.models.tiny_ladeda import TinyLaDeDa


def stem_features(models: Sequence[PatchModel], x: Tensor) -> list[Tensor | None]:
    """The stem's output for each model that shares one, None for the others; the modes are the models' own.

    In train mode the stem's BatchNorm counts the batch, once for every model.
    """
    groups: list[list[int]] = []
    for number, model in enumerate(models):
        home = next((group for group in groups if _alike(models[group[0]], model)), None)
        if home is None:
            groups.append([number])
        else:
            home.append(number)
    found: list[Tensor | None] = [None] * len(models)
    for first, *others in groups:
        leader = models[first]
        if not others or not isinstance(leader, TinyLaDeDa):
            continue
        with torch.no_grad():
            features = F.relu(leader.bn1(stem(leader.prepare(x), leader.conv1, leader.conv2)), inplace=True)
            for number in others if leader.bn1.training else ():
                for mine, its in zip(_buffers(models[number]), _buffers(leader), strict=True):
                    mine.copy_(its)
        for number in (first, *others):
            found[number] = features
    return found


def patch_logits(model: PatchModel, x: Tensor, features: Tensor | None) -> Tensor:
    """The model's patch logits (B, 1, h, w), from the features where it shares them."""
    if features is None or not isinstance(model, TinyLaDeDa):
        logits: Tensor = model(x)
        return logits
    return patch_head(model.layer1(features), model.fc)


def _alike(one: PatchModel, other: PatchModel) -> bool:
    """Whether both have the same frozen stem, to the bit."""
    if type(one) is not TinyLaDeDa or type(other) is not TinyLaDeDa:
        return False
    plain = all(
        (one.preprocess, one.input_scale, one.bn1.training, one.bn1.momentum)
        == (model.preprocess, model.input_scale, model.bn1.training, model.bn1.momentum)
        and not any(p.requires_grad and torch.is_grad_enabled() for p in _stem(model)[:4])
        for model in (one, other)
    )
    return plain and all(torch.equal(a, b) for a, b in zip(_stem(one), _stem(other), strict=True))


def _stem(model: TinyLaDeDa) -> list[Tensor]:
    return [model.conv1.weight, model.conv2.weight, model.bn1.weight, model.bn1.bias, *_buffers(model)]


def _buffers(model: PatchModel) -> list[Tensor]:
    assert isinstance(model, TinyLaDeDa)
    return list(model.bn1.buffers())
