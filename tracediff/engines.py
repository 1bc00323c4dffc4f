"""Executors that the command line makes: processes of this machine, and the workers of a Dask cluster."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager

from tracediff.errors import TracediffError


def of_processes(count: int) -> Callable[[], Executor]:
    """What makes a pool of ``count`` fresh processes."""
    return lambda: ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


@contextmanager
def of_scheduler(address: str) -> Iterator[Executor]:
    """The executor of the Dask scheduler at ``address``; TracediffError where Dask is not installed or nobody answers there."""
    try:
        from distributed import Client
    except ImportError as error:
        raise TracediffError("--scheduler takes Dask's distributed scheduler: pip install 'tensor-tracediff[dask]'") from error
    try:
        client = Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise TracediffError(f"No Dask scheduler answers at {address!r}: {error}. Start one with: dask scheduler") from error
    with client, client.get_executor(pure=False) as executor:
        yield executor
