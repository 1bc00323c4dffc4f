"""One side of an alignment: the sites of a trace as a tree of calls and a tree of modules, with what each owns and sees.

Everything here is read from the index and the parameter table; no tensor is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment.names import role
from tracediff.site import End, Site
from tracediff.trace import Param, Trace
from tracediff.trace.calls import CallTree, Ints, first_seen

INPUT, OUTPUT, OTHER = 0, 1, 2
WEIGHT_NORM = "weight norm"


class Side:
    """The sites of one trace: those that were called, in order of their first call, then modules that never were.

    A site is known by its number; ``names[number]`` is its printed form. ``parent`` is the caller at the first call (-1 at the top),
    ``children`` what a site called, in order of the first call; ``holder`` the module that holds a module in the module tree.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.index = trace.index
        self.modules: dict[str, Mapping[str, Any]] = {str(entry["path"]): entry for entry in trace.meta.get("modules", [])}
        self.calls: CallTree = trace.calls
        self.names: list[str] = [*self.calls.sites]
        called = set(self.names)
        self.called = len(self.names)
        self.names += [path for path in self.modules if path not in called]
        self.number: dict[str, int] = {name: number for number, name in enumerate(self.names)}
        parsed = [Site.parse(name) for name in self.names]
        self.kind: list[str] = [site.kind for site in parsed]
        self.path: list[str] = [site.path for site in parsed]
        self.function: list[str] = [site.name if site.kind == "function" else "" for site in parsed]
        self.type: list[str] = [self._type_of(site) for site in parsed]
        self.role: list[str] = [site.name if site.kind == "function" else role(kind) for site, kind in zip(parsed, self.type, strict=True)]
        self.params: list[Param] = list(trace.params.values())

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_forced(self) -> bool:
        """Whether the run went on with the tensors of another one."""
        return str(self.trace.meta.get("mode_run", "")) == "forced"

    def _type_of(self, site: Site) -> str:
        return str(self.modules.get(site.path, {}).get("type", "")) if site.kind in ("module", "method") else ""

    def attributes(self, number: int) -> Mapping[str, Any]:
        """The scalar attributes of a module (eps, kernel size...); empty for other sites."""
        entry = self.modules.get(self.path[number]) if self.kind[number] == "module" else None
        attributes: Mapping[str, Any] = (entry or {}).get("attrs") or {}
        return attributes

    @cached_property
    def first_call(self) -> Ints:
        """Each site's first call, -1 where it was never called."""
        first = np.full(len(self), -1, np.int64)
        first[self.calls.site[::-1]] = np.arange(len(self.calls.site))[::-1]
        return first

    @cached_property
    def call_counts(self) -> Ints:
        return np.bincount(self.calls.site, minlength=len(self)).astype(np.int64)

    @cached_property
    def parent(self) -> Ints:
        """The site that called each site first; -1 at the top and where it was never called."""
        parents = np.full(len(self), -1, np.int64)
        called = np.flatnonzero(self.first_call >= 0)
        enclosing = self.calls.parent[self.first_call[called]]
        parents[called] = np.where(enclosing >= 0, self.calls.site[enclosing], -1)
        return parents

    @cached_property
    def children(self) -> list[list[int]]:
        """What each site called, in order of the first call; the last entry holds the sites called by none (the top)."""
        calls = self.calls
        callers = np.where(calls.parent >= 0, calls.site[calls.parent], len(self))
        edges = first_seen(callers << 32 | calls.site)
        lists: list[list[int]] = [[] for _ in range(len(self) + 1)]
        for caller, callee in zip((edges >> 32).tolist(), (edges & 0xFFFFFFFF).tolist(), strict=True):
            if caller != callee and self.role[callee] != WEIGHT_NORM:
                lists[caller].append(callee)
        return lists

    @cached_property
    def holder(self) -> Ints:
        """The module that holds each site in the module tree (-1 for roots): the parent module, or a method's or function's own module."""
        holders = np.full(len(self), -1, np.int64)
        for number, (name, path) in enumerate(zip(self.names, self.path, strict=True)):
            above = path if name != path else _parent_path(path)
            while above is not None and self.number.get(above, number) == number:
                above = _parent_path(above)
            if above is not None:
                holders[number] = self.number[above]
        return holders

    def callers(self, site: int) -> tuple[int, ...]:
        """Who called a site first, who called that one, and so on: the nearest first."""
        return _chain(self.parent, self._callers, site)

    def holders(self, site: int) -> tuple[int, ...]:
        """The modules that hold a site in the module tree, the nearest first."""
        return _chain(self.holder, self._holders, site)

    @cached_property
    def _callers(self) -> dict[int, tuple[int, ...]]:
        return {}

    @cached_property
    def _holders(self) -> dict[int, tuple[int, ...]]:
        return {}

    @cached_property
    def owned(self) -> list[list[int]]:
        """Each site's own parameters (numbers into ``params``); a weight norm's belong to the module that it normalises."""
        lists: list[list[int]] = [[] for _ in range(len(self))]
        for position, param in enumerate(self.params):
            owner = self.number.get(param.path)
            while owner is not None and self.role[owner] == WEIGHT_NORM:
                owner = self._normalised_by(owner)
            if owner is not None:
                lists[owner].append(position)
        return lists

    def _normalised_by(self, number: int) -> int | None:
        """The nearest holder that is neither a weight norm nor a mere container."""
        above = int(self.holder[number])
        while above >= 0 and self.role[above] in (WEIGHT_NORM, "container"):
            above = int(self.holder[above])
        return above if above >= 0 else None

    @cached_property
    def end_kind(self) -> NDArray[np.int8]:
        """Of each row: INPUT, OUTPUT or OTHER (taps, draws)."""
        codes, inverse = np.unique(self.index["end"], return_inverse=True)
        kinds = [_end_kind(self.trace.strings[int(code)]) for code in codes]
        return np.array(kinds, np.int8)[inverse] if len(codes) else np.empty(0, np.int8)

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Each row's shape."""
        codes, inverse = np.unique(self.index["shape"], return_inverse=True)
        parsed = [_shape(self.trace.strings[int(code)]) for code in codes]
        return [parsed[place] for place in inverse.tolist()]

    @cached_property
    def tensor(self) -> list[int]:
        """Of each row a number that all records of one tensor share: records of equal bits, and records to which a tensor was handed on.

        In a forced run the reference's tensor is handed on. The record where it came from differs by the error that was made there.
        """
        above = list(range(len(self.index)))
        first: dict[tuple[bytes, tuple[int, ...]], int] = {}

        def top(row: int) -> int:
            while above[row] != row:
                above[row] = above[above[row]]
                row = above[row]
            return row

        producers, digests = self.index["producer"].tolist(), self.index["digest"]
        for row, producer in enumerate(producers):
            same = first.setdefault((digests[row].tobytes(), self.shapes[row]), row)
            above[top(row)] = top(same)
            if 0 <= producer < len(above) and self.shapes[producer] == self.shapes[row]:
                above[top(row)] = top(producer)
        return [top(row) for row in range(len(above))]

    def ends_of(self, call: int) -> tuple[list[int], list[int]]:
        """The rows of a call's boundaries: its inputs, and the others (outputs, taps, draws)."""
        (ins, first_in), (outs, first_out) = self._ends
        return ins[first_in[call] : first_in[call + 1]], outs[first_out[call] : first_out[call + 1]]

    @cached_property
    def _ends(self) -> tuple[tuple[list[int], list[int]], tuple[list[int], list[int]]]:
        """The input rows and the other rows of all calls, one call after the other, each with where every call's begin."""
        calls = self.calls
        taken = self.end_kind[calls.rows] == INPUT
        before = np.concatenate([[0], np.cumsum(taken)])[calls.starts]
        return (calls.rows[taken].tolist(), before.tolist()), (calls.rows[~taken].tolist(), (calls.starts - before).tolist())

    def text(self, column: str, row: int) -> str:
        """The text that a text column of the index holds at a row."""
        found: str = self.trace.strings[int(self.index[column][row])]
        return found

    def below(self, number: int) -> Iterable[int]:
        """Everything that a site called, directly or through others, in order; each once."""
        seen, stack = {number}, list(reversed(self.children[number]))
        while stack:
            site = stack.pop()
            if site not in seen:
                seen.add(site)
                yield site
                stack.extend(reversed(self.children[site]))


def _chain(above: Ints, known: dict[int, tuple[int, ...]], site: int) -> tuple[int, ...]:
    """The sites above a site, the nearest first; remembered for all sites on the way."""
    way: list[int] = []
    while site not in known and site >= 0 and site not in way:
        way.append(site)
        site = int(above[site])
    for below in reversed(way):
        parent = int(above[below])
        known[below] = (parent, *known.get(parent, ())) if parent >= 0 else ()
        site = below
    return known.get(site, ())


def _parent_path(path: str) -> str | None:
    """The path one level up; None above the root."""
    if not path:
        return None
    return path.rpartition(".")[0]


def _end_kind(text: str) -> int:
    kind = End.parse(text).kind
    return {"input": INPUT, "output": OUTPUT}.get(kind, OTHER)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",")) if text else ()


def runs(values: Sequence[int]) -> Iterable[tuple[int, int]]:
    """The (start, stop) of each run of equal neighbours."""
    edges = [0, *(place for place, (a, b) in enumerate(pairwise(values), 1) if a != b), len(values)]
    return [(start, stop) for start, stop in pairwise(edges) if stop > start]
