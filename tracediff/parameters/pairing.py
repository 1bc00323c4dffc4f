"""Which tensor of the reference belongs in the place of each tensor of the port: by values, and where values do not tell, by names.

`pair` first takes what the values say. From the names of those pairs it learns the renaming; that tells apart tensors of equal values and
finds the place of tensors whose values agree with nothing. What is left goes by likeness of names among tensors of fitting shapes.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import Literal

import numpy as np

from tracediff.alignment.axes import Join, Layout, Part
from tracediff.alignment.order import best_assignment
from tracediff.parameters.layout_rules import Merge, MergedWeight, Origin, fitting_layouts, long_lengths, merges, norm_pairs, right_merge
from tracediff.parameters.leftovers import Left, fused, single
from tracediff.parameters.matching import ValuePair, compared, compared_origin, match, norm_layout, same_bits
from tracediff.parameters.renames import Renames, likeness, parent
from tracediff.parameters.resemblance import Resemblance
from tracediff.parameters.sources import Weight, Weights
from tracediff.parameters.thresholds import THRESHOLDS

Named = Literal["exact", "renamed", "likeness"]


@dataclass(frozen=True, slots=True)
class NamePair:
    """A tensor of the port that a name places, whose values are not the reference's; ``named`` says how the name was found.

    ``held`` compares the tensor with what belongs in its place; None where no layout reconciles the shapes.
    """

    port: str
    names: tuple[str, ...]
    named: Named
    held: ValuePair | None


@dataclass(slots=True)
class Pairing:
    """The pairs of two sets of weights, as far as `STEPS` have found them.

    By the port's names: ``held`` are pairs of equal values, ``near`` pairs of values much alike, ``placed`` pairs by name. ``elsewhere``
    are pairs of values much alike whose tensor of the reference has another place. ``doubles`` are the port's tensors that are a second
    copy. ``twins``: the names on each side of tensors of equal values. ``tied``: names of the reference, each with the name it repeats.
    """

    reference: Weights
    port: Weights
    held: dict[str, ValuePair] = field(default_factory=dict)
    near: dict[str, ValuePair] = field(default_factory=dict)
    twins: list[tuple[list[str], list[str]]] = field(default_factory=list)
    placed: dict[str, NamePair] = field(default_factory=dict)
    elsewhere: dict[str, ValuePair] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    doubles: set[str] = field(default_factory=set)
    renames: Renames = field(default_factory=lambda: Renames(()))

    @property
    def claimed(self) -> set[str]:
        """The reference's tensors that have a place in the port."""
        held = chain.from_iterable(held.origin.names for held in self.held.values())
        return {*held, *chain.from_iterable(placed.names for placed in self.placed.values())}

    @property
    def missing(self) -> list[str]:
        """The reference's tensors that have no place in the port."""
        claimed = self.claimed
        return [name for name in self.reference if name not in claimed and name not in self.tied]

    @property
    def unexpected(self) -> list[str]:
        """The port's tensors for which the reference has nothing."""
        return [name for name in self.port if name not in self.held and name not in self.placed]

    def fits(self, reference: str, port: str) -> bool:
        """Whether a tensor of the port has room for one of the reference, in some layout."""
        if reference not in self.reference or port not in self.port:
            return False
        return bool(fitting_layouts(self.reference[reference].shape, self.port[port].shape))


def pair(reference: Weights, port: Weights) -> Pairing:
    """The pairs of two sets of weights, found by `STEPS` in their order."""
    pairing = Pairing(reference, port)
    for step in STEPS:
        step.run(pairing)
    return pairing


# -- equal values, and the renaming that they tell -----------------------------------------------------------------------


def _match_values(pairing: Pairing) -> None:
    """Pairs what the values pair, and sets aside what they only make likely."""
    matches = match(pairing.reference, pairing.port)
    pairing.held = {name: held for name, held in matches.held.items() if held.is_equal or held.reshaped}
    pairing.near = {name: held for name, held in matches.held.items() if name not in pairing.held}
    pairing.twins = matches.twins


