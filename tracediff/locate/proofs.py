"""What is certain of a pair before its values are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment.axes import Layout, cuts, kept, places_in_port, places_in_reference
from tracediff.dtype import Array
from tracediff.locate.estimates import Bounds, at_least
from tracediff.locate.limits import Limits, rms
from tracediff.locate.pairs import Pairs
from tracediff.locate.result import Comparison, How
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.metrics import Judgement, Metrics, compare
from tracediff.trace import Record, Trace, schema
from tracediff.trace.budget import KEY as BUDGET
from tracediff.trace.thinning import sample_places

_EXACT_BELOW = 2.0**53  # statistics are float64: of one number below it they hold the number itself


class Proofs:
    """Judges pairs without reading: compared before, of equal bits, of hopeless shapes, or surely different by their statistics.

    ``compared`` are metrics already taken, by the first rows of reference and port.
    """

    def __init__(self, pairs: Pairs, limits: Limits, compared: Mapping[tuple[int, int], Metrics]) -> None:
        self._pairs, self._limits, self._compared = pairs, limits, compared
        self._bounds: dict[int, Bounds] = {}

    def comparison(self, i: int) -> Comparison | None:
        """The pair as far as it is certain; None where its values must be read. Of values that are not stored nothing else can be told."""
        pair, (left, right) = self._pairs[i], self._pairs.records(i)
        if (metrics := self._compared.get((pair.reference[0], pair.port[0]))) is not None:
            return self.measured(i, "forced", metrics)
        if right.flags & schema.SERVED and not left.flags & schema.SERVED:
            return Comparison(pair, "served", judgement=Judgement(0.0, "exact", False))
        if pair.layout is None or (left.dtype == "text") != (right.dtype == "text"):
            if self._is_told_by_values(i):
                return Comparison(pair, judgement=self._limits.unjudged(i))
            how: How = "raised" if self._pairs.has_raised(i) else "shape"
            return Comparison(pair, how, judgement=Judgement(0.0, "exact", True), at_least=math.inf, diverged=True)
        if self.is_readable_draw(i):
            return None
        if pair.layout.is_same and left.digest == right.digest and left.dtype == right.dtype and self._pairs.is_single(i):
            digests = compare(left, right, layout=pair.layout, rtol=self._limits.rtol, atol=self._limits.atol)
            return self.measured(i, "digest", digests)
        if (single := self._of_one_value(i)) is not None:
            return self.measured(i, "statistics", single)
        if (few := self._of_few_values(i)) is not None:
            return self.measured(i, "samples", few)
        return self._by_statistics(i)

    def _is_told_by_values(self, i: int) -> bool:
        """Whether one side's tensor may be a part of the other's, which values would have told that were not kept within a budget."""
        pair, (left, right) = self._pairs[i], self._pairs.records(i)
        if pair.layout is not None or self._pairs.has_raised(i) or "text" in (left.dtype, right.dtype) or not self._pairs.is_single(i):
            return False
        is_lacking = any(
            not one.stored and trace.meta.get(BUDGET) for one, trace in ((left, self._pairs.reference), (right, self._pairs.port))
        )
        return is_lacking and bool(kept(left.shape, right.shape) or cuts(left.shape, right.shape))

    def measured(self, i: int, how: How, metrics: Metrics) -> Comparison:
        """The pair judged by its metrics."""
        judgement = self._limits.judge(i, metrics)
        return Comparison(self._pairs[i], how, metrics, judgement, metrics.rel_l2, self._limits.floor(i), judgement.diverged)

    def is_readable_draw(self, i: int) -> bool:
        """Whether a pair is of random draws, which are compared in their standard form, once they are read."""
        left, right = self._pairs.records(i)
        return left.end == right.end == "draw" and self._pairs.is_stored(i)

    def bounds(self, i: int) -> Bounds:
        """What the statistics prove of a pair's errors."""
        if i not in self._bounds:
            layout = self._pairs[i].layout
            is_told = layout is not None and self._pairs.is_single(i) and self._pairs.stored_in(i) is None
            self._bounds[i] = at_least(*self._pairs.records(i), layout) if is_told and layout is not None else Bounds()
        return self._bounds[i]

    def _by_statistics(self, i: int) -> Comparison | None:
        left, right = self._pairs.records(i)
        bounds = self.bounds(i)
        proved = Metrics(
            left.stats.count,
            rel_l2=bounds.rel_l2 / THRESHOLDS.bound_margin,
            mismatched=self._surely_beyond(left, bounds),
            reference_rms=rms(left),
            port_rms=rms(right),
        )
        judgement = self._limits.judge(i, proved)
        if not judgement.diverged and self._pairs.is_stored(i):
            return None
        diverged = True if judgement.diverged else None
        return Comparison(self._pairs[i], "statistics", None, judgement, bounds.rel_l2, self._limits.floor(i), diverged)

    def _of_one_value(self, i: int) -> Metrics | None:
        """The metrics of tensors of one finite number, whose statistics are that number; None for all others."""
        records = self._pairs.records(i)
        if not self._pairs.is_single(i) or self._pairs.stored_in(i) is not None or not all(map(_is_one_number, records)):
            return None
        values = (np.full(record.shape, record.stats.min) for record in records)
        kinds = dtypes.named(records[0].dtype), dtypes.named(records[1].dtype)
        return compare(*values, dtypes=kinds, layout=self._pairs[i].layout, rtol=self._limits.rtol, atol=self._limits.atol)

    def _of_few_values(self, i: int) -> Metrics | None:
        """The metrics of the few values that a side kept of a tensor, and what the statistics prove; None where it kept none."""
        layout, (left, right) = self._pairs[i].layout, self._pairs.records(i)
        if layout is None or not self._pairs.is_single(i) or self._pairs.stored_in(i) is not None or (left.stored and right.stored):
            return None
        kinds = dtypes.named(left.dtype), dtypes.named(right.dtype)
        if math.prod(layout.shape) != left.stats.count or any(kind.is_complex for kind in kinds) or right.dtype == "text":
            return None
        if layout.repeat or layout.part_reference or layout.window_reference or (both := self._few_values(left, right, layout)) is None:
            return None
        ours, theirs = (np.asarray(values, np.float64) for values in both)
        found = compare(ours, theirs, dtypes=kinds, rtol=self._limits.rtol, atol=self._limits.atol, ulp=False)
        bounds, scale = self.bounds(i), rms(left)
        is_plain = not (left.stats.nan or left.stats.inf) and left.stats.min > dtypes.MASKED
        size = found.rms / scale if is_plain and scale and not found.lone_nonfinite else found.rel_l2
        return replace(
            found,
            rel_l2=max(size, bounds.rel_l2 / THRESHOLDS.bound_margin),
            mismatched=max(found.mismatched, self._surely_beyond(left, bounds)),
            reference_rms=scale,
            port_rms=rms(right),
        )

    def _few_values(self, left: Record, right: Record, layout: Layout) -> tuple[Array, Array] | None:
        """The values of two records at the places of which one side, or each, kept some; None where that is nowhere."""
        ours, theirs = _kept(self._pairs.reference, left), _kept(self._pairs.port, right)
        places = sample_places(left.stats.count)
        if ours is not None and right.stored:
            return ours, right.at(places_in_port(places, layout, right.shape))
        if theirs is not None and left.stored and not layout.leaves_some:
            return left.at(places_in_reference(places, layout, right.shape)), theirs
        return (ours, theirs) if ours is not None and theirs is not None and layout.is_same else None

    def _surely_beyond(self, left: Record, bounds: Bounds) -> int:
        """1 where the statistics prove that some value is beyond tolerance."""
        rtol, atol = self._limits.rtol, self._limits.atol
        if rtol is None or atol is None or dtypes.named(left.dtype).is_exact:
            return int(bounds.differs)
        allowed = atol + rtol * max(abs(left.stats.min), abs(left.stats.max))
        return int(bounds.max_abs > THRESHOLDS.bound_margin * allowed)


def _kept(trace: Trace, record: Record) -> Array | None:
    """The few values that a trace kept of a record that it does not hold whole; None where it kept none."""
    samples = None if record.stored else trace.samples
    count = 0 if samples is None else int(samples["count"][record.row])
    return samples["values"][record.row][:count] if samples is not None and count else None


def _is_one_number(record: Record) -> bool:
    stats = record.stats
    is_real = record.dtype != "text" and not dtypes.named(record.dtype).is_complex
    return is_real and stats.count == 1 and not stats.nan and not stats.inf and abs(stats.min) < _EXACT_BELOW
