"""Pairs the calls of paired sites: by index where the counts agree inside paired callers, else split, stacked, missing or extra."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracediff.alignment import order
from tracediff.alignment.call_groups import CallGroups, Groups
from tracediff.alignment.functions import FunctionCalls
from tracediff.alignment.record_table import CallPair
from tracediff.alignment.split_work import Shape, cut_short, is_regular, regrouped
from tracediff.alignment.structure import INPUT, Side
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.alignment.values import Floats
from tracediff.trace import schema


class CallPairs:
    """Pairs calls, callers first, so that each call is looked for inside the call that its caller was paired with.

    ``features``: those of each side's records, (rows, 7); ``partner``: the port's site of each paired site of the reference.
    """

    def __init__(self, sides: tuple[Side, Side], features: tuple[Floats, Floats], partner: dict[int, int]) -> None:
        self.sides, self.features = sides, features
        self.groups = CallGroups(sides)
        self._main = tuple(_main_rows(side) for side in sides)
        self._functions = FunctionCalls(sides, features, self._main, partner)
        self._raised = tuple(((side.index["flags"] & schema.RAISED) != 0).tolist() for side in sides)

    def pair(self, reference: int, port: int) -> list[CallPair]:
        """The pairs of calls of two paired sites, in the reference's order; calls without partner are left out."""
        found = self._pairs(reference, port)
        self.groups.note(found)
        return sorted(found, key=lambda pair: pair.reference[0])

    def _pairs(self, reference: int, port: int) -> list[CallPair]:
        calls = self.groups.of_site[0][reference], self.groups.of_site[1][port]
        if len(calls[0]) == len(calls[1]) == 1:
            return [CallPair((calls[0][0],), (calls[1][0],))]
        grouped = self.groups.of(0, reference), self.groups.of(1, port)
        if self.sides[0].kind[reference] in ("function", "tap"):
            return self._of_functions(*grouped)
        return self._of_modules(*grouped)

    def _of_modules(self, ours: Groups, theirs: Groups) -> list[CallPair]:
        """The pairs of calls of a module, group by group, and then among what is left of all groups."""
        found: list[CallPair] = []
        left: tuple[list[int], list[int]] = ([], [])
        for key in dict.fromkeys([*ours, *theirs]):
            group = ours.get(key, []), theirs.get(key, [])
            pairs = self._reconciled(*group) if group[0] and group[1] else []
            found.extend(pairs)
            done = {call for pair in pairs for call in pair.reference}, {call for pair in pairs for call in pair.port}
            for side in (0, 1):
                left[side].extend(call for call in group[side] if call not in done[side])
        if left[0] and left[1]:
            found.extend(self._reconciled(sorted(left[0]), sorted(left[1])))
        return found

    def _of_functions(self, ours: Groups, theirs: Groups) -> list[CallPair]:
        """The pairs of calls of a function or a tap; the calls that only one side's callers make are one more group."""
        groups = [(calls, theirs[key]) for key, calls in ours.items() if key in theirs]
        alone = [
            sorted(call for key in side.keys() - other.keys() for call in side[key]) for side, other in ((ours, theirs), (theirs, ours))
        ]
        if alone[0] and alone[1]:
            groups.append((alone[0], alone[1]))
        found: list[CallPair] = []
        one_to_one = []
        for group in groups:
            pairs = self._reconciled(*group) if self._have_raised(*group) else self._in_pieces(*group)
            found.extend(pairs)
            if not pairs:
                one_to_one.append(group)
        if one_to_one:
            found.extend(pair for pairs in self._functions.pair(one_to_one) for pair in pairs)
        return found

    def _reconciled(self, ours: Sequence[int], theirs: Sequence[int]) -> list[CallPair]:
        """The pairs of calls of one group: in pieces, one to one, or with some calls missing or extra."""
        found = [] if self._have_raised(ours, theirs) else self._in_pieces(ours, theirs)
        if found:
            return found
        pairs = zip(ours, theirs, strict=True) if len(ours) == len(theirs) else self._with_gaps(ours, theirs)
        return [CallPair((a,), (b,)) for a, b in pairs]

    def _in_pieces(self, ours: Sequence[int], theirs: Sequence[int]) -> list[CallPair]:
        """The calls of which one side's do the other's work in pieces, by outputs or by inputs; none where they do not."""
        outputs = self._shapes(ours, theirs)
        if is_regular(*outputs):
            return []
        if taking_turns := self._taking_turns(ours, theirs):
            return [pair for turn in taking_turns for pair in self._in_pieces(*turn) or [CallPair(tuple(turn[0]), tuple(turn[1]))]]
        inputs = [[self._input_shape(side, call) for call in calls] for side, calls in enumerate((ours, theirs))]
        for shapes in (outputs, inputs):
            pairs = regrouped(ours, theirs, shapes)
            if pairs:
                return pairs
        around = self.groups.split_around(ours[0])
        if around is not None and (len(ours), len(theirs)) == (len(around.reference), len(around.port)):
            return [CallPair(tuple(ours), tuple(theirs), around.lengths)]
        short = None if len(ours) == len(theirs) else cut_short(ours, theirs, outputs) or cut_short(ours, theirs, inputs)
        return [] if short is None else [short]

    def _taking_turns(self, ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[list[int], list[int]]]:
        """The first calls that each enclosing call makes, the second ones, and so on, where the enclosing calls are split; else none.

        So where one module rotates the queries and then the keys, chunk by chunk.
        """
        around = self.groups.split_around(ours[0])
        if around is None:
            return []
        made = [self._made_by(side, calls, by) for side, calls, by in ((0, ours, around.reference), (1, theirs, around.port))]
        counts = {len(calls) for side in made for calls in side}
        if len(counts) != 1 or min(counts) < 2:
            return []
        return [([calls[turn] for calls in made[0]], [calls[turn] for calls in made[1]]) for turn in range(min(counts))]

    def _made_by(self, side: int, calls: Sequence[int], callers: Sequence[int]) -> list[list[int]]:
        """Some calls by which of the callers encloses them, in the order of the callers."""
        parent = self.sides[side].calls.parent
        made: dict[int, list[int]] = {caller: [] for caller in callers}
        for call in calls:
            above = int(parent[call])
            while above >= 0 and above not in made:
                above = int(parent[above])
            if above >= 0:
                made[above].append(call)
        return list(made.values())

    def _with_gaps(self, ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int]]:
        """The calls that shapes and values pair in order, some calls being missing or extra on one side."""
        if not order.is_small(len(ours), len(theirs)):
            return list(zip(ours, theirs, strict=False))
        codes: dict[Shape, int] = {}
        kinds = [np.array([codes.setdefault(tuple(sorted(shape)), len(codes)) for shape in side]) for side in self._shapes(ours, theirs)]
        raised = [np.array([self._has_raised(side, call) for call in calls]) for side, calls in enumerate((ours, theirs))]
        may_be_one = (kinds[0][:, None] == kinds[1][None, :]) | raised[0][:, None] | raised[1][None, :]  # (ours, theirs)
        points = [self.features[side][[self._main[side][call] for call in calls]] for side, calls in enumerate((ours, theirs))]
        distance = np.sqrt(((points[0][:, None, :] - points[1][None, :, :]) ** 2).sum(-1))
        nearness = np.clip(1.0 - distance / THRESHOLDS.call_distance, 0.0, 1.0)
        scores = np.where(may_be_one, THRESHOLDS.call_shape + THRESHOLDS.call_values * nearness, 0.0)
        return [(ours[i], theirs[j]) for i, j in order.in_order(scores)]

    def _have_raised(self, ours: Sequence[int], theirs: Sequence[int]) -> bool:
        return any(self._has_raised(side, call) for side, calls in enumerate((ours, theirs)) for call in calls)

    def _has_raised(self, side: int, call: int) -> bool:
        """Whether a call raised: it has no output, and no shape by which to pair it."""
        return bool(self._raised[side][self._main[side][call]])

    def _shapes(self, ours: Sequence[int], theirs: Sequence[int]) -> list[list[Shape]]:
        """The shapes of the main outputs of calls, without axes of length 1."""
        return [[self._without_ones(side, self._main[side][call]) for call in calls] for side, calls in enumerate((ours, theirs))]

    def _input_shape(self, side: int, call: int) -> Shape:
        """The shape of a call's first input, without axes of length 1."""
        inputs = self.sides[side].ends_of(call)[0]
        return self._without_ones(side, inputs[0] if inputs else self._main[side][call])

    def _without_ones(self, side: int, row: int) -> Shape:
        return tuple(size for size in self.sides[side].shapes[row] if size != 1)


def _main_rows(side: Side) -> list[int]:
    """Of each call the row that stands for it: its largest output, or its largest input where it has none."""
    calls = side.calls
    counts = side.index["count"].astype(np.int64) + np.where(side.end_kind != INPUT, np.int64(1) << 40, 0)
    ranked = np.lexsort((np.arange(len(counts)), -counts, calls.of_row))
    _, first = np.unique(calls.of_row[ranked], return_index=True)
    main: list[int] = ranked[first].tolist()
    return main
