"""The records of several calls that do one call's work: joined over the calls, or each a part of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise, permutations, product

import numpy as np

from tracediff.alignment import axes
from tracediff.alignment.arguments import Arguments
from tracediff.alignment.axes import Join, Layout, Part, Shape
from tracediff.alignment.record_table import CallPair, PairedSites, Rows
from tracediff.alignment.result import RecordPair
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.dtype import Array

Joined = tuple[list[int], list[int], Layout]
"""The rows of a boundary in the calls of either side, and the layout that joins them."""

Joinable = tuple[list[int], list[int], list[Layout]]
"""The rows of a boundary in the calls of either side, and the layouts that may join them: several where two axes are equally long."""

Way = tuple[Join | None, Join | None, tuple[int, ...] | None]
"""How the calls of the port, and of the reference, are joined, and in which order the axes are then read."""

Kind = tuple[int, ...]
"""What is joined in one way: how many calls of either side, of tensors of how many axes."""


class SplitCalls:
    """Pairs the records of calls of which one side makes more."""

    def __init__(self, rows: Rows, arguments: Arguments) -> None:
        self.rows, self.arguments = rows, arguments
        self._orders: dict[tuple[int, int], tuple[int, ...]] = {}
        self._ways: dict[Kind, Way] = {}

    def of(self, sites: PairedSites, calls: CallPair) -> list[RecordPair]:
        """The pairs of records: each boundary joined over the calls, or else each call's tensor as a part of the whole."""
        numbers = calls.reference, calls.port
        rows = [[side.calls.rows_of(call).tolist() for call in own] for side, own in zip(self.rows.sides, numbers, strict=True)]
        joinable: list[Joinable] = []
        pieces: list[tuple[int, int, Layout]] = []
        for i, j, _ in self.arguments.paired(rows[0][0], rows[1][0], in_pieces=True):
            ours, theirs = self._same_boundary(0, rows[0], rows[0][0][i]), self._same_boundary(1, rows[1], rows[1][0][j])
            if len(ours) != len(calls.reference) or len(theirs) != len(calls.port):
                continue
            shapes = [[self.rows.shape(side, row) for row in chosen] for side, chosen in enumerate((ours, theirs))]
            layouts = _joined_in_any_order(shapes[0], shapes[1])
            if layouts:
                joinable.append((ours, theirs, layouts))
                continue
            parts = piece_layouts(shapes[0], shapes[1], calls.lengths)
            if not parts and self._are_heads(ours[0], theirs[0]):
                parts = piece_layouts(shapes[0], shapes[1], calls.lengths, heads=True)
            parts = parts or self._repeated(ours, theirs, shapes)
            pieces.extend((ours[a], theirs[b], part) for a, b, part in parts)
        joined = self._joined(joinable)
        order = self._order(sites.place, joined)
        dealt = [(_dealt(ours, order), _dealt(theirs, order), layout) for ours, theirs, layout in joined]
        evidence = f"{len(calls.reference)} calls of the reference, {len(calls.port)} of the port"
        confidence = min(sites.confidence, THRESHOLDS.confidence_split)
        return [
            RecordPair(ours, theirs, layout, evidence, confidence, sites.place)
            for ours, theirs, layout in [*dealt, *(((a,), (b,), layout) for a, b, layout in pieces)]
        ]

    def _joined(self, joinable: Sequence[Joinable]) -> list[Joined]:
        """Each boundary with the layout that joins it: all of a kind along one axis and in one order, which values tell if shapes do not.

        Where they do not either, after a fault, calls of other sites that were split into as many tell.
        """
        for ours, theirs, layouts in joinable:
            kind = self._kind(ours, theirs)
            told = self._told_apart(ours, theirs, layouts) if len(layouts) > 1 and kind not in self._ways else None
            if told is not None:
                self._ways[kind] = told
        return [(ours, theirs, self._in_way(self._kind(ours, theirs), layouts)) for ours, theirs, layouts in joinable]

    def _kind(self, ours: Sequence[int], theirs: Sequence[int]) -> Kind:
        return len(ours), len(theirs), len(self.rows.shape(0, ours[0])), len(self.rows.shape(1, theirs[0]))

    def _in_way(self, kind: Kind, layouts: Sequence[Layout]) -> Layout:
        """Of some layouts the one that what is of a kind takes; else one that joins as calls of other kinds, as many, are joined."""
        for way in (self._ways[one] for one in (kind, *self._ways) if one in self._ways and one[:2] == kind[:2]):
            found = [one for one in layouts if (one.join, one.join_reference) == way[:2]]
            if found:
                return next((one for one in found if one.permutation == way[2]), found[0])
        return layouts[0]

    def _told_apart(self, ours: Sequence[int], theirs: Sequence[int], layouts: Sequence[Layout]) -> Way | None:
        """The way to join a boundary that its values clearly say; None where they do not."""
        left, right = self._values(0, ours), self._values(1, theirs)
        if left is None or right is None:
            return None
        errors = [axes.relative_error(axes.apply_reference(left, one), axes.apply(right, one)) for one in layouts]
        best = min(range(len(errors)), key=errors.__getitem__)
        others = [error for error in errors if error > errors[best]]
        is_clear = bool(others) and errors[best] < THRESHOLDS.clearly_better * min(others)
        return (layouts[best].join, layouts[best].join_reference, layouts[best].permutation) if is_clear else None

    def _are_heads(self, a: int, b: int) -> bool:
        """Whether two tensors are the keys, or the values, of attention, whose heads one side may repeat for a group."""
        keys = self.rows.key(0, a).keys, self.rows.key(1, b).keys
        return self.rows.are_of_functions(a, b) and keys in ((("k",), ("k",)), (("v",), ("v",)))

    def _repeated(self, ours: Sequence[int], theirs: Sequence[int], shapes: Sequence[Sequence[Shape]]) -> list[tuple[int, int, Layout]]:
        """What one call takes in or returns, and each of the several calls of the other side too: a scale, a mask, positions.

        Whole numbers and switches count only where they are equal: a call that works in steps may take in others.
        """
        if min(len(ours), len(theirs)) != 1 or len({*shapes[0], *shapes[1]}) != 1:
            return []
        return [
            (place if len(ours) > 1 else 0, place if len(theirs) > 1 else 0, Layout(shapes[0][0]))
            for place, (a, b) in enumerate(product(ours, theirs))
            if not (self.rows.exact[0][a] and self.rows.exact[1][b]) or self.rows.are_equal(a, b)
        ]

    def _order(self, place: int, joined: Sequence[Joined]) -> tuple[int, ...]:
        """In which order few calls of one side do one call's work: a port may compute the unconditional half of a batch first.

        The order of execution, unless the values of some boundary clearly say otherwise; decided once for each pair of sites.
        """
        count = max((max(len(ours), len(theirs)) for ours, theirs, _ in joined), default=0)
        plain = tuple(range(count))
        if not 2 <= count <= THRESHOLDS.dealt_calls or any(min(len(ours), len(theirs)) != 1 for ours, theirs, _ in joined):
            return plain
        key = place, count
        if key not in self._orders:
            orders = (self._order_by_values(*boundary) for boundary in joined)
            self._orders[key] = next((order for order in orders if order is not None), plain)
        return self._orders[key]

    def _order_by_values(self, ours: list[int], theirs: list[int], layout: Layout) -> tuple[int, ...] | None:
        """The order of the calls that a boundary's values clearly say; None where they do not."""
        left, right = self._values(0, ours), self._values(1, theirs)
        if left is None or right is None or len({array.shape for array in (left if len(ours) > 1 else right)}) > 1:
            return None
        errors = {}
        for order in permutations(range(max(len(ours), len(theirs)))):
            reference = axes.apply_reference([left[place] for place in order] if len(left) > 1 else left[0], layout)
            port = axes.apply([right[place] for place in order] if len(right) > 1 else right[0], layout)
            errors[order] = axes.relative_error(reference, port)
        best, second = sorted(errors, key=errors.__getitem__)[:2]
        return best if errors[best] < THRESHOLDS.clearly_better * errors[second] else None

    def _values(self, side: int, rows: Sequence[int]) -> list[Array] | None:
        records = [self.rows.sides[side].trace.records[row] for row in rows]
        if not all(record.stored and record.stats.count <= THRESHOLDS.layout_elements and record.dtype != "text" for record in records):
            return None
        return [record.read() for record in records]

    def _same_boundary(self, side: int, calls: Sequence[Sequence[int]], like: int) -> list[int]:
        """The rows of one boundary in several calls."""
        return [row for rows in calls for row in rows if self.rows.end[side][row] == self.rows.end[side][like]]


