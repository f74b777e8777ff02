"""Do the two losses pull the student the same way, and how far does a step move it?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from diag_lib.losses import LossParts
from diag_lib.models import batch_norms

SAMPLED_EPOCHS = 16  # epochs (evenly spread) in which one batch is examined; costs four backward passes each
EXAMINED_SHARE = 8  # one examined step in so many at most
SMALLEST_BATCH = 4  # fewer images cannot be halved
NORM_CELLS = 64  # cells a side of a map whose mean and variance are taken, of larger maps every other few
SMALLEST_VARIANCE = 1e-12  # a channel with less is constant


@dataclass(frozen=True)
class GradientSignals:
    """L2 norms of each loss's gradient (before its alpha) over the trained parameters, and cosines.

    `cosine` is between the two losses' gradients; `cosine_distill_halves` and `cosine_task_halves` are those
    of one loss between the two halves of the batch: how much of a direction is noise at this batch size.
    `cosine_normalized` is the first with that noise taken out: divided by the root of both losses'
    reliabilities 2c / (1 + c) (Spearman 1910, Brown 1910), which sampling may bring beyond 1; None where a
    loss's halves do not agree at all. None where a loss or a half is absent.
    """

    distill_norm: float | None
    task_norm: float
    cosine: float | None
    cosine_distill_halves: float | None
    cosine_task_halves: float | None
    cosine_normalized: float | None = None


def sampled_epochs(epochs: int, steps: int = EXAMINED_SHARE) -> set[int]:
    """The epochs in which one batch is examined: the first, and evenly spread ones to the last.

    With few steps an epoch there are fewer, so that at most every eighth step (and one at least) is examined.
    """
    count = min(epochs, SAMPLED_EPOCHS, max(1, epochs * steps // EXAMINED_SHARE))
    return {round(k * (epochs - 1) / max(1, count - 1)) for k in range(count)}


def gradient_signals(
    losses_of: Callable[[slice], LossParts],
    size: int,
    parameters: Sequence[nn.Parameter],
    add: Callable[[Tensor], Tensor] = lambda part: part,
) -> GradientSignals | None:
    """Gradients of both losses on both halves of a batch of `size` images that went forward already.

    `losses_of(rows)` computes the losses of those rows. Nothing of the training changes: no `.grad` is
    touched. `add` sums the parts that several processes have of a gradient. None for batches too small to halve,
    or when the losses do not reach the parameters.
    """
    if size < SMALLEST_BATCH:
        return None
    halves = [losses_of(slice(0, None, 2)), losses_of(slice(1, None, 2))]
    if not all(half.task.requires_grad for half in halves):
        return None
    task = [add(_flat_gradient(half.task, parameters)) for half in halves]
    distill = [add(_flat_gradient(half.distill, parameters)) for half in halves if half.distill is not None]
    whole_task = task[0] + task[1]
    whole_distill = distill[0] + distill[1] if distill else None
    cosine = None if whole_distill is None else _cosine(whole_distill, whole_task)
    halves_of = _cosine(*distill) if distill else None, _cosine(*task)
    return GradientSignals(
        None if whole_distill is None else float(whole_distill.norm() / 2),
        float(whole_task.norm() / 2),
        cosine,
        *halves_of,
        _without_noise(cosine, *halves_of),
    )


def _without_noise(cosine: float | None, *halves: float | None) -> float | None:
    """The cosine over the geometric mean of the reliabilities of both directions."""
    if cosine is None or any(half is None or half <= 0 for half in halves):
        return None
    reliabilities = [2 * half / (1 + half) for half in halves if half is not None]
    return cosine / math.sqrt(math.prod(reliabilities))


def _flat_gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(parameters, gradients, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().double() for p, g in pairs])


def _cosine(a: Tensor, b: Tensor) -> float | None:
    product = float(a.norm() * b.norm())
    return float(a @ b) / product if 0 < product < math.inf else None


def step_ratio(before: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> float | None:
    """||step|| / ||weights|| over the trained parameters."""
    moved = sum(
        float((p.detach() - old).double().square().sum()) for p, old in zip(parameters, before, strict=True)
    )
    length = sum(float(old.double().square().sum()) for old in before)
    return math.sqrt(moved / length) if length > 0 and math.isfinite(moved) else None


def parameter_deltas(
    initial: dict[str, Tensor], model: nn.Module, trained: set[str]
) -> dict[str, dict[str, float | bool]]:
    """For each parameter ||now - start||, the same relative to ||start||, and whether any stage trains it."""
    deltas: dict[str, dict[str, float | bool]] = {}
    for name, parameter in model.named_parameters():
        start = initial[name].double()
        moved = float((parameter.detach().cpu().double() - start).norm())
        length = float(start.norm())
        relative = moved / length if length else math.nan
        deltas[name] = {"delta": moved, "relative": relative, "trained": name in trained}
    return deltas


class Fit:
    """How well the student's patches follow the teacher's, gathered batch by batch in float64."""

    def __init__(self) -> None:
        self.sums = torch.zeros(6, dtype=torch.float64)

    @property
    def count(self) -> int:
        """Values compared so far."""
        return int(self.sums[0])

    def add(self, student: Tensor, teacher: Tensor) -> None:
        """Maps of the same shape on one grid."""
        s, t = student.detach().double().flatten(), teacher.detach().double().flatten()
        moments = [
            torch.tensor(float(s.numel())),
            s.sum(),
            t.sum(),
            (s * s).sum(),
            (t * t).sum(),
            (s * t).sum(),
        ]
        self.sums += torch.stack([moment.cpu().double() for moment in moments])

    def numbers(self, decompose: bool = False) -> dict[str, float]:
        """`mse`, `r2` = 1 - mse / Var(teacher), `rho` (Pearson over patches), means and standard deviations.

        `decompose` adds what the mse is made of: `mse_offset` (difference of the means, squared), `mse_scale`
        (of the standard deviations, squared) and `mse_pattern` = 2 sd sd (1 - rho). It says something only
        where the student is asked to meet the teacher's values, not merely their order or odds.
        """
        n, s, t, ss, tt, st = self.sums.tolist()
        if n == 0:
            return {}
        var_s, var_t, cov = ss / n - (s / n) ** 2, tt / n - (t / n) ** 2, st / n - s * t / n**2
        mse = (ss - 2 * st + tt) / n
        parts = {}
        if decompose:
            sd_s, sd_t = math.sqrt(max(var_s, 0.0)), math.sqrt(max(var_t, 0.0))
            parts = {
                "mse_offset": (s - t) ** 2 / n**2,
                "mse_scale": (sd_s - sd_t) ** 2,
                "mse_pattern": 2 * (sd_s * sd_t - cov),
            }
        return {
            "mse": mse,
            "r2": 1 - mse / var_t if var_t > 0 else math.nan,
            "rho": cov / math.sqrt(var_s * var_t) if var_s > 0 and var_t > 0 else math.nan,
            "student_mean": s / n,
            "student_std": math.sqrt(max(var_s, 0.0)),
            "teacher_mean": t / n,
            "teacher_std": math.sqrt(max(var_t, 0.0)),
            **parts,
        }


class Spread:
    """How far patch logits differ within images and between them; a collapsed student has no spread."""

    def __init__(self) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64)

    def add(self, maps: Tensor) -> None:
        """Patch logits (B, 1, h, w)."""
        x = maps.detach().flatten(1).double().cpu()
        means = x.mean(1)
        within = x.var(1, correction=0).sum()
        self.sums += torch.stack([torch.tensor(float(len(x))), within, means.sum(), means.square().sum()])

    def numbers(self) -> dict[str, float]:
        """Standard deviations: `within` images (root mean square) and `between` the means of images."""
        n, within, mean, square = self.sums.tolist()
        if n == 0:
            return {}
        return {"within": math.sqrt(within / n), "between": math.sqrt(max(square / n - (mean / n) ** 2, 0.0))}


class BatchNormInputs:
    """What the BatchNorm layers of a network really get, beside what they believe (their running statistics)."""

    def __init__(self, model: nn.Module) -> None:
        self.norms = batch_norms(model)
        self.sums = {name: torch.zeros(3, 1, dtype=torch.float64) for name in self.norms}
        self.handles = [
            norm.register_forward_pre_hook(partial(self._note, name)) for name, norm in self.norms.items()
        ]

    def _note(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        stride = (
            max(1, min(inputs[0].shape[2:], default=1) // NORM_CELLS) | 1
        )  # odd: blocks of two do not alias
        x = inputs[0].detach()[..., ::stride, ::stride].transpose(0, 1).flatten(1).float()
        var, mean = torch.var_mean(x, dim=1, correction=0)
        moments = torch.stack([torch.ones_like(mean), mean, var + mean.square()]).double().cpu()
        self.sums[name] = self.sums[name] + moments * x.shape[1]

    def close(self) -> None:
        """Take the hooks off again."""
        for handle in self.handles:
            handle.remove()

    def numbers(self) -> dict[str, dict[str, float]]:
        """For each layer the geometric mean of running / real variance over its channels, the largest distance
        of a running mean from the real one in real standard deviations, and how many batches it has counted."""
        found: dict[str, dict[str, float]] = {}
        for name, norm in self.norms.items():
            n, mean, square = self.sums[name]
            real, real_mean = square / n - (mean / n) ** 2, mean / n
            alive = real > SMALLEST_VARIANCE
            if norm.running_var is None or norm.running_mean is None or not bool(alive.any()):
                continue
            believed, believed_mean = (
                t.detach().cpu().double() for t in (norm.running_var, norm.running_mean)
            )
            ratio, shift = believed[alive] / real[alive], (believed_mean - real_mean)[alive].abs()
            found[name] = {
                "variance_ratio": float(ratio.log().mean().exp()),
                "mean_shift": float((shift / real[alive].sqrt()).max()),
                "batches": float(norm.num_batches_tracked)
                if norm.num_batches_tracked is not None
                else math.nan,
            }
        return found
