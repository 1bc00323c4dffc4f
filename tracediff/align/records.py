"""Pairs the records of paired sites: which tensor of a call is which on the other side, and in which layout.

Ends are not paired by position alone: names where both have them, shapes and values count. A layout that moves axes although the plain
one would do is accepted only where the values support it and what consumes the tensor agrees on both sides; otherwise it would merely
excuse an error.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tracediff import dtype as dtypes
from tracediff.align import axes, order
from tracediff.align.alignment import RecordPair
from tracediff.align.axes import Join, Layout, Part, Shape
from tracediff.align.calls import CallPairs, Together
from tracediff.align.names import tokens
from tracediff.align.structure import INPUT, Side
from tracediff.align.values import features
from tracediff.dtype import Array
from tracediff.site import End

_LARGEST = 1 << 26  # elements of a tensor that is read to decide a layout
_AGREES = 1e-2  # distance of two tensors' statistics, or relative error of their values, at which they agree
_MOST_CONSUMERS = 4


@dataclass(frozen=True, slots=True)
class PairedSites:
    """Two paired sites as far as their records are concerned: ``place`` is their place in the alignment."""

    place: int
    reference: int
    port: int
    confidence: float
    permutation: tuple[int, ...] | None = None
    part: Part | None = None
    whole: str = ""


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
        self.calls = CallPairs(sides, tables)
        self._points = tables[0].tolist(), tables[1].tolist()
        self._varies = tuple((side.index["std"] > 0).tolist() for side in sides)
        self._count = tuple(side.index["count"].tolist() for side in sides)
        self._exact = tuple([dtypes.BY_CODE[code].is_exact for code in side.index["dtype"].tolist()] for side in sides)
        self._kind = tuple(side.end_kind.tolist() for side in sides)
        self._partner = {one.reference: one.port for one in reversed(sites)}
        self._plans: dict[tuple[object, ...], list[_Planned]] = {}
        self._end = tuple(side.index["end"].tolist() for side in sides)
        self._shape = tuple(side.index["shape"].tolist() for side in sides)
        self._parsed: tuple[dict[int, End], dict[int, End]] = ({}, {})

    def run(self) -> list[RecordPair]:
        """All pairs of records, in the reference's execution order."""
        found: list[RecordPair] = []
        depth = _depths(self.sides[0])
        for one in sorted(self.sites, key=lambda one: (depth[one.reference], one.reference)):
            for together in self.calls.pair(one.reference, one.port):
                found.extend(self._records(one, together))
        found.sort(key=lambda pair: (pair.reference[0], pair.port[0]))
        return found

    def _records(self, sites: PairedSites, together: Together) -> list[RecordPair]:
        if len(together.reference) > 1 or len(together.port) > 1:
            return self._joined(sites, together)
        rows = [side.calls.rows_of(calls[0]).tolist() for side, calls in zip(self.sides, (together.reference, together.port), strict=True)]
        key = (sites.place, *(tuple((self._end[side][row], self._shape[side][row]) for row in rows[side]) for side in (0, 1)))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(sites, rows[0], rows[1])
        return [
            RecordPair((rows[0][one.reference],), (rows[1][one.port],), one.layout, one.evidence, one.confidence, sites.place)
            for one in plan
        ]

    # -- one call on each side -------------------------------------------------------------------------------

    def _plan(self, sites: PairedSites, ours: Sequence[int], theirs: Sequence[int]) -> list[_Planned]:
        planned = []
        for row, column, score in self._ends(ours, theirs):
            layout, evidence = self._layout(sites, ours[row], theirs[column])
            if layout is None and not self._belong(ours[row], theirs[column]):
                continue
            confidence = min(sites.confidence, 0.99 if score > 1.0 else 0.8 if score > 0.4 else 0.6)
            planned.append(_Planned(row, column, layout, evidence, round(confidence if layout is not None else confidence / 2, 3)))
        return planned

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
            elif rows and columns:
                alone = len(rows) == len(columns) == 1
                scores = np.array([[self._end_score(ours[i], theirs[j], alone) for j in columns] for i in rows])
                scores[np.diag_indices(min(scores.shape))] += 0.25  # the same place among the ends of its kind
                found.extend((rows[i], columns[j], float(scores[i, j])) for i, j in order.matched(scores))
        return found

    def _end_score(self, a: int, b: int, alone: bool) -> float:
        ours, theirs = self._key(0, a), self._key(1, b)
        score = 0.9 if alone else 0.1
        if ours.kind != theirs.kind:
            return -1.0
        score += _named_alike(ours, theirs)
        score += 0.5 if axes.layouts(self._shape_of(0, a), self._shape_of(1, b)) else -0.5
        apart = self._apart(a, b)
        score += 2.0 if apart < 1e-3 else 1.2 if apart < 0.05 else 0.4 if apart < 0.3 else 0.0
        return score + (0.0 if self._exact[0][a] == self._exact[1][b] else -0.5)

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
        candidates = axes.layouts(shape_a, shape_b)
        if not candidates:
            return None, f"no layout reads {shape_b} as {shape_a}"
        if candidates[0].repeat or candidates[0].window is not None:
            return self._partial(a, b, candidates)
        if len(candidates) == 1:
            return candidates[0], "shapes"
        return self._by_values(a, b, candidates)

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
        return None, f"no layout reads {self._shape_of(1, b)} as {self._shape_of(0, a)}"

    def _by_values(self, a: int, b: int, candidates: Sequence[Layout]) -> tuple[Layout, str]:
        plain = candidates[0]
        if _same_bits(self.sides[0].index[a], self.sides[1].index[b]) and plain.is_same:
            return plain, "equal"
        if self._apart(a, b) > 0.2:
            return plain, "shapes; the values differ"
        read = self._read(a, b)
        if read is None:
            return plain, "shapes; the values were not looked at"
        chosen, error = axes.choose(*read, candidates)
        if chosen is plain:
            return plain, "values" if error < _AGREES else "shapes; the values differ"
        if plain.is_same and not self._consumers_agree(a):
            return plain, f"shapes; {chosen} would fit the values, but not what consumes them"
        return chosen, f"values agree to {error:.0e}"

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
        """The records of several calls that do one call's work: each end joined over the calls."""
        rows = [
            [side.calls.rows_of(call).tolist() for call in calls]
            for side, calls in zip(self.sides, (together.reference, together.port), strict=True)
        ]
        found = []
        for i, j, _ in self._ends(rows[0][0], rows[1][0]):
            ours, theirs = self._same_end(0, rows[0], rows[0][0][i]), self._same_end(1, rows[1], rows[1][0][j])
            if len(ours) == len(together.reference) and len(theirs) == len(together.port):
                shapes = [[self._shape_of(side, row) for row in chosen] for side, chosen in enumerate((ours, theirs))]
                layout = joined_layout(shapes[0], shapes[1])
                if layout is not None:
                    evidence = f"{len(ours)} calls of the reference, {len(theirs)} of the port"
                    found.append(RecordPair(tuple(ours), tuple(theirs), layout, evidence, min(sites.confidence, 0.9), sites.place))
        return found

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


def _joined_plainness(layout: Layout) -> tuple[bool, bool, bool]:
    joins = [join for join in (layout.join, layout.join_reference) if join is not None]
    return layout.permutation is not None, layout.split is not None, any(join.how == "stack" for join in joins)


def _joins(shapes: Sequence[Shape]) -> list[tuple[Join | None, Shape]]:
    """The ways to make one tensor of several, with the shape that results."""
    if len(shapes) == 1:
        return [(None, shapes[0])]
    first = shapes[0]
    ways: list[tuple[Join | None, Shape]] = []
    for axis in range(len(first)):
        if all(len(shape) == len(first) and _but(shape, axis) == _but(first, axis) for shape in shapes):
            ways.append((Join(axis), (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])))
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
