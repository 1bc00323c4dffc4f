"""Levels that only one side has: a model inside a model, an attention written out in its block. They are taken apart where that fits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracediff.alignment.features import size_of
from tracediff.alignment.scores import SAME_BAG, Scores

_MOST_STEPS = 12
_MOST_KINDS = 6


class Levels:
    """Takes apart the callers among siblings that have no counterpart on the other side but whose parts do."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self.features = scores.features
        self._known: dict[tuple[tuple[tuple[int, bool], ...], ...], list[tuple[int, int]]] = {}
        bags = self.features[0].bags
        self._empty = bags.index(()) if () in bags else -1
        # Holders of what one site of the other side owns, as a stack of recurrent layers: they are that site's counterpart as a whole.
        self._whole = [{pair[side] for pair in scores.parameters if not scores.sides[side].owned[pair[side]]} for side in (0, 1)]

    def called(self, side: int, site: int) -> list[int]:
        """What a site called, in order, then the modules it holds that own parameters but were never called."""
        return [*self.scores.sides[side].children[site], *self.features[side].uncalled.get(site, ())]

    def dissolved(self, rows: list[int], columns: list[int]) -> tuple[list[int], list[int]]:
        """The siblings with callers taken apart into what they call, wherever that makes the two sides fit better.

        One side may have a level that the other lacks: a model inside a model, an attention written out in its block.
        """
        lists = [rows, columns]
        kinds = self._kinds(0, rows), self._kinds(1, columns)
        if kinds[0] == kinds[1]:
            return rows, columns
        if kinds not in self._known:
            self._known[kinds] = self._steps(lists)
        for side, kind in self._known[kinds]:
            lists[side] = self._apart(side, lists[side], kind)
        return lists[0], lists[1]

    def _kinds(self, side: int, sites: Sequence[int]) -> tuple[tuple[int, bool], ...]:
        features = self.features[side]
        return tuple(sorted((int(features.bag[site]), bool(features.leaf[site])) for site in sites if features.bag[site] != self._empty))

    def _steps(self, lists: list[list[int]]) -> list[tuple[int, int]]:
        """Which kinds of caller to take apart on which side, one after the other."""
        steps: list[tuple[int, int]] = []
        fits = self._covered(lists)
        for _ in range(_MOST_STEPS):
            if fits >= SAME_BAG * min(self._weight(side, lists[side]) for side in (0, 1)):
                break
            better = self._best_dissolution(lists, fits)
            if better is None:
                break
            fits, lists, step = better
            steps.append(step)
        return steps

    def _apart(self, side: int, sites: Sequence[int], kind: int) -> list[int]:
        """The siblings with the callers of one kind taken apart."""
        return [part for site in sites for part in (self.called(side, site) if self._comes_apart(side, site, kind) else [site])]

    def _comes_apart(self, side: int, site: int, kind: int) -> bool:
        features = self.features[side]
        return bool(features.bag[site] == kind and not features.leaf[site] and site not in self._whole[side])

    def _best_dissolution(self, lists: list[list[int]], fits: float) -> tuple[float, list[list[int]], tuple[int, int]] | None:
        best: tuple[float, list[list[int]], tuple[int, int]] | None = None
        for side in (0, 1):
            feature = self.features[side]
            kinds = {int(feature.bag[site]) for site in lists[side] if not feature.leaf[site] and self.called(side, site)}
            for kind in sorted(kinds, key=lambda bag: -size_of(self.features[0].bags[bag]))[:_MOST_KINDS]:
                trial = list(lists)
                trial[side] = self._apart(side, lists[side], kind)
                covered = self._covered(trial)
                if covered > max(fits * 1.02, best[0] if best else 0.0) + 1e-9:
                    best = covered, trial, (side, kind)
        return best

    def _covered(self, lists: Sequence[Sequence[int]]) -> float:
        """How many parameter-owning sites the best assignment of two lists of siblings covers, each pair weighed by its likeness."""
        bags = self.features[0].bags
        counts = [np.unique(self.features[side].bag[np.asarray(lists[side], np.int64)], return_counts=True) for side in (0, 1)]
        table = np.array(
            [
                [self.scores.bags.of(int(x), int(y)) ** 2 * min(size_of(bags[int(x)]), size_of(bags[int(y)])) for y in counts[1][0]]
                for x in counts[0][0]
            ]
        )
        total, rows, columns = 0.0, counts[0][1].copy(), counts[1][1].copy()
        for place in np.argsort(-table, axis=None):
            i, j = np.unravel_index(int(place), table.shape)
            if table[i, j] <= 0:
                break
            taken = min(rows[i], columns[j])
            total += float(taken * table[i, j])
            rows[i] -= taken
            columns[j] -= taken
        return total

    def _weight(self, side: int, sites: Sequence[int]) -> float:
        return float(sum(size_of(self.features[0].bags[int(self.features[side].bag[site])]) for site in sites))
