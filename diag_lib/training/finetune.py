"""Can the teacher be taught the user's own images? Case 1 of the guide: domain shift."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diag_lib.devices import choose, thread_count
from diag_lib.errors import UserError
from diag_lib.evidence import RunFolder
from diag_lib.files import disk_errors, whole
from diag_lib.images import open_split
from diag_lib.models import build_teacher, save_weights, state_sha
from diag_lib.progress import Bar
from diag_lib.settings import Settings
from diag_lib.statistics import AucDifference, auc_difference
from diag_lib.training.data import Data
from diag_lib.training.distributed import world
from diag_lib.training.folder import (
    CHECKPOINT,
    load_checkpoint,
    save_checkpoint,
)
from diag_lib.training.loop import Student, evaluate, train

FILE = "finetuned.safetensors"
EPOCHS = 10
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Finetuned:
    """The written weights, the file that keeps the previous ones (if any), the validation AUC's change."""

    path: Path
    backup: Path | None
    auc: AucDifference
    epochs: int


def finetune_teacher(
    settings: Settings,
    run: RunFolder | None = None,
    *,
    epochs: int | None = None,
    learning_rate: float = LEARNING_RATE,
    progress: bool = True,
) -> Finetuned:
    """Train all parameters of the teacher on the train split (BCE on pooled patch logits, cosine schedule).

    Writes `<weights_dir>/finetuned.safetensors`, which the alias `finetuned` stands for; a file that is
    already there is kept as `finetuned.safetensors.bak`. `epochs` default to 10, or fewer if the budget of
    image-steps demands it. `run` defaults to `reports/<settings name>`. A killed training goes on at its
    last epoch. `artifacts/finetune/result.json` keeps the numbers.

    Raises
    ------
    UserError : the teacher or the dataset cannot be read, the weights folder cannot be written, or the
        training diverged.
    """
    run = run or RunFolder(Path("reports") / settings.name)
    teacher, _ = build_teacher(settings)
    images, val = open_split(settings, "train", run), open_split(settings, "val", run)
    count = epochs or max(1, min(EPOCHS, settings.image_steps // len(images.frame)))
    chosen = settings.with_overrides(
        {
            "student.trainable_s2": ["all"],
            "training.epochs_s1": 0,
            "training.epochs_s2": count,
            "training.lr_s2": learning_rate,
            "training.distillation.alpha_distill": 0.0,
            "training.distillation.alpha_task": 1.0,
        }
    )
    target = _writable(settings.runtime.weights_dir) / FILE
    data = Data(chosen, images, val, np.ones(len(val.frame), bool), None, choose(chosen), world())
    folder = run.create().artifact(f"finetune/{CHECKPOINT}").parent
    key = hashlib.sha256(f"{chosen.digest()} {state_sha(teacher)} {len(images.frame)}".encode()).hexdigest()
    with thread_count(data.hardware.threads):
        trainee = Student(chosen, teacher, data)
        before = evaluate([trainee])[0]
        state = load_checkpoint(folder, key)
        if state is not None:
            trainee.restore(state)
        with Bar(
            total=count,
            initial=trainee.epoch,
            desc="teacher",
            unit="epoch",
            disable=not (progress and world().first),
        ) as bar:

            def after_epoch(student: Student) -> None:
                if data.world.first:
                    with disk_errors(run.root):
                        save_checkpoint(folder, key, student.state())
                bar.update(1)

            train([trainee], data, after_epoch)
        if trainee.stopped is not None:
            raise UserError(
                f"fine-tuning the teacher diverged: {trainee.stopped}; try a smaller learning rate"
            )
        after = evaluate([trainee])[0]
    change = auc_difference(val.labels, before, after, nan="undefined")
    backup = None
    if data.world.first:
        with disk_errors(target.parent):
            backup = _keep_previous(target)
            save_weights(teacher, target)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        result = {"auc": change, "epochs": count, "history": trainee.history}
        run.write_json("artifacts/finetune/result.json", result)
    world().barrier()
    return Finetuned(target, backup, change, count)


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runtime.weights_dir {folder}: cannot be made ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"runtime.weights_dir {folder}: cannot be written; choose another folder")
    return folder


def _keep_previous(target: Path) -> Path | None:
    if not target.exists():
        return None
    backup = target.with_name(target.name + ".bak")
    with whole(backup) as partial:
        shutil.copyfile(target, partial)
    return backup
