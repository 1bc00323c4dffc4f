"""What a session patches: modules, named methods, functional sites, random functions; and what of it was never used."""

from __future__ import annotations

import fnmatch
import inspect
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from tracediff.capture import patch, wrappers
from tracediff.capture.adapter import Adapter, Function
from tracediff.capture.tree import Node
from tracediff.capture.wrappers import Place, Wrap
from tracediff.errors import CaptureError
from tracediff.site import escape

if TYPE_CHECKING:
    from tracediff.capture.session import Session

_FRAMEWORKS = frozenset({"torch", "mlx", "builtins", "typing", "abc", "collections", "functools"})


_Patched = tuple[Any, str, Wrap]


class Installation:
    """Puts a session's wrappers in; `take_out` puts everything back as it was, also after a failure half-way."""

    def __init__(self, session: Session, *, methods: Iterable[str], functions: Iterable[str], compile: bool | None) -> None:
        self._session = session
        self._adapter: Adapter = session.adapter
        self._is_compiling = session.adapter.compiling()
        self._methods = {pattern: list[str]() for pattern in _texts(methods, "methods")}
        self._functions = {pattern: list[str]() for pattern in _texts(functions, "functions")}
        self._compile = compile
        self._undo = ExitStack()

    def put_in(self) -> None:
        """Patches everything that is to be observed."""
        models = [node for node in self._session.nodes if node.is_model]
        modules = [node.module for node in models]
        self._undo.enter_context(self._adapter.switches(modules, self._session.warn, compile=self._compile))
        for node in models:
            self._module(node)
        for pattern, sites in self._methods.items():
            sites += self._methods_like(pattern)
        wraps: list[_Patched] = []
        for function in self._adapter.functions():
            wraps.append((function.owner, function.attribute, wrappers.function_wrapper(function, self._is_compiling)))
        for random in self._adapter.randoms():
            wraps.append((random.owner, random.attribute, wrappers.random_wrapper(random, self._is_compiling)))
        packages = _packages(modules)
        for pattern, sites in self._functions.items():
            for module, name, function in functions_like(pattern):
                wrap = wrappers.function_wrapper(Function(module, name, function.__qualname__), self._is_compiling)
                wraps.append((module, name, wrap))
                packages.add(module.__name__.partition(".")[0])
                sites.append(escape(function.__qualname__))
        self._everywhere(wraps, packages)

    def take_out(self) -> None:
        """Puts everything back."""
        self._undo.close()

    def unused(self, sites: Iterable[str]) -> Iterator[str]:
        """The patterns that matched nothing, or nothing that was called; ``sites`` are those that were seen."""
        seen = set(sites)
        called = {site.rpartition("!")[2] for site in seen if "!" in site}
        for pattern, methods in self._methods.items():
            if not methods:
                yield f"method {pattern!r}: there is none"
            elif not seen.intersection(methods):
                yield f"method {pattern!r}: never called"
        for pattern, functions in self._functions.items():
            if not functions:
                yield f"functions {pattern!r}: there are none in the modules that were imported when the run began"
            elif not called.intersection(functions):
                yield f"functions {pattern!r}: never called"

    def _module(self, node: Node) -> None:
        entry = None if node.is_inside else self._adapter.entry(node.module)
        if entry is not None:
            self._intercept(node.module, entry, Place(self._session, node.path, node.path))

    def _methods_like(self, pattern: str) -> list[str]:
        """Patches the methods that ``path:method`` names, and returns their sites."""
        path, mark, name = pattern.rpartition(":")
        if not mark:
            raise CaptureError(f"{pattern!r} is no method; write 'path:method', for instance 'flow:inference' (globs are allowed).")
        sites = []
        for node in self._session.nodes:
            if any(fnmatch.fnmatchcase(own, path) for own in (node.path, *node.aliases)) and not node.is_inside:
                sites += [self._method(node, method) for method in methods_of(node.module, name)]
        return sites

    def _method(self, node: Node, name: str) -> str:
        if node.is_model and self._adapter.entry(node.module) == name:
            return node.path  # the module's own calls, which are seen anyway
        site = f"{node.path}:{escape(name)}"
        self._intercept(node.module, name, Place(self._session, site, node.path, is_method=True))
        return site

    def _intercept(self, instance: Any, attribute: str, place: Place) -> None:
        """Makes calls of an object's attribute lead to a place."""
        owner = wrappers.owner_of(instance, attribute)
        if owner is not instance:
            self._undo.callback(wrappers.tidy, instance, attribute)
        wrappers.track(instance, attribute, place)
        self._undo.callback(wrappers.untrack, instance, attribute, place)
        self._patch(owner, attribute, wrappers.entrance(owner, attribute, self._is_compiling))

    def _everywhere(self, wraps: Iterable[_Patched], packages: set[str]) -> None:
        """Patches attributes, and the names under which modules of these packages imported their values."""
        by_value: dict[int, tuple[Any, Wrap]] = {}
        for owner, name, wrap in wraps:
            original = wrappers.original_of(getattr(owner, name))
            by_value[id(original)] = owner, wrap
            self._session.watched.add(id(original))
            self._patch(owner, name, wrap)
        for module in list(sys.modules.values()):
            if isinstance(module, ModuleType) and module.__name__.partition(".")[0] in packages:
                for alias, value in list(vars(module).items()):
                    found = by_value.get(id(value))
                    if found is not None and found[0] is not module:
                        self._patch(module, alias, found[1])

    def _patch(self, owner: Any, name: str, wrap: Wrap) -> None:
        self._undo.callback(patch.release, patch.apply(owner, name, wrap))


def methods_of(instance: Any, pattern: str) -> list[str]:
    """The methods of an object with a name, or matching a glob; a glob leaves out private ones and those of a framework's base class."""
    if not any(mark in pattern for mark in "*?["):
        method = getattr(instance, pattern, None)
        return [pattern] if callable(method) and wrappers.can_intercept(instance, pattern) else []
    own = [cls for cls in type(instance).__mro__ if cls.__module__.partition(".")[0] not in _FRAMEWORKS]
    names = dict.fromkeys(name for cls in own for name, value in vars(cls).items() if isinstance(value, FunctionType))
    return [name for name in names if not name.startswith("_") and fnmatch.fnmatchcase(name, pattern)]


def functions_like(pattern: str) -> list[tuple[ModuleType, str, Any]]:
    """The Python functions whose dotted name matches a glob, in the modules that are imported: (module, name, function)."""
    wanted = pattern.replace("**", "*")
    found = []
    for module in list(sys.modules.values()):
        if not isinstance(module, ModuleType) or not fnmatch.fnmatchcase(module.__name__.partition(".")[0], wanted.partition(".")[0]):
            continue
        for name, value in list(vars(module).items()):
            function = wrappers.original_of(value)
            is_own = inspect.isfunction(function) and function.__module__ == module.__name__
            if is_own and fnmatch.fnmatchcase(f"{module.__name__}.{name}", wanted):
                found.append((module, name, function))
    return found


def _packages(modules: Iterable[Any]) -> set[str]:
    """The top-level packages that the modules' classes come from, without the frameworks' own."""
    return {base.__module__.partition(".")[0] for module in modules for base in type(module).__mro__} - _FRAMEWORKS


def _texts(patterns: Iterable[str], what: str) -> list[str]:
    if isinstance(patterns, str):
        raise CaptureError(f"{what} is a list of patterns, not one text; write {what}=[{patterns!r}].")
    return list(patterns)
