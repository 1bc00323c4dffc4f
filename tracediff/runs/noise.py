"""Noise of so many units of roundoff on a tensor: the same for the same draw and record, and at the cost of a copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import Array
from tracediff.runs.thresholds import THRESHOLDS

_POOL = 1 << 18
"""Normal numbers that are drawn once; each block of a tensor takes its noise from another place among them."""
_BLOCK = 1 << 15
"""Elements a block: with its noise and its result it stays in the processor's cache."""


class _Block(NamedTuple):
    """A block of a flat tensor: where it starts, where its normal numbers begin among those drawn, and how many elements it has."""

    start: int
    begin: int
    length: int


def with_noise(values: Array, size: float, key: tuple[int, int]) -> Array:
    """The values ``x`` as ``x + x * size * (n + m)``, rounded to their dtype: ``n`` is normal for each element, ``m`` one for all of them.

    ``m`` has the size `RunThresholds.noise_of_all`, and the sign of the first ``n``. ``key`` is the draw and the record, which decide on
    the noise; a negative ``size`` moves every value the other way. Infinities and NaN stay what they are. The values are real or complex,
    of any shape, and so is the result.

    >>> ones = np.ones(3, np.float32)
    >>> off = with_noise(ones, 2.0**-20, (0, 5)) - ones
    >>> bool(off.any()), bool((np.abs(off) < 2.0**-16).all()), with_noise(np.float32([np.inf, 0]), 0.1, (0, 5))
    (True, True, array([inf,  0.], dtype=float32))
    """
    kind = dtypes.of(values)
    places = np.random.Generator(np.random.Philox(key=(key[0] << 64) + key[1]))
    flat = np.ascontiguousarray(values).reshape(-1)
    drawn = _drawn(flat.size, places)
    of_all = math.copysign(THRESHOLDS.noise_of_all, _pool()[drawn[0].begin] if drawn else 1.0)
    with np.errstate(invalid="ignore", over="ignore"):
        made = _narrow(flat, size, of_all, drawn) if flat.dtype == np.float32 else _wide(flat, size, of_all, drawn)
    return made.astype(kind.view, copy=False).reshape(values.shape)


def _narrow(flat: Array, size: float, of_all: float, drawn: Sequence[_Block]) -> Array:
    """Of float32, with the change alone in float32, which a sum rounds as a wider one would be rounded."""
    made, pool = np.empty_like(flat), _sized_pool(size, of_all)
    for start, begin, length in drawn:
        own, change = flat[start : start + length], made[start : start + length]
        np.multiply(pool[begin : begin + length], own, out=change)
        change += own
        if not math.isfinite(np.dot(change, change)):
            np.copyto(change, own, where=~np.isfinite(own))
    return made


def _wide(flat: Array, size: float, of_all: float, drawn: Sequence[_Block]) -> Array:
    """Of any other dtype, in float64 or complex128."""
    made, pool = flat.astype(dtypes.wide_type(flat)), _pool()
    for start, begin, length in drawn:
        made[start : start + length] *= 1 + size * (pool[begin : begin + length].astype(np.float64) + of_all)
    return made


def _drawn(count: int, places: np.random.Generator) -> list[_Block]:
    """The blocks of so many elements."""
    starts = range(0, count, _BLOCK)
    froms = places.integers(0, _POOL - _BLOCK, len(starts)).tolist()
    return [_Block(start, begin, min(_BLOCK, count - start)) for start, begin in zip(starts, froms, strict=True)]


@lru_cache(maxsize=4)
def _sized_pool(size: float, of_all: float) -> Array:
    """By how much of itself each value moves, float32: nearly every tensor of a run has the size of its dtype's roundoff."""
    moved = _pool() + np.float32(of_all)
    moved *= np.float32(size)
    return moved


@cache
def _pool() -> Array:
    return np.random.Generator(np.random.Philox(key=0)).standard_normal(_POOL, dtype=np.float32)
