"""The operations that a run computed, as a graph without values: what made each tensor that the run showed at its boundaries.

A graph is kept in the meta of a trace under `KEY`, packed. Its nodes are known by their numbers; an operation has the name that PyTorch's
ATen library gives it.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from tracediff.dtype import Array
from tracediff.errors import TraceFileError
from tracediff.json_text import parse_json
from tracediff.site import module_of
from tracediff.trace.reader import Trace

KEY = "operations"

_LEVEL = 1  # of zlib: the values of parameters, which are most of a graph, hardly become smaller with more work
MOST_BYTES = 256 * 2**20
"""Bytes of a graph as it is unpacked: a stranger's file may promise more than any run has."""

Where = tuple[str, int, str]
"""A place at which a tensor is seen: site, ordinal, end."""


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument that is the tensor of a node."""

    node: int


@dataclass(frozen=True, slots=True)
class Node:
    """An operation with its arguments, in which `Ref` stands for tensors and text for dtypes; or one of the kinds that begin with ``@``.

    ``@item`` (node, place) one of several results; ``@param`` and ``@constant`` hold ``values`` where these are few; ``@flat``, ``@write``
    and ``@read`` of memory that is written to; ``@out`` of values that other code than the framework's took; ``@seen`` and ``@opaque`` are
    made by nothing that is known.
    ``role``: one number for all operations that one place in the code asks for, -1 where there is none; ``refs``: the nodes taken in.
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    values: Array | None = None
    role: int = -1
    refs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Graph:
    """``nodes`` in the order in which they were computed; ``names``: where each node's tensor was seen; ``at``: the node seen at a place.

    ``lines``: by role the line of code. ``spans``: by site and ordinal the first node that was made in a call, and the first behind it;
    empty in a graph of an older version.
    """

    nodes: tuple[Node, ...]
    names: Mapping[int, tuple[Where, ...]]
    at: Mapping[Where, int]
    lines: tuple[str, ...] = ()
    spans: Mapping[tuple[str, int], tuple[int, int]] = field(default_factory=dict)

    def call_of(self, node: int) -> tuple[str, tuple[int, int]] | None:
        """The site and the span of the innermost call in which a node was made; None where no call made it, or none is known."""
        around = ((site, span) for (site, _), span in self.spans.items() if span[0] <= node < span[1])
        return min(around, key=lambda one: (one[1][1] - one[1][0], module_of(one[0])), default=None)

    def made_in(self) -> Iterator[tuple[str, Node]]:
        """Each node that was made in a call, with the site of the innermost one."""
        around: list[tuple[str, int]] = []
        calls = sorted(self.spans.items(), key=lambda one: (one[1][0], -one[1][1]), reverse=True)
        for number, node in enumerate(self.nodes):
            while calls and calls[-1][1][0] <= number:
                (site, _), (_, stop) = calls.pop()
                around.append((site, stop))
            while around and around[-1][1] <= number:
                around.pop()
            if around:
                yield around[-1][0], node


def packed(graph: Mapping[str, Any]) -> str:
    """A graph, as `tracediff.observe.types.Operations.graph` gives it, in the form in which meta keeps it."""
    return base64.b64encode(zlib.compress(json.dumps(graph, separators=(",", ":"), allow_nan=False).encode(), _LEVEL)).decode()


_READ: WeakKeyDictionary[Trace, Graph] = WeakKeyDictionary()
"""The graphs of open traces, each read once."""


def graph_of(trace: Trace) -> Graph | None:
    """The operations of a trace; None where they were not written down. Raises TraceFileError where they cannot be read."""
    if not trace.meta.get(KEY):
        return None
    if trace not in _READ:
        _READ[trace] = _unpacked(trace)
    return _READ[trace]


def readable_graph(trace: Trace) -> Graph | None:
    """As `graph_of`; None also where the operations cannot be read."""
    try:
        return graph_of(trace)
    except TraceFileError:
        return None


def rows_at(trace: Trace) -> Mapping[Where, int]:
    """The row of each place of a trace."""
    if trace not in _ROWS:
        columns = (trace.index[name].tolist() for name in ("site", "ordinal", "end"))
        texts = trace.strings
        _ROWS[trace] = {(texts[site], ordinal, texts[end]): row for row, (site, ordinal, end) in enumerate(zip(*columns, strict=True))}
    return _ROWS[trace]


_ROWS: WeakKeyDictionary[Trace, Mapping[Where, int]] = WeakKeyDictionary()
"""The rows of the places of open traces, each gathered once."""


def _unpacked(trace: Trace) -> Graph:
    text = trace.meta[KEY]
    try:
        unpacking = zlib.decompressobj()
        blob = unpacking.decompress(base64.b64decode(text), MOST_BYTES)
        if unpacking.unconsumed_tail:
            raise ValueError(f"they take more than {MOST_BYTES:,} bytes")
        found = parse_json(blob)
        nodes = tuple(_node(*content) for content in found["nodes"])
        names = {int(node): tuple((site, int(ordinal), end) for site, ordinal, end in places) for node, places in found["names"]}
        lines = tuple(map(str, found["lines"]))
        spans = {(str(site), int(ordinal)): (int(start), int(stop)) for site, ordinal, start, stop in found.get("spans", ())}
    except (ValueError, KeyError, TypeError, IndexError, zlib.error) as error:
        raise TraceFileError(f"The operations in {str(trace.path)!r} cannot be read ({error}).") from error
    _check(nodes, names, str(trace.path))
    return Graph(nodes, names, {place: node for node, places in names.items() for place in places}, lines, spans)


def _check(nodes: tuple[Node, ...], names: Mapping[int, Any], path: str) -> None:
    for number, node in enumerate(nodes):
        if any(not 0 <= ref < number for ref in node.refs):
            raise TraceFileError(f"The operations in {path!r} are not sound: one takes in what was not made before it.")
    if any(not 0 <= number < len(nodes) for number in names):
        raise TraceFileError(f"The operations in {path!r} are not sound: a place names none of them.")


def _node(name: str, *content: Any) -> Node:
    """A node as it stands in a file."""
    if not name.startswith("@"):
        args, kwargs = tuple(map(_decoded, content[0])), {key: _decoded(value) for key, value in content[1].items()}
        return Node(name, args, kwargs, role=int(content[2]), refs=tuple(_refs([*args, *kwargs.values()])))
    if name in ("@param", "@constant"):
        return Node(name, tuple(content[:-1]), values=_values(content[-1]))
    taken = _TAKEN.get(name, ())
    args = tuple(Ref(int(value)) if place in taken else value for place, value in enumerate(content))
    return Node(name, args, refs=tuple(_refs(args)))


_TAKEN = {"@item": (0,), "@flat": (0,), "@out": (0,), "@read": (0,), "@write": (0, 4)}
"""Which arguments of the nodes of memory are nodes."""


def _values(content: Any) -> Array | None:
    if content is None:
        return None
    dtype, shape, text = content
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype)).reshape(shape)


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        if "n" in value:
            return Ref(int(value["n"]))
        if "c" in value:
            return complex(*map(float, value["c"]))
        return str(value["d"]) if "d" in value else float(value["f"])
    return [_decoded(one) for one in value] if isinstance(value, list) else value


def _refs(values: Any) -> Iterator[int]:
    for value in values:
        if isinstance(value, Ref):
            yield value.node
        elif isinstance(value, list):
            yield from _refs(value)
