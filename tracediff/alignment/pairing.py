"""Puts an alignment together: the pairs of sites with their evidence in words, then the pairs of records."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment import mapping as maps
from tracediff.alignment import names
from tracediff.alignment.record_table import PairedSites
from tracediff.alignment.records import RecordPairs
from tracediff.alignment.result import Alignment, SitePair
from tracediff.alignment.sites import Match, Matcher
from tracediff.alignment.structure import WEIGHT_NORM, Side
from tracediff.errors import AlignmentError

_MOST_CANDIDATES = 3
_MOST_SEARCHED = 1000
_WORTH_NAMING = 0.2  # the least score of a candidate


def align_sides(reference: Side, port: Side, mapping: str | os.PathLike[str] | Mapping[str, Any] | None = None) -> Alignment:
    """The alignment of two sides; see `tracediff.alignment.align`."""
    for side, who in ((reference, "reference"), (port, "port")):
        if not len(side.index):
            raise AlignmentError(f"The {who} {str(side.trace.path)!r} holds no records, so nothing can be paired; capture it again.")
    given = maps.read(mapping, reference.names, port.names)
    stated = _stated_by_name(reference, port, given)
    matcher = Matcher(
        reference,
        port,
        given=[*((one.reference, one.port) for one in given.pairs if one.part is None), *stated],
        fused=[Match(one.reference, one.port, 9.0, "given", part=one.part, whole=one.whole) for one in given.pairs if one.part is not None],
        ignored=given.ignored,
    )
    matches = matcher.run()
    if not matches:
        raise AlignmentError(_nothing_shared(reference, port))
    pairs, places = _site_pairs(matcher, matches, stated)
    permutations = {(one.reference, one.port): one.permutation for one in given.pairs}
    paired = [
        PairedSites(
            place,
            match.reference,
            match.port,
            pairs[place].confidence,
            permutations.get((match.reference, match.port)),
            match.part,
            match.whole,
        )
        for place, match in places
    ]
    records = RecordPairs((reference, port), [*paired, *_around(matcher, paired)]).run()
    return Alignment(
        tuple(pairs),
        tuple(records),
        _left(reference, (row for pair in records for row in pair.reference)),
        _left(port, (row for pair in records for row in pair.port)),
    )


def _around(matcher: Matcher, paired: Iterable[PairedSites]) -> list[PairedSites]:
    """Wrappers that change what their only call returns although others of their class do not: their outputs stand beside the same."""
    known = list(paired)
    taken = [{one.reference for one in known}, {one.port for one in known}]
    found: list[PairedSites] = []
    for number, side in enumerate(matcher.sides):
        inner = {site: side.children[site][0] for site in range(side.called) if len(side.children[site]) == 1}
        kinds: dict[str, list[bool]] = {}
        for site, child in inner.items():
            if side.type[site] and side.type[child]:
                kinds.setdefault(side.type[site], []).append(_hands_on(side, site, child))
        for one in known:
            site = int(side.parent[one.reference if number == 0 else one.port])
            own = one.reference if number == 0 else one.port
            hands_on = kinds.get(side.type[site], []) if inner.get(site) == own and site not in taken[number] else []
            if one.part is None and sum(hands_on) > len(hands_on) / 2 and not _hands_on(side, site, own):
                ends = {"reference": site} if number == 0 else {"port": site}
                found.append(replace(one, outputs_only=True, permutation=None, **ends))  # type: ignore[arg-type]
    return found


def _hands_on(side: Side, site: int, child: int) -> bool:
    """Whether a site returns what its only call returned, in whatever order of axes."""
    outputs = [side.ends_of(int(side.first_call[one]))[1][:1] for one in (site, child)]
    if not outputs[0] or not outputs[1]:
        return False
    ours, theirs = (side.index[rows[0]] for rows in outputs)
    return all(math.isclose(float(ours[name]), float(theirs[name]), rel_tol=1e-6) for name in ("count", "l2", "min", "max"))


def _stated_by_name(reference: Side, port: Side, given: maps.GivenMap) -> set[tuple[int, int]]:
    """Sites of equal names, where a side's names were chosen by a person (a converted file): the names then state the pairs.

    What a mapping says of a site goes before.
    """
    if not any((side.trace.meta.get("converted") or {}).get("names") == "stated" for side in (reference, port)):
        return set()
    taken = {one.reference for one in given.pairs} | given.ignored[0], {one.port for one in given.pairs} | given.ignored[1]
    ours, theirs = ({side.names[site]: site for site in range(side.called)} for side in (reference, port))
    return {(site, theirs[name]) for name, site in ours.items() if name in theirs and site not in taken[0] and theirs[name] not in taken[1]}


def _left(side: Side, used: Iterable[int]) -> tuple[int, ...]:
    free = np.ones(len(side.index), bool)
    free[list(set(used))] = False
    return tuple(np.flatnonzero(free).tolist())


def _nothing_shared(reference: Side, port: Side) -> str:
    return (
        f"The two traces share nothing that could be paired: the reference {str(reference.trace.path)!r} has {reference.called} sites "
        f"such as {reference.names[0]!r}, the port {str(port.trace.path)!r} has {port.called} such as {port.names[0]!r}, and no "
        "parameter, value, shape or order agrees. Are they runs of the same model? A mapping file can state pairs: --map FILE"
    )


# -- pairs of sites in words -----------------------------------------------------------------------------


def _site_pairs(matcher: Matcher, matches: list[Match], stated: set[tuple[int, int]]) -> tuple[list[SitePair], list[tuple[int, Match]]]:
    """All pairs in the reference's order, the port's unpaired sites last; and each match with its place among them."""
    by_reference: dict[int, list[Match]] = {}
    for match in matches:
        by_reference.setdefault(match.reference, []).append(match)
    told = _Told(matcher, matches, stated)
    pairs: list[SitePair] = []
    places: list[tuple[int, Match]] = []
    for site in range(len(matcher.sides[0])):
        for match in by_reference.get(site, ()):
            places.append((len(pairs), match))
            pairs.append(told.pair(match))
        if site not in by_reference and told.is_listed(0, site):
            pairs.append(told.alone(0, site))
    paired = {match.port for match in matches}
    pairs.extend(told.alone(1, site) for site in range(len(matcher.sides[1])) if site not in paired and told.is_listed(1, site))
    return pairs, places


class _Told:
    """Words and numbers for what the matcher found."""

    def __init__(self, matcher: Matcher, matches: Iterable[Match], stated: set[tuple[int, int]]) -> None:
        self.matcher = matcher
        self.stated = stated
        self.scores = matcher.scores
        self.sides = matcher.sides
        chosen = list(matches)
        self.free = (
            sorted(set(range(len(self.sides[0]))) - {match.reference for match in chosen}),
            sorted(set(range(len(self.sides[1]))) - {match.port for match in chosen}),
        )
        self.partner = {match.reference: match.port for match in chosen}, {match.port: match.reference for match in chosen}

    def pair(self, match: Match) -> SitePair:
        a, b = match.reference, match.port
        reference, port = self.sides[0].names[a], self.sides[1].names[b]
        rivals = tuple(self.sides[1].names[rival] for rival in match.rivals) if self._is_open(match) else ()
        confidence = self._confidence(match, bool(rivals))
        return SitePair(
            reference, port, self._kind(a), "; ".join(self._evidence(match)), confidence, rivals, match.part, _whole(match.whole)
        )

    def _kind(self, site: int) -> Literal["module", "method", "function", "tap"]:
        kind: Any = self.sides[0].kind[site]
        return kind  # type: ignore[no-any-return]

    def _is_open(self, match: Match) -> bool:
        """Whether parameters and values leave open which of several like sites is meant."""
        told = self.scores.told(match.reference, match.port)
        return match.by != "given" and all(self.scores.told(match.reference, rival) + 0.1 > told for rival in match.rivals)

    def _evidence(self, match: Match) -> Iterable[str]:
        a, b = match.reference, match.port
        if match.by == "given":
            yield "named so in a converted file" if (a, b) in self.stated else "given by the mapping"
        owned, seen = self.scores.parameters.get((a, b)), self.scores.values.get((a, b))
        if owned is not None:
            yield f"parameters: {owned.text}"
        if seen is not None:
            yield (
                "values: "
                + " and ".join(word for word, share in (("inputs", seen.inputs), ("outputs", seen.outputs)) if share > 0)
                + " agree"
            )
        if self.sides[0].names[a] == self.sides[1].names[b]:
            yield "same name"
        elif names.normalised(self.sides[0].names[a]) == names.normalised(self.sides[1].names[b]):
            yield "like names"
        below = self.scores.overlap.get((a, b))
        if below is not None:
            yield f"{below:.0%} of what lies below"
        yield {"structure": "place among the calls", "given": "stated", "anchor": "found nowhere else", "wrapped": "inside a wrapper"}.get(
            match.by, match.by
        )

    def _confidence(self, match: Match, is_open: bool) -> float:
        if match.by == "given":
            return 1.0
        told = self.scores.told(match.reference, match.port) + 2.5 * self.scores.overlap.get((match.reference, match.port), 0.0)
        base = 0.97 if told >= 1.8 else 0.93 if told >= 0.9 or match.part is not None else 0.88 if told > 0 else 0.6
        if self.sides[0].names[match.reference] == self.sides[1].names[match.port]:
            base = max(base, 0.9)
        bonus = 0.02 if told >= 3.5 else 0.0
        weak = 0.15 if match.score < 0.8 and told == 0 else 0.0
        return round(max(0.05, base + bonus - weak - (0.2 if is_open else 0.0)), 3)

    # -- sites without partner -------------------------------------------------------------------------------

    def is_listed(self, side: int, site: int) -> bool:
        """Whether a site without partner is worth a line: it was called, or owns parameters."""
        return self.sides[side].first_call[site] >= 0 or bool(self.sides[side].owned[site])

    def alone(self, side: int, site: int) -> SitePair:
        name = self.sides[side].names[site]
        kind: Any = self.sides[side].kind[site]
        candidates = self._candidates(side, site)
        reference, port = (name, None) if side == 0 else (None, name)
        return SitePair(
            reference, port, kind, self._why_alone(side, site), 0.0, tuple(self.sides[1 - side].names[other] for other in candidates)
        )

    def _why_alone(self, side: int, site: int) -> str:
        here = self.sides[side]
        if site in self.matcher.ignored[side]:
            return "ignored by the mapping"
        if here.role[site] == WEIGHT_NORM:
            return "a weight norm: part of the module that it normalises"
        inside = [other for other in here.below(site) if other in self.partner[side]] if not self.matcher.features[side].leaf[site] else []
        if len([other for other in inside if here.owned[other]]) == 1:
            owner = next(other for other in inside if here.owned[other])
            return f"a wrapper of {here.names[owner]!r}, which is paired"
        if inside:
            return f"no counterpart for this level; {len(inside)} of the sites inside are paired"
        if here.first_call[site] < 0:
            return "never called, and its parameters were not found on the other side"
        if here.role[site] == "identity":
            return "changes nothing in this run, and has no counterpart"
        return "no counterpart found"

    def _candidates(self, side: int, site: int) -> list[int]:
        """The nearest sites without partner on the other side."""
        return self._nearest[side].get(site, [])

    @cached_property
    def _nearest(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """Of the sites without partner on each side (the first few hundred) the nearest of those on the other."""
        free = [[site for site in self.free[side] if self.is_listed(side, site)][:_MOST_SEARCHED] for side in (0, 1)]
        scores = self.scores.table(free[0], free[1])
        return _best(scores, free[0], free[1]), _best(scores.T, free[1], free[0])


def _best(scores: NDArray[np.float64], rows: list[int], columns: list[int]) -> dict[int, list[int]]:
    """The columns with the best scores of each row."""
    if not rows or not columns:
        return {}
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :_MOST_CANDIDATES]
    return {site: [columns[j] for j in ranked[i].tolist() if scores[i, j] > _WORTH_NAMING] for i, site in enumerate(rows)}


def _whole(text: str) -> Literal["", "reference", "port"]:
    return "reference" if text == "reference" else "port" if text == "port" else ""
