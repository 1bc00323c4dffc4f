"""Another function, norm, sign or order of two operations; a function that the reference does not apply; rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from tracediff.causes.operation_edits.base import (
    FUNCTION_OF,
    LOGARITHMS,
    MIXING,
    NORMS,
    POWERS,
    PRODUCTS,
    REARRANGING,
    SOFTMAX,
    SUMS,
    VIEWS,
    Change,
    applied_to,
    is_float,
    is_mask,
    redone,
    ref_at,
    shape_at,
)
from tracediff.causes.program import Replay
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.replay.arithmetic import OPERATIONS, group_norm, rms_norm
from tracediff.replay.computed import Compute, Values
from tracediff.replay.functions import FUNCTIONS
from tracediff.trace.operations import Node


def other_function(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Another function of single values, logarithm or power."""
    ref = ref_at(node, 0)
    if ref is None:
        return
    text = replay.program.text(ref)
    for name in _IN_PLACE_OF.get(node.name, ()):
        function = FUNCTIONS.get(name, _shares)
        said = f"the reference applies {node.name.strip('_')} to {text}, the port {name}"
        yield Change("activation", said, {number: applied_to(function, ref)})
    for family, kind in ((LOGARITHMS, "units.log"), (POWERS, "activation")):
        if node.name in family:
            for name, function in family.items():
                if name != node.name:
                    yield Change(kind, f"the reference applies {node.name} to {text}, the port {name}", {number: applied_to(function, ref)})


def _shares(x: Array) -> Array:
    """The softmax along the last axis."""
    made: Array = OPERATIONS["_softmax"](x, -1)
    return made


_ACTIVATIONS = tuple(name for name in FUNCTIONS if name not in ("identity", "log", "exp of half"))
_IN_PLACE_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(FUNCTION_OF, _ACTIVATIONS),
    "sigmoid": (*_ACTIVATIONS, "a softmax"),
    "exp": ("softplus", "sigmoid"),
    **dict.fromkeys(SOFTMAX, ("sigmoid",)),
}
"""Functions that are taken in the place of each other, besides logarithms and powers."""


