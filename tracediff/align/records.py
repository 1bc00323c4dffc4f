"""Pairs the records of paired sites: which tensor of a call is which on the other side, and in which layout.

Ends are not paired by position alone: names where both have them, shapes and values count. A layout that moves axes although the plain
one would do is accepted only where the values support it and what consumes the tensor agrees on both sides; otherwise it would merely
excuse an error.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations, product

import numpy as np

from tracediff import dtype as dtypes
from tracediff.align import axes, channels, order
from tracediff.align.alignment import RecordPair
from tracediff.align.axes import Join, Layout, Part, Shape
from tracediff.align.calls import CallPairs, Together
from tracediff.align.channels import Channels
from tracediff.align.ends import without_moved
from tracediff.align.names import tokens
from tracediff.align.structure import INPUT, OUTPUT, Side
from tracediff.align.values import MASKED, features
from tracediff.dtype import Array
from tracediff.site import End
from tracediff.trace import schema

_LARGEST = 1 << 26  # elements of a tensor that is read to decide a layout
_AGREES = 1e-2  # distance of two tensors' statistics, or relative error of their values, at which they agree
_CLOSE, _ALIKE = 0.05, 0.3  # distances of statistics below which two ends are close, and alike
_CLEARLY = 1.0  # by how much calls of the same role must tell more of their ends than a site's own
_MOST_CONSUMERS = 4
_MOST_DEALT = 4  # calls that do one call's work whose order is looked at
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.:#!])")
RAISED = "a call raised"

UNSURE = 0.4
"""The most confidence in a pair of calls that only their order, and what stands around them, tells from others."""

UNREAD = "the values were not looked at"
"""What the evidence of a pair says whose layout only values could tell, where they were not stored."""


@dataclass(frozen=True, slots=True)
class PairedSites:
    """Two paired sites as far as their records are concerned: ``place`` is their place in the alignment.

    ``outputs_only``: one of them merely wraps what is paired, so that its outputs stand beside the same as that one's.
    """

    place: int
    reference: int
    port: int
    confidence: float
    permutation: tuple[int, ...] | None = None
    part: Part | None = None
    whole: str = ""
    outputs_only: bool = False


@dataclass(frozen=True, slots=True)
class _Planned:
    """What to do with the records of calls that look alike: which of one side's goes with which of the other's, and how."""

    reference: int
    port: int
    layout: Layout | None
    evidence: str
    confidence: float


class RecordPairs:
    """Pairs the records of two sides, given the pairs of sites."""

    def __init__(self, sides: tuple[Side, Side], sites: Sequence[PairedSites]) -> None:
        self.sides = sides
        self.sites = sites
        tables = features(sides[0].index), features(sides[1].index)
        self._partner = {one.reference: one.port for one in reversed(sites)}
        self.calls = CallPairs(sides, tables, self._partner)
        self._points = tables[0].tolist(), tables[1].tolist()
        self._varies = tuple((side.index["std"] > 0).tolist() for side in sides)
        self._count = tuple(side.index["count"].tolist() for side in sides)
        self._exact = tuple([dtypes.BY_CODE[code].is_exact for code in side.index["dtype"].tolist()] for side in sides)
        self._kind = tuple(side.end_kind.tolist() for side in sides)
        self._raised = tuple(((side.index["flags"] & schema.RAISED) != 0).tolist() for side in sides)
        self._plans: dict[tuple[object, ...], list[_Planned]] = {}
        self._orders: dict[tuple[int, int], tuple[int, ...]] = {}
        self._end = tuple(side.index["end"].tolist() for side in sides)
        self._shape = tuple(side.index["shape"].tolist() for side in sides)
        self._parsed: tuple[dict[int, End], dict[int, End]] = ({}, {})
        self._orders_of_ends: dict[tuple[int, int, int, int], tuple[int, ...] | None] = {}
        self._told_ends: dict[tuple[object, ...], tuple[float, list[tuple[int, int, float]]]] = {}

    def run(self) -> list[RecordPair]:
        """All pairs of records, in the reference's execution order."""
        found: list[RecordPair] = []
        depth = _depths(self.sides[0])
        sites = sorted(self.sites, key=lambda one: (depth[one.reference], one.reference))
        calls = [list(self.calls.pair(one.reference, one.port)) for one in sites]
        for one, every in zip(sites, calls, strict=True):
            self._tell_ends(one, every)
        for one, every in zip(sites, calls, strict=True):
            for together in every:
                records = self._records(one, together)
                found.extend(pair for pair in records if not one.outputs_only or self._kind[0][pair.reference[0]] == OUTPUT)
        found = without_moved(self.sides, found, self._apart)
        found.extend(self._astray(found))
        found.sort(key=lambda pair: (pair.reference[0], pair.port[0]))
        return found

    def _tell_ends(self, sites: PairedSites, calls: Iterable[Together]) -> None:
        """Lets the call in which values tell most say which end is which, for all calls with the same ends of sites of the same role.

        Keys and values of a cache are told apart early in a run, and by nothing once the two runs have parted.
        """
        seen: set[tuple[object, ...]] = set()
        for together in calls:
            if len(together.reference) > 1 or len(together.port) > 1:
                continue
            rows = [side.calls.rows_of(one[0]).tolist() for side, one in zip(self.sides, (together.reference, together.port), strict=True)]
            keys = self._ends_keys(sites, *rows)
            shapes = (keys[0], *(tuple(self._shape[side][row] for row in rows[side]) for side in (0, 1)))
            if shapes in seen or any(self._raised[side][row] for side in (0, 1) for row in rows[side]):
                continue
            seen.add(shapes)
            pairs = self._ends(*rows)
            total = sum(score for *_, score in pairs)
            for ends in keys:
                if total > self._told_ends.get(ends, (0.0, []))[0]:
                    self._told_ends[ends] = total, pairs

    def _ends_keys(self, sites: PairedSites, ours: Sequence[int], theirs: Sequence[int]) -> tuple[tuple[object, ...], ...]:
        """What calls of two sites have in common that have the same ends; and what those of all sites of the same role have."""
        roles = (_NUMBER.sub("*", side.names[site]) for side, site in zip(self.sides, (sites.reference, sites.port), strict=True))
        ends = tuple(self._end[0][row] for row in ours), tuple(self._end[1][row] for row in theirs)
        return (sites.place, *ends), (*roles, *ends)

    def _told(self, sites: PairedSites, ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int, float]]:
        """The pairs of ends as the site's own calls tell them, or this call; or as those of its role do."""
        own, role = (self._told_ends.get(key, (0.0, [])) for key in self._ends_keys(sites, ours, theirs))
        is_straighter = bool(role[1]) and self._exchanged(ours, theirs, role[1]) < self._exchanged(ours, theirs, own[1])
        return (role if is_straighter or role[0] > own[0] + _CLEARLY else own)[1] or self._ends(ours, theirs)

    def _exchanged(self, ours: Sequence[int], theirs: Sequence[int], pairs: Iterable[tuple[int, int, float]]) -> int:
        """How many ends are paired with another one although both sides have one of that name or place."""
        keys = [{self._key(side, row) for row in rows} for side, rows in enumerate((ours, theirs))]
        named = [(self._key(0, ours[i]), self._key(1, theirs[j])) for i, j, _ in pairs]
        return sum(a != b and a in keys[1] and b in keys[0] for a, b in named)

    def _records(self, sites: PairedSites, together: Together) -> list[RecordPair]:
        if len(together.reference) > 1 or len(together.port) > 1:
            return self._joined(sites, together)
        rows = [side.calls.rows_of(calls[0]).tolist() for side, calls in zip(self.sides, (together.reference, together.port), strict=True)]
        key = (
            sites.place,
            sites.outputs_only,
            *(tuple((self._end[side][row], self._shape[side][row], self._raised[side][row]) for row in rows[side]) for side in (0, 1)),
        )
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(sites, rows[0], rows[1])
        most = 1.0 if together.is_sure else UNSURE
        return [
            RecordPair((rows[0][one.reference],), (rows[1][one.port],), one.layout, one.evidence, min(most, one.confidence), sites.place)
            for one in plan
        ]

    # -- one call on each side -------------------------------------------------------------------------------

    def _plan(self, sites: PairedSites, ours: Sequence[int], theirs: Sequence[int]) -> list[_Planned]:
        raised = [
            next((place for place, row in enumerate(rows) if self._raised[side][row]), -1) for side, rows in enumerate((ours, theirs))
        ]
        if (raised[0] < 0) != (raised[1] < 0):
            return self._plan_raised(sites, ours, theirs, raised)
        planned = []
        for row, column, score in self._told(sites, ours, theirs):
            layout, evidence = self._layout(sites, ours[row], theirs[column])
            is_piece = layout is not None and (layout.part is not None or layout.part_reference is not None)
            if is_piece and self._exact[0][ours[row]] != self._exact[1][theirs[column]]:
                continue  # a wave and a count: a number cut out of the one is not the other
            if layout is None and (not self._belong(ours[row], theirs[column]) or self._is_picked(ours[row], theirs[column])):
                continue
            confidence = min(sites.confidence, 0.99 if score > 1.0 else 0.8 if score > 0.4 else 0.6)
            planned.append(_Planned(row, column, layout, evidence, round(confidence if layout is not None else confidence / 2, 3)))
        return planned

    def _plan_raised(self, sites: PairedSites, ours: Sequence[int], theirs: Sequence[int], raised: Sequence[int]) -> list[_Planned]:
        """As `_plan` where one side's call raised: what it raised stands beside the first output of the other (its first row if none)."""
        whole, broken = (theirs, ours) if raised[1] < 0 else (ours, theirs)
        side = 1 if whole is theirs else 0
        place = next((place for place, row in enumerate(whole) if self._kind[side][row] == OUTPUT), 0)
        handed = [[place for place, row in enumerate(rows) if self._kind[one][row] == INPUT] for one, rows in enumerate((ours, theirs))]
        inputs = self._plan(sites, [ours[place] for place in handed[0]], [theirs[place] for place in handed[1]])
        told = [replace(one, reference=handed[0][one.reference], port=handed[1][one.port]) for one in inputs]
        at = max(raised)
        return [*told, _Planned(*((place, at) if broken is theirs else (at, place)), None, RAISED, sites.confidence)]

    def _astray(self, found: Sequence[RecordPair]) -> list[RecordPair]:
        """What the port raised in calls without partner, each beside what the nearest paired caller returns in the reference.

        Outside of all paired calls it stands beside the first record of the reference that the port did not come to in its stage. What
        also left a call that is paired, and was told there, is not told again.
        """
        used = {row for pair in found for row in pair.port}
        taken = {row for pair in found for row in pair.reference}
        told = {self._error(row) for row in used if self._raised[1][row]}
        strays = [row for row, is_raised in enumerate(self._raised[1]) if is_raised and row not in used]
        pairs = []
        for row in strays:
            place = self._beside(row, taken) if self._error(row) not in told else None
            if place is not None:
                told.add(self._error(row))
                taken.add(place)
                pairs.append(RecordPair((place,), (row,), None, RAISED, 0.5, self._place_of(place)))
        return pairs

    def _error(self, row: int) -> bytes:
        code: bytes = self.sides[1].index["digest"][row].tobytes()
        return code

    def _beside(self, row: int, taken: set[int]) -> int | None:
        calls = self.sides[1].calls
        call = int(calls.parent[calls.of_row[row]])
        while call >= 0:
            partner = self.calls.partner[1].get(call)
            outputs = [] if partner is None else self.sides[0].ends_of(partner)[1]
            free = next((one for one in outputs if one not in taken), None)
            if free is not None:
                return free
            call = int(calls.parent[call])
        return self._next_in_stage(row, taken)

    def _next_in_stage(self, row: int, taken: set[int]) -> int | None:
        """The first record of the reference that the port did not come to, in a row's own stage first; None where it came to all."""
        last = max(taken, default=-1)
        stage = self.sides[1].text("stage", row)
        same = [place for place in range(len(self._kind[0])) if self.sides[0].text("stage", place) == stage]
        start = max((place for place in same if place in taken), default=same[0] - 1 if same else last) + 1
        start = next((place for place in range(start, len(self._kind[0])) if place not in taken), len(self._kind[0]))
        return start if start < len(self._kind[0]) else None

    def _place_of(self, row: int) -> int:
        """The place in the alignment of the site of a row of the reference; of the first pair where it has none."""
        site = int(self.sides[0].calls.site[self.sides[0].calls.of_row[row]])
        return next((one.place for one in self.sites if one.reference == site), self.sites[0].place)

    def _is_picked(self, a: int, b: int) -> bool:
        """Whether one side has a single position of each sequence where the other has all, and their callers return the same shape.

        So a head that is applied before or after the last tokens are picked: what their callers return is compared.
        """
        shapes = sorted((self._shape_of(0, a), self._shape_of(1, b)), key=len)
        if len(shapes[0]) < 2 or shapes[0] != (shapes[1][0], *shapes[1][2:]) or self._exact[0][a] or self._exact[1][b]:
            return False
        above = [[int(side.calls.parent[side.calls.of_row[row]])] for side, row in zip(self.sides, (a, b), strict=True)]
        if min(above[0][0], above[1][0]) < 0:
            return False
        given = [[self._shape_of(number, row) for row in side.ends_of(above[number][0])[1]] for number, side in enumerate(self.sides)]
        return bool(given[0]) and given[0] == given[1]

    def _belong(self, a: int, b: int) -> bool:
        """Whether two ends must be one even where no layout reconciles their shapes: they have one name, or are the main outputs."""
        ours, theirs = self._key(0, a), self._key(1, b)
        if self._kind[0][a] == INPUT or any(isinstance(key, str) for key in (*ours.keys, *theirs.keys)):
            return ours == theirs
        return all(key in (0, ()) for key in (*ours.keys, *theirs.keys))

    def _ends(self, ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int, float]]:
        """The pairs of ends of two calls, with their scores."""
        kinds = [self._kind[0][row] for row in ours], [self._kind[1][row] for row in theirs]
        found: list[tuple[int, int, float]] = []
        for kind in dict.fromkeys(kinds[0]):
            rows, columns = [[place for place, seen in enumerate(side) if seen == kind] for side in kinds]
            if len(rows) == len(columns) == 1 and kind != INPUT:
                found.append((rows[0], columns[0], 1.5))
            elif len(rows) == len(columns) == 1:
                score = self._end_score(ours[rows[0]], theirs[columns[0]], True) + 0.25
                found.extend([(rows[0], columns[0], score)] if score > order.LEAST else [])
            elif rows and columns:
                scores = np.array([[self._end_score(ours[i], theirs[j], False) for j in columns] for i in rows])
                scores[np.diag_indices(min(scores.shape))] += 0.25  # the same place among the ends of its kind
                chosen = order.matched(scores)
                if kind == INPUT:
                    chosen = self._in_their_places([ours[i] for i in rows], [theirs[j] for j in columns], chosen)
                    chosen = self._without_merged([ours[i] for i in rows], [theirs[j] for j in columns], chosen)
                matched = [(rows[i], columns[j], float(scores[i, j])) for i, j in chosen]
                is_told = kind == INPUT or len(rows) == len(columns)
                found.extend(
                    (i, j, score)
                    for i, j, score in matched
                    if is_told or self._is_supported(ours[i], theirs[j]) or (i == j and not self._named_apart(ours[i], theirs[j]))
                )
        return found

    def _without_merged(self, ours: Sequence[int], theirs: Sequence[int], pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The pairs of inputs without those of a bias on its own and one that masks too, where the mask is handed over beside the first.

        So where one side adds a mask to position biases before its layers and the other inside attention: neither is wrong.
        """
        rows = ours, theirs
        masks = [{place for place, row in enumerate(rows[side]) if self._may_mask(side, row)} for side in (0, 1)]
        used = [{pair[side] for pair in pairs if pair[1 - side] in masks[1 - side]} for side in (0, 1)]
        kept = []
        for pair in pairs:
            is_mask = [pair[side] in masks[side] for side in (0, 1)]
            bare = 0 if is_mask[1] else 1
            is_added = not any(self._exact[side][rows[side][pair[side]]] for side in (0, 1))
            if not (is_added and is_mask[0] != is_mask[1] and masks[bare] - used[bare]):
                kept.append(pair)
        return kept

    def _may_mask(self, side: int, row: int) -> bool:
        """Whether a tensor says true or false, or holds what masks by being added."""
        return self._is_truth(side, row) or bool(not self._exact[side][row] and self.sides[side].index["min"][row] <= MASKED)

    def _in_their_places(self, ours: Sequence[int], theirs: Sequence[int], pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The pairs of inputs, but two arguments whose values are exchanged stay in their places where the callee uses them by place.

        So where a caller mixes them up; and where the call raised, which it would not had it been meant so. A port whose callee takes them
        in another order uses them by value.
        """
        found = dict(pairs)
        for i, j in pairs:
            if i < j and found.get(j) == i and self._key(0, ours[i]).keys == self._key(1, theirs[i]).keys == (i,):
                straight = any(self._are_used_alike(ours[one], theirs[one]) for one in (i, j))
                crossed = any(self._are_used_alike(ours[one], theirs[other]) for one, other in ((i, j), (j, i)))
                if not crossed and (straight or self._has_raised(1, theirs[i])):
                    found |= {i: i, j: j}
        return list(found.items())

    def _has_raised(self, side: int, row: int) -> bool:
        calls = self.sides[side].calls
        return any(self._raised[side][one] for one in calls.rows_of(int(calls.of_row[row])).tolist())

    def _are_used_alike(self, a: int, b: int) -> bool:
        """Whether the calls of two inputs hand them to calls of paired sites."""
        takers = self._users(0, a), self._users(1, b)
        return any(self._partner.get(site) in takers[1] for site in takers[0])

    def _users(self, side: int, row: int) -> set[int]:
        """The sites that the call of an input hands that very tensor."""
        here = self.sides[side]
        own = int(here.calls.of_row[row])
        same = [one for one in self._rows_of_tensor[side][here.tensor[row]] if here.end_kind[one] == INPUT and one != row]
        calls = [int(here.calls.of_row[one]) for one in same]
        return {int(here.calls.site[call]) for call in calls if int(here.calls.parent[call]) == own}

    @cached_property
    def _rows_of_tensor(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        found: tuple[dict[int, list[int]], dict[int, list[int]]] = (defaultdict(list), defaultdict(list))
        for side, known in zip(self.sides, found, strict=True):
            for row, tensor in enumerate(side.tensor):
                known[tensor].append(row)
        return found

    def _end_score(self, a: int, b: int, alone: bool) -> float:
        ours, theirs = self._key(0, a), self._key(1, b)
        score = 0.9 if alone else 0.1
        if ours.kind != theirs.kind:
            return -1.0
        is_one_truth = self._exact[0][a] and self._exact[1][b] and self._is_truth(0, a) != self._is_truth(1, b)
        if is_one_truth and not (self._is_mask(0, a) and self._is_mask(1, b)):
            return -1.0  # ids and positions are no masks
        score += _named_alike(ours, theirs)
        score += 3.0 if ours == theirs and self._is_function(a, b) else 0.0  # functions' ends are named alike, whatever values come there
        score += 0.5 if axes.layouts(self._shape_of(0, a), self._shape_of(1, b)) else -0.5
        if self._are_two_masks(a, b):
            return score + (2.0 if self._mask_alike(a, b) else 0.1)
        apart = self._apart(a, b)
        score += 2.0 if apart < 1e-3 else 1.2 if apart < _CLOSE else 0.4 if apart < _ALIKE else 0.0
        return score + (0.0 if self._exact[0][a] == self._exact[1][b] else -0.5)

    def _are_two_masks(self, a: int, b: int) -> bool:
        """Whether one of two tensors says true or false and the other is a mask that is added."""
        truths = self._is_truth(0, a), self._is_truth(1, b)
        side, row = (1, b) if truths[0] else (0, a)
        index = self.sides[side].index
        return truths[0] != truths[1] and not self._exact[side][row] and bool(index["max"][row] <= 0 and index["min"][row] <= MASKED)

    def _mask_alike(self, a: int, b: int) -> bool:
        """Whether two masks of two conventions let the same through, whatever true means in one of them."""
        read = self._read(a, b)
        layout = next(iter(axes.layouts(self._shape_of(0, a), self._shape_of(1, b))), None)
        if read is None or layout is None:
            return False
        ours, theirs = (
            one if one.dtype == bool else one > MASKED for one in (axes.apply_reference(read[0], layout), axes.apply(read[1], layout))
        )
        return np.array_equal(ours, theirs) or np.array_equal(ours, ~theirs)

    def _is_function(self, a: int, b: int) -> bool:
        return self._functional[0][a] and self._functional[1][b]

    @cached_property
    def _functional(self) -> tuple[list[bool], ...]:
        """Of each row whether its site is a function's."""
        found = []
        for side in self.sides:
            codes, inverse = np.unique(side.index["site"], return_inverse=True)
            found.append(np.array(["!" in side.trace.strings[int(code)] for code in codes], bool)[inverse].tolist())
        return tuple(found)

    def _is_supported(self, a: int, b: int) -> bool:
        """Whether more than its shape speaks for a pair of outputs, where one side returns more than the other."""
        return _named_alike(self._key(0, a), self._key(1, b)) > 0 or self._apart(a, b) < _CLOSE

    def _named_apart(self, a: int, b: int) -> bool:
        """Whether two ends have names, and not the same: a cache is no hidden state, whatever shapes they have."""
        return _named_alike(self._key(0, a), self._key(1, b)) < 0

    def _is_truth(self, side: int, row: int) -> bool:
        return dtypes.BY_CODE[int(self.sides[side].index["dtype"][row])].name == "bool"

    def _is_mask(self, side: int, row: int) -> bool:
        """Whether exact values may be a mask: truth values, or numbers that are 0 or 1."""
        index = self.sides[side].index
        return bool(index["min"][row] >= 0 and index["max"][row] <= 1)

    def _key(self, side: int, row: int) -> End:
        code = self._end[side][row]
        if code not in self._parsed[side]:
            self._parsed[side][code] = End.parse(self.sides[side].text("end", row))
        return self._parsed[side][code]

    def _shape_of(self, side: int, row: int) -> Shape:
        return self.sides[side].shapes[row]

    def _apart(self, a: int, b: int) -> float:
        """How far the values of two records are from being the same: a distance of statistics; infinite where it cannot be told."""
        same_size = self._count[0][a] == self._count[1][b]
        if not self._varies[0][a] or not self._varies[1][b]:
            means = self.sides[0].index["mean"][a], self.sides[1].index["mean"][b]
            return 0.05 if same_size and means[0] == means[1] else math.inf
        if same_size:
            return math.dist(self._points[0][a], self._points[1][b])
        return _padded_apart(self.sides[0].index[a], self.sides[1].index[b])

    # -- layouts ---------------------------------------------------------------------------------------------

    def _layout(self, sites: PairedSites, a: int, b: int) -> tuple[Layout | None, str]:
        """The layout of a pair of records, and why."""
        shape_a, shape_b = self._shape_of(0, a), self._shape_of(1, b)
        if sites.part is not None and self._kind[0][a] != INPUT:
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
        read = self._read(a, b) if len(left) > 1 or not is_own else None
        if not is_own and (read is None or axes.choose(*read, candidates[:1])[1] < _AGREES):
            return None
        chosen = axes.choose(*read, left)[0] if read is not None and len(left) > 1 else left[0]
        return chosen, "channels on channels"

    @cached_property
    def _channels(self) -> tuple[Channels, Channels]:
        return Channels(self.sides[0]), Channels(self.sides[1])

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
        candidates = axes.kept(self._shape_of(0, a), self._shape_of(1, b))
        if not candidates or (self._kind[0][a] != INPUT and not self._takes_one(a, b)):
            return None
        read = self._read(a, b)
        if read is None:
            return None
        errors = [axes.relative_error(axes.apply_reference(read[0], one), axes.apply(read[1], one)) for one in candidates]
        best = min(range(len(errors)), key=errors.__getitem__)
        if errors[best] >= _AGREES and errors[best] >= axes.CLEARLY_BETTER * max(errors):
            return None
        return candidates[best], f"one position of the {'reference' if candidates[best].part_reference else 'port'}'s"

    def _takes_one(self, a: int, b: int) -> bool:
        """Whether what gave out two records, these calls or others inside them, took in one position against as many as they have."""
        ratio = self._count[0][a] / self._count[1][b]
        for ours in self._givers(0, a):
            for theirs in self._givers(1, b):
                pairs = [(i, j) for i in ours for j in theirs if axes.kept(self._shape_of(0, i), self._shape_of(1, j))]
                if any(self._count[0][i] / self._count[1][j] == ratio for i, j in pairs):
                    return True
        return False

    def _givers(self, side: int, row: int) -> list[list[int]]:
        """The input rows of each call that gave out these very values: a module and the one inside it whose output it hands on."""
        index = self.sides[side].index
        same = np.flatnonzero((index["digest"] == index["digest"][row]).all(-1) & (self.sides[side].end_kind == OUTPUT))
        calls = dict.fromkeys(int(self.sides[side].calls.of_row[one]) for one in [row, *same.tolist()[:_MOST_CONSUMERS]])
        return [self.sides[side].ends_of(call)[0] for call in calls]

    def _cut(self, a: int, b: int) -> tuple[Layout, str] | None:
        """The layout of an output of which one side cuts an end off inside the module and the other outside (a causal convolution).

        Only where the rest really agrees, the callers, which see both, give out equal shapes, and nobody takes what is to be cut whole.
        """
        shapes = self._shape_of(0, a), self._shape_of(1, b)
        is_output = self._kind[0][a] == OUTPUT
        candidates = axes.cuts(*shapes) if is_output and (self._callers_fit(a, b) or self._takers_fit(a, b)) else ()
        read = self._read(a, b) if candidates else None
        if read is None:
            return None
        errors = [axes.relative_error(axes.apply_reference(read[0], one), axes.apply(read[1], one)) for one in candidates]
        best = min(range(len(errors)), key=errors.__getitem__)
        longer, row = (0, a) if math.prod(shapes[0]) > math.prod(shapes[1]) else (1, b)
        if tuple(self.sides[longer].index["digest"][row].tolist()) in self._taken[longer]:
            return None
        return (candidates[best], f"cut elsewhere; the rest agrees to {errors[best]:.0e}") if errors[best] < _AGREES else None

    @cached_property
    def _taken(self) -> tuple[set[tuple[int, ...]], ...]:
        """The digests of what the calls of each side were handed."""
        return tuple({tuple(digest) for digest in side.index["digest"][side.end_kind == INPUT].tolist()} for side in self.sides)

    def _takers_fit(self, a: int, b: int) -> bool:
        """Whether a call is handed the shorter of two outputs as it is, and its partner a tensor of a shape that fits that one's."""
        shorter, row = (0, a) if self._count[0][a] < self._count[1][b] else (1, b)
        ours, theirs = self.sides[shorter], self.sides[1 - shorter]
        partner = self._partner if shorter == 0 else self._reference_of
        for taken in (one for one, tensor in enumerate(ours.tensor) if tensor == ours.tensor[row] and ours.end_kind[one] == INPUT):
            site = partner.get(int(ours.calls.site[ours.calls.of_row[taken]]))
            call = int(theirs.first_call[site]) if site is not None else -1
            shapes = [self._shape_of(1 - shorter, one) for one in theirs.ends_of(call)[0][:1]] if call >= 0 else []
            if any(one.window is None and not one.repeat for shape in shapes for one in axes.layouts(self._shape_of(shorter, row), shape)):
                return True
        return False

    @cached_property
    def _reference_of(self) -> dict[int, int]:
        return {b: a for a, b in self._partner.items()}

    def _callers_fit(self, a: int, b: int) -> bool:
        """Whether the callers of two records' calls give out tensors of shapes that can be read as each other's."""
        shapes = []
        for side, row in ((0, a), (1, b)):
            calls = self.sides[side].calls
            caller = int(calls.parent[calls.of_row[row]])
            given = self.sides[side].ends_of(caller)[1] if caller >= 0 else []
            if not given:
                return False
            shapes.append(self._shape_of(side, given[0]))
        longer, row = (0, a) if self._count[0][a] > self._count[1][b] else (1, b)
        if shapes[longer] == self._shape_of(longer, row):  # nothing was cut off on the way out
            return False
        return any(one.window is None and not one.repeat for one in axes.layouts(*shapes))

    def _partial(self, a: int, b: int, candidates: Sequence[Layout]) -> tuple[Layout | None, str]:
        """A window, where the inside really agrees, or a repetition; for inputs only: an output of another size is an error."""
        read = self._read(a, b)
        if self._kind[0][a] != INPUT:
            return None, f"no layout reads {self._shape_of(1, b)} as {self._shape_of(0, a)}"
        if read is not None:
            layout, error = axes.choose(*read, candidates)
            if layout.window is not None and error < _AGREES:
                return layout, f"padded before the call; the inside agrees to {error:.0e}"
        if candidates[0].repeat:
            return candidates[0], "shapes, one side repeated"
        open_ = f"; {UNREAD}" if read is None and candidates[0].window is not None else ""
        return None, f"no layout reads {self._shape_of(1, b)} as {self._shape_of(0, a)}{open_}"

    def _by_values(self, a: int, b: int, candidates: Sequence[Layout]) -> tuple[Layout, str]:
        plain = candidates[0]
        if _same_bits(self.sides[0].index[a], self.sides[1].index[b]) and plain.is_same:
            return plain, "equal"
        if self._apart(a, b) > 0.2:
            return plain, "shapes; the values differ"
        read = self._read(a, b)
        if read is None:
            return plain, f"shapes; {UNREAD}"
        chosen, error = axes.choose(*read, candidates)
        if chosen is plain:
            return plain, "values" if error < _AGREES else "shapes; the values differ"
        if plain.is_same and not self._consumers_agree(a) and not self._lies_as_its_input(a, b, chosen):
            return plain, f"shapes; {chosen} would fit the values, but not what consumes them"
        return chosen, f"values agree to {error:.0e}"

    def _grouped_heads(self, a: int, b: int) -> Layout | None:
        """The layout of keys or values that one side repeats for the heads of a group before attention and the other leaves to it."""
        keys = self._key(0, a).keys, self._key(1, b).keys
        is_handed = self._kind[0][a] == INPUT and keys in ((("k",), ("k",)), (("v",), ("v",))) and self._is_function(a, b)
        shapes = self._shape_of(0, a), self._shape_of(1, b)
        if not is_handed or any(len(shape) < 3 for shape in shapes) or shapes[0][-2:] != shapes[1][-2:]:
            return None
        return axes.shared(*shapes)

    def _told_elsewhere(self, sites: PairedSites, a: int, b: int) -> tuple[int, ...] | None:
        """The order of axes that the shapes alone tell in all other calls of two sites, for a call in which two lengths are equal.

        So where a run comes in pieces, one of which happens to be as long as there are heads.
        """
        key = sites.reference, sites.port, self._end[0][a], self._end[1][b]
        if key not in self._orders_of_ends:
            self._orders_of_ends[key] = self._order_of_ends(*key)
        found = self._orders_of_ends[key]
        fits = found is not None and _fits(found, self._shape_of(0, a), self._shape_of(1, b))
        return found if fits and self._shape_of(0, a) == self._shape_of(1, b) else None

    def _order_of_ends(self, reference: int, port: int, end_a: int, end_b: int) -> tuple[int, ...] | None:
        """The one order of axes in which the shapes of two sites' ends can be read, call by call, wherever they leave no choice."""
        rows: list[dict[int, int]] = []
        for side, (site, end) in enumerate(((reference, end_a), (port, end_b))):
            calls = self.sides[side].calls
            numbers = np.flatnonzero(calls.site == site).tolist() if len(calls.site) else []
            ordinals = {int(calls.ordinal[call]): call for call in numbers}
            rows.append({})
            for ordinal, call in ordinals.items():
                place = next((row for row in calls.rows_of(call).tolist() if self._end[side][row] == end), None)
                if place is not None:
                    rows[side][ordinal] = place
        if len(rows[0]) != len(rows[1]) or len(rows[0]) < 2:
            return None
        shapes = {(self._shape_of(0, row), self._shape_of(1, rows[1][ordinal])) for ordinal, row in rows[0].items() if ordinal in rows[1]}
        only = [one[0] for pair in shapes if len(one := axes.layouts(*pair)) == 1]
        orders = {one.permutation for one in only if one.permutation is not None and one.split is None and one.window is None}
        is_plain = any(one.is_same and max(one.shape, default=1) > 1 and one.split is None for one in only)
        return orders.pop() if len(orders) == 1 and not is_plain else None

    def _lies_as_its_input(self, a: int, b: int, layout: Layout) -> bool:
        """Whether a call was handed its input with the axes in the same other order as what it returned: it merely works in that order."""
        if self._kind[0][a] != OUTPUT or layout.permutation is None:
            return False
        shapes = self._shape_of(0, a), self._shape_of(1, b)
        given = [
            [row for row in side.ends_of(int(side.calls.of_row[own]))[0] if self._shape_of(number, row) == shapes[number]]
            for number, (side, own) in enumerate(zip(self.sides, (a, b), strict=True))
        ]
        candidates = axes.layouts(*shapes)
        return any(self._by_values(one, other, candidates)[0].permutation == layout.permutation for one in given[0] for other in given[1])

    def _read(self, a: int, b: int) -> tuple[Array, Array] | None:
        """The values of two records, where both were stored and are not too large to look at."""
        records = self.sides[0].trace.records[a], self.sides[1].trace.records[b]
        if not all(record.stored and record.stats.count <= _LARGEST for record in records):
            return None
        return records[0].read(), records[1].read()

    def _consumers_agree(self, row: int) -> bool:
        """Whether some call that takes the reference's tensor in gives out what its partner in the port gives out."""
        consumers = [row] if self._kind[0][row] == INPUT else self._consumers.get(row, [])[:_MOST_CONSUMERS]
        return any(self._outputs_agree(int(self.sides[0].calls.of_row[consumer])) for consumer in consumers)

    def _outputs_agree(self, call: int) -> bool:
        calls = self.sides[0].calls
        partner = self._partner.get(int(calls.site[call]))
        if partner is None:
            return False
        same = np.flatnonzero((self.sides[1].calls.site == partner) & (self.sides[1].calls.ordinal == calls.ordinal[call]))
        if not same.size:
            return False
        ours, theirs = self.sides[0].ends_of(call)[1], self.sides[1].ends_of(int(same[0]))[1]
        return any(self._apart(a, b) < _AGREES for a in ours for b in theirs)

    @cached_property
    def _consumers(self) -> dict[int, list[int]]:
        """The input rows that take in what each row of the reference gave out."""
        found: dict[int, list[int]] = defaultdict(list)
        index = self.sides[0].index
        for row in np.flatnonzero((self.sides[0].end_kind == INPUT) & (index["producer"] >= 0)).tolist():
            found[int(index["producer"][row])].append(row)
        return found

    # -- split and stacked calls -----------------------------------------------------------------------------

    def _joined(self, sites: PairedSites, together: Together) -> list[RecordPair]:
        """The records of several calls that do one call's work: each end joined over the calls, or else each part told from the whole."""
        rows = [
            [side.calls.rows_of(call).tolist() for call in calls]
            for side, calls in zip(self.sides, (together.reference, together.port), strict=True)
        ]
        evidence = f"{len(together.reference)} calls of the reference, {len(together.port)} of the port"
        confidence = min(sites.confidence, 0.9)
        joined: list[tuple[list[int], list[int], Layout]] = []
        pieces: list[RecordPair] = []
        for i, j, _ in self._ends(rows[0][0], rows[1][0]):
            ours, theirs = self._same_end(0, rows[0], rows[0][0][i]), self._same_end(1, rows[1], rows[1][0][j])
            if len(ours) == len(together.reference) and len(theirs) == len(together.port):
                shapes = [[self._shape_of(side, row) for row in chosen] for side, chosen in enumerate((ours, theirs))]
                layout = joined_layout(shapes[0], shapes[1])
                if layout is not None:
                    joined.append((ours, theirs, layout))
                    continue
                for a, b, one in piece_layouts(shapes[0], shapes[1], together.lengths) or self._repeated(ours, theirs, shapes):
                    pieces.append(RecordPair((ours[a],), (theirs[b],), one, evidence, confidence, sites.place))
        order = self._order(sites.place, joined)
        dealt = [
            RecordPair(_dealt(ours, order), _dealt(theirs, order), layout, evidence, confidence, sites.place)
            for ours, theirs, layout in joined
        ]
        return [*dealt, *pieces]

    def _repeated(self, ours: Sequence[int], theirs: Sequence[int], shapes: Sequence[Sequence[Shape]]) -> list[tuple[int, int, Layout]]:
        """What one call of a side is given or gives, and each of several calls of the other too: a scale, a mask, positions.

        Whole numbers and switches count only where they are equal: what is done in steps may well be told otherwise.
        """
        if min(len(ours), len(theirs)) != 1 or len({*shapes[0], *shapes[1]}) != 1:
            return []
        index = self.sides[0].index, self.sides[1].index
        return [
            (place if len(ours) > 1 else 0, place if len(theirs) > 1 else 0, Layout(shapes[0][0]))
            for place, (a, b) in enumerate(product(ours, theirs))
            if not (self._exact[0][a] and self._exact[1][b]) or _same_bits(index[0][a], index[1][b])
        ]

    def _order(self, place: int, ends: Sequence[tuple[list[int], list[int], Layout]]) -> tuple[int, ...]:
        """In which order few calls of one side do one call's work: a port may compute the unconditional half of a batch first.

        As they come, unless the values of some end clearly tell otherwise; told once for each pair of sites.
        """
        count = max((max(len(ours), len(theirs)) for ours, theirs, _ in ends), default=0)
        plain = tuple(range(count))
        if not 2 <= count <= _MOST_DEALT or any(min(len(ours), len(theirs)) != 1 for ours, theirs, _ in ends):
            return plain
        key = place, count
        if key not in self._orders:
            told = (self._told_order(*end) for end in ends)
            self._orders[key] = next((order for order in told if order is not None), plain)
        return self._orders[key]

    def _told_order(self, ours: list[int], theirs: list[int], layout: Layout) -> tuple[int, ...] | None:
        """The order of the calls that an end's values clearly tell; None where they do not."""
        left, right = self._values(0, ours), self._values(1, theirs)
        if left is None or right is None or len({array.shape for array in (left if len(ours) > 1 else right)}) > 1:
            return None
        errors = {}
        for one in permutations(range(max(len(ours), len(theirs)))):
            reference = axes.apply_reference([left[place] for place in one] if len(left) > 1 else left[0], layout)
            port = axes.apply([right[place] for place in one] if len(right) > 1 else right[0], layout)
            errors[one] = axes.relative_error(reference, port)
        best, second = sorted(errors, key=errors.__getitem__)[:2]
        return best if errors[best] < axes.CLEARLY_BETTER * errors[second] else None

    def _values(self, side: int, rows: Sequence[int]) -> list[Array] | None:
        records = [self.sides[side].trace.records[row] for row in rows]
        if not all(record.stored and record.stats.count <= _LARGEST and record.dtype != "text" for record in records):
            return None
        return [record.read() for record in records]

    def _same_end(self, side: int, calls: Sequence[Sequence[int]], like: int) -> list[int]:
        return [row for rows in calls for row in rows if self._end[side][row] == self._end[side][like]]


def joined_layout(reference: Sequence[Shape], port: Sequence[Shape]) -> Layout | None:
    """The plainest layout that joins the port's tensors, and the reference's, into one; None where there is none.

    >>> print(joined_layout([(1, 4, 40)], [(1, 40)] * 4))
    stacked on axis 1
    >>> print(joined_layout([(1, 6, 40)], [(1, 4, 40), (1, 2, 40)]))
    joined along axis 1
    """
    found = []
    for join_a, shape_a in _joins(reference):
        for join_b, shape_b in _joins(port):
            for layout in axes.layouts(shape_a, shape_b)[:1]:
                if layout.window is None and not layout.repeat:
                    found.append(replace(layout, join=join_b, join_reference=join_a))
    return min(found, key=_joined_plainness, default=None)


def _dealt(rows: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    return tuple(rows[place] for place in order) if len(rows) == len(order) > 1 else tuple(rows)


def piece_layouts(
    reference: Sequence[Shape], port: Sequence[Shape], lengths: tuple[Sequence[int], Sequence[int]]
) -> list[tuple[int, int, Layout]]:
    """Which part of one call's tensor each of several calls' has: (place in the reference, place in the port, layout) each.

    ``lengths``: the steps that each call does. A call's tensor may hold its own steps, all steps so far (the keys of a cache), or its
    last step alone (the logits of a decoder). Empty where neither side is one call, or some tensor is none of these.

    >>> [str(layout) for _, _, layout in piece_layouts([(1, 3, 40)], [(1, 2, 40), (1, 3, 40)], ([3], [2, 1]))]
    ['reference 0:2 of axis 1', 'reference 0:3 of axis 1']
    """
    if min(len(reference), len(port)) != 1 or not lengths[0]:
        return []
    side = 0 if len(reference) == 1 else 1
    whole, parts = (reference, port)[side][0], (port, reference)[side]
    for axis in (axis for axis, size in enumerate(whole) if size == lengths[side][0]):
        found = [_piece(whole, shape, axis, end - length, end, side) for shape, length, end in _steps(parts, lengths[1 - side])]
        if all(layout is not None for layout in found):
            places = [(0, place) if side == 0 else (place, 0) for place in range(len(parts))]
            return [(*place, layout) for place, layout in zip(places, found, strict=True) if layout is not None]
    return []


def _steps(shapes: Sequence[Shape], lengths: Sequence[int]) -> Iterable[tuple[Shape, int, int]]:
    return zip(shapes, lengths, np.cumsum(lengths).tolist(), strict=True)


def _piece(whole: Shape, part: Shape, axis: int, start: int, stop: int, side: int) -> Layout | None:
    """How one tensor is part of a whole on side 0 or 1: its steps ``start:stop``, all until ``stop``, or the last one."""
    for first in dict.fromkeys((start, 0, stop - 1)):
        cut = (*whole[:axis], stop - first, *whole[axis + 1 :])
        fits = axes.layouts(cut, part) if side == 0 else axes.layouts(part, cut)
        if fits and fits[0].window is None and not fits[0].repeat:
            piece = Part(axis, first, stop)
            return replace(fits[0], part_reference=piece) if side == 0 else replace(fits[0], part=piece)
    return None


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


def _named_alike(ours: End, theirs: End) -> float:
    names = [[key for key in end.keys if isinstance(key, str)] for end in (ours, theirs)]
    if names[0] and names[1]:
        return 1.0 if tokens(".".join(names[0])) == tokens(".".join(names[1])) else -0.3
    return 0.0


def _padded_apart(one: np.void, other: np.void) -> float:
    """Like a distance of statistics, for two tensors of which one holds further zeros: sums that zeros do not change."""
    sums = [
        np.array([float(row[name]) * float(row["count"]) for name in ("mean", "absmean", "cube")] + [float(row["l2"])])
        for row in (one, other)
    ]
    scale = np.maximum(np.abs(sums[0]), 1e-30)
    return max(float(np.max(np.abs(sums[1] - sums[0]) / scale)), 0.05) if sums[0][1] else np.inf


def _same_bits(one: np.void, other: np.void) -> bool:
    return bool((one["digest"] == other["digest"]).all()) and bool(one["digest"].any())


def _fits(permutation: tuple[int, ...], reference: Shape, port: Shape) -> bool:
    return len(permutation) == len(port) and tuple(port[axis] for axis in permutation) == reference


def _depths(side: Side) -> list[int]:
    """How many callers stand above each site at its first call."""
    depths = []
    for site in range(len(side)):
        above, depth = int(side.parent[site]), 0
        while above >= 0 and depth < 500:
            above, depth = int(side.parent[above]), depth + 1
        depths.append(depth)
    return depths
