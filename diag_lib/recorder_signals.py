"""What do one batch and its losses say about a training? The recorder's measurements, with torch alone.

Nothing here touches the training: gradients are taken with `torch.autograd.grad`, which leaves every `.grad`
as it is, and no random number is drawn.
"""

import ctypes
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from diag_lib.errors import UserError

Value = Tensor | float | None
SAME = 0.02  # relative difference up to which a reported loss is taken for the formula that gives that value
WRAPPERS = {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"}
NORMS = (nn.modules.batchnorm._BatchNorm,)
SMALLEST_BATCH = 4  # fewer images cannot be halved
SQUASHING = {"Sigmoid": "sigmoid", "Softmax": "softmax"}
RESHAPING = re.compile(
    "View|UnsafeView|Reshape|Flatten|Squeeze|Unsqueeze|Permute|Transpose|T|Select|Slice|Index|Gather|Expand|Clone|ToCopy|"
    "Alias|Cat|Stack|Mean|Sum|Amax|Max|Topk|Div|Mul"
)
"""Autograd nodes, without "Backward0", that leave a probability a probability: they only arrange, average or scale."""


@dataclass(frozen=True)
class Batch:
    """What `TrainingRecorder.step` was given. `logits` (B,), (B, 1) or (B, 2); `labels` (B,), 0 real and 1 fake;
    `student` and `teacher` patch logits of one shape (B, ...). All but `loss` may be None.
    """

    loss: Value
    distill: Value = None
    task: Value = None
    logits: Tensor | None = None
    labels: Tensor | None = None
    student: Tensor | None = None
    teacher: Tensor | None = None

    @property
    def size(self) -> int:
        """Images in the batch; 1 where nothing says how many."""
        for tensor in (self.logits, self.student, self.labels):
            if tensor is not None and tensor.ndim:
                return len(tensor)
        return 1

    @property
    def has_labels(self) -> bool:
        return self.logits is not None and self.labels is not None

    @property
    def has_teacher(self) -> bool:
        return (
            self.student is not None
            and self.teacher is not None
            and self.student.shape == self.teacher.shape
            and self.student.ndim > 0
        )

    def bce(self, rows: slice = slice(None), *, squashed: bool = False) -> Tensor:
        """The mean BCE that the labels ask for; `squashed`: with a sigmoid before BCE-with-logits."""
        assert self.logits is not None and self.labels is not None
        z = fake_logits(self.logits)[rows].float()
        y = self.labels.reshape(-1)[rows].to(z)
        return F.binary_cross_entropy_with_logits(torch.sigmoid(z) if squashed else z, y)

    def mse(self, rows: slice = slice(None), *, squashed: str = "") -> Tensor:
        """The mean squared distance to the teacher; `squashed` names who goes through a sigmoid first."""
        assert self.student is not None and self.teacher is not None
        s, t = self.student[rows].float(), self.teacher.detach()[rows].float()
        s = torch.sigmoid(s) if squashed in ("student", "both") else s
        t = torch.sigmoid(t) if squashed in ("teacher", "both") else t
        return F.mse_loss(s, t)


def fake_logits(logits: Tensor) -> Tensor:
    """(B,) of (B,), (B, 1) or, as the difference of the two, (B, 2)."""
    if logits.ndim == 2 and logits.shape[1] == 2:
        return logits[:, 1] - logits[:, 0]
    return logits.reshape(-1)


def numbers(named: dict[str, Tensor | float]) -> dict[str, float | str]:
    """Scalars as JSON numbers of six digits, fetched from the device at once; "nan", "inf" and "-inf" as words."""
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    fetched: dict[str, float] = {}
    if tensors:
        stacked = torch.stack([value.detach().float().reshape(()) for value in tensors.values()])
        fetched = dict(zip(tensors, stacked.tolist(), strict=True))
    return {n: number(fetched[n] if n in fetched else float(v)) for n, v in named.items()}


def number(value: float) -> float | str:
    """Six significant digits; JSON has no word for what is not finite, so it becomes a string."""
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)


