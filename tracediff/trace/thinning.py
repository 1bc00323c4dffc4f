"""A thin trace: all of a trace but most of its values, of which a few of each tensor are kept; small enough for git.

Whole are the texts, the draws, what the run's own code brought in by a tap, and what is no larger than its sample. Of every other tensor
`schema.SAMPLED` values are kept, at places that depend on nothing but how many values it has. A port is compared with these, and with the
statistics; it cannot be fed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence, Set
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from tracediff.dtype import BY_CODE, Array, named
from tracediff.errors import TracediffError, TraceFileError
from tracediff.outputs import write_output
from tracediff.trace import schema
from tracediff.trace.container import Output, new_identity, write_at
from tracediff.trace.meta import Meta
from tracediff.trace.reader import Param, Record, Trace, open_trace
from tracediff.trace.tables import Tables
from tracediff.trace.writer import write_tables

OF_VALUES = ("operations",)
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
    meta = {**{name: value for name, value in trace.meta.items() if name not in OF_VALUES}, "save": "samples"}
    write_part(trace, part, [record for record in trace.records if is_whole(record)], samples=samples_of(trace), meta=meta)


def write_part(trace: Trace, part: Path, kept: Iterable[Record | Param], *, samples: Array | None, meta: Meta) -> None:
    """Writes a trace with all rows and tables of another to the file ``part``, and of its values those that are ``kept``.

    ``samples`` are rows of `schema.SAMPLES`, None for no such table. Raises TraceFileError where HDF5 cannot write.
    """
    index, params = trace.index.copy(), trace.tables.params.copy()
    for table in (index, params):
        table["segment"], table["offset"] = -1, 0
    output = Output(part)
    try:
        output.identify(new_identity())
        for one, (segment, offset) in _stored(output, list(kept)):
            table = index if isinstance(one, Record) else params
            table["segment"][one.row], table["offset"][one.row] = segment, offset
        optional = dict(trace.tables.optional)
        optional.pop(schema.SAMPLES_TABLE, None)
        if samples is not None:
            optional[schema.SAMPLES_TABLE] = samples
        write_tables(output, Tables(index, params, trace.tables.sketches, trace.strings, meta, optional))
    except RuntimeError as error:  # HDF5 could not write
        raise TraceFileError(f"{str(part)!r} could not be written: {error}.") from error
    finally:
        output.close()


def is_whole(record: Record) -> bool:
    """Whether all values of a record are kept, however little is kept of the others."""
    is_brought = record.end == "value" and record.producer < 0
    return record.dtype == "text" or record.end == "draw" or is_brought or record.nbytes <= schema.SAMPLES["values"].itemsize


def samples_of(trace: Trace, without: Set[int] = frozenset()) -> Array:
    """A few values of every record but for the rows ``without``, as rows of `schema.SAMPLES`; none where values are not stored.

    Equal contents are read once.
    """
    rows = np.zeros(len(trace.records), schema.SAMPLES)
    known: dict[tuple[bytes, str], int] = {}
    for record in trace.records:
        if record.row in without:
            continue
        if not record.stored and trace.samples is not None:
            rows[record.row] = trace.samples[record.row]
            continue
        key = record.digest, record.dtype
        if key in known:
            rows[record.row] = rows[known[key]]
            continue
        known[key] = record.row
        kind = BY_CODE[trace.index["dtype"][record.row]]
        if record.dtype == "text" or kind.is_complex or not record.stored:
            continue
        values = np.asarray(record.at(sample_places(record.stats.count)), np.float64)
        if kind.is_exact and values.size and max(abs(record.stats.min), abs(record.stats.max)) >= _EXACT:
            continue
        rows["count"][record.row] = values.size
        rows["values"][record.row, : values.size] = values
    return rows


def _stored(output: Output, kept: Sequence[Record | Param]) -> Iterator[tuple[Record | Param, tuple[int, int]]]:
    """Stores whole values, equal contents once, packed into one segment but for the large ones; yields what was stored, and its place."""
    small = {one.digest: one for one in kept if 0 < one.nbytes <= schema.PACK_LIMIT}
    places: dict[bytes, tuple[int, int]] = {}
    count, end = 0, 0
    offsets = {}
    for code, one in small.items():
        offsets[code] = end
        end += aligned(one.nbytes)
    if small:
        shared = output.add_segment(count, np.dtype("u1"), (end,))
        for code, one in small.items():
            write_at(output.fd, _bits(one), shared.offset + offsets[code])
            places[code] = count, offsets[code]
        count += 1
    for one in kept:
        if one.nbytes > schema.PACK_LIMIT and one.digest not in places:
            place = output.add_segment(count, named(one.dtype).stored, one.shape)
            write_at(output.fd, _bits(one), place.offset)
            places[one.digest] = count, 0
            count += 1
        if one.nbytes:
            yield one, places[one.digest]


def aligned(nbytes: int) -> int:
    """The bytes that so many take in a shared segment."""
    return -(-nbytes // schema.ALIGNMENT) * schema.ALIGNMENT


def _bits(one: Record | Param) -> Array:
    return np.ascontiguousarray(one.read()).reshape(-1).view(np.uint8)
