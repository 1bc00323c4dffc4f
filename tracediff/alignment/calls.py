"""Pairs the calls of paired sites: by index where the counts agree inside paired callers, else split, stacked, missing or extra."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracediff.alignment import order
from tracediff.alignment.functions import FunctionCalls
from tracediff.alignment.structure import Side
from tracediff.alignment.values import Floats
from tracediff.trace import schema

Calls = tuple[int, ...]
Shape = tuple[int, ...]
Groups = dict[tuple[str, str, int], list[int]]
"""A site's calls by stage, scope and the call that makes them."""


@dataclass(frozen=True, slots=True)
class Together:
    """Calls of the reference and of the port that do the same work: one each, or several where one side split it.

    ``lengths``: how many steps of the axis along which the work is split each call of either side does; empty for one call each.
    ``is_sure``: more than their order says so, where the counts of calls do not agree.
    """

    reference: Calls
    port: Calls
    lengths: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    is_sure: bool = True


class CallPairs:
    """Pairs calls, callers first, so that each call is looked for inside the call that its caller was paired with."""

    def __init__(self, sides: tuple[Side, Side], features: tuple[Floats, Floats], partner: dict[int, int]) -> None:
        self.sides = sides
        self.features = features
        self.partner: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._group: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._around: dict[int, Together] = {}
        self._of_site = tuple(_calls_of_sites(side) for side in sides)
        self._main = tuple(_main_rows(side) for side in sides)
        self._functions = FunctionCalls(sides, features, self._main, partner)
        self._raised = tuple(((side.index["flags"] & schema.RAISED) != 0).tolist() for side in sides)
        stages = [set(np.unique(side.index["stage"]).tolist()) for side in sides]
        texts = [{side.trace.strings[int(code)] for code in codes} for side, codes in zip(sides, stages, strict=True)]
        self._stages = texts[0] & texts[1]
        self._stage_of = tuple([side.text("stage", int(row)) for row in side.calls.first] for side in sides)
        self._scope_of = tuple([side.text("scope", int(row)) for row in side.calls.first] for side in sides)
        self._scopes = set(self._scope_of[0]) & set(self._scope_of[1])

    def pair(self, reference: int, port: int) -> list[Together]:
        """The calls of two paired sites that belong together, in the reference's order; calls without partner are left out."""
        calls = self._of_site[0][reference], self._of_site[1][port]
        if len(calls[0]) == len(calls[1]) == 1:
            return self._noted([Together((calls[0][0],), (calls[1][0],))])
        grouped = self._grouped(0, reference), self._grouped(1, port)
        if self.sides[0].kind[reference] in ("function", "tap"):
            return self._noted(self._of_functions(*grouped))
        found: list[Together] = []
        left: tuple[list[int], list[int]] = ([], [])
        for key in dict.fromkeys([*grouped[0], *grouped[1]]):
            ours, theirs = grouped[0].get(key, []), grouped[1].get(key, [])
            together = self._reconciled(ours, theirs) if ours and theirs else []
            found.extend(together)
            done = {call for one in together for call in one.reference}, {call for one in together for call in one.port}
            left[0].extend(call for call in ours if call not in done[0])
            left[1].extend(call for call in theirs if call not in done[1])
        if left[0] and left[1]:
            found.extend(self._reconciled(sorted(left[0]), sorted(left[1])))
        return self._noted(found)

    def _of_functions(self, ours: Groups, theirs: Groups) -> list[Together]:
        """The calls of a function or a tap that belong together; those that only one side's callers make are one more group."""
        groups = [(calls, theirs[key]) for key, calls in ours.items() if key in theirs]
        alone = [
            sorted(call for key in side.keys() - other.keys() for call in side[key]) for side, other in ((ours, theirs), (theirs, ours))
        ]
        if alone[0] and alone[1]:
            groups.append((alone[0], alone[1]))
        found: list[Together] = []
        one_to_one = []
        for group in groups:
            together = self._split(*group)
            found.extend(together)
            if not together:
                one_to_one.append(group)
        pairs = self._functions.pair(one_to_one) if one_to_one else []
        return [*found, *(Together((one.reference,), (one.port,), is_sure=one.is_sure) for group in pairs for one in group)]

    def _split(self, ours: Sequence[int], theirs: Sequence[int]) -> list[Together]:
        """The calls of a function that do one another's work in pieces, or of which some raised; none where they do not."""
        if any(self._has_raised(side, call) for side, calls in enumerate((ours, theirs)) for call in calls):
            return self._reconciled(ours, theirs)
        shapes = self._shapes(ours, theirs)
        return [] if _is_regular(shapes) else self._in_pieces(ours, theirs, shapes)

    def _noted(self, found: list[Together]) -> list[Together]:
        """The calls in the reference's order, remembered as what the calls inside them are looked for in."""
        for one in found:
            if len(one.reference) == len(one.port) == 1:
                self.partner[0].setdefault(one.reference[0], one.port[0])
                self.partner[1].setdefault(one.port[0], one.reference[0])
            for side, calls in enumerate((one.reference, one.port)):
                self._group[side].update((call, one.reference[0]) for call in calls if call not in self._group[side])
            if len(one.reference) != len(one.port):
                self._around.setdefault(one.reference[0], one)
        return sorted(found, key=lambda one: one.reference[0])

    def _grouped(self, side: int, site: int) -> Groups:
        """A site's calls by stage, by scope and by the nearest enclosing call that is paired (by its number on the reference's side).

        A stage or scope that only one side has tells nothing.
        """
        groups: Groups = defaultdict(list)
        for call in self._of_site[side][site]:
            stage, scope = self._stage_of[side][call], self._scope_of[side][call]
            key = stage if stage in self._stages else "", scope if scope in self._scopes else "", self._enclosing(side, call)
            groups[key].append(call)
        return groups

    def _enclosing(self, side: int, call: int) -> int:
        """The first call of the reference among those that the nearest paired caller belongs together with; -1 where there is none."""
        parent, group = self.sides[side].calls.parent, self._group[side]
        above = int(parent[call])
        while above >= 0 and above not in group:
            above = int(parent[above])
        return group[above] if above >= 0 else -1

    def _reconciled(self, ours: Sequence[int], theirs: Sequence[int]) -> list[Together]:
        shapes = self._shapes(ours, theirs)
        has_raised = any(self._has_raised(side, call) for side, calls in enumerate((ours, theirs)) for call in calls)
        found = [] if has_raised or _is_regular(shapes) else self._in_pieces(ours, theirs, shapes)
        if found:
            return found
        pairs = zip(ours, theirs, strict=True) if len(ours) == len(theirs) else self._picked(ours, theirs, shapes)
        return [Together((a,), (b,)) for a, b in pairs]

    def _in_pieces(self, ours: Sequence[int], theirs: Sequence[int], shapes: Sequence[Sequence[Shape]]) -> list[Together]:
        """The calls of which one side's do the other's work in pieces; none where they do not."""
        given = [[self._given(side, call) for call in calls] for side, calls in enumerate((ours, theirs))]
        for sizes in (shapes, given):
            regrouped = _regrouped(ours, theirs, sizes)
            if regrouped:
                return regrouped
        around = self._around.get(self._enclosing(0, ours[0]))
        if around is not None and (len(ours), len(theirs)) == (len(around.reference), len(around.port)):
            return [Together(tuple(ours), tuple(theirs), around.lengths)]
        short = None if len(ours) == len(theirs) else _cut_short(ours, theirs, shapes) or _cut_short(ours, theirs, given)
        return [] if short is None else [short]

    def _shapes(self, ours: Sequence[int], theirs: Sequence[int]) -> list[list[Shape]]:
        return [[self._shape(side, call) for call in calls] for side, calls in enumerate((ours, theirs))]

    def _picked(self, ours: Sequence[int], theirs: Sequence[int], shapes: Sequence[Sequence[Shape]]) -> list[tuple[int, int]]:
        return [(ours[i], theirs[j]) for i, j in self._aligned(ours, theirs, shapes)]

    def _has_raised(self, side: int, call: int) -> bool:
        """Whether a call raised: it has no output to tell its shape by."""
        return bool(self._raised[side][self._main[side][call]])

    def _aligned(self, ours: Sequence[int], theirs: Sequence[int], shapes: Sequence[Sequence[Shape]]) -> order.Pairs:
        """The calls that shapes and values pair in order, some calls being missing or extra on one side."""
        if not order.is_small(len(ours), len(theirs)):
            count = min(len(ours), len(theirs))
            return [(place, place) for place in range(count)]
        codes: dict[Shape, int] = {}
        kinds = [np.array([codes.setdefault(tuple(sorted(shape)), len(codes)) for shape in side]) for side in shapes]
        same = kinds[0][:, None] == kinds[1][None, :]
        raised = [np.array([self._has_raised(side, call) for call in calls]) for side, calls in enumerate((ours, theirs))]
        same |= raised[0][:, None] | raised[1][None, :]
        points = [self.features[side][self._rows(side, calls)] for side, calls in enumerate((ours, theirs))]
        apart = np.sqrt(((points[0][:, None, :] - points[1][None, :, :]) ** 2).sum(-1))
        return order.in_order(np.where(same, 1.0 + 2.0 * np.clip(1.0 - apart / 0.1, 0.0, 1.0), 0.0))

    def _rows(self, side: int, calls: Sequence[int]) -> list[int]:
        return [self._main[side][call] for call in calls]

    def _shape(self, side: int, call: int) -> Shape:
        """The shape of what a call mainly gives out, without axes of length 1."""
        return tuple(size for size in self.sides[side].shapes[self._main[side][call]] if size != 1)

    def _given(self, side: int, call: int) -> Shape:
        """The shape of what a call is given first, without axes of length 1."""
        inputs = self.sides[side].ends_of(call)[0]
        return tuple(size for size in self.sides[side].shapes[inputs[0] if inputs else self._main[side][call]] if size != 1)


