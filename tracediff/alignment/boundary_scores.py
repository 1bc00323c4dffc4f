"""How far two boundaries of paired calls are one: what kinds, names, shapes and values say."""

from __future__ import annotations

import numpy as np

from tracediff.alignment import axes
from tracediff.alignment.names import tokens
from tracediff.alignment.record_table import Rows
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.dtype import MASKED
from tracediff.site import End


class BoundaryScores:
    """The scores of boundaries, row ``a`` of the reference and row ``b`` of the port."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def of(self, a: int, b: int, *, alone: bool, in_pieces: bool = False) -> float:
        """The score of two boundaries; ``alone``: each is the only one of its kind in its call.

        ``in_pieces``: of calls of which one does a part of the other's work, so that the tensors may differ in the length of one axis.
        """
        rows, ours, theirs = self.rows, self.rows.key(0, a), self.rows.key(1, b)
        if ours.kind != theirs.kind or self._is_mask_against_numbers(a, b):
            return THRESHOLDS.boundary_refused
        score = THRESHOLDS.boundary_alone if alone else THRESHOLDS.boundary_base
        score += _name_score(ours, theirs)
        if ours == theirs and rows.are_of_functions(a, b):
            score += THRESHOLDS.boundary_of_function
        shapes = rows.shape(0, a), rows.shape(1, b)
        fits = axes.layouts(*shapes) or (in_pieces and _are_alike_but_in_one_length(*shapes))
        score += THRESHOLDS.boundary_fits if fits else THRESHOLDS.boundary_misfits
        if self._are_two_masks(a, b):
            return score + (THRESHOLDS.masks_equal_score if self._mask_alike(a, b) else THRESHOLDS.masks_different_score)
        score += _value_score(rows.apart(a, b))
        return score + (0.0 if rows.exact[0][a] == rows.exact[1][b] else THRESHOLDS.boundary_exactness)

    def is_supported(self, a: int, b: int) -> bool:
        """Whether more than its shape speaks for a pair of outputs, where one side returns more than the other."""
        return _name_score(self.rows.key(0, a), self.rows.key(1, b)) > 0 or self.rows.apart(a, b) < THRESHOLDS.boundary_close

    def are_named_apart(self, a: int, b: int) -> bool:
        """Whether two boundaries have different names: a cache is no hidden state, whatever shapes they have."""
        return _name_score(self.rows.key(0, a), self.rows.key(1, b)) < 0

    def may_mask(self, side: int, row: int) -> bool:
        """Whether a tensor says true or false, or holds what masks by being added."""
        is_added = not self.rows.exact[side][row] and self.rows.sides[side].index["min"][row] <= MASKED
        return self.rows.is_truth(side, row) or bool(is_added)

    def _is_mask_against_numbers(self, a: int, b: int) -> bool:
        """Whether only one of two exact tensors says true or false and the other is no mask: ids, positions."""
        if not (self.rows.exact[0][a] and self.rows.exact[1][b]) or self.rows.is_truth(0, a) == self.rows.is_truth(1, b):
            return False
        return not (self._is_zero_to_one(0, a) and self._is_zero_to_one(1, b))

    def _is_zero_to_one(self, side: int, row: int) -> bool:
        """Whether exact values may be a mask: truth values, or numbers that are 0 or 1."""
        index = self.rows.sides[side].index
        return bool(index["min"][row] >= 0 and index["max"][row] <= 1)

    def _are_two_masks(self, a: int, b: int) -> bool:
        """Whether one of two tensors says true or false and the other is a mask that is added."""
        truths = self.rows.is_truth(0, a), self.rows.is_truth(1, b)
        side, row = (1, b) if truths[0] else (0, a)
        index = self.rows.sides[side].index
        return truths[0] != truths[1] and not self.rows.exact[side][row] and bool(index["max"][row] <= 0 and index["min"][row] <= MASKED)

    def _mask_alike(self, a: int, b: int) -> bool:
        """Whether two masks of two conventions let the same through, whatever true means in one of them."""
        read = self.rows.read(a, b)
        layout = next(iter(axes.layouts(self.rows.shape(0, a), self.rows.shape(1, b))), None)
        if read is None or layout is None:
            return False
        ours, theirs = (
            values if values.dtype == bool else values > MASKED
            for values in (axes.apply_reference(read[0], layout), axes.apply(read[1], layout))
        )
        return np.array_equal(ours, theirs) or np.array_equal(ours, ~theirs)


def _are_alike_but_in_one_length(ours: axes.Shape, theirs: axes.Shape) -> bool:
    """Whether two shapes have as many axes, and differ only where one has one length: that of the steps.

    >>> _are_alike_but_in_one_length((1, 12, 8), (1, 5, 8)), _are_alike_but_in_one_length((1, 12, 12), (1, 5, 10))
    (True, True)
    >>> _are_alike_but_in_one_length((1, 12, 8), (1, 5, 9))
    False
    """
    if len(ours) != len(theirs):
        return False
    differ = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
    return len(differ) <= 1 or any(len({pair[side] for pair in differ}) == 1 for side in (0, 1))


def _value_score(distance: float) -> float:
    """What the distance of two tensors' statistics says for them."""
    if distance < THRESHOLDS.boundary_equal:
        return THRESHOLDS.boundary_equal_score
    if distance < THRESHOLDS.boundary_close:
        return THRESHOLDS.boundary_close_score
    return THRESHOLDS.boundary_alike_score if distance < THRESHOLDS.boundary_alike else 0.0


def _name_score(ours: End, theirs: End) -> float:
    """What the names of two boundaries say: positive for equal names, negative for different ones, 0 where either has none."""
    names = [[key for key in end.keys if isinstance(key, str)] for end in (ours, theirs)]
    if not names[0] or not names[1]:
        return 0.0
    is_same = tokens(".".join(names[0])) == tokens(".".join(names[1]))
    return THRESHOLDS.boundary_same_name if is_same else THRESHOLDS.boundary_other_name
