"""What is kept of an array besides its values: statistics, digest, and for parameters a sketch that survives a port's rearrangements.

Statistics and digest cost one blocked pass of 64 Ki elements; blocks are widened to float64 one at a time.
"""

from __future__ import annotations

import math
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from tracediff.dtype import Array, DType
from tracediff.trace import schema

BLOCK = 64 * 1024
"""Elements a block."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of one array, invariant under permutation of its elements (up to float64 rounding).

    ``count`` is the number of elements (of a complex array: of real and imaginary parts), ``nan``, ``inf`` and ``zero`` how many of
    them are that. The rest is over the finite elements, 0.0 where there is none: ``std`` is the population's, ``l2`` the norm,
    ``absmean`` the mean of abs(x), ``cube`` the mean of x**3. A value beyond float64's range is float64's largest.
    """

    count: int
    nan: int
    inf: int
    zero: int
    min: float
    max: float
    mean: float
    std: float
    l2: float
    absmean: float
    cube: float


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """What recognises a parameter after it was transposed, fused, rounded or merged.

    ``quantiles``: (33,) float64, evenly spaced quantiles of the finite values. ``axes``: one float64 vector an axis, as long as the
    axis: the array contracted over all *other* axes with `probe` vectors, which depend on nothing but the axis length. So the
    vectors follow their axes through any permutation, an axis of length 1 changes nothing, and along the axis on which projections
    were fused the fused vector is the concatenation of the parts'. It is linear: rounding moves it by rounding. An axis longer than
    `LONGEST_AXIS` has an empty vector; NaN and infinities count as 0.
    """

    quantiles: Floats
    axes: tuple[Floats, ...]


class Fingerprinted(Protocol):
    """A tensor that is known by name, shape and fingerprint, whether its values can be read or not: a trace's parameter, a weight.

    ``roundoff`` is its dtype's.
    """

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def roundoff(self) -> float: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def stats(self) -> Stats: ...
    @property
    def sketch(self) -> Sketch: ...


def digest(bits: Array) -> bytes:
    """The 16 bytes of xxh3_128 over the stored bits in C order."""
    return xxhash.xxh3_128_digest(_flat(bits).view(np.uint8).data)


def statistics(values: Array, dtype: DType) -> Stats:
    """The statistics of an array of values (or of its stored bits), in one blocked pass; of a few values number by number."""
    if values.size <= FEW and (few := next(real_blocks(values, dtype), None)) is not None and (found := _of_few(few)) is not None:
        return found
    total = _Totals()
    with np.errstate(all="ignore"):
        for block in real_blocks(values, dtype):
            total.add(block)
    return total.stats()


def real_blocks(values: Array, dtype: DType, size: int = BLOCK) -> Iterator[Array]:
    """The elements in C order as flat blocks of a real type that NumPy computes with; complex numbers as pairs."""
    flat = _flat(values)
    flat = flat.view(dtype.view) if flat.dtype != dtype.view else flat
    if dtype.is_complex:
        flat = flat.view(flat.real.dtype)
    if flat.dtype.itemsize == 1 and dtype.roundoff:
        table = np.arange(256, dtype=np.uint8).view(dtype.view).astype(np.float32)
        codes = flat.view(np.uint8)
        yield from (table[codes[start : start + size]] for start in range(0, flat.size, size))
        return
    flat = flat.view(np.uint8) if flat.dtype == np.bool_ else flat
    for start in range(0, flat.size, size):
        yield flat[start : start + size]


def _flat(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1)


class _Scratch(threading.local):
    """Buffers of one block, kept for the next array: fresh ones cost more than the sums."""

    def __init__(self) -> None:
        self.wide, self.other = np.empty(BLOCK), np.empty(BLOCK)
        self.is_zero = np.empty(BLOCK, np.bool_)


_scratch = _Scratch()
_UNTHREADED = 8 * 1024  # longer dot products wake OpenBLAS's threads, which then spin beside the model's own


def _sum(a: Floats) -> float:
    return float(np.einsum("i->", a))


