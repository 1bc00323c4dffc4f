"""Room for the frames of an observed run: each call of a module passes through several of ours, and is to reach as deep as without."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_FACTOR = 4
"""Frames of an observed call for one of a bare call, at most."""


class _Room:
    """The limit as it was, and how many runs are observed at present."""

    lock = threading.Lock()
    runs = 0
    limit = 0


@contextmanager
def room() -> Iterator[None]:
    """A context in which the interpreter allows as many more frames as observing needs."""
    with _Room.lock:
        if not _Room.runs:
            _Room.limit = sys.getrecursionlimit()
            sys.setrecursionlimit(_FACTOR * _Room.limit)
        _Room.runs += 1
    try:
        yield
    finally:
        with _Room.lock:
            _Room.runs -= 1
            if not _Room.runs and sys.getrecursionlimit() == _FACTOR * _Room.limit:  # else the model's own code has set it
                with suppress(RecursionError):
                    sys.setrecursionlimit(_Room.limit)
