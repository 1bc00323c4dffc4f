"""What the operations of a reference say of its tensors: what a call reads of its inputs, and which were computed from which."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence, Set
from functools import cached_property

from tracediff.site import INPUTS, is_returned
from tracediff.trace.operations import Graph, Node, readable_graph
from tracediff.trace.reader import Trace

Box = tuple[tuple[int, int], ...]
"""A part of a tensor: the first index and the first behind it, an axis each."""

Span = tuple[int, int]
"""The first operation of a call, and the first behind it."""


class Reads:
    """Tells by the operations that a reference wrote down what its calls read of their inputs."""

    def __init__(self, reference: Trace) -> None:
        self._reference = reference
        self._descendants: dict[int, Set[int] | None] = {}

    @cached_property
    def _graph(self) -> Graph | None:
        """The operations; None where they were not written down, or cannot be read."""
        return readable_graph(self._reference)

    @cached_property
    def _takers(self) -> dict[int, list[int]]:
        """The nodes that take in a node, by its number, in order."""
        found: dict[int, list[int]] = {}
        for number, node in enumerate(self._graph.nodes if self._graph is not None else ()):
            for ref in node.refs:
                found.setdefault(ref, []).append(number)
        return found

    @cached_property
    def _unknown(self) -> list[int]:
        """The nodes that are made by nothing that is known, in order: they may come from anything."""
        return [] if self._graph is None else [number for number, node in enumerate(self._graph.nodes) if node.name in ("@opaque", "@seen")]

    def is_unread(self, row: int) -> bool:
        """Whether nothing in a call takes in the tensor of one of its input rows, or hands it on; False where that is not known."""
        span = self._span(row)
        return span is not None and not self._takers_in(span, self._node(row))

    def part(self, row: int) -> Box | None:
        """The least box that holds all that is read of a tensor; None where that is all, nothing, or not known.

        Of an input that is what the call reads of it; of an output, what the code outside of the call does. A part is read where
        code takes nothing but slices of the tensor, and goes on with those.
        """
        is_input = self._reference.calls.kinds[row] in INPUTS
        span, whole = self._span(row) if is_input else self._behind(row), tuple((0, size) for size in self._reference.records[row].shape)
        if span is None:
            return None
        boxes = [box for taker in self._takers_in(span, self._node(row)) if (box := self._box(taker, whole)) is not None]
        if not boxes:
            return None
        hull = tuple((min(start for start, _ in ends), max(stop for _, stop in ends)) for ends in zip(*boxes, strict=True))
        return hull if hull != whole else None

    def may_come_from(self, later: int, earlier: int) -> bool:
        """Whether the tensor of a row may have been computed from an earlier row's, or is that very tensor; True where that is not known.

        So it may where the values of something in between went through other code than the framework's.
        """
        one, other = self._node(earlier), self._node(later)
        if one is None or other is None:
            return True
        found = self._made_of(one)
        return found is None or other in found

    def _made_of(self, start: int) -> Set[int] | None:
        """The nodes that were computed from a node, itself included; None where other code took its values."""
        assert self._graph is not None
        if start not in self._descendants:
            found = {start}
            for number in range(start + 1, len(self._graph.nodes)):
                node = self._graph.nodes[number]
                if node.name in ("@seen", "@opaque") or not found.isdisjoint(node.refs):
                    found.add(number)
            is_known = not any(self._graph.nodes[number].name == "@out" for number in found)
            self._descendants[start] = found if is_known else None
        return self._descendants[start]

    def _node(self, row: int) -> int | None:
        """The node that a row shows."""
        record = self._reference.records[row]
        return self._graph.at.get((record.site, record.ordinal, record.end)) if self._graph is not None else None

    def _span(self, row: int) -> Span | None:
        """The operations of the call of an input row; None where these are not known, or the call hands that very tensor on."""
        calls = self._reference.calls
        if self._graph is None or calls.kinds[row] not in INPUTS:
            return None
        record, own = self._reference.records[row], self._node(row)
        span = self._graph.spans.get((record.site, record.ordinal))
        made = [self._node(one) for one in calls.outputs(int(calls.of_row[row]))]
        is_handed_on = any(node is None or node == own for node in made)
        return None if own is None or not made or is_handed_on or span is None or _within(self._unknown, span) else span

    def _behind(self, row: int) -> Span | None:
        """The operations behind the call of an output row; None where they are not known, or another call has that tensor."""
        record, node = self._reference.records[row], self._node(row)
        if self._graph is None or node is None or not is_returned(record.end):
            return None
        span = self._graph.spans.get((record.site, record.ordinal))
        own = (record.site, record.ordinal)
        if span is None or any(where[:2] != own for where in self._graph.names[node]) or _within(self._unknown, (span[1], self._end)):
            return None
        return span[1], self._end

    @property
    def _end(self) -> int:
        return len(self._graph.nodes) if self._graph is not None else 0

    def _takers_in(self, span: Span, node: int | None) -> list[int]:
        """The operations of a span that take in a node."""
        return _within(self._takers.get(node, []), span) if node is not None else []

    def _box(self, number: int, whole: Box) -> Box | None:
        """What an operation reads of a tensor that it takes in; None where it takes a slice, and nothing goes on with that."""
        assert self._graph is not None
        slices = dict(_slice_of(self._graph.nodes[number], whole))
        if slices and number not in self._takers and not any(is_returned(end) for _, _, end in self._graph.names.get(number, ())):
            return None
        return tuple(slices.get(axis, ends) for axis, ends in enumerate(whole))


def _slice_of(node: Node, whole: Box) -> Iterator[tuple[int, tuple[int, int]]]:
    """The axis along which an operation takes a slice of a tensor, with the ends of that slice; nothing where it does something else."""
    match node.name, node.args[1:]:
        case "select", (int(axis), int(index)):
            index %= whole[axis][1]
            yield axis % len(whole), (index, index + 1)
        case "slice", (int(axis), int() | None as start, int() | None as stop, *_):
            start, stop, _ = slice(start, stop).indices(whole[axis][1])
            yield axis % len(whole), (start, stop)


def _within(numbers: Sequence[int], span: Span) -> list[int]:
    """Those of some rising numbers that are in a span."""
    return list(numbers[bisect_left(numbers, span[0]) : bisect_left(numbers, span[1])])
