"""Tensors enlarged or shrunk along their last axes, as PyTorch's ``interpolate`` does it: a few weighted places for each new one.

The conventions are those of ATen's ``UpSample.h``: where places lie (corners aligned, or the middles of pixels), the filter (nearest,
linear, cubic with a = -0.75), and the filter widened when shrinking (antialiased, cubic then with a = -0.5, as Pillow has it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tracediff.dtype import Array


@dataclass(frozen=True, slots=True)
class Way:
    """A way to resample. ``filter``: "nearest", "nearest-exact", "linear", "cubic"; ``a``: the cubic filter's constant.

    ``drops_outside``: what lies outside has no weight, and the rest is normalised; else the border's value is repeated.
    """

    filter: str
    is_aligned: bool = False
    is_antialiased: bool = False
    a: float = -0.75
    drops_outside: bool = False

    def __str__(self) -> str:
        said = self.filter
        if self.filter in ("linear", "cubic"):
            said += f", align_corners={self.is_aligned}" if not self.is_antialiased else ", antialias=True"
        if self.filter == "cubic":
            said += f", a={self.a}"
        return f"{said}, weights outside dropped" if self.drops_outside else said


WAYS = (
    Way("nearest"),
    Way("nearest-exact"),
    *(Way(name, is_aligned) for name in ("linear", "cubic") for is_aligned in (False, True)),
    Way("linear", is_antialiased=True),
    Way("cubic", is_antialiased=True, a=-0.5),
    Way("cubic", a=-0.5),
    Way("cubic", drops_outside=True),
)
"""All ways that frameworks and image libraries have."""

OF_OPERATION = {
    "upsample_nearest": Way("nearest"),
    "_upsample_nearest_exact": Way("nearest-exact"),
    "upsample_linear": Way("linear"),
    "upsample_bilinear": Way("linear"),
    "upsample_bicubic": Way("cubic"),
    "_upsample_bilinear_aa": Way("linear", is_antialiased=True),
    "_upsample_bicubic_aa": Way("cubic", is_antialiased=True, a=-0.5),
}
"""What each of ATen's operations does; those that take a flag may align corners."""


def resampled(x: Array, sizes: Sequence[int], way: Way, scales: Sequence[float | None] = ()) -> Array:
    """The last axes of ``x`` with other lengths. ``scales``: by what an axis was said to be multiplied, where that is not the ratio."""
    for place, length in enumerate(sizes):
        x = resampled_along(x, x.ndim - len(sizes) + place, length, way, scales[place] if place < len(scales) else None)
    return x


def resampled_along(x: Array, axis: int, length: int, way: Way, scale: float | None = None) -> Array:
    """One axis of ``x`` with another length."""
    places, shares = taps(x.shape[axis], length, way, scale)
    along = [-1 if other == axis else 1 for other in range(x.ndim)]
    parts = (np.take(x, places[:, tap], axis) * shares[:, tap].reshape(along) for tap in range(places.shape[1]))
    return np.asarray(sum(parts))


def taps(own: int, length: int, way: Way, scale: float | None = None) -> tuple[Array, Array]:
    """Which of ``own`` places enter each of ``length`` new ones, and by how much: both (length, taps)."""
    step = own / length if not scale else 1 / scale
    places = np.arange(length)
    if way.filter.startswith("nearest"):
        at = np.floor((places + (0.5 if way.filter == "nearest-exact" else 0.0)) * step + _ROUNDING).astype(int)
        return np.minimum(at, own - 1)[:, None], np.ones((length, 1))
    kernel, reach = (_linear, 1.0) if way.filter == "linear" else (_cubic(way.a), 2.0)
    if way.is_antialiased:
        return _antialiased(own, places, step, kernel, reach)
    if way.is_aligned:
        middle = places * ((own - 1) / (length - 1) if length > 1 else 0.0)
    else:
        middle = (places + 0.5) * step - 0.5
        middle = np.maximum(middle, 0.0) if way.filter == "linear" else middle
    at = np.floor(middle).astype(int)[:, None] + np.arange(1 - int(reach), int(reach) + 1)
    shares = kernel(middle[:, None] - at)
    if way.drops_outside:
        shares = np.where((at >= 0) & (at < own), shares, 0.0)
        shares /= shares.sum(1, keepdims=True)
    return np.clip(at, 0, own - 1), shares


