"""In which layout the tensor of one side is read as its partner's.

A layout that moves axes although the plain one would do is accepted only where the values support it and what consumes the tensor agrees on
both sides; otherwise it would merely excuse an error.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from tracediff.alignment import axes, channels
from tracediff.alignment.axes import Layout, Shape
from tracediff.alignment.channels import Channels
from tracediff.alignment.record_table import PairedSites, Rows
from tracediff.alignment.structure import INPUT, OUTPUT

_AGREES = 1e-2  # distance of two tensors' statistics, or relative error of their values, at which they agree
_TOO_FAR = 0.2  # distance of statistics from which on values are not looked at
_MOST_CONSUMERS = 4
_MOST_STEPS = 4  # from a tensor back to what it comes from

UNREAD = "the values were not looked at"
"""What the evidence of a pair says whose layout only values could tell, where they were not stored."""


class Layouts:
    """The layouts of pairs of records."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._orders_of_ends: dict[tuple[int, int, int, int], tuple[int, ...] | None] = {}

    def of(self, sites: PairedSites, a: int, b: int) -> tuple[Layout | None, str]:
        """The layout of a pair of records, and why."""
        shape_a, shape_b = self.rows.shape(0, a), self.rows.shape(1, b)
        if sites.part is not None and self.rows.kind[0][a] != INPUT:
            return self._part_layout(sites, shape_a, shape_b)
        if sites.permutation is not None and _fits(sites.permutation, shape_a, shape_b):
            return Layout(shape_a, permutation=sites.permutation), "given"
        grouped = self._grouped_heads(a, b) if shape_a != shape_b else None
        if grouped is not None:
            return grouped, "heads of one group share it"
        kept = self._kept(a, b) if shape_a != shape_b else None
        if kept is not None:
            return kept
        candidates = axes.layouts(shape_a, shape_b)
        if not candidates:
            return self._cut(a, b) or (None, f"no layout reads {shape_b} as {shape_a}")
        if candidates[0].repeat or candidates[0].window is not None:
            return self._partial(a, b, candidates)
        if len(candidates) == 1:
            return candidates[0], "shapes"
        told = self._told_elsewhere(sites, a, b)
        if told is not None:
            return Layout(shape_a, permutation=told), "as in its other calls, whose shapes leave no choice"
        return self._by_channels(a, b, candidates) or self._by_values(a, b, candidates)

    def _by_channels(self, a: int, b: int, candidates: Sequence[Layout]) -> tuple[Layout, str] | None:
        """The layout that lays channels on channels, where layers of both frameworks tell on which axis those are; None where they do not.

        What the two layers themselves take in and give out is read so whatever the values are; what others only hand on to layers is so
        where the values do not clearly say otherwise.
        """
        own = channels.keeping(candidates, *(side.of_layer(row) for side, row in zip(self._channels, (a, b), strict=True)))
        told = channels.keeping(candidates, *(side.of(row) for side, row in zip(self._channels, (a, b), strict=True)))
        is_own = len(own) < len(candidates)
        left = own if is_own else told
        if len(left) == len(candidates):
            return None
        read = self.rows.read(a, b) if len(left) > 1 or not is_own else None
        if not is_own and (read is None or axes.choose(*read, candidates[:1])[1] < _AGREES):
            return None
        chosen = axes.choose(*read, left)[0] if read is not None and len(left) > 1 else left[0]
        return chosen, "channels on channels"

    @cached_property
    def _channels(self) -> tuple[Channels, Channels]:
        return Channels(self.rows.sides[0]), Channels(self.rows.sides[1])

    def _part_layout(self, sites: PairedSites, shape_a: Shape, shape_b: Shape) -> tuple[Layout | None, str]:
        """The layout of one part of a fused site's output."""
        assert sites.part is not None
        shape_whole, shape_part = (shape_b, shape_a) if sites.whole == "port" else (shape_a, shape_b)
        groups = sites.part.groups
        for axis in reversed(range(len(shape_whole))):
            part = replace(sites.part, axis=axis)
            length = (part.stop - part.start) * groups
            cut = (*shape_whole[:axis], length, *shape_whole[axis + 1 :])
            if shape_whole[axis] < part.stop * groups or shape_whole[axis] % groups or int(np.prod(cut)) != int(np.prod(shape_part)):
                continue
            if sites.whole == "reference":
                return next((replace(one, part_reference=part) for one in axes.layouts(cut, shape_b)), None), "part of a fused projection"
            return next(
                (replace(one, part=part, split=one.split) for one in axes.layouts(shape_a, cut)), None
            ), "part of a fused projection"
        return None, f"no part of {shape_whole} holds {shape_part}"

    def _kept(self, a: int, b: int) -> tuple[Layout, str] | None:
        """The layout of one position against all of them, where the values tell which one it is.

        An output may be of one position only where an input of that call is too: otherwise the call itself would have dropped the rest.
        """
        candidates = axes.kept(self.rows.shape(0, a), self.rows.shape(1, b))
        if not candidates or (self.rows.kind[0][a] != INPUT and not self._takes_one(a, b)):
            return None
        read = self.rows.read(a, b)
        if read is None:
            return None
        errors = [axes.relative_error(axes.apply_reference(read[0], one), axes.apply(read[1], one)) for one in candidates]
        best = min(range(len(errors)), key=errors.__getitem__)
        if errors[best] >= _AGREES and errors[best] >= axes.CLEARLY_BETTER * max(errors):
            return None
        return candidates[best], f"one position of the {'reference' if candidates[best].part_reference else 'port'}'s"

    def _takes_one(self, a: int, b: int) -> bool:
        """Whether what gave out two records, these calls or others inside them, took in one position against as many as they have."""
        ratio = self.rows.count[0][a] / self.rows.count[1][b]
        for ours in self._givers(0, a):
            for theirs in self._givers(1, b):
                pairs = [(i, j) for i in ours for j in theirs if axes.kept(self.rows.shape(0, i), self.rows.shape(1, j))]
                if any(self.rows.count[0][i] / self.rows.count[1][j] == ratio for i, j in pairs):
                    return True
        return False

    def _givers(self, side: int, row: int) -> list[list[int]]:
        """The input rows of each call that gave out these very values: a module and the one inside it whose output it hands on."""
        index = self.rows.sides[side].index
        same = np.flatnonzero((index["digest"] == index["digest"][row]).all(-1) & (self.rows.sides[side].end_kind == OUTPUT))
        calls = dict.fromkeys(int(self.rows.sides[side].calls.of_row[one]) for one in [row, *same.tolist()[:_MOST_CONSUMERS]])
        return [self.rows.sides[side].ends_of(call)[0] for call in calls]

    def _cut(self, a: int, b: int) -> tuple[Layout, str] | None:
        """The layout of an output of which one side cuts an end off inside the module and the other outside (a causal convolution).

        Only where the rest really agrees, the callers, which see both, give out equal shapes, and nobody takes what is to be cut whole.
        """
        shapes = self.rows.shape(0, a), self.rows.shape(1, b)
        is_output = self.rows.kind[0][a] == OUTPUT
        candidates = axes.cuts(*shapes) if is_output and (self._callers_fit(a, b) or self._takers_fit(a, b)) else ()
        read = self.rows.read(a, b) if candidates else None
        if read is None:
            return None
        errors = [axes.relative_error(axes.apply_reference(read[0], one), axes.apply(read[1], one)) for one in candidates]
        best = min(range(len(errors)), key=errors.__getitem__)
        longer, row = (0, a) if math.prod(shapes[0]) > math.prod(shapes[1]) else (1, b)
        if tuple(self.rows.sides[longer].index["digest"][row].tolist()) in self._taken[longer]:
            return None
        return (candidates[best], f"cut elsewhere; the rest agrees to {errors[best]:.0e}") if errors[best] < _AGREES else None

    @cached_property
    def _taken(self) -> tuple[set[tuple[int, ...]], ...]:
        """The digests of what the calls of each side were handed."""
        return tuple({tuple(digest) for digest in side.index["digest"][side.end_kind == INPUT].tolist()} for side in self.rows.sides)

    def _takers_fit(self, a: int, b: int) -> bool:
        """Whether a call is handed the shorter of two outputs as it is, and its partner a tensor of a shape that fits that one's."""
        shorter, row = (0, a) if self.rows.count[0][a] < self.rows.count[1][b] else (1, b)
        ours, theirs = self.rows.sides[shorter], self.rows.sides[1 - shorter]
        partner = self.rows.partner if shorter == 0 else self._reference_of
        for taken in (one for one in self.rows.same(shorter, row) if ours.end_kind[one] == INPUT):
            site = partner.get(int(ours.calls.site[ours.calls.of_row[taken]]))
            call = int(theirs.first_call[site]) if site is not None else -1
            shapes = [self.rows.shape(1 - shorter, one) for one in theirs.ends_of(call)[0][:1]] if call >= 0 else []
            if any(one.window is None and not one.repeat for shape in shapes for one in axes.layouts(self.rows.shape(shorter, row), shape)):
                return True
        return False

    @cached_property
    def _reference_of(self) -> dict[int, int]:
        return {b: a for a, b in self.rows.partner.items()}

    def _callers_fit(self, a: int, b: int) -> bool:
        """Whether the callers of two records' calls give out tensors of shapes that can be read as each other's."""
        shapes = []
        for side, row in ((0, a), (1, b)):
            calls = self.rows.sides[side].calls
            caller = int(calls.parent[calls.of_row[row]])
            given = self.rows.sides[side].ends_of(caller)[1] if caller >= 0 else []
            if not given:
                return False
            shapes.append(self.rows.shape(side, given[0]))
        longer, row = (0, a) if self.rows.count[0][a] > self.rows.count[1][b] else (1, b)
        if shapes[longer] == self.rows.shape(longer, row):  # nothing was cut off on the way out
            return False
        return any(one.window is None and not one.repeat for one in axes.layouts(*shapes))

    def _partial(self, a: int, b: int, candidates: Sequence[Layout]) -> tuple[Layout | None, str]:
        """A window, where the inside really agrees, or a repetition; for inputs only: an output of another size is an error."""
        read = self.rows.read(a, b)
        if self.rows.kind[0][a] != INPUT:
            return None, f"no layout reads {self.rows.shape(1, b)} as {self.rows.shape(0, a)}"
        if read is not None:
            layout, error = axes.choose(*read, candidates)
            if layout.window is not None and error < _AGREES:
                return layout, f"padded before the call; the inside agrees to {error:.0e}"
        if candidates[0].repeat:
            return candidates[0], "shapes, one side repeated"
        open_ = f"; {UNREAD}" if read is None and candidates[0].window is not None else ""
        return None, f"no layout reads {self.rows.shape(1, b)} as {self.rows.shape(0, a)}{open_}"

    def _by_values(self, a: int, b: int, candidates: Sequence[Layout]) -> tuple[Layout, str]:
        plain = candidates[0]
        if self.rows.are_equal(a, b) and plain.is_same:
            return plain, "equal"
        is_near = self.rows.apart(a, b) <= _TOO_FAR
        read = self.rows.read(a, b) if is_near else None
        if is_near and read is None:
            return plain, f"shapes; {UNREAD}"
        chosen, error = axes.choose(*read, candidates) if read is not None else (plain, math.inf)
        if chosen is plain and error >= _AGREES:
            return self._as_around(a, b, candidates, ()) or (plain, "shapes; the values differ")
        if chosen is plain:
            return plain, "values"
        if plain.is_same and not self._consumers_agree(a) and not self._lies_as_its_input(a, b, chosen):
            told = self._as_around(a, b, candidates, ()) if error >= _AGREES else None
            return told or (plain, f"shapes; {chosen} would fit the values, but not what consumes them")
        return chosen, f"values agree to {error:.0e}"

    def _as_around(self, a: int, b: int, candidates: Sequence[Layout], seen: tuple[tuple[int, int], ...]) -> tuple[Layout, str] | None:
        """The layout of two tensors whose values differ, where it is told by what they come from; None where that does not tell either.

        What a call returns lies as what it was handed in the same shape; what it was handed, as what returned that very tensor.
        """
        if len(seen) > _MOST_STEPS or (a, b) in seen:
            return None
        for one, other in self._sources(a, b):
            told = self._by_channels(one, other, candidates)
            if told is None and self.rows.apart(one, other) <= _TOO_FAR and (read := self.rows.read(one, other)) is not None:
                chosen, error = axes.choose(*read, candidates)
                told = (chosen, "") if error < _AGREES else None
            told = told or self._as_around(one, other, candidates, (*seen, (a, b)))
            if told is not None:
                return told[0], "shapes; the values differ; as what it comes from"
        return None

    def _sources(self, a: int, b: int) -> list[tuple[int, int]]:
        """Pairs of rows that lie as two rows do, as far as is known.

        Of an output the inputs of its call; of an input the paired outputs of that tensor, or else the first layers' inputs in the call.
        """
        shapes = self.rows.shape(0, a), self.rows.shape(1, b)
        found: list[list[int]] = []
        for number, (side, row) in enumerate(zip(self.rows.sides, (a, b), strict=True)):
            if self.rows.kind[number][row] == OUTPUT:
                rows = side.ends_of(int(side.calls.of_row[row]))[0]
            else:
                rows = [one for one in self.rows.same(number, row) if side.end_kind[one] == OUTPUT and one < row]
                rows = rows or [one for call in self._layers_inside[number][int(side.calls.of_row[row])] for one in side.ends_of(call)[0]]
            found.append([one for one in rows if self.rows.shape(number, one) == shapes[number]][:_MOST_CONSUMERS])
        return [(one, other) for one in found[0] for other in found[1] if self._are_of_partners(one, other)]

    def _are_of_partners(self, a: int, b: int) -> bool:
        ours, theirs = (int(side.calls.site[side.calls.of_row[row]]) for side, row in zip(self.rows.sides, (a, b), strict=True))
        return self.rows.partner.get(ours) == theirs

    def _grouped_heads(self, a: int, b: int) -> Layout | None:
        """The layout of keys or values that one side repeats for the heads of a group before attention and the other leaves to it."""
        keys = self.rows.key(0, a).keys, self.rows.key(1, b).keys
        is_handed = self.rows.kind[0][a] == INPUT and keys in ((("k",), ("k",)), (("v",), ("v",))) and self.rows.are_of_functions(a, b)
        shapes = self.rows.shape(0, a), self.rows.shape(1, b)
        if not is_handed or any(len(shape) < 3 for shape in shapes) or shapes[0][-2:] != shapes[1][-2:]:
            return None
        return axes.shared(*shapes)

    def _told_elsewhere(self, sites: PairedSites, a: int, b: int) -> tuple[int, ...] | None:
        """The order of axes that the shapes alone tell in all other calls of two sites, for a call in which two lengths are equal.

        So where a run comes in pieces, one of which happens to be as long as there are heads.
        """
        key = sites.reference, sites.port, self.rows.end[0][a], self.rows.end[1][b]
        if key not in self._orders_of_ends:
            self._orders_of_ends[key] = self._order_of_ends(*key)
        found = self._orders_of_ends[key]
        fits = found is not None and _fits(found, self.rows.shape(0, a), self.rows.shape(1, b))
        return found if fits and self.rows.shape(0, a) == self.rows.shape(1, b) else None

    def _order_of_ends(self, reference: int, port: int, end_a: int, end_b: int) -> tuple[int, ...] | None:
        """The one order of axes in which the shapes of two sites' ends can be read, call by call, wherever they leave no choice."""
        rows: list[dict[int, int]] = []
        for side, (site, end) in enumerate(((reference, end_a), (port, end_b))):
            calls = self.rows.sides[side].calls
            numbers = np.flatnonzero(calls.site == site).tolist() if len(calls.site) else []
            ordinals = {int(calls.ordinal[call]): call for call in numbers}
            rows.append({})
            for ordinal, call in ordinals.items():
                place = next((row for row in calls.rows_of(call).tolist() if self.rows.end[side][row] == end), None)
                if place is not None:
                    rows[side][ordinal] = place
        if len(rows[0]) != len(rows[1]) or len(rows[0]) < 2:
            return None
        shapes = {(self.rows.shape(0, row), self.rows.shape(1, rows[1][ordinal])) for ordinal, row in rows[0].items() if ordinal in rows[1]}
        only = [one[0] for pair in shapes if len(one := axes.layouts(*pair)) == 1]
        orders = {one.permutation for one in only if one.permutation is not None and one.split is None and one.window is None}
        is_plain = any(one.is_same and max(one.shape, default=1) > 1 and one.split is None for one in only)
        return orders.pop() if len(orders) == 1 and not is_plain else None

    def _lies_as_its_input(self, a: int, b: int, layout: Layout) -> bool:
        """Whether a call was handed its input with the axes in the same other order as what it returned: it merely works in that order."""
        if self.rows.kind[0][a] != OUTPUT or layout.permutation is None:
            return False
        shapes = self.rows.shape(0, a), self.rows.shape(1, b)
        given = [
            [row for row in side.ends_of(int(side.calls.of_row[own]))[0] if self.rows.shape(number, row) == shapes[number]]
            for number, (side, own) in enumerate(zip(self.rows.sides, (a, b), strict=True))
        ]
        candidates = axes.layouts(*shapes)
        return any(self._by_values(one, other, candidates)[0].permutation == layout.permutation for one in given[0] for other in given[1])

    def _consumers_agree(self, row: int) -> bool:
        """Whether some call that takes the reference's tensor in gives out what its partner in the port gives out."""
        consumers = [row] if self.rows.kind[0][row] == INPUT else self._consumers.get(row, [])[:_MOST_CONSUMERS]
        return any(self._outputs_agree(int(self.rows.sides[0].calls.of_row[consumer])) for consumer in consumers)

    def _outputs_agree(self, call: int) -> bool:
        """Whether a call of the reference gives out what its partner does, or a layer in it does: something else is wrong there."""
        return self._gives_the_same(call) or any(map(self._gives_the_same, self._layers_inside[0][call]))

    @cached_property
    def _layers_inside(self) -> tuple[dict[int, list[int]], ...]:
        """By calls of either side, the first calls in them, at any depth, of modules that own parameters."""
        both: tuple[dict[int, list[int]], ...] = (defaultdict(list), defaultdict(list))
        for side, found in zip(self.rows.sides, both, strict=True):
            parents = side.calls.parent.tolist()
            for call, site in enumerate(side.calls.site.tolist()):
                around = parents[call] if side.owned[site] else -1
                while around >= 0 and len(found[around]) < _MOST_CONSUMERS:
                    found[around].append(call)
                    around = parents[around]
        return both

    def _gives_the_same(self, call: int) -> bool:
        calls = self.rows.sides[0].calls
        partner = self.rows.partner.get(int(calls.site[call]))
        if partner is None:
            return False
        same = np.flatnonzero((self.rows.sides[1].calls.site == partner) & (self.rows.sides[1].calls.ordinal == calls.ordinal[call]))
        if not same.size:
            return False
        ours, theirs = self.rows.sides[0].ends_of(call)[1], self.rows.sides[1].ends_of(int(same[0]))[1]
        return any(self.rows.apart(a, b) < max(_AGREES, self.rows.rounding(a, b)) for a in ours for b in theirs)

    @cached_property
    def _consumers(self) -> dict[int, list[int]]:
        """The input rows that take in what each row of the reference gave out."""
        found: dict[int, list[int]] = defaultdict(list)
        index = self.rows.sides[0].index
        for row in np.flatnonzero((self.rows.sides[0].end_kind == INPUT) & (index["producer"] >= 0)).tolist():
            found[int(index["producer"][row])].append(row)
        return found


def _fits(permutation: tuple[int, ...], reference: Shape, port: Shape) -> bool:
    return len(permutation) == len(port) and tuple(port[axis] for axis in permutation) == reference
