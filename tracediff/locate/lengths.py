"""How two tensors that no layout reconciles differ in the length of an axis, and how far along that axis they agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tracediff.alignment.axes import likely_axes
from tracediff.dtype import MASKED, Array, wide_type
from tracediff.locate.result import Length
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.verdicts import Verdicts


def length_of(reference: tuple[int, ...], port: tuple[int, ...]) -> Length | None:
    """How two shapes differ in the length of an axis, or of several axes alike; None where they differ otherwise.

    >>> length_of((2, 48, 80), (2, 80, 52))
    Length(axes=(1,), reference=48, port=52, agree=None, at_end=False)
    >>> length_of((2, 48), (3, 52)) is None
    True
    """
    if len(reference) != len(port):
        return None
    lying = [port[axis] for axis in likely_axes(port, reference)]
    unequal = {axis: sides for axis, sides in enumerate(zip(reference, lying, strict=True)) if sides[0] != sides[1]}
    if len(set(unequal.values())) != 1:
        return None
    return Length(tuple(unequal), *next(iter(unequal.values())))


def measured(verdicts: Verdicts, i: int) -> Length | None:
    """The length in which the tensors of a pair differ, with how far they agree where their values are stored."""
    pairs = verdicts.pairs
    left, right = pairs.records(i)
    found = length_of(left.shape, right.shape) if verdicts.comparisons.judged(i).how == "shape" else None
    is_readable = pairs.is_single(i) and pairs.is_stored(i) and max(left.nbytes, right.nbytes) <= THRESHOLDS.most_error_bytes
    if found is None or not is_readable or "text" in (left.dtype, right.dtype):
        return found
    allowed = verdicts.limits.unjudged(i).limit
    sides = left.read(), right.read().transpose(likely_axes(right.shape, left.shape))
    agree = _agreeing(*_common(found, *sides, at_end=False), allowed)
    from_end = _agreeing(*_common(found, *sides, at_end=True), allowed)
    return replace(found, agree=max(agree, from_end), at_end=from_end > agree)


def _common(found: Length, reference: Array, port: Array, *, at_end: bool) -> tuple[Array, Array]:
    """What both tensors have of the axes that differ, from the start on, or backwards from the end; as (indices, values)."""
    common = min(found.reference, found.port)
    sides = []
    for side in (reference, port):
        start = side.shape[found.axes[0]] - common if at_end else 0
        places = tuple(slice(start, start + common) if axis in found.axes else slice(None) for axis in range(side.ndim))
        indices = np.moveaxis(side[places], found.axes[0], 0).reshape(common, -1)
        sides.append(indices[::-1] if at_end else indices)
    return sides[0], sides[1]


def _agreeing(reference: Array, port: Array, allowed: float) -> int:
    """Up to how many rows, from the first on, two arrays agree within a relative L2."""
    kind = np.promote_types(wide_type(reference), wide_type(port))
    ours, theirs = (_settled(side.astype(kind)) for side in (reference, port))
    error, size = (np.cumsum((np.abs(one) ** 2).sum(axis=1)) for one in (theirs - ours, ours))
    beyond = np.flatnonzero(~(error <= allowed**2 * size))
    return int(beyond[0]) if beyond.size else len(error)


def _settled(values: Array) -> Array:
    """Values of which masks (-1e4 and below) are one number, as they are compared elsewhere."""
    return values if values.dtype.kind == "c" else np.maximum(values, MASKED)
