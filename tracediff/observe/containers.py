"""Nested containers: the tensors in them with the ends that name them, and the same containers with other tensors.

Tuples, lists, dicts and other mappings, dataclasses and named tuples are entered; modules and any other object (a cache) are not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from enum import Enum
from functools import lru_cache
from typing import Any

import numpy as np

from tracediff.dtype import BY_CODE
from tracediff.site import End, escape

DEEPEST = 16
LONGEST_NOTE = 64
"""Numbers in a row that are noted as they are; longer rows are recorded as arrays."""
_LONGEST_END = 128  # characters: containers nested deeper are not looked into for what is no tensor

_NARROW = frozenset(row.view for row in BY_CODE.values() if row.view.kind == "V")
Leaves = list[tuple[str, Any]]


class Kind(Enum):
    """What a value is, which its type tells."""

    TENSOR = 1
    ARRAY = 2
    SCALAR = 3
    ROW = 4
    CONTAINER = 5
    OPAQUE = 6


class Nest:
    """Flattens and rebuilds containers for one framework, which tells its tensors and its modules."""

    def __init__(self, is_tensor: Callable[[Any], bool], is_model: Callable[[Any], bool]) -> None:
        self._is_tensor = is_tensor
        self.is_model = is_model
        self._kinds: dict[type, Kind] = {}

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], keys: tuple[str, ...] = ()) -> tuple[Leaves, dict[str, Any]]:
        """The tensors among a call's arguments, and the plain scalars, by end; ``keys`` name positions instead of numbers."""
        leaves: Leaves = []
        scalars: dict[str, Any] = {}
        for index, value in enumerate(args):
            self._walk(value, input_end(index, keys), leaves, scalars, 0)
        for key, value in kwargs.items():
            self._walk(value, _named_end(key), leaves, scalars, 0)
        return leaves, scalars

    def values(self, value: Any, end: str) -> Leaves:
        """The tensors, numbers and texts in what a call returned or a tap was given; numbers as 0-d or flat arrays."""
        leaves: Leaves = []
        self._walk(value, end, leaves, None, 0)
        return leaves

    def absent(self, value: Any, end: str) -> dict[str, str]:
        """What `values` leaves out of a container, by end: None as "", an object that is not entered as the name of its type."""
        found: dict[str, str] = {}
        for key, part in items(value) if self._kind(value) in (Kind.ROW, Kind.CONTAINER) else ():
            inner, kind = longer(end, key), self._kind(part)
            if part is None or kind is Kind.OPAQUE:
                found[inner] = "" if part is None else type(part).__name__
            elif kind in (Kind.ROW, Kind.CONTAINER) and len(inner) < _LONGEST_END:
                found |= self.absent(part, inner)
        return found

    def holds_more(self, value: Any) -> bool:
        """Whether a value is a tensor or a container, not a single number or text, nor an object that is not entered."""
        return self._kind(value) not in (Kind.SCALAR, Kind.OPAQUE)

    def _walk(self, value: Any, end: str, leaves: Leaves, scalars: dict[str, Any] | None, depth: int) -> None:
        kind = self._kinds.get(type(value)) or self._kind(value)
        if kind is Kind.TENSOR or (kind is Kind.ARRAY and is_array(value)):
            leaves.append((end, value))
        elif kind is Kind.SCALAR:
            _scalar(value, end, leaves, scalars)
        elif kind is Kind.ROW and _is_numbers(value):
            _numbers(value, end, leaves, scalars)
        elif kind in (Kind.ROW, Kind.CONTAINER) and depth < DEEPEST:
            for key, part in items(value):
                self._walk(part, longer(end, key), leaves, scalars, depth + 1)

    def _kind(self, value: Any) -> Kind:
        """What a value is, by its type: attributes of a value may be slow or have effects. The answer is kept for the type."""
        cls = type(value)
        if issubclass(cls, np.ndarray):
            kind = Kind.ARRAY
        elif self._is_tensor(value):
            kind = Kind.TENSOR
        elif issubclass(cls, (bool, int, float, str, np.generic, type(None))):
            kind = Kind.SCALAR
        elif self.is_model(value) or cls is type:
            kind = Kind.OPAQUE
        elif issubclass(cls, (list, tuple)):
            kind = Kind.ROW
        else:
            kind = Kind.CONTAINER if issubclass(cls, Mapping) or dataclasses.is_dataclass(cls) else Kind.OPAQUE
        self._kinds[cls] = kind
        return kind

    def replace_inputs(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], new: Mapping[str, Any], keys: tuple[str, ...] = ()
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with the tensors at the given ends exchanged."""
        positional = tuple(self.replace(value, input_end(index, keys), new) for index, value in enumerate(args))
        named = {key: self.replace(value, _named_end(key), new) for key, value in kwargs.items()}
        return positional, named

    def replace(self, value: Any, end: str, new: Mapping[str, Any], depth: int = 0) -> Any:
        """``value`` with the tensors at the given ends exchanged: in place in lists, dicts and dataclasses; tuples are rebuilt."""
        if end in new:
            return new[end]
        if (self._kinds.get(type(value)) or self._kind(value)) not in (Kind.ROW, Kind.CONTAINER) or depth == DEEPEST:
            return value
        changed = {}
        for key, part in items(value):
            other = self.replace(part, longer(end, key), new, depth + 1)
            if other is not part:
                changed[key] = other
        return assigned(value, changed) if changed else value


def input_end(index: int, keys: tuple[str, ...]) -> str:
    """The end of a positional argument."""
    return f"input[{keys[index] if index < len(keys) else index}]"


@lru_cache(4096)
def _named_end(key: str) -> str:
    return f"input[{escape(key)}]"


def longer(end: str, key: Any) -> str:
    """An end with one more key.

    >>> longer("output[0]", "key"), longer("output", 1)
    ('output[0].key', 'output[1]')
    """
    return f"{end}[{key}]" if isinstance(key, int) else f"{end}.{escape(str(key), dots=True)}"


def items(value: Any) -> list[tuple[Any, Any]]:
    """The keys and parts of a container; none for anything else."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=False))
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(type(value)):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if hasattr(value, field.name)]
    return []


