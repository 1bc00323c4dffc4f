"""The first divergence of two traces: by scan, or by bisection that reads few tensors and says what its answer rests on.

A pair *diverged* if it is beyond what is allowed. An error was *introduced* at a pair that diverged while everything it can come from
agrees: for an input of a module the caller's inputs and what the caller's earlier calls returned, for an output the module's inputs and
what the calls inside it returned. A diverged output blames its module; a diverged input blames the caller's own code.

Two kinds of difference are no divergence: a *moved boundary* (an output differs, but everything that consumes it agrees, since a scale
or a bias is applied inside on one side and outside on the other) and an input *without effect* (a mask of another convention: what
the module computes from it agrees).
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

from tracediff import dtype as dtypes
from tracediff.align import Alignment, RecordPair
from tracediff.capture.randomness import standard
from tracediff.compare import MASKED, Bounds, Judgement, Metrics, allowed, at_least, compare, tolerance
from tracediff.dtype import DType
from tracediff.errors import TracediffError
from tracediff.site import Call, End, Site, is_below, module_of
from tracediff.trace import Record, Trace, schema

Mode = Literal["free", "forced"]
Method = Literal["bisect", "scan", "live"]
How = Literal["", "read", "digest", "statistics", "forced", "shape", "raised", "served"]
Effect = Literal["", "moved", "no effect", "untold", "unchecked", "noise"]
Blame = Literal["module", "caller", "input", "random"]

PROBES = 16
INPUTS = ("input", "attr")
"""Kinds of ends at which a call is handed something: its tensors, and its scalar arguments."""
_TINY = 1e-2  # tensors of a larger RMS are never the rounding of what arrived
_SCALED = 1e-6  # outputs whose cosine is closer to 1 differ by a mere factor
_SURE = 1.001  # by how much a bound from statistics must exceed the limit


class Again(Protocol):
    """Fetches what was not stored by running both sides again.

    ``most`` is how many bytes may be fetched at once where no single frame asks for more. `fetch` makes the values of those rows of
    reference and port readable; those of earlier fetches need not stay so.
    """

    most: int

    def fetch(self, reference: Sequence[int], port: Sequence[int]) -> None: ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """One pair of records and what is known of it.

    ``how``: "read" (values compared), "digest" (equal bits, not read), "statistics" (values not stored, or not needed: ``at_least``, a
    lower bound of the relative L2, can prove a difference but no agreement), "forced" (compared while the port ran), "shape" (no layout
    reconciles the two), "raised" (a call of one side raised instead), "served" (the port computed nothing: the tensor was served from a
    trace, so nothing was compared), "" (not compared). ``metrics`` is None unless values or digests were compared. ``judgement`` gives
    the limit also where nothing was compared; ``diverged`` is then None. ``effect`` says why a pair that diverged is no divergence:
    "moved", "no effect", "untold" (an argument of a call of which another input diverged too), "unchecked" (nobody asked), "noise"
    (nothing but noise-sensitive ids sent the two runs different ways).
    """

    pair: RecordPair
    how: How = ""
    metrics: Metrics | None = None
    judgement: Judgement | None = None
    at_least: float = 0.0
    floor: float | None = None
    diverged: bool | None = None
    effect: Effect = ""

    @property
    def is_divergence(self) -> bool:
        return bool(self.diverged) and not self.effect


@dataclass(frozen=True, slots=True)
class Finding:
    """An introduced divergence: ``place`` indexes `Located.comparisons`.

    ``blame``: "module" (its output diverged), "caller" (its own code, between the calls it makes), "input" (nothing came before),
    "random" (a draw). ``culprit``: module paths of reference and port. ``inherited``: the worst relative L2 of what arrived, None where
    unknown. ``last_same``: the last pair before it that agrees. ``suspects``: unpaired sites and missing calls there, as
    (side, text). ``calls`` counts the calls of the site with the same finding, ``shared_by`` the same-role siblings, whose sites fit
    ``pattern``.
    """

    place: int
    blame: Blame
    culprit: tuple[str, str]
    introduced: float
    inherited: float | None
    last_same: int | None
    suspects: tuple[tuple[str, str], ...] = ()
    calls: int = 1
    shared_by: int = 1
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the answer rests on.

    ``predecessors``: how many pairs the first divergence can come from, all found to agree. ``probes``: how many pairs before it were
    looked at besides, none of which diverged; ``unread_before``: how many before it nobody looked at. ``by_digest``,
    ``by_statistics``: pairs decided without reading. ``sensitive``: ids that differ where noise changes the reference's too.
    ``seed``: of the probes. ``rtol``, ``atol``: the tolerance that was given, if any.
    """

    method: Method
    rtol: float | None = None
    atol: float | None = None
    predecessors: int = 0
    probes: int = 0
    unread_before: int = 0
    by_digest: int = 0
    by_statistics: int = 0
    moved: tuple[int, ...] = ()
    without_effect: tuple[int, ...] = ()
    sensitive: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Located:
    """Every pair with what is known of it, in the reference's execution order, and the introduced divergences, first one first.

    ``read`` counts pairs whose values were read, ``bytes_read`` their bytes on both sides.
    """

    mode: Mode
    method: Method
    comparisons: tuple[Comparison, ...]
    findings: tuple[Finding, ...]
    certificate: Certificate
    read: int
    bytes_read: int

    @property
    def first(self) -> Finding | None:
        return self.findings[0] if self.findings else None


