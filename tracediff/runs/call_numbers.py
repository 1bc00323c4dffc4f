"""Which call of an earlier run a call of this run is."""

from __future__ import annotations

from collections import Counter

from tracediff.observe.observer import Boundary
from tracediff.trace import Trace

Spot = tuple[str, str, str, int]
"""A site, the call (of a module) or the caller (of a function), and for a function the file and line that calls it."""


class CallNumbers:
    """Gives the calls of a run the numbers that they had in a discovery run of the same program.

    A run that is fed may take other branches than by itself, so that numbers alone would shift. A call is known by the call that makes it,
    a function's or a tap's call also by the line that makes it.
    """

    def __init__(self, discovery: Trace) -> None:
        self._numbers = _numbered_calls(discovery)
        self.start()

    def start(self) -> None:
        """Begins a new run."""
        self._known: dict[int, int] = {}
        self._counts: Counter[Spot] = Counter()

    def of(self, boundary: Boundary) -> int:
        """The number that a boundary's call had in the discovery run, -1 where that run did not come to it."""
        if boundary.frame_id not in self._known:
            spot = _spot(boundary.site, boundary.call, boundary.file, boundary.line)
            count = self._counts[spot]
            self._counts[spot] += 1
            self._known[boundary.frame_id] = self._numbers.get((spot, count), -1)
        return self._known[boundary.frame_id]


def _spot(site: str, call: str, file: str, line: int) -> Spot:
    is_plain = "!" not in site and "#" not in site
    return (site, call, "", 0) if is_plain else (site, call.rpartition("/")[0], file, line)


def _numbered_calls(trace: Trace) -> dict[tuple[Spot, int], int]:
    """The number of each call at its site, by its spot and the number of earlier calls at that spot."""
    texts, numbers = trace.strings, {}
    counts: Counter[Spot] = Counter()
    columns = (trace.index[name][trace.calls.first].tolist() for name in ("site", "call", "file", "line", "ordinal"))
    for site, call, file, line, ordinal in zip(*columns, strict=True):
        spot = _spot(texts[site], texts[call], texts[file], line)
        numbers[spot, counts[spot]] = ordinal
        counts[spot] += 1
    return numbers
