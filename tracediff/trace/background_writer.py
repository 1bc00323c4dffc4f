"""The thread that writes a trace: jobs done one after another beside the model, with a bound on the bytes that wait."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

Job = Callable[[], None]


class BackgroundWriter:
    """Runs jobs in the order in which they were put; the first error stops it and is raised by every later call.

    In a forked child, which lacks the thread, nothing is done and nothing waits.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._owner = os.getpid()
        self._jobs: queue.SimpleQueue[tuple[Job | None, int]] = queue.SimpleQueue()
        self._waiting = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tracediff writer", daemon=True)
        self._thread.start()

    def put(self, job: Job, nbytes: int = 0) -> None:
        """Queues a job that holds so many bytes; waits while more than the limit are held."""
        if self._is_elsewhere():
            return
        cost = nbytes + 512
        with self._changed:
            while self._waiting and self._waiting + cost > self._limit:
                self._changed.wait()
            self._raise()
            self._waiting += cost
        self._jobs.put((job, cost))

    def drain(self) -> None:
        """Waits until every job was done; raises the first error."""
        if self._is_elsewhere():
            return
        with self._changed:
            self._changed.wait_for(lambda: self._waiting == 0)
            self._raise()

    def settle(self) -> None:
        """Waits until every job was done or skipped; never raises."""
        if self._is_elsewhere():
            return
        with self._changed:
            self._changed.wait_for(lambda: self._waiting == 0)

    def close(self) -> None:
        """Does what waits, then ends the thread; never raises."""
        if self._is_elsewhere():
            return
        self._jobs.put((None, 0))
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _is_elsewhere(self) -> bool:
        return os.getpid() != self._owner

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        done = 0
        while True:
            job, cost = self._jobs.get()
            if job is None:
                self._let_go(done)
                return
            if self._error is None:
                try:
                    job()
                except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                    self._error = error
            job = None
            done += cost
            if done >= self._limit // 8 or self._jobs.empty():  # of small jobs many are told at once
                self._let_go(done)
                done = 0

    def _let_go(self, nbytes: int) -> None:
        with self._changed:
            self._waiting -= nbytes
            self._changed.notify_all()
