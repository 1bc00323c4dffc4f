"""Forcing: an observer that compares what a port hands over with what the reference did, and then hands it the reference's.

At every paired boundary the port's own tensor is what gets recorded; the run goes on with the reference's, in the port's layout and
dtype. So each site is fed what the reference's was fed: the error seen there is the error introduced there.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment import Alignment, RecordPair
from tracediff.alignment.axes import apply_reference, relative_error, restore
from tracediff.alignment.call_evidence import in_another_order
from tracediff.alignment.thresholds import THRESHOLDS as ALIGNMENT
from tracediff.compare import at_least, compare
from tracediff.dtype import Array
from tracediff.observe.observer import Boundary, Observer, Run
from tracediff.site import is_returned
from tracediff.trace import Record, Trace, schema

CACHE_BYTES = 64 * 1024 * 1024
"""Reference tensors of up to so many bytes are kept, since an input is nearly always an earlier output."""

_MOST_AXES = 5
_NOTHING_LIKE = 0.5  # relative error of all that a function takes in from which on it may be another call than the reference's

Where = tuple[str, int, str]
"""Site, ordinal and end: what names a boundary's tensor in two runs of one program."""


class Values:
    """The stored values of a trace's records, the most recently read ones kept."""

    def __init__(self, trace: Trace, limit: int = CACHE_BYTES) -> None:
        self._trace = trace
        self._limit = limit
        self._kept: OrderedDict[bytes, Array] = OrderedDict()
        self._bytes = 0

    def of(self, row: int) -> Array | None:
        """The values of a record; None where they were not stored. Not to be written to."""
        record = self._trace.records[row]
        if not record.stored or record.flags & schema.TEXT:
            return None
        key = record.digest + repr((record.dtype, record.shape)).encode()
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        values = record.read()
        self._kept[key] = values
        self._bytes += values.nbytes
        while self._bytes > self._limit and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return values

    def shape(self, row: int) -> tuple[int, ...]:
        """The shape of a record."""
        return self._trace.records[row].shape

    def every(self, rows: Mapping[str, int]) -> dict[str, Array] | None:
        """The values of several records by their ends; None where there are none, or one was not stored."""
        found = {end: values for end, row in rows.items() if (values := self.of(row)) is not None}
        return found if found and len(found) == len(rows) else None


