"""What is wrong with a tensor of the port, given the tensor of the reference that belongs in its place.

Never loaded, zero, rounded, scaled, shifted, its rows in another order, cut, partly overwritten: each with its numbers, and confirmed where
the one edit that is claimed, applied to the reference's values, gives exactly the port's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, Literal

import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import Array
from tracediff.parameters.layout_rules import rounded as rounded_to
from tracediff.parameters.matching import rounding
from tracediff.parameters.resemblance import Resemblance, identical
from tracediff.parameters.sources import Weight

Kind = Literal[
    "weights.unloaded", "weights.missing_bias", "weights.swapped", "weights.layout", "weights.value", "weights.precision"
]  # fmt: skip
Side = Literal["reference", "port", "both"]

SIGNIFICANT = 5.0  # standard deviations: a correlation below is that of independent values
EXACT = 2e-6  # relative misfit up to which a scale, a shift or a permutation accounts for all of the difference in float32
_WIDEST_GROUP = 10.0  # the range of a group's values, in parts of their root mean square, up to which codes explain the error
_ROWS = 1 << 16  # rows whose order is worth looking for
_UNIFORM_STD = 3**-0.5


@dataclass(frozen=True, slots=True)
class WeightFinding:
    """One thing that is wrong with the port's weights.

    ``reference`` and ``port`` are names of tensors, "" where a side has none. ``numbers`` holds what the evidence rests on.
    ``confirmed``: the one edit that is claimed, applied to the reference's values, gives exactly the port's. ``wrong_side`` says which
    side departs from the checkpoint, where one was given. ``expected``: a choice of the port rather than a mistake (its dtype).
    ``label`` is the evidence in a few words; ``place`` the name that a missing tensor would have in the port.
    """

    kind: Kind
    reference: str
    port: str
    evidence: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    confidence: float = 0.5
    confirmed: bool = False
    wrong_side: Side | None = None
    expected: bool = False
    label: str = ""
    place: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "reference": self.reference or None,
            "port": self.port or None,
            "evidence": self.evidence,
            "numbers": {key: value for key, value in self.numbers.items() if math.isfinite(value)},
            "confidence": round(self.confidence, 3),
            "confirmed": self.confirmed,
            "wrong_side": self.wrong_side,
            "expected": self.expected,
        }


@dataclass(frozen=True, slots=True)
class Judged:
    """A kind with its evidence, before it is known of which names it is said. ``label`` is the evidence without its numbers."""

    kind: Kind
    label: str
    evidence: str
    confidence: float
    confirmed: bool = False


def judged(resemblance: Resemblance, rounded: str, reference: Array | None, port: Array | None, target: Weight) -> Judged:
    """What is wrong with a tensor that resembles its counterpart so. The arrays stand in the port's layout, None where not readable."""
    for detector in (_constant, _packed, _rounded, _scaled, _shifted, _reordered, _quantised, _partly, _correlated):
        found = detector(resemblance, rounded, reference, port, target)
        if found is not None:
            return found
    return _unloaded(resemblance, target)


def numbers_of(resemblance: Resemblance | None) -> dict[str, float]:
    """The numbers of a resemblance that a finding carries."""
    if resemblance is None:
        return {}
    found = {
        "rel_l2": resemblance.rel_l2,
        "correlation": resemblance.correlation,
        "scale": resemblance.scale,
        "max_abs": resemblance.max_abs,
        "count": float(resemblance.count),
    }
    if resemblance.equal is not None:
        found["equal"] = resemblance.equal
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _rounded(found: Resemblance, rounded: str, reference: Array | None, port: Array | None, target: Weight) -> Judged | None:
    if rounded:
        return Judged("weights.precision", f"rounded to {rounded}", f"rounded to {rounded}: relative L2 {found.rel_l2:.2g}", 0.99, True)
    if found.rel_l2 > 0.1:
        return None
    if reference is None or port is None:
        return _seemingly_rounded(found, target)
    theirs = rounding(port, reference)
    if theirs:
        text = f"the reference holds the port's values rounded to {theirs}"
        return Judged("weights.precision", f"the reference is rounded to {theirs}", text, 0.95, True)
    grid = coarse_grid(port) if found.correlation > 0.9 else ""
    if grid and found.rel_l2 < 3 * dtypes.named(grid).roundoff and not coarse_grid(reference):
        text = f"every value is one of {grid}, though not always the nearest to the reference's: relative L2 {found.rel_l2:.2g}"
        return Judged("weights.precision", f"cut off to {grid}", text, 0.93)
    return None


