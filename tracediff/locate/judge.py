"""Whether a pair diverged, and whether it counts: read as little as possible, and nothing twice."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.align import Alignment, RecordPair
from tracediff.align.axes import side_by_side
from tracediff.capture.randomness import standard
from tracediff.compare import MASKED, Bounds, Judgement, Metrics, allowed, at_least, compare
from tracediff.dtype import Array, DType
from tracediff.locate.flow import Flow
from tracediff.locate.result import INPUTS, Again, Comparison, Effect, How, Mode
from tracediff.site import Site, module_of
from tracediff.trace import Record, Trace, schema

_TINY = 1e-2  # tensors of a larger RMS are never the rounding of what arrived
_SCALED = 1e-6  # outputs whose cosine is closer to 1 differ by a mere factor
_NEAR = 64  # rows before a record in which what it was made of is looked for
_LARGEST = 1 << 26  # bytes of a tensor whose error is looked at value by value
_SURE = 1.001  # by how much a bound from statistics must exceed the limit


class Judge:
    """Answers whether a pair diverged, reading as little as it can and nothing twice."""

    def __init__(
        self,
        pairs: list[RecordPair],
        alignment: Alignment,
        reference: Trace,
        port: Trace,
        *,
        mode: Mode,
        given: tuple[float | None, float | None],
        floors: Mapping[int, float],
        compared: Mapping[tuple[int, int], Metrics],
    ) -> None:
        self.pairs, self.alignment, self.reference, self.port, self.mode = pairs, alignment, reference, port, mode
        self.rtol, self.atol = given
        self.floors, self.compared = floors, compared
        self.flow = Flow(reference, pairs)
        self.read = self.bytes_read = 0
        self._known: dict[int, Comparison] = {}
        self._free: dict[int, Comparison | None] = {}
        self._records: dict[int, tuple[Record, Record]] = {}
        self._proved: dict[int, Bounds] = {}
        self._effects: dict[int, Effect] = {}
        self._passed: dict[int, float] = {}
        self._metrics: dict[tuple[Any, ...], Metrics] = {}
        self._runs = tuple(dtypes.BY_NAME.get(str(trace.meta.get("dtype"))) for trace in (reference, port))
        self.again: Again | None = None
        self._held: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.pairs)

    def records(self, i: int) -> tuple[Record, Record]:
        """The pair's records; the first of each side where several are joined."""
        found = self._records.get(i)
        if found is None:
            pair = self.pairs[i]
            found = self._records[i] = self.reference.records[pair.reference[0]], self.port.records[pair.port[0]]
        return found

    def is_dirty(self, i: int) -> bool:
        """Whether the pair is a divergence, introduced or inherited; reads what it must."""
        return bool(self.judged(i).diverged) and not self.effect(i)

    def is_dirty_for_free(self, i: int) -> bool | None:
        """Whether the pair diverged, where that can be told without reading; None otherwise."""
        found = self._known.get(i) or self.free(i)
        return None if found is None else found.diverged

    def comparison(self, i: int) -> Comparison:
        """What is known of a pair by now."""
        found = self._known.get(i) or self.free(i)
        if found is None:
            would_be = allowed(Metrics(1), *self._dtypes(i), floor=self._floor(i), rtol=self.rtol, atol=self.atol)
            return Comparison(self.pairs[i], judgement=would_be, at_least=self._bounds(i).rel_l2, floor=self._floor(i))
        return replace(found, effect=self._effects.get(i, "unchecked")) if found.diverged else found

    def judged(self, i: int) -> Comparison:
        """The pair compared and judged: for free where that is certain, else by reading its values."""
        if i not in self._known:
            self._known[i] = self.free(i) or self._read(i)
        return self._known[i]

    def measure(self, i: int) -> Comparison:
        """As `judged`, with metrics wherever values are stored."""
        found = self.judged(i)
        if found.how == "statistics" and found.metrics is None and self._is_stored(i):
            found = self._known[i] = self._read(i)
        return found

    def free(self, i: int) -> Comparison | None:
        """The pair judged without reading: compared before, of equal bits, of hopeless shapes, or surely different by its statistics."""
        if i not in self._free:
            self._free[i] = self._judged_for_free(i)
        return self._free[i]

    def _judged_for_free(self, i: int) -> Comparison | None:
        pair, (left, right) = self.pairs[i], self.records(i)
        if (pair.reference[0], pair.port[0]) in self.compared:
            return self._with(i, "forced", self.compared[pair.reference[0], pair.port[0]])
        if right.flags & schema.SERVED and not left.flags & schema.SERVED:
            return Comparison(pair, "served", judgement=Judgement(0.0, "exact", False))
        if pair.layout is None or (left.dtype == "text") != (right.dtype == "text"):
            how: How = "raised" if self.has_raised(i) else "shape"
            return Comparison(pair, how, judgement=Judgement(0.0, "exact", True), at_least=math.inf, diverged=True)
        if left.end == right.end == "draw" and self._is_stored(i):
            self._hold(i)
            drawn = (standard(Site.parse(one.site).name, one.read(), one.note) for one in (left, right))
            return self._with(i, "read", compare(*drawn, layout=pair.layout))
        if pair.layout.is_same and left.digest == right.digest and left.dtype == right.dtype and len(pair.reference) == len(pair.port) == 1:
            return self._with(i, "digest", compare(left, right, layout=pair.layout, rtol=self.rtol, atol=self.atol))
        bounds = self._bounds(i)
        proved = Metrics(
            left.stats.count,
            rel_l2=bounds.rel_l2 / _SURE,
            mismatched=self._surely_beyond(left, bounds),
            reference_rms=_rms(left),
            port_rms=_rms(right),
        )
        surely = self._allowed(i, proved)
        if surely.diverged or not self._is_stored(i):
            return Comparison(pair, "statistics", None, surely, bounds.rel_l2, self._floor(i), True if surely.diverged else None)
        return None

    def _surely_beyond(self, left: Record, bounds: Bounds) -> int:
        """1 where the statistics prove that some value is beyond tolerance."""
        if self.rtol is None or self.atol is None or dtypes.named(left.dtype).is_exact:
            return int(bounds.differs)
        return int(bounds.max_abs > _SURE * (self.atol + self.rtol * max(abs(left.stats.min), abs(left.stats.max))))

    def _bounds(self, i: int) -> Bounds:
        if i not in self._proved:
            pair = self.pairs[i]
            has_one_each = len(pair.reference) == len(pair.port) == 1
            self._proved[i] = at_least(*self.records(i), pair.layout) if pair.layout is not None and has_one_each else Bounds()
        return self._proved[i]

    def _is_stored(self, i: int) -> bool:
        pair = self.pairs[i]
        if len(pair.reference) == len(pair.port) == 1:
            return all(record.stored for record in self.records(i))
        return all(self.reference.records[row].stored for row in pair.reference) and all(self.port.records[row].stored for row in pair.port)

    # -- values that are not stored

    def gather(self, places: Sequence[int]) -> None:
        """Fetches what is not stored of several pairs by one run of either side, and compares it while it is there."""
        wanted = [i for i in places if self._is_open(i)]
        if self.again is None or not wanted:
            return
        self._held = frozenset(wanted)
        self.again.fetch(*(sorted({row for i in wanted for row in self._rows(i)[side]}) for side in (0, 1)))
        for i in wanted:
            self.measure(i)

    def batches(self, places: Iterable[int]) -> Iterable[list[int]]:
        """The places, in runs that may be fetched at once."""
        batch: list[int] = []
        size = 0
        for i in places:
            pair = self.pairs[i]
            nbytes = sum(int(self.reference.index["nbytes"][row]) for row in pair.reference)
            nbytes += sum(int(self.port.index["nbytes"][row]) for row in pair.port)
            if batch and self.again is not None and size + nbytes > self.again.most:
                yield batch
                batch, size = [], 0
            batch.append(i)
            size += nbytes
        if batch:
            yield batch

    def _rows(self, i: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.pairs[i].reference, self.pairs[i].port

    def _is_open(self, i: int) -> bool:
        """Whether only values would tell more of a pair."""
        if self.pairs[i].layout is None:
            return False
        known = self._known.get(i) or (self._free.get(i) if self.records(i)[0].end == "draw" else self.free(i))
        return known is None or (known.how == "statistics" and known.metrics is None)

    def _hold(self, i: int) -> None:
        """Sees to it that the values of a pair can be read: what one frame sees is fetched together."""
        if self.again is None or i in self._held:
            return
        seen = [j for j in self.flow.level(self.flow.frame(i).up or self.flow.top) if self._is_open(j)]
        self._held = frozenset((*seen, i))
        self.again.fetch(*(sorted({row for j in self._held for row in self._rows(j)[side]}) for side in (0, 1)))
        for j in seen:
            if j != i:
                self.measure(j)

    def _read(self, i: int) -> Comparison:
        self._hold(i)
        pair = self.pairs[i]
        lefts, rights = [self.reference.records[row] for row in pair.reference], [self.port.records[row] for row in pair.port]
        key = (pair.layout, *((one.digest, one.dtype) for one in (*lefts, *rights)))
        if key not in self._metrics:
            self._metrics[key] = compare(lefts, rights, layout=pair.layout, rtol=self.rtol, atol=self.atol)
            self.read += 1
            self.bytes_read += sum(one.nbytes for one in (*lefts, *rights))
        return self._with(i, "read", self._metrics[key])

    def _with(self, i: int, how: How, metrics: Metrics) -> Comparison:
        judgement = self._allowed(i, metrics)
        return Comparison(self.pairs[i], how, metrics, judgement, metrics.rel_l2, self._floor(i), judgement.diverged)

    def suspicion(self, i: int) -> float:
        """How much of what is allowed the statistics alone already prove."""
        proved = self._bounds(i).rel_l2
        limit = allowed(Metrics(1), *self._dtypes(i), floor=self._floor(i)).limit if proved else 0.0
        return proved / limit if limit else 0.0

    def error(self, i: int) -> Array | None:
        """The port's values minus the reference's, flat and in float64; None where they were not stored, are too many, or no numbers."""
        layout, exact = self.pairs[i].layout, dtypes.named(self.records(i)[0].dtype).is_exact
        if layout is None or exact or not self._is_stored(i) or self.records(i)[0].nbytes > _LARGEST:
            return None
        sides = zip((self.reference, self.port), self._rows(i), strict=True)
        reference, port = side_by_side(layout, *([trace.records[row] for row in rows] for trace, rows in sides))
        with np.errstate(invalid="ignore"):
            error = port.astype(np.float64) - reference.astype(np.float64)
        return np.nan_to_num(error.reshape(-1), posinf=0.0, neginf=0.0)

    def _floor(self, i: int) -> float | None:
        """The noise floor of a pair; in a forced run also that of what was made just before it at places that the port does not have.

        The floor is measured with every boundary of the reference reset to its stored value. Where one has no partner, nothing is reset in
        the port, and its noise passes on.
        """
        row = self.pairs[i].reference[0]
        own = self.floors.get(row)
        if own is None or self.mode != "forced" or dtypes.named(self.records(i)[0].dtype).is_exact:
            return own
        if row not in self._passed:
            self._passed[row] = max((self.floors.get(before, 0.0) for before in self._unpaired_before(row)), default=0.0)
        return max(own, self._passed[row])

    def _unpaired_before(self, row: int) -> Iterable[int]:
        """The outputs without partner between a row and the paired one before it; other arguments of its own call do not count."""
        calls, codes = self.reference.index["call"], self.reference.index["dtype"]
        for before in range(row - 1, max(row - _NEAR, -1), -1):
            kind = self.flow.kind_of_row[before]
            if calls[before] == calls[row] and kind in INPUTS:
                continue
            if before in self.flow.pairs_of_row:
                return
            if kind in ("output", "value") and not dtypes.BY_CODE[int(codes[before])].is_exact:
                yield before

    def _allowed(self, i: int, metrics: Metrics) -> Judgement:
        floor, (left, right) = self._floor(i), self._dtypes(i)
        judgement = allowed(metrics, left, right, floor=floor, rtol=self.rtol, atol=self.atol)
        tiny = max(metrics.reference_rms, metrics.port_rms) < _TINY and not metrics.lone_nonfinite
        if judgement.diverged and judgement.by in ("floor", "no floor") and tiny:
            judgement = allowed(metrics, left, right, floor=floor, scale=self._scale(i))
        return judgement

    def _dtypes(self, i: int) -> tuple[DType, DType]:
        """The two dtypes; without a floor at least as coarse as what the run computes in, since a float32 site inherits its rounding."""
        left, right = (dtypes.named(record.dtype) for record in self.records(i))
        if self._floor(i) is None and not dtypes.coarser(left, right).is_exact:
            left, right = (dtypes.coarser(one, run) if run else one for one, run in zip((left, right), self._runs, strict=True))
        return left, right

    def _scale(self, i: int) -> float | None:
        """The RMS of what arrives at a pair; None where nothing is known to."""
        arriving = [self.reference.records[self.pairs[j].reference[0]] for j in self.flow.predecessors(i)]
        return max((_rms(record) for record in arriving if not dtypes.named(record.dtype).is_exact), default=None)

    # -- differences that are no divergence

    @cached_property
    def flipped(self) -> tuple[int, ...]:
        """The pairs of ids that differ where noise changes the reference's too: no divergences, but the runs may part there."""
        sensitive = [i for i in range(len(self)) if self._floor(i) and dtypes.named(self.records(i)[0].dtype).is_exact]
        return tuple(i for i in sensitive if _is_flipped(self.judged(i)))

    def excuse(self, dirty: Iterable[int]) -> None:
        """Says of pairs that diverged that noise-sensitive ids sent the two runs different ways, where nothing else did."""
        self._effects.update(dict.fromkeys(dirty, "noise"))

    def effect(self, i: int) -> Effect:
        """Why a pair that diverged is no divergence; "" where it is one."""
        if i not in self._effects:
            self._effects[i] = ""  # a loop of consumers cannot excuse itself
            self._effects[i] = self._effect(i)
        return self._effects[i]

    def _effect(self, i: int) -> Effect:
        if self.has_raised(i):
            return "no effect" if self._is_caught(i) else ""
        if self.is_replaced(i) or self.judged(i).how == "forced":
            return ""
        kind = self.flow.kind(i)
        if kind in INPUTS:
            return "no effect" if self._is_without_effect(i) else "untold" if self._is_untold(i) or self._has_two_conventions(i) else ""
        return "moved" if kind in ("output", "value") and self._is_moved(i) else ""

    def is_replaced(self, i: int) -> bool:
        """Whether the port went on with the reference's tensor here; what a draw recorded is always what it went on with."""
        if self.flow.kind(i) == "draw":
            return False
        rows = self.pairs[i].port
        flags = self.port.index["flags"]
        return all(int(flags[row]) & schema.REPLACED for row in rows)

    def has_raised(self, i: int) -> bool:
        """Whether a call of one side raised where that of the other returned."""
        left, right = self.records(i)
        return bool((left.flags ^ right.flags) & schema.RAISED)

    def _is_caught(self, i: int) -> bool:
        """Whether the code of the caller caught what a call raised, and all that it returned agrees."""
        up = self.flow.frame(i).up
        returned = [j for row in (up.outputs if up is not None else ()) for j in self.flow.pairs_of_row.get(row, ())]
        return not self.is_replaced(i) and bool(returned) and all(self.judged(j).diverged is False for j in returned)

    def _is_moved(self, i: int) -> bool:
        """Whether everything that consumes an output agrees although it differs.

        Consumers are those that were recorded on either side. Where none was, an output that differs by a mere factor is moved if all
        that its caller did afterwards agrees.
        """
        consumers = self._recorded_consumers(i)
        if not consumers and self._is_scaled(i):
            consumers = self.flow.consumers(i)
        return bool(consumers) and all(self._agrees(j) for j in consumers)

    def _agrees(self, i: int) -> bool:
        return not self.judged(i).diverged or (self.flow.kind(i) == "output" and self.effect(i) == "moved")

    def _is_scaled(self, i: int) -> bool:
        metrics = self.measure(i).metrics
        return metrics is not None and not metrics.exact and metrics.cosine > 1 - _SCALED and not metrics.lone_nonfinite

    def _recorded_consumers(self, i: int) -> list[int]:
        pair = self.pairs[i]
        found = {j for row in pair.reference for taker in self._takers[0][row] for j in self.flow.pairs_of_row.get(taker, ())}
        found |= {j for row in pair.port for taker in self._takers[1][row] for j in self._pairs_of_port_row[taker]}
        return sorted(j for j in found if j > i)

    @cached_property
    def _takers(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """For each side and row, the rows that were seen to be produced by it."""
        both: tuple[dict[int, list[int]], dict[int, list[int]]] = (defaultdict(list), defaultdict(list))
        for takers, trace in zip(both, (self.reference, self.port), strict=True):
            for row, producer in enumerate(trace.index["producer"].tolist()):
                if producer >= 0:
                    takers[producer].append(row)
        return both

    @cached_property
    def _pairs_of_port_row(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for i, pair in enumerate(self.pairs):
            for row in pair.port:
                found[row].append(i)
        return found

    def _is_without_effect(self, i: int) -> bool:
        """Whether all that a call computes from an input agrees although the input differs.

        Not so for a normalisation, which hides an error in its input that others may see.
        """
        frame = self.flow.frame(i)
        if "norm" in self._types.get(module_of(frame.site), "").lower():
            return False
        outputs = self.flow.outputs_within(frame)
        own = [j for row in frame.outputs for j in self.flow.pairs_of_row.get(row, ())]
        return bool(own) and all(not self.judged(j).diverged for j in (*own, *outputs))

    def _has_two_conventions(self, i: int) -> bool:
        """Whether a mask says true or false on one side and is added on the other: what it does is told where it is used."""
        is_true = [record.dtype == "bool" for record in self.records(i)]
        added = [record for record, is_bool in zip(self.records(i), is_true, strict=True) if not is_bool]
        return len(added) == 1 and not dtypes.named(added[0].dtype).is_exact and added[0].stats.min <= MASKED and added[0].stats.max <= 0

    def _is_untold(self, i: int) -> bool:
        """Whether what an input does cannot be told, since the call was handed something else that differs.

        So for exact values beside a tensor that differs, and for a tensor of a shape that nothing reconciles (heads repeated before the
        call or inside it) beside whatever differs in its values.
        """
        others = [j for row in self.flow.frame(i).inputs for j in self.flow.pairs_of_row.get(row, ()) if j != i]
        differ = [j for j in others if self.judged(j).diverged and self.judged(j).how != "shape"]
        if self.judged(i).how == "shape":
            return bool(differ) and not self.has_raised(i) and self._gives_right_shapes(i)
        if not dtypes.named(self.records(i)[0].dtype).is_exact and self.flow.kind(i) != "attr":
            return False
        return any(self.flow.kind(j) == "input" and not dtypes.named(self.records(j)[0].dtype).is_exact for j in differ)

    def _gives_right_shapes(self, i: int) -> bool:
        """Whether the outputs of the call that was handed an input have shapes that a layout reconciles."""
        outputs = [j for row in self.flow.frame(i).outputs for j in self.flow.pairs_of_row.get(row, ())]
        return bool(outputs) and all(self.pairs[j].layout is not None for j in outputs)

    @cached_property
    def _types(self) -> dict[str, str]:
        return {str(module["path"]): str(module.get("type", "")) for module in self.reference.meta.get("modules") or ()}


def _is_flipped(comparison: Comparison) -> bool:
    judgement, metrics = comparison.judgement, comparison.metrics
    return (
        judgement is not None and judgement.by == "sensitive" and metrics is not None and metrics.mismatched > 0 and not judgement.diverged
    )


def _rms(record: Record) -> float:
    """The RMS of a record's values, from the index; 0 where masks or infinities make it meaningless."""
    stats = record.stats
    if stats.inf or stats.min <= MASKED or not stats.count:
        return 0.0
    return stats.l2 / math.sqrt(stats.count)
