"""What pairs of sites say of one another: callers of what they call, and the other way round.

All of it is asked of *beliefs*: how far each candidate is a pair, 0 to 1. A level that has no partner, as far as is believed, is passed
over: what it calls is taken for called by its caller.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tracediff.alignment.structure import Side
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.alignment.voices import Evidence, Flags, Floats, Ints, is_telling


class Ties:
    """The ties among candidates ``a`` (sites of the reference) and ``b`` (of the port), in the order of a, then b: (candidates,) each."""

    def __init__(self, evidence: Evidence, a: Ints, b: Ints) -> None:
        self.evidence, self.of = evidence, (a, b)
        self._width = len(evidence.sides[1])
        self._keys = a * self._width + b
        self._above = tuple(_callers(side, features.uncalled) for side, features in zip(evidence.sides, evidence.features, strict=True))
        self._chains = [_chain(above, of) for above, of in zip(self._above, self.of, strict=True)]  # (levels, candidates) each
        self._places = self._place(self._chains[0][:, None], self._chains[1][None])  # of callers of both: (levels, levels, candidates)
        telling = [is_telling(features) for features in evidence.features]
        self._telling = telling[0][a] & telling[1][b]
        outputs, called = evidence.codes("outputs", a, b), evidence.codes("called", a, b)
        alike = (outputs[0] == outputs[1]) | ~(called[0] & called[1])
        evident = np.isin(self._keys, [one * self._width + other for one, other in evidence.pairs.pairs])
        self._may_move = self._telling & (alike | evident)

    def spoken(self, beliefs: Floats, price: float) -> dict[str, Floats]:
        """What the ties say of each candidate; ``price``: of a pair whose callers are none."""
        sizes = [len(side) for side in self.evidence.sides]
        mass: list[Floats] = [np.bincount(of, beliefs, size).astype(np.float64) for of, size in zip(self.of, sizes, strict=True)]
        near = [_nearest(above, own >= THRESHOLDS.has_partner) for above, own in zip(self._above, mass, strict=True)]
        callers = self._callers(beliefs, mass, near)
        up = self._place(*callers)
        return {
            "callers": self._of_callers(beliefs, callers, up, price),
            "contents": self._of_contents(beliefs, mass),
        }

    def _callers(self, beliefs: Floats, mass: list[Floats], near: list[Ints]) -> tuple[Ints, Ints]:
        """The nearest callers of both sites of each candidate that have a partner, if the candidate is a pair.

        A caller of one whose partner might be the other has none then: it wraps that site.
        """
        callers = []
        for side, (above, own) in enumerate(zip(near, mass, strict=True)):
            caller = above[self.of[side]]
            itself = self._place(caller, self.of[1]) if side == 0 else self._place(self.of[0], caller)
            wraps = (itself >= 0) & (own[caller] - np.where(itself >= 0, beliefs[itself], 0.0) < THRESHOLDS.has_partner)
            callers.append(np.where(wraps, above[caller], caller))
        return callers[0], callers[1]

    def _place(self, a: Ints, b: Ints) -> Ints:
        """The place of pairs among the candidates; -1 where they are none."""
        keys = np.where((a >= 0) & (b >= 0), a * self._width + b, -1)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[place] == keys, place, -1)

    def _best(self, beliefs: Floats) -> tuple[Floats, Floats]:
        """The strongest belief in any partner of each site."""
        best = tuple(np.zeros(len(side)) for side in self.evidence.sides)
        for of, found in zip(self.of, best, strict=True):
            np.maximum.at(found, of, beliefs)
        return best[0], best[1]

    def _of_callers(self, beliefs: Floats, callers: tuple[Ints, Ints], up: Ints, price: float) -> Floats:
        """Against two sites whose callers are no pair, by how much less they are one than either is one with another site.

        What owns and calls nothing has no place of its own where both its caller and its partner's are none.
        """
        best = [np.where(caller >= 0, one[caller], 1.0) for one, caller in zip(self._best(beliefs), callers, strict=True)]
        both = np.where(up >= 0, beliefs[up], (callers[0] < 0) & (callers[1] < 0))
        share = np.minimum(1.0, both / np.maximum(np.maximum(*best), THRESHOLDS.least_belief))
        passed_over = [caller != chain[0] for caller, chain in zip(callers, self._chains, strict=True)]
        share = np.where(passed_over[0] & passed_over[1] & ~self._may_move, 0.0, share)
        return -(1.0 - share) * np.where(self._may_move, price, THRESHOLDS.callers_differ_unmoved)

    def _of_contents(self, beliefs: Floats, mass: list[Floats]) -> Floats:
        """For two callers that call the same pairs, against two whose calls have partners elsewhere. What is open says nothing.

        If two callers are a pair, theirs is all that is called below them through levels that then have no partner.
        """
        decided = beliefs**2 * np.where(self._telling, 1.0, THRESHOLDS.untelling_content)
        live = np.flatnonzero(decided > THRESHOLDS.least_belief)
        places, weight = self._places[:, :, live], decided[live]
        chains = [chain[:, live] for chain in self._chains]
        alone = [1.0 - own[chain] for own, chain in zip(mass, chains, strict=True)]
        totals = [
            _summed(chain, weight * _before(np.clip(lacking, 0.0, 1.0), 0), len(own))[of]
            for chain, lacking, own, of in zip(chains, alone, mass, self.of, strict=True)
        ]
        # A level is open as far as it has no partner but the one in question.
        itself = np.where(places >= 0, beliefs[places], 0.0)
        is_open = [np.clip(lacking + itself, 0.0, 1.0) for lacking in (alone[0][:, None], alone[1][None])]
        common = _summed(places, weight * _before(is_open[0], 0) * _before(is_open[1], 1), len(beliefs))
        elsewhere = np.maximum(np.maximum(*totals) - common, 0.0)
        said = THRESHOLDS.contents_common * common - THRESHOLDS.contents_elsewhere * elsewhere
        doubt = common + elsewhere + THRESHOLDS.overlap_doubt
        return np.where(said > 0, said / doubt, np.maximum(said, -THRESHOLDS.contents_elsewhere))


def _summed(of: Ints, weight: Floats, count: int) -> Floats:
    """The sum of the weights at each of so many numbers, those below 0 left out."""
    known = of >= 0
    return np.bincount(of[known], weight[known], count).astype(np.float64)


def _before(factors: Floats, axis: int) -> Floats:
    """The product of all factors before each along an axis."""
    first = np.ones_like(np.take(factors, [0], axis))
    product: Floats = np.concatenate([first, np.cumprod(factors, axis)[:-1] if axis == 0 else np.cumprod(factors, axis)[:, :-1]], axis)
    return product


def nearest_callers(evidence: Evidence, pairs: Iterable[tuple[int, int]]) -> tuple[Ints, Ints]:
    """The nearest caller of each site of either side that has a partner among some pairs; -1 where none has."""
    near = []
    for number, (side, features) in enumerate(zip(evidence.sides, evidence.features, strict=True)):
        has_partner = np.isin(np.arange(len(side)), [pair[number] for pair in pairs])
        near.append(_nearest(_callers(side, features.uncalled), has_partner))
    return near[0], near[1]


def _callers(side: Side, uncalled: dict[int, list[int]]) -> Ints:
    """The caller of each site; of a module that owns parameters and is never called the nearest holder that is called. -1 where none is."""
    above = side.parent.copy()
    for holder, sites in uncalled.items():
        above[sites] = holder if holder < len(side) else -1
    return above


def _chain(above: Ints, of: Ints) -> Ints:
    """The callers of some sites, the callers of those, and so on, the nearest first; -1 where there are no more: (levels, sites)."""
    chain = [above[of]]
    while len(chain) < THRESHOLDS.levels_passed_over and (chain[-1] >= 0).any():
        chain.append(np.where(chain[-1] >= 0, above[chain[-1]], -1))
    return np.stack(chain)


def _nearest(above: Ints, has_partner: Flags) -> Ints:
    """The nearest caller of each site that has a partner, -1 where none has."""
    near = above.copy()
    for _ in range(len(above)):
        lacking = (near >= 0) & ~has_partner[near]
        if not lacking.any():
            break
        near[lacking] = above[near[lacking]]
    return near
