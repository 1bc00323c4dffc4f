"""Parts, places, axes and borders: another order, one place further, another view, another padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations, permutations, product
from typing import Any

import numpy as np

from tracediff.causes.operation_edits.base import (
    REARRANGING,
    SOFTMAX,
    VIEWS,
    Change,
    is_float,
    item_of,
    redone,
    ref_at,
    shape_at,
    value_before,
)
from tracediff.causes.program import Replay
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.replay.arithmetic import axes_of, padded, widths_of
from tracediff.replay.computed import Compute, Values
from tracediff.trace.operations import Node

_PADS = {"constant_pad_nd": "constant", "reflection_pad1d": "reflect", "reflection_pad2d": "reflect", "replication_pad1d": "edge",
         "replication_pad2d": "edge"}  # fmt: skip


_PARTS = frozenset(("@item", "slice", "select"))


_BORDERED = frozenset((*_PADS, "convolution"))
"""What gives more places than are wanted: a slice of that cuts the surplus off."""


def other_order(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """What is joined stands in another order; parts of one tensor are exchanged."""
    program = replay.program
    if node.name in ("cat", "stack"):
        parts = node.args[0]
        if 1 < len(parts) <= 4:
            for order in list(permutations(range(len(parts))))[1:]:
                said = f"the port joins the parts in the order {order}: {', '.join(program.text(part.node) for part in parts[:4])}"
                yield Change("order.concat", said, {number: redone(replay, node, ([parts[one] for one in order], *node.args[1:]))})
        yield from _part_hidden(replay, number, node)
        if node.name == "stack" or len({shape_at(replay, part.node) for part in parts}) == 1:
            yield from _interleaved(replay, number, node)
    if node.name in _PARTS:
        yield from _exchanged_parts(replay, number, node)


def _part_hidden(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A part of what a softmax is taken of is not there: no share of it goes to that part."""
    program = replay.program
    is_taken = any(program.nodes[step].name in SOFTMAX and number in program.ancestors(step) for step in program.steps)
    for place, part in enumerate(node.args[0]) if is_taken and node.name == "cat" and len(node.args[0]) > 1 else ():
        if not is_float(replay, part.node):
            continue

        def hidden(values: Values, place: int = place) -> Any:
            parts = [values[one.node] for one in node.args[0]]
            parts[place] = np.full_like(parts[place], -np.inf)
            return np.concatenate(parts, node.args[1] if len(node.args) > 1 else 0)

        said = f"the port takes the softmax without {program.text(part.node)}, which the reference joins to {_others(replay, node, place)}"
        yield Change("branch.missing", said, {number: hidden})


def _others(replay: Replay, node: Node, place: int) -> str:
    """The other parts of what is joined, in words."""
    return " and ".join(replay.program.text(part.node) for other, part in enumerate(node.args[0]) if other != place)


