"""The metrics of one pair, in one blocked pass, and whether they are within what is allowed.

`compare` measures, `allowed` judges. Errors are ``port - reference``. What counts as a difference:

- NaN equals NaN, and an infinity the same infinity, only where both have it. A lone NaN or infinity makes the relative L2 and the
  largest error infinite; the other metrics are then those of the remaining values.
- Values at or below -1e4 are additive masks and equal each other: -inf, -1e10 and -6e4 all mean "never". Where both sides have one it
  weighs nothing, so that masked scores are judged by what is left. Against a smaller number it counts as -1e4. A tensor that also holds
  values above 1e4 is a signal of large amplitude, not a mask, and is compared as it is.
- Integers, booleans and text are exact, whatever their width.
- A reference that is zero throughout has no relative error: it is infinite unless the port is zero too. `allowed` forgives it where
  both sides are nothing but the rounding of what arrived (``scale``), such as the difference of two equal tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from tracediff import dtype as dtypes_table
from tracediff.alignment import axes
from tracediff.dtype import MASKED, Array, DType
from tracediff.errors import TracediffError
from tracediff.thresholds import threshold

if TYPE_CHECKING:
    from tracediff.trace import Record

BLOCK = 65536
_CHUNK = 1024  # the longest sum that is left to BLAS; chunks are added up in float64


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The numbers that decide what error is allowed, and which values are compared in float32."""

    floor_factor: float = threshold(5.0, "times the noise floor that is allowed", "set by hand; tests/test_runs_floor.py guards it")
    roundoff_factor: float = threshold(
        8.0,
        "unit roundoffs that are allowed whatever the floor, and below which a tensor is mere rounding",
        "set by hand; tests/test_metrics.py guards it",
    )
    cannot_tell: float = threshold(
        0.3,
        "relative error that noise explains from which on a site tells no fault, unless the error is as small as is usual without a floor",
        "22 planted faults (vocoder, sampler, flow, codec; forced, float32): 6 err by less than 0.1, the others by 0.49 or more",
    )
    most_rounding: float = threshold(
        1e-3, "share of what arrived above which no tensor is mere rounding", "set by hand; tests/test_metrics.py guards it"
    )
    smallest_float32: float = threshold(1e-12, "error whose square float32 still holds", "float32's smallest number, 1e-38, with room")
    largest_float32: float = threshold(
        1e15, "value whose squares a block of float32 can add up", "float32's largest number, 3e38, with room"
    )
    near: float = threshold(
        1e-2, "share of squares below which the cosine is worked out from the difference", "set by hand, never measured alone"
    )


THRESHOLDS = Thresholds()

