"""Which projections make the queries and the keys of an attention that is written out.

Where neither weights nor values agree, projections of one shape differ only by what is done with them. An attention function names its
boundaries. Where there is only a softmax, its input is compared with the products of the projections that were called before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np

from tracediff.alignment.structure import INPUT, OUTPUT, Side
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.dtype import MASKED, Array

QUERY, KEY = 1, 2


def roles(side: Side, projections: Sequence[bool]) -> dict[int, int]:
    """The sites that are found to be QUERY or KEY; ``projections`` says of each site whether it may be a projection."""
    found: dict[int, int] = {}
    softmaxes = [site for site in range(side.called) if side.function[site] == "softmax"][: THRESHOLDS.attention_softmaxes]
    for site in softmaxes:
        caller = int(side.parent[site])
        if caller >= 0:
            before = [other for other in side.children[caller] if projections[other] and side.first_call[other] < side.first_call[site]]
            query, key = _makers(side, site, before[-THRESHOLDS.attention_candidates :])
            if query >= 0:
                found[query], found[key] = QUERY, KEY
    return found


def _makers(side: Side, softmax: int, candidates: Sequence[int]) -> tuple[int, int]:
    """The two projections whose products come nearest to the softmax's input, queries first; (-1, -1) where none come near."""
    scores = _first(side, softmax, INPUT)
    if scores is None or scores.ndim < 3:
        return -1, -1
    heads = scores.reshape(-1, *scores.shape[-2:])
    outputs = {site: values for site in candidates if (values := _first(side, site, OUTPUT)) is not None and values.ndim >= 3}
    best = (THRESHOLDS.attention_correlation, -1, -1)
    for query, key in permutations(outputs, 2):
        likeness = max(_likenesses(heads, outputs[query], outputs[key]), default=0.0)
        best = max(best, (likeness, query, key))
    return best[1], best[2]


def _likenesses(scores: Array, query: Array, key: Array) -> Iterator[float]:
    """How the first head's scores correlate with the products of two projections, for each head size that the shapes allow.

    ``scores``: (batch * heads, queries, keys); ``query`` and ``key``: (batch, steps, channels).
    """
    q, k = query[0].reshape(-1, query.shape[-1]), key[0].reshape(-1, key.shape[-1])
    if q.shape[0] != scores.shape[1] or k.shape[0] != scores.shape[2]:
        return
    steps = THRESHOLDS.attention_steps
    seen = scores[0, :steps, :steps].astype(np.float64)
    for count in {count for count in range(1, scores.shape[0] + 1) if scores.shape[0] % count == 0 and q.shape[1] % count == 0}:
        size = q.shape[1] // count
        made = q[:steps, :size].astype(np.float64) @ k[:steps, :size].astype(np.float64).T if size <= k.shape[1] else seen * 0
        yield _correlation(seen, made)


def _correlation(seen: Array, made: Array) -> float:
    open_ = np.isfinite(seen) & (seen > MASKED)
    if open_.sum() < THRESHOLDS.attention_entries or not seen[open_].std() or not made[open_].std():
        return 0.0
    return float(np.corrcoef(seen[open_], made[open_])[0, 1])


def _first(side: Side, site: int, kind: int) -> Array | None:
    """The first floating-point tensor of a kind at a site's first call, where it was stored and is not too large."""
    for row in side.calls.rows_of(int(side.first_call[site])).tolist():
        record = side.trace.records[row]
        if (
            side.end_kind[row] == kind
            and record.stored
            and 0 < record.stats.count <= THRESHOLDS.attention_elements
            and "float" in record.dtype
        ):
            values: Array = record.read()
            return values
    return None
