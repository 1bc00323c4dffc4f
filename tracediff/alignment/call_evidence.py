"""What distinguishes the calls of one function: their values, and the paired calls before and behind them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tracediff.alignment import axes
from tracediff.alignment.structure import Side
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.alignment.values import Floats
from tracediff.dtype import Array

Shape = tuple[int, ...]


class CallValues:
    """The values of the calls of functions. ``points``: the features of each side's records, (rows, 7); ``main``: each call's main row."""

    def __init__(self, sides: tuple[Side, Side], points: tuple[Floats, Floats], main: Sequence[Sequence[int]]) -> None:
        self.sides, self._points, self._main = sides, points, main

    def are_regular(self, ours: Sequence[int], theirs: Sequence[int]) -> bool:
        """Whether as many calls return tensors of the same sizes, one after the other."""
        return len(ours) == len(theirs) and all(self._shape(0, a) == self._shape(1, b) for a, b in zip(ours, theirs, strict=True))

    def table(self, ours: Sequence[int], theirs: Sequence[int]) -> Floats:
        """How far the values say of every two calls that they are one, 0 to 2; -1 where their shapes forbid it: (ours, theirs).

        Where both sides make as many calls, none is forbidden: a shape that went wrong is to be seen.
        """
        total = np.zeros((len(ours), len(theirs)))
        calls = ours, theirs
        for rows in (
            [[self._input(side, call) for call in calls[side]] for side in (0, 1)],
            [self._outputs(0, ours), self._outputs(1, theirs)],
        ):
            a, b = (self._points[side][chosen] for side, chosen in enumerate(rows))
            distance = np.sqrt(((a[:, None, :] - b[None, :, :]) ** 2).sum(-1))
            total += np.nan_to_num(np.clip(1.0 - distance / THRESHOLDS.function_distance, 0.0, 1.0))
        shapes = [[self._shape(side, call) for call in calls[side]] for side in (0, 1)]
        differ = np.array([[shape != other for other in shapes[1]] for shape in shapes[0]])
        return np.where(differ, 0.0 if len(ours) == len(theirs) else -1.0, total)

    def are_reordered(self, a: int, b: int) -> bool:
        """Whether two calls take in, or return, the same numbers in another order: one of them sorts."""
        return self._differ_in_order(self._input(0, a), self._input(1, b)) or self._differ_in_order(self._main[0][a], self._main[1][b])

    def _differ_in_order(self, a: int, b: int) -> bool:
        records = self.sides[0].trace.records[a], self.sides[1].trace.records[b]
        if not all(record.stored and record.dtype != "text" and record.stats.count <= THRESHOLDS.function_elements for record in records):
            return False
        return in_another_order(records[0].read(), records[1].read())

    def _shape(self, side: int, call: int) -> Shape:
        return tuple(sorted(size for size in self.sides[side].shapes[self._main[side][call]] if size != 1))

    def _input(self, side: int, call: int) -> int:
        """The row of the largest tensor that a call takes in; of its output where it takes in none (a draw, a tap)."""
        rows = self.sides[side].ends_of(call)[0]
        return max(rows, key=lambda row: int(self.sides[side].index["count"][row]), default=self._main[side][call])

    def _outputs(self, side: int, calls: Sequence[int]) -> list[int]:
        return [self._main[side][call] for call in calls]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The nearest paired call of another site: its site, -1 where the caller begins or ends, and how many calls lie between.

    Only calls of the site whose neighbours are asked for are counted.
    """

    site: int
    steps: int


class CallNeighbours:
    """The paired calls before and behind the calls of functions. ``partner``: the port's site of each paired site of the reference."""

    def __init__(self, sides: tuple[Side, Side], partner: dict[int, int]) -> None:
        self.sides = sides
        self._partners = partner, {b: a for a, b in partner.items()}
        self._known: tuple[dict[int, tuple[Neighbour, Neighbour]], ...] = ({}, {})

    def in_common(self, a: int, b: int) -> int:
        """How many of the two neighbours, before and behind, two calls have in common: 0 to 2."""
        return sum(map(self._is_same, self._of(0, a), self._of(1, b)))

    def _is_same(self, ours: Neighbour, theirs: Neighbour) -> bool:
        if ours.steps != theirs.steps:
            return False
        return ours.site == theirs.site == -1 or (ours.site >= 0 and self._partners[0].get(ours.site) == theirs.site)

    def _of(self, side: int, call: int) -> tuple[Neighbour, Neighbour]:
        """The neighbours before and behind a call, inside the call that makes it."""
        if call not in self._known[side]:
            calls = self._inside[side].get(int(self.sides[side].calls.parent[call]), [])
            before, behind = self._previous(side, calls), self._previous(side, calls[::-1])[::-1]
            self._known[side].update(zip(calls, zip(before, behind, strict=True), strict=True))
        return self._known[side][call]

    def _previous(self, side: int, calls: Sequence[int]) -> list[Neighbour]:
        """The previous neighbour of each call of a sequence."""
        found: list[Neighbour] = []
        last, steps = -1, defaultdict[int, int](int)
        for call in calls:
            site = int(self.sides[side].calls.site[call])
            found.append(Neighbour(last, steps[site]))
            if self.sides[side].kind[site] in ("module", "method") and site in self._partners[side]:
                last = site
                steps.clear()
            else:
                steps[site] += 1
        return found

    @cached_property
    def _inside(self) -> tuple[dict[int, list[int]], ...]:
        """The calls that each call makes, in order."""
        both: tuple[dict[int, list[int]], ...] = (defaultdict(list), defaultdict(list))
        for side, inside in zip(self.sides, both, strict=True):
            for call, parent in enumerate(side.calls.parent.tolist()):
                inside[parent].append(call)
        return both


def in_another_order(reference: Array, port: Array) -> bool:
    """Whether two tensors hold the same numbers, but in another order, which no layout explains: one side has sorted them.

    >>> x = np.float32([[3, 1, 2], [0, 5, 4]])
    >>> in_another_order(x, np.sort(x)), in_another_order(x, x.T), in_another_order(x, 2 * x)
    (True, False, False)
    """
    candidates = axes.layouts(reference.shape, port.shape)
    if not candidates or reference.size != port.size:
        return False
    error = axes.choose(reference, port, candidates)[1]
    limit = THRESHOLDS.function_reordered
    return error > limit and axes.relative_error(np.sort(reference, axis=None), np.sort(port, axis=None)) < limit * error
