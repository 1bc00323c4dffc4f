"""Inputs that the reference's code takes and computes nothing from: what a port hands over there has no effect."""

from __future__ import annotations

from functools import cached_property

from tracediff.errors import TraceFileError
from tracediff.site import INPUTS
from tracediff.trace import Trace
from tracediff.trace.operations import Graph, Where, graph_of


class Unread:
    """Tells by the operations that a reference wrote down which inputs its calls do not read."""

    def __init__(self, reference: Trace) -> None:
        self._reference = reference

    @cached_property
    def _graph(self) -> Graph | None:
        """The operations; None where they were not written down, or cannot be read."""
        try:
            return graph_of(self._reference)
        except TraceFileError:
            return None

    @cached_property
    def _takers(self) -> dict[int, list[int]]:
        """The nodes that take in a node, by its number, in order."""
        found: dict[int, list[int]] = {}
        for number, node in enumerate(self._graph.nodes if self._graph is not None else ()):
            for ref in node.refs:
                found.setdefault(ref, []).append(number)
        return found

    def is_unread(self, row: int) -> bool:
        """Whether no operation of a call takes in the tensor of one of its input rows; False where that is not known."""
        calls, graph = self._reference.calls, self._graph
        if calls.kinds[row] not in INPUTS:
            return False
        call = int(calls.of_row[row])
        given, made = ([self._place(one) for one in rows] for rows in (calls.inputs(call), calls.outputs(call)))
        if graph is None or not made or any(place not in graph.at for place in (self._place(row), *made)):
            return False
        own = graph.at[self._place(row)]
        handed = {graph.at[place] for place in given if place in graph.at}
        computed = self._computed(graph, {graph.at[place] for place in made}, handed)
        if not computed or any(graph.nodes[node].name in _UNKNOWN for node in computed):
            return False
        first, last = min(computed), max(computed)
        return own not in computed and not any(first <= taker <= last for taker in self._takers.get(own, ()))

    def _place(self, row: int) -> Where:
        record = self._reference.records[row]
        return record.site, record.ordinal, record.end

    def _computed(self, graph: Graph, made: set[int], handed: set[int]) -> set[int]:
        """The nodes from which a call's outputs were computed, back to what it was handed, and to what was there before."""
        before = max(handed, default=-1)
        found, stack = set(), [node for node in made if node not in handed]
        while stack:
            node = stack.pop()
            if node in found or node in handed or node <= before:
                continue
            found.add(node)
            stack.extend(graph.nodes[node].refs)
        return found


_UNKNOWN = ("@opaque", "@seen")
"""Nodes that are made by nothing that is known: they may come from anything."""
