"""Puts an alignment together: the pairs of sites, in words, then the pairs of records."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tracediff.alignment import mapping as maps
from tracediff.alignment import returned
from tracediff.alignment.array_files import align_arrays, is_array_file
from tracediff.alignment.matches import Match, Matches, given, ordered
from tracediff.alignment.record_table import PairedSites
from tracediff.alignment.records import RecordPairs
from tracediff.alignment.result import Alignment, SitePair, as_kind
from tracediff.alignment.site_report import site_pairs
from tracediff.alignment.sites import paired_sites
from tracediff.alignment.structure import Side
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.errors import AlignmentError


def align_sides(reference: Side, port: Side, mapping: str | os.PathLike[str] | Mapping[str, Any] | None = None) -> Alignment:
    """The alignment of two sides; see `tracediff.alignment.align`."""
    for side, who in ((reference, "reference"), (port, "port")):
        if not len(side.index):
            raise AlignmentError(f"The {who} {str(side.trace.path)!r} holds no records, so nothing can be paired; capture it again.")
    mapped = maps.read(mapping, reference.names, port.names)
    if is_array_file(port):
        return _of_arrays(reference, port, mapped)
    _refuse_ends(mapped, reference, port)
    stated = _stated_by_name(reference, port, mapped)
    ignored, taps = returned.set_apart(reference, port, mapped)
    found = paired_sites(reference, port, [*_given(mapped, stated), *taps], ignored)
    if not found.all():
        raise AlignmentError(_nothing_shared(reference, port), _without_pairs(reference, port))
    pairs, places = site_pairs(found, stated)
    permutations = {(entry.reference, entry.port): entry.permutation for entry in mapped.pairs}
    paired = [
        PairedSites(
            place,
            match.reference,
            match.port,
            pairs[place].confidence,
            permutations.get((match.reference, match.port)),
            match.part,
            match.whole,
        )
        for place, match in places
    ]
    made = RecordPairs((reference, port), [*paired, *_changing_wrappers(found, paired)])
    records = made.run()
    pairs, further = returned.across(made.rows, made.plans.layouts, pairs)
    records = [*records, *further]
    return Alignment(
        tuple(pairs),
        tuple(records),
        _left_over(reference, (row for pair in records for row in pair.reference)),
        _left_over(port, (row for pair in records for row in pair.port)),
    )


def _of_arrays(reference: Side, port: Side, mapped: maps.StatedMap) -> Alignment:
    """The alignment with a port that is a file of arrays: it has no calls, so that contents are paired."""
    found = align_arrays(reference, port, mapped)
    if not found.records:
        raise AlignmentError(_nothing_shared(reference, port), found)
    return found


def _refuse_ends(mapped: maps.StatedMap, reference: Side, port: Side) -> None:
    """AlignmentError where a mapping states single records of a port that was captured: its calls pair theirs themselves."""
    for entry in mapped.pairs:
        if entry.ends is not None:
            raise AlignmentError(
                f"The mapping pairs single records of {reference.names[entry.reference]!r} and {port.names[entry.port]!r}. That is for "
                "ports that are files of arrays (tracediff convert); here name the two sites alone."
            )


def _given(mapped: maps.StatedMap, stated: Iterable[tuple[int, int]]) -> list[Match]:
    """The matches that a mapping and a converted file's names state, parts of fused sites last."""
    whole = [given(entry.reference, entry.port) for entry in mapped.pairs if entry.part is None]
    parts = [given(entry.reference, entry.port, entry.part, entry.whole) for entry in mapped.pairs if entry.part is not None]
    return [*whole, *(given(a, b) for a, b in stated), *parts]


def _changing_wrappers(matches: Matches, paired: Sequence[PairedSites]) -> list[PairedSites]:
    """Wrappers that change what their only call returns although most of their class do not.

    The outputs of such a wrapper are compared with the outputs of the wrapped site's partner.
    """
    taken = [{sites.reference for sites in paired}, {sites.port for sites in paired}]
    found: list[PairedSites] = []
    for number, side in enumerate(matches.sides):
        only_call = {site: side.children[site][0] for site in range(side.called) if len(side.children[site]) == 1}
        by_class: dict[str, list[bool]] = {}
        for site, child in only_call.items():
            if side.type[site] and side.type[child]:
                by_class.setdefault(side.type[site], []).append(_hands_on(side, site, child))
        for sites in paired:
            pair = sites.reference, sites.port
            own = pair[number]
            wrapper = int(side.parent[own])
            if sites.part is not None or only_call.get(wrapper) != own or wrapper in taken[number]:
                continue
            hands_on = by_class.get(side.type[wrapper], [])
            if sum(hands_on) > len(hands_on) / 2 and not _hands_on(side, wrapper, own):
                a, b = ordered(number, wrapper, pair[1 - number])
                found.append(replace(sites, reference=a, port=b, outputs_only=True, permutation=None))
    return found


def _hands_on(side: Side, site: int, child: int) -> bool:
    """Whether a site returns what its only call returned, in whatever order of axes."""
    outputs = [side.ends_of(int(side.first_call[number]))[1][:1] for number in (site, child)]
    if not outputs[0] or not outputs[1]:
        return False
    outer, inner = (side.index[rows[0]] for rows in outputs)
    return all(math.isclose(float(outer[name]), float(inner[name]), rel_tol=THRESHOLDS.hands_on) for name in ("count", "l2", "min", "max"))


def _stated_by_name(reference: Side, port: Side, mapped: maps.StatedMap) -> set[tuple[int, int]]:
    """Sites of equal names, where the reference's were chosen by a person (a converted file): the names then state the pairs.

    What a mapping states of a site comes first.
    """
    if not is_array_file(reference):
        return set()
    pairs = mapped.pairs
    taken = {entry.reference for entry in pairs} | mapped.ignored[0], {entry.port for entry in pairs} | mapped.ignored[1]
    ours, theirs = ({side.names[site]: site for site in range(side.called)} for side in (reference, port))
    return {(site, theirs[name]) for name, site in ours.items() if name in theirs and site not in taken[0] and theirs[name] not in taken[1]}


def _left_over(side: Side, used: Iterable[int]) -> tuple[int, ...]:
    free = np.ones(len(side.index), bool)
    free[list(set(used))] = False
    return tuple(np.flatnonzero(free).tolist())


def _nothing_shared(reference: Side, port: Side) -> str:
    return (
        f"The two traces share nothing that could be paired: the reference {str(reference.trace.path)!r} has {reference.called} sites "
        f"such as {reference.names[0]!r}, the port {str(port.trace.path)!r} has {port.called} such as {port.names[0]!r}, and no "
        "parameter, value, shape or order agrees. Are they runs of the same model? A mapping file can state pairs: --map FILE. One to fill "
        "in is written by: tracediff align REFERENCE PORT --write-map FILE"
    )


def _without_pairs(reference: Side, port: Side) -> Alignment:
    """The sites of two sides of which none is paired."""
    ours = [
        SitePair(reference.names[site], None, as_kind(reference.kind[site]), "no counterpart found", 0.0)
        for site in range(reference.called)
    ]
    theirs = [SitePair(None, port.names[site], as_kind(port.kind[site]), "no counterpart found", 0.0) for site in range(port.called)]
    return Alignment((*ours, *theirs), (), tuple(range(len(reference.index))), tuple(range(len(port.index))))
