"""Fingerprints of parameters that this process has taken before, by their contents: a forced capture sees a model's twice and more."""

from __future__ import annotations

import threading
from collections import OrderedDict

from tracediff.dtype import DType
from tracediff.trace.fingerprint import Sketch

LIMIT = 16 * 2**20
"""Bytes of sketches that are kept, the latest."""

Key = tuple[bytes, int, tuple[int, ...]]
"""Digest, code of the dtype, shape."""


class KnownParameters:
    """A sketch and packed statistics for each content, as long as there is room."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit, self._bytes = limit, 0
        self._kept: OrderedDict[Key, tuple[Sketch, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: bytes, kind: DType, shape: tuple[int, ...]) -> tuple[Sketch, bytes] | None:
        """The sketch and the packed statistics of a content; None where they are not known any more."""
        key = digest, kind.code, shape
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, digest: bytes, kind: DType, shape: tuple[int, ...], sketch: Sketch, stats: bytes) -> None:
        """Keeps them; the oldest make room."""
        key = digest, kind.code, shape
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = sketch, stats
            self._bytes += _nbytes(sketch)
            while self._bytes > self._limit:
                self._bytes -= _nbytes(self._kept.popitem(last=False)[1][0])


def _nbytes(sketch: Sketch) -> int:
    return sketch.quantiles.nbytes + sum(axis.nbytes for axis in sketch.axes)


KNOWN = KnownParameters()
"""Those of this process."""
