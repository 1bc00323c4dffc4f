"""Layouts of two tensors of which one holds more: a fused whole, all positions, an end that is cut off, padding, what nobody reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from tracediff.alignment import axes
from tracediff.alignment.axes import Layout, Part, Shape
from tracediff.alignment.record_table import Rows
from tracediff.alignment.structure import INPUT, OUTPUT
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.trace.reads import Reads

Choice = tuple[Layout | None, str]
"""A layout, or None where there is none, and the evidence for it in words."""

UNREAD = "the values were not looked at"
"""Part of the evidence of a pair whose layout depends on values that were not stored."""


FUSED = "part of a fused projection"
"""The evidence of a part whose layout shapes give."""


def unreadable(shape_a: Shape, shape_b: Shape) -> str:
    """The evidence of a pair that no layout reconciles."""
    return f"no layout reads {shape_b} as {shape_a}"


def of_fused_part(part: Part, whole: str, shape_a: Shape, shape_b: Shape) -> list[list[Layout]]:
    """The layouts of one part of a fused site's output, those that do the same together; ``whole`` is the side of the fused site.

    The part may be cut from every axis that is long enough; the last comes first.
    """
    shape_whole, shape_part = (shape_b, shape_a) if whole == "port" else (shape_a, shape_b)
    ways: list[list[Layout]] = []
    for axis in reversed(range(len(shape_whole))):
        cut = _cut_to(shape_whole, axis, part)
        if cut is None or math.prod(cut) != math.prod(shape_part):
            continue
        here = replace(part, axis=axis)
        shapes = (cut, shape_b) if whole == "reference" else (shape_a, cut)
        for same in axes.readings(*shapes):
            ways.append([replace(one, part_reference=here) if whole == "reference" else replace(one, part=here) for one in same])
    return ways


def _cut_to(whole: Shape, axis: int, part: Part) -> Shape | None:
    """The shape of a part of a tensor, taken along ``axis``; None where the axis does not hold the part."""
    if whole[axis] < part.stop * part.groups or whole[axis] % part.groups:
        return None
    return (*whole[:axis], (part.stop - part.start) * part.groups, *whole[axis + 1 :])


def padded_or_repeated(rows: Rows, a: int, b: int, candidates: Sequence[Layout]) -> Choice:
    """A window, where the inside agrees, or a repetition. For inputs only: an output of another size is an error."""
    shapes = rows.shape(0, a), rows.shape(1, b)
    if rows.kind[0][a] != INPUT:
        return None, unreadable(*shapes)
    read = rows.read(a, b)
    if read is not None:
        layout, error = axes.choose(*read, candidates)
        if layout.window is not None and error < THRESHOLDS.layout_agrees:
            return layout, f"padded before the call; the inside agrees to {error:.0e}"
    if candidates[0].repeat:
        return candidates[0], "shapes, one side repeated"
    return None, unreadable(*shapes) + (f"; {UNREAD}" if read is None and candidates[0].window is not None else "")


def _errors(rows: Rows, a: int, b: int, candidates: Sequence[Layout]) -> list[float]:
    """The relative error of two tensors in each layout; none where the values cannot be read."""
    read = rows.read(a, b) if candidates else None
    if read is None:
        return []
    return [axes.error_in(*read, layout) for layout in candidates]


def is_picked(rows: Rows, a: int, b: int, shape_b: Shape) -> bool:
    """Whether one side has a single position of each sequence where the other has all, and their callers return the same shapes.

    So a head that is applied before or after the last tokens are picked. What the callers return is compared instead. ``shape_b`` is
    the shape of the port's tensor, or what it is cut to.
    """
    short, long = sorted((rows.shape(0, a), shape_b), key=len)
    if len(short) < 2 or short != (long[0], *long[2:]) or rows.exact[0][a] or rows.exact[1][b]:
        return False
    ours, theirs = _callers_shapes(rows, 0, a), _callers_shapes(rows, 1, b)
    is_cut = shape_b != rows.shape(1, b)
    return bool(ours) and ([shape[1:] for shape in ours] == [shape[1:] for shape in theirs] if is_cut else ours == theirs)


def _callers_shapes(rows: Rows, side: int, row: int) -> list[Shape]:
    """The shapes of what the caller of a row's call returns; none at the top."""
    here = rows.sides[side]
    caller = int(here.calls.parent[here.calls.of_row[row]])
    return [rows.shape(side, returned) for returned in here.ends_of(caller)[1]] if caller >= 0 else []


