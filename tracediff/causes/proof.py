"""When a cause is confirmed: the one place that says so.

A detector hands over a *claim*: a kind, and where it can the *edit* that it names, as predictions of values. The claim is proven where

1. the form that the edit starts from gives the reference's tensor, so that it is what the reference does;
2. the edited form gives the port's tensor, up to a small share of the difference or to what noise explains;
3. of a few values alone it leaves so little that no edit of many would come as near by chance;
4. a null edit of the same freedom does not. The same detector, with all that it fits and tries, is shown *controls*: the reference plus a
   random error as large as the port's, once with its values in other places and signs, once with its spectrum; where nothing differs but
   what a mask hides, as many other places hidden or shown. What explains a control as well would explain anything;
5. an edit with a number that was fitted to the port's tensor explains clearly more than noise: where sums are taken in another order, one
   number (a variance) is off, and a fitted number gives just that error.

What rests on no prediction is a likelihood. A few kinds name what was recorded rather than an edit (an exception, a lone NaN): `recorded`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from tracediff.causes.catalogue import CATALOGUE, Proof
from tracediff.causes.cause import Cause
from tracediff.causes.scene import Scene
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import MASKED, Array


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """One change, as predictions in the reference's shape.

    ``port``: what the changed form gives. ``reference``: what the form gives unchanged; None where the change is made to the reference's
    tensor itself. ``is_fitted``: a number of it was fitted to the port's tensor.
    """

    port: Array
    reference: Array | None = None
    is_fitted: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """What a detector says of a scene: the kind of cause, how likely it is, 0 to 1, why, and the edit where it has one.

    ``nodes``: the recorded operations of the reference that the edit changes, where it changes such.
    """

    kind: str
    likelihood: float
    evidence: str
    edit: Edit | None = None
    nodes: tuple[int, ...] = ()


Detector = Callable[[Scene], Iterable[Claim]]


@dataclass(frozen=True, slots=True)
class Proven:
    """What is known of a proven edit: the share of the difference that it leaves, and the recorded operations that it changes."""

    leaves: float
    nodes: tuple[int, ...] = ()


def judged(scene: Scene, detector: Detector, proven: dict[str, Proven] | None = None) -> Iterator[Cause]:
    """What a detector says of a scene, each claim confirmed where its edit is proven; ``proven`` receives these by their evidence."""
    is_null_enough: bool | None = None
    for claim in detector(scene):
        is_proven = CATALOGUE[claim.kind].proof is not Proof.NONE and _holds(scene, claim)
        if is_proven and is_null_enough is None:
            is_null_enough = any(_holds(control, other) for control in controls(scene) for other in detector(control))
        is_faint = claim.edit is not None and claim.edit.is_fitted and not scene.is_clear
        likelihood = min(claim.likelihood, THRESHOLDS.sure_of_noise) if is_faint else claim.likelihood
        is_confirmed = is_proven and not is_null_enough
        if is_confirmed and claim.edit is not None and proven is not None:
            proven[claim.evidence] = Proven(scene.leaves(claim.edit.port) if scene.is_numeric else 0.0, claim.nodes)
        yield Cause(claim.kind, likelihood, is_confirmed, claim.evidence)


def recorded(kind: str, likelihood: float, evidence: str) -> Cause:
    """The cause that names what was recorded, which needs no edit: the record is the proof."""
    return Cause(kind, likelihood, True, evidence)


def _holds(scene: Scene, claim: Claim) -> bool:
    """Whether an edit starts from what the reference does and ends at what the port does."""
    edit, reference, port = claim.edit, scene.reference, scene.port
    if edit is None or reference is None or port is None or (edit.is_fitted and not scene.is_clear):
        return False
    if port.dtype.kind != "f":
        return np.array_equal(edit.port, port) and (edit.reference is None or np.array_equal(edit.reference, reference))
    seen = replace(scene, reference=_finite(reference), port=_finite(port)) if not scene.is_numeric else scene
    starts_right = edit.reference is None or seen.is_reference(_finite(edit.reference))
    return starts_right and seen.reproduces(_finite(edit.port)) and seen.leaves(_finite(edit.port)) <= _left_by_chance(edit, port.size)


def _left_by_chance(edit: Edit, values: int) -> float:
    """The share of a difference that an edit may leave of so few values, so that none of the many edits tried explains them by chance."""
    free = values - edit.is_fitted
    return float(THRESHOLDS.explained_by_chance ** (1 / free)) if free > 0 else 0.0


def _finite(values: Array) -> Array:
    """Values of which all that hide (-inf, -1e10) are one number."""
    return np.maximum(values, MASKED)


def controls(scene: Scene) -> Iterator[Scene]:
    """The scene with a port that errs by chance, as much as the real one."""
    reference, port = scene.reference, scene.port
    if reference is None or port is None:
        return
    chance = np.random.default_rng(0)
    if port.dtype.kind == "b":
        yield replace(scene, port=reference ^ (chance.random(port.shape) < 1 / 2))
    elif port.dtype.kind in "iu":
        error = _in_other_places(port.astype(np.int64) - reference.astype(np.int64), chance)
        yield replace(scene, port=reference.astype(np.int64) + error)
    elif port.dtype.kind == "f":
        hides = np.minimum(reference, port) <= MASKED
        error = np.where(hides | ~np.isfinite(reference - port), 0, port - reference)
        start = _hidden_elsewhere(reference, port, chance)
        for made in (_in_other_places(error, chance), _of_the_spectrum(error, chance)):
            if made is not None:
                yield replace(scene, port=np.where(np.minimum(start, reference) <= MASKED, start, start + made))


def _hidden_elsewhere(reference: Array, port: Array, chance: np.random.Generator) -> Array:
    """The reference with as many places hidden, or shown, that were not, as there are in the port, but others; hidden as in the port."""
    hidden = reference <= MASKED
    made: Array = np.where(hidden & (port <= MASKED), port, reference)
    count = int((hidden != (port <= MASKED)).sum())
    if count:
        places = np.unravel_index(chance.permutation(reference.size)[:count], reference.shape)
        shown = chance.choice(reference[~hidden], count) if not hidden.all() else np.zeros(count)
        made[places] = np.where(hidden[places], shown, min(float(reference.min()), float(port.min())))
    return made


def _in_other_places(error: Array, chance: np.random.Generator) -> Array:
    """The values of an error in a random order, each with a random sign."""
    made: Array = (chance.permutation(error.reshape(-1)) * chance.choice((-1, 1), error.size)).reshape(error.shape)
    return made


def _of_the_spectrum(error: Array, chance: np.random.Generator) -> Array | None:
    """A random error with the amplitudes of an error's Fourier transform; None where these leave no choice but the error itself."""
    if not error.ndim or error.size > THRESHOLDS.largest_control:
        return None
    phases = np.fft.rfftn(chance.standard_normal(error.shape))
    made: Array = np.fft.irfftn(np.abs(np.fft.rfftn(error)) * phases / np.abs(phases), error.shape, axes=range(error.ndim))
    sizes = float(np.linalg.norm(made) * np.linalg.norm(error))
    is_other = bool(sizes) and abs(float(np.vdot(made, error))) < THRESHOLDS.same_control * sizes
    return made if is_other else None
