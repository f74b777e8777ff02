"""How does a trained arm's course look in TensorBoard? One events file an arm, the tags of the guide's history."""

import math
from collections.abc import Iterable

from diag_lib import tensorboard_events
from diag_lib.evidence import RunFolder
from diag_lib.files import disk_errors
from diag_lib.settings import Settings
from diag_lib.training.folder import ArmResult

FOLDER = "tensorboard"


def write_curves(settings: Settings, run: RunFolder, arms: Iterable[ArmResult]) -> None:
    """Write `artifacts/tensorboard/<arm>` for each arm whose events are missing or older than its result.

    Only where `runtime.tensorboard` asks for it. A curve that an arm does not have (no distillation, no loss) is
    left out.
    """
    if not settings.runtime.tensorboard:
        return
    for arm in arms:
        trained = (arm.folder / "result.json").stat().st_mtime
        folder = run.root / "artifacts" / FOLDER / arm.id
        written = folder / tensorboard_events.FILE
        if written.is_file() and written.stat().st_mtime >= trained:
            continue
        series = {
            tag: list(enumerate(values, start=1))
            for tag, values in arm.history.items()
            if any(math.isfinite(value) for value in values)
        }
        with disk_errors(run.root):
            tensorboard_events.write_scalars(folder, series, trained)
