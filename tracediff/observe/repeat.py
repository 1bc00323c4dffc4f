"""Whether a run repeats: the digests of one run, to be compared with those of another or with a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tracediff.observe.observer import Boundary, Observer, Run
from tracediff.observe.provenance import digest_of
from tracediff.observe.types import Tensor

if TYPE_CHECKING:
    from tracediff.trace import Trace

Where = tuple[str, str, str]
"""Site, call and end."""


class Digests(Observer):
    """Keeps the digest of every tensor and text of a run, 16 bytes each and no values."""

    def __init__(self) -> None:
        self.seen: dict[Where, bytes] = {}

    def start(self, run: Run) -> None:
        self._run = run

    def see(self, boundary: Boundary) -> None:
        if boundary.moment == "raise":
            return
        for end, tensor in boundary.leaves:
            tensor = boundary.replaced.get(end, tensor) if boundary.moment == "draw" else tensor
            self.seen[boundary.site, boundary.call, end] = self._digest(tensor)

    def _digest(self, tensor: Tensor) -> bytes:
        if isinstance(tensor, str):
            return digest_of(np.frombuffer(tensor.encode("utf-8", "surrogatepass"), np.uint8))
        return digest_of(self._run.adapter.view(tensor))

    def first_difference(self, other: Digests | Trace) -> Where | None:
        """The first place whose content differs there, in the order of that run; None where this run repeats it.

        Of a trace, which may be a selection, all records count; of another run also the places that only this one has.
        """
        if not isinstance(other, Digests):
            return _first(of_trace(other), self.seen)
        return _first(other.seen, self.seen) or _first(self.seen, other.seen)


def of_trace(trace: Trace) -> dict[Where, bytes]:
    """The digests that a trace recorded; the texts of exceptions are left out."""
    return {(record.site, record.call, record.end): record.digest for record in trace.records if "error" not in record.note}


def _first(expected: Mapping[Where, bytes], found: Mapping[Where, bytes]) -> Where | None:
    return next((where for where, code in expected.items() if found.get(where) != code), None)
