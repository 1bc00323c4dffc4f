"""Numbers that operations are given, or that stand in the place of tensors, to be fitted to the port."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tracediff.causes.operation_edits.base import (
    NORMS,
    PRODUCTS,
    SUMS,
    Change,
    Dial,
    is_float,
    own_value,
    ref_at,
    shape_at,
)
from tracediff.causes.operation_edits.frequencies import POWERS_TRIED, are_turned, frequencies_of_another_base
from tracediff.causes.program import Replay
from tracediff.replay.computed import Values
from tracediff.trace.operations import Node

_NUMBER_KINDS = {
    "pow": "activation",
    "leaky_relu": "activation",
    "elu": "activation",
    "softplus": "activation",
    "clamp": "clamp",
    "clamp_min": "clamp",
    "clamp_max": "clamp",
    "hardtanh": "clamp",
}


def dials(replay: Replay) -> Iterator[Dial]:
    """Every number that an operation is given, then one in the place of a tensor, another base of frequencies, a factor of every tensor."""
    yield from _given_numbers(replay)
    yield from _numbers_for_tensors(replay)
    yield from frequencies_of_another_base(replay)
    yield from _factors(replay)


def _numbers_for_tensors(replay: Replay) -> Iterator[Dial]:
    """A number in the place of what a tensor is multiplied with or divided by; where counting begins."""
    program = replay.program
    for number in reversed(program.steps):
        node = program.nodes[number]
        first, second = ref_at(node, 0), ref_at(node, 1)
        if node.name in PRODUCTS and first is not None and second is not None and is_float(replay, number):
            other = replay.values[second]
            text = f"the port applies {node.name} by {{:.6g}} to {program.text(first)}, the reference by {program.text(second)}"
            yield Dial("scale", text, number, float(np.mean(other)) or 1.0, _dialled(replay, node, 1))
        if node.name == "arange":
            text = "the port's numbered places are {:+.6g} further"
            yield Dial("position.offset", text, number, 0.0, _shifted_by(replay, node))


def _factors(replay: Replay) -> Iterator[Dial]:
    """A factor of each tensor."""
    program = replay.program
    for number in (*reversed(program.steps), *program.leaves):
        if is_float(replay, number) and replay.values[number].size:
            words = program.text(number).lower()
            kind = (
                "time.scale"
                if any(word in words for word in ("time", "sigma")) or (number in program.leaves and replay.values[number].ndim < 2)
                else "scale"
            )
            text = f"the port has {program.text(number)} times {{:.6g}}"
            yield Dial(kind, text, number, 1.0, _scaled_by(replay, number))


def _shifted_by(replay: Replay, node: Node) -> Callable[[Values, float], Any]:
    return lambda values, number: replay.apply(node, values) + number


def _scaled_by(replay: Replay, node: int) -> Callable[[Values, float], Any]:
    return lambda values, number: own_value(replay, node, values) * number


def _with_scale(replay: Replay, node: Node) -> Callable[[Values, float], Any]:
    return lambda values, number: replay.apply(node, values, scale=number)


def _given_numbers(replay: Replay) -> Iterator[Dial]:
    program = replay.program
    for number in reversed(program.steps):
        node = program.nodes[number]
        if node.name.startswith("@"):
            continue
        for place, value in enumerate(node.args):
            if _is_number(value) and (node.name in _WITH_NUMBERS):
                kind = _kind_of_number(replay, number, node, value)
                tries: tuple[float, ...] = ()
                if node.name == "pow" and place == 0:  # the same number to many powers: frequencies, or slopes of heads
                    kind = "rope.variant" if are_turned(replay, number) else "scale"
                    tries = tuple(float(value) ** power for power in POWERS_TRIED) if value > 0 else ()
                text = f"{node.name.strip('_')} of {_first_text(replay, node)} is given {{:.6g}} by the port, {value:.6g} by the reference"
                yield Dial(kind, text, number, float(value), _dialled(replay, node, place), tries)
        scale = node.kwargs.get("scale") if node.name.startswith("_scaled_dot_product") else None
        if node.name.startswith("_scaled_dot_product"):
            q = ref_at(node, 0)
            width = shape_at(replay, q)[-1] if q is not None else 1
            start = float(scale) if isinstance(scale, (int, float)) else float(width**-0.5)
            text = f"the port's attention has the scale {{:.6g}}, the reference's {start:.6g}"
            yield Dial("scale", text, number, start, _with_scale(replay, node))


_WITH_NUMBERS = frozenset(
    (
        *SUMS, *PRODUCTS, *_NUMBER_KINDS, "native_layer_norm", "native_group_norm", "_native_batch_norm_legit_no_training",
        "native_batch_norm", "_fused_rms_norm", "full", "masked_fill", "linalg_vector_norm", "remainder", "linspace", "lerp",
    )
)  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _first_text(replay: Replay, node: Node) -> str:
    ref = next(iter(node.refs), None)
    return "nothing" if ref is None else replay.program.text(ref)


def _dialled(replay: Replay, node: Node, place: int) -> Callable[[Values, float], Any]:
    def compute(values: Values, number: float) -> Any:
        return replay.apply(node, values, args=(*node.args[:place], number, *node.args[place + 1 :]))

    return compute


def _kind_of_number(replay: Replay, number: int, node: Node, value: float) -> str:
    if node.name in NORMS:
        return "norm.eps"
    if node.name in _NUMBER_KINDS:
        return _NUMBER_KINDS[node.name]
    if node.name == "add" and 0 < abs(value) < _LARGEST_EPS:
        return "norm.eps"
    if node.name in SUMS and float(value).is_integer() and replay.values[number].dtype.kind in "iu":
        return "position.offset"
    return "scale"


_LARGEST_EPS = 0.05


"""What is added to a denominator is below this."""


FACTORS_TRIED: tuple[float, ...] = (1e3, 1e-3, 1e2, 1e-2, 10.0, 0.1, 2.0, 0.5, -1.0, *(np.pi * np.array((1, 2, 0.5)) ** 1).tolist(),
                                     *(1 / (np.pi * np.array((1, 2, 0.5)))).tolist())  # fmt: skip


"""By which factors what enters sines is off."""


EPS_TRIED: tuple[float, ...] = (0.0, *np.geomspace(1e-12, 1e-1, 23).tolist(), *(5 * np.geomspace(1e-12, 1e-2, 11)).tolist())


def dial_change(dial: Dial, value: float) -> Change:
    """A dial turned to a value."""
    return Change(dial.kind, dial.text.format(value), {dial.node: lambda values: dial.compute(values, value)})
