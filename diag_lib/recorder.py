"""What happens inside your own training loop? A few lines write it down for notebook 00, at little cost.

Needs nothing but torch. The training is not changed by it: weights, gradients, BatchNorm statistics, modes and
random numbers are, bit for bit, those of a training without it.
"""

import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diag_lib.errors import UserError
from diag_lib.recorder_file import SCHEMA, RecordingFile
from diag_lib.recorder_signals import (
    NORMS,
    Batch,
    Gradients,
    Sum,
    Value,
    cosine,
    evaluation,
    fingerprint,
    look,
    loss_gradients,
    norm_drift,
    number,
    numbers,
    optimizers_of,
    plain,
    plain_name,
    rank,
    running_means,
    slopes,
    unwrapped,
)

EVERY = 200  # steps between two examinations of the gradients: about three training steps each
LOOK_EVERY = 20  # steps between two looks at values and ranges: about a tenth of a training step each
FIRST = 10  # the first examined step, so that a short run has one too
COLUMNS = {"loss": "train_loss", "distill": "train_distill_loss", "task": "train_task_loss"}
SEEN = {"val_auc": "exact", "val_loss": "bce", "val_acc": "accuracy"}
LOST = 64  # steps after which an examined gradient no longer belongs to the next update


Scores: TypeAlias = Any
"""Validation numbers: a tensor, an array, a list of numbers, or a list of batches of any of these."""


