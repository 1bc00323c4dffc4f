"""Evenly spaced coordinates laid otherwise, and tensors resampled another way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np

from tracediff.causes.operation_edits.base import Change, is_float, own_value, ref_at, shape_at
from tracediff.causes.program import Replay
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.replay.computed import Compute, Values
from tracediff.replay.resampling import OUTSIDE, WAYS, Sampling, resampled_along, sampled
from tracediff.trace.operations import Node


@dataclass(frozen=True, slots=True)
class _Laying:
    """Where ``n`` places lie in an interval: from ``begin`` steps after its start, one step apart, where ``n - less`` steps fill it."""

    name: str
    begin: float
    less: int

    def interval(self, ramp: Array) -> tuple[float, float]:
        """The interval in which a ramp lies in this way."""
        step = (ramp[-1] - ramp[0]) / (len(ramp) - 1)
        start = ramp[0] - self.begin * step
        return float(start), float(start + (len(ramp) - self.less) * step)

    def ramp(self, start: float, end: float, length: int) -> Array:
        made: Array = start + (np.arange(length) + self.begin) * (end - start) / max(length - self.less, 1)
        return made


_LAYINGS = (
    _Laying("from end to end (align_corners=True)", 0.0, 1),
    _Laying("in the middles of equal parts (align_corners=False)", 0.5, 0),
    _Laying("at the beginnings of equal parts", 0.0, 0),
)


def other_coordinates(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Evenly spaced coordinates laid in another way between the same ends, all of them at once, then those of each axis."""
    if number != replay.program.target:
        return
    ramps = _ramps(replay)
    for first in _LAYINGS:
        for second in _LAYINGS:
            for margin in _MARGINS if first is not second else ():
                for is_held in (True, False):
                    said = f"the port's coordinates lie {second.name}, the reference's {first.name}"
                    made = {ramp: _laid(replay, ramp, first, second, margin, is_held=is_held) for ramp in ramps}
                    for some in ([made] if len(made) > 1 else []) + [{ramp: made[ramp]} for ramp in made]:
                        yield Change("position.offset", said, some)


_MARGINS = (0.0, 0.5)
"""What lies beyond the first and last coordinate of whole pixels: nothing, or half of each pixel."""


def _ramps(replay: Replay) -> list[int]:
    """The nodes that give evenly spaced coordinates: the last of those that are the same up to a factor and an offset.

    What else is made of coordinates may look so, too: places rounded down, and what rounding took off.
    """
    program = replay.program
    found = [step for step in program.steps if is_float(replay, step) and _coordinates(replay.values[step]) is not None]
    kept: list[int] = []
    for step in found:
        before = [one for one in kept if one in program.ancestors(step)]
        if all(_is_affine(replay.values[one], replay.values[step]) for one in before):
            kept = [one for one in kept if one not in before] + [step]
    return kept


def _is_affine(one: Array, other: Array) -> bool:
    """Whether each number is the same factor times the other, and the same offset."""
    if one.size != other.size:
        return False
    x, y = one.reshape(-1), other.reshape(-1)
    slope = np.ptp(y) / np.ptp(x) * np.sign((x - x.mean()) @ (y - y.mean()))
    left = y - slope * x
    return bool(np.ptp(left) <= THRESHOLDS.even_steps * np.ptp(y))


def _coordinates(values: Array) -> Array | None:
    """The evenly spaced numbers of which a tensor has one or more each, in order: an axis, or that axis at each place of a grid."""
    if not _SHORTEST <= values.size <= THRESHOLDS.most_coordinates or not np.isfinite(values).all():
        return None
    flat = values.reshape(-1)
    steps = np.diff(np.unique(flat))
    steps = steps[steps > THRESHOLDS.even_steps * max(np.ptp(flat), np.finfo(float).tiny)]
    if len(steps) < _SHORTEST - 1 or np.ptp(steps) > THRESHOLDS.even_steps * steps.max():
        return None
    made: Array = np.linspace(flat.min(), flat.max(), len(steps) + 1)
    return made


_SHORTEST = 3


def _laid(replay: Replay, node: int, first: _Laying, second: _Laying, margin: float, *, is_held: bool) -> Compute:
    """``is_held``: coordinates stay within the interval that the reference's, or the pixels' middles, lie in."""

    def compute(values: Values) -> Array:
        own = np.asarray(own_value(replay, node, values))
        ramp = _coordinates(own)
        if ramp is None:
            return own
        start, end = first.interval(ramp)
        wider = 0.0 if first.less == second.less else margin if first.less else -margin
        made = second.ramp(start - wider, end + wider, len(ramp))
        if is_held:
            made = np.clip(made, start - min(wider, 0.0), end + min(wider, 0.0))
        place = np.rint((own - ramp[0]) / (ramp[-1] - ramp[0]) * (len(ramp) - 1)).astype(int)
        return np.asarray(made[place])

    return compute


def other_enlarging(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Resampled by another filter, corners aligned or not, or repeated as a whole, in the place of being resampled or repeated."""
    ref = ref_at(node, 0)
    if ref is None or ("upsample" not in node.name and node.name not in ("repeat", "repeat_interleave")):
        return
    own, shape = shape_at(replay, ref), shape_at(replay, number)
    if len(own) != len(shape):
        return
    axes = [axis for axis, (a, b) in enumerate(zip(own, shape, strict=True)) if a != b]
    ways: dict[str, Callable[..., Array]] = {str(way): partial(resampled_along, way=way) for way in WAYS}
    if all(shape[axis] % own[axis] == 0 for axis in axes):
        ways["the whole repeated"] = lambda x, axis, length: np.concatenate([x] * (length // x.shape[axis]), axis)
    for name, enlarge in ways.items():

        def compute(values: Values, enlarge: Callable[..., Array] = enlarge) -> Array:
            made: Array = values[ref]
            for axis in axes:
                made = enlarge(made, axis, shape[axis])
            return made

        text = f"the port enlarges {replay.program.text(ref)}: {name}; the reference by {node.name.strip('_')}"
        yield Change("transform", text, {number: compute})


def other_sampling(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Images read at coordinates otherwise: rows and columns exchanged, corners aligned or not, something else outside, the nearest."""
    if node.name != "grid_sampler_2d":
        return
    image, grid = node.refs
    own = Sampling(node.args[2] == 1, OUTSIDE[node.args[3]], bool(node.args[4]))
    for way in (Sampling(*one) for one in product((own.is_nearest, not own.is_nearest), OUTSIDE, (False, True), (False, True))):
        if way != own:
            kind = "position.offset" if way.is_flipped or way.is_aligned != own.is_aligned else "transform"
            said = f"the port reads {replay.program.text(image)} at coordinates: {way}; the reference: {own}"
            yield Change(kind, said, {number: partial(_sampled_by, image, grid, way)})


def _sampled_by(image: int, grid: int, way: Sampling, values: Values) -> Array:
    return sampled(values[image], values[grid], way)
