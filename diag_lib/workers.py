"""A worker process died: what does the user hear?"""

import contextlib
from collections.abc import Iterator

from diag_lib.errors import UserError

DEATHS = ("BrokenProcessPool", "KilledWorker")
"""What joblib's processes raise, and what dask does after several of its workers died over one piece of work."""


@contextlib.contextmanager
def deaths_told(line: str) -> Iterator[None]:
    """Runs work in other processes; raises `UserError(line)` in place of what joblib or dask say when one dies."""
    try:
        yield
    except Exception as error:
        # by name: neither library is imported before it is used
        if not any(kind.__name__ in DEATHS for kind in type(error).__mro__):
            raise
        raise UserError(line) from None
