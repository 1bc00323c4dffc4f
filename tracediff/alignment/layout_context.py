"""The calls around two tensors: those that made them, take them in, or hand them on. They say whether a layout is plausible."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property

import numpy as np

from tracediff.alignment.record_table import Rows
from tracediff.alignment.structure import INPUT, OUTPUT
from tracediff.alignment.thresholds import THRESHOLDS


class LayoutContext:
    """The producers and consumers of the records of two sides."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def consumers_agree(self, row: int) -> bool:
        """Whether some call that takes in the reference's tensor returns what its partner in the port returns."""
        consumers = [row] if self.rows.kind[0][row] == INPUT else self._consumers.get(row, [])[: THRESHOLDS.layout_consumers]
        return any(self._outputs_agree(int(self.rows.sides[0].calls.of_row[consumer])) for consumer in consumers)

    def sources(self, a: int, b: int) -> list[tuple[int, int]]:
        """Pairs of rows of the same shapes whose axes are in the same order as the axes of two rows, as far as is known.

        For outputs: the inputs of their calls. For inputs: the paired outputs of that tensor, or else the first layers' inputs in the call.
        """
        ours, theirs = self._sources(0, a), self._sources(1, b)
        return [(row, other) for row in ours for other in theirs if self._are_of_partners(row, other)]

    def inputs_like(self, side: int, row: int) -> list[int]:
        """The inputs of a row's call that have the row's shape."""
        here = self.rows.sides[side]
        return [
            given for given in here.ends_of(int(here.calls.of_row[row]))[0] if self.rows.shape(side, given) == self.rows.shape(side, row)
        ]

    def _sources(self, side: int, row: int) -> list[int]:
        here = self.rows.sides[side]
        if self.rows.kind[side][row] == OUTPUT:
            return self.inputs_like(side, row)[: THRESHOLDS.layout_consumers]
        rows = [other for other in self.rows.same(side, row) if here.end_kind[other] == OUTPUT and other < row]
        if not rows:
            rows = [given for call in self._layers_inside[side][int(here.calls.of_row[row])] for given in here.ends_of(call)[0]]
        return [other for other in rows if self.rows.shape(side, other) == self.rows.shape(side, row)][: THRESHOLDS.layout_consumers]

    def _are_of_partners(self, a: int, b: int) -> bool:
        ours, theirs = (int(side.calls.site[side.calls.of_row[row]]) for side, row in zip(self.rows.sides, (a, b), strict=True))
        return self.rows.partner.get(ours) == theirs

    def _outputs_agree(self, call: int) -> bool:
        """Whether a call of the reference, or a layer inside it, returns what its partner returns."""
        return self._returns_the_same(call) or any(map(self._returns_the_same, self._layers_inside[0][call]))

    def _returns_the_same(self, call: int) -> bool:
        ours, theirs = self.rows.sides
        partner = self.rows.partner.get(int(ours.calls.site[call]))
        if partner is None:
            return False
        same = np.flatnonzero((theirs.calls.site == partner) & (theirs.calls.ordinal == ours.calls.ordinal[call]))
        if not same.size:
            return False
        return any(
            self.rows.apart(a, b) < max(THRESHOLDS.layout_agrees, self.rows.rounding(a, b))
            for a in ours.ends_of(call)[1]
            for b in theirs.ends_of(int(same[0]))[1]
        )

    @cached_property
    def _layers_inside(self) -> tuple[dict[int, list[int]], ...]:
        """By calls of either side: the first calls inside, at any depth, of modules that own parameters."""
        both: tuple[dict[int, list[int]], ...] = (defaultdict(list), defaultdict(list))
        for side, inside in zip(self.rows.sides, both, strict=True):
            parents = side.calls.parent.tolist()
            for call, site in enumerate(side.calls.site.tolist()):
                caller = parents[call] if side.owned[site] else -1
                while caller >= 0 and len(inside[caller]) < THRESHOLDS.layout_consumers:
                    inside[caller].append(call)
                    caller = parents[caller]
        return both

    @cached_property
    def _consumers(self) -> dict[int, list[int]]:
        """By rows of the reference: the input rows that take in what the row returned."""
        found: dict[int, list[int]] = defaultdict(list)
        side = self.rows.sides[0]
        for row in np.flatnonzero((side.end_kind == INPUT) & (side.index["producer"] >= 0)).tolist():
            found[int(side.index["producer"][row])].append(row)
        return found
