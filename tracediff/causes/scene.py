"""What a detector is shown of one divergence: the two tensors, what the code that made them had in hand, and what is known of the modules.

Everything is in the reference's layout and in float64. A detector is a function from a `Scene` to the `Suspect`s it has evidence for;
it computes with what is here and reads nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracediff.dtype import Array

REPRODUCED = 0.02
"""An edit that leaves less than this share of the port's difference is taken to be what the port does."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A possible cause: one of the stable kinds, how likely it is (0 to 1), whether applying it reproduced the port, and why."""

    kind: str
    confidence: float
    confirmed: bool
    evidence: str


@dataclass(frozen=True, slots=True)
class InHand:
    """A tensor that the code had in hand when it made the divergent one: the reference's values, float64.

    ``name`` is what people read, ``end`` the record's end, ``type`` the class name of the module that made it, ``is_input`` whether the
    code was handed it (rather than got it from a call it made), ``dtypes`` what it is on either side, ``calls``
    how often the code calls what made it.
    """

    name: str
    end: str
    type: str
    is_input: bool
    values: Array
    dtypes: tuple[str, str] = ("", "")
    calls: int = 1


@dataclass(frozen=True, slots=True)
class Side:
    """What is known of the culprit on one side: its class, its scalar attributes, and the calls its code made, by the reference's names.

    ``before``: those of the calls that began before the divergence; None where all did. ``is_training``: whether it, or something inside
    it, is in training mode and works otherwise there; ``trains`` is that module's path.
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
    site's calls. ``paired``: the reference's sites that have a partner.
    """

    site: str
    end: str
    blame: str
    reference: Array | None
    port: Array | None
    limit: float
    in_hand: Sequence[InHand]
    sides: tuple[Side, Side]
    types: Mapping[str, str] = field(default_factory=dict)
    beside: Sequence[InHand] = ()
    shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    dtypes: tuple[str, str] = ("", "")
    run_dtypes: tuple[str, ...] = ("", "")
    ordinal: int = 0
    port_repeats: bool | None = None
    paired: frozenset[str] = frozenset()

    @property
    def is_numeric(self) -> bool:
        """Whether both tensors are there as finite real numbers of one shape."""
        both = (self.reference, self.port)
        return all(one is not None and one.size and one.dtype.kind == "f" and np.isfinite(one).all() for one in both)

    def tensors(self) -> tuple[Array, Array]:
        """The two tensors; to be asked only where `is_numeric`."""
        assert self.reference is not None
        assert self.port is not None
        return self.reference, self.port

    def leaves(self, prediction: Array) -> float:
        """The share of the port's difference that a prediction of its values leaves unexplained."""
        reference, port = self.tensors()
        with np.errstate(all="ignore"):
            left, made = np.linalg.norm(prediction - port), np.linalg.norm(port - reference)
        return float(left / made) if made and np.isfinite(left) else float("inf")

    def reproduces(self, prediction: Array) -> bool:
        """Whether a prediction is the port's tensor, up to a small share of its difference or to the noise allowed."""
        reference, port = self.tensors()
        made, size = np.linalg.norm(port - reference), np.linalg.norm(reference)
        allowed = max(REPRODUCED, min(0.2, 3 * self.limit * float(size / made))) if made else 0.0
        return self.leaves(prediction) <= allowed

    def is_reference(self, prediction: Array) -> bool:
        """Whether a prediction is the reference's tensor, up to noise: the form that an edit starts from must be the right one."""
        reference, _ = self.tensors()
        size = np.linalg.norm(reference)
        with np.errstate(all="ignore"):
            error = np.linalg.norm(prediction - reference)
        return bool(size) and bool(error <= max(1e-4, 10 * self.limit) * size)

    def summands(self) -> Iterator[tuple[str, Array, Array]]:
        """What an edit may have been made to: the whole tensor, or what was added in it; its name, it, and the rest of the sum."""
        reference, _ = self.tensors()
        yield "", reference, np.zeros(())
        for one in self.of_shape():
            yield one.name, one.values, reference - one.values

    def of_shape(self) -> Iterable[InHand]:
        """What is in hand and has as many values as the divergent tensor, in its shape, the latest first."""
        reference, _ = self.tensors()
        for one in reversed(self.in_hand):
            if one.values.dtype.kind == "f" and one.values.shape == reference.shape and np.isfinite(one.values).all():
                yield one


Detector = Callable[[Scene], Iterable[Suspect]]
