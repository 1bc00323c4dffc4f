"""Whether a port's arrays in half precision are what a run in float32 stored: each then stands for all numbers that round to it.

A run in half precision errs by several units in the last place after a few layers. What was merely stored so holds, nearly everywhere, the
reference's number rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment import axes
from tracediff.alignment.array_files.contents import Contents, plain, sample_places
from tracediff.alignment.array_files.thresholds import THRESHOLDS
from tracediff.alignment.result import Stored
from tracediff.dtype import Array, DType
from tracediff.trace.calls import TOP


def stored_in(sides: tuple[Contents, Contents], partner: Mapping[int, int]) -> Stored | None:
    """In which half precision the port's arrays are stored, and whether its run was in float32; None where they are in none.

    ``partner``: by contents of the port the contents of the reference that agree with them.
    """
    said = sides[1].side.trace.meta.get("stored") or {}
    kind = dtypes.BY_NAME.get(str(said.get("dtype", "")))
    if kind is None:
        return None
    stored = Stored(kind.name, all=said.get("by") != "dtype")
    if said.get("by") == "stated":
        return stored
    looked_up = _looked_up(sides[0])
    copied = np.concatenate([np.empty(0), *(_port_values(sides, b) for b, a in partner.items() if a in looked_up)])
    shares = (_share(sides, a, b, kind, copied) for b, a in partner.items() if a not in looked_up and _holds(sides, b, stored))
    is_rounded = any(share >= THRESHOLDS.stored_share for share in shares)
    return replace(stored, in_float32=is_rounded)


def _holds(sides: tuple[Contents, Contents], b: int, stored: Stored) -> bool:
    return stored.holds(sides[1].side.trace.records[sides[1].all[b].rows[0]].dtype)


def _port_values(sides: tuple[Contents, Contents], b: int) -> Array:
    record = sides[1].side.trace.records[sides[1].all[b].rows[0]]
    return plain(dtypes.view(record.read(), dtypes.named(record.dtype)))


def _share(sides: tuple[Contents, Contents], a: int, b: int, kind: DType, copied: Array) -> float:
    """The share of the reference's numbers that round to the port's; 0 where the two tell nothing of rounding.

    Numbers that are ``copied``, of what was looked up, tell nothing: either run rounded them once.
    """
    rows = [contents.all[number].rows[0] for contents, number in zip(sides, (a, b), strict=True)]
    records = [contents.side.trace.records[row] for contents, row in zip(sides, rows, strict=True)]
    if dtypes.named(records[0].dtype).is_exact:
        return 0.0
    ours, theirs = (plain(dtypes.view(record.read(), dtypes.named(record.dtype))) for record in records)
    places, shapes = sample_places(ours.size), (records[0].shape, records[1].shape)
    left = ours[places]
    orders = (theirs[axes.places_in_port(places, same[0], shapes[1])] for same in axes.readings(*shapes))
    right = min(orders, key=lambda values: float(np.linalg.norm(values - left)), default=None)
    if right is None:
        return 0.0
    telling = (left != right) & ~np.isin(right, copied)
    if telling.sum() < THRESHOLDS.rounded_values:
        return 0.0
    return float((nearest(left, right, kind) == left)[telling].mean())


def _looked_up(reference: Contents) -> set[int]:
    """What the reference computed from no real tensor: what its run was given, or looked up. A run in half precision rounds it once."""
    calls, exact = reference.side.trace.calls, [dtypes.BY_CODE[code].is_exact for code in reference.side.index["dtype"].tolist()]

    def is_computed(row: int) -> bool:
        return any(calls.kinds[one] == "input" and not exact[one] for one in calls.inputs(int(calls.of_row[row])))

    given = {reference.of_row[row] for call in calls.children[TOP] for row in calls.inputs(call) if row in reference.of_row}
    made = {a: [row for row in content.rows if calls.kinds[row] == "output"] for a, content in enumerate(reference.all)}
    return given | {a for a, rows in made.items() if rows and not is_computed(min(rows))}


def nearest(reference: Array, port: Array, kind: DType) -> Array:
    """Of all numbers that round to the port's numbers in ``kind`` those that are nearest to the reference's, as float64.

    >>> from tracediff.dtype import named
    >>> nearest(np.array([0.1, 0.2]), np.array([0.1, 0.25]), named("float16")).tolist()
    [0.1, 0.24993896484375]
    """
    stored = np.asarray(port, np.float64).astype(kind.view)
    low, high = _bounds(stored, kind)
    found = np.clip(np.asarray(reference, np.float64), low, high)
    return np.where(np.isfinite(np.asarray(reference, np.float64)) & ~np.isnan(low), found, np.asarray(port, np.float64))


def _bounds(stored: Array, kind: DType) -> tuple[Array, Array]:
    """The least and the greatest number that round to each number."""
    wide = stored.astype(np.float64)
    below, above = (_neighbours(stored, kind, step).astype(np.float64) for step in (-1, 1))
    largest = float(ml_dtypes.finfo(kind.view).max)  # type: ignore[no-untyped-call]
    low = np.where(np.isinf(below), wide, (below + wide) / 2)
    high = np.where(np.isinf(above), wide, (above + wide) / 2)
    low = np.where(wide == np.inf, largest, low)
    high = np.where(wide == -np.inf, -largest, high)
    return low, high


def _neighbours(stored: Array, kind: DType, step: int) -> Array:
    """The next numbers in a dtype of 16 bits, above each number or below it (``step`` 1 or -1); infinities are their own."""
    bits = stored.view(np.uint16).astype(np.int32)
    place = np.where(bits & 0x8000, -(bits & 0x7FFF), bits)  # rises with the number; both zeros are 0
    last = int(np.array(np.inf, kind.view).view(np.uint16))
    moved = np.clip(place + step, -last, last)
    found: Array = np.where(moved < 0, -moved | 0x8000, moved).astype(np.uint16).view(kind.view)
    return np.where(np.isnan(stored.astype(np.float64)), stored, found)
