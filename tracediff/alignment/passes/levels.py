"""Passes for levels of the call tree, and of the module tree, that the two sides do not share."""

from __future__ import annotations

from collections import defaultdict

from tracediff.alignment.passes.descent import inside
from tracediff.alignment.passes.state import Match, State, ordered
from tracediff.alignment.thresholds import THRESHOLDS


def pair_dissolved(state: State) -> None:
    """Pairs callers without partner by what is paired below them: levels that were taken apart although both sides have them.

    So where one side's trace holds further runs that directly call what this level calls.
    """
    below = _paired_below(state, 0), _paired_below(state, 1)
    above: dict[int, list[int]] = defaultdict(list)
    for caller, sites in below[1].items():
        for site in sites:
            above[site].append(caller)
    pairs = [(a, b) for a, sites in below[0].items() for b in {caller for site in sites for caller in above[site]}]
    alike = {(a, b): 2 * len(below[0][a] & below[1][b]) / (len(below[0][a]) + len(below[1][b])) for a, b in pairs}
    scores = {pair: state.scores.of(*pair) for pair, share in alike.items() if share > THRESHOLDS.held_alike and state.may_move(*pair)}
    for a, b in sorted(scores, key=lambda pair: (-alike[pair], -scores[pair])):
        if scores[a, b] > THRESHOLDS.worth_pairing and a not in state.partner[0] and b not in state.partner[1]:
            state.pair(Match(a, b, scores[a, b], "what lies below is paired"))
            inside(state, a, b)


def _paired_below(state: State, side: int) -> dict[int, set[int]]:
    """For each caller without partner the pairs below it, by their sites in the port; callers without such pairs are left out."""
    found: dict[int, set[int]] = {}
    for site in state.unpaired(side, range(state.sides[side].called)):
        below = () if state.features[side].leaf[site] else state.sides[side].below(site)
        pairs = {match.port for inner in below if (match := state.partner[side].get(inner)) is not None}
        if pairs:
            found[site] = pairs
    return found


def pair_chains(state: State) -> None:
    """Pairs a block that is a chain of blocks on the other side with the last of the chain, which returns what the block returns.

    So where one side writes out in one block what is a list of blocks on the other. The last takes in something else than the block.
    """
    for match in list(state.partner[0].values()):
        if not match.may_change or state.is_consistent(match.reference, match.port):
            continue
        for side in (0, 1):
            whole = match.site(side)
            chain = _chain(state, side, whole)
            if len(chain) > 1 and state.partner[side].get(whole) is match:
                last = max(chain, key=lambda site: int(state.sides[1 - side].first_call[site]))
                state.unpair(side, whole)
                state.pair(Match(*ordered(side, whole, last), match.score, f"the last of {len(chain)} that it does the work of"))


def _chain(state: State, side: int, whole: int) -> list[int]:
    """The outermost callers of the other side whose insides are paired with insides of ``whole`` only, and which make it up together."""
    other, partner = state.sides[1 - side], state.partner[1 - side]
    matches = (state.partner[side].get(site) for site in state.sides[side].below(whole))
    inner = {match.site(1 - side) for match in matches if match is not None}
    callers = {caller for site in inner for caller in other.callers(site)} - inner
    own = {caller for caller in callers if all(site in inner for site in other.below(caller) if site in partner)}
    outer = [site for site in own if not any(caller in own for caller in other.callers(site))]
    covered = {site for caller in outer for site in other.below(caller)}
    is_free = all(partner.get(site) in (None, state.partner[side].get(whole)) for site in outer)
    return outer if is_free and inner and len(inner & covered) >= THRESHOLDS.consistent * len(inner) else []


def enter_wrappers(state: State) -> None:
    """Moves a match from a caller that merely hands on to the caller inside it that does the work, whose code both sides share."""
    for match in list(state.partner[0].values()):
        if not match.may_change or not match.reference or not match.port:
            continue
        inner = [_handed_to(state, side, match.site(side)) for side in (0, 1)]
        if (inner[0] is None) != (inner[1] is None):
            state.unpair(0, match.reference)
            a, b = (match.site(side) if site is None else site for side, site in enumerate(inner))
            state.pair(Match(a, b, match.score, match.reason, match.rivals))


def _handed_to(state: State, side: int, site: int) -> int | None:
    """The innermost caller without partner that takes in and returns all that a module does; None where there is none."""
    here, found = state.sides[side], None
    while here.kind[site] == "module" and len(here.children[site]) == 1 and not here.owned[site]:
        inner = here.children[site][0]
        calls = int(here.first_call[site]), int(here.first_call[inner])
        digests = [[here.index["digest"][row].tolist() for rows in here.ends_of(call) for row in rows] for call in calls]
        is_caller = here.kind[inner] == "module" and not state.features[side].leaf[inner]
        if inner in state.partner[side] or not is_caller or digests[0] != digests[1]:
            break
        site = found = inner
    return found


def pair_containers(state: State) -> None:
    """Pairs modules that were never called but hold paired ones (lists of layers) by what they hold."""
    common: dict[tuple[int, int], int] = defaultdict(int)
    totals: tuple[dict[int, int], dict[int, int]] = (defaultdict(int), defaultdict(int))
    for match in state.partner[0].values():
        ours, theirs = (
            [site for site in state.sides[side].holders(match.site(side)) if site not in state.partner[side]] for side in (0, 1)
        )
        for holder in ours:
            totals[0][holder] += 1
            for other in theirs:
                common[holder, other] += 1
        for other in theirs:
            totals[1][other] += 1
    ranked = sorted(((2 * count / (totals[0][a] + totals[1][b]), a, b) for (a, b), count in common.items()), reverse=True)
    for share, a, b in ranked:
        are_free = a not in state.partner[0] and b not in state.partner[1] and a not in state.ignored[0] and b not in state.ignored[1]
        are_alike = (state.sides[0].first_call[a] >= 0) == (state.sides[1].first_call[b] >= 0)
        if share > THRESHOLDS.held_alike and are_free and are_alike:
            state.pair(Match(a, b, share, "holds paired sites"))