def locate(
    alignment: Alignment,
    reference: Trace,
    port: Trace,
    *,
    scan: bool = False,
    mode: Mode | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    floors: Mapping[int, float] | None = None,
    compared: Mapping[tuple[int, int], Metrics] | None = None,
    stages: Sequence[str] = (),
    probes: int = PROBES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    again: Again | None = None,
) -> Located:
    """Where two aligned traces first part.

    With ``scan`` every pair is compared, and all introduced divergences are found; otherwise pairs are bisected and only the first one
    is. ``mode`` is by default what the port's trace says. ``floors`` are noise floors by the reference's row; ``compared`` are metrics
    already taken (in a forced run), by the first rows of reference and port: those are not read again. ``stages`` restricts to some stages.
    ``progress`` is told (done, total) while scanning. ``again`` fetches values that the traces do not hold: the search then goes from the
    outermost calls inwards, one frame a fetch.
    """
    tolerance(rtol, atol)
    mode = mode or ("forced" if port.meta.get("mode_run") == "forced" else "free")
    pairs = _in_order(alignment, reference, stages)
    judge = _Judge(pairs, alignment, reference, port, mode=mode, given=(rtol, atol), floors=floors or {}, compared=compared or {})
    judge.again = again
    method: Method = "live" if again is not None else "scan" if scan or mode == "forced" else "bisect"
    if method == "scan":
        dirty = _scan(judge, progress)
        places, probed = _introduced(judge, dirty), 0
        if judge.flipped and not places:
            judge.excuse(dirty)
    elif judge.flipped:
        dirty = _scan(judge, progress)
        places, probed = _introduced(judge, dirty)[:1], 0
        if not places:
            judge.excuse(dirty)
    else:
        places, probed = (_descended if method == "live" else _bisect)(judge, probes, random.Random(seed))
        places += [place for first in places for place in _sharing(judge, first)]
        if method == "bisect":
            _look_into_stages(judge)
    found = _merged(judge, [_finding(judge, place) for place in places])
    comparisons = tuple(judge.comparison(i) for i in range(len(judge)))
    certificate = _certificate(judge, comparisons, method, places[0] if places else None, probed, seed)
    return Located(mode, method, comparisons, tuple(found), certificate, judge.read, judge.bytes_read)


def _in_order(alignment: Alignment, reference: Trace, stages: Sequence[str]) -> list[RecordPair]:
    """The pairs in the reference's execution order, of the stages asked for and those inside them."""
    pairs = sorted(alignment.records, key=lambda pair: (max(pair.reference), pair.port[0]))
    if not stages:
        return pairs
    around: Mapping[str, str] = reference.meta.get("stages") or {}
    known = {reference.records[pair.reference[0]].stage for pair in pairs}
    wanted = {stage for stage in known if any(_is_inside(stage, asked, around) for asked in stages)}
    if not wanted:
        raise TracediffError(f"No stage {', '.join(map(repr, stages))} among the compared ones: {', '.join(map(repr, sorted(known)))}.")
    return [pair for pair in pairs if reference.records[pair.reference[0]].stage in wanted]


