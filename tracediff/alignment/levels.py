"""Levels of the call tree, and of the module tree, that the two sides do not share, paired by what lies below them."""

from __future__ import annotations

from collections import defaultdict

from tracediff.alignment.matches import GIVEN, Match, Matches, ordered
from tracediff.alignment.thresholds import THRESHOLDS


def pair_chains(matches: Matches) -> None:
    """Pairs a block that is a chain of blocks on the other side with the last of the chain, which returns what the block returns.

    So where one side writes out in one block what is a list of blocks on the other. The last takes in something else than the block.
    """
    for match in list(matches.partner[0].values()):
        if match.reason == GIVEN or match.part is not None or _is_consistent(matches, match.reference, match.port):
            continue
        for side in (0, 1):
            whole = match.site(side)
            chain = _chain(matches, side, whole)
            if len(chain) > 1 and matches.partner[side].get(whole) is match:
                last = max(chain, key=lambda site: int(matches.sides[1 - side].first_call[site]))
                matches.unpair(side, whole)
                matches.pair(Match(*ordered(side, whole, last), match.score, f"the last of {len(chain)} that it does the work of"))


def _chain(matches: Matches, side: int, whole: int) -> list[int]:
    """The outermost callers of the other side whose insides are paired with insides of ``whole`` only, and which make it up together."""
    other, partner = matches.sides[1 - side], matches.partner[1 - side]
    found = (matches.partner[side].get(site) for site in matches.sides[side].below(whole))
    inner = {match.site(1 - side) for match in found if match is not None}
    callers = {caller for site in inner for caller in other.callers(site)} - inner
    own = {caller for caller in callers if all(site in inner for site in other.below(caller) if site in partner)}
    outer = [site for site in own if own.isdisjoint(above := set(other.callers(site))) and inner.isdisjoint(above)]
    covered = {site for caller in outer for site in other.below(caller)}
    is_free = all(partner.get(site) in (None, matches.partner[side].get(whole)) for site in outer)
    return outer if is_free and inner and len(inner & covered) >= THRESHOLDS.consistent * len(inner) else []


def pair_containers(matches: Matches) -> None:
    """Pairs modules that were never called but hold paired ones (lists of layers) by what they hold."""
    common: dict[tuple[int, int], int] = defaultdict(int)
    totals: tuple[dict[int, int], dict[int, int]] = (defaultdict(int), defaultdict(int))
    for match in matches.partner[0].values():
        ours, theirs = (
            [site for site in matches.sides[side].holders(match.site(side)) if site not in matches.partner[side]] for side in (0, 1)
        )
        for holder in ours:
            totals[0][holder] += 1
            for other in theirs:
                common[holder, other] += 1
        for other in theirs:
            totals[1][other] += 1
    ranked = sorted(((2 * count / (totals[0][a] + totals[1][b]), a, b) for (a, b), count in common.items()), reverse=True)
    for share, a, b in ranked:
        are_free, sides = bool(matches.unpaired(0, [a]) and matches.unpaired(1, [b])), matches.sides
        are_uncalled = sides[0].first_call[a] < 0 and sides[1].first_call[b] < 0
        are_alike = are_uncalled and (sides[0].holder[a] < 0) == (sides[1].holder[b] < 0)  # a root is none of another's parts
        if share > THRESHOLDS.held_alike and are_free and are_alike:
            matches.pair(Match(a, b, share, "holds paired sites"))


def _is_consistent(matches: Matches, a: int, b: int) -> bool:
    """Whether what is already paired below two callers is mostly paired with what lies below the other."""
    if matches.features[0].leaf[a] or matches.features[1].leaf[b]:
        return True
    ours = [matches.partner[0][site].port for site in matches.sides[0].below(a) if site in matches.partner[0]]
    theirs = {site for site in matches.sides[1].below(b) if site in matches.partner[1]}
    common = sum(site in theirs for site in ours)
    return 2 * common >= THRESHOLDS.consistent * (len(ours) + len(theirs))