_ROUNDING = 1e-9
"""A place that should be whole and is off by a rounding is not the one before it."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How images are read at coordinates from -1 to 1. ``outside``: zeros, border or reflection; ``is_flipped``: rows before columns."""

    is_nearest: bool = False
    outside: str = "zeros"
    is_aligned: bool = False
    is_flipped: bool = False

    def __str__(self) -> str:
        said = f"{'nearest' if self.is_nearest else 'bilinear'}, {self.outside} outside, align_corners={self.is_aligned}"
        return f"{said}, coordinates as (y, x)" if self.is_flipped else said


OUTSIDE = ("zeros", "border", "reflection")
"""What ATen's numbers for it mean."""


def sampled(x: Array, grid: Array, way: Sampling) -> Array:
    """Images (B, C, H, W) at a grid of coordinates (B, h, w, 2), as PyTorch's ``grid_sample`` reads them: (B, C, h, w)."""
    sizes = x.shape[:1:-1]
    at = [_pixel(grid[..., (1 - axis) if way.is_flipped else axis], size, way) for axis, size in enumerate(sizes)]
    low = [np.rint(one) if way.is_nearest else np.floor(one) for one in at]
    batch = np.arange(len(x))[:, None, None]
    made: Array = np.zeros((*grid.shape[:-1], x.shape[1]))
    for step in np.ndindex((1, 1) if way.is_nearest else (2, 2)):
        place = [one + more for one, more in zip(low, step, strict=True)]
        share = np.ones(grid.shape[:-1])
        for one, exact, size in zip(place, at, sizes, strict=True):
            share = share * ((one >= 0) & (one < size)) * (1.0 if way.is_nearest else 1 - np.abs(exact - one))
        column, row = (np.clip(one, 0, size - 1).astype(int) for one, size in zip(place, sizes, strict=True))
        made = made + share[..., None] * np.moveaxis(x, 1, -1)[batch, row, column]
    return np.moveaxis(made, -1, 1)


def _pixel(x: Array, size: int, way: Sampling) -> Array:
    """Coordinates from -1 to 1 in pixels, those outside moved to the border or reflected where the way asks for it."""
    pixel = (x + 1) / 2 * (size - 1) if way.is_aligned else ((x + 1) * size - 1) / 2
    if way.outside == "reflection":
        start, span = (0.0, size - 1.0) if way.is_aligned else (-0.5, float(size))
        turned = np.mod(pixel - start, 2 * span) if span else np.zeros_like(pixel)
        pixel = start + np.minimum(turned, 2 * span - turned)
    return pixel if way.outside == "zeros" else np.clip(pixel, 0, size - 1)


def _antialiased(own: int, places: Array, step: float, kernel: Callable[[Array], Array], reach: float) -> tuple[Array, Array]:
    wide = max(step, 1.0)
    middle = step * (places + 0.5)
    low = np.maximum((middle - reach * wide + 0.5).astype(int), 0)
    high = np.minimum((middle + reach * wide + 0.5).astype(int), own)
    at = low[:, None] + np.arange((high - low).max())
    shares = np.where(at < high[:, None], kernel((at - middle[:, None] + 0.5) / wide), 0.0)
    return np.minimum(at, own - 1), shares / shares.sum(1, keepdims=True)


def _linear(distance: Array) -> Array:
    return np.asarray(np.maximum(1 - np.abs(distance), 0.0))


def _cubic(a: float) -> Callable[[Array], Array]:
    """Keys' cubic filter (IEEE Trans. ASSP 29, 1981), with its constant."""

    def filtered(distance: Array) -> Array:
        x = np.abs(distance)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((x - 5) * x + 8) * x * a - 4 * a
        return np.where(x < 1, near, np.where(x < 2, far, 0.0))

    return filtered