class Forcing(Observer):
    """Hands a port the reference's tensors.

    ``alignment`` pairs the reference with ``discovery``, a free run of the same port on the same inputs: from it the port's sites,
    argument names, call numbers and layouts are known. A paired call that raises is made to return what the reference's returned.
    Where a scale or a bias is applied inside a module on one side and outside on the other, nothing is handed over: it would be applied
    twice. ``forced`` counts the tensors that were replaced, ``reshaped`` those of them that came in another shape, ``failures`` names the
    calls that raised.
    """

    def __init__(self, reference: Trace, discovery: Trace, alignment: Alignment) -> None:
        self.forced = 0
        self.failures: list[str] = []
        self._values = Values(reference)
        self._reference = reference
        self._discovery = Values(discovery)
        self._pairs: dict[Where, list[tuple[RecordPair, int]]] = {}
        moved = moved_boundaries(reference, discovery, alignment)
        for pair in alignment.records:
            for place, row in enumerate(pair.port if pair.port[0] not in moved else ()):
                self._pairs.setdefault(_where(discovery.records[row]), []).append((pair, place))
        self._numbers = _numbered_calls(discovery)
        self._calls = outputs_by_call(reference)
        self._partner = {pair.port: pair.reference for pair in alignment.pairs if pair.port is not None and pair.reference is not None}
        self._same_call = _call_pairs(reference, discovery, alignment)
        self._layouts = _layouts(reference, alignment)
        self._parts = {one.port: one.part for one in alignment.pairs if one.port is not None and one.part and one.whole == "reference"}
        self._dtype = str(discovery.meta.get("dtype"))
        self._misshapen = _misshapen(reference, alignment)
        self.reshaped = 0
        self._bridged: set[int] = set()
        self._alone: set[int] = set()
        self._known: dict[int, int] = {}
        self._counts: Counter[Spot] = Counter()

    def start(self, run: Run) -> None:
        self._run = run
        for known in (self._bridged, self._alone, self._known, self._counts):
            known.clear()

    def keep_shapes(self) -> None:
        """From now on nothing is handed over in another shape than the port's own, which the port may not get along with."""
        self._misshapen = set()
        self.forced = self.reshaped = 0
        self.failures.clear()

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        number = self._number(boundary)
        if boundary.moment == "raise":
            return self._instead(boundary, number)
        if boundary.moment == "draw":  # a draw is played back, in the scale that its call asks for
            return None
        if boundary.moment == "leave" and boundary.frame_id in (self._bridged | self._alone):  # the reference's already, or none of it
            return None
        replaced = {}
        for end, tensor in boundary.leaves:
            pairs = self._pairs.get((boundary.site, number, end), ())
            if pairs and not end.startswith("attr["):  # an attribute is told, not handed over
                values = self._text(pairs) if isinstance(tensor, str) else self._handed_all(pairs, self._run.adapter.view(tensor))
                if values is not None:
                    replaced[end] = values
        if boundary.moment == "enter" and "!" in boundary.site and self._is_another(boundary, number, replaced):
            self._alone.add(boundary.frame_id)
            return None
        self.forced += len(replaced)
        return replaced

    def _number(self, boundary: Boundary) -> int:
        """The number that a call had in the discovery run, -1 where that did not come to it.

        A run that is fed may take other branches than by itself, so that numbers alone would shift: a call is known by the call that
        makes it, a function's or a tap's also by the line that does.
        """
        if boundary.frame_id not in self._known:
            spot = _spot(boundary.site, boundary.call, boundary.file, boundary.line)
            count = self._counts[spot]
            self._counts[spot] += 1
            self._known[boundary.frame_id] = self._numbers.get((spot, count), -1)
        return self._known[boundary.frame_id]

    def _is_another(self, boundary: Boundary, number: int, handed: Mapping[str, Any]) -> bool:
        """Whether a function takes in nothing like what the reference's did, and is surely, or may well be, another call.

        A sampler that sorts after its softmax, not before, would keep other tokens with what belongs to the other order; and where
        only their order pairs two calls, values that have nothing in common say that they are not one.
        """
        own = dict(boundary.leaves)
        arrays = [(end, values) for end, values in handed.items() if isinstance(values, np.ndarray) and not dtypes.of(values).is_exact]
        told = [(values, self._run.adapter.view(own[end])) for end, values in arrays]
        told = [(values, other) for values, other in told if values.shape == other.shape]
        if not told or any(relative_error(values, other) < _NOTHING_LIKE for values, other in told):
            return False
        unsure = (
            pair.confidence <= ALIGNMENT.confidence_unsure_call for end, _ in arrays for pair, _ in self._pairs[boundary.site, number, end]
        )
        return any(in_another_order(values, other) for values, other in told) or any(unsure)

    def _handed_all(self, pairs: Sequence[tuple[RecordPair, int]], own: Array) -> Any:
        """What one of the port's tensors is exchanged for; of a fused one each pair gives its part."""
        if len(pairs) == 1 and pairs[0][0].layout is None:
            return self._reshaped(pairs[0][0], own)
        handed: Array | None = None
        for pair, place in pairs:
            values = self._handed(pair, place, own if handed is None else handed)
            handed = handed if values is None else values
        return handed

    def _text(self, pairs: Sequence[tuple[RecordPair, int]]) -> str | None:
        """The reference's text for one of the port's, of whatever length."""
        record = self._reference.records[pairs[0][0].reference[0]]
        return record.text() if record.stored and record.dtype == "text" and not record.flags & schema.RAISED else None

    def _handed(self, pair: RecordPair, place: int, own: Array) -> Array | None:
        """The reference's values for one of the port's tensors of a pair, in that tensor's layout."""
        if pair.layout is None:
            return None
        theirs = [self._values.of(row) for row in pair.reference]
        if any(values is None for values in theirs):
            return None
        port = self._port_side(pair, place, own)
        if port is None:
            return None
        reference = apply_reference([values for values in theirs if values is not None] if len(theirs) > 1 else theirs[0], pair.layout)  # type: ignore[arg-type]
        if "b" in (reference.dtype.kind, own.dtype.kind) and dtypes.of(reference).is_exact != dtypes.of(own).is_exact:
            return None  # masks of two conventions: what is true in one is added in the other
        reference = reference.astype(own.dtype, copy=False)
        return restore(reference, pair.layout, port)[place]

    def _port_side(self, pair: RecordPair, place: int, own: Array) -> list[Array] | None:
        """The port's tensors of a pair: of those that are not here now, what the discovery run saw, where more than their shape counts."""
        port: list[Array] = []
        by_shape = pair.layout is not None and pair.layout.window is None and pair.layout.part is None
        for other, row in enumerate(pair.port):
            shape = self._discovery.shape(row)
            if by_shape and (other != place or own.shape != shape):
                port.append(np.broadcast_to(own.dtype.type(0), shape))
                continue
            values = own if other == place and own.shape == shape else self._discovery.of(row)
            if values is None:
                return None
            port.append(values)
        return port

    def _reshaped(self, pair: RecordPair, own: Array) -> Any:
        """The reference's tensor in the place of one whose shape no layout reconciles, its axes in the port's order as far as lengths
        tell; None where the port gets along with the shape that it has, or the two are not of one kind.
        """
        if pair.reference[0] not in self._misshapen:
            return None
        values = self._values.of(pair.reference[0])
        if values is None or dtypes.of(values).is_exact != dtypes.of(own).is_exact:
            return None
        self.reshaped += 1
        values = values.transpose(likely_axes(values.shape, own.shape)).astype(own.dtype, copy=False)
        return self._run.adapter.from_numpy(values, None) if values.size == own.size else values

    def _instead(self, boundary: Boundary, number: int) -> dict[str, Any] | None:
        """What the reference's call returned, for a paired call that raised: the same call, else the one of the same number."""
        ours = self._same_call.get((boundary.site, number)) or (self._partner.get(boundary.site), boundary.ordinal)
        handed = self._values.every(self._calls.get(ours, {})) if ours[0] is not None else None  # type: ignore[arg-type]
        if handed is None:
            return None
        self.failures.append(boundary.call)
        self._bridged.add(boundary.frame_id)
        return {end: self._ported(boundary.site, end, values) for end, values in handed.items()}

    def _ported(self, site: str, end: str, values: Array) -> Array:
        """A tensor of the reference as the port would have made it: in its dtype, its part of a fused one, and with the axes of what
        else the site returns, or takes in where it never returned anything.
        """
        part = self._parts.get(site)
        if part is not None and values.ndim and values.shape[-1] >= part.stop * part.groups:
            values = replace(part, axis=values.ndim - 1)(values)
        kind = dtypes.BY_NAME.get(self._dtype)
        if kind is not None and not kind.is_exact and values.dtype.kind not in "biuc" and values.dtype != kind.view:
            values = values.astype(kind.view)
        permutation = self._layouts.get((site, end)) or self._layouts.get((site, str(values.ndim)))
        return values if permutation is None or len(permutation) != values.ndim else values.transpose(np.argsort(permutation))


