"""A thin trace: all of a trace but most of its values, of which a few of each tensor are kept; small enough for git.

Whole are the texts, the draws, what the run's own code brought in by a tap, and what is no larger than its sample. Of every other tensor
`schema.SAMPLED` values are kept, at places that depend on nothing but how many values it has. A port is compared with these, and with the
statistics; it cannot be fed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from tracediff.dtype import BY_CODE, Array
from tracediff.errors import TracediffError, TraceFileError
from tracediff.outputs import write_output
from tracediff.trace import schema
from tracediff.trace.container import Output, new_identity, write_at
from tracediff.trace.reader import Record, Trace, open_trace
from tracediff.trace.tables import Tables
from tracediff.trace.writer import write_tables

_OF_VALUES = ("operations",)
"""What the meta holds for those who read the values."""
_EXACT = 2**53  # whole numbers up to it are float64 numbers


@lru_cache(maxsize=4096)
def sample_places(count: int) -> Array:
    """The flat places of the values that are kept of a tensor of ``count`` values: one in each of equal stretches, in order.

    >>> sample_places(3)
    array([0, 1, 2])
    """
    places = drawn_places(count, min(count, schema.SAMPLED), random.Random(count))
    places.flags.writeable = False
    return places


def drawn_places(total: int, count: int, chance: random.Random) -> Array:
    """``count`` of ``total`` places, one drawn in each of equal stretches, in order."""
    edges = [k * total // count for k in range(count + 1)] if count else [0]
    return np.array([chance.randrange(start, stop) for start, stop in pairwise(edges)], np.int64)


def thin(source: str | os.PathLike[str], to: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Writes a thin trace of a complete one with values, and returns its path.

    Raises TracediffError for a trace that is not complete or holds no values; TraceExistsError where the output is there and not
    ``force``; TraceFileError where it cannot be written.
    """
    with open_trace(source) as trace:
        if not trace.complete or trace.was_killed:
            raise TracediffError(f"{str(trace.path)!r} is not complete, so nothing is kept of it. Capture the run again.")
        if not all(record.stored for record in trace.records):
            raise TracediffError(f"{str(trace.path)!r} does not hold all values, so none can be kept. Capture it with --save full.")
        return write_output(to, lambda part: _write(trace, part), force=force)


def _write(trace: Trace, part: Path) -> None:
    index, samples = trace.index.copy(), np.zeros(len(trace.records), schema.SAMPLES)
    wholes = [record for record in trace.records if _is_whole(record)]
    samples[:] = _samples(trace)
    index["segment"], index["offset"] = -1, 0
    output = Output(part)
    try:
        output.identify(new_identity())
        for row, (segment, offset) in _stored(output, wholes):
            index["segment"][row], index["offset"][row] = segment, offset
        params = trace.tables.params.copy()
        params["segment"], params["offset"] = -1, 0
        meta = {**{name: value for name, value in trace.meta.items() if name not in _OF_VALUES}, "save": "samples"}
        optional = {**trace.tables.optional, schema.SAMPLES_TABLE: samples}
        write_tables(output, Tables(index, params, trace.tables.sketches, trace.strings, meta, optional))
    except RuntimeError as error:  # HDF5 could not write
        raise TraceFileError(f"{str(part)!r} could not be written: {error}.") from error
    finally:
        output.close()


def _is_whole(record: Record) -> bool:
    """Whether all values of a record are kept."""
    is_brought = record.end == "value" and record.producer < 0
    return record.dtype == "text" or record.end == "draw" or is_brought or record.nbytes <= schema.SAMPLES["values"].itemsize


def _samples(trace: Trace) -> Array:
    """The kept values of every record; equal contents are read once."""
    rows = np.zeros(len(trace.records), schema.SAMPLES)
    known: dict[tuple[bytes, str], int] = {}
    for record in trace.records:
        key = record.digest, record.dtype
        if key in known:
            rows[record.row] = rows[known[key]]
            continue
        known[key] = record.row
        kind = BY_CODE[trace.index["dtype"][record.row]]
        if record.dtype == "text" or kind.is_complex:
            continue
        values = np.asarray(record.at(sample_places(record.stats.count)), np.float64)
        if kind.is_exact and values.size and max(abs(record.stats.min), abs(record.stats.max)) >= _EXACT:
            continue
        rows["count"][record.row] = values.size
        rows["values"][record.row, : values.size] = values
    return rows


def _stored(output: Output, records: list[Record]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Stores whole records, equal contents once, packed into one segment but for the large ones; yields rows and places."""
    small = {record.digest: record for record in records if 0 < record.nbytes <= schema.PACK_LIMIT}
    places: dict[bytes, tuple[int, int]] = {}
    count, end = 0, 0
    offsets = {}
    for code, record in small.items():
        offsets[code] = end
        end += -(-record.nbytes // schema.ALIGNMENT) * schema.ALIGNMENT
    if small:
        shared = output.add_segment(count, np.dtype("u1"), (end,))
        for code, record in small.items():
            write_at(output.fd, _bits(record), shared.offset + offsets[code])
            places[code] = count, offsets[code]
        count += 1
    for record in records:
        if record.nbytes > schema.PACK_LIMIT and record.digest not in places:
            place = output.add_segment(count, np.dtype("u1"), (record.nbytes,))
            write_at(output.fd, _bits(record), place.offset)
            places[record.digest] = count, 0
            count += 1
        if record.nbytes:
            yield record.row, places[record.digest]


def _bits(record: Record) -> Array:
    return np.ascontiguousarray(record.read()).reshape(-1).view(np.uint8)
