"""The reference's operations between what its code had in hand and one tensor, computed again as they were or with some of them changed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tracediff.causes.in_hand import InHand
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.replay.computed import CannotComputeError, Compute, Values, applied, guarded, is_computable
from tracediff.trace.operations import Graph, Node


@dataclass(frozen=True)
class Program:
    """Operations in order; ``steps`` are the numbers of the nodes that are computed, the last one gives the tensor.

    ``leaves``: what the operations start from, by node. ``names``: of some nodes how people know them. ``lines``: lines of code by role.
    ``seen``: what was seen of steps at boundaries that the port lacks. ``whole``: all operations of the run, also behind the leaves.
    """

    nodes: Mapping[int, Node]
    steps: tuple[int, ...]
    leaves: Mapping[int, InHand]
    names: Mapping[int, str] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    seen: Mapping[int, InHand] = field(default_factory=dict)
    whole: Sequence[Node] = ()
    _texts: dict[int, str] = field(default_factory=dict, compare=False)
    _ancestors: dict[int, frozenset[int]] = field(default_factory=dict, compare=False)
    _operations: dict[int, frozenset[str]] = field(default_factory=dict, compare=False)
    _behind: dict[int, frozenset[int]] = field(default_factory=dict, compare=False)

    @cached_property
    def replay(self) -> Replay:
        """The program's values, and what was tried on them so far."""
        return Replay(self)

    @cached_property
    def roles(self) -> Mapping[int, tuple[int, ...]]:
        """For each step the steps that the same place in the code asks for, in order; the step alone where there is none."""
        found: dict[int, list[int]] = {}
        for step in self.steps:
            found.setdefault(self.role(step), []).append(step)
        return {step: tuple(found[self.role(step)]) for step in self.steps}

    def role(self, node: int) -> int:
        """A number for the place in the code that makes a node's tensor; for nodes without one a number of their own, below -1."""
        known = self.nodes[node]
        if node in self.leaves:
            return -2 - node
        if known.name == "@item":
            inner = self.nodes[known.refs[0]].role
            return -2 - node if inner < 0 else inner * _ITEMS + 1 + int(known.args[1])
        return known.role * _ITEMS if known.role >= 0 else -2 - node

    def line(self, node: int) -> str:
        """The line of code that a node's operation stands in; "" where it is not known."""
        role = self.nodes[node].role
        return self.lines[role] if 0 <= role < len(self.lines) else ""

    @property
    def target(self) -> int:
        return self.steps[-1]

    def text(self, node: int) -> str:
        """A node in words: its name, or the operation and what it takes in."""
        if node not in self._texts:
            self._texts[node] = self._worded(node)
        return self._texts[node]

    def _worded(self, node: int) -> str:
        if node in self.leaves:
            return self.leaves[node].name
        if node in self.names or node in self.seen:
            return self.names.get(node) or self.seen[node].name
        known = self.nodes[node]
        if known.name.startswith("@") or known.name in _SILENT:
            return self.text(known.refs[0]) if known.refs else "a constant"
        inner = known.refs[0] if known.refs else None
        if inner is None:
            return known.name
        within = self.text(inner)
        return f"{known.name.strip('_')} of {within}" if within.count(" of ") < _DEEPEST_TEXT else f"what {known.name.strip('_')} gives"

    def ancestors(self, node: int) -> frozenset[int]:
        """The nodes that a node depends on, itself included."""
        if node not in self._ancestors:
            self._ancestors[node] = frozenset(_reached(self.nodes, node, self.leaves))
        return self._ancestors[node]

    def parameter(self, node: int) -> str:
        """The name of the parameter that a node is, or is a mere view of; "" where it is none."""
        while node not in self.leaves and self.nodes[node].name in (*_SILENT, "t", "transpose", "permute"):
            node = self.nodes[node].refs[0]
        return self.names.get(node, "")

    def behind(self, node: int) -> frozenset[int]:
        """The nodes of the whole run that a node was made of, itself included; none where they are not known."""
        if node not in self._behind:
            self._behind[node] = frozenset(_reached(self.whole, node, {})) if node < len(self.whole) else frozenset()
        return self._behind[node]

    def operations(self, node: int) -> frozenset[str]:
        """The names of the operations that a node's tensor was made by, since what was in hand."""
        if not self._operations:
            for one in sorted({*self.steps, *self.leaves}):
                known = self.nodes[one]
                own = frozenset() if one in self.leaves else frozenset((known.name,))
                below = () if one in self.leaves else known.refs
                self._operations[one] = own.union(*(self._operations.get(ref, frozenset()) for ref in below))
        return self._operations[node]


