"""What values say: which tensors of the two runs hold the same numbers, by statistics that no layout changes.

A *content* is what a tensor holds, whatever its layout: records of equal content differ at most by a permutation of their elements.
After a fault all contents differ, so the absence of shared contents says nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracediff import dtype as dtypes
from tracediff.alignment.structure import INPUT, OUTPUT, Side
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.dtype import MASKED

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the values say of two sites: the share of their inputs and of their outputs, at the first call, with equal contents.

    ``is_elsewhere``: whether other sites return what one of them does, and the two nothing in common.
    """

    inputs: float
    outputs: float
    is_elsewhere: bool = False


class Contents:
    """The contents seen at each site's first call, numbered.

    Of each record of those calls: ``rows``, its row in the trace; ``site``; ``is_input``; ``content``; ``telling``, whether it is evidence.
    Of each content: ``features``, (contents, 7); ``count``, its elements; ``is_telling``; ``roundoff`` of its dtype.
    """

    def __init__(self, side: Side) -> None:
        self.side = side
        rows = _first_rows(side)
        kinds = side.end_kind[rows]
        self.rows = rows[(kinds == INPUT) | (kinds == OUTPUT)]
        self.site = side.calls.site[side.calls.of_row[self.rows]]
        self.is_input = side.end_kind[self.rows] == INPUT
        statistics = side.index[self.rows]
        varies = (statistics["std"] > THRESHOLDS.varies * np.abs(statistics["mean"])) & (statistics["std"] > 0)
        masked = (statistics["min"] <= MASKED) | (statistics["inf"] > 0)
        self.telling = (statistics["count"] >= THRESHOLDS.fewest_elements) & varies & ~masked
        scaled = features(statistics)
        keys = np.column_stack([statistics["count"].astype(np.float64), np.round(scaled, THRESHOLDS.content_digits)])
        first, self.content = distinct(keys)
        if side.is_forced:
            is_given = self.is_input & (side.index["producer"][self.rows] < 0)
            first, self.content = _handed_on(self.content, np.where(is_given, -1 - self.rows, np.array(side.tensor)[self.rows]))
        self.features = scaled[first]
        self.count = statistics["count"][first]
        self.is_telling = self.telling[first]
        self.roundoff = np.array([dtypes.BY_CODE[int(code)].roundoff for code in statistics["dtype"][first]]) if len(first) else np.empty(0)


def distinct(keys: Floats) -> tuple[Ints, Ints]:
    """The first place of each distinct row, and for every row which one it is."""
    known: dict[tuple[float, ...], int] = {}
    first: list[int] = []
    number = np.empty(len(keys), np.int64)
    for place, row in enumerate(map(tuple, (keys + 0.0).tolist())):
        if row not in known:
            known[row] = len(first)
            first.append(place)
        number[place] = known[row]
    return np.array(first, np.int64), number


def _handed_on(content: Ints, tensor: Ints) -> tuple[Ints, Ints]:
    """As `distinct`, with what a call returned and what was handed on in its place as one content: that of the latter.

    ``tensor`` is each record's tensor; of what the run was given one of its own. Two contents that differ by an error alone would stand in
    each other's way.
    """
    above = list(range(int(content.max(initial=-1)) + 1))

    def top(one: int) -> int:
        while above[one] != one:
            one = above[one]
        return one

    known: dict[int, int] = {}
    for own, of in zip(content.tolist(), tensor.tolist(), strict=True):
        above[top(own)] = top(known.setdefault(of, own))
    tops = [top(own) for own in content.tolist()]
    last = {one: place for place, one in enumerate(tops)}
    number = {one: count for count, one in enumerate(last)}
    return np.array(list(last.values()), np.int64), np.array([number[one] for one in tops], np.int64)


def features(statistics: NDArray[np.void]) -> Floats:
    """Seven numbers of each row that no permutation changes, scaled so that distances are relative errors: (rows, 7)."""
    rms = statistics["l2"] / np.sqrt(np.maximum(statistics["count"], 1))
    scale = np.where(rms > 0, rms, 1.0)
    columns = [statistics[name] / scale for name in ("mean", "std", "absmean")]
    limit, damping = THRESHOLDS.extreme_limit, THRESHOLDS.extreme_damping
    extremes = [np.clip(statistics[name] / scale, -limit, limit) / damping for name in ("min", "max")]
    with np.errstate(over="ignore", invalid="ignore"):
        skew = np.nan_to_num(statistics["cube"] / scale**3, posinf=0.0, neginf=0.0)
    return np.column_stack([*columns, *extremes, np.cbrt(skew) / damping, np.log(scale)])


