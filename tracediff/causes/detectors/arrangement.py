"""Causes that only move values: channels in another order, halves swapped, an axis reversed or shifted, heads taken apart wrongly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import permutations

import numpy as np

from tracediff.causes.scene import Scene, Suspect
from tracediff.dtype import Array

_LONGEST = 4096  # of an axis whose indices are matched one to one
_SHIFTS = 8
_LEAST = 4
"""Along fewer places one slice that is like its neighbour would be a shift."""


def detect(scene: Scene) -> Iterable[Suspect]:
    """The port's tensor is the reference's with its values moved."""
    if not scene.is_numeric:
        return
    reference, port = scene.tensors()
    if _is_unguided(scene, reference, port):
        told = "the second half of the port's batch is what its first half is; the reference's is not: it runs without the condition"
        yield Suspect("cfg.formula", 0.85, True, told)
        return
    for axis in range(reference.ndim - 1, -1, -1):
        if reference.shape[axis] > 1:
            found = list(_along(scene, reference, port, axis))
            yield from found
            if found:
                return
    yield from _heads(scene, reference)
    yield from _taken_apart(scene, reference)
    yield from _roles(scene)


def _is_unguided(scene: Scene, reference: Array, port: Array) -> bool:
    """Whether the half of a batch that is to run without a condition is given the one of the other half."""
    if reference.ndim < 2 or not reference.shape[0] or reference.shape[0] % 2:
        return False
    (given, free), (theirs, _) = np.split(reference, 2), np.split(port, 2)
    noise = 10 * scene.limit * np.linalg.norm(given)
    is_kept = np.linalg.norm(theirs - given) <= noise < np.linalg.norm(given - free)
    return bool(is_kept and scene.reproduces(np.concatenate([given, given])))


def _along(scene: Scene, reference: Array, port: Array, axis: int) -> Iterable[Suspect]:
    length = reference.shape[axis]
    name = f"axis {axis}"
    if scene.reproduces(np.flip(reference, axis)):
        yield Suspect("order.reversed", 0.95, True, f"the port's values are the reference's in reverse along {name}")
        return
    for parts in (2, 3, 4):
        if length % parts == 0:
            blocks = np.split(reference, parts, axis)
            for order in list(permutations(range(parts)))[1:]:
                if scene.reproduces(np.concatenate([blocks[i] for i in order], axis)):
                    told = f"along {name} the port has the {parts} parts in the order {tuple(i + 1 for i in order)}"
                    yield Suspect("order.concat", 0.9, True, told)
                    return
    found = list(_shifted(scene, reference, port, axis))
    yield from found or _matched(scene, reference, port, axis)


def _shifted(scene: Scene, reference: Array, port: Array, axis: int) -> Iterable[Suspect]:
    """The inside of the tensor agrees after a shift by a few places."""
    length = reference.shape[axis]
    if length < _LEAST:
        return
    made = np.linalg.norm(port - reference)
    for shift in (sign * count for count in range(1, min(_SHIFTS, length // 2) + 1) for sign in (1, -1)):
        ours, theirs = _overlap(reference, port, axis, shift)
        if np.linalg.norm(theirs - ours) <= 0.02 * made and np.ptp(ours) > 0:
            kind = "position.offset" if "embed" in scene.sides[0].type.lower() or "posit" in scene.site.lower() else "padding.shift"
            which = "later" if shift > 0 else "earlier"
            told = f"along axis {axis} the port's values stand {abs(shift)} place(s) {which} than the reference's"
            yield Suspect(kind, 0.85, True, told)
            return


def _overlap(reference: Array, port: Array, axis: int, shift: int) -> tuple[Array, Array]:
    """Where both have values if the port's are the reference's, ``shift`` places later."""

    def cut(array: Array, start: int, stop: int | None) -> Array:
        return array[(slice(None),) * axis + (slice(start, stop),)]

    if shift > 0:
        return cut(reference, 0, -shift), cut(port, shift, None)
    return cut(reference, -shift, None), cut(port, 0, shift)


def _matched(scene: Scene, reference: Array, port: Array, axis: int) -> Iterable[Suspect]:
    """Each index of an axis has its values somewhere else along that axis."""
    length = reference.shape[axis]
    if length > _LONGEST or reference.size < 4 * length or length < 3:
        return
    ours = np.moveaxis(reference, axis, 0).reshape(length, -1)
    theirs = np.moveaxis(port, axis, 0).reshape(length, -1)
    keys = np.random.default_rng(0).standard_normal(ours.shape[1])
    order_ours, order_theirs = np.argsort(ours @ keys), np.argsort(theirs @ keys)
    places = np.empty(length, int)
    places[order_theirs] = order_ours
    if np.array_equal(places, np.arange(length)):
        return
    moved = np.moveaxis(ours[places].reshape(length, *np.delete(reference.shape, axis)), 0, axis)
    if scene.reproduces(moved):
        if np.array_equal(places, np.roll(np.arange(length), -int(places[0]))):
            told = f"along axis {axis} the port has the first {int(places[0])} of the reference's {length} slices behind the others"
            yield Suspect("order.concat", 0.9, True, told)
            return
        kind = "order.channels" if axis == reference.ndim - 1 or axis == 1 else "order.roles"
        yield Suspect(kind, 0.9, True, f"along axis {axis} the port has the same {length} slices in the order {_brief(places)}")


def _brief(places: Array) -> str:
    shown = ", ".join(str(int(place)) for place in places[:6])
    return f"({shown}{', ...' if len(places) > 6 else ''})"


def _taken_apart(scene: Scene, reference: Array) -> Iterable[Suspect]:
    """An axis was taken apart, and put together in another order of its parts; or a reshape stands where a transposition was meant."""
    for first in range(reference.ndim):
        for last in range(first + 1, reference.ndim + 1):
            joined = math.prod(reference.shape[first:last])
            for inner in _divisors(joined):
                flat = reference.reshape(*reference.shape[:first], joined // inner, inner, *reference.shape[last:])
                if scene.reproduces(np.swapaxes(flat, first, first + 1).reshape(reference.shape)):
                    outer = joined // inner
                    told = f"the port reads {joined} values as ({inner}, {outer}) where the reference has ({outer}, {inner})"
                    yield Suspect("heads.layout", 0.9, True, told)
                    return


def _heads(scene: Scene, reference: Array) -> Iterable[Suspect]:
    """Heads put together without being brought beside their channels again, or the other way round."""
    for axis in range(reference.ndim - 1):
        length, width = reference.shape[axis : axis + 2]
        before, after = reference.shape[:axis], reference.shape[axis + 2 :]
        for heads in _divisors(width):
            apart = reference.reshape(*before, length, heads, width // heads, *after)
            together = reference.reshape(*before, heads, length, width // heads, *after)
            if any(scene.reproduces(np.swapaxes(one, axis, axis + 1).reshape(reference.shape)) for one in (apart, together)):
                yield Suspect("heads.layout", 0.95, True, f"the port reshapes where {heads} heads of {width // heads} should be transposed")
                return


def _divisors(number: int) -> list[int]:
    return [d for d in range(2, min(number // 2, 512) + 1) if number % d == 0][:24]


def _roles(scene: Scene) -> Iterable[Suspect]:
    """The port has here what the reference has somewhere else in hand."""
    reference, _ = scene.tensors()
    for one in scene.beside:
        if one.values.shape == reference.shape and scene.reproduces(one.values):
            yield Suspect("order.roles", 0.95, True, f"the port hands over here what is {one.name} in the reference")
            return
    for one in scene.of_shape():
        if scene.reproduces(one.values) and not one.is_input:
            yield Suspect("order.roles", 0.75, True, f"the port has here what {one.name} returned")
            return
