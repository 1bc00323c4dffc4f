"""Pairs the sites and records of two traces: by stated mapping, parameters, values, structure and order."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tracediff.alignment.axes import Layout
from tracediff.alignment.pairing import align_sides
from tracediff.alignment.result import Alignment, RecordPair, SitePair
from tracediff.alignment.structure import Side
from tracediff.trace import Trace

__all__ = ["Alignment", "Layout", "RecordPair", "SitePair", "align"]


def align(reference: Trace, port: Trace, *, mapping: str | os.PathLike[str] | Mapping[str, Any] | None = None) -> Alignment:
    """Which sites and records of two open traces correspond.

    ``mapping`` is the path of a mapping file, or its content (see `tracediff.alignment.mapping`); what it states is taken as it is.
    Raises AlignmentError where the mapping is wrong, a trace holds no records, or the two share nothing that could be paired.
    """
    with _uncollected():
        return align_sides(Side(reference), Side(port), mapping)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pauses the search for cyclic garbage: aligning makes many small objects and no cycles, and would be a fifth slower with it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
