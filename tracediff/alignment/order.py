"""What order says: sequence alignment of siblings in the order of their calls, and assignment where order fails."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment.thresholds import THRESHOLDS

Floats = NDArray[np.float64]
Pairs = list[tuple[int, int]]

LEAST = 1e-9
"""A score at or below this is none: what rounding leaves of 0."""


def in_order(scores: Floats) -> Pairs:
    """The pairs (row, column), both rising, with the greatest sum of ``scores`` (Needleman-Wunsch with free gaps).

    ``scores``: (rows, columns). Of several choices that are as good the earliest rows and columns are paired.
    """
    rows, columns = scores.shape
    best = np.zeros((rows + 1, columns + 1))
    for row in range(rows - 1, -1, -1):
        here = np.maximum(best[row + 1, :-1], np.where(scores[row] > LEAST, scores[row] + best[row + 1, 1:], 0.0))
        best[row, :-1] = np.maximum.accumulate(here[::-1])[::-1]
    return _path(scores, best)


def _path(scores: Floats, best: Floats) -> Pairs:
    pairs, row, column = [], 0, 0
    while row < scores.shape[0] and column < scores.shape[1]:
        score = scores[row, column]
        if score > LEAST and best[row, column] <= score + best[row + 1, column + 1] + 1e-12:
            pairs.append((row, column))
            row, column = row + 1, column + 1
        elif best[row + 1, column] >= best[row, column + 1]:
            row += 1
        else:
            column += 1
    return pairs


def assigned(scores: Floats) -> Pairs:
    """The matches with the greatest sum of scores whatever their order, those without a score left out."""
    return [(row, column) for row, column in best_assignment(np.maximum(scores, 0.0)) if scores[row, column] > LEAST]


def best_assignment(scores: Floats) -> Pairs:
    """As many matches (row, column) as there are rows or columns, with the greatest sum of scores (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def matched(scores: Floats) -> Pairs:
    """The pairs that scores and order support together: in order unless crossing is clearly better. ``scores``: (rows, columns)."""
    if not scores.size:
        return []
    if scores.shape == (1, 1):
        return [(0, 0)] if scores[0, 0] > LEAST else []
    straight = in_order(scores)
    favoured = scores.copy()
    for row, column in straight:
        favoured[row, column] += THRESHOLDS.in_order
    return sorted(assigned(favoured))


def rising(pairs: Sequence[tuple[int, int]]) -> Pairs:
    """The longest choice of the pairs in which both numbers rise (anchors that keep the order)."""
    ends: list[int] = []
    tails: list[int] = []
    before: list[int] = []
    ordered = sorted(pairs)
    for place, (_, column) in enumerate(ordered):
        spot = bisect_left(ends, column)
        ends[spot : spot + 1] = [column]
        before.append(tails[spot - 1] if spot else -1)
        tails[spot : spot + 1] = [place]
    chain, place = [], tails[-1] if tails else -1
    while place >= 0:
        chain.append(ordered[place])
        place = before[place]
    return chain[::-1]


def is_small(rows: int, columns: int) -> bool:
    """Whether a score matrix of that size is aligned in one piece."""
    return rows * columns <= THRESHOLDS.largest_table


def pieces(rows: int, columns: int, anchors: Sequence[tuple[int, int]]) -> list[tuple[range, range]]:
    """What lies between the anchors that keep the order, in pieces small enough to align; long stretches are cut evenly."""
    cuts = [(-1, -1), *rising(anchors), (rows, columns)]
    found: list[tuple[range, range]] = []
    for (top, left), (bottom, right) in pairwise(cuts):
        found.extend(_evenly(range(top + 1, bottom), range(left + 1, right)))
    return found


def _evenly(rows: range, columns: range) -> list[tuple[range, range]]:
    if not rows or not columns:
        return []
    parts = 1
    while (len(rows) / parts) * (len(columns) / parts) > THRESHOLDS.largest_table:
        parts += 1
    edges = [(round(len(rows) * part / parts), round(len(columns) * part / parts)) for part in range(parts + 1)]
    return [(rows[top:bottom], columns[left:right]) for (top, left), (bottom, right) in pairwise(edges)]
