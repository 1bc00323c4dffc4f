"""What is compared of a site besides its parameters' and tensors' values: numbers that are equal on both sides where the things are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment import names, parameters, values
from tracediff.alignment.structure import WEIGHT_NORM, Side

Ints = NDArray[np.int64]
Bag = tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Features:
    """What is compared of each site of one side: numbers that are equal on both sides where the things are."""

    role: Ints
    type: Ints
    function: Ints
    kind: Ints
    key: Ints  # the axes of the largest own parameter, 0 where none is owned
    key_of: list[tuple[int, ...]]
    matrix: NDArray[np.bool_]  # linear layers, and convolutions whose kernels have two axes longer than 1
    inputs: Ints
    inputs_of: list[tuple[tuple[int, ...], ...]]
    outputs: Ints
    width: list[int]
    called: NDArray[np.bool_]
    often: Ints
    stage: Ints
    leaf: NDArray[np.bool_]
    near: Ints  # the neighbours in the flow of data, one step away
    around: Ints  # and two steps away
    projection: Ints  # 1 for what is found to make an attention's queries, 2 for its keys
    bag: Ints
    bags: list[Bag]
    inside: Ints  # how many sites its bag counts
    words: list[frozenset[str]]
    attributes: Ints
    attribute_sets: list[dict[str, Any]]
    uncalled: dict[int, list[int]]


class _Codes(dict[Hashable, int]):
    """Numbers for things, the same on both sides; the empty thing is 0."""

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
        alike = {above for above, indices in ours.items() if indices in known}
        features.words = [_words(side, site, ours, alike) for site in range(len(side))]
    for features, side, content in zip(both, sides, contents, strict=True):
        features.near, features.around = _around(features, side, content, codes)
        features.attributes = _attributes(side, codes["attributes"], attribute_sets)
        features.attribute_sets = attribute_sets
        features.bags = bags
        features.bag = _bags(features, side, codes["bag"], bags)
        features.inside = np.array([size_of(bags[number]) for number in features.bag.tolist()], np.int64)
    return both[0], both[1]


def _features_of(side: Side, codes: dict[str, _Codes]) -> Features:
    count = len(side)
    keys = [parameters.largest(side.params[number] for number in owned) for owned in side.owned]
    ins, outs, width = _ends(side)
    stages = [side.text("stage", int(side.calls.first[call])) if call >= 0 else "" for call in side.first_call]
    uncalled = _uncalled(side)
    leaf = np.array([not side.children[site] and site not in uncalled for site in range(count)], bool)
    return Features(
        role=_coded(side.role, codes["role"]),
        type=_coded(side.type, codes["type"]),
        function=_coded(side.function, codes["function"]),
        kind=_coded(side.kind, codes["kind"]),
        key=_coded([key or (1,) if owned else () for key, owned in zip(keys, side.owned, strict=True)], codes["key"]),
        key_of=keys,
        matrix=np.array([one in ("linear", "convolution") and len(key) == 2 for one, key in zip(side.role, keys, strict=True)], bool),
        inputs=_coded(ins, codes["shapes"]),
        inputs_of=ins,
        outputs=_coded(outs, codes["shapes"]),
        width=width,
        called=side.first_call >= 0,
        often=side.call_counts,
        stage=_coded(stages, codes["stage"]),
        leaf=leaf,
        near=np.empty(0, np.int64),
        around=np.empty(0, np.int64),
        projection=np.zeros(count, np.int64),
        bag=np.zeros(count, np.int64),
        bags=[],
        inside=np.zeros(count, np.int64),
        words=[],
        attributes=np.empty(0, np.int64),
        attribute_sets=[],
        uncalled=uncalled,
    )


def _coded(things: Sequence[Hashable], codes: _Codes) -> Ints:
    return np.array([codes[thing] for thing in things], np.int64)


def _ends(side: Side) -> tuple[list[tuple[tuple[int, ...], ...]], list[tuple[tuple[int, ...], ...]], list[int]]:
    """The shapes at each site's first call, free of layout: axes sorted and without ones; and the last axis of the first output."""
    ins: list[tuple[tuple[int, ...], ...]] = [()] * len(side)
    outs: list[tuple[tuple[int, ...], ...]] = [()] * len(side)
    width = [0] * len(side)
    for site, call in enumerate(side.first_call.tolist()):
        if call < 0:
            continue
        taken, given = side.ends_of(call)
        ins[site] = tuple(sorted(_free(side.shapes[row]) for row in taken))
        outs[site] = tuple(sorted(_free(side.shapes[row]) for row in given))
        width[site] = side.shapes[given[0]][-1] if given and side.shapes[given[0]] else 0
    return ins, outs, width


