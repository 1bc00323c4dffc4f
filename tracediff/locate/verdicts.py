"""Whether a pair diverged, and whether it counts: read as little as possible, and nothing twice."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment import Alignment, RecordPair
from tracediff.alignment.axes import side_by_side
from tracediff.compare import ROUNDOFF_FACTOR, Bounds, Judgement, Metrics, allowed, at_least, compare
from tracediff.draws import standard
from tracediff.dtype import MASKED, Array, DType
from tracediff.locate import estimates
from tracediff.locate.calls import Flow
from tracediff.locate.result import INPUTS, Again, Comparison, Effect, How, Mode
from tracediff.site import Site, module_of
from tracediff.trace import Record, Trace, schema

_TINY = 1e-2  # tensors of a larger RMS are never the rounding of what arrived
_SCALED = 1e-6  # outputs whose cosine is closer to 1 differ by a mere factor
_NEAR = 64  # rows before a record in which what it was made of is looked for
_LARGEST = 1 << 26  # bytes of a tensor whose error is looked at value by value
_SURE = 1.001  # by how much a bound from statistics must exceed the limit
CLEARLY = 4.0
"""Times what is allowed: a pair of which statistics let expect so much is read before any other."""
_WELL_BELOW = 0.5  # of what is allowed: an error that statistics, or a sample, let expect below it is taken to be allowed
_EXACTLY = 2.0**53  # numbers below it stand in statistics as they are
_ENOUGH = 16  # values of a sample that tell an error spread over a tensor to within a half


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
        seed: int = 0,
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
        self._keys: dict[int, tuple[Any, ...]] = {}
        self._expected: dict[int, float | None] = {}
        self._sampled: dict[tuple[Any, ...], tuple[float, int]] = {}
        self._chance = random.Random(seed)
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

    def diverges(self, i: int) -> bool:
        """As `is_dirty`, but a pair that seems the same by its statistics and a sample is not read."""
        return not self.seems_same(i) and self.is_dirty(i)

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
        if (told := self._of_one_value(i)) is not None:
            return self._with(i, "statistics", told)
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

    def _of_one_value(self, i: int) -> Metrics | None:
        """The metrics of tensors of one finite number, whose statistics are that number; None for all others."""
        pair, (left, right) = self.pairs[i], self.records(i)
        if len(pair.reference) != 1 or len(pair.port) != 1 or not all(map(_is_one_number, (left, right))):
            return None
        values = (np.full(one.shape, one.stats.min) for one in (left, right))
        kinds = dtypes.named(left.dtype), dtypes.named(right.dtype)
        return compare(*values, dtypes=kinds, layout=pair.layout, rtol=self.rtol, atol=self.atol)

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
        lefts, rights = self._all_records(i)
        key = self._contents(i)
        if key not in self._metrics:
            self._metrics[key] = compare(lefts, rights, layout=pair.layout, rtol=self.rtol, atol=self.atol)
            self.read += 1
            self.bytes_read += sum(one.nbytes for one in (*lefts, *rights))
        return self._with(i, "read", self._metrics[key])

    def _with(self, i: int, how: How, metrics: Metrics) -> Comparison:
        judgement = self._allowed(i, metrics)
        return Comparison(self.pairs[i], how, metrics, judgement, metrics.rel_l2, self._floor(i), judgement.diverged)

    def _contents(self, i: int) -> tuple[Any, ...]:
        """What a pair holds: pairs that hold the same are read once."""
        if i not in self._keys:
            lefts, rights = self._all_records(i)
            self._keys[i] = (self.pairs[i].layout, *((one.digest, one.dtype) for one in (*lefts, *rights)))
        return self._keys[i]

    def _all_records(self, i: int) -> tuple[list[Record], list[Record]]:
        rows = self._rows(i)
        if len(rows[0]) == len(rows[1]) == 1:
            left, right = self.records(i)
            return [left], [right]
        return [self.reference.records[row] for row in rows[0]], [self.port.records[row] for row in rows[1]]

    # -- what is to be expected of a pair that was not read

    def tells(self, i: int) -> bool:
        """Whether a sample can say something of a pair: stored tensors of plain numbers, judged as a whole, not value by value."""
        layout = self.pairs[i].layout
        if layout is None or self.again is not None or self.rtol is not None:
            return False
        return self._is_stored(i) and estimates.can_sample(*self._all_records(i), layout)

    def suspicion(self, i: int) -> float | None:
        """How much of what is allowed the statistics let expect; None where they do not tell."""
        if i not in self._expected:
            pair = self.pairs[i]
            is_told = pair.layout is not None and self.rtol is None
            error = estimates.expected(*self._all_records(i), pair.layout) if is_told and pair.layout is not None else None
            self._expected[i] = None if error is None else self._share(i, error)
        return self._expected[i]

    def seems_same(self, i: int, *, sample: bool = True) -> bool:
        """Whether a pair is known to agree, or its statistics and a sample of its values let expect it.

        Without ``sample`` no value is looked at where the statistics are clear by themselves.
        """
        found = self._known.get(i) or self.free(i)
        if found is None and self._contents(i) in self._metrics:
            found = self.judged(i)
        if found is not None and found.diverged is not None:
            return not found.diverged
        expected = self.suspicion(i)
        if expected is not None and expected < _WELL_BELOW and not sample:
            return True
        seen = self.sample(i)
        if seen is None:
            return False
        error, count = seen
        most = CLEARLY if count >= _ENOUGH else _WELL_BELOW  # what errors have in common along an axis makes statistics expect too much
        limit = _WELL_BELOW if expected is not None else _WELL_BELOW / 2
        return (expected or 0.0) < most and self._share(i, error) < limit

    def seems_different(self, i: int) -> bool:
        """Whether the statistics of a pair let expect far more than is allowed, and no sample tells otherwise."""
        if (self.suspicion(i) or 0.0) <= CLEARLY:
            return False
        seen = self.sample(i)
        return seen is None or seen[1] < _ENOUGH or self._share(i, seen[0]) >= _WELL_BELOW

    def sample(self, i: int) -> tuple[float, int] | None:
        """The relative L2 of a few values of a pair, and of how many; None where a sample tells nothing."""
        if not self.tells(i):
            return None
        key, layout = self._contents(i), self.pairs[i].layout
        if key not in self._sampled and layout is not None:
            found = self._sampled[key] = estimates.sampled(*self._all_records(i), layout, self._chance)
            count = found[1]
            self.bytes_read += count * sum(dtypes.named(one.dtype).itemsize for one in self.records(i))
        return self._sampled[key]

    def is_sampled(self, i: int) -> bool:
        """Whether a sample of a pair was looked at that nobody read."""
        return i not in self._known and bool(self._sampled) and self._contents(i) in self._sampled

    def known_error(self, i: int) -> float | None:
        """The relative L2 of a pair, without reading more: as read, else as a sample showed it; None where nobody looked."""
        metrics = self.comparison(i).metrics
        if metrics is not None or not self.is_sampled(i):
            return None if metrics is None else metrics.rel_l2
        return self._sampled[self._contents(i)][0]

    def _share(self, i: int, error: float) -> float:
        """An error in parts of what is allowed."""
        limit = allowed(Metrics(1), *self._dtypes(i), floor=self._floor(i)).limit
        return error / limit if limit else math.inf if error else 0.0

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
        """The pairs of ids, or of other choices, that differ where noise changes the reference's too.

        They are no divergences, but the runs may part there.
        """
        marks = None if self.reference.floor is None else self.reference.floor["sensitive"].tolist()
        exact = [i for i in range(len(self)) if self._floor(i) and dtypes.named(self.records(i)[0].dtype).is_exact]
        chosen = [] if marks is None else [i for i in range(len(self)) if marks[self.pairs[i].reference[0]]]
        return tuple(i for i in sorted({*exact, *chosen}) if _is_flipped(self.judged(i), dtypes.coarser(*self._dtypes(i)).roundoff))

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
        recorded = self._recorded_consumers(i)
        consumers = recorded or self.flow.consumers(i)
        agree = bool(consumers) and all(self._agrees(j) for j in self._doubtful_first(consumers))
        return agree and (bool(recorded) or self._is_scaled(i))

    def _doubtful_first(self, places: Iterable[int]) -> list[int]:
        """The pairs in the order in which one that diverged is met soonest: by what statistics prove, then by what they let expect."""
        return sorted(places, key=lambda i: (not self.is_dirty_for_free(i), -(self.suspicion(i) or 0.0)))

    def _agrees(self, i: int) -> bool:
        return self._is_same(i) or (self.flow.kind(i) == "output" and self.effect(i) == "moved")

    def _is_same(self, i: int) -> bool:
        """Whether a pair agrees, or seems to by its statistics and a sample."""
        return self.seems_same(i) or not self.judged(i).diverged

    def _is_scaled(self, i: int) -> bool:
        metrics = self.measure(i).metrics
        return metrics is not None and not metrics.exact and metrics.cosine > 1 - _SCALED and not metrics.lone_nonfinite

    def _recorded_consumers(self, i: int) -> list[int]:
        pair = self.pairs[i]
        found = {j for row in pair.reference for taker in self._takers[0][row] for j in self.flow.pairs_of_row.get(taker, ())}
        found |= {j for row in pair.port for taker in self._takers[1][row] for j in self.pairs_of_port_row[taker]}
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
    def handed_ends(self) -> set[tuple[str, str]]:
        """The reference's sites, each with the inputs that the port's are handed too."""
        records = (self.records(i)[0] for i in range(len(self)) if self.flow.kind(i) == "input")
        return {(record.site, record.end) for record in records}

    @cached_property
    def port_handed(self) -> dict[str, tuple[str, list[int]]]:
        """For each call of the port its site, and the rows of the tensors that it was handed."""
        texts, index = self.port.strings, self.port.index
        found: dict[str, tuple[str, list[int]]] = {}
        for row, (site, call, end) in enumerate(zip(*(index[name].tolist() for name in ("site", "call", "end")), strict=True)):
            if texts[end].startswith("input"):
                found.setdefault(texts[call], (texts[site], []))[1].append(row)
        return found

    @cached_property
    def rows_of_port_call(self) -> dict[str, list[int]]:
        """The rows of each call of the port."""
        found: dict[str, list[int]] = defaultdict(list)
        for row, call in enumerate(self.port.index["call"].tolist()):
            found[self.port.strings[call]].append(row)
        return found

    @cached_property
    def pairs_of_port_row(self) -> dict[int, list[int]]:
        """The pairs of each row of the port."""
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
        if "norm" in self.types.get(module_of(frame.site), "").lower():
            return False
        outputs = self.flow.outputs_within(frame)
        own = [j for row in frame.outputs for j in self.flow.pairs_of_row.get(row, ())]
        return bool(own) and all(self._is_same(j) for j in self._doubtful_first((*own, *outputs)))

    def _has_two_conventions(self, i: int) -> bool:
        """Whether a mask says true or false on one side and is added on the other, and both let the same through, as far as that is known.

        What true means is known only of attention's own mask: that something may be seen.
        """
        is_true = [record.dtype == "bool" for record in self.records(i)]
        added = [record for record, is_bool in zip(self.records(i), is_true, strict=True) if not is_bool]
        if len(added) != 1 or dtypes.named(added[0].dtype).is_exact or not _is_added_mask(added[0]):
            return False
        if self.pairs[i].layout is None or not self._is_stored(i):
            return True
        sides = zip((self.reference, self.port), self._rows(i), strict=True)
        values = side_by_side(self.pairs[i].layout, *([trace.records[row] for row in rows] for trace, rows in sides))  # type: ignore[arg-type]
        ours, theirs = (one if one.dtype == bool else one > MASKED for one in values)
        is_turned = Site.parse(self.records(i)[0].site).kind != "function" and np.array_equal(ours, ~theirs)
        return bool(np.array_equal(ours, theirs) or is_turned)

    def _is_untold(self, i: int) -> bool:
        """Whether what an input does cannot be told, since the call was handed something else that differs.

        So for exact values beside a tensor that differs, and for a tensor of a shape that nothing reconciles (heads repeated before the
        call or inside it) beside whatever differs in its values.
        """
        others = [j for row in self.flow.frame(i).inputs for j in self.flow.pairs_of_row.get(row, ()) if j != i]
        differ = (j for j in self._doubtful_first(others) if not self._is_same(j) and self.judged(j).how != "shape")
        if self.judged(i).how == "shape":
            return not self.has_raised(i) and self._gives_right_shapes(i) and any(True for _ in differ)
        if not dtypes.named(self.records(i)[0].dtype).is_exact and self.flow.kind(i) != "attr":
            return False
        return any(self.flow.kind(j) == "input" and not dtypes.named(self.records(j)[0].dtype).is_exact for j in differ)

    def _gives_right_shapes(self, i: int) -> bool:
        """Whether the outputs of the call that was handed an input have shapes that a layout reconciles."""
        outputs = [j for row in self.flow.frame(i).outputs for j in self.flow.pairs_of_row.get(row, ())]
        return bool(outputs) and all(self.pairs[j].layout is not None for j in outputs)

    @cached_property
    def types(self) -> dict[str, str]:
        return {str(module["path"]): str(module.get("type", "")) for module in self.reference.meta.get("modules") or ()}


def _is_added_mask(record: Record) -> bool:
    """Whether numbers may be a mask that is added: nothing but what masks and, where it lets all through, zeros."""
    return record.stats.max <= 0 and (record.stats.min <= MASKED or record.stats.min == record.stats.max == 0)


def _is_flipped(comparison: Comparison, roundoff: float) -> bool:
    """Whether ids, or other choices, differ within what noise changes; real ones by more than rounding makes of them."""
    judgement, metrics = comparison.judgement, comparison.metrics
    if judgement is None or metrics is None or judgement.diverged:
        return False
    if judgement.by == "sensitive":
        return metrics.mismatched > 0
    return judgement.by == "floor" and not metrics.exact and metrics.rel_l2 > ROUNDOFF_FACTOR * roundoff


def _is_one_number(record: Record) -> bool:
    stats = record.stats
    is_real = record.dtype != "text" and not dtypes.named(record.dtype).is_complex
    return is_real and stats.count == 1 and not stats.nan and not stats.inf and abs(stats.min) < _EXACTLY


def _rms(record: Record) -> float:
    """The RMS of a record's values, from the index; 0 where masks or infinities make it meaningless."""
    stats = record.stats
    if stats.inf or stats.min <= MASKED or not stats.count:
        return 0.0
    return stats.l2 / math.sqrt(stats.count)
