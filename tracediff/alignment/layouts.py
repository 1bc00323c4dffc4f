"""In which layout the tensor of one side is read as its partner's.

A layout that moves axes although the plain one would do is accepted only where the values support it and the consumers of the tensor agree
on both sides. Otherwise it would merely excuse an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from tracediff.alignment import axes, channels, partial_layouts
from tracediff.alignment.axes import Layout, Shape
from tracediff.alignment.channels import Channels
from tracediff.alignment.layout_context import LayoutContext
from tracediff.alignment.other_calls import OtherCalls
from tracediff.alignment.partial_layouts import UNREAD, Choice, CutOutputs, OnePosition, unreadable
from tracediff.alignment.record_table import PairedSites, Rows
from tracediff.alignment.structure import INPUT, OUTPUT
from tracediff.alignment.thresholds import THRESHOLDS


@dataclass(frozen=True, slots=True)
class Tensors:
    """Two records whose layout is wanted, row ``a`` of the reference and ``b`` of the port, of two paired sites."""

    sites: PairedSites
    a: int
    b: int
    shape_a: Shape
    shape_b: Shape
    candidates: tuple[Layout, ...]  # the layouts that the two shapes allow, the plainest first


class LayoutChooser:
    """The layouts of pairs of records."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.one_position, self.cut_outputs = OnePosition(rows), CutOutputs(rows)
        self.other_calls = OtherCalls(rows)
        self._context = LayoutContext(rows)

    def of(self, sites: PairedSites, a: int, b: int) -> Choice:
        """The layout of a pair of records, and the evidence for it: what the first of `CASCADE` says that says anything."""
        shapes = self.rows.shape(0, a), self.rows.shape(1, b)
        tensors = Tensors(sites, a, b, *shapes, axes.layouts(*shapes))
        for step in CASCADE:
            choice = step(self, tensors)
            if choice is not None:
                return choice
        return (tensors.candidates[0], "shapes") if tensors.candidates else (None, unreadable(tensors.shape_a, tensors.shape_b))

    def by_channels(self, a: int, b: int, candidates: Sequence[Layout]) -> tuple[Layout, str] | None:
        """The layout that lays channels on channels, where layers of both frameworks fix the axis of the channels; None else.

        The boundaries of a layer are read so whatever the values are. A tensor that others hand on to layers is read so only where the
        values do not clearly contradict.
        """
        own = channels.keeping(candidates, *(side.of_layer(row) for side, row in zip(self._channels, (a, b), strict=True)))
        is_own = len(own) < len(candidates)
        left = own if is_own else channels.keeping(candidates, *(side.of(row) for side, row in zip(self._channels, (a, b), strict=True)))
        if len(left) == len(candidates):
            return None
        read = self.rows.read(a, b) if len(left) > 1 or not is_own else None
        if not is_own and (read is None or axes.choose(*read, candidates[:1])[1] < THRESHOLDS.layout_agrees):
            return None
        chosen = axes.choose(*read, left)[0] if read is not None and len(left) > 1 else left[0]
        return chosen, "channels on channels"

    @cached_property
    def _channels(self) -> tuple[Channels, Channels]:
        return Channels(self.rows.sides[0]), Channels(self.rows.sides[1])

    def by_values(self, a: int, b: int, candidates: Sequence[Layout]) -> tuple[Layout, str]:
        """The layout that the values support, if the consumers of the tensor agree; the plain one else."""
        plain = candidates[0]
        if self.rows.are_equal(a, b) and plain.is_same:
            return plain, "equal"
        is_near = self.rows.apart(a, b) <= THRESHOLDS.layout_too_far
        read = self.rows.read(a, b) if is_near else None
        if is_near and read is None:
            return plain, f"shapes; {UNREAD}"
        chosen, error = axes.choose(*read, candidates) if read is not None else (plain, math.inf)
        agrees = error < THRESHOLDS.layout_agrees
        if chosen is plain:
            return (plain, "values") if agrees else self._by_source(a, b, candidates, ()) or (plain, "shapes; the values differ")
        if plain.is_same and not self._context.consumers_agree(a) and not self._lies_as_its_input(a, b, chosen):
            by_source = None if agrees else self._by_source(a, b, candidates, ())
            return by_source or (plain, f"shapes; {chosen} would fit the values, but not what consumes them")
        return chosen, f"values agree to {error:.0e}"

    def _by_source(self, a: int, b: int, candidates: Sequence[Layout], seen: tuple[tuple[int, int], ...]) -> tuple[Layout, str] | None:
        """The layout of the tensors that two tensors come from, where these differ in their values; None where that is not known.

        What a call returns lies as its input of the same shape. An input lies as the output that is that very tensor.
        """
        if len(seen) > THRESHOLDS.layout_steps or (a, b) in seen:
            return None
        for row, other in self._context.sources(a, b):
            layout = self._of_source(row, other, candidates)
            if layout is None:
                further = self._by_source(row, other, candidates, (*seen, (a, b)))
                layout = further[0] if further is not None else None
            if layout is not None:
                return layout, "shapes; the values differ; as what it comes from"
        return None

    def _of_source(self, a: int, b: int, candidates: Sequence[Layout]) -> Layout | None:
        """The layout of two tensors by channels, or by values that agree; None where neither decides."""
        by_channels = self.by_channels(a, b, candidates)
        if by_channels is not None:
            return by_channels[0]
        read = self.rows.read(a, b) if self.rows.apart(a, b) <= THRESHOLDS.layout_too_far else None
        if read is None:
            return None
        chosen, error = axes.choose(*read, candidates)
        return chosen if error < THRESHOLDS.layout_agrees else None

    def _lies_as_its_input(self, a: int, b: int, layout: Layout) -> bool:
        """Whether a call took in its input with the axes in the same other order as its output: it merely works in that order."""
        if self.rows.kind[0][a] != OUTPUT or layout.permutation is None:
            return False
        candidates = axes.layouts(self.rows.shape(0, a), self.rows.shape(1, b))
        return any(
            self.by_values(row, other, candidates)[0].permutation == layout.permutation
            for row in self._context.inputs_like(0, a)
            for other in self._context.inputs_like(1, b)
        )


