"""What a run returned: the tensors in it, whatever its container, and where the code of the run is."""

from __future__ import annotations

from types import FunctionType, MethodType, ModuleType
from typing import Any

from tracediff.observe import frames
from tracediff.observe.containers import Leaves, Nest, longer

_NO_HOLDERS = (type, ModuleType, FunctionType, MethodType)
"""Types of objects whose attributes are not what a run returned."""


def leaves_of(value: Any, nest: Nest) -> Leaves:
    """The tensors, numbers and texts in what a run returned, by end, as of a tap; nothing is consumed, computed or changed.

    Of an object that is no container, the tensors in its attributes. So a result of any class will do, and a cache beside the tensors
    that a run returned is left alone.
    """
    found = nest.values(value, "value")
    return found or [leaf for name, part in _attributes(value, nest) for leaf in nest.values(part, longer("value", name))]


def _attributes(value: Any, nest: Nest) -> list[tuple[str, Any]]:
    """The attributes that hold more than a number or a text; none of a module, a function or a class."""
    if isinstance(value, _NO_HOLDERS) or nest.is_model(value):
        return []
    slots = [name for kind in type(value).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)} | dict(getattr(value, "__dict__", {}))
    return [(name, part) for name, part in held.items() if nest.holds_more(part)]


def _names(slots: Any) -> list[str]:
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def code_of(run: Any) -> tuple[str, int]:
    """File and line of a run's own code; none where the run is the inputs of a model."""
    code = getattr(getattr(run, "func", run), "__code__", None)
    if code is None or code.co_filename in frames.OURS:
        return "", 0
    return frames.short(code.co_filename), code.co_firstlineno
