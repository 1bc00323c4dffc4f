"""How the adapters note the arguments of functional sites and random functions.

The arguments of a call come as ``args`` and ``kwargs``. A *note* is a function that takes both and returns what the trace notes, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracediff.observe.types import Args, Kwargs

Note = Callable[[Args, Kwargs], dict[str, Any]]


def argument(args: Args, kwargs: Kwargs, position: int, name: str, default: Any = None) -> Any:
    """The argument that a call gave by position or by name, or the default."""
    return args[position] if len(args) > position else kwargs.get(name, default)


def plain(value: Any) -> Any:
    """An argument as it is noted: numbers, texts and None as they are, anything else as the word "tensor"."""
    return value if isinstance(value, (int, float, bool, str)) or value is None else "tensor"


def noted(first: int = 0, *, as_noted: Callable[[Any], Any] = plain, **defaults: Any) -> Note:
    """Notes the arguments of these names, given by position from ``first`` on or by keyword.

    >>> noted(1, p=0.5)(("x", 0.25), {}), noted(1, p=0.5)(("x",), {})
    ({'p': 0.25}, {'p': 0.5})
    """

    def note(args: Args, kwargs: Kwargs) -> dict[str, Any]:
        names = enumerate(defaults.items(), first)
        return {name: as_noted(argument(args, kwargs, position, name, default)) for position, (name, default) in names}

    return note


def constant(**values: Any) -> Note:
    """Notes the same of every call."""
    return lambda args, kwargs: dict(values)


def softmax_axis(values: str, axis: str) -> Note:
    """Notes the axis of a softmax counted from the last one; ``values`` and ``axis`` are the names of its arguments."""

    def note(args: Args, kwargs: Kwargs) -> dict[str, Any]:
        along = argument(args, kwargs, 1, axis)
        if isinstance(along, int) and along >= 0:
            along -= argument(args, kwargs, 0, values).ndim
        return {"axis": along}

    return note
