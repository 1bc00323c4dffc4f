"""Inputs that the reference's code takes and computes nothing from: what a port hands over there has no effect."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

from tracediff.site import INPUTS
from tracediff.trace import Record, Trace
from tracediff.trace.operations import Graph, Where, readable_graph


class Unread:
    """Tells by the operations that a reference wrote down which inputs its calls do not read."""

    def __init__(self, reference: Trace) -> None:
        self._reference = reference

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
        calls, graph = self._reference.calls, self._graph
        if graph is None or calls.kinds[row] not in INPUTS:
            return False
        record = self._reference.records[row]
        own, span = graph.at.get(_place(record)), graph.spans.get((record.site, record.ordinal))
        made = [_place(self._reference.records[one]) for one in calls.outputs(int(calls.of_row[row]))]
        if own is None or span is None or not made or any(graph.at.get(place, own) == own for place in made):
            return False
        return not _any_between(self._takers.get(own, []), span) and not _any_between(self._unknown, span)


def _place(record: Record) -> Where:
    return record.site, record.ordinal, record.end


def _any_between(numbers: Sequence[int], span: tuple[int, int]) -> bool:
    """Whether any of some rising numbers is in a span."""
    return bisect_left(numbers, span[0]) < bisect_left(numbers, span[1])
