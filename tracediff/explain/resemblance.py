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

BLOCK = 1 << 18


@dataclass(frozen=True, slots=True)
class Resemblance:
    """What ``b`` is to ``a``. ``equal`` is the share of equal values (None where only sketches were compared).

    ``correlation`` is Pearson's, 0 where either is constant; ``scale`` the factor c that brings c*a closest to b, and ``misfit`` the
    relative L2 that is left then; ``shift`` is mean(b) - mean(a). ``lone`` counts values that are finite on one side only.
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
    constant_a: bool
    constant_b: float | None
    lone: int

    @property
    def is_equal(self) -> bool:
        """Whether every value is equal, by value (of sketches: never)."""
        return self.equal == 1.0 and not self.lone

    @property
    def significance(self) -> float:
        """The correlation in standard deviations of what independent values of this number would have (Fisher's z)."""
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


def of_arrays(a: Array, b: Array) -> Resemblance:
    """What ``b`` is to ``a``, two arrays of one shape, read once."""
    sums = np.zeros(5)
    count = equal = lone = 0
    difference = shifted = largest = 0.0
    centre = _mean_of(b) - _mean_of(a) if a.size else 0.0
    low_a, high_a, low_b, high_b = math.inf, -math.inf, math.inf, -math.inf
    for x, y in _blocks(a, b):
        x, y = _wide(x), _wide(y)
        equal += int(np.count_nonzero((x == y) | (np.isnan(x) & np.isnan(y))))
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            lone += int(np.count_nonzero(np.isfinite(x) ^ np.isfinite(y)))
            x, y = x[finite], y[finite]
        if not x.size:
            continue
        gap = y - x
        count += x.size
        sums += (x.sum(), y.sum(), x @ x, y @ y, x @ y)
        difference += float(gap @ gap)
        gap -= centre
        shifted += float(gap @ gap)
        largest = max(largest, float(np.abs(gap + centre).max()))
        low_a, high_a = min(low_a, x.min()), max(high_a, x.max())
        low_b, high_b = min(low_b, y.min()), max(high_b, y.max())
    return _summary(sums, count, a.size, equal, lone, difference, shifted, largest, low_a == high_a, low_b if low_b == high_b else None)


def _summary(
    sums: Floats, count: int, size: int, equal: int, lone: int, difference: float, shifted: float, largest: float,
    constant_a: bool, constant_b: float | None,
) -> Resemblance:  # fmt: skip
    sum_a, sum_b, aa, bb, ab = (float(value) for value in sums)
    n = max(count, 1)
    spread_a, spread_b = max(aa - sum_a * sum_a / n, 0.0), max(bb - sum_b * sum_b / n, 0.0)
    flat = constant_a or constant_b is not None or not spread_a or not spread_b
    correlation = 0.0 if flat else (ab - sum_a * sum_b / n) / math.sqrt(spread_a * spread_b)
    return Resemblance(
        count=count,
        equal=equal / size if size else 1.0,
        rel_l2=_ratio(difference, aa),
        correlation=max(-1.0, min(1.0, correlation)),
        scale=ab / aa if aa else 0.0,
        misfit=_ratio(max(bb - ab * ab / aa, 0.0) if aa else bb, bb),
        shift=(sum_b - sum_a) / n,
        shift_misfit=_ratio(shifted, spread_b),
        max_abs=largest,
        constant_a=constant_a,
        constant_b=constant_b,
        lone=lone,
    )


def of_vectors(a: Sequence[Floats], b: Sequence[Floats], *, count: int, constant_b: float | None = None) -> Resemblance:
    """What ``b`` is to ``a``, estimated from their axis vectors, which stand in the same order of axes."""
    x, y = np.concatenate([v.ravel() for v in a]), np.concatenate([v.ravel() for v in b])
    exact = of_arrays(x, y)
    centred = [of_arrays(v, w) for v, w in zip(a, b, strict=True)]
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
        constant_a=exact.constant_a and count > 1,
        constant_b=constant_b,
        lone=0,
    )


def _ratio(numerator: float, denominator: float) -> float:
    if not denominator:
        return 0.0 if not numerator else math.inf
    return math.sqrt(numerator / denominator)


def _mean_of(array: Array) -> float:
    total, count = 0.0, 0
    for block, _ in _blocks(array, array):
        wide = _wide(block)
        finite = wide if np.isfinite(wide.sum()) else wide[np.isfinite(wide)]
        total, count = total + float(finite.sum()), count + finite.size
    return total / count if count else 0.0


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
