"""Where a module begins and ends: an activation or a norm may stand inside it on one side and in its caller on the other.

PyTorch's convolution blocks mostly end in their activation, and ports often write ``silu(self.block(x))``. An attention may normalise its
input, or take it in normalised. The inputs or outputs of the two modules are then different tensors, and neither is wrong. Compared is
what both modules hold inside, and what comes before and after them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

from tracediff.alignment.axes import relative_error, side_by_side
from tracediff.alignment.record_table import Rows
from tracediff.alignment.result import RecordPair
from tracediff.alignment.structure import INPUT, OUTPUT
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.trace import schema

Vote = Literal["moved", "kept"]


def without_moved(rows: Rows, pairs: Sequence[RecordPair]) -> list[RecordPair]:
    """The pairs of records without those of moved boundaries, which lie in different places of the two sides.

    A boundary of call A and its partner in call B are moved in two cases. First, A's boundary comes from, or goes to, a module outside of
    A whose partner is called inside B. Second, A returns the output of a module inside it, B changes the output of that module's partner
    with code of its own, and A's caller goes on with another tensor than A's output. In the second case the majority among all pairs of
    modules of the same two classes decides. A pair of these classes that agrees although A ends otherwise (in a sum) speaks for a fault.
    """
    ends = _Ends(rows, pairs)
    votes: dict[tuple[str, str, int], list[Vote]] = defaultdict(list)
    open_: dict[int, tuple[str, str, int]] = {}
    moved: set[int] = set()
    for place, pair in enumerate(pairs):
        if not ends.may_be_moved(pair):
            continue
        longer = ends.longer(pair)
        if ends.crosses(pair):
            moved.add(place)
        elif longer is not None:
            kind = (ends.type_of(0, pair.reference[0]), ends.type_of(1, pair.port[0]), longer)
            open_[place] = kind
            votes[kind].append(ends.vote(pair, longer))
    for pair in pairs:
        for longer in (0, 1):
            kind = (ends.type_of(0, pair.reference[0]), ends.type_of(1, pair.port[0]), longer)
            if kind in votes and ends.is_other(pair, 1 - longer):
                votes[kind].append("kept")
    moved |= {place for place, kind in open_.items() if 2 * votes[kind].count("moved") >= len(votes[kind])}
    return [pair for place, pair in enumerate(pairs) if place not in moved]


def _rows(pair: RecordPair) -> tuple[int, int]:
    return pair.reference[0], pair.port[0]


class _Ends:
    """What the calls of paired records take in and return, in terms of the calls inside and around them."""

    def __init__(self, rows: Rows, pairs: Sequence[RecordPair]) -> None:
        self.rows, self.sides = rows, rows.sides
        self.partner: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._pair_of = {pair.reference[0]: pair for pair in reversed(pairs)}
        for pair in pairs:
            for row in pair.reference:
                self.partner[0].setdefault(row, pair.port[0])
            for row in pair.port:
                self.partner[1].setdefault(row, pair.reference[0])

    def apart(self, pair: RecordPair) -> float:
        """How far apart the values of a pair are: by their statistics, or by the values where several tensors are joined."""
        if len(pair.reference) == len(pair.port) == 1:
            return self.rows.apart(*_rows(pair))
        if pair.layout is None:
            return math.inf
        sides = zip(self.sides, (pair.reference, pair.port), strict=True)
        records = [[side.trace.records[row] for row in rows] for side, rows in sides]
        if not all(one.stored and one.stats.count <= THRESHOLDS.layout_elements for some in records for one in some):
            return math.inf
        return relative_error(*side_by_side(pair.layout, *records))

    def type_of(self, side: int, row: int) -> str:
        """The class of the module whose call a row is of."""
        calls = self.sides[side].calls
        return self.sides[side].type[int(calls.site[calls.of_row[row]])]

    def may_be_moved(self, pair: RecordPair) -> bool:
        """Whether two records differ, and one of their calls makes further calls."""
        rows = _rows(pair)
        if self.apart(pair) < THRESHOLDS.moved_distance:
            return False
        return any(int(side.calls.of_row[row]) in inside for side, row, inside in zip(self.sides, rows, self._children, strict=True))

    def is_other(self, pair: RecordPair, side: int) -> bool:
        """Whether a pair agrees, and the output of one side's call is no output of a call inside; so for inputs."""
        rows = _rows(pair)
        if self.apart(pair) >= THRESHOLDS.moved_distance:
            return False
        has_calls = int(self.sides[side].calls.of_row[rows[side]]) in self._children[side]
        return has_calls and not any(True for _ in self._met_inside(side, rows[side]))

    def crosses(self, pair: RecordPair) -> bool:
        """Whether one side's output goes to a module, or its input comes from a module, that the other side calls inside."""
        rows = _rows(pair)
        kinds = {int(side.end_kind[row]) for side, row in zip(self.sides, rows, strict=True)}
        if len(kinds) > 1:
            return False
        beyond = INPUT if kinds == {OUTPUT} else OUTPUT
        return any(
            partner is not None and self._is_inside(1 - side, partner, rows[1 - side])
            for side in (0, 1)
            for other in self.rows.same(side, rows[side])
            if int(self.sides[side].end_kind[other]) == beyond and not self._is_inside(side, other, rows[side])
            for partner in [self.partner[side].get(other)]
        )

    def longer(self, pair: RecordPair) -> int | None:
        """The side whose call ends later, or begins earlier, than the other's: 0 the reference, 1 the port, None where neither does."""
        rows = _rows(pair)
        kinds = {int(side.end_kind[row]) for side, row in zip(self.sides, rows, strict=True)}
        if kinds not in ({INPUT}, {OUTPUT}):
            return None
        return next((side for side in (0, 1) if self._goes_on(side, rows)), None)

    def _goes_on(self, side: int, rows: tuple[int, int]) -> bool:
        """Whether the other side's tensor is that of a call inside, and the tensor of that call's partner is not this side's."""
        own, tensor = rows[side], self.sides[side].tensor
        partners = (self.partner[1 - side].get(inner) for inner in self._met_inside(1 - side, rows[1 - side]))
        known = [one for one in partners if one is not None and self._is_inside(side, one, own)]
        return bool(known) and all(tensor[one] != tensor[own] for one in known)

    def _met_inside(self, side: int, row: int) -> Iterator[int]:
        """The outputs of calls inside a row's call that are the row's tensor; their inputs, if the row is an input."""
        kinds = self.sides[side].end_kind
        return (other for other in self.rows.same(side, row) if kinds[other] == kinds[row] and self._is_inside(side, other, row))

    def _is_inside(self, side: int, inner: int, row: int) -> bool:
        """Whether a row is of a call inside the call of another."""
        calls = self.sides[side].calls
        call, outer = int(calls.parent[calls.of_row[inner]]), int(calls.of_row[row])
        while call >= 0 and call != outer:
            call = int(calls.parent[call])
        return call == outer

    def vote(self, pair: RecordPair, longer: int) -> Vote:
        """Whether the caller of the shorter call changes the tensor at the boundary while the caller of the longer call does not.

        If neither does, the outputs of the two callers decide. A boundary that was fed is kept: the run before, which was not fed, has
        found the moved boundaries, and these are not fed.
        """
        rows = _rows(pair)
        if self.sides[1].index["flags"][rows[1]] & schema.REPLACED:
            return "kept"
        is_direct = [self._is_direct(side, rows[side]) for side in (0, 1)]
        if is_direct[1 - longer]:
            return "kept"
        return "moved" if is_direct[longer] or self._callers_agree(rows) else "kept"

    def _is_direct(self, side: int, row: int) -> bool:
        """Whether an output is handed on to a call as it is, or an input is the output of a paired call."""
        kinds = self.sides[side].end_kind
        wanted = INPUT if kinds[row] == OUTPUT else OUTPUT
        others = (other for other in self.rows.same(side, row) if kinds[other] == wanted and not self._is_inside(side, other, row))
        return any(wanted == INPUT or other in self.partner[side] for other in others)

    def _callers_agree(self, rows: tuple[int, int]) -> bool:
        """Whether the outputs of the callers of two rows' calls agree as far as rounding allows."""
        limit = self.rows.rounding(*rows)
        outputs: list[list[int]] = []
        for side, row in zip(self.sides, rows, strict=True):
            caller = int(side.calls.parent[side.calls.of_row[row]])
            outputs.append(side.ends_of(caller)[1] if caller >= 0 else [])
        joined = (self._pair_of[a] for a in outputs[0] if a in self._pair_of)
        if any(len(pair.reference) * len(pair.port) > 1 and self.apart(pair) < limit for pair in joined):
            return True
        return any(self.rows.apart(a, b) < limit for a in outputs[0] for b in outputs[1])

    @cached_property
    def _children(self) -> tuple[set[int], set[int]]:
        """The calls of either side that make calls."""
        ours, theirs = (set(side.calls.parent.tolist()) for side in self.sides)
        return ours, theirs
