"""Pairs the sites of two traces by one assignment of all at once: what speaks for each pair, and the pairs for each other, adds up.

Each pair of sites has a gain: what `voices` say of it by itself, and what `ties` say by the other pairs, as far as those are believed.
Beliefs and gains take turns while the beliefs are cooled (graduated assignment), so that what is told early decides what is told late. Then
the best assignment is taken. A fault may silence any source, or deceive it, so none decides alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from tracediff.alignment.candidates import candidates
from tracediff.alignment.fused import fill_gaps, fuse_by_parameters, fuse_siblings
from tracediff.alignment.levels import pair_chains, pair_containers
from tracediff.alignment.matches import GIVEN, Match, Matches
from tracediff.alignment.soft_assignment import SoftAssignment
from tracediff.alignment.structure import Side
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.alignment.ties import Ties
from tracediff.alignment.voices import VOICES, Evidence, Floats, Ints, looked_up, of_places
from tracediff.alignment.votes import votes


def paired_sites(
    reference: Side, port: Side, given: Iterable[Match] = (), ignored: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
) -> Matches:
    """The pairs of sites; ``given`` and ``ignored`` are what a mapping states."""
    matches = Matches(Evidence(reference, port), ignored)
    for match in given:
        if match.part is None:
            matches.pair(match)
        else:
            matches.fuse(match)
    fuse_by_parameters(matches)
    fill_gaps(matches)
    table = Table(matches)
    first = table.solved(matches, THRESHOLDS.callers_differ)
    fused = fuse_siblings(matches, first)
    told = votes(matches, first)
    if fused or told.keys() - {(match.reference, match.port) for match in first}:
        table = Table(matches) if fused else table
        first = table.solved(matches, THRESHOLDS.callers_differ, told, first)
    for match in first:
        matches.pair(match)
    for match in table.solved(matches, THRESHOLDS.callers_differ_at_last, start=()):
        matches.pair(match)
    _part_crossing_identities(matches)
    pair_chains(matches)
    pair_containers(matches)
    return matches


def _part_crossing_identities(matches: Matches) -> None:
    """Takes back pairs of sites that change nothing in this run, and stand elsewhere among what their callers call.

    Only its place tells an idle dropout from any other, unless values do.
    """
    sides, features = matches.sides, matches.features
    for match in list(matches.partner[0].values()):
        a, b = match.reference, match.port
        if not (features[0].identity[a] and features[1].identity[b]) or match.reason == GIVEN or (a, b) in matches.evidence.pairs.by_values:
            continue
        callers = int(sides[0].parent[a]), int(sides[1].parent[b])
        beside = sides[0].children[callers[0]] if callers[0] >= 0 else ()
        others = ((site, matches.partner[0][site].port) for site in beside if site != a and site in matches.partner[0])
        for ours, theirs in others:
            is_before = sides[0].first_call[a] < sides[0].first_call[ours], sides[1].first_call[b] < sides[1].first_call[theirs]
            if int(sides[1].parent[theirs]) == callers[1] and is_before[0] != is_before[1]:
                matches.unpair(0, a)
                break


class Table:
    """The pairs ``a`` and ``b`` of sites that may be paired, or are, and what the voices say of each: (candidates,) each."""

    def __init__(self, matches: Matches) -> None:
        self.evidence = matches.evidence
        free = [
            [site for site in matches.unpaired(number, range(len(side))) if side.first_call[site] >= 0 or side.owned[site]]
            for number, side in enumerate(matches.sides)
        ]
        fixed = [(match.reference, match.port) for match in matches.all()]
        self.a, self.b, self.worth = matches.candidates = candidates(matches.evidence, (free[0], free[1]), fixed)
        self.ties = Ties(matches.evidence, self.a, self.b)
        side = matches.sides[0]
        self.turn = np.array([len(side.callers(site)) % 2 for site in range(len(side))], np.int64)[self.a]

    def solved(
        self, matches: Matches, price: float, told: dict[tuple[int, int], float] | None = None, start: Iterable[Match] | None = None
    ) -> list[Match]:
        """The best assignment of the sites that have no match yet.

        ``price``: of a pair whose callers are none. ``told``: what else is said of pairs. ``start``: the pairs that are believed at
        first, of a table that was solved before, for which half as many rounds do.
        """
        beliefs = self._marks(dict.fromkeys(((match.reference, match.port) for match in matches.all()), 1.0))
        taken = [np.isin(of, [*partner]) for of, partner in zip((self.a, self.b), matches.partner, strict=True)]
        open_ = np.flatnonzero(~taken[0] & ~taken[1])
        if not len(open_):
            return []
        votes_, known = self._marks(told or {}), self._marks({(match.reference, match.port): 1.0 for match in start or ()})
        soft = SoftAssignment(self.a[open_], self.b[open_], THRESHOLDS.worth_pairing)
        temperatures = np.geomspace(THRESHOLDS.hottest, THRESHOLDS.coldest, THRESHOLDS.rounds)
        if start is not None:
            temperatures = temperatures[len(temperatures) // 2 :]
        gains = self.worth + votes_
        beliefs[open_] = known[open_] if known.any() else soft.beliefs(gains[open_], temperatures[0])
        # Callers and what they call take turns: at once each would follow what the other was.
        for turn, temperature in enumerate(temperatures):
            said = self.ties.spoken(beliefs, price)
            gains = np.where(self.turn == turn % 2, (gains + self.worth + votes_ + sum(said.values())) / 2, gains)
            beliefs[open_] = soft.beliefs(gains[open_], temperature)
        chosen = open_[soft.best(beliefs[open_])]
        chosen = chosen[gains[chosen] > THRESHOLDS.worth_pairing]
        rivals = self._rivals(chosen)
        found = [Match(int(self.a[k]), int(self.b[k]), float(gains[k]), "structure", rivals.get(int(self.a[k]), [])) for k in chosen]
        return self._with_accounts(found, chosen, {**said, "votes": votes_}) if found else found

    def _marks(self, of: Mapping[tuple[int, int], float]) -> Floats:
        """What is known of some pairs, 0 of all others: (candidates,)."""
        return looked_up(self.evidence, self.a, self.b, of)

    def _with_accounts(self, found: list[Match], chosen: Ints, said: dict[str, Floats]) -> list[Match]:
        """The same matches, each with what every source says of it, and of the nearest rival of either of its sites."""
        a, b, gains = self.a, self.b, self.worth + sum(said.values())
        is_rival = np.ones(len(a), bool)
        is_rival[chosen] = False
        nearest, best = np.full(len(chosen), -1), np.full(len(chosen), -np.inf)
        for of in (a, b):
            ranked = np.flatnonzero(is_rival)[np.argsort(gains[is_rival], kind="stable")]
            last = np.full(int(of.max()) + 1, -1)
            last[of[ranked]] = ranked  # the last that is written, the best of each site, stays
            rival = last[of[chosen]]
            gain = np.where(rival >= 0, gains[rival], -np.inf)
            nearest, best = np.where(gain > best, rival, nearest), np.maximum(gain, best)
        both = np.concatenate([chosen, np.maximum(nearest, 0)])
        table = {voice.__name__.removeprefix("of_"): voice(self.evidence, a[both], b[both]) for voice in VOICES}
        table |= {name: worth[both] for name, worth in said.items()}
        values = np.round(np.stack([*table.values()]), 3).reshape(len(table), 2, -1).transpose(2, 0, 1).tolist()
        for match, rival, voices in zip(found, nearest.tolist(), values, strict=True):
            match.rival = (int(a[rival]), int(b[rival])) if rival >= 0 else None
            match.voices = [(name, ours, theirs) for name, (ours, theirs) in zip(table, voices, strict=True)]
        return found

    def _rivals(self, chosen: Ints) -> dict[int, list[int]]:
        """For each site that is paired the sites beside its partner of which the voices say nearly as much, order aside."""
        worth, callers = self.worth - of_places(self.evidence, self.a, self.b), self.evidence.sides[1].parent
        partner = np.full(int(self.a.max(initial=-1)) + 1, -1, np.int64)
        partner[self.a[chosen]] = chosen
        own = partner[self.a]
        beside = (own >= 0) & (own != np.arange(len(own))) & (callers[self.b] == callers[self.b[own]])
        near = beside & (worth > worth[own] - THRESHOLDS.rival_margin)
        found: dict[int, list[int]] = {}
        for place in np.flatnonzero(near).tolist():
            rivals = found.setdefault(int(self.a[place]), [])
            rivals += [int(self.b[place])] if len(rivals) < THRESHOLDS.rivals_named else []
        return found
