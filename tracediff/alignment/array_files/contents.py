"""What the tensors of a side hold: records that hold the same numbers, in whatever order of axes, are one content.

Statistics that no order of axes changes find the candidates, the values decide. A tensor that was rolled or turned round holds the same
numbers and is another content.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tracediff.alignment import axes, values
from tracediff.alignment.array_files.thresholds import THRESHOLDS
from tracediff.alignment.structure import Side
from tracediff.alignment.thresholds import THRESHOLDS as ALIGNING
from tracediff.dtype import MASKED, Array, named, view
from tracediff.trace import schema

Shape = tuple[int, ...]
KINDS = ("input", "output", "value", "draw")
"""The kinds of boundaries that hold a tensor."""


@dataclass(frozen=True, slots=True)
class Content:
    """One content: the rows that hold it, in order; its number of values; whether these are all one number."""

    rows: tuple[int, ...]
    count: int
    is_constant: bool


class Contents:
    """The contents of a side, in the order in which they are first seen. ``of_row``: the content of each row that holds a tensor.

    ``ignored``: sites whose records are left out.
    """

    def __init__(self, side: Side, ignored: Set[str] = frozenset()) -> None:
        self.side = side
        kinds, flags = side.trace.calls.kinds, side.index["flags"]
        held = [row for row, kind in enumerate(kinds) if kind in KINDS and not flags[row] & (schema.TEXT | schema.RAISED)]
        held = [row for row in held if side.text("site", row) not in ignored]
        self._values: dict[int, Array] = {}
        groups = [group for same in self._alike(held) for group in self._apart(same)]
        self._values.clear()
        self.all = [self._content(rows) for rows in sorted(groups)]
        self.of_row = {row: number for number, content in enumerate(self.all) for row in content.rows}

    def _content(self, rows: Sequence[int]) -> Content:
        statistics = self.side.index[rows[0]]
        return Content(tuple(rows), int(statistics["count"]), not statistics["std"] > 0)

    def _alike(self, rows: list[int]) -> Iterable[list[int]]:
        """Rows whose statistics no order of axes tells apart."""
        if not rows:
            return []
        statistics = self.side.index[rows]
        keys = np.column_stack([statistics["count"].astype(np.float64), np.round(values.features(statistics), ALIGNING.content_digits)])
        _, number = values.distinct(keys)
        groups: dict[int, list[int]] = defaultdict(list)
        for row, group in zip(rows, number.tolist(), strict=True):
            groups[group].append(row)
        return groups.values()

    def _apart(self, rows: Sequence[int]) -> list[list[int]]:
        """Rows of alike statistics, those together that some order of axes makes equal."""
        by_bits: dict[tuple[bytes, Shape], list[int]] = defaultdict(list)
        for row in rows:
            by_bits[self.side.index["digest"][row].tobytes(), self.side.shapes[row]].append(row)
        groups: list[list[int]] = []
        for same in by_bits.values():
            home = next((group for group in groups if self._is_turned(group[0], same[0])), None)
            if home is None:
                groups.append(list(same))
            else:
                home.extend(same)
        return [sorted(group) for group in groups]

    def _is_turned(self, row: int, other: int) -> bool:
        """Whether two records hold the same numbers in some order of axes."""
        shapes = self.side.shapes[row], self.side.shapes[other]
        sides = [self.side.trace.records[one] for one in (row, other)]
        if not all(one.stored for one in sides):
            return False
        places = sample_places(math.prod(shapes[0]))
        ours, theirs = self.flat(row)[places], self.flat(other)
        scale = float(np.linalg.norm(ours)) or 1.0
        return any(
            float(np.linalg.norm(theirs[axes.places_in_port(places, same[0], shapes[1])] - ours)) <= THRESHOLDS.same_run * scale
            for same in axes.readings(*shapes)
        )

    def flat(self, row: int) -> Array:
        """A record's values in C order, as float64: see `plain`."""
        if row not in self._values:
            record = self.side.trace.records[row]
            self._values[row] = plain(view(record.read(), named(record.dtype)))
        return self._values[row]

    @cached_property
    def first_rows(self) -> list[int]:
        """The first row of each content."""
        return [content.rows[0] for content in self.all]

    def shapes(self, number: int) -> list[tuple[int, Shape]]:
        """The distinct shapes of a content, each with the first row of that shape."""
        found: dict[Shape, int] = {}
        for row in self.all[number].rows:
            found.setdefault(self.side.shapes[row], row)
        return [(row, shape) for shape, row in found.items()]


def plain(array: Array) -> Array:
    """Values in C order as float64: masks as -1e4, NaN as 0; of complex numbers the sum of both parts, weighed differently."""
    flat = np.asarray(array).reshape(-1)
    wide: Array = flat.real.astype(np.float64) + THRESHOLDS.imaginary * flat.imag if flat.dtype.kind == "c" else flat.astype(np.float64)
    return np.nan_to_num(np.maximum(wide, MASKED), nan=0.0, posinf=-MASKED) if wide.size else wide


def sample_places(count: int) -> Array:
    """The flat places at which tensors of so many values are compared: all, or as many as `THRESHOLDS.samples`, the same each time."""
    if count <= THRESHOLDS.samples:
        return np.arange(count)
    return np.sort(np.random.default_rng(count).choice(count, THRESHOLDS.samples, replace=False))


Reader = Callable[[int], Array]
"""The values of a row, flat: see `plain`."""
