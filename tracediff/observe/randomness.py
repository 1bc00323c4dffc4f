"""The tape of random draws: seeded on both sides, or recorded on the reference and played back to the port.

No framework's generator takes part. A draw is named by its stage, its canonical name (``random.normal``) and its number among
the draws of that name in that stage; the tape holds standard variates (mean 0 and deviation 1, or the unit interval), which are
stretched to what the call asked for. So ``torch.rand`` scaled to an interval and ``mx.random.uniform(low, high)`` share a draw.

- `Tape` makes the variates; `SeededDraws` supplies the draws of a run from them;
- `Playback` supplies the draws of the port from those that a reference trace recorded, in the port's layout;
- `seeded_weight` makes a parameter out of a seed and the reference's name for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from tracediff.draws import affine_of, laid_out, standard
from tracediff.dtype import Array
from tracediff.observe.observer import Boundary, Observer, Run
from tracediff.site import Site

if TYPE_CHECKING:
    from tracediff.trace import Record, Trace

Shape = tuple[int, ...]

ODDS = "value[probabilities]"
"""The end that tells what a categorical draw chose by."""


@dataclass(frozen=True, slots=True)
class Tape:
    """Random numbers that depend on a seed and a name only: the same on every side, in every order, in every process.

    >>> bool((Tape(1).normal("flow.ode", "random.normal", 0, (3,)) == Tape(1).normal("flow.ode", "random.normal", 0, (3,))).all())
    True
    """

    seed: int = 0

    def generator(self, stage: str, name: str, ordinal: int = 0) -> np.random.Generator:
        """A fresh generator for one named thing."""
        digest = blake2b(repr((self.seed, stage, name, ordinal)).encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8")))

    def normal(self, stage: str, name: str, ordinal: int, shape: Shape) -> Array:
        """Standard normal variates, float32."""
        return self.generator(stage, name, ordinal).standard_normal(shape, dtype=np.float32)

    def uniform(self, stage: str, name: str, ordinal: int, shape: Shape) -> Array:
        """Variates of the unit interval (1 excluded), float32."""
        return self.generator(stage, name, ordinal).random(shape, dtype=np.float32)


class Draws(Observer):
    """Answers the draws of a run, each numbered among those of its canonical name in its stage.

    The same object serves a recipe that hands a draw to its model itself (`take` before the run): the numbers go on from there, and
    a second run starts where the first one did.
    """

    def __init__(self) -> None:
        self.taken: Counter[tuple[str, str]] = Counter()
        self._at_start: Counter[tuple[str, str]] | None = None
        self._run: Run | None = None
        self._missed: list[str] = []

    def take(self, stage: str, name: str, shape: Shape, arguments: Mapping[str, Any] | None = None) -> Array | None:
        """The values of the next draw of that name in that stage; None where it has no partner.

        ``arguments`` are those of the call: ``mean`` and ``std``, ``low`` and ``high``, ``p``, ``n``.
        """
        ordinal = self.taken[stage, name]
        self.taken[stage, name] += 1
        return self._values(stage, name, ordinal, shape, arguments or {})

    def _values(self, stage: str, name: str, ordinal: int, shape: Shape, arguments: Mapping[str, Any]) -> Array | None:
        raise NotImplementedError

    def start(self, run: Run) -> None:
        if self._at_start is None:
            self._at_start = self.taken.copy()
        self.taken = self._at_start.copy()
        self._run = run
        for line in self._missed:
            run.miss(line)

    def _miss(self, line: str) -> None:
        """Reports a draw: to the present run, or to the ones that follow where it was taken before them."""
        if self._run is None:
            self._missed.append(line)
        else:
            self._run.miss(line)

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        if boundary.moment != "draw":
            return None
        name = Site.parse(boundary.site).name
        values = self.take(boundary.stage, name, tuple(boundary.note["shape"]), boundary.note)
        return None if values is None else {"draw": values}


class SeededDraws(Draws):
    """Supplies the draws of a run from a tape, so that two sides with one seed draw the same.

    A categorical draw of one choice a row takes the choice at which the sum of the probabilities passes a variate of the unit interval.
    A categorical draw of several choices a row stays the framework's own, and is reported.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self._odds: Array | None = None

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        if boundary.leaves and boundary.leaves[0][0] == ODDS:
            self._odds = boundary.leaves[0][1]
        return super().see(boundary)

    def _values(self, stage: str, name: str, ordinal: int, shape: Shape, arguments: Mapping[str, Any]) -> Array | None:
        values = None
        if name == "random.normal" and (affine := affine_of(name, arguments)):
            values = affine.stretch(self.tape.normal(stage, name, ordinal, shape))
        elif name == "random.categorical":
            values, self._odds = self._choices(stage, name, ordinal, shape), None
        elif name in _FROM_UNIT:
            values = _FROM_UNIT[name](self.tape.uniform(stage, name, ordinal, shape), arguments)
        if values is None:
            self._miss(f"draw not seeded: {name} in stage {stage!r}; the framework's own was kept")
        return values

    def _choices(self, stage: str, name: str, ordinal: int, shape: Shape) -> Array | None:
        """One choice for each row of the latest probabilities (..., choices), in the given shape; None where the sizes do not agree."""
        if self._odds is None or self._odds.size != prod(shape) * self._odds.shape[-1]:
            return None
        rows = self._odds.reshape(-1, self._odds.shape[-1])
        sums = rows.astype(np.float64).cumsum(axis=1)
        unit = self.tape.uniform(stage, name, ordinal, (len(rows),)) * sums[:, -1]
        chosen: Array = (sums <= unit[:, None]).sum(axis=1).reshape(shape)
        return chosen


