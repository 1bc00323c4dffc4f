"""A reference with its port's weights as they are stored: codes of a few bits, float16, bfloat16, and what they stand for.

A quantised port differs from its reference at every quantised layer, and a fault among them is hard to tell. With the weights that the port
really has the reference differs from it only where the port's code does. What differs otherwise than by storage (never loaded, exchanged,
transposed) is a fault, and stays what it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracediff.dtype import Array
from tracediff.errors import CaptureError
from tracediff.interrupts import held
from tracediff.observe import adapter_of, describe
from tracediff.observe.observer import Run
from tracediff.observe.provenance import digest_of
from tracediff.observe.tree import discover
from tracediff.observe.types import Adapter, Tensor
from tracediff.parameters.diagnosis import weights as compare_weights
from tracediff.parameters.layout_rules import Origin, fitting_layouts, restored
from tracediff.parameters.result import WeightsReport
from tracediff.parameters.sources import Source, Weight, Weights, open_weights
from tracediff.parameters.thresholds import THRESHOLDS
from tracediff.trace.stored_weights import KEY

_BY_STORAGE = "weights.precision"
"""The kind of what differs by nothing but how it is stored."""


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    """A parameter of the reference: its live tensor, the values it had, those that it is to have, and how the port stores them."""

    name: str
    tensor: Tensor
    own: Array
    values: Array
    stored: str

    @property
    def error(self) -> float:
        """The relative L2 by which the port's values are off."""
        ours, theirs = self.own.astype(np.float64), self.values.astype(np.float64)
        return float(np.linalg.norm(theirs - ours) / max(float(np.linalg.norm(ours)), np.finfo(np.float64).tiny))


@contextmanager
def port_weights(models: Any, run: Any, source: Source, *, impl: str | None = None) -> Iterator[dict[str, Any]]:
    """A context in which the models have the port's weights wherever these differ by storage alone; afterwards, bit for bit, their own.

    ``source``: whatever `tracediff.parameters.sources.open_weights` takes, with values. Gives what meta says of it
    (`tracediff.trace.stored_weights`). Raises CaptureError where values are not stored, WeightsError where the two share nothing.
    """
    adapter = adapter_of(models, run, impl=impl)
    live = {one.name: one.tensor for one in describe.parameters(Run(adapter, tuple(discover(models, adapter))))}
    port = open_weights(source)
    _check_readable(port)
    report = compare_weights(live, port)
    taken = list(_taken(adapter, live, port, report))
    before = {one.name: digest_of(adapter.view(one.tensor)) for one in taken}
    with held():
        try:
            for one in taken:
                _give(adapter, one.tensor, one.values)
            yield {KEY: _told(port, report, taken)}
        finally:
            for one in taken:
                _give(adapter, one.tensor, one.own)
    changed = [name for name, digest in before.items() if digest_of(adapter.view(live[name])) != digest]
    if changed:
        raise CaptureError(f"After the run {changed[0]!r} is not what it was ({len(changed)} parameters differ); load the model anew.")


def _check_readable(port: Weights) -> None:
    unread = [name for name, weight in port.items() if not weight.is_readable]
    if unread:
        raise CaptureError(
            f"The values of {unread[0]!r} ({len(unread)} of {len(port)} parameters) are not in {port.source!r}, so the reference cannot "
            "have them. Capture the port with --save-params (save_params=True), or give its model or its weights file."
        )


def _taken(adapter: Adapter, live: Mapping[str, Tensor], port: Weights, report: WeightsReport) -> Iterator[_Taken]:
    """The parameters of the reference that are to have the port's values; one after the other, as several of the port may lie in one."""
    found = {finding.port: finding for finding in report.different}
    own: dict[str, Array] = {}
    values: dict[str, Array] = {}
    stored: dict[str, str] = {}
    for pair in report.pairs:
        finding = found.get(pair.port)
        if finding is not None and finding.kind != _BY_STORAGE:
            continue
        for name in pair.reference:
            own.setdefault(name, adapter.to_numpy(live[name]))
            values.setdefault(name, own[name])
        made = _nearest(pair.origin, port[pair.port], values)
        if made is None:
            continue
        values |= made
        for name in pair.reference:
            stored[name] = _storage(port, pair.port)
    for name, how in ((name, stored[name]) for name in live if name in stored):
        given = values[name].astype(own[name].dtype)
        if given.tobytes() != own[name].tobytes():
            yield _Taken(name, live[name], own[name], given, how)


def _nearest(origin: Origin, port: Weight, own: Mapping[str, Array]) -> dict[str, Array] | None:
    """The reference's parameters with a port's values laid out as theirs; None where that is off by more than storage makes it.

    Of several layouts that fit, the one that comes nearest is it: a port that holds a square matrix transposed, rightly or not, tells
    nothing of its own run then.
    """
    values = port.read()
    origins = [origin]
    if origin.is_copy and origin.merge is None:
        shape = own[origin.names[0]].shape
        origins += [Origin(origin.names, layout) for layout in fitting_layouts(shape, port.shape) if layout != origin.layout]
    made = [found for one in origins if (found := restored(one, values, own)) is not None]
    best = min(made, key=lambda found: _error(found, own), default=None)
    return None if best is None or _error(best, own) > _storage_error(port) else best


def _error(made: Mapping[str, Array], own: Mapping[str, Array]) -> float:
    """The relative L2 of parameters against the reference's own, all together."""
    off = sum(float(np.square(values - own[name].astype(np.float64)).sum()) for name, values in made.items())
    return math.sqrt(off / max(sum(float(np.square(own[name].astype(np.float64)).sum()) for name in made), np.finfo(np.float64).tiny))


def _storage_error(port: Weight) -> float:
    """The relative L2 by which storage may put a parameter off, at most."""
    if port.codes is None:
        return THRESHOLDS.rounding_error
    steps: int = 2 ** port.codes[0] - 1
    return THRESHOLDS.widest_group / (steps * math.sqrt(12))


def _storage(port: Weights, name: str) -> str:
    """How a port stores a parameter, in words."""
    codes = port[name].codes
    return f"{codes[0]}-bit codes" if codes is not None else port[name].dtype.name


def _give(adapter: Adapter, tensor: Tensor, values: Array) -> None:
    adapter.assign(tensor, adapter.from_numpy(values, tensor))


def _told(port: Weights, report: WeightsReport, taken: list[_Taken]) -> dict[str, Any]:
    left = [finding.port for finding in report.different if finding.kind != _BY_STORAGE and not finding.expected]
    return {
        "source": port.source,
        "taken": [[one.name, one.stored, one.error] for one in taken],
        "left": left,
    }
