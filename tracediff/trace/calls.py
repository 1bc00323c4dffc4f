"""The calls of one trace as a tree, and who made and who takes each record.

`Trace.calls` builds the tree once, from the index alone; alignment, locate, causes and runs share it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracediff.site import INPUTS, Call, End, around

Ints = NDArray[np.int64]

TOP = -1
"""Stands for what is outside of all calls: the parent of an outermost call."""


class CallTree:
    """Every call of a trace, known by its number.

    The calls 0 to ``len(site) - 1`` recorded something and are numbered by their first records. A call that recorded nothing, but made
    calls that did, is known by the printed calls inside it and is numbered behind them. Arrays of shape ``(calls,)`` cover the former only:
    ``site`` is a place in ``sites`` (in order of the first record), ``ordinal`` counts the site's calls, ``first`` is the call's first row.
    ``rows[starts[c]:starts[c + 1]]`` are the rows of call c, in order; ``of_row``, of shape ``(rows,)``, gives the call of each row.

    ``texts`` and ``outer`` cover all calls: the printed call, and the number of the call around it, `TOP` for an outermost call.
    ``parent``, of shape ``(calls,)``, is what the recorder noted instead: the nearest call around it that had recorded something when the
    call began. A trace written by another program may know only one of the two. Alignment goes by ``parent``, everything behind it by
    ``outer``.
    """

    def __init__(self, index: NDArray[Any], strings: Sequence[str]) -> None:
        self._index, self._strings = index, strings
        codes = first_seen(index["site"])
        self.sites: list[str] = [strings[code] for code in codes.tolist()]
        places = np.zeros(int(codes.max(initial=0)) + 1, np.int64)
        places[codes] = np.arange(len(codes))
        keys = places[index["site"]] << 32 | index["ordinal"].astype(np.int64)
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        by_time = np.argsort(first, kind="stable")
        number = np.empty_like(by_time)
        number[by_time] = np.arange(len(by_time))
        self.of_row: Ints = number[inverse]
        self.first: Ints = first[by_time]
        self.site: Ints = keys[self.first] >> 32
        self.ordinal: Ints = keys[self.first] & 0xFFFFFFFF
        self.rows: Ints = np.argsort(self.of_row, kind="stable")
        self.starts: Ints = np.searchsorted(self.of_row[self.rows], np.arange(len(first) + 1))
        above = index["parent"][self.first].astype(np.int64)
        self.parent: Ints = np.where(above >= 0, self.of_row[np.maximum(above, 0)], TOP) if len(first) else self.first
        self.texts: list[str] = [strings[code] for code in index["call"][self.first].tolist()]
        self._by_text: dict[str, int] = {}
        for call, text in enumerate(self.texts):
            self._by_text.setdefault(text, call)
        self.outer: list[int] = []
        for text in self.texts:  # grows: a call that recorded nothing is added behind the others
            self.outer.append(self._numbered(around(text)))

    def _numbered(self, text: str) -> int:
        """The number of a printed call, a new number where nothing of the call was recorded."""
        if not text:
            return TOP
        if text not in self._by_text:
            self._by_text[text] = len(self.texts)
            self.texts.append(text)
        return self._by_text[text]

    def rows_of(self, call: int) -> Ints:
        """The rows of a call, in order; none for a call that recorded nothing."""
        return self.rows[self.starts[call] : self.starts[call + 1]] if self.is_recorded(call) else self.rows[:0]

    def is_recorded(self, call: int) -> bool:
        """Whether a call recorded something itself."""
        return 0 <= call < len(self.site)

    def site_of(self, call: int) -> str:
        """The printed site of a call, "" for `TOP`."""
        if self.is_recorded(call):
            return self.sites[int(self.site[call])]
        return "" if call == TOP else str(getattr(Call.parse(self.texts[call]).frames[-1], "site", ""))

    def above(self, call: int) -> Iterator[int]:
        """The calls around a call, innermost first."""
        while (call := self.outer[call]) != TOP:
            yield call

    @cached_property
    def began(self) -> list[int]:
        """The first row that each call, or a call inside it, recorded."""
        began = [*self.first.tolist(), *[len(self._index)] * (len(self.texts) - len(self.site))]
        for call in range(len(self.site)):
            for outer in self.above(call):
                if began[outer] <= began[call]:
                    break
                began[outer] = began[call]
        return began

    @cached_property
    def children(self) -> list[list[int]]:
        """The calls made directly inside each call, in the order in which they began; those of `TOP` are the last entry."""
        children: list[list[int]] = [[] for _ in range(len(self.texts) + 1)]
        for call in sorted(range(len(self.texts)), key=self.began.__getitem__):
            children[self.outer[call]].append(call)
        return children

    @cached_property
    def kinds(self) -> list[str]:
        """The kind of each row's end: "input", "attr", "output", "value", "draw" or "param"."""
        codes, inverse = np.unique(self._index["end"], return_inverse=True)
        kinds = [End.parse(self._strings[code]).kind for code in codes.tolist()]
        return [kinds[place] for place in inverse.tolist()]

    def inputs(self, call: int) -> list[int]:
        """The rows of what a call was handed: tensors and attributes."""
        return self._boundaries[0][call]

    def outputs(self, call: int) -> list[int]:
        """The rows of what a call made: what it returned, its draw, or the value of a tap."""
        return self._boundaries[1][call]

    @property
    def outermost_outputs(self) -> list[int]:
        """The rows of what the outermost calls made, in order."""
        return [row for call in self.children[TOP] for row in self.outputs(call)]

    @cached_property
    def _boundaries(self) -> tuple[list[list[int]], list[list[int]]]:
        inputs: list[list[int]] = [[] for _ in range(len(self.texts) + 1)]  # the last entry, of `TOP`, stays empty
        outputs: list[list[int]] = [[] for _ in range(len(self.texts) + 1)]
        for row, (call, kind) in enumerate(zip(self.of_row.tolist(), self.kinds, strict=True)):
            (inputs if kind in INPUTS else outputs)[call].append(row)
        return inputs, outputs

    @cached_property
    def producers(self) -> list[int]:
        """Of each row the row that was seen to make its tensor, -1 where none was."""
        rows: list[int] = self._index["producer"].tolist()
        return rows

    @cached_property
    def takers(self) -> Mapping[int, list[int]]:
        """Of each row that some call was seen to take in: the rows at which calls did."""
        takers: dict[int, list[int]] = defaultdict(list)
        for row, producer in enumerate(self.producers):
            if producer >= 0:
                takers[producer].append(row)
        return dict(takers)

    def may_reach(self, rows: Iterable[int], goal: Set[int]) -> bool:
        """Whether something at the ``goal`` may have been computed from what was recorded at some rows.

        What a call returns, and what the code inside it hands on, may come from all that it took in. What no call was seen to make was
        made by the code of its caller, from anything that the caller had by then.
        """
        stack = list(rows)
        seen = set(stack)
        while stack:
            row = stack.pop()
            call = int(self.of_row[row])
            behind = self._made_of_input(call) if self.kinds[row] in INPUTS else self._made_of_output(row, call)
            new = [after for after in behind if after > row and after not in seen]
            if not goal.isdisjoint(new):
                return True
            seen.update(new)
            stack.extend(new)
        return False

    def reached_from(self, marks: Mapping[int, int]) -> list[int]:
        """Of each row the marks (bits of a whole number) of all rows that may have been computed from it, as `may_reach` understands it.

        ``marks``: the bits of the rows that are asked for.
        """
        found = [0] * len(self.of_row)
        for row in range(len(found) - 1, -1, -1):
            call = int(self.of_row[row])
            behind = self._made_of_input(call) if self.kinds[row] in INPUTS else self._made_of_output(row, call)
            for after in behind:
                if after > row:
                    found[row] |= found[after] | marks.get(after, 0)
        return found

    def _made_of_input(self, call: int) -> Iterator[int]:
        """The rows that may come from what a call took in."""
        yield from self.outputs(call)
        yield from (row for child in self.children[call] for row in self.inputs(child) if self.producers[row] < 0)

    def _made_of_output(self, row: int, call: int) -> Iterator[int]:
        """The rows at which a call's output is taken in, and those that its caller's code may have made of it."""
        yield from self.takers.get(row, ())
        outer = self.outer[call]
        later = (child for child in self.children[outer] if self.began[child] > row)
        made_by_code = (*(one for child in later for one in (*self.inputs(child), *self._tapped(child))), *self.outputs(outer))
        yield from (one for one in made_by_code if self.producers[one] < 0)

    def _tapped(self, call: int) -> list[int]:
        """The rows of a tap's value, which the code around it made; none of another call."""
        return [row for row in self.outputs(call) if self.kinds[row] == "value"]


def first_seen(codes: Sequence[int] | NDArray[Any]) -> Ints:
    """The distinct codes in order of their first appearance."""
    distinct, first = np.unique(np.asarray(codes), return_index=True)
    return distinct[np.argsort(first)].astype(np.int64)
