"""The properties of sites that are compared besides their parameters' and tensors' values.

Most are *codes*: numbers that two sites share, on the same side or not, where the property is equal; 0 where a site lacks it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment import names, parameters, values
from tracediff.alignment.structure import WEIGHT_NORM, Side

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Lengths = tuple[int, ...]
"""The axes of a shape longer than 1, sorted: what no layout changes."""

Thing = TypeVar("Thing")
Bag = tuple[tuple[int, int], ...]
"""How many sites with each key lie in and below a site: (key, count) each; -1 instead of a key is a call of attention."""


def _nothing() -> Ints:
    return np.empty(0, np.int64)


@dataclass(slots=True)
class Features:
    """The properties of all sites of one side. Every array has the shape (sites,), and every list one entry a site."""

    role: Ints
    type: Ints
    function: Ints
    kind: Ints
    key: Ints  # the axes of the largest own parameter
    key_of: list[Lengths]
    matrix: Flags  # linear layers, and convolutions whose kernels have two axes longer than 1
    identity: Flags  # what hands on its input: a dropout, an identity
    inputs: Ints  # the shapes of the inputs at the first call
    inputs_of: list[tuple[Lengths, ...]]
    outputs: Ints
    width: list[int]  # the last axis of the first output
    called: Flags
    top: Ints  # of what calls others: 1 where the run itself calls it, 2 where another site does
    call_count: Ints
    stage: Ints
    leaf: Flags  # what calls nothing, and holds no module with parameters that is never called
    uncalled: dict[int, list[int]]  # by the nearest called holder: modules that own parameters and are never called
    projection: Ints  # attention.QUERY, attention.KEY or 0
    near: Ints = field(default_factory=_nothing)  # the neighbours in the flow of data, one step away
    around: Ints = field(default_factory=_nothing)  # and two steps away
    made: Ints = field(default_factory=_nothing)  # of what calls others: 1 where it hands on what they returned, 2 where it makes its own
    bag: Ints = field(default_factory=_nothing)
    bags: list[Bag] = field(default_factory=list)  # by their codes
    inside: Ints = field(default_factory=_nothing)  # how many sites a site's bag counts
    words: list[frozenset[str]] = field(default_factory=list)
    attributes: Ints = field(default_factory=_nothing)
    attribute_sets: list[dict[str, Any]] = field(default_factory=list)  # by their codes


class _Codes(dict[Hashable, int]):
    """Codes for things, the same on both sides; 0 for an empty thing."""

    def __missing__(self, thing: Hashable) -> int:
        self[thing] = number = len(self) + 1 if thing else 0
        return number


def features_of_both(sides: tuple[Side, Side], contents: tuple[values.Contents, values.Contents]) -> tuple[Features, Features]:
    """The features of the sites of both sides."""
    codes: dict[str, _Codes] = defaultdict(_Codes)
    bags: list[Bag] = []
    attribute_sets: list[dict[str, Any]] = []
    both = tuple(_features_of(side, codes) for side in sides)
    lists = [names.lists(side.path) for side in sides]
    for features, side, ours, theirs in zip(both, sides, lists, reversed(lists), strict=True):
        known = set(theirs.values())
        common = {path for path, indices in ours.items() if indices in known}
        features.words = [_words(side, site, ours, common) for site in range(len(side))]
    for features, side, content in zip(both, sides, contents, strict=True):
        features.near, features.around = _around(features, side, content, codes)
        features.made = _made(side, content)
        features.attributes = _attributes(side, codes["attributes"], attribute_sets)
        features.attribute_sets = attribute_sets
        features.bags = bags
        features.bag = _bags(features, side, codes["bag"], bags)
        features.inside = np.array([size_of(bags[number]) for number in features.bag.tolist()], np.int64)
    return both[0], both[1]


def _features_of(side: Side, codes: dict[str, _Codes]) -> Features:
    keys = [parameters.largest(side.params[number] for number in owned) for owned in side.owned]
    inputs, outputs, width = _boundary_shapes(side)
    stages = [side.text("stage", int(side.calls.first[call])) if call >= 0 else "" for call in side.first_call]
    uncalled = _uncalled(side)
    return Features(
        role=_coded(side.role, codes["role"]),
        type=_coded(side.type, codes["type"]),
        function=_coded(side.function, codes["function"]),
        kind=_coded(side.kind, codes["kind"]),
        key=_coded([key or (1,) if owned else () for key, owned in zip(keys, side.owned, strict=True)], codes["key"]),
        key_of=keys,
        matrix=np.array([role in ("linear", "convolution") and len(key) == 2 for role, key in zip(side.role, keys, strict=True)], bool),
        identity=np.array([role == "identity" for role in side.role], bool),
        inputs=_coded(inputs, codes["shapes"]),
        inputs_of=inputs,
        outputs=_coded(outputs, codes["shapes"]),
        width=width,
        called=side.first_call >= 0,
        top=np.array([bool(side.children[site]) * (1 + (side.parent[site] >= 0)) for site in range(len(side))], np.int64),
        call_count=side.call_counts,
        stage=_coded(stages, codes["stage"]),
        leaf=np.array([not side.children[site] and site not in uncalled for site in range(len(side))], bool),
        uncalled=uncalled,
        projection=np.zeros(len(side), np.int64),
    )


def _coded(things: Sequence[Hashable], codes: _Codes) -> Ints:
    return np.array([codes[thing] for thing in things], np.int64)


def _boundary_shapes(side: Side) -> tuple[list[tuple[Lengths, ...]], list[tuple[Lengths, ...]], list[int]]:
    """The shapes of each site's inputs and outputs at the first call, free of layout; and the last axis of the first output."""
    inputs: list[tuple[Lengths, ...]] = [()] * len(side)
    outputs: list[tuple[Lengths, ...]] = [()] * len(side)
    width = [0] * len(side)
    for site, call in enumerate(side.first_call.tolist()):
        if call < 0:
            continue
        taken, returned = side.ends_of(call)
        inputs[site] = tuple(sorted(_lengths(side.shapes[row]) for row in taken))
        outputs[site] = tuple(sorted(_lengths(side.shapes[row]) for row in returned))
        width[site] = side.shapes[returned[0]][-1] if returned and side.shapes[returned[0]] else 0
    return inputs, outputs, width


