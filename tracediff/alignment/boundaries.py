"""Where a module begins and ends: an activation or a norm may stand inside it on one side and in its caller on the other.

PyTorch's convolution blocks mostly end in their activation, and ports often write ``silu(self.block(x))``; an attention may normalise what
it is handed, or be handed it normalised. What the two modules are given or return are then different tensors, and neither is wrong: what
stands inside both is compared, and what comes before and after.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

from tracediff.alignment.record_table import Rows
from tracediff.alignment.result import RecordPair
from tracediff.alignment.structure import INPUT, OUTPUT
from tracediff.trace import schema

_DIFFER = 1e-2  # distance of two tensors' statistics from which on they may be of different places

Vote = Literal["moved", "kept"]


def without_moved(rows: Rows, pairs: Sequence[RecordPair]) -> list[RecordPair]:
    """The pairs of records without those of ends that lie in different places.

    Such an end comes from, or goes to, a module outside of the one call whose partner was called inside the other; or it is what a module
    inside the one call returns, whose partner's output the other goes on to change with code of its own, while the caller of the one goes
    on with something else than that very tensor. In the second case most pairs of modules of the same two classes decide for all; one
    that agrees and ends otherwise (in a sum) speaks for a fault.
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
    """What the calls of paired records are given and return, in terms of the calls inside and around them."""

    def __init__(self, rows: Rows, pairs: Sequence[RecordPair]) -> None:
        self.rows, self.sides = rows, rows.sides
        self.partner: tuple[dict[int, int], dict[int, int]] = ({}, {})
        for pair in pairs:
            if len(pair.reference) == len(pair.port) == 1:
                self.partner[0].setdefault(pair.reference[0], pair.port[0])
                self.partner[1].setdefault(pair.port[0], pair.reference[0])

    def type_of(self, side: int, row: int) -> str:
        """The class of the module whose call a row is of."""
        calls = self.sides[side].calls
        return self.sides[side].type[int(calls.site[calls.of_row[row]])]

    def may_be_moved(self, pair: RecordPair) -> bool:
        """Whether the two differ, and one of their calls makes further calls."""
        rows = _rows(pair)
        if len(pair.reference) != 1 or len(pair.port) != 1 or self.rows.apart(*rows) < _DIFFER:
            return False
        return any(int(side.calls.of_row[row]) in inside for side, row, inside in zip(self.sides, rows, self._children, strict=True))

    def is_other(self, pair: RecordPair, side: int) -> bool:
        """Whether a pair agrees, and what the call of one side returns (is given, if it is an input) is not what a call inside does."""
        rows = _rows(pair)
        if len(pair.reference) != 1 or len(pair.port) != 1 or self.rows.apart(*rows) >= _DIFFER:
            return False
        has_calls = int(self.sides[side].calls.of_row[rows[side]]) in self._children[side]
        return has_calls and not any(True for _ in self._met_inside(side, rows[side]))

    def crosses(self, pair: RecordPair) -> bool:
        """Whether what one side's call returns goes to a module, or what it is given comes from one, that the other side calls inside."""
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
        """The side whose call goes on where the other's has ended, or begins earlier than that: 0 the reference's, 1 the port's."""
        rows = _rows(pair)
        kinds = {int(side.end_kind[row]) for side, row in zip(self.sides, rows, strict=True)}
        if kinds not in ({INPUT}, {OUTPUT}):
            return None
        return next((side for side in (0, 1) if self._goes_on(side, rows)), None)

    def _goes_on(self, side: int, rows: tuple[int, int]) -> bool:
        """Whether the other side's tensor is that of a call inside, whose partner's is not that of this side's call."""
        own, tensor = rows[side], self.sides[side].tensor
        partners = (self.partner[1 - side].get(inner) for inner in self._met_inside(1 - side, rows[1 - side]))
        known = [one for one in partners if one is not None and self._is_inside(side, one, own)]
        return bool(known) and all(tensor[one] != tensor[own] for one in known)

    def _met_inside(self, side: int, row: int) -> Iterator[int]:
        """What calls inside a row's call return (are given, if the row is an input) that is that very tensor."""
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
        """Whether the caller of the shorter call works on what it hands over or is returned while that of the longer does not.

        If neither does, what the two callers return says. What comes after an end that was fed says nothing of it: the run before that,
        which was not fed, has told which ends are in other places, and those are not fed.
        """
        rows = _rows(pair)
        if self.sides[1].index["flags"][rows[1]] & schema.REPLACED:
            return "kept"
        is_direct = [self._is_direct(side, rows[side]) for side in (0, 1)]
        if is_direct[1 - longer]:
            return "kept"
        return "moved" if is_direct[longer] or self._callers_agree(rows) else "kept"

    def _is_direct(self, side: int, row: int) -> bool:
        """Whether an output is handed on to a call as it is, or an input is what a paired call returned."""
        kinds = self.sides[side].end_kind
        wanted = INPUT if kinds[row] == OUTPUT else OUTPUT
        others = (other for other in self.rows.same(side, row) if kinds[other] == wanted and not self._is_inside(side, other, row))
        return any(wanted == INPUT or other in self.partner[side] for other in others)

    def _callers_agree(self, rows: tuple[int, int]) -> bool:
        """Whether what the callers of two rows' calls return agrees as far as rounding lets it."""
        limit = self.rows.rounding(*rows)
        outputs = []
        for side, row in zip(self.sides, rows, strict=True):
            caller = int(side.calls.parent[side.calls.of_row[row]])
            outputs.append(side.ends_of(caller)[1] if caller >= 0 else [])
        return any(self.rows.apart(a, b) < limit for a in outputs[0] for b in outputs[1])

    @cached_property
    def _children(self) -> tuple[set[int], set[int]]:
        """The calls of either side that make calls."""
        ours, theirs = (set(side.calls.parent.tolist()) for side in self.sides)
        return ours, theirs