def other_norm(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A norm of another type, over other axes, without gain or offset, with its groups taken otherwise."""
    name, args = node.name, node.args
    ref = ref_at(node, 0)
    if name not in NORMS or ref is None or len(args) < 4:
        return
    text = f"the {name.strip('_')} of {replay.program.text(ref)}"
    if name == "native_layer_norm":

        def as_rms(values: Values) -> Any:
            gain = ref_at(node, 2)
            weight = None if gain is None else values[gain]
            return rms_norm(values[ref], args[1], weight, args[4])[0], None, None

        yield Change("norm.missing", f"the port takes no mean off in {text}", {number: as_rms})
    if name == "native_group_norm":
        yield from _other_groups(replay, number, node, text)
    if name.endswith("no_training"):

        def of_batch(values: Values) -> Any:
            return replay.apply(node, values, args=(*args[:3], None, None, True, *args[5:]), name="native_batch_norm")

        yield Change("mode.train", f"the port takes {text} with the statistics of its batch", {number: of_batch})
    for place, what in (
        (1 if "group" in name or "batch" in name else 2, "gain"),
        (2 if "group" in name or "batch" in name else 3, "offset"),
    ):
        if ref_at(node, place) is not None:
            without = (*args[:place], None, *args[place + 1 :])
            yield Change("branch.missing", f"the port applies no {what} in {text}", {number: redone(replay, node, without)})


def _other_groups(replay: Replay, number: int, node: Node, text: str) -> Iterator[Change]:
    batch, channels, size, groups, eps = node.args[3:8]
    places = [ref_at(node, place) for place in range(3)]

    def grouped(count: int, *, is_spread: bool) -> Compute:
        def compute(values: Values) -> Any:
            given = [None if place is None else values[place] for place in places]
            return group_norm(given[0], given[1], given[2], batch, channels, size, count, eps, is_spread=is_spread)  # type: ignore[arg-type]

        return compute

    said = f"the port groups every {groups}th channel in {text}, the reference {channels // groups} neighbouring ones (pytorch_compatible)"
    yield Change("norm.missing", said, {number: grouped(groups, is_spread=True)})
    for count in (one for one in range(1, channels + 1) if channels % one == 0 and one != groups):
        yield Change(
            "norm.missing", f"the port takes {count} groups in {text}, the reference {groups}", {number: grouped(count, is_spread=False)}
        )


def other_sum(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """The other sign, the operands exchanged, the square matrix transposed."""
    program = replay.program
    refs = [ref_at(node, 0), ref_at(node, 1)]
    if node.name in ("mm", "bmm", "addmm", "baddbmm", "mv"):
        place = len(node.args) - 1
        ref = ref_at(node, place)
        if ref is not None and len(shape_at(replay, ref)) > 1 and shape_at(replay, ref)[-1] == shape_at(replay, ref)[-2]:

            def turned(values: Values) -> Any:
                return replay.apply(node, {**values, ref: np.swapaxes(values[ref], -1, -2)})

            yield Change(
                "weights.layout" if ref in program.names else "transform", f"the port transposes {program.text(ref)}", {number: turned}
            )
        return
    if node.name in SUMS and refs[0] is not None:
        other = "sub" if node.name == "add" else "add"
        text = "a number" if refs[1] is None else program.text(refs[1])
        kind = "order.roles" if refs[1] is None else "scale"
        yield Change(kind, f"the port {'subtracts' if other == 'sub' else 'adds'} {text}", {number: redone(replay, node, name=other)})
    if node.name in ("sub", "rsub", "div", "pow", "atan2", "maximum", "minimum") and None not in refs:
        said = f"the port exchanges {program.text(refs[0])} and {program.text(refs[1])} in {node.name}"  # type: ignore[arg-type]
        yield Change("order.roles", said, {number: redone(replay, node, (node.args[1], node.args[0], *node.args[2:]))})
    if node.name in ("maximum", "minimum"):
        other = "minimum" if node.name == "maximum" else "maximum"
        yield Change("clamp", f"the port takes the {other} in the place of the {node.name}", {number: redone(replay, node, name=other)})
    if node.name in PRODUCTS and refs[0] is not None:
        other = "div" if node.name == "mul" else "mul"
        yield Change(
            "scale",
            f"the port applies {other} in the place of {node.name} to {program.text(refs[0])}",
            {number: redone(replay, node, name=other)},
        )


def exchanged_in_order(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Two operations in a row on one tensor, the later one first."""
    program, ref = replay.program, ref_at(node, 0)
    if ref is None or ref in program.leaves or shape_at(replay, ref) != shape_at(replay, number) or node.name == "@item":
        return
    inner = program.nodes[ref]
    source = ref_at(inner, 0)
    if source is None or shape_at(replay, source) != shape_at(replay, ref) or inner.name.startswith("@") or inner.name == node.name:
        return

    def compute(values: Values) -> Any:
        first = replay.apply(node, {**values, ref: values[source]})
        return replay.apply(inner, {**values, source: first[0] if isinstance(first, tuple) else first})

    is_norm = bool({inner.name, node.name} & NORMS)
    said = f"the port applies {node.name.strip('_')} before {inner.name.strip('_')} to {program.text(source)}"
    yield Change("norm.placement" if is_norm else "transform", said, {number: compute})


def term_without_factor(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A term that is added before a factor is applied, or before a weighted sum is taken, escapes the factor or the weights."""
    program = replay.program
    term = ref_at(node, 0) if node.name == "addmm" else next((ref for ref in reversed(node.refs) if _is_small(replay, ref, number)), None)
    if node.name not in ("add", "addmm") or term is None or is_mask(replay, term):
        return
    way = [number]
    for step in program.steps:
        known = program.nodes[step]
        if step <= number or way[-1] not in known.refs:
            continue
        if known.name in (*VIEWS, *REARRANGING, "t", "expand", "clone"):
            way.append(step)
            continue
        factors = [ref for ref in known.refs if ref not in way and not program.parameter(ref) and is_float(replay, ref)]
        if known.name in ("mul", "bmm", "baddbmm") and len(factors) == 1:
            said = (
                f"the port adds {program.text(term)} without the factor {program.text(factors[0])}, which the reference applies to it, too"
            )
            yield Change("branch.missing", said, {step: _with_bare_term(replay, way, step, term, factors[0])})
        return


def _is_small(replay: Replay, term: int, total: int) -> bool:
    """Whether a term is the same along an axis of a sum: a bias."""
    return is_float(replay, term) and shape_at(replay, term) != shape_at(replay, total) and replay.values[term].size > 1


def _with_bare_term(replay: Replay, way: list[int], product: int, term: int, factor: int) -> Compute:
    """What a product gives of a sum without a term, and what it gives of the term alone with ones as the factor."""

    def given(values: Values, start: Array, *, is_bare: bool) -> Any:
        own: dict[int, Any] = {**values, way[0]: start}
        for step in way[1:]:
            own[step] = replay.apply(replay.program.nodes[step], own)
        if is_bare:
            own[factor] = np.ones_like(values[factor])
        return replay.apply(replay.program.nodes[product], own)

    def compute(values: Values) -> Array:
        alone = np.broadcast_to(values[term], values[way[0]].shape)
        made: Array = given(values, values[way[0]] - alone, is_bare=False) + given(values, alone, is_bare=True)
        return made

    return compute


def something_more(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A function or a norm that the reference does not apply."""
    if not is_float(replay, number) or not shape_at(replay, number) or is_mask(replay, number):
        return
    text = replay.program.text(number)
    is_parameter = node.name.startswith("@param")
    if is_parameter and _is_multiplied_as_matrix(replay, number):
        return
    for kind, name, function in _MORE_OF_PARAMETERS if is_parameter else _MORE:
        yield Change(kind, f"the port applies {name} to {text}, the reference does not", {number: _after(replay, node, function)})


def _is_multiplied_as_matrix(replay: Replay, parameter: int) -> bool:
    """Whether a parameter, or a mere view of it, is what a product, a norm or a table takes in."""
    program, name = replay.program, replay.program.parameter(parameter)
    taken = (program.nodes[step] for step in program.steps if program.nodes[step].name in MIXING | NORMS | {"embedding"})
    return any(program.parameter(ref) == name for node in taken for ref in node.refs)


def _after(replay: Replay, node: Node, function: Callable[[Array], Array]) -> Compute:
    return lambda values: function(np.asarray(replay.apply(node, values)))


_MORE: tuple[tuple[str, str, Callable[[Array], Array]], ...] = (
    *(("activation", name, FUNCTIONS[name]) for name in ("ReLU", "sigmoid", "tanh", "SiLU", "GELU (exact)", "absolute value", "square")),
    ("activation", "a softmax", _shares),
    ("branch.extra", "a division by the sum along the last axis", lambda x: x / x.sum(-1, keepdims=True)),
    ("branch.extra", "unit length along the last axis", lambda x: x / np.sqrt((x * x).sum(-1, keepdims=True))),
    (
        "branch.extra",
        "a layer norm along the last axis",
        lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5),
    ),
)
_MORE_OF_PARAMETERS = (
    ("units.log", "exp", FUNCTIONS["exp"]),
    *(("activation", name, FUNCTIONS[name]) for name in ("softplus", "sigmoid")),
)
"""What a parameter is stored before: its logarithm, or what keeps it positive or below one."""


def rounded(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A tensor rounded to half precision. What far fewer digits give as well (0.999 becomes 1) is not known to be rounded."""
    if not is_float(replay, number):
        return
    plain = _of_few_digits(replay.values[number])
    for name, kind in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):

        def compute(values: Values, kind: Any = kind) -> Array:
            return np.asarray(replay.apply(node, values)).astype(kind).astype(np.float64)

        if np.array_equal(replay.values[number].astype(kind).astype(np.float64), plain):
            continue
        yield Change("precision", f"the port rounds {replay.program.text(number)} to {name}", {number: compute})


def _of_few_digits(values: Array) -> Array:
    """Numbers rounded to so few binary digits that most are round numbers."""
    parts, powers = np.frexp(np.asarray(values, np.float64))
    made: Array = np.ldexp(np.round(parts * 2**THRESHOLDS.few_digits) / 2**THRESHOLDS.few_digits, powers)
    return made
