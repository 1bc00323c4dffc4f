"""The pairs of sites found so far: one partner a site, and the parts of fused wholes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tracediff.alignment.axes import Part
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.alignment.voices import Evidence, Floats, Ints

GIVEN = "given"


@dataclass(slots=True)
class Match:
    """Two sites paired by their numbers: the score, the reason, the rivals in the port, and the part where one of them is a fused whole.

    ``whole`` is the side that holds the fused whole, "reference" or "port"; empty where ``part`` is None. ``rival`` is the nearest other
    pair of either site; ``voices``: what each source says of the match, and of the rival.
    """

    reference: int
    port: int
    score: float
    reason: str
    rivals: list[int] = field(default_factory=list)
    part: Part | None = None
    whole: str = ""
    rival: tuple[int, int] | None = None
    voices: list[tuple[str, float, float]] = field(default_factory=list)

    def site(self, side: int) -> int:
        """The site on side 0, the reference, or 1, the port."""
        return self.port if side else self.reference


def ordered(side: int, own: int, other: int) -> tuple[int, int]:
    """A site of ``side`` and one of the other side as (reference, port)."""
    return (other, own) if side else (own, other)


def given(reference: int, port: int, part: Part | None = None, whole: str = "") -> Match:
    """The match of two sites that a mapping states."""
    return Match(reference, port, THRESHOLDS.given_score, GIVEN, part=part, whole=whole)


class Matches:
    """The matches of each side's sites so far (``partner``), all parts of fused wholes (``fused``), and what a mapping leaves out."""

    def __init__(self, evidence: Evidence, ignored: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())) -> None:
        self.evidence, self.sides, self.features = evidence, evidence.sides, evidence.features
        self.ignored = ignored
        self.partner: tuple[dict[int, Match], dict[int, Match]] = ({}, {})
        self.fused: list[Match] = []
        self.candidates: tuple[Ints, Ints, Floats] = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))

    def all(self) -> list[Match]:
        """All matches in the order of the reference: one a site, and further ones for the parts of fused sites."""
        alone = [match for match in self.partner[0].values() if match.part is None]
        return sorted([*alone, *self.fused], key=lambda match: (match.reference, match.port))

    def by_worth(self, least: float) -> list[tuple[int, int]]:
        """The candidates of which the voices say more than ``least``, the best first."""
        a, b, worth = self.candidates
        ranked = np.argsort(-worth, kind="stable")[: np.count_nonzero(worth > least)]
        return list(zip(a[ranked].tolist(), b[ranked].tolist(), strict=True))

    def pair(self, match: Match) -> None:
        """Adds a match in place of earlier ones of its sites."""
        for side in (0, 1):
            self.unpair(side, match.site(side))
        self.partner[0][match.reference] = match
        self.partner[1][match.port] = match

    def unpair(self, side: int, site: int) -> None:
        """Removes the match of a site, if it has one."""
        match = self.partner[side].pop(site, None)
        if match is not None:
            self.partner[1 - side].pop(match.site(1 - side), None)

    def fuse(self, match: Match) -> None:
        """Adds the match of a part of a fused whole; an earlier match of either site stays."""
        self.fused.append(match)
        self.partner[0].setdefault(match.reference, match)
        self.partner[1].setdefault(match.port, match)

    def is_free(self, side: int, site: int) -> bool:
        """Whether a mapping leaves a site to be paired."""
        match = self.partner[side].get(site)
        return site not in self.ignored[side] and (match is None or match.reason != GIVEN)

    def unpaired(self, side: int, sites: Iterable[int]) -> list[int]:
        """The sites among some that have no partner and may have one, each once, by their numbers."""
        return sorted(site for site in set(sites) if site not in self.partner[side] and site not in self.ignored[side])
