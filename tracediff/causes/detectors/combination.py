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

from tracediff.causes.catalogue import gravest
from tracediff.causes.in_hand import InHand
from tracediff.causes.proof import Claim, Edit
from tracediff.causes.scene import NOT_ZERO, Scene
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array

_LOGARITHMS = {
    math.log(10): "ln for log10",
    1 / math.log(10): "log10 for ln",
    20 / math.log(10): "dB for ln",
    math.log(10) / 20: "ln for dB",
    math.log(2): "ln for log2",
    1 / math.log(2): "log2 for ln",
}


@dataclass(frozen=True, slots=True)
class _Term:
    """A tensor in hand, or one of the parts of a batch, as it enters a sum.

    ``values``: (sample,); ``whole``: all values, as they broadcast to the sum's shape. ``part`` is -1 for the whole.
    """

    name: str
    source: InHand
    values: Array
    whole: Array
    part: int = -1


def detect(scene: Scene) -> Iterable[Claim]:
    """What the coefficients of the two sides tell, and a port that is a multiple of the reference."""
    if not scene.is_numeric:
        return
    reference, port = scene.tensors()
    yield from _multiple(scene, reference, port)
    once, theirs = _once(reference, port)
    chosen = _sample(once.shape)
    terms = _terms(scene, once.shape, chosen)
    y, p = once.reshape(-1)[chosen], theirs.reshape(-1)[chosen]
    if len(y) >= THRESHOLDS.fewest_summed:
        yield from _added(scene, terms, y, p)
        yield from _recombined(scene, terms, y, p)


def _multiple(scene: Scene, reference: Array, port: Array) -> Iterable[Claim]:
    """The port is the reference times a number."""
    factor = float(np.vdot(reference, port)) / max(float(np.vdot(reference, reference)), NOT_ZERO)
    edit = Edit(factor * reference, is_fitted=True)
    if not scene.reproduces(edit.port) or abs(factor) < THRESHOLDS.least_multiple:
        return
    evidence = f"the port's values are the reference's times {factor:.6g}"
    logarithms = (text for value, text in _LOGARITHMS.items() if abs(abs(factor) / value - 1) < THRESHOLDS.same_logarithm)
    logarithm = next(logarithms, "")
    if logarithm:
        yield Claim("units.log", THRESHOLDS.sure_logarithm, f"{evidence}: {logarithm}", edit)
    elif reference.size <= THRESHOLDS.most_times and _is_time(scene):
        yield Claim("time.scale", THRESHOLDS.sure_times_scaled, evidence, edit)
    else:
        yield Claim("scale", THRESHOLDS.sure_multiple, evidence, edit)


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
    """The flat indices (sample,) at which sums are fitted."""
    size, most = math.prod(shape), THRESHOLDS.sum_sample
    return np.arange(size) if size <= most else np.random.default_rng(0).choice(size, most, replace=False)


