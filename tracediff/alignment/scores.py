"""The score of two sites: what parameters, values, shapes, roles, attributes, neighbours, names and what lies below say, added up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment import attention, names, parameters, values
from tracediff.alignment.features import Bag, Features, features_of_both, size_of
from tracediff.alignment.structure import Side

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


_LEAST_TRUST = 0.2  # how far names must be trusted to count at all
_SAME_NAME = 2.6  # what the same full name is worth: more than equal weights, which may have been loaded into the wrong place
_PLACED = 1.5  # what it is worth to take in what no other site of the kind does
_MISPLACED = 0.25  # how much equal weights still count for sites of which one takes in just what another site does
_SAME_PLACE = 0.5  # how alike what two callers call must be for that
_MORE_INSIDE = 5.0  # what speaks against pairing a leaf with a caller of more than such a leaf, whatever parameter both own
_IDLE = 6.0  # what speaks against pairing what hands on what it is given with what does something to it
_MUCH_MORE = 4  # so many times as much inside one of two callers says that they are not one, whatever parameter both own
_FEW = 100  # pairs of sites for which plain Python is faster than arrays
_MOST_KINDS = 3000  # kinds for which a full table of likenesses is kept
_ANCHOR = 1.2  # the least evidence from parameters and values that pairs two sites by itself
MARGIN = 0.35
"""By how much an anchor must be better than the next candidate."""
SAME_BAG = 0.97
"""Likeness of what lies below two callers from which on they are taken to be the same."""


class Scores:
    """The evidence on two sides, and the scores of their sites.

    ``parameters`` and ``values`` hold what those say of pairs of sites; ``near`` the candidates of each reference site by them, of each
    port site, and all pairs; ``anchors`` the pairs that they single out; ``overlap`` how far the anchors below two callers are the same.
    """

    def __init__(self, reference: Side, port: Side) -> None:
        self.sides = (reference, port)
        contents = values.Contents(reference), values.Contents(port)
        self.parameters = parameters.evidence(reference, port)
        self.values = values.evidence(*contents, values.shared(*contents))
        self.features = features_of_both(self.sides, contents)
        self.near = _near(self.parameters, self.values)
        self.trust = _names_count(self.sides)
        self.named = _same_names(self.sides) if self.trust >= _LEAST_TRUST else {}
        bags, attributes = self.features[0].bags, self.features[0].attribute_sets
        self.bags = _Likenesses(len(bags), lambda one, other: _jaccard(bags[one], bags[other]))
        self.placed = self._placed()
        self.attributes = _Likenesses(len(attributes), lambda one, other: _agreement(attributes[one], attributes[other]))
        self.anchors = self._anchors()
        self.overlap = self._overlaps()
        if 2 * len(self.anchors) < min(int(np.count_nonzero(features.key)) for features in self.features):
            self._tell_projections_apart()
        self.overlaps_of: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for (a, b), shared in self.overlap.items():
            self.overlaps_of[a].append((b, shared))

    def told(self, a: int, b: int) -> float:
        """What parameters and values say of two sites together, from 0 (nothing) to about 4."""
        owned, seen = self.parameters.get((a, b)), self.values.get((a, b))
        total = 2.0 * owned.share if owned is not None and owned.part is None else 0.0
        if total and self._stand_elsewhere(a, b):
            total *= _MISPLACED
        if seen is not None:
            total += 0.7 * seen.inputs + 0.8 * seen.outputs + (0.8 if seen.inputs and seen.outputs else 0.0)
            total += _PLACED if (a, b) in self.placed else 0.0
        return total

    def sure(self, a: int, b: int) -> float:
        """What parameters, values and an equal name say of two sites, and how well they fit."""
        return self.told(a, b) + (_SAME_NAME * self.trust if self.named.get(a) == b else 0.0) + self._fit(a, b)

    def _is_piece(self, a: int, b: int) -> bool:
        """Whether what holds one of two sites holds all that the other owns: the first layer of a stack takes in what the stack does."""
        ours, theirs = self.sides
        return any((one, b) in self.parameters for one in ours.holders(a)) or any((a, one) in self.parameters for one in theirs.holders(b))

    def _stand_elsewhere(self, a: int, b: int) -> bool:
        """Whether one of two leaves takes in just what others do, as many on either side: equal weights are then in the wrong place."""
        return self._places[0].get(a, {b}).isdisjoint({b}) or self._places[1].get(b, {a}).isdisjoint({a})

    @cached_property
    def _places(self) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
        """For each leaf that is told by what it takes in, alone or with its likes (queries, keys and values), what may be its partner."""
        places: tuple[dict[int, set[int]], dict[int, set[int]]] = ({}, {})
        for a, others in self._alike[0].items():
            group = {one for other in others for one in self._alike[1][other]}
            if self.features[0].leaf[a] and len(group) == len(others) and all(self._alike[0][one] == others for one in group):
                places[0].update({one: set(others) for one in group})
                places[1].update(dict.fromkeys(others, group))
        return places

    @cached_property
    def _alike(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """For each site of either side those of its kind on the other that take in the same.

        Of callers also what they call must be mostly alike: the first part of a model takes in what the whole model does. And not where
        the partner of one of two sites, by what it owns, is never called: what comes next then takes in what that one should have.
        """
        ours, theirs = self.features
        alike: tuple[dict[int, list[int]], dict[int, list[int]]] = (defaultdict(list), defaultdict(list))
        for (a, b), seen in self.values.items():
            if (
                seen.inputs > 0.99
                and ours.key[a] == theirs.key[b]
                and ours.function[a] == theirs.function[b]
                and ours.leaf[a] == theirs.leaf[b]
                and (ours.leaf[a] or self.bags.of(int(ours.bag[a]), int(theirs.bag[b])) > _SAME_PLACE)
                and not self._is_piece(a, b)
                and ((a, b) in self.parameters or not (a in self._left_out[0] or b in self._left_out[1]))
            ):
                alike[0][a].append(b)
                alike[1][b].append(a)
        return alike

    @cached_property
    def _left_out(self) -> tuple[set[int], set[int]]:
        """The called sites of either side all of whose parameters a site of the other owns that is never called."""
        ours, theirs = self.sides
        whole = [pair for pair, found in self.parameters.items() if found.part is None and found.share > 0.99]
        return (
            {a for a, b in whole if theirs.first_call[b] < 0 <= ours.first_call[a]},
            {b for a, b in whole if ours.first_call[a] < 0 <= theirs.first_call[b]},
        )

    def _placed(self) -> set[tuple[int, int]]:
        """Pairs of sites that take in the same, as no other site of their kind does: whatever they own, this is their place."""
        return {(a, others[0]) for a, others in self._alike[0].items() if len(others) == 1 and len(self._alike[1][others[0]]) == 1}

    def _tell_projections_apart(self) -> None:
        """Finds queries and keys by what is done with them; only where little is anchored, since tensors are read for it."""
        for side, features in zip(self.sides, self.features, strict=True):
            for site, found in attention.roles(side, (features.leaf & (features.key != 0)).tolist()).items():
                features.projection[site] = found

    def of(self, a: int, b: int) -> float:
        return float(self.table([a], [b])[0, 0])

    def table(self, rows: Sequence[int], columns: Sequence[int]) -> Floats:
        """The score of every two sites."""
        if not rows or not columns:
            return np.empty((len(rows), len(columns)))
        ours, theirs = self.features
        a, b = np.asarray(rows, np.int64), np.asarray(columns, np.int64)
        scores = _by_codes(ours, theirs, a, b)
        scores += 0.3 * self.attributes.table(ours.attributes[a], theirs.attributes[b])
        scores -= _IDLE * (self._changes_nothing[0][a][:, None] != self._changes_nothing[1][b][None, :]) * _both_known(ours, theirs, a, b)
        if self.trust >= _LEAST_TRUST:
            scores += 0.6 * self.trust * _words_alike([ours.words[site] for site in rows], [theirs.words[site] for site in columns])
        self._add_told(scores, rows, columns)
        self._add_names(scores, rows, columns)
        self._add_levels(scores, a, b)
        return scores

    def _add_told(self, scores: Floats, rows: Sequence[int], columns: Sequence[int]) -> None:
        place = {b: spot for spot, b in enumerate(columns)}
        for i, a in enumerate(rows):
            for b in self.near[0].get(a, ()):
                spot = place.get(b)
                if spot is not None:
                    scores[i, spot] += self.told(a, b)

    def _add_names(self, scores: Floats, rows: Sequence[int], columns: Sequence[int]) -> None:
        if self.named:
            place = {b: spot for spot, b in enumerate(columns)}
            for i, a in enumerate(rows):
                spot = place.get(self.named.get(a, -1))
                if spot is not None:
                    scores[i, spot] += _SAME_NAME * self.trust

    def _add_levels(self, scores: Floats, a: Ints, b: Ints) -> None:
        """What the sites below two callers say of them: how alike they are, and how many anchors they share."""
        ours, theirs = self.features
        plain_a, plain_b = ours.leaf[a], theirs.leaf[b]
        if plain_a.all() and plain_b.all():
            return
        alike = self.bags.table(ours.bag[a], theirs.bag[b])
        both = ~plain_a[:, None] & ~plain_b[None, :]
        mixed = plain_a[:, None] ^ plain_b[None, :]
        inside = ours.inside[a][:, None] - theirs.inside[b][None, :]
        more = np.where(plain_a[:, None], inside < 0, inside > 0)
        scores += np.where(
            both, 2.0 * alike - 1.0, np.where(mixed, np.where(alike > SAME_BAG, 0.6, np.where(more, -_MORE_INSIDE, -0.2)), 0.0)
        )
        place = {int(site): spot for spot, site in enumerate(b.tolist())}
        rows = {int(site): spot for spot, site in enumerate(a.tolist())}
        for one, other in self._wholes:
            if one in rows and other in place and mixed[rows[one], place[other]] and more[rows[one], place[other]]:
                scores[rows[one], place[other]] += _MORE_INSIDE
        for i in np.flatnonzero(~plain_a).tolist():
            for other, shared in self.overlaps_of.get(int(a[i]), ()):
                spot = place.get(other)
                if spot is not None and not plain_b[spot]:
                    scores[i, spot] += 2.5 * (shared - 0.3)

    # -- anchors --------------------------------------------------------------------------------------------------------------

    def _anchors(self) -> dict[int, int]:
        """Pairs of sites that parameters and values single out: each the other's best, and clearly better than the next."""
        scores = {pair: self.sure(*pair) for pair in {*self.near[2], *((a, b) for a, b in self.named.items() if self.told(a, b) > 0)}}
        best: tuple[dict[int, list[tuple[float, int]]], dict[int, list[tuple[float, int]]]] = (defaultdict(list), defaultdict(list))
        for (a, b), score in scores.items():
            best[0][a].append((score, b))
            best[1][b].append((score, a))
        anchors: dict[int, int] = {}
        for a, found in best[0].items():
            score, b = max(found)
            rival = max([other for other in found if other[1] != b] + [other for other in best[1][b] if other[1] != a], default=(0.0, -1))[
                0
            ]
            if score >= _ANCHOR and score - rival >= MARGIN:
                anchors[a] = b
        return anchors

    def _fit(self, a: int, b: int) -> float:
        """How well two sites fit by what they own and do: contradictions count against an anchor."""
        fit = 0.0
        key, function, role, leaf, inside = self._plain[0][a]
        other_key, other_function, other_role, other_leaf, other_inside = self._plain[1][b]
        if key != other_key:
            fit -= 0.8 if key and other_key else 0.5
        if function != other_function:
            fit -= 0.5
        if role and other_role and role != other_role:
            fit -= _IDLE if self._changes_nothing[0][a] != self._changes_nothing[1][b] else 0.5
        if (a, b) in self._wholes:
            return fit
        if leaf != other_leaf:
            fit -= _MORE_INSIDE if (inside < other_inside if leaf else inside > other_inside) else 0.4
        elif not leaf and max(inside, other_inside) > _MUCH_MORE * max(1, min(inside, other_inside)):
            fit -= _MORE_INSIDE
        return fit

    @cached_property
    def _wholes(self) -> set[tuple[int, int]]:
        """Pairs of which one site owns all that the other only holds: a recurrent layer of two directions, written as two layers."""
        ours, theirs = (side.owned for side in self.sides)
        return {(a, b) for a, b in self.parameters if bool(ours[a]) != bool(theirs[b])}

    @cached_property
    def _changes_nothing(self) -> tuple[NDArray[np.bool_], ...]:
        """Of each site whether it is there to hand on what it is given: a dropout, an identity."""
        return tuple(np.array([role == "identity" for role in side.role], bool) for side in self.sides)

    @cached_property
    def _plain(self) -> tuple[list[tuple[int, int, int, bool, int]], ...]:
        """Of each site the key, function, role, whether it is a leaf, and how much lies inside."""
        return tuple(
            list(zip(*(getattr(one, name).tolist() for name in ("key", "function", "role", "leaf", "inside")), strict=True))
            for one in self.features
        )

    def _overlaps(self) -> dict[tuple[int, int], float]:
        """Of pairs of callers, how far the anchored sites below them are the same (Dice); a single one convinces less."""
        above = [side.callers for side in self.sides]
        shared: dict[tuple[int, int], int] = defaultdict(int)
        totals: tuple[dict[int, int], dict[int, int]] = (defaultdict(int), defaultdict(int))
        for a, b in self.anchors.items():
            ours, theirs = above[0](a), above[1](b)
            for one in ours:
                totals[0][one] += 1
                for other in theirs:
                    shared[one, other] += 1
            for other in theirs:
                totals[1][other] += 1
        return {(a, b): 2 * count / (totals[0][a] + totals[1][b]) * count / (count + 2) for (a, b), count in shared.items()}


