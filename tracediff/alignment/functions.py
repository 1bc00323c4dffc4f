"""Pairs the calls of one function inside one module: a sampler that takes a softmax more per token must not shift all later ones.

The calls of a module differ in what they call. A function that code calls at several places has one site for all of these calls, and only
an order. What distinguishes the calls is the line of code that makes each, their inputs and outputs, and the calls around them. Lines are
paired by the calls whose values single them out. Paired lines then pair the calls whose values, after a fault, no longer agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tracediff.alignment import order
from tracediff.alignment.call_evidence import CallNeighbours, CallValues
from tracediff.alignment.record_table import CallPair
from tracediff.alignment.structure import Side
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.alignment.values import Floats

Group = tuple[Sequence[int], Sequence[int]]
"""Calls of the reference and of the port that one pair of callers makes."""


@dataclass(slots=True)
class Evidence:
    """What is known of the calls in some groups.

    ``values``: of each group how far the values say of every two calls that they are one, 0 to 2, or -1 against it: (ours, theirs).
    ``lines``: how far two lines of code make the same calls, -1 to 1; pairs of lines of which nothing is known are left out.
    """

    groups: Sequence[Group]
    has_lines: bool  # whether either side makes these calls at several lines of code
    values: list[Floats]
    lines: dict[tuple[int, int], float] = field(default_factory=dict)


class FunctionCalls:
    """Pairs the calls of sites that are functions or taps, group by group, keeping their order; the rest stays alone."""

    def __init__(
        self, sides: tuple[Side, Side], points: tuple[Floats, Floats], main: Sequence[Sequence[int]], partner: dict[int, int]
    ) -> None:
        self.sides = sides
        self.values, self.neighbours = CallValues(sides, points, main), CallNeighbours(sides, partner)

    def pair(self, groups: Sequence[Group]) -> list[list[CallPair]]:
        """The pairs of calls in each group: in step where one line of a side makes as many as the other side makes.

        So where a side writes out the last turn of a loop: its lines say nothing then, and values say little after a fault.
        """
        lines = [self.lines_of(groups, side) for side in (0, 1)]
        if min(map(len, lines)) == 1 and all(self.values.are_regular(*group) for group in groups):
            return [_in_step(*group) for group in groups]
        evidence = Evidence(groups, max(map(len, lines)) > 1, [np.zeros((len(ours), len(theirs))) for ours, theirs in groups])
        for gather in EVIDENCE:
            gather(self, evidence)
        return [self._paired(group, values, evidence) for group, values in zip(groups, evidence.values, strict=True)]

    def line(self, side: int, call: int) -> int:
        """A number for the line of code that makes a call."""
        return self._lines[side][call]

    def lines_of(self, groups: Sequence[Group], side: int) -> set[int]:
        """The lines of code that make the calls of a side."""
        return {self.line(side, call) for group in groups for call in group[side]}

    @cached_property
    def _lines(self) -> tuple[list[int], ...]:
        found = []
        for side in self.sides:
            first = side.index[side.calls.first]
            found.append((first["file"].astype(np.int64) << 32 | first["line"].astype(np.int64)).tolist())
        return tuple(found)

    def _paired(self, group: Group, values: Floats, evidence: Evidence) -> list[CallPair]:
        ours, theirs = group
        if not values.size:
            return []
        if _is_large(group):
            return _in_step(ours, theirs) if self.values.are_regular(ours, theirs) else []
        scores = self._scores(group, values, evidence)
        best = order.in_order(scores)
        gain = sum(scores[place] for place in best) - float(np.trace(scores))
        if len(ours) == len(theirs) and gain <= THRESHOLDS.function_not_in_step:
            return _in_step(ours, theirs)
        least = THRESHOLDS.function_worth_pairing if evidence.has_lines else THRESHOLDS.function_neighbour / 2
        sure = THRESHOLDS.function_sure
        return [CallPair((ours[i],), (theirs[j],), is_sure=bool(scores[i, j] >= sure)) for i, j in best if scores[i, j] > least]

    def _scores(self, group: Group, values: Floats, evidence: Evidence) -> Floats:
        """The scores of every two calls of a group: what the values say, and all `TERMS`. (ours, theirs)"""
        scores = np.where(values >= 0, values, -THRESHOLDS.function_conflict)
        for i, a in enumerate(group[0]):
            for j, b in enumerate(group[1]):
                if values[i, j] >= 0:
                    for term in TERMS:
                        scores[i, j] += term(self, evidence, a, b, values[i, j])
        return scores


# -- evidence, gathered over all groups ----------------------------------------------------------------------------------------


def of_values(functions: FunctionCalls, evidence: Evidence) -> None:
    """Compares the statistics of the calls' inputs and outputs."""
    for place, group in enumerate(evidence.groups):
        if group[0] and group[1] and not _is_large(group):
            evidence.values[place] = functions.values.table(*group)


