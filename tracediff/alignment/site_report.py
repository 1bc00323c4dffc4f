"""Says in words and numbers why two sites are paired, and why a site has no partner."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property
from itertools import product
from typing import Any

from tracediff.alignment import names
from tracediff.alignment.matches import GIVEN, Match, Matches
from tracediff.alignment.result import SitePair, as_kind
from tracediff.alignment.structure import WEIGHT_NORM
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.site import RETURNED

REASONS = {"structure": "place among the calls", GIVEN: "stated", "anchor": "found nowhere else", "wrapped": "inside a wrapper"}
"""The reasons of matches in words; a reason that is not listed is worded already."""

RETURNS = "what the runs returned"


def site_pairs(found: Matches, stated: set[tuple[int, int]]) -> tuple[list[SitePair], list[tuple[int, Match]]]:
    """All pairs in the reference's order, the port's unpaired sites last; and each match with its place among them."""
    by_reference: dict[int, list[Match]] = {}
    for match in found.all():
        by_reference.setdefault(match.reference, []).append(match)
    words, alone = _PairReport(found, stated), _AloneReport(found)
    pairs: list[SitePair] = []
    places: list[tuple[int, Match]] = []
    for site in range(len(found.sides[0])):
        for match in by_reference.get(site, ()):
            places.append((len(pairs), match))
            pairs.append(words.pair(match))
        if site not in by_reference and alone.is_listed(0, site):
            pairs.append(alone.pair(0, site))
    pairs.extend(alone.pair(1, site) for site in range(len(found.sides[1])) if site not in found.partner[1] and alone.is_listed(1, site))
    return pairs, places


class _PairReport:
    """Why two sites are paired, and how surely."""

    def __init__(self, matches: Matches, stated: set[tuple[int, int]]) -> None:
        self.stated = stated
        self.evidence, self.sides = matches.evidence.pairs, matches.sides
        self.below = _shared_below(matches)

    def pair(self, match: Match) -> SitePair:
        reference, port = self.sides[0].names[match.reference], self.sides[1].names[match.port]
        rivals = tuple(self.sides[1].names[rival] for rival in match.rivals) if self._is_open(match) else ()
        confidence = self._confidence(match, is_open=bool(rivals))
        evidence = "; ".join(self._evidence(match))
        whole: Any = match.whole
        kind = as_kind(self.sides[0].kind[match.reference])
        rival = (self.sides[0].names[match.rival[0]], self.sides[1].names[match.rival[1]]) if match.rival else None
        return SitePair(reference, port, kind, evidence, confidence, rivals, match.part, whole, rival, tuple(match.voices))

    def _is_open(self, match: Match) -> bool:
        """Whether parameters and values leave open which of several similar sites is the partner."""
        strength = self.evidence.strength
        own = strength(match.reference, match.port)
        return match.reason != GIVEN and all(strength(match.reference, rival) + THRESHOLDS.rival_evidence > own for rival in match.rivals)

    def _evidence(self, match: Match) -> Iterator[str]:
        pair = match.reference, match.port
        if match.reason == GIVEN:
            yield self._statement(pair)
        owned, seen = self.evidence.parameters.get(pair), self.evidence.values.get(pair)
        if owned is not None:
            yield f"parameters: {owned.text}"
        if seen is not None:
            agreeing = [word for word, share in (("inputs", seen.inputs), ("outputs", seen.outputs)) if share > 0]
            yield f"values: {' and '.join(agreeing)} agree"
        ours, theirs = self._names(match)
        if ours == theirs:
            yield "same name"
        elif names.normalised(ours) == names.normalised(theirs):
            yield "like names"
        below = self.below.get(pair)
        if below is not None:
            yield f"{below:.0%} of what lies below"
        yield REASONS.get(match.reason, match.reason)

    def _statement(self, pair: tuple[int, int]) -> str:
        """What states a pair that no evidence needs."""
        if self.sides[0].names[pair[0]] == RETURNED:
            return RETURNS
        return "named so in a converted file" if pair in self.stated else "given by the mapping"

    def _names(self, match: Match) -> tuple[str, str]:
        return self.sides[0].names[match.reference], self.sides[1].names[match.port]

    def _confidence(self, match: Match, *, is_open: bool) -> float:
        """The confidence in a match, 0 to 1: a step for its evidence, with a little more or less for what else is known."""
        if match.reason == GIVEN:
            return 1.0
        pair = match.reference, match.port
        evidence = self.evidence.strength(*pair) + THRESHOLDS.overlap_worth * self.below.get(pair, 0.0)
        confidence = _step(evidence, is_part=match.part is not None)
        ours, theirs = self._names(match)
        if ours == theirs:
            confidence = max(confidence, THRESHOLDS.confidence_same_name)
        bonus = THRESHOLDS.confidence_bonus if evidence >= THRESHOLDS.extra_evidence else 0.0
        weak = THRESHOLDS.confidence_weak if match.score < THRESHOLDS.weak_score and evidence == 0 else 0.0
        confidence = confidence + bonus - weak - (THRESHOLDS.confidence_rivals if is_open else 0.0)
        return round(max(THRESHOLDS.confidence_least, confidence), 3)


def _step(evidence: float, *, is_part: bool) -> float:
    """The confidence that evidence from parameters, values and anchors below gives by itself."""
    if evidence >= THRESHOLDS.strong_evidence:
        return THRESHOLDS.confidence_strong
    if evidence >= THRESHOLDS.good_evidence or is_part:
        return THRESHOLDS.confidence_good
    return THRESHOLDS.confidence_some if evidence > 0 else THRESHOLDS.confidence_order


def _shared_below(matches: Matches) -> dict[tuple[int, int], float]:
    """How far the pairs with evidence of their own below two callers are the same, 0 to 1 (Dice); few of them count less."""
    common: Counter[tuple[int, int]] = Counter()
    totals: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for match in matches.partner[0].values():
        if match.part is None and matches.evidence.pairs.strength(match.reference, match.port) >= THRESHOLDS.good_evidence:
            callers = [side.callers(match.site(number)) for number, side in enumerate(matches.sides)]
            for number in (0, 1):
                totals[number].update(callers[number])
            common.update(product(callers[0], callers[1]))
    doubt = THRESHOLDS.overlap_doubt
    return {(a, b): 2 * count / (totals[0][a] + totals[1][b]) * count / (count + doubt) for (a, b), count in common.items()}


class _AloneReport:
    """Why a site has no partner, and which sites come nearest."""

    def __init__(self, matches: Matches) -> None:
        self.matches, self.sides = matches, matches.sides

    def is_listed(self, side: int, site: int) -> bool:
        """Whether a site without partner is worth a line: it was called, or owns parameters."""
        return self.sides[side].first_call[site] >= 0 or bool(self.sides[side].owned[site])

    def pair(self, side: int, site: int) -> SitePair:
        name = self.sides[side].names[site]
        candidates = tuple(self.sides[1 - side].names[other] for other in self._nearest[side].get(site, []))
        reference, port = (name, None) if side == 0 else (None, name)
        return SitePair(reference, port, as_kind(self.sides[side].kind[site]), self._reason(side, site), 0.0, candidates)

    def _reason(self, side: int, site: int) -> str:
        here = self.sides[side]
        if site in self.matches.ignored[side]:
            return "ignored by the mapping"
        if here.role[site] == WEIGHT_NORM:
            return "a weight norm: part of the module that it normalises"
        below = () if self.matches.features[side].leaf[site] else here.below(site)
        paired = [other for other in below if other in self.matches.partner[side]]
        owners = [other for other in paired if here.owned[other]]
        if len(owners) == 1:
            return f"a wrapper of {here.names[owners[0]]!r}, which is paired"
        if paired:
            return f"no counterpart for this level; {len(paired)} of the sites inside are paired"
        if here.first_call[site] < 0:
            return "never called, and its parameters were not found on the other side"
        if here.role[site] == "identity":
            return "changes nothing in this run, and has no counterpart"
        return "no counterpart found"

    @cached_property
    def _nearest(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """For the sites without partner on each side the nearest of those on the other."""
        found: tuple[dict[int, list[int]], dict[int, list[int]]] = (defaultdict(list), defaultdict(list))
        partner = self.matches.partner
        for a, b in self.matches.by_worth(THRESHOLDS.candidate_score):
            if a not in partner[0] and b not in partner[1] and self.is_listed(0, a) and self.is_listed(1, b):
                for of, site, other in ((found[0], a, b), (found[1], b, a)):
                    of[site] += [other] if len(of[site]) < THRESHOLDS.candidates_named else []
        return found
