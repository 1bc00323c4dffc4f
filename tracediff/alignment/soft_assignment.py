"""Assignment one to one over few candidates a site: soft, by Sinkhorn's scaling with prices, and at last hard, by the best sum.

Knows nothing of sites. A row and a column may each stay alone; the two together then gain as much as a pair that is just worth it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment.thresholds import THRESHOLDS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


class _Lines:
    """The candidates of each row (or of each column), for sums along it: ``of`` says in which line each candidate is."""

    def __init__(self, of: Ints) -> None:
        _, self.line = np.unique(of, return_inverse=True)
        self.order = np.argsort(self.line, kind="stable")
        self.ordered = self.line[self.order]
        self.starts = np.flatnonzero(np.diff(self.ordered, prepend=-1))

    def prices(self, gains: Floats, alone: float) -> Floats:
        """log(exp(alone) + the sum of exp(gains) along each line): (lines,)."""
        ordered = gains[self.order]
        top = np.maximum(np.maximum.reduceat(ordered, self.starts), alone)
        prices: Floats = top + np.log(np.add.reduceat(np.exp(ordered - top[self.ordered]), self.starts) + np.exp(alone - top))
        return prices


class SoftAssignment:
    """Rows and columns of which some pairs are candidates: ``rows`` and ``columns``, (candidates,) each. Prices are kept between calls."""

    def __init__(self, rows: Ints, columns: Ints, alone: float) -> None:
        self.rows, self.columns, self.alone = _Lines(rows), _Lines(columns), alone / 2
        self._price = np.zeros(len(self.columns.starts))  # of the columns, in the unit of the gains

    def beliefs(self, gains: Floats, temperature: float) -> Floats:
        """How far each candidate is a pair, 0 to 1; those of a row, and of a column, sum up to at most 1: (candidates,).

        The lower the ``temperature``, the nearer they are to 0 and 1.
        """
        if not len(gains):
            return gains
        scaled, alone = gains / temperature, self.alone / temperature
        price = self._price / temperature
        for _ in range(THRESHOLDS.sinkhorn_steps):
            cost = self.rows.prices(scaled - price[self.columns.line], alone)
            price = self.columns.prices(scaled - cost[self.rows.line], alone)
        self._price = price * temperature
        beliefs: Floats = np.exp(scaled - cost[self.rows.line] - price[self.columns.line])
        return beliefs

    def best(self, beliefs: Floats) -> Flags:
        """The candidates of the one assignment in which most is believed, each more than `THRESHOLDS.least_chosen`: (candidates,).

        What is believed more than half has no rival; only the rest is weighed against each other.
        """
        from scipy.optimize import linear_sum_assignment

        chosen = beliefs > THRESHOLDS.has_partner
        taken = [np.bincount(lines.line, chosen, len(lines.starts)) > 0 for lines in (self.rows, self.columns)]
        is_open = ~taken[0][self.rows.line] & ~taken[1][self.columns.line] & (beliefs > THRESHOLDS.least_chosen)
        left = np.flatnonzero(is_open)
        if len(left):
            (ours, row), (theirs, column) = (np.unique(lines.line[left], return_inverse=True) for lines in (self.rows, self.columns))
            table, place = np.zeros((len(ours), len(theirs))), np.full((len(ours), len(theirs)), -1)
            table[row, column], place[row, column] = beliefs[left], left
            found = place[linear_sum_assignment(table, maximize=True)]
            chosen[found[found >= 0]] = True
        return chosen
