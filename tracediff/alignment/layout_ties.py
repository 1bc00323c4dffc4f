"""What ties the layouts of two slots: one tensor handed on or turned, one call that keeps its axes, code between calls, other calls, siblings.

Each source is a function of `SOURCES` that yields `Tie`s.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tracediff.alignment import axes
from tracediff.alignment.layout_slots import Order, Slot
from tracediff.alignment.record_table import Rows
from tracediff.alignment.structure import INPUT, OUTPUT
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.site import pattern_of

Turn = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tie:
    """Two slots whose layouts agree: by options of the first, the options of the second that match."""

    first: int
    second: int
    matches: Mapping[int, int]
    weight: float


class LayoutTies:
    """What ties slots. ``copies``: the slots that hold the numbers of an earlier slot, on both sides, so that their values say nothing new."""

    def __init__(self, rows: Rows, slots: Sequence[Slot]) -> None:
        self.rows, self.slots = rows, slots
        self.copies: set[int] = set()
        self._is_forced = str(rows.sides[1].trace.meta.get("mode_run", "")) == "forced"

    # -- the same tensor, handed on as it is or with its axes permuted ------------------------------------------------------------------

    @cached_property
    def by_content(self) -> dict[tuple[object, ...], list[int]]:
        """The open slots whose reference's tensors hold the same numbers in some order, in order of execution."""
        found: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for number, slot in enumerate(self.slots):
            if slot.is_open and self.rows.varies(0, slot.a) and self.rows.varies(1, slot.b):
                found[self.rows.content(slot.a)].append(number)
        return found

    def turned(self, side: int, row: int, other: int) -> Turn | None:
        """The permutation of a tensor's axes that makes another tensor of the same run of it; None where there is none, or several.

        In a forced run the reference's tensor went on in the place of the port's, so that only what was noted of its way counts.
        """
        here = self.rows.sides[side]
        shapes = self.rows.shape(side, row), self.rows.shape(side, other)
        if len(shapes[0]) != len(shapes[1]):
            return None
        plain = tuple(range(len(shapes[0])))
        if here.tensor[row] == here.tensor[other]:
            return plain
        is_replaced = side == 1 and self._is_forced and here.end_kind[row] == OUTPUT
        if is_replaced or sorted(shapes[0]) != sorted(shapes[1]):
            return None
        read = self.rows.read_own(side, row, other)
        if read is None:
            return None
        turns = [turn for turn in itertools.permutations(plain) if tuple(shapes[0][axis] for axis in turn) == shapes[1]]
        agree = [turn for turn in turns if axes.relative_error(read[1], read[0].transpose(turn)) < THRESHOLDS.same_run]
        return agree[0] if len(agree) == 1 else None


def handed_on(ties: LayoutTies) -> Iterator[Tie]:
    """A tensor that one call returns and another takes in has one layout, or where a side's code turned it in between, the layout turned."""
    for members in ties.by_content.values():
        for place, number in enumerate(members):
            for earlier in members[max(0, place - THRESHOLDS.layout_sources) : place]:
                matches = _turned_alike(ties, ties.slots[earlier], ties.slots[number])
                if matches:
                    ties.copies.add(number)
                    yield Tie(earlier, number, matches, THRESHOLDS.layout_handed_on)
                    break


def _turned_alike(ties: LayoutTies, one: Slot, other: Slot) -> dict[int, int]:
    """By options of a slot the option of another slot whose tensors are the same tensors, turned or not."""
    if one.ranks != other.ranks or one.ranks[0] != one.ranks[1]:
        return _equal(one.orders, other.orders) if _are_same(ties.rows, one, other) else {}
    ours, theirs = ties.turned(0, one.a, other.a), ties.turned(1, one.b, other.b)
    if ours is None or theirs is None:
        return {}
    back = np.argsort(theirs).tolist()
    found = {}
    for order, option in one.orders.items():
        if isinstance(order, str):
            continue
        turned = tuple(back[order[axis]] for axis in ours)
        if turned in other.orders:
            found[option] = other.orders[turned]
    return found


def _are_same(rows: Rows, one: Slot, other: Slot) -> bool:
    """Whether two slots are of the same tensor on both sides."""
    rows_of = (one.a, other.a), (one.b, other.b)
    return one.shapes == other.shapes and all(side.tensor[a] == side.tensor[b] for side, (a, b) in zip(rows.sides, rows_of, strict=True))