def _is_inside(stage: str, asked: str, around: Mapping[str, str]) -> bool:
    """Whether a stage is the one asked for or lies inside it (or has it as the first part of a dotted name)."""
    seen: set[str] = set()
    while stage and stage not in seen:
        if stage == asked or stage.startswith(asked + "."):
            return True
        seen.add(stage)
        stage = around.get(stage, "")
    return stage == asked


# ------------------------------------------------------------------------------------------ what a tensor can come from


@dataclass(slots=True, eq=False)
class _Frame:
    """One call of the reference's run: its rows, and the calls made inside it, in order."""

    site: str
    up: _Frame | None
    first: int
    inputs: list[int]
    outputs: list[int]
    children: list[_Frame]


class _Flow:
    """The calls of the reference as a tree, and from it what each pair can come from and what can consume it.

    Where a record has no partner, what it can come from stands in for it.
    """

    def __init__(self, reference: Trace, pairs: Sequence[RecordPair]) -> None:
        self.pairs = pairs
        self.order = [max(pair.reference) for pair in pairs]
        self.pairs_of_row: dict[int, list[int]] = defaultdict(list)
        for i, pair in enumerate(pairs):
            for row in pair.reference:
                self.pairs_of_row[row].append(i)
        self.top = _Frame("", None, -1, [], [], [])
        self.frame_of_row: list[_Frame] = []
        self.kind_of_row: list[str] = []
        self._frames: dict[tuple[str, str], _Frame] = {}
        self._by_call: dict[str, _Frame] = {"": self.top}
        self._inside: dict[int, list[int]] = {}
        kinds: dict[str, str] = {}
        for row, record in enumerate(_names(reference)):
            site, call, end = record
            frame = self._frame(site, call, row)
            kind = kinds.get(end) or kinds.setdefault(end, End.parse(end).kind)
            (frame.inputs if kind in INPUTS else frame.outputs).append(row)
            self.frame_of_row.append(frame)
            self.kind_of_row.append(kind)

    def _frame(self, site: str, call: str, row: int) -> _Frame:
        frame = self._frames.get((site, call))
        if frame is None:
            known = self._by_call.get(call) if call else None
            frame = known if known is not None and known.site == site else self._entered(site, call, row)
            self._frames[site, call] = frame
        return frame

    def _entered(self, site: str, call: str, row: int) -> _Frame:
        up = self._enclosing(call, row)
        frame = _Frame(site, up, row, [], [], [])
        up.children.append(frame)
        self._by_call.setdefault(call, frame)
        return frame

    def _enclosing(self, call: str, row: int) -> _Frame:
        """The frame around a call; one that has recorded nothing so far is entered as the call tells it."""
        parts = call.split("/")[:-1]
        while parts and parts[-1].startswith("@"):
            parts.pop()
        outer = "/".join(parts)
        if outer not in self._by_call:
            frame = Call.parse(outer).frames[-1]
            self._entered(getattr(frame, "site", ""), outer, row)
        return self._by_call[outer]

    def frame(self, i: int) -> _Frame:
        return self.frame_of_row[self.pairs[i].reference[0]]

    def kind(self, i: int) -> str:
        return self.kind_of_row[self.pairs[i].reference[0]]

    def predecessors(self, i: int) -> list[int]:
        """The pairs before this one that it can come from: a superset of those that it does come from."""
        found: set[int] = set()
        for frame in self.origins(i):
            inside = self.within(frame)
            found.update(inside[: bisect_left(inside, i)])
        return sorted(found)

    def origins(self, i: int) -> list[_Frame]:
        """The calls whose code made a pair: of an output the call itself, of an input or a tap the caller, of a draw none."""
        rows = [row for row in self.pairs[i].reference if self.kind_of_row[row] != "draw"]
        frames = [self.frame_of_row[row] for row in rows]
        return list({id(f): f for f in (f if self.kind(i) == "output" else f.up or self.top for f in frames)}.values())

    def consumers(self, i: int) -> list[int]:
        """The pairs after this output that can come from it directly: inputs of later calls beside it, and its caller's outputs."""
        frame = self.frame(i)
        up = frame.up or self.top
        rows = [row for sibling in up.children if sibling.first > frame.first for row in sibling.inputs or sibling.outputs]
        return sorted(j for row in (*rows, *up.outputs) for j in self.pairs_of_row.get(row, ()) if j > i)

    def level(self, frame: _Frame) -> list[int]:
        """What one frame sees: its own pairs and those of the calls that it makes, in order; unpaired calls are looked through."""
        found = set(self._paired((*frame.inputs, *frame.outputs)))
        stack = list(frame.children)
        while stack:
            child = stack.pop()
            rows = (*child.inputs, *child.outputs)
            found.update(self._paired(rows))
            if not child.outputs or any(row not in self.pairs_of_row for row in rows):
                stack.extend(child.children)
        return sorted(found)

    def outputs_within(self, frame: _Frame) -> Iterable[int]:
        """The outputs of a call, then those of all calls inside it."""
        yield from self._paired(frame.outputs)
        for child in frame.children:
            yield from self.outputs_within(child)

    def within(self, frame: _Frame) -> list[int]:
        """What the code of a call has in hand, in order: its inputs and what the calls that it makes return."""
        key = id(frame)
        if key not in self._inside:
            found = set(self._arriving(frame))
            for child in frame.children:
                found.update(self._returned(child))
            self._inside[key] = sorted(found)
        return self._inside[key]

    def _arriving(self, frame: _Frame) -> list[int]:
        """The inputs of a call; where one is unpaired, or none was recorded, what its caller had in hand."""
        paired = self._paired(frame.inputs)
        if frame.up is not None and (not frame.inputs or any(row not in self.pairs_of_row for row in frame.inputs)):
            around = self._within_before(frame.up, frame.first)
            return [*paired, *around]
        return paired

    def _within_before(self, frame: _Frame, row: int) -> list[int]:
        """What the code of a call had in hand before a row; apart from `_within`, since that asks for what comes later too."""
        found = set(self._arriving(frame))
        for child in frame.children:
            if child.first >= row:
                break
            found.update(self._returned(child))
        end = bisect_left(self.order, row)
        return [i for i in found if i < end]

    def _returned(self, frame: _Frame) -> list[int]:
        """The outputs of a call; where one is unpaired, or none was recorded, its inputs and what the calls inside it return."""
        paired = self._paired(frame.outputs)
        if frame.outputs and all(row in self.pairs_of_row for row in frame.outputs):
            return paired
        inner = [i for child in frame.children for i in self._returned(child)]
        return [*paired, *self._paired(frame.inputs), *inner]

    def _paired(self, rows: Iterable[int]) -> list[int]:
        return [i for row in rows for i in self.pairs_of_row.get(row, ())]


