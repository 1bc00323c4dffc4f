"""How one module of a port is exchanged, and how other code comes to stand where its caller called it.

MLX keeps modules as items of a dict and looks them up as attributes. So a module stays where it is in the tree while its caller finds
an `Around` under its name: code of the caller, in no module, that calls the module in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mlx import nn

from tracediff.runs.planting import reclassed

Call = Callable[..., Any]


class Around:
    """What a caller finds in the place of a module: ``call(module, *args, **kwargs)``; everything else is the module's own."""

    def __init__(self, module: Any, call: Call) -> None:
        self._module, self._call = module, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._module, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._module, name)

    def __getitem__(self, key: Any) -> Any:
        return self._module[key]

    def __contains__(self, key: Any) -> bool:
        return key in self._module

    def __iter__(self) -> Iterator[Any]:
        return iter(self._module)

    def __len__(self) -> int:
        return len(self._module)


def _plainly(module: Any, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)


@dataclass(frozen=True)
class Spot:
    """Where a module is held: its parent, and the keys that lead from there: a name, then an index for each list or dict in between."""

    parent: Any
    keys: tuple[Any, ...]
    module: Any
    path: str
    above: str
    """The parent's path."""

    @property
    def name(self) -> str:
        return str(self.keys[0])

    def put(self, module: Any) -> None:
        """Another module takes this one's place in the tree."""
        _holder(self.parent, self.keys)[self.keys[-1]] = module

    def take_out(self) -> None:
        """The module leaves the tree; its caller still finds it, as code."""
        self.aside(_plainly)
        holder = _holder(self.parent, self.keys)
        del holder[self.keys[-1]]

    def aside(self, call: Call) -> None:
        """The caller's code calls the module by ``call(module, *args, **kwargs)``; where the module is in the tree stays."""
        shadow = vars(self.parent)
        if len(self.keys) == 1:
            shadow[self.name] = Around(shadow.get(self.name, self.module), call)
            return
        if self.name not in shadow:
            shadow[self.name] = _opaque(self.parent[self.name])
        holder = _holder(shadow, self.keys)
        holder[self.keys[-1]] = Around(holder[self.keys[-1]], call)


def _holder(start: Any, keys: tuple[Any, ...]) -> Any:
    held = start
    for key in keys[:-1]:
        held = held[key]
    return held


def _opaque(value: Any) -> Any:
    """A copy of a list or dict of modules in which each stands as code: what reads attributes does not find them twice."""
    if isinstance(value, nn.Module):
        return Around(value, _plainly)
    if isinstance(value, list | tuple):
        return [_opaque(one) for one in value]
    if isinstance(value, dict):
        return {key: _opaque(one) for key, one in value.items()}
    return value


def spots(port: nn.Module, path: str = "") -> Iterator[Spot]:
    """Every module below the root, with where it is held; each once, callers before what lies in them."""
    seen: set[int] = set()

    def inside(parent: nn.Module, above: str) -> Iterator[Spot]:
        for name in list(parent):
            for keys, module in _held(parent[name], (name,)):
                if id(module) not in seen:
                    seen.add(id(module))
                    place = ".".join(map(str, keys))
                    spot = Spot(parent, keys, module, f"{above}.{place}" if above else place, above)
                    yield spot
                    yield from inside(module, spot.path)

    return inside(port, path)


def _held(value: Any, keys: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], nn.Module]]:
    if isinstance(value, nn.Module):
        yield keys, value
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from _held(one, (*keys, index))
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _held(one, (*keys, key))


# -- what a run passes on ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """One call of a module in a plain run: the objects that came in and out are kept, so that their identity tells the flow."""

    path: str
    caller: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def x(self) -> Any:
        """The first argument; None where there is none."""
        return self.args[0] if self.args else None


def flow(port: nn.Module, run: Callable[[], Any]) -> list[Seen]:
    """The calls of a plain run, in the order in which they return."""
    found: list[Seen] = []
    stack = [""]
    kinds = [(module, type(module)) for module in port.modules()]
    for path, module in port.named_modules():
        reclassed(module, __call__=_watching(path, type(module).__call__, stack, found))
    try:
        run()
    finally:
        for module, kind in kinds:
            module.__class__ = kind
    return found


def _watching(path: str, original: Call, stack: list[str], found: list[Seen]) -> Call:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        caller = stack[-1]
        stack.append(path)
        try:
            result = original(self, *args, **kwargs)
        finally:
            stack.pop()
        found.append(Seen(path, caller, args, kwargs, result))
        return result

    return __call__