def _interleaved(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Parts taken in turn in the place of one after the other."""
    axis = node.args[1] if len(node.args) > 1 else 0
    refs = [part.node for part in node.args[0]]
    if node.name == "stack" or len(refs) > 4 or len(refs) < 2:
        return

    def compute(values: Values) -> Array:
        parts = [values[ref] for ref in refs]
        place = axis % parts[0].ndim
        made = np.stack(parts, place + 1)
        return made.reshape(*made.shape[:place], -1, *made.shape[place + 2 :])

    said = f"the port interleaves what the reference joins one after the other: {', '.join(map(replay.program.text, refs))}"
    yield Change("order.channels", said, {number: compute})


def _exchanged_parts(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Two parts of one tensor, each in the other's place."""
    program, own = replay.program, ref_at(node, 0)
    yield from _other_part(replay, number, node)
    for other in program.steps:
        known = program.nodes[other]
        if other < number and known.name in _PARTS and ref_at(known, 0) == own and shape_at(replay, other) == shape_at(replay, number):
            source = (
                next(iter(program.nodes[own].refs), own) if own is not None and node.name == "@item" and own not in program.leaves else own
            )
            said = f"the port exchanges two parts of {program.text(source)} ({_part_text(known)} and {_part_text(node)})"  # type: ignore[arg-type]
            yield Change("order.roles", said, {number: value_before(replay, other), other: value_before(replay, number)})


def _other_part(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Another part of the same tensor."""
    program, own, shape = replay.program, node.refs[0], shape_at(replay, number)
    source = program.text(program.nodes[own].refs[0] if node.name == "@item" and own not in program.leaves else own)
    if node.name == "@item":
        for place, part in enumerate(replay.values[own]):
            if place != node.args[1] and isinstance(part, np.ndarray) and part.shape == shape:
                said = f"the port takes part {place} of {source}, the reference part {node.args[1]}"
                yield Change("order.roles", said, {number: item_of(own, place)})
    elif node.name == "slice" and len(node.args) == 4 and all(shape):
        axis, length = node.args[1], shape_at(replay, own)[node.args[1]]
        size = shape[axis]
        for start in range(0, length, size) if not length % size else ():
            said = f"the port takes places {start} to {start + size} along axis {axis} of {source}, the reference others"
            yield Change("order.roles", said, {number: redone(replay, node, (node.args[0], axis, start, start + size))})
    elif node.name == "select":
        for place in range(min(shape_at(replay, own)[node.args[1]], THRESHOLDS.exchanged_at_most)):
            said = f"the port picks place {place} of {source}, the reference {node.args[2]}"
            yield Change("order.roles", said, {number: redone(replay, node, (*node.args[:2], place))})


def _part_text(node: Node) -> str:
    return f"part {node.args[1]}" if node.name == "@item" else f"{node.name} {', '.join(map(str, node.args[2:4]))}"


def other_place(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """One place further or less: of slices, picked places, diagonals, rolls and numbered places; the other end; the other direction."""
    program = replay.program
    name, ref = node.name, ref_at(node, 0)
    if name == "slice" and ref is not None and len(node.args) >= 4:
        axis, start, end = node.args[1:4]
        length = shape_at(replay, ref)[axis]
        begin, finish = start or 0, min(end if end is not None and end >= 0 else length + (end or 0) if end else length, length)
        kind = "padding.shift" if program.nodes[ref].name in _BORDERED else "position.offset"
        for shift in (1, -1):
            if begin + shift >= 0 and finish + shift <= length:
                said = (
                    f"the port takes places {begin + shift} to {finish + shift} of {program.text(ref)}, the reference {begin} to {finish}"
                )
                yield Change(
                    kind,
                    said,
                    {number: redone(replay, node, (node.args[0], axis, begin + shift, finish + shift, *node.args[4:]))},
                )
        if finish - begin < length:
            said = f"the port takes the first {finish - begin} places of {program.text(ref)}, the reference {begin} to {finish}"
            yield Change(kind, said, {number: redone(replay, node, (node.args[0], axis, 0, finish - begin))})
            said = f"the port takes the last {finish - begin} places of {program.text(ref)}, the reference {begin} to {finish}"
            yield Change(kind, said, {number: redone(replay, node, (node.args[0], axis, length - finish + begin, length))})
    if name == "select" and ref is not None:
        length = shape_at(replay, ref)[node.args[1]]
        for place in dict.fromkeys((0, length - 1, node.args[2] % length + 1, node.args[2] % length - 1)):
            if 0 <= place < length and place != node.args[2] % length:
                said = f"the port picks place {place} of {program.text(ref)}, the reference {node.args[2]}"
                yield Change("position.offset", said, {number: redone(replay, node, (*node.args[:2], place))})
    if name in ("tril", "triu", "diagonal") and ref is not None:
        diagonal = node.args[1] if len(node.args) > 1 else 0
        for shift in (1, -1):
            yield Change(
                "mask.wrong",
                f"the port's {name} begins {shift} further",
                {number: redone(replay, node, (node.args[0], diagonal + shift, *node.args[2:]))},
            )
    if name == "roll":
        yield from _other_roll(replay, number, node)
    if name == "arange" and len(node.args) > 1 and node.args[0]:
        said = f"the port counts from 0, the reference from {node.args[0]}"
        yield Change("position.offset", said, {number: _further(replay, node, -node.args[0])})
    if name in _COUNTING and replay.values[number].dtype.kind in "iu":
        for shift in dict.fromkeys(
            (*(size for size in shape_at(replay, number) if size > 1), *(-size for size in shape_at(replay, number)))
        ):
            yield Change("position.offset", f"the port counts {shift:+d} further", {number: _further(replay, node, shift)})
    if name == "arange" or (name == "add" and replay.values[number].dtype.kind in "iu"):
        for shift in (1, -1):
            yield Change("position.offset", f"the port counts {shift:+d} further", {number: _further(replay, node, shift)})
    if name in ("embedding", "index", "index_select", "gather", "_unsafe_index"):
        yield from _other_index(replay, number, node)


def _other_roll(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Rolled the other way, by the shifts of other axes, along some of the axes only, or one place more or less."""
    own, ref = list(node.args[1]), node.refs[0]
    tried = [[-one for one in own], *map(list, product(dict.fromkeys((*own, 0)), repeat=len(own)))]
    tried += [[one + step * (place == axis) for place, one in enumerate(own)] for axis in range(len(own)) for step in (1, -1)]
    for shifts in tried if len(own) <= THRESHOLDS.most_axes_rolled else tried[:1]:
        if shifts != own:
            said = f"the port rolls {replay.program.text(ref)} by {tuple(shifts)}, the reference by {tuple(own)}"
            yield Change("padding.shift", said, {number: redone(replay, node, (node.args[0], shifts, *node.args[2:]))})


_COUNTING = frozenset(("arange", "add", "sub", "cumsum", "masked_fill"))
"""Operations that give numbered places."""


def other_whole_number(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Twice or half of a whole number that an operation is given, or one more or less."""
    if node.name in ("view", "_unsafe_view", "expand", "slice", "select", "arange", "split") or node.name.startswith("@"):
        return
    for place, value in enumerate(node.args):
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1 and (place > 0 or node.name == "full"):
            for other in (2 * value, value // 2, value + 1, value - 1):
                said = f"the port's {node.name.strip('_')} is given {other}, the reference's {value}"
                kind = "order.channels" if node.name in REARRANGING else "scale"
                yield Change(kind, said, {number: redone(replay, node, (*node.args[:place], other, *node.args[place + 1 :]))})


def counted_plainly(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Every place along an axis is numbered, where the reference counts some of them, such as those that are no padding."""
    target = replay.program.target
    counted, made = replay.values[number], replay.values[target]
    axis = axes_of(node.args[1]) if node.name == "cumsum" and len(node.args) > 1 else None
    if axis is None or not isinstance(made, np.ndarray) or made.dtype.kind not in "iu" or made.shape != counted.shape:
        return
    place = np.arange(made.shape[axis[0]]).reshape([-1 if one == axis[0] % made.ndim else 1 for one in range(made.ndim)])
    for first in (0, 1):
        said = f"the port numbers every place from {first}, the reference counts {replay.program.text(next(iter(node.refs)))}"
        yield Change("position.offset", said, {target: partial(_numbered, np.broadcast_to(place + first, made.shape))})


def _numbered(numbers: Array, values: Values) -> Array:
    return numbers


def _further(replay: Replay, node: Node, shift: int) -> Compute:
    return lambda values: replay.apply(node, values) + shift


def _other_index(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    for ref in node.refs:
        values = replay.values[ref]
        if isinstance(values, np.ndarray) and values.dtype.kind in "iu" and values.size > 1:
            for shift in (1, -1):

                def looked(given: Values, ref: int = ref, shift: int = shift) -> Any:
                    top = int(given[ref].max())
                    return replay.apply(node, {**given, ref: np.clip(given[ref] + shift, 0, top if shift < 0 else top + 1)})

                yield Change("position.offset", f"the port looks up {shift:+d} place from {replay.program.text(ref)}", {number: looked})


def other_view(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A reshape without the transposition before it, an axis taken apart the other way, axes of one length exchanged."""
    program, ref = replay.program, ref_at(node, 0)
    if ref is None:
        return
    shape = shape_at(replay, number)
    if node.name in VIEWS:
        inner = ref
        while inner not in program.leaves and program.nodes[inner].name in ("clone", "contiguous", "_to_copy"):
            inner = next(iter(program.nodes[inner].refs))
        if inner not in program.leaves and program.nodes[inner].name in ("permute", "transpose"):
            source = next(iter(program.nodes[inner].refs))
            said = f"the port reshapes {program.text(source)} without the transposition"
            yield Change("heads.layout", said, {number: lambda values: np.reshape(values[source], shape)})
        yield from _other_factors(replay, number, ref)
        yield from _flattened(replay, number, ref)
    if node.name in ("permute", "transpose"):
        for a in range(len(shape)):
            for b in range(a + 1, len(shape)):
                if shape[a] == shape[b] > 1:
                    said = f"the port exchanges axes {a} and {b} of {program.text(number)}"
                    yield Change("order.channels", said, {number: _axes_exchanged(replay, node, a, b)})


def _flattened(replay: Replay, number: int, ref: int) -> Iterator[Change]:
    """Axes that a reshape makes one, in another order: channels behind rows and columns, the two factors of a pixel's block exchanged."""
    own, shape = shape_at(replay, ref), shape_at(replay, number)
    for start, stop in _merged(own, shape):
        axes = [axis for axis in range(start, stop) if own[axis] > 1]
        for order in list(permutations(axes))[1:] if 1 < len(axes) <= THRESHOLDS.most_axes_flattened else ():
            whole = list(range(len(own)))
            for place, axis in zip(axes, order, strict=True):
                whole[place] = axis
            said = f"the port flattens axes {tuple(axes)} of {replay.program.text(ref)} in the order {order}"
            yield Change("order.channels", said, {number: _flattened_in(ref, tuple(whole), shape)})


def _merged(own: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """The runs of axes that a reshape makes one axis each, as where they start and stop."""
    start = 0
    for size in shape:
        stop, merged = start, 1
        while stop < len(own) and (merged < size or (own[stop] == 1 and stop == start)):
            merged *= own[stop]
            stop += 1
        if merged != size:
            return
        if stop - start > 1:
            yield start, stop
        start = stop


def _flattened_in(ref: int, order: tuple[int, ...], shape: tuple[int, ...]) -> Compute:
    return lambda values: np.reshape(np.transpose(values[ref], order), shape)


def _other_factors(replay: Replay, number: int, ref: int) -> Iterator[Change]:
    """An axis taken apart into the same factors in another order: heads, and what each holds of queries, keys and values or of pairs."""
    own, shape = shape_at(replay, ref), shape_at(replay, number)
    axis = next((place for place, (a, b) in enumerate(zip(own, shape, strict=False)) if a != b), None)
    if axis is None or not all(shape):
        return
    behind = next((count for count in range(len(shape) - axis) if own[axis + 1 :] == shape[len(shape) - count :]), 0)
    factors = [size for size in shape[axis : len(shape) - behind] if size > 1]
    if math.prod(factors) != own[axis] or not 2 <= len(factors) <= 3:
        return
    for finer in _finer(factors):
        for order in list(permutations(range(len(finer))))[1:]:
            given = [finer[place] for place in np.argsort(order)]
            said = f"the port takes an axis of {replay.program.text(ref)} apart as {tuple(given)}, the reference as {tuple(finer)}"
            yield Change("heads.layout", said, {number: _taken_apart(ref, axis, given, order, shape)})


def _finer(factors: list[int]) -> Iterator[list[int]]:
    """Factors, and of two also with the last taken apart again: into two or three parts, or into pairs."""
    yield factors
    if len(factors) == 2:
        first, last = factors
        yield from ([first, parts, last // parts] for parts in dict.fromkeys((2, 3, last // 2)) if 1 < parts < last and last % parts == 0)


def _taken_apart(ref: int, axis: int, given: Sequence[int], order: Sequence[int], shape: tuple[int, ...]) -> Compute:
    """An axis as factors that lie in the order ``given`` in memory, put in the order that the reference has."""

    def compute(values: Values) -> Array:
        x = values[ref]
        apart = x.reshape(*x.shape[:axis], *given, *x.shape[axis + 1 :])
        places = [*range(axis), *(axis + place for place in order), *range(axis + len(given), apart.ndim)]
        return np.transpose(apart, places).reshape(shape)

    return compute


def _axes_exchanged(replay: Replay, node: Node, a: int, b: int) -> Compute:
    return lambda values: np.swapaxes(replay.apply(node, values), a, b)


def other_padding(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Padding of another mode, or on the other side; a convolution padded by something else than zeros, in front or behind."""
    program, ref = replay.program, ref_at(node, 0)
    if ref is None:
        return
    if node.name in _PADS:
        widths = widths_of(node.args[1])
        for mode in ("constant", "reflect", "edge"):
            if mode != _PADS[node.name]:
                yield Change("padding.mode", f"the port pads {program.text(ref)} by {_MODES[mode]}", {number: _padded(ref, widths, mode)})
        for where, moved in _moved(widths):
            yield Change("padding.shift", f"the port pads {program.text(ref)} {where}", {number: _padded(ref, moved, _PADS[node.name])})
    if node.name == "convolution" and any(node.args[4]) and not node.args[6]:
        widths = [(one, one) for one in node.args[4]]
        bare = (*node.args[:4], [0] * len(widths), *node.args[5:])
        tries = [("padding.mode", f"by {_MODES[mode]}", widths, mode) for mode in ("reflect", "edge")]
        tries += [("padding.shift", where, moved, "constant") for where, moved in _moved(widths)]
        for kind, text, around, mode in tries:

            def convolved(values: Values, around: Any = around, mode: str = mode) -> Any:
                return replay.apply(node, {**values, ref: padded(values[ref], around, mode)}, args=bare)

            yield Change(kind, f"the port pads {program.text(ref)} {text}", {number: convolved})


def written_elsewhere(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A run of values that is written into a longer one, at its beginning, its end, its middle, or one place further."""
    if node.name != "@write" or len(node.args[2]) != 1 or node.args[3] != [1]:
        return
    start, length = node.args[1], shape_at(replay, node.refs[0])[0] - node.args[2][0]
    for place in dict.fromkeys((0, length, length // 2, start + 1, start - 1)):
        if 0 <= place <= length and place != start:
            said = f"the port has {replay.program.text(node.refs[-1])} at places {place} on, the reference at {start} on, of {length} more"
            yield Change("padding.shift", said, {number: redone(replay, node, (node.args[0], place, *node.args[2:]))})


def other_kernel(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A convolution whose kernel lies otherwise: axes of one length exchanged, or read from the other end."""
    weight = ref_at(node, 1)
    if node.name != "convolution" or weight is None:
        return
    shape = shape_at(replay, weight)
    axes = [axis for axis in range(2, len(shape)) if shape[axis] > 1]
    turns: dict[str, Callable[[Array], Array]] = {}
    for a, b in combinations([axis for axis in range(len(shape)) if shape[axis] > 1], 2):
        if shape[a] == shape[b]:
            turns[f"with axes {a} and {b} exchanged"] = partial(np.swapaxes, axis1=a, axis2=b)
    for some in ([tuple(axes)] if len(axes) > 1 else []) + [(axis,) for axis in axes]:
        turns[f"from the other end along {some}"] = partial(np.flip, axis=some)
    for text, turn in turns.items():

        def convolved(values: Values, turn: Callable[[Array], Array] = turn) -> Any:
            return replay.apply(node, {**values, weight: turn(values[weight])})

        said = f"the port reads the kernel {replay.program.text(weight)} {text}"
        yield Change("weights.layout", said, {number: convolved}, lost=(weight,))


_MODES = {"constant": "zeros", "reflect": "reflection", "edge": "its edges"}


def _moved(widths: Sequence[tuple[int, int]]) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """The same number of places in front, behind, exchanged, or one of them moved."""
    for where, move in (
        ("in front only", lambda before, after: (before + after, 0)),
        ("behind only", lambda before, after: (0, before + after)),
        ("with front and back exchanged", lambda before, after: (after, before)),
        ("one place later", lambda before, after: (before + 1, after - 1)),
        ("one place earlier", lambda before, after: (before - 1, after + 1)),
    ):
        moved = [move(*width) if any(width) else width for width in widths]
        if moved != list(widths):
            yield where, moved


def _padded(ref: int, widths: Sequence[tuple[int, int]], mode: str) -> Compute:
    return lambda values: padded(values[ref], widths, mode)
