"""Changes of loaded models and of installed code that last as long as a block: how faults are planted and differences are mended.

A `Change` is a value: where something is changed, and what it becomes. `changed` makes some of them and afterwards puts everything back.
A module with other code is of a class of the same name, whose method was compiled from the original's source with one piece replaced.
Nothing is added that a tool could read as a flag. The models are MLX modules, but no framework is imported here.

A path leads to a module: ``t3.tfmr.layers.0``. The first name is a root, where models are given as a dict of roots. A number counts in a
list, ``*`` stands for every element of a list, ``**`` for a module and every module inside it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol

Method = Callable[..., Any]


class Change(Protocol):
    """A change of models or of installed code."""

    def __call__(self, models: Any, undo: ExitStack) -> None:
        """Makes the change. ``undo`` is told how to put back what is no module of the models: `changed` restores those."""


@dataclass(frozen=True)
class Fault:
    """A change that makes a port wrong: its name, the kind of cause, the port's culprit, and further kinds that name it as rightly."""

    name: str
    kind: str
    port: str
    change: Change
    also: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of cause that name it rightly."""
        return (self.kind, *self.also)

    @contextmanager
    def planted(self, models: Any) -> Iterator[None]:
        """The models with this fault; afterwards they are what they were."""
        with changed(models, self.change):
            yield


@contextmanager
def planted(models: Any, *faults: Fault) -> Iterator[None]:
    """The models with these faults; afterwards they and the installed code are what they were."""
    with changed(models, *(fault.change for fault in faults)):
        yield


@contextmanager
def changed(models: Any, *changes: Change) -> Iterator[None]:
    """The models, one or a dict of roots, with these changes. Afterwards every module is what it was, bit for bit, whatever a run did."""
    with ExitStack() as undo:
        undo.callback(restore, [(module, type(module), dict(module), dict(vars(module))) for module in _modules_of(models)])
        for change in changes:
            change(models, undo)
        yield


def _modules_of(models: Any) -> list[Any]:
    roots = [models] if hasattr(models, "modules") else [root for root in models.values() if hasattr(root, "modules")]
    return [module for root in roots for module in root.modules()]


def restore(states: list[tuple[Any, type, dict[str, Any], dict[str, Any]]]) -> None:
    """Puts modules back into states that were kept: each module, its class, what it holds, and its attributes."""
    for module, kind, items, attributes in states:
        module.__class__ = kind
        module.clear()
        dict.update(module, items)
        vars(module).clear()
        vars(module).update(attributes)


# -- where ---------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A piece of installed code: a dotted module, the qualified name of a function in it, and a text that its source has once."""

    module: str
    function: str
    code: str

    def __str__(self) -> str:
        """The file, below its package's folder, and the line: ``chatterbox/tts.py:38``. ValueError where the code is not there once."""
        path = _file_of(self.module)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        first, last = self._span("".join(lines))
        head = _split_once(textwrap.dedent("".join(lines[first - 1 : last])), self.code, self.function)[0]
        root = Path(*path.parts[path.parts.index(self.module.partition(".")[0]) :])
        return f"{root.as_posix()}:{first + head.count(chr(10))}"

    def _span(self, text: str) -> tuple[int, int]:
        """The first and the last line of the function, read and not imported: its package may not be importable here."""
        node: Any = ast.parse(text)
        for name in self.function.split("."):
            node = next(inner for inner in node.body if getattr(inner, "name", None) == name)
        return node.lineno, node.end_lineno


