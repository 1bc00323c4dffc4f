"""What a session patches: modules, named methods, functional sites, random functions; and what of it was never used."""

from __future__ import annotations

import fnmatch
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from tracediff.errors import CaptureError
from tracediff.observe import exchange
from tracediff.observe.adapters import registry
from tracediff.observe.exchange import original_of
from tracediff.observe.patching import functions as own_functions
from tracediff.observe.patching import wrappers
from tracediff.observe.patching.places import Found, Observation, Place
from tracediff.observe.patching.wrappers import Wrap
from tracediff.observe.types import Adapter, Function, Node
from tracediff.site import escape

_BASES = frozenset({"builtins", "typing", "abc", "collections", "functools"})
"""Packages whose classes are bases of models without being the model's own code."""

_UNSEARCHED = _BASES | {"numpy", "scipy", "tracediff"} | sys.stdlib_module_names - {"__main__"}
"""Packages that, like the frameworks, take no functions of others over by name."""

_OWN = Function(None, "", "", is_own=True)
"""How calls of a method of the model's own code are shown: by position and keyword, as those of modules."""


class Patched(NamedTuple):
    """An attribute to exchange, and what makes the wrapper that takes its place."""

    owner: Any
    attribute: str
    wrap: Wrap


class Installation:
    """Puts a session's wrappers in; `take_out` puts everything back as it was, also after a failure half-way."""

    def __init__(self, session: Observation, *, methods: Iterable[str], functions: Iterable[str], compile: bool | None) -> None:
        self._session = session
        self._adapter: Adapter = session.adapter
        self._is_compiling = session.adapter.compiling()
        self._methods = {pattern: list[str]() for pattern in _texts(methods, "methods")}
        self._functions = {pattern: set[str]() for pattern in _texts(functions, "functions")}
        self._imported: set[str] = set()
        self._intercepted: set[tuple[int, str, str]] = set()
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
        of_framework = [*self._functional_sites(), *self._random_functions()]
        self._imported = set(sys.modules)
        found = {pattern: own_functions.functions_like(pattern, self._adapter.is_function) for pattern in self._functions}
        packages = _packages(modules) | {function.package for matched in found.values() for function in matched}
        self._everywhere(of_framework, lambda package: package in packages)
        self._own(found, models)

    def _functional_sites(self) -> Iterator[Patched]:
        for function in self._adapter.functions():
            yield Patched(function.owner, function.attribute, wrappers.function_wrapper(function, self._is_compiling))

    def _random_functions(self) -> Iterator[Patched]:
        for random in self._adapter.randoms():
            yield Patched(random.owner, random.attribute, wrappers.random_wrapper(random, self._is_compiling))

    def _own(self, found: Mapping[str, Sequence[Found]], models: Sequence[Node]) -> None:
        """Patches the functions and methods that the patterns found: methods of modules in the modules, others wherever they are held."""
        every = {function.key: function for function in itertools.chain.from_iterable(found.values())}
        longer = own_functions.longer_names(every.values())
        sites: dict[tuple[int, str], set[str]] = {}
        wraps: list[Patched] = []
        for key, function in every.items():
            if function.kind == "method" and own_functions.is_of_framework(function.owner):
                sites[key] = set(self._methods_of_modules(function, models))
                continue
            site = _site_of(function, longer.get(id(function.function), ""))
            wraps.append(Patched(function.owner, function.attribute, wrappers.own_wrapper(function, site, self._is_compiling)))
            sites[key] = {f"!{escape(name)}" for name in (site.name, site.longer)}
        for pattern, matched in found.items():
            self._functions[pattern].update(*(sites[function.key] for function in matched))
        unsearched = _UNSEARCHED | registry.packages()
        self._everywhere(wraps, lambda package: package not in unsearched, layer="own")

    def _methods_of_modules(self, found: Found, models: Sequence[Node]) -> Iterator[str]:
        """Patches a method of a class of modules for each of its modules; yields the sites. Calls of modules are seen anyway."""
        for node in models:
            is_there = isinstance(node.module, found.owner) and wrappers.provider_of(type(node.module), found.attribute) is found.owner
            if is_there and not node.is_inside and self._adapter.entry(node.module) != found.attribute:
                yield self._method(node, found.attribute, is_own=True)

    def take_out(self) -> None:
        """Puts everything back."""
        self._undo.close()

    def unused(self, sites: Iterable[str]) -> Iterator[str]:
        """The patterns that matched nothing, or nothing that was called; ``sites`` are those that were seen."""
        seen = set(sites)
        called = {"!" + site.rpartition("!")[2] for site in seen if "!" in site}
        for pattern, methods in self._methods.items():
            if not methods:
                yield f"method {pattern!r}: there is none"
            elif not seen.intersection(methods):
                yield f"method {pattern!r}: never called"
        for pattern, functions in self._functions.items():
            if not functions:
                near = ", ".join(map(repr, own_functions.nearest(pattern, self._adapter.is_function)))
                hint = f" (nearest: {near})" if near else ""
                yield f"functions {pattern!r}: there are none in the modules that were imported when the run began{hint}"
            elif not functions & (called | seen):
                yield f"functions {pattern!r}: never called"
            yield from self._imported_later(pattern)

    def _imported_later(self, pattern: str) -> Iterator[str]:
        matched = own_functions.functions_like(pattern, self._adapter.is_function)
        for module in sorted({found.module for found in matched} - self._imported):
            yield f"functions {pattern!r}: {module!r} was imported during the run, and its functions were not seen; import it before"

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

    def _method(self, node: Node, name: str, *, is_own: bool = False) -> str:
        if node.is_model and self._adapter.entry(node.module) == name:
            return node.path  # the module's own calls, which are seen anyway
        site = f"{node.path}:{escape(name)}"
        key = id(node.module), name, site
        if key not in self._intercepted:
            self._intercepted.add(key)
            self._intercept(node.module, name, Place(self._session, site, node.path, _OWN if is_own else None, is_method=True))
        return site

    def _intercept(self, instance: Any, attribute: str, place: Place) -> None:
        """Makes calls of an object's attribute lead to a place."""
        owner = wrappers.owner_of(instance, attribute)
        if owner is not instance:
            self._undo.callback(wrappers.tidy, instance, attribute)
        wrappers.track(instance, attribute, place)
        self._undo.callback(wrappers.untrack, instance, attribute, place)
        self._patch(owner, attribute, wrappers.entrance(owner, attribute, self._is_compiling))

    def _everywhere(self, wraps: Iterable[Patched], is_searched: Callable[[str], bool], *, layer: str = "") -> None:
        """Patches attributes, and every other name under which a searched package or a model holds the same value."""
        by_value: dict[int, tuple[Any, Wrap]] = {}
        for owner, name, wrap in wraps:
            held = getattr(owner, name)
            original = original_of(getattr(held, "__func__", held) if isinstance(owner, type) else held)
            self._session.watched.add(id(original))
            if not isinstance(owner, type) or layer != "own":
                by_value[id(original)] = by_value[id(held)] = owner, wrap
            self._patch(owner, name, wrap, layer)
        for holder in self._holders(is_searched) if by_value else ():
            for alias, value in list(vars(holder).items()):
                same = by_value.get(id(value))
                if same is not None and same[0] is not holder:
                    self._patch(holder, alias, same[1], layer)

    def _holders(self, is_searched: Callable[[str], bool]) -> Iterator[Any]:
        """What may hold a function under another name: the modules of the packages that are searched, and the models' own."""
        for module in list(sys.modules.values()):
            if isinstance(module, ModuleType) and is_searched(module.__name__.partition(".")[0]):
                yield module
        yield from (node.module for node in self._session.nodes if hasattr(node.module, "__dict__"))

    def _patch(self, owner: Any, name: str, wrap: Wrap, layer: str = "") -> None:
        self._undo.callback(exchange.release, exchange.apply(owner, name, wrap, layer=layer))


