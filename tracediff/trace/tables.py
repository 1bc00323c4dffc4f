"""Tables: all of a trace but its values, however it was obtained (a closed file, or the journal of a killed writer), and its checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tracediff.dtype import BY_CODE, Array
from tracediff.errors import UnsafeTraceError
from tracediff.trace import schema
from tracediff.trace.fingerprint import LONGEST_AXIS, Floats
from tracediff.trace.meta import Meta

_ROUNDING = 1e-6
"""Statistics are sums of float64 in some order: they are off by so much of the largest value at most."""
_LARGE, _TINY = 1e100, 1e-300
"""Beyond these values squares and cubes leave float64."""
_BY_DTYPE = np.ones(256, [("itemsize", "<u8"), ("parts", "<u8")])
for _code, _kind in BY_CODE.items():
    _BY_DTYPE[_code] = _kind.itemsize, 2 if _kind.is_complex else 1


@dataclass(frozen=True, slots=True)
class Tables:
    """All of a trace but its values.

    ``index`` rows of `schema.INDEX`, ``params`` rows of `schema.PARAMS`, ``sketches`` their pooled float64 vectors, ``optional`` those
    of `schema.OPTIONAL_TABLES` that there are.
    """

    index: Array
    params: Array
    sketches: Floats
    strings: Sequence[str]
    meta: Meta
    optional: Mapping[str, Array] = field(default_factory=dict)


def encode(text: str) -> bytes:
    """A text's bytes: UTF-8, in which a lone surrogate stands for itself."""
    return text.encode("utf-8", "surrogatepass")


def decode(blob: bytes) -> str:
    """The text that `encode` wrote; UnicodeDecodeError where it is none."""
    return blob.decode("utf-8", "surrogatepass")


def pack_strings(strings: Sequence[str]) -> tuple[Array, Array]:
    """The texts as one blob of bytes, and where in it each ends."""
    blobs = [encode(text) for text in strings]
    ends = np.cumsum([len(blob) for blob in blobs], dtype=schema.STRING_END)
    return np.frombuffer(b"".join(blobs), np.uint8), ends


def unpack_strings(blob: Array, ends: Array, path: str) -> list[str]:
    """The texts that `pack_strings` packed; UnsafeTraceError where the ends or the bytes cannot be texts."""
    bounds = np.concatenate([np.zeros(1, schema.STRING_END), ends])
    if not ends.size or (bounds[1:] < bounds[:-1]).any() or bounds[-1] != blob.size or ends[0]:
        raise UnsafeTraceError(f"The text table of {path!r} is inconsistent.")
    raw, limits = blob.tobytes(), bounds.tolist()
    try:
        return [decode(raw[start:end]) for start, end in pairwise(limits)]
    except UnicodeDecodeError as error:
        raise UnsafeTraceError(f"The text table of {path!r} is not UTF-8 ({error}).") from error


def check(tables: Tables, limits: NDArray[np.uint64], path: str) -> None:
    """UnsafeTraceError where a row points outside its tables, or outside its segment, of which ``limits`` gives each one's bytes."""
    index, params, texts = tables.index, tables.params, len(tables.strings)
    rows = np.arange(index.size, dtype=np.int64)
    start, length, pool = params["sketch_start"], params["sketch_length"], tables.sketches.size
    claims: list[tuple[str, NDArray[np.bool_]]] = [
        *((f"its {name} is in the text table", index[name] < texts) for name in schema.INDEX_STRINGS),
        *((f"its {name} is in the text table", params[name] < texts) for name in schema.PARAM_STRINGS),
        ("its parent is an earlier row", (index["parent"] >= -1) & (index["parent"] < rows)),
        ("its producer is an earlier row", (index["producer"] >= -1) & (index["producer"] < rows)),
        ("how its producer is known is one of three ways", index["producer_how"] <= schema.PRODUCER_DIGEST),
        ("its flags are known", index["flags"] < 2 * max(schema.FLAGS.values())),
        ("it is a parameter or a buffer", params["kind"] < len(schema.KINDS)),
        ("its sketch lies in the pool", (start <= pool) & (length <= pool) & (start + length <= pool)),
        ("its sketch is as long as its axes", length == _by_shape(params["shape"], tables.strings, _sketch_length)),
        ("what was raised stands in the place of an output", _may_be_raised(index, tables.strings)),
    ]
    for table in (index, params):
        claims += _content_claims(table, tables.strings, limits)
    for name, rows_of in tables.optional.items():
        claims.append((f"it has as many rows as /{name}", rows < rows_of.size if rows_of.size != rows.size else rows >= 0))
    for claim, holds in claims:
        if not holds.all():
            raise UnsafeTraceError(f"{path!r} is not sound: of row {int(np.argmin(holds))} it is not true that {claim}.")


