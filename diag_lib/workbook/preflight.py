"""Which mistake can be told before anything is written? A run that cannot work is refused, not half done."""

from collections.abc import Sequence
from pathlib import Path

from diag_lib.errors import UserError
from diag_lib.images import printable
from diag_lib.settings import Settings
from diag_lib.user_code import load_plugins

_NEED_TEACHER = {"teacher", "logits", "distillation"}
_NEED_STUDENT = {"logits", "baseline", "distillation"}


def refuse_mistakes(settings: Settings, steps: Sequence[str], out: Path) -> None:
    """Raise `UserError` for a run folder, history, network or code with which the steps cannot work."""
    keep_out_of_dataset(settings, out)
    load_plugins(settings)
    if "symptoms" in steps and settings.history is not None:
        from diag_lib.history import read_history

        read_history(settings.history)
    trains = "symptoms" in steps and settings.history is None
    _refuse_networks(
        settings,
        teacher=trains or not _NEED_TEACHER.isdisjoint(steps),
        student=trains or not _NEED_STUDENT.isdisjoint(steps),
    )


def keep_out_of_dataset(settings: Settings, out: Path) -> None:
    """Raise `UserError` when run folder or cache lie inside the dataset, which is never written to."""
    root = settings.dataset.root
    if not root.is_dir():
        return
    cache = settings.runtime.cache_dir
    for what, place, key in (("run folder", out, "--out (run_dir)"), ("cache", cache, "runtime.cache_dir")):
        if place is not None and place.resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"{what} {printable(str(place))} lies inside the dataset, which is never written to; "
                f"choose another {key}"
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
