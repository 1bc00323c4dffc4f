"""What the reference gives with the port's parameters: its recorded operations computed again, or the functions of common layers.

Which function a layer computes is not asked of its class: the one that gives the reference's output from its input is it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tracediff.alignment.axes import restore
from tracediff.causes.in_hand import InHand
from tracediff.causes.proof import Edit
from tracediff.causes.scene import Scene
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.parameters.findings import WeightFinding
from tracediff.parameters.layout_rules import restored
from tracediff.parameters.renames import parent
from tracediff.parameters.result import WeightPair, WeightsReport
from tracediff.replay.computed import CannotComputeError, Compute
from tracediff.trace import Trace

Named = Mapping[str, Array]
"""A layer's parameters by the last part of their names: weight, bias."""
_EPS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-3, 0.0)


class LayerParameters:
    """The stored parameters of single layers, both sides in the reference's layout."""

    def __init__(self, report: WeightsReport, reference: Trace, port: Trace) -> None:
        self._reference, self._port = reference.params, port.params
        self._pairs = {pair.port: pair for pair in report.pairs}
        self._of_module: dict[str, list[WeightPair]] = {}
        for pair in report.pairs:
            self._of_module.setdefault(parent(pair.port), []).append(pair)

    def may_prove(self, wrong: Iterable[WeightFinding]) -> bool:
        """Whether of one of the findings the port's values are known: those that were stored, and zeros for a bias that it lacks."""
        return any(self._is_lacking(one) or (one.port in self._port and self._port[one.port].stored) for one in wrong)

    def edit(self, scene: Scene, wrong: Sequence[WeightFinding]) -> Edit | None:
        """What the reference gives with the wrong parameters in the place of its own; None where that cannot be computed."""
        if not scene.is_numeric:
            return None
        return self._of_operations(scene, wrong) or self._of_layer(scene, wrong)

    def _of_operations(self, scene: Scene, wrong: Sequence[WeightFinding]) -> Edit | None:
        """As `edit`, by the recorded operations that made the reference's tensor."""
        if scene.program is None:
            return None
        replay, reference = scene.program.replay, scene.tensors()[0]
        try:
            ours = replay.values[scene.program.target]
            own = {name: replay.values[node] for node, name in scene.program.names.items()}
            theirs: dict[str, Array] = {}
            for finding in wrong:
                theirs |= self._as_reference(finding, {**own, **theirs}) or {}
            at = {node: theirs[name] for node, name in scene.program.names.items() if name in theirs}
            made = replay.changed({node: _always(values) for node, values in at.items()}) if at else None
        except CannotComputeError:
            return None
        if made is None or made.shape != ours.shape or ours.size != reference.size:
            return None
        return Edit(made.reshape(reference.shape), ours.reshape(reference.shape))

    def _as_reference(self, finding: WeightFinding, own: Named) -> dict[str, Array] | None:
        """The port's values of a finding under the reference's names, in its layout; None where they are not known.

        ``own``: the reference's values, by name.
        """
        if self._is_lacking(finding):
            return {finding.reference: np.zeros_like(own[finding.reference])} if finding.reference in own else None
        pair = self._pairs.get(finding.port)
        if pair is None or not self._port[pair.port].stored or not set(pair.origin.names) <= own.keys():
            return None
        return restored(pair.origin, self._port[pair.port].read(), own)

    @staticmethod
    def _is_lacking(finding: WeightFinding) -> bool:
        return finding.kind == "weights.missing_bias" and not finding.port

    def _of_layer(self, scene: Scene, wrong: Sequence[WeightFinding]) -> Edit | None:
        """As `edit`, by the function of the culprit's layer, where no operations were recorded."""
        if scene.blame != "module" or any(not finding.port for finding in wrong):
            return None
        pairs = self._of_module.get(scene.sides[1].path, [])
        chosen = [pair for pair in pairs if pair.port in {finding.port for finding in wrong}]
        if not chosen or any(not pair.origin.is_copy for pair in chosen) or not self._are_stored(pairs):
            return None
        ours = {_role(pair): self._source(pair).astype(np.float64) for pair in pairs}
        theirs = {_role(pair): self._in_reference_layout(pair) for pair in chosen}
        for one in scene.in_hand:
            for function in _functions(one, ours, scene):
                if scene.is_reference(made := function(ours)):
                    return Edit(function({**ours, **theirs}), made)
        return None

    def _are_stored(self, pairs: Sequence[WeightPair]) -> bool:
        """Whether the values of parameters of the port, and of what they are made from, were stored."""
        ours = (self._reference[name] for pair in pairs for name in pair.reference if name in self._reference)
        return all(one.stored for one in (*ours, *(self._port[pair.port] for pair in pairs)))

    def _source(self, pair: WeightPair) -> Array:
        parts = [self._reference[name].read() for name in pair.reference]
        return parts[0] if pair.origin.merge is None else pair.origin.merge(parts)

    def _in_reference_layout(self, pair: WeightPair) -> Array:
        """The port's parameter in the shape of the reference's."""
        values = self._port[pair.port].read().astype(np.float64)
        return restore(values, pair.origin.layout, [np.zeros(self._source(pair).shape)])[0]