# What equal and different codes are worth where both sites have one.
_WORTH = {
    "role": (0.5, -0.8),
    "type": (0.2, 0.0),
    "outputs": (0.3, -0.3),
    "inputs": (0.2, -0.2),
    "stage": (0.3, -1.0),
    "near": (0.25, 0.0),
    "around": (0.25, 0.0),
    "projection": (0.4, -0.6),
    "kind": (0.0, -0.3),
    "often": (0.1, 0.0),
}


_EQUAL, _DIFFERENT = (np.array([worth[place] for worth in _WORTH.values()]) for place in (0, 1))
_ROLE = list(_WORTH).index("role")
_SMALL = 20_000  # cells of a table for which all codes are compared at once


def _told_by(one: Ints, other: Ints, equal: Floats, different: Floats) -> Floats:
    """What codes say of every two sites: ``one`` of (codes, rows), ``other`` of (codes, columns); 0 is no code."""
    same = one[:, :, None] == other[:, None, :]
    present = (one != 0)[:, :, None] & (other != 0)[:, None, :]
    told: Floats = np.einsum("krc,k->rc", present, different) + np.einsum("krc,k->rc", same & present, equal - different)
    return told


def _by_codes(ours: Features, theirs: Features, a: Ints, b: Ints) -> Floats:
    """What roles, types, shapes, stages, neighbours, parameters' shapes and functions say of every two sites."""
    codes = np.stack([getattr(ours, name)[a] for name in _WORTH]), np.stack([getattr(theirs, name)[b] for name in _WORTH])
    if len(a) * len(b) <= _SMALL:
        scores = _told_by(codes[0], codes[1], _EQUAL, _DIFFERENT)
    else:  # one kind of code after the other, so that no more is held than the scores
        scores = np.zeros((len(a), len(b)))
        for place in range(len(_WORTH)):
            kind = slice(place, place + 1)
            scores += _told_by(codes[0][kind], codes[1][kind], _EQUAL[kind], _DIFFERENT[kind])
    same_role = (codes[0][_ROLE][:, None] == codes[1][_ROLE][None, :]) & (codes[0][_ROLE] != 0)[:, None]
    scores -= _WORTH["role"][1] * (_both_known(ours, theirs, a, b) & ~same_role & _one_matrix(ours, theirs, a, b))
    one, other = ours.key[a][:, None], theirs.key[b][None, :]
    leaves = ours.leaf[a][:, None] & theirs.leaf[b][None, :]
    owns, neither = (one != 0) & (other != 0), (one == 0) & (other == 0)
    scores += np.where(owns, np.where(one == other, 0.8, -1.5), np.where(neither, 0.2, np.where(leaves, -1.2, 0.0)))
    one, other = ours.function[a][:, None], theirs.function[b][None, :]
    if one.any() or other.any():
        scores += np.where((one != 0) | (other != 0), np.where(one == other, 0.5, np.where(same_role, -0.2, -6.0)), 0.0)
    return scores


