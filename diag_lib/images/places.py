"""Where may a run write? Anywhere but into the dataset."""

from pathlib import Path

from diag_lib.errors import UserError
from diag_lib.images.sources import printable
from diag_lib.settings import Settings


def keep_out_of_dataset(settings: Settings, out: Path) -> None:
    """Raise `UserError` when run folder or cache lie inside the dataset, which is never written to."""
    root = settings.dataset.root
    if isinstance(root, str) or not root.is_dir():
        return
    cache = settings.runtime.cache_dir
    for what, place, key in (("run folder", out, "--out (run_dir)"), ("cache", cache, "runtime.cache_dir")):
        if place is not None and place.resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"{what} {printable(str(place))} lies inside the dataset, which is never written to; "
                f"choose another {key}"
            )


def beside_run(settings: Settings, out: Path, cache: Path) -> Settings:
    """The settings with a remote `dataset.root` copied into the cache (see `remote`), and with `runtime.cache_dir`
    named when packed images are unpacked there; else unchanged.

    Who reads the dataset later knows the settings, not the run folder. Raises as `keep_out_of_dataset` does.
    """
    from diag_lib.images.shards import is_packed

    if isinstance(settings.dataset.root, str):
        from diag_lib.images import remote

        settings = remote.mirrored(settings, cache)
    keep_out_of_dataset(settings, out)
    if (
        settings.runtime.cache_dir is not None
        or not settings.dataset.folder.exists()
        or not is_packed(settings)
    ):
        return settings
    return settings.with_overrides({"runtime.cache_dir": str(cache)})