class OnePosition:
    """Layouts of a single position of a sequence against all positions: a decoder that computes the logits of the last token only."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def of(self, a: int, b: int) -> tuple[Layout, str] | None:
        """The layout of one position against all, where the values say which position it is.

        An output may be of one position only where an input of that call is too: otherwise the call itself would have dropped the rest.
        """
        candidates = axes.kept(self.rows.shape(0, a), self.rows.shape(1, b))
        if not candidates or (self.rows.kind[0][a] != INPUT and not self._takes_one(a, b)):
            return None
        errors = _errors(self.rows, a, b, candidates)
        if not errors:
            return None
        best = min(range(len(errors)), key=errors.__getitem__)
        if errors[best] >= THRESHOLDS.layout_agrees and errors[best] >= THRESHOLDS.clearly_better * max(errors):
            return None
        return candidates[best], f"one position of the {'reference' if candidates[best].part_reference else 'port'}'s"

    def _takes_one(self, a: int, b: int) -> bool:
        """Whether the calls that returned two tensors, or calls inside them, took in one position against as many as the tensors have."""
        count = self.rows.count
        ratio = count[0][a] / count[1][b]
        return any(
            axes.kept(self.rows.shape(0, i), self.rows.shape(1, j)) and count[0][i] / count[1][j] == ratio
            for ours in self._inputs_of_producers(0, a)
            for theirs in self._inputs_of_producers(1, b)
            for i in ours
            for j in theirs
        )

    def _inputs_of_producers(self, side: int, row: int) -> list[list[int]]:
        """The input rows of each call that returned these values: a module, and a module inside it whose output it hands on."""
        here = self.rows.sides[side]
        digests = here.index["digest"]
        same = np.flatnonzero((digests == digests[row]).all(-1) & (here.end_kind == OUTPUT)).tolist()
        calls = dict.fromkeys(int(here.calls.of_row[other]) for other in [row, *same[: THRESHOLDS.layout_consumers]])
        return [here.ends_of(call)[0] for call in calls]


READ_PART = "all that the reference's code reads"
"""The evidence of a layout that leaves out what nothing in the reference reads."""


def of_read_part(reads: Reads, a: int, shape_b: Shape) -> list[list[Layout]]:
    """The layouts of a port's tensor that holds just what is read of the reference's, row ``a``, those that do the same together."""
    if (box := reads.part(a)) is None:
        return []
    cut = tuple(stop - start for start, stop in box)
    if math.prod(cut) != math.prod(shape_b):
        return []
    return [[replace(one, window_reference=box) for one in same] for same in axes.readings(cut, shape_b)]


class CutOutputs:
    """Layouts of outputs of which one side cuts an end off inside the module and the other side outside (a causal convolution)."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def of(self, a: int, b: int) -> tuple[Layout, str] | None:
        """The layout of the longer output's part that the shorter one holds; None where nothing is cut off elsewhere.

        The rest must agree. The callers, which see both, must return equal shapes, or a call take in the shorter one. No call may take in
        the longer output whole.
        """
        if self.rows.kind[0][a] != OUTPUT or not (self._callers_fit(a, b) or self._consumers_fit(a, b)):
            return None
        candidates = axes.cuts(self.rows.shape(0, a), self.rows.shape(1, b))
        errors = _errors(self.rows, a, b, candidates)
        if not errors:
            return None
        best = min(range(len(errors)), key=errors.__getitem__)
        longer = self._longer(a, b)
        digest = tuple(self.rows.sides[longer].index["digest"][(a, b)[longer]].tolist())
        if digest in self._taken[longer] or errors[best] >= THRESHOLDS.layout_agrees:
            return None
        return candidates[best], f"cut elsewhere; the rest agrees to {errors[best]:.0e}"

    def _longer(self, a: int, b: int) -> int:
        """The side of the tensor with more elements; 1 where both have as many."""
        return 0 if math.prod(self.rows.shape(0, a)) > math.prod(self.rows.shape(1, b)) else 1

    @cached_property
    def _taken(self) -> tuple[set[tuple[int, ...]], ...]:
        """The digests of what the calls of each side took in."""
        return tuple({tuple(digest) for digest in side.index["digest"][side.end_kind == INPUT].tolist()} for side in self.rows.sides)

    def _consumers_fit(self, a: int, b: int) -> bool:
        """Whether a call takes in the shorter of two outputs as it is, and its partner a tensor of a shape that fits it."""
        shorter = 0 if math.prod(self.rows.shape(0, a)) < math.prod(self.rows.shape(1, b)) else 1
        row = (a, b)[shorter]
        ours, theirs = self.rows.sides[shorter], self.rows.sides[1 - shorter]
        partner = self.rows.partner if shorter == 0 else self._reference_of
        for taken in (other for other in self.rows.same(shorter, row) if ours.end_kind[other] == INPUT):
            site = partner.get(int(ours.calls.site[ours.calls.of_row[taken]]))
            call = int(theirs.first_call[site]) if site is not None else -1
            first_input = theirs.ends_of(call)[0][:1] if call >= 0 else []
            if any(_are_readable(self.rows.shape(shorter, row), self.rows.shape(1 - shorter, given)) for given in first_input):
                return True
        return False

    @cached_property
    def _reference_of(self) -> dict[int, int]:
        return {b: a for a, b in self.rows.partner.items()}

    def _callers_fit(self, a: int, b: int) -> bool:
        """Whether the callers of two records' calls return tensors of shapes that can be read as each other's."""
        shapes = []
        for side, row in ((0, a), (1, b)):
            calls = self.rows.sides[side].calls
            caller = int(calls.parent[calls.of_row[row]])
            returned = self.rows.sides[side].ends_of(caller)[1] if caller >= 0 else []
            if not returned:
                return False
            shapes.append(self.rows.shape(side, returned[0]))
        longer = self._longer(a, b)
        is_cut_on_the_way = shapes[longer] != self.rows.shape(longer, (a, b)[longer])
        return is_cut_on_the_way and _are_readable(*shapes)


def _are_readable(shape_a: Shape, shape_b: Shape) -> bool:
    """Whether some layout reads all of one shape as the other."""
    return any(layout.window is None and not layout.repeat for layout in axes.layouts(shape_a, shape_b))