class TrainingRecorder:
    """Records a training loop into a JSONL file that `history:` of the settings can name.

    Call `step` once a batch, when the losses are computed and **before** `loss.backward()`, and `epoch` after
    each validation. Everything but `loss` is optional; what is left out is not judged. The update itself is
    seen through hooks on the optimiser. A file that exists is continued.

    Parameters
    ----------
    path : the file to write, usually `something.jsonl`.
    model : the student, also as wrapped by DistributedDataParallel or accelerate.
    optimizer : the optimiser (or several), also as wrapped by accelerate.
    scaler : the `torch.amp.GradScaler` of mixed precision; accelerate's is found by itself.
    every, look_every : steps between two examinations of the gradients, and between two looks at the values.

    Raises
    ------
    UserError : the path cannot be written or holds something else; there are no parameters; no optimiser.

    A measurement that fails (a shape it does not know, a full disk) is noted and left out from then on: it never
    stops the training. In a job of several processes only rank 0 records.

    Examples
    --------
    >>> import json, tempfile, torch
    >>> from torch import nn
    >>> from torch.nn import functional as F
    >>> from diag_lib.recorder import TrainingRecorder
    >>> _ = torch.manual_seed(0)
    >>> student, teacher = nn.Conv2d(3, 1, 5, stride=2), nn.Conv2d(3, 1, 5, stride=2)
    >>> optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    >>> images, labels = torch.randn(64, 3, 16, 16), torch.arange(64) % 2
    >>> path = tempfile.mkdtemp() + "/run.jsonl"
    >>> with TrainingRecorder(path, student, optimizer) as rec:
    ...     for epoch in range(2):
    ...         for x, y in zip(images.split(16), labels.split(16)):
    ...             with torch.no_grad():
    ...                 target = teacher(x)
    ...             patches = student(x)  # (B, 1, h, w)
    ...             logits = patches.mean((1, 2, 3))
    ...             distill = F.mse_loss(patches, target)
    ...             task = F.binary_cross_entropy_with_logits(logits, y.float())
    ...             loss = 0.5 * distill + 0.5 * task
    ...             rec.step(loss, distill=distill, task=task, logits=logits, labels=y,
    ...                      student_patches=patches, teacher_patches=target)
    ...             optimizer.zero_grad()
    ...             loss.backward()
    ...             optimizer.step()
    ...         _ = student.eval()
    ...         with torch.no_grad():
    ...             scores = student(images).mean((1, 2, 3))
    ...         _ = student.train()
    ...         rec.epoch(val_auc=0.5, val_logits=scores, val_labels=labels)
    >>> [json.loads(line)["event"] for line in open(path)]
    ['start', 'step', 'epoch', 'epoch', 'end']

    As callbacks: `fit(model, on_step=rec.step, on_epoch=rec.epoch)`; for a trainer that makes its own optimiser
    see `RecorderCallback`.
    """

    def __init__(
        self,
        path: str | Path,
        model: nn.Module,
        optimizer: Any,
        *,
        scaler: Any = None,
        every: int = EVERY,
        look_every: int = LOOK_EVERY,
    ) -> None:
        self.path = Path(path)
        self._began, self._spent = time.perf_counter(), 0.0
        self._file: RecordingFile | None = None
        self._hooks: list[Any] = []
        self._step_hooks: list[Any] = []
        if rank() != 0:
            return
        if every < 1 or look_every < 1:
            raise UserError("recorder: every and look_every are numbers of steps, at least 1")
        self._every, self._look_every = every, look_every
        self._model = model
        self._parameters = {plain_name(name): p for name, p in model.named_parameters()}
        if not self._parameters:
            raise UserError("recorder: the model has no parameters; give the network that is trained")
        optimizers = optimizers_of(optimizer)
        self._scaler = scaler if scaler is not None else getattr(optimizer, "scaler", None)
        self._steps = self._updates = 0
        self._off: set[str] = set()
        self._sums: dict[str, list[tuple[Any, int]]] = {}
        self._examined: tuple[int, Gradients] | None = None
        self._observe = False
        self._before: dict[str, Tensor] = {}
        self._evaluated: str | None = None
        self._replaced: bool | None = None
        self._watched = list(self._parameters.values())[:: max(1, len(self._parameters) // 4)]
        self._versions: list[tuple[int, int]] | None = None
        self._start = {name: p.detach().cpu().clone() for name, p in self._parameters.items()}
        self._norm_means = running_means(self._model)
        self._counts = {"steps": 0, "updates": 0}
        self._file = RecordingFile(self.path)
        self._epochs, self._stage = self._file.epochs, self._file.stage
        self._watch(optimizers)
        self._hooks.append(unwrapped(model).register_forward_pre_hook(self._before_forward))
        start = {"weights": fingerprint(self._parameters.values()), "tensors": self._tensor_table(False)}
        before = {"stage": self._stage, "epochs_before": self._epochs}
        self._write({"event": "start", "schema": SCHEMA, "torch": torch.__version__, **before, **start})

    # ---- what the loop calls

    def step(
        self,
        loss: Value,
        *,
        distill: Value = None,
        task: Value = None,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
        student_patches: Tensor | None = None,
        teacher_patches: Tensor | None = None,
    ) -> None:
        """One batch, after its losses and before `loss.backward()`.

        Parameters: `loss`, what is minimised; `distill`, `task`, its parts before weighting; `logits` (B,), (B, 1)
        or (B, 2), raw; `labels` (B,), real 0, fake 1; `student_patches` (aligned to the teacher's grid) and
        `teacher_patches` (B, ...). Give the very tensors that the losses were made of, not detached ones.
        Called after `backward()`, it records all but the gradients of each loss.
        """
        if not self._recording:
            return
        started = time.perf_counter()
        batch = Batch(loss, distill, task, logits, labels, student_patches, teacher_patches)
        self._steps += 1
        self._counts["steps"] += 1
        for name, value in (("loss", loss), ("distill", distill), ("task", task)):
            if value is not None:
                kept = value.detach().clone() if isinstance(value, Tensor) else float(value)
                self._sums.setdefault(name, []).append((kept, batch.size))
        if self._steps % self._look_every == 1 or self._look_every == 1:
            self._guarded("step", self._look, batch)
            self._guarded("sums", self._shorten)
        if self._due(self._steps):
            self._guarded("gradients", self._examine, batch)
            self._observe = True
        self._spent += time.perf_counter() - started

    def epoch(
        self,
        *,
        val_auc: float | None = None,
        val_loss: float | None = None,
        val_acc: float | None = None,
        val_logits: Scores | None = None,
        val_labels: Scores | None = None,
        val_patches: Scores | None = None,
        evaluated: nn.Module | None = None,
        epoch: int | None = None,
    ) -> None:
        """One epoch, after its validation.

        Parameters: `val_auc`, `val_loss`, `val_acc` as your loop reports them; `val_logits` (n,) raw, `val_labels`
        (n,) and `val_patches` (n, ...), tensors, arrays or lists of batches of them, in the order in which the network
        gave them: from these the exact AUC, and what your loop does not report, is computed. `evaluated`, the network
        that was evaluated if it is another object than the trained one; `epoch`, its number if the loop does not count
        on.
        """
        if not self._recording:
            return
        started = time.perf_counter()
        self._epochs = self._epochs + 1 if epoch is None else int(epoch)
        record: dict[str, Any] = {"event": "epoch", "epoch": self._epochs, "stage": self._stage}
        for name, column in COLUMNS.items():
            record[column] = self._guarded("sums", self._mean, name)
        told = {"val_loss": val_loss, "val_acc": val_acc, "val_auc": val_auc}
        for column, reported in told.items():
            record[column] = self._guarded(column, plain, reported)
        record["reported"] = record["val_auc"] is not None
        if val_logits is not None and val_labels is not None:
            record["seen"] = self._guarded("evaluation", self._scores, val_logits, val_labels, val_patches)
            for column, own in SEEN.items():
                if record["seen"] and record[column] is None:
                    record[column] = record["seen"][own]
        record |= self._guarded("weights", self._weights, evaluated) or {}
        record |= {"counts": dict(self._counts), "lr": self._rates(), "scale": self._scale()}
        self._spent += time.perf_counter() - started
        record["seconds"] = {
            "all": number(time.perf_counter() - self._began),
            "recorder": number(self._spent),
        }
        self._write(record)
        self._sums, self._counts = {}, {"steps": 0, "updates": 0}
        self._norm_means = running_means(self._model)
        self._evaluated = self._replaced = None

    def stage(self, optimizer: Any, *, scaler: Any = None) -> None:
        """A further stage with another optimiser begins."""
        if not self._recording:
            return
        self._stage += 1
        self._watch(optimizers_of(optimizer))
        self._scaler = scaler if scaler is not None else getattr(optimizer, "scaler", self._scaler)
        self._write({"event": "stage", "stage": self._stage, "tensors": self._tensor_table(False)})

    def close(self) -> None:
        """Write the end and let go of model and optimiser; called by `with`."""
        if self._recording:
            self._write({"event": "end", "steps": self._steps, "updates": self._updates})
        for hook in (*self._hooks, *self._step_hooks):
            hook.remove()
        self._hooks, self._step_hooks = [], []
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "TrainingRecorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._recording:
            self._write({"event": "stopped", "error": kind.__name__})
        self.close()

    # ---- the file

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(record)

    @property
    def _recording(self) -> bool:
        return self._file is not None and self._file.open

    def _guarded(self, what: str, measure: Any, *arguments: Any) -> Any:
        """The measurement, or None; one that fails is noted, and not tried again."""
        if what in self._off:
            return None
        try:
            return measure(*arguments)
        except Exception as error:
            self._off.add(what)
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self._write({"event": "note", "where": what, "said": said, "step": self._steps})
            warnings.warn(f"recorder: no longer recorded: {what} ({said})", RuntimeWarning, stacklevel=4)
            return None

    # ---- a batch

    def _due(self, step: int) -> bool:
        return step % self._every == 0 or step == min(FIRST, self._every)

    def _look(self, batch: Batch) -> None:
        record: dict[str, Any] = {"event": "step", "step": self._steps, **look(batch)}
        if isinstance(batch.loss, Tensor):
            record["differentiable"] = batch.loss.requires_grad
        if "graph" not in self._off:
            record["slopes"] = self._guarded("graph", slopes, batch)
        record["scale"] = self._scale()
        self._write(record)

    def _examine(self, batch: Batch) -> None:
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        parameters = [p for p in self._parameters.values() if p.requires_grad]
        self._examined = (self._steps, loss_gradients(batch, parameters))
        for buffer, old in buffers:  # activation checkpointing runs BatchNorm's forward pass again
            buffer.data.copy_(old)  # by way of `data`: autograd has saved some of them

    def _shorten(self) -> None:
        """The losses since the last look as (sum, count, not finite), so that nothing piles up."""
        for name, values in self._sums.items():
            fresh = [(v, n) for v, n in values if not isinstance(v, Sum)]
            total = next((v for v, _ in values if isinstance(v, Sum)), Sum())
            tensors = [v for v, _ in fresh if isinstance(v, Tensor)]
            fetched = iter(torch.stack([v.float().reshape(()) for v in tensors]).tolist() if tensors else [])
            for value, n in fresh:
                total.add(next(fetched) if isinstance(value, Tensor) else value, n)
            self._sums[name] = [(total, 0)]
            if name == "loss":
                self._counts["nonfinite"] = total.broken

    def _mean(self, name: str) -> float | str | None:
        self._shorten()
        total = self._sums.get(name)
        return number(total[0][0].mean) if total else None

    # ---- an update

    def _watch(self, optimizers: list[Optimizer]) -> None:
        for hook in self._step_hooks:
            hook.remove()
        self._optimizers = optimizers
        self._step_hooks = [o.register_step_pre_hook(self._before_update) for o in optimizers]
        self._step_hooks += [o.register_step_post_hook(self._after_update) for o in optimizers]

    def _before_update(self, optimizer: Optimizer, arguments: Any, options: Any) -> None:
        if self._observe and self._recording and not self._before:
            started = time.perf_counter()
            self._before = {name: p.detach().clone() for name, p in self._parameters.items()}
            self._spent += time.perf_counter() - started

    def _after_update(self, optimizer: Optimizer, arguments: Any, options: Any) -> None:
        if not self._recording or optimizer is not self._optimizers[-1]:
            return
        started = time.perf_counter()
        self._updates += 1
        self._counts["updates"] += 1
        self._versions = self._marks()
        if self._before:
            self._guarded("updates", self._update)
            self._before, self._examined, self._observe = {}, None, False
        self._spent += time.perf_counter() - started

    @torch.no_grad()
    def _update(self) -> None:
        """How far a step moved each tensor, whether the losses' gradients wanted it, and what BatchNorm does."""
        said: dict[str, Tensor | float] = {}
        moves = {name: p.detach() - self._before[name] for name, p in self._parameters.items()}
        for name, p in self._parameters.items():
            said[f"w {name}"] = self._before[name].float().norm()
            said[f"s {name}"] = moves[name].float().norm()
            if p.grad is not None:
                said[f"g {name}"] = p.grad.detach().float().norm()
        found = numbers(said)
        table = {n: [found[f"w {n}"], found.get(f"g {n}"), found[f"s {n}"]] for n in self._parameters}
        record: dict[str, Any] = {"event": "update", "update": self._updates, "step": self._steps,
                                  "tensors": table, "lr": self._rates()}  # fmt: skip
        if self._examined is not None and self._steps - self._examined[0] <= LOST:
            gradients = self._examined[1]
            trained = [moves[n] for n, p in self._parameters.items() if p.requires_grad]
            along = {name: cosine(g, trained) for name, g in gradients.vectors.items()}
            record["gradients"] = gradients.said
            record["along"] = numbers(dict(along))
        norms = [m for m in self._model.modules() if isinstance(m, NORMS)]
        record["norms"] = [len(norms), sum(not m.training for m in norms)]
        self._write(record)

    def _rates(self) -> list[float | str]:
        rates = [group["lr"] for optimizer in self._optimizers for group in optimizer.param_groups]
        return [number(float(rate)) for rate in rates]

    def _scale(self) -> float | str | None:
        scaler = self._scaler
        if scaler is None or not scaler.is_enabled():
            return None
        return number(float(scaler.get_scale()))

    # ---- an epoch

    def _scores(self, logits: Any, labels: Any, patches: Any) -> dict[str, Any]:
        joined = [None if part is None else _joined(part) for part in (logits, labels, patches)]
        assert joined[0] is not None and joined[1] is not None
        return evaluation(joined[0], joined[1], joined[2])

    def _before_forward(self, module: nn.Module, inputs: Any) -> None:
        """The first forward pass in eval mode since an update: which weights are evaluated?"""
        if module.training or self._evaluated is not None or not self._recording or self._versions is None:
            return
        started = time.perf_counter()
        self._replaced = self._marks() != self._versions
        self._evaluated = self._guarded("weights", fingerprint, self._parameters.values())
        self._spent += time.perf_counter() - started

    def _marks(self) -> list[tuple[int, int]]:
        """Changes when weights are overwritten in place or exchanged; reads no weight."""
        return [(p._version, p.data_ptr()) for p in self._watched]

    def _weights(self, evaluated: nn.Module | None) -> dict[str, Any]:
        """Hashes of the trained and of the evaluated weights, how far each tensor is from the start, BatchNorm."""
        seen = fingerprint(evaluated.parameters()) if evaluated is not None else self._evaluated
        trained = fingerprint(self._parameters.values())
        return {
            "weights": {"trained": trained, "evaluated": seen, "replaced": self._replaced},
            "tensors": self._tensor_table(True),
            "norms": norm_drift(self._model, self._norm_means),
            "finite": all(bool(torch.isfinite(p).all()) for p in self._parameters.values()),
        }

    def _tensor_table(self, moved: bool) -> dict[str, list[Any]]:
        """Name -> [values, requires_grad, in an optimiser, distance from the start / its length at the start]."""
        optimised = {id(p) for o in self._optimizers for group in o.param_groups for p in group["params"]}
        table: dict[str, list[Any]] = {}
        for name, p in self._parameters.items():
            table[name] = [p.numel(), p.requires_grad, id(p) in optimised]
            if moved:
                start = self._start[name].float()
                away, length = (p.detach().cpu().float() - start).norm(), start.norm()
                table[name].append(number(float(away / length) if length > 0 else float(away)))
        return table


class RecorderCallback:
    """The recorder for a trainer that owns the loop: call its methods from the trainer's own hooks.

    `on_train_begin(model, optimizer)`, `on_step(...)` with the arguments of `TrainingRecorder.step`,
    `on_epoch_end(...)` with those of `epoch`, `on_train_end()`.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.path, self.options = path, options
        self.recorder: TrainingRecorder | None = None

    def on_train_begin(self, model: nn.Module, optimizer: Any) -> None:
        """Start recording; a second call is a further stage."""
        if self.recorder is None:
            self.recorder = TrainingRecorder(self.path, model, optimizer, **self.options)
        else:
            self.recorder.stage(optimizer)

    def on_step(self, loss: Value, **values: Any) -> None:
        """One batch, before `backward()`."""
        if self.recorder is not None:
            self.recorder.step(loss, **values)

    def on_epoch_end(self, **values: Any) -> None:
        """One epoch, after its validation."""
        if self.recorder is not None:
            self.recorder.epoch(**values)

    def on_train_end(self) -> None:
        """Finish the file."""
        if self.recorder is not None:
            self.recorder.close()


def _joined(part: Any) -> Tensor:
    """One tensor of a tensor, an array, a list of numbers, or a list of batches of any of these."""
    if isinstance(part, Tensor):
        return part
    if isinstance(part, (list, tuple)) and any(
        isinstance(one, (list, tuple)) or getattr(one, "ndim", 0) for one in part
    ):
        return torch.cat([torch.as_tensor(one) for one in part])
    return torch.as_tensor(part)
