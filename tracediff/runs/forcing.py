"""Forcing: an observer that compares what a port hands over with what the reference did, and then hands it the reference's.

At every paired boundary the port's own tensor is what gets recorded; the run goes on with the reference's, in the port's layout and
dtype. So each site is fed what the reference's was fed: the error seen there is the error introduced there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment import Alignment, RecordPair
from tracediff.alignment.axes import relative_error
from tracediff.alignment.call_evidence import in_another_order
from tracediff.alignment.thresholds import THRESHOLDS as ALIGNMENT
from tracediff.locate.estimates import at_least
from tracediff.locate.flow import PairFlow, is_moved_boundary
from tracediff.metrics import compare
from tracediff.observe.observer import Boundary, Observer, Run
from tracediff.runs.call_numbers import CallNumbers
from tracediff.runs.replacements import PlacedPair, Replacements
from tracediff.site import is_returned
from tracediff.trace import Record, Trace
from tracediff.trace.reads import Reads

_NOTHING_LIKE = 0.5  # relative error of all that a function takes in from which on it may be another call than the reference's

Where = tuple[str, int, str]
"""Site, ordinal and end: what names a boundary's tensor in two runs of one program."""


class Forcing(Observer):
    """Hands a port the reference's tensors.

    ``alignment`` pairs the reference with ``discovery``, a free run of the same port on the same inputs: from it the port's sites,
    argument names, call numbers and layouts are known. A paired call that raises is made to return what the reference's returned.
    Where a scale or a bias is applied inside a module on one side and outside on the other, nothing is handed over: it would be applied
    twice. Nor is what the reference itself does not read: the port may read something else there. ``forced`` counts the tensors that were
    replaced, ``reshaped`` those of them that came in another shape, ``failures`` names the calls that raised.
    """

    def __init__(self, reference: Trace, discovery: Trace, alignment: Alignment) -> None:
        self.forced = 0
        self.failures: list[str] = []
        self._replacements = Replacements(reference, discovery, alignment)
        self._numbers = CallNumbers(discovery)
        self._pairs: dict[Where, list[PlacedPair]] = {}
        moved = moved_boundaries(reference, discovery, alignment)
        reads = Reads(reference)
        for pair in alignment.records:
            is_kept = pair.port[0] in moved or all(map(reads.is_unread, pair.reference))
            for place, row in enumerate(() if is_kept else pair.port):
                self._pairs.setdefault(place_of(discovery.records[row]), []).append((pair, place))
        self._returned = outputs_by_call(reference)
        self._partner = {pair.port: pair.reference for pair in alignment.pairs if pair.port is not None and pair.reference is not None}
        self._same_call = _call_pairs(reference, discovery, alignment)
        self._bridged: set[int] = set()
        self._alone: set[int] = set()

    @property
    def reshaped(self) -> int:
        """How many of the replaced tensors came in another shape than the port's own."""
        return self._replacements.reshaped

    def start(self, run: Run) -> None:
        self._run = run
        self._numbers.start()
        self._bridged.clear()
        self._alone.clear()

    def keep_shapes(self) -> None:
        """From now on nothing is handed over in another shape than the port's own, which the port may not get along with."""
        self._replacements.keep_shapes()
        self.forced = 0
        self.failures.clear()

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        number = self._numbers.of(boundary)
        if boundary.moment == "raise":
            return self._instead(boundary, number)
        if boundary.moment in ("draw", "return"):  # a draw is played back, in the scale that its call asks for
            return None
        if boundary.moment == "leave" and boundary.frame_id in (self._bridged | self._alone):  # the reference's already, or none of it
            return None
        replaced = {}
        for end, tensor in boundary.leaves:
            pairs = self._pairs.get((boundary.site, number, end), ())
            if pairs and not end.startswith("attr["):  # an attribute is recorded, never handed over
                values = self._replacements.of(pairs, tensor, self._run)
                if values is not None:
                    replaced[end] = values
        if boundary.moment == "enter" and "!" in boundary.site and self._is_another(boundary, number, replaced):
            self._alone.add(boundary.frame_id)
            return None
        self.forced += len(replaced)
        return replaced

    def _is_another(self, boundary: Boundary, number: int, handed: Mapping[str, Any]) -> bool:
        """Whether a function takes in nothing like what the reference's did, and is surely, or may well be, another call.

        A sampler that sorts after its softmax, not before, would keep other tokens with what belongs to the other order; and where
        only their order pairs two calls, values that have nothing in common say that they are not one.
        """
        own = dict(boundary.leaves)
        arrays = [(end, values) for end, values in handed.items() if isinstance(values, np.ndarray) and not dtypes.of(values).is_exact]
        both = [(values, self._run.adapter.view(own[end])) for end, values in arrays]
        alike = [(ours, theirs) for ours, theirs in both if ours.shape == theirs.shape]
        if not alike or any(relative_error(ours, theirs) < _NOTHING_LIKE for ours, theirs in alike):
            return False
        pairs = (pair for end, _ in arrays for pair, _ in self._pairs[boundary.site, number, end])
        is_unsure = any(pair.confidence <= ALIGNMENT.confidence_unsure_call for pair in pairs)
        return is_unsure or any(in_another_order(ours, theirs) for ours, theirs in alike)

    def _instead(self, boundary: Boundary, number: int) -> dict[str, Any] | None:
        """What the reference's call returned, for a paired call that raised: the same call, else the one of the same number."""
        same, partner = self._same_call.get((boundary.site, number)), self._partner.get(boundary.site)
        if same is None and partner is not None:
            same = partner, boundary.ordinal
        returned = None if same is None else self._replacements.returned(boundary.site, self._returned.get(same, {}))
        if returned is not None:
            self.failures.append(boundary.call)
            self._bridged.add(boundary.frame_id)
        return returned


