"""Origin: how one tensor of the port is made from tensors of the reference: copied, permuted, joined, cut out or merged.

The same few words drive the comparison (`Origin.values`), the text (`Origin.text`) and the rules that are written as Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment.axes import Layout, Shape, apply, layouts, restore
from tracediff.dtype import Array
from tracediff.parameters.sources import Weight
from tracediff.parameters.thresholds import THRESHOLDS
from tracediff.tensors.weight_norm import gain_axis, norm_axes
from tracediff.trace.fingerprint import Floats, Sketch

MergeKind = Literal["weight_norm", "unit", "gain", "raw", "sum"]


@dataclass(frozen=True, slots=True)
class Merge:
    """How several tensors of the reference become one by arithmetic, before any layout.

    "weight_norm" is ``g * v / norm(v over axes)``; "unit" leaves ``g`` out, "gain" the norm, "raw" both; "sum" adds its two parts.
    """

    kind: MergeKind
    axes: tuple[int, ...] = ()

    def __call__(self, parts: Sequence[Array]) -> Array:
        wide = [np.asarray(part).astype(np.float64) for part in parts]
        dtype = parts[-1].dtype
        if self.kind == "sum":
            return sum(wide[1:], wide[0]).astype(dtype)
        g, v = wide
        if self.kind == "raw":
            return np.asarray(parts[1])
        if self.kind != "gain":
            norm = np.sqrt(np.square(v).sum(axis=self.axes, keepdims=True))
            v = np.divide(v, norm, out=np.zeros_like(v), where=norm > 0)
        return (v if self.kind == "unit" else g * v).astype(dtype)

    def __str__(self) -> str:
        axes = ", ".join(map(str, self.axes))
        return {
            "weight_norm": f"weight norm merged over axes ({axes})",
            "unit": f"direction without gain, over axes ({axes})",
            "gain": "gain times direction, not normalised",
            "raw": "direction alone",
            "sum": "sum",
        }[self.kind]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a tensor of the port is made from: the reference's tensors, in order, merged, and read by a layout in the port's shape.

    A layout's permutation lists, for each axis of the port's tensor, the reference's axis that it comes from.
    """

    names: tuple[str, ...]
    layout: Layout
    merge: Merge | None = None

    def values(self, read: Callable[[str], Array]) -> Array:
        """The tensor that the port should hold, from a function that reads the reference's tensors by name."""
        parts = [read(name) for name in self.names]
        if self.merge is not None:
            return apply(self.merge(parts), self.layout)
        return apply(parts if self.layout.join is not None else parts[0], self.layout)

    @property
    def is_copy(self) -> bool:
        """Whether the tensor holds all of one tensor of the reference, or all of what was merged to one."""
        return (len(self.names) == 1 or self.merge is not None) and self.layout.part is None and self.layout.join is None

    @property
    def key(self) -> str:
        """The tensor of the reference that the origin is named after: the last one, which of a weight norm is the direction."""
        return self.names[-1]

    @property
    def text(self) -> str:
        """What was done to the reference's tensors, "same" for nothing."""
        parts = [str(self.merge)] if self.merge is not None else []
        parts += [str(self.layout)] if str(self.layout) != "same" else []
        return "; ".join(parts) or "same"


class MergedWeight(Weight):
    """Tensors of the reference merged to one, as a port may hold it. Its values are made when they are read."""

    def __init__(self, merge: Merge, parts: Sequence[Weight]) -> None:
        self.merge, self.parts = merge, tuple(parts)
        last = parts[-1]
        name = " + ".join(part.name for part in parts)
        super().__init__(name, last.shape, last.dtype, lambda: merge([part.read() for part in parts]))


def origin_of(source: Weight, layout: Layout) -> Origin:
    """The origin that reads a tensor of the reference, or a merged one, by a layout."""
    if isinstance(source, MergedWeight):
        return Origin(tuple(part.name for part in source.parts), layout, source.merge)
    return Origin((source.name,), layout)


def restored(origin: Origin, values: Array, own: Mapping[str, Array]) -> dict[str, Array] | None:
    """The reference's parameters, by name, with a port's values laid out as theirs; None for a merge that cannot be taken apart.

    ``own``: the reference's values, of which those stay that the port's tensor does not hold.
    """
    parts = [own[name].astype(np.float64) for name in origin.names]
    wide = values.astype(np.float64)
    if origin.merge is None:
        return dict(zip(origin.names, restore(wide, origin.layout, parts), strict=True))
    if origin.merge.kind != "weight_norm":
        return None
    (direction,) = restore(wide, origin.layout, [origin.merge(parts)])
    gain = np.sqrt(np.square(direction).sum(axis=origin.merge.axes, keepdims=True))
    return dict(zip(origin.names, (gain.reshape(parts[0].shape), direction), strict=True))


