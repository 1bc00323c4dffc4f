"""Whether a run repeats: the digests of one run, to be compared with those of another or with a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tracediff.observe.observer import Boundary, Observer, Run
from tracediff.observe.provenance import digest_of
from tracediff.observe.types import Tensor

if TYPE_CHECKING:
    from tracediff.trace import Trace

Place = tuple[str, str, str]
"""Site, call and end of a record."""


class Digests(Observer):
    """Keeps the digest of every tensor and text of a run, 16 bytes each and no values."""

    def __init__(self) -> None:
        self.seen: dict[Place, bytes] = {}

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

    def first_difference(self, other: Digests | Trace) -> Place | None:
        """The first place whose content differs in ``other``, in its order; None where this run repeats it.

        A trace may be a selection, so only its own records count. Of another run the places that only this run has count too.
        """
        if not isinstance(other, Digests):
            return _first(of_trace(other), self.seen)
        return _first(other.seen, self.seen) or _first(self.seen, other.seen)


def of_trace(trace: Trace) -> dict[Place, bytes]:
    """The digests that a trace recorded; the texts of exceptions are left out."""
    return {(record.site, record.call, record.end): record.digest for record in trace.records if "error" not in record.note}


def repeats_meta(first: Place | None) -> dict[str, Any]:
    """What a trace says of whether its run repeats, told the first difference of a second run."""
    where = {} if first is None else {"repeats_first": dict(zip(("site", "call", "end"), first, strict=True))}
    return {"repeats": first is None, **where}


def _first(expected: Mapping[Place, bytes], seen: Mapping[Place, bytes]) -> Place | None:
    return next((place for place, digest in expected.items() if seen.get(place) != digest), None)
