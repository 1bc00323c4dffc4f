"""Which boundary of a call is which on the other side.

Boundaries are not paired by position alone. Names count where both sides have them, then shapes and values, and what the same boundaries
of other calls say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tracediff.alignment import order
from tracediff.alignment.boundary_scores import BoundaryScores
from tracediff.alignment.record_table import CallPair, PairedSites, Rows
from tracediff.alignment.structure import INPUT
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.site import pattern_of

BoundaryPairs = list[tuple[int, int, float]]
"""The places of two boundaries among the rows of their calls, and their score."""

PlacePairs = Sequence[tuple[int, int]]
Key = tuple[object, ...]


class Arguments:
    """The pairs of boundaries of paired calls."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.scores = rows, BoundaryScores(rows)
        self._learnt: dict[Key, tuple[float, BoundaryPairs]] = {}

    def learn(self, sites: PairedSites, calls: Iterable[CallPair]) -> None:
        """Keeps the pairs of boundaries of the call in which the scores are highest, for all calls with these boundaries.

        They hold for the sites, and for sites of the same role. Values tell keys and values of a cache apart early in a run, and nothing
        does once the two runs have parted.
        """
        seen: set[Key] = set()
        for call in calls:
            if len(call.reference) > 1 or len(call.port) > 1:
                continue
            ours, theirs = (
                [*side.calls.rows_of(own[0]).tolist()] for side, own in zip(self.rows.sides, (call.reference, call.port), strict=True)
            )
            keys = self._keys(sites, ours, theirs)
            shapes = (keys[0], *(tuple(self.rows.shape_codes[side][row] for row in rows) for side, rows in enumerate((ours, theirs))))
            has_raised = any(self.rows.raised[side][row] for side, rows in enumerate((ours, theirs)) for row in rows)
            if shapes in seen or has_raised:
                continue
            seen.add(shapes)
            pairs = self.paired(ours, theirs)
            total = sum(score for *_, score in pairs)
            for key in keys:
                if total > self._learnt.get(key, (0.0, []))[0]:
                    self._learnt[key] = total, pairs

    def of(self, sites: PairedSites, ours: Sequence[int], theirs: Sequence[int]) -> BoundaryPairs:
        """The pairs of boundaries of two calls, given their rows: as learnt for the two sites or their roles, or else by these calls."""
        own, role = (self._learnt.get(key, (0.0, [])) for key in self._keys(sites, ours, theirs))
        is_straighter = bool(role[1]) and self._exchanged(ours, theirs, role[1]) < self._exchanged(ours, theirs, own[1])
        learnt = role if is_straighter or role[0] > own[0] + THRESHOLDS.role_margin else own
        return learnt[1] or self.paired(ours, theirs)

    def _keys(self, sites: PairedSites, ours: Sequence[int], theirs: Sequence[int]) -> tuple[Key, Key]:
        """What calls of two sites with the same boundaries have in common; and what calls of sites of the same roles have."""
        roles = (pattern_of(side.names[site]) for side, site in zip(self.rows.sides, (sites.reference, sites.port), strict=True))
        ends = tuple(self.rows.end[0][row] for row in ours), tuple(self.rows.end[1][row] for row in theirs)
        return (sites.place, *ends), (*roles, *ends)

    def _exchanged(self, ours: Sequence[int], theirs: Sequence[int], pairs: Iterable[tuple[int, int, float]]) -> int:
        """How many boundaries are paired with another one although both sides have one of that name or place."""
        keys = [{self.rows.key(side, row) for row in rows} for side, rows in enumerate((ours, theirs))]
        named = [(self.rows.key(0, ours[i]), self.rows.key(1, theirs[j])) for i, j, _ in pairs]
        return sum(a != b and a in keys[1] and b in keys[0] for a, b in named)

    def paired(self, ours: Sequence[int], theirs: Sequence[int], *, in_pieces: bool = False) -> BoundaryPairs:
        """The pairs of boundaries of two calls by what is recorded of these calls, given their rows.

        ``in_pieces``: one call does a part of the other's work.
        """
        kinds = [self.rows.kind[0][row] for row in ours], [self.rows.kind[1][row] for row in theirs]
        found: BoundaryPairs = []
        for kind in dict.fromkeys(kinds[0]):
            places = [[place for place, seen in enumerate(side) if seen == kind] for side in kinds]
            if len(places[0]) == len(places[1]) == 1:
                i, j = places[0][0], places[1][0]
                score = self._score_alone(ours[i], theirs[j], in_pieces) if kind == INPUT else THRESHOLDS.boundary_sole_output
                if score > order.LEAST:
                    found.append((i, j, score))
            elif places[0] and places[1]:
                found.extend(self._of_one_kind(kind, ours, theirs, places[0], places[1], in_pieces))
        return found

    def _score_alone(self, a: int, b: int, in_pieces: bool) -> float:
        return self.scores.of(a, b, alone=True, in_pieces=in_pieces) + THRESHOLDS.boundary_same_place

    def _of_one_kind(
        self, kind: int, ours: Sequence[int], theirs: Sequence[int], rows: Sequence[int], columns: Sequence[int], in_pieces: bool
    ) -> BoundaryPairs:
        """The pairs among several boundaries of one kind (inputs, outputs, taps), which are at the places ``rows`` and ``columns``."""
        some, others = [ours[i] for i in rows], [theirs[j] for j in columns]
        scores = np.array([[self.scores.of(a, b, alone=False, in_pieces=in_pieces) for b in others] for a in some])  # (rows, columns)
        scores[np.diag_indices(min(scores.shape))] += THRESHOLDS.boundary_same_place
        pairs: PlacePairs = order.matched(scores)
        if kind == INPUT:
            for correct in INPUT_PASSES:
                pairs = correct(self.scores, some, others, pairs)
        found = [(rows[i], columns[j], float(scores[i, j])) for i, j in pairs]
        if kind == INPUT or len(rows) == len(columns):
            return found
        return [pair for pair in found if self._is_output_pair(ours, theirs, *pair[:2])]

    def _is_output_pair(self, ours: Sequence[int], theirs: Sequence[int], i: int, j: int) -> bool:
        """Whether two outputs are a pair where one side returns more: by values or names, or by places that no name contradicts."""
        a, b = ours[i], theirs[j]
        return self.scores.is_supported(a, b) or (i == j and not self.scores.are_named_apart(a, b))


