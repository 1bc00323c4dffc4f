"""What takes one layout: a boundary of two paired sites in all calls in which its tensors have the same shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tracediff.alignment.axes import Layout, Shape
from tracediff.alignment.layouts import OPEN, Key, LayoutChooser
from tracediff.alignment.result import RecordPair

Order = tuple[int, ...] | str
"""The order in which a layout reads the port's axes; the layout in words where it also merges or cuts axes."""


@dataclass(slots=True)
class Slot:
    """Records that are read in one layout: ``pairs``, places among the pairs of records. ``a``, ``b``: the rows of the first of them.

    ``options``: the layouts that the shapes allow, the plainest first; ``orders``: those in short. ``is_copy``: whether both tensors hold
    the numbers of an earlier slot's, so that their values say nothing new; ``is_root``: whether its tensors come from no other slot's.
    """

    place: int
    ends: tuple[int, int]
    a: int
    b: int
    shapes: tuple[Shape, Shape]
    options: Sequence[Layout]
    pairs: list[int] = field(default_factory=list)
    orders: dict[Order, int] = field(default_factory=dict)
    is_copy: bool = False
    is_root: bool = True

    @property
    def is_open(self) -> bool:
        return len(self.options) > 1

    @property
    def ranks(self) -> tuple[int, int]:
        return len(self.shapes[0]), len(self.shapes[1])

    @property
    def tells(self) -> bool:
        """Whether a slot whose layout is known says something of the order of the axes: at most one axis is of length 1."""
        return self.is_open or all(shape.count(1) < 2 and math.prod(shape) > 1 for shape in self.shapes)


def order_of(layout: Layout, shape: Shape) -> Order:
    """In which order a layout reads the axes of a port's tensor of that shape, all of them or a part of one.

    >>> order_of(Layout((2, 3, 5)), (2, 3, 5)), order_of(Layout((2, 5, 3), permutation=(0, 2, 1)), (2, 3, 5))
    ((0, 1, 2), (0, 2, 1))
    """
    if layout.split is not None or layout.crop is not None or layout.window is not None or layout.repeat or layout.is_joined:
        return str(layout)
    return layout.permutation or tuple(range(len(shape)))


def slots_of(chooser: LayoutChooser, found: Sequence[RecordPair]) -> list[Slot]:
    """The slots of pairs of records, in the order of their first records; without those of several records, or of no layout."""
    rows = chooser.rows
    slots: dict[Key, Slot] = {}
    for place, pair in sorted(enumerate(found), key=lambda one: (one[1].reference[0], one[1].port[0])):
        if pair.layout is None or len(pair.reference) != 1 or len(pair.port) != 1:
            continue
        a, b = pair.reference[0], pair.port[0]
        key = chooser.key(pair.sites, a, b)
        slot = slots.get(key)
        if slot is None:
            shapes = rows.shape(0, a), rows.shape(1, b)
            options = chooser.options[key] if pair.evidence == OPEN else [pair.layout]
            slot = slots[key] = Slot(pair.sites, (key[1], key[2]), a, b, shapes, options)
            for number, option in enumerate(options):
                slot.orders.setdefault(order_of(option, shapes[1]), number)
        slot.pairs.append(place)
    return list(slots.values())
