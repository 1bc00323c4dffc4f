"""What weights show without a run: a gain and an offset that a module has too much are in the weights of all that takes its output.

``(x * g + b) @ W.T + c`` is the same function of ``x`` as ``(x * h + d) @ V.T + e`` where ``W * g`` is ``V * h`` and ``W @ b + c`` is
``V @ d + e``. A parameter's sketch tells both up to chance: the vector along W's inputs times ``g``, and what the probe along its
outputs makes of ``c``, and that vector of ``b`` (`tracediff.trace.fingerprint.Sketch`). So neither noise nor a free run's choices matter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tracediff.alignment import Alignment
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.trace import Param, Trace
from tracediff.trace.fingerprint import LONGEST_AXIS, Floats, probe

Affine = tuple[Floats, Floats]
"""A gain and an offset for each channel, both (channels,)."""


def folded(alignment: Alignment, reference: Trace, port: Trace) -> dict[str, frozenset[str]]:
    """The reference's modules whose gain or offset the port has in the weights behind, each with the port's parameters concerned.

    A module counts where its own parameters are vectors, they differ, and each module that was seen to take in what it returns does
    with its partner's weights what it does with its own, rounding aside.
    """
    own = [_by_path(trace) for trace in (reference, port)]
    found: dict[str, frozenset[str]] = {}
    for ours, theirs in alignment.port_of.items():
        sides = own[0].get(ours, ()), own[1].get(theirs, ())
        if not any(sides) or any(len(param.shape) != 1 for params in sides for param in params):
            continue
        takers = _takers(reference, ours)
        couples = [(own[0].get(taker, ()), own[1].get(alignment.port_of.get(taker, ""), ())) for taker in takers]
        lengths = {param.shape[0] for params in sides for param in params}
        if takers and len(lengths) == 1 and max(lengths) <= LONGEST_AXIS and _are_taken_back(sides, couples, lengths.pop()):
            found[ours] = frozenset(param.name for params in (sides[1], *(theirs for _, theirs in couples)) for param in params)
    return found


def _by_path(trace: Trace) -> Mapping[str, list[Param]]:
    """The real parameters that each module owns itself."""
    found: dict[str, list[Param]] = {}
    for param in trace.params.values():
        if param.kind == "parameter" and param.roundoff:
            found.setdefault(param.path, []).append(param)
    return found


def _takers(trace: Trace, path: str) -> list[str]:
    """The sites of the innermost calls that were seen to take in what a module returned; none where one of them is not known by weights."""
    calls, number = trace.calls, trace.sites.get(path)
    made = (
        [row for row in np.flatnonzero(trace.index["site"] == number).tolist() if calls.kinds[row] == "output"]
        if number is not None
        else []
    )
    taken = {int(calls.of_row[row]) for one in made for row in calls.takers.get(one, ())}
    return list(dict.fromkeys(calls.site_of(call) for call in sorted(taken) if taken.isdisjoint(calls.children[call])))


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's matrix or kernel, and its bias, known by their sketches; no bias is one of zeros."""

    matrix: Param
    bias: Param | None

    def along_inputs(self, channels: int) -> Iterator[tuple[int, Floats]]:
        """The axes that may be the inputs', each with the sketch along it."""
        return ((axis, self.matrix.sketch.axes[axis]) for axis, length in enumerate(self.matrix.shape) if length == channels)


def _layer(params: Sequence[Param]) -> _Layer | None:
    matrices, biases = ([one for one in params if (len(one.shape) > 1) == is_matrix] for is_matrix in (True, False))
    is_known = len(matrices) == 1 and len(biases) <= 1 and all(length <= LONGEST_AXIS for one in params for length in one.shape)
    return _Layer(matrices[0], biases[0] if biases else None) if is_known else None


def _are_taken_back(sides: tuple[Sequence[Param], ...], couples: Sequence[tuple[Sequence[Param], Sequence[Param]]], channels: int) -> bool:
    """Whether every couple of layers does with its side's gain and offset what the other does, in one reading of the vectors."""
    layers = [(_layer(ours), _layer(theirs)) for ours, theirs in couples]
    known = [(ours, theirs) for ours, theirs in layers if ours is not None and theirs is not None]
    if len(known) < len(layers):
        return False
    allowed = max(THRESHOLDS.same_weights, THRESHOLDS.same_weights_roundings * _roundoff(sides, couples))
    readings = itertools.product(*(_readings(params, channels) for params in sides))
    return any(
        _differ(ours, theirs, allowed) and all(_do_the_same(ours, theirs, *one, allowed) for one in known) for ours, theirs in readings
    )


def _roundoff(sides: Sequence[Sequence[Param]], couples: Sequence[tuple[Sequence[Param], Sequence[Param]]]) -> float:
    return max(param.roundoff for params in (*sides, *itertools.chain.from_iterable(couples)) for param in params)


def _readings(params: Sequence[Param], channels: int) -> Iterator[Affine]:
    """The ways to read one vector or two as gain and offset: a sketch along the only axis is the vector itself."""
    vectors = [param.sketch.axes[0] for param in params]
    ones, zeros = np.ones(channels), np.zeros(channels)
    if len(vectors) == 1:
        yield from ((vectors[0], zeros), (ones, vectors[0]))
    elif len(vectors) <= 2:
        yield from itertools.permutations(vectors) if vectors else [(ones, zeros)]


def _differ(ours: Affine, theirs: Affine, allowed: float) -> bool:
    return any(not _is_equal(one, other, allowed) for one, other in zip(ours, theirs, strict=True))


def _do_the_same(ours: Affine, theirs: Affine, own: _Layer, other: _Layer, allowed: float) -> bool:
    """Whether two layers make the same of what a gain and an offset of their side leave to them."""
    for (axis, left), (turned, right) in itertools.product(own.along_inputs(len(ours[0])), other.along_inputs(len(ours[0]))):
        if _is_equal(left * ours[0], right * theirs[0], allowed):
            sums = [
                _offset(layer, at, along, affine[1])
                for layer, at, along, affine in ((own, axis, left, ours), (other, turned, right, theirs))
            ]
            return _is_balanced(sums[0], sums[1], allowed)
    return False


def _offset(layer: _Layer, axis: int, along: Floats, offset: Floats) -> Floats:
    """What the probe along the outputs makes of all that a layer adds, as terms.

    Infinite where that is not known: a kernel pads an offset, and a vector that is not as long as the outputs is no bias.
    """
    lengths = [length for place, length in enumerate(layer.matrix.shape) if place != axis]
    bias = layer.bias.sketch.axes[0] if layer.bias is not None else np.zeros(lengths[0])
    if len(bias) not in lengths or (len(lengths) > 1 and offset.any()):
        return np.full(1, math.inf)
    return np.concatenate([probe(len(bias)) * bias, along * offset])


def _is_balanced(left: Floats, right: Floats, allowed: float) -> bool:
    """Whether two sums of terms are equal as far as rounding each term tells."""
    size = math.hypot(float(np.linalg.norm(left)), float(np.linalg.norm(right)))
    return math.isfinite(size) and abs(float(left.sum() - right.sum())) <= allowed * size


def _is_equal(one: Floats, other: Floats, allowed: float) -> bool:
    size = max(float(np.linalg.norm(one)), float(np.linalg.norm(other)))
    return one.shape == other.shape and bool(size) and float(np.linalg.norm(one - other)) <= allowed * size
