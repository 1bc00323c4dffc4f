"""Levels that only one side has: a model inside a model, an attention written out in its block. They are taken apart where that fits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracediff.alignment.features import size_of
from tracediff.alignment.scores import Scores
from tracediff.alignment.thresholds import THRESHOLDS

Step = tuple[int, int]
"""A kind of caller that is taken apart: the side, and the code of the bag."""


class Levels:
    """Takes apart those callers among siblings that have no counterpart on the other side but whose parts do."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self.features = scores.features
        self._steps_of: dict[tuple[tuple[tuple[int, bool], ...], ...], list[Step]] = {}
        bags = self.features[0].bags
        self._empty = bags.index(()) if () in bags else -1
        # Holders of what one site of the other side owns, as a stack of recurrent layers: the holder as a whole is that site's partner.
        pairs = scores.evidence.parameters
        self._whole = [{pair[side] for pair in pairs if not scores.sides[side].owned[pair[side]]} for side in (0, 1)]

    def called(self, side: int, site: int) -> list[int]:
        """What a site called, in order, then the modules it holds that own parameters but were never called."""
        return [*self.scores.sides[side].children[site], *self.features[side].uncalled.get(site, ())]

    def dissolved(self, rows: list[int], columns: list[int]) -> tuple[list[int], list[int]]:
        """The siblings of both sides, with callers taken apart into what they call wherever the two sides then fit better."""
        siblings = [rows, columns]
        kinds = self._kinds(0, rows), self._kinds(1, columns)
        if kinds[0] == kinds[1]:
            return rows, columns
        if kinds not in self._steps_of:
            self._steps_of[kinds] = self._steps(siblings)
        for side, kind in self._steps_of[kinds]:
            siblings[side] = self._apart(side, siblings[side], kind)
        return siblings[0], siblings[1]

    def _kinds(self, side: int, sites: Sequence[int]) -> tuple[tuple[int, bool], ...]:
        features = self.features[side]
        return tuple(sorted((int(features.bag[site]), bool(features.leaf[site])) for site in sites if features.bag[site] != self._empty))

    def _steps(self, siblings: list[list[int]]) -> list[Step]:
        """Which kinds of caller to take apart on which side, one after the other."""
        steps: list[Step] = []
        covered = self._covered(siblings)
        for _ in range(THRESHOLDS.dissolved_levels):
            if covered >= THRESHOLDS.same_bag * min(self._weight(side, siblings[side]) for side in (0, 1)):
                break
            better = self._best_step(siblings, covered)
            if better is None:
                break
            covered, siblings, step = better
            steps.append(step)
        return steps

    def _apart(self, side: int, sites: Sequence[int], kind: int) -> list[int]:
        """The siblings with the callers of one kind taken apart."""
        return [part for site in sites for part in (self.called(side, site) if self._comes_apart(side, site, kind) else [site])]

    def _comes_apart(self, side: int, site: int, kind: int) -> bool:
        features = self.features[side]
        return bool(features.bag[site] == kind and not features.leaf[site] and site not in self._whole[side])

    def _best_step(self, siblings: list[list[int]], covered: float) -> tuple[float, list[list[int]], Step] | None:
        """The step after which most is covered, with what is covered and the siblings then; None where no step gains enough."""
        best: tuple[float, list[list[int]], Step] | None = None
        for side in (0, 1):
            features = self.features[side]
            kinds = {int(features.bag[site]) for site in siblings[side] if not features.leaf[site] and self.called(side, site)}
            largest_first = sorted(kinds, key=lambda bag: -size_of(self.features[0].bags[bag]))
            for kind in largest_first[: THRESHOLDS.dissolved_kinds]:
                trial = list(siblings)
                trial[side] = self._apart(side, siblings[side], kind)
                gained = self._covered(trial)
                if gained > max(covered * THRESHOLDS.dissolved_gain, best[0] if best else 0.0) + 1e-9:
                    best = gained, trial, (side, kind)
        return best

    def _covered(self, siblings: Sequence[Sequence[int]]) -> float:
        """How many parameter-owning sites the best assignment of two lists of siblings covers, each pair weighed by its likeness."""
        counts = [np.unique(self.features[side].bag[np.asarray(siblings[side], np.int64)], return_counts=True) for side in (0, 1)]
        worth = np.array([[self._worth(int(x), int(y)) for y in counts[1][0]] for x in counts[0][0]])  # (kinds, kinds)
        total, rows, columns = 0.0, counts[0][1].copy(), counts[1][1].copy()
        for place in np.argsort(-worth, axis=None):
            i, j = np.unravel_index(int(place), worth.shape)
            if worth[i, j] <= 0:
                break
            taken = min(rows[i], columns[j])
            total += float(taken * worth[i, j])
            rows[i] -= taken
            columns[j] -= taken
        return total

    def _worth(self, ours: int, theirs: int) -> float:
        """How many sites a pair of callers with these bags covers, weighed by the bags' likeness."""
        bags = self.features[0].bags
        return self.scores.bags.of(ours, theirs) ** 2 * min(size_of(bags[ours]), size_of(bags[theirs]))

    def _weight(self, side: int, sites: Sequence[int]) -> float:
        return float(sum(size_of(self.features[0].bags[int(self.features[side].bag[site])]) for site in sites))
