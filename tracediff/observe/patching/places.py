"""What the parts of `tracediff.observe.patching` hand each other: places, found functions, what they ask of a session, and silence."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, Protocol

from tracediff.observe.types import Adapter, Args, Call, Function, Kwargs, Node

FoundKind = Literal["function", "method", "static", "class"]


class Observation(Protocol):
    """What patching asks of the session that it serves.

    ``watched`` are the ids of the functions whose calls the session wants to see; ``thread`` is the one that opened it.
    """

    adapter: Adapter
    thread: int
    watched: set[int]

    @property
    def nodes(self) -> Sequence[Node]:
        """The modules of the run, in tree order."""

    def warn(self, text: str) -> None:
        """Adds a warning to the run's, once."""

    def call(self, place: Place, original: Call, args: Args, kwargs: Kwargs) -> Any:
        """Calls ``original`` as a frame of the session, and returns what it returns or an observer hands back."""


@dataclass(slots=True)
class Place:
    """Where a wrapper leads to: a site of one session, which is a module, a method, or a ``function``."""

    session: Observation
    site: str
    path: str
    function: Function | None = None
    is_method: bool = False

    @property
    def is_own(self) -> bool:
        """Whether the place is a function or method of the model's own code."""
        return self.function is not None and self.function.is_own


@dataclass(frozen=True, slots=True)
class Found:
    """A function: the module or class that holds it, by which attribute, its dotted name, and the Python function itself."""

    owner: Any
    attribute: str
    dotted: str
    function: Any
    kind: FoundKind

    @property
    def key(self) -> tuple[int, str]:
        """What tells this attribute from all others."""
        return id(self.owner), self.attribute

    @property
    def module(self) -> str:
        """The dotted name of the module that the function was written in."""
        return str(self.owner.__name__ if isinstance(self.owner, ModuleType) else self.owner.__module__)

    @property
    def package(self) -> str:
        """The top-level package of that module."""
        return self.module.partition(".")[0]

    @property
    def name(self) -> str:
        """The function's name inside its module: ``mel``, ``Mel.frames``; a class's own calls have the name of the class."""
        return without_locals(str(getattr(self.function, "__qualname__", self.attribute)).removesuffix(".__call__"))

    @property
    def name_with_module(self) -> str:
        """That name behind the last part of the module's: ``audio.mel``."""
        return f"{self.module.rpartition('.')[2]}.{self.name}"


class _Quiet(threading.local):
    """Whether this thread is inside an observer."""

    now = False


quiet = _Quiet()


def without_locals(qualified: str) -> str:
    """A qualified name without Python's marks of nested and nameless functions.

    >>> without_locals("make_sampler.<locals>.<lambda>")
    'make_sampler.lambda'
    """
    return qualified.replace(".<locals>", "").replace("<lambda>", "lambda")