def joined_layouts(reference: Sequence[Shape], port: Sequence[Shape]) -> list[Layout]:
    """The plainest layouts that join the port's tensors, and the reference's, into one: several where two axes are equally long.

    >>> [str(layout) for layout in joined_layouts([(1, 4, 40)], [(1, 40)] * 4)]
    ['stacked on axis 1']
    >>> [str(layout) for layout in joined_layouts([(1, 6, 40)], [(1, 4, 40), (1, 2, 40)])]
    ['joined along axis 1']
    >>> [str(layout) for layout in joined_layouts([(4, 4, 40)], [(4, 40)] * 4)]
    ['stacked on axis 0', 'stacked on axis 1']
    """
    found = _joined_in_any_order(reference, port)
    return [layout for layout in found if _joined_plainness(layout) == _joined_plainness(found[0])]


def _joined_in_any_order(reference: Sequence[Shape], port: Sequence[Shape]) -> list[Layout]:
    """All layouts that join the port's tensors, and the reference's, into one, the plainest first."""
    found = []
    for join_a, shape_a in _joins(reference):
        for join_b, shape_b in _joins(port):
            for layout, *_ in axes.readings(shape_a, shape_b):
                if layout.window is None and not layout.repeat:
                    found.append(replace(layout, join=join_b, join_reference=join_a))
    return _along_the_steps(reference, port, sorted(found, key=_joined_plainness))


