"""Calls of stateless leaves: found in one run of a reference, and measured on some of their rows in the runs after it.

A *leaf* is a module whose calls make no other observed calls, pass no tap and draw nothing. It is *stateless* where no call of a run put
another value into its attributes, changed a tensor of its own, or changed what it was handed, and it holds no objects that may keep
something. What such a call gives depends on its
arguments alone, and as a rule each row of its output (a token, a position) on the same row of its inputs alone. Then some rows tell how
much noise, or another dtype, moves all of them, at a fraction of the call's time. That rows are independent is not assumed of any
class: the rows that a call on some of them gives must be those that are stored, to within what is measured.
"""

from __future__ import annotations

import math
from dataclasses import replace
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import Array
from tracediff.observe.observer import Boundary, Observer, Run
from tracediff.observe.types import Adapter, Args, Call, Keys, Kwargs, Module
from tracediff.runs.thresholds import THRESHOLDS
from tracediff.runs.variation_error import error_of
from tracediff.trace import Record, schema

_PLAIN = (bool, int, float, str, type(None))
_INERT = (*_PLAIN, complex, bytes, type, Enum, np.dtype, np.generic, BuiltinFunctionType)
_INERT_OF_FRAMEWORKS = frozenset(("Dtype", "device", "dtype", "layout", "memory_format"))
"""Values in which nothing can be kept; of frameworks by the names of their types, since none is imported here."""

State = list[tuple[Keys, int, Any]]


class LeafWatch(Observer):
    """Finds the stateless leaves of a run."""

    def __init__(self) -> None:
        self._called: set[str] = set()
        self._others: set[str] = set()
        self._open: dict[int, tuple[str, State]] = {}

    @property
    def sites(self) -> frozenset[str]:
        """The sites of stateless leaves, where the run came to its end."""
        return frozenset(self._called - self._others)

    def start(self, run: Run) -> None:
        self._adapter = run.adapter
        self._modules = {node.path: node.module for node in run.modules if node.is_model}

    def see(self, boundary: Boundary) -> None:
        if boundary.parent_id in self._open:
            self._others.add(self._open[boundary.parent_id][0])
        module = self._modules.get(boundary.path) if boundary.site == boundary.path else None
        if module is None:
            return
        if boundary.moment == "enter":
            self._called.add(boundary.site)
            self._open[boundary.frame_id] = boundary.site, self._state(module)
        elif boundary.frame_id in self._open:
            site, before = self._open.pop(boundary.frame_id)
            is_left = boundary.moment == "leave" and not boundary.mutated
            if not is_left or self._adapter.is_training(module) or self._state(module) != before or not self._is_inert(module):
                self._others.add(site)

    def finish(self, run: Run) -> None:
        self._others.update(site for site, _ in self._open.values())  # calls that were never left
        self._open.clear()
        self._modules.clear()

    def _state(self, module: Module) -> State:
        """All that a module holds, by which a change shows: of a tensor also the token."""
        adapter = self._adapter
        tensors = ((keys, tensor) for keys, tensor, _ in adapter.parameters(module))
        found = [(keys, id(tensor), None if adapter.unreadable([tensor]) else adapter.token(tensor)) for keys, tensor in tensors]
        return found + [((name,), id(value), self._contents(value)) for name, value in adapter.attributes(module).items()]

    def _contents(self, value: Any) -> Any:
        """What an attribute holds, by which a change shows."""
        if isinstance(value, dict):
            return [(key, id(held)) for key, held in value.items()]
        if isinstance(value, (list, set, tuple)):
            return [id(held) for held in value]
        return self._adapter.token(value) if self._adapter.is_tensor(value) and not self._adapter.unreadable([value]) else None

    def _is_inert(self, module: Module) -> bool:
        """Whether a module has no attribute in which a call could keep something unseen, such as an object with a cache."""
        return all(self._holds_nothing(value, module) for value in self._adapter.attributes(module).values())

    def _holds_nothing(self, value: Any, module: Module) -> bool:
        if isinstance(value, MethodType):
            return value.__self__ is module
        if isinstance(value, FunctionType):
            return value.__closure__ is None
        if isinstance(value, (list, set, tuple, frozenset)):
            return all(isinstance(held, _INERT) for held in value)
        if isinstance(value, dict):
            return all(isinstance(held, _INERT) for held in value.values())
        is_plain = isinstance(value, _INERT) or type(value).__name__ in _INERT_OF_FRAMEWORKS
        return is_plain or self._adapter.is_tensor(value)


def rows_of(record: Record, stored: Array) -> Array | None:
    """Which rows of a leaf's output are enough, along the last axis but one; None where all are needed.

    Exact values are needed all, and so is an output with few rows. Whole numbers in a float dtype are choices too: they are the caller's.
    """
    most = THRESHOLDS.sampled_rows
    if stored.ndim < 2 or record.flags & schema.MUTATED or dtypes.of(stored).is_exact or stored.shape[-2] < 2 * most or not stored.size:
        return None
    return np.linspace(0, stored.shape[-2] - 1, most).astype(np.intp)


def called_on(rows: Array, shape: tuple[int, ...], call: Call, args: Args, kwargs: Kwargs, adapter: Adapter) -> Any:
    """What a call gives on some rows of its tensors; None where it cannot be called so.

    All tensors among the arguments must have the rows of the output, whose ``shape`` is ``(..., rows, last)``, and all else must be plain.
    """
    values = [*args, *kwargs.values()]
    tensors = [value for value in values if adapter.is_tensor(value)]
    if not tensors or any(adapter.describe(tensor)[1][:-1] != shape[:-1] for tensor in tensors):
        return None
    if any(not isinstance(value, _PLAIN) for value in values if not adapter.is_tensor(value)):
        return None

    index = adapter.from_numpy(rows, None)  # once for all arguments

    def some(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value[..., rows, :]
        return value[..., index, :] if adapter.is_tensor(value) else value

    try:
        with adapter.no_grad():
            return call(*map(some, args), **{name: some(value) for name, value in kwargs.items()})
    except Exception:  # noqa: BLE001 - whatever a module raises on fewer rows: then it is called on all
        return None


def error_of_rows(stored: Array, rows: Array, arrived: Array, record: Record, roundoff: float) -> float:
    """The relative L2 of some rows; NaN where they are others than the stored ones, so that they do not tell of the call."""
    part = np.ascontiguousarray(stored[..., rows, :])
    if part.shape != arrived.shape:
        return math.nan
    norm = float(np.linalg.norm(part.astype(dtypes.wide_type(part)).reshape(-1)))
    error = error_of(part, arrived, replace(record.stats, l2=norm))
    return error if error <= THRESHOLDS.sampled_error * roundoff else math.nan
