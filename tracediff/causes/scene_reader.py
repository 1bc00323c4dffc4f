"""Reads from two traces what the detectors are shown of a divergence: one `Scene` a finding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from tracediff.alignment import Alignment
from tracediff.alignment.axes import side_by_side
from tracediff.causes.scene import CulpritSide, InHand, Scene
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.locate import INPUTS, Comparison, Finding, Located
from tracediff.site import End, around, is_below, module_of
from tracediff.trace import Record, Trace

_TRAIN_OTHERWISE = ("dropout", "batchnorm", "instancenorm")
"""Modules with these words in their class names work otherwise in training mode."""
_WIDE = 8
"""Bytes of a float64."""


class Frames:
    """The calls of one trace: which rows each has, and which calls were made inside it, in order."""

    def __init__(self, trace: Trace) -> None:
        self.rows: dict[str, list[int]] = defaultdict(list)
        self.inside: dict[str, list[str]] = defaultdict(list)
        self._sites: dict[str, list[str]] = {}
        texts = trace.strings
        for row, call in enumerate(trace.index["call"].tolist()):
            self.rows[texts[call]].append(row)
        for call in list(self.rows):
            self._enter(call)

    def sites_inside(self, call: str, trace: Trace) -> list[str]:
        """The sites of the calls made inside a call, in order."""
        if call not in self._sites:
            self._sites[call] = [trace.records[rows[0]].site for child in self.inside.get(call, ()) if (rows := self.rows.get(child))]
        return self._sites[call]

    def _enter(self, call: str) -> None:
        outer = around(call)
        if call and call not in self.inside[outer]:
            self.inside[outer].append(call)
            if outer not in self.rows:
                self._enter(outer)


class _HandReader:
    """Reads from the reference's trace what its code had in hand; ``types``: class names by module path."""

    def __init__(self, alignment: Alignment, reference: Trace, port: Trace, frames: Frames, types: Mapping[str, str]) -> None:
        self._alignment, self._reference, self._port = alignment, reference, port
        self._frames, self._types = frames, types
        self._paired = alignment.port_of.keys()

    def in_hand(self, call: str, record: Record, *, has_own: bool) -> Iterator[InHand]:
        """What the code of a call had in hand before a record, in order: its inputs, and what the latest calls that it made returned."""
        frames, records = self._frames, self._reference.records
        own = frames.rows.get(call, ()) if call else ()
        handed = {row for row in own if row < record.row and _kind(records[row]) in INPUTS}
        handed |= set(self._carried(call, record))
        made = sorted(row for row in self._made(call) if row < record.row and (has_own or records[row].call != record.call))
        for row in sorted([*handed, *made[-THRESHOLDS.latest_in_hand :]]):
            if _is_readable(records[row]):
                yield self._read(records[row], is_input=row in handed)

    def beside(self, record: Record) -> Iterator[InHand]:
        """The other tensors that the record's call was handed."""
        for row in self._frames.rows.get(record.call, ()):
            one = self._reference.records[row]
            if row != record.row and _kind(one) == "input" and _is_readable(one):
                yield self._read(one, is_input=True)

    def _made(self, call: str) -> Iterator[int]:
        """The rows of what the calls inside a call returned; for an unpaired call also of what was made inside it."""
        frames, records = self._frames, self._reference.records
        for child in frames.inside.get(call, ()):
            rows = frames.rows.get(child, ())
            yield from (row for row in rows if _kind(records[row]) not in INPUTS)
            if not rows or records[rows[0]].site not in self._paired:
                yield from self._made(child)

    def _carried(self, call: str, record: Record) -> Iterator[int]:
        """The rows of what a loop carried from turn to turn: for each site called several times, the inputs of its latest call."""
        frames, records = self._frames, self._reference.records
        sites = frames.sites_inside(call, self._reference)
        latest: dict[str, tuple[int, ...]] = {}
        for child in frames.inside.get(call, ()):
            rows = frames.rows.get(child, ())
            if rows and rows[0] < record.row and child != record.call and sites.count(records[rows[0]].site) > 1:
                latest[records[rows[0]].site] = tuple(row for row in rows if _kind(records[row]) == "input")
        yield from (row for rows in latest.values() for row in rows)

    def _read(self, record: Record, *, is_input: bool) -> InHand:
        name = f"the input {record.end.removeprefix('input')} of {record.site}" if is_input else f"the output of {record.site}"
        port = self._port_rows.get(record.row)
        dtypes = record.dtype, record.dtype if port is None else self._port.records[port].dtype
        beside = self._frames.sites_inside(around(record.call), self._reference)
        calls = 1 if is_input else beside.count(record.site)
        return InHand(name, record.end, self._types.get(module_of(record.site), ""), is_input, _widened(record.read()), dtypes, calls)

    @cached_property
    def _port_rows(self) -> dict[int, int]:
        return {row: pair.port[0] for pair in self._alignment.records for row in pair.reference}


