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
        self.starts = np.flatnonzero(np.diff(self.line[self.order], prepend=-1))

    def prices(self, gains: Floats, alone: float) -> Floats:
        """log(exp(alone) + the sum of exp(gains) along each line): (lines,)."""
        ordered = gains[self.order]
        top = np.maximum(np.maximum.reduceat(ordered, self.starts), alone)
        counts = np.diff(self.starts, append=len(ordered))
        total = np.add.reduceat(np.exp(ordered - np.repeat(top, counts)), self.starts) + np.exp(alone - top)
        return top + np.log(total)


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

    def best(self, gains: Floats) -> Flags:
        """The candidates of the one assignment whose gains are together the greatest, each more than staying alone: (candidates,)."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import min_weight_full_bipartite_matching

        chosen = np.zeros(len(gains), bool)
        worth = np.flatnonzero(gains > 2 * self.alone)
        if not len(worth):
            return chosen
        (rows, row), (columns, column) = (np.unique(lines.line[worth], return_inverse=True) for lines in (self.rows, self.columns))
        count, width = len(rows), len(columns)
        # Every row has a column of its own in which it stays alone, every column such a row, and those may be matched with each other.
        ours, theirs = np.concatenate([row, np.arange(count), width * 0 + count + np.arange(width), count + column]), np.concatenate(
            [column, width + np.arange(count), np.arange(width), width + row]
        )
        top = float(gains[worth].max()) + 1.0
        costs = np.concatenate([top - gains[worth], np.full(count + width, top - self.alone), np.full(len(worth), top)])
        graph = coo_array((costs, (ours, theirs)), shape=(count + width, count + width)).tocsr()
        found = np.stack(min_weight_full_bipartite_matching(graph))
        keys = row * width + column
        pairs = found[:, (found[0] < count) & (found[1] < width)]
        chosen[worth[np.isin(keys, pairs[0] * width + pairs[1])]] = True
        return chosen