def _along_the_steps(reference: Sequence[Shape], port: Sequence[Shape], layouts: list[Layout]) -> list[Layout]:
    """Of some layouts those that join along the one axis in which the parts differ from the whole; all where it is not one."""
    if min(len(reference), len(port)) != 1:
        return layouts
    whole, parts = (reference[0], port) if len(reference) == 1 else (port[0], reference)
    if any(len(part) != len(whole) for part in parts):
        return layouts
    differ = {axis for part in parts for axis, (ours, theirs) in enumerate(zip(whole, part, strict=True)) if ours != theirs}
    plain = [
        one
        for one in layouts
        if one.permutation is None and one.split is None and {(one.join or one.join_reference)} == {*map(Join, differ)}
    ]
    return plain if len(differ) == 1 and plain else layouts


def _dealt(rows: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    return tuple(rows[place] for place in order) if len(rows) == len(order) > 1 else tuple(rows)


def piece_layouts(
    reference: Sequence[Shape], port: Sequence[Shape], lengths: tuple[Sequence[int], Sequence[int]], *, heads: bool = False
) -> list[tuple[int, int, Layout]]:
    """Which part of one call's tensor each of several calls' has: (place in the reference, place in the port, layout) each.

    ``lengths``: the steps that each call does. A call's tensor may hold its own steps, all steps so far (the keys of a cache), or its
    last step alone (the logits of a decoder). ``heads``: one side may repeat heads for a group, on some axis before the last two. Empty
    where neither side is one call, or some tensor is none of these.

    >>> [str(layout) for _, _, layout in piece_layouts([(1, 3, 40)], [(1, 2, 40), (1, 3, 40)], ([3], [2, 1]))]
    ['reference 0:2 of axis 1', 'reference 0:3 of axis 1']
    """
    if min(len(reference), len(port)) != 1 or not lengths[0]:
        return []
    side = 0 if len(reference) == 1 else 1
    whole, parts = (reference, port)[side][0], (port, reference)[side]
    for axis in (axis for axis, size in enumerate(whole) if size == lengths[side][0]):
        found = [_piece(whole, shape, axis, end - length, end, side, heads) for shape, length, end in _steps(parts, lengths[1 - side])]
        if all(layout is not None for layout in found):
            places = [(0, place) if side == 0 else (place, 0) for place in range(len(parts))]
            return [(*place, layout) for place, layout in zip(places, found, strict=True) if layout is not None]
    return [] if heads else _square_pieces(whole, parts, lengths, side)


def _square_pieces(
    whole: Shape, parts: Sequence[Shape], lengths: tuple[Sequence[int], Sequence[int]], side: int
) -> list[tuple[int, int, Layout]]:
    """As `piece_layouts`, of tensors with two axes of steps, scores and masks: each call has its own steps against all until then.

    A cache that keeps the last steps only has fewer of these.

    >>> [str(layout) for _, _, layout in piece_layouts([(4, 3, 3)], [(4, 2, 2), (4, 1, 3)], ([3], [2, 1]))]
    ['reference [0:4, 0:2, 0:2]', 'reference [0:4, 2:3, 0:3]']
    """
    long = [axis for axis, size in enumerate(whole) if size == lengths[side][0]]
    for rows, columns in pairwise(long):
        found = []
        for shape, length, end in _steps(parts, lengths[1 - side]):
            seen = end - min(shape[columns], end) if len(shape) == len(whole) else 0  # a cache may keep the last steps only
            spans = {rows: (end - length, end), columns: (seen, end)}
            box = tuple(spans.get(axis, (0, size)) for axis, size in enumerate(whole))
            cut = tuple(stop - start for start, stop in box)
            layout = _plain(cut, shape, side)
            if layout is None:
                break
            starts = tuple(start for start, _ in box)
            found.append(replace(layout, window_reference=box) if side == 0 else replace(layout, crop=cut, crop_from=starts))
        if len(found) == len(parts):
            return [(0, place, layout) if side == 0 else (place, 0, layout) for place, layout in enumerate(found)]
    return []


def _steps(shapes: Sequence[Shape], lengths: Sequence[int]) -> Iterable[tuple[Shape, int, int]]:
    return zip(shapes, lengths, np.cumsum(lengths).tolist(), strict=True)


def _piece(whole: Shape, part: Shape, axis: int, start: int, stop: int, side: int, heads: bool) -> Layout | None:
    """How one tensor is part of a whole on side 0 or 1: its steps ``start:stop``, all until ``stop``, or the last one."""
    for first in dict.fromkeys((start, 0, stop - 1)):
        cut = (*whole[:axis], stop - first, *whole[axis + 1 :])
        layout = _of_heads(cut, part, side) if heads else _plain(cut, part, side)
        if layout is not None:
            piece = Part(axis, first, stop)
            return replace(layout, part_reference=piece) if side == 0 else replace(layout, part=piece)
    return None


def _plain(cut: Shape, part: Shape, side: int) -> Layout | None:
    """How a piece cut out of the whole on a side is read as the other side's part, all of both."""
    fits = axes.layouts(cut, part) if side == 0 else axes.layouts(part, cut)
    return fits[0] if fits and fits[0].window is None and not fits[0].repeat else None


def _of_heads(cut: Shape, part: Shape, side: int) -> Layout | None:
    """As `_plain`, where one side repeats heads."""
    return axes.shared(*((cut, part) if side == 0 else (part, cut))) if len(cut) == len(part) and cut[-2:] == part[-2:] else None


def _joined_plainness(layout: Layout) -> tuple[bool, bool, bool]:
    joins = [join for join in (layout.join, layout.join_reference) if join is not None]
    return layout.permutation is not None, layout.split is not None, any(join.how == "stack" for join in joins)


def _joins(shapes: Sequence[Shape]) -> list[tuple[Join | None, Shape]]:
    """The ways to make one tensor of several, with the shape that results."""
    if len(shapes) == 1:
        return [(None, shapes[0])]
    first = max(shapes, key=len)
    ways: list[tuple[Join | None, Shape]] = []
    for axis in range(len(first)):
        but = _but(first, axis)
        if all(shape == but if len(shape) < len(first) else _but(shape, axis) == but for shape in shapes):
            total = sum(shape[axis] if len(shape) == len(first) else 1 for shape in shapes)
            ways.append((Join(axis), (*first[:axis], total, *first[axis + 1 :])))
    if all(shape == first for shape in shapes):
        ways.extend((Join(axis, "stack"), (*first[:axis], len(shapes), *first[axis:])) for axis in range(len(first) + 1))
    return ways


def _but(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]
