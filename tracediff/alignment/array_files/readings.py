"""In which order of axes each array is read, where shapes leave several: by its values, and by how the port lays out the rest.

A port lays most of its tensors of one rank out alike. An array that agrees in another order may be meant so; or a fault turned it. What
came of it tells: where some of that agrees, it was meant so.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tracediff.alignment import axes
from tracediff.alignment.array_files.contents import Contents, plain, sample_places
from tracediff.alignment.array_files.thresholds import THRESHOLDS
from tracediff.alignment.axes import Layout, Shape
from tracediff.alignment.layout_slots import Order, order_of
from tracediff.dtype import named, view

Choice = tuple[Layout | None, str]
Ranks = tuple[int, int]
Group = tuple[Layout, ...]


class Readings:
    """The layouts of pairs of rows, ``pairs``: (row of the reference, row of the port).

    ``differs``: whether all that is known to follow from a row of the reference differs.
    """

    def __init__(self, sides: tuple[Contents, Contents], pairs: Sequence[tuple[int, int]], differs: Callable[[int], bool]) -> None:
        self._sides, self._differs = sides, differs
        self._groups = {pair: axes.readings(*self._shapes(pair)) for pair in pairs}
        self._errors: dict[tuple[int, int], list[float]] = {
            pair: self._measured(pair) for pair, groups in self._groups.items() if len(groups) > 1
        }
        self._habits = self._learnt(pairs)

    def _shapes(self, pair: tuple[int, int]) -> tuple[Shape, Shape]:
        return self._sides[0].side.shapes[pair[0]], self._sides[1].side.shapes[pair[1]]

    def _measured(self, pair: tuple[int, int]) -> list[float]:
        """The relative error in each order of axes; none where the values were not stored."""
        records = [contents.side.trace.records[row] for contents, row in zip(self._sides, pair, strict=True)]
        if not all(record.stored for record in records):
            return []
        ours, theirs = (plain(view(record.read(), named(record.dtype))) for record in records)
        places = sample_places(ours.size)
        left, scale = ours[places], float(np.linalg.norm(ours[places]))
        shape = self._shapes(pair)[1]
        gaps = (float(np.linalg.norm(theirs[axes.places_in_port(places, same[0], shape)] - left)) for same in self._groups[pair])
        return [gap / scale if scale else (math.inf if gap else 0.0) for gap in gaps]

    def _learnt(self, pairs: Sequence[tuple[int, int]]) -> Mapping[Ranks, Counter[Order]]:
        """How often arrays of each rank are laid out in each order, where that is sure."""
        habits: dict[Ranks, Counter[Order]] = defaultdict(Counter)
        for pair in pairs:
            groups = self._groups[pair]
            best = 0 if len(groups) == 1 else self._by_values(pair)
            if groups and best is not None:
                habits[self._ranks(pair)].update({order_of(layout, self._shapes(pair)[1]) for layout in groups[best]})
        return habits

    def _ranks(self, pair: tuple[int, int]) -> Ranks:
        ours, theirs = self._shapes(pair)
        return len(ours), len(theirs)

    def _by_values(self, pair: tuple[int, int]) -> int | None:
        """The place of the only order in which the values agree; None where there is none, or several."""
        errors = self._errors.get(pair, [])
        ranked = sorted(range(len(errors)), key=errors.__getitem__)
        if len(ranked) < 2 or errors[ranked[0]] > THRESHOLDS.agrees:
            return None
        is_clear = max(errors[ranked[0]], THRESHOLDS.least_error) < THRESHOLDS.reading_margin * errors[ranked[1]]
        return ranked[0] if is_clear else None

    def _by_habit(self, pair: tuple[int, int]) -> int | None:
        """The place of the order in which the port lays out most arrays of that rank."""
        habits, shape = self._habits.get(self._ranks(pair), Counter()), self._shapes(pair)[1]
        votes = [max((habits[order_of(layout, shape)] for layout in same), default=0) for same in self._groups[pair]]
        most = max(votes, default=0)
        return votes.index(most) if most and votes.count(most) == 1 else None

    def of(self, pair: tuple[int, int], stated: tuple[int, ...] | None = None) -> Choice:
        """The layout of a pair and what speaks for it; ``stated``: the permutation that a mapping states."""
        groups, shapes = self._groups[pair], self._shapes(pair)
        if stated is not None and len(stated) == len(shapes[1]) and tuple(shapes[1][axis] for axis in stated) == shapes[0]:
            return Layout(shapes[0], permutation=stated), "given"
        if not groups:
            return None, f"no layout reads {shapes[1]} as {shapes[0]}"
        if len(groups) == 1:
            return groups[0][0], "shapes"
        by_values, by_habit = self._by_values(pair), self._by_habit(pair)
        if by_values is not None and (by_habit in (None, by_values) or not self._differs(pair[0])):
            return groups[by_values][0], f"values agree to {self._errors[pair][by_values]:.0e}"
        if by_habit is not None:
            return groups[by_habit][0], "as the port's other arrays"
        errors = self._errors.get(pair) or [0.0]
        return groups[int(np.argmin(errors))][0], "values are nearest"
