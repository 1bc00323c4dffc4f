"""The same port under other names: anonymous, exchanged among siblings, defined in another order."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

from benchmarks.variants.variant import Made, Transformation, Trial

Names = Mapping[str, Mapping[str, str]]
"""The new names of a module's items by their old ones, by the module's path."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def anonymised(pair: Any, chance: random.Random) -> Made | None:
    """Modules, parameters of the port's own classes, and those classes have meaningless names."""
    names = {}
    for path, module in pair.port.named_modules():
        own = () if is_built_in(module) else [key for key, value in module.items() if _is_named(value)]
        names[path] = {key: _word(chance) for key in own}
    return _with_names(pair, names, "all modules", lambda: _word(chance).capitalize())


def exchanged(pair: Any, chance: random.Random) -> Made | None:
    """The names of siblings have changed places, each class's own: what was `q_proj` is called `o_proj`."""
    names = {}
    for path, module in pair.port.named_modules():
        own = [key for key, value in module.items() if isinstance(value, nn.Module)] if not is_built_in(module) else []
        names[path] = dict(zip(own, chance.sample(own, len(own)), strict=True))
    if all(old == new for own in names.values() for old, new in own.items()):
        return None
    return _with_names(pair, names, "the children of every module")


def _with_names(pair: Any, names: Names, text: str, kind: Callable[[], str] = str) -> Made | None:
    moved, modules = _renamed_paths(pair.port, names), dict(pair.port.named_modules())

    def change() -> None:
        for path, own in names.items():
            if own:
                renamed(modules[path], own, kind())

    return Made(text, moved) if Trial(pair).keeps(change) else None


def defined_backwards(pair: Any, chance: random.Random) -> Made | None:
    """Every module's children and parameters were defined in the reverse order."""
    return _with_order(pair, lambda names: names[::-1])


def defined_in_any_order(pair: Any, chance: random.Random) -> Made | None:
    """Every module's children and parameters were defined in an order drawn at random."""
    return _with_order(pair, lambda names: chance.sample(names, len(names)))


def _with_order(pair: Any, order: Callable[[list[str]], list[str]]) -> Made | None:
    def change() -> None:
        for module in pair.port.modules():
            items = dict(module)
            module.clear()
            dict.update(module, {key: items[key] for key in order(list(items))})

    return Made("all modules") if Trial(pair).keeps(change) else None


# -- how ---------------------------------------------------------------------------------------------------------------------------------


def renamed(module: Any, names: Mapping[str, str], kind: str = "") -> None:
    """One module keeps its items under other names; its code goes on to use the old ones."""
    base, items = type(module), dict(module)
    known = dict(names)

    def __getattr__(self: Any, name: str) -> Any:  # noqa: N807
        return base.__getattr__(self, known.get(name, name))  # type: ignore[attr-defined]

    def __getitem__(self: Any, name: str) -> Any:  # noqa: N807
        return dict.__getitem__(self, known.get(name, name))

    def __contains__(self: Any, name: object) -> bool:  # noqa: N807
        return dict.__contains__(self, known.get(str(name), name))

    module.clear()
    dict.update(module, {names.get(key, key): value for key, value in items.items()})
    members = {"__getattr__": __getattr__}
    if not set(names.values()) & set(names):  # where names were exchanged, what walks the tree must find each under its new one
        members |= {"__getitem__": __getitem__, "__contains__": __contains__}
    module.__class__ = type(
        kind or base.__name__, (base,), {"__module__": base.__module__, "__qualname__": kind or base.__qualname__, **members}
    )


def is_built_in(module: nn.Module) -> bool:
    """Whether a module is MLX's own: its code reads its items under the names that it has."""
    return type(module).__module__.startswith("mlx.nn")


def _is_named(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_named, value))
    if isinstance(value, dict) and not isinstance(value, nn.Module):
        return any(map(_is_named, value.values()))
    return isinstance(value, nn.Module | mx.array)


def _word(chance: random.Random) -> str:
    return "".join(chance.choices(LETTERS, k=6))


def _renamed_paths(port: nn.Module, names: Names) -> dict[str, str]:
    """The new path of every module, by its old one."""
    found: dict[str, str] = {"": ""}
    paths = [path for path, _ in port.named_modules()]
    for path in sorted(paths, key=lambda one: one.count(".")):
        if not path:
            continue
        above = path.rpartition(".")[0]
        while above not in found or above not in names:
            above = above.rpartition(".")[0]
        first, *rest = path[len(above) + 1 if above else 0 :].split(".")
        new = ".".join([names[above].get(first, first), *rest])
        found[path] = f"{found[above]}.{new}" if found[above] else new
    return found


TRANSFORMATIONS = (
    Transformation("names anonymised", anonymised),
    Transformation("names exchanged", exchanged),
    Transformation("defined backwards", defined_backwards),
    Transformation("defined in any order", defined_in_any_order),
)
