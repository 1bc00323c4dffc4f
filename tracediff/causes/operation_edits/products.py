"""Products of coarser numbers: hardware cuts what it multiplies to the bits of TF32 or bfloat16, and adds up in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tracediff.causes.operation_edits.base import Change, ref_at
from tracediff.causes.program import Replay
from tracediff.dtype import Array
from tracediff.replay.computed import Compute, Values
from tracediff.tensors.mantissa import BFLOAT16_BITS, TF32_BITS, WAYS, Way, shortened
from tracediff.trace.operations import Node

_MULTIPLIED: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "_grouped_mm", "convolution"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm"), (1, 2)),
}
"""The places of what an operation multiplies."""
_ATTENTION = frozenset(
    ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math", "_scaled_dot_product_efficient_attention")
)
MULTIPLYING = frozenset((*_MULTIPLIED, *_ATTENTION))
"""The operations that take products of matrices, and convolutions."""
_BITS = {"TF32": TF32_BITS, "bfloat16": BFLOAT16_BITS}
_SAID: Mapping[Way, str] = {"nearest": "rounded to", "zero": "cut off after"}


def coarse_products(replay: Replay) -> Iterator[Change]:
    """All products of a program at once, as hardware takes them all; the operands rounded to the nearest, or cut off."""
    nodes = replay.program.nodes
    products = [step for step in replay.program.steps if nodes[step].name in MULTIPLYING]
    if not products:
        return
    for name, bits in _BITS.items():
        for way in WAYS:
            text = f"the port multiplies in {name}: what its products take in is {_SAID[way]} {bits} bits of mantissa"
            yield Change("precision", text, {step: _cut(replay, nodes[step], bits, way) for step in products})


def _cut(replay: Replay, node: Node, bits: int, way: Way) -> Compute:
    def short(values: Any) -> Any:
        is_real = isinstance(values, np.ndarray) and values.dtype.kind == "f"
        return shortened(values, bits, way).astype(np.float64) if is_real else values

    def product(values: Values) -> Any:
        refs = [ref for place in _MULTIPLIED[node.name] if (ref := ref_at(node, place)) is not None]
        return replay.apply(node, {**values, **{ref: short(values[ref]) for ref in refs}})

    def attention(values: Values) -> Any:
        """Two products: of queries and keys, and of probabilities and values."""
        query, key, value = (ref_at(node, place) for place in range(3))
        if query is None or key is None or value is None:
            return replay.apply(node, values)
        given = {**values, query: short(values[query]), key: short(values[key])}
        places = values[value].shape[-2]
        each = np.broadcast_to(np.eye(places), (*values[value].shape[:-1], places))
        made = replay.apply(node, {**given, value: each})
        probabilities: Array = short(made[0])
        groups = probabilities.shape[1] // values[value].shape[1]
        return (probabilities @ np.repeat(short(values[value]), groups, 1), *made[1:])

    return attention if node.name in _ATTENTION else product
