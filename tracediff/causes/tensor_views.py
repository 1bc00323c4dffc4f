"""Views: what code makes of one tensor without a parameter, in the shape of another.

The tensor itself, wherever it broadcasts; one of its equal parts; what is left of it after a reduction; one place of an axis; padded,
enlarged, or normalised along an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from tracediff.causes.scene import InHand
from tracediff.dtype import Array

ONE = "1"
"""The name of the constant among the views."""
_LATEST = 10
_MOST_PLACES = 2

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One tensor in hand as ``how`` says, broadcast to the shape asked for; ``family`` is the kind of way, "" for the tensor itself."""

    source: InHand
    how: str
    values: Array = field(repr=False)
    family: str = ""

    @property
    def text(self) -> str:
        return f"{self.how} of {self.source.name}" if self.how else self.source.name

    @property
    def is_whole(self) -> bool:
        return not self.family

    @property
    def is_mask(self) -> bool:
        """Whether every value is 0 or 1, and both occur."""
        flat = self.source.values
        return bool(flat.size) and bool(np.isin(flat, (0, 1)).all()) and bool(flat.any()) and not bool(flat.all())

    def kind_against(self, other: View) -> str:
        """The kind of cause that it is to take the other view of the same tensor in the place of this one."""
        families = {self.family, other.family}
        if families == {"pad"}:
            return "padding.mode" if self.how.split(", ")[1:] == other.how.split(", ")[1:] else "padding.shift"
        if families <= {"softmax"}:
            return "heads.layout"
        if "unit" in families:
            return "norm.missing"
        if families <= {"place"}:
            return "position.offset"
        if families <= {"part", ""}:
            return "order.roles"
        return "transform"


def views(in_hand: Sequence[InHand], shape: Shape) -> Iterator[View]:
    """Views of what is in hand in a shape, the plainest and latest first; no two of the same values."""
    seen: set[bytes] = set()
    sources = [one for one in reversed(in_hand[-_LATEST:]) if _is_usable(one)]
    inputs = [one for one in in_hand[:-_LATEST] if one.is_input and _is_usable(one)]
    for ways in (_whole, _parts, _places, _reduced, _normalised, _enlarged, _padded):
        for one in [*sources, *inputs][:_LATEST]:
            for how, family, values in ways(one.values.astype(np.float64), shape):
                key = np.ascontiguousarray(values).tobytes() if values.size <= 1 << 16 else repr((id(one), how)).encode()
                if key not in seen and np.isfinite(values).all() and np.ptp(values) > 0:
                    seen.add(key)
                    yield View(one, how, values, family)


def _is_usable(one: InHand) -> bool:
    return one.values.dtype.kind in "fb" and 1 < one.values.size <= 1 << 22


def _fitted(values: Array, shape: Shape) -> Iterator[Array]:
    """A tensor broadcast to a shape: its axes, in their order, set beside axes of their length (those of length 1 anywhere)."""
    if values.shape == shape:
        yield values
        return
    kept = tuple(size for size in values.shape if size != 1)
    if not kept or len(kept) > len(shape):
        return
    flat = values.reshape(kept)
    for places in combinations(range(len(shape)), len(kept)):
        if all(shape[place] == size for place, size in zip(places, kept, strict=True)):
            widened = [1] * len(shape)
            for place, size in zip(places, kept, strict=True):
                widened[place] = size
            yield np.broadcast_to(flat.reshape(widened), shape)


def _first_fitted(values: Array, shape: Shape) -> Iterator[Array]:
    found = _fitted(values, shape)
    yield from (one for one, _ in zip(found, range(_MOST_PLACES), strict=False))


Made = tuple[str, str, Array]


def _whole(values: Array, shape: Shape) -> Iterator[Made]:
    for one in _first_fitted(values, shape):
        yield "", "", one


def _parts(values: Array, shape: Shape) -> Iterator[Made]:
    """Halves and thirds along an axis."""
    for axis in range(values.ndim - 1, -1, -1):
        for count, names in ((2, ("the first half", "the second half")), (3, ("the first third", "the second third", "the last third"))):
            if values.shape[axis] % count == 0 and values.shape[axis] > 1:
                for name, part in zip(names, np.split(values, count, axis), strict=True):
                    for one in _first_fitted(part, shape):
                        yield name, "part", one


def _places(values: Array, shape: Shape) -> Iterator[Made]:
    """The first or the last place of an axis that is left out."""
    for axis in range(1, values.ndim):
        if values.ndim > 1 and values.shape[axis] > 1:
            for name, place in (("the first", 0), ("the last", -1)):
                for one in _first_fitted(np.take(values, place, axis), shape):
                    yield f"{name} place along axis {axis}", "place", one