def _seemingly_rounded(found: Resemblance, target: Weight) -> Judged | None:
    """Without the values: an error of the size that rounding makes, and extremes that are numbers of the coarser dtype."""
    extremes = np.array([target.stats.min, target.stats.max], np.float32)
    grid = coarse_grid(extremes) if target.dtype.name == "float32" and found.count >= 16 and extremes.all() else ""
    if not grid or not 0.3 <= found.rel_l2 / dtypes.named(grid).roundoff <= 1.2:
        return None
    text = f"an error of the size that rounding to {grid} makes (relative L2 {found.rel_l2:.2g}), and both extremes are {grid} numbers"
    return Judged("weights.precision", f"rounded to {grid}", text, 0.9)


def coarse_grid(array: Array) -> str:
    """The coarsest dtype, narrower than an array's own, that holds each of its values; "" for none.

    >>> coarse_grid(np.array([1.0, 1.5, 0.0078125], "float32")), coarse_grid(np.array([0.1, 0.2], "float32"))
    ('float8_e5m2', '')
    """
    for name in ("float8_e5m2", "float8_e4m3fn", "bfloat16", "float16", "float32"):
        coarse = dtypes.named(name)
        is_coarser = coarse.roundoff > dtypes.of(array).roundoff
        if is_coarser and identical(rounded_to(array[:8], name), array[:8]) and identical(rounded_to(array, name), array):
            return name
    return ""


def _constant(found: Resemblance, rounded: str, reference: Array | None, port: Array | None, target: Weight) -> Judged | None:
    if found.constant_b is None or (target.count < 2 and found.constant_b not in (0.0, 1.0)):
        return None
    if found.constant_a and target.count > 1 and found.constant_b not in (0.0, 1.0):
        return None
    value = {0.0: "zero", 1.0: "one"}.get(found.constant_b, f"{found.constant_b:.6g}")
    bias = found.constant_b == 0.0 and is_bias(target.name, target.shape)
    kind: Kind = "weights.missing_bias" if bias else "weights.unloaded"
    what = f"all {target.count:,} values are {value}" if target.count > 1 else f"its value is {value}"
    return Judged(kind, f"all {value} in the port", f"{what}; the reference's are not", 0.97 if target.count >= 4 else 0.8, True)