def _call_pairs(reference: Trace, discovery: Trace, alignment: Alignment) -> dict[tuple[str, int], tuple[str, int]]:
    """The reference's call, by site and ordinal, for each of the port's of which some record is paired one to one."""
    found: dict[tuple[str, int], tuple[str, int]] = {}
    for pair in alignment.records:
        if len(pair.reference) == len(pair.port) == 1:
            ours, theirs = reference.records[pair.reference[0]], discovery.records[pair.port[0]]
            if alignment.reference_of.get(theirs.site) == ours.site:
                found.setdefault((theirs.site, theirs.ordinal), (ours.site, ours.ordinal))
    return found


def moved_boundaries(reference: Trace, port: Trace, alignment: Alignment) -> set[int]:
    """The port's rows of outputs that surely differ although everything that consumes them agrees, in two free runs.

    Consumers are those seen to take in that very tensor, on either side, in whatever order.
    """
    pairs, flow = alignment.records, PairFlow(reference, port, alignment.records)

    def is_moved(i: int) -> bool:
        consumers = flow.recorded_consumers(i, only_later=False, only_last_of_row=True)
        return bool(consumers) and _differs_surely(reference, port, pairs[i]) and is_moved_boundary(consumers, agrees)

    def agrees(i: int) -> bool:
        return _agrees(reference, port, pairs[i])

    single = (i for i, pair in enumerate(pairs) if len(pair.reference) == len(pair.port) == 1)
    return {pairs[i].port[0] for i in single if flow.kind(i) == "output" and is_moved(i)}


def _differs_surely(reference: Trace, port: Trace, pair: RecordPair) -> bool:
    """Whether the statistics of a pair prove a difference that rounding does not explain."""
    ours, theirs = reference.records[pair.reference[0]], port.records[pair.port[0]]
    usual = dtypes.coarser(dtypes.named(ours.dtype), dtypes.named(theirs.dtype))
    return pair.layout is not None and not usual.is_exact and at_least(ours, theirs, pair.layout).rel_l2 > usual.rtol


def _agrees(reference: Trace, port: Trace, pair: RecordPair) -> bool:
    """Whether the values of a pair agree as far as rounding lets them."""
    ours, theirs = [reference.records[row] for row in pair.reference], [port.records[row] for row in pair.port]
    if pair.layout is None or not all(record.stored for record in (*ours, *theirs)):
        return False
    usual = dtypes.coarser(dtypes.named(ours[0].dtype), dtypes.named(theirs[0].dtype))
    metrics = compare(ours, theirs, layout=pair.layout, ulp=False)
    return metrics.mismatched == 0 if metrics.exact else metrics.rel_l2 <= usual.rtol


def rows_by_place(trace: Trace) -> dict[Where, int]:
    """The row of each record by its site, ordinal and end."""
    texts, index = trace.strings, trace.index
    columns = (index[name].tolist() for name in ("site", "ordinal", "end"))
    return {(texts[site], ordinal, texts[end]): row for row, (site, ordinal, end) in enumerate(zip(*columns, strict=True))}


def place_of(record: Record) -> Where:
    """What names a record in two runs of one program."""
    return record.site, record.ordinal, record.end


def outputs_by_call(trace: Trace) -> dict[tuple[str, int], dict[str, int]]:
    """The rows of what each call returned, by its site and ordinal and then by end."""
    found: dict[tuple[str, int], dict[str, int]] = {}
    for (site, ordinal, end), row in rows_by_place(trace).items():
        if is_returned(end):
            found.setdefault((site, ordinal), {})[end] = row
    return found
