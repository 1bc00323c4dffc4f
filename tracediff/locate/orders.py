"""What weights show of an order: a layer that takes its inputs, or gives its outputs, in the order in which the port has them.

The units of a layer may come in any order where what takes them in has its inputs in that order too: ``W[:, order] @ x[order]`` is
``W @ x``, and ``W[order] @ x`` is ``(W @ x)[order]``. The order is told from both at once, an axis of the weights and the channels of the
tensor, so that neither two units of almost equal weights nor two channels of almost equal values are exchanged. In that order each of the
two has to be the reference's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from tracediff.alignment.order import best_assignment
from tracediff.dtype import Array
from tracediff.locate.pairs import Pairs
from tracediff.locate.structure import finite_values
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.trace import Param, Trace
from tracediff.trace.fingerprint import Floats


def is_made_for_order(pairs: Pairs, path: str, i: int, allowed: float) -> bool:
    """Whether a module is handed a pair's channels in another order in the port, or returns them so, and has its weights in that order.

    ``path`` is the reference's; ``allowed`` is the relative error that is allowed at the pair, which no order may exceed.
    """
    values = finite_values(pairs, i)
    partner = pairs.alignment.port_of.get(path)
    own, other = _matrix(pairs.reference, path), None if partner is None else _matrix(pairs.port, partner)
    if values is None or own is None or other is None or own.digest == other.digest:
        return False
    rounding = max(THRESHOLDS.same_weights, THRESHOLDS.same_weights_roundings * max(own.roundoff, other.roundoff))
    return any(
        _are_in_one_order((left, right), channels, (rounding, allowed))
        for channels in _by_channel(*values)
        for left, right in itertools.product(_along(own, len(channels[0])), _along(other, len(channels[0])))
    )


def _matrix(trace: Trace, path: str) -> Param | None:
    """The only matrix or kernel that a module owns itself."""
    found = [one for one in trace.params.values() if one.path == path and one.kind == "parameter" and one.roundoff and len(one.shape) > 1]
    return found[0] if len(found) == 1 else None


def _along(matrix: Param, channels: int) -> Iterator[Floats]:
    """The sketches along the axes that may be the channels'."""
    return (vector for vector, length in zip(matrix.sketch.axes, matrix.shape, strict=True) if length == channels)


def _by_channel(reference: Array, port: Array) -> Iterator[tuple[Array, Array]]:
    """Both tensors as (channels, values), for each axis that may be the channels'."""
    for axis, length in enumerate(reference.shape):
        if 1 < length <= THRESHOLDS.most_ordered:
            yield _rows(reference, axis), _rows(port, axis)


def _rows(values: Array, axis: int) -> Array:
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _are_in_one_order(weights: tuple[Floats, Floats], channels: tuple[Array, Array], allowed: tuple[float, float]) -> bool:
    """Whether one order makes both the port's of the reference's: an axis of the weights, and the channels of a tensor."""
    sides = [np.concatenate([_scaled(vector[:, None]), _scaled(rows)], axis=1) for vector, rows in zip(weights, channels, strict=True)]
    order = np.array([row for _, row in best_assignment((sides[1] @ sides[0].conj().T).real - 0.5 * (np.abs(sides[0]) ** 2).sum(axis=1))])
    return not np.array_equal(order, np.arange(len(order))) and all(
        _are_equal(left[order], right, most) for (left, right), most in zip((weights, channels), allowed, strict=True)
    )


def _scaled(rows: Array) -> Array:
    size = float(np.linalg.norm(rows))
    return rows / size if size else rows


def _are_equal(one: Array, other: Array, allowed: float) -> bool:
    size = max(float(np.linalg.norm(one)), float(np.linalg.norm(other)))
    return bool(size) and float(np.linalg.norm(one - other)) <= allowed * size
