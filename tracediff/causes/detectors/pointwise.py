"""Causes in functions of single values: another activation, its slope, a clamp, another logarithm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tracediff.causes.proof import Claim, Edit
from tracediff.causes.scene import Scene, hides
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.replay.functions import FUNCTIONS, Function

_LOGARITHMIC = {"log", "exp"}


@dataclass(frozen=True, slots=True)
class _Argument:
    """What a function may have been applied to: a tensor, and what the function's values are multiplied by."""

    text: str
    values: Array
    gated: Array | None = None

    def put_into(self, function: Function) -> Array:
        """The function's values of the tensor, times what it gates."""
        with np.errstate(all="ignore"):
            made = function(self.values)
        return made if self.gated is None else made * self.gated


def detect(scene: Scene) -> Iterable[Claim]:
    """Another function of one tensor in hand, or of a gate and what it gates; a clamp."""
    if not scene.is_numeric:
        return
    yield from _clamped(scene)
    for argument in _arguments(scene):
        found = list(_another(scene, argument))
        yield from found
        if found:
            return


def _another(scene: Scene, argument: _Argument) -> Iterable[Claim]:
    """The reference is one function of an argument, the port another."""
    made = {name: argument.put_into(function) for name, function in FUNCTIONS.items()}
    reference, _ = scene.tensors()
    ours = min(made, key=lambda name: _apart(made[name], reference))
    if not scene.is_reference(made[ours]):
        return
    theirs = min((name for name in made if name != ours), key=lambda name: scene.leaves(made[name]))
    if scene.reproduces(made[theirs]):
        kind = "units.log" if {ours, theirs} & _LOGARITHMIC else "activation"
        evidence = f"the reference applies {ours} to {argument.text}, the port {theirs}"
        yield Claim(kind, THRESHOLDS.sure_other_function, evidence, Edit(made[theirs], made[ours]))
    elif ours != "identity":
        yield from _slope(scene, ours, made[ours], argument)


def _apart(prediction: Array, values: Array) -> float:
    """The norm of a prediction's error; infinite where it is not finite."""
    with np.errstate(all="ignore"):
        error = float(np.linalg.norm(prediction - values))
    return error if np.isfinite(error) else np.inf


def _arguments(scene: Scene) -> Iterator[_Argument]:
    """A tensor, a gate beside another tensor, or one half of a tensor that gates the other."""
    of_shape = list(scene.of_shape())[: THRESHOLDS.functions_of]
    for one in of_shape:
        yield _Argument(one.name, one.values)
    for gate in of_shape[: THRESHOLDS.gates_of]:
        for other in of_shape[: THRESHOLDS.gates_of]:
            if gate is not other:
                yield _Argument(f"{gate.name}, which gates {other.name}", gate.values, other.values)
    yield from _halves(scene)


def _halves(scene: Scene) -> Iterator[_Argument]:
    reference, _ = scene.tensors()
    for one in reversed(scene.in_hand[-THRESHOLDS.functions_of :]):
        for axis in range(one.values.ndim):
            doubled = tuple(size * (2 if place == axis else 1) for place, size in enumerate(reference.shape))
            if one.values.shape == doubled and one.values.dtype.kind == "f":
                first, second = np.split(one.values, 2, axis)
                yield _Argument(f"the first half of {one.name}, which gates the other", first, second)
                yield _Argument(f"the second half of {one.name}, which gates the other", second, first)


def _slope(scene: Scene, name: str, ours: Array, argument: _Argument) -> Iterable[Claim]:
    """A leaky ReLU with a slope that is in no list, where the reference applies the function ``name``, which gives ``ours``."""
    _, port = scene.tensors()
    below = argument.put_into(lambda x: np.where(x > 0, 0, x))
    above = argument.put_into(lambda x: np.maximum(x, 0))
    size = float(np.vdot(below, below))
    slope = float(np.vdot(below, port - above)) / size if size else 0.0
    if scene.reproduces(theirs := above + slope * below):
        evidence = f"the reference applies {name}, the port a slope of {slope:.4g} below zero"
        yield Claim("activation", THRESHOLDS.sure_other_slope, evidence, Edit(theirs, ours, is_fitted=True))


def _clamped(scene: Scene) -> Iterable[Claim]:
    """One side is the other clipped to a range, as a whole or in one of the tensors that it adds."""
    reference, port = scene.tensors()
    if reference.size < THRESHOLDS.fewest_clamped:
        return
    if hides(reference) or hides(port):
        return  # it hides: that other numbers hide is no clamp
    most_left = THRESHOLDS.reproduced * float(np.linalg.norm(port - reference))
    for _, ours, rest in scene.summands():
        for side, clipped, free in (("port", port - rest, ours), ("reference", ours, port - rest)):
            claim = _clipped(side, clipped, free, rest, most_left)
            if claim is not None:
                yield claim
                return


def _clipped(side: str, clipped: Array, free: Array, rest: Array, most_left: float) -> Claim | None:
    """The claim where ``clipped``, a side's values, are those of the other side, ``free``, within limits; ``rest`` is added to both.

    What a reference cut off is not in hand: that the port has it back is then no prediction.
    """
    low, high = float(clipped.min()), float(clipped.max())
    margin = THRESHOLDS.beyond_limit
    if high - low <= margin * max(abs(low), abs(high)):
        return None
    cut = (free < low - margin * abs(low)) | (free > high + margin * abs(high))
    is_low, is_high = (np.isclose(clipped, limit, rtol=THRESHOLDS.at_limit, atol=0) for limit in (low, high))
    if int(cut.sum()) < THRESHOLDS.fewest_cut or np.linalg.norm(np.clip(free, low, high) - clipped) > most_left:
        return None
    if not (is_low | is_high)[cut].all():
        return None
    edit = Edit(rest + np.clip(free, low, high)) if side == "port" else None
    if low == 0 and high >= float(free.max()):
        other = "reference" if side == "port" else "port"
        return Claim("activation", THRESHOLDS.sure_clamped, f"the {side}'s values are a ReLU of the {other}'s", edit)
    limits = [f"at least {low:.6g}"] * bool((free < low).any()) + [f"at most {high:.6g}"] * bool((free > high).any())
    evidence = f"the {side}'s values are the other side's clipped to {' and '.join(limits)}"
    return Claim("clamp", THRESHOLDS.sure_clamped, f"{evidence}, which cuts {int(cut.sum()):,} of {cut.size:,}", edit)
