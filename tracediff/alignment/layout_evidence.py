"""What speaks for each layout of a slot by itself: how plain it is, the values, the channels of layers, and what consumes the tensor.

Each source is a function of `BY_PLACE`, `OF_FIRST` or `OF_ROOTS`: it gives a number for each option, in natural logarithms of odds, or None where it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tracediff.alignment import axes, channels
from tracediff.alignment.consumers import Consumers
from tracediff.alignment.layout_slots import Slot
from tracediff.alignment.record_table import Rows
from tracediff.alignment.structure import INPUT
from tracediff.alignment.thresholds import THRESHOLDS

Scores = list[float]


class LayoutEvidence:
    """What the records themselves say of layouts. ``error``: by rows, the relative error in each option that was measured."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.consumers = rows, Consumers(rows)
        self._errors: dict[tuple[int, int], list[float]] = {}

    def errors(self, slot: Slot) -> list[float]:
        """The relative error of a slot's first records in each option; none where the values are far apart or cannot be read."""
        key = slot.a, slot.b
        if key not in self._errors:
            read = self.rows.read(*key) if self._may_agree(slot) else None
            self._errors[key] = [] if read is None else [axes.error_in(*read, one) for one in slot.options]
        return self._errors[key]

    def _may_agree(self, slot: Slot) -> bool:
        """Whether the statistics of a slot's first records are alike; those of a part and of a whole say nothing."""
        is_part = any(one.part is not None or one.part_reference is not None for one in slot.options)
        return is_part or self.rows.apart(slot.a, slot.b) <= THRESHOLDS.layout_too_far

    def is_unread(self, slot: Slot) -> bool:
        """Whether the values might have told and were not stored."""
        return self._may_agree(slot) and not self.errors(slot) and not self.rows.are_equal(slot.a, slot.b)


Source = Callable[[LayoutEvidence, Slot], Scores | None]


def plainness(_: LayoutEvidence, slot: Slot) -> Scores:
    """The plainer of two layouts, where nothing else tells."""
    return [-THRESHOLDS.layout_less_plain * number for number in range(len(slot.options))]


def own_choice(_: LayoutEvidence, slot: Slot) -> Scores | None:
    """A tensor that comes from no other lies in the plainest layout: to move axes for nothing is as strange as an error that moves them."""
    return [0.0] + [-THRESHOLDS.layout_values_most] * (len(slot.options) - 1)


def values(evidence: LayoutEvidence, slot: Slot) -> Scores | None:
    """How well the values agree: the likelihood of the errors at an unknown scale, as if there were one error, up to a bound.

    A tensor that one fault turned agrees in the wrong layout; it must not outvote what is around it.
    """
    most = THRESHOLDS.layout_values_most
    if slot.options[0].is_same and evidence.rows.are_equal(slot.a, slot.b):
        return [0.0] + [-most] * (len(slot.options) - 1)
    least = max(evidence.rows.rounding(slot.a, slot.b), THRESHOLDS.least_distance)
    errors = [max(error, least) for error in evidence.errors(slot)]
    if not errors or math.isinf(min(errors)):
        return None
    return [-min(most, math.log(error / min(errors))) for error in errors]


def own_channels(evidence: LayoutEvidence, slot: Slot) -> Scores | None:
    """A boundary of a framework's layer: channels lie on channels."""
    sides = zip(evidence.rows.channels, (slot.a, slot.b), strict=True)
    return _kept(slot, [side.of_layer(row) for side, row in sides], THRESHOLDS.layout_own_channels)


def handed_channels(evidence: LayoutEvidence, slot: Slot) -> Scores | None:
    """A tensor that layers take in or return elsewhere: their channels lie on each other."""
    sides = zip(evidence.rows.channels, (slot.a, slot.b), strict=True)
    return _kept(slot, [side.of(row) for side, row in sides], THRESHOLDS.layout_handed_channels)


def _kept(slot: Slot, known: Sequence[int | None], weight: float) -> Scores | None:
    kept = channels.keeping(slot.options, *known)
    if len(kept) == len(slot.options):
        return None
    return [0.0 if option in kept else -weight for option in slot.options]


def consumed_alike(evidence: LayoutEvidence, slot: Slot) -> Scores | None:
    """What takes in a tensor that agrees in some layouts only: where its output agrees too, it read the tensor so.

    Where its output differs, although all else that it takes in agrees, it did not read it so, or is wrong itself: one error either way.
    An output that agrees although the input does not would take more than one error.
    """
    if evidence.rows.kind[0][slot.a] != INPUT:
        return None
    errors = evidence.errors(slot)
    agree = [error < THRESHOLDS.layout_agrees for error in errors]
    if not any(agree) or all(agree):
        return None
    is_alike = evidence.consumers.agree(slot.a, min(errors))
    if is_alike is None:
        return None
    worth = THRESHOLDS.layout_values_most * (THRESHOLDS.layout_consumed if is_alike else 1)
    return [worth * (is_agreeing == is_alike) for is_agreeing in agree]


BY_PLACE: tuple[Source, ...] = (plainness, own_channels, handed_channels, consumed_alike)
"""What is known of a tensor where it stands. An ablation leaves one out by its name."""

OF_FIRST: tuple[Source, ...] = (values,)
"""What the values of a tensor say; said once of each tensor, however often it is handed on."""

OF_ROOTS: tuple[Source, ...] = (own_choice,)
"""What is known of a tensor that lies as no other."""
