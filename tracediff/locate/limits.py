"""What error is allowed at a pair: its noise floor, the dtypes of the runs, and the size of what arrived."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from tracediff import dtype as dtypes
from tracediff.dtype import MASKED, DType, is_whole
from tracediff.locate.flow import PairFlow
from tracediff.locate.pairs import Pairs
from tracediff.locate.result import Mode
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.metrics import Judgement, Metrics, allowed
from tracediff.site import INPUTS
from tracediff.trace import Record


class Limits:
    """Judges metrics by the limit of their pair. ``floors`` are noise floors (relative L2) by the reference's row."""

    def __init__(
        self, pairs: Pairs, flow: PairFlow, floors: Mapping[int, float], *, mode: Mode, rtol: float | None, atol: float | None
    ) -> None:
        self._pairs, self._flow, self._floors, self._mode = pairs, flow, floors, mode
        self.rtol, self.atol = rtol, atol
        self._run_dtypes = tuple(dtypes.BY_NAME.get(str(trace.meta.get("dtype"))) for trace in (pairs.reference, pairs.port))
        self._passed_on: dict[int, float] = {}
        self._whole: dict[int, bool] = {}

    def judge(self, i: int, metrics: Metrics) -> Judgement:
        """Whether the metrics of a pair are within what is allowed there."""
        floor, (left, right) = self.floor(i), self.dtypes(i)
        judgement = allowed(metrics, left, right, floor=floor, rtol=self.rtol, atol=self.atol)
        is_tiny = max(metrics.reference_rms, metrics.port_rms) < THRESHOLDS.may_be_rounding and not metrics.lone_nonfinite
        if judgement.diverged and judgement.by in ("floor", "no floor") and is_tiny:
            judgement = allowed(metrics, left, right, floor=floor, scale=self._scale(i))
        return judgement

    def unjudged(self, i: int) -> Judgement:
        """The limit of a pair that nobody compared, as a judgement of no error."""
        return allowed(Metrics(1), *self.dtypes(i), floor=self.floor(i), rtol=self.rtol, atol=self.atol)

    def share(self, i: int, error: float) -> float:
        """A relative L2 in parts of what is allowed without a tolerance."""
        limit = allowed(Metrics(1), *self.dtypes(i), floor=self.floor(i)).limit
        if limit:
            return error / limit
        return math.inf if error else 0.0

    def floor(self, i: int) -> float | None:
        """The noise floor of a pair; in a forced run also that of what was made just before it at places that the port does not have.

        The floor is measured with every boundary of the reference reset to its stored value. Where a boundary has no partner, nothing is
        reset in the port, and the boundary's noise passes on.
        """
        row = self._pairs[i].reference[0]
        own = self._floors.get(row)
        if own is None or self._mode != "forced" or self._pairs.is_exact(i):
            return own
        if row not in self._passed_on:
            self._passed_on[row] = max((self._floors.get(before, 0.0) for before in self._unpaired_before(row)), default=0.0)
        return max(own, self._passed_on[row])

    def _unpaired_before(self, row: int) -> Iterator[int]:
        """The outputs without partner between a row and the paired row before it, and the inputs that are the row's own tensor.

        Other arguments of the row's own call do not count.
        """
        calls, codes, digests = self._flow.calls, self._pairs.reference.index["dtype"], self._pairs.reference.index["digest"]
        for before in range(row - 1, max(row - THRESHOLDS.noise_passed_on, -1), -1):
            kind = calls.kinds[before]
            if calls.of_row[before] == calls.of_row[row] and kind in INPUTS:
                continue
            if self._flow.is_paired(before):
                return
            is_made = kind in ("output", "value") or bool((digests[before] == digests[row]).all())
            if is_made and not dtypes.BY_CODE[int(codes[before])].is_exact:
                yield before

    def dtypes(self, i: int) -> tuple[DType, DType]:
        """The two dtypes; without a floor at least as coarse as what the run computes in, since a float32 site inherits its rounding.

        Whole numbers are rounded by no dtype that holds them: the port's has to. What a float32 run stored in half precision is float32.
        """
        left, right = dtypes.named(self._pairs.records(i)[0].dtype), self._pairs.port_dtype(i)
        if self._pairs.stored_in(i) is not None:
            return left, right
        if right.roundoff > left.roundoff > 0 and self._is_whole(i):
            return left, left
        if self.floor(i) is None and not dtypes.coarser(left, right).is_exact:
            left, right = (dtypes.coarser(own, run) if run else own for own, run in zip((left, right), self._run_dtypes, strict=True))
        return left, right

    def _is_whole(self, i: int) -> bool:
        """Whether the reference's tensor is known to hold whole numbers only: times or indices, which another number is no rounding of."""
        if i not in self._whole:
            record = self._pairs.records(i)[0]
            may_be = not record.stats.inf and record.stats.min.is_integer() and record.stats.max.is_integer()
            self._whole[i] = may_be and record.stored and is_whole(record.read())
        return self._whole[i]

    def _scale(self, i: int) -> float | None:
        """The RMS of what arrives at a pair; None where nothing is known to."""
        arriving = [j for j in self._flow.predecessors(i) if not self._pairs.is_exact(j)]
        return max((rms(self._pairs.records(j)[0]) for j in arriving), default=None)


def rms(record: Record) -> float:
    """The RMS of a record's values, from the index; 0 where masks or infinities make it meaningless."""
    stats = record.stats
    if stats.inf or stats.min <= MASKED or not stats.count:
        return 0.0
    return stats.l2 / math.sqrt(stats.count)