def _names(trace: Trace) -> Iterable[tuple[str, str, str]]:
    """Site, call and end of every row, in order."""
    texts, index = trace.strings, trace.index
    for site, call, end in zip(index["site"].tolist(), index["call"].tolist(), index["end"].tolist(), strict=True):
        yield texts[site], texts[call], texts[end]


# ---------------------------------------------------------------------------------------------------- judging one pair


class _Judge:
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
        self.flow = _Flow(reference, pairs)
        self.read = self.bytes_read = 0
        self._known: dict[int, Comparison] = {}
        self._free: dict[int, Comparison | None] = {}
        self._records: dict[int, tuple[Record, Record]] = {}
        self._proved: dict[int, Bounds] = {}
        self._effects: dict[int, Effect] = {}
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

    def _floor(self, i: int) -> float | None:
        return self.floors.get(self.pairs[i].reference[0])

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
        """Whether an argument of exact values differs at a call of which some tensor differs too: what it does cannot be told."""
        if not dtypes.named(self.records(i)[0].dtype).is_exact and self.flow.kind(i) != "attr":
            return False
        others = (j for row in self.flow.frame(i).inputs for j in self.flow.pairs_of_row.get(row, ()) if self.flow.kind(j) == "input")
        return any(bool(self.judged(j).diverged) for j in others if not dtypes.named(self.records(j)[0].dtype).is_exact)

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


