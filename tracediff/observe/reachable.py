"""What a run can reach and change in Python: what models hold, what the run's own code holds, and all that lies in it.

Each thing that holds others is kept with its contents: lists, dicts, sets, objects with attributes or slots, the variables that functions
share, generators of random numbers. So are they found again as they were, and in them the very same tensors. From the run the walk takes
its closure, its defaults, the object that it is a method of, and the global variables that its code names; so for each function that it
finds there. What only seems to be data is not entered: threads, files, loggers, iterators, the frameworks' own machinery.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from random import Random
from types import CellType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

from tracediff.observe.adapters import registry
from tracediff.observe.types import Adapter, Tensor
from tracediff.site import join

MOST_HOLDERS = 200_000
"""Things that hold others, of which the contents are kept; beyond these a run is not followed."""
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, CodeType})
_DATA = {"builtins", "collections", "types", "functools", "random", "abc", "typing", "enum", "dataclasses", "__main__"}
_FOREIGN = (sys.stdlib_module_names - _DATA) | {"tracediff", "_pytest", "pytest"}
_EMPTY = object()


class Holders:
    """A walk over all that is reachable: ``kept`` has for each thing that holds others what gives it its present contents again.

    ``tensors``: each tensor found, by its id, with a name for it. ``is_whole``: whether the walk came to its end.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.kept: list[Callable[[], None]] = []
        self.tensors: dict[int, tuple[str, Tensor]] = {}
        self.is_whole = True
        self._adapter = adapter
        self._seen: dict[int, Any] = {}
        self._waiting: list[tuple[str, Any]] = []

    def walk(self, roots: Iterable[tuple[str, Any]]) -> None:
        """Enters each root, given with its name, and then all that they lead to."""
        for name, value in roots:
            self._meet(name, value)
        while self._waiting and self.is_whole:
            self._meet(*self._waiting.pop())
            self.is_whole = len(self.kept) < MOST_HOLDERS

    def _meet(self, name: str, value: Any) -> None:
        kind = type(value)
        if kind not in _ATOMS and not issubclass(kind, (type, ModuleType)) and id(value) not in self._seen:
            self._seen[id(value)] = value
            self._enter(name, value)

    def _enter(self, name: str, value: Any) -> None:
        adapter = self._adapter
        if adapter.is_tensor(value):
            self.tensors[id(value)] = name, value
        elif adapter.is_model(value):
            for table in reversed(adapter.tables(value)):  # what waits last comes first: a weight has its name from where it belongs
                self._seen[id(table)] = table
                self._dict(name, table, is_module=True)
                self._hooks(value, table)
        elif isinstance(value, dict):
            self._dict(name, value)
            self._attributes(name, value)
        elif isinstance(value, (list, deque, set)):
            self._row(name, value)
            self._attributes(name, value)
        elif isinstance(value, (tuple, frozenset)):
            self._wait(name, enumerate(value))
        elif isinstance(value, FunctionType):
            self._function(name, value)
        elif isinstance(value, MethodType):
            self._wait(name, [("", value.__self__), ("", value.__func__)])
        elif isinstance(value, partial):
            self._wait(name, [("", value.func), ("", value.args), ("", value.keywords)])
        elif isinstance(value, CellType):
            self._cell(name, value)
        elif (put_back := _generator(value)) is not None:
            self.kept.append(put_back)
        elif _is_data(type(value)):
            self._attributes(name, value)

    def _wait(self, name: str, parts: Iterable[tuple[Any, Any]]) -> None:
        self._waiting += [(join(name, str(key)), part) for key, part in parts if type(part) not in _ATOMS][::-1]

    def _dict(self, name: str, table: Any, *, is_module: bool = False) -> None:
        saved = dict(dict.items(table))  # a module of MLX may iterate over something else
        self.kept.append(partial(_refill, table, saved))
        self._wait(name, ((key, part) for key, part in saved.items() if not (is_module and type(part) is OrderedDict)))  # PyTorch's hooks

    def _hooks(self, module: Any, table: Any) -> None:
        hooks = [(part, list(part.items())) for part in dict.values(table) if type(part) is OrderedDict]
        if hooks:
            self.kept.append(partial(_refill_hooks, module, type(module), hooks))

    def _row(self, name: str, row: Any) -> None:
        saved = list(row)
        self.kept.append(partial(_refill_row, row, saved))
        self._wait(name, enumerate(saved))

    def _attributes(self, name: str, value: Any) -> None:
        table = _table_of(value)
        if table is not None:
            self._dict(name, table)
        slots = {slot: slot.__get__(value) for slot in _slots_of(type(value)) if hasattr(value, slot.__name__)}
        if slots:
            self.kept.append(partial(_refill_slots, value, slots))
            self._wait(name, ((slot.__name__, part) for slot, part in slots.items()))

    def _function(self, name: str, function: FunctionType) -> None:
        if not _is_own(function.__module__ or ""):
            return
        named = {key: function.__globals__[key] for key in _names_in(function.__code__) if key in function.__globals__}
        self.kept.append(partial(_rename, function.__globals__, {key: part for key, part in named.items() if _is_variable(part)}))
        self._wait(name, named.items())
        self._wait(name, [("", function.__closure__), ("", function.__defaults__), ("", function.__kwdefaults__), ("", vars(function))])

    def _cell(self, name: str, cell: CellType) -> None:
        try:
            contents = cell.cell_contents
        except ValueError:  # a variable that has no value yet
            return
        self.kept.append(partial(setattr, cell, "cell_contents", contents))
        self._wait(name, [("", contents)])


