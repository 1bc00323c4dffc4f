"""Forcing: an observer that compares what a port hands over with what the reference did, and then hands it the reference's.

At every paired boundary the port's own tensor is what gets recorded; the run goes on with the reference's, in the port's layout and
dtype. So each site is fed what the reference's was fed: the error seen there is the error introduced there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from tracediff.align import Alignment, RecordPair
from tracediff.align.axes import apply_reference, restore
from tracediff.capture.observer import Boundary, Observer, Run
from tracediff.dtype import Array
from tracediff.trace import Record, Trace, schema

CACHE_BYTES = 64 * 1024 * 1024
"""Reference tensors of up to so many bytes are kept, since an input is nearly always an earlier output."""

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

    def every(self, rows: Mapping[str, int]) -> dict[str, Array] | None:
        """The values of several records by their ends; None where there are none, or one was not stored."""
        found = {end: values for end, row in rows.items() if (values := self.of(row)) is not None}
        return found if found and len(found) == len(rows) else None


class Forcing(Observer):
    """Hands a port the reference's tensors.

    ``alignment`` pairs the reference with ``discovery``, a free run of the same port on the same inputs: from it the port's sites,
    argument names, call numbers and layouts are known. A paired call that raises is made to return what the reference's returned.
    ``forced`` counts the tensors that were replaced, ``failures`` names the calls that raised.
    """

    def __init__(self, reference: Trace, discovery: Trace, alignment: Alignment) -> None:
        self.forced = 0
        self.failures: list[str] = []
        self._values = Values(reference)
        self._reference = reference
        self._discovery = Values(discovery)
        self._pairs: dict[Where, list[tuple[RecordPair, int]]] = {}
        for pair in alignment.records:
            for place, row in enumerate(pair.port):
                self._pairs.setdefault(_where(discovery.records[row]), []).append((pair, place))
        self._calls = outputs_by_call(reference)
        self._partner = {pair.port: pair.reference for pair in alignment.pairs if pair.port is not None and pair.reference is not None}

    def start(self, run: Run) -> None:
        self._run = run

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        if boundary.moment == "raise":
            return self._instead(boundary)
        if boundary.moment == "draw":  # a draw is played back, in the scale that its call asks for
            return None
        replaced = {}
        for end, tensor in boundary.leaves:
            pairs = self._pairs.get((boundary.site, boundary.ordinal, end), ())
            if pairs and not isinstance(tensor, str):
                values = self._handed_all(pairs, self._run.adapter.view(tensor))
                if values is not None:
                    replaced[end] = values
        self.forced += len(replaced)
        return replaced

    def _handed_all(self, pairs: Sequence[tuple[RecordPair, int]], own: Array) -> Array | None:
        """What one of the port's tensors is exchanged for; of a fused one each pair gives its part."""
        handed: Array | None = None
        for pair, place in pairs:
            values = self._handed(pair, place, own if handed is None else handed)
            handed = handed if values is None else values
        return handed

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
        reference = reference.astype(own.dtype, copy=False)
        return restore(reference, pair.layout, port)[place]

    def _port_side(self, pair: RecordPair, place: int, own: Array) -> list[Array] | None:
        """The port's tensors of a pair: of those that are not here now, what the discovery run saw."""
        port: list[Array] = []
        for other, row in enumerate(pair.port):
            values = own if other == place else self._discovery.of(row)
            if values is None:
                return None
            port.append(values)
        return port

    def _instead(self, boundary: Boundary) -> dict[str, Array] | None:
        """What the reference's call of the same number returned, for a paired call that raised."""
        partner = self._partner.get(boundary.site)
        handed = self._values.every(self._calls.get((partner, boundary.ordinal), {})) if partner is not None else None
        if handed is not None:
            self.failures.append(boundary.call)
        return handed


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
        if end.startswith("output") and not end.startswith("output.input["):
            found.setdefault((site, ordinal), {})[end] = row
    return found
