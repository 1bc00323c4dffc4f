"""The calls of the reference as a tree: what each pair can come from, and what can consume it."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tracediff.alignment import RecordPair
from tracediff.locate.result import INPUTS
from tracediff.site import Call, End, around
from tracediff.trace import Trace


@dataclass(slots=True, eq=False)
class Frame:
    """One call of the reference's run: its rows, and the calls made inside it, in order."""

    site: str
    up: Frame | None
    first: int
    inputs: list[int]
    outputs: list[int]
    children: list[Frame]


class Flow:
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
        self.top = Frame("", None, -1, [], [], [])
        self.frame_of_row: list[Frame] = []
        self.kind_of_row: list[str] = []
        self._frames: dict[tuple[str, str], Frame] = {}
        self._by_call: dict[str, Frame] = {"": self.top}
        self._inside: dict[int, list[int]] = {}
        kinds: dict[str, str] = {}
        for row, record in enumerate(_names(reference)):
            site, call, end = record
            frame = self._frame(site, call, row)
            kind = kinds.get(end) or kinds.setdefault(end, End.parse(end).kind)
            (frame.inputs if kind in INPUTS else frame.outputs).append(row)
            self.frame_of_row.append(frame)
            self.kind_of_row.append(kind)

    def _frame(self, site: str, call: str, row: int) -> Frame:
        frame = self._frames.get((site, call))
        if frame is None:
            known = self._by_call.get(call) if call else None
            frame = known if known is not None and known.site == site else self._entered(site, call, row)
            self._frames[site, call] = frame
        return frame

    def _entered(self, site: str, call: str, row: int) -> Frame:
        up = self._enclosing(call, row)
        frame = Frame(site, up, row, [], [], [])
        up.children.append(frame)
        self._by_call.setdefault(call, frame)
        return frame

    def _enclosing(self, call: str, row: int) -> Frame:
        """The frame around a call; one that has recorded nothing so far is entered as the call tells it."""
        outer = around(call)
        if outer not in self._by_call:
            frame = Call.parse(outer).frames[-1]
            self._entered(getattr(frame, "site", ""), outer, row)
        return self._by_call[outer]

    def frame(self, i: int) -> Frame:
        return self.frame_of_row[self.pairs[i].reference[0]]

    def kind(self, i: int) -> str:
        return self.kind_of_row[self.pairs[i].reference[0]]

    def predecessors(self, i: int) -> list[int]:
        """The pairs before this one that it can come from: a superset of those that it does come from."""
        found: set[int] = set()
        for frame in self.origins(i):
            inside = self.within(frame)
            found.update(inside[: bisect_left(inside, i)])
        if self.kind(i) == "output":
            found.update(j for row in self.pairs[i].reference for j in self.pairs_of_row[row] if j < i and self._is_whole(i, j))
        return sorted(found)

    def _is_whole(self, *places: int) -> bool:
        """Whether pairs are of whole tensors: a wrapper's output stands beside the same one as the output of what it wraps."""
        layouts = [self.pairs[i].layout for i in places]
        return not any(layout is not None and (layout.part or layout.part_reference) for layout in layouts)

    def origins(self, i: int) -> list[Frame]:
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

    def level(self, frame: Frame) -> list[int]:
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

    def outputs_within(self, frame: Frame) -> Iterable[int]:
        """The outputs of a call, then those of all calls inside it."""
        yield from self._paired(frame.outputs)
        for child in frame.children:
            yield from self.outputs_within(child)

    def within(self, frame: Frame) -> list[int]:
        """What the code of a call has in hand, in order: its inputs and what the calls that it makes return."""
        key = id(frame)
        if key not in self._inside:
            found = set(self._arriving(frame))
            for child in frame.children:
                found.update(self._returned(child))
            self._inside[key] = sorted(found)
        return self._inside[key]

    def _arriving(self, frame: Frame) -> list[int]:
        """The inputs of a call; where one is unpaired, or none was recorded, what its caller had in hand."""
        paired = self._paired(frame.inputs)
        if frame.up is not None and (not frame.inputs or any(row not in self.pairs_of_row for row in frame.inputs)):
            before = self._within_before(frame.up, frame.first)
            return [*paired, *before]
        return paired

    def _within_before(self, frame: Frame, row: int) -> list[int]:
        """What the code of a call had in hand before a row; apart from `_within`, since that asks for what comes later too."""
        found = set(self._arriving(frame))
        for child in frame.children:
            if child.first >= row:
                break
            found.update(self._returned(child))
        end = bisect_left(self.order, row)
        return [i for i in found if i < end]

    def _returned(self, frame: Frame) -> list[int]:
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
