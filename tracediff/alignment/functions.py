"""Pairs the calls of one function inside one module: a sampler that takes a softmax more per token must not shift all later ones.

A module's calls are told apart by what they call; a function that code calls at several places has one site for all of them, and only
an order. What tells those calls apart: the line that makes each, what it takes in and gives out, and the calls around it. Lines are
matched by the calls whose values show that they are one, so that they also tell the calls whose values, after a fault, no longer do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment import axes, order
from tracediff.alignment.structure import Side
from tracediff.alignment.values import Floats
from tracediff.dtype import Array

Shape = tuple[int, ...]
Group = tuple[Sequence[int], Sequence[int]]

_NEAR = 0.02  # distance of two tensors' statistics from which on they say nothing
_TOLD = 1.0  # the least that the values of two calls, 2 where both input and output are equal, say that they are one
_CLEARLY = 0.5  # by how much that must exceed what they say of any other call
_LINE = 1.5  # what it is worth that two calls are made by matched lines
_OTHERWISE = 2.0  # what speaks against a pair whose lines belong to others, or that takes in the same numbers in another order
_AROUND = 0.25  # what it is worth to stand as far behind, or before, the same call
_CONTRADICTS = 0.75  # by how much another pairing must be better than one to one, where the counts agree
_WORTH_PAIRING = 0.45  # the least that speaks for a pair besides its shape, where the counts do not agree
_REORDERED = 0.1  # the least error of tensors whose numbers are in another order; sorted it is at most so much of it
_SAMPLES = 4  # calls of two lines whose values are read
_LARGEST = 1 << 22  # elements of a tensor that is read
_MOST = 1 << 18  # pairs of calls of one group that are looked at


@dataclass(frozen=True, slots=True)
class Paired:
    """Two calls that are one; ``is_sure``: their values, their lines, or equal counts of calls say so."""

    reference: int
    port: int
    is_sure: bool


class FunctionCalls:
    """Pairs the calls of sites that are functions or taps, group by group, keeping their order; what has no counterpart stays alone."""

    def __init__(
        self, sides: tuple[Side, Side], points: tuple[Floats, Floats], main: Sequence[Sequence[int]], partner: dict[int, int]
    ) -> None:
        self.sides, self._points, self._main = sides, points, main
        self._partners = partner, {b: a for a, b in partner.items()}
        self._around: tuple[dict[int, tuple[_Neighbour, _Neighbour]], ...] = ({}, {})

    def pair(self, groups: Sequence[Group]) -> list[list[Paired]]:
        """The pairs of calls in each group: calls of the reference and of the port that one pair of callers makes."""
        lines = [{self._line(side, call) for group in groups for call in group[side]} for side in (0, 1)]
        if max(map(len, lines)) == 1 and all(self._is_regular(*group) for group in groups):
            return [_in_step(*group) for group in groups]
        tables = self._without_reordered(groups, [self._values_of(*group) for group in groups])
        matched = self._matched_lines(groups, tables)
        return [self._paired(group, table, matched, several=max(map(len, lines)) > 1) for group, table in zip(groups, tables, strict=True)]

    # -- what is known of two calls ----------------------------------------------------------------------

    def _line(self, side: int, call: int) -> int:
        """A number for the line of code that makes a call."""
        return self._lines[side][call]

    @cached_property
    def _lines(self) -> tuple[list[int], ...]:
        found = []
        for side in self.sides:
            first = side.index[side.calls.first]
            found.append((first["file"].astype(np.int64) << 32 | first["line"].astype(np.int64)).tolist())
        return tuple(found)

    def _is_regular(self, ours: Sequence[int], theirs: Sequence[int]) -> bool:
        """Whether as many calls give out tensors of the same sizes, one after the other."""
        return len(ours) == len(theirs) and all(self._shape(0, a) == self._shape(1, b) for a, b in zip(ours, theirs, strict=True))

    def _shape(self, side: int, call: int) -> Shape:
        return tuple(sorted(size for size in self.sides[side].shapes[self._main[side][call]] if size != 1))

    def _given(self, side: int, call: int) -> int:
        """The row of the largest tensor that a call takes in; what it gives out where it takes in none (a draw, a tap)."""
        rows = self.sides[side].ends_of(call)[0]
        return max(rows, key=lambda row: int(self.sides[side].index["count"][row]), default=self._main[side][call])

    def _values_of(self, ours: Sequence[int], theirs: Sequence[int]) -> Floats:
        """How far the values say of every two calls that they are one, 0 to 2; -1 where the shapes of what they give out forbid it.

        Where both sides make as many calls, none is forbidden: a shape that went wrong is to be seen.
        """
        if not ours or not theirs or len(ours) * len(theirs) > _MOST:
            return np.zeros((len(ours), len(theirs)))
        total = np.zeros((len(ours), len(theirs)))
        for rows in (([self._given(side, call) for call in calls] for side, calls in enumerate((ours, theirs))), self._mains(ours, theirs)):
            a, b = (self._points[side][chosen] for side, chosen in enumerate(rows))
            apart = np.sqrt(((a[:, None, :] - b[None, :, :]) ** 2).sum(-1))
            total += np.nan_to_num(np.clip(1.0 - apart / _NEAR, 0.0, 1.0))
        shapes = [[self._shape(side, call) for call in calls] for side, calls in enumerate((ours, theirs))]
        unlike = np.array([[one != other for other in shapes[1]] for one in shapes[0]])
        return np.where(unlike, 0.0 if len(ours) == len(theirs) else -1.0, total)

    def _mains(self, ours: Sequence[int], theirs: Sequence[int]) -> list[list[int]]:
        return [[self._main[side][call] for call in calls] for side, calls in enumerate((ours, theirs))]

    def _without_reordered(self, groups: Sequence[Group], tables: list[Floats]) -> list[Floats]:
        """The tables with -1 for calls that take in, or give out, the same numbers in another order: one of them sorts.

        The values of a few calls of every two lines are read; the others of those lines are taken to be alike.
        """
        asked: dict[tuple[int, int], list[bool]] = defaultdict(list)
        for (ours, theirs), table in zip(groups, tables, strict=True):
            for i, j in np.argwhere(table >= _TOLD).tolist():
                known = asked[self._line(0, ours[i]), self._line(1, theirs[j])]
                if len(known) < _SAMPLES:
                    known.append(self._is_reordered(ours[i], theirs[j]))
                table[i, j] = -1.0 if known[-1] and all(known) else table[i, j]
        return tables

    def _is_reordered(self, a: int, b: int) -> bool:
        rows = (self._given(0, a), self._given(1, b)), (self._main[0][a], self._main[1][b])
        return any(self._differ_in_order(*pair) for pair in rows)

    def _differ_in_order(self, a: int, b: int) -> bool:
        records = self.sides[0].trace.records[a], self.sides[1].trace.records[b]
        if not all(one.stored and one.dtype != "text" and one.stats.count <= _LARGEST for one in records):
            return False
        return in_another_order(records[0].read(), records[1].read())

    # -- lines of code -----------------------------------------------------------------------------------

    def _matched_lines(self, groups: Sequence[Group], tables: Sequence[Floats]) -> dict[tuple[int, int], float]:
        """How far two lines make the same calls, -1 to 1, by the calls that values single out; 0 is not told, and left out."""
        votes: dict[tuple[int, int], int] = defaultdict(int)
        against: set[tuple[int, int]] = set()
        for (ours, theirs), table in zip(groups, tables, strict=True):
            for i, j in _singled_out(table):
                votes[self._line(0, ours[i]), self._line(1, theirs[j])] += 1
            if self._is_regular(ours, theirs):
                against |= {(self._line(0, ours[i]), self._line(1, theirs[i])) for i in np.flatnonzero(np.diag(table) < 0).tolist()}
        totals: tuple[dict[int, int], dict[int, int]] = (defaultdict(int), defaultdict(int))
        for (a, b), count in votes.items():
            totals[0][a] += count
            totals[1][b] += count
        seen = [{self._line(side, call) for group in groups for call in group[side]} for side in (0, 1)]
        matched = {pair: -1.0 for pair in against if not votes.get(pair)}
        for a in seen[0]:
            for b in seen[1]:
                most = max(totals[0].get(a, 0), totals[1].get(b, 0))
                if most:
                    matched[a, b] = votes.get((a, b), 0) / most or -1.0
        return matched

    # -- one group ---------------------------------------------------------------------------------------

    def _paired(self, group: Group, values: Floats, matched: dict[tuple[int, int], float], *, several: bool) -> list[Paired]:
        ours, theirs = group
        if not values.size:
            return []
        if len(ours) * len(theirs) > _MOST:
            return _in_step(ours, theirs) if self._is_regular(ours, theirs) else []
        scores = self._scores(group, values, matched, several)
        straight = len(ours) == len(theirs)
        best = order.in_order(scores)
        total = sum(scores[place] for place in best)
        if straight and total - float(np.trace(scores)) <= _CONTRADICTS:
            return _in_step(ours, theirs)
        least = _WORTH_PAIRING if several else _AROUND / 2
        sure = {place for place in best if scores[place] >= _TOLD}
        return [Paired(ours[i], theirs[j], (i, j) in sure) for i, j in best if scores[i, j] > least]

    def _scores(self, group: Group, values: Floats, matched: dict[tuple[int, int], float], several: bool) -> Floats:
        """What speaks for each pair of calls: values, lines, and the calls around them."""
        ours, theirs = group
        scores = np.where(values >= 0, values, -_OTHERWISE)
        for i, a in enumerate(ours):
            for j, b in enumerate(theirs):
                if values[i, j] < 0:
                    continue
                told = matched.get((self._line(0, a), self._line(1, b)), 0.0) if several else 0.0
                scores[i, j] += _LINE * told if told > 0 else -_OTHERWISE - values[i, j] if told < 0 else 0.0
                scores[i, j] += self._stand_alike(a, b)
        return scores

    def _stand_alike(self, a: int, b: int) -> float:
        """What the calls before and behind two calls say."""
        here, there = self._neighbours(0, a), self._neighbours(1, b)
        return sum(_AROUND * self._is_same(one, other) for one, other in zip(here, there, strict=True))

    def _is_same(self, one: _Neighbour, other: _Neighbour) -> bool:
        if one.steps != other.steps:
            return False
        return one.site == other.site == -1 or (one.site >= 0 and self._partners[0].get(one.site) == other.site)

    def _neighbours(self, side: int, call: int) -> tuple[_Neighbour, _Neighbour]:
        """The nearest paired calls of other sites before and behind a call, inside the call that makes it."""
        if call not in self._around[side]:
            self._look_around(side, int(self.sides[side].calls.parent[call]))
        return self._around[side][call]

    def _look_around(self, side: int, parent: int) -> None:
        calls, partners = self.sides[side].calls, self._partners[side]
        inside = self._inside[side].get(parent, [])
        found: list[list[_Neighbour]] = []
        for way in (inside, inside[::-1]):
            last, seen = -1, []
            steps: dict[int, int] = {}
            for call in way:
                site = int(calls.site[call])
                seen.append(_Neighbour(last, steps.get(site, 0)))
                if self.sides[side].kind[site] in ("module", "method") and site in partners:
                    last, steps = site, {}
                else:
                    steps[site] = steps.get(site, 0) + 1
            found.append(seen)
        self._around[side].update(zip(inside, zip(found[0], found[1][::-1], strict=True), strict=True))

    @cached_property
    def _inside(self) -> tuple[dict[int, list[int]], ...]:
        """The calls that each call makes, in order."""
        both: list[dict[int, list[int]]] = []
        for side in self.sides:
            inside: dict[int, list[int]] = defaultdict(list)
            for call, parent in enumerate(side.calls.parent.tolist()):
                inside[parent].append(call)
            both.append(inside)
        return tuple(both)


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
    return error > _REORDERED and axes.relative_error(np.sort(reference, axis=None), np.sort(port, axis=None)) < _REORDERED * error


@dataclass(frozen=True, slots=True)
class _Neighbour:
    """A paired call near another: its site (-1 where the caller begins or ends), and how many calls of that other's site lie between."""

    site: int
    steps: int


def _in_step(ours: Sequence[int], theirs: Sequence[int]) -> list[Paired]:
    return [Paired(a, b, True) for a, b in zip(ours, theirs, strict=True)]


def _singled_out(values: NDArray[np.float64]) -> list[tuple[int, int]]:
    """The pairs whose values are each other's best, and clearly better than the next.

    >>> _singled_out(np.array([[2.0, 0.1], [1.9, 1.0]]))
    []
    >>> _singled_out(np.array([[2.0, 0.1], [0.3, 1.0]]))
    [(0, 0), (1, 1)]
    """
    found = []
    for i, j in np.argwhere(values >= _TOLD).tolist():
        rivals = np.concatenate([np.delete(values[i], j), np.delete(values[:, j], i)])
        if not rivals.size or values[i, j] - rivals.max() >= _CLEARLY:
            found.append((i, j))
    return found
