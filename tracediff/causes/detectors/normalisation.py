"""Causes inside a normalisation: its eps, its statistics, or the whole of it.

A layer or RMS norm is ``w * (x - mean) / sqrt(var + eps) + b`` along the last axis (or the channel axis): ``w`` and ``b`` are fitted on the
reference, and the port is then tried with other statistics and other eps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tracediff.causes.proof import Claim, Edit
from tracediff.causes.scene import Scene
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array

_GRID = np.geomspace(1e-14, 1e2, 65)
_USUAL_EPS = (0.0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-3)
_GOLDEN_SECTION = 0.618

Norm = Callable[[float], Array]
"""A tensor normalised with a given eps."""


def detect(scene: Scene) -> Iterable[Claim]:
    """An output that is no longer normalised, has other statistics, or another eps."""
    if scene.blame != "module" or not scene.is_numeric:
        return
    reference, _ = scene.tensors()
    for x in scene.of_shape():
        if scene.reproduces(x.values) and "norm" in scene.sides[0].type.lower():
            evidence = "the port's output is its input: nothing is normalised"
            yield Claim("norm.missing", THRESHOLDS.sure_not_normalised, evidence, Edit(x.values))
            return
        for axis in dict.fromkeys((reference.ndim - 1, min(1, reference.ndim - 1))):
            yield from _along(scene, x.values, axis)


def _along(scene: Scene, x: Array, axis: int) -> Iterable[Claim]:
    """Causes where the reference is a norm of ``x`` along an axis."""
    reference, _ = scene.tensors()
    least = THRESHOLDS.least_normalised
    if x.shape[axis] < least or x.size < least * x.shape[axis]:
        return
    norms: dict[str, Norm] = {
        "layer norm": lambda eps: (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + eps),
        "RMS norm": lambda eps: x / np.sqrt((x * x).mean(axis, keepdims=True) + eps),
    }
    stated = _eps(scene.sides[0].attributes)
    for name, norm in norms.items():
        eps = stated if stated is not None else _best_eps(norm, reference, axis)
        gain, offset = _fitted(norm(eps), reference, axis)
        if scene.is_reference(norm(eps) * gain + offset):
            yield from _otherwise(scene, x, axis, norms, name, eps, (gain, offset))
            return


def _otherwise(
    scene: Scene, x: Array, axis: int, norms: Mapping[str, Norm], name: str, eps: float, affine: tuple[Array, Array]
) -> Iterable[Claim]:
    """What the port does in the place of the norm ``name`` with ``eps``, gain and offset."""
    _, port = scene.tensors()
    gain, offset = affine
    ours = norms[name](eps) * gain + offset
    found = _closest(norms[name], gain, offset, port)
    theirs = norms[name](found) * gain + offset
    if scene.reproduces(theirs):
        evidence = f"with eps {found:.1e} in the place of {eps:.1e} the {name} gives the port's values"
        yield Claim("norm.eps", THRESHOLDS.sure_eps_fitted, evidence, Edit(theirs, ours, is_fitted=True))
        return
    for other, norm in norms.items():
        if other != name and scene.reproduces(theirs := norm(eps) * gain + offset):
            yield Claim("norm.missing", THRESHOLDS.sure_other_norm, f"the reference is a {name}, the port a {other}", Edit(theirs, ours))
    if scene.reproduces(theirs := x * gain + offset):
        evidence = "the port scales and shifts its input without normalising it"
        yield Claim("norm.missing", THRESHOLDS.sure_only_scaled, evidence, Edit(theirs, ours))
    for axes in _other_axes(x.ndim, axis):
        if scene.reproduces(theirs := _normalised(x, axes, eps, has_mean=name == "layer norm") * gain + offset):
            evidence = f"the port takes its statistics over axes {axes} in the place of {(axis,)}"
            yield Claim("norm.missing", THRESHOLDS.sure_other_norm, evidence, Edit(theirs, ours))


def _closest(norm: Norm, gain: Array, offset: Array, port: Array) -> float:
    """The eps with which a norm comes closest to the port."""

    def error(eps: float) -> float:
        return float(np.linalg.norm(norm(eps) * gain + offset - port))

    return _refined(error, float(min(_GRID, key=error)))


def _other_axes(ndim: int, axis: int) -> Iterable[tuple[int, ...]]:
    """Each other axis alone, then all axes from one on that include the axis."""
    yield from ((other,) for other in range(ndim) if other != axis)
    yield from (tuple(range(start, ndim)) for start in range(ndim - 1) if start <= axis)


def _normalised(x: Array, axes: tuple[int, ...], eps: float, *, has_mean: bool) -> Array:
    centred = x - x.mean(axes, keepdims=True) if has_mean else x
    made: Array = centred / np.sqrt((centred * centred).mean(axes, keepdims=True) + eps)
    return made


def _eps(attributes: Mapping[str, Any]) -> float | None:
    """The eps that a module states; None where none or several of its attributes are called so."""
    found = [value for name, value in attributes.items() if "eps" in name.lower() and isinstance(value, float)]
    return found[0] if len(found) == 1 else None


def _fitted(z: Array, y: Array, axis: int) -> tuple[Array, Array]:
    """The gain and the offset of each index of an axis that turn ``z`` into ``y`` best."""
    others = tuple(other for other in range(z.ndim) if other != axis)
    mean_z, mean_y = z.mean(others, keepdims=True), y.mean(others, keepdims=True)
    spread = ((z - mean_z) ** 2).sum(others, keepdims=True)
    gain = ((z - mean_z) * (y - mean_y)).sum(others, keepdims=True) / np.where(spread > 0, spread, 1)
    return gain, mean_y - gain * mean_z


def _best_eps(norm: Norm, y: Array, axis: int) -> float:
    """The usual eps with which a norm comes closest to ``y``."""

    def error(eps: float) -> float:
        gain, offset = _fitted(norm(eps), y, axis)
        return float(np.linalg.norm(norm(eps) * gain + offset - y))

    return float(min(_USUAL_EPS, key=error))


def _refined(error: Callable[[float], float], start: float) -> float:
    """A better value near one of a grid, by golden sections of its logarithm."""
    low, high = np.log(start) - THRESHOLDS.eps_bracket, np.log(start) + THRESHOLDS.eps_bracket
    for _ in range(THRESHOLDS.eps_sections):
        first, second = high - _GOLDEN_SECTION * (high - low), low + _GOLDEN_SECTION * (high - low)
        low, high = (low, second) if error(np.exp(first)) < error(np.exp(second)) else (first, high)
    return float(np.exp((low + high) / 2))
