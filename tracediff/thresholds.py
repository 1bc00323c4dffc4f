"""Numbers that decide, as data: each package keeps its own in one frozen table, ``THRESHOLDS`` of its ``thresholds.py``.

A table is a frozen dataclass whose fields are made by `threshold`, so that every number has a name, a meaning and a source. Code reads a
number where it needs it (``THRESHOLDS.worth_pairing``), never at import, so that an ablation can change one for a while.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field, fields
from typing import Any, TypeVar

N = TypeVar("N", int, float)


def threshold(value: N, means: str, measured_on: str) -> N:
    """A field of a table of thresholds: its value, what it decides, and what that value was measured on."""
    made: N = field(default=value, metadata={"means": means, "measured_on": measured_on})
    return made


@contextmanager
def changed(table: Any, name: str, value: float) -> Iterator[None]:
    """A number of a frozen table has another value inside the block: an ablation asks what it is worth."""
    before = getattr(table, name)
    object.__setattr__(table, name, value)
    try:
        yield
    finally:
        object.__setattr__(table, name, before)


def described(table: Any) -> list[tuple[str, float, str, str]]:
    """(name, value, meaning, what it was measured on) of each number of a table, in its order."""
    return [(one.name, getattr(table, one.name), one.metadata["means"], one.metadata["measured_on"]) for one in fields(table)]