class Playback(Draws):
    """Supplies the draws of the port from those that a reference trace recorded, in the port's layout and scale.

    A *draw without partner* is one of the port that the reference did not make, one of another size, or one of the reference that the
    port never asked for. It is added to what was not seen, and shifts no other draw: each draw of the port takes the first remaining
    draw of the reference that has its size, in the same scope (step, token) where the reference has that scope.
    """

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._scope = ""
        self._served: set[tuple[str, str, int]] = set()
        self.recorded: dict[tuple[str, str], list[Record]] = {}
        for record in recorded_draws(trace):
            self.recorded.setdefault((record.stage, Site.parse(record.site).name), []).append(record)

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        self._scope = boundary.scope
        return super().see(boundary)

    def _values(self, stage: str, name: str, ordinal: int, shape: Shape, arguments: Mapping[str, Any]) -> Array | None:
        known = self.recorded.get((stage, name), [])
        place = self._fitting(known, ordinal, shape)
        if place is None:
            self.taken[stage, name] = ordinal
            why = self._why_alone(stage, name, known, ordinal, shape)
            self._miss(f"draw without partner: {why}; the port's own was kept")
            return None
        self.taken[stage, name] = place + 1
        self._served.add((stage, name, place))
        record = known[place]
        values = laid_out(record.read(), shape)
        assert values is not None
        ours = affine_of(name, arguments)
        known_as = affine_of(name, record.note)
        return values if ours is None or known_as is None else ours.stretch(standard(name, values, record.note))

    def _fitting(self, known: Sequence[Record], start: int, shape: Shape) -> int | None:
        """The place of the first draw from ``start`` on that has as many numbers; in the present scope, where the reference has it."""
        is_bound = any(record.scope == self._scope for record in known)
        remaining = (place for place in range(start, len(known)) if not is_bound or known[place].scope == self._scope)
        return next((place for place in remaining if prod(known[place].shape) == prod(shape)), None)

    def _why_alone(self, stage: str, name: str, known: Sequence[Record], ordinal: int, shape: Shape) -> str:
        if ordinal >= len(known):
            return f"{name} {list(shape)} in stage {stage!r} is number {ordinal + 1}, and the reference made {len(known)}"
        at = f" at {self._scope}" if self._scope else ""
        return f"{name} in stage {stage!r}{at} is of shape {list(shape)}, and the reference's of {list(known[ordinal].shape)}"

    def finish(self, run: Run) -> None:
        for (stage, name), known in self.recorded.items():
            left = len(known) - sum(served[:2] == (stage, name) for served in self._served)
            if left > 0 and (not stage or stage in run.stages):
                run.miss(f"draw without partner: {left} of the reference's {name} in stage {stage!r} were not asked for")