def _one_matrix(ours: Features, theirs: Features, a: Ints, b: Ints) -> NDArray[np.bool_]:
    """Of every two sites whether both multiply by a matrix of the same lengths: a convolution of one step is a linear layer."""
    found: NDArray[np.bool_] = ours.matrix[a][:, None] & theirs.matrix[b][None, :] & (ours.key[a][:, None] == theirs.key[b][None, :])
    return found


def _both_known(ours: Features, theirs: Features, a: Ints, b: Ints) -> NDArray[np.bool_]:
    """Of every two sites whether their types say what both do."""
    known: NDArray[np.bool_] = (ours.role[a] != 0)[:, None] & (theirs.role[b] != 0)[None, :]
    return known


def _words_alike(rows: Sequence[frozenset[str]], columns: Sequence[frozenset[str]]) -> Floats:
    """How alike the words of every two sites are (Dice)."""
    if len(rows) * len(columns) <= _FEW:
        return np.array([[2 * len(one & other) / (len(one) + len(other) or 1) for other in columns] for one in rows])
    vocabulary = {word: place for place, word in enumerate(set().union(*rows) & set().union(*columns))}
    tables = []
    for names_of in (rows, columns):
        table = np.zeros((len(names_of), len(vocabulary)), np.float32)
        for row, words in enumerate(names_of):
            table[row, [vocabulary[word] for word in words if word in vocabulary]] = 1.0
        tables.append(table)
    total = np.array([len(words) for words in rows])[:, None] + np.array([len(words) for words in columns])[None, :]
    alike: Floats = 2.0 * (tables[0] @ tables[1].T) / np.maximum(total, 1)
    return alike


