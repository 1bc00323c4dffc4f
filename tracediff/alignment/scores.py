"""The score of two sites: what properties, attributes, names, parameters, values and what lies below them say, added up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment import attention, parameters, property_scores, values
from tracediff.alignment.anchors import Misfit, anchored, overlaps
from tracediff.alignment.features import features_of_both
from tracediff.alignment.likeness import KindLikeness, attribute_agreement, bag_likeness, word_likeness
from tracediff.alignment.name_evidence import NameEvidence
from tracediff.alignment.pair_evidence import PairEvidence
from tracediff.alignment.structure import Side
from tracediff.alignment.thresholds import THRESHOLDS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Scores:
    """The evidence on two sides, and the scores of their sites.

    ``evidence``: what parameters and values say of pairs of sites. ``names``: what names say. ``anchors``: the pairs that these single
    out. ``overlap``: how far two callers call the same anchors. ``bags``: how alike the modules below two callers are.
    """

    def __init__(self, reference: Side, port: Side) -> None:
        self.sides = (reference, port)
        contents = values.Contents(reference), values.Contents(port)
        owned = parameters.evidence(reference, port)
        seen = values.evidence(*contents, values.shared(*contents))
        self.features = features_of_both(self.sides, contents)
        bags, attributes = self.features[0].bags, self.features[0].attribute_sets
        self.bags = KindLikeness(len(bags), lambda ours, theirs: bag_likeness(bags[ours], bags[theirs]))
        self.attributes = KindLikeness(len(attributes), lambda ours, theirs: attribute_agreement(attributes[ours], attributes[theirs]))
        self.names = NameEvidence(self.sides)
        self.property_worth = property_scores.worth()
        self.evidence = PairEvidence(self.sides, self.features, owned, seen, self.bags)
        self._misfit = Misfit(self.features, self.evidence.held_whole)
        self.anchors = anchored(self._candidates())
        self.overlap = overlaps(self.sides, self.anchors)
        self.overlap_of: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for (a, b), share in self.overlap.items():
            self.overlap_of[a].append((b, share))
        self._tell_projections_apart()

    def certainty(self, a: int, b: int) -> float:
        """What parameters, values and an equal name say of two sites, less what speaks against them."""
        name = self.names.worth if self.names.partner.get(a) == b else 0.0
        return self.evidence.strength(a, b) + name + self._misfit.of(a, b)

    def of(self, a: int, b: int) -> float:
        """The score of two sites."""
        return float(self.table([a], [b])[0, 0])

    def table(self, rows: Sequence[int], columns: Sequence[int]) -> Floats:
        """The scores of every site in ``rows`` (of the reference) with every site in ``columns`` (of the port): (rows, columns)."""
        table = np.zeros((len(rows), len(columns)))
        if rows and columns:
            cells = Cells(rows, columns, np.asarray(rows, np.int64), np.asarray(columns, np.int64))
            for add in TERMS:
                add(self, table, cells)
        return table

    def _candidates(self) -> dict[tuple[int, int], float]:
        """The certainty of each pair of sites for which parameters or values say anything."""
        named = ((a, b) for a, b in self.names.partner.items() if self.evidence.strength(a, b) > 0)
        return {pair: self.certainty(*pair) for pair in {*self.evidence.pairs, *named}}

    def _tell_projections_apart(self) -> None:
        """Finds queries and keys by what is done with them. Tensors are read for it, so only where few sites are anchored."""
        owners = min(int(np.count_nonzero(features.key)) for features in self.features)
        if len(self.anchors) >= THRESHOLDS.anchored_share * owners:
            return
        for side, features in zip(self.sides, self.features, strict=True):
            for site, role in attention.roles(side, (features.leaf & (features.key != 0)).tolist()).items():
                features.projection[site] = role


# -- the terms of a score ------------------------------------------------------------------------------------------------------


class Cells(NamedTuple):
    """The sites of a table of scores, as lists and as arrays."""

    rows: Sequence[int]
    columns: Sequence[int]
    a: Ints
    b: Ints


def by_properties(scores: Scores, table: Floats, cells: Cells) -> None:
    """Roles, classes, shapes, stages, neighbours, parameters' axes and functions."""
    table += property_scores.scored(*scores.features, cells.a, cells.b, scores.property_worth)


