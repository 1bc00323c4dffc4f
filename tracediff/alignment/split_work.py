"""Calls of which one side's do the other's work in pieces: a batch taken apart, a prompt in chunks, a loop over tokens.

Shapes come without axes of length 1. A shape that lacks the axis along which the work is split holds one step of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracediff.alignment.record_table import CallPair
from tracediff.alignment.thresholds import THRESHOLDS

Shape = tuple[int, ...]
Calls = Sequence[int]
Lengths = tuple[list[int], list[int]]
"""How many steps of one axis each call of either side does."""


def is_regular(ours: Sequence[Shape], theirs: Sequence[Shape]) -> bool:
    """Whether both sides make as many calls, of tensors of the same lengths one after the other."""
    return [sorted(shape) for shape in ours] == [sorted(shape) for shape in theirs]


def regrouped(ours: Calls, theirs: Calls, shapes: Sequence[Sequence[Shape]]) -> list[CallPair]:
    """The calls that together do equally much along one axis; none where no axis fits. ``shapes``: those of ours, and of theirs.

    >>> regrouped([7], [3, 4], [[(6, 40)], [(4, 40), (2, 40)]])
    [CallPair(reference=(7,), port=(3, 4), lengths=((6,), (4, 2)), is_sure=True)]
    >>> regrouped([0, 1, 2], [0, 1], [[(40,)] * 3, [(40,)] * 2])
    []
    """
    lengths = _equal_lengths(shapes)
    if lengths is None:
        return []
    return [
        CallPair(
            tuple(ours[i] for i in rows),
            tuple(theirs[j] for j in columns),
            (tuple(lengths[0][i] for i in rows), tuple(lengths[1][j] for j in columns)),
        )
        for rows, columns in _between_common_cuts(*lengths)
    ]


def cut_short(ours: Calls, theirs: Calls, shapes: Sequence[Sequence[Shape]]) -> CallPair | None:
    """One call of a side and the several of the other that do most of its work, or somewhat more: a loop that ends a token earlier."""
    if min(len(ours), len(theirs)) != 1 or max(len(ours), len(theirs)) < 2:
        return None
    lengths = next((found for rest in _rests(shapes) if (found := _lengths_of_both(shapes, rest)) is not None), None)
    if lengths is None:
        return None
    side = 0 if len(ours) == 1 else 1
    whole, parts = lengths[side][0], lengths[1 - side]
    done = [steps for steps in np.cumsum(parts).tolist() if steps <= whole]
    if len(done) < 2 or done[-1] < THRESHOLDS.call_cut_short * whole:
        return None
    some, steps = tuple((ours, theirs)[1 - side][: len(done)]), tuple(parts[: len(done)])
    if side == 0:
        return CallPair(tuple(ours), some, ((whole,), steps))
    return CallPair(some, tuple(theirs), (steps, (whole,)))


def _equal_lengths(shapes: Sequence[Sequence[Shape]]) -> Lengths | None:
    """How many steps of one axis each call does, both sides doing as many; None where there is no such axis."""
    for rest in _rests(shapes):
        lengths = _lengths_of_both(shapes, rest)
        if lengths is not None and sum(lengths[0]) == sum(lengths[1]):
            return lengths
    return None


def _lengths_of_both(shapes: Sequence[Sequence[Shape]], rest: Shape) -> Lengths | None:
    ours, theirs = _lengths(shapes[0], rest), _lengths(shapes[1], rest)
    return None if ours is None or theirs is None else (ours, theirs)


def _rests(shapes: Sequence[Sequence[Shape]]) -> list[Shape]:
    """The candidates for the axes that all calls share. The first candidates leave out one axis of a call, the last none."""
    distinct = dict.fromkeys([*shapes[0], *shapes[1]])
    without_one = (shape[:place] + shape[place + 1 :] for shape in distinct for place in range(len(shape)))
    return list(dict.fromkeys(tuple(sorted(rest)) for rest in [*without_one, *distinct]))


def _lengths(shapes: Sequence[Shape], rest: Shape) -> list[int] | None:
    """How many steps of the axis besides ``rest`` each shape holds; None where a shape does not have the axes in ``rest``."""
    lengths = []
    for shape in shapes:
        extra = list(shape)
        for size in rest:
            if size not in extra:
                return None
            extra.remove(size)
        if len(extra) > 1:
            return None
        lengths.append(extra[0] if extra else 1)
    return lengths


def _between_common_cuts(ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[range, range]]:
    """The runs of calls of both sides between the points at which both sides have done equally much."""
    done = np.cumsum(ours), np.cumsum(theirs)
    cuts = np.intersect1d(*done)
    places = [np.searchsorted(steps, cuts) + 1 for steps in done]
    starts = [[0, *place[:-1]] for place in places]
    return [(range(a, b), range(c, d)) for a, b, c, d in zip(starts[0], places[0].tolist(), starts[1], places[1].tolist(), strict=True)]