_ITEMS = 1024
"""More than an operation has results."""
_DEEPEST_TEXT = 4
_SILENT = frozenset(
    ("_to_copy", "clone", "detach", "alias", "contiguous", "view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze")
)


class Replay:
    """A program's values; ``changed`` gives the target's with some operations changed. ``spent`` counts the elements computed."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.spent = 0
        self.tried: dict[Any, Any] = {}

    @cached_property
    def values(self) -> dict[int, Any]:
        """What every node gives. Raises CannotComputeError."""
        program = self.program
        found: dict[int, Any] = {node: leaf.values for node, leaf in program.leaves.items()}
        for node in program.steps:
            if node not in found:
                found[node] = self._computed(program.nodes[node], found)
        return found

    def changed(self, at: Mapping[int, Compute]) -> Any:
        """What the target is where some nodes give something else. Raises CannotComputeError."""
        program, new = self.program, dict(self.values)
        moved: set[int] = set()
        first = min(at)
        for node in at:
            if node in program.leaves:
                new[node] = self._guarded(at[node], self.values)
                moved.add(node)
        for node in program.steps[bisect_left(program.steps, first) :]:
            if node in at:
                made = self._guarded(at[node], new)
            elif not moved.isdisjoint(program.nodes[node].refs):
                made = self._computed(program.nodes[node], new)
            else:
                continue
            moved.add(node)
            new[node] = made
        return new[program.target]

    def apply(self, node: Node, values: Values, *, args: Iterable[Any] | None = None, name: str = "", **kwargs: Any) -> Any:
        """What an operation gives, with other arguments or by another name where these are given."""
        return applied(name or node.name, node.args if args is None else tuple(args), {**node.kwargs, **kwargs}, values, node)

    def _computed(self, node: Node, values: Values) -> Any:
        return self._guarded(lambda given: applied(node.name, node.args, node.kwargs, given, node), values)

    def _guarded(self, compute: Compute, values: Values) -> Any:
        if self.spent > THRESHOLDS.operations_spent:
            raise CannotComputeError("enough was tried")
        made = guarded(compute, values)
        size = made.size if isinstance(made, np.ndarray) else 0
        self.spent += size + THRESHOLDS.operation_overhead
        if size > THRESHOLDS.largest_tensor:
            raise CannotComputeError("too large")
        return made


def program_of(graph: Graph, target: int, leaf_of: Callable[[int, bool], InHand | None]) -> Program | None:
    """The operations that made a node's tensor, back to what was in hand; None where they are not known, or too many.

    ``leaf_of(node, must)`` gives what was seen of a node that operations may start from; with ``must`` also where they need not, because
    what made it is not known.
    """
    leaves: dict[int, InHand] = {}
    found, stack = {target}, [target]
    while stack:
        node = stack.pop()
        leaf = leaf_of(node, False) if node != target else None
        if leaf is not None:
            leaves[node] = leaf
            continue
        if len(found) > THRESHOLDS.most_operations:
            return None
        for ref in graph.nodes[node].refs:
            if ref not in found:
                found.add(ref)
                stack.append(ref)
    return _resolvable(graph, target, sorted(found), leaves, leaf_of)


def _resolvable(
    graph: Graph, target: int, nodes: list[int], leaves: dict[int, InHand], leaf_of: Callable[[int, bool], InHand | None]
) -> Program | None:
    """The program of what is reached; what cannot be computed again starts from its own record where there is one."""
    known: set[int] = set()
    for number in nodes:
        node = graph.nodes[number]
        is_known = number in leaves or (is_computable(node) and known.issuperset(node.refs))
        if not is_known and number != target and (leaf := leaf_of(number, True)) is not None:
            leaves[number] = leaf
            is_known = True
        if is_known:
            known.add(number)
    if target not in known:
        return None
    needed = _reached(graph.nodes, target, leaves)
    steps = tuple(number for number in nodes if number in needed and number not in leaves)
    names = {number: str(graph.nodes[number].args[0]) for number in steps if graph.nodes[number].name == "@param"}
    seen = {number: leaf for number in steps[:-1] if number in graph.names and (leaf := leaf_of(number, True)) is not None}
    own = {number: leaf for number, leaf in leaves.items() if number in needed}
    return Program({number: graph.nodes[number] for number in needed}, steps, own, names, graph.lines, seen, graph.nodes)


def _reached(nodes: Mapping[int, Node] | Sequence[Node], target: int, leaves: Mapping[int, InHand]) -> set[int]:
    """The nodes that a node depends on, back to the leaves, itself included."""
    found, stack = {target}, [target]
    while stack:
        node = stack.pop()
        for ref in () if node in leaves else nodes[node].refs:
            if ref not in found:
                found.add(ref)
                stack.append(ref)
    return found
