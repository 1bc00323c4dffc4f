"""Bisection without stored traces: both sides are run again for each round, and only what one frame sees is held.

Each side is first run twice. The first run records statistics and digests, no values: from them the sites are paired, and every later
run is checked against them. The second run proves that the side repeats itself. Then the search goes from the outermost calls
inwards. A round runs both sides once more, holds the inputs and outputs of the calls that one frame makes, and steps into the first
call whose inputs agree and whose output does not. So there are about as many rounds as the tree of calls is deep.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tracediff.alignment import Alignment, align
from tracediff.alignment.partial_layouts import UNREAD
from tracediff.errors import CaptureError
from tracediff.locate import Located, locate
from tracediff.runs.live import PathLike, RerunTrace, Say, Side, does_not_repeat
from tracediff.runs.thresholds import THRESHOLDS
from tracediff.trace import Trace

Mapped = PathLike | Mapping[str, Any] | None


class Rounds:
    """Fetches values for the search: each round runs both sides once more (`tracediff.locate.Again`).

    ``count`` rounds were made, and ``runs_afterwards`` runs of one side for values that were read after the search. ``most_held`` bytes
    were held at once at most, ``fetched`` bytes in all.
    """

    def __init__(self, reference: RerunTrace, port: RerunTrace, most: int, say: Say) -> None:
        self.most = most
        self.count = self.runs_afterwards = self.most_held = self.fetched = 0
        self._sides = reference, port
        self._say = say

    def fetch(self, reference: Sequence[int], port: Sequence[int]) -> None:
        self.count += 1
        self._say(f"round {self.count}: {len(reference):,} tensors of the reference, {len(port):,} of the port")
        held = sum(side.hold(rows) for side, rows in zip(self._sides, (reference, port), strict=True))
        self.most_held = max(self.most_held, held)
        self.fetched += held

    def on_demand(self, trace: RerunTrace, row: int) -> None:
        """One more run of one side for a value that is read after the search, and for as many around it as this side may hold."""
        self.runs_afterwards += 1
        nearest = np.argsort(np.abs(np.arange(len(trace.index)) - row), kind="stable")
        fits = np.cumsum(trace.index["nbytes"][nearest].astype(np.int64)) <= self.most // 2
        held = trace.hold(sorted({row, *nearest[fits].tolist()}))
        self.most_held = max(self.most_held, held)
        self.fetched += held


@dataclass(frozen=True, slots=True)
class LiveResult:
    """What a live bisection located. The traces hold no values but fetch what is read; `certificate` says how many runs were made."""

    located: Located
    alignment: Alignment
    reference: RerunTrace
    port: RerunTrace
    rounds: Rounds

    def certificate(self) -> dict[str, Any]:
        """The rounds, and what was recorded and held in them."""
        return {
            "rounds": self.rounds.count,
            "runs_for_causes": self.rounds.runs_afterwards,
            "proof": "each side was run twice: the digests of all its tensors are the same, and each round's are those of the first run",
            "recorded": "statistics and digests of every tensor; in each round the inputs and outputs of the calls of one frame",
            "bytes_held": self.rounds.most_held,
            "bytes_fetched": self.rounds.fetched,
            "bytes_of_index": sum(int(side.index.nbytes) for side in (self.reference, self.port)),
        }


@contextmanager
def searched(
    reference: Side,
    port: Side,
    *,
    mapping: Mapped = None,
    rtol: float | None = None,
    atol: float | None = None,
    strict: bool = False,
    stages: Sequence[str] = (),
    most: int | None = None,
    say: Say = lambda _: None,
) -> Iterator[LiveResult]:
    """Where two sides first part, found by running each about as often as the calls are nested.

    ``most``: bytes that may be held at once where no single frame needs more, by default `THRESHOLDS`' ``live_bytes``. The rest is as in
    `tracediff.locate.locate`. Raises CaptureError where a side does not repeat itself, and where the reference raises.
    """
    with tempfile.TemporaryDirectory(prefix="tracediff-live-") as place:
        folder = Path(place)
        with _opened(reference, folder, say) as first, _opened(port, folder, say) as second:
            rounds = Rounds(first, second, THRESHOLDS.live_bytes if most is None else most, say)
            alignment = _aligned(first, second, mapping, rounds)
            first.on_demand = second.on_demand = rounds.on_demand
            located = locate(alignment, first, second, mode="free", rtol=rtol, atol=atol, strict=strict, stages=stages, again=rounds)
            yield LiveResult(located, alignment, first, second, rounds)


@contextmanager
def _opened(side: Side, folder: Path, say: Say) -> Iterator[RerunTrace]:
    """The statistics of one side's run, after it was run twice."""
    say(f"running the {side.name} twice: statistics and digests only")
    path = folder / f"{side.name}.h5"
    side.index(path)
    with RerunTrace(path, side, folder) as trace:
        if trace.meta.get("repeats") is False:
            where = trace.meta["repeats_first"]
            raise CaptureError(does_not_repeat(side.name, where["site"], where["call"], where["end"]))
        raised = trace.meta.get("raised")
        if raised and (side.name == "reference" or not len(trace.records)):
            raise CaptureError(f"The {side.name}'s run raised {raised}. It has to run to its end by itself before it can be compared.")
        yield trace


def _aligned(reference: RerunTrace, port: RerunTrace, mapping: Mapped, rounds: Rounds) -> Alignment:
    """The alignment; where shapes leave a layout open, values are fetched to tell, as many as may be held at once."""
    alignment = align(reference, port, mapping=mapping)
    ours: set[int] = set()
    theirs: set[int] = set()
    size = 0
    for row, partner in _open_pairs(alignment, reference):
        size += int(reference.index["nbytes"][row]) + int(port.index["nbytes"][partner])
        if size > rounds.most:
            break
        ours.add(row)
        theirs.add(partner)
    if not ours:
        return alignment
    rounds.fetch(sorted(ours), sorted(theirs))
    return align(reference, port, mapping=mapping)


def _open_pairs(alignment: Alignment, reference: Trace) -> Iterator[tuple[int, int]]:
    """The first rows of each kind of pair whose layout only values can tell: one for each site, end and shape."""
    seen: set[tuple[int, int, int]] = set()
    for pair in alignment.records:
        if UNREAD in pair.evidence:
            row = pair.reference[0]
            kind = pair.sites, int(reference.index["end"][row]), int(reference.index["shape"][row])
            if kind not in seen:
                seen.add(kind)
                yield row, pair.port[0]