# --------------------------------------------------------------------------------------------------- scan and bisection


def _scan(judge: _Judge, progress: Callable[[int, int], None] | None) -> list[int]:
    """Compares every pair; returns the divergences, inherited ones too."""
    for i in range(len(judge)):
        judge.measure(i)
        if progress is not None:
            progress(i + 1, len(judge))
    return [i for i in range(len(judge)) if judge.is_dirty(i)]


def _introduced(judge: _Judge, dirty: Sequence[int]) -> list[int]:
    """Of all divergences those that nothing they can come from explains. What the port was handed instead explains nothing."""
    carriers = {i for i in (*dirty, *judge.flipped) if not judge.is_replaced(i)}
    raised = {i for i in dirty if judge.has_raised(i)}
    first: dict[int, int] = {}

    def first_inside(frame: _Frame) -> int:
        if id(frame) not in first:
            first[id(frame)] = next((i for i in judge.flow.within(frame) if i in carriers), len(judge))
        return first[id(frame)]

    def is_own(i: int) -> bool:
        """Whether nothing inside raised before a call raised, which may be what it tripped over: the run went on with a stand-in."""
        inside = (j for frame in judge.flow.origins(i) for j in judge.flow.within(frame)) if i in raised else ()
        return not any(j in raised and j < i for j in inside)

    return [i for i in dirty if all(first_inside(frame) >= i for frame in judge.flow.origins(i)) and is_own(i)]


def _bisect(judge: _Judge, probes: int, chance: random.Random) -> tuple[list[int], int]:
    """Reads until the first divergence is known, or everything where there is none; returns it and the number of probes.

    Whether pairs diverged is not monotone along a run, so the answer of a bisection is walked back to a pair that everything it can come
    from agrees with, and then others before it are probed; a hit sends the bisection below it.
    """
    high, probed = _some_dirty(judge, probes, chance), 0
    while high is not None:
        high = _walked_back(judge, _bisected(judge, high))
        places = _probe_places(judge, high, probes, chance)
        probed += len(places)
        hits = [i for i in places if judge.is_dirty(i)]
        if not hits:
            return [high], probed
        high = min(hits)
    return [], probed


def _look_into_stages(judge: _Judge) -> None:
    """Settles for each stage whether what its statistics prove first is a divergence, so that the stage has a verdict for little."""
    seen: set[str] = set()
    for i in range(len(judge)):
        stage = judge.records(i)[0].stage
        if stage not in seen and judge.is_dirty_for_free(i) and judge.is_dirty(i):
            seen.add(stage)


def _certificate(
    judge: _Judge, comparisons: Sequence[Comparison], method: Method, first: int | None, probed: int, seed: int
) -> Certificate:
    def places(effect: Effect) -> tuple[int, ...]:
        return tuple(i for i, comparison in enumerate(comparisons) if comparison.effect == effect)

    before = comparisons if first is None else comparisons[:first]
    return Certificate(
        method,
        judge.rtol,
        judge.atol,
        predecessors=0 if first is None else len(judge.flow.predecessors(first)),
        probes=probed,
        unread_before=sum(comparison.diverged is None for comparison in before),
        by_digest=sum(comparison.how == "digest" for comparison in comparisons),
        by_statistics=sum(comparison.how == "statistics" for comparison in comparisons),
        moved=places("moved"),
        without_effect=places("no effect"),
        sensitive=judge.flipped,
        seed=seed,
    )


def _some_dirty(judge: _Judge, probes: int, chance: random.Random) -> int | None:
    """Some divergence: what statistics prove, else the end of the run, else what probes meet, else what reading everything finds."""
    for i in range(len(judge)):
        if judge.is_dirty_for_free(i) and judge.is_dirty(i):
            return i
    if len(judge) and judge.is_dirty(len(judge) - 1):
        return len(judge) - 1
    hits = [i for i in _probe_places(judge, len(judge), probes, chance) if judge.is_dirty(i)]
    return min(hits) if hits else next((i for i in range(len(judge)) if judge.is_dirty(i)), None)


