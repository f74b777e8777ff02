"""How do people break a training loop? One honest loop, and small mistakes in its code, recorded as it runs.

The loop is what a user writes: it reads the images, asks the teacher, weighs two losses, steps, validates. A
mistake replaces one of its parts. What `TrainingRecorder` writes is then given to the workbook as `history:`.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diag_lib.devices import thread_count
from diag_lib.images import epoch_batches, open_split, to_input
from diag_lib.models import PatchModel, align, build_student, build_teacher, pool
from diag_lib.recorder import TrainingRecorder
from diag_lib.recorder_signals import rank_auc
from diag_lib.recording import read_recording, value
from diag_lib.roc import Auc
from diag_lib.settings import Settings

EVERY, LOOK_EVERY = 40, 10  # these trainings have a few hundred steps
Loss = Callable[[Tensor, Tensor], Tensor]


def mean_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """The task loss as it should be."""
    return F.binary_cross_entropy_with_logits(logits, labels)


def rank(labels: Tensor, logits: Tensor) -> Tensor:
    """The scores that an honest evaluation ranks: the logits themselves."""
    return logits


def everything(model: nn.Module) -> list[nn.Parameter]:
    """What the optimiser should be given."""
    return list(model.parameters())


@dataclass(frozen=True)
class Loop:
    """The parts of the loop. The defaults are right; a fault replaces one of them.

    distill(student, teacher), task(logits, labels) : the losses. optimised(model) : what the optimiser is given.
    wired(model) : changes the network's graph. scored(labels, logits) : the scores of which the loop reports
    the AUC. evaluated(now, start) : the network whose validation is reported.
    """

    distill: Loss = F.mse_loss
    task: Loss = mean_bce
    optimised: Callable[[nn.Module], Sequence[nn.Parameter]] = everything
    wired: Callable[[PatchModel], object] = id
    scored: Loss = rank
    evaluated: Callable[[PatchModel, PatchModel], PatchModel] = lambda now, start: now
    rate: float = 1.0


def train(settings: Settings, loop: Loop, path: Path) -> None:
    """Train the student of the settings with this loop and record it at `path` (replaced if it exists)."""
    path.unlink(missing_ok=True)
    with thread_count(1):
        _train(settings, loop, path)


def _train(settings: Settings, loop: Loop, path: Path) -> None:
    chosen, weights, data = settings.training, settings.training.distillation, settings.dataset
    images = {split: open_split(settings, split) for split in ("train", "val")}
    x = {
        split: to_input(found.pixels(np.arange(len(found.labels))), data.normalize_mean, data.normalize_std)
        for split, found in images.items()
    }
    y = {split: torch.tensor(found.labels).float() for split, found in images.items()}
    teacher = build_teacher(settings)[0].eval()
    student = build_student(settings, chosen.seed)[0]
    start = copy.deepcopy(student)
    loop.wired(student)
    grids = student.geometry(data.image_size), teacher.geometry(data.image_size)
    optimizer = torch.optim.Adam(
        loop.optimised(student), lr=loop.rate * chosen.lr_s2, weight_decay=chosen.weight_decay
    )
    options = {"every": EVERY, "look_every": LOOK_EVERY}
    with TrainingRecorder(path, student, optimizer, **options) as recorder:
        for epoch in range(chosen.epochs_s1 + chosen.epochs_s2):
            student.train()
            for rows in epoch_batches(len(y["train"]), chosen.batch_size, chosen.seed, epoch):
                with torch.no_grad():
                    target = teacher(x["train"][rows])
                patches = student(x["train"][rows])
                aligned = align(patches, *grids, (target.shape[-2], target.shape[-1]))
                logits, labels = pool(patches, settings.pooling), y["train"][rows]
                distill, task = loop.distill(aligned, target), loop.task(logits, labels)
                loss = weights.alpha_distill * distill + weights.alpha_task * task
                recorder.step(loss, distill=distill, task=task, logits=logits, labels=labels,
                              student_patches=aligned, teacher_patches=target)  # fmt: skip
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            network = loop.evaluated(student, start).eval()
            with torch.inference_mode():
                maps = torch.cat([network(part) for part in torch.split(x["val"], 64)])
            scores = pool(maps, settings.pooling)
            reported = rank_auc(y["val"], loop.scored(y["val"], scores))
            recorder.epoch(val_auc=reported, val_logits=scores, val_labels=y["val"], val_patches=maps,
                           evaluated=None if network is student else network)  # fmt: skip


def reported_auc(recording: Path) -> Auc:
    """The AUC that the loop reported last; undefined for a loop whose scores are not finite.

    The interval does not need the reported scores, which may exist nowhere: whatever they are, the variance of an
    AUC A is at most A (1 - A) / min(n_real, n_fake) (Birnbaum & Klose 1957).
    """
    events = read_recording(recording.read_text(encoding="utf-8"), recording.name)
    scores = events.last_scores()
    told = value(events.epochs[-1], "val_auc") if events.epochs else math.nan
    if scores is None or not math.isfinite(told) or not scores.auc().defined:
        return Auc(math.nan, (0.0, 1.0), math.nan, 0, 0, False)
    n_fake = int(scores.labels.sum())
    n_real = len(scores.labels) - n_fake
    se = math.sqrt(told * (1 - told) / min(n_real, n_fake))
    return Auc(told, (told - 1.96 * se, told + 1.96 * se), se, n_real, n_fake, True)


# ---- mistakes


def detach_features(model: PatchModel) -> object:
    """The head sees features that are cut from the graph, so that only the head learns."""
    layer = model.get_submodule("layer1")
    return layer.register_forward_hook(lambda module, inputs, output: output.detach())


def only_the_head(model: nn.Module) -> list[nn.Parameter]:
    """The optimiser is given the head alone, though everything is meant to train."""
    return list(model.get_submodule("fc").parameters())


def negated_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """The task loss with a minus sign too many."""
    return -F.binary_cross_entropy_with_logits(logits, labels)


def negated_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """The distillation loss with a minus sign too many."""
    return -F.mse_loss(student, teacher)


def summed_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """The sum over all patches of the batch in place of their mean."""
    return F.mse_loss(student, teacher, reduction="sum")


def half_precision_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """The BCE of probabilities in fp16: above a logit of about 8 the probability is 1, and log(1 - 1) infinite."""
    p = torch.sigmoid(logits).half()
    return -(labels * torch.log(p) + (1 - labels) * torch.log(1 - p)).float().mean()


def squashed_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """A sigmoid before the BCE that has one of its own."""
    return F.binary_cross_entropy_with_logits(torch.sigmoid(logits), labels)


def squashed_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """A sigmoid on both before they are compared."""
    return F.mse_loss(torch.sigmoid(student), torch.sigmoid(teacher))


def shuffled(labels: Tensor, logits: Tensor) -> Tensor:
    """The scores of a loader that shuffles, against labels that were read once before."""
    return logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(len(logits)))]


def cut(labels: Tensor, logits: Tensor) -> Tensor:
    """Decisions in place of scores."""
    return (torch.sigmoid(logits) > 0.9).float()