class SceneReader:
    """Reads the scenes of findings from two aligned traces."""

    def __init__(self, located: Located, alignment: Alignment, reference: Trace, port: Trace) -> None:
        self._located, self._alignment = located, alignment
        self._traces = (reference, port)

    def scene(self, finding: Finding) -> Scene:
        """What the detectors are shown of a finding."""
        comparison = self._located.comparisons[finding.place]
        left, right = (trace.records[rows[0]] for trace, rows in zip(self._traces, _rows(comparison), strict=True))
        ours, theirs = self._values(comparison)
        if left.end.startswith("output"):  # made from what the call was handed, also where a caller handed it too little
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
            run_dtypes=tuple(str(trace.meta.get("dtype")) for trace in self._traces),
            ordinal=left.ordinal,
            port_repeats=self._traces[1].meta.get("repeats"),
            paired=self._paired,
        )

    def _values(self, comparison: Comparison) -> tuple[Array | None, Array | None]:
        """Both tensors of a pair in the reference's layout, floats widened; None where no layout reconciles them, or not all is stored."""
        layout = comparison.pair.layout
        sides = [[trace.records[row] for row in rows] for trace, rows in zip(self._traces, _rows(comparison), strict=True)]
        if layout is None or not all(_is_readable(record) for records in sides for record in records):
            return None, None
        reference, port = side_by_side(layout, *sides)
        return _widened(reference), _widened(port)

    def _frame(self, side: int, record: Record, finding: Finding) -> str:
        """The culprit's call: the record's own where its output is wrong, else the one around it."""
        if finding.blame == "module":
            return record.call
        call = around(record.call)
        while call and self._module(side, call) != finding.culprit[side]:
            call = around(call)
        return call

    def _module(self, side: int, call: str) -> str:
        rows = self._frames[side].rows.get(call)
        return module_of(self._traces[side].records[rows[0]].site) if rows else ""

    def _culprit_side(self, side: int, path: str, call: str, record: Record) -> CulpritSide:
        module = self._modules[side].get(path, {})
        trains = self._trains(side, path)
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

    def _trains(self, side: int, path: str) -> str | None:
        """The first module at or below a path that is in training mode and works otherwise there (drops values, takes statistics)."""
        below = (module for name, module in self._modules[side].items() if is_below(name, path) and module.get("training"))
        return next((module["path"] for module in below if any(word in str(module.get("type")).lower() for word in _TRAIN_OTHERWISE)), None)

    def _calls(self, side: int, call: str, stage: str) -> Iterable[tuple[str, int]]:
        """The modules called inside a call, by the reference's names, with their first rows; in an unpaired call's place those inside it.

        Outside of all calls only modules of one stage count: the culprit's code did not make the run's other calls.
        """
        known = self._canonical[side]
        for child in self._frames[side].inside.get(call, ()):
            rows = self._frames[side].rows.get(child)
            site = self._traces[side].records[rows[0]].site if rows else ""
            if not call and rows and self._traces[side].records[rows[0]].stage != stage:
                continue
            if site not in known:
                yield from self._calls(side, child, stage)
            elif rows and site == module_of(site) and known[site]:
                yield known[site], rows[0]

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
    def _frames(self) -> tuple[Frames, Frames]:
        return Frames(self._traces[0]), Frames(self._traces[1])

    @cached_property
    def _hand(self) -> _HandReader:
        return _HandReader(self._alignment, *self._traces, self._frames[0], self._types)

    @cached_property
    def _modules(self) -> tuple[dict[str, Mapping[str, Any]], ...]:
        return tuple({module["path"]: module for module in trace.meta.get("modules") or ()} for trace in self._traces)

    @cached_property
    def _types(self) -> dict[str, str]:
        return {path: str(module.get("type", "")) for path, module in self._modules[0].items()}

    @cached_property
    def _paired(self) -> frozenset[str]:
        return frozenset(self._alignment.port_of)


def _widened(values: Array) -> Array:
    """Floats as float64; other dtypes as they are."""
    return values if values.dtype.kind in "biuc" else values.astype(np.float64)


def _rows(comparison: Comparison) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return comparison.pair.reference, comparison.pair.port


def _kind(record: Record) -> str:
    return End.parse(record.end).kind


def _is_readable(record: Record) -> bool:
    return record.stored and record.dtype != "text" and record.nbytes <= _WIDE * THRESHOLDS.largest_tensor