def is_bias(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a bias, by its name and rank.

    >>> is_bias("to_out.0.bias", (64,)), is_bias("norm.weight", (64,)), is_bias("lstm.bias_ih_l0", (64,))
    (True, False, True)
    """
    leaf = name.rpartition(".")[2].lower()
    return len(shape) <= 1 and ("bias" in leaf or leaf in ("b", "beta"))


def _scaled(found: Resemblance, rounded: str, reference: Array | None, port: Array | None, target: Weight) -> Judged | None:
    limit = max(EXACT, 4 * target.dtype.roundoff)
    if found.misfit > limit or found.lone or abs(found.scale - 1) < 4 * limit or not found.scale or found.count < 2:
        return None
    text = f"{found.scale:.6g} times the reference's"
    return Judged("weights.value", f"scaled by {found.scale:.4g}", f"{text}, exactly (misfit {found.misfit:.1g})", 0.97, True)


def _shifted(found: Resemblance, rounded: str, reference: Array | None, port: Array | None, target: Weight) -> Judged | None:
    if found.shift_misfit > max(1e-5, 8 * target.dtype.roundoff) or found.lone or found.count < 3:
        return None
    return Judged("weights.value", f"shifted by {found.shift:.4g}", f"the reference's plus {found.shift:.6g} throughout", 0.95, True)


def _packed(found: Resemblance, rounded: str, reference: Array | None, port: Array | None, target: Weight) -> Judged | None:
    """An error of the size that the codes make in which the port holds its values."""
    if target.codes is None or found.lone:
        return None
    bits, group = target.codes
    if not 0 < found.rel_l2 <= _WIDEST_GROUP / ((2**bits - 1) * math.sqrt(12)):
        return None
    text = f"quantised to {bits} bits in groups of {group}: relative L2 {found.rel_l2:.2g}"
    return Judged("weights.precision", f"quantised to {bits} bits", text, 0.95)


def _quantised(found: Resemblance, rounded: str, reference: Array | None, port: Array | None, target: Weight) -> Judged | None:
    """Few distinct values in each row or group of a row, where the reference has many, and close to it."""
    if reference is None or port is None or found.correlation < 0.95 or found.rel_l2 < 1e-6 or target.dtype.is_exact or port.ndim < 2:
        return None
    for size in (port.shape[-1], 128, 64, 32):
        if size < 32 or port.shape[-1] % size:
            continue
        ours, theirs = (_levels(array, size) for array in (port, reference))
        if ours <= min(257, size // 2) and theirs > 1.5 * ours:
            text = f"at most {ours} distinct values in each {size} of a row (the reference has {theirs}); relative L2 {found.rel_l2:.2g}"
            return Judged("weights.precision", f"on a grid of {ours} levels", text, 0.95)
    return None


def _levels(array: Array, size: int) -> int:
    groups = np.ascontiguousarray(array[:: max(1, len(array) // 16)]).reshape(-1, size)[:64]
    return max(np.unique(group.astype(np.float64)).size for group in groups)


def _partly(found: Resemblance, rounded: str, reference: Array | None, port: Array | None, target: Weight) -> Judged | None:
    if found.equal is None or not 0.02 < found.equal < 1 or found.count < 16 or reference is None or port is None:
        return None
    where = _differing_rows(reference, port) if port.ndim else ""
    text = f"{found.equal:.1%} of {found.count:,} values are equal{where}; relative L2 {found.rel_l2:.2g}"
    return Judged("weights.value", "partly other values", text, 0.85)


def _differing_rows(reference: Array, port: Array) -> str:
    """Which rows differ, where it is not all of them."""
    rows = len(port)
    differs = np.fromiter((not identical(a, b) for a, b in zip(reference, port, strict=True)), bool, rows)
    places = np.flatnonzero(differs)
    if not places.size or places.size == rows:
        return ""
    first, last = int(places[0]), int(places[-1])
    if places.size == last - first + 1:
        return f": rows {first}:{last + 1} of {rows} differ" if last > first else f": row {first} of {rows} differs"
    return f": {places.size} of {rows} rows differ, the first is {first}"


def _correlated(found: Resemblance, rounded: str, reference: Array | None, port: Array | None, target: Weight) -> Judged | None:
    if abs(found.correlation) < 0.5 and found.count >= 16:
        return None
    if found.lone:
        return Judged("weights.value", "NaN or infinite", f"{found.lone:,} values are finite on one side only", 0.9)
    if found.count >= 16 and found.significance < SIGNIFICANT:
        return None
    if found.count < 16:
        text = f"relative L2 {found.rel_l2:.2g} over {found.count} values, too few to say more"
        return Judged("weights.value", "other values", text, 0.6)
    small = "" if found.rel_l2 > 1e-3 else ", a small difference"
    text = f"relative L2 {found.rel_l2:.2g}, correlation {found.correlation:.4f}{small}"
    return Judged("weights.value", "other values", text, 0.8)


def _unloaded(found: Resemblance, target: Weight) -> Judged:
    """Values that have nothing to do with the reference's."""
    about = "" if found.equal is not None else "about "
    text = f"correlation {about}{found.correlation:+.3f} over {found.count:,} values, relative L2 {about}{found.rel_l2:.2g}"
    fresh = fresh_initialisation(target)
    sure = 0.97 if found.count >= 64 else 0.85
    if fresh:
        return Judged("weights.unloaded", "never loaded", f"{text}; {fresh}", min(sure + 0.02, 0.99))
    return Judged("weights.unloaded", "never loaded", text, sure)


def fresh_initialisation(target: Weight) -> str:
    """The default initialisation that a tensor's statistics look like; "" for none.

    Uniform within ±sqrt(k / fan_in), k being 1, 3 or 6 as the frameworks have it, or a unit normal.
    """
    stats = target.stats
    if stats.count < 64 or not stats.std:
        return ""
    bound = max(-stats.min, stats.max)
    if abs(stats.mean) > 6 * stats.std / math.sqrt(stats.count):
        return ""
    if abs(stats.std / bound - _UNIFORM_STD) < 0.02 + 0.5 / math.sqrt(stats.count):
        for fan, numerator in _fans(target.shape):
            limit = math.sqrt(numerator / fan)
            if limit * (1 - 8 / stats.count) - 1e-9 < bound <= limit * (1 + 1e-6):
                return f"uniform within ±{limit:.4g} = sqrt({numerator:g}/{fan}), a fresh initialisation"
        return f"uniform within ±{bound:.4g}, like a fresh initialisation"
    if abs(stats.std - 1) < 4 / math.sqrt(stats.count) and stats.absmean and abs(stats.absmean - 0.79788) < 4 / math.sqrt(stats.count):
        return "a unit normal, like a fresh initialisation"
    return ""


def _fans(shape: tuple[int, ...]) -> Iterator[tuple[int, float]]:
    """Fan-ins that a tensor of this shape may have been initialised by, in either framework's layout."""
    if len(shape) < 2:
        fans = [shape[0]] if shape else []
    else:
        fans = [math.prod(shape[1:]), math.prod(shape[:-1]), shape[1], shape[0], shape[0] + shape[1]]
    for numerator in (1.0, 3.0, 6.0):
        yield from ((fan, numerator) for fan in dict.fromkeys(fans) if fan)


# -- the same values in another order ----------------------------------------------------------------------------------


def _reordered(found: Resemblance, rounded: str, reference: Array | None, port: Array | None, target: Weight) -> Judged | None:
    """The reference's rows, along one axis, in another order: halves interleaved for a rotary embedding, gates or channels exchanged."""
    if reference is None or port is None or not port.ndim or found.lone or (found.equal or 0) > 0.9:
        return None
    norm, other = found.norms
    if abs(norm - other) > 1e-5 * norm or not _same_multiset(reference, port):
        return None
    if _is_reshaped(reference, port):
        text = "the reference's values in their order, read in another shape: reshaped where a transpose was meant"
        return Judged("weights.layout", "reshaped, not transposed", text, 0.95, True)
    for axis in range(port.ndim):
        order = _order(reference, port, axis)
        if order is not None:
            label = f"axis {axis} in another order: {order_text(order)}"
            return Judged("weights.layout", label, f"the reference's values with {label}", 0.95, True)
    text = "the same values in an order that no permutation of axes gives"
    return Judged("weights.layout", "the same values in another order", text, 0.8)


def _same_multiset(a: Array, b: Array) -> bool:
    if a.dtype != b.dtype:
        return False
    return _near(np.sort(a.astype(np.float32), axis=None), np.sort(b.astype(np.float32), axis=None))


def _near(a: Array, b: Array) -> bool:
    """Whether values are equal, but for what a merge in another precision moves them."""
    return identical(a, b) or bool(np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=1e-5, atol=1e-12))


