"""Tensors enlarged or shrunk along their last axes, as PyTorch's ``interpolate`` does it: one matrix of weights an axis.

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
        axis = x.ndim - len(sizes) + place
        scale = scales[place] if place < len(scales) else None
        x = np.moveaxis(np.moveaxis(x, axis, -1) @ weights(x.shape[axis], length, way, scale).T, -1, axis)
    return x


def weights(own: int, length: int, way: Way, scale: float | None = None) -> Array:
    """By how much each of ``own`` places enters each of ``length`` new ones: (length, own)."""
    step = own / length if not scale else 1 / scale
    places = np.arange(length)
    if way.filter.startswith("nearest"):
        at = np.floor((places + (0.5 if way.filter == "nearest-exact" else 0.0)) * step + _ROUNDING).astype(int)
        return np.asarray(np.eye(own)[np.minimum(at, own - 1)])
    kernel, reach = (_linear, 1.0) if way.filter == "linear" else (_cubic(way.a), 2.0)
    if way.is_antialiased:
        return _antialiased(own, places, step, kernel, reach)
    if way.is_aligned:
        middle = places * ((own - 1) / (length - 1) if length > 1 else 0.0)
    else:
        middle = (places + 0.5) * step - 0.5
        middle = np.maximum(middle, 0.0) if way.filter == "linear" else middle
    low = np.floor(middle).astype(int)
    made = np.zeros((length, own))
    for tap in range(1 - int(reach), int(reach) + 1):
        at = low + tap
        share = np.where((at >= 0) & (at < own), 1.0, 0.0) if way.drops_outside else 1.0
        np.add.at(made, (places, np.clip(at, 0, own - 1)), kernel(middle - at) * share)
    return made / made.sum(1, keepdims=True) if way.drops_outside else made


_ROUNDING = 1e-9
"""A place that should be whole and is off by a rounding is not the one before it."""


def _antialiased(own: int, places: Array, step: float, kernel: Callable[[Array], Array], reach: float) -> Array:
    wide = max(step, 1.0)
    middle = step * (places + 0.5)
    at = np.arange(own)
    low = np.maximum((middle - reach * wide + 0.5).astype(int), 0)
    high = np.minimum((middle + reach * wide + 0.5).astype(int), own)
    is_inside = (at >= low[:, None]) & (at < high[:, None])
    made = np.where(is_inside, kernel((at - middle[:, None] + 0.5) / wide), 0.0)
    total: Array = made / made.sum(1, keepdims=True)
    return total


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