def _bisected(judge: _Judge, high: int) -> int:
    """Of the pairs up to a divergence one that diverged just after one that did not, among those that only reading can tell."""
    open_places = [i for i in range(high) if judge.is_dirty_for_free(i) is None] + [high]
    low, top = -1, len(open_places) - 1
    while top - low > 1:
        middle = (low + top) // 2
        if judge.is_dirty(open_places[middle]):
            top = middle
        else:
            low = middle
    return open_places[top]


def _descended(judge: _Judge, probes: int, chance: random.Random) -> tuple[list[int], int]:
    """The first divergence found from the outermost calls inwards, one frame at a time, and the number of probes.

    Inside a call whose inputs agree and whose output does not, the next to look into is the first that diverged there. What statistics
    prove to lie before the answer, and probes, send the search there. Where the outermost calls agree, everything is looked at.
    """
    high = _innermost(judge, judge.flow.level(judge.flow.top))
    high = next((i for batch in judge.batches(range(len(judge))) for i in _gathered(judge, batch)), None) if high is None else high
    probed = 0
    while high is not None:
        high = _walked_back(judge, high)
        proved = next((i for i in range(high) if judge.is_dirty_for_free(i) and judge.is_dirty(i)), None)
        if proved is None:
            places = next(iter(judge.batches(_probe_places(judge, high, probes, chance))), [])
            probed += len(places)
            proved = next(iter(_gathered(judge, places)), None)
        if proved is None:
            return [high], probed
        high = proved
    return [], probed


def _innermost(judge: _Judge, places: Sequence[int]) -> int | None:
    """The first of some pairs that diverged, looked for further inside the call that gave it out; None where all agree."""
    found: int | None = None
    while (first := next(iter(_gathered(judge, places)), None)) is not None:
        found = first
        if judge.flow.kind(first) != "output":
            break
        inside = {i for frame in judge.flow.origins(first) for i in judge.flow.level(frame)}
        places = sorted(i for i in inside if i < first)
    return found


def _gathered(judge: _Judge, places: Sequence[int]) -> Iterable[int]:
    """Those of some pairs that are divergences, in order, after all were fetched together."""
    judge.gather(places)
    return (i for i in places if judge.is_dirty(i))


def _walked_back(judge: _Judge, i: int) -> int:
    """From a divergence back to one that everything it can come from agrees with."""
    while True:
        bad = [j for j in judge.flow.predecessors(i) if judge.is_dirty(j)]
        if not bad:
            return i
        i = min(bad)


