"""Reads from two traces what the detectors are shown of a divergence: one `Scene` a finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from tracediff.alignment import Alignment
from tracediff.alignment.axes import side_by_side
from tracediff.causes.in_hand import InHand
from tracediff.causes.operation_edits.products import MULTIPLYING
from tracediff.causes.program import Program, program_of
from tracediff.causes.scene import CulpritSide, Scene
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.caveats import trains_otherwise
from tracediff.dtype import Array
from tracediff.locate import Comparison, Finding, Located
from tracediff.site import is_below, module_of
from tracediff.trace import Record, Trace
from tracediff.trace.calls import TOP, CallTree
from tracediff.trace.operations import Graph, readable_graph, rows_at

_WIDE = 8
"""Bytes of a float64."""


class _HandReader:
    """Reads from the reference's trace what its code had in hand; ``types``: class names by module path."""

    def __init__(self, alignment: Alignment, reference: Trace, port: Trace, types: Mapping[str, str]) -> None:
        self._alignment, self._reference, self._port, self._types = alignment, reference, port, types
        self._calls: CallTree = reference.calls
        self._paired = alignment.port_of.keys()
        self._times: dict[int, Counter[str]] = {}

    def in_hand(self, call: int, record: Record, *, has_own: bool) -> Iterator[InHand]:
        """What the code of a call had in hand before a record, in order: its inputs, and what the latest calls that it made returned."""
        calls, records = self._calls, self._reference.records
        own_call = calls.of_row[record.row]
        handed = {row for row in calls.inputs(call) if row < record.row}
        handed |= set(self._carried(call, record))
        made = sorted(row for row in self._made(call) if row < record.row and (has_own or calls.of_row[row] != own_call))
        for row in sorted([*handed, *made[-THRESHOLDS.latest_in_hand :]]):
            if _is_readable(records[row]):
                yield self._read(records[row], is_input=row in handed)

    def beside(self, record: Record) -> Iterator[InHand]:
        """The other tensors that the record's call was handed."""
        calls = self._calls
        for row in calls.inputs(int(calls.of_row[record.row])):
            one = self._reference.records[row]
            if row != record.row and calls.kinds[row] == "input" and _is_readable(one):
                yield self._read(one, is_input=True)

    def seen(self, row: int) -> InHand | None:
        """What is recorded in a row; None where that is no tensor that can be read."""
        record = self._reference.records[row]
        return self._read(record, is_input=record.end.startswith("input")) if _is_readable(record) else None

    def _made(self, call: int) -> Iterator[int]:
        """The rows of what the calls inside a call returned; for an unpaired call also of what was made inside it."""
        for child in self._calls.children[call]:
            yield from self._calls.outputs(child)
            if not self._calls.is_recorded(child) or self._calls.site_of(child) not in self._paired:
                yield from self._made(child)

    def _carried(self, call: int, record: Record) -> Iterator[int]:
        """The rows of what a loop carried from turn to turn: for each site called several times, the inputs of its latest call."""
        calls, own_call = self._calls, self._calls.of_row[record.row]
        latest: dict[str, list[int]] = {}
        for child in filter(calls.is_recorded, calls.children[call]):
            site = calls.site_of(child)
            if calls.first[child] < record.row and child != own_call and self._times_called(call, site) > 1:
                latest[site] = [row for row in calls.inputs(child) if calls.kinds[row] == "input"]
        yield from (row for rows in latest.values() for row in rows)

    def _times_called(self, call: int, site: str) -> int:
        """How often the code of a call of the reference calls a site."""
        if call not in self._times:
            recorded = filter(self._calls.is_recorded, self._calls.children[call])
            self._times[call] = Counter(map(self._calls.site_of, recorded))
        return self._times[call][site]

    def _read(self, record: Record, *, is_input: bool) -> InHand:
        site = record.site or "the root"
        name = f"the input {record.end.removeprefix('input')} of {site}" if is_input else f"the output of {site}"
        port = self._port_rows.get(record.row)
        dtypes = record.dtype, record.dtype if port is None else self._port.records[port].dtype
        caller = self._calls.outer[self._calls.of_row[record.row]]
        calls = 1 if is_input else self._times_called(caller, record.site)
        taken = any(self._calls.outer[self._calls.of_row[row]] == caller for row in self._calls.takers.get(record.row, ()))
        return InHand(
            name, record.end, self._types.get(module_of(record.site), ""), is_input, _widened(record.read()), dtypes, calls, taken
        )

    @cached_property
    def _port_rows(self) -> dict[int, int]:
        return {row: pair.port[0] for pair in self._alignment.records for row in pair.reference}