def of_order(functions: FunctionCalls, evidence: Evidence) -> None:
    """Rules out calls that take in, or return, the same numbers in another order: one of them sorts.

    Only a few calls of every two lines are read; the other calls of those lines are taken to be alike.
    """
    read: dict[tuple[int, int], list[bool]] = defaultdict(list)
    for (ours, theirs), values in zip(evidence.groups, evidence.values, strict=True):
        for i, j in np.argwhere(values >= THRESHOLDS.function_sure).tolist():
            known = read[functions.line(0, ours[i]), functions.line(1, theirs[j])]
            if len(known) < THRESHOLDS.function_samples:
                known.append(functions.values.are_reordered(ours[i], theirs[j]))
            if known[-1] and all(known):
                values[i, j] = -1.0


def of_lines(functions: FunctionCalls, evidence: Evidence) -> None:
    """Pairs lines of code by the calls that values single out."""
    votes: dict[tuple[int, int], int] = defaultdict(int)
    against: set[tuple[int, int]] = set()
    for (ours, theirs), values in zip(evidence.groups, evidence.values, strict=True):
        for i, j in _singled_out(values):
            votes[functions.line(0, ours[i]), functions.line(1, theirs[j])] += 1
        if functions.values.are_regular(ours, theirs):
            conflicts = np.flatnonzero(np.diag(values) < 0).tolist()
            against |= {(functions.line(0, ours[place]), functions.line(1, theirs[place])) for place in conflicts}
    totals: tuple[dict[int, int], dict[int, int]] = (defaultdict(int), defaultdict(int))
    for (a, b), count in votes.items():
        totals[0][a] += count
        totals[1][b] += count
    evidence.lines.update({pair: -1.0 for pair in against if not votes.get(pair)})
    for a in functions.lines_of(evidence.groups, 0):
        for b in functions.lines_of(evidence.groups, 1):
            most = max(totals[0].get(a, 0), totals[1].get(b, 0))
            if most:
                evidence.lines[a, b] = votes.get((a, b), 0) / most or -1.0


def _singled_out(values: Floats) -> list[tuple[int, int]]:
    """The pairs whose values are each other's best, and clearly better than the next; ``values``: (ours, theirs).

    >>> _singled_out(np.array([[2.0, 0.1], [1.9, 1.0]]))
    []
    >>> _singled_out(np.array([[2.0, 0.1], [0.3, 1.0]]))
    [(0, 0), (1, 1)]
    """
    found = []
    for i, j in np.argwhere(values >= THRESHOLDS.function_sure).tolist():
        rivals = np.concatenate([np.delete(values[i], j), np.delete(values[:, j], i)])
        if not rivals.size or values[i, j] - rivals.max() >= THRESHOLDS.function_margin:
            found.append((i, j))
    return found


EVIDENCE: tuple[Callable[[FunctionCalls, Evidence], None], ...] = (of_values, of_order, of_lines)
"""What is gathered, in order, before calls are paired. An ablation leaves one out by its name."""


# -- what is added to the score of two calls besides their values --------------------------------------------------------------


def by_line(functions: FunctionCalls, evidence: Evidence, a: int, b: int, values: float) -> float:
    """Whether the lines of code that make two calls are paired with each other, or with other lines: then values do not count either."""
    agreement = evidence.lines.get((functions.line(0, a), functions.line(1, b)), 0.0) if evidence.has_lines else 0.0
    if agreement < 0:
        return -THRESHOLDS.function_conflict - values
    return THRESHOLDS.function_line * agreement


def by_neighbours(functions: FunctionCalls, evidence: Evidence, a: int, b: int, values: float) -> float:
    """Whether the same paired calls precede and follow two calls, as many steps away."""
    return THRESHOLDS.function_neighbour * functions.neighbours.in_common(a, b)


TERMS: tuple[Callable[[FunctionCalls, Evidence, int, int, float], float], ...] = (by_line, by_neighbours)
"""What the score of two calls is the sum of, besides what their values say. An ablation leaves one out by its name."""


def _is_large(group: Group) -> bool:
    """Whether a group has too many pairs of calls to look at each."""
    return len(group[0]) * len(group[1]) > THRESHOLDS.function_pairs


def _in_step(ours: Sequence[int], theirs: Sequence[int]) -> list[CallPair]:
    return [CallPair((a,), (b,)) for a, b in zip(ours, theirs, strict=True)]
