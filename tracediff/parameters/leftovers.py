"""Tensors that neither values nor names place: what the reference lacks a place for, beside what the port has besides.

A parameter that was never loaded under a name of its own leaves one on either side. So do projections that one side fuses. They are looked
at as pairs where the modules correspond and their shapes leave no other choice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from tracediff.alignment.axes import Join, Layout, Part
from tracediff.parameters.layout_rules import Origin, fitting_layouts
from tracediff.parameters.matching import ValuePair
from tracediff.parameters.renames import parent
from tracediff.parameters.sources import Weight, Weights
from tracediff.parameters.thresholds import THRESHOLDS

Held = dict[str, ValuePair]


@dataclass(frozen=True, slots=True)
class Leftover:
    """Tensors that belong together: ``names`` of the reference, the port's ``goal``, and how its values would be made of them."""

    names: tuple[str, ...]
    goal: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Left:
    """What is left on either side, and the pairs of equal values, which tell what modules correspond."""

    reference: Weights
    port: Weights
    missing: Sequence[str]
    unexpected: Sequence[str]
    held: Held

    def counterpart(self, module: str) -> str | None:
        """The port's module that holds what the reference's module does; None where nothing of it has a place."""
        goals: Counter[str] = Counter()
        for goal, held in self.held.items():
            for name in held.origin.names:
                if name.startswith(f"{module}.") or not module:
                    goals[_without(goal, name[len(module) :].strip(".").count(".") + 1)] += 1
        return goals.most_common(1)[0][0] if goals else module if self._has(module) else None

    def _has(self, module: str) -> bool:
        return any(goal.startswith(f"{module}.") for goal in self.unexpected)


def _without(name: str, count: int) -> str:
    """A name without its last parts."""
    return ".".join(name.split(".")[:-count])


def fused(left: Left) -> Iterator[Leftover]:
    """Several tensors of the reference's module that together have the shape of one in the port's, and the other way round."""
    for module, names in _by_module(left.missing).items():
        goals = _inside(left, module)
        for goal in goals:
            target = left.port[goal]
            for chosen, axis in _filling([left.reference[name] for name in names], target):
                yield Leftover(chosen, goal, Origin(chosen, Layout(target.shape, join=Join(axis))))
        for name in names:
            source = left.reference[name]
            for chosen, axis in _filling([left.port[goal] for goal in goals], source):
                start = 0
                for goal in chosen:
                    shape = left.port[goal].shape
                    part = Part(axis, start, start + shape[axis], 1)
                    start += shape[axis]
                    yield Leftover((name,), goal, Origin((name,), Layout(shape, part=part)))


def _by_module(names: Sequence[str]) -> dict[str, list[str]]:
    """Names by each module that holds them, or whose child does; the nearest first."""
    found: dict[str, list[str]] = defaultdict(list)
    for above in (1, 2):
        for name in names:
            found[_without(name, above)].append(name)
    return found


def _inside(left: Left, module: str) -> list[str]:
    """What the port has besides in the counterpart of a module, and in that one's children."""
    place = left.counterpart(module)
    return [goal for goal in left.unexpected if place is not None and place in (_without(goal, 1), _without(goal, 2))]


def _filling(parts: Sequence[Weight], whole: Weight) -> Iterator[tuple[tuple[str, ...], int]]:
    """The only choice of two to four tensors, in their order, that lie end to end along an axis of another; none where several do."""
    found = []
    for axis in range(len(whole.shape)):
        fitting = [part for part in parts if _is_slice(part, whole, axis)]
        for count in range(2, THRESHOLDS.most_fused + 1):
            chosen = (one for one in combinations(fitting, count) if sum(part.shape[axis] for part in one) == whole.shape[axis])
            found += [(tuple(part.name for part in one), axis) for one in chosen]
    if len(found) == 1:
        yield found[0]


def _is_slice(part: Weight, whole: Weight, axis: int) -> bool:
    if len(part.shape) != len(whole.shape) or part.shape[axis] >= whole.shape[axis]:
        return False
    return all(a == b for place, (a, b) in enumerate(zip(part.shape, whole.shape, strict=True)) if place != axis)


def single(left: Left) -> Iterator[Leftover]:
    """A tensor that is missing beside the only one of its shape that the port has besides: in the same module, or at all."""
    for name in left.missing:
        weight = left.reference[name]
        if weight.kind == "buffer" or weight.count < THRESHOLDS.least_telling:
            continue
        place = left.counterpart(parent(name))
        near = [goal for goal in left.unexpected if place is not None and parent(goal) == place]
        rivals = [other for other in left.missing if parent(other) == parent(name)]
        for goals, others in ((near, rivals), (left.unexpected, left.missing)):
            alike = [goal for goal in goals if fitting_layouts(weight.shape, left.port[goal].shape)]
            if len(alike) == 1 and sum(sorted(left.reference[other].shape) == sorted(weight.shape) for other in others) == 1:
                layout = fitting_layouts(weight.shape, left.port[alike[0]].shape)[0]
                yield Leftover((name,), alike[0], Origin((name,), layout))
                break
