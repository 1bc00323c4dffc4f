"""What a difference would make of the reference: its operations computed again with the port's tensor in place of its own.

The port's run gives what follows from its form of a tensor. Where that agrees, and the reference's operations would give something else of
the same form, the port's code is made for it: a scale that is taken in another place, a rotation that pairs other channels, an axis that
lies elsewhere. Where the reference's own operations take the difference out, as a normalisation does, or discard it, nothing is shown.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracediff.dtype import Array, wide_type
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.verdicts import Verdicts
from tracediff.metrics import compare
from tracediff.replay.computed import CannotComputeError, applied, guarded, is_computable
from tracediff.trace.calls import TOP
from tracediff.trace.operations import Graph, readable_graph, rows_at


def would_go_wrong(verdicts: Verdicts, i: int, call: int) -> bool:
    """Whether all that the reference makes of a pair's tensor, inside a call, would be wrong of the port's, and is right in the port.

    Looked at is the first that was compared on each way. False where the operations are not known, or one cannot be computed again.
    """
    graph = readable_graph(verdicts.pairs.reference)
    values = None if graph is None else _whole(verdicts, i)
    if graph is None or values is None or verdicts.flow.kind(i) != "output":
        return False
    record = verdicts.pairs.records(i)[0]
    start = graph.at.get((record.site, record.ordinal, record.end))
    if start is None:
        return False
    try:
        shown = list(_Onward(verdicts, graph, start, values).until(_end(verdicts, graph, call)))
    except CannotComputeError:
        return False
    return bool(shown) and all(shown)


def _end(verdicts: Verdicts, graph: Graph, call: int) -> int:
    """The first operation behind a call; of a call that is not known so, and of `TOP`, behind all."""
    calls, everything = verdicts.flow.calls, len(graph.nodes)
    if call == TOP:
        return everything
    rows = [*calls.inputs(call), *calls.outputs(call)]
    site, ordinal = calls.site_of(call), verdicts.pairs.reference.records[rows[0]].ordinal if rows else -1
    return graph.spans.get((site, ordinal), (0, everything))[1]


def _whole(verdicts: Verdicts, i: int) -> Array | None:
    """The port's tensor of a pair in the shape of the reference's, wide; None where it is not known whole."""
    pairs = verdicts.pairs
    layout = pairs[i].layout
    if layout is None or layout.is_partial or layout.repeat or not pairs.is_single(i) or not pairs.is_stored(i) or pairs.is_exact(i):
        return None
    reference, port = pairs.values(i)
    shape = pairs.records(i)[0].shape
    return port.astype(wide_type(reference)) if reference.shape == shape and reference.size <= THRESHOLDS.replayed_values else None


class _Onward:
    """The reference's operations from a node on, of the port's values; all that they take in besides is what the reference had."""

    def __init__(self, verdicts: Verdicts, graph: Graph, start: int, values: Array) -> None:
        self._verdicts, self._graph, self._start = verdicts, graph, start
        self._row_at = rows_at(verdicts.pairs.reference)
        self._changed: dict[int, Array] = {start: values}
        self._own: dict[int, Array] = {}
        self._operations = self._values = 0

    def until(self, end: int) -> Iterator[bool]:
        """Of each tensor that was compared and agrees whether it would be wrong, in order, up to an operation.

        Raises CannotComputeError where that cannot be told.
        """
        for number in range(self._start + 1, end):
            if self._changed.keys().isdisjoint(self._graph.nodes[number].refs):
                continue
            seen = self._seen(number)
            if seen is None:
                self._changed[number] = self._computed(number, self._changed)
            elif self._verdicts.expected.agrees(seen):
                yield self._is_wrong(seen, self._computed(number, self._changed))
            elif (own := _whole(self._verdicts, seen)) is not None:
                self._changed[number] = own
            else:
                raise CannotComputeError("the port's tensor is not known whole")

    def _seen(self, node: int) -> int | None:
        """The first pair of a node's tensor that was compared; None where none was."""
        flow, comparisons = self._verdicts.flow, self._verdicts.comparisons
        return next((j for j in flow.pairs_at(self._rows(node)) if comparisons.judged(j).diverged is not None), None)

    def _rows(self, node: int) -> Iterator[int]:
        """The rows of the reference at which a node's tensor was seen."""
        return (self._row_at[place] for place in self._graph.names.get(node, ()) if place in self._row_at)

    def _is_wrong(self, j: int, made: Array) -> bool:
        """Whether what the operations make of the port's form is clearly another tensor than the reference's."""
        record = self._verdicts.pairs.records(j)[0]
        if not record.stored or np.shape(made) != record.shape:
            raise CannotComputeError("nothing to compare with")
        metrics = compare(own := record.read(), np.asarray(made).astype(own.dtype), ulp=False)
        if metrics.exact:
            return metrics.mismatched > 0
        return metrics.lone_nonfinite > 0 or metrics.rel_l2 > self._verdicts.least_shown(j)

    def _computed(self, number: int, among: dict[int, Array]) -> Array:
        """What an operation gives, of what was changed and of what the reference had."""
        node = self._graph.nodes[number]
        self._operations += 1
        if self._operations > THRESHOLDS.most_replayed or not is_computable(node):
            raise CannotComputeError(node.name)
        values = {ref: among[ref] if ref in among else self._had(ref) for ref in node.refs}
        return self._counted(guarded(lambda given: applied(node.name, node.args, node.kwargs, given, node), values))

    def _had(self, node: int) -> Array:
        """What the reference had at a node: as it was recorded, else computed again of what was."""
        needed, stack = set[int](), [node]
        while stack:
            one = stack.pop()
            if one in self._own or one in needed:
                continue
            if (stored := self._stored(one)) is not None:
                self._own[one] = self._counted(stored)
            elif len(needed) < THRESHOLDS.most_replayed:
                needed.add(one)
                stack.extend(self._graph.nodes[one].refs)
            else:
                raise CannotComputeError("too many operations")
        for one in sorted(needed):
            self._own[one] = self._computed(one, self._own)
        return self._own[node]

    def _stored(self, node: int) -> Array | None:
        """What was recorded of a node, floats wide; None where nothing was."""
        records = self._verdicts.pairs.reference.records
        record = next((records[row] for row in self._rows(node) if records[row].stored), None)
        own = None if record is None else record.read()
        return own if own is None or own.dtype.kind in "biu" else own.astype(wide_type(own))

    def _counted(self, made: Array) -> Array:
        """A tensor that is held, of which there may not be too many; the results of a split are its parts."""
        self._values += made.size if isinstance(made, np.ndarray) else 0
        if self._values > THRESHOLDS.replayed_values:
            raise CannotComputeError("too large")
        return made
