"""Tables: all of a trace but its values, however it was obtained (a closed file, or the journal of a killed writer), and its checks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracediff.dtype import BY_CODE, Array
from tracediff.errors import TracediffError, TraceFileError, UnsafeTraceError
from tracediff.trace import schema
from tracediff.trace.fingerprint import Floats

Meta = dict[str, Any]


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


def dump_meta(meta: Meta) -> bytes:
    """The meta object as JSON; TypeError or ValueError where it holds what JSON cannot (NaN and infinities among it)."""
    return json.dumps(meta, allow_nan=False, separators=(",", ":")).encode()


def checked_meta(items: Mapping[str, Any]) -> Meta:
    """The items as a new object; TracediffError, naming the item, where JSON cannot hold one."""
    for name, value in items.items():
        try:
            dump_meta({name: value})
        except (TypeError, ValueError) as error:
            raise TracediffError(f"The meta item {name!r} cannot be stored as JSON ({error}): {value!r}.") from error
    return dict(items)


def load_meta(blob: bytes, path: str) -> Meta:
    """The meta object that `dump_meta` wrote; TraceFileError where it is none or of a newer format version."""
    try:
        meta = json.loads(blob)
    except ValueError as error:
        raise TraceFileError(f"/{schema.META} of {path!r} is not JSON ({error}): not a trace, or a damaged one.") from error
    return check_meta(meta, path)


def check_meta(meta: Any, path: str) -> Meta:
    """The meta object, if it is that of a format version that this program reads; TraceFileError otherwise."""
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if not isinstance(version, int) or version < 1:
        raise TraceFileError(f"/{schema.META} of {path!r} names no format version: not a trace.")
    if version > schema.FORMAT_VERSION:
        raise TraceFileError(
            f"{path!r} has format version {version}, which is newer than this tracediff reads ({schema.FORMAT_VERSION}). "
            "Upgrade it: pip install -U tensor-tracediff"
        )
    return dict(meta)


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
    room = np.append(limits, np.uint64(2**63))[np.where(segment < limits.size, segment, -1)]
    yield "its values lie in its segment", (table["offset"] <= room) & (table["nbytes"] <= room - np.minimum(table["offset"], room))
    kinds, rows = np.unique(table[["dtype", "shape", "nbytes"]], return_inverse=True)
    fits = [_nbytes(strings, shape, code) == nbytes for code, shape, nbytes in kinds.tolist()]
    yield "its bytes are as many as its shape and dtype need", np.array(fits, np.bool_)[rows.reshape(-1)]


def _nbytes(strings: Sequence[str], shape: int, code: int) -> int:
    """The bytes of an array; -1 where there can be none of that dtype and shape."""
    if shape >= len(strings) or code not in BY_CODE:
        return -1
    try:
        lengths = schema.shape_of(strings[shape])
    except ValueError:
        return -1
    if len(lengths) > schema.MOST_AXES or max(lengths, default=0) >= 2**48:
        return -1
    return math.prod(lengths) * BY_CODE[code].itemsize
