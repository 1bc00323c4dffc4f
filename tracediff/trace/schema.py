"""Every name, table and limit of the trace file format; nothing else in the package spells them.

A trace is one HDF5 file:

- ``/tensors/tNNNNNN`` the *segments*: contiguous, unfiltered datasets. A tensor above `PACK_LIMIT` bytes is a segment of its own
  (bfloat16 as uint16, float8 as uint8); smaller ones share uint8 segments of up to `SEGMENT_BYTES`;
- ``/index`` one row of `INDEX` a record, in execution order; ``/params`` one row of `PARAMS` a parameter or buffer;
- ``/sketches`` float64, the pooled axis vectors of the parameters' sketches;
- ``/strings`` uint8, all texts behind one another as UTF-8; ``/string_ends`` uint64, where each ends. Text 0 is empty;
- ``/meta`` uint8, one JSON object; ``/identity`` 16 random bytes, which the journal repeats;
- ``/digest`` 16 bytes of xxh3_128 over the name and the bytes of each table, those of ``/meta`` among them, in the order of their names
  (absent in files of version 0.1.0);
- ``/floor`` where it was measured: one row of `FLOOR` a record; ``/floor_products`` and ``/floor_free`` likewise; ``/samples`` in a thin
  trace, or one within a budget: one row of `SAMPLES` a record;
- ``/sites/...`` soft links for people. The reader never follows them.

All numbers are little-endian.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np

FORMAT_VERSION: Final = 1

TENSORS: Final = "tensors"
INDEX_TABLE: Final = "index"
PARAM_TABLE: Final = "params"
SKETCHES: Final = "sketches"
STRINGS: Final = "strings"
STRING_ENDS: Final = "string_ends"
META: Final = "meta"
IDENTITY: Final = "identity"
SITES: Final = "sites"
DIGEST: Final = "digest"
FLOOR_TABLE: Final = "floor"
PRODUCTS_TABLE: Final = "floor_products"
FREE_TABLE: Final = "floor_free"
THROUGH_TABLE: Final = "through"
SAMPLES_TABLE: Final = "samples"

PACK_LIMIT: Final = 64 * 1024
"""Tensors of at most so many bytes share a segment."""
FIRST_SEGMENT_BYTES: Final = 128 * 1024
"""The first shared segment; each following one is twice as large, up to `SEGMENT_BYTES`."""
SEGMENT_BYTES: Final = 4 * 1024 * 1024
ALIGNMENT: Final = 16
"""Where a tensor may start in a shared segment: at multiples of this."""
IDENTITY_BYTES: Final = 16

MUTATED: Final = 1
REPLACED: Final = 2
CONSTANT: Final = 4
NOISE_SENSITIVE: Final = 8
TEXT: Final = 16
RAISED: Final = 32
"""What a call raised, as a text in the place of its output; with `REPLACED` where the run went on with something else."""
SERVED: Final = 64
"""What a stand-in served from another trace: nothing that this run computed."""
FLAGS: Final = {
    "mutated": MUTATED,
    "replaced": REPLACED,
    "constant": CONSTANT,
    "noise-sensitive": NOISE_SENSITIVE,
    "text": TEXT,
    "raised": RAISED,
    "served": SERVED,
}

PRODUCER_NONE: Final = 0
PRODUCER_IDENTITY: Final = 1
PRODUCER_DIGEST: Final = 2

KINDS: Final = ("parameter", "buffer")
QUANTILES: Final = 33
MOST_AXES: Final = 64
"""The axes that an array may have: NumPy's limit."""

_STATS: Final = [
    ("count", "<u8"),
    ("nan", "<u8"),
    ("inf", "<u8"),
    ("zero", "<u8"),
    ("min", "<f8"),
    ("max", "<f8"),
    ("mean", "<f8"),
    ("std", "<f8"),
    ("l2", "<f8"),
    ("absmean", "<f8"),
    ("cube", "<f8"),
]
STATS_NAMES: Final = tuple(name for name, _ in _STATS)

# What is stored of an array: shared by records and parameters.
_CONTENT: Final = [
    ("dtype", "u1"),
    ("shape", "<u4"),
    ("segment", "<i4"),
    ("offset", "<u8"),
    ("nbytes", "<u8"),
    ("digest", "<u8", (2,)),
    *_STATS,
]

INDEX: Final[np.dtype[Any]] = np.dtype(
    [
        ("order", "<u8"),
        ("site", "<u4"),
        ("call", "<u4"),
        ("ordinal", "<u4"),
        ("end", "<u4"),
        ("stage", "<u4"),
        ("scope", "<u4"),
        ("parent", "<i8"),
        ("producer", "<i8"),
        ("producer_how", "u1"),
        *_CONTENT,
        ("file", "<u4"),
        ("line", "<u4"),
        ("flags", "<u4"),
        ("note", "<u4"),
    ]
)
INDEX_STRINGS: Final = ("site", "call", "end", "stage", "scope", "shape", "file", "note")

