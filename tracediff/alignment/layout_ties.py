"""What ties the layouts of slots: one tensor handed on or turned, a call or code that keeps its axes, other calls, siblings.

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
    """The slots and what is known of the ways that their tensors go."""

    def __init__(self, rows: Rows, slots: Sequence[Slot]) -> None:
        self.rows, self.slots = rows, slots
        self._is_forced = rows.sides[1].is_forced

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
        if self.is_same(side, row, other):
            return plain
        is_replaced = side == 1 and self._is_forced and here.end_kind[row] == OUTPUT
        if is_replaced or sorted(shapes[0]) != sorted(shapes[1]):
            return None
        read = self.rows.read_own(side, row, other)
        if read is None:
            return None
        turns = [turn for turn in itertools.permutations(plain) if tuple(shapes[0][axis] for axis in turn) == shapes[1]]
        likely = [turn for turn in turns if axes.relative_error(read[1][:1], read[0].transpose(turn)[:1]) < THRESHOLDS.same_run]
        agree = [turn for turn in likely if axes.relative_error(read[1], read[0].transpose(turn)) < THRESHOLDS.same_run]
        return agree[0] if len(agree) == 1 else None

    def is_same(self, side: int, row: int, other: int) -> bool:
        """Whether two records of a side are of one tensor."""
        tensor = self.rows.sides[side].tensor
        return tensor[row] == tensor[other]

    def calls(self, slot: Slot) -> tuple[int, int]:
        """The calls of a slot's first records."""
        ours, theirs = (side.calls.of_row for side in self.rows.sides)
        return int(ours[slot.a]), int(theirs[slot.b])

    def sites(self, slot: Slot) -> list[str]:
        """The two sites of a slot."""
        return [side.names[int(side.calls.site[call])] for side, call in zip(self.rows.sides, self.calls(slot), strict=True)]

    def are_same(self, one: Slot, other: Slot) -> bool:
        """Whether two slots are of one tensor, on both sides."""
        return self.is_same(0, one.a, other.a) and self.is_same(1, one.b, other.b)


def handed_on(ties: LayoutTies) -> Iterator[Tie]:
    """A tensor that one call returns and another takes in has one layout; where a side's code turned it in between, the layout turned."""
    for members in ties.by_content.values():
        for place, number in enumerate(members):
            for earlier in members[max(0, place - THRESHOLDS.layout_sources) : place]:
                matches = _turned_alike(ties, ties.slots[earlier], ties.slots[number])
                if matches:
                    ties.slots[number].is_copy = True
                    yield Tie(earlier, number, matches, THRESHOLDS.layout_handed_on)
                    break


def _turned_alike(ties: LayoutTies, one: Slot, other: Slot) -> dict[int, int]:
    """By options of a slot the option of another slot whose tensors are the same tensors, turned or not."""
    if one.shapes == other.shapes and ties.are_same(one, other):
        return _equal(one.orders, other.orders)
    if one.ranks != other.ranks:
        return {}
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


def _equal(one: Mapping[Order, int], other: Mapping[Order, int]) -> dict[int, int]:
    return {option: other[order] for order, option in one.items() if order in other}


# -- one call ---------------------------------------------------------------------------------------------------------------------------


def kept(ties: LayoutTies) -> Iterator[Tie]:
    """What a call returns lies as what it takes in: the inputs of its shape, or else its first input of as many axes."""
    by_calls: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, slot in enumerate(ties.slots):
        by_calls[ties.calls(slot)].append(number)
    for numbers in by_calls.values():
        inputs = [number for number in numbers if ties.rows.kind[0][ties.slots[number].a] == INPUT and ties.slots[number].tells]
        outputs = [number for number in numbers if ties.rows.kind[0][ties.slots[number].a] == OUTPUT]
        for returned in outputs:
            alike = [given for given in inputs if ties.slots[given].ranks == ties.slots[returned].ranks]
            equal = [given for given in alike if ties.slots[given].shapes == ties.slots[returned].shapes]
            for given in equal[: THRESHOLDS.layout_consumers] or alike[:1]:
                if ties.slots[given].is_open or ties.slots[returned].is_open:
                    yield Tie(given, returned, _equal(ties.slots[given].orders, ties.slots[returned].orders), THRESHOLDS.layout_kept)


# -- code between calls -------------------------------------------------------------------------------------------------------------------


def passed_through(ties: LayoutTies) -> Iterator[Tie]:
    """What a call takes in lies as what the code before it had in hand; what a call returns, as what the last call inside returned."""
    had: dict[tuple[int, int], dict[tuple[object, ...], int]] = defaultdict(dict)  # by calls: the latest slot of these shapes
    for number, slot in enumerate(ties.slots):
        own = ties.calls(slot)
        around = int(ties.rows.sides[0].calls.parent[own[0]]), int(ties.rows.sides[1].calls.parent[own[1]])
        is_input = ties.rows.kind[0][slot.a] == INPUT
        source = had[around if is_input else own].get(slot.shapes)
        if source is not None and not slot.is_copy and (slot.is_open or ties.slots[source].is_open):
            yield Tie(source, number, _equal(ties.slots[source].orders, slot.orders), THRESHOLDS.layout_passed_through)
        if slot.tells:
            had[own if is_input else around][slot.shapes] = number


# -- other calls and siblings -------------------------------------------------------------------------------------------------------------


def siblings(ties: LayoutTies) -> Iterator[list[list[int]]]:
    """Slots that take one order of axes, all of a kind: by boundaries, each in calls of all its shapes, the boundaries of one role."""
    kinds: dict[tuple[object, ...], dict[tuple[object, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, slot in enumerate(ties.slots):
        if slot.tells:
            kinds[(*map(pattern_of, ties.sites(slot)), *slot.ends, *slot.ranks)][slot.place, *slot.ends].append(number)
    for boundaries in kinds.values():
        numbers = [number for members in boundaries.values() for number in members]
        if len(numbers) > 1 and any(ties.slots[number].is_open for number in numbers):
            yield list(boundaries.values())


SOURCES: tuple[Callable[[LayoutTies], Iterator[Tie]], ...] = (handed_on, kept, passed_through)
"""What ties pairs of slots. An ablation leaves one out by its name."""
