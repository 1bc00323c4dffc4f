"""What pairs say of their like: numbered siblings pair in one way, members of one class do, and classes do.

A fault may make one sibling look like something else: weights exchanged between two projections of one layer, or a block without its
residual, which then returns what its last part returns. The others still pair as before. A pair does not vote for itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tracediff.alignment.matches import Match, Matches
from tracediff.alignment.thresholds import THRESHOLDS

Row = tuple[str, str]
"""The names of a row: what precedes and what follows the number of a sibling."""
NamesAndTypes = tuple[Sequence[str], Sequence[str]]
"""The names of a side's sites, and the names of their classes."""
Votes = dict[tuple[int, int], float]


def votes(matches: Matches, pairs: Iterable[Match]) -> Votes:
    """What the pairs so far say of further pairs, and of one another."""
    partner = {match.reference: match.port for match in (*pairs, *matches.all()) if match.part is None}
    ours, theirs = matches.sides
    found: Votes = {}
    told = (in_rows(ours.names, theirs.names, partner), in_classes((ours.names, ours.type), (theirs.names, theirs.type), partner))
    for (a, b), share in [item for one in told for item in one.items()]:
        if a not in matches.partner[0] and b not in matches.partner[1] and _are_alike(matches, a, b):
            found[a, b] = max(found.get((a, b), 0.0), THRESHOLDS.siblings_alike * share)
    for (a, b), share in of_classes(matches, partner).items():
        found[a, b] = found.get((a, b), 0.0) + THRESHOLDS.classes_alike * share
    return found


def _are_alike(matches: Matches, a: int, b: int) -> bool:
    """Whether two sites are called or not, wrappers or not, leaves or not, of one function, and own parameters of the same axes."""
    ours, theirs = matches.features
    if matches.evidence.wrappers[0][a] != matches.evidence.wrappers[1][b]:
        return False
    return all(getattr(ours, name)[a] == getattr(theirs, name)[b] for name in ("called", "leaf", "function", "key"))


def numbered(name: str) -> Iterator[tuple[Row, int]]:
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


def in_rows(ours: Sequence[str], theirs: Sequence[str], partner: Mapping[int, int]) -> Votes:
    """How far numbered siblings pair in one way, 0 to 1, for each pair in that way. A number may differ by a constant.

    ``ours`` and ``theirs`` are the names of the two sides, ``partner`` the pairs so far, all by the numbers of sites. A sibling without
    counterpart in the row (a stem before the blocks, a head behind them) does not vote.
    """
    rows: tuple[dict[Row, dict[int, int]], dict[Row, dict[int, int]]] = (defaultdict(dict), defaultdict(dict))
    for names, found in zip((ours, theirs), rows, strict=True):
        for site, name in enumerate(names):
            for row, number in numbered(name):
                found[row][number] = site
    wanted: Votes = {}
    placed = {other: list(numbered(theirs[other])) for other in partner.values()}
    for siblings in rows[0].values():
        ways: Counter[tuple[Row, int]] = Counter()
        for number, site in siblings.items():
            if site in partner:
                ways.update((row, other - number) for row, other in placed[partner[site]])
        for (target, shift), agreeing in ways.most_common(1):
            others = rows[1][target]
            taken = set(others.values())
            concerned = sum(number + shift in others or partner.get(site) in taken for number, site in siblings.items())
            if agreeing >= THRESHOLDS.sibling_majority * (concerned - agreeing):
                way = {site: others[number + shift] for number, site in siblings.items() if number + shift in others}
                _add(wanted, way, partner, agreeing, concerned)
    return wanted


def _add(wanted: Votes, way: Mapping[int, int], partner: Mapping[int, int], agreeing: int, concerned: int) -> None:
    """Adds what ``agreeing`` of all ``concerned`` say for each pair of a way to pair; a pair does not vote for itself."""
    for a, b in way.items():
        for_it = agreeing - (partner.get(a) == b)
        against = max(0, concerned - 1 - for_it)
        if for_it >= max(THRESHOLDS.sibling_votes, THRESHOLDS.sibling_majority * against):
            wanted[a, b] = max(wanted.get((a, b), 0.0), for_it / (for_it + against))


def in_classes(ours: NamesAndTypes, theirs: NamesAndTypes, partner: Mapping[int, int]) -> Votes:
    """How far the holders of two classes pair their modules of one name alike, 0 to 1, for each pair in that way.

    So one attention of many is paired rightly although its keys and values are exchanged. ``partner``: the pairs so far.
    """
    numbers = [{name: number for number, name in enumerate(names)} for names, _ in (ours, theirs)]
    voting: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    placed: dict[tuple[str, str, str], list[tuple[int, str]]] = defaultdict(list)
    for site, name in enumerate(ours[0]):
        holder, _, own = name.rpartition(".")
        above = partner.get(numbers[0].get(holder, -1))
        if not holder or above is None or not ours[1][numbers[0][holder]] or not theirs[1][above]:
            continue
        key = ours[1][numbers[0][holder]], theirs[1][above], own
        placed[key].append((site, theirs[0][above]))
        around, _, other = theirs[0][partner[site]].rpartition(".") if site in partner else ("", "", "")
        if around == theirs[0][above]:
            voting[key][other] += 1
    wanted: Votes = {}
    for key, ways in voting.items():
        (own, agreeing), total = ways.most_common(1)[0], sum(ways.values())
        goals = {site: numbers[1][f"{around}.{own}"] for site, around in placed[key] if f"{around}.{own}" in numbers[1]}
        _add(wanted, goals, partner, agreeing, total)
    return wanted


def of_classes(matches: Matches, partner: Mapping[int, int]) -> Votes:
    """The share of the pairs of a composite class that are with one class of the port, for each composite that is paired otherwise.

    A block whose residual is missing returns what the one module inside it returns, and takes in what that module takes in. So for a
    site of the port, the caller of the reference's site that it is paired with is asked too, and the other way round.
    """
    types, counts = [side.type for side in matches.sides], Counter[tuple[str, str]]()
    for a, b in partner.items():
        if not matches.features[0].leaf[a] and not matches.features[1].leaf[b]:
            counts[types[0][a], types[1][b]] += 1
    of_ours: Counter[str] = Counter()
    for (ours, _), count in counts.items():
        of_ours[ours] += count
    wanted: Votes = {}
    for a, b in partner.items():
        for pair in ((a, b), (int(matches.sides[0].parent[a]), b), (a, int(matches.sides[1].parent[b]))):
            if min(pair) < 0 or matches.features[0].leaf[pair[0]] or matches.features[1].leaf[pair[1]]:
                continue
            kinds = types[0][pair[0]], types[1][pair[1]]
            for_it = counts[kinds] - (partner.get(pair[0]) == pair[1])
            if all(kinds) and for_it >= THRESHOLDS.sibling_votes:
                wanted[pair] = for_it / max(1, of_ours[kinds[0]] - (pair[0] in partner))
    return wanted
