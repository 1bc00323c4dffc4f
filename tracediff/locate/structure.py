"""The structure of an error: how much of it a gain and an offset explain, which rounding has not and most faults have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tracediff.dtype import Array, wide_type
from tracediff.locate.pairs import Pairs
from tracediff.locate.thresholds import THRESHOLDS

Grouping = Callable[[Array, int], Array]

_FITTED = 2
"""A gain and an offset: so many numbers are fitted to each row of values."""


def left_by_affine(pairs: Pairs, i: int, *, rows: bool = True) -> float | None:
    """The share of a pair's error that its best gain and offset leave, the fits' freedom accounted for.

    Gain and offset are those of the whole tensor, of each index along some axis (a channel, a token), or, with ``rows``, of each row along
    some axis.
    0 is an error that is nothing else, 1 one that has nothing of it. None where the values tell nothing: not stored, exact, not
    finite, without a layout, or too few.
    """
    values = finite_values(pairs, i)
    if values is None:
        return None
    ways = (_index_to_row, _along_axis) if rows else (_index_to_row,)
    fits = (_left_by_fit(*sides) for sides in _groupings(*values, ways))
    return min(fits, default=None)


def is_affine(pairs: Pairs, i: int) -> bool:
    """Whether the port's values are the reference's by a gain and an offset: of the whole tensor, or of each index along some axis."""
    left = left_by_affine(pairs, i, rows=False)
    return left is not None and left < THRESHOLDS.left_of_affine


def correlation_of_error(pairs: Pairs, i: int) -> tuple[float, int] | None:
    """How much a pair's error goes with the reference's values, -1 to 1, and of how many values; None where the values tell nothing."""
    values = finite_values(pairs, i)
    if values is None or values[0].size < THRESHOLDS.fewest_affine_values:
        return None
    reference, port = values
    error = port - reference
    ours, theirs = (side - side.mean() for side in (reference, error))
    sizes = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return (float(np.vdot(ours, theirs).real) / sizes if sizes else 0.0), reference.size


def whole_gain(pairs: Pairs, i: int) -> float | None:
    """The factor that makes a pair's reference the port's tensor, up to a small share of the error; None where there is none."""
    values = finite_values(pairs, i)
    if values is None:
        return None
    reference, port = values
    power, difference = float(np.vdot(reference, reference).real), float(np.linalg.norm(port - reference))
    gain = float(np.vdot(reference, port).real) / power if power else 0.0
    left = float(np.linalg.norm(port - gain * reference))
    return gain if gain and left < THRESHOLDS.left_of_affine * difference else None


def finite_values(pairs: Pairs, i: int) -> tuple[Array, Array] | None:
    """The values of a pair, wide; None where they tell nothing: not stored, exact, not finite, or without a layout."""
    if pairs[i].layout is None or pairs.is_exact(i) or not pairs.is_stored(i):
        return None
    reference, port = (values.astype(wide_type(values)) for values in pairs.values(i))
    return (reference, port) if np.isfinite(reference).all() and np.isfinite(port).all() else None


def _groupings(reference: Array, port: Array, ways: Sequence[Grouping]) -> Iterator[tuple[Array, Array]]:
    """Both tensors as (rows, values), in each way in which each row may have a gain and an offset of its own."""
    whole = reference.reshape(1, -1), port.reshape(1, -1)
    by_axis = ((way(reference, axis), way(port, axis)) for axis in range(reference.ndim) for way in ways)
    return (sides for sides in (whole, *by_axis) if sides[0].shape[1] >= THRESHOLDS.fewest_affine_values)


def _index_to_row(values: Array, axis: int) -> Array:
    """The values as (length of the axis, rest): a row for each index along the axis."""
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _along_axis(values: Array, axis: int) -> Array:
    """The values as (rest, length of the axis): a row along the axis for each other place."""
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


def _left_by_fit(reference: Array, port: Array) -> float:
    """The share of a difference's norm that is left after each row's best gain and offset; both are (rows, values)."""
    length = reference.shape[1]
    difference = float(np.linalg.norm(port - reference))
    ours, theirs = (side - side.mean(axis=1, keepdims=True) for side in (reference, port))
    power = (np.abs(ours) ** 2).sum(axis=1, keepdims=True)
    gain = np.divide((ours.conj() * theirs).sum(axis=1, keepdims=True), power, out=np.ones_like(theirs[:, :1]), where=power > 0)
    left = float(np.linalg.norm(theirs - gain * ours))
    return left / math.sqrt(1 - _FITTED / length) / difference if difference else 1.0