def _content_claims(table: Array, strings: Sequence[str], limits: NDArray[np.uint64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    segment = table["segment"].astype(np.int64)
    yield "its dtype is known", np.isin(table["dtype"], list(BY_CODE))
    yield "its segment exists", (segment >= -1) & (segment < limits.size)
    room = np.append(limits, np.uint64(2**63))[np.where((segment >= 0) & (segment < limits.size), segment, -1)]
    yield "its values lie in its segment", (table["offset"] <= room) & (table["nbytes"] <= room - np.minimum(table["offset"], room))
    kinds, rows = np.unique(table[["dtype", "shape", "nbytes"]], return_inverse=True)
    fits = [_nbytes(strings, shape, code) == nbytes for code, shape, nbytes in kinds.tolist()]
    yield "its bytes are as many as its shape and dtype need", np.array(fits, np.bool_)[rows.reshape(-1)]
    yield from _statistics_claims(table)


def _statistics_claims(table: Array) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """What the statistics of any array fulfil, up to rounding."""
    size, parts = (_BY_DTYPE[name][table["dtype"]] for name in ("itemsize", "parts"))
    count, bad = table["count"], table["nan"] + table["inf"]
    yield "it counts as many values as it has", count == table["nbytes"] // size * parts
    yield (
        "no more values are NaN, infinite or zero than there are",
        ((table["nan"] <= count) & (table["inf"] <= count) & (bad <= count) & (table["zero"] <= count - np.minimum(bad, count))),
    )
    numbers = [table[name] for name in ("min", "max", "mean", "std", "l2", "absmean", "cube")]
    yield "its statistics are finite", np.logical_and.reduce([np.isfinite(column) for column in numbers])
    with np.errstate(over="ignore", invalid="ignore"):
        low, high, mean, std, norm, absolute, cube = (np.nan_to_num(column) for column in numbers)
        most = np.maximum(np.abs(low), np.abs(high)) * (1 + _ROUNDING)
        is_small = (low <= high) & (std >= 0) & (absolute >= 0) & (norm >= 0)
        for column, bound in ((np.abs(mean), most), (std, most), (absolute, most), (norm, most * np.sqrt(count)), (np.abs(cube), most**3)):
            is_small &= (column <= bound + _TINY) | (most > _LARGE)
        yield "its statistics fit its least and largest value", is_small


def _by_shape(shapes: Array, strings: Sequence[str], value: Callable[[tuple[int, ...]], int]) -> NDArray[np.int64]:
    """A number that follows from the shape, for each row; -1 where there is no such shape."""
    numbers, rows = np.unique(shapes, return_inverse=True)
    found = [value(_shape(strings, number) or ()) if _shape(strings, number) is not None else -1 for number in numbers.tolist()]
    return np.array(found, np.int64)[rows.reshape(-1)]


def _sketch_length(shape: tuple[int, ...]) -> int:
    return sum(length for length in shape if length <= LONGEST_AXIS)


def _may_be_raised(index: Array, strings: Sequence[str]) -> NDArray[np.bool_]:
    """Whether a row is not marked as raised, or is no input."""
    ends = {number: strings[number].startswith(("input", "attr")) for number in np.unique(index["end"]).tolist() if number < len(strings)}
    is_input = np.array([ends.get(number, False) for number in index["end"].tolist()], np.bool_)
    raised: NDArray[np.bool_] = (index["flags"] & schema.RAISED) != 0
    return np.logical_not(is_input & raised)


def _nbytes(strings: Sequence[str], shape: int, code: int) -> int:
    """The bytes of an array; -1 where there can be none of that dtype and shape."""
    lengths = _shape(strings, shape)
    return -1 if lengths is None or code not in BY_CODE else math.prod(lengths) * BY_CODE[code].itemsize


def _shape(strings: Sequence[str], number: int) -> tuple[int, ...] | None:
    """The shape that a text stands for; None where there can be none."""
    try:
        lengths = schema.shape_of(strings[number])
    except (ValueError, IndexError):
        return None
    return lengths if len(lengths) <= schema.MOST_AXES and max(lengths, default=0) < 2**48 else None