Spot = tuple[str, str, str, int]
"""A site, the call (of a module) or the caller (of a function), and for a function the file and line that calls it."""


def _spot(site: str, call: str, file: str, line: int) -> Spot:
    is_plain = "!" not in site and "#" not in site
    return (site, call, "", 0) if is_plain else (site, call.rpartition("/")[0], file, line)


def _numbered_calls(trace: Trace) -> dict[tuple[Spot, int], int]:
    """The number of each call at its site, by where it stands and how many calls stood there before."""
    texts, found = trace.strings, {}
    counts: Counter[Spot] = Counter()
    _, first = np.unique(trace.index[["site", "ordinal"]], return_index=True)
    columns = (trace.index[name][np.sort(first)].tolist() for name in ("site", "call", "file", "line", "ordinal"))
    for site, call, file, line, ordinal in zip(*columns, strict=True):
        spot = _spot(texts[site], texts[call], texts[file], line)
        found[spot, counts[spot]] = ordinal
        counts[spot] += 1
    return found


def likely_axes(reference: tuple[int, ...], port: tuple[int, ...]) -> tuple[int, ...]:
    """The order of the reference's axes in which most lengths are those of the port: the plain one unless another is better.

    >>> likely_axes((2, 80, 100), (2, 101, 80)), likely_axes((2, 3), (2, 4))
    ((0, 2, 1), (0, 1))
    """
    plain = tuple(range(len(reference)))
    if len(reference) != len(port) or len(port) > _MOST_AXES:
        return plain
    return max(permutations(plain), key=lambda order: sum(reference[axis] == length for axis, length in zip(order, port, strict=True)))


