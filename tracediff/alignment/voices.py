"""What speaks for two sites by themselves: one function a source, each asked about many pairs of sites at once.

A voice says for each pair a number, in the unit of `thresholds`: above 0 for the pair, below 0 against it, 0 where it has nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment import attention, parameters, values
from tracediff.alignment.features import Features, features_of_both
from tracediff.alignment.likeness import KindLikeness, attribute_agreement, bag_likeness, word_likeness
from tracediff.alignment.name_evidence import NameEvidence
from tracediff.alignment.pair_evidence import PairEvidence
from tracediff.alignment.structure import Side
from tracediff.alignment.thresholds import THRESHOLDS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

PROPERTIES = ("role", "type", "outputs", "inputs", "stage", "near", "around", "projection", "kind", "call_count", "made", "top")
"""Codes among the `Features`, which are merely equal or not. `THRESHOLDS` holds what each is worth: NAME_equal and NAME_different."""


class Evidence:
    """All that is known of two sides before any two sites are paired: their features, and what parameters, values and names say."""

    def __init__(self, reference: Side, port: Side) -> None:
        self.sides = (reference, port)
        contents = values.Contents(reference), values.Contents(port)
        owned = parameters.evidence(reference, port)
        seen = values.evidence(*contents, values.shared(*contents))
        self.features = features_of_both(self.sides, contents)
        bags, attributes = self.features[0].bags, self.features[0].attribute_sets
        self.bags = KindLikeness(lambda ours, theirs: bag_likeness(bags[ours], bags[theirs]))
        self.attributes = KindLikeness(lambda ours, theirs: attribute_agreement(attributes[ours], attributes[theirs]))
        self.names = NameEvidence(self.sides)
        self.pairs = PairEvidence(self.sides, self.features, owned, seen, self.bags)
        self._tell_projections_apart()

    def _tell_projections_apart(self) -> None:
        """Finds queries and keys by what is done with them. Tensors are read for it, so only where parameters tell few sites apart."""
        owners = min(int(np.count_nonzero(features.key)) for features in self.features)
        by_values = self.pairs.by_values
        known = {
            pair[0] for pair, worth in self.pairs.by_parameters.items() if worth + by_values.get(pair, 0.0) >= THRESHOLDS.parameters_equal
        }
        if len(known) >= THRESHOLDS.anchored_share * owners:
            return
        for side, features in zip(self.sides, self.features, strict=True):
            for site, role in attention.roles(side, (features.leaf & (features.key != 0)).tolist()).items():
                features.projection[site] = role

    def codes(self, name: str, a: Ints, b: Ints) -> tuple[Ints, Ints]:
        """One feature of the sites of many pairs."""
        return getattr(self.features[0], name)[a], getattr(self.features[1], name)[b]

    @cached_property
    def order(self) -> tuple[Ints, Ints]:
        """Where each site of either side stands: those that were called by their first call, then the others."""
        ours, theirs = (
            np.where(side.first_call >= 0, side.first_call, len(side.calls.site) + np.arange(len(side), dtype=np.int64))
            for side in self.sides
        )
        return ours, theirs

    @cached_property
    def places(self) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints]]:
        """For each side how many sites of its like stand before each site, and how many behind it, as numbers below 0."""
        found = []
        for features, order in zip(self.features, self.order, strict=True):
            likes = np.stack([features.function, features.role, features.key, features.bag])
            _, like, counts = np.unique(likes, axis=1, return_inverse=True, return_counts=True)
            sequence = np.lexsort((order, like))
            place = np.empty(len(like), np.int64)
            place[sequence] = np.arange(len(like)) - np.repeat(np.cumsum(counts) - counts, counts)
            found.append((place, place - counts[like]))
        return found[0], found[1]

    @cached_property
    def wrappers(self) -> tuple[Flags, Flags]:
        """Which modules of either side merely call one other module, which takes in and returns the same tensors."""
        ours, theirs = (np.array([hands_on(side, site) for site in range(len(side))], bool) for side in self.sides)
        return ours, theirs


def hands_on(side: Side, site: int) -> bool:
    """Whether a module owns nothing, and takes in and returns just what the only module that it calls does."""
    if side.kind[site] != "module" or side.owned[site] or len(side.children[site]) != 1:
        return False
    inner = side.children[site][0]
    calls = int(side.first_call[site]), int(side.first_call[inner])
    digests = [[side.index["digest"][row].tolist() for rows in side.ends_of(call) for row in rows] for call in calls]
    return side.kind[inner] == "module" and digests[0] == digests[1]


def of_properties(evidence: Evidence, a: Ints, b: Ints) -> Floats:
    """Roles, classes, shapes, stages, neighbours."""
    worth = np.zeros(len(a))
    for name in PROPERTIES:
        ours, theirs = evidence.codes(name, a, b)
        equal, different = getattr(THRESHOLDS, f"{name}_equal"), getattr(THRESHOLDS, f"{name}_different")
        worth += np.where((ours != 0) & (theirs != 0), np.where(ours == theirs, equal, different), 0.0)
    roles, keys = evidence.codes("role", a, b), evidence.codes("key", a, b)
    matrices = evidence.codes("matrix", a, b)
    # A convolution of one step is a linear layer.
    is_excused = (roles[0] != roles[1]) & (roles[0] != 0) & (roles[1] != 0) & matrices[0] & matrices[1] & (keys[0] == keys[1])
    worth -= THRESHOLDS.role_different * is_excused
    return worth


def of_identities(evidence: Evidence, a: Ints, b: Ints) -> Floats:
    """Against a dropout, which hands on its input, and an activation, which changes it; and against a wrapper and what it wraps."""
    (ours, theirs), roles = evidence.codes("identity", a, b), evidence.codes("role", a, b)
    tops = [(side.parent[sites] < 0) for side, sites in zip(evidence.sides, (a, b), strict=True)]
    wrappers = (evidence.wrappers[0][a] != evidence.wrappers[1][b]) & ~(tops[0] & tops[1])  # what the run itself calls is that
    against = THRESHOLDS.identity_different * ((ours != theirs) & (roles[0] != 0) & (roles[1] != 0))
    worth: Floats = -against - THRESHOLDS.wrapper_for_wrapped * wrappers
    return worth


def of_functions(evidence: Evidence, a: Ints, b: Ints) -> Floats:
    """Calls of a function, which are nothing but calls of that function."""
    (ours, theirs), roles = evidence.codes("function", a, b), evidence.codes("role", a, b)
    differing = np.where((roles[0] == roles[1]) & (roles[0] != 0), THRESHOLDS.function_as_module, THRESHOLDS.function_different)
    return np.where((ours != 0) | (theirs != 0), np.where(ours == theirs, THRESHOLDS.function_equal, differing), 0.0)


def of_axes(evidence: Evidence, a: Ints, b: Ints) -> Floats:
    """The axes of the largest own parameters."""
    (ours, theirs), leaves = evidence.codes("key", a, b), evidence.codes("leaf", a, b)
    of_owners = np.where(ours == theirs, THRESHOLDS.largest_equal, THRESHOLDS.largest_different)
    of_one = np.where(leaves[0] & leaves[1], THRESHOLDS.one_leaf_owns, 0.0)
    of_others = np.where((ours == 0) & (theirs == 0), THRESHOLDS.neither_owns, of_one)
    return np.where((ours != 0) & (theirs != 0), of_owners, of_others)


def of_attributes(evidence: Evidence, a: Ints, b: Ints) -> Floats:
    """Scalar attributes: eps, kernel sizes, numbers of heads."""
    return THRESHOLDS.attributes_agree * evidence.attributes.of_pairs(*evidence.codes("attributes", a, b))


def of_words(evidence: Evidence, a: Ints, b: Ints) -> Floats:
    """The words of the last two segments of the names."""
    if not evidence.names.is_trusted:
        return np.zeros(len(a))
    ours, theirs = evidence.features
    return THRESHOLDS.words_alike * evidence.names.trust * word_likeness(ours.words, theirs.words, a, b)


def of_full_names(evidence: Evidence, a: Ints, b: Ints) -> Floats:
    """The same full name."""
    partner = np.full(len(evidence.sides[0]), -1, np.int64)
    for site, other in evidence.names.partner.items():
        partner[site] = other
    return np.where(partner[a] == b, evidence.names.worth, 0.0)


def of_parameters(evidence: Evidence, a: Ints, b: Ints) -> Floats:
    """Equal parameters; far below 0 for a step of a whole."""
    return looked_up(evidence, a, b, evidence.pairs.by_parameters)


def of_values(evidence: Evidence, a: Ints, b: Ints) -> Floats:
    """Equal tensors that both take in or return."""
    return looked_up(evidence, a, b, evidence.pairs.by_values)


def looked_up(evidence: Evidence, a: Ints, b: Ints, worth: Mapping[tuple[int, int], float]) -> Floats:
    """What a table of pairs says of each pair; 0 for what is not in it."""
    found = np.zeros(len(a))
    if worth and len(a):
        width = len(evidence.sides[1])
        asked, told = a * width + b, np.array([site * width + other for site, other in worth], np.int64)
        order = np.argsort(told)
        place = np.minimum(np.searchsorted(told[order], asked), len(told) - 1)
        found = np.where(told[order][place] == asked, np.array([*worth.values()])[order][place], 0.0)
    return found


def of_levels(evidence: Evidence, a: Ints, b: Ints) -> Floats:
    """What lies below two callers; a leaf and a caller."""
    (ours, theirs), bags = evidence.codes("leaf", a, b), evidence.codes("bag", a, b)
    inside = evidence.codes("inside", a, b)
    worth = np.zeros(len(a))
    callers = np.flatnonzero(~(ours & theirs))
    likeness = np.zeros(len(a))
    likeness[callers] = evidence.bags.of_pairs(bags[0][callers], bags[1][callers])
    both, mixed = ~ours & ~theirs, ours ^ theirs
    worth[both] = THRESHOLDS.level_alike * likeness[both] - THRESHOLDS.level_unlike
    holds_more = np.where(ours, inside[0] < inside[1], inside[0] > inside[1])  # whether the caller of the two holds more than the leaf
    is_whole = looked_up(evidence, a, b, dict.fromkeys(evidence.pairs.held_whole, 1.0)) > 0
    for_others = np.where(holds_more, np.where(is_whole, 0.0, -THRESHOLDS.more_inside), THRESHOLDS.leaf_for_less)
    return np.where(mixed, np.where(likeness > THRESHOLDS.same_bag, THRESHOLDS.leaf_for_level, for_others), worth)


def of_places(evidence: Evidence, a: Ints, b: Ints) -> Floats:
    """As many of its like before, and as many behind: the order of the calls where nothing else tells like sites apart."""
    worth = np.zeros(len(a))
    worths = THRESHOLDS.as_many_before, THRESHOLDS.as_many_behind
    for ours, theirs, each in zip(*evidence.places, worths, strict=True):
        worth += each * (ours[a] == theirs[b])
    return worth


VOICES: tuple[Callable[[Evidence, Ints, Ints], Floats], ...] = (
    of_parameters,
    of_values,
    of_properties,
    of_axes,
    of_attributes,
    of_functions,
    of_identities,
    of_levels,
    of_full_names,
    of_words,
    of_places,
)
"""What speaks for two sites by themselves. An ablation leaves one out by its name."""


def spoken(evidence: Evidence, a: Ints, b: Ints) -> Floats:
    """What all voices together say of many pairs of sites ``a`` and ``b``: (pairs,)."""
    return np.sum([voice(evidence, a, b) for voice in VOICES], axis=0) if len(a) else np.zeros(0)


def is_telling(features: Features) -> Flags:
    """Which sites can be distinguished from sites far away: those that own parameters, are a function's, or call others."""
    telling: Flags = (features.key != 0) | (features.function != 0) | ~features.leaf
    return telling