@lru_cache(maxsize=1 << 14)
def _free(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(size for size in shape if size != 1))


def _uncalled(side: Side) -> dict[int, list[int]]:
    """By the nearest called holder (the top where there is none): modules that own parameters and were never called."""
    found: dict[int, list[int]] = defaultdict(list)
    for site in range(side.called, len(side)):
        if side.owned[site] and side.role[site] != WEIGHT_NORM:
            above = int(side.holder[site])
            while above >= 0 and side.first_call[above] < 0:
                above = int(side.holder[above])
            found[above if above >= 0 else len(side)].append(site)
    return dict(found)


def _words(side: Side, site: int, lists: Mapping[str, frozenset[str]], alike: Set[str]) -> frozenset[str]:
    """The tokens of a site's last two path segments, and of its method, tap or function.

    An index counts only where the other side has a list with the same indices: otherwise the two may count different things.
    """
    path = side.path[site]
    segments = path.split(".")
    above = [".".join(segments[:place]) for place in range(max(0, len(segments) - 2), len(segments)) if segments[place].isdigit()]
    counted = all(path_above in alike or path_above not in lists for path_above in above)
    words = names.tokens(".".join(segments[-2:])) + names.tokens(side.names[site][len(path) :])
    return frozenset(word for word in words if counted or not word.isdigit())


def _around(features: Features, side: Side, contents: values.Contents, codes: dict[str, _Codes]) -> tuple[Ints, Ints]:
    """Numbers that are equal where two leaves have equal neighbours in the flow of data, one and two steps away.

    Only what owns parameters or is a function counts as a neighbour: levels, dropouts and activations differ between sides. Which end
    of a function a tensor goes to counts too, functions' ends being named alike on both sides (the query of an attention).
    """
    counts = features.leaf & ((features.key != 0) | (features.function != 0))
    before: list[list[int]] = [[] for _ in range(len(side))]
    behind: list[list[tuple[int, int]]] = [[] for _ in range(len(side))]
    for edge in values.flow(contents):
        if counts[edge.source] and counts[edge.target]:
            before[edge.target].append(edge.source)
            end = codes["end"][side.trace.strings[edge.end]] if features.function[edge.target] else 0
            behind[edge.source].append((edge.target, end))
    now = [(int(key), int(function)) for key, function in zip(features.key, features.function, strict=True)]
    labels = _coded(now, codes["around 0"])
    found = []
    for step in (1, 2):
        near: list[Hashable] = []
        for site in range(len(side)):
            sources = tuple(sorted({int(labels[other]) for other in before[site]}))
            targets = tuple(sorted({(int(labels[other]), end) for other, end in behind[site]}))
            near.append((int(labels[site]), sources, targets) if sources or targets else ())
        labels = _coded(near, codes[f"around {step}"])
        found.append(labels)
    return found[0], found[1]


def _attributes(side: Side, codes: _Codes, sets: list[dict[str, Any]]) -> Ints:
    """The number of each site's set of scalar attributes."""
    numbers = np.zeros(len(side), np.int64)
    for site in range(len(side)):
        attributes = dict(side.attributes(site))
        text = (repr(attributes),)
        number = codes.get(text, -1)
        if number < 0:
            number = codes[text] = len(sets)
            sets.append(attributes)
        numbers[site] = number
    return numbers


def _bags(features: Features, side: Side, codes: _Codes, bags: list[Bag]) -> Ints:
    """The number of each site's bag: how many sites with each kind of parameter there are in and below it."""
    counts: list[dict[int, int]] = [defaultdict(int) for _ in range(len(side))]
    for site in _bottom_up(side, features):
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
            for one in [above, *chain] if above < len(side) else []:
                counts[one][int(features.key[site])] += 1
    numbers = np.zeros(len(side), np.int64)
    for site, count in enumerate(counts):
        bag = tuple(sorted(count.items()))
        number = codes.get((bag,), -1)
        if number < 0:
            number = codes[bag,] = len(bags)
            bags.append(bag)
        numbers[site] = number
    return numbers


def _bottom_up(side: Side, features: Features) -> list[int]:
    """All sites, each after everything that it called first."""
    depth = np.zeros(len(side), np.int64)
    for site in range(len(side)):
        above, steps = int(side.parent[site]), 0
        while above >= 0 and steps < 200:
            above, steps = int(side.parent[above]), steps + 1
        depth[site] = steps
    return [int(site) for site in np.argsort(-depth, kind="stable")]


def size_of(bag: Bag) -> int:
    """How many sites a bag counts."""
    return sum(count for _, count in bag)
