"""Causes in code that adds and scales tensors: a branch left out or counted twice, another factor, CFG, a step of an ODE solver.

Both tensors are written as linear combinations of what is in hand; what differs between the two rows of coefficients is the cause.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tracediff.causes.scene import InHand, Scene, Suspect
from tracediff.dtype import Array

_MOST = 14  # of what is in hand, the latest and the inputs
_SAMPLE = 40_000
_FEWEST = 8  # fewer values are a sum of anything
_LOGS = {math.log(10): "ln for log10", 1 / math.log(10): "log10 for ln", 20 / math.log(10): "dB for ln", math.log(10) / 20: "ln for dB"}
_LOGS |= {math.log(2): "ln for log2", 1 / math.log(2): "log2 for ln"}


@dataclass(frozen=True, slots=True)
class _Term:
    """A tensor in hand, or one of the parts of a batch, as it enters a sum."""

    name: str
    source: InHand
    values: Array  # sampled, flat
    part: int = -1


def detect(scene: Scene) -> Iterable[Suspect]:
    """What the coefficients of the two sides tell, and a port that is a multiple of the reference."""
    if not scene.is_numeric:
        return
    reference, port = scene.tensors()
    yield from _multiple(scene, reference, port)
    reference, port = _once(reference, port)
    chosen = _sample(reference.shape)
    terms = _terms(scene, reference.shape, chosen)
    y, p = reference.reshape(-1)[chosen], port.reshape(-1)[chosen]
    yield from _added(scene, terms, y, p)
    yield from _recombined(scene, terms, y, p)


def _multiple(scene: Scene, reference: Array, port: Array) -> Iterable[Suspect]:
    """The port is the reference times a number."""
    factor = float(np.vdot(reference, port)) / max(float(np.vdot(reference, reference)), 1e-300)
    if not scene.reproduces(factor * reference) or abs(factor) < 1e-12:
        return
    told = f"the port's values are the reference's times {factor:.6g}"
    log = next((text for value, text in _LOGS.items() if abs(abs(factor) / value - 1) < 1e-4), "")
    if log:
        yield Suspect("units.log", 0.8, True, f"{told}: {log}")
    elif reference.size <= 64 and _is_time(scene):
        yield Suspect("time.scale", 0.85, True, told)
    else:
        yield Suspect("scale", 0.8, True, told)


def _once(reference: Array, port: Array) -> tuple[Array, Array]:
    """The two without what stands twice in a batch, as a state does that is about to be guided."""
    while reference.ndim and reference.shape[0] % 2 == 0 and reference.shape[0]:
        halves = [np.split(one, 2) for one in (reference, port)]
        if not all(np.array_equal(first, second) for first, second in halves):
            break
        (reference, _), (port, _) = halves
    return reference, port


def _is_time(scene: Scene) -> bool:
    words = (scene.site + scene.end + scene.sides[0].type + scene.sides[1].type).lower()
    return any(word in words for word in ("time", "timestep", "sigma", "[t]"))


def _sample(shape: tuple[int, ...]) -> Array:
    size = math.prod(shape)
    return np.arange(size) if size <= _SAMPLE else np.random.default_rng(0).choice(size, _SAMPLE, replace=False)


def _terms(scene: Scene, shape: tuple[int, ...], chosen: Array) -> list[_Term]:
    """What can enter the sum: tensors of that shape or that broadcast to it, and the parts of a batch that is a multiple of it."""
    found: list[_Term] = []
    for one in reversed(scene.in_hand):
        if one.values.dtype.kind != "f" or not np.isfinite(one.values).all() or one.values.size < 2:
            continue
        for part, values in _views(one.values, shape):
            flat = np.broadcast_to(values, shape).reshape(-1)[chosen]
            is_new = not any(np.array_equal(flat, term.values) for term in found)
            if is_new and np.any(flat):
                found.append(_Term(one.name + (f" (part {part + 1} of its batch)" if part >= 0 else ""), one, flat, part))
    inputs = [term for term in found if term.source.is_input]
    return [*inputs[: _MOST // 2], *[term for term in found if not term.source.is_input]][:_MOST]


def _views(values: Array, shape: tuple[int, ...]) -> Iterable[tuple[int, Array]]:
    values = _without_ones(values, len(shape))
    if values.shape == shape:
        yield -1, values
        return
    if shape and values.ndim == len(shape) and values.shape[1:] == shape[1:] and shape[0] and values.shape[0] % shape[0] == 0:
        yield from enumerate(np.split(values, values.shape[0] // shape[0]))
        return
    if values.ndim <= len(shape) and 4 * values.size >= 4 * (shape[-1] if shape else 1):
        try:
            if np.broadcast_shapes(values.shape, shape) == shape:
                yield -1, values
        except ValueError:
            return


def _without_ones(values: Array, ndim: int) -> Array:
    """A tensor with no more axes than that, as far as those behind its batch are of length 1: the position of a token that is alone."""
    ones = [axis for axis in range(1, values.ndim) if values.shape[axis] == 1]
    return values.squeeze(tuple(ones[: max(values.ndim - ndim, 0)]))


def _added(scene: Scene, terms: Sequence[_Term], y: Array, p: Array) -> Iterable[Suspect]:
    """The difference is a multiple of one tensor in hand."""
    if len(y) < _FEWEST:
        return
    difference = p - y
    size = float(np.vdot(difference, difference))
    for term in terms:
        factor = float(np.vdot(term.values, difference)) / max(float(np.vdot(term.values, term.values)), 1e-300)
        left = float(np.linalg.norm(difference - factor * term.values)) / math.sqrt(size) if size else 1.0
        if left > _loose(scene, y, difference) or abs(factor) < 1e-9:
            continue
        if abs(factor + 1) < 0.01:
            yield Suspect(_missing(scene, term), 0.9, True, f"the port lacks {term.name}: adding it gives the reference")
        elif abs(factor - 1) < 0.01:
            yield Suspect("branch.extra", 0.85, True, f"the port adds {term.name} once more than the reference")
        return


def _loose(scene: Scene, y: Array, difference: Array) -> float:
    made = float(np.linalg.norm(difference))
    return max(0.02, min(0.2, 3 * scene.limit * float(np.linalg.norm(y)) / made)) if made else 0.0


def _missing(scene: Scene, term: _Term) -> str:
    """What it is that is missing: a position, the stream that a branch is added to, or a branch."""
    words = (term.source.type + term.name).lower()
    if "embed" in words or "posit" in words or "pos_" in words:
        return "position.missing"
    if term.source.is_input or _is_earlier_stream(scene, term):
        return "residual.missing"
    return "branch.missing"


def _is_earlier_stream(scene: Scene, term: _Term) -> bool:
    """Whether a later call was made from the term: then the term is the stream, and what was made of it the branch."""
    places = [i for i, one in enumerate(scene.in_hand) if one is term.source]
    return bool(places) and places[0] < len(scene.in_hand) - 1


def _recombined(scene: Scene, terms: Sequence[_Term], y: Array, p: Array) -> Iterable[Suspect]:
    """Both sides are sums of the same few tensors with different coefficients."""
    if len(y) < _FEWEST:
        return
    for count in (2, 3):
        for group in combinations(terms, count):
            ours = _coefficients(group, y, max(1e-5, 3 * scene.limit))
            if ours is None or min(map(abs, ours)) < 1e-6:
                continue
            theirs = _coefficients(group, p, max(1e-4, 10 * scene.limit))
            if theirs is not None:
                yield from _told(scene, group, ours, theirs)
                return


def _coefficients(group: Sequence[_Term], y: Array, tolerance: float) -> tuple[float, ...] | None:
    """The coefficients with which the terms give ``y``; None where they do not, or not in one way."""
    matrix = np.stack([term.values for term in group], 1)
    scales = np.linalg.norm(matrix, axis=0)
    found, _, rank, singular = np.linalg.lstsq(matrix / scales, y, rcond=None)
    if rank < len(group) or singular[-1] < 1e-3 * singular[0]:
        return None
    if np.linalg.norm(matrix / scales @ found - y) > tolerance * np.linalg.norm(y):
        return None
    return tuple(float(value) for value in found / scales)


def _told(scene: Scene, group: Sequence[_Term], ours: tuple[float, ...], theirs: tuple[float, ...]) -> Iterable[Suspect]:
    changed = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if abs(a - b) > 1e-3 * max(abs(a), abs(b))]
    if not changed:
        return
    spelled = (" + ".join(f"{c:.5g} * {term.name}" for c, term in zip(row, group, strict=True)) for row in (ours, theirs))
    evidence = "the reference is {}, the port {}".format(*spelled)
    yield Suspect(_kind(scene, group, ours, theirs, changed), 0.9, True, evidence)


def _kind(scene: Scene, group: Sequence[_Term], ours: Sequence[float], theirs: Sequence[float], changed: Sequence[int]) -> str:
    ratios = [theirs[i] / ours[i] for i in changed]
    if all(abs(ratio) < 1e-3 for ratio in ratios):
        kinds = [_missing(scene, group[i]) for i in changed]
        return min(kinds, key=lambda kind: kind == "branch.missing")
    sources = Counter(id(term.source) for term in group if term.part >= 0)
    parts = [i for i, term in enumerate(group) if term.part >= 0 and sources[id(term.source)] > 1]
    guided = len(parts) >= 2 or (len(group) == 2 and ours[0] * ours[1] < 0 and abs(sum(ours) - 1) < 1e-3)
    if guided and not (len(changed) == len(parts) and max(ratios) - min(ratios) < 1e-3 * max(map(abs, ratios))):
        return "cfg.formula"
    kept = [i for i in range(len(group)) if i not in changed]
    is_looped = all(group[i].source.calls > 1 for i in changed)
    is_step = is_looped and any(abs(ours[i] - 1) < 1e-4 for i in kept) and all(abs(abs(ours[i]) - 1) > 1e-3 for i in changed)
    if is_step:
        return "ode.sign" if all(abs(ratio + 1) < 1e-3 for ratio in ratios) else "ode.schedule"
    if guided:
        return "cfg.formula"
    return "branch.extra" if all(abs(ratio - 2) < 1e-3 for ratio in ratios) else "scale"