def shared(reference: Contents, port: Contents) -> list[tuple[int, int, float]]:
    """Contents that both runs hold: (reference content, port content, distance), each at most once."""
    from scipy.spatial import cKDTree

    found: list[tuple[int, int, float]] = []
    counts = np.intersect1d(reference.count[reference.is_telling], port.count[port.is_telling])
    for count in counts:
        ours = np.flatnonzero((reference.count == count) & reference.is_telling)
        theirs = np.flatnonzero((port.count == count) & port.is_telling)
        forth = _two_nearest(cKDTree(port.features[theirs]), reference.features[ours])
        back = _two_nearest(cKDTree(reference.features[ours]), port.features[theirs])
        for place, (first, distance, second) in enumerate(zip(*forth, strict=True)):
            is_mutual = back[0][first] == place
            is_clear = max(distance, THRESHOLDS.least_distance) < THRESHOLDS.second_nearest * min(second, back[2][first])
            is_coarse = max(reference.roundoff[ours[place]], port.roundoff[theirs[first]]) > THRESHOLDS.coarse_roundoff
            limit = THRESHOLDS.close_in_half if is_coarse else THRESHOLDS.close
            if is_mutual and distance < limit and is_clear:
                found.append((int(ours[place]), int(theirs[first]), float(distance)))
    return found


def _two_nearest(tree: object, points: Floats) -> tuple[Ints, Floats, Floats]:
    """For each of ``points``, (points, 7): the nearest in the tree, its distance, and the distance of the second nearest."""
    distances, places = tree.query(points, k=2, p=2)  # type: ignore[attr-defined]
    return places[:, 0], distances[:, 0], distances[:, 1]


def evidence(reference: Contents, port: Contents, pairs: Sequence[tuple[int, int, float]]) -> dict[tuple[int, int], Seen]:
    """What the shared contents say of each pair of sites that both take in, or both return, such a content."""
    found: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    told: tuple[set[int], set[int]] = (set(), set())
    for of_inputs in (True, False):
        users = [_users(contents, of_inputs) for contents in (reference, port)]
        totals = [
            np.bincount(contents.site[contents.is_input == of_inputs], minlength=len(contents.side)) for contents in (reference, port)
        ]
        for a, b, _ in pairs:
            ours, theirs = users[0].get(a, ()), users[1].get(b, ())
            if max(len(ours), len(theirs)) > THRESHOLDS.content_crowd:
                continue
            if ours and theirs and not of_inputs:
                told[0].update(ours)
                told[1].update(theirs)
            for site in ours:
                for other in theirs:
                    found[site, other][0 if of_inputs else 1] += 1.0 / max(totals[0][site], totals[1][other])
    return {
        (site, other): Seen(min(1.0, inputs), min(1.0, outputs), not outputs and (site in told[0] or other in told[1]))
        for (site, other), (inputs, outputs) in found.items()
    }


def _users(contents: Contents, inputs: bool) -> Mapping[int, list[int]]:
    """The sites that take in each content, or return it, each once."""
    chosen = contents.is_input == inputs
    edges = np.unique(contents.content[chosen] << 32 | contents.site[chosen])
    users: dict[int, list[int]] = defaultdict(list)
    for content, site in zip((edges >> 32).tolist(), (edges & 0xFFFFFFFF).tolist(), strict=True):
        users[content].append(site)
    return users


@dataclass(frozen=True, slots=True)
class Flow:
    """An edge of the flow of data at the first calls: what a site returns, another takes in at ``end`` (a number for its text)."""

    source: int
    target: int
    end: int


def flow(contents: Contents) -> list[Flow]:
    """Which site's outputs are which site's inputs, at the first calls.

    The producer of a content is the first site that returned it, so a site that hands a tensor on (dropout) is passed over. Where no site
    returned it, the producer is the last that returned as many numbers of the same norm: a rotation keeps the norm.
    """
    producer: dict[int, int] = {}
    turned: dict[tuple[int, float], int] = {}
    statistics = contents.side.index[contents.rows]
    digits = THRESHOLDS.norm_digits
    norms = [(int(count), float(f"{norm:.{digits}e}")) for count, norm in zip(statistics["count"], statistics["l2"], strict=True)]
    found = []
    for row in range(len(contents.rows)):
        if not contents.telling[row]:
            continue
        content, site = int(contents.content[row]), int(contents.site[row])
        if contents.is_input[row]:
            source = producer.get(content, turned.get(norms[row], -1))
            if source not in (-1, site):
                found.append(Flow(source, site, int(contents.side.index["end"][contents.rows[row]])))
        else:
            producer.setdefault(content, site)
            turned[norms[row]] = site
    return found


def _first_rows(side: Side) -> Ints:
    """The rows of every site's first call, in order."""
    first = side.first_call[side.first_call >= 0]
    chosen = np.zeros(len(side.calls.site), bool)
    chosen[first] = True
    return np.flatnonzero(chosen[side.calls.of_row]) if len(chosen) else np.empty(0, np.int64)