def assigned(value: Any, parts: Mapping[Any, Any]) -> Any:
    """A container with some parts exchanged: itself where it can be assigned to, else a new one of its type."""
    if isinstance(value, tuple):
        if hasattr(value, "_replace"):
            return value._replace(**parts)
        rebuilt = [parts.get(index, part) for index, part in enumerate(value)]
        return tuple(rebuilt) if type(value) is tuple else type(value)(rebuilt)
    if isinstance(value, (list, MutableMapping)):
        for key, part in parts.items():
            value[key] = part
        return value
    if getattr(type(value), "__dataclass_params__", None) is not None and type(value).__dataclass_params__.frozen:
        return dataclasses.replace(value, **parts)
    for key, part in parts.items():
        setattr(value, key, part)
    return value


def built(parts: Mapping[str, Any], end: str = "output") -> Any:
    """A value made from its ends: the tensor itself, or tuples and `Fields` nested as the ends say.

    >>> built({"output[0]": 1, "output[1].key": 2})
    (1, {'key': 2})
    """
    if end in parts:
        return parts[end]
    tree: dict[Any, Any] = {}
    for text, part in parts.items():
        keys = End.parse(text).keys
        branch = tree
        for key in keys[:-1]:
            branch = branch.setdefault(key, {})
        branch[keys[-1]] = part
    return _containers(tree)


def _containers(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    parts = {key: _containers(part) for key, part in tree.items()}
    return tuple(parts[key] for key in sorted(parts)) if all(isinstance(key, int) for key in parts) else Fields(parts)


class Fields(dict[Any, Any]):
    """A dict whose values are attributes too, and can be had by position, as those of a model's output can."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    def __missing__(self, key: Any) -> Any:
        if isinstance(key, int) and -len(self) <= key < len(self):
            return list(self.values())[key]
        raise KeyError(key)


def _scalar(value: Any, end: str, leaves: Leaves, scalars: dict[str, Any] | None) -> None:
    if isinstance(value, np.generic):
        leaves.append((end, np.asarray(value)))
    elif scalars is not None:
        scalars[end] = value
    elif isinstance(value, str):
        leaves.append((end, value))
    elif value is not None:
        leaves.append((end, number(value)))


def _numbers(value: Any, end: str, leaves: Leaves, scalars: dict[str, Any] | None) -> None:
    if scalars is not None and len(value) <= LONGEST_NOTE:
        scalars[end] = list(value)
    else:
        leaves.append((end, number(value)))


def _is_numbers(value: Any) -> bool:
    return bool(value) and type(value[0]) in (int, float, bool) and all(type(part) in (int, float, bool) for part in value)


def is_array(value: Any) -> bool:
    """Whether a value is a NumPy array that a trace can hold: numbers, not texts or objects."""
    return isinstance(value, np.ndarray) and (value.dtype.kind in "biufc" or value.dtype in _NARROW) and value.dtype.itemsize <= 16


def number(value: Any) -> np.ndarray[Any, Any]:
    """Python numbers as an array of int64, float64 or bool; integers beyond int64 as float64."""
    array = np.asarray(value)
    return array.astype(np.float64) if array.dtype == object else array
