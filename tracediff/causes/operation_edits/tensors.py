"""One tensor in the place of another, two tensors exchanged, and rotary positions of neighbouring channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracediff.causes.operation_edits.base import (
    SUMS,
    Change,
    is_float,
    own_value,
    ref_at,
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
        alike = [one for one in replay.values if one < number and one != ref and _is_alike(replay.values[one], value, shape)]
        made = [one for one in alike if ref in program.ancestors(one)]  # what is made of it: something more is applied to it
        named = [one for one in alike if (one in program.leaves or one in program.names) and one not in made]
        others = [one for one in reversed(alike) if one not in named and one not in made]
        for other in [*[*named, *others][: THRESHOLDS.exchanged_at_most], *made[: THRESHOLDS.exchanged_at_most]]:

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
    """Rotary positions of neighbouring channels in the place of halves, or the other way round: all rotations at once, then each."""
    program = replay.program
    if number != program.target:
        return
    found = [rotation for step in program.steps if (rotation := _rotation(replay, step)) is not None]
    for some in ([found] if len(found) > 1 else []) + [[one] for one in found]:
        at: dict[int, Compute] = {}
        for one in some:
            before, after = (_even_first, _in_turn) if one.of_halves else (_in_turn, _even_first)
            at[one.start] = _then(replay, one.start, before, one.axes)
            if one.gives_halves == one.of_halves:  # else it gives already what the other kind would
                at[one.end] = _then(replay, one.end, after, one.axes)
        kinds = ("neighbouring channels", "halves") if some[0].of_halves else ("halves", "neighbouring channels")
        text = " and ".join(program.text(one.start) for one in some[:2])
        yield Change("rope.variant", f"the port rotates {kinds[0]} of {text}, the reference {kinds[1]}", at)


@dataclass(frozen=True, slots=True)
class _Rotation:
    """The node of what is rotated, and that of what it becomes.

    ``of_halves``: whether first and second half of the channels are its pairs; ``gives_halves``: whether they are those of the result.
    ``axes``: along how many of the last axes the channels lie; 2 where each pair is a row.
    """

    start: int
    end: int
    of_halves: bool
    gives_halves: bool
    axes: int = 1


def _rotation(replay: Replay, number: int) -> _Rotation | None:
    """x cos + (-y, x) sin, or (x cos - y sin, y cos + x sin), of halves x and y or of every second channel; or a complex product."""
    program, shape = replay.program, shape_at(replay, number)
    name = program.nodes[number].name
    if name == "view_as_real":
        return _complex_rotation(replay, number)
    if name not in ("add", "cat") or not shape or shape[-1] % 2:
        return None
    if name == "cat":
        return _joined_rotation(replay, number)
    within = [ref for ref in program.ancestors(number) if ref not in program.leaves and program.nodes[ref].name in ("cat", "stack")]
    for joined in sorted(within, reverse=True):
        parts = program.nodes[joined].args[0]
        if len(parts) == 2 and replay.values[joined].size == replay.values[number].size:
            source = _common_source(replay, [part.node for part in parts], shape)
            if source is not None:
                is_of_halves = program.nodes[joined].name == "cat"
                return _Rotation(source, number, is_of_halves, is_of_halves)
    return None


def _joined_rotation(replay: Replay, number: int) -> _Rotation | None:
    """(x cos - y sin, y cos + x sin) joined."""
    program = replay.program
    sums = [part.node for part in program.nodes[number].args[0]]
    if len(sums) != 2 or any(one in program.leaves or program.nodes[one].name not in SUMS for one in sums):
        return None
    products = [ref for one in sums for ref in program.nodes[one].refs]
    if len(products) != 4 or any(one in program.leaves or program.nodes[one].name != "mul" for one in products):
        return None
    factors = [ref_at(program.nodes[one], 0) for one in products]
    source = _common_source(replay, [one for one in factors if one is not None], shape_at(replay, number))
    if source is None:
        return None
    known = program.nodes[factors[0]]  # type: ignore[index]
    return _Rotation(source, number, not (known.name == "slice" and len(known.args) > 4 and known.args[4] == 2), gives_halves=True)


def _common_source(replay: Replay, parts: Sequence[int], shape: tuple[int, ...]) -> int | None:
    """The tensor of a shape of which all nodes are parts, or their opposites; None where there is none."""
    sources = {_source(replay, part) for part in parts}
    source = sources.pop() if len(sources) == 1 else None
    return source if source is not None and shape_at(replay, source) == shape else None


def _complex_rotation(replay: Replay, number: int) -> _Rotation | None:
    """Rows of two numbers taken as complex, multiplied, and given as rows again."""
    program = replay.program
    product = program.nodes[number].refs[0]
    if product in program.leaves or program.nodes[product].name != "mul":
        return None
    pairs = [ref for ref in program.nodes[product].refs if ref not in program.leaves and program.nodes[ref].name == "view_as_complex"]
    starts = [program.nodes[ref].refs[0] for ref in pairs if shape_at(replay, ref) == shape_at(replay, product)]
    return _Rotation(starts[0], number, of_halves=False, gives_halves=False, axes=2) if len(starts) == 1 else None


def _source(replay: Replay, node: int) -> int | None:
    """What a part, or its opposite, is a part of."""
    program = replay.program
    while node not in program.leaves:
        known = program.nodes[node]
        if known.name == "@item" and known.refs[0] not in program.leaves:
            return program.nodes[known.refs[0]].refs[0]
        if known.name in ("slice", "select"):
            return known.refs[0]
        if known.name != "neg":
            return None
        node = known.refs[0]
    return None


def _then(replay: Replay, node: int, order: Callable[[Array], Array], axes: int) -> Compute:
    """What a node gives by itself, with its channels, along so many of the last axes, in another order."""

    def compute(values: Values) -> Array:
        x = own_value(replay, node, values)
        return order(x.reshape(*x.shape[: x.ndim - axes], -1)).reshape(x.shape)

    return compute


def _even_first(x: Array) -> Array:
    """The channels (0, 1, 2, 3, 4, 5) as (0, 2, 4, 1, 3, 5)."""
    return np.concatenate([x[..., ::2], x[..., 1::2]], -1)


def _in_turn(x: Array) -> Array:
    """The channels (0, 1, 2, 3, 4, 5) as (0, 3, 1, 4, 2, 5)."""
    halves = np.split(x, 2, -1)
    return np.stack(halves, -1).reshape(*halves[0].shape[:-1], -1)
