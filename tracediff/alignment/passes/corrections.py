"""Passes that correct single pairs: by anchors, by the siblings of a site, by the class of its caller."""

from __future__ import annotations

from collections import Counter

from tracediff.alignment.passes.state import Match, State, ordered
from tracediff.alignment.sibling_vote import as_in_their_class, expected
from tracediff.alignment.thresholds import THRESHOLDS


def apply_anchors(state: State) -> None:
    """Pairs anchored sites that the callers kept apart, and undoes pairs that an anchor contradicts."""
    for a, b in state.scores.anchors.items():
        if a in state.ignored[0] or b in state.ignored[1] or _is_only_fed_alike(state, a, b):
            continue
        ours, theirs = state.partner[0].get(a), state.partner[1].get(b)
        if ours is not None and ours is theirs:
            continue
        certainty = state.scores.certainty(a, b)
        matches = [match for match in (ours, theirs) if match is not None]
        if all(match.may_change and _is_much_less_certain(state, match, certainty) for match in matches):
            for match in matches:
                state.unpair(0, match.reference)
            state.pair(Match(a, b, certainty, "anchor"))


def _is_much_less_certain(state: State, match: Match, certainty: float) -> bool:
    return state.scores.certainty(match.reference, match.port) + THRESHOLDS.anchor_margin <= certainty


def _is_only_fed_alike(state: State, a: int, b: int) -> bool:
    """Whether only inputs speak for two sites whose paired callers are not each other's: the site before a missing one feeds the next."""
    seen = state.scores.evidence.values.get((a, b))
    if (a, b) in state.scores.evidence.parameters or seen is None or seen.outputs > 0:
        return False
    callers = [
        next((site for site in state.sides[side].callers(own) if site in state.partner[side]), None) for side, own in enumerate((a, b))
    ]
    return callers[0] is not None and callers[1] is not None and state.partner[0][callers[0]].port != callers[1]


def follow_siblings(state: State) -> None:
    """Pairs a site as its numbered siblings are paired, whatever it resembles now: a fault deceives one of a row, not all."""
    alone = {match.reference: match.port for match in state.partner[0].values() if match.part is None}
    parts = {match.reference for match in state.fused}, {match.port for match in state.fused}
    ours, theirs = state.sides
    of_class = as_in_their_class((ours.names, ours.type), (theirs.names, theirs.type), alone)
    for a, b in (of_class | expected(ours.names, theirs.names, alone)).items():
        is_free = state.is_free(0, a) and state.is_free(1, b) and a not in parts[0] and b not in parts[1]
        # Where what lies in the two pairs otherwise, a site of the row has a part less.
        if is_free and _are_alike(state, a, b) and state.is_consistent(a, b):
            state.unpair(0, a)
            state.unpair(1, b)
            state.pair(Match(a, b, state.scores.of(a, b), "as its siblings are"))


def _are_alike(state: State, a: int, b: int) -> bool:
    """Whether two sites are called or not, leaves or not, of one function, and own parameters of the same axes."""
    ours, theirs = state.features
    return all(getattr(ours, name)[a] == getattr(theirs, name)[b] for name in ("called", "leaf", "function", "key"))


def follow_class(state: State) -> None:
    """Pairs a module that calls only one other module with the partner of that module, where most modules of its class are paired so.

    A block whose residual is missing returns what the one module inside it returns, and takes in what that module takes in.
    """
    types = [side.type for side in state.sides]
    votes = Counter((types[0][match.reference], types[1][match.port]) for match in state.partner[0].values())
    for match in list(state.partner[0].values()):
        pair = match.reference, match.port
        for side, own in enumerate(pair):
            caller = int(state.sides[side].parent[own])
            if caller < 0 or caller in state.partner[side] or state.levels.called(side, caller) != [own] or not match.may_change:
                continue
            a, b = ordered(side, caller, pair[1 - side])
            types_of_pair, wanted = (types[0][pair[0]], types[1][pair[1]]), (types[0][a], types[1][b])
            is_leaf = state.features[0].leaf[a] or state.features[1].leaf[b]
            if all(wanted) and not is_leaf and votes[wanted] >= max(2, 2 * votes[types_of_pair]):
                state.unpair(side, own)
                state.pair(Match(a, b, match.score, "as the others of its class are"))
