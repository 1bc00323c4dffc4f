"""What each pair can come from, and what can consume it: the data flow of the pairs, by the calls of the reference."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from tracediff.alignment import RecordPair
from tracediff.site import RETURNED
from tracediff.trace import Trace
from tracediff.trace.calls import TOP


class PairFlow:
    """The data flow of some pairs. ``calls`` are the reference's, known by their numbers in `CallTree`.

    ``pairs`` are in execution order, the order of their last rows in the reference; only `recorded_consumers` asks for no order.
    ``returned``: the pairs of what either run returned.
    """

    def __init__(self, reference: Trace, port: Trace, pairs: Sequence[RecordPair]) -> None:
        self.pairs, self.calls, self.port_calls = pairs, reference.calls, port.calls
        self.pairs_of_row: dict[int, list[int]] = defaultdict(list)
        self.pairs_of_port_row: dict[int, list[int]] = defaultdict(list)
        for i, pair in enumerate(pairs):
            for row in pair.reference:
                self.pairs_of_row[row].append(i)
            for row in pair.port:
                self.pairs_of_port_row[row].append(i)
        self._sources = _Sources(self)
        given = [(self.pairs_of_row, reference.returned), (self.pairs_of_port_row, port.returned)]
        self.returned: list[int] = sorted({i for pairs_of_row, rows in given for row in rows or () for i in pairs_of_row.get(row, ())})

    def call(self, i: int) -> int:
        """The reference's call that a pair belongs to."""
        return int(self.calls.of_row[self.pairs[i].reference[0]])

    def kind(self, i: int) -> str:
        """The kind of a pair's end in the reference: "input", "output" and so on."""
        return self.calls.kinds[self.pairs[i].reference[0]]

    def is_paired(self, row: int) -> bool:
        """Whether a row of the reference belongs to a pair."""
        return row in self.pairs_of_row

    def pairs_at(self, rows: Iterable[int]) -> list[int]:
        """The pairs of some rows of the reference, row by row."""
        return [i for row in rows for i in self.pairs_of_row.get(row, ())]

    def predecessors(self, i: int) -> list[int]:
        """The pairs before this pair that it can come from: a superset of those that it does come from."""
        found: set[int] = set()
        for call in self.origins(i):
            available = self.available(call)
            found.update(available[: bisect_left(available, i)])
        if self.kind(i) == "output":
            found.update(j for j in self.pairs_at(self.pairs[i].reference) if j < i and self._are_whole(i, j))
        return sorted(found)

    def available(self, call: int) -> list[int]:
        """What the code of a call can use, in order: its inputs and what the calls that it makes return."""
        return self._sources.of(call)

    def _are_whole(self, *places: int) -> bool:
        """Whether pairs are of whole tensors: a wrapper's output stands beside the same output of what it wraps."""
        layouts = [self.pairs[i].layout for i in places]
        return not any(layout is not None and (layout.part or layout.part_reference or layout.window_reference) for layout in layouts)

    def origins(self, i: int) -> list[int]:
        """The calls whose code made a pair: of an output the call itself, of an input or a tap the caller, of a draw none."""
        rows = [row for row in self.pairs[i].reference if self.calls.kinds[row] != "draw"]
        calls = [int(self.calls.of_row[row]) for row in rows]
        is_output = self.kind(i) == "output" and not self.is_made_by_run(i)
        return list(dict.fromkeys(call if is_output else self.calls.outer[call] for call in calls))

    def is_made_by_run(self, i: int) -> bool:
        """Whether a pair is of what the code of one of the runs, outside of all calls, made and returned."""
        sides = (self.calls, self.pairs[i].reference), (self.port_calls, self.pairs[i].port)
        return any(calls.site_of(int(calls.of_row[rows[0]])) == RETURNED for calls, rows in sides)

    def comes_from(self, i: int) -> set[int]:
        """The pairs of the very tensors that the port returned at a pair of what a run returned, where a call had made them."""
        rows = {row for own in self.pairs[i].port for row in (own, self.port_calls.producers[own])}
        return {j for row in rows for j in self.pairs_of_port_row.get(row, ()) if not self.is_made_by_run(j)}

    def recorded_consumers(self, i: int, *, only_later: bool, only_last_of_row: bool) -> list[int]:
        """The pairs that were seen, on either side, to take in the tensor of a pair.

        ``only_later``: those behind the pair only. ``only_last_of_row``: where several pairs share a row (parts of a fused tensor), only
        the last of them.
        """
        pair, found = self.pairs[i], set()
        sides = (self.calls, self.pairs_of_row, pair.reference), (self.port_calls, self.pairs_of_port_row, pair.port)
        for calls, pairs_of_row, rows in sides:
            for taker in (taker for row in rows for taker in calls.takers.get(row, ())):
                pairs = pairs_of_row.get(taker, [])
                found.update(pairs[-1:] if only_last_of_row else pairs)
        return sorted(j for j in found if j > i or not only_later)

    def possible_consumers(self, i: int) -> list[int]:
        """The pairs after an output that can come from it directly: inputs of later calls beside it, and its caller's outputs."""
        calls, call = self.calls, self.call(i)
        outer = calls.outer[call]
        later = (sibling for sibling in calls.children[outer] if calls.began[sibling] > calls.began[call])
        rows = [row for sibling in later for row in calls.inputs(sibling) or calls.outputs(sibling)]
        return sorted(j for j in self.pairs_at((*rows, *calls.outputs(outer))) if j > i)

    def level(self, call: int) -> list[int]:
        """The pairs of a call and of the calls that it makes, in order; unpaired calls are looked through."""
        found = set(self.pairs_at((*self.calls.inputs(call), *self.calls.outputs(call))))
        stack = list(self.calls.children[call])
        while stack:
            child = stack.pop()
            outputs = self.calls.outputs(child)
            rows = (*self.calls.inputs(child), *outputs)
            found.update(self.pairs_at(rows))
            if not outputs or not all(map(self.is_paired, rows)):
                stack.extend(self.calls.children[child])
        return sorted(found)

    def outputs_within(self, call: int) -> Iterator[int]:
        """The outputs of a call, then those of all calls inside it."""
        yield from self.pairs_at(self.calls.outputs(call))
        for child in self.calls.children[call]:
            yield from self.outputs_within(child)


