"""How is a student trained? The two-stage schedule, read from top to bottom.

Stage 1 trains `trainable_s1` (plateau schedule on the validation AUC of half A), stage 2 `trainable_s2`
(cosine), each with a fresh optimiser. Several arms go through the same batches in lockstep: one decoding and
one teacher look-up serve all of them, and what differs between two arms is their settings alone.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diag_lib.errors import UserError
from diag_lib.images import steps_of_epoch
from diag_lib.losses import LogitScale, LossParts, weighted_loss
from diag_lib.models import PatchModel, align, derived_seed, pool, select_trainable
from diag_lib.settings import Settings
from diag_lib.statistics import auc
from diag_lib.training.data import Batch, Data
from diag_lib.training.shared import patch_logits, stem_features
from diag_lib.training.signals import (
    GradientSignals,
    gradient_signals,
    parameter_deltas,
    sampled_epochs,
    step_ratio,
)

PLATEAU = {"mode": "max", "factor": 0.5, "patience": 2}
SGD_MOMENTUM = 0.9
LOST_EPOCHS, LOST_PROGRESS, LOST_CONFIDENCE = 3, 0.01, 0.999  # see Student._clearly_lost
HISTORY = ("stage", "train_loss", "train_distill_loss", "train_task_loss", "val_loss", "val_acc", "val_auc")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": lambda parameters, **options: torch.optim.SGD(parameters, momentum=SGD_MOMENTUM, **options),
}

Floats = npt.NDArray[np.float64]


@dataclass
class Student:
    """One arm in training: its network, optimiser and record.

    `data` gives images and teacher, `settings` everything else. A network that contains NaN ends the arm
    (`stopped` says why), and so does being clearly lost in an `exploratory` arm (see `arms.EXPLORATORY`), of
    which only the best is ever used. As in an ordinary loop, steps with a non-finite loss are taken all the
    same, except that fp16 loss scaling skips them. BatchNorm also behaves as in an ordinary loop: `model.train()` lets
    every layer use batch statistics and update its running ones, also layers whose parameters are frozen.
    """

    settings: Settings
    model: PatchModel
    data: Data
    scale: LogitScale | None = None
    exploratory: bool = False
    epoch: int = 0
    history: dict[str, list[Any]] = field(default_factory=lambda: {key: [] for key in HISTORY})
    signals: list[dict[str, Any]] = field(default_factory=list)
    nonfinite_steps: int = 0
    unreached_steps: int = 0
    image_steps: int = 0
    seconds: float = 0.0
    stopped: str | None = None

    def __post_init__(self) -> None:
        device = self.data.hardware.device
        self.initial = {name: p.detach().clone().cpu() for name, p in self.model.named_parameters()}
        self.model.to(device, memory_format=self.data.hardware.memory_format)  # type: ignore[call-overload]
        if self.data.hardware.compiled:
            self.model.compile()
        self.data.world.share_batch_norms(self.model)
        size = self.data.train.image_size
        self.geometry = self.model.geometry(size)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.data.hardware.dtype == torch.float16)
        self.random = ":" in self.model.arch or any("Drop" in type(m).__name__ for m in self.model.modules())
        steps = steps_of_epoch(len(self.data.train.frame), self.settings.training.batch_size)
        self.sampled = sampled_epochs(self.epochs, steps)

    @property
    def epochs(self) -> int:
        """Epochs of both stages."""
        return self.settings.training.epochs_s1 + self.settings.training.epochs_s2

    @property
    def distills(self) -> bool:
        """Whether the teacher has any weight."""
        return self.settings.training.distillation.alpha_distill > 0

    @property
    def stage(self) -> int:
        """1 or 2, of the current epoch."""
        return 1 if self.epoch < self.settings.training.epochs_s1 else 2

    def start_stage(self) -> None:
        """Freeze, and make a fresh optimiser and schedule for the current stage."""
        t, chosen, first = self.settings.training, self.settings.student, self.stage == 1
        select_trainable(self.model, list(chosen.trainable_s1 if first else chosen.trainable_s2))
        self.parameters: list[nn.Parameter] = [p for p in self.model.parameters() if p.requires_grad]
        rate = t.lr_s1 if first else t.lr_s2
        self.optimizer = OPTIMIZERS[t.optimizer](self.parameters, lr=rate, weight_decay=t.weight_decay)
        self.scheduler: Any = (
            torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, **PLATEAU)  # type: ignore[arg-type]
            if first
            else torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=t.epochs_s2)
        )

    def begin_epoch(self) -> None:
        """Ready for the epoch's first batch."""
        if self.epoch in (0, self.settings.training.epochs_s1):
            self.start_stage()
        self.model.train()
        # total, distill and task loss, non-finite steps, images: on the device until the epoch is over
        self.sums = torch.zeros(5, dtype=torch.float64, device=_sum_device(self.data))

    def losses(self, patches: Tensor, batch: Batch, rows: slice = slice(None)) -> LossParts:
        """The weighted sum of both losses for the rows of a batch, from their patch logits (B, 1, h, w)."""
        student = patches[rows].float()
        teacher = aligned = None
        if self.distills and batch.teacher is not None and self.data.maps is not None:
            teacher = batch.teacher[rows]
            grid = (teacher.shape[-2], teacher.shape[-1])
            aligned = align(student, self.geometry, self.data.maps.geometry, grid)
        logits = pool(student, self.settings.pooling)
        chosen = self.settings.training.distillation
        return weighted_loss(aligned, teacher, logits, batch.y[rows], chosen, self.scale)

    def train_batch(self, batch: Batch, step: int, examine: bool, features: Tensor | None = None) -> None:
        """One optimisation step; `features` are those of the stem where several students share it.

        Where the device's memory does not hold the batch, the gradients of its parts add up (see `Portion`).
        Processes that share a batch wait for each other's parts, so that one of them alone cannot go on smaller.
        """

        def work(parts: Sequence[slice]) -> None:
            self._step(batch, parts, step, examine, features)

        if self.data.world.size > 1:
            work([slice(None)])
        else:
            self.data.portion.run(len(batch.y), work)

    def _step(
        self, batch: Batch, parts: Sequence[slice], step: int, examine: bool, features: Tensor | None
    ) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        found, summed, reached, images = None, torch.zeros_like(self.sums[:3]), True, 0
        for number, rows in enumerate(parts):
            some = batch if len(parts) == 1 else batch.part(rows)
            own = _own_randomness(self.random, self.settings.training.seed, step, number)
            with own, self.data.hardware.autocast(), _not_alone(len(some.y)):
                patches = patch_logits(self.model, some.x, None if features is None else features[rows])
            patches, some = self._whole(patches, some)
            loss = self.losses(patches, some)
            summed += _values(loss).to(summed) * len(some.y)
            images += len(some.y)
            reached = reached and loss.total.requires_grad
            if not reached:  # the network detaches its output: nothing can be learned
                continue
            if examine and number == 0:
                losses_of = partial(self.losses, patches, some)
                found = gradient_signals(losses_of, len(some.y), self.parameters, self.data.world.add)
            share = 1.0 if len(parts) == 1 else len(some.y) / len(batch.y)
            self.scaler.scale(loss.total * share).backward()  # type: ignore[no-untyped-call]
        if reached:
            self._move(found)
        self.unreached_steps += not reached
        self.sums[:3] += summed
        self.sums[3] += (~torch.isfinite(summed[0])).to(self.sums)
        self.sums[4] += images

    def _move(self, found: GradientSignals | None) -> None:
        """The optimiser's step; what was examined at it is kept with its size."""
        before = [] if found is None else [p.detach().clone() for p in self.parameters]
        self.data.world.add_gradients(self.parameters)
        if self.settings.training.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.settings.training.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if found is not None:
            moved = step_ratio(before, self.parameters)
            self.signals.append({"epoch": self.epoch, **asdict(found), "update_to_weight": moved})

    def _whole(self, patches: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
        """The patch logits, labels and teacher's maps of the whole batch, for losses that compare its images."""
        world = self.data.world
        if world.size == 1:
            return patches, batch
        n, teacher = batch.size, batch.teacher
        teacher = None if teacher is None else world.gather(teacher, n)
        return world.gather(patches.float(), n), Batch(batch.x, world.gather(batch.y, n), teacher, n)

    def end_epoch(self, val_logits: Floats) -> None:
        """Record the epoch, step the schedule, notice a broken network."""
        labels = self.data.val.labels
        total, distill, task, broken, images = self.sums.tolist()
        values = (self.stage, total / images, distill / images, task / images, *validate(val_logits, labels))
        for key, value in zip(HISTORY, values, strict=True):
            self.history[key].append(value)
        self.nonfinite_steps += int(broken)
        self.image_steps += int(images)
        if not self.unreached_steps:  # else the optimiser took no step that a schedule could follow
            self.step_schedule(val_logits)
        broken_part = _not_finite(self.model)
        if broken_part:
            self.stopped = f"{broken_part} no longer finite after epoch {self.epoch + 1} of {self.epochs}"
        self.epoch += 1
        if self.exploratory and self.stopped is None and self.epoch < self.epochs:
            self.stopped = self._clearly_lost(val_logits)

    def _clearly_lost(self, val_logits: Floats) -> str | None:
        """Why this arm need not go on, or None. The rule looks at the arm's own numbers alone.

        From half of the schedule on and in stage 2, where the rate only falls: the training loss fell by less than
        1% during the last quarter of the schedule (3 epochs at least), and the 99.9% interval of the
        validation AUC lies below `thresholds.baseline_auc`.
        """
        look_back = max(LOST_EPOCHS, self.epochs // 4)
        began = self.epoch - 1 - look_back
        if self.epoch < self.epochs / 2 or began < self.settings.training.epochs_s1:
            return None
        before, now = self.history["train_loss"][began], self.history["train_loss"][-1]
        measured = auc(self.data.val.labels, val_logits, confidence=LOST_CONFIDENCE, nan="undefined")
        threshold = self.settings.thresholds.baseline_auc
        if not now > before * (1 - LOST_PROGRESS) or not measured.defined or measured.ci[1] >= threshold:
            return None
        return (
            f"clearly lost after epoch {self.epoch} of {self.epochs}: AUC {measured.value:.2f}, at most "
            f"{measured.ci[1]:.2f} (99.9%), and the training loss fell by less than {LOST_PROGRESS:.0%} "
            f"in {look_back} epochs"
        )

    def step_schedule(self, val_logits: Floats) -> None:
        """Plateau on half A of the validation images (stage 1), cosine (stage 2); once an epoch."""
        if self.stage == 2:
            self.scheduler.step()
            return
        half = self.data.half_a
        chosen = auc(self.data.val.labels[half], val_logits[half], nan="undefined").value
        self.scheduler.step(0.5 if math.isnan(chosen) else chosen)

    def deltas(self) -> dict[str, dict[str, float | bool]]:
        """How far each parameter moved from its start (call it after the training)."""
        chosen, t = self.settings.student, self.settings.training
        stages = ((t.epochs_s1, chosen.trainable_s1), (t.epochs_s2, chosen.trainable_s2))
        trained = {n for epochs, names in stages if epochs for n in select_trainable(self.model, list(names))}
        return parameter_deltas(self.initial, self.model, trained)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on after this epoch as if nothing had happened."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in _RESUMED},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.epoch = state["epoch"] - 1  # the stage of the last finished epoch owns the optimiser
        self.start_stage()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        for name in _RESUMED:
            setattr(self, name, state[name])


_RESUMED = (
    "epoch", "history", "signals", "nonfinite_steps", "unreached_steps", "image_steps", "seconds", "stopped",
)  # fmt: skip


def train(students: Sequence[Student], data: Data, after_epoch: Callable[[Student], None]) -> None:
    """Train the students in lockstep to the end of their schedule (from wherever each of them is).

    `after_epoch(student)` is called when an epoch of a student is complete: the place for checkpoints.
    """
    for epoch in range(max((student.epochs for student in students), default=0)):
        live = [s for s in students if s.epoch == epoch and epoch < s.epochs and s.stopped is None]
        if not live:
            continue
        started = time.monotonic()
        for student in live:
            student.begin_epoch()
        steps = steps_of_epoch(len(data.train.frame), data.settings.training.batch_size)
        for index, batch in enumerate(data.training_batches(epoch)):
            examined = [index == steps // 2 and epoch in student.sampled for student in live]
            train_step(live, batch, epoch * steps + index, examined)
        val_logits = evaluate(live)
        share = (time.monotonic() - started) / len(live)
        for student, logits in zip(live, val_logits, strict=True):
            student.seconds += share
            student.end_epoch(logits)
            after_epoch(student)


def train_step(students: Sequence[Student], batch: Batch, step: int, examine: Sequence[bool]) -> None:
    """One optimisation step of each student on the same batch."""
    with students[0].data.hardware.autocast():
        features = shared_stem(students, batch.x)
    for student, look, shared in zip(students, examine, features, strict=True):
        student.train_batch(batch, step, look, shared)


def shared_stem(students: Sequence[Student], x: Tensor) -> list[Tensor | None]:
    """What the students need to compute only once; nothing for compiled ones, which are one piece."""
    if students[0].data.hardware.compiled:
        return [None] * len(students)
    return stem_features([student.model for student in students], x)


@torch.inference_mode()
def evaluate(students: Sequence[Student]) -> list[Floats]:
    """Raw image logits of the validation images by each student, float64; networks in eval mode, fp32."""
    data, world = students[0].data, students[0].data.world
    mine = np.arange(len(data.val.frame))[world.rank :: world.size]
    logits = torch.zeros(len(students), len(data.val.frame), dtype=torch.float64)
    for student in students:
        student.model.eval()
    at = 0
    for batch in data.evaluation_batches(data.val, mine):
        answers = partial(_answers, students, batch)
        logits[:, mine[at : at + len(batch.y)]] = data.asked.run(len(batch.y), answers)
        at += len(batch.y)
    return list(world.add(logits).numpy())


def _answers(students: Sequence[Student], batch: Batch, parts: Sequence[slice]) -> Tensor:
    """Image logits (students, B) of a batch, part by part."""
    found = []
    for rows in parts:
        x = batch.x[rows]
        shared = shared_stem(students, x)
        patches = [patch_logits(s.model, x, features) for s, features in zip(students, shared, strict=True)]
        pooled = [pool(p.cpu().double(), s.settings.pooling) for s, p in zip(students, patches, strict=True)]
        found.append(torch.stack(pooled))
    return torch.cat(found, dim=1)


def validate(logits: Floats, labels: npt.NDArray[np.int64]) -> tuple[float, float, float]:
    """(BCE, accuracy at logit 0, rank AUC) of raw image logits; NaN where undefined."""
    loss = F.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(labels).double())
    accuracy = float(np.mean((logits > 0) == (labels == 1)))
    return float(loss), accuracy, auc(labels, logits, nan="undefined").value


def _not_finite(model: nn.Module) -> str | None:
    """What of a network holds NaN or infinities: BatchNorm's running variance may overflow before any weight."""
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        return "the weights are"
    statistics = (b for b in model.buffers() if b.is_floating_point())
    return None if all(bool(torch.isfinite(b).all()) for b in statistics) else "the BatchNorm statistics are"


def _values(loss: LossParts) -> Tensor:
    """Total, distillation (NaN without one) and task loss (3,), detached."""
    distill = loss.distill if loss.distill is not None else torch.full_like(loss.task, math.nan)
    return torch.stack([loss.total.detach(), distill.detach(), loss.task.detach()])


def _sum_device(data: Data) -> torch.device:
    """Where float64 sums can live (MPS has no float64)."""
    device = data.hardware.device
    return device if device.type == "cuda" else torch.device("cpu")


@contextlib.contextmanager
def _not_alone(images: int) -> Iterator[None]:
    """BatchNorm of a 1 x 1 map has nothing to average over in a batch of one image: that is the user's to know."""
    try:
        yield
    except ValueError as error:
        if images > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "training.batch_size: a batch of one image gives the student's BatchNorm one value a channel, as its map "
            "is 1 x 1; make batches (and the training set) of 2 images or more, or dataset.image_size larger"
        ) from None


@contextlib.contextmanager
def _own_randomness(needed: bool, seed: int, step: int, part: int) -> Iterator[None]:
    """Dropout drawn from (seed, step, part) alone, so that arms in lockstep do not disturb each other's."""
    if not needed:
        yield
        return
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derived_seed(seed, f"step {step} part {part}" if part else f"step {step}"))
        yield
