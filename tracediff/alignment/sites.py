"""Pairs the sites of two traces by one assignment of all at once: what speaks for each pair, and the pairs for each other, adds up.

Each pair of sites has a gain: what `voices` say of it by itself, and what `ties` say by the other pairs, as far as those are believed.
Beliefs and gains take turns while the beliefs are cooled (graduated assignment), so that what is told early decides what is told late. Then
the best assignment is taken. A fault may silence any source, or deceive it, so none decides alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tracediff.alignment.candidates import candidates
from tracediff.alignment.fused import fill_gaps, fuse_by_parameters, fuse_siblings
from tracediff.alignment.levels import pair_chains, pair_containers
from tracediff.alignment.matches import Match, Matches
from tracediff.alignment.soft_assignment import SoftAssignment
from tracediff.alignment.structure import Side
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.alignment.ties import Ties
from tracediff.alignment.voices import VOICES, Evidence, Flags, Floats, Ints, of_places, spoken
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
    if told or fused:
        first = table.solved(matches, THRESHOLDS.callers_differ, told, first)
    for match in first:
        matches.pair(match)
    for match in table.solved(matches, THRESHOLDS.callers_differ_at_last):
        matches.pair(match)
    pair_chains(matches)
    pair_containers(matches)
    return matches


@dataclass
class Table:
    """The candidates ``a`` and ``b`` of all sites that may be paired, and what the voices say of each: (candidates,) each."""

    def __init__(self, matches: Matches) -> None:
        self.evidence = matches.evidence
        free = tuple(matches.unpaired(side, range(len(matches.sides[side]))) for side in (0, 1))
        self.a, self.b, self.worth = matches.candidates = candidates(matches.evidence, (free[0], free[1]))

    def solved(
        self, matches: Matches, price: float, told: dict[tuple[int, int], float] | None = None, start: Iterable[Match] = ()
    ) -> list[Match]:
        """The best assignment of the sites that have no match yet.

        ``price``: of a pair whose callers are none. ``told``: what else is said of pairs. ``start``: the pairs that are believed at first.
        """
        fixed = {(match.reference, match.port) for match in matches.all()}
        taken = [np.isin(of, [*partner]) for of, partner in zip((self.a, self.b), matches.partner, strict=True)]
        open_ = ~taken[0] & ~taken[1]
        pairs = zip(self.a[open_].tolist(), self.b[open_].tolist(), strict=True)
        keys = np.array(sorted({*pairs, *(told or ()), *fixed}), np.int64).reshape(-1, 2)
        a, b = keys[:, 0], keys[:, 1]
        worth = spoken(self.evidence, a, b)
        each = list(zip(a.tolist(), b.tolist(), strict=True))
        extra = np.array([(told or {}).get(pair, 0.0) for pair in each])
        is_open = np.array([pair not in fixed for pair in each], bool)
        return self._cooled(Problem(a, b, worth, extra, is_open), price, [(match.reference, match.port) for match in start])

    def _cooled(self, problem: Problem, price: float, start: list[tuple[int, int]]) -> list[Match]:
        a, b, is_open = problem.a, problem.b, problem.is_open
        ties, soft = Ties(self.evidence, a, b), SoftAssignment(a[is_open], b[is_open], THRESHOLDS.worth_pairing)
        temperatures = np.geomspace(THRESHOLDS.hottest, THRESHOLDS.coldest, THRESHOLDS.rounds)
        beliefs, gains = np.ones(len(a)), problem.worth + problem.told
        if start:
            temperatures = temperatures[len(temperatures) // 2 :]
            known = set(start)
            beliefs[is_open] = [pair in known for pair in zip(a[is_open].tolist(), b[is_open].tolist(), strict=True)]
        else:
            beliefs[is_open] = soft.beliefs(gains[is_open], temperatures[0])
        # Callers and what they call take turns: at once each would follow what the other was.
        depth = np.array([len(self.evidence.sides[0].callers(site)) for site in range(len(self.evidence.sides[0]))])[a] % 2
        for temperature in temperatures:
            for turn in (0, 1):
                said = ties.spoken(beliefs, price)
                gains = np.where(depth == turn, (gains + problem.worth + problem.told + sum(said.values())) / 2, gains)
                beliefs[is_open] = soft.beliefs(gains[is_open], temperature)
        chosen = np.flatnonzero(is_open)[soft.best(beliefs[is_open])]
        rivals = _rivals(problem, chosen, problem.worth - of_places(self.evidence, a, b), self.evidence.sides[1].parent)
        found = [Match(int(a[k]), int(b[k]), float(gains[k]), "structure", rivals.get(int(a[k]), [])) for k in chosen]
        return self._with_accounts(found, problem, chosen, {**said, "votes": problem.told}) if found else found

    def _with_accounts(self, found: list[Match], problem: Problem, chosen: Ints, said: dict[str, Floats]) -> list[Match]:
        """The same matches, each with what every source says of it, and of the nearest rival of either of its sites."""
        a, b, gains = problem.a, problem.b, problem.worth + sum(said.values())
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


def _rivals(problem: Problem, chosen: Ints, worth: Floats, callers: Ints) -> dict[int, list[int]]:
    """For each site that is paired the sites beside its partner of which the voices say nearly as much, order aside."""
    partner = np.full(int(problem.a.max(initial=-1)) + 1, -1, np.int64)
    partner[problem.a[chosen]] = chosen
    own = partner[problem.a]
    beside = (own >= 0) & (own != np.arange(len(own))) & (callers[problem.b] == callers[problem.b[own]])
    near = beside & (worth > worth[own] - THRESHOLDS.rival_margin)
    found: dict[int, list[int]] = {}
    for place in np.flatnonzero(near).tolist():
        rivals = found.setdefault(int(problem.a[place]), [])
        rivals += [int(problem.b[place])] if len(rivals) < THRESHOLDS.rivals_named else []
    return found


@dataclass(frozen=True)
class Problem:
    """What is assigned at once: candidates ``a`` and ``b``, what the voices say of each, what votes do, and which are open."""

    a: Ints
    b: Ints
    worth: Floats
    told: Floats
    is_open: Flags
