"""Sequences that code computes from the number of a channel or a head: frequencies of another base or ramp, slopes of another ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tracediff.causes.operation_edits.base import Change, Dial, is_float, own_value
from tracediff.causes.program import Replay
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.replay.computed import Values
from tracediff.trace.operations import Node


def frequencies_of_another_base(replay: Replay) -> Iterator[Dial]:
    """Rotary or sinusoidal frequencies raised to a power, which is another base: base^(-i/n) to the power of p is (base^p)^(-i/n)."""
    program = replay.program
    for number in (*program.steps, *program.leaves):
        if is_float(replay, number) and _are_frequencies(replay.values[number]):
            kind, what = ("rope.variant", "frequencies") if are_turned(replay, number) else ("scale", "slopes")
            text = f"the port's {what} {program.text(number)} are the reference's to the power of {{:.6g}}: another base"
            yield Dial(kind, text, number, 1.0, _raised(replay, number), POWERS_TRIED)


def are_turned(replay: Replay, number: int) -> bool:
    """Whether sines, cosines or complex numbers are made of a tensor."""
    program = replay.program
    return any(program.nodes[step].name in _TURNING and number in program.ancestors(step) for step in program.steps)


_TURNING = frozenset(("sin", "cos", "polar", "view_as_complex", "complex"))


def _are_frequencies(values: Array) -> bool:
    """Whether numbers along one axis are a falling or rising power of one number."""
    if values.size < _FEWEST_FREQUENCIES or max(values.shape) != values.size or not (values > 0).all():
        return False
    steps = np.diff(np.log(values.reshape(-1)))
    return bool(steps[0]) and bool(np.ptp(steps) <= THRESHOLDS.even_steps * abs(steps[0]))


_FEWEST_FREQUENCIES = 4
POWERS_TRIED: tuple[float, ...] = tuple(np.geomspace(0.5, 2.0, 61).tolist())
"""By which powers frequencies are off: bases from 100 to 1e8 in the place of 10,000."""


def _raised(replay: Replay, node: int) -> Callable[[Values, float], Any]:
    return lambda values, power: own_value(replay, node, values) ** power


def other_sequence(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Frequencies whose ramp between scaled and unscaled ones has other ends, or none; slopes of heads by another rule."""
    values = replay.values[number]
    if not is_float(replay, number) or values.size < _FEWEST_FREQUENCIES or max(values.shape) != values.size:
        return
    flat, text = values.reshape(-1), replay.program.text(number)
    if (ramp := _ramp_of(flat)) is not None:
        for said, other in ramp.others(len(flat)):
            yield Change("rope.variant", f"the port's frequencies {text} {said}", {number: _put(other, values.shape)})
    rules = _slopes(len(flat))
    own = next((rule for rule, slopes in rules.items() if np.allclose(slopes, flat, rtol=THRESHOLDS.even_steps)), None)
    for rule, slopes in rules.items() if own else ():
        if not np.allclose(slopes, flat, rtol=THRESHOLDS.even_steps):
            yield Change("scale", f"the port's slopes {text} are {rule}, the reference's {own}", {number: _put(slopes, values.shape)})


@dataclass(frozen=True, slots=True, eq=False)
class _Ramp:
    """Frequencies start * ratio^i, unscaled up to channel ``low``, times ``factor`` from channel ``high`` on, and mixed between."""

    start: float
    ratio: float
    factor: float
    low: float
    high: float

    def laid(self, length: int, low: float, high: float) -> Array:
        """The frequencies where the ramp has these ends."""
        places = np.arange(length)
        share = np.clip((places - low) / max(high - low, _NARROWEST), 0, 1)
        made: Array = self.start * self.ratio**places * (1 + share * (self.factor - 1))
        return made

    def others(self, length: int) -> Iterator[tuple[str, Array]]:
        """In words and as frequencies what else a port may make of them."""
        own = f"where the reference mixes them from channel {self.low:.4g} to {self.high:.4g}"
        ends = [(math.floor(self.low), math.ceil(self.high)), (round(self.low), round(self.high)), *self._exact_ends()]
        for low, high in dict.fromkeys(ends):
            if abs(low - self.low) + abs(high - self.high) > THRESHOLDS.even_steps * length:
                yield f"are mixed from channel {low:.4g} to {high:.4g}, {own}", self.laid(length, low, high)
        yield f"are not scaled, {own}", self.laid(length, length, length + 1)
        yield f"are all scaled, {own}", self.laid(length, -2, -1)

    def _exact_ends(self) -> Iterator[tuple[float, float]]:
        """The ends that were rounded outwards, if so: where a channel turns 32 times, and once, in a length that is a power of two."""
        for length in 2.0 ** np.arange(*_LENGTHS):
            low, high = (math.log(length * self.start / (turns * 2 * math.pi)) / -math.log(self.ratio) for turns in _TURNS)
            if abs(math.floor(low) - self.low) + abs(math.ceil(high) - self.high) < THRESHOLDS.even_steps:
                yield low, high


_NARROWEST = 1e-3
_TURNS = (32.0, 1.0)
"""YaRN scales no channel that turns more often in the length of training, and fully those that turn less often."""
_LENGTHS = (9, 21)
"""Powers of two that lengths of training are."""
_FEWEST_ON_RAMP = 2


def _ramp_of(values: Array) -> _Ramp | None:
    """The ramp between a falling geometric sequence and a multiple of it; None where numbers are no such."""
    if len(values) < 2 * _FEWEST_FREQUENCIES or not (values > 0).all() or not values[1] < values[0]:
        return None
    ratio = float(values[1] / values[0])
    part = values / (values[0] * ratio ** np.arange(len(values)))
    factor = float(part[-1])
    if abs(part[2] - 1) > THRESHOLDS.even_steps or abs(part[-2] - factor) > THRESHOLDS.even_steps or abs(factor - 1) < _LEAST_FACTOR:
        return None
    share = (part - 1) / (factor - 1)
    places = np.flatnonzero((share > THRESHOLDS.even_steps) & (share < 1 - THRESHOLDS.even_steps))
    if len(places) < _FEWEST_ON_RAMP or np.ptp(np.diff(share[places])) > THRESHOLDS.even_steps * len(values):
        return None
    slope, offset = np.polyfit(places, share[places], 1)
    return _Ramp(float(values[0]), ratio, factor, float(-offset / slope), float((1 - offset) / slope))


_LEAST_FACTOR = 1e-2


def _slopes(heads: int) -> dict[str, Array]:
    """The slopes of a number of heads (ALiBi) by rules in words; where the heads are a power of two the first two are the same."""
    whole = 2 ** int(math.log2(heads))
    own = 2.0 ** (-8 / whole * np.arange(1, whole + 1))
    more = 2.0 ** (-4 / whole * np.arange(1, 2 * (heads - whole), 2))
    even = 2.0 ** (-8 / heads * np.arange(1, heads + 1))
    return {
        "those of the nearest power of two, then of those between them": np.concatenate([own, more]),
        "2^(-8 i / heads) for i from 1": even,
        "2^(-8 i / heads) for i from 0": even * 2.0 ** (8 / heads),
        "2^(-8 i / heads) from the last head to the first": even[::-1],
        "2^-i": 2.0 ** -np.arange(1, heads + 1),
    }


def _put(made: Array, shape: tuple[int, ...]) -> Callable[[Values], Array]:
    return partial(_instead, made.reshape(shape))


def _instead(made: Array, values: Values) -> Array:
    """A sequence in the place of another, whatever the other nodes give."""
    return made
