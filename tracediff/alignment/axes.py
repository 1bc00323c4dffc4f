"""Layouts: how the port's tensor is read as the reference's, and which of the possible ways the values support.

The same numbers may be channels-first in the reference and channels-last in its port, with heads merged or apart, padded before the call,
fused with their neighbours, or spread over many calls. A `Layout` says which, and belongs to one pair of records.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, permutations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.dtype import MASKED, Array
from tracediff.errors import AlignmentError

if TYPE_CHECKING:
    from tracediff.trace import Record

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Join:
    """How several tensors become one: laid end to end along ``axis``, or stacked on a new one.

    ``groups`` > 1 interleaves: the axis of each part is cut into that many equal runs and the runs alternate (per-head fusions). A tensor
    that lacks the axis along which others are laid end to end is one step of it.
    """

    axis: int
    how: Literal["concat", "stack"] = "concat"
    groups: int = 1

    def __call__(self, arrays: Sequence[Array]) -> Array:
        if self.how == "stack":
            return np.stack(arrays, self.axis)
        if self.groups == 1:
            rank = max(array.ndim for array in arrays)
            return np.concatenate([array if array.ndim == rank else np.expand_dims(array, self.axis) for array in arrays], self.axis)
        runs = [_grouped(array, self.axis, self.groups) for array in arrays]
        joined = np.concatenate(runs, self.axis + 1)
        return joined.reshape(*joined.shape[: self.axis], -1, *joined.shape[self.axis + 2 :])

    def parts(self, array: Array, shapes: Sequence[Shape]) -> list[Array]:
        """The tensors that `__call__` would join into ``array``, given their shapes."""
        if self.how == "stack":
            return [np.take(array, index, self.axis) for index in range(len(shapes))]
        runs = _grouped(array, self.axis, self.groups)
        ends = np.cumsum([(shape[self.axis] if len(shape) == array.ndim else 1) // self.groups for shape in shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(runs, ends, self.axis + 1), shapes, strict=True)]


@dataclass(frozen=True, slots=True)
class Part:
    """The slice ``start:stop`` of ``axis``; with ``groups`` > 1, that slice of each of the axis's equal runs."""

    axis: int
    start: int
    stop: int
    groups: int = 1

    def __call__(self, array: Array) -> Array:
        taken = _grouped(array, self.axis, self.groups)[(slice(None),) * (self.axis + 1) + (slice(self.start, self.stop),)]
        return taken.reshape(*array.shape[: self.axis], -1, *array.shape[self.axis + 1 :])


@dataclass(frozen=True, slots=True)
class Layout:
    """How the port's tensor (or tensors) are read as the reference's.

    The port's tensors are joined, cut to the lengths ``crop`` (where its run has more rows or places than the reference's), at the front or
    from ``crop_from`` on, a part is taken, the result is seen as shape ``split``, its axes are permuted, a window is cut, and
    what remains is seen as ``shape``, the shape compared. On the reference's side tensors may be joined, and a part or a window taken, too.
    """

    shape: Shape
    join: Join | None = None
    part: Part | None = None
    split: Shape | None = None
    permutation: tuple[int, ...] | None = None
    window: tuple[tuple[int, int], ...] | None = None
    join_reference: Join | None = None
    part_reference: Part | None = None
    crop: Shape | None = None
    window_reference: tuple[tuple[int, int], ...] | None = None  # what of each axis of the reference's tensor is compared
    crop_from: Shape | None = None  # where along each axis ``crop`` begins; None: at the front
    repeat: Literal["", "reference", "port"] = ""  # which side's slices are repeated along axes on which it is shorter (a mask, heads)

    @property
    def is_same(self) -> bool:
        """Whether both tensors hold the values in the same order, so that they can be compared as they are stored."""
        moved = self.join or self.crop or self.part or self.permutation or self.window or self.join_reference or self.part_reference
        return not (moved or self.repeat or self.window_reference)

    @property
    def leaves_some(self) -> bool:
        """Whether the port's tensors hold values that are not compared: beyond a cut, a part or a window."""
        return bool(self.crop or self.part or self.window)

    @property
    def is_partial(self) -> bool:
        """Whether either side's tensors hold values that are not compared."""
        return self.leaves_some or self.part_reference is not None or self.window_reference is not None

    def turned(self, shape: Shape) -> Shape:
        """A port's shape with its axes as they are split and turned, before a window is cut out.

        >>> Layout((2, 1, 3), permutation=(0, 2, 1), window=((0, 2), (0, 1), (0, 3))).turned((2, 5, 1))
        (2, 1, 5)
        """
        seen = self.split or shape
        return seen if self.permutation is None else tuple(seen[axis] for axis in self.permutation)

    @property
    def is_joined(self) -> bool:
        return self.join is not None or self.join_reference is not None

    def __str__(self) -> str:
        parts = [_side_text("reference", self.join_reference, self.part_reference), _side_text("", self.join, self.part)]
        if self.window_reference is not None:
            parts.append(f"reference [{', '.join(f'{start}:{stop}' for start, stop in self.window_reference)}]")
        if self.crop is not None:
            start = f" from {_shape_text(self.crop_from)}" if self.crop_from is not None else ""
            parts.append(f"cut to {_shape_text(self.crop)}{start}")
        if self.permutation is not None:
            parts.append((f"reshape {_shape_text(self.split)} " if self.split and self.window is None else "") + str(self.permutation))
        elif self.split is not None and not parts[1]:
            parts.append("reshape")
        if self.repeat:
            parts.append("repeated" if self.repeat == "port" else "reference repeated")
        if self.window is not None:
            parts.append(f"window [{', '.join(f'{start}:{stop}' for start, stop in self.window)}]")
        return "; ".join(part for part in parts if part) or "same"


