"""Which loss is the student trained with, and what does each choice do to the label in the teacher's logits?

Patch logits are (B, 1, h, w), one raw logit a patch, so losses for several classes do not apply: a softmax
over one logit is constant and its KL identically zero. A new loss or normalisation is one function and one
entry in its table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diag_lib.errors import UserError
from diag_lib.user_code import imported, require_trust

MAD_TO_SD = 1.4826  # sd of a normal distribution over its median absolute deviation
GUIDE_EPS = 1e-8  # of the guide's snippet for `batch`
HUBER_DELTA = 1.0


@dataclass(frozen=True)
class LogitScale:
    """Location and spread of all patch logits of a dataset; `mad` is the raw median absolute deviation."""

    mean: float
    std: float
    median: float
    mad: float

    @staticmethod
    def of(maps: Tensor) -> "LogitScale":
        """The scale of patch logits of any shape, of its finite values (mean 0, sd 1 if there are none)."""
        x = maps.detach().cpu().double().flatten().numpy()
        x = x[np.isfinite(x)]
        if x.size == 0:
            return LogitScale(0.0, 1.0, 0.0, 1.0)
        median = float(np.median(x))
        return LogitScale(float(x.mean()), float(x.std()), median, float(np.median(np.abs(x - median))))

    @property
    def plain_divisor(self) -> float:
        """The standard deviation; 1 for a constant teacher, which has no scale."""
        return self.std if self.std > GUIDE_EPS else 1.0

    @property
    def robust_divisor(self) -> float:
        """1.4826 mad; the standard deviation where more than half of the logits are equal."""
        return MAD_TO_SD * self.mad if self.mad > GUIDE_EPS else self.plain_divisor


@dataclass(frozen=True)
class LossParts:
    """Scalars: `total` = alpha_distill x distill + alpha_task x task; `distill` is None without a teacher."""

    total: Tensor
    distill: Tensor | None
    task: Tensor


class Weights(Protocol):
    """What `weighted_loss` reads of the settings (`training.distillation`)."""

    @property
    def alpha_distill(self) -> float: ...
    @property
    def alpha_task(self) -> float: ...
    @property
    def loss(self) -> str: ...
    @property
    def normalize(self) -> str: ...
    @property
    def temperature(self) -> float: ...


def weighted_loss(
    student: Tensor | None,
    teacher: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    weights: Weights,
    scale: LogitScale | None = None,
) -> LossParts:
    """The weighted sum of distillation loss and BCE.

    Parameters
    ----------
    student, teacher : patch logits (B, 1, h, w) on one grid, or None for the task loss alone.
    logits, labels : pooled student logits (B,), labels (B,) 0 = real, 1 = fake.
    weights : the section `training.distillation` of the settings.
    scale : the teacher's dataset-level scale; needed by center, standardize and robust.

    A term whose weight is 0 is reported but takes no part in the sum, not even as 0 x inf.
    """
    task = F.binary_cross_entropy_with_logits(logits, labels.to(logits))
    distill = None
    if student is not None and teacher is not None:
        distill = distillation_loss(student, teacher, weights, scale)
    terms = [(weights.alpha_distill, distill), (weights.alpha_task, task)]
    parts = [alpha * term for alpha, term in terms if alpha > 0 and term is not None]
    total = torch.stack(parts).sum() if parts else 0.0 * task
    return LossParts(total, distill, task)


def distillation_loss(
    student: Tensor, teacher: Tensor, weights: Weights, scale: LogitScale | None = None
) -> Tensor:
    """The unweighted distillation loss, a scalar; gradients flow into the student alone.

    Raises ValueError when the shapes differ (broadcasting would pair wrong patches) or the scale is missing.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be aligned first"
        )
    if scale is None:
        if weights.normalize in NEEDS_SCALE:
            raise ValueError(f"normalize: {weights.normalize} needs the teacher's dataset-level scale")
        scale = LogitScale(0.0, 1.0, 0.0, 1.0)
    s, t = NORMALIZATIONS[weights.normalize](student, teacher.detach().to(student), scale)
    return named_loss(weights.loss)(s, t, weights.temperature)


@cache
def named_loss(name: str) -> "Loss":
    """The loss of that name: an entry of `DISTILLATION_LOSSES`, or `package.module:function` of the user's own.

    Raises UserError for code that the user has not allowed or that does not give a scalar with a gradient.
    """
    if ":" not in name:
        return DISTILLATION_LOSSES[name]
    what = f"loss {name!r}"
    require_trust(what)
    loss: Loss = imported(name, what)
    probe = torch.linspace(-1, 1, 36).reshape(2, 2, 3, 3)[:, :1].clone().requires_grad_()
    try:
        value = loss(probe, probe.detach().flip(0), 1.0)
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f"{what} failed on maps (2, 1, 3, 3): {type(error).__name__}: {error}") from None
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        raise UserError(f"{what} must return a scalar tensor with a gradient to the student")
    return loss