def _is_own(module: str) -> bool:
    """Whether a module's functions are the user's, as far as that can be told: they are no framework's and not Python's."""
    top = module.partition(".")[0]
    return top not in _FOREIGN and top not in registry.packages() | {"numpy", "scipy", "transformers"}


def _is_variable(value: Any) -> bool:
    """Whether a global name stands for a value, not for a module, a class or a function."""
    return not isinstance(value, (ModuleType, type, FunctionType))


def _names_in(code: CodeType) -> Iterator[str]:
    """The global names that a function's code uses, those of functions inside it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _is_data(kind: type) -> bool:
    """Whether objects of a class are data: none of Python's own machinery, of the frameworks only optimisers, and no iterators."""
    if hasattr(kind, "__next__"):
        return False
    for base in kind.__mro__:
        top, _, inner = base.__module__.partition(".")
        if top in _FOREIGN or (top in registry.packages() and not inner.startswith("optim")):
            return False
    return True


def _table_of(value: Any) -> dict[str, Any] | None:
    """The attributes of an object, without asking the object."""
    if not getattr(type(value), "__dictoffset__", 0):
        return None
    table: dict[str, Any] = object.__getattribute__(value, "__dict__")
    return table


def _slots_of(kind: type) -> list[Any]:
    """The slots of a class; members of classes written in C may be read only."""
    bases = [vars(base) for base in kind.__mro__ if "__slots__" in vars(base)]
    return [slot for base in bases for slot in base.values() if isinstance(slot, MemberDescriptorType)]


def _generator(value: Any) -> Callable[[], None] | None:
    """What puts a generator of random numbers back into its present state; None for anything else."""
    if isinstance(value, Random):
        return partial(value.setstate, value.getstate())
    kind = type(value)
    module = kind.__module__.partition(".")[0]
    if module == "numpy" and hasattr(value, "bit_generator"):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if module in ("numpy", "torch") and kind.__name__ in ("RandomState", "Generator"):
        return partial(value.set_state, value.get_state())
    return None


def _refill(table: Any, saved: dict[Any, Any]) -> None:
    """Gives a dict the very members that it had."""
    for key in [key for key in dict.keys(table) if key not in saved]:
        dict.pop(table, key)
    _rename(table, saved)


def _refill_hooks(module: Any, kind: type, hooks: Iterable[tuple[OrderedDict[Any, Any], list[tuple[Any, Any]]]]) -> None:
    """Gives a module the hooks that it had, in their order; none where it is of another class by now, as a lazy one becomes."""
    for table, saved in hooks:
        if type(module) is kind and list(table.items()) != saved:
            table.clear()
            table.update(saved)


def _rename(table: Any, saved: dict[Any, Any]) -> None:
    """Gives some keys of a dict the very members that they had."""
    for key, value in saved.items():
        if dict.get(table, key, _EMPTY) is not value:
            dict.__setitem__(table, key, value)


def _refill_row(row: Any, saved: list[Any]) -> None:
    """Gives a list, a set or a deque the very members that it had."""
    if isinstance(row, list):
        if len(row) != len(saved) or any(now is not before for now, before in zip(row, saved, strict=True)):
            row[:] = saved
    elif list(row) != saved if isinstance(row, deque) else row != set(saved):
        row.clear()
        (row.extend if isinstance(row, deque) else row.update)(saved)


def _refill_slots(value: Any, saved: dict[Any, Any]) -> None:
    for slot in _slots_of(type(value)):
        if slot in saved:
            slot.__set__(value, saved[slot])
        elif hasattr(value, slot.__name__):
            slot.__delete__(value)
