"""Rotary positions: of neighbouring channels or of halves, and of places further along than the reference's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tracediff.causes.operation_edits.base import SUMS, Change, is_float, own_value, ref_at, shape_at
from tracediff.causes.program import Replay
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.replay.computed import Compute, Values
from tracediff.trace.operations import Node


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


def rotated_further(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """What is rotated by angles of later or earlier places: one, the whole length, or as if each row and call began at 0.

    All rotations at once, then each: queries alone, or keys alone, see all others at another distance.
    """
    if number != replay.program.target:
        return
    found = [turn for step in replay.program.steps if (turn := _turn(replay, step)) is not None]
    for some in ([found] if len(found) > 1 else []) + [[one] for one in found]:
        if len({one.angles for one in some}) == 1:
            text = " and ".join(replay.program.text(one.rotation.start) for one in some[:2])
            for said, further in some[0].shifts():
                at = {one.rotation.start: _turned(replay, one, further) for one in some}
                yield Change("position.offset", f"the port rotates {text} {said}", at)


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """A rotation by angles (B, T, pairs) that are places times frequencies (pairs); ``angles`` is the node of these."""

    rotation: _Rotation
    angles: int
    frequencies: Array
    places: Array

    def shifts(self) -> Iterator[tuple[str, Array]]:
        """In words and as numbers (B, T, 1) by how many places the port may be off; padded ones may be numbered on below the first."""
        length = self.places.shape[-2]
        counted = np.broadcast_to(np.arange(length)[:, None], self.places.shape)
        below = counted - counted[..., -1:, :] + self.places[..., -1:, :]
        is_padded = not np.array_equal(below, self.places)
        for shift in dict.fromkeys((1, -1, length, -length)):
            yield f"by angles of {shift:+d} places", np.full_like(self.places, shift)
            if is_padded:
                yield f"by angles of {shift:+d} places, padded ones by those below 0", below + shift - self.places
        if not np.array_equal(counted, self.places):
            yield "as if places were counted from 0 in every row of every call", counted - self.places


def _turn(replay: Replay, number: int) -> _Turn | None:
    """The rotation that a node ends, where the cosines are those of numbered places times frequencies."""
    program, rotation = replay.program, _rotation(replay, number)
    if rotation is None or rotation.axes != 1:
        return None
    pairs = shape_at(replay, rotation.start)[-1] // 2
    made = program.ancestors(number) - program.ancestors(rotation.start) - program.leaves.keys()
    for angles in (program.nodes[step].refs[0] for step in sorted(made) if program.nodes[step].name == "cos"):
        sizes = shape_at(replay, angles)
        given = [one for one in program.ancestors(angles) if is_float(replay, one) and max(shape_at(replay, one), default=0) == pairs]
        given = [one for one in given if replay.values[one].size == pairs]
        if len(sizes) > 1 and given and sizes[-1] in (pairs, 2 * pairs):
            own = replay.values[angles]
            for each in (own[..., :pairs], own[..., :: sizes[-1] // pairs]):
                if (places := _places_of(each, replay.values[given[0]].reshape(pairs))) is not None:
                    return _Turn(rotation, angles, replay.values[given[0]].reshape(pairs), places)
    return None


def _places_of(angles: Array, frequencies: Array) -> Array | None:
    """The whole numbers (..., T, 1) that give angles (..., T, pairs) times frequencies (pairs); None where there are no such."""
    if not (frequencies > 0).all() or not np.isfinite(angles).all():
        return None
    places = np.rint(angles[..., :1] / frequencies[0])
    return places if np.allclose(places * frequencies, angles, rtol=THRESHOLDS.even_steps, atol=THRESHOLDS.even_steps) else None


def _turned(replay: Replay, turn: _Turn, further: Array) -> Compute:
    """What is rotated, rotated by so many places already."""
    more = further * turn.frequencies

    def compute(values: Values) -> Array:
        x = np.asarray(own_value(replay, turn.rotation.start, values))
        axis = next(axis for axis in (x.ndim - 2, x.ndim - 3) if x.shape[axis] == more.shape[-2])
        angles = more
        while angles.ndim < x.ndim:
            angles = np.expand_dims(angles, -3 if axis == x.ndim - 2 else -2)
        cos, sin = np.cos(angles), np.sin(angles)
        first, second = np.split(x, 2, -1) if turn.rotation.of_halves else (x[..., ::2], x[..., 1::2])
        made = np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
        return made if turn.rotation.of_halves else _in_turn(made)

    return compute