def _is_reshaped(reference: Array, port: Array) -> bool:
    """Whether the port holds the reference's values as some other order of axes has them, in its own shape."""
    if not 2 <= port.ndim <= 4:
        return False
    flat = port.reshape(-1)
    return any(
        _near(seen.reshape(-1)[:64], flat[:64]) and _near(seen.reshape(-1), flat)
        for axes in permutations(range(reference.ndim))
        for seen in (reference.transpose(axes),)
        if axes != tuple(range(reference.ndim))
    )


def _order(reference: Array, port: Array, axis: int) -> Array | None:
    """The order of the reference's rows along an axis that gives the port; None where there is none."""
    rows = port.shape[axis]
    if not 1 < rows <= _ROWS:
        return None
    ours, theirs = (np.ascontiguousarray(np.moveaxis(array, axis, 0)).reshape(rows, -1) for array in (port, reference))
    places: dict[bytes, list[int]] = {}
    for place, row in enumerate(theirs):
        places.setdefault(row.tobytes(), []).append(place)
    order = np.empty(rows, np.int64)
    for place, row in enumerate(ours):
        found = places.get(row.tobytes())
        if not found:
            return None
        order[place] = found.pop(0)
    return order


def order_text(order: Array) -> str:
    """A permutation of rows in words.

    >>> order_text(np.arange(6)[::-1]), order_text(np.array([2, 3, 0, 1])), order_text(np.array([0, 2, 1, 3]))
    ('reversed', 'blocks of 2 as (1, 0)', 'halves interleaved')
    """
    rows = order.size
    if np.array_equal(order, np.arange(rows)[::-1]):
        return "reversed"
    for run in (size for size in range(rows // 2, 1, -1) if rows % size == 0):
        blocks = order.reshape(-1, run)
        if np.array_equal(blocks, blocks[:, :1] + np.arange(run)) and not (blocks[:, 0] % run).any():
            moved = (blocks[:, 0] // run).tolist()
            return f"blocks of {run} as {tuple(moved)}" if len(moved) <= 8 else f"blocks of {run} permuted"
    for groups in (count for count in range(1, rows // 4 + 1) if rows % (2 * count) == 0):
        grid = np.arange(rows).reshape(groups, 2, -1)
        runs = f" in {groups} runs" if groups > 1 else ""
        if np.array_equal(order, grid.transpose(0, 2, 1).ravel()):
            return f"halves interleaved{runs}"
        if np.array_equal(order, np.arange(rows).reshape(groups, -1, 2).transpose(0, 2, 1).ravel()):
            return f"even and odd parted{runs}"
    step = np.diff(order)
    if np.count_nonzero(step != 1) == 1:
        return f"rolled by {int(rows - order[0])}"
    return f"{int(np.count_nonzero(order != np.arange(rows)))} of {rows} moved"
