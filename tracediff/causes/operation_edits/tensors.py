"""One tensor in the place of another, and two tensors exchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tracediff.causes.operation_edits.base import (
    Change,
    is_float,
    shape_at,
    value_before,
)
from tracediff.causes.program import Replay
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.replay.computed import Values
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
