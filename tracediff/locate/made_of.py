"""What a reference's operations say of two tensors that its code made: that one was made of the other, or both at one place in the code."""

from __future__ import annotations

from collections.abc import Iterator

from tracediff.locate.verdicts import Verdicts
from tracediff.trace.operations import readable_graph, rows_at

_PARTS = frozenset(
    (
        *("@item", "split", "split_with_sizes", "chunk", "unbind", "slice", "select", "narrow", "view", "_unsafe_view", "reshape"),
        *("expand", "unsqueeze", "squeeze", "permute", "transpose", "t", "alias", "detach", "clone", "contiguous", "_to_copy"),
    )
)
"""Operations that give a tensor's own values, or some of them."""


class MadeOf:
    """Asks the recorded operations; where none were written down, nothing is known to be made of anything."""

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts
        self._graph = readable_graph(verdicts.pairs.reference)
        self._own: dict[int, frozenset[int]] = {}
        self._frames: dict[int, tuple[int, int]] = {}

    def is_same_code(self, i: int, j: int) -> bool:
        """Whether one place in the code made both tensors: in two turns of a loop, or in two calls."""
        graph = self._graph
        nodes = self._node(i), self._node(j)
        if graph is None or None in nodes:
            return False
        first, second = (graph.nodes[node].role for node in nodes if node is not None)
        return first == second >= 0

    def is_made_of(self, i: int, j: int) -> bool:
        """Whether the code of one call made one tensor of the other, or both of one variable that nothing compared.

        What the calls that it made returned was compared, and replaced in a forced run: no error passes there.
        """
        one, other = self._node(i), self._node(j)
        if one is None or other is None or self._frame(one) != self._frame(other):
            return False
        wholes = set(self._wholes(one)), set(self._wholes(other))
        return not self._made_by_code(other).isdisjoint(wholes[0]) or not self._made_by_code(one).isdisjoint(wholes[1])

    def _node(self, i: int) -> int | None:
        left = self._verdicts.pairs.records(i)[0]
        return None if self._graph is None else self._graph.at.get((left.site, left.ordinal, left.end))

    def _wholes(self, node: int) -> Iterator[int]:
        """A node, and those that it is a part or another view of."""
        assert self._graph is not None
        while True:
            yield node
            known = self._graph.nodes[node]
            if known.name not in _PARTS or len(known.refs) != 1 or self._is_compared(node):
                return
            node = known.refs[0]

    def _made_by_code(self, start: int) -> frozenset[int]:
        """The nodes that a node was made of by the code of one call, itself included, back to what was compared as a call's output."""
        assert self._graph is not None
        if start not in self._own:
            begin, end = self._frame(start)
            found, stack = {start}, [start]
            while stack:
                for ref in self._graph.nodes[stack.pop()].refs:
                    if begin <= ref < end and ref not in found and not self._is_compared(ref):
                        found.add(ref)
                        stack.append(ref)
            self._own[start] = frozenset(found)
        return self._own[start]

    def _frame(self, node: int) -> tuple[int, int]:
        """The nodes of the innermost call whose code made a node: the first, and the first behind; all where no call did."""
        assert self._graph is not None
        if node not in self._frames:
            call = self._graph.call_of(node)
            self._frames[node] = (0, len(self._graph.nodes)) if call is None else call[1]
        return self._frames[node]

    def _is_compared(self, node: int) -> bool:
        """Whether a tensor was seen as what a call returned, and compared as such."""
        assert self._graph is not None
        row_at = rows_at(self._verdicts.pairs.reference)
        rows = (row_at.get(place) for place in self._graph.names.get(node, ()) if place[2].startswith("output"))
        return any(row is not None and self._verdicts.flow.is_paired(row) for row in rows)