def _file_of(module: str) -> Path:
    """The file of a module, found without importing it."""
    package, _, rest = module.partition(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    path = Path(next(iter(spec.submodule_search_locations)), *rest.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"


def module_at(models: Any, path: str) -> Any:
    """The one module at a path; "" is what was given. Raises LookupError where there is none, or more than one."""
    found = modules_at(models, path)
    if len(found) != 1:
        raise LookupError(f"{len(found)} modules at {path!r}, not one.")
    return found[0]


def modules_at(models: Any, path: str) -> list[Any]:
    """The modules at a path, which may hold ``*`` and ``**``."""
    found = [models]
    for name in path.split(".") if path else ():
        found = [inner for value in found for inner in _inside(value, name)]
    return found


def _inside(value: Any, name: str) -> list[Any]:
    """What lies in a module, a list or a dict under a name."""
    if name == "**":
        return list(value.modules())
    if isinstance(value, list | tuple):
        return list(value) if name == "*" else [value[int(name)]] if int(name) < len(value) else []
    if isinstance(value, Mapping) and name in value:
        return [value[name]]
    return [getattr(value, name)] if hasattr(value, name) else []


# -- other code ----------------------------------------------------------------------------------------------------------------------------

_EDITED: dict[FunctionType, str] = {}
"""The sources of installed functions that are edited at the moment, as they are now: one function may be edited twice."""


def source_of(function: Method) -> str:
    """The source of a function as it is now, without indentation. Raises OSError or TypeError where there is none."""
    plain = inspect.unwrap(function)
    assert isinstance(plain, FunctionType)
    return _EDITED.get(plain) or textwrap.dedent(inspect.getsource(plain))


def remade(function: Method, source: str | ast.Module) -> FunctionType:
    """A function of another source (or its tree) in the original's globals and file, at the original's lines."""
    plain = inspect.unwrap(function)
    assert isinstance(plain, FunctionType)
    tree = ast.parse(source) if isinstance(source, str) else source
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef)
    definition.decorator_list = []
    ast.increment_lineno(ast.fix_missing_locations(tree), plain.__code__.co_firstlineno - 1)
    space: dict[str, Any] = {}
    exec(compile(tree, inspect.getfile(plain), "exec"), plain.__globals__, space)
    made = space[definition.name]
    assert isinstance(made, FunctionType)
    made.__qualname__ = plain.__qualname__
    return made


def replaced_once(source: str, old: str, new: str, name: str) -> str:
    """The source with ``new`` for ``old``. Raises ValueError, which says the ``name``, where ``old`` is not there once."""
    head, tail = _split_once(source, old, name)
    return head + new + tail


def _split_once(source: str, text: str, name: str) -> tuple[str, str]:
    if source.count(text) != 1:
        raise ValueError(f"{text!r} is {source.count(text)} times in {name}, not once.")
    head, _, tail = source.partition(text)
    return head, tail


def reclassed(module: Any, **methods: Method) -> None:
    """Gives one module other methods, in a class of the same name."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__, **methods})


@dataclass(frozen=True)
class Rewrite:
    """A method of the modules at a path, of the class ``of`` where one is named: made anew from its source after ``rewrite``."""

    path: str
    method: str
    rewrite: Callable[[str, str], str | ast.Module]
    """Is given the source and a name for messages."""
    of: str = ""

    def __call__(self, models: Any, undo: ExitStack) -> None:
        for module in _found(self.path, [one for one in modules_at(models, self.path) if self.of in ("", type(one).__name__)]):
            function = getattr(type(module), self.method)
            name = f"{type(module).__name__}.{self.method}"
            reclassed(module, **{self.method: remade(function, self.rewrite(source_of(function), name))})


def replacement(path: str, method: str, old: str, new: str, of: str = "") -> Rewrite:
    """A method with one piece of its source replaced."""
    return Rewrite(path, method, lambda source, name: replaced_once(source, old, new, name), of)


@dataclass(frozen=True)
class Edit:
    """A function of an installed package with some pieces of its source replaced, the place's code first.

    The function's code object is exchanged, so that every name under which the function is known runs the edited one.
    """

    place: Place
    new: str
    more: tuple[tuple[str, str], ...] = ()

    def __call__(self, models: Any, undo: ExitStack) -> None:
        named: Any = importlib.import_module(self.place.module)
        for name in self.place.function.split("."):
            named = inspect.getattr_static(named, name)
        function = inspect.unwrap(named)
        before = source = source_of(function)
        for old, new in ((self.place.code, self.new), *self.more):
            source = replaced_once(source, old, new, f"{self.place.module}.{self.place.function}")
        made = remade(function, source)
        undo.callback(_exchange, named, function, before, function.__code__, function.__defaults__)
        _exchange(named, function, source, made.__code__, made.__defaults__)


def _exchange(named: Any, function: FunctionType, source: str, code: Any, defaults: tuple[Any, ...] | None) -> None:
    _EDITED[function], function.__code__, function.__defaults__ = source, code, defaults
    getattr(named, "cache_clear", lambda: None)()


# -- other values --------------------------------------------------------------------------------------------------------------------------


def _found(path: str, found: list[Any]) -> list[Any]:
    if not found:
        raise LookupError(f"No module at {path!r}.")
    return found


@dataclass(frozen=True)
class Assign:
    """An attribute or parameter of the modules at a path becomes ``value(models, module, what it was)``.

    Without ``needs_module`` nothing happens where no module is at the path, as when its model was not loaded.
    """

    path: str
    name: str
    value: Callable[[Any, Any, Any], Any]
    needs_module: bool = True

    def __call__(self, models: Any, undo: ExitStack) -> None:
        found = modules_at(models, self.path)
        for module in _found(self.path, found) if self.needs_module else found:
            setattr(module, self.name, self.value(models, module, getattr(module, self.name)))


def expression(text: str) -> Callable[[Any, Any, Any], Any]:
    """The value of an expression in which ``models``, ``module``, ``old`` and the globals of the module's own code are known."""

    def value(models: Any, module: Any, old: Any) -> Any:
        return eval(text, {**vars(sys.modules[type(module).__module__]), "models": models, "module": module, "old": old})

    return value


@dataclass(frozen=True)
class Drop:
    """A parameter of the modules at a path is not there."""

    path: str
    name: str

    def __call__(self, models: Any, undo: ExitStack) -> None:
        for module in _found(self.path, modules_at(models, self.path)):
            module.pop(self.name)


@dataclass(frozen=True)
class Swap:
    """Two parameters, each a module's path and a name, have changed places."""

    first: tuple[str, str]
    second: tuple[str, str]

    def __call__(self, models: Any, undo: ExitStack) -> None:
        (one, first), (other, second) = ((module_at(models, path), name) for path, name in (self.first, self.second))
        values = getattr(one, first), getattr(other, second)
        setattr(one, first, values[1])
        setattr(other, second, values[0])


# -- changes as tables ---------------------------------------------------------------------------------------------------------------------


def place_of(function: str, code: str) -> Place:
    """The place that a table names: ``package.module:Class.method`` and the code there."""
    module, _, name = function.partition(":")
    return Place(module, name, code)


def changes_of(entry: Mapping[str, Any], *, needs_module: bool = True) -> list[Change]:
    """What an entry of a table changes, as its keys say.

    ``old``, ``new``: a piece of source and what it becomes, in ``method`` (``__call__`` by default) of the modules ``at`` a path or
    several (of the class ``of``), or in the ``function`` of a package; ``more``: further pairs, in the same function; ``elsewhere``:
    triples of function, old and new. ``assign``: expressions by the path of what they are assigned to. ``drop``: the path of a parameter.
    ``swap``: the paths of two.
    """
    found: list[Change] = []
    if "function" in entry and "new" in entry:
        found.append(Edit(place_of(entry["function"], entry["old"]), entry["new"], tuple((old, new) for old, new in entry.get("more", ()))))
    elif "new" in entry:
        paths = [entry["at"]] if isinstance(entry["at"], str) else entry["at"]
        given = entry.get("method", "__call__"), entry["old"], entry["new"], entry.get("of", "")
        found += [replacement(path, *given) for path in paths]
    found += [Edit(place_of(function, old), new) for function, old, new in entry.get("elsewhere", ())]
    for path, text in entry.get("assign", {}).items():
        found.append(Assign(*_owner(path), expression(text), needs_module))
    found += [Drop(*_owner(path)) for path in entry.get("drop", ())]
    if "swap" in entry:
        first, second = entry["swap"]
        found.append(Swap(_owner(first), _owner(second)))
    return found


def _owner(path: str) -> tuple[str, str]:
    """A module's path and the name of something in the module."""
    owner, _, name = path.rpartition(".")
    return owner, name
