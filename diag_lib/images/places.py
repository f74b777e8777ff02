"""Where may a run write? Anywhere but into the dataset."""

from pathlib import Path

from diag_lib.errors import UserError
from diag_lib.images.sources import printable
from diag_lib.settings import Settings


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