@lru_cache(maxsize=1 << 12)
def fitting_layouts(source: Shape, target: Shape) -> tuple[Layout, ...]:
    """The layouts that read a tensor of shape ``source`` in shape ``target`` with all of its values, the plainest first."""
    if math.prod(source) != math.prod(target):
        return ()
    return tuple(layout for layout in layouts(target, source) if layout.window is None)


def axis_order(layout: Layout) -> tuple[int, ...]:
    """For each axis of the port's tensor the axis of the reference's that a layout puts there."""
    return layout.permutation if layout.permutation is not None else tuple(range(len(layout.shape)))


def long_axes(shape: Shape) -> list[int]:
    """The axes longer than 1. Axes of length 1 can be moved without a change of order."""
    return [axis for axis, size in enumerate(shape) if size != 1]


def long_lengths(shape: Shape) -> list[int]:
    """The lengths of the axes longer than 1, in their order."""
    return [size for size in shape if size != 1]


def axis_vectors(sketch: Sketch, shape: Shape, layout: Layout | None = None) -> list[Floats] | None:
    """A sketch's vectors of the axes longer than 1, in a layout's order; None where the layout does not keep axes whole."""
    vectors = list(sketch.axes)
    if layout is None:
        return _long_vectors(vectors)
    if layout.split is not None and layout.split != shape:
        vectors = _long_vectors(vectors)
        if [vector.size for vector in vectors] != long_lengths(layout.split):
            return None
        if len(vectors) != len(layout.split):
            return vectors if layout.permutation is None else None
    if layout.permutation is not None:
        vectors = [vectors[axis] for axis in layout.permutation]
    kept = _long_vectors(vectors)
    return kept if [vector.size for vector in kept] == long_lengths(layout.shape) else None


def _long_vectors(vectors: Sequence[Floats]) -> list[Floats]:
    return [vector for vector in vectors if vector.size != 1]


def merges(weights: Sequence[Weight], *, wrong: bool = False) -> Iterator[MergedWeight]:
    """The tensors that a port may have merged from ``weights``: weight norms, and sums of two vectors of one module and shape.

    With ``wrong``, weight norms merged wrongly instead: over other axes, without gain, without norm.
    """
    for gain, direction, axis in norm_pairs(weights):
        if direction.is_readable:
            yield from _norms(gain, direction, axis, wrong)
    for first, second in _module_pairs(weights):
        vectors = len(first.shape) == 1 and first.shape == second.shape and first.is_readable and second.is_readable
        if vectors and not wrong:
            yield MergedWeight(Merge("sum"), (first, second))


def norm_pairs(weights: Sequence[Weight]) -> Iterator[tuple[Weight, Weight, int]]:
    """(gain, direction, axis) of each two tensors of one module whose shapes fit a weight norm; the axis as `gain_axis` gives it."""
    for first, second in _module_pairs(weights):
        gain, direction = sorted((first, second), key=lambda weight: weight.count)
        axis = gain_axis(gain.shape, direction.shape) if gain.is_readable else None
        if axis is not None:
            yield gain, direction, axis


def _module_pairs(weights: Sequence[Weight]) -> Iterator[tuple[Weight, Weight]]:
    modules: dict[str, list[Weight]] = {}
    for weight in weights:
        if is_float(weight):
            modules.setdefault(weight.name.rpartition(".")[0], []).append(weight)
    for members in modules.values():
        if len(members) <= THRESHOLDS.most_in_module:
            yield from combinations(members, 2)


def right_merge(direction: Weight, axis: int) -> Merge:
    """The weight norm of a direction whose gain varies along one axis."""
    return Merge("weight_norm", norm_axes(len(direction.shape), axis))


def _norms(gain: Weight, direction: Weight, axis: int, wrong: bool) -> Iterator[MergedWeight]:
    right = right_merge(direction, axis)
    parts = (gain, direction)
    if not wrong:
        yield MergedWeight(right, parts)
        return
    rank = len(direction.shape)
    for length in range(1, rank + 1):
        for axes in combinations(range(rank), length):
            if axes != right.axes:
                yield MergedWeight(Merge("weight_norm", axes), parts)
    yield MergedWeight(Merge("unit", right.axes), parts)
    yield MergedWeight(Merge("gain"), parts)
    yield MergedWeight(Merge("raw"), parts)


def is_float(weight: Weight) -> bool:
    """Whether a tensor holds real floating-point values."""
    return not weight.dtype.is_exact and not weight.dtype.is_complex


def rounded(array: Array, name: str) -> Array:
    """The values rounded to the dtype of that name, in the array's own dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtypes.named(name).view).astype(array.dtype)
