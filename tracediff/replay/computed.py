"""One recorded operation computed again: what it gives for values of the nodes that it takes in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tracediff.replay.arithmetic import OPERATIONS
from tracediff.trace.operations import Node, Ref

Values = Mapping[int, Any]
"""What each node gives, by its number."""
Compute = Callable[[Values], Any]
"""What a node gives instead, told what all nodes before it give."""


class CannotComputeError(Exception):
    """An operation cannot be computed again, or a change makes shapes that do not fit."""


def is_computable(node: Node) -> bool:
    """Whether there is arithmetic for an operation, or values are kept of a parameter or constant."""
    return node.values is not None if node.name in ("@param", "@constant") else node.name in OPERATIONS


def applied(name: str, args: Iterable[Any], kwargs: Mapping[str, Any], values: Values, node: Node) -> Any:
    """What an operation gives for values; ``node`` is the recorded one, which holds the values of parameters and constants.

    Raises CannotComputeError where there is no arithmetic for it, and whatever NumPy raises where values do not fit.
    """
    if name in ("@param", "@constant"):
        if node.values is None:
            raise CannotComputeError(f"the values of {node.args} are not stored")
        return node.values.astype(np.float64) if node.values.dtype.kind == "f" else node.values
    operation = OPERATIONS.get(name)
    if operation is None:
        raise CannotComputeError(f"no arithmetic for {name}")
    known = {key: _resolved(value, values) for key, value in kwargs.items() if key not in _NO_VALUE}
    made = operation(*(_resolved(value, values) for value in args), **known)
    return np.asarray(made) if isinstance(made, np.generic) else made


def guarded(compute: Compute, values: Values) -> Any:
    """What is computed of values. Raises CannotComputeError where they do not fit."""
    try:
        return compute(values)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise CannotComputeError(str(error)) from error


_NO_VALUE = frozenset(("device", "layout", "memory_format", "pin_memory", "non_blocking", "generator", "requires_grad"))


def _resolved(value: Any, values: Values) -> Any:
    if isinstance(value, Ref):
        return values[value.node]
    return [_resolved(one, values) for one in value] if isinstance(value, list) else value