def _mark_doubles(pairing: Pairing) -> None:
    """Marks the port's tensors that are a second copy: another tensor of the port has the same values and a likelier name."""
    by_origin: dict[str, list[str]] = defaultdict(list)
    for name, held in pairing.held.items():
        if held.origin.is_copy:
            by_origin[held.origin.key].append(name)
    for key, names in by_origin.items():
        pairing.doubles.update(sorted(names, key=lambda name: -likeness(key, name))[1:])


def _learn_renames(pairing: Pairing) -> None:
    """Learns the renaming anew from all pairs of equal values so far."""
    pairs = [(name, held.port) for held in pairing.held.values() if held.port not in pairing.doubles for name in held.origin.names]
    in_order = sorted(pairs, key=_order_in(pairing.reference))
    pairing.renames = Renames(in_order, fits=pairing.fits, reference=pairing.reference, port=pairing.port)


def _order_in(weights: Weights) -> Callable[[tuple[str, str]], int]:
    order = {name: place for place, name in enumerate(weights)}
    return lambda item: order[item[0]]


def _part_twins(pairing: Pairing) -> None:
    """Pairs tensors of equal values by names. A tensor that the port has besides is paired with the one whose name is most alike."""
    for names, twins in pairing.twins:
        _part(pairing, names, twins)


def _part(pairing: Pairing, names: Sequence[str], twins: Sequence[str]) -> None:
    """Pairs the reference's tensors of one value (``names``) with the port's (``twins``)."""
    free_a, free_b = list(names), list(twins)
    for name in names:
        goal = next((goal for goal in pairing.renames.candidates(name) if goal in free_b), None)
        if goal is not None:
            _hold(pairing, name, goal)
            free_a.remove(name)
            free_b.remove(goal)
    for name, goal in _most_alike(free_a, free_b):
        _hold(pairing, name, goal)
        free_b.remove(goal)
    pairing.doubles.update(free_b)
    for goal in free_b:
        _hold(pairing, max(names, key=lambda name: likeness(name, goal)), goal)


def _hold(pairing: Pairing, name: str, goal: str) -> None:
    source, target = pairing.reference[name], pairing.port[goal]
    held = same_bits(source, target)
    if source.dtype != target.dtype:
        held = compared(source, target) or held
    pairing.held[goal] = held


def _most_alike(names: Sequence[str], goals: Sequence[str], least: float = 0.0) -> list[tuple[str, str]]:
    """The pairs of names that are together most alike, each by ``least`` or more; in order where there are too many to weigh."""
    if not names or not goals:
        return []
    if len(names) * len(goals) > THRESHOLDS.most_assigned:
        return list(zip(names, goals, strict=False))
    scores = np.array([[likeness(name, goal) for goal in goals] for name in names])  # (names, goals)
    apart = np.abs(np.subtract.outer(np.arange(len(names)) / len(names), np.arange(len(goals)) / len(goals)))
    scores -= THRESHOLDS.out_of_order * apart
    return [(names[i], goals[j]) for i, j in best_assignment(scores) if scores[i, j] >= least]


def _find_ties(pairing: Pairing) -> None:
    """Marks the reference's tensors without a place that are a second name, or a copy, of a tensor with a place."""
    claimed = pairing.claimed
    digests = {pairing.reference[name].digest: name for name in claimed if pairing.reference[name].count > 1}
    for name in pairing.missing:
        weight = pairing.reference[name]
        alias = next((alias for alias in weight.aliases if alias in claimed), None)
        twin = alias or (None if weight.is_constant else digests.get(weight.digest))
        if twin is not None:
            pairing.tied[name] = twin


# -- tensors that names place ------------------------------------------------------------------------------------------


def _place_by_renames(pairing: Pairing) -> None:
    """Places what is left of the reference where the renaming, or its own name, puts it, unless values speak clearly against it."""
    _place_where_named(pairing, pairing.near)


def _place_the_rest_by_renames(pairing: Pairing) -> None:
    """Places what is still left where the renaming puts it, whatever the values say."""
    _place_where_named(pairing, {})


def _place_other_shapes(pairing: Pairing) -> None:
    """Places what is still left where its name leads, though no layout reconciles the shapes."""
    _place_where_named(pairing, {}, is_last=True)