def _dot(a: Floats, b: Floats) -> float:
    if a.size <= _UNTHREADED:
        return float(a @ b)
    whole = a.size - a.size % _UNTHREADED
    parts = np.matmul(a[:whole].reshape(-1, 1, _UNTHREADED), b[:whole].reshape(-1, _UNTHREADED, 1))
    return float(parts.sum()) + float(a[whole:] @ b[whole:])


FEW = 24
"""Elements up to which Python is sooner done than NumPy: in a quarter of the time for four, in two fifths of it for these."""


def _of_few(block: Array) -> Stats | None:
    """The statistics of a few values; None where one is not finite, or too large for what is worked out of it."""
    values = block.astype(np.float64).tolist()
    n, squares = len(values), [value * value for value in values]
    square, absolute = math.fsum(squares), math.fsum(map(abs, values))
    if not square <= _TAME:
        return None
    mean = math.fsum(values) / n
    centred = math.fsum([(value - mean) ** 2 for value in values])
    cube = math.fsum(map(operator.mul, squares, values)) / n
    low, high = min(values), max(values)
    return Stats(n, 0, 0, values.count(0.0), low, high, mean, math.sqrt(centred / n), math.sqrt(square), absolute / n, cube)


_TAME = 1e200
"""The sum of squares beyond which cubes might be too large for a float64."""