@torch.no_grad()
def look(batch: Batch) -> dict[str, Any]:
    """Values, ranges and formulas of one batch: cheap, no backward pass.

    `formula` holds what the usual losses would be on these logits, to be compared with what was reported;
    `within` is the spread of an image's patches around its mean, whose loss is a collapse.
    """
    found: dict[str, Any] = {"batch": batch.size}
    for name in ("loss", "distill", "task"):
        value = getattr(batch, name)
        if value is not None:
            found |= numbers({name: value})
    formula: dict[str, Tensor | float] = {}
    if batch.has_labels:
        formula |= {"bce": batch.bce(), "bce_squashed": batch.bce(squashed=True)}
    if batch.has_teacher:
        formula |= {"mse": batch.mse()}
        formula |= {f"mse_squashed_{who}": batch.mse(squashed=who) for who in ("student", "teacher", "both")}
    if formula:
        found["formula"] = numbers(formula)
    for name in ("logits", "student", "teacher"):
        tensor = getattr(batch, name)
        if tensor is not None and tensor.numel() > 1:
            found[name] = _spread(fake_logits(tensor) if name == "logits" else tensor)
            found[name]["made_by"] = made_by(tensor)
    if batch.has_teacher:
        assert batch.student is not None and batch.teacher is not None
        found["patches"] = batch.student[0].numel()
        found["fit"] = _fit(batch.student.float().flatten(), batch.teacher.float().flatten())
    return found


def made_by(tensor: Tensor) -> str:
    """The squashing that autograd saw last: "sigmoid", "softmax", "none", or "" where it cannot be told.

    Only nodes with one differentiable input are passed: in `map * sigmoid(gate)` the sigmoid squashes no logit. Of
    parts that are joined the first one speaks for all.
    """
    node = tensor.grad_fn
    while node is not None:
        name = type(node).__name__.partition("Backward")[0]
        if name in SQUASHING:
            return SQUASHING[name]
        inputs = [before for before, _ in node.next_functions if before is not None]
        joins = name in ("Cat", "Stack")
        if not RESHAPING.fullmatch(name) or not (len(inputs) == 1 or joins):
            return "none" if len(inputs) > 1 else ""
        node = inputs[0] if inputs else None
    return ""


def _spread(tensor: Tensor) -> dict[str, float | str]:
    t = tensor.float()
    said: dict[str, Tensor | float] = {"min": t.min(), "max": t.max(), "mean": t.mean(), "std": t.std()}
    if t.ndim > 1 and t[0].numel() > 1:
        said["within"] = t.flatten(1).var(dim=1).mean().sqrt()
    return numbers(said)


def _fit(s: Tensor, t: Tensor) -> dict[str, float | str]:
    """R^2 = 1 - MSE / Var(teacher) and Pearson's rho over the batch's patches."""
    s0, t0 = s - s.mean(), t - t.mean()
    var_s, var_t = s0.square().mean(), t0.square().mean()
    rho = (s0 * t0).mean() / (var_s * var_t).sqrt()
    return numbers({"r2": 1 - (s - t).square().mean() / var_t, "rho": rho})


def slopes(batch: Batch) -> dict[str, list[float | str]]:
    """With which weight does each loss really enter the total? `[weight, residual]` for `task` and `distill`.

    The gradient of the total with respect to the logits (patch logits) is a known direction times the weight
    if the loss is what it should be: (sigmoid(z) - y) / B for the mean BCE, 2 (s - t) / N for the mean squared
    distance. `residual`, from 0 to 1, is the part of the gradient that is something else. A negative weight
    is a wrong sign, one of N a sum in place of a mean. Costs no backward pass through the network.
    """
    loss = batch.loss
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return {}
    wanted: dict[str, Tensor] = {}
    if batch.has_labels and batch.logits is not None and batch.logits.requires_grad:
        wanted["task"] = batch.logits
    if batch.has_teacher and batch.student is not None and batch.student.requires_grad:
        wanted["distill"] = batch.student
    if not wanted:
        return {}
    taken = torch.autograd.grad(loss, list(wanted.values()), retain_graph=True, allow_unused=True)
    reached = {name: g for name, g in zip(wanted, taken, strict=True) if g is not None}
    if len(reached) == 2:  # what reaches the patches by way of the image logits is the task's
        (by_logits,) = torch.autograd.grad(
            wanted["task"],
            [wanted["distill"]],
            grad_outputs=[reached["task"]],
            retain_graph=True,
            allow_unused=True,
        )
        if by_logits is not None:
            reached["distill"] = reached["distill"] - by_logits
    return {name: _projected(gradient, _reference(batch, name)) for name, gradient in reached.items()}


def _reference(batch: Batch, name: str) -> Tensor:
    """The gradient of the mean BCE in the logits, or of the mean squared distance in the student's patches."""
    source = batch.logits if name == "task" else batch.student
    assert source is not None
    with torch.enable_grad():
        leaf = source.detach().float().requires_grad_()
        alone = replace(batch, **{"logits" if name == "task" else "student": leaf})
        own = alone.bce() if name == "task" else alone.mse()
        (gradient,) = torch.autograd.grad(own, [leaf])
    return gradient