def by_attributes(scores: Scores, table: Floats, cells: Cells) -> None:
    """Scalar attributes: eps, kernel sizes, numbers of heads."""
    ours, theirs = scores.features
    table += THRESHOLDS.attributes_agree * scores.attributes.table(ours.attributes[cells.a], theirs.attributes[cells.b])


def by_identity(scores: Scores, table: Floats, cells: Cells) -> None:
    """Against a dropout, which hands on its input, and an activation, which changes it."""
    ours, theirs = scores.features
    differ = ours.identity[cells.a][:, None] != theirs.identity[cells.b][None, :]
    table -= THRESHOLDS.identity_different * differ * property_scores.both_have_roles(ours, theirs, cells.a, cells.b)


def by_words(scores: Scores, table: Floats, cells: Cells) -> None:
    """The words of the last two segments of the names."""
    if scores.names.is_trusted:
        ours, theirs = scores.features
        likeness = word_likeness([ours.words[site] for site in cells.rows], [theirs.words[site] for site in cells.columns])
        table += THRESHOLDS.words_alike * scores.names.trust * likeness


def by_evidence(scores: Scores, table: Floats, cells: Cells) -> None:
    """Parameters and values."""
    places = {b: column for column, b in enumerate(cells.columns)}
    for row, a in enumerate(cells.rows):
        for b in scores.evidence.near.get(a, ()):
            column = places.get(b)
            if column is not None:
                table[row, column] += scores.evidence.strength(a, b)


def by_full_names(scores: Scores, table: Floats, cells: Cells) -> None:
    """The same full name."""
    if scores.names.partner:
        places = {b: column for column, b in enumerate(cells.columns)}
        for row, a in enumerate(cells.rows):
            column = places.get(scores.names.partner.get(a, -1))
            if column is not None:
                table[row, column] += scores.names.worth


def by_levels(scores: Scores, table: Floats, cells: Cells) -> None:
    """What lies below two callers: how alike it is, and how many anchors it has in common."""
    ours, theirs = scores.features
    leaf_a, leaf_b = ours.leaf[cells.a], theirs.leaf[cells.b]
    if leaf_a.all() and leaf_b.all():
        return
    are_mixed = leaf_a[:, None] ^ leaf_b[None, :]  # a leaf of one side and a caller of the other: (rows, columns)
    inside = ours.inside[cells.a][:, None] - theirs.inside[cells.b][None, :]
    holds_more = np.where(leaf_a[:, None], inside < 0, inside > 0)  # whether the caller of the two holds more than the leaf is
    likeness = scores.bags.table(ours.bag[cells.a], theirs.bag[cells.b])
    for_callers = THRESHOLDS.level_alike * likeness - THRESHOLDS.level_unlike
    for_others = np.where(holds_more, -THRESHOLDS.more_inside, THRESHOLDS.leaf_for_less)
    for_mixed = np.where(likeness > THRESHOLDS.same_bag, THRESHOLDS.leaf_for_level, for_others)
    table += np.where(~leaf_a[:, None] & ~leaf_b[None, :], for_callers, np.where(are_mixed, for_mixed, 0.0))
    columns = {b: column for column, b in enumerate(cells.b.tolist())}
    rows = {a: row for row, a in enumerate(cells.a.tolist())}
    for a, b in scores.evidence.held_whole:
        row, column = rows.get(a), columns.get(b)
        if row is not None and column is not None and are_mixed[row, column] and holds_more[row, column]:
            table[row, column] += THRESHOLDS.more_inside
    for row in np.flatnonzero(~leaf_a).tolist():
        for b, share in scores.overlap_of.get(int(cells.a[row]), ()):
            column = columns.get(b)
            if column is not None and not leaf_b[column]:
                table[row, column] += THRESHOLDS.overlap_worth * (share - THRESHOLDS.overlap_expected)


TERMS: tuple[Callable[[Scores, Floats, Cells], None], ...] = (
    by_properties,
    by_attributes,
    by_identity,
    by_words,
    by_evidence,
    by_full_names,
    by_levels,
)
"""What a score is the sum of. An ablation leaves one out by its name."""
