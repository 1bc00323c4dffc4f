"""Causes in functions of single values: another activation, its slope, a clamp, another logarithm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from tracediff.causes.scene import Scene, Suspect
from tracediff.dtype import Array

Function = Callable[[Array], Array]


def _sigmoid(x: Array) -> Array:
    made: Array = 0.5 * (1 + np.tanh(0.5 * x))
    return made


def _erf_gelu(x: Array) -> Array:
    from scipy.special import erf

    made: Array = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    return made


FUNCTIONS: dict[str, Function] = {
    "identity": lambda x: x,
    "ReLU": lambda x: np.maximum(x, 0),
    "leaky ReLU (0.01)": lambda x: np.where(x > 0, x, 0.01 * x),
    "leaky ReLU (0.1)": lambda x: np.where(x > 0, x, 0.1 * x),
    "leaky ReLU (0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
    "GELU (exact)": _erf_gelu,
    "GELU (tanh)": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "GELU (sigmoid)": lambda x: x * _sigmoid(1.702 * x),
    "SiLU": lambda x: x * _sigmoid(x),
    "Mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "SELU": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "softplus": lambda x: np.logaddexp(0, x),
    "squared ReLU": lambda x: np.maximum(x, 0) ** 2,
    "hard swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "ReLU6": lambda x: np.clip(x, 0, 6),
    "absolute value": np.abs,
    "square": np.square,
    "exp": lambda x: np.exp(np.minimum(x, 60)),
    "exp of half": lambda x: np.exp(np.minimum(0.5 * x, 60)),
    "log": lambda x: np.log(np.maximum(x, 1e-30)),
    "square root": lambda x: np.sqrt(np.maximum(x, 0)),
    "sine": np.sin,
    "cosine": np.cos,
}
_LOGS = {"log", "exp"}
_FEWEST = 16  # values in which a clamp is seen


def detect(scene: Scene) -> Iterable[Suspect]:
    """Another function of one tensor in hand, or of a gate and what it gates; a clamp."""
    if not scene.is_numeric:
        return
    yield from _clamped(scene)
    for told, make in _forms(scene):
        found = list(_another(scene, told, make))
        yield from found
        if found:
            return


def _another(scene: Scene, told: str, make: Callable[[Function], Array]) -> Iterable[Suspect]:
    """The reference is one function of what is told, the port another."""
    made = {name: make(function) for name, function in FUNCTIONS.items()}
    reference, _ = scene.tensors()
    ours = min(made, key=lambda name: _apart(made[name], reference))
    if not scene.is_reference(made[ours]):
        return
    theirs = min((name for name in made if name != ours), key=lambda name: scene.leaves(made[name]))
    if scene.reproduces(made[theirs]):
        yield Suspect(_kind(ours, theirs), 0.95, True, f"the reference applies {ours} to {told}, the port {theirs}")
    elif ours != "identity":
        yield from _slope(scene, ours, make)


def _apart(prediction: Array, values: Array) -> float:
    with np.errstate(all="ignore"):
        error = float(np.linalg.norm(prediction - values))
    return error if np.isfinite(error) else np.inf


def _kind(ours: str, theirs: str) -> str:
    return "units.log" if {ours, theirs} & _LOGS else "activation"


def _forms(scene: Scene) -> Iterator[tuple[str, Callable[[Function], Array]]]:
    """What a function may have been applied to: a tensor, a gate beside another tensor, or one half of a tensor that gates the other."""
    of_shape = list(scene.of_shape())[:6]
    for one in of_shape:
        yield one.name, lambda function, x=one.values: _applied(function, x)  # type: ignore[misc]
    for gate in of_shape[:4]:
        for other in of_shape[:4]:
            if gate is not other:
                told = f"{gate.name}, which gates {other.name}"
                yield told, lambda function, x=gate.values, z=other.values: _applied(function, x) * z  # type: ignore[misc]
    yield from _halves(scene)


def _halves(scene: Scene) -> Iterator[tuple[str, Callable[[Function], Array]]]:
    reference, _ = scene.tensors()
    for one in reversed(scene.in_hand[-6:]):
        for axis in range(one.values.ndim):
            doubled = tuple(size * (2 if place == axis else 1) for place, size in enumerate(reference.shape))
            if one.values.shape != doubled or one.values.dtype.kind != "f":
                continue
            first, second = np.split(one.values, 2, axis)
            for gate, other, which in ((first, second, "first"), (second, first, "second")):
                told = f"the {which} half of {one.name}, which gates the other"
                yield told, lambda function, x=gate, z=other: _applied(function, x) * z  # type: ignore[misc]


def _applied(function: Function, x: Array) -> Array:
    with np.errstate(all="ignore"):
        return function(x)


def _slope(scene: Scene, ours: str, make: Callable[[Function], Array]) -> Iterable[Suspect]:
    """A leaky ReLU with a slope that is in no list."""
    _, port = scene.tensors()
    below = make(lambda x: np.where(x > 0, 0, x))
    above = make(lambda x: np.maximum(x, 0))
    size = float(np.vdot(below, below))
    slope = float(np.vdot(below, port - above)) / size if size else 0.0
    if scene.reproduces(above + slope * below):
        yield Suspect("activation", 0.9, True, f"the reference applies {ours}, the port a slope of {slope:.4g} below zero")


def _clamped(scene: Scene) -> Iterable[Suspect]:
    """One side is the other clipped to a range."""
    reference, port = scene.tensors()
    if reference.size < _FEWEST:
        return
    made = float(np.linalg.norm(port - reference))
    pairs = [(ours, port - rest) for _, ours, rest in scene.summands()]
    for who, clipped, free in [one for ours, theirs in pairs for one in (("port", theirs, ours), ("reference", ours, theirs))]:
        low, high = float(clipped.min()), float(clipped.max())
        if high - low <= 1e-5 * max(abs(low), abs(high)):
            continue
        cut = (free < low - 1e-5 * abs(low)) | (free > high + 1e-5 * abs(high))
        at_limit = np.isclose(clipped, low, rtol=1e-4, atol=0) | np.isclose(clipped, high, rtol=1e-4, atol=0)
        if not cut.any() or np.linalg.norm(np.clip(free, low, high) - clipped) > 0.02 * made or not at_limit[cut].all():
            continue
        if int(cut.sum()) >= 2 and low == 0 and high >= float(free.max()):
            other = "reference" if who == "port" else "port"
            yield Suspect("activation", 0.9, True, f"the {who}'s values are a ReLU of the {other}'s")
            return
        if int(cut.sum()) >= 2:
            limits = [f"at least {low:.6g}"] * bool((free < low).any()) + [f"at most {high:.6g}"] * bool((free > high).any())
            told = f"the {who}'s values are the other side's clipped to {' and '.join(limits)}"
            yield Suspect("clamp", 0.9, True, f"{told}, which cuts {int(cut.sum()):,} of {cut.size:,}")
            return
