"""Says in words and numbers why two sites are paired, and why a site has no partner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment import names
from tracediff.alignment.passes.state import GIVEN, Match, State
from tracediff.alignment.result import SitePair, as_kind
from tracediff.alignment.structure import WEIGHT_NORM
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.site import RETURNED

REASONS = {"structure": "place among the calls", GIVEN: "stated", "anchor": "found nowhere else", "wrapped": "inside a wrapper"}
"""The reasons of matches in words; a reason that is not listed is worded already."""

RETURNS = "what the runs returned"


def site_pairs(state: State, matches: Sequence[Match], stated: set[tuple[int, int]]) -> tuple[list[SitePair], list[tuple[int, Match]]]:
    """All pairs in the reference's order, the port's unpaired sites last; and each match with its place among them."""
    by_reference: dict[int, list[Match]] = {}
    for match in matches:
        by_reference.setdefault(match.reference, []).append(match)
    words, alone = _PairReport(state, stated), _AloneReport(state, matches)
    pairs: list[SitePair] = []
    places: list[tuple[int, Match]] = []
    for site in range(len(state.sides[0])):
        for match in by_reference.get(site, ()):
            places.append((len(pairs), match))
            pairs.append(words.pair(match))
        if site not in by_reference and alone.is_listed(0, site):
            pairs.append(alone.pair(0, site))
    paired = {match.port for match in matches}
    pairs.extend(alone.pair(1, site) for site in range(len(state.sides[1])) if site not in paired and alone.is_listed(1, site))
    return pairs, places


class _PairReport:
    """Why two sites are paired, and how surely."""

    def __init__(self, state: State, stated: set[tuple[int, int]]) -> None:
        self.stated = stated
        self.scores, self.sides = state.scores, state.sides

    def pair(self, match: Match) -> SitePair:
        reference, port = self.sides[0].names[match.reference], self.sides[1].names[match.port]
        rivals = tuple(self.sides[1].names[rival] for rival in match.rivals) if self._is_open(match) else ()
        confidence = self._confidence(match, is_open=bool(rivals))
        evidence = "; ".join(self._evidence(match))
        whole: Any = match.whole
        return SitePair(reference, port, as_kind(self.sides[0].kind[match.reference]), evidence, confidence, rivals, match.part, whole)

    def _is_open(self, match: Match) -> bool:
        """Whether parameters and values leave open which of several similar sites is the partner."""
        strength = self.scores.evidence.strength
        own = strength(match.reference, match.port)
        return match.reason != GIVEN and all(strength(match.reference, rival) + THRESHOLDS.rival_evidence > own for rival in match.rivals)

    def _evidence(self, match: Match) -> Iterator[str]:
        pair = match.reference, match.port
        if match.reason == GIVEN:
            yield self._statement(pair)
        owned, seen = self.scores.evidence.parameters.get(pair), self.scores.evidence.values.get(pair)
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
        below = self.scores.overlap.get(pair)
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
        evidence = self.scores.evidence.strength(*pair) + THRESHOLDS.overlap_worth * self.scores.overlap.get(pair, 0.0)
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


class _AloneReport:
    """Why a site has no partner, and which sites come nearest."""

    def __init__(self, state: State, matches: Sequence[Match]) -> None:
        self.state, self.sides = state, state.sides
        self.partner = {match.reference: match.port for match in matches}, {match.port: match.reference for match in matches}

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
        if site in self.state.ignored[side]:
            return "ignored by the mapping"
        if here.role[site] == WEIGHT_NORM:
            return "a weight norm: part of the module that it normalises"
        below = () if self.state.features[side].leaf[site] else here.below(site)
        paired = [other for other in below if other in self.partner[side]]
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
        """For the first sites without partner on each side the nearest of those on the other."""
        ours, theirs = ([site for site in range(len(self.sides[side])) if self._is_candidate(side, site)] for side in (0, 1))
        ours, theirs = ours[: THRESHOLDS.candidates_searched], theirs[: THRESHOLDS.candidates_searched]
        scores = self.state.scores.table(ours, theirs)
        return _best(scores, ours, theirs), _best(scores.T, theirs, ours)

    def _is_candidate(self, side: int, site: int) -> bool:
        return site not in self.partner[side] and self.is_listed(side, site)


def _best(scores: NDArray[np.float64], rows: list[int], columns: list[int]) -> dict[int, list[int]]:
    """The columns with the best scores of each row; ``scores``: (rows, columns)."""
    if not rows or not columns:
        return {}
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, : THRESHOLDS.candidates_named]
    return {site: [columns[j] for j in ranked[i].tolist() if scores[i, j] > THRESHOLDS.candidate_score] for i, site in enumerate(rows)}
