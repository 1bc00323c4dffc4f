"""What speaks for each layout of a slot by itself: how plain it is, the values, the channels of layers, and what consumes the tensor.

Each source is a function of `SOURCES`: it gives a number for each option, in natural logarithms of odds, or None where
it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tracediff.alignment import axes, channels
from tracediff.alignment.axes import Layout
from tracediff.alignment.consumers import Consumers
from tracediff.alignment.layout_slots import Slot
from tracediff.alignment.record_table import Rows
from tracediff.alignment.structure import INPUT
from tracediff.alignment.thresholds import THRESHOLDS

Scores = list[float]


class LayoutEvidence:
    """What the records themselves say of layouts."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.consumers = rows, Consumers(rows)
        self._errors: dict[tuple[int, int], list[float]] = {}

    def is_fixed(self, slot: Slot) -> bool:
        """Whether a slot is a boundary of a framework's layers, whose channels leave one layout: no value says otherwise."""
        return len(self.on_channels(slot)) == 1

    def on_channels(self, slot: Slot) -> list[Layout]:
        """The layouts that lay channels on channels where a slot is a boundary of a framework's layers; all elsewhere."""
        sides = zip(self.rows.channels, (slot.a, slot.b), strict=True)
        return channels.keeping(slot.options, *(side.of_layer(row) for side, row in sides))

    def errors(self, slot: Slot) -> list[float]:
        """The relative error of a slot's first records in each option; none where the values are far apart or cannot be read."""
        key = slot.a, slot.b
        if key not in self._errors:
            self._errors[key] = self._measured(slot)
        return self._errors[key]

    def _measured(self, slot: Slot) -> list[float]:
        if slot.options[0].is_same and self.rows.are_equal(slot.a, slot.b):
            return [0.0] + [1.0] * (len(slot.options) - 1)
        read = self.rows.read(slot.a, slot.b) if self._may_agree(slot) else None
        return [] if read is None else [axes.error_in(*read, one) for one in slot.options]

    def _may_agree(self, slot: Slot) -> bool:
        """Whether the statistics of a slot's first records are alike; those of a part and of a whole say nothing."""
        is_part = any(one.crop or one.part or one.part_reference for one in slot.options)
        return is_part or self.rows.apart(slot.a, slot.b) <= THRESHOLDS.layout_too_far

    def is_unread(self, slot: Slot) -> bool:
        """Whether the values might have told and were not stored."""
        return not self.is_fixed(slot) and self._may_agree(slot) and not self.errors(slot)


Source = Callable[[LayoutEvidence, Slot], Scores | None]


def plainness(_: LayoutEvidence, slot: Slot) -> Scores:
    """The plainer of two layouts, where nothing else tells."""
    return [-THRESHOLDS.layout_less_plain * number for number in range(len(slot.options))]


def own_choice(evidence: LayoutEvidence, slot: Slot) -> Scores | None:
    """A tensor that comes from no other lies in the plainest layout: to move axes for nothing is as strange as an error that moves them."""
    if not slot.is_root or evidence.is_fixed(slot):
        return None
    return [0.0] + [-THRESHOLDS.layout_values_most] * (len(slot.options) - 1)


def values(evidence: LayoutEvidence, slot: Slot) -> Scores | None:
    """How well the values agree: the likelihood of the errors at an unknown scale, as if there were one error, up to a bound.

    A tensor that one fault turned agrees in the wrong layout; it must not outvote what is around it. A copy says nothing new, and of the
    boundaries of a framework's layers the channels say all.
    """
    if slot.is_copy or evidence.is_fixed(slot):
        return None
    least = max(evidence.rows.rounding(slot.a, slot.b), THRESHOLDS.least_distance)
    errors = [max(error, least) for error in evidence.errors(slot)]
    if not errors or math.isinf(min(errors)):
        return None
    return [-min(THRESHOLDS.layout_values_most, math.log(error / min(errors))) for error in errors]


def own_channels(evidence: LayoutEvidence, slot: Slot) -> Scores | None:
    """A boundary of a framework's layer: channels lie on channels."""
    return _kept(slot, evidence.on_channels(slot), THRESHOLDS.layout_own_channels)


def handed_channels(evidence: LayoutEvidence, slot: Slot) -> Scores | None:
    """A tensor that layers take in or return elsewhere: their channels lie on each other."""
    sides = zip(evidence.rows.channels, (slot.a, slot.b), strict=True)
    return _kept(slot, channels.keeping(slot.options, *(side.of(row) for side, row in sides)), THRESHOLDS.layout_handed_channels)


def _kept(slot: Slot, kept: Sequence[Layout], weight: float) -> Scores | None:
    return None if len(kept) == len(slot.options) else [0.0 if option in kept else -weight for option in slot.options]


def consumed_alike(evidence: LayoutEvidence, slot: Slot) -> Scores | None:
    """What takes in a tensor that agrees in some layouts only: where its output agrees too, it read the tensor so.

    Where its output differs, although all else that it takes in agrees, it did not read it so, or is wrong itself; that is likelier than an
    error that does no more than turn a tensor. An output that agrees although the input does not would take more than one error.
    """
    if evidence.rows.kind[0][slot.a] != INPUT or evidence.is_fixed(slot):
        return None
    errors = evidence.errors(slot)
    agree = [error < THRESHOLDS.layout_agrees for error in errors]
    if not any(agree) or all(agree):
        return None
    is_alike = evidence.consumers.agree(slot.a, min(errors))
    if is_alike is None:
        return None
    worth = THRESHOLDS.layout_consumed_alike if is_alike else THRESHOLDS.layout_consumed_otherwise
    return [worth * (is_agreeing == is_alike) for is_agreeing in agree]


SOURCES: tuple[Source, ...] = (plainness, own_choice, own_channels, handed_channels, values, consumed_alike)
"""What speaks for the layouts of a slot by itself. An ablation leaves one out by its name."""