def _place_where_named(pairing: Pairing, near: Mapping[str, ValuePair], *, is_last: bool = False) -> None:
    claimed = pairing.claimed
    open_names = {name for name in pairing.port if name not in pairing.held and name not in pairing.placed}
    wanted: dict[str, list[str]] = defaultdict(list)
    for name in pairing.reference:
        if name in claimed:
            continue
        goal = _goal(pairing, name, open_names)
        if goal is not None:
            wanted[goal].append(name)
    for goal, names in wanted.items():
        _place(pairing, names, goal, near.get(goal), is_last=is_last)


def _goal(pairing: Pairing, name: str, open_names: set[str]) -> str | None:
    """The open place that a tensor's name leads to: the first of a fitting shape, else the first that exists."""
    candidates = [goal for goal in dict.fromkeys(pairing.renames.candidates(name)) if goal in open_names]
    return next((goal for goal in candidates if pairing.fits(name, goal)), candidates[0] if candidates else None)


def _place(pairing: Pairing, names: Sequence[str], goal: str, near: ValuePair | None, *, is_last: bool) -> None:
    """Pairs a place of the port with those of the reference's tensors that a name leads there, unless ``near`` speaks against them.

    Shapes that no layout reconciles are paired at last: one may be a part of the other.
    """
    best = _best_source(pairing, names, pairing.port[goal])
    named: Named = "exact" if goal in names else "renamed"
    if best is None:
        if is_last:
            pairing.placed[goal] = NamePair(goal, tuple(names[:1]), named, None)
        return
    if best.is_equal:
        pairing.held[goal] = best
        return
    whole = _unseen_norm(pairing, names, best)
    if whole is not None:
        pairing.placed[goal] = NamePair(goal, whole.origin.names, named, whole)
    elif near is None or near.origin.names == best.origin.names or not _is_clearly_nearer(near, best):
        pairing.placed[goal] = NamePair(goal, best.origin.names, named, best)


def _best_source(pairing: Pairing, names: Sequence[str], target: Weight) -> ValuePair | None:
    """The nearest of tensors of the reference to one of the port, or the nearest composition of them where that is clearly nearer."""
    pairs = (compared(pairing.reference[name], target) for name in names)
    single = min((pair for pair in pairs if pair is not None), key=_distance, default=None)
    composed = min(_compositions(pairing, names, target), key=_distance, default=None)
    if composed is None:
        return single
    if single is None or _distance(single) > THRESHOLDS.gain_of_parts * _distance(composed):
        return composed
    return single


def _unseen_norm(pairing: Pairing, names: Sequence[str], best: ValuePair) -> ValuePair | None:
    """A weight norm of which only the direction was compared, since its values were not stored and the merge cannot be computed."""
    for gain, direction, axis in norm_pairs([pairing.reference[name] for name in names]):
        if best.origin.names == (direction.name,) and not direction.is_readable:
            origin = replace(best.origin, names=(gain.name, direction.name), merge=right_merge(direction, axis))
            return replace(best, origin=origin)
    return None


def _distance(held: ValuePair) -> float:
    """How far values are from an origin's: their relative error, or the error that remains after the best scale and shift."""
    seen = held.resemblance
    return 0.0 if seen is None else min(seen.rel_l2, math.sqrt(1 - seen.correlation**2))


def _is_clearly_nearer(near: ValuePair, other: ValuePair) -> bool:
    """Whether values speak for another origin than the name, by more than tensors of one kind resemble each other."""
    if other.resemblance is None or near.resemblance is None:
        return near.resemblance is None
    return near.resemblance.rel_l2 < THRESHOLDS.clearly_nearer * other.resemblance.rel_l2


def _compositions(pairing: Pairing, names: Sequence[str], target: Weight) -> Iterator[ValuePair]:
    """The pairs of a tensor of the port with several of the reference's: merged, or laid end to end."""
    if len(names) < 2:
        return
    sources = [pairing.reference[name] for name in names]
    for made in merges(sources):
        held = compared(made, target)
        if held is not None:
            yield held
    for axis in range(len(target.shape)):
        is_joined = all(_joins(source, target, axis) for source in sources)
        if is_joined and sum(source.shape[axis] for source in sources) == target.shape[axis]:
            origin = Origin(tuple(names), Layout(target.shape, join=Join(axis)))
            yield compared_origin(origin, sources, target, _unknown(target))