class _Likenesses:
    """How alike kinds are, two at a time, each worked out when first asked for."""

    def __init__(self, count: int, alike: Callable[[int, int], float]) -> None:
        self.count = count
        self.work = alike
        self.known: Floats = np.full((count, count) if count <= _MOST_KINDS else (0, 0), np.nan, np.float32)
        self.far: dict[tuple[int, int], float] = {}

    def of(self, one: int, other: int) -> float:
        if self.known.size:
            if np.isnan(self.known[one, other]):
                self.known[one, other] = self.work(one, other)
            return float(self.known[one, other])
        if (one, other) not in self.far:
            self.far[one, other] = self.work(one, other)
        return self.far[one, other]

    def table(self, rows: Ints, columns: Ints) -> Floats:
        if not self.known.size:
            return np.array([[self.of(int(one), int(other)) for other in columns] for one in rows])
        kinds = np.unique(rows), np.unique(columns)
        for i, j in np.argwhere(np.isnan(self.known[np.ix_(*kinds)])).tolist():
            self.of(int(kinds[0][i]), int(kinds[1][j]))
        table: Floats = self.known[rows[:, None], columns[None, :]]
        return table


def _agreement(x: dict[str, Any], y: dict[str, Any]) -> float:
    shared = [key for key in x if key in y and key != "training"]
    return sum(1.0 if _equal(x[key], y[key]) else -1.0 for key in shared) / len(shared) if shared else 0.0


