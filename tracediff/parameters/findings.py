"""What is wrong with a tensor of the port, given the tensor of the reference that belongs in its place.

Never loaded, zero, rounded, scaled, shifted, its rows in another order, partly overwritten: each with its numbers. A finding is confirmed
where the one edit that it claims, applied to the reference's values, gives exactly the port's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, Literal, get_args

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment.axes import apply
from tracediff.dtype import Array
from tracediff.parameters.layout_rules import fitting_layouts
from tracediff.parameters.layout_rules import rounded as rounded_to
from tracediff.parameters.matching import like_statistics, rounding
from tracediff.parameters.resemblance import Resemblance, identical
from tracediff.parameters.sources import Weight
from tracediff.parameters.thresholds import THRESHOLDS

Kind = Literal["weights.unloaded", "weights.missing_bias", "weights.swapped", "weights.layout", "weights.value", "weights.precision"]
"""The kinds of finding, the gravest first."""
GRAVITY: Mapping[str, int] = {kind: place for place, kind in enumerate(get_args(Kind))}
"""The place of each kind among them: 0 is the gravest."""
WrongSide = Literal["reference", "port", "both"]

_UNIFORM_STD = 3**-0.5
_NORMAL_ABSMEAN = 0.79788
"""sqrt(2 / pi): the mean of abs(x) of a unit normal."""
_GROUP_SIZES = (128, 64, 32)
"""Values that share a scale in the common quantisations, besides whole rows."""
FRESH = ", a fresh initialisation"
_INITIALISATIONS = (1.0, 3.0, 6.0)
"""The k of the frameworks' uniform initialisations within sqrt(k / fan_in)."""


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
    wrong_side: WrongSide | None = None
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
class Fault:
    """What is wrong with values, whatever the names of their tensors. ``label`` is the evidence without its numbers."""

    kind: Kind
    label: str
    evidence: str
    confidence: float
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor of the port (``target``) whose values are not its counterpart's, and all that is known of the two.

    ``rounded`` names the dtype to which the reference's values were rounded, "" for none. The arrays are in the port's layout and shape,
    None where the values cannot be read. ``source``: the tensor of the reference where it is one alone, and copied.
    """

    resemblance: Resemblance
    rounded: str
    reference: Array | None
    port: Array | None
    target: Weight
    source: Weight | None = None

    @property
    def is_small(self) -> bool:
        """Whether there are too few values for a correlation to say anything."""
        return self.resemblance.count < THRESHOLDS.few_values


def fault_of(difference: Difference) -> Fault:
    """What is wrong with a tensor: the fault that the first of `DETECTORS` finds, else that it was never loaded."""
    found = (detector(difference) for detector in DETECTORS)
    return next((fault for fault in found if fault is not None), None) or _unloaded(difference)


def numbers_of(resemblance: Resemblance | None) -> dict[str, float]:
    """The numbers of a resemblance that a finding carries."""
    if resemblance is None:
        return {}
    numbers = {
        "rel_l2": resemblance.rel_l2,
        "correlation": resemblance.correlation,
        "scale": resemblance.scale,
        "max_abs": resemblance.max_abs,
        "count": float(resemblance.count),
    }
    if resemblance.equal is not None:
        numbers["equal"] = resemblance.equal
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def is_bias(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a bias, by its name and rank.

    >>> is_bias("to_out.0.bias", (64,)), is_bias("norm.weight", (64,)), is_bias("lstm.bias_ih_l0", (64,))
    (True, False, True)
    """
    leaf = name.rpartition(".")[2].lower()
    return len(shape) <= 1 and ("bias" in leaf or leaf in ("b", "beta"))


# -- constant, scaled, shifted -----------------------------------------------------------------------------------------


def _constant(difference: Difference) -> Fault | None:
    found, target = difference.resemblance, difference.target
    is_usual = found.constant_b in (0.0, 1.0)
    if found.constant_b is None or (not is_usual and (target.count < 2 or found.constant_a)):
        return None
    value = {0.0: "zero", 1.0: "one"}.get(found.constant_b, f"{found.constant_b:.6g}")
    kind: Kind = "weights.missing_bias" if found.constant_b == 0.0 and is_bias(target.name, target.shape) else "weights.unloaded"
    what = f"all {target.count:,} values are {value}" if target.count > 1 else f"its value is {value}"
    sure = THRESHOLDS.sure_constant if target.count >= THRESHOLDS.constant_values else THRESHOLDS.sure_constant_few
    return Fault(kind, f"all {value} in the port", f"{what}; the reference's are not", sure, True)