class _Sources:
    """What the code of each call can use. Where a record has no partner, what it can come from stands in for it."""

    def __init__(self, flow: PairFlow) -> None:
        self._flow, self._calls = flow, flow.calls
        self._order = [max(pair.reference) for pair in flow.pairs]
        self._known: dict[int, list[int]] = {}

    def of(self, call: int) -> list[int]:
        """What the code of a call can use, in order."""
        if call not in self._known:
            found = set(self._arriving(call))
            for child in self._calls.children[call]:
                found.update(self._returned(child))
            self._known[call] = sorted(found)
        return self._known[call]

    def _arriving(self, call: int) -> list[int]:
        """The inputs of a call; where an input is unpaired, or none was recorded, also what its caller could use."""
        inputs = self._calls.inputs(call)
        paired = self._flow.pairs_at(inputs)
        if call != TOP and not (inputs and all(map(self._flow.is_paired, inputs))):
            return [*paired, *self._available_before(self._calls.outer[call], self._calls.began[call])]
        return paired

    def _available_before(self, call: int, row: int) -> list[int]:
        """What the code of a call could use before a row; apart from `of`, which asks for what comes later too."""
        found = set(self._arriving(call))
        for child in self._calls.children[call]:
            if self._calls.began[child] >= row:
                break
            found.update(self._returned(child))
        end = bisect_left(self._order, row)
        return [i for i in found if i < end]

    def _returned(self, call: int) -> list[int]:
        """The outputs of a call; where an output is unpaired, or none was recorded, also its inputs and what the calls inside it return."""
        outputs = self._calls.outputs(call)
        paired = self._flow.pairs_at(outputs)
        if outputs and all(map(self._flow.is_paired, outputs)):
            return paired
        inner = [i for child in self._calls.children[call] for i in self._returned(child)]
        return [*paired, *self._flow.pairs_at(self._calls.inputs(call)), *inner]


def is_moved_boundary(consumers: Iterable[int], agrees: Callable[[int], bool]) -> bool:
    """Whether an output that differs ends its module at another place on the other side: something consumes it, and all of that agrees."""
    places = list(consumers)
    return bool(places) and all(map(agrees, places))
