"""Do the two losses pull the student the same way, and how far does a step move it?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diag_lib.losses import LossParts

SAMPLED_EPOCHS = 16  # epochs (evenly spread) in which one batch is examined; costs four backward passes each
SMALLEST_BATCH = 4  # fewer images cannot be halved


@dataclass(frozen=True)
class GradientSignals:
    """L2 norms of each loss's gradient (before its alpha) over the trained parameters, and cosines.

    `cosine` is between the two losses' gradients; `cosine_distill_halves` and `cosine_task_halves` are those
    of one loss between the two halves of the batch: how much of a direction is noise at this batch size.
    Divide the first by the root of the product of the others to read it. None where a loss or a half is
    absent.
    """

    distill_norm: float | None
    task_norm: float
    cosine: float | None
    cosine_distill_halves: float | None
    cosine_task_halves: float | None


def sampled_epochs(epochs: int) -> set[int]:
    """The epochs in which one batch is examined, first and last among them."""
    count = min(epochs, SAMPLED_EPOCHS)
    return {round(k * (epochs - 1) / max(1, count - 1)) for k in range(count)}


def gradient_signals(
    losses_of: Callable[[slice], LossParts], size: int, parameters: Sequence[nn.Parameter]
) -> GradientSignals | None:
    """Gradients of both losses on both halves of a batch of `size` images that went forward already.

    `losses_of(rows)` computes the losses of those rows. Nothing of the training changes: no `.grad` is
    touched. None for batches too small to halve, or when the losses do not reach the parameters.
    """
    if size < SMALLEST_BATCH:
        return None
    halves = [losses_of(slice(0, None, 2)), losses_of(slice(1, None, 2))]
    if not all(half.task.requires_grad for half in halves):
        return None
    task = [_flat_gradient(half.task, parameters) for half in halves]
    distill = [_flat_gradient(half.distill, parameters) for half in halves if half.distill is not None]
    whole_task = task[0] + task[1]
    whole_distill = distill[0] + distill[1] if distill else None
    return GradientSignals(
        None if whole_distill is None else float(whole_distill.norm() / 2),
        float(whole_task.norm() / 2),
        None if whole_distill is None else _cosine(whole_distill, whole_task),
        _cosine(*distill) if distill else None,
        _cosine(*task),
    )


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

    def numbers(self) -> dict[str, float]:
        """`mse`, `r2` = 1 - mse / Var(teacher), `rho` (Pearson over patches), means and standard
        deviations."""
        n, s, t, ss, tt, st = self.sums.tolist()
        if n == 0:
            return {}
        var_s, var_t, cov = ss / n - (s / n) ** 2, tt / n - (t / n) ** 2, st / n - s * t / n**2
        mse = (ss - 2 * st + tt) / n
        return {
            "mse": mse,
            "r2": 1 - mse / var_t if var_t > 0 else math.nan,
            "rho": cov / math.sqrt(var_s * var_t) if var_s > 0 and var_t > 0 else math.nan,
            "student_mean": s / n,
            "student_std": math.sqrt(max(var_s, 0.0)),
            "teacher_mean": t / n,
            "teacher_std": math.sqrt(max(var_t, 0.0)),
        }
