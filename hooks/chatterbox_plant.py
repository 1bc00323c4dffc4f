"""How a fault gets into the port: one instance's code or weights are changed, or one function of the package, as a porter gets it wrong.

An instance whose code is changed is of a class of the same name with one method made anew from its own source, one expression of which
reads otherwise. Functions that belong to no module (mels, text, samplers) are changed where they are and put back afterwards: by
`planted`, or when a fault is planted in other models. Nothing is added that a tool could read as a flag.
"""

from __future__ import annotations

import contextlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import chatterbox_mends as mends

Models = Mapping[str, Any]
Plant = Callable[[Models], None]
PORT = mends.PORT
Place = mends.Place


@dataclass(frozen=True)
class Fault:
    """One fault: what is announced, the stage that shows it, the kind of cause, and the module to blame on either side ("" is the root).

    ``also``: kinds that name its cause as rightly. ``site``: the reference's site at which it is seen, where a path alone says little,
    as of what the root itself computes. ``spread``: the port's module within which others are wrong too, where the fault is in several.
    """

    announcement: str
    stage: str
    kind: str
    port: str
    reference: str
    plant: Plant
    also: tuple[str, ...] = ()
    site: str = ""
    spread: str | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of cause that name it rightly."""
        return (self.kind, *self.also)


FAULTS: dict[str, Fault] = {}


def fault(announcement: str, **facts: Any) -> Callable[[Plant], Plant]:
    """Registers the function as the planting of a fault of its name; ``facts`` as in `Fault`."""

    def register(plant: Plant) -> Plant:
        FAULTS[plant.__name__] = Fault(announcement, plant=plant, **facts)
        return plant

    return register


def rewrite(name: str, announcement: str, *, old: str, new: str, method: str = "__call__", at: str = "", **facts: Any) -> None:
    """Registers a fault in a method of the module to blame (or the one ``at``): ``new`` stands where its source says ``old``."""

    def plant(models: Models) -> None:
        rewritten(module_at(models, at or facts["port"]), method, old, new)

    FAULTS[name] = Fault(announcement, plant=plant, **facts)


def edit(name: str, announcement: str, *, place: Place, new: str, **facts: Any) -> None:
    """Registers a fault in a function of the package: ``new`` stands in the place of some of its code."""

    def plant(models: Models) -> None:
        hold(models, mends.edited(place, new))

    FAULTS[name] = Fault(announcement, plant=plant, **facts)


@contextlib.contextmanager
def planted(models: Models, *names: str) -> Iterator[None]:
    """The models with these faults; afterwards the package's functions are what they were. The models themselves stay changed."""
    try:
        for name in names:
            FAULTS[name].plant(models)
        yield
    finally:
        restore()


# --- what is changed in the package, and put back ---

_CHANGED: dict[str, Any] = {"models": None, "edits": ExitStack()}


def hold(models: Models, change: AbstractContextManager[None]) -> None:
    """Makes a change of the package that lasts until other models get one, or until `restore`."""
    if _CHANGED["models"] is not models:
        restore()
        _CHANGED["models"] = models
    _CHANGED["edits"].enter_context(change)


def restore() -> None:
    """The package's functions as they were before any fault."""
    _CHANGED["models"] = None
    _CHANGED["edits"].close()


# --- what is changed in the models ---


def module_at(models: Models, path: str) -> Any:
    """The port's module at a dotted path; numbers count in lists."""
    root, *names = path.split(".")
    value = models[root]
    for name in names:
        value = value[int(name)] if isinstance(value, list) else getattr(value, name)
    return value


def rewritten(module: Any, method: str, old: str, new: str) -> None:
    """Gives one module a method made of its source with ``new`` for ``old``, which must be there once. Raises ValueError otherwise."""
    kind = type(module)
    function = inspect.unwrap(getattr(kind, method))
    source = mends.SOURCES.get(function) or textwrap.dedent(inspect.getsource(function))
    if source.count(old) != 1:
        raise ValueError(f"{old!r} is {source.count(old)} times in {kind.__name__}.{method}, not once.")
    lines = "\n" * (function.__code__.co_firstlineno - 1)
    space: dict[str, Any] = {}
    source = source[source.index("def ") :].replace(old, new)
    exec(compile(lines + source, inspect.getfile(function), "exec"), function.__globals__, space)
    changed = space[function.__name__]
    changed.__qualname__ = function.__qualname__
    _reclassed(module, **{method: changed})


def become(module: Any, **methods: Callable[..., Any]) -> None:
    """Gives one module other methods; each gets the original one first, then the module."""
    kind = type(module)
    _reclassed(module, **{name: _with_original(getattr(kind, name), method) for name, method in methods.items()})


def _with_original(original: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: method(original, self, *args, **kwargs)


def _reclassed(module: Any, **methods: Callable[..., Any]) -> None:
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__, **methods})