PARAMS: Final[np.dtype[Any]] = np.dtype(
    [
        ("name", "<u4"),
        ("path", "<u4"),
        ("kind", "u1"),
        ("aliases", "<u4"),
        *_CONTENT,
        ("sketch_start", "<u8"),
        ("sketch_length", "<u8"),
        ("quantiles", "<f8", (QUANTILES,)),
    ]
)
PARAM_STRINGS: Final = ("name", "path", "aliases", "shape")

FLOOR: Final[np.dtype[Any]] = np.dtype(
    [("noise", "<f8"), ("free", "<f8"), ("float64", "<f8"), ("float16", "<f8"), ("bfloat16", "<f8"), ("sensitive", "u1")]
)
"""One row a record: noise amplification in units of the roundoff, the error of a run in each dtype, whether noise changes ids."""

FLOOR_PRODUCTS: Final[np.dtype[Any]] = np.dtype([("tf32", "<f8"), ("tf32_free", "<f8")])
"""One row a record: the error of a run whose products multiply numbers of TF32's 10 bits, with values reset at each record, or not."""

FLOOR_FREE: Final[np.dtype[Any]] = np.dtype([("float16", "<f8"), ("bfloat16", "<f8")])
"""One row a record: the error of a run in each half precision that goes on with what it computes, as relative L2."""

STRING_END: Final[np.dtype[Any]] = np.dtype("<u8")
SKETCH: Final[np.dtype[Any]] = np.dtype("<f8")

TABLES: Final[dict[str, np.dtype[Any]]] = {
    IDENTITY: np.dtype("u1"),
    INDEX_TABLE: INDEX,
    PARAM_TABLE: PARAMS,
    SKETCHES: SKETCH,
    STRINGS: np.dtype("u1"),
    STRING_ENDS: STRING_END,
    META: np.dtype("u1"),
}
"""The one-dimensional tables at the root of the file, by name."""
THROUGH: Final[np.dtype[Any]] = np.dtype([("state", "u1"), ("absorber", "<i8"), ("effect", "<f8")])
"""One row a record of a forced run: whether nothing followed from it when it was let through, and what absorbed it.

``state`` is `ACQUITTED`, or 0 where the record was not let through, or something followed. ``absorber`` is the reference's row of an output
that agreed although the port went on with its own tensor; -1 where there is none, or the record differs only in the forced run. ``effect``
is what a random error of equal size does to that output, in times what is allowed there; infinite where weights prove it.
"""
ACQUITTED: Final = 1

SAMPLED: Final = 32
"""So many values of a tensor are kept in a thin trace (`tracediff.trace.thinning`)."""
SAMPLES: Final[np.dtype[Any]] = np.dtype([("count", "u1"), ("values", "<f8", (SAMPLED,))])
"""One row a record of a thin trace: how many values are kept, at the places that follow from the record's size, and these values."""

OPTIONAL_TABLES: Final[dict[str, np.dtype[Any]]] = {
    FLOOR_TABLE: FLOOR,
    PRODUCTS_TABLE: FLOOR_PRODUCTS,
    FREE_TABLE: FLOOR_FREE,
    THROUGH_TABLE: THROUGH,
    SAMPLES_TABLE: SAMPLES,
}
"""Tables of one row a record that may be added after the run."""


def row_structs(table: np.dtype[Any]) -> tuple[struct.Struct, struct.Struct, struct.Struct]:
    """A row in three parts, to be packed one at a time: what stands before its content, its content, and what stands after it.

    The same bytes as the NumPy dtype gives, ten times faster for one row.
    """
    names = list(table.names or ())
    start, end = names.index("dtype"), names.index("cube") + 1
    before, content, after = (
        struct.Struct("<" + "".join(_struct_code(table[name]) for name in part)) for part in (names[:start], names[start:end], names[end:])
    )
    return before, content, after


def _struct_code(field: np.dtype[Any]) -> str:
    base, shape = field.subdtype or (field, ())
    code = {"u1": "B", "u4": "I", "i4": "i", "u8": "Q", "i8": "q", "f8": "d"}[base.str[1:]]
    return f"{int(np.prod(shape))}{code}" if shape else code


def segment_name(number: int) -> str:
    """The name of a segment inside ``/tensors``.

    >>> segment_name(3)
    't000003'
    """
    return f"t{number:06d}"


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as it stands in the text table; the empty text is 0-d.

    >>> shape_text((2, 3)), shape_text(())
    ('2,3', '')
    """
    return ",".join(map(str, shape))


def shape_of(text: str) -> tuple[int, ...]:
    """The shape that `shape_text` wrote; ValueError where it is none.

    >>> shape_of("2,3"), shape_of("")
    ((2, 3), ())
    """
    if not text:
        return ()
    if any(not (size.isascii() and size.isdigit()) for size in text.split(",")):
        raise ValueError(f"{text!r} is no shape")
    return tuple(map(int, text.split(",")))
