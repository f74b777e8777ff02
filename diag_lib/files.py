"""How is a file written whole or not at all, and what does the user hear when the disk does not take it?"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from diag_lib.errors import UserError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says about a full disk, a full quota and a limit on the size of files."""

USERS = FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EIO}
"""The user's disk and permissions; any other `OSError` is a fault of ours."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new file beside `path` which takes its place when the block ends, and is removed when it fails.

    A killed process or a full disk leaves the file as it was before. Raises `OSError`.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A disk that does not take what is written below `folder`, as the user's problem.

    Raises `UserError` in place of the `USERS` among the `OSError`s.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in USERS:
            raise
        raise UserError(disk_line(error, folder)) from error


def disk_line(error: OSError, folder: Path | None = None) -> str:
    """What happened, where, and what to do, in one line; `folder`: what was written to, unless the error says."""
    name = Path(error.filename) if isinstance(error.filename, str) else None
    ours = folder is not None and (name is None or name.is_relative_to(folder))
    where = folder if ours else name or "the run folder or the cache"
    # pyarrow puts words of its own in the place of the system's
    why = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in FULL:
        return f"{where}: {why}; free some space, then the same command continues"
    return f"{where}: cannot be written ({why}); choose another folder" if ours else f"{where}: {why}"
