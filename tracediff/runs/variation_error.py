"""How far what arrives in a varied run is from what was stored: one number, by the rules of `tracediff.metrics`."""

from __future__ import annotations

import math

import numpy as np

from tracediff.dtype import MASKED, Array
from tracediff.metrics import compare
from tracediff.trace.fingerprint import Stats

_BLOCK = 1 << 15
"""Elements a block: both sides and their difference stay in the processor's cache."""
_CHUNK = 1024  # the longest sum in the dtype itself; chunks are added up in float64
_TAME = 1e15
"""The largest value whose square float32 can add up, with room."""
_LEAST = 1e-30
"""The least sum of squares beside which what float32 cannot square is nothing."""


def error_of(stored: Array, arrived: Array, stats: Stats) -> float:
    """The relative L2 of ``arrived`` against ``stored``, of exact values the share that differs. Both have one shape.

    ``stats`` are the stored values'. Where they say that nothing is masked, not finite or too large, one pass over the difference tells
    the error; where that difference is not finite, or as large as a mask, `compare` does.

    >>> stored = np.float32([3, 4])
    >>> from tracediff import dtype
    >>> from tracediff.trace.fingerprint import statistics
    >>> error_of(stored, np.float32([3, 4.5]), statistics(stored, dtype.named("float32")))
    0.1
    """
    if stored.dtype == np.float32 and arrived.dtype in (np.float32, np.float64) and _is_tame(stats):
        square = _square_of_difference(stored, arrived)
        if _LEAST < square < (0.5 * MASKED) ** 2 and stats.l2 > 0.0:
            return math.sqrt(square) / stats.l2
        if square == 0.0 and np.array_equal(stored, arrived):
            return 0.0
    metrics = compare(stored, arrived, ulp=False)
    return metrics.mismatched / max(metrics.count, 1) if metrics.exact else metrics.rel_l2


def _is_tame(stats: Stats) -> bool:
    """Whether the stored values are finite and far from any mask."""
    return not stats.nan and not stats.inf and stats.min > 0.5 * MASKED and stats.max < _TAME


def _square_of_difference(stored: Array, arrived: Array) -> float:
    """The sum of the squared differences, in blocks; NaN or infinite where what arrived is not finite."""
    ours, theirs = np.ascontiguousarray(stored).reshape(-1), np.ascontiguousarray(arrived).reshape(-1)
    difference = np.empty(min(_BLOCK, ours.size), np.result_type(ours, theirs))
    total = 0.0
    with np.errstate(all="ignore"):
        for start in range(0, ours.size, _BLOCK):
            part = np.subtract(theirs[start : start + _BLOCK], ours[start : start + _BLOCK], out=difference[: ours.size - start])
            whole = part.size - part.size % _CHUNK
            rows = part[:whole].reshape(-1, 1, _CHUNK)
            total += float(np.matmul(rows, rows.transpose(0, 2, 1)).sum(dtype=np.float64)) + float(np.dot(part[whole:], part[whole:]))
    return total
