"""Which mistake can be told before anything is written? A run that cannot work is refused, not half done."""

from collections.abc import Sequence
from pathlib import Path

from diag_lib import tensorboard_events
from diag_lib.images import keep_out_of_dataset
from diag_lib.settings import Settings
from diag_lib.user_code import load_plugins

_NEED_TEACHER = {"teacher", "logits", "distillation"}
_NEED_STUDENT = {"logits", "baseline", "distillation"}


def refuse_mistakes(settings: Settings, steps: Sequence[str], out: Path) -> None:
    """Raise `UserError` for a run folder, history, network or code with which the steps cannot work."""
    keep_out_of_dataset(settings, out)
    load_plugins(settings)
    if settings.runtime.tensorboard:
        tensorboard_events.require()
    if "symptoms" in steps and settings.history is not None:
        from diag_lib.history import read_history

        read_history(settings.history)
    trains = "symptoms" in steps and settings.history is None
    _refuse_networks(
        settings,
        teacher=trains or not _NEED_TEACHER.isdisjoint(steps),
        student=trains or not _NEED_STUDENT.isdisjoint(steps),
    )


def _refuse_networks(settings: Settings, *, teacher: bool, student: bool) -> None:
    from diag_lib.losses import named_loss
    from diag_lib.models import build_student, build_teacher, select_trainable

    if teacher:
        named_loss(settings.training.distillation.loss)
        build_teacher(settings)[0].map_size(settings.dataset.image_size)
    if student:
        model, _ = build_student(settings)
        model.map_size(settings.dataset.image_size)
        for names in (settings.student.trainable_s1, settings.student.trainable_s2):
            select_trainable(model, list(names))