def _probe_places(judge: _Judge, end: int, probes: int, chance: random.Random) -> list[int]:
    """Places before ``end`` that nobody has looked at: half of them the most suspicious by their statistics, half spread at random."""
    unknown = [i for i in range(end) if judge.is_dirty_for_free(i) is None]
    suspicious = sorted(unknown, key=lambda i: -judge.suspicion(i))[: probes // 2]
    rest = [i for i in unknown if i not in set(suspicious)]
    count = min(probes - len(suspicious), len(rest))
    strata = [rest[k * len(rest) // count : (k + 1) * len(rest) // count] for k in range(count)]
    return sorted([*suspicious, *(chance.choice(stratum) for stratum in strata)])


# ------------------------------------------------------------------------------------------------------------- findings


def _finding(judge: _Judge, i: int) -> Finding:
    """What there is to say of an introduced divergence."""
    comparison = judge.measure(i)
    blame, culprit = _blamed(judge, i)
    metrics = comparison.metrics
    last = next((j for j in range(i - 1, -1, -1) if (known := judge.comparison(j)).diverged is False and known.how), None)
    return Finding(
        place=i,
        blame=blame,
        culprit=culprit,
        introduced=metrics.rel_l2 if metrics is not None else comparison.at_least,
        inherited=_inherited(judge, i),
        last_same=last,
        suspects=_suspects(judge, culprit),
    )


def _blamed(judge: _Judge, i: int) -> tuple[Blame, tuple[str, str]]:
    """Who introduced it: the module whose output it is, or the caller whose code made it; the nearest that is paired."""
    left, right = judge.records(i)
    own, kind = (left.module, right.module), judge.flow.kind(i)
    if judge.has_raised(i) and judge.alignment.port_of.get(left.module) != right.module:
        own = _partners(judge.alignment, left.site) or own
    if kind in ("output", "draw"):
        return ("module" if kind == "output" else "random"), own
    keeper = _keeper(judge, i)
    if keeper is not None:
        return "module", keeper
    frame = judge.flow.frame(i).up
    while frame is not None and frame is not judge.flow.top:
        caller = _partners(judge.alignment, frame.site)
        if caller is not None:
            return "caller", caller
        frame = frame.up
    same_stage = any(judge.records(j)[0].stage == left.stage for j in judge.flow.predecessors(i))
    return ("caller", ("", "")) if same_stage else ("input", own)


def _keeper(judge: _Judge, i: int) -> tuple[str, str] | None:
    """The innermost module that keeps its state in a container that it is handed (a cache): an earlier call left there what is wrong.

    So it is where the same tensor is handed further down in the same container, and the module was called before.
    """
    left, frame = judge.records(i)[0], judge.flow.frame(i)
    if not left.ordinal or left.end.count("[") < 2:
        return None
    found = frame.site
    while (inner := next((child for child in frame.children if _is_handed(judge, child, left.digest)), None)) is not None:
        frame, found = inner, inner.site
    return _partners(judge.alignment, found)


def _is_handed(judge: _Judge, frame: _Frame, digest: Any) -> bool:
    """Whether a module's call is handed the tensor of a digest inside a container."""
    records = (judge.reference.records[row] for row in frame.inputs)
    return module_of(frame.site) == frame.site and any(one.digest == digest and one.end.count("[") > 1 for one in records)


def _partners(alignment: Alignment, site: str) -> tuple[str, str] | None:
    """The module paths of a site and its partner, where it, or its module, has one."""
    partner = alignment.port_of.get(site, alignment.port_of.get(module_of(site)))
    return None if partner is None else (module_of(site), module_of(partner))


def _inherited(judge: _Judge, i: int) -> float | None:
    """The worst relative L2 of what arrives; in a forced run 0 where it was all replaced, else None."""
    arriving = judge.flow.predecessors(i)
    errors = [metrics.rel_l2 if (metrics := judge.judged(j).metrics) is not None else None for j in arriving]
    if judge.mode == "forced":
        return 0.0 if all(error == 0 or judge.is_replaced(j) for error, j in zip(errors, arriving, strict=True)) else None
    known = [error for error in errors if error is not None]
    return max(known, default=0.0) if len(known) == len(errors) else None


def _suspects(judge: _Judge, culprit: tuple[str, str], most: int = 6) -> tuple[tuple[str, str], ...]:
    """Unpaired sites whose nearest paired module is the culprit, and sites there that one side calls less often."""
    alignment, found = judge.alignment, []
    for pair in alignment.unpaired:
        for side, site, path in (("reference", pair.reference, culprit[0]), ("port", pair.port, culprit[1])):
            if site is not None and module_of(alignment.nearest_paired(site, side) or "") == path:  # type: ignore[arg-type]
                found.append((side, site))
    for side, trace, rows, path in (
        ("reference", judge.reference, alignment.unpaired_reference, culprit[0]),
        ("port", judge.port, alignment.unpaired_port, culprit[1]),
    ):
        known = alignment.port_of if side == "reference" else alignment.reference_of
        ends = {(record.site, record.end) for row in rows if (record := trace.records[row]).site in known and record.module == path}
        found.extend((side, f"{site} {end}") for site, end in sorted(ends))
    return tuple(found[:most])


_NUMBER = re.compile(r"(?<![^.])\d+(?![^.:#!])")


def _merged(judge: _Judge, findings: list[Finding]) -> list[Finding]:
    """The findings, those that all siblings of one role share made one, which blames their common caller where it may come from there."""
    groups: dict[tuple[str, str, Blame], list[Finding]] = defaultdict(list)
    for finding in _without_kept(judge, _distinct(judge, findings)):
        record = judge.records(finding.place)[0]
        groups[_NUMBER.sub("*", record.site), record.end, finding.blame].append(finding)
    kept: list[Finding] = []
    for (pattern, end, _), group in groups.items():
        sites = {judge.records(finding.place)[0].site for finding in group}
        if len(sites) > 1 and sites == _siblings(judge, pattern, end):
            kept.append(_lifted(judge, group, pattern, len(sites)))
        else:
            kept.extend(group)
    return sorted(kept, key=lambda finding: finding.place)


def _distinct(judge: _Judge, findings: Iterable[Finding]) -> list[Finding]:
    """The findings without those that tell an earlier one again.

    That is: another end of the same call, the same tensor handed to another call, and the same end at a later call, which is counted.
    """
    seen: dict[tuple[Any, ...], int] = {}
    kept: list[Finding] = []
    for finding in findings:
        left, right = judge.records(finding.place)
        again = (left.site, left.end, finding.blame)
        keys = (again, (left.site, left.call, finding.blame), (finding.culprit, finding.blame, left.digest, right.digest))
        known = next((seen[key] for key in keys if key in seen), None)
        if known is None:
            known = len(kept)
            kept.append(finding)
        elif seen.get(again) == known:
            kept[known] = replace(kept[known], calls=kept[known].calls + 1)
        seen.update((key, known) for key in keys if key not in seen)
    return kept


def _without_kept(judge: _Judge, findings: Sequence[Finding]) -> list[Finding]:
    """The findings without those in a module's state where the module was found to be wrong already: that is how its state went wrong."""
    kept: list[Finding] = []
    for finding in findings:
        is_state = finding.blame == "module" and judge.flow.kind(finding.place) in INPUTS
        if not (is_state and any(is_below(one.culprit[0], finding.culprit[0]) for one in kept)):
            kept.append(finding)
    return kept


def _sharing(judge: _Judge, first: int) -> list[int]:
    """After a bisection: where all siblings of one role introduced what the first one did; nothing where one of them did not."""
    record = judge.records(first)[0]
    pattern = _NUMBER.sub("*", record.site)
    places: dict[str, list[int]] = defaultdict(list)
    for i in range(len(judge)):
        other = judge.records(i)[0]
        if other.site != record.site and other.end == record.end and _NUMBER.sub("*", other.site) == pattern:
            places[other.site].append(i)
    wanted = {j for calls in places.values() for i in calls for j in (i, *judge.flow.predecessors(i))} if judge.again is not None else set()
    judge.gather(next(iter(judge.batches(sorted(wanted))), []))
    found = []
    for calls in places.values():
        place = next((i for i in calls if judge.is_dirty(i) and not any(map(judge.is_dirty, judge.flow.predecessors(i)))), None)
        if place is None:
            return []
        found.append(place)
    return found


def _siblings(judge: _Judge, pattern: str, end: str) -> set[str]:
    """The sites of one role at which this end is compared."""
    records = (judge.records(i)[0] for i in range(len(judge)))
    return {record.site for record in records if record.end == end and _NUMBER.sub("*", record.site) == pattern}


def _lifted(judge: _Judge, group: list[Finding], pattern: str, count: int) -> Finding:
    """One finding for all, charged to the common caller where what is wrong comes from there."""
    first = min(group, key=lambda finding: finding.place)
    shared = replace(first, shared_by=count, pattern=pattern)
    if not _comes_from_above(judge, group, pattern):
        return shared
    common = _common_prefix([finding.culprit[0].split(".") for finding in group])
    frame = judge.flow.frame(first.place).up
    while frame is not None and frame is not judge.flow.top:
        caller = _partners(judge.alignment, frame.site)
        if caller is not None and is_below(common, caller[0]):
            return replace(shared, culprit=caller)
        frame = frame.up
    return replace(shared, culprit=("", ""))


def _comes_from_above(judge: _Judge, group: list[Finding], pattern: str) -> bool:
    """Whether all siblings were handed it: the very same tensor, or a mask (the masks of attention come from its callers)."""
    records = [judge.records(finding.place)[0] for finding in group]
    kind = judge.flow.kind(group[0].place)
    if kind == "input":
        return len({record.digest for record in records}) == 1
    if kind == "attr":
        return "causal" in records[0].end or "mask" in records[0].end
    return re.search(r"att(entio)?n", re.split(r"[.!]", pattern)[-1], re.IGNORECASE) is not None


def _common_prefix(paths: list[list[str]]) -> str:
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
