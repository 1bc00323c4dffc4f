"""How much one tensor resembles another: correlation, relative error, the share of equal values, the best scale.

Of values where both sides have them, in blocks; else estimated from the axis vectors of their sketches, whose distance is, on average,
that of the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import Array
from tracediff.trace.fingerprint import Floats

BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Resemblance:
    """What ``b`` is to ``a``. ``equal`` is the share of equal values (None where only sketches were compared).

    ``correlation`` is Pearson's, 0 where either is constant; ``scale`` the factor c that brings c*a closest to b, and ``misfit`` the
    relative L2 that is left then; ``shift`` is mean(b) - mean(a), and ``shift_misfit`` what is left of the difference without it,
    relative to b's spread. ``norms`` are those of a and b; ``lone`` counts values that are finite on one side only.
    """

    count: int
    equal: float | None
    rel_l2: float
    correlation: float
    scale: float
    misfit: float
    shift: float
    shift_misfit: float
    max_abs: float
    norms: tuple[float, float]
    constant_a: bool
    constant_b: float | None
    lone: int

    @property
    def significance(self) -> float:
        """The correlation in standard deviations of the correlation that as many independent values would have (Fisher's z)."""
        return math.atanh(min(abs(self.correlation), 1 - 1e-12)) * math.sqrt(max(self.count - 3, 0))


def identical(a: Array, b: Array) -> bool:
    """Whether two arrays of one shape hold the same values, NaN for NaN."""
    if a.dtype != b.dtype and "V" not in (a.dtype.kind, b.dtype.kind):
        a, b = _comparable(a), _comparable(b)
    return all(_same(x, y) for x, y in _blocks(a, b))


def _same(a: Array, b: Array) -> bool:
    equal = a == b
    return bool(equal.all()) or bool((equal | ((a != a) & (b != b))).all())


def _comparable(array: Array) -> Array:
    """Values that NumPy compares without rounding: 8- and 16-bit floats widened to float32."""
    small = array.dtype.itemsize < 4 and not dtypes.of(array).is_exact
    return array.astype(np.float32) if small else array


def compare_arrays(a: Array, b: Array) -> Resemblance:
    """What ``b`` is to ``a``, two arrays of one shape, in one pass."""
    sums = _Sums()
    for x, y in _blocks(a, b):
        sums.add(x, y)
    return sums.resemblance(a.size)


class _Sums:
    """Running sums over blocks, in float64; values that are not finite on both sides are left out."""

    def __init__(self) -> None:
        self.count = self.equal = self.lone = 0
        self.sum_a = self.sum_b = self.aa = self.bb = self.ab = self.gaps = self.largest = 0.0
        self.first_a: float | None = None
        self.first_b: float | None = None
        self.constant_a = self.constant_b = True

    def add(self, a: Array, b: Array) -> None:
        x, y = _wide(a), _wide(b)
        same = x == y
        if not np.isfinite(x.sum() + y.sum()):
            same |= np.isnan(x) & np.isnan(y)
            finite = np.isfinite(x) & np.isfinite(y)
            self.lone += int(np.count_nonzero(np.isfinite(x) ^ np.isfinite(y)))
            x, y = x[finite], y[finite]
        self.equal += int(np.count_nonzero(same))
        if not x.size:
            return
        self._see_constants(x, y)
        gap = y - x
        self.count += x.size
        self.sum_a, self.sum_b = self.sum_a + float(x.sum()), self.sum_b + float(y.sum())
        self.aa, self.bb, self.ab = self.aa + _dot(x, x), self.bb + _dot(y, y), self.ab + _dot(x, y)
        self.gaps += _dot(gap, gap)
        self.largest = max(self.largest, -float(gap.min()), float(gap.max()))

    def _see_constants(self, x: Floats, y: Floats) -> None:
        self.first_a = float(x[0]) if self.first_a is None else self.first_a
        self.first_b = float(y[0]) if self.first_b is None else self.first_b
        self.constant_a = self.constant_a and bool((x == self.first_a).all())
        self.constant_b = self.constant_b and bool((y == self.first_b).all())

    def resemblance(self, size: int) -> Resemblance:
        n = max(self.count, 1)
        shift = (self.sum_b - self.sum_a) / n
        spread_a = max(self.aa - self.sum_a * self.sum_a / n, 0.0)
        spread_b = max(self.bb - self.sum_b * self.sum_b / n, 0.0)
        flat = self.constant_a or self.constant_b or not spread_a or not spread_b
        correlation = 0.0 if flat else (self.ab - self.sum_a * self.sum_b / n) / math.sqrt(spread_a * spread_b)
        left = self.bb - self.ab * self.ab / self.aa if self.aa else self.bb
        return Resemblance(
            count=self.count,
            equal=self.equal / size if size else 1.0,
            rel_l2=_ratio(self.gaps, self.aa),
            correlation=max(-1.0, min(1.0, correlation)),
            scale=self.ab / self.aa if self.aa else 0.0,
            misfit=_ratio(max(left, 0.0), self.bb),
            shift=shift,
            shift_misfit=_ratio(max(self.gaps - n * shift * shift, 0.0), spread_b),
            max_abs=self.largest,
            norms=(math.sqrt(self.aa), math.sqrt(self.bb)),
            constant_a=self.constant_a,
            constant_b=self.first_b if self.constant_b else None,
            lone=self.lone,
        )


def compare_vectors(a: Sequence[Floats], b: Sequence[Floats], *, count: int, constant_b: float | None = None) -> Resemblance:
    """What ``b`` is to ``a``, estimated from their axis vectors, (axis length,) each, both in the same order of axes."""
    x, y = np.concatenate([v.ravel() for v in a]), np.concatenate([v.ravel() for v in b])
    exact = compare_arrays(x, y)
    centred = [compare_arrays(v, w) for v, w in zip(a, b, strict=True)]
    weight = max(sum(part.count for part in centred), 1)
    return Resemblance(
        count=exact.count,
        equal=None,
        rel_l2=exact.rel_l2,
        correlation=sum(part.correlation * part.count for part in centred) / weight,
        scale=exact.scale,
        misfit=exact.misfit,
        shift=exact.shift,
        shift_misfit=math.inf,
        max_abs=math.nan,
        norms=exact.norms,
        constant_a=exact.constant_a and count > 1,
        constant_b=constant_b,
        lone=0,
    )


def _ratio(numerator: float, denominator: float) -> float:
    if not denominator:
        return 0.0 if not numerator else math.inf
    return math.sqrt(numerator / denominator)


def _dot(x: Floats, y: Floats) -> float:
    """The inner product, in this thread: a threaded BLAS only waits for itself on short vectors."""
    return float(np.einsum("i,i->", x, y))


def _wide(block: Array) -> Floats:
    if block.dtype.kind == "c":
        block = np.stack([block.real, block.imag])
    return block.astype(np.float64).ravel()


def _blocks(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    """Matching pieces of two arrays of one shape, a few hundred thousand values each, without copying either whole."""
    if a.ndim == 0 or a.size <= BLOCK:
        yield a, b
        return
    rows = max(1, BLOCK * a.shape[0] // a.size)
    for start in range(0, a.shape[0], rows):
        x, y = a[start : start + rows], b[start : start + rows]
        if x.size > 4 * BLOCK and x.ndim > 1:
            for one, other in zip(x, y, strict=True):
                yield from _blocks(one, other)
        else:
            yield x, y
