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
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, Literal

from tracediff.observe.patching import wrappers

Kind = Literal["function", "method", "static", "class"]

FRAMEWORKS = frozenset({"torch", "mlx"})
_OURS = "tracediff"
_NEAREST = 3
_MOST_COMPARED = 20_000


@dataclass(frozen=True, slots=True)
class Found:
    """A function: the module or class that holds it, by which attribute, its dotted name, and the Python function itself."""

    owner: Any
    attribute: str
    dotted: str
    function: Any
    kind: Kind

    @property
    def module(self) -> str:
        """The dotted name of the module that it was written in."""
        return str(self.owner.__name__ if isinstance(self.owner, ModuleType) else self.owner.__module__)

    @property
    def name(self) -> str:
        """Its name inside that module: ``mel``, ``Mel.frames``; a class's own calls have the name of the class."""
        return _plain(str(getattr(self.function, "__qualname__", self.attribute)).removesuffix(".__call__"))


def functions_like(pattern: str, is_function: Callable[[Any], bool]) -> list[Found]:
    """The functions and methods whose dotted name matches a glob, in the modules that are imported, each once.

    ``*`` and ``**`` both match any text. A name without glob finds also what a package took over from one of its modules.
    ``is_function`` tells functions that are no Python functions (compiled ones).
    """
    wanted = pattern.replace("**", "*")
    is_exact = not any(mark in wanted for mark in "*?[")
    found: dict[tuple[int, str], Found] = {}
    for module in _modules(wanted.partition(".")[0]):
        for one in _in_module(module, is_function, foreign=is_exact):
            if fnmatch.fnmatchcase(one.dotted, wanted):
                found.setdefault((id(one.owner), one.attribute), one)
    return list(found.values())


def nearest(pattern: str, is_function: Callable[[Any], bool]) -> list[str]:
    """The dotted names of functions or modules that are nearest to a pattern that matched nothing."""
    text = pattern.replace("**", "*").rstrip(".*")
    top = text.partition(".")[0]
    modules = _modules(top)
    names = [module.__name__ for module in modules] + [one.dotted for module in modules for one in _in_module(module, is_function)]
    if not names:
        names = sorted({name.partition(".")[0] for name in list(sys.modules)})
        return [f"{name}.**" for name in difflib.get_close_matches(top, names, _NEAREST)]
    close = difflib.get_close_matches(text, names[:_MOST_COMPARED], _NEAREST)
    return close or [name for name in names if text.rpartition(".")[2] in name][:_NEAREST]


def longer_names(found: Iterable[Found]) -> dict[int, str]:
    """For functions of one name another by which they can be told apart, with their module's before it; by the function's id."""
    functions = {id(one.function): one for one in found}
    crowd = Counter(one.name for one in functions.values())
    within = Counter(_within(one) for one in functions.values())
    return {
        key: _within(one) if within[_within(one)] == 1 else f"{one.module}.{one.name}"
        for key, one in functions.items()
        if crowd[one.name] > 1
    }


def arguments_of(found: Found) -> tuple[str, ...]:
    """The names of a function's positional parameters, without ``self`` or ``cls``."""
    try:
        parameters = inspect.signature(found.function).parameters.values()
    except (TypeError, ValueError):
        return ()
    names = tuple(one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD))
    return names[1:] if found.kind in ("method", "class") else names


def is_of_framework(cls: type) -> bool:
    """Whether a class is made from one of a framework's: its objects are modules, which are observed as such."""
    return any(base.__module__.partition(".")[0] in FRAMEWORKS for base in cls.__mro__)


def is_python_function(value: Any) -> bool:
    """Whether a value is a function written in Python, with or without a cache before it."""
    return isinstance(value, (FunctionType, functools._lru_cache_wrapper))


def _modules(top: str) -> list[ModuleType]:
    """The imported modules of the packages whose name matches a glob, without this one's."""
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
        function = wrappers.original_of(value)
        origin = getattr(function, "__module__", None) if is_python_function(function) or is_function(function) else None
        if isinstance(origin, str) and (origin == module.__name__ or (foreign and origin.partition(".")[0] == package)):
            yield Found(module, name, f"{module.__name__}.{name}", function, "function")
        elif isinstance(value, type) and value.__module__ == module.__name__:
            yield from _in_class(value, f"{module.__name__}.{name}")


def _in_class(cls: type, dotted: str) -> Iterator[Found]:
    for name, value in list(vars(cls).items()):
        if name.startswith("__") and name.endswith("__") and name != "__call__":
            continue
        value = wrappers.original_of(value)
        kind: Kind = "static" if isinstance(value, staticmethod) else "class" if isinstance(value, classmethod) else "method"
        function = wrappers.original_of(value if kind == "method" else value.__func__)
        if is_python_function(function):
            yield Found(cls, name, f"{dotted}.{name}", function, kind)


def _within(found: Found) -> str:
    return f"{found.module.rpartition('.')[2]}.{found.name}"


def _plain(name: str) -> str:
    return name.replace(".<locals>", "").replace("<lambda>", "lambda")