def _call_pairs(reference: Trace, discovery: Trace, alignment: Alignment) -> dict[tuple[str, int], tuple[str, int]]:
    """The reference's call, by site and ordinal, for each of the port's of which some record is paired one to one."""
    found: dict[tuple[str, int], tuple[str, int]] = {}
    for pair in alignment.records:
        if len(pair.reference) == len(pair.port) == 1:
            ours, theirs = reference.records[pair.reference[0]], discovery.records[pair.port[0]]
            if alignment.reference_of.get(theirs.site) == ours.site:
                found.setdefault((theirs.site, theirs.ordinal), (ours.site, ours.ordinal))
    return found


def _layouts(reference: Trace, alignment: Alignment) -> dict[tuple[str, str], tuple[int, ...]]:
    """How the axes of a site of the port lie in the reference: by the port's site and the reference's end, and by the number of axes."""
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    for pair in alignment.records:
        port = alignment.pairs[pair.sites].port
        if pair.layout is not None and pair.layout.permutation is not None and port is not None:
            found.setdefault((port, reference.records[pair.reference[0]].end), pair.layout.permutation)
            found.setdefault((port, str(len(pair.layout.permutation))), pair.layout.permutation)
    return found


def _misshapen(reference: Trace, alignment: Alignment) -> set[int]:
    """The reference's rows whose shape nothing reconciles with the port's, and whose shape matters to what the port does with it.

    Not an output of which some consumer gets the right shape, nor an input of a call that returns the right shapes.
    """
    shaped = {row for pair in alignment.records if pair.layout is not None for row in pair.reference}
    wrong = {pair.reference[0] for pair in alignment.records if pair.layout is None and len(pair.reference) == len(pair.port) == 1}
    producers = reference.index["producer"]
    fine = {int(producers[row]) for row in shaped if producers[row] >= 0}
    records = reference.records
    returned = {(records[row].site, records[row].ordinal) for row in shaped if wrong and not records[row].end.startswith("input")}

    def matters(row: int) -> bool:
        record = records[row]
        return (record.site, record.ordinal) not in returned if record.end.startswith("input") else row not in fine

    return {row for row in wrong if matters(row)}


def moved_boundaries(reference: Trace, port: Trace, alignment: Alignment) -> set[int]:
    """The port's rows of outputs that surely differ although everything that consumes them agrees, in two free runs.

    Consumers are those seen to take in that very tensor, on either side.
    """
    of_row: tuple[dict[int, RecordPair], dict[int, RecordPair]] = ({}, {})
    takers: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})
    for side, trace in enumerate((reference, port)):
        of_row[side].update({row: pair for pair in alignment.records for row in (pair.reference, pair.port)[side]})
        for row, producer in enumerate(trace.index["producer"].tolist()):
            if producer >= 0 and row in of_row[side]:
                takers[side].setdefault(producer, []).append(row)

    def is_moved(pair: RecordPair) -> bool:
        ours, theirs = pair.reference[0], pair.port[0]
        consumers = [of_row[0][row] for row in takers[0].get(ours, ())] + [of_row[1][row] for row in takers[1].get(theirs, ())]
        return bool(consumers) and _differs_surely(reference, port, pair) and all(_agrees(reference, port, one) for one in consumers)

    outputs = (pair for pair in alignment.records if len(pair.reference) == len(pair.port) == 1)
    return {pair.port[0] for pair in outputs if reference.records[pair.reference[0]].end.startswith("output") and is_moved(pair)}


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


def _where(record: Record) -> Where:
    return record.site, record.ordinal, record.end


def outputs_by_call(trace: Trace) -> dict[tuple[str, int], dict[str, int]]:
    """The rows of what each call returned, by its site and ordinal and then by end."""
    found: dict[tuple[str, int], dict[str, int]] = {}
    for (site, ordinal, end), row in rows_by_place(trace).items():
        if is_returned(end):
            found.setdefault((site, ordinal), {})[end] = row
    return found
