"""In which order of axes two boundaries are read in all other calls of their sites, for a call in which two lengths are equal."""

from __future__ import annotations

import numpy as np

from tracediff.alignment import axes
from tracediff.alignment.axes import Layout
from tracediff.alignment.record_table import Rows

Permutation = tuple[int, ...]


class OtherCalls:
    """The orders of axes that the shapes of a run's other calls leave no choice about.

    So where a run comes in pieces, and one piece happens to be as long as there are heads.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._orders: dict[tuple[int, int, int, int], Permutation | None] = {}

    def order(self, a: int, b: int) -> Permutation | None:
        """The permutation of the port's axes by which row ``b`` is read as row ``a`` in all other calls; None where there is none."""
        sites = (int(side.calls.site[side.calls.of_row[row]]) for side, row in zip(self.rows.sides, (a, b), strict=True))
        key = (*sites, self.rows.end[0][a], self.rows.end[1][b])
        if key not in self._orders:
            self._orders[key] = self._common_order(*key)
        return self._orders[key]

    def _common_order(self, reference: int, port: int, end_a: int, end_b: int) -> Permutation | None:
        """The one order in which two boundaries of two sites are read, call by call, wherever the shapes leave no choice."""
        ours, theirs = self._by_ordinal(0, reference, end_a), self._by_ordinal(1, port, end_b)
        if len(ours) != len(theirs) or len(ours) < 2:
            return None
        shapes = {(self.rows.shape(0, row), self.rows.shape(1, theirs[ordinal])) for ordinal, row in ours.items() if ordinal in theirs}
        candidates = [axes.layouts(*pair) for pair in shapes]
        forced = [layouts[0] for layouts in candidates if len(layouts) == 1]
        orders = {layout.permutation for layout in forced if layout.permutation is not None and _only_permutes(layout)}
        if len(orders) != 1 or any(map(_is_plain, forced)):
            return None
        return orders.pop()

    def _by_ordinal(self, side: int, site: int, end: int) -> dict[int, int]:
        """The row of a boundary in each call of a site, by the call's ordinal."""
        calls = self.rows.sides[side].calls
        found: dict[int, int] = {}
        for call in np.flatnonzero(calls.site == site).tolist():
            row = next((row for row in calls.rows_of(call).tolist() if self.rows.end[side][row] == end), None)
            if row is not None:
                found[int(calls.ordinal[call])] = row
        return found


def _only_permutes(layout: Layout) -> bool:
    return layout.split is None and layout.window is None


def _is_plain(layout: Layout) -> bool:
    """Whether a layout reads a tensor as it is although the tensor has an axis that could have been moved."""
    return layout.is_same and layout.split is None and max(layout.shape, default=1) > 1
