"""What the names of sites say: which sites have the same name, and how far names can be trusted at all."""

from __future__ import annotations

from collections import defaultdict

from tracediff.alignment import names
from tracediff.alignment.structure import Side
from tracediff.alignment.thresholds import THRESHOLDS


class NameEvidence:
    """``trust``: how far names can be trusted, 0 to 1. ``partner``: the port's site of the same name; empty where names are not trusted."""

    def __init__(self, sides: tuple[Side, Side]) -> None:
        self.trust = _trust(sides)
        self.is_trusted = self.trust >= THRESHOLDS.least_trust
        self.partner = _same_names(sides) if self.is_trusted else {}

    @property
    def worth(self) -> float:
        """What the same name adds to the score of two sites."""
        return THRESHOLDS.same_name * self.trust


def _trust(sides: tuple[Side, Side]) -> float:
    """How much of the smaller side's vocabulary the other side uses too, numbers aside."""
    ours, theirs = ({word for path in set(side.path) for word in names.tokens(path) if not word.isdigit()} for side in sides)
    if not ours or not theirs:
        return 0.0
    return min(1.0, THRESHOLDS.vocabulary_trust * len(ours & theirs) / min(len(ours), len(theirs)))


def _same_names(sides: tuple[Side, Side]) -> dict[int, int]:
    """The sites whose names normalise alike, where each side has one such site and the lists in the two paths count alike."""
    by_name: tuple[dict[str, list[int]], dict[str, list[int]]] = (defaultdict(list), defaultdict(list))
    for side, sites in zip(sides, by_name, strict=True):
        for number, name in enumerate(side.names):
            if name:
                sites[names.normalised(name)].append(number)
    lists = [names.lists(side.path) for side in sides]
    partner: dict[int, int] = {}
    for name, ours in by_name[0].items():
        theirs = by_name[1].get(name, [])
        if len(ours) == len(theirs) == 1:
            indices = [names.indices(side.path[site], known) for side, site, known in zip(sides, (ours[0], theirs[0]), lists, strict=True)]
            if indices[0] == indices[1]:
                partner[ours[0]] = theirs[0]
    return partner
