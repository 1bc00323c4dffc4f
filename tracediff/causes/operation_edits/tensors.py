"""One tensor in the place of another, two tensors exchanged, and rotary positions of neighbouring channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tracediff.causes.operation_edits.base import (
    Change,
    is_float,
    own_value,
    shape_at,
    value_before,
)
from tracediff.causes.program import Compute, Replay, Values
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.trace.operations import Node


def other_tensor(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """An operation takes in another tensor of the same shape."""
    program = replay.program
    for ref in dict.fromkeys(node.refs):
        shape = shape_at(replay, ref)
        value = replay.values[ref]
        if not isinstance(value, np.ndarray) or value.size < 2:
            continue
        alike = [
            one
            for one in replay.values
            if one < number and one != ref and _is_alike(replay.values[one], value, shape) and ref not in program.ancestors(one)
        ]
        named = [one for one in alike if one in program.leaves or one in program.names]
        for other in [*named, *(one for one in reversed(alike) if one not in named)][: THRESHOLDS.exchanged_at_most]:

            def taken(values: Values, ref: int = ref, other: int = other) -> Any:
                return replay.apply(node, {**values, ref: values[other]})

            said = f"the port's {node.name.strip('_')} takes {program.text(other)} in the place of {program.text(ref)}"
            kind = "cfg.formula" if _is_guided(replay, node, {ref, other}) else "order.roles"
            yield Change(kind, said, {number: taken})


def _is_guided(replay: Replay, node: Node, exchanged: set[int]) -> bool:
    """Whether an operation adds a number times the difference of two tensors to one of these, and the other one is taken for that."""
    program = replay.program
    if node.name != "add":
        return False
    products = [program.nodes[ref] for ref in node.refs if ref not in program.leaves and program.nodes[ref].name == "mul"]
    inner = [program.nodes[ref] for one in products for ref in one.refs[:1] if len(one.refs) == 1 and ref not in program.leaves]
    return any(one.name == "sub" and set(one.refs) == exchanged for one in inner)


def _is_alike(value: Any, other: Array, shape: tuple[int, ...]) -> bool:
    return (
        isinstance(value, np.ndarray) and value.shape == shape and value.dtype.kind == other.dtype.kind and not np.array_equal(value, other)
    )


def leaves_exchanged(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Two tensors in hand, each in the other's place."""
    program = replay.program
    if number != program.target:
        return
    leaves = [one for one in (*program.leaves, *program.names) if is_float(replay, one)]
    for place, first in enumerate(leaves):
        for second in leaves[place + 1 :]:
            if shape_at(replay, first) == shape_at(replay, second) and replay.values[first].size > 1:
                said = f"the port exchanges {program.text(first)} and {program.text(second)}"
                yield Change("order.roles", said, {first: value_before(replay, second), second: value_before(replay, first)})


def other_pairs(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Rotary positions of neighbouring channels in the place of halves: all rotations at once, then each."""
    program = replay.program
    if number != program.target:
        return
    found = [pair for step in program.steps if (pair := _rotation(replay, step)) is not None]
    for some in ([found] if len(found) > 1 else []) + [[one] for one in found]:
        at: dict[int, Compute] = {}
        for start, end in some:
            at |= {start: _into_halves(replay, start), end: _into_pairs(replay, end)}
        said = (
            f"the port rotates neighbouring channels of {' and '.join(program.text(start) for start, _ in some[:2])}, the reference halves"
        )
        yield Change("rope.variant", said, at)


def _rotation(replay: Replay, number: int) -> tuple[int, int] | None:
    """What is rotated, and the node of what it becomes: x cos + (-second half, first half) sin."""
    program, shape = replay.program, shape_at(replay, number)
    if program.nodes[number].name != "add" or not shape or shape[-1] % 2:
        return None
    within = [ref for ref in program.ancestors(number) if ref not in program.leaves and program.nodes[ref].name == "cat"]
    for joined in sorted(within, reverse=True):
        parts = program.nodes[joined].args[0]
        if len(parts) == 2 and shape_at(replay, joined) == shape:
            sources = [_source(replay, part.node) for part in parts]
            if sources[0] is not None and sources[0] == sources[1] and shape_at(replay, sources[0]) == shape:
                return sources[0], number
    return None


def _source(replay: Replay, node: int) -> int | None:
    """What a part, or its opposite, is a part of."""
    program = replay.program
    while node not in program.leaves:
        known = program.nodes[node]
        if known.name == "@item" and known.refs[0] not in program.leaves:
            return program.nodes[known.refs[0]].refs[0]
        if known.name == "slice":
            return known.refs[0]
        if known.name != "neg":
            return None
        node = known.refs[0]
    return None


def _into_halves(replay: Replay, node: int) -> Compute:
    def compute(values: Values) -> Array:
        x = own_value(replay, node, values)
        return np.concatenate([x[..., ::2], x[..., 1::2]], -1)

    return compute


def _into_pairs(replay: Replay, node: int) -> Compute:
    def compute(values: Values) -> Array:
        halves = np.split(own_value(replay, node, values), 2, -1)
        return np.stack(halves, -1).reshape(*halves[0].shape[:-1], -1)

    return compute