def apply(arrays: Array | Sequence[Array], layout: Layout) -> Array:
    """The port's tensor, or tensors, in the reference's layout: an array of shape ``layout.shape``.

    >>> apply(np.arange(6).reshape(1, 2, 3), Layout((1, 3, 2), permutation=(0, 2, 1))).tolist()
    [[[0, 3], [1, 4], [2, 5]]]
    """
    array = _joined(arrays, layout.join)
    if layout.crop is not None:
        array = array[_cut(layout)]
    if layout.part is not None:
        array = layout.part(array)
    if layout.split is not None:
        array = array.reshape(layout.split)
    if layout.permutation is not None:
        array = array.transpose(layout.permutation)
    if layout.window is not None:
        array = array[tuple(slice(start, stop) for start, stop in layout.window)]
    return _repeated_to(array, layout.shape) if layout.repeat == "port" else array.reshape(layout.shape)


def apply_reference(arrays: Array | Sequence[Array], layout: Layout) -> Array:
    """The reference's tensor, or tensors, as they are compared: joined, and only the part that the port has; shape ``layout.shape``."""
    array = _joined(arrays, layout.join_reference)
    array = layout.part_reference(array) if layout.part_reference is not None else array
    if layout.window_reference is not None:
        array = array[tuple(slice(start, stop) for start, stop in layout.window_reference)]
    return _repeated_to(array, layout.shape) if layout.repeat == "reference" else array.reshape(layout.shape)


def side_by_side(layout: Layout, reference: Sequence[Record], port: Sequence[Record]) -> tuple[Array, Array]:
    """The stored values of a pair of records, both of shape ``layout.shape``, each in its own dtype."""
    return apply_reference([one.read() for one in reference], layout), apply([one.read() for one in port], layout)


def places_in_port(places: Array, layout: Layout, shape: Shape) -> Array:
    """Where in the port's tensor of this ``shape`` the values stand that a layout puts at flat ``places`` of the compared shape.

    >>> places_in_port(np.array([0, 1]), Layout((3, 2), permutation=(1, 0)), (2, 3))
    array([0, 3])
    """
    part, cut = layout.part, layout.crop or shape
    inner = _part_shape(part, cut) if part is not None else cut
    seen = layout.split or inner
    if layout.permutation is not None or layout.window is not None:
        order, turned = layout.permutation or tuple(range(len(seen))), layout.turned(inner)
        starts = [start for start, _ in layout.window] if layout.window is not None else [0] * len(order)
        sizes = tuple(stop - start for start, stop in layout.window) if layout.window is not None else turned
        indices = np.unravel_index(places, sizes)
        moved = {axis: index + start for axis, index, start in zip(order, indices, starts, strict=True)}
        places = np.ravel_multi_index(tuple(moved[axis] for axis in range(len(seen))), seen)
    places = places_in_part(places, part, cut)
    if layout.crop is None:
        return places
    begins = layout.crop_from or (0,) * len(cut)
    within = tuple(index + start for index, start in zip(np.unravel_index(places, cut), begins, strict=True))
    return np.asarray(np.ravel_multi_index(within, shape))


