"""Views: what code makes of one tensor without a parameter, in the shape of another.

The tensor itself, wherever it broadcasts; one of its equal parts; what is left of it after a reduction; one place of an axis; padded,
enlarged, or normalised along an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, islice

import numpy as np

from tracediff.causes.in_hand import InHand
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.replay.resampling import Way, resampled_along

ONE = "1"
"""The name of the constant among the views."""

Shape = tuple[int, ...]
Made = tuple[str, str, Array]
"""A view before it is known of which tensor: how it is made, its family, its values."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One tensor in hand as ``how`` says, broadcast to the shape asked for; ``family`` groups the ways, "" being the tensor itself."""

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
        """The kind of cause where the reference takes this view of a tensor and the port the other."""
        families = {self.family, other.family}
        if families == {"pad"}:
            return "padding.mode" if self.how.split(", ")[1:] == other.how.split(", ")[1:] else "padding.shift"
        if "unit" in families:
            return "norm.missing"
        if families <= {"place"}:
            return "position.offset"
        if families <= {"part", ""}:
            return "order.roles"
        return "transform"


def views(in_hand: Sequence[InHand], shape: Shape) -> Iterator[View]:
    """Views of what is in hand in a shape, the plainest and latest first; no two of the same values."""
    latest = THRESHOLDS.latest_viewed
    sources = [one for one in reversed(in_hand[-latest:]) if _is_usable(one)]
    inputs = [one for one in in_hand[:-latest] if one.is_input and _is_usable(one)]
    seen: set[bytes] = set()
    for make in (_whole, _parts, _places, _reduced, _normalised, _enlarged, _padded):
        for one in [*sources, *inputs][:latest]:
            for how, family, values in make(one.values.astype(np.float64), shape):
                is_small = values.size <= THRESHOLDS.largest_compared_view
                key = np.ascontiguousarray(values).tobytes() if is_small else repr((id(one), how)).encode()
                if key not in seen and np.isfinite(values).all() and np.ptp(values) > 0:
                    seen.add(key)
                    yield View(one, how, values, family)


def _is_usable(one: InHand) -> bool:
    return one.values.dtype.kind in "fb" and 1 < one.values.size <= THRESHOLDS.largest_viewed


def _fitted(values: Array, shape: Shape) -> Iterator[Array]:
    """A tensor broadcast to a shape: its axes, in their order, become axes of equal length; axes of length 1 may stand anywhere."""
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
    yield from islice(_fitted(values, shape), THRESHOLDS.most_broadcasts)


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
            softmax = raised / raised.sum(axis, keepdims=True)
            length = np.sqrt((values * values).sum(axis, keepdims=True))
            yield f"the softmax along axis {axis}", "softmax", softmax
            yield f"the logarithm of the softmax along axis {axis}", "softmax", np.log(softmax)
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
        "interpolated linearly (align_corners=False)": partial(_interpolated, way=Way("linear")),
        "interpolated linearly (align_corners=True)": partial(_interpolated, way=Way("linear", is_aligned=True)),
        "zeros put in between": _spread,
    }
    for name, way in ways.items():
        made = values
        for axis in axes:
            made = way(made, axis, times[axis])
        yield name, "enlarged", made


def _interpolated(values: Array, axis: int, count: int, way: Way) -> Array:
    return resampled_along(values, axis, count * values.shape[axis], way)


def _spread(values: Array, axis: int, count: int) -> Array:
    made = np.zeros([size * count if other == axis else size for other, size in enumerate(values.shape)])
    made[(slice(None),) * axis + (slice(None, None, count),)] = values
    return made


def _padded(values: Array, shape: Shape) -> Iterator[Made]:
    """Longer along one or two axes: by zeros, edges or a reflection, in front, behind, or on both sides."""
    if values.ndim != len(shape):
        return
    lacking = [size - own for own, size in zip(values.shape, shape, strict=True)]
    if not 1 <= np.count_nonzero(lacking) <= 2:
        return
    if any(more < 0 or more > own + THRESHOLDS.most_padding for more, own in zip(lacking, values.shape, strict=True)):
        return
    for place in ("on both sides", "in front", "behind"):
        widths = [_split_padding(more, place) for more in lacking]
        yield f"padded by zeros, {place},", "pad", np.pad(values, widths)
        yield f"padded by its edges, {place},", "pad", np.pad(values, widths, mode="edge")
        if all(max(width) < own for width, own in zip(widths, values.shape, strict=True)):
            yield f"padded by its reflection, {place},", "pad", np.pad(values, widths, mode="reflect")


def _split_padding(more: int, place: str) -> tuple[int, int]:
    """How much is padded in front and behind."""
    if place == "on both sides":
        return more // 2, more - more // 2
    return (more, 0) if place == "in front" else (0, more)