@lru_cache(maxsize=1 << 14)
def _lengths(shape: tuple[int, ...]) -> Lengths:
    return tuple(sorted(size for size in shape if size != 1))


def _uncalled(side: Side) -> dict[int, list[int]]:
    """Modules that own parameters and are never called, by the nearest called holder; by the number of sites where there is none."""
    found: dict[int, list[int]] = defaultdict(list)
    for site in range(side.called, len(side)):
        if side.owned[site] and side.role[site] != WEIGHT_NORM:
            above = int(side.holder[site])
            while above >= 0 and side.first_call[above] < 0:
                above = int(side.holder[above])
            found[above if above >= 0 else len(side)].append(site)
    return dict(found)


def _words(side: Side, site: int, lists: Mapping[str, frozenset[str]], common: Set[str]) -> frozenset[str]:
    """The tokens of a site's last two path segments, and of its method, tap or function.

    An index counts only where the other side has a list with the same indices: otherwise the two may count different things.
    """
    path = side.path[site]
    segments = path.split(".")
    holders = [".".join(segments[:place]) for place in range(max(0, len(segments) - 2), len(segments)) if segments[place].isdigit()]
    counted = all(holder in common or holder not in lists for holder in holders)
    words = names.tokens(".".join(segments[-2:])) + names.tokens(side.names[site][len(path) :])
    return frozenset(word for word in words if counted or not word.isdigit())


