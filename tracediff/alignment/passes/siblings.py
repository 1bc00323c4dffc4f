"""Pairs the sites that two paired callers call, by scores and order; and what is left over there, by higher scores alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracediff.alignment import order
from tracediff.alignment.passes.fused import fuse_siblings
from tracediff.alignment.passes.state import Match, State
from tracediff.alignment.thresholds import THRESHOLDS


def pair_siblings(state: State, rows: Sequence[int], columns: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs siblings in the order of their calls; returns all pairs among them, earlier ones too."""
    return _pair(state, rows, columns, THRESHOLDS.worth_pairing, may_move=False)


def pair_moved(state: State, rows: Sequence[int], columns: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs sites whose callers are not paired with each other, where the score is high and their shapes allow it."""
    return _pair(state, rows, columns, THRESHOLDS.worth_moving, may_move=True)


def _pair(state: State, rows: Sequence[int], columns: Sequence[int], least: float, *, may_move: bool) -> list[tuple[int, int]]:
    wanted = set(columns)
    known = [(a, match.port) for a in rows if (match := state.partner[0].get(a)) is not None and match.port in wanted]
    fused = fuse_siblings(state, _free(state, 0, rows), _free(state, 1, columns))
    pairs = [*known, *fused]
    for match in _ranked(state, _free(state, 0, rows), _free(state, 1, columns)):
        a, b = match.reference, match.port
        if match.score > least and state.is_consistent(a, b) and (not may_move or state.may_move(a, b)):
            state.pair(match)
            pairs.append((a, b))
    return pairs


def _free(state: State, side: int, sites: Sequence[int]) -> list[int]:
    """The sites without partner, in their order."""
    return [site for site in sites if site not in state.partner[side] and site not in state.ignored[side]]


def _ranked(state: State, rows: Sequence[int], columns: Sequence[int]) -> list[Match]:
    """The matches that are proposed for siblings: anchored ones first, then what scores and order say of the rest."""
    place = {b: column for column, b in enumerate(columns)}
    anchors = [(row, place[b]) for row, a in enumerate(rows) if (b := state.scores.anchors.get(a, -1)) in place]
    found = [_match(rows[i], columns[j], state.scores.certainty(rows[i], columns[j])) for i, j in anchors]
    done = {i for i, _ in anchors}, {j for _, j in anchors}
    left = len(rows) - len(done[0]), len(columns) - len(done[1])
    if not left[0] or not left[1]:
        return found
    whole = [(range(len(rows)), range(len(columns)))]
    for ours, theirs in whole if order.is_small(*left) else order.pieces(len(rows), len(columns), anchors):
        some, others = [rows[i] for i in ours if i not in done[0]], [columns[j] for j in theirs if j not in done[1]]
        if some and others:
            found.extend(_by_scores(state, some, others))
    return found


def _by_scores(state: State, rows: Sequence[int], columns: Sequence[int]) -> list[Match]:
    """The matches that scores and order support together, each with the siblings that score nearly as high."""
    scores = state.scores.table(rows, columns)
    found = []
    for i, j in order.matched(np.where(scores > THRESHOLDS.worth_pairing / 2, scores, 0.0)):
        near = np.flatnonzero(scores[i] > scores[i, j] - THRESHOLDS.rival_margin)
        rivals = [columns[k] for k in near[: THRESHOLDS.rivals_weighed] if k != j] if len(near) > 1 else []
        found.append(_match(rows[i], columns[j], float(scores[i, j]), rivals[: THRESHOLDS.rivals_named]))
    return found


def _match(a: int, b: int, score: float, rivals: Sequence[int] = ()) -> Match:
    return Match(a, b, score, "structure", list(rivals))
