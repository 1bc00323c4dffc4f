"""Pairs the calls of paired sites: by index where the counts agree inside paired callers, else split, stacked, missing or extra."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracediff.align import order
from tracediff.align.structure import Side
from tracediff.align.values import Floats

Calls = tuple[int, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Together:
    """Calls of the reference and of the port that do the same work: one each, or several where one side split it."""

    reference: Calls
    port: Calls


class CallPairs:
    """Pairs calls, callers first, so that each call is looked for inside the call that its caller was paired with."""

    def __init__(self, sides: tuple[Side, Side], features: tuple[Floats, Floats]) -> None:
        self.sides = sides
        self.features = features
        self.partner: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._of_site = tuple(_calls_of_sites(side) for side in sides)
        self._main = tuple(_main_rows(side) for side in sides)
        stages = [set(np.unique(side.index["stage"]).tolist()) for side in sides]
        texts = [{side.trace.strings[int(code)] for code in codes} for side, codes in zip(sides, stages, strict=True)]
        self._stages = texts[0] & texts[1]
        self._stage_of = tuple([side.text("stage", int(row)) for row in side.calls.first] for side in sides)

    def pair(self, reference: int, port: int) -> list[Together]:
        """The calls of two paired sites that belong together, in the reference's order; calls without partner are left out."""
        grouped = self._grouped(0, reference), self._grouped(1, port)
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
        for one in found:
            if len(one.reference) == len(one.port) == 1:
                self.partner[0].setdefault(one.reference[0], one.port[0])
                self.partner[1].setdefault(one.port[0], one.reference[0])
        return sorted(found, key=lambda one: one.reference[0])

    def _grouped(self, side: int, site: int) -> dict[tuple[str, int], list[int]]:
        """A site's calls by stage and by the nearest enclosing call that is paired (by its number on the reference's side)."""
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        for call in self._of_site[side][site]:
            stage = self._stage_of[side][call]
            groups[stage if stage in self._stages else "", self._enclosing(side, call)].append(call)
        return groups

    def _enclosing(self, side: int, call: int) -> int:
        parent = self.sides[side].calls.parent
        above = int(parent[call])
        while above >= 0 and above not in self.partner[side]:
            above = int(parent[above])
        if above < 0:
            return -1
        return above if side == 0 else self.partner[1][above]

    def _reconciled(self, ours: Sequence[int], theirs: Sequence[int]) -> list[Together]:
        shapes = [[self._shape(side, call) for call in calls] for side, calls in enumerate((ours, theirs))]
        if len(ours) == len(theirs) and [sorted(shape) for shape in shapes[0]] == [sorted(shape) for shape in shapes[1]]:
            return [Together((a,), (b,)) for a, b in zip(ours, theirs, strict=True)]
        regrouped = regroup(*shapes)
        if regrouped is not None:
            return [Together(tuple(ours[i] for i in rows), tuple(theirs[j] for j in columns)) for rows, columns in regrouped]
        if len(ours) == len(theirs):
            return [Together((a,), (b,)) for a, b in zip(ours, theirs, strict=True)]
        return [Together((ours[i],), (theirs[j],)) for i, j in self._aligned(ours, theirs, shapes)]

    def _aligned(self, ours: Sequence[int], theirs: Sequence[int], shapes: Sequence[Sequence[Shape]]) -> order.Pairs:
        """The calls that shapes and values pair in order, some calls being missing or extra on one side."""
        if not order.is_small(len(ours), len(theirs)):
            count = min(len(ours), len(theirs))
            return [(place, place) for place in range(count)]
        codes: dict[Shape, int] = {}
        kinds = [np.array([codes.setdefault(tuple(sorted(shape)), len(codes)) for shape in side]) for side in shapes]
        same = kinds[0][:, None] == kinds[1][None, :]
        points = [self.features[side][self._rows(side, calls)] for side, calls in enumerate((ours, theirs))]
        apart = np.sqrt(((points[0][:, None, :] - points[1][None, :, :]) ** 2).sum(-1))
        return order.in_order(np.where(same, 1.0 + 2.0 * np.clip(1.0 - apart / 0.1, 0.0, 1.0), 0.0))

    def _rows(self, side: int, calls: Sequence[int]) -> list[int]:
        return [self._main[side][call] for call in calls]

    def _shape(self, side: int, call: int) -> Shape:
        return tuple(size for size in self.sides[side].shapes[self._main[side][call]] if size != 1)


def regroup(reference: Sequence[Shape], port: Sequence[Shape]) -> list[tuple[range, range]] | None:
    """The calls that together hold equal amounts along one axis: (range of the reference's, range of the port's) each; None if none.

    Shapes come without axes of length 1. A shape that lacks the axis holds one step of it.

    >>> regroup([(64, 40)], [(40,)] * 64)
    [(range(0, 1), range(0, 64))]
    >>> regroup([(6, 40), (40,)], [(4, 40), (2, 40), (40,)])
    [(range(0, 1), range(0, 2)), (range(1, 2), range(2, 3))]
    >>> regroup([(40,)] * 3, [(40,)] * 2)
    """
    for rest in _rests([*reference, *port]):
        ours, theirs = _lengths(reference, rest), _lengths(port, rest)
        if ours is not None and theirs is not None and sum(ours) == sum(theirs):
            return _aligned_cuts(ours, theirs)
    return None


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