def _projected(gradient: Tensor, reference: Tensor) -> list[float | str]:
    g, r = gradient.detach().float().flatten(), reference.flatten()
    weight = (g @ r) / (r @ r)
    residual = (g - weight * r).norm() / g.norm()
    found = numbers({"weight": weight, "residual": residual})
    return [found["weight"], found["residual"]]


@dataclass(frozen=True)
class Gradients:
    """Each loss's gradient over the parameters, and in `said` norms and cosines (see `loss_gradients`)."""

    vectors: dict[str, list[Tensor]] = field(default_factory=dict)
    said: dict[str, float | str] = field(default_factory=dict)


def loss_gradients(batch: Batch, parameters: Sequence[nn.Parameter]) -> Gradients:
    """How strongly and in which direction does each loss pull the parameters? Up to four backward passes.

    `task_norm`, `distill_norm`: L2 norms before any weighting; `cosine` between the two. Where a reported loss
    is the mean BCE or the mean squared distance itself, also the cosine between the gradients of the batch's
    halves (`task_halves`, `distill_halves`): how much of the direction is noise. Divide `cosine` by the root of
    their product to read it. Empty when the graph does not reach the parameters.
    """
    vectors: dict[str, list[Tensor]] = {}
    said: dict[str, Tensor | float] = {}
    for name in ("task", "distill"):
        halves = _halves(batch, name, parameters)
        if halves:
            vectors[name] = [(a + b) / 2 for a, b in zip(*halves, strict=True)]
            said[f"{name}_halves"] = cosine(*halves)
        else:
            whole = getattr(batch, name)
            if not isinstance(whole, Tensor) or not whole.requires_grad:
                continue
            vectors[name] = _gradient(whole, parameters)
        said[f"{name}_norm"] = dot(vectors[name], vectors[name]).sqrt()
    if len(vectors) == 2:
        said["cosine"] = cosine(vectors["task"], vectors["distill"])
    return Gradients(vectors, numbers(said))


def _halves(batch: Batch, name: str, parameters: Sequence[nn.Parameter]) -> list[list[Tensor]]:
    """The gradients of both halves, if this loss is the plain formula that can be computed for a half."""
    reported = getattr(batch, name)
    known = batch.has_labels if name == "task" else batch.has_teacher
    if reported is None or not known or batch.size < SMALLEST_BATCH:
        return []
    formula = batch.bce if name == "task" else batch.mse
    with torch.enable_grad():
        own = formula()
        if not own.requires_grad or not _same(reported, own):
            return []
        return [_gradient(formula(slice(start, None, 2)), parameters) for start in (0, 1)]


def _same(reported: Tensor | float, own: Tensor) -> bool:
    there = reported.detach() if isinstance(reported, Tensor) else reported
    return abs(float(own.detach()) - float(there)) <= SAME * abs(float(own.detach()))


