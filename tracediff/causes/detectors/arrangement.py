"""Causes that only move values: channels in another order, halves swapped, an axis reversed or shifted, heads taken apart wrongly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import permutations

import numpy as np

from tracediff.causes.proof import Claim, Edit
from tracediff.causes.scene import Scene
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array


def detect(scene: Scene) -> Iterable[Claim]:
    """The port's tensor is the reference's with its values moved."""
    if not scene.is_numeric:
        return
    reference, port = scene.tensors()
    if _is_unguided(scene, reference, port):
        evidence = "the second half of the port's batch is what its first half is; the reference's is not: it runs without the condition"
        yield Claim("cfg.formula", THRESHOLDS.sure_batch_unguided, evidence, Edit(_unguided(reference)))
        return
    for axis in range(reference.ndim - 1, -1, -1):
        if reference.shape[axis] > 1:
            found = list(_along(scene, reference, port, axis))
            yield from found
            if found:
                return
    yield from _half_reversed(scene, reference)
    yield from _heads(scene, reference)
    yield from _taken_apart(scene, reference)
    yield from _roles(scene)


def _is_unguided(scene: Scene, reference: Array, port: Array) -> bool:
    """Whether the half of a batch that is to run without a condition is given the condition of the other half."""
    if reference.ndim < 2 or not reference.shape[0] or reference.shape[0] % 2:
        return False
    (given, free), (theirs, _) = np.split(reference, 2), np.split(port, 2)
    noise = THRESHOLDS.same_form_noise * scene.limit * np.linalg.norm(given)
    is_kept = np.linalg.norm(theirs - given) <= noise < np.linalg.norm(given - free)
    return bool(is_kept and scene.reproduces(_unguided(reference)))


def _unguided(batch: Array) -> Array:
    """A batch with its first half in the place of its second."""
    given, _ = np.split(batch, 2)
    return np.concatenate([given, given])


def _along(scene: Scene, reference: Array, port: Array, axis: int) -> Iterable[Claim]:
    """Values moved along one axis: in reverse, in parts, by a shift, or one by one."""
    if scene.reproduces(theirs := np.flip(reference, axis)):
        evidence = f"the port's values are the reference's in reverse along axis {axis}"
        yield Claim("order.reversed", THRESHOLDS.sure_reversed, evidence, Edit(theirs))
        return
    found = list(_parts_exchanged(scene, reference, axis)) or list(_shifted(scene, reference, port, axis))
    yield from found or _matched(scene, reference, port, axis)


def _half_reversed(scene: Scene, reference: Array) -> Iterable[Claim]:
    """One half of the channels in reverse along another axis, as what a recurrent layer gives of the other direction."""
    for split in range(reference.ndim - 1, 0, -1):
        if reference.shape[split] % 2:
            continue
        first, second = np.split(reference, 2, split)
        for axis in (axis for axis in range(reference.ndim) if axis != split and reference.shape[axis] > 1):
            for name, parts in (("second", (first, np.flip(second, axis))), ("first", (np.flip(first, axis), second))):
                if scene.reproduces(theirs := np.concatenate(parts, split)):
                    evidence = f"the {name} half along axis {split} is the reference's in reverse along axis {axis}"
                    yield Claim("order.reversed", THRESHOLDS.sure_reversed, evidence, Edit(theirs))
                    return


def _parts_exchanged(scene: Scene, reference: Array, axis: int) -> Iterable[Claim]:
    """Halves, thirds or quarters in another order; each of one slice alone, they are no parts."""
    for parts in (2, 3, 4):
        if reference.shape[axis] % parts == 0 and (parts == 2 or reference.shape[axis] > parts):
            blocks = np.split(reference, parts, axis)
            for order in list(permutations(range(parts)))[1:]:
                if scene.reproduces(theirs := np.concatenate([blocks[part] for part in order], axis)):
                    evidence = f"along axis {axis} the port has the {parts} parts in the order {tuple(part + 1 for part in order)}"
                    yield Claim("order.concat", THRESHOLDS.sure_parts_exchanged, evidence, Edit(theirs))
                    return


def _shifted(scene: Scene, reference: Array, port: Array, axis: int) -> Iterable[Claim]:
    """The inside of the tensor agrees after a shift by a few places."""
    length = reference.shape[axis]
    if length < THRESHOLDS.least_shifted:
        return
    most_left = THRESHOLDS.reproduced * np.linalg.norm(port - reference)
    most_shifted = min(THRESHOLDS.shifts_tried, length // 2)
    for shift in (sign * count for count in range(1, most_shifted + 1) for sign in (1, -1)):
        ours, theirs = _overlap(reference, port, axis, shift)
        if np.linalg.norm(theirs - ours) <= most_left and np.ptp(ours) > 0:
            is_position = "embed" in scene.sides[0].type.lower() or "posit" in scene.site.lower()
            direction = "later" if shift > 0 else "earlier"
            evidence = f"along axis {axis} the port's values stand {abs(shift)} place(s) {direction} than the reference's"
            kind = "position.offset" if is_position else "padding.shift"
            edit = Edit(_shifted_values(reference, port, axis, shift)) if abs(shift) <= THRESHOLDS.border * length else None
            yield Claim(kind, THRESHOLDS.sure_shifted, evidence, edit)
            return


def _shifted_values(reference: Array, port: Array, axis: int, shift: int) -> Array:
    """The reference's values ``shift`` places later; where nothing of the reference comes to stand, the port's own."""
    made = port.copy()
    ours, _ = _overlap(reference, port, axis, shift)
    _, theirs = _overlap(reference, made, axis, shift)
    theirs[...] = ours
    return made


def _overlap(reference: Array, port: Array, axis: int, shift: int) -> tuple[Array, Array]:
    """Where both have values if the port's are the reference's, ``shift`` places later."""

    def cut(array: Array, start: int, stop: int | None) -> Array:
        return array[(slice(None),) * axis + (slice(start, stop),)]

    if shift > 0:
        return cut(reference, 0, -shift), cut(port, shift, None)
    return cut(reference, -shift, None), cut(port, 0, shift)


def _matched(scene: Scene, reference: Array, port: Array, axis: int) -> Iterable[Claim]:
    """Each index of an axis has its values somewhere else along that axis."""
    length = reference.shape[axis]
    if not THRESHOLDS.least_matched_axis <= length <= THRESHOLDS.longest_matched_axis:
        return
    if reference.size < THRESHOLDS.least_slice * length:
        return
    slices = np.moveaxis(reference, axis, 0)
    places = _places(slices.reshape(length, -1), np.moveaxis(port, axis, 0).reshape(length, -1))
    if np.array_equal(places, np.arange(length)) or not scene.reproduces(theirs := np.moveaxis(slices[places], 0, axis)):
        return
    if np.array_equal(places, np.roll(np.arange(length), -int(places[0]))):
        evidence = f"along axis {axis} the port has the first {int(places[0])} of the reference's {length} slices behind the others"
        yield Claim("order.concat", THRESHOLDS.sure_parts_exchanged, evidence, Edit(theirs))
        return
    parts = _stacked_otherwise(places)
    if parts:
        evidence = f"along axis {axis} the port has each {len(parts)} neighbours in the order {tuple(part + 1 for part in parts)}"
        yield Claim("order.concat", THRESHOLDS.sure_parts_exchanged, evidence, Edit(theirs))
        return
    kind = "order.channels" if axis in (reference.ndim - 1, 1) else "order.roles"
    evidence = f"along axis {axis} the port has the same {length} slices in the order {_brief(places)}"
    yield Claim(kind, THRESHOLDS.sure_slices_moved, evidence, Edit(theirs))


def _stacked_otherwise(places: Array) -> list[int]:
    """The order of a few parts that were stacked on an axis of their own and flattened, (slices,) being their places; [] for no such."""
    for count in (2, 3, 4):
        if len(places) % count == 0 and len(places) > count:
            runs = places.reshape(-1, count) - np.arange(0, len(places), count)[:, None]
            if (runs == runs[0]).all() and sorted(runs[0].tolist()) == list(range(count)):
                return [int(place) for place in runs[0]]
    return []


def _places(ours: Array, theirs: Array) -> Array:
    """Which of the reference's slices each of the port's is, (slices,); both given as (slices, values), matched by a random projection."""
    keys = np.random.default_rng(0).standard_normal(ours.shape[1])
    places = np.empty(len(ours), int)
    places[np.argsort(theirs @ keys)] = np.argsort(ours @ keys)
    return places


def _brief(places: Array) -> str:
    shown = ", ".join(str(int(place)) for place in places[:6])
    return f"({shown}{', ...' if len(places) > 6 else ''})"


def _heads(scene: Scene, reference: Array) -> Iterable[Claim]:
    """Heads put together without being brought beside their channels again, or the other way round."""
    for axis in range(reference.ndim - 1):
        length, width = reference.shape[axis : axis + 2]
        before, after = reference.shape[:axis], reference.shape[axis + 2 :]
        for heads in _divisors(width):
            apart = reference.reshape(*before, length, heads, width // heads, *after)
            together = reference.reshape(*before, heads, length, width // heads, *after)
            ways = (np.swapaxes(one, axis, axis + 1).reshape(reference.shape) for one in (apart, together))
            theirs = next(filter(scene.reproduces, ways), None)
            if theirs is not None:
                evidence = f"the port reshapes where {heads} heads of {width // heads} should be transposed"
                yield Claim("heads.layout", THRESHOLDS.sure_heads_reshaped, evidence, Edit(theirs))
                return


def _taken_apart(scene: Scene, reference: Array) -> Iterable[Claim]:
    """An axis was taken apart, and put together in another order of its parts; or a reshape stands where a transposition was meant."""
    for first in range(reference.ndim):
        for last in range(first + 1, reference.ndim + 1):
            joined = math.prod(reference.shape[first:last])
            for inner in _divisors(joined):
                outer = joined // inner
                flat = reference.reshape(*reference.shape[:first], outer, inner, *reference.shape[last:])
                if scene.reproduces(theirs := np.swapaxes(flat, first, first + 1).reshape(reference.shape)):
                    evidence = f"the port reads {joined} values as ({inner}, {outer}) where the reference has ({outer}, {inner})"
                    yield Claim("heads.layout", THRESHOLDS.sure_axis_taken_apart, evidence, Edit(theirs))
                    return


def _is_multiple(scene: Scene, values: Array) -> bool:
    """Whether the reference is a multiple of a tensor: a port that hands the tensor on lacks the factor, and has the right tensor."""
    reference, _ = scene.tensors()
    size = float(np.vdot(values, values))
    return bool(size) and scene.is_reference(values * (float(np.vdot(values, reference)) / size))


def _divisors(number: int) -> list[int]:
    largest = min(number // 2, THRESHOLDS.largest_divisor)
    return [divisor for divisor in range(2, largest + 1) if number % divisor == 0][: THRESHOLDS.divisors_tried]


def _roles(scene: Scene) -> Iterable[Claim]:
    """The port has here what the reference has somewhere else in hand."""
    reference, _ = scene.tensors()
    for one in scene.beside:
        if one.values.shape == reference.shape and scene.reproduces(one.values):
            evidence = f"the port hands over here what is {one.name} in the reference"
            yield Claim("order.roles", THRESHOLDS.sure_other_argument, evidence, Edit(one.values))
            return
    for one in scene.of_shape():
        if scene.reproduces(one.values) and not one.is_input and not _is_multiple(scene, one.values):
            yield Claim("order.roles", THRESHOLDS.sure_other_tensor, f"the port has here what {one.name} returned", Edit(one.values))
            return