def recorded_draws(trace: Trace) -> list[Record]:
    """The draws of a trace in execution order."""
    if "draw" not in trace.strings:
        return []
    number = list(trace.strings).index("draw")
    return [trace.records[row] for row in np.flatnonzero(trace.index["end"] == number).tolist()]


def probabilities(weights: Array, axis: int, *, is_log: bool) -> Array:
    """What a categorical draw chooses by, float32, normalised along the last axis, to which the choices are moved.

    ``weights`` are probabilities up to a factor, or (``is_log``) their logarithms up to a summand.

    >>> probabilities(np.float32([0.0, -np.inf]), -1, is_log=True).tolist(), probabilities(np.float32([1, 3]), -1, is_log=False).tolist()
    ([1.0, 0.0], [0.25, 0.75])
    """
    values = np.moveaxis(weights.astype(np.float64), axis, -1)
    with np.errstate(all="ignore"):
        if is_log:
            values = np.exp(values - values.max(axis=-1, keepdims=True))
        normalised: Array = (values / values.sum(axis=-1, keepdims=True)).astype(np.float32)
    return normalised


# What a call makes of variates of the unit interval.


def _uniform(unit: Array, arguments: Mapping[str, Any]) -> Array | None:
    affine = affine_of("random.uniform", arguments)
    return None if affine is None else affine.stretch(unit)


def _integers(unit: Array, arguments: Mapping[str, Any]) -> Array | None:
    low, high = arguments.get("low") or 0, arguments.get("high")
    if not isinstance(low, int) or not isinstance(high, int):
        return None
    return (low + np.floor(unit.astype(np.float64) * (high - low))).astype(np.int64)


def _order(unit: Array, arguments: Mapping[str, Any]) -> Array | None:
    return np.argsort(unit, kind="stable") if unit.ndim == 1 and isinstance(arguments.get("n"), int) else None


def _successes(unit: Array, arguments: Mapping[str, Any]) -> Array | None:
    p = arguments.get("p", 0.5)
    return unit < p if isinstance(p, (int, float)) else None


def _kept(unit: Array, arguments: Mapping[str, Any]) -> Array | None:
    p = arguments.get("p", 0.5)
    return unit >= p if isinstance(p, (int, float)) else None


_FROM_UNIT: dict[str, Callable[[Array, Mapping[str, Any]], Array | None]] = {
    "random.uniform": _uniform,
    "random.randint": _integers,
    "random.permutation": _order,
    "random.bernoulli": _successes,
    "dropout": _kept,
}


def seeded_weight(seed: int, key: str, shape: Shape) -> Array:
    """The float32 values of a parameter or buffer that depend on the seed and its name (in the reference) only.

    Matrices and kernels are scaled by their fan-in, so that activations keep their size through many layers. No bias is zero and
    no scale is one, since either would hide a missing one.

    >>> bool((seeded_weight(0, "norm.weight", (64,)) != 1).all())
    True
    """
    generator = Tape(seed).generator("weights", key)
    last = key.rsplit(".", 1)[-1]
    if last in ("running_var", "original0", "alpha", "beta"):  # variances, magnitudes, frequencies: positive
        return _float32(generator.uniform(0.6, 1.4, shape))
    if last.startswith("bias") or last == "running_mean":
        return _float32(_away_from_zero(generator, shape, 0.05, 0.25))
    if len(shape) <= 1:
        return _float32(1.0 + _away_from_zero(generator, shape, 0.05, 0.4))
    values = generator.standard_normal(shape, dtype=np.float32)
    spread = 1 / np.sqrt(prod(shape[1:])) if last.startswith(("weight", "original1")) else 0.5
    return values * np.float32(spread)


def _away_from_zero(generator: np.random.Generator, shape: Shape, least: float, most: float) -> Array:
    return generator.choice([-1.0, 1.0], shape) * generator.uniform(least, most, shape)


def _float32(values: Array) -> Array:
    return values.astype(np.float32)