def _regain_norms(pairing: Pairing) -> None:
    """Pairs weight norms of which the port holds the direction alone: a right merge where the gain changes nothing, else a wrong one."""
    left = set(pairing.missing)
    by_direction = {held.origin.names[0]: held for held in pairing.held.values() if held.origin.is_copy and held.origin.merge is None}
    for members in siblings(pairing.reference).values():
        pool = [pairing.reference[name] for name in members if name in left or name in by_direction]
        if left.isdisjoint(members):
            continue
        for wrong in (False, True):
            norms = [made for made in merges(pool, wrong=wrong) if made.merge.kind != "sum"]
            fitting = [made for made in norms if made.parts[0].name in left and made.parts[1].name in by_direction]
            _regain_by_values(pairing, fitting, by_direction)
        _regain_by_sketches(pairing, [weight for weight in pool if weight.name in left], pool, by_direction)


def _regain_by_values(pairing: Pairing, made: Sequence[MergedWeight], by_direction: dict[str, ValuePair]) -> None:
    for weight in made:
        goal = by_direction[weight.parts[1].name].port
        if len(pairing.held[goal].origin.names) > 1:
            continue
        held = compared(weight, pairing.port[goal])
        if held is not None and held.is_equal:
            pairing.held[goal] = held
            return


def _regain_by_sketches(pairing: Pairing, gains: Sequence[Weight], pool: Sequence[Weight], by_direction: dict[str, ValuePair]) -> None:
    """The same where the direction's values were not stored, by the sketches."""
    for gain, direction, axis in norm_pairs(pool):
        held = by_direction.get(direction.name)
        if direction.is_readable or gain not in gains or held is None:
            continue
        right = norm_layout(gain, direction, axis, pairing.port[held.port], held.origin.layout)
        merge = Merge("raw") if right is None else right_merge(direction, axis)
        origin = Origin((gain.name, direction.name), right or held.origin.layout, merge)
        pairing.held[held.port] = replace(held, origin=origin, by="sketch")


def _place_blocks(pairing: Pairing) -> None:
    """Places what is left of the port as the missing block of a tensor of the reference that was cut."""
    for name, (axis, groups, gaps) in _gaps(pairing).items():
        source = pairing.reference[name]
        for start, stop in gaps:
            part = Part(axis, start, stop, groups)
            shape = (*source.shape[:axis], (stop - start) * groups, *source.shape[axis + 1 :])
            fitting = [goal for goal in pairing.unexpected if fitting_layouts(shape, pairing.port[goal].shape)]
            if not fitting:
                continue
            goal = max(fitting, key=lambda goal: likeness(name, goal))
            layout = replace(fitting_layouts(shape, pairing.port[goal].shape)[0], part=part)
            target = pairing.port[goal]
            held = compared_origin(Origin((name,), layout), [source], target, _unknown(target))
            pairing.placed[goal] = NamePair(goal, (name,), "renamed", held)


def _place_leftovers(pairing: Pairing) -> None:
    """Places what neither values nor names place: fused tensors, and the only one of its shape on either side."""
    for find in (fused, single):
        left = Left(pairing.reference, pairing.port, pairing.missing, pairing.unexpected, pairing.held)
        parts: Counter[str] = Counter()
        for found in find(left):
            target = pairing.port[found.goal]
            is_cut = found.origin.layout.part is not None
            is_free = all(name in pairing.missing or (is_cut and parts[name]) for name in found.names)
            if found.goal in pairing.placed or found.goal in pairing.held or not is_free:
                continue
            parts.update(found.names if is_cut else ())
            sources = [pairing.reference[name] for name in found.names]
            if found.origin.is_copy:
                held = compared(sources[0], target)
            else:
                held = compared_origin(found.origin, sources, target, _unknown(target))
            if held is not None and held.is_equal:
                pairing.held[found.goal] = held
            else:
                pairing.placed[found.goal] = NamePair(found.goal, found.names, "likeness", held)