Tensor: TypeAlias = "Array | Record"
By = Literal["floor", "no floor", "tolerance", "exact", "sensitive", "rounding", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Allowed element by element: ``abs(port - reference) <= atol + rtol * abs(reference)``."""

    rtol: float
    atol: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """How far a port's tensor is from the reference's.

    ``argmax`` indexes the largest error in the reference's shape (the first lone NaN or infinity where there is one).
    ``max_ulp`` counts representable numbers of the coarser dtype between the two; None for complex and exact dtypes, or not asked.
    ``mismatched`` counts values beyond the tolerance that was given; without one, beyond the dtype's relative tolerance
    times ``abs(reference) + RMS(reference)``; for exact dtypes, values that differ.
    ``masked_reference`` and ``masked_port`` count values that are a mask's (at or below -1e4) on that side only.
    ``needed_atol`` is the smallest ``atol`` that passes beside the given ``rtol``; None where no tolerance was given.
    """

    count: int
    max_abs: float = 0.0
    mean_abs: float = 0.0
    rms: float = 0.0
    rel_l2: float = 0.0
    cosine: float = 1.0
    max_ulp: int | None = None
    mismatched: int = 0
    argmax: tuple[int, ...] = ()
    nan_reference: int = 0
    nan_port: int = 0
    lone_nonfinite: int = 0
    masked_reference: int = 0
    masked_port: int = 0
    reference_rms: float = 0.0
    port_rms: float = 0.0
    needed_atol: float | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a pair diverged, and from what limit. ``by`` says where the limit on the relative L2 comes from:

    "floor" (measured noise), "no floor" (the dtype's default), "tolerance" (``limit`` is its ``rtol``), "exact" (limit 0), "sensitive"
    (exact values of which noise changes some: ``limit`` is the share that may differ), or "rounding": both tensors are below the rounding
    of what arrived at the site, so nothing in them can be judged. "cannot tell": the reference is so ill-conditioned here that noise
    explains an error of the size of the values, and the error is larger than is usual. That is no divergence, and no proof that the port is
    right.
    """

    limit: float
    by: By
    diverged: bool


def tolerance(rtol: float | None, atol: float | None) -> Tolerance | None:
    """The tolerance of ``rtol`` and ``atol``, which come together or not at all.

    >>> tolerance(None, None) is None
    True
    """
    if rtol is None and atol is None:
        return None
    if rtol is None or atol is None:
        raise TracediffError(f"A tolerance has two parts; give rtol and atol together (rtol={rtol!r}, atol={atol!r}).")
    if not (0 <= rtol < math.inf and 0 <= atol < math.inf):
        raise TracediffError(f"A tolerance is finite and not negative (rtol={rtol!r}, atol={atol!r}).")
    return Tolerance(float(rtol), float(atol))


def allowed(
    metrics: Metrics,
    reference: DType,
    port: DType,
    *,
    floor: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    scale: float | None = None,
) -> Judgement:
    """Whether these metrics are within what is allowed at a site of these dtypes.

    ``floor`` is the relative L2 that noise alone makes at this site: ``max(5 * floor, 8u)`` is allowed, u being the unit roundoff of the
    coarser dtype. Without it the coarser dtype's default. For exact values it is the share that noise changes, five times which may differ.
    ``rtol`` and ``atol`` override both; the metrics must have been taken with them.
    ``scale`` is the RMS of what arrived at the site, None where unknown (then 1 for a reference that is zero).

    >>> allowed(compare(np.ones(4, "f4"), np.ones(4, "f4") + 1e-3), dtypes_table.named("float32"), dtypes_table.named("float32"))
    Judgement(limit=0.0001, by='no floor', diverged=True)
    """
    dtype = dtypes_table.coarser(reference, port)
    given = tolerance(rtol, atol)
    if dtype.is_exact:
        if not floor:
            return Judgement(0.0, "exact", metrics.mismatched > 0)
        share = min(THRESHOLDS.floor_factor * floor, 1.0)
        return Judgement(share, "sensitive", metrics.mismatched > share * metrics.count)
    if given is not None:
        return Judgement(given.rtol, "tolerance", metrics.mismatched > 0)
    limit = dtype.rtol if floor is None else max(THRESHOLDS.floor_factor * floor, rounding(dtype))
    diverged = metrics.rel_l2 > limit
    if diverged and not metrics.lone_nonfinite and is_rounding(metrics.reference_rms, metrics.port_rms, dtype, scale):
        return Judgement(limit, "rounding", False)
    is_untold = floor is not None and not diverged and limit > THRESHOLDS.cannot_tell and metrics.rel_l2 > dtype.rtol
    return Judgement(limit, "no floor" if floor is None else "cannot tell" if is_untold else "floor", diverged)


def rounding(dtype: DType) -> float:
    """The relative error that rounding to a dtype explains by itself."""
    return THRESHOLDS.roundoff_factor * dtype.roundoff


def is_rounding(reference_rms: float, port_rms: float, dtype: DType, scale: float | None) -> bool:
    """Whether two tensors of these RMS are below the rounding of what arrived, whose RMS is ``scale`` (None: unknown)."""
    if scale is None:
        scale = 1.0 if reference_rms == 0 else 0.0
    noise = scale * min(rounding(dtype), THRESHOLDS.most_rounding)
    return reference_rms <= noise and port_rms <= noise


def compare(
    reference: Tensor | Sequence[Tensor],
    port: Tensor | Sequence[Tensor],
    *,
    dtypes: tuple[DType, DType] | None = None,
    layout: axes.Layout | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    ulp: bool = True,
) -> Metrics:
    """The metrics of one pair, its values read once, in blocks of 64 Ki.

    ``reference`` and ``port`` are arrays (ml_dtypes included) or records of a trace, or several that ``layout`` joins; it reads the port
    as the reference. ``dtypes`` are those that the values were seen in, where the arrays are wider. Records of equal bits are not read.
    Raises TracediffError where the shapes differ.

    >>> metrics = compare(np.array([3.0, 4.0], "f4"), np.array([3.0, 4.5], "f4"))
    >>> metrics.max_abs, metrics.argmax, metrics.rel_l2
    (0.5, (1,), 0.1)
    """
    given = tolerance(rtol, atol)
    lefts, rights = _several(reference), _several(port)
    if lefts[0].is_text and rights[0].is_text:
        return _compare_text(lefts[0].array(), rights[0].array())
    left, right = _laid_out(lefts, rights, layout)
    if left.same_bits(right):
        return _identical(left, given)
    return _measure(left, right, dtypes or (left.dtype, right.dtype), given, ulp)


def _laid_out(lefts: Sequence[_Operand], rights: Sequence[_Operand], layout: axes.Layout | None) -> tuple[_Operand, _Operand]:
    """Both as they are compared: in one shape, and still unread where the layout moves nothing."""
    left, right = lefts[0], rights[0]
    if layout is None or layout.is_same:
        shape = left.shape if layout is None else layout.shape
        if len(lefts) > 1 or len(rights) > 1:
            raise TracediffError(f"{len(lefts)} tensors against {len(rights)} need a layout that joins them.")
        if left.count != right.count or (layout is None and left.shape != right.shape):
            raise TracediffError(f"Shapes {left.shape} and {right.shape} cannot be compared without a layout that reconciles them.")
        return replace(left, shape=shape), replace(right, shape=shape)
    is_moved = layout.join_reference is not None or layout.part_reference is not None or layout.window_reference is not None
    if is_moved or layout.repeat == "reference":
        left = _Operand(layout.shape, left.dtype, axes.apply_reference([side.array() for side in lefts], layout), None)
    return left, _Operand(layout.shape, right.dtype, axes.apply([side.array() for side in rights], layout), None)


def _several(given: Tensor | Sequence[Tensor]) -> list[_Operand]:
    return [_operand(one) for one in given] if isinstance(given, Sequence) else [_operand(given)]


@dataclass(frozen=True, slots=True)
class _Operand:
    """One tensor of a pair: an array, or a record that is read block by block."""

    shape: tuple[int, ...]
    dtype: DType
    values: Array | None
    record: Record | None

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def is_text(self) -> bool:
        return self.dtype.name == "text"

    def same_bits(self, other: _Operand) -> bool:
        """Whether the index alone proves that both hold the same values."""
        if self.record is None or other.record is None:
            return False
        return (self.record.digest, self.dtype) == (other.record.digest, other.dtype)

    def array(self) -> Array:
        """All values in the tensor's shape."""
        if self.values is not None:
            return self.values
        assert self.record is not None
        return np.asarray(self.record.read())

    def blocks(self) -> Iterator[Array]:
        """The values in C order, in flat blocks."""
        if self.record is not None:
            yield from self.record.blocks(BLOCK)
            return
        flat = self.array().reshape(-1)
        for start in range(0, flat.size, BLOCK):
            yield flat[start : start + BLOCK]

    def is_tame(self) -> bool:
        """Whether the index vouches that all values are finite, none is a mask and none too large for float32's squares."""
        if self.record is None or self.dtype.is_complex or self.dtype.is_exact:
            return False
        stats = self.record.stats
        return bool(stats.nan == 0 and stats.inf == 0 and stats.min > MASKED and stats.max < THRESHOLDS.largest_float32)


def _operand(given: Array | Record) -> _Operand:
    if isinstance(given, np.ndarray | np.generic):
        array = np.asarray(given)
        return _Operand(array.shape, dtypes_table.of(array), array, None)
    return _Operand(tuple(given.shape), dtypes_table.named(given.dtype), None, given)


def _identical(side: _Operand, given: Tolerance | None) -> Metrics:
    """The metrics of two tensors of the same bits, from the index alone."""
    assert side.record is not None
    stats, rms = side.record.stats, _rms_of_stats(side)
    return Metrics(
        count=side.count,
        max_ulp=None if side.dtype.is_exact or side.dtype.is_complex else 0,
        argmax=(0,) * len(side.shape) if side.count else (),
        nan_reference=stats.nan,
        nan_port=stats.nan,
        reference_rms=rms,
        port_rms=rms,
        needed_atol=0.0 if given else None,
        exact=side.dtype.is_exact,
    )


def _rms_of_stats(side: _Operand) -> float:
    """The RMS of the finite values, from the index."""
    assert side.record is not None
    stats = side.record.stats
    finite = side.count if side.dtype.is_complex else stats.count - stats.nan - stats.inf
    return stats.l2 / math.sqrt(finite) if finite else 0.0


def _compare_text(reference: Array, port: Array) -> Metrics:
    """Two UTF-8 texts, byte by byte; bytes that only the longer one has differ."""
    shorter = min(reference.size, port.size)
    count = max(reference.size, port.size)
    differs = np.flatnonzero(reference[:shorter] != port[:shorter])
    mismatched = int(differs.size) + count - shorter
    first = int(differs[0]) if differs.size else shorter
    share = mismatched / count if count else 0.0
    return Metrics(
        count=count,
        max_abs=float(mismatched > 0),
        mean_abs=share,
        rms=math.sqrt(share),
        rel_l2=math.sqrt(share),
        cosine=1.0 - share,
        mismatched=mismatched,
        argmax=(first,) if mismatched else (0,) * (count > 0),
        exact=True,
    )


# ---------------------------------------------------------------------------------------------- the blocked pass


def _measure(left: _Operand, right: _Operand, seen: tuple[DType, DType], given: Tolerance | None, ulp: bool) -> Metrics:
    dtype = dtypes_table.coarser(*seen)
    exact = left.dtype.is_exact and right.dtype.is_exact
    is_real = not (exact or left.dtype.is_complex or right.dtype.is_complex)
    wants_ulp = ulp and is_real and not (left.dtype.is_exact or right.dtype.is_exact)
    clip = is_tame = False
    tolerated = given or Tolerance(dtype.rtol, 0.0)
    if not exact:
        left, right = _settled(left), _settled(right)
        values, others = _survey(left), _survey(right)
        is_tame = values.is_tame and others.is_tame
        clip = is_real and not is_tame and not (values.is_large or others.is_large)
        tolerated = given or Tolerance(dtype.rtol, dtype.rtol * values.rms(clip))
    job = _Pass(min(BLOCK, left.count), dtype, tolerated, asked=given is not None, ulp=wants_ulp, clip=clip, is_tame=is_tame)
    add = job.add_exact if exact else job.add
    for r, p in zip(left.blocks(), right.blocks(), strict=True):
        add(r, p)
    return job.metrics(left.shape, exact)


def _settled(side: _Operand) -> _Operand:
    """The side itself where the index vouches for its values, else with them in memory to be looked at first (masks, NaN: rare)."""
    return side if side.values is not None or side.is_tame() else replace(side, values=side.array(), record=None)


@dataclass(slots=True)
class _Survey:
    """What has to be known of a whole tensor before its first block is compared.

    ``is_tame``: all values are finite, none is a mask, none is so large that float32 cannot square it. ``is_large``: some are above
    1e4, a signal whose low values are no mask. The sums of squares are of the finite values above -1e4 and of those below.
    """

    is_tame: bool = True
    is_large: bool = False
    square: float = 0.0
    count: int = 0
    low_square: float = 0.0
    low_count: int = 0

    def rms(self, clip: bool) -> float:
        """The RMS of the finite values, masks left out."""
        count = self.count if clip else self.count + self.low_count
        return math.sqrt((self.square if clip else self.square + self.low_square) / count) if count else 0.0

    def add(self, values: Array) -> None:
        is_complex = values.dtype.kind == "c"
        if values.dtype == np.float32 and values.max() < THRESHOLDS.largest_float32:  # a NaN fails
            self.is_large = self.is_large or bool(values.max() > -MASKED)
            if values.min() <= MASKED:
                low = values <= MASKED
                self._add_masks(values[low])
                values, self.count = np.where(low, np.float32(0), values), self.count - int(np.count_nonzero(low))
            self.square, self.count = self.square + _dot(values, values), self.count + values.size
            return
        self.is_tame = False
        low = np.zeros(values.shape, bool) if is_complex else values <= MASKED
        kept = values[np.isfinite(values) & ~low].astype(dtypes_table.wide_type(values))
        self._add_masks(values[low])
        self.is_large = self.is_large or (not is_complex and bool(kept.max(initial=0.0) > -MASKED))
        self.square, self.count = self.square + _dot(kept, kept), self.count + kept.size

    def _add_masks(self, values: Array) -> None:
        self.is_tame = False
        finite = values[np.isfinite(values)].real.astype(np.float64)
        self.low_square, self.low_count = self.low_square + _dot(finite, finite), self.low_count + finite.size


def _survey(side: _Operand) -> _Survey:
    """A tensor's survey: from the index where it knows, else in a pass of its own."""
    survey = _Survey()
    if side.record is not None:
        survey.square, survey.count = _rms_of_stats(side) ** 2, 1
        return survey
    buffer = np.empty(min(BLOCK, side.count), np.float32)
    for block in side.blocks():
        narrow = _narrow(block, buffer)
        survey.add(block if narrow is None else narrow)
    return survey


class _Pass:
    """One comparison under way: what is asked, float64 sums so far, and buffers that every block reuses."""

    def __init__(self, size: int, dtype: DType, tolerance: Tolerance, *, asked: bool, ulp: bool, clip: bool, is_tame: bool) -> None:
        self.dtype, self.tolerance, self.asked, self.ulp, self.clip, self.is_tame = dtype, tolerance, asked, ulp, clip, is_tame
        self.seen = 0
        self.square = self.absolute = self.reference = self.port = self.product = self.needed = 0.0
        self.largest, self.where = -1.0, 0
        self.max_ulp = self.mismatched = self.nan_reference = self.nan_port = self.lone = 0
        self.first_lone = -1
        self.masked_reference = self.masked_port = 0
        self._error, self._size, self._left, self._right = (np.empty(size, np.float32) for _ in range(4))
        self._steps = np.empty(size, np.int32)

    def add(self, r: Array, p: Array) -> None:
        """Adds a block of numbers: in float32 where that loses nothing, else in float64."""
        narrow_r, narrow_p = self._narrowed(r, p)
        if narrow_r is None or narrow_p is None or not self._added_narrow(narrow_r, narrow_p):
            kept_r, kept_p = self._cleaned(r, p)
            self._add_wide(kept_r, kept_p)
            r, p = (kept_r, kept_p) if self.ulp else (r, p)
        else:
            r, p = (narrow_r, narrow_p) if self.clip else (r, p)
        if self.ulp:
            self._add_ulp(r, p)
        self.seen += r.size

    def add_exact(self, r: Array, p: Array) -> None:
        """Adds a block of integers or booleans, compared by value whatever their width."""
        differs = _differs(r, p)
        wide_r, wide_p = r.astype(np.float64), p.astype(np.float64)
        error = np.abs(wide_p - wide_r)
        error[differs & (error == 0)] = 1.0  # above 2**53 float64 merges neighbours: what differs differs by at least one
        self._accumulate(wide_r, wide_p, error)
        self.mismatched += int(np.count_nonzero(differs))
        self.seen += r.size

    def metrics(self, shape: tuple[int, ...], exact: bool) -> Metrics:
        valid = max(self.seen - self.lone, 1)
        where = self.first_lone if self.lone else self.where
        return Metrics(
            count=self.seen,
            max_abs=math.inf if self.lone else max(self.largest, 0.0),
            mean_abs=self.absolute / valid,
            rms=math.sqrt(self.square / valid),
            rel_l2=math.inf if self.lone else _relative(self.square, self.reference),
            cosine=_cosine(self.reference, self.port, self.product, self.square),
            max_ulp=self.max_ulp if self.ulp else None,
            mismatched=self.mismatched + self.lone,
            argmax=tuple(int(i) for i in np.unravel_index(where, shape)) if self.seen else (),
            nan_reference=self.nan_reference,
            nan_port=self.nan_port,
            lone_nonfinite=self.lone,
            masked_reference=self.masked_reference,
            masked_port=self.masked_port,
            reference_rms=math.sqrt(self.reference / valid),
            port_rms=math.sqrt(self.port / valid),
            needed_atol=(math.inf if self.lone else self.needed) if self.asked else None,
            exact=exact,
        )

    def _narrowed(self, r: Array, p: Array) -> tuple[Array | None, Array | None]:
        """Both in float32, masks that they share set to zero; None where that would lose something."""
        narrow_r, narrow_p = _narrow(r, self._left), _narrow(p, self._right)
        if self.is_tame or narrow_r is None or narrow_p is None:
            return narrow_r, narrow_p
        if self.clip:
            low = narrow_r <= MASKED
            if np.any(low) and np.array_equal(low, narrow_p <= MASKED):
                narrow_r, narrow_p = np.where(low, np.float32(0), narrow_r), np.where(low, np.float32(0), narrow_p)
        tame = all(values.min() > MASKED and values.max() < THRESHOLDS.largest_float32 for values in (narrow_r, narrow_p))  # a NaN fails
        return (narrow_r, narrow_p) if tame else (None, None)

    def _added_narrow(self, r: Array, p: Array) -> bool:
        """Whether a block could be added in float32, its errors and squares being neither too small nor close to the tolerance."""
        error, size = self._error[: r.size], self._size[: r.size]
        np.subtract(p, r, out=error)
        np.abs(error, out=size)
        worst = int(size.argmax())
        largest = float(size[worst])
        if 0 < largest < THRESHOLDS.smallest_float32 or (self.asked and largest > self.tolerance.atol):
            return False
        reference, port = _dot(r, r), _dot(p, p)
        if min(reference, port) < THRESHOLDS.smallest_float32**2:
            return False
        self.reference += reference
        self.port += port
        self.product += _dot(r, p) if largest else reference
        if largest:
            self.square += _dot(error, error)
            self.absolute += float(size.sum())
        if largest > self.largest:
            self.largest, self.where = largest, self.seen + worst
        if self.asked or largest > self.tolerance.atol:
            self._add_beyond(np.abs(r, out=error), size)
        return True

    def _add_beyond(self, magnitude: Array, error: Array) -> None:
        """Counts the errors beyond tolerance; overwrites ``magnitude`` (of the reference)."""
        np.multiply(magnitude, self.tolerance.rtol, out=magnitude)
        if self.asked:
            self.needed = max(self.needed, float((error - magnitude).max(initial=0.0)))
        np.add(magnitude, self.tolerance.atol, out=magnitude)
        self.mismatched += int(np.count_nonzero(error > magnitude))

    def _cleaned(self, r: Array, p: Array) -> tuple[Array, Array]:
        """Both in float64 (or complex128), zero where both are masked or not finite alike; lone NaN and infinities are counted."""
        r, p = r.astype(dtypes_table.wide_type(r)), p.astype(dtypes_table.wide_type(p))
        nan_r, nan_p = np.isnan(r), np.isnan(p)
        self.nan_reference += int(np.count_nonzero(nan_r))
        self.nan_port += int(np.count_nonzero(nan_p))
        alike = (nan_r & nan_p) | (np.isinf(r) & (r == p))
        if self.clip:
            low_r, low_p = r <= MASKED, p <= MASKED
            alike |= low_r & low_p
            self.masked_reference += int(np.count_nonzero(low_r & ~low_p))
            self.masked_port += int(np.count_nonzero(low_p & ~low_r))
        lone = ~(alike | (np.isfinite(r) & np.isfinite(p)))
        if self.clip:
            r[low_r], p[low_p] = MASKED, MASKED
        found = np.flatnonzero(lone)
        if found.size and self.first_lone < 0:
            self.first_lone = self.seen + int(found[0])
        self.lone += int(found.size)
        r[alike | lone] = p[alike | lone] = 0.0
        return r, p

    def _add_wide(self, r: Array, p: Array) -> None:
        error = np.abs(p - r)
        self._accumulate(r, p, error)
        self._add_beyond(np.abs(r), error)

    def _accumulate(self, r: Array, p: Array, error: Array) -> None:
        self.reference += _dot(r, r)
        self.port += _dot(p, p)
        self.product += _dot(r, p)
        self.square += _dot(error, error)
        self.absolute += float(error.sum())
        worst = int(error.argmax())
        if error[worst] > self.largest:
            self.largest, self.where = float(error[worst]), self.seen + worst

    def _add_ulp(self, r: Array, p: Array) -> None:
        """Counts in representable numbers of the coarser dtype: same signs by subtracting bits, opposite signs across zero."""
        view = self.dtype.view
        kind = np.dtype(f"i{view.itemsize}")
        bits_r, bits_p = np.ascontiguousarray(r, view).view(kind), np.ascontiguousarray(p, view).view(kind)
        steps = self._steps[: r.size] if kind == np.int32 else np.empty(r.size, kind)
        np.bitwise_xor(bits_r, bits_p, out=steps)
        opposite = np.flatnonzero(steps < 0) if steps.min() < 0 else None
        np.subtract(bits_r, bits_p, out=steps)
        if opposite is not None:
            magnitude = np.iinfo(kind).max
            across = (bits_r[opposite] & magnitude).astype(np.uint64) + (bits_p[opposite] & magnitude).astype(np.uint64)
            self.max_ulp = max(self.max_ulp, int(across.max()))
            steps[opposite] = 0
        self.max_ulp = max(self.max_ulp, int(steps.max()), -int(steps.min()))


def _narrow(values: Array, buffer: Array) -> Array | None:
    """The values in float32 where that is exact, else None."""
    if values.dtype == np.float32:
        return values
    if values.dtype.itemsize > 2 or values.dtype.kind in "iub":
        return None
    out = buffer[: values.size]
    np.copyto(out, values, casting="unsafe")
    return out


def _dot(x: Array, y: Array) -> float:
    """The real scalar product of float vectors, in short sums that are added up in float64.

    BLAS does the short ones on one thread: with many it would be no faster here, and far slower on a busy machine.
    """
    if x.dtype.kind == "c":
        x, y = x.view(np.float64), y.view(np.float64)
    whole = x.size - x.size % _CHUNK
    if not whole:
        return float(np.dot(x, y))
    rows = np.matmul(x[:whole].reshape(-1, 1, _CHUNK), y[:whole].reshape(-1, _CHUNK, 1))
    return float(rows.sum(dtype=np.float64)) + float(np.dot(x[whole:], y[whole:]))


def _differs(r: Array, p: Array) -> Array:
    """Where integers differ by value; NumPy would compare uint64 with signed ones as floats."""
    if np.uint64 in (r.dtype, p.dtype) and "i" in (r.dtype.kind, p.dtype.kind):
        signed, unsigned = (r, p) if r.dtype.kind == "i" else (p, r)
        return np.asarray((signed < 0) | (signed.astype(np.uint64) != unsigned))
    return np.asarray(r != p)


def _relative(square: float, reference: float) -> float:
    return math.sqrt(square / reference) if reference else (math.inf if square else 0.0)


def _cosine(reference: float, port: float, product: float, square: float) -> float:
    """The cosine from the squared norms; where the two nearly agree by way of the difference, which keeps its digits."""
    if not (reference and port):
        return 1.0 if reference == port else 0.0
    norms = math.sqrt(reference) * math.sqrt(port)
    if square < THRESHOLDS.near * reference:
        product = norms - (square - (math.sqrt(port) - math.sqrt(reference)) ** 2) / 2
    return min(1.0, max(-1.0, product / norms))
