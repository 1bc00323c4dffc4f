"""What a detector is shown of one divergence: the two tensors, what the code that made them had in hand, and what is known of the modules.

Everything is in the reference's layout and in float64. A detector is a function from a `Scene` to the claims that it has evidence for
(see `proof`); it computes with what the scene holds and reads nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracediff.causes.in_hand import InHand
from tracediff.causes.program import Program
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import MASKED, Array
from tracediff.locate.thresholds import THRESHOLDS as BORDERLINE

NOT_ZERO = 1e-300
"""What a norm is divided by where it is 0."""


def hides(values: Array) -> bool:
    """Whether some of a tensor's numbers hide (-inf, -1e9): they tell where, and would drown what the others tell."""
    return values.size > 0 and values.dtype.kind == "f" and bool(values.min() <= MASKED)


def _shown(values: Array) -> Array:
    """A tensor with 0 where it hides."""
    return np.where(values <= MASKED, 0.0, values) if hides(values) else values


def _difference(reference: Array, port: Array) -> Array:
    """How much the port differs, where it shows something."""
    made: Array = _shown(port) - _shown(reference)
    return np.where(port <= MASKED, 0.0, made) if hides(port) else made


@dataclass(frozen=True, slots=True)
class CulpritSide:
    """What is known of the culprit on one side: its class, its scalar attributes, and the calls its code made, by the reference's names.

    ``before``: those of the calls that began before the divergence; None where all did. ``is_training``: whether the culprit, or a module
    inside it, is in training mode and works otherwise there; ``trains`` is that module's path.
    """

    path: str
    type: str = ""
    is_training: bool = False
    trains: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    calls: tuple[str, ...] = ()
    before: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """One divergence.

    ``reference`` and ``port``: the values, both in the reference's layout; None where they cannot be laid side by side. ``limit`` is the
    relative L2 that was allowed. ``blame``: "module" (an output, made from its inputs) or "caller" (an input, made by the caller's code).
    ``beside``: what else the call was handed, where the tensor is an input. ``types``: class names by the reference's module path.
    ``shapes`` and ``dtypes``: of reference and port, ``run_dtypes`` those that the two runs mostly compute in. ``ordinal`` counts the
    site's calls. ``has_frames``: whether the culprit's two calls correspond, so that what they call can be compared. ``paired``: the
    reference's sites that have a partner. ``balanced``: those of them that both runs call equally often in the divergence's stage.
    ``altered``: those of which a record diverged, or could not be compared. ``chained``: of the calls that the sides make in another order
    the pairs (earlier, later) of which one side may hand the later what the earlier returned, or what was made of it.
    ``program``: the reference's operations that made its tensor of what its code had in hand, where they are known. ``wrong_weights``: the
    reference's parameters that the port lacks, or has with values so much others that they explain the error. ``multiplies``: of the
    paired modules whose operations are known whether their own code takes a product of matrices or a convolution.
    """

    site: str
    end: str
    blame: str
    reference: Array | None
    port: Array | None
    limit: float
    in_hand: Sequence[InHand]
    sides: tuple[CulpritSide, CulpritSide]
    types: Mapping[str, str] = field(default_factory=dict)
    beside: Sequence[InHand] = ()
    shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    dtypes: tuple[str, str] = ("", "")
    run_dtypes: tuple[str, ...] = ("", "")
    ordinal: int = 0
    port_repeats: bool | None = None
    has_frames: bool = True
    balanced: frozenset[str] = frozenset()
    paired: frozenset[str] = frozenset()
    altered: frozenset[str] = frozenset()
    chained: frozenset[tuple[str, str]] = frozenset()
    program: Program | None = None
    wrong_weights: frozenset[str] = frozenset()
    multiplies: Mapping[str, bool] = field(default_factory=dict)

    @property
    def is_numeric(self) -> bool:
        """Whether both tensors are there as finite real numbers of one shape."""
        both = (self.reference, self.port)
        return all(one is not None and one.size and one.dtype.kind == "f" and np.isfinite(one).all() for one in both)

    @property
    def is_clear(self) -> bool:
        """Whether the port's error is clearly more than what noise may be."""
        if self.reference is None or self.port is None or not self.is_numeric:
            return True
        error, size = np.linalg.norm(_difference(self.reference, self.port)), np.linalg.norm(_shown(self.reference))
        return bool(error > BORDERLINE.borderline * self.limit * size)

    def tensors(self) -> tuple[Array, Array]:
        """The two tensors; to be asked only where `is_numeric`."""
        assert self.reference is not None
        assert self.port is not None
        return self.reference, self.port

    def leaves(self, prediction: Array) -> float:
        """The share of the port's difference that a prediction of its values leaves unexplained."""
        reference, port = self.tensors()
        is_hiding = hides(reference) or hides(port)
        if is_hiding and not np.array_equal(prediction <= MASKED, port <= MASKED):
            return float("inf")
        with np.errstate(all="ignore"):
            left, made = np.linalg.norm(_shown(prediction) - _shown(port)), np.linalg.norm(_difference(reference, port))
            if is_hiding and not made:  # nothing differs but what is hidden, and that is as predicted
                return 0.0 if left <= THRESHOLDS.same_form * np.linalg.norm(_shown(port)) else float("inf")
        return float(left / made) if made and np.isfinite(left) else float("inf")

    def share_allowed(self, reference: Array, port: Array) -> float:
        """The share of the difference of two tensors, or of samples of them, that an edit may leave and still be what the port does."""
        noise = self.noise_share(reference, port)
        return max(THRESHOLDS.reproduced, min(THRESHOLDS.reproduced_at_most, noise)) if noise is not None else 0.0

    def noise_share(self, reference: Array, port: Array) -> float | None:
        """The share of the difference of two tensors that noise may be; None where they do not differ."""
        made, size = float(np.linalg.norm(_difference(reference, port))), float(np.linalg.norm(_shown(reference)))
        return THRESHOLDS.reproduced_noise * self.limit * (size / made) if made else None

    def reproduces(self, prediction: Array) -> bool:
        """Whether a prediction is the port's tensor, up to a small share of its difference or to the noise allowed."""
        return self.leaves(prediction) <= self.share_allowed(*self.tensors())

    def is_reference(self, prediction: Array) -> bool:
        """Whether a prediction is the reference's tensor, up to noise: the form that an edit starts from must be the right one."""
        reference, _ = self.tensors()
        if hides(reference) and not np.array_equal(prediction <= MASKED, reference <= MASKED):
            return False
        size = np.linalg.norm(_shown(reference))
        with np.errstate(all="ignore"):
            error = np.linalg.norm(_shown(prediction) - _shown(reference))
        return bool(size) and bool(error <= max(THRESHOLDS.same_form, THRESHOLDS.same_form_noise * self.limit) * size)

    def summands(self) -> Iterator[tuple[str, Array, Array]]:
        """What an edit may have been made to: the whole tensor, or a tensor added in it; each as name, values, and the rest of the sum."""
        reference, _ = self.tensors()
        yield "", reference, np.zeros(())
        for one in self.of_shape():
            yield one.name, one.values, reference - one.values

    def of_shape(self) -> Iterable[InHand]:
        """What is in hand and has the divergent tensor's shape, the latest first."""
        reference, _ = self.tensors()
        for one in reversed(self.in_hand):
            if one.values.dtype.kind == "f" and one.values.shape == reference.shape and np.isfinite(one.values).all():
                yield one