# -- passes over the pairs of inputs -------------------------------------------------------------------------------------------


def keep_exchanged_in_place(scores: BoundaryScores, ours: Sequence[int], theirs: Sequence[int], pairs: PlacePairs) -> PlacePairs:
    """Pairs two positional arguments with exchanged values by their places, where the callee uses them by place: the caller mixed them up.

    So too where the call raised, which it would not have done had the exchange been meant. A callee of the port that takes its arguments
    in another order uses them by value.
    """
    rows = scores.rows
    found = dict(pairs)
    for i, j in pairs:
        is_exchanged = i < j and found.get(j) == i and rows.key(0, ours[i]).keys == rows.key(1, theirs[i]).keys == (i,)
        if not is_exchanged or any(_are_used_alike(rows, ours[one], theirs[other]) for one, other in ((i, j), (j, i))):
            continue
        if any(_are_used_alike(rows, ours[place], theirs[place]) for place in (i, j)) or _has_raised(rows, 1, theirs[i]):
            found |= {i: i, j: j}
    return list(found.items())


def _are_used_alike(rows: Rows, a: int, b: int) -> bool:
    """Whether the calls of two inputs hand them to calls of paired sites."""
    consumers = _consumers(rows, 1, b)
    return any(rows.partner.get(site) in consumers for site in _consumers(rows, 0, a))


def _consumers(rows: Rows, side: int, row: int) -> set[int]:
    """The sites to which the call of an input hands that very tensor."""
    here = rows.sides[side]
    own = int(here.calls.of_row[row])
    calls = [int(here.calls.of_row[other]) for other in rows.same(side, row) if here.end_kind[other] == INPUT]
    return {int(here.calls.site[call]) for call in calls if int(here.calls.parent[call]) == own}


def _has_raised(rows: Rows, side: int, row: int) -> bool:
    """Whether the call of a row raised."""
    calls = rows.sides[side].calls
    return any(rows.raised[side][other] for other in calls.rows_of(int(calls.of_row[row])).tolist())


def leave_out_merged_masks(scores: BoundaryScores, ours: Sequence[int], theirs: Sequence[int], pairs: PlacePairs) -> PlacePairs:
    """Leaves out a bias that is paired with the sum of a bias and a mask, where the bias's side takes in the mask as another input.

    So where one side adds a mask to position biases before its layers and the other side inside attention: neither is wrong.
    """
    rows = ours, theirs
    masks = [{place for place, row in enumerate(rows[side]) if scores.may_mask(side, row)} for side in (0, 1)]
    used = [{pair[side] for pair in pairs if pair[1 - side] in masks[1 - side]} for side in (0, 1)]
    kept = []
    for pair in pairs:
        is_mask = [pair[side] in masks[side] for side in (0, 1)]
        bare = 0 if is_mask[1] else 1
        is_added = not any(scores.rows.exact[side][rows[side][pair[side]]] for side in (0, 1))
        if not (is_added and is_mask[0] != is_mask[1] and masks[bare] - used[bare]):
            kept.append(pair)
    return kept


INPUT_PASSES: tuple[Callable[[BoundaryScores, Sequence[int], Sequence[int], PlacePairs], PlacePairs], ...] = (
    keep_exchanged_in_place,
    leave_out_merged_masks,
)
"""What corrects the pairs of several inputs, in order. An ablation leaves one out by its name."""
