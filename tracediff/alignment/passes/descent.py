"""Passes from the top of the call tree down: what two paired callers call is paired, and what those call in turn."""

from __future__ import annotations

from collections.abc import Sequence

from tracediff.alignment import order
from tracediff.alignment.passes.siblings import pair_moved, pair_siblings
from tracediff.alignment.passes.state import Match, State, ordered
from tracediff.alignment.thresholds import THRESHOLDS

LeftOver = tuple[list[int], list[int]]
"""The sites of each side that a pass came to and did not pair."""


def descend(state: State) -> None:
    """Pairs the sites that nothing called, then what paired sites call, level by level, in the order of the calls."""
    _inside_callers(state, len(state.sides[0]), len(state.sides[1]))


def descend_again(state: State) -> None:
    """Pairs what is left inside paired callers: anchors paired some callers only after `descend` had come to them."""
    for match in list(state.partner[0].values()):
        a, b = match.reference, match.port
        if not state.features[0].leaf[a] and not state.features[1].leaf[b]:
            rows, columns = state.unpaired(0, state.levels.called(0, a)), state.unpaired(1, state.levels.called(1, b))
            if rows and columns:
                for pair in pair_moved(state, rows, columns):
                    inside(state, *pair)


def inside(state: State, a: int, b: int) -> LeftOver:
    """Goes on inside two paired sites; returns what is left over there.

    Of a leaf and a caller the leaf is paired with the one leaf inside the caller that fits: the caller then merely wraps that leaf.
    """
    ours, theirs = state.features
    if not ours.leaf[a] and not theirs.leaf[b]:
        return _inside_callers(state, a, b)
    for side, (wrapper, leaf) in enumerate(((a, b), (b, a))):
        if not state.features[side].leaf[wrapper] and state.features[1 - side].leaf[leaf]:
            return _inside_wrapper(state, side, wrapper, leaf)
    return [], []


def _inside_callers(state: State, a: int, b: int) -> LeftOver:
    if (a, b) in state.visited:
        return [], []
    state.visited.add((a, b))
    siblings = state.levels.dissolved(state.levels.called(0, a), state.levels.called(1, b))
    left: LeftOver = ([], [])
    for pair in pair_siblings(state, *siblings):
        for side, sites in enumerate(inside(state, *pair)):
            left[side].extend(sites)
    for side, sites in enumerate(siblings):
        for site in sites:
            if site not in state.partner[side]:
                left[side].extend([site, *state.sides[side].below(site)])
    return _pair_left_over(state, left)


def _pair_left_over(state: State, left: LeftOver) -> LeftOver:
    """Pairs what is left inside two callers although it stands at different places there; returns what is left then."""
    rows, columns = state.unpaired(0, left[0]), state.unpaired(1, left[1])
    if rows and columns and order.is_small(len(rows), len(columns)):
        telling = [site for site in rows if _is_telling(state, 0, site)], [site for site in columns if _is_telling(state, 1, site)]
        pair_moved(state, *telling)
    return state.unpaired(0, rows), state.unpaired(1, columns)


def _is_telling(state: State, side: int, site: int) -> bool:
    """Whether a site can be distinguished from sites far away: it owns parameters, is a function's, or calls others."""
    features = state.features[side]
    return bool(features.key[site] or features.function[site] or not features.leaf[site])


def _inside_wrapper(state: State, side: int, wrapper: int, leaf: int) -> LeftOver:
    """Moves the match of a leaf from a wrapper on ``side`` to the leaf that it wraps."""
    features, below = state.features[side], list(state.sides[side].below(wrapper))
    inner = [site for site in below if site not in state.partner[side] and features.leaf[site]]
    wrapped = _wrapped(state, side, inner, leaf) if inner and not features.key[wrapper] else None
    if wrapped is not None:
        state.unpair(side, wrapper)
        state.pair(Match(*ordered(side, wrapped[0], leaf), wrapped[1], "wrapped"))
    left = [site for site in below if site not in state.partner[side]]
    return ([], left) if side else (left, [])


def _wrapped(state: State, side: int, inner: Sequence[int], leaf: int) -> tuple[int, float] | None:
    """The leaf among ``inner`` that a wrapper wraps, given the wrapper's partner, with its score; None where it wraps no single one.

    A stack of modules with such parameters, as of recurrent layers, wraps none of them.
    """
    scores = state.scores.table([leaf], inner) if side == 1 else state.scores.table(inner, [leaf]).T  # (1, inner)
    best = inner[int(scores.argmax())]
    key, wanted = state.features[side].key, state.features[1 - side].key[leaf]
    is_single = not wanted or sum(key[site] == wanted for site in inner) == 1
    fits = scores.max() > THRESHOLDS.worth_pairing and key[best] == wanted and is_single
    return (best, float(scores.max())) if fits else None