def _is_regular(shapes: Sequence[Sequence[Shape]]) -> bool:
    """Whether both sides make as many calls, of tensors of the same lengths one after the other."""
    ours, theirs = ([sorted(shape) for shape in side] for side in shapes)
    return ours == theirs


def _regrouped(ours: Sequence[int], theirs: Sequence[int], shapes: Sequence[Sequence[Shape]]) -> list[Together]:
    """The calls that together hold equal amounts along one axis; none where no axis fits."""
    lengths = _along_one_axis(*shapes)
    if lengths is None or sum(lengths[0]) != sum(lengths[1]):
        return []
    return [
        Together(
            tuple(ours[i] for i in rows),
            tuple(theirs[j] for j in columns),
            (tuple(lengths[0][i] for i in rows), tuple(lengths[1][j] for j in columns)),
        )
        for rows, columns in _aligned_cuts(*lengths)
    ]


def _cut_short(ours: Sequence[int], theirs: Sequence[int], shapes: Sequence[Sequence[Shape]]) -> Together | None:
    """One call of a side and the several of the other that do most of its work, or somewhat more: a loop that ends a token earlier."""
    if min(len(ours), len(theirs)) != 1 or max(len(ours), len(theirs)) < 2:
        return None
    lengths = next(
        (found for rest in _rests([*shapes[0], *shapes[1]]) if (found := _lengths_of_both(shapes[0], shapes[1], rest)) is not None), None
    )
    if lengths is None:
        return None
    side = 0 if len(ours) == 1 else 1
    whole, parts = lengths[side][0], lengths[1 - side]
    kept = [end for end in np.cumsum(parts).tolist() if end <= whole]
    if len(kept) < 2 or 2 * kept[-1] < whole:
        return None
    many = tuple((ours, theirs)[1 - side][: len(kept)])
    some = tuple(parts[: len(kept)])
    return Together(tuple(ours), many, ((whole,), some)) if side == 0 else Together(many, tuple(theirs), (some, (whole,)))