# ---- losses: (student, teacher, temperature) -> scalar


def mse(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean squared error over all patches; a constant offset or a factor costs as much as wrong content."""
    return F.mse_loss(student, teacher)


def huber(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Squared for errors below 1 logit, linear beyond (Huber 1964): a few extreme patches cannot rule it."""
    return F.huber_loss(student, teacher, delta=HUBER_DELTA)


def bernoulli_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(sigmoid(teacher / T) || sigmoid(student / T)) a patch, averaged.

    The two-class form of Hinton et al. (2015) for a single logit; T^2 keeps the gradient's size as T grows.
    A teacher far beyond T is a hard label: how far beyond makes no difference.
    """
    s, t = student / temperature, teacher / temperature
    fake = torch.sigmoid(t) * (F.logsigmoid(t) - F.logsigmoid(s))
    real = torch.sigmoid(-t) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * (fake + real).mean()


def correlation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """1 - Pearson's correlation over all patches of the batch: blind to offset and (positive) factor.

    Between-image differences, which carry the label, count like differences within an image. A constant side
    has correlation 0.
    """
    s, t = student - student.mean(), teacher - teacher.mean()
    s = s / torch.sqrt((s * s).mean() + GUIDE_EPS)
    t = t / torch.sqrt((t * t).mean() + GUIDE_EPS)
    return 1 - (s * t).mean()


# ---- normalisations: (student, teacher, scale) -> (student, teacher)


def none(student: Tensor, teacher: Tensor, scale: LogitScale) -> tuple[Tensor, Tensor]:
    """Raw logits. Image means, and with them the label, stay as the teacher gave them."""
    return student, teacher


def center(student: Tensor, teacher: Tensor, scale: LogitScale) -> tuple[Tensor, Tensor]:
    """Teacher minus its dataset mean: one constant for all, so every difference between images stays."""
    return student, teacher - scale.mean


def standardize(student: Tensor, teacher: Tensor, scale: LogitScale) -> tuple[Tensor, Tensor]:
    """Teacher shifted and scaled to mean 0, sd 1 over the dataset; the order of image means stays."""
    return student, (teacher - scale.mean) / scale.plain_divisor


def robust(student: Tensor, teacher: Tensor, scale: LogitScale) -> tuple[Tensor, Tensor]:
    """Like standardize with median and 1.4826 mad: a few extreme patches do not set the scale."""
    return student, (teacher - scale.median) / scale.robust_divisor


def batch(student: Tensor, teacher: Tensor, scale: LogitScale) -> tuple[Tensor, Tensor]:
    """Both sides to mean 0, sd 1 over the batch, as in the guide's snippet.

    Differences between the images of a batch stay; what the whole batch has in common (one label, say) goes,
    and the student's scale is left to the task loss.
    """
    return _to_unit(student), _to_unit(teacher)


def layer(student: Tensor, teacher: Tensor, scale: LogitScale) -> tuple[Tensor, Tensor]:
    """Both sides to mean 0, sd 1 over each map (layer norm): this erases the image mean, which is the label.

    What remains to learn is where in an image the teacher sees more, not which image.
    """
    shape = student.shape[1:]
    return F.layer_norm(student, shape), F.layer_norm(teacher, shape)


def _to_unit(x: Tensor) -> Tensor:
    spread = x.std() if x.numel() > 1 else x.new_zeros(())
    return (x - x.mean()) / (spread + GUIDE_EPS)


Loss = Callable[[Tensor, Tensor, float], Tensor]
Normalization = Callable[[Tensor, Tensor, LogitScale], tuple[Tensor, Tensor]]

DISTILLATION_LOSSES: dict[str, Loss] = {
    "mse": mse,
    "huber": huber,
    "bernoulli_kl": bernoulli_kl,
    "correlation": correlation,
}
"""Values of `training.distillation.loss` (beside the user's own); of these only bernoulli_kl uses the temperature."""

NORMALIZATIONS: dict[str, Normalization] = {
    "none": none,
    "center": center,
    "standardize": standardize,
    "robust": robust,
    "batch": batch,
    "layer": layer,
}
"""Values of `training.distillation.normalize`."""

NEEDS_SCALE = frozenset({"center", "standardize", "robust"})

KEEPS_IMAGE_MEAN: dict[str, bool] = {
    "none": True,
    "center": True,
    "standardize": True,
    "robust": True,
    "batch": True,
    "layer": False,
}
"""Whether the teacher's image means, its verdict about each image, can still be told apart afterwards."""
