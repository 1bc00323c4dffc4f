"""Which records of two paired calls are paired, and in which layouts. Calls whose records look alike share one plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tracediff.alignment.arguments import Arguments
from tracediff.alignment.axes import Layout
from tracediff.alignment.layouts import LayoutChooser
from tracediff.alignment.partial_layouts import is_picked
from tracediff.alignment.record_table import CallPair, PairedSites, Rows
from tracediff.alignment.result import RecordPair
from tracediff.alignment.structure import INPUT, OUTPUT
from tracediff.alignment.thresholds import THRESHOLDS

RAISED = "a call raised"


@dataclass(frozen=True, slots=True)
class Planned:
    """Two records to pair, by their places among the rows of their calls."""

    reference: int
    port: int
    layout: Layout | None
    evidence: str
    confidence: float


class RecordPlans:
    """The pairs of records of two calls, one of each side."""

    def __init__(self, rows: Rows, arguments: Arguments) -> None:
        self.rows, self.arguments = rows, arguments
        self.layouts = LayoutChooser(rows)
        self._plans: dict[tuple[object, ...], list[Planned]] = {}

    def of(self, sites: PairedSites, calls: CallPair) -> list[RecordPair]:
        """The pairs of records of two paired calls."""
        ours, theirs = (
            side.calls.rows_of(own[0]).tolist() for side, own in zip(self.rows.sides, (calls.reference, calls.port), strict=True)
        )
        columns = (self.rows.end, self.rows.shape_codes, self.rows.raised)
        looks = (tuple(tuple(column[side][row] for column in columns) for row in rows) for side, rows in enumerate((ours, theirs)))
        key = (sites.place, sites.outputs_only, *looks)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(sites, ours, theirs)
        most = 1.0 if calls.is_sure else THRESHOLDS.confidence_unsure_call
        return [
            RecordPair((ours[one.reference],), (theirs[one.port],), one.layout, one.evidence, min(most, one.confidence), sites.place)
            for one in plan
        ]

    def _plan(self, sites: PairedSites, ours: Sequence[int], theirs: Sequence[int]) -> list[Planned]:
        raised = self._first_raised(0, ours), self._first_raised(1, theirs)
        if (raised[0] < 0) != (raised[1] < 0):
            return self._plan_raised(sites, ours, theirs, raised)
        planned = (self._planned(sites, (i, ours[i]), (j, theirs[j]), score) for i, j, score in self.arguments.of(sites, ours, theirs))
        return [one for one in planned if one is not None]

    def _first_raised(self, side: int, rows: Sequence[int]) -> int:
        """The place of the first error among rows; -1 where there is none."""
        return next((place for place, row in enumerate(rows) if self.rows.raised[side][row]), -1)

    def _planned(self, sites: PairedSites, ours: tuple[int, int], theirs: tuple[int, int], score: float) -> Planned | None:
        """A pair of boundaries, each a place and a row, with its layout; None where the two are no pair after all."""
        (i, a), (j, b) = ours, theirs
        layout, evidence = self.layouts.of(sites, a, b)
        if layout is None:
            if not self._belong_together(a, b) or is_picked(self.rows, a, b, self.rows.shape(1, b)):
                return None
            return Planned(i, j, None, evidence, round(_confidence(sites, score) * THRESHOLDS.confidence_no_layout, 3))
        is_piece = layout.part is not None or layout.part_reference is not None
        if is_piece and self.rows.exact[0][a] != self.rows.exact[1][b]:
            return None  # a wave and a count: a number that is cut out of the wave is not the count
        return Planned(i, j, layout, evidence, round(_confidence(sites, score), 3))

    def _plan_raised(self, sites: PairedSites, ours: Sequence[int], theirs: Sequence[int], raised: tuple[int, int]) -> list[Planned]:
        """The plan where one side's call raised: its error is paired with the first output of the other call (or its first row)."""
        broken = 0 if raised[0] >= 0 else 1
        rows = ours, theirs
        kinds = [[self.rows.kind[side][row] for row in rows[side]] for side in (0, 1)]
        output = next((place for place, kind in enumerate(kinds[1 - broken]) if kind == OUTPUT), 0)
        inputs = [[place for place, kind in enumerate(kinds[side]) if kind == INPUT] for side in (0, 1)]
        planned = self._plan(sites, [ours[place] for place in inputs[0]], [theirs[place] for place in inputs[1]])
        placed = [replace(one, reference=inputs[0][one.reference], port=inputs[1][one.port]) for one in planned]
        error = (raised[0], output) if broken == 0 else (output, raised[1])
        return [*placed, Planned(*error, None, RAISED, sites.confidence)]

    def _belong_together(self, a: int, b: int) -> bool:
        """Whether two boundaries are one even where no layout reconciles their shapes: they have one name, or are the main outputs."""
        ours, theirs = self.rows.key(0, a), self.rows.key(1, b)
        if self.rows.kind[0][a] == INPUT or any(isinstance(key, str) for key in (*ours.keys, *theirs.keys)):
            return ours == theirs
        return all(key in (0, ()) for key in (*ours.keys, *theirs.keys))


def _confidence(sites: PairedSites, score: float) -> float:
    """The confidence in two boundaries: at most that in their sites, and what their score allows."""
    if score > THRESHOLDS.record_sure:
        return min(sites.confidence, THRESHOLDS.confidence_sure)
    return min(sites.confidence, THRESHOLDS.confidence_likely if score > THRESHOLDS.record_likely else THRESHOLDS.confidence_unlikely)
