"""What is known of the records of two sides, row by row: boundaries, shapes, kinds, statistics and, on demand, values."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment.axes import Part, Shape
from tracediff.alignment.channels import Channels
from tracediff.alignment.structure import Side
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.alignment.values import features
from tracediff.dtype import Array
from tracediff.site import End
from tracediff.trace import schema


@dataclass(frozen=True, slots=True)
class PairedSites:
    """Two paired sites as far as their records are concerned: ``place`` is their place in the alignment.

    ``outputs_only``: one of them merely wraps a paired site, so that only its outputs are paired, with the other's.
    """

    place: int
    reference: int
    port: int
    confidence: float
    permutation: tuple[int, ...] | None = None
    part: Part | None = None
    whole: str = ""
    outputs_only: bool = False


@dataclass(frozen=True, slots=True)
class CallPair:
    """Calls of the reference and of the port that do the same work: one each, or several where one side split it.

    ``lengths``: how many steps of the axis along which the work is split each call of either side does; empty for one call each.
    ``is_sure``: more than the order of the calls says so, where the counts of calls do not agree.
    """

    reference: tuple[int, ...]
    port: tuple[int, ...]
    lengths: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    is_sure: bool = True


class Rows:
    """The records of two sides, 0 the reference and 1 the port.

    ``partner``: the port's site of each paired site of the reference. ``tables``: the features of each side's records, (rows, 7). The other
    lists hold one entry a row.
    """

    def __init__(self, sides: tuple[Side, Side], partner: dict[int, int]) -> None:
        self.sides, self.partner = sides, partner
        self.tables = features(sides[0].index), features(sides[1].index)
        self.count = tuple(side.index["count"].tolist() for side in sides)
        self.exact = tuple([dtypes.BY_CODE[code].is_exact for code in side.index["dtype"].tolist()] for side in sides)
        self.kind = tuple(side.end_kind.tolist() for side in sides)
        self.raised = tuple(((side.index["flags"] & schema.RAISED) != 0).tolist() for side in sides)
        self.end = tuple(side.index["end"].tolist() for side in sides)
        self.shape_codes = tuple(side.index["shape"].tolist() for side in sides)
        self._points = self.tables[0].tolist(), self.tables[1].tolist()
        self._varies = tuple((side.index["std"] > 0).tolist() for side in sides)
        self._parsed: tuple[dict[int, End], dict[int, End]] = ({}, {})

    def key(self, side: int, row: int) -> End:
        """The boundary of a row, parsed."""
        code = self.end[side][row]
        if code not in self._parsed[side]:
            self._parsed[side][code] = End.parse(self.sides[side].text("end", row))
        return self._parsed[side][code]

    def shape(self, side: int, row: int) -> Shape:
        return self.sides[side].shapes[row]

    def apart(self, a: int, b: int) -> float:
        """How far the values of two records are from being the same: a distance of statistics; infinite where it is not known."""
        same_size = self.count[0][a] == self.count[1][b]
        if not self._varies[0][a] or not self._varies[1][b]:
            means = self.sides[0].index["mean"][a], self.sides[1].index["mean"][b]
            return THRESHOLDS.constant_distance if same_size and means[0] == means[1] else math.inf
        if same_size:
            return math.dist(self._points[0][a], self._points[1][b])
        return _padded_apart(self.sides[0].index[a], self.sides[1].index[b])

    def read(self, a: int, b: int) -> tuple[Array, Array] | None:
        """The values of two records, where both were stored and are not too large to look at."""
        records = self.sides[0].trace.records[a], self.sides[1].trace.records[b]
        if not all(record.stored and record.stats.count <= THRESHOLDS.layout_elements for record in records):
            return None
        return records[0].read(), records[1].read()

    @cached_property
    def channels(self) -> tuple[Channels, Channels]:
        """Which axis of each side's tensors holds the channels."""
        return Channels(self.sides[0]), Channels(self.sides[1])

    def read_own(self, side: int, row: int, other: int) -> tuple[Array, Array] | None:
        """The values of two records of one side, where both were stored and are not too large to look at."""
        records = [self.sides[side].trace.records[one] for one in (row, other)]
        if not all(record.stored and record.stats.count <= THRESHOLDS.layout_elements for record in records):
            return None
        return records[0].read(), records[1].read()

    def varies(self, side: int, row: int) -> bool:
        """Whether a tensor holds more than one number."""
        is_told: bool = self._varies[side][row]
        return is_told

    def content(self, row: int) -> tuple[object, ...]:
        """What all the reference's records that hold the same numbers, in any order, have in common."""
        return (self.count[0][row], *np.round(self.tables[0][row], THRESHOLDS.content_digits).tolist())

    def are_of_functions(self, a: int, b: int) -> bool:
        """Whether two rows are of calls of functions."""
        return self._functional[0][a] and self._functional[1][b]

    @cached_property
    def _functional(self) -> tuple[list[bool], ...]:
        """Of each row whether its site is a function's."""
        found = []
        for side in self.sides:
            codes, inverse = np.unique(side.index["site"], return_inverse=True)
            found.append(np.array(["!" in side.trace.strings[int(code)] for code in codes], bool)[inverse].tolist())
        return tuple(found)

    def same(self, side: int, row: int) -> list[int]:
        """All other records of a row's tensor, in order."""
        return [other for other in self._rows_of_tensor[side][self.sides[side].tensor[row]] if other != row]

    @cached_property
    def _rows_of_tensor(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """All rows of each tensor, of either side."""
        found: tuple[dict[int, list[int]], dict[int, list[int]]] = (defaultdict(list), defaultdict(list))
        for side, known in zip(self.sides, found, strict=True):
            for row, tensor in enumerate(side.tensor):
                known[tensor].append(row)
        return found

    def is_truth(self, side: int, row: int) -> bool:
        """Whether a tensor says true or false."""
        return dtypes.BY_CODE[int(self.sides[side].index["dtype"][row])].name == "bool"

    def rounding(self, a: int, b: int) -> float:
        """The relative error that the coarser dtype of two records may explain where no noise floor is known."""
        kinds = (dtypes.BY_CODE[int(side.index["dtype"][row])] for side, row in zip(self.sides, (a, b), strict=True))
        return dtypes.coarser(*kinds).rtol

    def are_equal(self, a: int, b: int) -> bool:
        """Whether two records hold the same bits."""
        ours, theirs = self.sides[0].index["digest"][a], self.sides[1].index["digest"][b]
        return bool((ours == theirs).all()) and bool(ours.any())


def _padded_apart(ours: np.void, theirs: np.void) -> float:
    """A distance of sums that zeros do not change, for two tensors of which one holds further zeros."""
    sums = [
        np.array([float(row[name]) * float(row["count"]) for name in ("mean", "absmean", "cube")] + [float(row["l2"])])
        for row in (ours, theirs)
    ]
    scale = np.maximum(np.abs(sums[0]), 1e-30)
    return max(float(np.max(np.abs(sums[1] - sums[0]) / scale)), THRESHOLDS.padded_distance) if sums[0][1] else np.inf
