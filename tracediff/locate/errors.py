"""What an error is like: its kind, its size, and how much of it is a gain or an offset. Metrics and the index tell; no value is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from tracediff.alignment.axes import Layout
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.verdicts import Verdicts
from tracediff.metrics import Metrics

Kind = Literal["shape", "raised", "argument", "exact", "mask", "not finite", "values"]
_T = TypeVar("_T")
_LEAST = 1e-30


@dataclass(frozen=True, slots=True)
class ErrorOf:
    """The error of a pair. ``size`` is its relative L2 in decades, at most 0: what is wholly wrong cannot be worse.

    ``times``: how many decades it is beyond what is allowed; 0 where nothing is allowed. ``gain`` and ``offset``: the cosines of the error
    with the reference and with a constant, from -1 to 1; 0 where they are not known.
    """

    kind: Kind
    size: float = 0.0
    times: float = 0.0
    gain: float = 0.0
    offset: float = 0.0

    @property
    def gravity(self) -> tuple[bool, float, float]:
        """How bad it is, for comparing: what is no number is worse than any number."""
        return self.kind in ("shape", "raised", "not finite"), self.size, self.times


def error_of(verdicts: Verdicts, i: int) -> ErrorOf:
    """What the error of a pair that diverged is like."""
    comparison = verdicts.comparisons.measure(i)
    if comparison.how in ("shape", "raised"):
        return ErrorOf("shape" if comparison.how == "shape" else "raised")
    metrics = comparison.metrics
    error = comparison.at_least if metrics is None else metrics.rel_l2
    limit = comparison.judgement.limit if comparison.judgement is not None else 0.0
    size = _decades(min(error, 1.0))
    times = _decades(error / limit) if limit and math.isfinite(error) else 0.0
    if metrics is None:
        return ErrorOf("values", size, times)
    kind = _kind(verdicts, i, metrics)
    if kind != "values":
        return ErrorOf(kind, size, times)
    return ErrorOf(kind, size, times, _gain(metrics), _offset(verdicts, i, metrics))


def _decades(value: float) -> float:
    return math.log10(max(value, _LEAST))


def _kind(verdicts: Verdicts, i: int, metrics: Metrics) -> Kind:
    if verdicts.flow.kind(i) == "attr":
        return "argument"
    if metrics.exact:
        return "exact"
    if metrics.lone_nonfinite:
        return "not finite"
    return "mask" if metrics.masked_reference or metrics.masked_port else "values"


def _gain(metrics: Metrics) -> float:
    """The cosine of the error with the reference: 1 or -1 where the port's values are the reference's times a factor."""
    if not (metrics.reference_rms and metrics.port_rms and 0 < metrics.rel_l2 < math.inf):
        return 0.0
    along = metrics.cosine * metrics.port_rms / metrics.reference_rms - 1
    return min(1.0, max(-1.0, along / metrics.rel_l2))


def _offset(verdicts: Verdicts, i: int, metrics: Metrics) -> float:
    """The cosine of the error with a constant: 1 or -1 where every value is off by the same."""
    left, right = verdicts.pairs.records(i)
    if not (metrics.rms and verdicts.pairs.is_single(i) and _holds_the_same_values(verdicts.pairs[i].layout)):
        return 0.0
    return min(1.0, max(-1.0, (right.stats.mean - left.stats.mean) / metrics.rms))


def _holds_the_same_values(layout: Layout | None) -> bool:
    """Whether a layout only moves values: neither side has any that the other lacks."""
    return layout is not None and not (layout.is_partial or layout.repeat)


LIKE: Mapping[str, float] = {
    "size": THRESHOLDS.gap_of_size,
    "times": THRESHOLDS.gap_of_size,
    "gain": THRESHOLDS.gap_of_direction,
    "offset": THRESHOLDS.gap_of_direction,
}
FROM_ABOVE: Mapping[str, float] = {"size": THRESHOLDS.far_worse, "times": THRESHOLDS.far_worse}


# -- like errors ---------------------------------------------------------------------------------------------------------------------------


def is_far_worse(one: ErrorOf, other: ErrorOf) -> bool:
    """Whether an error is so much worse than another that it must have a cause of its own."""
    (is_broken, size, times), (was_broken, other_size, other_times) = one.gravity, other.gravity
    if is_broken or was_broken:
        return is_broken and not was_broken
    return max(size - other_size, times - other_times) > THRESHOLDS.far_worse


def is_like(one: ErrorOf, other: ErrorOf) -> bool:
    """Whether two errors are like enough to be of one fault."""
    return len(alike((one, other), lambda error: error, LIKE)) == 1


def alike(items: Iterable[_T], error: Callable[[_T], ErrorOf], gaps: Mapping[str, float]) -> list[list[_T]]:
    """The items in groups of like errors, each in the order given: of one kind, and without a gap along any of some numbers of theirs.

    ``gaps`` is `LIKE` for the errors of one fault, `FROM_ABOVE` for what one thing does to the errors of all that were handed it.
    """
    by_kind: dict[str, list[_T]] = {}
    for item in items:
        by_kind.setdefault(error(item).kind, []).append(item)
    groups = list(by_kind.values())
    for name, gap in gaps.items():
        coordinate = _Coordinate(error, name)
        groups = [part for group in groups for part in _apart(group, coordinate, gap)]
    return groups


@dataclass(frozen=True, slots=True)
class _Coordinate(Generic[_T]):
    """One number of an item's error."""

    error: Callable[[_T], ErrorOf]
    name: str

    def __call__(self, item: _T) -> float:
        return float(getattr(self.error(item), self.name))


def _apart(items: Sequence[_T], coordinate: Callable[[_T], float], gap: float) -> Iterator[list[_T]]:
    """The items, cut wherever two that are next to each other along a coordinate are further apart than ``gap``."""
    ranked = sorted(range(len(items)), key=lambda place: coordinate(items[place]))
    part: list[int] = []
    for place in ranked:
        if part and coordinate(items[place]) - coordinate(items[part[-1]]) > gap:
            yield [items[one] for one in sorted(part)]
            part = []
        part.append(place)
    yield [items[one] for one in sorted(part)]
