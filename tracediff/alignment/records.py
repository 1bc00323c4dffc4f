"""Pairs the records of paired sites: which tensor of a call is which on the other side, and in which layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tracediff.alignment.arguments import Arguments
from tracediff.alignment.axes import Layout
from tracediff.alignment.boundaries import without_moved
from tracediff.alignment.calls import CallPairs, Together
from tracediff.alignment.layouts import Layouts
from tracediff.alignment.record_table import PairedSites, Rows
from tracediff.alignment.result import RecordPair
from tracediff.alignment.split_calls import Several
from tracediff.alignment.structure import INPUT, OUTPUT, Side

RAISED = "a call raised"

UNSURE = 0.4
"""The most confidence in a pair of calls that only their order, and what stands around them, tells from others."""


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
        self.rows = Rows(sides, {one.reference: one.port for one in reversed(sites)})
        self.sites = sites
        self.calls = CallPairs(sides, self.rows.tables, self.rows.partner)
        self.arguments, self.layouts = Arguments(self.rows), Layouts(self.rows)
        self.several = Several(self.rows, self.arguments)
        self._plans: dict[tuple[object, ...], list[_Planned]] = {}

    def run(self) -> list[RecordPair]:
        """All pairs of records, in the reference's execution order."""
        found: list[RecordPair] = []
        depth = _depths(self.rows.sides[0])
        sites = sorted(self.sites, key=lambda one: (depth[one.reference], one.reference))
        calls = [list(self.calls.pair(one.reference, one.port)) for one in sites]
        for one, every in zip(sites, calls, strict=True):
            self.arguments.tell(one, every)
        for one, every in zip(sites, calls, strict=True):
            for together in every:
                records = self._records(one, together)
                found.extend(pair for pair in records if not one.outputs_only or self.rows.kind[0][pair.reference[0]] == OUTPUT)
        found = without_moved(self.rows, found)
        found.extend(self._astray(found))
        found.sort(key=lambda pair: (pair.reference[0], pair.port[0]))
        return found

    def _records(self, sites: PairedSites, together: Together) -> list[RecordPair]:
        if len(together.reference) > 1 or len(together.port) > 1:
            return self.several.of(sites, together)
        rows = [
            side.calls.rows_of(calls[0]).tolist() for side, calls in zip(self.rows.sides, (together.reference, together.port), strict=True)
        ]
        told = (self.rows.end, self.rows.shape_codes, self.rows.raised)
        alike = (tuple(tuple(one[side][row] for one in told) for row in rows[side]) for side in (0, 1))
        key = (sites.place, sites.outputs_only, *alike)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(sites, rows[0], rows[1])
        most = 1.0 if together.is_sure else UNSURE
        return [
            RecordPair((rows[0][one.reference],), (rows[1][one.port],), one.layout, one.evidence, min(most, one.confidence), sites.place)
            for one in plan
        ]

    def _plan(self, sites: PairedSites, ours: Sequence[int], theirs: Sequence[int]) -> list[_Planned]:
        raised = [
            next((place for place, row in enumerate(rows) if self.rows.raised[side][row]), -1) for side, rows in enumerate((ours, theirs))
        ]
        if (raised[0] < 0) != (raised[1] < 0):
            return self._plan_raised(sites, ours, theirs, raised)
        planned = []
        for row, column, score in self.arguments.of(sites, ours, theirs):
            layout, evidence = self.layouts.of(sites, ours[row], theirs[column])
            is_piece = layout is not None and (layout.part is not None or layout.part_reference is not None)
            if is_piece and self.rows.exact[0][ours[row]] != self.rows.exact[1][theirs[column]]:
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
        place = next((place for place, row in enumerate(whole) if self.rows.kind[side][row] == OUTPUT), 0)
        handed = [[place for place, row in enumerate(rows) if self.rows.kind[one][row] == INPUT] for one, rows in enumerate((ours, theirs))]
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
        told = {self._error(row) for row in used if self.rows.raised[1][row]}
        strays = [row for row, is_raised in enumerate(self.rows.raised[1]) if is_raised and row not in used]
        pairs = []
        for row in strays:
            place = self._beside(row, taken) if self._error(row) not in told else None
            if place is not None:
                told.add(self._error(row))
                taken.add(place)
                pairs.append(RecordPair((place,), (row,), None, RAISED, 0.5, self._place_of(place)))
        return pairs

    def _error(self, row: int) -> bytes:
        code: bytes = self.rows.sides[1].index["digest"][row].tobytes()
        return code

    def _beside(self, row: int, taken: set[int]) -> int | None:
        calls = self.rows.sides[1].calls
        call = int(calls.parent[calls.of_row[row]])
        while call >= 0:
            partner = self.calls.partner[1].get(call)
            outputs = [] if partner is None else self.rows.sides[0].ends_of(partner)[1]
            free = next((one for one in outputs if one not in taken), None)
            if free is not None:
                return free
            call = int(calls.parent[call])
        return self._next_in_stage(row, taken)

    def _next_in_stage(self, row: int, taken: set[int]) -> int | None:
        """The first record of the reference that the port did not come to, in a row's own stage first; None where it came to all."""
        last = max(taken, default=-1)
        stage = self.rows.sides[1].text("stage", row)
        same = [place for place in range(len(self.rows.kind[0])) if self.rows.sides[0].text("stage", place) == stage]
        start = max((place for place in same if place in taken), default=same[0] - 1 if same else last) + 1
        start = next((place for place in range(start, len(self.rows.kind[0])) if place not in taken), len(self.rows.kind[0]))
        return start if start < len(self.rows.kind[0]) else None

    def _place_of(self, row: int) -> int:
        """The place in the alignment of the site of a row of the reference; of the first pair where it has none."""
        site = int(self.rows.sides[0].calls.site[self.rows.sides[0].calls.of_row[row]])
        return next((one.place for one in self.sites if one.reference == site), self.sites[0].place)

    def _is_picked(self, a: int, b: int) -> bool:
        """Whether one side has a single position of each sequence where the other has all, and their callers return the same shape.

        So a head that is applied before or after the last tokens are picked: what their callers return is compared.
        """
        shapes = sorted((self.rows.shape(0, a), self.rows.shape(1, b)), key=len)
        if len(shapes[0]) < 2 or shapes[0] != (shapes[1][0], *shapes[1][2:]) or self.rows.exact[0][a] or self.rows.exact[1][b]:
            return False
        above = [[int(side.calls.parent[side.calls.of_row[row]])] for side, row in zip(self.rows.sides, (a, b), strict=True)]
        if min(above[0][0], above[1][0]) < 0:
            return False
        given = [[self.rows.shape(number, row) for row in side.ends_of(above[number][0])[1]] for number, side in enumerate(self.rows.sides)]
        return bool(given[0]) and given[0] == given[1]

    def _belong(self, a: int, b: int) -> bool:
        """Whether two ends must be one even where no layout reconciles their shapes: they have one name, or are the main outputs."""
        ours, theirs = self.rows.key(0, a), self.rows.key(1, b)
        if self.rows.kind[0][a] == INPUT or any(isinstance(key, str) for key in (*ours.keys, *theirs.keys)):
            return ours == theirs
        return all(key in (0, ()) for key in (*ours.keys, *theirs.keys))


def _depths(side: Side) -> list[int]:
    """How many callers stand above each site at its first call."""
    depths = []
    for site in range(len(side)):
        above, depth = int(side.parent[site]), 0
        while above >= 0 and depth < 500:
            above, depth = int(side.parent[above]), depth + 1
        depths.append(depth)
    return depths
