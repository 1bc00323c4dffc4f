"""Which sites of the port may be the partner of which of the reference: few a site, however many there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.alignment.voices import Evidence, Floats, Ints, spoken


def candidates(
    evidence: Evidence, free: tuple[Sequence[int], Sequence[int]], fixed: Sequence[tuple[int, int]] = ()
) -> tuple[Ints, Ints, Floats]:
    """The pairs that may be, each once in the order of the reference, then of the port; and what all voices say of them.

    ``free``: the sites of each side that may have a partner; ``fixed``: the pairs that are settled, which are among the answer. Few
    sites are all asked about each other; of many those whose parameters have the same axes and whose places among their like are near.
    The best of each site are kept.
    """
    width = len(evidence.sides[1])
    known = np.array([a * width + b for a, b in (*evidence.pairs.pairs, *evidence.names.partner.items())], np.int64)
    keys = np.unique(np.concatenate([known, *_of_like(evidence, free, width)]))
    is_free = [np.isin(np.arange(len(side)), sites) for side, sites in zip(evidence.sides, free, strict=True)]
    keys = keys[is_free[0][keys // width] & is_free[1][keys % width]]
    worth = spoken(evidence, keys // width, keys % width)
    keys, worth = keys[worth > THRESHOLDS.hopeless], worth[worth > THRESHOLDS.hopeless]
    a, b = keys // width, keys % width
    places = [np.argsort(np.argsort(order)) / max(1, len(order)) for order in evidence.order]
    apart = np.abs(places[0][a] - places[1][b])
    kept = (_rank(a, worth, apart) < THRESHOLDS.candidates) | (_rank(b, worth, apart) < THRESHOLDS.candidates)
    settled = np.array([a * width + b for a, b in fixed], np.int64)
    keys, worth = np.concatenate([keys[kept], settled]), np.concatenate([worth[kept], np.zeros(len(settled))])
    keys, first = np.unique(keys, return_index=True)
    return keys // width, keys % width, worth[first]


def _of_like(evidence: Evidence, free: tuple[Sequence[int], Sequence[int]], width: int) -> Iterator[Ints]:
    """The pairs of sites that may be alike, as numbers a * width + b: all of one function, or modules; near ones where those are many."""
    groups = [_grouped(evidence, side, sites, ("function",)) for side, sites in enumerate(free)]
    for label, ours in groups[0].items():
        theirs = groups[1].get(label, np.empty(0, np.int64))
        if len(ours) * len(theirs) <= THRESHOLDS.all_pairs:
            yield (ours[:, None] * width + theirs[None, :]).ravel()
            continue
        finer = [_grouped(evidence, side, sites, ("role", "key", "bag")) for side, sites in enumerate((ours, theirs))]
        for kind, some in finer[0].items():
            others = finer[1].get(kind, np.empty(0, np.int64))
            if len(some) * len(others) <= THRESHOLDS.all_pairs:
                yield (some[:, None] * width + others[None, :]).ravel()
            else:
                yield from _near(some, others, width)


def _near(ours: Ints, theirs: Ints, width: int) -> Iterator[Ints]:
    """The pairs of sites, both in order, that are about as far from the first, or from the last, of their like."""
    places, reach = np.arange(len(ours)), THRESHOLDS.candidates // 2
    for shift in {0, len(theirs) - len(ours)}:
        for step in range(-reach, reach + 1):
            other = places + shift + step
            inside = (other >= 0) & (other < len(theirs))
            yield ours[inside] * width + theirs[other[inside]]


def _grouped(evidence: Evidence, side: int, sites: Sequence[int] | Ints, names: Sequence[str]) -> dict[tuple[int, ...], Ints]:
    """The sites of a side by some of their features, each group in the order of the calls."""
    chosen = np.array(sites, np.int64)
    ordered = chosen[np.argsort(evidence.order[side][chosen], kind="stable")]
    columns = np.stack([getattr(evidence.features[side], name)[ordered] for name in names])
    labels, group = np.unique(columns, axis=1, return_inverse=True)
    return {tuple(labels[:, place].tolist()): ordered[group == place] for place in range(labels.shape[1])}


def _rank(of: Ints, worth: Floats, apart: Floats) -> Ints:
    """The place of each candidate among those of its site: the best first, of those that are as good the nearest."""
    order = np.lexsort((apart, -np.round(worth, 6), of))
    starts = np.flatnonzero(np.diff(of[order], prepend=-1))
    counts = np.diff(starts, append=len(of))
    rank = np.empty(len(of), np.int64)
    rank[order] = np.arange(len(of)) - np.repeat(starts, counts)
    return rank
