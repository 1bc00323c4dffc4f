"""Masks inverted, moved or transposed, and attention with another mask or with its tensors exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from tracediff.causes.operation_edits.base import (
    MASKS,
    SUMS,
    Change,
    is_mask,
    redone,
    ref_at,
)
from tracediff.causes.program import Replay
from tracediff.dtype import Array
from tracediff.replay.arithmetic import attention
from tracediff.replay.computed import Compute, Values
from tracediff.trace.operations import Node, Ref

_COMPARED = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt"}


def other_mask(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A mask inverted, shifted, transposed, or with its border one place to the side."""
    program = replay.program
    if node.name in _COMPARED:
        other = _COMPARED[node.name]
        yield Change(
            "mask.wrong", f"the port compares by {other}, the reference by {node.name}", {number: redone(replay, node, name=other)}
        )
    if node.name in MASKS or node.name in SUMS or node.name == "mul":
        for place in {*node.refs}:
            if is_mask(replay, place):
                for text, turn in _mask_turns(replay.values[place]):

                    def turned(values: Values, place: int = place, turn: Callable[[Array], Array] = turn) -> Any:
                        return replay.apply(node, {**values, place: turn(values[place])})

                    yield Change("mask.wrong", f"the port's mask is {text}: {program.text(place)}", {number: turned})


def _mask_turns(mask: Array) -> Iterator[tuple[str, Callable[[Array], Array]]]:
    low, high = mask.min(), mask.max()
    yield "inverted", lambda x: np.where(x == high, low, high).astype(x.dtype) if x.dtype.kind != "b" else ~x
    if mask.ndim > 1 and mask.shape[-1] == mask.shape[-2]:
        yield "transposed", lambda x: np.swapaxes(x, -1, -2)
    for axis in (-1, -2)[: mask.ndim]:
        for shift in (1, -1):
            yield f"shifted by {shift} along axis {axis}", partial(_shifted, shift=shift, axis=axis)


def _shifted(x: Array, shift: int, axis: int) -> Array:
    """Shifted along an axis; the value at the border is repeated."""
    places = np.clip(np.arange(x.shape[axis]) - shift, 0, x.shape[axis] - 1)
    return np.take(x, places, axis)


def other_attention(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A fused attention without its mask, causal or not, with keys and values exchanged, or the softmax along the queries."""
    if not node.name.startswith("_scaled_dot_product"):
        return
    q, k, v = (ref_at(node, place) for place in range(3))
    mask = node.kwargs.get("attn_mask") or (node.args[3] if len(node.args) > 3 and isinstance(node.args[3], Ref) else None)
    is_causal = any(one is True for one in node.args[3:])
    scale = node.kwargs.get("scale")
    if q is None or k is None or v is None:
        return

    def computed(order: tuple[int, int, int] = (0, 1, 2), *, with_mask: bool = True, causal: bool = is_causal, axis: int = -1) -> Compute:
        def compute(values: Values) -> Any:
            given = [values[one] for one in (q, k, v)]
            hidden = values[mask.node] if with_mask and isinstance(mask, Ref) else None
            return attention(*(given[place] for place in order), mask=hidden, is_causal=causal, scale=scale, axis=axis), None

        return compute

    if mask is not None:
        yield Change("mask.missing", "the port's attention is without its mask", {number: computed(with_mask=False)})
    other = "not causal" if is_causal else "causal"
    yield Change(
        "mask.missing" if is_causal else "mask.wrong", f"the port's attention is {other}", {number: computed(causal=not is_causal)}
    )
    yield Change("order.roles", "the port exchanges queries and keys", {number: computed((1, 0, 2))})
    yield Change("order.roles", "the port exchanges keys and values", {number: computed((0, 2, 1))})
    yield Change("heads.layout", "the port takes the softmax along the queries", {number: computed(axis=-2)})
