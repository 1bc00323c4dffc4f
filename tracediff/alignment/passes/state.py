"""What all passes share: the pairs of sites found so far, and the evidence on which they are found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tracediff.alignment.axes import Part
from tracediff.alignment.scores import Scores
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.alignment.wrappers import Levels

GIVEN = "given"


@dataclass(slots=True)
class Match:
    """Two sites paired by their numbers: the score, the reason, the rivals in the port, and the part where one of them is a fused whole.

    ``whole`` is the side that holds the fused whole, "reference" or "port"; empty where ``part`` is None.
    """

    reference: int
    port: int
    score: float
    reason: str
    rivals: list[int] = field(default_factory=list)
    part: Part | None = None
    whole: str = ""

    @property
    def may_change(self) -> bool:
        """Whether a pass may undo the match: a mapping does not state it, and it is not a part of a fused whole."""
        return self.reason != GIVEN and self.part is None

    def site(self, side: int) -> int:
        """The site on side 0, the reference, or 1, the port."""
        return self.port if side else self.reference


def ordered(side: int, own: int, other: int) -> tuple[int, int]:
    """A site of ``side`` and one of the other side as (reference, port)."""
    return (other, own) if side else (own, other)


def given(reference: int, port: int, part: Part | None = None, whole: str = "") -> Match:
    """The match of two sites that a mapping states."""
    return Match(reference, port, THRESHOLDS.given_score, GIVEN, part=part, whole=whole)


class State:
    """The matches of each side's sites so far (``partner``), all parts of fused wholes (``fused``), and what a mapping leaves out."""

    def __init__(self, scores: Scores, ignored: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())) -> None:
        self.scores, self.levels = scores, Levels(scores)
        self.sides, self.features = scores.sides, scores.features
        self.ignored = ignored
        self.partner: tuple[dict[int, Match], dict[int, Match]] = ({}, {})
        self.fused: list[Match] = []
        self.visited: set[tuple[int, int]] = set()  # pairs of callers whose insides were paired

    def matches(self) -> list[Match]:
        """All matches in the order of the reference: one a site, and further ones for the parts of fused sites."""
        alone = [match for match in self.partner[0].values() if match.part is None]
        return sorted([*alone, *self.fused], key=lambda match: (match.reference, match.port))

    def pair(self, match: Match) -> None:
        """Adds a match in place of earlier ones of its sites."""
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

    def is_consistent(self, a: int, b: int) -> bool:
        """Whether what is already paired below two callers is mostly paired with what lies below the other."""
        if self.features[0].leaf[a] or self.features[1].leaf[b]:
            return True
        ours = [self.partner[0][site].port for site in self.sides[0].below(a) if site in self.partner[0]]
        theirs = {site for site in self.sides[1].below(b) if site in self.partner[1]}
        common = sum(site in theirs for site in ours)
        return 2 * common >= THRESHOLDS.consistent * (len(ours) + len(theirs))

    def may_move(self, a: int, b: int) -> bool:
        """Whether two sites in different places return the same shapes, or evidence says that they are one."""
        ours, theirs = self.features
        is_called = ours.called[a] and theirs.called[b]
        return bool(ours.outputs[a] == theirs.outputs[b] or not is_called or self.scores.evidence.strength(a, b) > 0)
