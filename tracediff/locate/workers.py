"""Reads pairs and takes their metrics in other processes or on other machines: those of any `concurrent.futures.Executor`.

A worker opens the two traces itself and gives back what `tracediff.metrics.compare` gives, so that the answer is that of one process. What
is asked for ahead changes nothing but the time: a pair that nobody comes to read is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tracediff.alignment.axes import Layout
from tracediff.errors import TracediffError
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.metrics import Metrics, compare
from tracediff.trace import Trace, open_trace

Engine = Executor | Callable[[], Executor]
"""An executor, or what makes one: then a broken one, and no other, is replaced by a new one."""
_LOST_BY_NAME = frozenset({"KilledWorker"})
"""The exceptions, beside those of `concurrent.futures`, that say that the workers of a task died: Dask's."""


class Asked(NamedTuple):
    """One pair to be read: the rows of reference and port, how they correspond, and the error beyond which values are verified."""

    reference: tuple[int, ...]
    port: tuple[int, ...]
    layout: Layout | None
    verified_above: float


class Taken(NamedTuple):
    """The metrics of a pair, and whether the values were compared with their digests."""

    metrics: Metrics
    is_verified: bool


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker does at once: some pairs of two traces, each a file with its identity."""

    reference: tuple[str, bytes]
    port: tuple[str, bytes]
    tolerance: tuple[float | None, float | None]
    pairs: tuple[Asked, ...]


def taken(task: Task) -> list[Taken | None] | str:
    """The metrics of a task's pairs; None of one that raised, which its asker then meets itself; a text says why no trace was read."""
    try:
        traces = _opened(*task.reference), _opened(*task.port)
    except (TracediffError, OSError) as error:
        return str(error)
    return [_taken(traces, pair, task.tolerance) for pair in task.pairs]


def _taken(traces: tuple[Trace, Trace], pair: Asked, tolerance: tuple[float | None, float | None]) -> Taken | None:
    lefts, rights = ([trace.records[row] for row in rows] for trace, rows in zip(traces, pair[:2], strict=True))
    try:
        metrics = compare(lefts, rights, layout=pair.layout, rtol=tolerance[0], atol=tolerance[1])
        is_verified = not metrics.rel_l2 <= pair.verified_above
        for record in (*lefts, *rights) if is_verified else ():
            record.verify()
    except Exception:  # noqa: BLE001 - whatever it is, the asker meets it too, and raises it where one process does
        return None
    return Taken(metrics, is_verified)


@lru_cache(maxsize=4)
def _opened(path: str, identity: bytes) -> Trace:
    trace = open_trace(path)
    if trace.identity[0] != identity:
        trace.close()
        raise TracediffError(f"{path!r} is another file there, or was replaced meanwhile.")
    return trace


class Workers:
    """Hands tasks to an engine, and what dies under way to it once more."""

    def __init__(self, engine: Engine) -> None:
        self._make = None if isinstance(engine, Executor) else engine
        self._executor = engine if isinstance(engine, Executor) else engine()

    def close(self) -> None:
        """Ends the executor that was made here."""
        if self._make is not None:
            self._executor.shutdown(cancel_futures=True)

    def begun(self, task: Task) -> tuple[Executor, Future[list[Taken | None] | str] | None]:
        """The executor and its future of a task; None where it takes no more."""
        executor = self._executor
        try:
            return executor, executor.submit(taken, task)
        except (BrokenExecutor, RuntimeError):  # also one that was shut down
            return executor, None

    def renewed(self, broken: Executor) -> bool:
        """Whether there is an executor in the place of one that broke: a new one is made once."""
        if self._make is None:
            return False
        if broken is self._executor:
            broken.shutdown(wait=False, cancel_futures=True)
            self._executor = self._make()
        return True


@contextmanager
def working(engine: Engine | None) -> Iterator[Workers | None]:
    """A context with the workers of an engine; None without one."""
    if engine is None:
        yield None
        return
    workers = Workers(engine)
    try:
        yield workers
    finally:
        workers.close()


class Pending:
    """A task that was begun."""

    def __init__(self, workers: Workers, task: Task) -> None:
        self._workers, self._task = workers, task
        self._begun = workers.begun(task)
        self._found: list[Taken | None] | None = None

    def result(self, place: int) -> Taken | None:
        """What came of one of its pairs, once it is there.

        Raises TracediffError where the traces cannot be read by a worker, or workers keep dying at it.
        """
        if self._found is None:
            found = self._waited()
            if isinstance(found, str):
                raise TracediffError(
                    f"A worker cannot read the traces: {found} Workers open the files themselves, which have to lie on storage that all "
                    "share, under the same paths."
                )
            self._found = found
        return self._found[place]

    def _waited(self) -> list[Taken | None] | str:
        for _ in range(THRESHOLDS.worker_tries):
            executor, future = self._begun
            if future is not None:
                try:
                    return future.result()
                except Exception as error:
                    is_lost = isinstance(error, BrokenExecutor | CancelledError) or type(error).__name__ in _LOST_BY_NAME
                    if not is_lost:
                        raise
                    is_broken = isinstance(error, BrokenExecutor)
            else:
                is_broken = True
            if is_broken and not self._workers.renewed(executor):
                return taken(self._task)  # the executor was given, and takes nothing more
            self._begun = self._workers.begun(self._task)
        first, names = self._task.pairs[0].reference[0], [Path(path).name for path, _ in (self._task.reference, self._task.port)]
        raise TracediffError(
            f"{THRESHOLDS.worker_tries} times a worker died while it read {' and '.join(names)}, from row {first} of the reference on. "
            "Has it enough memory?"
        )