def regroup(reference: Sequence[Shape], port: Sequence[Shape]) -> list[tuple[range, range]] | None:
    """The calls that together hold equal amounts along one axis: (range of the reference's, range of the port's) each; None if none.

    Shapes come without axes of length 1. A shape that lacks the axis holds one step of it.

    >>> regroup([(64, 40)], [(40,)] * 64)
    [(range(0, 1), range(0, 64))]
    >>> regroup([(6, 40), (40,)], [(4, 40), (2, 40), (40,)])
    [(range(0, 1), range(0, 2)), (range(1, 2), range(2, 3))]
    >>> regroup([(40,)] * 3, [(40,)] * 2)
    """
    lengths = _along_one_axis(reference, port)
    return None if lengths is None else _aligned_cuts(*lengths)


def _along_one_axis(reference: Sequence[Shape], port: Sequence[Shape]) -> tuple[list[int], list[int]] | None:
    """How many steps of one axis each call holds, both sides holding as many; None where there is no such axis."""
    for rest in _rests([*reference, *port]):
        found = _lengths_of_both(reference, port, rest)
        if found is not None and sum(found[0]) == sum(found[1]):
            return found
    return None


def _lengths_of_both(reference: Sequence[Shape], port: Sequence[Shape], rest: Shape) -> tuple[list[int], list[int]] | None:
    ours, theirs = _lengths(reference, rest), _lengths(port, rest)
    return None if ours is None or theirs is None else (ours, theirs)


def _rests(shapes: Sequence[Shape]) -> list[Shape]:
    """The candidates for the axes that all calls share, the one that leaves out the least being first."""
    found: dict[Shape, None] = {}
    for shape in dict.fromkeys(shapes):
        for place in range(len(shape)):
            found[tuple(sorted(shape[:place] + shape[place + 1 :]))] = None
    for shape in dict.fromkeys(shapes):
        found[tuple(sorted(shape))] = None
    return list(found)


def _lengths(shapes: Sequence[Shape], rest: Shape) -> list[int] | None:
    """How many steps of the axis besides ``rest`` each shape holds; None where a shape does not have those axes."""
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


def _aligned_cuts(ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[range, range]]:
    """The runs of both sides between the points at which both have done equally much."""
    ends = np.cumsum(ours), np.cumsum(theirs)
    cuts = np.intersect1d(*ends)
    places = [np.searchsorted(end, cuts) + 1 for end in ends]
    starts = [[0, *place[:-1]] for place in places]
    return [(range(a, b), range(c, d)) for a, b, c, d in zip(starts[0], places[0].tolist(), starts[1], places[1].tolist(), strict=True)]


def _calls_of_sites(side: Side) -> list[list[int]]:
    calls: list[list[int]] = [[] for _ in range(len(side))]
    for call, site in enumerate(side.calls.site.tolist()):
        calls[site].append(call)
    return calls


def _main_rows(side: Side) -> list[int]:
    """Of each call the row that stands for it: its largest output, or what comes nearest to one."""
    calls = side.calls
    counts = side.index["count"].astype(np.int64) + np.where(side.end_kind != 0, np.int64(1) << 40, 0)
    ranked = np.lexsort((np.arange(len(counts)), -counts, calls.of_row))
    _, first = np.unique(calls.of_row[ranked], return_index=True)
    main: list[int] = ranked[first].tolist()
    return main
