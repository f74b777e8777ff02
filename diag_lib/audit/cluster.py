"""Who reads the images of an audit: this machine, or the workers of a dask cluster?"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diag_lib.errors import UserError
from diag_lib.settings import Settings

PATIENCE = 10.0
"""Seconds that a scheduler has to answer."""


@contextlib.contextmanager
def on_cluster(settings: Settings) -> Iterator[None]:
    """Let joblib's work in the block go to the cluster of `runtime.dask`, where one is named.

    Raises
    ------
    UserError : dask is not installed, no scheduler answers, the cluster has no workers, or one of them does not
        see the dataset or has no diag-lib.
    """
    address = settings.runtime.dask
    if address is None:
        yield
        return
    try:
        from dask.distributed import Client
    except ImportError:
        raise UserError(
            "runtime.dask: needs an extra: pip install 'diag-lib[dask]', or set it to null"
        ) from None
    from joblib import parallel_config

    try:
        client: Any = Client(address, timeout=PATIENCE, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"runtime.dask: no scheduler answers at {address!r} ({type(error).__name__}); "
            "start one with `dask scheduler` and name its address, such as tcp://node0:8786"
        ) from None
    with client:
        _refuse_blind_workers(client, address, str(settings.dataset.folder))
        with parallel_config(backend="dask", client=client):
            yield


def _refuse_blind_workers(client: Any, address: str, root: str) -> None:
    """A worker that does not see the files would call every one of them missing."""
    answers = client.run(_sees, root, on_error="return")
    if not answers:
        raise UserError(
            f"runtime.dask: the cluster at {address} has no workers; start `dask worker {address}`"
        )
    for worker, answer in answers.items():
        if isinstance(answer, BaseException):
            raise UserError(
                f"runtime.dask: worker {worker} cannot run diag ({answer}); install the same there"
            )
        if not answer:
            raise UserError(
                f"runtime.dask: worker {worker} does not see {root}; it needs the same path there"
            )


def _sees(root: str) -> bool:
    return Path(root).exists()
