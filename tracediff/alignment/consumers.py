"""Whether what takes in a tensor returns the same on both sides."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tracediff.alignment.record_table import Rows


class Consumers:
    """The calls that take in tensors of the reference, and their partners in the port."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def agree(self, row: int, error: float) -> bool | None:
        """Whether the call that takes in a tensor of the reference returns what its partner in the port returns.

        ``error`` is how far the two sides' tensors are apart. Others agree where they are nearer to that than to unrelated numbers. Where
        the output differs, only a layer or function tells, and only if all else that it takes in agrees: None for any other call.
        """
        call = int(self.rows.sides[0].calls.of_row[row])
        partner = self._partner(call)
        if partner is None:
            return None
        (taken, returned), (others_taken, others_returned) = self.rows.sides[0].ends_of(call), self.rows.sides[1].ends_of(partner)
        if any(self._agree(output, others_returned, error) for output in returned):
            return True
        is_leaf = not any(side.children[int(side.calls.site[one])] for side, one in zip(self.rows.sides, (call, partner), strict=True))
        others = [other for other in taken if other != row and self.rows.varies(0, other)]
        return False if is_leaf and returned and all(self._agree(other, others_taken, error) for other in others) else None

    def _agree(self, row: int, others: Sequence[int], error: float) -> bool:
        """Whether a tensor of the reference agrees with one of some tensors of the port."""
        return any(self.rows.apart(row, other) < math.sqrt(max(error, self.rows.rounding(row, other))) for other in others)

    def _partner(self, call: int) -> int | None:
        """The port's call that is paired with a call of the reference, by its number among the calls of its site."""
        ours, theirs = (side.calls for side in self.rows.sides)
        site = self.rows.partner.get(int(ours.site[call]), -1)
        same = np.flatnonzero((theirs.site == site) & (theirs.ordinal == ours.ordinal[call]))
        return int(same[0]) if len(same) else None
