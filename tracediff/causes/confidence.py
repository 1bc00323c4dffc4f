"""How sure a report says it is of a cause: what a detector holds likely, as the share of such causes that were right on known faults.

`python -m benchmarks.confidence --fit` measures the shares, on pairs of models that no detector was mended by.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from tracediff.causes.cause import Cause
from tracediff.causes.thresholds import CONFIDENCE, Table


def family(kind: str, *, confirmed: bool) -> str:
    """Which table a cause is looked up in: "weights", "confirmed" or "likely"."""
    return "weights" if kind.startswith("weights.") else "confirmed" if confirmed else "likely"


def calibrated(cause: Cause) -> Cause:
    """The cause with the share of causes of its likelihood that were right as its confidence."""
    table = CONFIDENCE[family(cause.kind, confirmed=cause.confirmed)]
    return replace(cause, confidence=share_right(table, cause.confidence))


def share_right(table: Table, likelihood: float) -> float:
    """The share at a likelihood, between the entries of a table in proportion, and at its ends that of the end; rounded to 3 digits.

    >>> share_right(((0.5, 0.2), (0.9, 0.8)), 0.7), share_right(((0.5, 0.2), (0.9, 0.8)), 1.0)
    (0.5, 0.8)
    """
    if likelihood <= table[0][0]:
        return table[0][1]
    for (low, first), (high, second) in pairwise(table):
        if likelihood <= high:
            return round(first + (second - first) * (likelihood - low) / (high - low), 3)
    return table[-1][1]