def _equal(x: Any, y: Any) -> bool:
    flat = [value if not isinstance(value, (list, tuple)) else (value[0] if len(set(map(repr, value))) == 1 else value) for value in (x, y)]
    return bool(flat[0] == flat[1])


def _jaccard(one: Bag, other: Bag) -> float:
    a, b = dict(one), dict(other)
    shared = sum(min(count, b.get(key, 0)) for key, count in a.items())
    total = size_of(one) + size_of(other) - shared
    return shared / total if total else 0.0


def _same_names(sides: tuple[Side, Side]) -> dict[int, int]:
    """The sites whose names normalise alike, where that is so of only one on each side."""
    known: tuple[dict[str, list[int]], dict[str, list[int]]] = (defaultdict(list), defaultdict(list))
    for side, places in zip(sides, known, strict=True):
        for number, name in enumerate(side.names):
            if name:
                places[names.normalised(name)].append(number)
    lists = [names.lists(side.path) for side in sides]
    return {
        ours[0]: known[1][name][0]
        for name, ours in known[0].items()
        if len(ours) == 1
        and len(known[1].get(name, ())) == 1
        and names.indices(sides[0].path[ours[0]], lists[0]) == names.indices(sides[1].path[known[1][name][0]], lists[1])
    }


def _names_count(sides: tuple[Side, Side]) -> float:
    """How far names can be trusted, 0 to 1: how much of the reference's vocabulary the port uses too (numbers aside)."""
    vocabularies = [{word for path in set(side.path) for word in names.tokens(path) if not word.isdigit()} for side in sides]
    if not vocabularies[0] or not vocabularies[1]:
        return 0.0
    return min(1.0, 1.6 * len(vocabularies[0] & vocabularies[1]) / min(len(vocabularies[0]), len(vocabularies[1])))


def _near(
    owned: dict[tuple[int, int], parameters.Evidence], seen: dict[tuple[int, int], values.Seen]
) -> tuple[dict[int, list[int]], dict[int, list[int]], list[tuple[int, int]]]:
    pairs = list(dict.fromkeys([*owned, *seen]))
    ours: dict[int, list[int]] = defaultdict(list)
    theirs: dict[int, list[int]] = defaultdict(list)
    for a, b in pairs:
        ours[a].append(b)
        theirs[b].append(a)
    return ours, theirs, pairs