def _scaled(difference: Difference) -> Fault | None:
    found = difference.resemblance
    limit = max(THRESHOLDS.exact_misfit, THRESHOLDS.scale_roundoffs * difference.target.dtype.roundoff)
    is_one = abs(found.scale - 1) < THRESHOLDS.scale_margin * limit
    if found.misfit > limit or found.lone or is_one or not found.scale or found.count < 2:
        return None
    text = f"{found.scale:.6g} times the reference's, exactly (misfit {found.misfit:.1g})"
    return Fault("weights.value", f"scaled by {found.scale:.4g}", text, THRESHOLDS.sure_scaled, True)


def _shifted(difference: Difference) -> Fault | None:
    found = difference.resemblance
    limit = max(THRESHOLDS.exact_shift, THRESHOLDS.shift_roundoffs * difference.target.dtype.roundoff)
    if found.shift_misfit > limit or found.lone or found.count < THRESHOLDS.least_shifted or not _is_all_shift(found):
        return None
    text = f"the reference's plus {found.shift:.6g} throughout"
    return Fault("weights.value", f"shifted by {found.shift:.4g}", text, THRESHOLDS.sure_shifted, True)


def _is_all_shift(found: Resemblance) -> bool:
    """Whether a shift makes up a difference: a small one of any kind is near to some shift."""
    difference = (found.rel_l2 * found.norms[0]) ** 2
    return difference > 0 and 1 - found.count * found.shift**2 / difference <= THRESHOLDS.shift_leaves**2


# -- rounded, quantised ------------------------------------------------------------------------------------------------


def _packed(difference: Difference) -> Fault | None:
    """An error of the size that the codes make in which the port holds its values."""
    found, codes = difference.resemblance, difference.target.codes
    if codes is None or found.lone:
        return None
    bits, group = codes
    if not 0 < found.rel_l2 <= THRESHOLDS.widest_group / ((2**bits - 1) * math.sqrt(12)):
        return None
    text = f"quantised to {bits} bits in groups of {group}: relative L2 {found.rel_l2:.2g}"
    return Fault("weights.precision", f"quantised to {bits} bits", text, THRESHOLDS.sure_packed)


def _rounded(difference: Difference) -> Fault | None:
    found, rounded, reference, port = difference.resemblance, difference.rounded, difference.reference, difference.port
    if rounded:
        text = f"rounded to {rounded}: relative L2 {found.rel_l2:.2g}"
        return Fault("weights.precision", f"rounded to {rounded}", text, THRESHOLDS.sure_rounded, True)
    if found.rel_l2 > THRESHOLDS.rounding_error:
        return None
    if reference is None or port is None:
        return _seemingly_rounded(difference)
    theirs = rounding(port, reference)
    if theirs:
        text = f"the reference holds the port's values rounded to {theirs}"
        return Fault("weights.precision", f"the reference is rounded to {theirs}", text, THRESHOLDS.sure_reference_rounded, True)
    grid = coarse_grid(port) if found.correlation > THRESHOLDS.grid_correlation else ""
    if grid and found.rel_l2 < THRESHOLDS.grid_roundoffs * dtypes.named(grid).roundoff and not coarse_grid(reference):
        text = f"every value is one of {grid}, though not always the nearest to the reference's: relative L2 {found.rel_l2:.2g}"
        return Fault("weights.precision", f"cut off to {grid}", text, THRESHOLDS.sure_cut_off)
    return None


def _seemingly_rounded(difference: Difference) -> Fault | None:
    """Without the values: an error of the size that rounding makes, and extremes that are numbers of the coarser dtype."""
    found, target = difference.resemblance, difference.target
    extremes = np.array([target.stats.min, target.stats.max], np.float32)
    grid = coarse_grid(extremes) if target.dtype.name == "float32" and not difference.is_small and extremes.all() else ""
    if not grid or not THRESHOLDS.least_rounding <= found.rel_l2 / dtypes.named(grid).roundoff <= THRESHOLDS.most_rounding:
        return None
    text = f"an error of the size that rounding to {grid} makes (relative L2 {found.rel_l2:.2g}), and both extremes are {grid} numbers"
    return Fault("weights.precision", f"rounded to {grid}", text, THRESHOLDS.sure_rounded_by_sketch)


