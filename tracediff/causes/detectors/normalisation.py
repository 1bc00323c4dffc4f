"""Causes inside a normalisation: its eps, its statistics, or the whole of it.

A layer or RMS norm is ``w * (x - mean) / sqrt(var + eps) + b`` along the last axis (or the channel axis): ``w`` and ``b`` are fitted on the
reference, and the port is then tried with other statistics and other eps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from tracediff.causes.scene import Scene, Suspect
from tracediff.dtype import Array

_GRID = np.geomspace(1e-14, 1e2, 65)


def detect(scene: Scene) -> Iterable[Suspect]:
    """An output that is no longer normalised, has other statistics, or another eps."""
    if scene.blame != "module" or not scene.is_numeric:
        return
    reference, _ = scene.tensors()
    for x in scene.of_shape():
        if scene.reproduces(x.values) and "norm" in scene.sides[0].type.lower():
            yield Suspect("norm.missing", 0.95, True, "the port's output is its input: nothing is normalised")
            return
        for axis in dict.fromkeys((reference.ndim - 1, min(1, reference.ndim - 1))):
            yield from _along(scene, x.values, axis)


def _along(scene: Scene, x: Array, axis: int) -> Iterable[Suspect]:
    reference, port = scene.tensors()
    if x.shape[axis] < 4 or x.size < 4 * x.shape[axis]:
        return
    forms: dict[str, Callable[[float], Array]] = {
        "layer norm": lambda eps: (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + eps),
        "RMS norm": lambda eps: x / np.sqrt((x * x).mean(axis, keepdims=True) + eps),
    }
    own = _eps(scene.sides[0].attributes)
    for name, form in forms.items():
        eps = own if own is not None else _best_eps(form, reference, axis)
        gain, offset = _fitted(form(eps), reference, axis)
        if not scene.is_reference(form(eps) * gain + offset):
            continue
        found = _closest(form, gain, offset, port)
        if scene.reproduces(form(found) * gain + offset):
            yield Suspect("norm.eps", 0.95, True, f"with eps {found:.1e} in the place of {eps:.1e} the {name} gives the port's values")
            return
        for other, another in forms.items():
            if other != name and scene.reproduces(another(eps) * gain + offset):
                yield Suspect("norm.missing", 0.8, True, f"the reference is a {name}, the port a {other}")
        if scene.reproduces(x * gain + offset):
            yield Suspect("norm.missing", 0.9, True, "the port scales and shifts its input without normalising it")
        for axes in _other_axes(x.ndim, axis):
            if scene.reproduces(_normalised(x, axes, eps, has_mean=name == "layer norm") * gain + offset):
                yield Suspect("norm.missing", 0.8, True, f"the port takes its statistics over axes {axes} in the place of {(axis,)}")
        return


def _closest(form: Callable[[float], Array], gain: Array, offset: Array, port: Array) -> float:
    """The eps with which a form comes closest to the port."""

    def error(eps: float) -> float:
        return float(np.linalg.norm(form(eps) * gain + offset - port))

    return _refined(error, float(min(_GRID, key=error)))


def _other_axes(ndim: int, axis: int) -> Iterable[tuple[int, ...]]:
    yield from ((other,) for other in range(ndim) if other != axis)
    yield from (tuple(range(start, ndim)) for start in range(ndim - 1) if start <= axis)


def _normalised(x: Array, axes: tuple[int, ...], eps: float, *, has_mean: bool) -> Array:
    centred = x - x.mean(axes, keepdims=True) if has_mean else x
    made: Array = centred / np.sqrt((centred * centred).mean(axes, keepdims=True) + eps)
    return made


def _eps(attributes: object) -> float | None:
    found = [value for name, value in dict(attributes).items() if "eps" in name.lower() and isinstance(value, float)]  # type: ignore[call-overload]
    return found[0] if len(found) == 1 else None


def _fitted(z: Array, y: Array, axis: int) -> tuple[Array, Array]:
    """The gain and the offset of each index of an axis that turn ``z`` into ``y`` best."""
    others = tuple(other for other in range(z.ndim) if other != axis)
    mean_z, mean_y = z.mean(others, keepdims=True), y.mean(others, keepdims=True)
    spread = ((z - mean_z) ** 2).sum(others, keepdims=True)
    gain = ((z - mean_z) * (y - mean_y)).sum(others, keepdims=True) / np.where(spread > 0, spread, 1)
    return gain, mean_y - gain * mean_z


def _best_eps(form: Callable[[float], Array], y: Array, axis: int) -> float:
    def error(eps: float) -> float:
        gain, offset = _fitted(form(eps), y, axis)
        return float(np.linalg.norm(form(eps) * gain + offset - y))

    return float(min((0.0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-3), key=error))


def _refined(error: Callable[[float], float], start: float) -> float:
    """A better value near one of a grid, by golden sections of its logarithm."""
    low, high = np.log(start) - 0.6, np.log(start) + 0.6
    for _ in range(24):
        first, second = high - 0.618 * (high - low), low + 0.618 * (high - low)
        low, high = (low, second) if error(np.exp(first)) < error(np.exp(second)) else (first, high)
    return float(np.exp((low + high) / 2))