def _gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    taken = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, taken, strict=True)]


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The inner product of two lists of tensors of equal shapes."""
    return torch.stack(
        [(x.detach().float() * y.detach().float()).sum() for x, y in zip(a, b, strict=True)]
    ).sum()


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """cos of the angle between two lists of tensors; NaN when one of them is zero."""
    return dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Sixteen hex digits of the tensors' bytes (BLAKE2b): equal for equal weights."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        data = tensor.detach().cpu().contiguous()
        size = data.numel() * data.element_size()
        if size:
            digest.update((ctypes.c_char * size).from_address(data.data_ptr()))
    return digest.hexdigest()


def rank_auc(labels: Tensor, scores: Tensor) -> float:
    """P(fake scores above real), ties counting half, in O(n log n); NaN for NaN scores or a missing class."""
    real, fake = scores[labels == 0].double().sort().values, scores[labels == 1].double()
    if not len(real) or not len(fake) or bool(scores.isnan().any()):
        return math.nan
    below = torch.searchsorted(real, fake, right=False) + torch.searchsorted(real, fake, right=True)
    return float(below.double().mean() / (2 * len(real)))


MOST_SCORES = 4096  # validation scores that are written down each epoch; of more, every k-th of each class


@torch.no_grad()
def evaluation(logits: Tensor, labels: Tensor, patches: Tensor | None) -> dict[str, Any]:
    """The exact AUC of raw validation logits (n,), what a flawed evaluation would make of them, and the scores.

    `cut`: scores cut at logit 0; `sigmoid32`, `sigmoid16`: after a sigmoid in that precision, whose large logits
    tie. `scores`: the logits, and image scores of patch logits (n, ...) by mean, maximum and mean of the top tenth.
    """
    z, y = fake_logits(logits.detach()).cpu().double(), labels.detach().reshape(-1).cpu().long()
    if len(z) != len(y):
        raise ValueError(f"{len(z)} validation logits but {len(y)} labels")
    scores = {"logits": z}
    if patches is not None:
        flat = patches.detach().flatten(1).cpu().double()
        top = flat.topk(max(1, flat.shape[1] // 10), dim=1).values
        scores |= {"mean": flat.mean(1), "max": flat.max(1).values, "top": top.mean(1)}
    exact = {
        "exact": rank_auc(y, z),
        "cut": rank_auc(y, (z > 0).double()),
        "sigmoid32": rank_auc(y, torch.sigmoid(z.float())),
        "sigmoid16": rank_auc(y, torch.sigmoid(z.float()).half()),
        "bce": float(F.binary_cross_entropy_with_logits(z, y.double())),
        "accuracy": float(((z > 0) == (y == 1)).double().mean()),
    }
    kept = _kept(y)
    shown = {name: [number(v) for v in s[kept].tolist()] for name, s in scores.items()}
    return {
        **{name: number(value) for name, value in exact.items()},
        "n_real": int((y == 0).sum()),
        "n_fake": int((y == 1).sum()),
        "labels": "".join(str(v) if v in (0, 1) else "?" for v in y[kept].tolist()),
        "scores": shown,
    }


def _kept(labels: Tensor) -> Tensor:
    if len(labels) <= MOST_SCORES:
        return torch.arange(len(labels))
    each = [(labels == c).nonzero().flatten() for c in (0, 1)]
    return torch.cat([rows[:: -(-2 * len(rows) // MOST_SCORES)] for rows in each if len(rows)]).sort().values


# ---- the network and what wraps it


def norm_layers(model: nn.Module) -> list[Any]:
    """The BatchNorm layers that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, NORMS) and m.running_mean is not None]


def running_means(model: nn.Module) -> list[Tensor]:
    """A copy of every BatchNorm layer's running mean."""
    return [m.running_mean.detach().clone() for m in norm_layers(model)]


def norm_drift(model: nn.Module, before: Sequence[Tensor]) -> dict[str, Any] | None:
    """How far BatchNorm's running means moved since `before`, in running standard deviations (median layer)."""
    norms = norm_layers(model)
    if not norms:
        return None
    moved = [
        ((m.running_mean - old).square() / (m.running_var + m.eps)).mean().sqrt().float().cpu()
        for m, old in zip(norms, before, strict=True)
    ]
    momenta = [m.momentum for m in norms if m.momentum is not None]
    drift = number(float(torch.stack(moved).median()))
    return {"layers": len(norms), "drift": drift, "momentum": min(momenta, default=None)}


class Sum:
    """A weighted mean of finite values, and how many were not."""

    def __init__(self) -> None:
        self.total, self.count, self.broken = 0.0, 0, 0

    def add(self, value: float, images: int) -> None:
        self.total += value * images
        self.count += images
        self.broken += not -float("inf") < value < float("inf")

    @property
    def mean(self) -> float:
        return self.total / max(1, self.count)


def optimizers_of(given: Any) -> list[Optimizer]:
    """The torch optimisers inside what was given, which may be wrapped (as by accelerate) or several."""
    several: Iterable[Any] = given if isinstance(given, (list, tuple)) else [given]
    found = []
    for optimizer in several:
        while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
            optimizer = optimizer.optimizer
        if not isinstance(optimizer, Optimizer):
            raise UserError(
                f"recorder: {type(optimizer).__name__} is no torch optimiser; give the one that steps"
            )
        found.append(optimizer)
    if not found:
        raise UserError("recorder: no optimiser was given")
    return found


def unwrapped(model: nn.Module) -> nn.Module:
    while type(model).__name__ in WRAPPERS:
        model = model.module  # type: ignore[assignment]
    return model


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers put before it."""
    return ".".join(
        part for part in name.split(".") if part not in ("_orig_mod", "_fsdp_wrapped_module")
    ).removeprefix("module.")


def plain(value: Any) -> float | str | None:
    return None if value is None else number(float(value))


def rank() -> int:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if there else 0