def _around(features: Features, side: Side, contents: values.Contents, codes: dict[str, _Codes]) -> tuple[Ints, Ints]:
    """Codes of the neighbours of each leaf in the flow of data, one and two steps away.

    Only leaves that own parameters, and functions, count as neighbours: levels, dropouts and activations differ between sides. Which
    boundary of a function a tensor goes to counts too (the query of an attention): functions name their boundaries alike on both sides.
    """
    counts = features.leaf & ((features.key != 0) | (features.function != 0))
    before: list[list[int]] = [[] for _ in range(len(side))]
    behind: list[list[tuple[int, int]]] = [[] for _ in range(len(side))]
    for edge in values.flow(contents):
        if counts[edge.source] and counts[edge.target]:
            before[edge.target].append(edge.source)
            end = codes["end"][side.trace.strings[edge.end]] if features.function[edge.target] else 0
            behind[edge.source].append((edge.target, end))
    own = [(int(key), int(function)) for key, function in zip(features.key, features.function, strict=True)]
    labels = _coded(own, codes["around 0"])
    steps = []
    for step in (1, 2):
        neighbours: list[Hashable] = []
        for site in range(len(side)):
            sources = tuple(sorted({int(labels[other]) for other in before[site]}))
            targets = tuple(sorted({(int(labels[other]), end) for other, end in behind[site]}))
            neighbours.append((int(labels[site]), sources, targets) if sources or targets else ())
        labels = _coded(neighbours, codes[f"around {step}"])
        steps.append(labels)
    return steps[0], steps[1]


def _made(side: Side, contents: values.Contents) -> Ints:
    """Whether what calls others hands on what a call in it returned (1), or returns what its own code makes of that (2); 0 for leaves.

    It is true of a run by itself: an error that was made before changes it nowhere.
    """
    inside: list[set[int]] = [set() for _ in range(len(side))]
    returned: list[set[int]] = [set() for _ in range(len(side))]
    is_output = ~contents.is_input
    for site, content in zip(contents.site[is_output].tolist(), contents.content[is_output].tolist(), strict=True):
        returned[site].add(content)
        for caller in side.callers(site):
            inside[caller].add(content)
    return np.array([(1 if own <= below else 2) if own and below else 0 for own, below in zip(returned, inside, strict=True)], np.int64)


def _attributes(side: Side, codes: _Codes, sets: list[dict[str, Any]]) -> Ints:
    """The code of each site's scalar attributes: a place in ``sets``, which grows."""
    found = np.zeros(len(side), np.int64)
    for site in range(len(side)):
        attributes = dict(side.attributes(site))
        found[site] = _place_of(repr(attributes), attributes, codes, sets)
    return found


def _place_of(key: Hashable, thing: Thing, codes: _Codes, known: list[Thing]) -> int:
    """The place of a thing in a list of all things that are known by their keys; a new one is appended."""
    if (key,) not in codes:
        codes[key,] = len(known)
        known.append(thing)
    return codes[key,]


def _bags(features: Features, side: Side, codes: _Codes, bags: list[Bag]) -> Ints:
    """The code of each site's bag: a place in ``bags``, which grows."""
    counts: list[dict[int, int]] = [defaultdict(int) for _ in range(len(side))]
    for site in _bottom_up(side):
        if features.key[site]:
            counts[site][int(features.key[site])] += 1
        elif features.function[site] and side.function[site] == "attention":
            counts[site][-1] += 1
        above = int(side.parent[site]) if side.first_call[site] >= 0 else -1
        if above >= 0:
            for key, number in counts[site].items():
                counts[above][key] += number
    for above, sites in features.uncalled.items():
        for site in sites:
            chain = side.callers(above) if above < len(side) else []
            for caller in [above, *chain] if above < len(side) else []:
                counts[caller][int(features.key[site])] += 1
    found = np.zeros(len(side), np.int64)
    for site, count in enumerate(counts):
        bag = tuple(sorted(count.items()))
        found[site] = _place_of(bag, bag, codes, bags)
    return found


def _bottom_up(side: Side) -> list[int]:
    """All sites, each after everything that it called first."""
    return sorted(range(len(side)), key=lambda site: -len(side.callers(site)))


def size_of(bag: Bag) -> int:
    """How many sites a bag counts."""
    return sum(count for _, count in bag)