# -- the steps of the cascade --------------------------------------------------------------------------------------------------


def of_fused_part(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """Outputs of a fused projection and of one of its parts."""
    sites = tensors.sites
    if sites.part is None or chooser.rows.kind[0][tensors.a] == INPUT:
        return None
    return partial_layouts.of_fused_part(sites.part, sites.whole, tensors.shape_a, tensors.shape_b)


def as_given(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """The permutation that a mapping states, wherever it fits."""
    order = tensors.sites.permutation
    if order is None or not _fits(order, tensors.shape_a, tensors.shape_b):
        return None
    return Layout(tensors.shape_a, permutation=order), "given"


def of_grouped_heads(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """Keys or values that one side repeats for the heads of a group before attention, and the other side leaves to attention."""
    rows, shape_a, shape_b = chooser.rows, tensors.shape_a, tensors.shape_b
    if shape_a == shape_b or rows.kind[0][tensors.a] != INPUT or not rows.are_of_functions(tensors.a, tensors.b):
        return None
    if (rows.key(0, tensors.a).keys, rows.key(1, tensors.b).keys) not in ((("k",), ("k",)), (("v",), ("v",))):
        return None
    if min(len(shape_a), len(shape_b)) < 3 or shape_a[-2:] != shape_b[-2:]:
        return None
    layout = axes.shared(shape_a, shape_b)
    return None if layout is None else (layout, "heads of one group share it")


def of_one_position(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """A single position of a sequence on one side, all positions on the other."""
    return chooser.one_position.of(tensors.a, tensors.b) if tensors.shape_a != tensors.shape_b else None


def of_cut_output(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """Outputs of which one side cuts an end off inside the module and the other side outside."""
    return chooser.cut_outputs.of(tensors.a, tensors.b) if not tensors.candidates else None


def of_padded_or_repeated(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """Inputs that one side pads, or repeats along an axis (a mask), before the call."""
    candidates = tensors.candidates
    if not candidates or not (candidates[0].repeat or candidates[0].window is not None):
        return None
    return partial_layouts.padded_or_repeated(chooser.rows, tensors.a, tensors.b, candidates)


def of_shapes(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """Shapes that leave no choice."""
    return (tensors.candidates[0], "shapes") if len(tensors.candidates) == 1 else None


def as_in_other_calls(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """Axes that happen to be equally long in this call and not in the others."""
    if not tensors.candidates or tensors.shape_a != tensors.shape_b:
        return None
    order = chooser.other_calls.order(tensors.a, tensors.b)
    if order is None or not _fits(order, tensors.shape_a, tensors.shape_b):
        return None
    return Layout(tensors.shape_a, permutation=order), "as in its other calls, whose shapes leave no choice"


def of_channels(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """Boundaries of layers, and tensors that go to layers, whose framework fixes the axis of the channels."""
    return chooser.by_channels(tensors.a, tensors.b, tensors.candidates) if tensors.candidates else None


def of_values(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """All other tensors: the plain layout, unless the values and the consumers support another."""
    return chooser.by_values(tensors.a, tensors.b, tensors.candidates) if tensors.candidates else None


CASCADE: tuple[Callable[[LayoutChooser, Tensors], Choice | None], ...] = (
    of_fused_part,
    as_given,
    of_grouped_heads,
    of_one_position,
    of_cut_output,
    of_padded_or_repeated,
    of_shapes,
    as_in_other_calls,
    of_channels,
    of_values,
)
"""Steps in order; the first that says anything decides. An ablation leaves one out by its name."""


def _fits(permutation: tuple[int, ...], reference: Shape, port: Shape) -> bool:
    return len(permutation) == len(port) and tuple(port[axis] for axis in permutation) == reference