_REDUCTIONS: dict[str, Callable[..., Array]] = {
    "the mean": np.mean,
    "the largest": np.max,
    "the smallest": np.min,
    "the standard deviation": np.std,
    "the mean of squares": lambda x, axis: np.mean(x * x, axis),
}


def _reduced(values: Array, shape: Shape) -> Iterator[Made]:
    groups = [axes for count in (1, 2) for axes in combinations(range(1, values.ndim), count)]
    for axes in groups:
        left = tuple(size for axis, size in enumerate(values.shape) if axis not in axes)
        if not any(True for _ in _fitted(np.broadcast_to(0.0, left), shape)):
            continue
        for name, reduce in _REDUCTIONS.items():
            for one in _first_fitted(np.asarray(reduce(values, axis=axes)), shape):
                yield f"{name} along {'axes' if len(axes) > 1 else 'axis'} {', '.join(map(str, axes))}", "reduced", one


def _normalised(values: Array, shape: Shape) -> Iterator[Made]:
    """Softmax, or unit length, along an axis."""
    if values.shape != shape:
        return
    for axis in range(values.ndim):
        if values.shape[axis] > 1:
            raised = np.exp(values - values.max(axis, keepdims=True))
            yield f"the softmax along axis {axis}", "softmax", raised / raised.sum(axis, keepdims=True)
            yield f"the logarithm of the softmax along axis {axis}", "softmax", np.log(raised / raised.sum(axis, keepdims=True))
            length = np.sqrt((values * values).sum(axis, keepdims=True))
            yield f"unit length along axis {axis}", "unit", values / np.where(length > 0, length, 1)


def _enlarged(values: Array, shape: Shape) -> Iterator[Made]:
    """Repeated, tiled or interpolated along axes that are longer in the shape."""
    if values.ndim != len(shape) or values.shape == shape:
        return
    times = [size // own if own and size % own == 0 else 0 for own, size in zip(values.shape, shape, strict=True)]
    if min(times) < 1:
        return
    axes = [axis for axis, count in enumerate(times) if count > 1]
    ways: dict[str, Callable[[Array, int, int], Array]] = {
        "each value repeated": lambda x, axis, count: np.repeat(x, count, axis),
        "the whole repeated": lambda x, axis, count: np.concatenate([x] * count, axis),
        "interpolated linearly (align_corners=False)": lambda x, axis, count: _linear(x, axis, count, has_corners=False),
        "interpolated linearly (align_corners=True)": lambda x, axis, count: _linear(x, axis, count, has_corners=True),
        "zeros put in between": _spread,
    }
    for name, way in ways.items():
        made = values
        for axis in axes:
            made = way(made, axis, times[axis])
        yield name, "enlarged", made


def _linear(values: Array, axis: int, count: int, *, has_corners: bool) -> Array:
    size = values.shape[axis]
    places = np.arange(size * count, dtype=np.float64)
    at = places * (size - 1) / max(size * count - 1, 1) if has_corners else np.clip((places + 0.5) / count - 0.5, 0, size - 1)
    low = np.minimum(at.astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    share = (at - low).reshape([-1 if other == axis else 1 for other in range(values.ndim)])
    made: Array = np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share
    return made


def _spread(values: Array, axis: int, count: int) -> Array:
    made = np.zeros([size * count if other == axis else size for other, size in enumerate(values.shape)])
    made[(slice(None),) * axis + (slice(None, None, count),)] = values
    return made


def _padded(values: Array, shape: Shape) -> Iterator[Made]:
    """Longer along one axis: by zeros, edges or a reflection, in front, behind, or on both sides."""
    if values.ndim != len(shape):
        return
    axes = [axis for axis, (own, size) in enumerate(zip(values.shape, shape, strict=True)) if own != size]
    if not 1 <= len(axes) <= 2 or any(shape[axis] <= values.shape[axis] or shape[axis] > 2 * values.shape[axis] + 16 for axis in axes):
        return
    for place in ("on both sides", "in front", "behind"):
        widths = [(0, 0)] * values.ndim
        for axis in axes:
            more = shape[axis] - values.shape[axis]
            widths[axis] = {"on both sides": (more // 2, more - more // 2), "in front": (more, 0), "behind": (0, more)}[place]
        for name, mode in (("zeros", "constant"), ("its edges", "edge"), ("its reflection", "reflect")):
            if mode != "reflect" or all(max(widths[axis]) < values.shape[axis] for axis in axes):
                yield f"padded by {name}, {place},", "pad", np.pad(values, widths, mode=mode)  # type: ignore[call-overload]