def _equal(one: Mapping[Order, int], other: Mapping[Order, int]) -> dict[int, int]:
    return {option: other[order] for order, option in one.items() if order in other}


# -- one call ---------------------------------------------------------------------------------------------------------------------------


def kept(ties: LayoutTies) -> Iterator[Tie]:
    """What a call returns lies as what it takes in: the inputs of its shape, or else its first input of as many axes."""
    by_calls: dict[tuple[int, int], list[int]] = defaultdict(list)
    ours, theirs = (side.calls.of_row for side in ties.rows.sides)
    for number, slot in enumerate(ties.slots):
        by_calls[int(ours[slot.a]), int(theirs[slot.b])].append(number)
    for calls, numbers in by_calls.items():
        inputs = [number for number in numbers if ties.rows.kind[0][ties.slots[number].a] == INPUT and ties.slots[number].tells]
        outputs = [number for number in numbers if ties.rows.kind[0][ties.slots[number].a] == OUTPUT]
        weight = _keeps(ties.rows, calls)
        for returned in outputs:
            alike = [given for given in inputs if ties.slots[given].ranks == ties.slots[returned].ranks]
            equal = [given for given in alike if ties.slots[given].shapes == ties.slots[returned].shapes]
            for given in equal[: THRESHOLDS.layout_consumers] or alike[:1]:
                if ties.slots[given].is_open or ties.slots[returned].is_open:
                    yield Tie(given, returned, _equal(ties.slots[given].orders, ties.slots[returned].orders), weight)


def _keeps(rows: Rows, calls: tuple[int, int]) -> float:
    """What it is worth that two calls keep their axes: a layer or function works in one order, code may turn what it returns."""
    is_leaf = all(not side.children[int(side.calls.site[call])] for side, call in zip(rows.sides, calls, strict=True))
    return THRESHOLDS.layout_kept_by_leaf if is_leaf else THRESHOLDS.layout_kept


# -- code between calls -------------------------------------------------------------------------------------------------------------------


def passed_through(ties: LayoutTies) -> Iterator[Tie]:
    """What a call takes in lies as what the code before it had in hand, and what a call returns as what the last call inside it returned."""
    had: dict[tuple[int, int], dict[tuple[object, ...], int]] = defaultdict(dict)  # by calls: the latest slot of these shapes
    calls = [side.calls for side in ties.rows.sides]
    for number, slot in enumerate(ties.slots):
        own = tuple(int(tree.of_row[row]) for tree, row in zip(calls, (slot.a, slot.b), strict=True))
        around = tuple(int(tree.parent[call]) for tree, call in zip(calls, own, strict=True))
        is_input = ties.rows.kind[0][slot.a] == INPUT
        source = had[around if is_input else own].get(slot.shapes)
        if source is not None and number not in ties.copies and (slot.is_open or ties.slots[source].is_open):
            yield Tie(source, number, _equal(ties.slots[source].orders, slot.orders), THRESHOLDS.layout_passed_through)
        if slot.tells:
            had[own if is_input else around][slot.shapes] = number


# -- other calls and siblings -------------------------------------------------------------------------------------------------------------


def siblings(ties: LayoutTies) -> Iterator[list[list[int]]]:
    """Slots that take one order of axes, all of a kind: by boundaries, each in calls of all its shapes, the boundaries of one role."""
    kinds: dict[tuple[object, ...], dict[tuple[object, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, slot in enumerate(ties.slots):
        if slot.tells:
            sites = (side.names[int(side.calls.site[side.calls.of_row[row]])] for side, row in zip(ties.rows.sides, (slot.a, slot.b), strict=True))
            kinds[(*map(pattern_of, sites), *slot.ends, *slot.ranks)][slot.place, *slot.ends].append(number)
    for boundaries in kinds.values():
        numbers = [number for members in boundaries.values() for number in members]
        if len(numbers) > 1 and any(ties.slots[number].is_open for number in numbers):
            yield list(boundaries.values())


SOURCES: tuple[Callable[[LayoutTies], Iterator[Tie]], ...] = (handed_on, kept, passed_through)
"""What ties pairs of slots. An ablation leaves one out by its name."""
