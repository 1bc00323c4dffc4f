"""The modules of a model as a list: each with its path, its aliases and its children, in the order in which they are held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import FunctionType, MethodType, ModuleType
from typing import Any

from tracediff.errors import CaptureError
from tracediff.observe.types import Adapter, Keys, Node
from tracediff.site import escape, is_below, join

DEEPEST = 6


def discover(models: Any, adapter: Adapter, *, compile: bool | None = None) -> list[Node]:
    """All modules below ``models``: a module, a tuple, list or mapping of them, or an object whose attributes are modules.

    Raises CaptureError where there is none.
    """
    nodes = modules_below(models, adapter, compile=compile)
    if models is not None and not any(node.is_model for node in nodes):
        raise CaptureError(
            f"No {adapter.name} module found in {type(models).__name__!r}; give a module, a tuple or mapping of modules, "
            "or an object whose attributes are modules."
        )
    return nodes


def modules_below(models: Any, adapter: Adapter, *, compile: bool | None = None) -> list[Node]:
    """As `discover`, but nothing where there is none."""
    tree = _Tree(adapter, compile)
    if models is not None:
        tree.add(models, "", None)
        tree.spread_aliases()
    return tree.nodes


def path_of(keys: Keys) -> str:
    """The path that a module's keys make."""
    return join(*(escape(str(key), dots=True) for key in keys))


class _Tree:
    def __init__(self, adapter: Adapter, compile: bool | None) -> None:
        self.adapter = adapter
        self.compile = compile
        self.nodes: list[Node] = []
        self._known: dict[int, Node] = {}
        self._walked: dict[int, Any] = {}

    def add(self, value: Any, path: str, parent: Node | None) -> None:
        if parent is not None and path not in parent.children:
            parent.children.append(path)
        known = self._known.get(id(value))
        if known is not None:
            if path not in (known.path, *known.aliases):
                known.aliases.append(path)
            return
        node = Node(path, value, self.adapter.is_model(value))
        if parent is not None and parent.hidden:
            node.hidden, node.is_inside = parent.hidden, True
        elif node.is_model:
            node.hidden = self.adapter.hidden(value, compile=self.compile)
        self._known[id(value)] = node
        self.nodes.append(node)
        for keys, child in self._held(value):
            self.add(child, join(path, path_of(keys)), node)

    def spread_aliases(self) -> None:
        """Gives the modules below a module with aliases the aliases that follow."""
        for node, aliases in [(node, list(node.aliases)) for node in self.nodes if node.aliases]:
            for alias in aliases:
                if is_below(alias, node.path):
                    continue  # the module holds a module that holds it
                for inner in self.nodes:
                    if inner is not node and is_below(inner.path, node.path):
                        other = join(alias, inner.path[len(node.path) :].lstrip("."))
                        if other not in (inner.path, *inner.aliases):
                            inner.aliases.append(other)

    def _held(self, value: Any) -> Iterator[tuple[Keys, Any]]:
        if not self.adapter.is_model(value):
            yield from self._modules_in(value, (), 2)
            return
        yield from self.adapter.children(value)
        for name, held in list(vars(value).items()):
            if is_object(held):  # such as a tokenizer with a network of its own
                yield from self._modules_in(held, (name,), 1)

    def _modules_in(self, value: Any, keys: Keys, objects: int) -> Iterator[tuple[Keys, Any]]:
        """The modules in nested lists, tuples, mappings and ``objects`` levels of plain objects, with the keys that lead to them."""
        for key, part in self._parts(value, objects):
            if type(part) in _ATOMS:
                continue
            if self.adapter.is_model(part):
                yield (*keys, key), part
            elif len(keys) < DEEPEST:
                yield from self._modules_in(part, (*keys, key), objects - is_object(value))

    def _parts(self, value: Any, objects: int) -> list[tuple[Any, Any]]:
        if issubclass(type(value), Mapping):
            return list(value.items())
        if issubclass(type(value), (list, tuple)):
            return list(enumerate(value))
        if objects <= 0 or not is_object(value) or id(value) in self._walked or self.adapter.is_tensor(value):
            return []
        self._walked[id(value)] = value
        return list(object.__getattribute__(value, "__dict__").items())


_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})


def is_object(value: Any) -> bool:
    """Whether a value is an instance of some Python class, with attributes; containers, classes, functions and modules are not.

    The type is asked, not the value: configurations exist whose every attribute access is slow or has effects.
    """
    return _makes_objects(type(value))  # type: ignore[arg-type]  # a metaclass may leave out the hash


@lru_cache(maxsize=1024)
def _makes_objects(kind: type) -> bool:
    """As `is_object`, of the instances of a class."""
    if kind in _ATOMS or issubclass(kind, (type, ModuleType, FunctionType, MethodType, Mapping, list, tuple, set)):
        return False
    return getattr(kind, "__dictoffset__", 0) != 0
