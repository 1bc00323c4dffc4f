"""Which end of a call is which on the other side.

Ends are not paired by position alone: names where both have them, shapes and values count, and what the same ends of other calls tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tracediff.alignment import axes, order
from tracediff.alignment.calls import Together
from tracediff.alignment.names import tokens
from tracediff.alignment.record_table import PairedSites, Rows
from tracediff.alignment.structure import INPUT
from tracediff.dtype import MASKED
from tracediff.site import End, pattern_of

_CLOSE, _ALIKE = 0.05, 0.3  # distances of statistics below which two ends are close, and alike
_CLEARLY = 1.0  # by how much calls of the same role must tell more of their ends than a site's own


class Arguments:
    """The pairs of ends of paired calls."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._told_ends: dict[tuple[object, ...], tuple[float, list[tuple[int, int, float]]]] = {}

    def tell(self, sites: PairedSites, calls: Iterable[Together]) -> None:
        """Lets the call in which values tell most say which end is which, for all calls with the same ends of sites of the same role.

        Keys and values of a cache are told apart early in a run, and by nothing once the two runs have parted.
        """
        seen: set[tuple[object, ...]] = set()
        for together in calls:
            if len(together.reference) > 1 or len(together.port) > 1:
                continue
            rows = [
                side.calls.rows_of(one[0]).tolist() for side, one in zip(self.rows.sides, (together.reference, together.port), strict=True)
            ]
            keys = self._ends_keys(sites, *rows)
            shapes = (keys[0], *(tuple(self.rows.shape_codes[side][row] for row in rows[side]) for side in (0, 1)))
            if shapes in seen or any(self.rows.raised[side][row] for side in (0, 1) for row in rows[side]):
                continue
            seen.add(shapes)
            pairs = self.matched(*rows)
            total = sum(score for *_, score in pairs)
            for ends in keys:
                if total > self._told_ends.get(ends, (0.0, []))[0]:
                    self._told_ends[ends] = total, pairs

    def of(self, sites: PairedSites, ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int, float]]:
        """The pairs of ends as the site's own calls tell them, or this call; or as those of its role do."""
        own, role = (self._told_ends.get(key, (0.0, [])) for key in self._ends_keys(sites, ours, theirs))
        is_straighter = bool(role[1]) and self._exchanged(ours, theirs, role[1]) < self._exchanged(ours, theirs, own[1])
        return (role if is_straighter or role[0] > own[0] + _CLEARLY else own)[1] or self.matched(ours, theirs)

    def _ends_keys(self, sites: PairedSites, ours: Sequence[int], theirs: Sequence[int]) -> tuple[tuple[object, ...], ...]:
        """What calls of two sites have in common that have the same ends; and what those of all sites of the same role have."""
        roles = (pattern_of(side.names[site]) for side, site in zip(self.rows.sides, (sites.reference, sites.port), strict=True))
        ends = tuple(self.rows.end[0][row] for row in ours), tuple(self.rows.end[1][row] for row in theirs)
        return (sites.place, *ends), (*roles, *ends)

    def _exchanged(self, ours: Sequence[int], theirs: Sequence[int], pairs: Iterable[tuple[int, int, float]]) -> int:
        """How many ends are paired with another one although both sides have one of that name or place."""
        keys = [{self.rows.key(side, row) for row in rows} for side, rows in enumerate((ours, theirs))]
        named = [(self.rows.key(0, ours[i]), self.rows.key(1, theirs[j])) for i, j, _ in pairs]
        return sum(a != b and a in keys[1] and b in keys[0] for a, b in named)

    def matched(self, ours: Sequence[int], theirs: Sequence[int]) -> list[tuple[int, int, float]]:
        """The pairs of ends of two calls, with their scores."""
        kinds = [self.rows.kind[0][row] for row in ours], [self.rows.kind[1][row] for row in theirs]
        found: list[tuple[int, int, float]] = []
        for kind in dict.fromkeys(kinds[0]):
            rows, columns = [[place for place, seen in enumerate(side) if seen == kind] for side in kinds]
            if len(rows) == len(columns) == 1 and kind != INPUT:
                found.append((rows[0], columns[0], 1.5))
            elif len(rows) == len(columns) == 1:
                score = self._end_score(ours[rows[0]], theirs[columns[0]], True) + 0.25
                found.extend([(rows[0], columns[0], score)] if score > order.LEAST else [])
            elif rows and columns:
                scores = np.array([[self._end_score(ours[i], theirs[j], False) for j in columns] for i in rows])
                scores[np.diag_indices(min(scores.shape))] += 0.25  # the same place among the ends of its kind
                chosen = order.matched(scores)
                if kind == INPUT:
                    chosen = self._in_their_places([ours[i] for i in rows], [theirs[j] for j in columns], chosen)
                    chosen = self._without_merged([ours[i] for i in rows], [theirs[j] for j in columns], chosen)
                matched = [(rows[i], columns[j], float(scores[i, j])) for i, j in chosen]
                is_told = kind == INPUT or len(rows) == len(columns)
                found.extend(
                    (i, j, score)
                    for i, j, score in matched
                    if is_told or self._is_supported(ours[i], theirs[j]) or (i == j and not self._named_apart(ours[i], theirs[j]))
                )
        return found

    def _without_merged(self, ours: Sequence[int], theirs: Sequence[int], pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The pairs of inputs without those of a bias on its own and one that masks too, where the mask is handed over beside the first.

        So where one side adds a mask to position biases before its layers and the other inside attention: neither is wrong.
        """
        rows = ours, theirs
        masks = [{place for place, row in enumerate(rows[side]) if self._may_mask(side, row)} for side in (0, 1)]
        used = [{pair[side] for pair in pairs if pair[1 - side] in masks[1 - side]} for side in (0, 1)]
        kept = []
        for pair in pairs:
            is_mask = [pair[side] in masks[side] for side in (0, 1)]
            bare = 0 if is_mask[1] else 1
            is_added = not any(self.rows.exact[side][rows[side][pair[side]]] for side in (0, 1))
            if not (is_added and is_mask[0] != is_mask[1] and masks[bare] - used[bare]):
                kept.append(pair)
        return kept

    def _may_mask(self, side: int, row: int) -> bool:
        """Whether a tensor says true or false, or holds what masks by being added."""
        return self.rows.is_truth(side, row) or bool(not self.rows.exact[side][row] and self.rows.sides[side].index["min"][row] <= MASKED)

    def _in_their_places(self, ours: Sequence[int], theirs: Sequence[int], pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The pairs of inputs, but two arguments whose values are exchanged stay in their places where the callee uses them by place.

        So where a caller mixes them up; and where the call raised, which it would not had it been meant so. A port whose callee takes them
        in another order uses them by value.
        """
        found = dict(pairs)
        for i, j in pairs:
            if i < j and found.get(j) == i and self.rows.key(0, ours[i]).keys == self.rows.key(1, theirs[i]).keys == (i,):
                straight = any(self._are_used_alike(ours[one], theirs[one]) for one in (i, j))
                crossed = any(self._are_used_alike(ours[one], theirs[other]) for one, other in ((i, j), (j, i)))
                if not crossed and (straight or self._has_raised(1, theirs[i])):
                    found |= {i: i, j: j}
        return list(found.items())

    def _has_raised(self, side: int, row: int) -> bool:
        calls = self.rows.sides[side].calls
        return any(self.rows.raised[side][one] for one in calls.rows_of(int(calls.of_row[row])).tolist())

    def _are_used_alike(self, a: int, b: int) -> bool:
        """Whether the calls of two inputs hand them to calls of paired sites."""
        takers = self._users(0, a), self._users(1, b)
        return any(self.rows.partner.get(site) in takers[1] for site in takers[0])

    def _users(self, side: int, row: int) -> set[int]:
        """The sites that the call of an input hands that very tensor."""
        here = self.rows.sides[side]
        own = int(here.calls.of_row[row])
        calls = [int(here.calls.of_row[one]) for one in self.rows.same(side, row) if here.end_kind[one] == INPUT]
        return {int(here.calls.site[call]) for call in calls if int(here.calls.parent[call]) == own}

    def _end_score(self, a: int, b: int, alone: bool) -> float:
        ours, theirs = self.rows.key(0, a), self.rows.key(1, b)
        score = 0.9 if alone else 0.1
        if ours.kind != theirs.kind:
            return -1.0
        is_one_truth = self.rows.exact[0][a] and self.rows.exact[1][b] and self.rows.is_truth(0, a) != self.rows.is_truth(1, b)
        if is_one_truth and not (self._is_mask(0, a) and self._is_mask(1, b)):
            return -1.0  # ids and positions are no masks
        score += _named_alike(ours, theirs)
        score += (
            3.0 if ours == theirs and self.rows.are_of_functions(a, b) else 0.0
        )  # functions' ends are named alike, whatever values come there
        score += 0.5 if axes.layouts(self.rows.shape(0, a), self.rows.shape(1, b)) else -0.5
        if self._are_two_masks(a, b):
            return score + (2.0 if self._mask_alike(a, b) else 0.1)
        apart = self.rows.apart(a, b)
        score += 2.0 if apart < 1e-3 else 1.2 if apart < _CLOSE else 0.4 if apart < _ALIKE else 0.0
        return score + (0.0 if self.rows.exact[0][a] == self.rows.exact[1][b] else -0.5)

    def _are_two_masks(self, a: int, b: int) -> bool:
        """Whether one of two tensors says true or false and the other is a mask that is added."""
        truths = self.rows.is_truth(0, a), self.rows.is_truth(1, b)
        side, row = (1, b) if truths[0] else (0, a)
        index = self.rows.sides[side].index
        return truths[0] != truths[1] and not self.rows.exact[side][row] and bool(index["max"][row] <= 0 and index["min"][row] <= MASKED)

    def _mask_alike(self, a: int, b: int) -> bool:
        """Whether two masks of two conventions let the same through, whatever true means in one of them."""
        read = self.rows.read(a, b)
        layout = next(iter(axes.layouts(self.rows.shape(0, a), self.rows.shape(1, b))), None)
        if read is None or layout is None:
            return False
        ours, theirs = (
            one if one.dtype == bool else one > MASKED for one in (axes.apply_reference(read[0], layout), axes.apply(read[1], layout))
        )
        return np.array_equal(ours, theirs) or np.array_equal(ours, ~theirs)

    def _is_supported(self, a: int, b: int) -> bool:
        """Whether more than its shape speaks for a pair of outputs, where one side returns more than the other."""
        return _named_alike(self.rows.key(0, a), self.rows.key(1, b)) > 0 or self.rows.apart(a, b) < _CLOSE

    def _named_apart(self, a: int, b: int) -> bool:
        """Whether two ends have names, and not the same: a cache is no hidden state, whatever shapes they have."""
        return _named_alike(self.rows.key(0, a), self.rows.key(1, b)) < 0

    def _is_mask(self, side: int, row: int) -> bool:
        """Whether exact values may be a mask: truth values, or numbers that are 0 or 1."""
        index = self.rows.sides[side].index
        return bool(index["min"][row] >= 0 and index["max"][row] <= 1)


def _named_alike(ours: End, theirs: End) -> float:
    names = [[key for key in end.keys if isinstance(key, str)] for end in (ours, theirs)]
    if names[0] and names[1]:
        return 1.0 if tokens(".".join(names[0])) == tokens(".".join(names[1])) else -0.3
    return 0.0