def places_in_reference(places: Array, layout: Layout, shape: Shape) -> Array:
    """Where in the compared shape the values stand that are at flat ``places`` of the port's tensor: the inverse of `places_in_port`.

    For layouts that at most turn axes. ``shape`` is the port's.

    >>> places_in_reference(np.array([0, 3]), Layout((3, 2), permutation=(1, 0)), (2, 3))
    array([0, 1])
    """
    if layout.permutation is None:
        return places
    seen = layout.split or shape
    indices = np.unravel_index(places, seen)
    return np.asarray(
        np.ravel_multi_index(tuple(indices[axis] for axis in layout.permutation), [seen[axis] for axis in layout.permutation])
    )


def places_in_part(places: Array, part: Part | None, shape: Shape) -> Array:
    """Where in a tensor of this ``shape`` the flat ``places`` of a part of it stand."""
    if part is None:
        return places
    axis = part.axis
    grouped = (*shape[:axis], part.groups, shape[axis] // part.groups, *shape[axis + 1 :])
    taken = (*shape[:axis], part.groups, part.stop - part.start, *shape[axis + 1 :])
    indices = list(np.unravel_index(places, taken))
    indices[axis + 1] = indices[axis + 1] + part.start
    return np.asarray(np.ravel_multi_index(tuple(indices), grouped))


def _part_shape(part: Part, shape: Shape) -> Shape:
    return (*shape[: part.axis], (part.stop - part.start) * part.groups, *shape[part.axis + 1 :])


def restore(reference: Array, layout: Layout, port: Sequence[Array]) -> list[Array]:
    """The reference's values in the port's layout: what to hand a port instead of its own ``port`` tensors.

    ``reference`` has the shape ``layout.shape``. Where the reference says nothing (outside a window or a part) the port keeps its own.
    """
    uncut = np.array(_joined(port, layout.join))
    whole = uncut if layout.crop is None else np.array(uncut[_cut(layout)])
    if layout.repeat == "port":
        once = reference[tuple(slice(None, None, length // size) for size, length in zip(whole.shape, layout.shape, strict=True))]
        return [once if layout.crop is None else _with_cut(uncut, layout, once)]
    inner = layout.part(whole) if layout.part is not None else whole
    seen = inner.reshape(layout.split) if layout.split is not None else inner
    seen = seen.transpose(layout.permutation) if layout.permutation is not None else seen
    seen = np.array(seen)
    spot = tuple(slice(start, stop) for start, stop in layout.window) if layout.window is not None else ()
    seen[spot] = reference.reshape(seen[spot].shape)
    if layout.permutation is not None:
        seen = seen.transpose(np.argsort(layout.permutation))
    seen = np.ascontiguousarray(seen).reshape(inner.shape)
    if layout.part is not None:
        runs = _grouped(whole, layout.part.axis, layout.part.groups)
        spot = (slice(None),) * (layout.part.axis + 1) + (slice(layout.part.start, layout.part.stop),)
        runs[spot] = seen.reshape(runs[spot].shape)
        seen = runs.reshape(whole.shape)
    if layout.crop is not None:
        seen = _with_cut(uncut, layout, seen)
    return layout.join.parts(seen, [array.shape for array in port]) if layout.join is not None else [seen]


def _with_cut(array: Array, layout: Layout, inside: Array) -> Array:
    """An array of which what a layout cuts out is exchanged; in place."""
    array[_cut(layout)] = inside
    return array


def layouts(reference: Shape, port: Shape) -> tuple[Layout, ...]:
    """Every way in which a tensor of shape ``port`` can be read as one of shape ``reference``, the plainest first.

    Equal shapes; added or dropped axes of length 1; permuted axes; axes merged or taken apart (heads); and windows, for a port that
    pads before the call. A window's offsets are not yet decided: it starts in the middle. Two shapes of equal size whose axes cannot be
    reconciled so give nothing, although their bytes would fit: such a reshape only excuses an error.

    >>> [str(layout) for layout in layouts((1, 64, 40), (1, 40, 64))]
    ['(0, 2, 1)']
    >>> [str(layout) for layout in layouts((2, 5, 32), (2, 4, 5, 8))]
    ['(0, 2, 1, 3)', '(0, 2, 3, 1)']
    >>> layouts((2, 3), (4,))
    ()
    """
    return _layouts(tuple(reference), tuple(port), _limits())


def readings(reference: Shape, port: Shape) -> tuple[tuple[Layout, ...], ...]:
    """The layouts of two shapes grouped by what they do to the values, the plainest group first: axes of length 1 move for nothing.

    >>> [list(map(str, same)) for same in readings((2, 1, 20), (2, 20, 1))]
    [['reshape', '(0, 2, 1)']]
    """
    return _readings(tuple(reference), tuple(port), _limits())


@lru_cache(maxsize=1 << 14)
def _readings(reference: Shape, port: Shape, limits: tuple[int, ...]) -> tuple[tuple[Layout, ...], ...]:
    groups: dict[tuple[Shape, tuple[int, ...]], list[Layout]] = {}
    for layout in _layouts(reference, port, limits):
        seen = layout.split or port
        order = [axis for axis in layout.permutation or range(len(seen)) if seen[axis] != 1]
        groups.setdefault((_without_ones(seen), tuple(np.argsort(np.argsort(order)).tolist())), []).append(layout)
    return tuple(map(tuple, groups.values()))


def _limits() -> tuple[int, ...]:
    """The thresholds on which the layouts of two shapes depend: what is remembered of the shapes holds for these only."""
    windows = THRESHOLDS.window_rank, THRESHOLDS.window_axes, THRESHOLDS.window_factor, THRESHOLDS.window_extra
    return THRESHOLDS.layout_axes, THRESHOLDS.layout_candidates, *windows


@lru_cache(maxsize=1 << 14)
def _layouts(reference: Shape, port: Shape, limits: tuple[int, ...]) -> tuple[Layout, ...]:
    if math.prod(reference) == math.prod(port):
        found = sorted(dict.fromkeys(_same_size(reference, port)), key=_plainness)
    else:
        found = [*_repeated(reference, port), *sorted(dict.fromkeys(_windows(reference, port)), key=_plainness)]
    return tuple(found[: THRESHOLDS.layout_candidates])


def shared(reference: Shape, port: Shape) -> Layout | None:
    """The layout of two tensors of which one repeats each slice of an axis: keys and values of grouped heads; None where neither does.

    >>> str(shared((2, 8, 9, 16), (2, 2, 9, 16))), shared((2, 8, 9, 16), (2, 3, 9, 16))
    ('repeated', None)
    """
    differ = [(a, b) for a, b in zip(reference, port, strict=True) if a != b] if len(reference) == len(port) else []
    if len(differ) != 1 or not all(differ[0]) or max(differ[0]) % min(differ[0]):
        return None
    return Layout(reference, repeat="port") if differ[0][0] > differ[0][1] else Layout(port, repeat="reference")


def kept(reference: Shape, port: Shape) -> tuple[Layout, ...]:
    """The layouts of two tensors of which one has a single position of an axis, the last or the first, and the other all positions.

    So a decoder computes the logits of the last position only.

    >>> [str(layout) for layout in kept((2, 47, 128), (2, 1, 128))]
    ['reference 46:47 of axis 1', 'reference 0:1 of axis 1']
    >>> [str(layout) for layout in kept((2, 1, 128), (2, 47, 128))]
    ['46:47 of axis 1', '0:1 of axis 1']
    >>> kept((2, 47, 128), (2, 46, 128))
    ()
    """
    differ = [axis for axis, (a, b) in enumerate(zip(reference, port, strict=True)) if a != b] if len(reference) == len(port) else []
    if len(differ) != 1 or 1 not in (reference[differ[0]], port[differ[0]]):
        return ()
    axis = differ[0]
    length = max(reference[axis], port[axis])
    parts = Part(axis, length - 1, length), Part(axis, 0, 1)
    if reference[axis] == length:
        return tuple(Layout(port, part_reference=part) for part in parts)
    return tuple(Layout(reference, part=part) for part in parts)


def cuts(reference: Shape, port: Shape) -> tuple[Layout, ...]:
    """The layouts of two tensors of which one has more of an axis, at most twice as much: its front, its back, or its middle is read.

    >>> [str(layout) for layout in cuts((2, 20, 12), (2, 9, 20))]
    ['reference 0:9 of axis 2; (0, 2, 1)', 'reference 3:12 of axis 2; (0, 2, 1)', 'reference 1:10 of axis 2; (0, 2, 1)']
    """
    found = []
    is_ours = math.prod(reference) > math.prod(port)
    whole, other = (reference, port) if is_ours else (port, reference)
    for axis, size in enumerate(whole):
        for length in sorted({length for length in other if size > length > size // 2 > 0}):
            shape = (*whole[:axis], length, *whole[axis + 1 :])
            if math.prod(shape) == math.prod(other):
                for plain in layouts(*((shape, port) if is_ours else (reference, shape)))[:1]:
                    parts = [Part(axis, start, start + length) for start in dict.fromkeys((0, size - length, (size - length) // 2))]
                    found += [replace(plain, part_reference=part) if is_ours else replace(plain, part=part) for part in parts]
    return tuple(found)


def relative_error(reference: Array, port: Array) -> float:
    """||port - reference|| / ||reference|| of two arrays of equal shape; equal infinities count 0, additive masks' -inf as -1e4."""
    a, b = _plain_numbers(reference), _plain_numbers(port)
    scale = float(np.sqrt(np.dot(a.ravel(), a.ravel())))
    gap = a - b
    error = float(np.sqrt(np.dot(gap.ravel(), gap.ravel())))
    if not math.isfinite(error):
        return math.inf
    return error / scale if scale else (0.0 if error == 0.0 else math.inf)


def error_in(reference: Array, port: Array, layout: Layout) -> float:
    """The relative error of a port's tensor that is read in a layout."""
    return relative_error(apply_reference(reference, layout), apply(port, layout))


def choose(reference: Array, port: Array | Sequence[Array], candidates: Sequence[Layout]) -> tuple[Layout, float]:
    """The layout that the values support, and its relative error: the plainest unless another is clearly better (5 times)."""
    if not candidates:
        raise AlignmentError(f"No layout reads a port's tensor of shape {np.shape(port)} as the reference's {np.shape(reference)}.")
    best, error = candidates[0], math.inf
    for layout in (option for candidate in candidates for option in placed(candidate)):
        seen = relative_error(apply_reference(reference, layout), apply(port, layout))
        if seen < THRESHOLDS.clearly_better * error or (math.isinf(error) and seen < error):
            best, error = layout, seen
    return best, error


def placed(layout: Layout) -> Iterator[Layout]:
    """A layout with its window in the middle, then at the front, then at the back; a layout without a window is yielded as it is."""
    yield layout
    if layout.window is None or layout.split is None or layout.permutation is None:
        return
    sizes = [layout.split[axis] for axis in layout.permutation]
    yield replace(layout, window=tuple((0, stop - start) for start, stop in layout.window))
    yield replace(layout, window=tuple((size - (stop - start), size) for size, (start, stop) in zip(sizes, layout.window, strict=True)))


def likely_axes(reference: Shape, port: Shape) -> tuple[int, ...]:
    """The order of the reference's axes in which most lengths are those of the port: the plain one unless another is better.

    >>> likely_axes((2, 80, 100), (2, 101, 80)), likely_axes((2, 3), (2, 4))
    ((0, 2, 1), (0, 1))
    """
    plain = tuple(range(len(reference)))
    if len(reference) != len(port) or len(port) > THRESHOLDS.layout_axes:
        return plain
    return max(permutations(plain), key=lambda order: sum(reference[axis] == length for axis, length in zip(order, port, strict=True)))


def parse_permutation(text: str) -> tuple[int, ...] | None:
    """The permutation that a mapping file gives as ``"(0, 2, 1)"``; None for ``"same"`` or nothing.

    >>> parse_permutation("(0, 2, 1)"), parse_permutation("same")
    ((0, 2, 1), None)
    """
    if text.strip() in ("", "same"):
        return None
    if not re.fullmatch(r"\(?\s*\d+(\s*,\s*\d+)*\s*,?\s*\)?", text.strip()):
        raise AlignmentError(f"{text!r} is no layout; write 'same' or a permutation of the port's axes such as '(0, 2, 1)'.")
    order = tuple(int(number) for number in re.findall(r"\d+", text))
    if sorted(order) != list(range(len(order))):
        raise AlignmentError(f"{text!r} is no permutation of axes: each of 0 to {len(order) - 1} has to stand in it once.")
    return order


# -- the ways in which two shapes of equal size can meet -------------------------------------------------


def _same_size(reference: Shape, port: Shape) -> Iterator[Layout]:
    if reference == port:
        yield Layout(reference)
    long_reference, long_port = _without_ones(reference), _without_ones(port)
    if long_reference == long_port and reference != port:
        yield Layout(reference, split=reference)
    if max(len(long_reference), len(long_port)) > THRESHOLDS.layout_axes:
        return
    if sorted(long_reference) == sorted(long_port):
        yield from _permuted(reference, port)
        return
    found = [*_merged(reference, port, long_port), *_taken_apart(reference, port, long_reference, long_port)]
    yield from found or _cut_and_merged(reference, long_reference, long_port)


def _permuted(reference: Shape, port: Shape) -> Iterator[Layout]:
    """Permutations of the port's axes; those of length 1 keep their place wherever the ranks agree."""
    if len(reference) == len(port) and sorted(reference) == sorted(port):
        for order in _orders(reference, port):
            if order != tuple(range(len(port))):
                yield Layout(reference, permutation=order)
        return
    long = _without_ones(port)
    for order in _orders(_without_ones(reference), long):
        if order != tuple(range(len(long))):
            yield Layout(reference, split=long, permutation=order)


def _orders(target: Shape, source: Shape) -> Iterator[tuple[int, ...]]:
    """The permutations of ``source`` that give ``target``; axes of length 1 are taken in their order."""

    def extend(order: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(order) == len(target):
            yield order
            return
        free = [axis for axis in range(len(source)) if axis not in order and source[axis] == target[len(order)]]
        for axis in free[:1] if target[len(order)] == 1 else free:
            yield from extend((*order, axis))

    yield from extend(())


def _merged(reference: Shape, port: Shape, long: Shape) -> Iterator[Layout]:
    """Axes of the port permuted and then merged into the fewer axes of the reference (heads apart in the port)."""
    for order in permutations(range(len(long))):
        if _merges([long[axis] for axis in order], reference):
            plain = order == tuple(range(len(long)))
            split = None if long == port else long
            yield Layout(reference, split=long) if plain else Layout(reference, split=split, permutation=order)


def _taken_apart(reference: Shape, port: Shape, long_reference: Shape, long_port: Shape) -> Iterator[Layout]:
    """Axes of the port taken apart into the more axes of the reference and permuted (heads apart in the reference)."""
    for order in permutations(range(len(long_reference))):
        split = tuple(long_reference[axis] for axis in order)
        if _merges(split, port):
            back = tuple(int(place) for place in np.argsort(order))
            yield Layout(reference, split=split, permutation=back if back != tuple(range(len(back))) else None)


def _cut_and_merged(reference: Shape, long_reference: Shape, long_port: Shape) -> Iterator[Layout]:
    """An axis of the port taken apart, the axes permuted, and others merged: heads moved from the channels into the batch."""
    for cut in _cuts(long_port, long_reference):
        for order in permutations(range(len(cut))):
            if order != tuple(range(len(cut))) and _merges([cut[axis] for axis in order], reference):
                yield Layout(reference, split=cut, permutation=order)


def _cuts(port: Shape, reference: Shape) -> Iterator[Shape]:
    """The port's shape with one axis cut in two by a length that the reference's axes suggest."""
    if len(port) + 1 > THRESHOLDS.layout_axes - 1:
        return
    ratios = {a // b for a in reference for b in port if b and a % b == 0 and a // b > 1}
    for axis, length in enumerate(port):
        for ratio in sorted(ratios):
            if length % ratio == 0 and 1 < ratio < length:
                yield (*port[:axis], ratio, length // ratio, *port[axis + 1 :])
                yield (*port[:axis], length // ratio, ratio, *port[axis + 1 :])


def _merges(fine: Sequence[int], coarse: Sequence[int]) -> bool:
    """Whether merging neighbours of ``fine`` gives ``coarse`` (axes of length 1 aside)."""
    rest = iter(size for size in fine if size != 1)
    for target in coarse:
        product = 1
        while product < target:
            step = next(rest, None)
            if step is None:
                return False
            product *= step
        if product != target:
            return False
    return next(rest, None) is None


def _repeated(reference: Shape, port: Shape) -> Iterator[Layout]:
    """One side given once where the other repeats it along an axis: masks."""
    if len(reference) != len(port) or not all(a == b or 1 in (a, b) for a, b in zip(reference, port, strict=True)):
        return
    if all(a >= b for a, b in zip(reference, port, strict=True)):
        yield Layout(reference, repeat="port")
    elif all(a <= b for a, b in zip(reference, port, strict=True)):
        yield Layout(port, repeat="reference")


def _windows(reference: Shape, port: Shape) -> Iterator[Layout]:
    """The port padded one or two axes before the call: the reference's values are somewhere inside."""
    if len(reference) != len(port) or not 0 < len(port) <= THRESHOLDS.window_rank:
        return
    for order in permutations(range(len(port))):
        sizes = [port[axis] for axis in order]
        padded = sum(size != target for size, target in zip(sizes, reference, strict=True))
        if padded > THRESHOLDS.window_axes or not all(map(_may_be_padded, sizes, reference)):
            continue
        window = tuple(((size - target) // 2, (size - target) // 2 + target) for size, target in zip(sizes, reference, strict=True))
        yield Layout(reference, split=port, permutation=order, window=window)


def _may_be_padded(size: int, target: int) -> bool:
    """Whether an axis of that length may be the reference's of length ``target``, padded or not."""
    return target <= size <= THRESHOLDS.window_factor * target + THRESHOLDS.window_extra


def _plainness(layout: Layout) -> tuple[Any, ...]:
    moved = sum(a > b for a, b in pairwise(layout.permutation)) if layout.permutation else 0
    displaced = sum(axis != place for place, axis in enumerate(layout.permutation)) if layout.permutation else 0
    wider = sum(start > 0 or stop - start < size for (start, stop), size in _window_sizes(layout))
    return (layout.window is not None, wider, layout.permutation is not None, len(layout.split or ()), moved, displaced)


def _window_sizes(layout: Layout) -> Iterator[tuple[tuple[int, int], int]]:
    if layout.window is not None and layout.split is not None and layout.permutation is not None:
        yield from zip(layout.window, (layout.split[axis] for axis in layout.permutation), strict=True)


# -- small pieces ----------------------------------------------------------------------------------------


def _joined(arrays: Array | Sequence[Array], join: Join | None) -> Array:
    if join is not None:
        return join(list(arrays))
    return arrays if isinstance(arrays, np.ndarray) else arrays[0]


def _repeated_to(array: Array, shape: Shape) -> Array:
    """An array with each slice of an axis repeated in its place as often as the longer shape needs."""
    if any(size not in (1, length) for size, length in zip(array.shape, shape, strict=True)):
        for axis, length in enumerate(shape):
            array = np.repeat(array, length // array.shape[axis], axis)
    return np.broadcast_to(array, shape)


def _cut(layout: Layout) -> tuple[slice, ...]:
    """What a layout that cuts takes of each axis of the port's tensor."""
    lengths = layout.crop or ()
    starts = layout.crop_from or (0,) * len(lengths)
    return tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))


def _grouped(array: Array, axis: int, groups: int) -> Array:
    return array.reshape(*array.shape[:axis], groups, -1, *array.shape[axis + 1 :])


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _plain_numbers(array: Array) -> Array:
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag])
    wide = array.astype(np.float64)
    return np.where(np.isnan(wide), 0.0, np.clip(wide, MASKED, None) if wide.size and wide.min() <= MASKED else wide)


def _shape_text(shape: Shape | None) -> str:
    return "(" + ", ".join(map(str, shape or ())) + ")"


def _side_text(who: str, join: Join | None, part: Part | None) -> str:
    texts = []
    if join is not None:
        verb = "stacked on" if join.how == "stack" else "joined along"
        texts.append(f"{verb} axis {join.axis}" + (f" in {join.groups} runs" if join.groups > 1 else ""))
    if part is not None:
        texts.append(f"{part.start}:{part.stop} of axis {part.axis}" + (f" in {part.groups} runs" if part.groups > 1 else ""))
    return (f"{who} " if who and texts else "") + ", ".join(texts)