def coarse_grid(array: Array) -> str:
    """The coarsest dtype, narrower than an array's own, that holds each of its values; "" for none.

    >>> coarse_grid(np.array([1.0, 1.5, 0.0078125], "float32")), coarse_grid(np.array([0.1, 0.2], "float32"))
    ('float8_e5m2', '')
    """
    sample = array[: THRESHOLDS.grid_sample]
    for name in ("float8_e5m2", "float8_e4m3fn", "bfloat16", "float16", "float32"):
        is_coarser = dtypes.named(name).roundoff > dtypes.of(array).roundoff
        if is_coarser and identical(rounded_to(sample, name), sample) and identical(rounded_to(array, name), array):
            return name
    return ""


def _quantised(difference: Difference) -> Fault | None:
    """Few distinct values in each row or group of a row, where the reference has many, and close to it."""
    found, reference, port = difference.resemblance, difference.reference, difference.port
    if reference is None or port is None or difference.target.dtype.is_exact or port.ndim < 2:
        return None
    if found.correlation < THRESHOLDS.quantised_correlation or found.rel_l2 < THRESHOLDS.quantised_error:
        return None
    for size in (port.shape[-1], *_GROUP_SIZES):
        if size < THRESHOLDS.smallest_group or port.shape[-1] % size:
            continue
        ours, theirs = (_levels(array, size) for array in (port, reference))
        if ours <= min(THRESHOLDS.most_levels, size // 2) and theirs > THRESHOLDS.more_levels * ours:
            text = f"at most {ours} distinct values in each {size} of a row (the reference has {theirs}); relative L2 {found.rel_l2:.2g}"
            return Fault("weights.precision", f"on a grid of {ours} levels", text, THRESHOLDS.sure_quantised)
    return None


def _levels(array: Array, size: int) -> int:
    """The most distinct values in one of a sample of groups of that size."""
    rows = array[:: max(1, len(array) // THRESHOLDS.sampled_group_rows)]
    groups = np.ascontiguousarray(rows).reshape(-1, size)[: THRESHOLDS.sampled_groups]
    return max(np.unique(group.astype(np.float64)).size for group in groups)


# -- other values ------------------------------------------------------------------------------------------------------


def _partly(difference: Difference) -> Fault | None:
    found, reference, port = difference.resemblance, difference.reference, difference.port
    if found.equal is None or not THRESHOLDS.partly_equal < found.equal < 1 or difference.is_small or reference is None or port is None:
        return None
    where = _differing_rows(reference, port) if port.ndim else ""
    text = f"{found.equal:.1%} of {found.count:,} values are equal{where}; relative L2 {found.rel_l2:.2g}"
    return Fault("weights.value", "partly other values", text, THRESHOLDS.sure_partly)


def _differing_rows(reference: Array, port: Array) -> str:
    """Which rows differ, where not all of them do."""
    rows = len(port)
    differs = np.fromiter((not identical(a, b) for a, b in zip(reference, port, strict=True)), bool, rows)
    places = np.flatnonzero(differs)
    if not places.size or places.size == rows:
        return ""
    first, last = int(places[0]), int(places[-1])
    if places.size == last - first + 1:
        return f": rows {first}:{last + 1} of {rows} differ" if last > first else f": row {first} of {rows} differs"
    return f": {places.size} of {rows} rows differ, the first is {first}"


def _related(difference: Difference) -> Fault | None:
    """Values that have something to do with the reference's, but no simple relation to them."""
    found = difference.resemblance
    if not difference.is_small and abs(found.correlation) < THRESHOLDS.related:
        return None
    if found.lone:
        text = f"{found.lone:,} values are finite on one side only"
        return Fault("weights.value", "NaN or infinite", text, THRESHOLDS.sure_not_finite)
    if difference.is_small:
        text = f"relative L2 {found.rel_l2:.2g} over {found.count} values, too few to say more"
        return Fault("weights.value", "other values", text, THRESHOLDS.sure_other_few)
    if found.significance < THRESHOLDS.significant:
        return None
    small = "" if found.rel_l2 > THRESHOLDS.small_error else ", a small difference"
    text = f"relative L2 {found.rel_l2:.2g}, correlation {found.correlation:.4f}{small}"
    return Fault("weights.value", "other values", text, THRESHOLDS.sure_other)


def _unloaded(difference: Difference) -> Fault:
    """Values that have nothing to do with the reference's."""
    found = difference.resemblance
    about = "" if found.equal is not None else "about "
    text = f"correlation {about}{found.correlation:+.3f} over {found.count:,} values, relative L2 {about}{found.rel_l2:.2g}"
    sure = THRESHOLDS.sure_unloaded if found.count >= THRESHOLDS.unloaded_values else THRESHOLDS.sure_unloaded_few
    fresh = fresh_initialisation(difference.target)
    if not fresh:
        return Fault("weights.unloaded", "never loaded", text, sure)
    surer = min(sure + THRESHOLDS.surer_fresh, THRESHOLDS.surest)
    return Fault("weights.unloaded", "never loaded", f"{text}; {fresh}", surer)


def fresh_initialisation(target: Weight, layer: Weight | None = None) -> str:
    """The default initialisation that a tensor's statistics look like; "" for none.

    Uniform within ±sqrt(k / fan_in), k being 1, 3 or 6 as the frameworks have it, or a unit normal. ``layer``: the weight beside a bias,
    whose fan-in the bias is initialised by. Ends with `FRESH` where the bound is just that of an initialisation.
    """
    stats = target.stats
    if stats.count < THRESHOLDS.fresh_values or not stats.std:
        return ""
    bound = max(-stats.min, stats.max)
    if abs(stats.mean) > THRESHOLDS.fresh_mean * stats.std / math.sqrt(stats.count):
        return ""
    if abs(stats.std / bound - _UNIFORM_STD) < THRESHOLDS.uniform_std + THRESHOLDS.uniform_std_errors / math.sqrt(stats.count):
        for fan, numerator in _fans(target.shape if layer is None or len(target.shape) > 1 else layer.shape):
            limit = math.sqrt(numerator / fan)
            least = limit * (1 - THRESHOLDS.bound_lacking / stats.count) - THRESHOLDS.bound_slack
            if least < bound <= limit * (1 + THRESHOLDS.bound_excess):
                return f"uniform within ±{limit:.4g} = sqrt({numerator:g}/{fan}){FRESH}"
        return f"uniform within ±{bound:.4g}, like a fresh initialisation"
    allowed = THRESHOLDS.normal_errors / math.sqrt(stats.count)
    if abs(stats.std - 1) < allowed and stats.absmean and abs(stats.absmean - _NORMAL_ABSMEAN) < allowed:
        return "a unit normal, like a fresh initialisation"
    return ""


def _fans(shape: tuple[int, ...]) -> Iterator[tuple[int, float]]:
    """(fan-in, k) by which a tensor of this shape may have been initialised, in either framework's layout."""
    if len(shape) < 2:
        fans = [shape[0]] if shape else []
    else:
        fans = [math.prod(shape[1:]), math.prod(shape[:-1]), shape[1], shape[0], shape[0] + shape[1]]
    for numerator in _INITIALISATIONS:
        yield from ((fan, numerator) for fan in dict.fromkeys(fans) if fan)


# -- the same values in another order ----------------------------------------------------------------------------------


def _seemingly_reordered(difference: Difference) -> Fault | None:
    """Without the values: statistics that no order changes are equal, and the sketches are not."""
    source, target = difference.source, difference.target
    if source is None or difference.reference is not None or difference.is_small or source.is_constant:
        return None
    is_same_set = like_statistics(source, target) and _near_floats(source.sketch.quantiles, target.sketch.quantiles)
    if not is_same_set or difference.resemblance.rel_l2 < THRESHOLDS.permuted_distance:
        return None
    for axis, (ours, theirs) in enumerate(zip(source.sketch.axes, target.sketch.axes, strict=False)):
        if source.shape == target.shape and ours.size > 1 and _near_floats(np.sort(ours), np.sort(theirs)):
            order = np.empty(ours.size, np.int64)
            order[np.argsort(theirs)] = np.argsort(ours)
            label = f"axis {axis} in another order: {order_text(order)}"
            return Fault(
                "weights.layout", label, f"by its statistics the reference's values, with {label}", THRESHOLDS.sure_order_by_sketch
            )
    text = "by its statistics (norm, extremes, quantiles) the reference's values, in another order"
    return Fault("weights.layout", "the same values in another order", text, THRESHOLDS.sure_order_by_sketch)


def _near_floats(a: Array, b: Array) -> bool:
    """Whether two vectors of sketches are equal but for float64 rounding."""
    return a.size == b.size and bool(np.allclose(a, b, rtol=0, atol=THRESHOLDS.sketch_tolerance * float(np.abs(a).max(initial=0.0))))


def _reordered(difference: Difference) -> Fault | None:
    """The reference's rows, along one axis, in another order: halves interleaved for a rotary embedding, gates or channels exchanged."""
    found, reference, port = difference.resemblance, difference.reference, difference.port
    if reference is None or port is None or not port.ndim or found.lone or (found.equal or 0) > THRESHOLDS.permuted_equal:
        return None
    norm, other = found.norms
    if abs(norm - other) > THRESHOLDS.permuted_norm * norm or not _same_multiset(reference, port):
        return None
    if _is_reshaped(reference, port):
        text = "the reference's values in their order, read in another shape: reshaped where a transpose was meant"
        return Fault("weights.layout", "reshaped, not transposed", text, THRESHOLDS.sure_reshaped, True)
    for seen in (reference, *_in_other_layouts(difference, port.shape)):
        for axis in range(port.ndim):
            order = _order(seen, port, axis)
            if order is not None:
                label = f"axis {axis} in another order: {order_text(order)}"
                return Fault("weights.layout", label, f"the reference's values with {label}", THRESHOLDS.sure_row_order, True)
    text = "the same values in an order that no permutation of axes gives"
    return Fault("weights.layout", "the same values in another order", text, THRESHOLDS.sure_any_order)


def _in_other_layouts(difference: Difference, shape: tuple[int, ...]) -> Iterator[Array]:
    """The reference's tensor in every layout that fits: rows in another order correlate with none, so that none is the likeliest."""
    source = difference.source
    if source is not None:
        yield from (apply(source.read(), layout) for layout in fitting_layouts(source.shape, shape))


def _same_multiset(a: Array, b: Array) -> bool:
    if a.dtype != b.dtype:
        return False
    return _near(np.sort(a.astype(np.float32), axis=None), np.sort(b.astype(np.float32), axis=None))


def _near(a: Array, b: Array) -> bool:
    """Whether values are equal, but for what a merge in another precision moves them."""
    rtol, atol = THRESHOLDS.merged_rtol, THRESHOLDS.merged_atol
    return identical(a, b) or bool(np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=rtol, atol=atol))


def _is_reshaped(reference: Array, port: Array) -> bool:
    """Whether the port holds, in its own shape, the reference's values in the order in which other axes would list them."""
    if not 2 <= port.ndim <= THRESHOLDS.permuted_axes:
        return False
    flat, sample = port.reshape(-1), slice(THRESHOLDS.permuted_sample)
    for axes in permutations(range(reference.ndim)):
        seen = reference.transpose(axes).reshape(-1)
        if axes != tuple(range(reference.ndim)) and _near(seen[sample], flat[sample]) and _near(seen, flat):
            return True
    return False


def _order(reference: Array, port: Array, axis: int) -> Array | None:
    """The order of the reference's rows along an axis that gives the port, (rows,) int64; None where there is none."""
    rows = port.shape[axis]
    if not 1 < rows <= THRESHOLDS.permuted_rows:
        return None
    ours, theirs = (np.ascontiguousarray(np.moveaxis(array, axis, 0)).reshape(rows, -1) for array in (port, reference))
    places: dict[bytes, list[int]] = {}
    for place, row in enumerate(theirs):
        places.setdefault(row.tobytes(), []).append(place)
    order = np.empty(rows, np.int64)
    for place, row in enumerate(ours):
        equal_rows = places.get(row.tobytes())
        if not equal_rows:
            return None
        order[place] = equal_rows.pop(0)
    return order


def order_text(order: Array) -> str:
    """A permutation of rows, (rows,) int64, in words.

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


Detector = Callable[[Difference], Fault | None]
DETECTORS: tuple[Detector, ...] = (
    _constant,
    _packed,
    _rounded,
    _scaled,
    _shifted,
    _reordered,
    _seemingly_reordered,
    _quantised,
    _partly,
    _related,
)
"""What may be wrong with values, in the order in which it is asked; the first that finds a fault is believed."""