def _always(values: Array) -> Compute:
    return lambda _: values


def _role(pair: WeightPair) -> str:
    name = pair.reference[-1].rpartition(".")[2]
    return "bias" if "bias" in name else "weight"


def _functions(one: InHand, parameters: Named, scene: Scene) -> Iterator[Any]:
    """What a layer with these parameters may compute of a tensor in hand, each as a function of the parameters."""
    x, shape, weight = one.values, scene.tensors()[0].shape, parameters.get("weight")
    if weight is None:
        return
    if weight.ndim == 2 and x.dtype.kind in "iu" and (*x.shape, weight.shape[1]) == shape and x.size and x.max() < len(weight):
        yield lambda given: given["weight"][x]
    elif weight.ndim == 2 and x.ndim and x.dtype.kind == "f" and (*x.shape[:-1], len(weight)) == shape and x.shape[-1] == weight.shape[1]:
        yield lambda given: x @ given["weight"].T + given.get("bias", 0.0)
    elif weight.ndim == 1 and x.shape == shape and x.dtype.kind == "f":
        yield from _norms(x, len(weight), scene.sides[0].attributes)
    elif weight.ndim >= 3 and x.ndim == weight.ndim and x.dtype.kind == "f":
        yield lambda given: _convolved(x, given, scene.sides[0].attributes, shape)


def _norms(x: Array, width: int, attributes: Mapping[str, Any]) -> Iterator[Any]:
    """Layer and RMS norms along the axes of the gain's length, with the eps that is stated or usual ones."""
    stated = [value for name, value in attributes.items() if "eps" in name.lower() and isinstance(value, float)]
    for axis in (axis for axis in (x.ndim - 1, 1) if axis < x.ndim and x.shape[axis] == width):
        wide = tuple(width if place == axis else 1 for place in range(x.ndim))
        for has_mean in (True, False):
            centred = x - x.mean(axis, keepdims=True) if has_mean else x
            for eps in stated or _EPS:
                unit = centred / np.sqrt((centred * centred).mean(axis, keepdims=True) + eps)
                yield lambda given, unit=unit, wide=wide: unit * given["weight"].reshape(wide) + _bias(given, wide)


def _bias(given: Named, shape: tuple[int, ...]) -> Array | float:
    return given["bias"].reshape(shape) if "bias" in given else 0.0


def _convolved(x: Array, given: Named, attributes: Mapping[str, Any], shape: tuple[int, ...]) -> Array:
    """A convolution (B, C, ...) padded by zeros, with a kernel (O, C / groups, ...); zeros where it does not have the shape asked for."""
    weight, rank = given["weight"], x.ndim - 2
    stride, padding, dilation = (
        _each(attributes.get(name), rank, other) for name, other in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    groups = x.shape[1] // max(weight.shape[1], 1)
    sizes = [(length - 1) * step + 1 for length, step in zip(weight.shape[2:], dilation, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *((more, more) for more in padding)])
    is_possible = groups and weight.shape[0] % groups == 0 and all(n >= size for n, size in zip(padded.shape[2:], sizes, strict=True))
    if not is_possible or padded.size * weight[0, 0].size > THRESHOLDS.largest_tensor:
        return np.zeros(shape)
    windows = np.lib.stride_tricks.sliding_window_view(padded, sizes, axis=tuple(range(2, x.ndim)))
    places = (slice(None), slice(None), *(slice(None, None, step) for step in stride), *(slice(None, None, step) for step in dilation))
    windows = windows[places]
    kernels = np.split(weight, groups)
    parts = np.split(windows, groups, 1)
    axes = [1, *range(2 + rank, 2 + 2 * rank)]
    made = [
        np.moveaxis(np.tensordot(part, kernel, (axes, range(1, weight.ndim))), -1, 1) for part, kernel in zip(parts, kernels, strict=True)
    ]
    values = np.concatenate(made, 1) + _bias(given, (1, len(weight), *(1 for _ in range(rank))))
    return np.asarray(values) if values.shape == shape else np.zeros(shape)


def _each(value: Any, rank: int, other: int) -> list[int]:
    """An attribute of a convolution, one number for each axis; ``other`` where it is not stated so."""
    if isinstance(value, int):
        return [value] * rank
    is_row = isinstance(value, list | tuple) and len(value) == rank and all(isinstance(one, int) for one in value)
    return list(value) if is_row else [other] * rank