def methods_of(instance: Any, pattern: str) -> list[str]:
    """The methods of an object with a name, or matching a glob; a glob leaves out private ones and those of a framework's base class."""
    if not any(mark in pattern for mark in "*?["):
        method = getattr(instance, pattern, None)
        return [pattern] if callable(method) and wrappers.can_intercept(instance, pattern) else []
    foreign = _BASES | registry.packages()
    own = [cls for cls in type(instance).__mro__ if cls.__module__.partition(".")[0] not in foreign]
    names = dict.fromkeys(name for cls in own for name, value in vars(cls).items() if isinstance(value, FunctionType))
    return [name for name in names if not name.startswith("_") and fnmatch.fnmatchcase(name, pattern)]


def _site_of(found: Found, longer: str) -> Function:
    """The functional site that a function of the model's own code is."""
    return Function(found.owner, found.attribute, found.name, own_functions.arguments_of(found), is_own=True, longer=longer)


def _packages(modules: Iterable[Any]) -> set[str]:
    """The top-level packages that the modules' classes come from, without the frameworks' own."""
    packages = {base.__module__.partition(".")[0] for module in modules for base in type(module).__mro__}
    return packages - _BASES - registry.packages()


def _texts(patterns: Iterable[str], what: str) -> list[str]:
    if isinstance(patterns, str):
        raise CaptureError(f"{what} is a list of patterns, not one text; write {what}=[{patterns!r}].")
    return list(patterns)
