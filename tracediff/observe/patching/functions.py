"""The Python functions of packages, found by their dotted names: those of modules, and the methods of their classes.

A function belongs where it was written: ``from x import f`` elsewhere makes no other function of it, and is patched with it.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from tracediff.observe.adapters import registry
from tracediff.observe.exchange import original_of
from tracediff.observe.patching.places import Found, FoundKind

_OURS = "tracediff"
_NEAREST = 3
_MOST_COMPARED = 20_000
"""Dotted names that a pattern without a match is compared with."""


def functions_like(pattern: str, is_function: Callable[[Any], bool]) -> list[Found]:
    """The functions and methods whose dotted name matches a glob, in the modules that are imported, each once.

    ``*`` and ``**`` both match any text. A name without glob finds also what a package took over from one of its modules.
    ``is_function`` tells functions that are no Python functions (compiled ones).
    """
    wanted = pattern.replace("**", "*")
    is_exact = not any(mark in wanted for mark in "*?[")
    matched: dict[tuple[int, str], Found] = {}
    for module in _modules(wanted.partition(".")[0]):
        for found in _in_module(module, is_function, foreign=is_exact):
            if fnmatch.fnmatchcase(found.dotted, wanted):
                matched.setdefault(found.key, found)
    return list(matched.values())


def nearest(pattern: str, is_function: Callable[[Any], bool]) -> list[str]:
    """The dotted names of functions or modules that are nearest to a pattern that matched nothing."""
    text = pattern.replace("**", "*").rstrip(".*")
    top = text.partition(".")[0]
    modules = _modules(top)
    names = [module.__name__ for module in modules] + [found.dotted for module in modules for found in _in_module(module, is_function)]
    if not names:
        names = sorted({name.partition(".")[0] for name in list(sys.modules)})
        return [f"{name}.**" for name in difflib.get_close_matches(top, names, _NEAREST)]
    close = difflib.get_close_matches(text, names[:_MOST_COMPARED], _NEAREST)
    return close or [name for name in names if text.rpartition(".")[2] in name][:_NEAREST]


def longer_names(every: Iterable[Found]) -> dict[int, str]:
    """For functions that share their name, by the function's id: a name with as much of the module before it as tells them apart."""
    functions = {id(found.function): found for found in every}
    short = Counter(found.name for found in functions.values())
    longer = Counter(found.name_with_module for found in functions.values())
    return {
        key: found.name_with_module if longer[found.name_with_module] == 1 else f"{found.module}.{found.name}"
        for key, found in functions.items()
        if short[found.name] > 1
    }


def arguments_of(found: Found) -> tuple[str, ...]:
    """The names of a function's positional parameters, without ``self`` or ``cls``."""
    try:
        parameters = inspect.signature(found.function).parameters.values()
    except (TypeError, ValueError):
        return ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(parameter.name for parameter in parameters if parameter.kind in positional)
    return names[1:] if found.kind in ("method", "class") else names


def is_of_framework(cls: type) -> bool:
    """Whether a class is made from one of a framework's: its objects are modules, which are observed as such."""
    return any(base.__module__.partition(".")[0] in registry.packages() for base in cls.__mro__)


def is_python_function(value: Any) -> bool:
    """Whether a value is a function written in Python, with or without a cache before it."""
    return isinstance(value, (FunctionType, functools._lru_cache_wrapper))


def _modules(top: str) -> list[ModuleType]:
    """The imported modules of the packages whose name matches a glob, without those of this package."""
    return [
        module
        for name, module in list(sys.modules.items())
        if fnmatch.fnmatchcase(name.partition(".")[0], top)
        and name.partition(".")[0] != _OURS
        and isinstance(module, ModuleType)
        and name == getattr(module, "__name__", None)
    ]


def _in_module(module: ModuleType, is_function: Callable[[Any], bool], *, foreign: bool = False) -> Iterator[Found]:
    """A module's own functions and methods; with ``foreign`` also the functions that it took over from its package."""
    package = module.__name__.partition(".")[0]
    for name, value in list(vars(module).items()):
        function = original_of(value)
        origin = getattr(function, "__module__", None) if is_python_function(function) or is_function(function) else None
        if isinstance(origin, str) and (origin == module.__name__ or (foreign and origin.partition(".")[0] == package)):
            yield Found(module, name, f"{module.__name__}.{name}", function, "function")
        elif isinstance(value, type) and value.__module__ == module.__name__:
            yield from _in_class(value, f"{module.__name__}.{name}")


def _in_class(cls: type, dotted: str) -> Iterator[Found]:
    for name, value in list(vars(cls).items()):
        if name.startswith("__") and name.endswith("__") and name != "__call__":
            continue
        value = original_of(value)
        kind = _kind_of(value)
        function = original_of(value if kind == "method" else value.__func__)
        if is_python_function(function):
            yield Found(cls, name, f"{dotted}.{name}", function, kind)


def _kind_of(attribute: Any) -> FoundKind:
    """The kind of an attribute of a class, should it be a function."""
    if isinstance(attribute, staticmethod):
        return "static"
    return "class" if isinstance(attribute, classmethod) else "method"