class _Totals:
    """Running sums over blocks, in float64."""

    def __init__(self) -> None:
        self.count = self.nan = self.inf = self.zero = self.finite = 0
        self.min, self.max = math.inf, -math.inf
        self.sum = self.centred = self.squares = self.absolute = self.cubes = 0.0

    def add(self, block: Array) -> None:
        wide = _scratch.wide[: block.size]
        np.copyto(wide, block, casting="unsafe")
        self.count += block.size
        source = block if block.dtype.kind in "iuf" and block.dtype != np.float16 else wide  # NumPy is slow on halves
        low, high = float(source.min()), float(source.max())
        if not math.isfinite(high - low):
            source = wide = self._finite_part(wide)
            if not wide.size:
                return
            low, high = float(wide.min()), float(wide.max())
        self.min, self.max = min(self.min, low), max(self.max, high)
        if low <= 0.0 <= high:
            self.zero += int(np.count_nonzero(np.equal(source, 0, out=_scratch.is_zero[: source.size])))
        self._add_sums(wide)

    def _finite_part(self, wide: Floats) -> Floats:
        nan, finite = np.isnan(wide), np.isfinite(wide)
        nans, kept = int(np.count_nonzero(nan)), int(np.count_nonzero(finite))
        self.nan += nans
        self.inf += wide.size - kept - nans
        return wide[finite]

    def _add_sums(self, wide: Floats) -> None:
        n = wide.size
        other = _scratch.other[:n]
        np.multiply(wide, wide, out=other)
        total, squares = _sum(wide), _sum(other)
        self.cubes += _dot(other, wide)
        mean = total / n
        centred = squares - n * mean * mean
        if centred < 1e-6 * squares:  # the difference cancelled: once more, about the mean
            np.subtract(wide, mean, out=other)
            centred = _dot(other, other)
        if self.finite:
            apart = mean - self.sum / self.finite
            centred += apart * apart * (self.finite * n / (self.finite + n))
        self.absolute += _sum(np.abs(wide, out=wide))  # last, for it overwrites
        self.centred += max(centred, 0.0)
        self.sum += total
        self.squares += squares
        self.finite += n

    def stats(self) -> Stats:
        n = self.finite
        if not n:
            return Stats(self.count, self.nan, self.inf, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        return Stats(
            self.count,
            self.nan,
            self.inf,
            self.zero,
            self.min,
            self.max,
            _saturated(self.sum / n),
            _saturated(math.sqrt(self.centred / n)),
            _saturated(math.sqrt(self.squares)),
            _saturated(self.absolute / n),
            _saturated(self.cubes / n),
        )


def _saturated(value: float) -> float:
    if -_LARGEST <= value <= _LARGEST:
        return value
    return 0.0 if math.isnan(value) else math.copysign(_LARGEST, value)


_LARGEST = sys.float_info.max


LONGEST_AXIS = 1 << 20
"""A longer axis has no vector in a sketch, and is summed over plainly for the other axes' vectors."""
_SORT_LIMIT = 1 << 24  # of more elements the quantiles are read off a histogram of this many bins:
_BINS = 1 << 16


@lru_cache(maxsize=32)
def probe(length: int) -> Floats:
    """The vector that contracts an axis of this length: pseudo-random, zero mean and unit variance; exactly [1.0] for length 1.

    Part of the file format: SplitMix64 of (length, index), so that no generator's version matters.
    """
    if length == 1 or length > LONGEST_AXIS:
        return np.broadcast_to(np.ones(1), (length,))
    z = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(length * 0xD1B54A32D192ED03 % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    unit = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    vector: Floats = (2.0 * unit - 1.0) * math.sqrt(3.0)
    return vector


def sketch(values: Array, dtype: DType) -> Sketch:
    """The sketch of a parameter's values (or of its stored bits)."""
    array = np.ascontiguousarray(values).reshape(np.shape(values))
    array = array.view(dtype.view) if array.dtype != dtype.view else array
    if not array.size:
        lengths: tuple[int, ...] = array.shape
        return Sketch(np.zeros(schema.QUANTILES), tuple(np.zeros(length if length <= LONGEST_AXIS else 0) for length in lengths))
    with np.errstate(all="ignore"):
        vectors, _ = _contract(array)
        return Sketch(_quantiles(array, dtype), tuple(vectors))


def _contract(array: Array) -> tuple[list[Floats], float]:
    """An array's axis vectors, and its full contraction; slices that are large are contracted one at a time."""
    if array.ndim == 0:
        return [], float(_wide(array.reshape(1))[0])
    if array.ndim == 1:
        return _contract_vector(array)
    rest = math.prod(array.shape[1:])
    if rest > LONGEST_AXIS:
        return _contract_slices(array)
    rows = array.shape[0]
    lead, right, left = probe(rows), _outer(array.shape[1:]), np.zeros(rest)
    first = np.empty(rows if rows <= LONGEST_AXIS else 0)
    step = max(1, BLOCK // rest)
    for start in range(0, rows, step):
        block = _wide(array[start : start + step].reshape(-1, rest))
        left += lead[start : start + step] @ block
        if first.size:
            first[start : start + step] = block @ right
    vectors, total = _contract(left.reshape(array.shape[1:]))
    return [first, *vectors], total


def _contract_vector(array: Array) -> tuple[list[Floats], float]:
    total = 0.0
    for start in range(0, array.size, BLOCK):
        total += float(_wide(array[start : start + BLOCK]) @ probe(array.size)[start : start + BLOCK])
    return [_wide(array if array.size <= LONGEST_AXIS else array[:0]).copy()], total


def _contract_slices(array: Array) -> tuple[list[Floats], float]:
    rows = array.shape[0]
    lead, first = probe(rows), np.empty(rows if rows <= LONGEST_AXIS else 0)
    sums: list[Floats] = []
    total = 0.0
    for number, part in enumerate(array):
        vectors, whole = _contract(part)
        sums = [into + lead[number] * vector for into, vector in zip(sums or map(np.zeros_like, vectors), vectors, strict=True)]
        total += float(lead[number]) * whole
        if first.size:
            first[number] = whole
    return [first, *sums], total


def _outer(shape: tuple[int, ...]) -> Floats:
    vector: Floats = np.ones(1)
    for length in shape:
        vector = np.multiply.outer(vector, probe(length)).reshape(-1)
    return vector


def _wide(array: Array) -> Floats:
    """Values as float64, NaN and infinities as 0; a complex number as one fixed combination of its parts.

    Of up to a block they stand in a buffer that the next call fills anew.
    """
    if array.dtype.kind == "c":
        return np.asarray(_wide(array.real) * probe(2)[0] + _wide(array.imag) * probe(2)[1])
    wide = _scratch.wide[: array.size].reshape(array.shape) if array.size <= BLOCK else np.empty(array.shape)
    np.copyto(wide, array, casting="unsafe")
    if not math.isfinite(_sum(wide.reshape(-1))):
        wide[~np.isfinite(wide)] = 0.0
    return wide


def _quantiles(array: Array, dtype: DType) -> Floats:
    if array.size > _SORT_LIMIT:
        return _histogram_quantiles(array, dtype)
    if array.dtype == np.float32 and sys.byteorder == "little":
        return _float_quantiles(_flat(array))
    ordered = np.concatenate([np.empty(0, np.float32), *real_blocks(array, dtype, array.size)])
    if ordered.dtype == np.float32 and sys.byteorder == "little":
        return _float_quantiles(ordered)
    ordered.sort()
    if ordered.dtype.kind == "f":  # infinities at both ends, NaN behind them
        infinity = ordered.dtype.type(np.inf)  # of its dtype: the array would be converted otherwise
        ordered = ordered[np.searchsorted(ordered, -infinity, "right") : np.searchsorted(ordered, infinity, "left")]
    return _interpolated(lambda ranks: ordered[ranks], ordered.size)


_HEADS = 1 << 16
"""The upper halves of float32 numbers: sign, exponent, and seven digits."""
_ASCENDING = np.concatenate([np.arange(0xFF7F, 0x7FFF, -1), np.arange(0x7F80)])
"""The upper halves of finite numbers, in the order of these numbers."""


def _float_quantiles(flat: Array) -> Floats:
    """The quantiles of float32 values, as of the sorted ones: only those are sorted that share their upper half with a quantile."""
    heads = flat.view(np.uint16)[1::2]
    blocks = range(0, flat.size, 4 * BLOCK)
    counts = np.zeros(_HEADS, np.int64)
    for start in blocks:
        counts += np.bincount(heads[start : start + 4 * BLOCK], minlength=_HEADS)
    counts = counts[_ASCENDING]
    reached = np.cumsum(counts)

    def at(ranks: NDArray[np.int64]) -> Array:
        bins = np.searchsorted(reached, ranks, "right")
        is_met = np.zeros(len(counts), bool)
        is_met[bins] = True
        is_sorted = np.zeros(_HEADS, bool)
        is_sorted[_ASCENDING[is_met]] = True
        chosen = ((flat[start : start + 4 * BLOCK], heads[start : start + 4 * BLOCK]) for start in blocks)
        ordered = np.concatenate([part.compress(is_sorted.take(own)) for part, own in chosen])  # in a quarter of an index's time
        ordered.sort()
        left_out = np.cumsum(np.where(is_met, 0, counts))
        return np.asarray(ordered[ranks - left_out[bins]])

    return _interpolated(at, int(reached[-1]))


def _finite_blocks(array: Array, dtype: DType) -> Iterator[Array]:
    for block in real_blocks(array, dtype):
        real = block.astype(np.float32) if block.dtype.itemsize < 4 else block
        finite = np.isfinite(real)
        yield real if finite.all() else real[finite]


def _interpolated(at: Callable[[NDArray[np.int64]], Array], count: int) -> Floats:
    """The quantiles of so many values; ``at`` gives those of some ranks."""
    if not count:
        return np.zeros(schema.QUANTILES)
    ranks = np.linspace(0, count - 1, schema.QUANTILES)
    low = ranks.astype(np.int64)
    high = np.minimum(low + 1, count - 1)
    below, above = at(np.concatenate([low, high])).astype(np.float64).reshape(2, -1)
    return np.asarray(below + (above - below) * (ranks - low))


def _histogram_quantiles(array: Array, dtype: DType) -> Floats:
    bounds = [(block.min(), block.max()) for block in _finite_blocks(array, dtype) if block.size]
    if not bounds:
        return np.zeros(schema.QUANTILES)
    low, high = float(min(low for low, _ in bounds)), float(max(high for _, high in bounds))
    counts = np.zeros(_BINS, np.int64)
    for block in _finite_blocks(array, dtype):
        counts += np.histogram(block, _BINS, (low, high))[0]
    reached = np.concatenate([[0], np.cumsum(counts)])
    ranks = np.linspace(0, reached[-1], schema.QUANTILES)
    return np.asarray(np.interp(ranks, reached, np.linspace(low, high, _BINS + 1)))
