"""Groups the calls of a site by where in the run they are made: by stage, by scope, and by the paired call that encloses them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from tracediff.alignment.record_table import CallPair
from tracediff.alignment.structure import Side

Groups = dict[tuple[str, str, int], list[int]]
"""A site's calls by stage, scope and the call that encloses them."""


class CallGroups:
    """The groups of calls of both sides, and what is known of the calls that enclose them.

    ``partner``: of each call of either side its one partner. It grows as calls are paired, callers first.
    """

    def __init__(self, sides: tuple[Side, Side]) -> None:
        self.sides = sides
        self.partner: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._group: tuple[dict[int, int], dict[int, int]] = ({}, {})  # of each paired call the first call of the reference's group
        self._split: dict[int, CallPair] = {}  # by their first call of the reference: calls of which one side makes more
        self.of_site = tuple(_calls_of_sites(side) for side in sides)
        self._stage_of = tuple([side.text("stage", int(row)) for row in side.calls.first] for side in sides)
        self._scope_of = tuple([side.text("scope", int(row)) for row in side.calls.first] for side in sides)
        self._stages = _stages(sides[0]) & _stages(sides[1])
        self._scopes = set(self._scope_of[0]) & set(self._scope_of[1])

    def of(self, side: int, site: int) -> Groups:
        """A site's calls by stage, by scope and by enclosing call. A stage or scope that only one side has counts as none."""
        groups: Groups = defaultdict(list)
        for call in self.of_site[side][site]:
            stage, scope = self._stage_of[side][call], self._scope_of[side][call]
            key = stage if stage in self._stages else "", scope if scope in self._scopes else "", self.enclosing(side, call)
            groups[key].append(call)
        return groups

    def enclosing(self, side: int, call: int) -> int:
        """The nearest paired call around a call, by the first call of the reference in its pair; -1 where there is none."""
        parent, group = self.sides[side].calls.parent, self._group[side]
        above = int(parent[call])
        while above >= 0 and above not in group:
            above = int(parent[above])
        return group[above] if above >= 0 else -1

    def split_around(self, call: int) -> CallPair | None:
        """The pair of calls around a call of the reference, where one side makes more of these; None where none was split."""
        return self._split.get(self.enclosing(0, call))

    def note(self, pairs: Iterable[CallPair]) -> None:
        """Remembers pairs of calls: the calls inside them are looked for there."""
        for pair in pairs:
            if len(pair.reference) == len(pair.port) == 1:
                self.partner[0].setdefault(pair.reference[0], pair.port[0])
                self.partner[1].setdefault(pair.port[0], pair.reference[0])
            for group, calls in zip(self._group, (pair.reference, pair.port), strict=True):
                for call in calls:
                    group.setdefault(call, pair.reference[0])
            if len(pair.reference) != len(pair.port):
                self._split.setdefault(pair.reference[0], pair)


def _stages(side: Side) -> set[str]:
    return {side.trace.strings[int(code)] for code in np.unique(side.index["stage"])}


def _calls_of_sites(side: Side) -> list[list[int]]:
    calls: list[list[int]] = [[] for _ in range(len(side))]
    for call, site in enumerate(side.calls.site.tolist()):
        calls[site].append(call)
    return calls