def _gaps(pairing: Pairing) -> dict[str, tuple[int, int, list[tuple[int, int]]]]:
    """For each tensor of the reference that was cut: axis, groups, and the blocks that no tensor of the port holds."""
    cuts: dict[str, list[Part]] = defaultdict(list)
    for held in pairing.held.values():
        if held.origin.layout.part is not None:
            cuts[held.origin.names[0]].append(held.origin.layout.part)
    found = {}
    for name, parts in cuts.items():
        axis, groups = parts[0].axis, parts[0].groups
        edges = [(0, 0), *sorted((part.start, part.stop) for part in parts)]
        edges.append((pairing.reference[name].shape[axis] // groups,) * 2)
        gaps = [(stop, start) for (_, stop), (start, _) in pairwise(edges) if start > stop]
        if gaps:
            found[name] = (axis, groups, gaps)
    return found


def _joins(source: Weight, target: Weight, axis: int) -> bool:
    """Whether a tensor is as long as another along every axis but one."""
    same = [a == b for place, (a, b) in enumerate(zip(source.shape, target.shape, strict=False)) if place != axis]
    return len(source.shape) == len(target.shape) and all(same)


def _unknown(target: Weight) -> Resemblance:
    """The resemblance of a tensor of which nothing is known."""
    unknown = math.inf
    return Resemblance(target.count, None, unknown, 0.0, 1.0, unknown, 0.0, unknown, math.nan, (0.0, 0.0), False, None, 0)


def _place_near(pairing: Pairing) -> None:
    """Places tensors that are much alike by value and that no name has placed."""
    claimed = pairing.claimed
    for goal, held in pairing.near.items():
        if goal in pairing.held or goal in pairing.placed:
            continue
        if claimed.intersection(held.origin.names):
            pairing.elsewhere[goal] = held
            continue
        pairing.placed[goal] = NamePair(goal, held.origin.names, "renamed", held)
        claimed.update(held.origin.names)


def _place_by_likeness(pairing: Pairing) -> None:
    """Places what no renaming knows, by likeness of names among tensors whose axes have the same lengths."""
    groups_a: dict[tuple[int, ...], list[str]] = defaultdict(list)
    groups_b: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in pairing.missing:
        groups_a[_lengths(pairing.reference[name])].append(name)
    for name in pairing.unexpected:
        groups_b[_lengths(pairing.port[name])].append(name)
    for shape, names in groups_a.items():
        least = THRESHOLDS.least_likeness if shape else THRESHOLDS.least_likeness_of_numbers
        for name, goal in _most_alike(names, groups_b.get(shape, []), least):
            held = compared(pairing.reference[name], pairing.port[goal])
            if held is None:
                continue
            if held.is_equal:
                pairing.held[goal] = held
            elif _belongs(pairing, name, goal, held):
                pairing.placed[goal] = NamePair(goal, (name,), "likeness", held)


def _belongs(pairing: Pairing, name: str, goal: str, held: ValuePair) -> bool:
    """Whether a likeness of names is enough for a pair: always where values are alike, never where the tensor's kind goes elsewhere."""
    resemblance = held.resemblance
    if resemblance is not None and resemblance.correlation > THRESHOLDS.alike:
        return True
    known = pairing.renames.rule(name)
    if known is not None and known.share > THRESHOLDS.kind_elsewhere:
        return False
    return likeness(name, goal) >= THRESHOLDS.least_likeness


def _lengths(weight: Weight) -> tuple[int, ...]:
    """The lengths of a tensor's axes, ones left out: what no layout changes."""
    return tuple(sorted(long_lengths(weight.shape)))


def siblings(names: Iterable[str]) -> dict[str, list[str]]:
    """Tensor names by module."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[parent(name)].append(name)
    return found


# -- the order of all this ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the pairing, which adds to what the steps before it found."""

    name: str
    run: Callable[[Pairing], None]


STEPS: tuple[Step, ...] = (
    Step("match values", _match_values),
    Step("mark doubles", _mark_doubles),
    Step("learn renames from values", _learn_renames),
    Step("part twins", _part_twins),
    Step("learn renames from twins", _learn_renames),
    Step("place by renames", _place_by_renames),
    Step("place what is much alike", _place_near),
    Step("learn renames from all", _learn_renames),
    Step("place the rest by renames", _place_the_rest_by_renames),
    Step("place by likeness of names", _place_by_likeness),
    Step("regain weight norms", _regain_norms),
    Step("place blocks", _place_blocks),
    Step("place leftovers", _place_leftovers),
    Step("place other shapes", _place_other_shapes),
    Step("find ties", _find_ties),
)
"""What `pair` does, in its order. A step may be left out; those after it then have less to go by."""