def _terms(scene: Scene, shape: tuple[int, ...], chosen: Array) -> list[_Term]:
    """What can enter the sum: tensors of that shape or that broadcast to it, and the parts of a batch that is a multiple of it."""
    found: list[_Term] = []
    for one in reversed(scene.in_hand):
        if one.values.dtype.kind != "f" or not np.isfinite(one.values).all() or one.values.size < 2:
            continue
        for part, values in _broadcast(one.values, shape):
            flat = np.broadcast_to(values, shape).reshape(-1)[chosen]
            is_new = not any(np.array_equal(flat, term.values) for term in found)
            if is_new and np.any(flat):
                name = one.name + (f" (part {part + 1} of its batch)" if part >= 0 else "")
                found.append(_Term(name, one, flat, values, part))
    inputs = [term for term in found if term.source.is_input]
    made = [term for term in found if not term.source.is_input]
    return [*inputs[: THRESHOLDS.most_terms // 2], *made][: THRESHOLDS.most_terms]


def _broadcast(values: Array, shape: tuple[int, ...]) -> Iterable[tuple[int, Array]]:
    """A tensor in a form that broadcasts to a shape, as (-1, tensor); or the parts of its batch, each with its number."""
    values = _without_ones(values, len(shape))
    if values.shape == shape:
        yield -1, values
        return
    if shape and values.ndim == len(shape) and values.shape[1:] == shape[1:] and shape[0] and values.shape[0] % shape[0] == 0:
        yield from enumerate(np.split(values, values.shape[0] // shape[0]))
        return
    if values.ndim <= len(shape) and values.size >= (shape[-1] if shape else 1):
        try:
            if np.broadcast_shapes(values.shape, shape) == shape:
                yield -1, values
        except ValueError:
            return


def _without_ones(values: Array, ndim: int) -> Array:
    """A tensor with at most ``ndim`` axes, as far as axes behind the batch are of length 1: the position of a token that is alone."""
    ones = [axis for axis in range(1, values.ndim) if values.shape[axis] == 1]
    return values.squeeze(tuple(ones[: max(values.ndim - ndim, 0)]))


def _added(scene: Scene, terms: Sequence[_Term], y: Array, p: Array) -> Iterable[Claim]:
    """The difference is a multiple of one tensor in hand; ``y`` and ``p`` (sample,) are the reference's and the port's values."""
    reference, _ = scene.tensors()
    difference = p - y
    made = float(np.linalg.norm(difference))
    allowed = scene.share_allowed(y, p)
    for term in terms:
        factor = float(np.vdot(term.values, difference)) / max(float(np.vdot(term.values, term.values)), NOT_ZERO)
        left = float(np.linalg.norm(difference - factor * term.values)) / made if made else 1.0
        if left > allowed or abs(factor) < THRESHOLDS.least_addend:
            continue
        if abs(factor + 1) < THRESHOLDS.once_added:
            evidence = f"the port lacks {term.name}: adding it gives the reference"
            edit = Edit(reference - _as_often(term.whole, reference.shape))
            yield Claim(_kind_if_left_out(term), THRESHOLDS.sure_term_missing, evidence, edit)
        elif abs(factor - 1) < THRESHOLDS.once_added:
            evidence = f"the port adds {term.name} once more than the reference"
            edit = Edit(reference + _as_often(term.whole, reference.shape))
            yield Claim("branch.extra", THRESHOLDS.sure_term_extra, evidence, edit)
        return


def _as_often(whole: Array, shape: tuple[int, ...]) -> Array:
    """A summand in a sum's shape, as often as the sum stands in its batch."""
    times = max(1, shape[0] // whole.shape[0]) if whole.ndim == len(shape) and whole.ndim and whole.shape[0] > 1 else 1
    made: Array = np.broadcast_to(np.concatenate([whole] * times) if times > 1 else whole, shape)
    return made


def _kind_if_left_out(term: _Term) -> str:
    return term.source.kind_if_left_out(is_stream=term.source.is_stream)


def _recombined(scene: Scene, terms: Sequence[_Term], y: Array, p: Array) -> Iterable[Claim]:
    """Both sides are sums of the same few tensors with different coefficients."""
    reference_tolerance = max(THRESHOLDS.sum_reference, THRESHOLDS.sum_reference_noise * scene.limit)
    port_tolerance = max(THRESHOLDS.sum_port, THRESHOLDS.sum_port_noise * scene.limit)
    for count in (2, 3):
        for group in combinations(terms, count):
            ours = _coefficients(group, y, reference_tolerance)
            if ours is None or min(map(abs, ours)) < THRESHOLDS.least_coefficient:
                continue
            theirs = _coefficients(group, p, port_tolerance)
            if theirs is not None:
                yield from _compared(scene, _Sums(group, ours, theirs))
                return


def _coefficients(group: Sequence[_Term], y: Array, tolerance: float) -> tuple[float, ...] | None:
    """The coefficients with which the terms give ``y`` (sample,); None where they do not, or not in one way."""
    matrix = np.stack([term.values for term in group], 1)
    scales = np.linalg.norm(matrix, axis=0)
    found, _, rank, singular = np.linalg.lstsq(matrix / scales, y, rcond=None)
    if rank < len(group) or singular[-1] < THRESHOLDS.least_condition * singular[0]:
        return None
    if np.linalg.norm(matrix / scales @ found - y) > tolerance * np.linalg.norm(y):
        return None
    return tuple(float(value) for value in found / scales)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Two sums of the same terms, with the reference's coefficients and the port's."""

    terms: Sequence[_Term]
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def rows(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.ours, self.theirs

    @property
    def changed(self) -> list[int]:
        """The places of the terms whose coefficients differ."""
        pairs = enumerate(zip(self.ours, self.theirs, strict=True))
        return [place for place, (a, b) in pairs if abs(a - b) > THRESHOLDS.same_coefficient * max(abs(a), abs(b))]

    @property
    def ratios(self) -> list[float]:
        """The port's coefficients over the reference's, where they differ."""
        return [self.theirs[place] / self.ours[place] for place in self.changed]

    @property
    def parts(self) -> list[int]:
        """The places of the terms that are parts of one batch."""
        sources = Counter(id(term.source) for term in self.terms if term.part >= 0)
        return [place for place, term in enumerate(self.terms) if term.part >= 0 and sources[id(term.source)] > 1]

    def is_guidance(self) -> bool:
        """Whether the reference combines parts of a batch, or two terms of opposite signs whose coefficients add up to 1."""
        if len(self.parts) >= 2:
            return True
        return len(self.terms) == 2 and self.ours[0] * self.ours[1] < 0 and _is_near(sum(self.ours), 1)

    def scales_guidance_as_a_whole(self) -> bool:
        """Whether the coefficients of all parts of a batch changed, by one factor: how they are combined did not."""
        ratios = [self.theirs[place] / self.ours[place] for place in self.parts]
        return bool(ratios) and set(self.parts) <= set(self.changed) and _are_near(ratios)

    def is_another_step(self) -> bool:
        """Whether guided parts, made in a loop, are added to something else, the state of a solver: then it takes other steps."""
        return len(self.terms) > len(self.parts) > 0 and all(self.terms[place].source.calls > 1 for place in self.parts)

    def is_step(self) -> bool:
        """Whether a state is kept whole and what changed is multiplied by a step and made in a loop."""
        changed = self.changed
        kept = [place for place in range(len(self.terms)) if place not in changed]
        is_looped = all(self.terms[place].source.calls > 1 for place in changed)
        has_state = any(abs(self.ours[place] - 1) < THRESHOLDS.is_kept_whole for place in kept)
        has_step = all(abs(abs(self.ours[place]) - 1) > THRESHOLDS.same_coefficient for place in changed)
        return is_looped and has_state and has_step


def _compared(scene: Scene, sums: _Sums) -> Iterable[Claim]:
    if not sums.changed:
        return
    spelled = (" + ".join(f"{factor:.5g} * {term.name}" for factor, term in zip(row, sums.terms, strict=True)) for row in sums.rows)
    evidence = "the reference is {}, the port {}".format(*spelled)
    shape = scene.tensors()[0].shape
    ours, theirs = (sum(factor * _as_often(term.whole, shape) for factor, term in zip(row, sums.terms, strict=True)) for row in sums.rows)
    yield Claim(_kind(scene, sums), THRESHOLDS.sure_recombined, evidence, Edit(np.asarray(theirs), np.asarray(ours)))


def _kind(scene: Scene, sums: _Sums) -> str:
    """The kind of cause that the two rows of coefficients are."""
    ratios = sums.ratios
    if all(_is_near(ratio, 0) for ratio in ratios):
        return gravest([_kind_if_left_out(sums.terms[place]) for place in sums.changed])
    is_guidance = sums.is_guidance()
    if is_guidance and not sums.scales_guidance_as_a_whole():
        return "cfg.formula"
    if sums.is_step():
        return "ode.sign" if all(_is_near(ratio, -1) for ratio in ratios) else "ode.schedule"
    if is_guidance:
        return "ode.schedule" if sums.is_another_step() else "cfg.formula"
    return "branch.extra" if all(_is_near(ratio, 2) for ratio in ratios) else "scale"


def _are_near(ratios: Sequence[float]) -> bool:
    return max(ratios) - min(ratios) < THRESHOLDS.same_coefficient * max(map(abs, ratios))


def _is_near(value: float, number: float) -> bool:
    return abs(value - number) < THRESHOLDS.same_coefficient
