"""Another reduction along the same axis, or one place of it; another denominator; a sum that runs otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tracediff.causes.operation_edits.base import REDUCTIONS, Change, is_float, is_mask, redone, ref_at, shape_at
from tracediff.causes.program import Replay
from tracediff.dtype import Array
from tracediff.replay.arithmetic import axes_of
from tracediff.replay.computed import Compute, Values
from tracediff.trace.operations import Node, Ref


def other_reduction(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Another reduction of the same places, one of these places, another denominator, a sum that runs otherwise."""
    yield from _in_place_of_extreme(replay, number, node)
    yield from _in_place_of_pick(replay, number, node)
    yield from _in_place_of_share(replay, number, node)
    ref = ref_at(node, 0)
    if ref is None or not is_float(replay, ref):
        return
    name, text = node.name, replay.program.text(ref)
    if name == "_log_softmax":
        yield Change(
            "activation",
            f"the port takes no logarithm of the softmax of {text}",
            {number: redone(replay, node, name="_softmax")},
        )
    if name in REDUCTIONS:
        yield from _other_of(replay, number, node, ref, name)
    if name in ("var", "std"):
        correction = node.kwargs.get("correction", 1)
        less = 0 if correction in (1, None) else 1
        said = f"the port takes the {name} of {text} with {less} less in the denominator, the reference with {correction}"
        yield Change("norm.missing", said, {number: redone(replay, node, correction=less)})
    if name in ("cumsum", "cumprod"):
        yield from _other_running(number, node, ref, text)


def _other_of(replay: Replay, number: int, node: Node, ref: int, name: str) -> Iterator[Change]:
    """What reduces a tensor by another function, or picks the first or last place of its axis."""
    text = replay.program.text(ref)
    axes, is_kept = axes_of(node.args[1] if len(node.args) > 1 else None), bool(node.args[2]) if len(node.args) > 2 else False
    for other, reduce in REDUCTIONS.items():
        if other != name:
            kind = "scale" if {name, other} == {"sum", "mean"} else "transform"
            said = f"the reference takes the {name} of {text}, the port the {other}"
            yield Change(kind, said, {number: _reduced(ref, reduce, axes, is_kept=is_kept)})
    if axes is not None and len(axes) == 1 and shape_at(replay, ref)[axes[0]] > 1:
        for place, word in _ENDS:
            said = f"the reference takes the {name} of {text}, the port its {word} place along axis {axes[0]}"
            yield Change("transform", said, {number: _picked(ref, place, axes[0], is_kept=is_kept)})


_ENDS = ((-1, "last"), (0, "first"))
_EXTREMES = {"max": "amax", "min": "amin"}


def _in_place_of_extreme(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A largest or smallest value that is told together with where it is."""
    program = replay.program
    if node.name != "@item" or node.args[1] or node.refs[0] in program.leaves:
        return
    inner = program.nodes[node.refs[0]]
    if inner.name in _EXTREMES and is_float(replay, inner.refs[0]):
        yield from _other_of(replay, number, inner, inner.refs[0], _EXTREMES[inner.name])


def _in_place_of_pick(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A mean or the largest value in the place of the first or last place of an axis, or of one that is picked for each row."""
    ref = ref_at(node, 0)
    if ref is None or not is_float(replay, ref):
        return
    if node.name == "index" and _picks_of_rows(replay, ref, node):
        text = f"the reference picks a place of each row of {replay.program.text(ref)}, the port takes"
        for name in ("mean", "amax"):
            yield Change("transform", f"{text} the {name}", {number: _reduced(ref, REDUCTIONS[name], (1,), is_kept=False)})
        for place, word in _ENDS:
            yield Change("transform", f"{text} the {word}", {number: _picked(ref, place, 1, is_kept=False)})
    if node.name not in ("select", "slice"):
        return
    axis, place = node.args[1:3] if len(node.args) > 2 else (0, 0)
    length, is_kept = shape_at(replay, ref)[axis], node.name == "slice"
    if length > 1 and (place or 0) % length in (0, length - 1) and (not is_kept or shape_at(replay, number)[axis] == 1):
        for other in ("mean", "amax"):
            said = f"the reference picks place {place} of {replay.program.text(ref)} along axis {axis}, the port takes the {other}"
            yield Change("transform", said, {number: _reduced(ref, REDUCTIONS[other], (axis,), is_kept=is_kept)})


def _picks_of_rows(replay: Replay, source: int, node: Node) -> bool:
    """Whether one place of the second axis is picked for each place of the first: x[arange(len(x)), places]."""
    places = [replay.values[one.node] for one in node.args[1] if isinstance(one, Ref)]
    shape = shape_at(replay, source)
    if len(node.args[1]) != 2 or len(places) != 2 or len(shape) < 2 or any(one.dtype.kind not in "iu" for one in places):
        return False
    return places[0].size == places[1].size == shape[0] and np.array_equal(places[0].reshape(-1), np.arange(shape[0]))


def _in_place_of_share(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A mean of all places, the largest value, or one place, where a masked sum is divided by how many places it has."""
    program, top = replay.program, ref_at(node, 0)
    if node.name != "div" or top is None or top in program.leaves or program.nodes[top].name != "sum":
        return
    total = program.nodes[top]
    axes = axes_of(total.args[1] if len(total.args) > 1 else None)
    inner = total.refs[0]
    if axes is None or len(axes) != 1 or inner in program.leaves or program.nodes[inner].name != "mul":
        return
    is_kept = bool(total.args[2]) if len(total.args) > 2 else False
    for ref in program.nodes[inner].refs:
        if shape_at(replay, ref) == shape_at(replay, inner) and not is_mask(replay, ref):
            text = f"the reference takes the mean of some places of {program.text(ref)}, the port"
            everywhere = _reduced(ref, np.mean, axes, is_kept=is_kept)
            yield Change("mask.missing", f"{text} that of all", {number: everywhere})
            yield Change("transform", f"{text} the largest values", {number: _reduced(ref, np.max, axes, is_kept=is_kept)})
            for place, word in _ENDS:
                yield Change("transform", f"{text} the {word} place", {number: _picked(ref, place, axes[0], is_kept=is_kept)})


def _other_running(number: int, node: Node, ref: int, text: str) -> Iterator[Change]:
    axis, run, first = node.args[1], (np.cumsum if node.name == "cumsum" else np.cumprod), (0.0 if node.name == "cumsum" else 1.0)

    def shifted(values: Values) -> Array:
        made = np.roll(run(values[ref], axis), 1, axis)
        made[(slice(None),) * (axis % made.ndim) + (0,)] = first
        return made

    yield Change("position.offset", f"the port's {node.name} of {text} begins one place later", {number: shifted})
    yield Change("order.reversed", f"the port takes the {node.name} of {text} from the end",
                 {number: lambda values: np.flip(run(np.flip(values[ref], axis), axis), axis)})  # fmt: skip


def _reduced(ref: int, reduce: Callable[..., Array], axes: tuple[int, ...] | None, *, is_kept: bool) -> Compute:
    return lambda values: np.asarray(reduce(values[ref], axis=axes, keepdims=is_kept))


def _picked(ref: int, place: int, axis: int, *, is_kept: bool) -> Compute:
    return lambda values: np.take(values[ref], [place] if is_kept else place, axis)
