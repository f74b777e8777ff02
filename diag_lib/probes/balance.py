"""With other weights, another loss or another scale: which of the two losses would rule the student, and do they agree?

Everything is computed on captured patch logits, so that every choice is answered at once, without training.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diag_lib.losses import KEEPS_IMAGE_MEAN, LogitScale, weighted_loss
from diag_lib.models.pooling import PoolingSettings, pool

Maps = npt.NDArray[np.float32]
SIDE_BY_SIDE = 0.2  # cosines nearer to 0 than this: the losses ask for unrelated things


@dataclass(frozen=True)
class Choice:
    """What a person may choose on the board; `alpha_task` is the rest to 1."""

    alpha_distill: float
    loss: str = "mse"
    normalize: str = "none"
    temperature: float = 1.0

    @property
    def alpha_task(self) -> float:
        return 1.0 - self.alpha_distill


@dataclass(frozen=True)
class Terms:
    """Both losses without their weights, the L2 norms of their gradients with respect to the student's patch
    logits, and the cosine between these gradients (NaN where one of them is zero)."""

    distill: float
    task: float
    distill_norm: float
    task_norm: float
    cosine: float


@dataclass(frozen=True)
class Balance:
    """Weighted terms and the distillation's shares (0..1, NaN where everything is zero) of loss and gradient.

    The share of the gradient is that of the norms: |g_distill| / (|g_distill| + |g_task|), both weighted.
    `even_loss` and `even_gradient` are the alpha_distill at which each share would be one half.
    """

    distill: float
    task: float
    total: float
    loss_share: float
    gradient_share: float
    cosine: float
    even_loss: float
    even_gradient: float


def terms(
    student: Maps,
    teacher: Maps,
    labels: npt.NDArray[np.int64],
    choice: Choice,
    pooling: PoolingSettings,
    scale: LogitScale,
) -> Terms:
    """Both losses on captured maps, taken as one batch, and their gradients by autograd.

    Parameters
    ----------
    student, teacher : patch logits (images, patches) on one grid; images with a value that is not finite are
        left out. Raises ValueError when none is left.
    labels : (images,) 0 = real, 1 = fake.
    scale : the teacher's dataset-level scale, used by center, standardize and robust.

    The student's image logit is pooled from the map on the teacher's grid.
    """
    good = np.isfinite(student).all(axis=1) & np.isfinite(teacher).all(axis=1)
    if not good.any():
        raise ValueError("no image has finite patch logits on both sides")
    maps = _as_maps(student[good]).requires_grad_()
    truth = torch.as_tensor(labels[good])
    parts = weighted_loss(maps, _as_maps(teacher[good]), pool(maps, pooling), truth, choice, scale)
    assert parts.distill is not None
    pulls = [torch.autograd.grad(part, maps, retain_graph=True)[0] for part in (parts.distill, parts.task)]
    norms = [float(pull.norm()) for pull in pulls]
    inner = float((pulls[0] * pulls[1]).sum())
    cosine = inner / (norms[0] * norms[1]) if min(norms) > 0 else math.nan
    return Terms(float(parts.distill.detach()), float(parts.task.detach()), norms[0], norms[1], cosine)


def balance(found: Terms, alpha_distill: float) -> Balance:
    """The terms weighted with `alpha_distill` and 1 - `alpha_distill`."""
    distill, task = alpha_distill * found.distill, (1 - alpha_distill) * found.task
    return Balance(
        distill,
        task,
        distill + task,
        share(found.distill, found.task, alpha_distill),
        share(found.distill_norm, found.task_norm, alpha_distill),
        found.cosine,
        _even(found.distill, found.task),
        _even(found.distill_norm, found.task_norm),
    )


def share(distill: float, task: float, alpha_distill: float) -> float:
    """alpha distill / (alpha distill + (1 - alpha) task); NaN where both are zero."""
    weighted = alpha_distill * distill, (1 - alpha_distill) * task
    return weighted[0] / sum(weighted) if sum(weighted) > 0 else math.nan


def reading(found: Balance, choice: Choice) -> str:
    """The guide's reading of the balance in a few sentences, one paragraph on the shares, one on the scale."""
    return f"{headline(found)}. {_even_text(found, choice)} {_cosine_text(found)}\n\n{_mean_text(choice)}"


def headline(found: Balance) -> str:
    """Who takes what, in one short sentence without its full stop."""
    if math.isnan(found.loss_share) or math.isnan(found.gradient_share):
        return "With these weights nothing pulls the student"
    return (
        f"The distillation takes {percent(found.loss_share)} of the loss "
        f"and {percent(found.gradient_share)} of the gradient"
    )


def percent(part: float) -> str:
    """A share with as many digits as it takes to tell it from all or nothing."""
    if part in (0.0, 1.0):
        return f"{part:.0%}"
    if part < 0.001:
        return "less than 0.1%"
    if part > 0.999:
        return "more than 99.9%"
    return f"{part:.1%}" if part < 0.1 or part > 0.9 else f"{part:.0%}"


def rounded(value: float) -> str:
    """Two decimals, and no minus before a zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def _even_text(found: Balance, choice: Choice) -> str:
    if math.isnan(found.even_gradient):
        return "One of the two losses has no gradient here."
    even = "below 0.001" if found.even_gradient < 0.001 else f"about {found.even_gradient:.2g}"
    if found.even_gradient > 0.999:
        even = "above 0.999"
    return f"Both would pull equally hard at alpha_distill {even} (now {choice.alpha_distill:g})."


def _cosine_text(found: Balance) -> str:
    if math.isnan(found.cosine):
        return ""
    if found.cosine < -SIDE_BY_SIDE:
        said = "they contradict each other"
    elif found.cosine < SIDE_BY_SIDE:
        said = "teacher and labels ask for unrelated things"
    else:
        said = "they agree"
    return f"The cosine of the two gradients is {rounded(found.cosine)}: {said}. A large share alone is no fault."


def _mean_text(choice: Choice) -> str:
    if KEEPS_IMAGE_MEAN[choice.normalize]:
        return f"Normalisation {choice.normalize} keeps the image means apart, and with them the teacher's verdict."
    return (
        f"Normalisation {choice.normalize} erases the image mean, which is the teacher's verdict about the image: "
        "the student learns only where in a picture the teacher sees more."
    )


def _even(distill: float, task: float) -> float:
    return task / (distill + task) if distill > 0 and task > 0 else math.nan


def _as_maps(flat: Maps) -> Tensor:
    return torch.as_tensor(flat, dtype=torch.float64)[:, None, :, None]