class SceneReader:
    """Reads the scenes of findings from two aligned traces.

    ``wrong_weights`` gives, for the error that a finding introduced (relative L2), the reference's parameters that the port has so wrong.
    """

    def __init__(
        self,
        located: Located,
        alignment: Alignment,
        reference: Trace,
        port: Trace,
        wrong_weights: Callable[[float], frozenset[str]] = lambda _: frozenset(),
    ) -> None:
        self._located, self._alignment, self._wrong_weights = located, alignment, wrong_weights
        self.traces = (reference, port)
        self._call_trees = (reference.calls, port.calls)
        self._balances: dict[str, frozenset[str]] = {}

    def scene(self, finding: Finding) -> Scene:
        """What the detectors are shown of a finding: its pair, or where that is a scalar argument what the call made with it returned."""
        comparison = self._shown(self._located.comparisons[finding.place])
        left, right = (trace.records[rows[0]] for trace, rows in zip(self.traces, _rows(comparison), strict=True))
        ours, theirs = self._values(comparison)
        if finding.blame == "run":  # the code outside of all calls, which makes tensors as a caller's code does
            finding = replace(finding, blame="caller")
        elif left.end.startswith("output"):  # made from what the call was handed, also where a caller handed it too little
            finding = replace(finding, blame="module")
        frames = tuple(self._frame(side, record, finding) for side, record in enumerate((left, right)))
        return Scene(
            site=left.site,
            end=left.end,
            blame=finding.blame,
            reference=ours,
            port=theirs,
            limit=comparison.judgement.limit if comparison.judgement is not None else 0.0,
            in_hand=tuple(self._hand.in_hand(frames[0], left, has_own=finding.blame == "module")),
            beside=tuple(self._hand.beside(left)) if finding.blame == "caller" else (),
            sides=(
                self._culprit_side(0, finding.culprit[0], frames[0], left),
                self._culprit_side(1, finding.culprit[1], frames[1], right),
            ),
            types=self._types,
            shapes=(left.shape, right.shape),
            dtypes=(left.dtype, right.dtype),
            run_dtypes=tuple(str(trace.meta.get("dtype")) for trace in self.traces),
            ordinal=left.ordinal,
            port_repeats=self.traces[1].meta.get("repeats"),
            has_frames=self._correspond(*frames),
            balanced=self._balanced(left.stage),
            paired=self._paired,
            altered=self._altered,
            chained=self._chained(frames, left.stage),
            program=self._program(comparison, left),
            wrong_weights=self._wrong_weights(finding.introduced),
            multiplies=self._multiplies,
        )

    def maker(self, nodes: Sequence[int]) -> str | None:
        """The reference's module in whose calls some of its operations were made; None where it has a partner, or there are several."""
        graph = self._graph
        made = [node for node in nodes if graph is not None and not graph.nodes[node].name.startswith("@")]
        if graph is None or not made:
            return None
        inside = {"" if call is None else module_of(call[0]) for call in map(graph.call_of, made)}
        path = inside.pop() if len(inside) == 1 else ""
        return path if path and path not in self._alignment.port_of else None

    def _shown(self, comparison: Comparison) -> Comparison:
        """A comparison, or in the place of a scalar argument's that of the first tensor that its call returned, where there is one."""
        record = self.traces[0].records[comparison.pair.reference[0]]
        if not record.end.startswith("attr["):
            return comparison
        calls = self._call_trees[0]
        returned = set(calls.outputs(int(calls.of_row[record.row])))
        return next((one for one in self._located.comparisons if returned.issuperset(one.pair.reference)), comparison)

    def _program(self, comparison: Comparison, record: Record) -> Program | None:
        """The operations that made the reference's tensor, back to what the port has as well; None where they are not known."""
        graph = self._graph
        target = None if graph is None else graph.at.get((record.site, record.ordinal, record.end))
        if graph is None or target is None or len(comparison.pair.reference) != 1:
            return None
        hand, names, kinds, row_at = self._hand, graph.names, self._call_trees[0].kinds, rows_at(self.traces[0])

        def leaf_of(node: int, must: bool) -> InHand | None:
            rows = (row_at.get(place, record.row) for place in names.get(node, ()))
            earlier = sorted(row for row in rows if row < record.row and (must or row in self._in_common))
            made = [row for row in earlier if kinds[row] == "output"]  # the latest is the outermost call's
            return hand.seen((made or earlier[::-1])[-1]) if earlier else None

        return program_of(graph, target, leaf_of)

    def _values(self, comparison: Comparison) -> tuple[Array | None, Array | None]:
        """Both tensors of a pair in the reference's layout, floats widened; None where no layout reconciles them, or not all is stored."""
        layout = comparison.pair.layout
        sides = [[trace.records[row] for row in rows] for trace, rows in zip(self.traces, _rows(comparison), strict=True)]
        if layout is None or not all(_is_readable(record) for records in sides for record in records):
            return None, None
        reference, port = side_by_side(layout, *sides)
        return _widened(reference), _widened(port)

    def _frame(self, side: int, record: Record, finding: Finding) -> int:
        """The culprit's call: the record's own where its output is wrong, else the one around it."""
        calls = self._call_trees[side]
        call = int(calls.of_row[record.row])
        if finding.blame == "module":
            return call
        around = (outer for outer in calls.above(call) if module_of(calls.site_of(outer)) == finding.culprit[side])
        return next(around, TOP)

    def _correspond(self, ours: int, theirs: int) -> bool:
        """Whether two calls of the culprit are the same one of each side, or both are the code outside of all calls.

        A call whose work a larger one of the port does is not: the larger one calls what others call in the reference.
        """
        reference, port = self._call_trees
        if ours != TOP and theirs != TOP:
            sites = reference.site_of(ours), port.site_of(theirs)
            if sites[0] not in self._alignment.port_of and sites[1] in self._alignment.reference_of:
                return False
        if reference.is_recorded(ours) and port.is_recorded(theirs):
            return int(reference.ordinal[ours]) == int(port.ordinal[theirs])
        return (ours == TOP) == (theirs == TOP)

    def _balanced(self, stage: str) -> frozenset[str]:
        """The reference's sites that both runs call equally often in a stage, whoever calls them."""
        if stage not in self._balances:
            ours, theirs = (self._calls_in(side, stage) for side in (0, 1))
            pairs = self._alignment.port_of.items()
            self._balances[stage] = frozenset(site for site, partner in pairs if ours[site] == theirs[partner] > 0)
        return self._balances[stage]

    def _calls_in(self, side: int, stage: str) -> Counter[str]:
        """How often each site is called in a stage."""
        calls, records = self._call_trees[side], self.traces[side].records
        first = ((call, int(calls.first[call])) for call in range(len(calls.first)))
        return Counter(calls.site_of(call) for call, row in first if records[row].stage == stage)

    def _culprit_side(self, side: int, path: str, call: int, record: Record) -> CulpritSide:
        module = self._modules[side].get(path, {})
        trains = self._training_module(side, path)
        made = list(self._calls(side, call, record.stage))
        return CulpritSide(
            path,
            type=str(module.get("type", "")),
            is_training=trains is not None,
            trains=trains or "",
            attributes={**module.get("attrs", {}), **module.get("attributes", {})},
            calls=tuple(name for name, _ in made),
            before=tuple(name for name, row in made if row < record.row),
        )

    def trains(self, side: int, path: str) -> bool:
        """Whether a module, or one inside it, is in training mode on a side and works otherwise there."""
        return self._training_module(side, path) is not None

    def _training_module(self, side: int, path: str) -> str | None:
        """The first module at or below a path that is in training mode and works otherwise there (drops values, takes statistics)."""
        below = (module for name, module in self._modules[side].items() if is_below(name, path))
        return next((module["path"] for module in below if trains_otherwise(module)), None)

    def _calls(self, side: int, call: int, stage: str) -> Iterable[tuple[str, int]]:
        """The modules called inside a call, by the reference's names, with their first rows; in an unpaired call's place those inside it.

        Outside of all calls only modules of one stage count: the culprit's code did not make the run's other calls.
        """
        known, calls = self._canonical[side], self._call_trees[side]
        for child in calls.children[call]:
            is_recorded, site = calls.is_recorded(child), calls.site_of(child)
            first = int(calls.first[child]) if is_recorded else -1
            if call == TOP and is_recorded and self.traces[side].records[first].stage != stage:
                continue
            if not is_recorded or site not in known:
                yield from self._calls(side, child, stage)
            elif site == module_of(site) and known[site]:
                yield known[site], first

    def _chained(self, frames: tuple[int, ...], stage: str) -> frozenset[tuple[str, str]]:
        """Of the calls inside two frames that the sides make in another order those pairs of which a side hands on one's result."""
        made = [dict(self._calls(side, frame, stage)) for side, frame in enumerate(frames)]
        ours, theirs = ([name for name in one if name in other and one[name] >= 0] for one, other in (made, made[::-1]))
        place = {name: number for number, name in enumerate(theirs)}
        turned = [(one, other) for one, other in combinations(ours, 2) if place.get(one, 0) > place.get(other, 0)]
        sides = zip(self._call_trees, made, (turned, [pair[::-1] for pair in turned]), strict=True)
        return frozenset(pair for calls, rows, pairs in sides for pair in pairs if _is_handed_on(calls, *(rows[name] for name in pair)))

    @cached_property
    def _canonical(self) -> tuple[dict[str, str], dict[str, str]]:
        """For each side the reference's name of a paired site; "" for all but the first of several sites with one partner."""
        port_of, reference_of = self._alignment.port_of, self._alignment.reference_of
        ours: dict[str, str] = {}
        theirs: dict[str, str] = {}
        for site, partner in port_of.items():
            ours[site] = site if reference_of.get(partner, site) == site else ""
        for site, partner in reference_of.items():
            theirs[site] = partner if port_of.get(partner, site) == site else ""
        return ours, theirs

    @cached_property
    def _graph(self) -> Graph | None:
        return readable_graph(self.traces[0])

    @cached_property
    def _in_common(self) -> frozenset[int]:
        """The rows of the reference whose tensors the port goes on with too: what agrees and, in a forced run, what it was handed."""
        kinds, is_forced = self._call_trees[0].kinds, self.traces[1].meta.get("mode_run") == "forced"
        return frozenset(
            row
            for one in self._located.comparisons
            for row in one.pair.reference
            if (one.diverged is False or not one.how) or (is_forced and one.how == "forced" and kinds[row] != "input")
        )

    @cached_property
    def _altered(self) -> frozenset[str]:
        """The reference's modules of which a record diverged, or was not compared."""
        records = self.traces[0].records
        wrong = (one for one in self._located.comparisons if one.diverged is not False and one.how)
        return frozenset(module_of(records[row].site) for one in wrong for row in one.pair.reference)

    @cached_property
    def _hand(self) -> _HandReader:
        return _HandReader(self._alignment, *self.traces, self._types)

    @cached_property
    def _modules(self) -> tuple[dict[str, Mapping[str, Any]], ...]:
        return tuple({module["path"]: module for module in trace.meta.get("modules") or ()} for trace in self.traces)

    @cached_property
    def _types(self) -> dict[str, str]:
        return {path: str(module.get("type", "")) for path, module in self._modules[0].items()}

    @cached_property
    def _multiplies(self) -> dict[str, bool]:
        """Of the paired modules whose operations are known whether their own code multiplies."""
        found: dict[str, bool] = {}
        for site, node in () if self._graph is None else self._graph.made_in():
            path = module_of(site)
            if path in self._paired and not node.name.startswith("@"):
                found[path] = found.get(path, False) or node.name in MULTIPLYING
        return found

    @cached_property
    def _paired(self) -> frozenset[str]:
        return frozenset(self._alignment.port_of)


def _is_handed_on(calls: CallTree, earlier: int, later: int) -> bool:
    """Whether a call, known by one of its rows, may be handed what an earlier call returned, or what was made of it."""
    return calls.may_reach(calls.outputs(int(calls.of_row[earlier])), set(calls.inputs(int(calls.of_row[later]))))


def _widened(values: Array) -> Array:
    """Floats as float64; other dtypes as they are."""
    return values if values.dtype.kind in "biuc" else values.astype(np.float64)


def _rows(comparison: Comparison) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return comparison.pair.reference, comparison.pair.port


def _is_readable(record: Record) -> bool:
    return record.stored and record.dtype != "text" and record.nbytes <= _WIDE * THRESHOLDS.largest_tensor
