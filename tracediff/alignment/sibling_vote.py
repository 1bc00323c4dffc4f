"""What numbered siblings say of one another: where nearly all siblings of a row pair in one way, the rest pairs in that way too.

A fault may make one sibling look like something else: weights exchanged between two projections of one layer, or a block without its
residual, which then returns what its last part returns. The other siblings still pair as before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tracediff.alignment.thresholds import THRESHOLDS

Row = tuple[str, str]
"""The names of a row: what precedes and what follows the number of a sibling."""


def numbered(name: str) -> Iterable[tuple[Row, int]]:
    """Each number of a name that is a part of its path: the row in which it counts, and the number.

    >>> list(numbered("layers.2.mlp.0!silu"))
    [(('layers.', '.mlp.0!silu'), 2), (('layers.2.mlp.', '!silu'), 0)]
    """
    path, mark, function = name.partition("!")
    parts = path.split(".")
    for place, part in enumerate(parts):
        if part.isdecimal():
            before, behind = parts[:place], parts[place + 1 :]
            yield ("".join(f"{one}." for one in before), "".join(f".{one}" for one in behind) + mark + function), int(part)


def expected(ours: Sequence[str], theirs: Sequence[str], partner: Mapping[int, int]) -> dict[int, int]:
    """The partner of a site by the vote of its numbered siblings, wherever the site has another partner or none.

    ``ours`` and ``theirs`` are the names of the two sides, ``partner`` the pairs so far, all by the numbers of sites. A row pairs in one
    way where its numbers differ by a constant from those of one row of the other side, in at least twice as many siblings as pair
    otherwise. A sibling without counterpart in that row (a stem before the blocks, a head behind them) does not vote.
    """
    rows: tuple[dict[Row, dict[int, int]], dict[Row, dict[int, int]]] = (defaultdict(dict), defaultdict(dict))
    for names, found in zip((ours, theirs), rows, strict=True):
        for site, name in enumerate(names):
            for row, number in numbered(name):
                found[row][number] = site
    wanted: dict[int, int] = {}
    for siblings in rows[0].values():
        way = _way(siblings, theirs, partner)
        if way is None:
            continue
        target, shift, agreeing = way
        others = rows[1][target]
        taken = set(others.values())
        concerned = sum(number + shift in others or partner.get(site) in taken for number, site in siblings.items())
        if THRESHOLDS.sibling_majority * (concerned - agreeing) > agreeing:
            continue
        for number, site in siblings.items():
            meant = others.get(number + shift)
            if meant is not None and partner.get(site) != meant:
                wanted.setdefault(site, meant)
    return wanted


def _way(siblings: Mapping[int, int], theirs: Sequence[str], partner: Mapping[int, int]) -> tuple[Row, int, int] | None:
    """The row and the difference of numbers in which most siblings pair, and how many do; None where too few agree."""
    votes: dict[tuple[Row, int], int] = defaultdict(int)
    for number, site in siblings.items():
        if site in partner:
            for row, other in numbered(theirs[partner[site]]):
                votes[row, other - number] += 1
    best = max(votes.items(), key=lambda vote: vote[1], default=None)
    return (*best[0], best[1]) if best is not None and best[1] >= THRESHOLDS.sibling_votes else None


NamesAndTypes = tuple[Sequence[str], Sequence[str]]
"""The names of a side's sites, and the names of their classes."""


def as_in_their_class(ours: NamesAndTypes, theirs: NamesAndTypes, partner: Mapping[int, int]) -> dict[int, int]:
    """The partner of a module by the vote of its holder's class, wherever the module has another partner or none.

    Where most holders of two classes pair their modules of one name alike, the rest follows. So one attention of many is paired rightly
    although its keys and values are exchanged. ``partner``: the pairs so far.
    """
    numbers = [{name: number for number, name in enumerate(names)} for names, _ in (ours, theirs)]
    votes: dict[tuple[str, str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    placed: list[tuple[int, tuple[str, str, str], str]] = []
    for site, name in enumerate(ours[0]):
        holder, _, own = name.rpartition(".")
        above = partner.get(numbers[0].get(holder, -1))
        if not holder or above is None or not ours[1][numbers[0][holder]] or not theirs[1][above]:
            continue
        key = ours[1][numbers[0][holder]], theirs[1][above], own
        placed.append((site, key, theirs[0][above]))
        around, _, other = theirs[0][partner[site]].rpartition(".") if site in partner else ("", "", "")
        if around == theirs[0][above]:
            votes[key][other] += 1
    wanted: dict[int, int] = {}
    for site, key, around in placed:
        other, agreeing = max(votes[key].items(), key=lambda vote: vote[1], default=("", 0))
        meant = numbers[1].get(f"{around}.{other}")
        is_clear = agreeing >= THRESHOLDS.sibling_votes and agreeing >= THRESHOLDS.sibling_majority * (sum(votes[key].values()) - agreeing)
        if is_clear and meant is not None and partner.get(site) != meant:
            wanted[site] = meant
    return wanted
