"""Pairs what two runs returned.

Where both runs returned something of their own, both have the reserved tap, and the two taps are a pair by what they are. Where one run
returned what one of its calls had returned, and the other something of its own, the tap is paired with that call's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tracediff.alignment.layouts import LayoutChooser
from tracediff.alignment.mapping import StatedMap
from tracediff.alignment.matches import Match, given
from tracediff.alignment.record_table import PairedSites, Rows
from tracediff.alignment.result import RecordPair, SitePair
from tracediff.alignment.site_report import RETURNS
from tracediff.alignment.structure import Side
from tracediff.site import RETURNED

Ignored = tuple[frozenset[int], frozenset[int]]


def set_apart(reference: Side, port: Side, mapped: StatedMap) -> tuple[Ignored, list[Match]]:
    """The sites that no evidence may pair, among them a reserved tap; and the pair of the two taps, where both sides have one.

    What a mapping states of a tap comes first.
    """
    ours, theirs = reference.number.get(RETURNED), port.number.get(RETURNED)
    stated = {entry.reference for entry in mapped.pairs} | mapped.ignored[0], {entry.port for entry in mapped.pairs} | mapped.ignored[1]
    free = {ours} - stated[0] - {None}, {theirs} - stated[1] - {None}
    if ours is not None and theirs is not None and all(free):
        return mapped.ignored, [given(ours, theirs)]
    alone = [frozenset(number for number in numbers if number is not None) for numbers in free]
    return (mapped.ignored[0] | alone[0], mapped.ignored[1] | alone[1]), []


def across(rows: Rows, layouts: LayoutChooser, pairs: Sequence[SitePair]) -> tuple[list[SitePair], list[RecordPair]]:
    """The pairs of sites with a reserved tap that only one run has paired with what the other run returned; and its pairs of records.

    Only records are paired that some layout reconciles.
    """
    returned = [side.trace.returned or () for side in rows.sides]
    sites = [_site_of(side, own) for side, own in zip(rows.sides, returned, strict=True)]
    place = next((place for place, pair in enumerate(pairs) if RETURNED in (pair.reference, pair.port) and not pair.is_paired), None)
    if place is None or None in sites:
        return list(pairs), []
    numbers = [side.number[str(site)] for side, site in zip(rows.sides, sites, strict=True)]
    stand_in = PairedSites(place, numbers[0], numbers[1], 1.0)
    found = []
    for a, b in _matched(rows, *returned):
        layout, evidence = layouts.of(stand_in, a, b)
        if layout is not None:
            found.append(RecordPair((a,), (b,), layout, evidence, 1.0, place))
    changed = SitePair(sites[0], sites[1], "tap", RETURNS, 1.0) if found else pairs[place]
    return [*pairs[:place], changed, *pairs[place + 1 :]], found


def _site_of(side: Side, rows: Sequence[int]) -> str | None:
    """The site of the rows of one call; None where there are none."""
    return side.text("site", rows[0]) if rows else None


def _matched(rows: Rows, ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int]]:
    """Which returned tensor is which: those of equal bits, then those of equal keys, then the only ones that are left."""
    left, others, found = list(ours), list(theirs), []
    belongs: list[Callable[[int, int], bool]] = [rows.are_equal, lambda a, b: rows.key(0, a).keys == rows.key(1, b).keys]
    if len(left) == len(others) == 1:
        return [(left[0], others[0])]
    for is_pair in belongs:
        for a in list(left):
            b = next((other for other in others if is_pair(a, other)), None)
            if b is not None:
                found.append((a, b))
                left.remove(a)
                others.remove(b)
    return [*found, (left[0], others[0])] if len(left) == len(others) == 1 else found
