"""All changes that are tried, in order: the plainer families first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tracediff.causes.operation_edits.axes import other_axes
from tracediff.causes.operation_edits.base import (
    Change,
    Family,
)
from tracediff.causes.operation_edits.coordinates import other_coordinates, other_enlarging, other_sampling
from tracediff.causes.operation_edits.frequencies import other_sequence
from tracediff.causes.operation_edits.functions import (
    exchanged_in_order,
    other_function,
    other_norm,
    other_sum,
    rounded,
    something_more,
    term_without_factor,
)
from tracediff.causes.operation_edits.left_out import comparison_left_out, left_out, limit_left_out
from tracediff.causes.operation_edits.masks import other_attention, other_mask
from tracediff.causes.operation_edits.places import (
    counted_plainly,
    other_kernel,
    other_order,
    other_padding,
    other_place,
    other_view,
    other_whole_number,
    written_elsewhere,
)
from tracediff.causes.operation_edits.products import coarse_products
from tracediff.causes.operation_edits.reductions import other_reduction
from tracediff.causes.operation_edits.repeated import copied_whole, for_each_mention, once_more
from tracediff.causes.operation_edits.rotations import other_pairs, rotated_further
from tracediff.causes.operation_edits.tensors import leaves_exchanged, other_tensor
from tracediff.causes.operation_edits.windows import other_window
from tracediff.causes.program import Replay
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.replay.computed import Compute
from tracediff.trace.operations import Ref


def changes(replay: Replay) -> Iterator[Change]:
    """Every change that takes no number from the port, the plainer families first, the latest operations first.

    What one place in the code asks for in many turns of a loop, or in many calls, is changed in all of them.
    """
    program = replay.program
    yield from coarse_products(replay)
    for family in FAMILIES:
        for number in reversed(program.steps):
            alike = program.roles[number]
            if len(alike) == 1:
                yield from family(replay, number, program.nodes[number])
            elif number == alike[-1]:
                yield from _together(replay, family, alike)
        for number in reversed(program.steps):
            if 1 < len(program.roles[number]) <= THRESHOLDS.changed_alone:
                yield from family(replay, number, program.nodes[number])
    for family in OF_SIBLINGS:
        for siblings in _siblings(replay):
            yield from _together(replay, family, siblings)


def _siblings(replay: Replay) -> Iterator[Sequence[int]]:
    """Operations of one name with the same numbers, in several places of the code: a slip in one is likely in the others too."""
    program, found = replay.program, dict[Any, list[int]]()
    for number in program.steps:
        node = program.nodes[number]
        if node.refs and not node.name.startswith("@"):
            numbers = repr([None if isinstance(one, Ref) else one for one in node.args]), repr(sorted(node.kwargs.items()))
            found.setdefault((node.name, numbers), []).append(number)
    for alike in found.values():
        if len({program.role(number) for number in alike}) > 1 and len(alike) <= THRESHOLDS.changed_alone:
            yield alike


def _together(replay: Replay, family: Family, alike: Sequence[int]) -> Iterator[Change]:
    """The changes that a family makes of all of some operations at once; one of them may lack a change (the first turn of a loop)."""
    found: dict[Any, list[Change]] = {}
    for number in alike:
        for place, change in enumerate(family(replay, number, replay.program.nodes[number])):
            found.setdefault((place, change.kind) if change.key is None else change.key, []).append(change)
    for same in found.values():
        if len(same) >= max(2, len(alike) - 1):
            merged: dict[int, Compute] = {}
            for change in same:
                merged.update(change.at)
            lost = tuple(node for change in same for node in change.lost)
            yield Change(same[-1].kind, f"{same[-1].text} (each of {len(same)} times)", merged, lost=lost)


OF_SIBLINGS: tuple[Family, ...] = (copied_whole, other_enlarging, other_axes, other_function)
"""Those that are tried on all siblings of an operation at once."""
FAMILIES: tuple[Family, ...] = (
    written_elsewhere,
    copied_whole,
    left_out,
    limit_left_out,
    comparison_left_out,
    counted_plainly,
    other_function,
    other_reduction,
    other_axes,
    other_norm,
    other_mask,
    other_attention,
    other_order,
    other_place,
    other_view,
    other_padding,
    other_kernel,
    other_sum,
    term_without_factor,
    exchanged_in_order,
    leaves_exchanged,
    other_pairs,
    rotated_further,
    other_enlarging,
    other_sampling,
    other_coordinates,
    other_window,
    other_sequence,
    for_each_mention,
    something_more,
    once_more,
    other_whole_number,
    other_tensor,
    rounded,
)
