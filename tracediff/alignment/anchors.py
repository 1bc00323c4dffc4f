"""Anchors: pairs of sites that evidence singles out before anything is said of their callers; and how far callers share them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from tracediff.alignment.features import Features
from tracediff.alignment.structure import Side
from tracediff.alignment.thresholds import THRESHOLDS

Ranked = dict[int, list[tuple[float, int]]]


def anchored(scores: Mapping[tuple[int, int], float]) -> dict[int, int]:
    """Pairs of sites that are each other's best by ``scores``, and clearly better than the next candidate of either.

    >>> anchored({(0, 0): 3.0, (0, 1): 1.0, (1, 1): 2.0})
    {0: 0, 1: 1}
    >>> anchored({(0, 0): 3.0, (0, 1): 2.9})
    {}
    """
    by_reference: Ranked = defaultdict(list)
    by_port: Ranked = defaultdict(list)
    for (a, b), score in scores.items():
        by_reference[a].append((score, b))
        by_port[b].append((score, a))
    anchors: dict[int, int] = {}
    for a, candidates in by_reference.items():
        score, b = max(candidates)
        rivals = [other for other in candidates if other[1] != b] + [other for other in by_port[b] if other[1] != a]
        strongest = max(rivals, default=(0.0, -1))[0]
        if score >= THRESHOLDS.anchor and score - strongest >= THRESHOLDS.anchor_margin:
            anchors[a] = b
    return anchors


def overlaps(sides: tuple[Side, Side], anchors: Mapping[int, int]) -> dict[tuple[int, int], float]:
    """How far the anchored sites below two callers are the same, 0 to 1 (Dice); few common anchors count less."""
    common: dict[tuple[int, int], int] = defaultdict(int)
    totals: tuple[dict[int, int], dict[int, int]] = (defaultdict(int), defaultdict(int))
    for a, b in anchors.items():
        ours, theirs = sides[0].callers(a), sides[1].callers(b)
        for caller in ours:
            totals[0][caller] += 1
            for other in theirs:
                common[caller, other] += 1
        for other in theirs:
            totals[1][other] += 1
    doubt = THRESHOLDS.overlap_doubt
    return {(a, b): 2 * count / (totals[0][a] + totals[1][b]) * count / (count + doubt) for (a, b), count in common.items()}


class Misfit:
    """How badly two sites fit by what they own and do, whatever their parameters and values say."""

    def __init__(self, features: tuple[Features, Features], held_whole: set[tuple[int, int]]) -> None:
        self._properties = tuple(
            list(zip(*(getattr(side, name).tolist() for name in ("key", "function", "role", "identity", "leaf", "inside")), strict=True))
            for side in features
        )
        self._held_whole = held_whole

    def of(self, a: int, b: int) -> float:
        """What speaks against two sites: 0 where nothing does, else negative."""
        key, function, role, identity, leaf, inside = self._properties[0][a]
        other_key, other_function, other_role, other_identity, other_leaf, other_inside = self._properties[1][b]
        fit = 0.0
        if key != other_key:
            fit -= THRESHOLDS.misfit_largest if key and other_key else THRESHOLDS.misfit_owner
        if function != other_function:
            fit -= THRESHOLDS.misfit_function
        if role and other_role and role != other_role:
            fit -= THRESHOLDS.identity_different if identity != other_identity else THRESHOLDS.misfit_role
        if (a, b) in self._held_whole:
            return fit
        if leaf != other_leaf:
            holds_more = inside < other_inside if leaf else inside > other_inside
            fit -= THRESHOLDS.more_inside if holds_more else THRESHOLDS.misfit_leaf
        elif not leaf and max(inside, other_inside) > THRESHOLDS.much_more_inside * max(1, min(inside, other_inside)):
            fit -= THRESHOLDS.more_inside
        return fit
