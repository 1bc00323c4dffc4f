"""What a port's tensors are exchanged for: the reference's values, in the port's layout, dtype and shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment import Alignment, RecordPair
from tracediff.alignment.axes import apply_reference, likely_axes, restore
from tracediff.dtype import Array, is_whole
from tracediff.observe.observer import Run
from tracediff.trace import Record, Trace, schema
from tracediff.trace.digest_table import Recent

CACHE_BYTES = 64 * 1024 * 1024
"""Reference tensors of up to so many bytes are kept, since an input is nearly always an earlier output."""
_LATEST = 4096
"""Records of which it is known what their content is."""


class Values:
    """The stored values of a trace's records, the most recently read ones kept."""

    def __init__(self, trace: Trace, limit: int = CACHE_BYTES) -> None:
        self._trace = trace
        self._limit = limit
        self._kept: OrderedDict[bytes, Array] = OrderedDict()
        self._bytes = 0
        self._records = Recent[int, tuple[Record, bytes]](_LATEST)
        self._whole = Recent[bytes, bool](_LATEST)

    def of(self, row: int) -> Array | None:
        """The values of a record; None where they were not stored. Not to be written to."""
        record, key = self._known(row)
        if not record.stored or record.flags & schema.TEXT:
            return None
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        values = record.read()
        self._kept[key] = values
        self._bytes += values.nbytes
        while self._bytes > self._limit and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return values

    def record(self, row: int) -> Record:
        """A record."""
        return self._known(row)[0]

    def key(self, row: int) -> bytes:
        """What tells the content of a record from others."""
        return self._known(row)[1]

    def is_whole(self, row: int) -> bool:
        """Whether the stored values of a record are whole numbers only (`tracediff.dtype.is_whole`)."""
        key = self._known(row)[1]
        found = self._whole.get(key)
        if found is None:
            values = self.of(row)
            found = self._whole[key] = values is not None and is_whole(values)
        return found

    def shape(self, row: int) -> tuple[int, ...]:
        """The shape of a record."""
        return self.record(row).shape

    def _known(self, row: int) -> tuple[Record, bytes]:
        """A record, and what tells its content from others."""
        known = self._records.get(row)
        if known is None:
            record = self._trace.records[row]
            known = self._records[row] = record, record.digest + repr((record.dtype, record.shape)).encode()
        return known

    def every(self, rows: Mapping[str, int]) -> dict[str, Array] | None:
        """The values of several records by their ends; None where there are none, or one was not stored."""
        found = {end: values for end, row in rows.items() if (values := self.of(row)) is not None}
        return found if found and len(found) == len(rows) else None


PlacedPair = tuple[RecordPair, int]
"""A pair of records, and the place of one of the port's tensors among the pair's."""


class Replacements:
    """The reference's values as a port can go on with them. ``discovery`` is a free run of the port, paired by ``alignment``.

    ``reshaped`` counts the tensors that came in another shape than the port's own.
    """

    def __init__(self, reference: Trace, discovery: Trace, alignment: Alignment) -> None:
        self.reshaped = 0
        self._reference = reference
        self._values, self._discovery = Values(reference), Values(discovery)
        self._dtype = dtypes.BY_NAME.get(str(discovery.meta.get("dtype")))
        self._layouts = _layouts(reference, alignment)
        self._parts = {
            pair.port: pair.part for pair in alignment.pairs if pair.port is not None and pair.part and pair.whole == "reference"
        }
        self._misshapen = _misshapen(reference, alignment)

    def keep_shapes(self) -> None:
        """From now on nothing is handed over in another shape than the port's own."""
        self._misshapen = set()
        self.reshaped = 0

    def of(self, pairs: Sequence[PlacedPair], tensor: Any, run: Run) -> Any:
        """What one of the port's tensors, or texts, is exchanged for; None where it stays. Of a fused tensor each pair gives its part."""
        if isinstance(tensor, str):
            return self._text(pairs)
        own = run.adapter.view(tensor)
        if len(pairs) == 1 and pairs[0][0].layout is None:
            return self._reshaped(pairs[0][0], own, run)
        handed: Array | None = None
        for pair, place in pairs:
            values = self._handed(pair, place, own if handed is None else handed)
            handed = handed if values is None else values
        return handed

    def _text(self, pairs: Sequence[PlacedPair]) -> str | None:
        """The reference's text for one of the port's, of whatever length."""
        record = self._reference.records[pairs[0][0].reference[0]]
        return record.text() if record.stored and record.dtype == "text" and not record.flags & schema.RAISED else None

    def _handed(self, pair: RecordPair, place: int, own: Array) -> Array | None:
        """The reference's values for one of the port's tensors of a pair, in that tensor's layout."""
        if pair.layout is None:
            return None
        stored = [values for row in pair.reference if (values := self._values.of(row)) is not None]
        if len(stored) < len(pair.reference):
            return None
        port = self._port_tensors(pair, place, own)
        if port is None:
            return None
        reference = apply_reference(stored if len(stored) > 1 else stored[0], pair.layout)
        if "b" in (reference.dtype.kind, own.dtype.kind) and dtypes.of(reference).is_exact != dtypes.of(own).is_exact:
            return None  # masks of two conventions: what is true in one is added in the other
        reference = reference.astype(own.dtype, copy=False)
        return restore(reference, pair.layout, port)[place]

    def _port_tensors(self, pair: RecordPair, place: int, own: Array) -> list[Array] | None:
        """The port's tensors of a pair: of those that are not here now, what the discovery run saw, where more than their shape counts."""
        port: list[Array] = []
        by_shape = pair.layout is not None and not pair.layout.leaves_some
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

    def _reshaped(self, pair: RecordPair, own: Array, run: Run) -> Any:
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
        return run.adapter.from_numpy(values, None) if values.size == own.size else values

    def returned(self, site: str, rows: Mapping[str, int]) -> dict[str, Array] | None:
        """What a call of the reference returned, by its ends, as a site of the port would; None where not all is stored."""
        stored = self._values.every(rows)
        return None if stored is None else {end: self._ported(site, end, values) for end, values in stored.items()}

    def _ported(self, site: str, end: str, values: Array) -> Array:
        """A tensor of the reference as the port would have made it: in its dtype, its part of a fused one, and with the axes of what
        else the site returns, or takes in where it never returned anything.
        """
        part = self._parts.get(site)
        if part is not None and values.ndim and values.shape[-1] >= part.stop * part.groups:
            values = replace(part, axis=values.ndim - 1)(values)
        kind = self._dtype
        if kind is not None and not kind.is_exact and values.dtype.kind not in "biuc" and values.dtype != kind.view:
            values = values.astype(kind.view)
        permutation = self._layouts.get((site, end)) or self._layouts.get((site, str(values.ndim)))
        return values if permutation is None or len(permutation) != values.ndim else values.transpose(np.argsort(permutation))


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

    The shape does not matter of an output of which some consumer gets the right shape, nor of an input of a call that returns the right
    shapes.
    """
    shaped = {row for pair in alignment.records if pair.layout is not None for row in pair.reference}
    wrong = {pair.reference[0] for pair in alignment.records if pair.layout is None and len(pair.reference) == len(pair.port) == 1}
    calls = reference.calls
    rightly_taken = {calls.producers[row] for row in shaped}
    rightly_returned = {int(calls.of_row[row]) for row in shaped if calls.kinds[row] != "input"}

    def matters(row: int) -> bool:
        if calls.kinds[row] == "input":
            return int(calls.of_row[row]) not in rightly_returned
        return row not in rightly_taken

    return {row for row in wrong if matters(row)}
