"""Is there room in the cache, may it be written, and is nobody else writing the same now?"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from diag_lib.errors import UserError
from diag_lib.images.sources import printable
from diag_lib.map_store import locked

DEFAULT_CACHE = Path("reports") / ".cache"
"""Below the working directory, for who reads a dataset without a run and without `runtime.cache_dir`."""


def safe_name(name: str, slash: str = "/") -> str:
    """A name from outside as a path below ours: plain characters, no part that begins with a dot."""
    parts = (re.sub(r"[^\w.-]", "_", part, flags=re.ASCII) for part in name.split("/"))
    return slash.join(f"_{part}" if part[:1] in (".", "") else part for part in parts)


def require_space(home: Path, needed: int, what: str) -> None:
    """Raise `UserError` when the disk of `home`, which may not exist yet, has fewer free bytes than needed."""
    place = next((folder for folder in (home, *home.parents) if folder.is_dir()), home.parent)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"dataset.root: {what} needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free in the cache; "
            "set runtime.cache_dir to a larger disk"
        )


@contextlib.contextmanager
def writing(home: Path, failure: str) -> Iterator[None]:
    """What the disk refuses becomes one line that begins with `failure`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"runtime.cache_dir: {failure} into {printable(str(home.parent))} ({error.strerror}); "
            "free some space or name another folder, then the same command continues"
        ) from None


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """One process writes into `home`, the others wait for it and find all done."""
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "lock"):
        yield
