"""What parameters and values say of two sites together, and where they contradict each other.

Equal weights that were loaded into the wrong place point at one site, and the inputs that a site takes in at another. The inputs decide
where they single out one site of its kind.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property

from tracediff.alignment import parameters, values
from tracediff.alignment.features import Features
from tracediff.alignment.likeness import KindLikeness
from tracediff.alignment.structure import Side
from tracediff.alignment.thresholds import THRESHOLDS

SitesOfBoth = tuple[dict[int, list[int]], dict[int, list[int]]]
"""For each site of the reference some sites of the port, and for each site of the port some of the reference."""


class PairEvidence:
    """``parameters`` and ``values``: what those say of pairs of sites.

    ``pairs``: all of which either says something. ``near``: for a site of the reference those of the port in such a pair.
    """

    def __init__(
        self,
        sides: tuple[Side, Side],
        features: tuple[Features, Features],
        owned: dict[tuple[int, int], parameters.Evidence],
        seen: dict[tuple[int, int], values.Seen],
        bags: KindLikeness,
    ) -> None:
        self.parameters, self.values = owned, seen
        self.pairs = list(dict.fromkeys([*owned, *seen]))
        self.near: dict[int, list[int]] = defaultdict(list)
        for a, b in self.pairs:
            self.near[a].append(b)
        self._sides, self._features, self._bags = sides, features, bags

    def strength(self, a: int, b: int) -> float:
        """How much parameters and values say for two sites, from 0 (nothing) to about 5; less where one is a mere step of the other."""
        return self.by_parameters.get((a, b), 0.0) + self.by_values.get((a, b), 0.0)

    @cached_property
    def by_parameters(self) -> dict[tuple[int, int], float]:
        """What the parameters say of two sites; far below 0 where one is a mere step of the other."""
        return {pair: self._of_parameters(pair, owned) for pair, owned in self.parameters.items()}

    def _of_parameters(self, pair: tuple[int, int], owned: parameters.Evidence) -> float:
        if owned.is_step:
            return -THRESHOLDS.step_of_whole
        if owned.part is not None:
            return 0.0
        return THRESHOLDS.parameters_equal * owned.share * (THRESHOLDS.misplaced if self._is_misplaced(*pair) else 1.0)

    @cached_property
    def by_values(self) -> dict[tuple[int, int], float]:
        """What the values say of two sites; nothing where one is a mere step of the other.

        A level takes in what its first part does. So inputs say nothing of two of which other sites return what one of them does.
        """
        found = {}
        for pair, seen in self.values.items():
            owned = self.parameters.get(pair)
            both = THRESHOLDS.both_seen_equal if seen.inputs and seen.outputs else 0.0
            placed = THRESHOLDS.placed if pair in self._placed else 0.0
            inputs = 0.0 if seen.is_elsewhere else seen.inputs
            worth = THRESHOLDS.inputs_seen_equal * inputs + THRESHOLDS.outputs_seen_equal * seen.outputs + both + placed
            found[pair] = 0.0 if owned is not None and owned.is_step else worth
        return found

    @cached_property
    def held_whole(self) -> set[tuple[int, int]]:
        """Pairs of which one site owns all that the other only holds: a recurrent layer of two directions, written as two layers."""
        ours, theirs = (side.owned for side in self._sides)
        return {(a, b) for a, b in self.parameters if bool(ours[a]) != bool(theirs[b])}

    def _is_misplaced(self, a: int, b: int) -> bool:
        """Whether one of two leaves takes in just what other leaves do, as many on either side: its weights are in the wrong place."""
        return b not in self._places[0].get(a, {b}) or a not in self._places[1].get(b, {a})

    @cached_property
    def _placed(self) -> set[tuple[int, int]]:
        """Pairs of sites that take in the same, as no other site of their kind does: they have one place, whatever they own."""
        ours, theirs = self._same_inputs
        return {(a, others[0]) for a, others in ours.items() if len(others) == 1 and len(theirs[others[0]]) == 1}

    @cached_property
    def _places(self) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
        """For each leaf that its inputs single out, alone or in a group (queries, keys and values): its possible partners."""
        places: tuple[dict[int, set[int]], dict[int, set[int]]] = ({}, {})
        ours, theirs = self._same_inputs
        for a, others in ours.items():
            group = {site for other in others for site in theirs[other]}
            if self._features[0].leaf[a] and len(group) == len(others) and all(ours[site] == others for site in group):
                places[0].update({site: set(others) for site in group})
                places[1].update(dict.fromkeys(others, group))
        return places

    @cached_property
    def _same_inputs(self) -> SitesOfBoth:
        """For each site those of its kind on the other side that take in the same."""
        found: SitesOfBoth = (defaultdict(list), defaultdict(list))
        for (a, b), seen in self.values.items():
            if seen.inputs > THRESHOLDS.same_inputs and self._are_of_one_kind(a, b) and not self._is_piece(a, b):
                is_shifted = a in self._left_out[0] or b in self._left_out[1]
                if (a, b) in self.parameters or not is_shifted:
                    found[0][a].append(b)
                    found[1][b].append(a)
        return found

    def _are_of_one_kind(self, a: int, b: int) -> bool:
        """Whether two sites may have one place. What two callers call must be mostly alike too.

        The first part of a model takes in what the whole model does, and is not the model.
        """
        ours, theirs = self._features
        return bool(
            ours.key[a] == theirs.key[b]
            and ours.function[a] == theirs.function[b]
            and ours.leaf[a] == theirs.leaf[b]
            and (ours.leaf[a] or self._bags.of(int(ours.bag[a]), int(theirs.bag[b])) > THRESHOLDS.same_place)
        )

    def _is_piece(self, a: int, b: int) -> bool:
        """Whether the holder of one site holds all that the other owns: a stack's first layer takes in what the stack does."""
        ours, theirs = self._sides
        return any((holder, b) in self.parameters for holder in ours.holders(a)) or any(
            (a, holder) in self.parameters for holder in theirs.holders(b)
        )

    @cached_property
    def _left_out(self) -> tuple[set[int], set[int]]:
        """The called sites whose parameters all belong to a site of the other side that is never called.

        The next site then takes in what the site that was left out should have taken in.
        """
        ours, theirs = self._sides
        whole = [pair for pair, owned in self.parameters.items() if owned.part is None and owned.share > THRESHOLDS.all_parameters]
        return (
            {a for a, b in whole if theirs.first_call[b] < 0 <= ours.first_call[a]},
            {b for a, b in whole if ours.first_call[a] < 0 <= theirs.first_call[b]},
        )
