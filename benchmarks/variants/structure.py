"""The same port cut into other modules: wrapped, nested, moved, dissolved."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from benchmarks.variants.surgery import Spot, flow, spots
from benchmarks.variants.variant import Made, Transformation, Trial


class Wrapper(nn.Module):
    """A module around another one, which does nothing but call it."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self["inner"] = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self["inner"](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self[name] if name in self else getattr(self["inner"], name)


class Stack(nn.Module):
    """A module in the place of a list of modules."""

    def __init__(self, modules: list[Any]) -> None:
        super().__init__()
        self.items_ = modules

    def __iter__(self) -> Iterator[Any]:
        return iter(self["items_"])

    def __len__(self) -> int:
        return len(self["items_"])

    def __getitem__(self, key: Any) -> Any:
        return dict.__getitem__(self, key) if isinstance(key, str) else dict.__getitem__(self, "items_")[key]


def called(pair: Any) -> set[str]:
    """The paths of the modules that run."""
    return {one.path for one in flow(pair.port, pair.run_port)}


def at_some(pair: Any, chance: random.Random, is_fit: Callable[[Spot], bool], change: Callable[[Spot], Any], most: int = 3) -> list[str]:
    """Makes a change at some places drawn among those that run and fit; the places at which the answer stayed what it was."""
    trial, running = Trial(pair), called(pair)
    found: list[str] = []
    fit = [spot.path for spot in spots(pair.port) if spot.path in running and is_fit(spot)]
    for path in chance.sample(fit, len(fit)):
        if len(found) == most:
            break
        if any(path.startswith(f"{one}.") or one.startswith(f"{path}.") for one in found):
            continue
        spot = next((one for one in spots(pair.port) if one.path == path), None)
        if spot is not None and trial.keeps(lambda spot=spot: change(spot)):
            found.append(path)
    return found


def made(places: Sequence[str], moved: Callable[[str], str] = str) -> Made | None:
    return Made(", ".join(places), {path: moved(path) for path in places}) if places else None


def is_composite(spot: Spot) -> bool:
    return any(True for _ in spots(spot.module))


def is_linear(spot: Spot) -> bool:
    return type(spot.module) is nn.Linear


# -- around and above ----------------------------------------------------------------------------------------------------------------------


def wrapped(pair: Any, chance: random.Random) -> Made | None:
    """Some modules lie in a module that only calls them."""
    return made(at_some(pair, chance, lambda spot: True, lambda spot: spot.put(Wrapper(spot.module))), lambda path: f"{path}.inner")


def nested(pair: Any, chance: random.Random) -> Made | None:
    """Lists of modules are modules that hold a list."""
    trial, found = Trial(pair), {}
    for path, module in pair.port.named_modules():
        for key, value in list(module.items()):
            is_list = isinstance(value, list) and value and all(isinstance(one, nn.Module) for one in value)
            if is_list and trial.keeps(lambda module=module, key=key, value=value: module.__setitem__(key, Stack(value))):
                place = f"{path}.{key}" if path else key
                found[place] = f"{place}.items_"
    return Made(", ".join(found), found) if found else None


def moved(pair: Any, chance: random.Random) -> Made | None:
    """Some modules are children of another module than the one that calls them."""
    homes: dict[str, str] = {}

    def change(spot: Spot) -> None:
        others = [one for one in spots(pair.port) if is_composite(one) and not f"{one.path}.".startswith(f"{spot.path}.")]
        home = chance.choice([pair.port, *(one.module for one in others if one.module is not spot.parent)])
        key = f"other_{len(homes)}"
        spot.take_out()
        home[key] = spot.module
        homes[spot.path] = next(path for path, module in pair.port.named_modules() if module is spot.module)

    places = at_some(pair, chance, lambda spot: len(spot.keys) == 1, change, most=2)
    return Made(", ".join(places), {path: homes[path] for path in places}) if places else None


def dissolved(pair: Any, chance: random.Random) -> Made | None:
    """Some modules are code of their caller, which holds their children itself."""
    homes: dict[str, str] = {}

    def change(spot: Spot) -> None:
        spot.take_out()
        for key in list(spot.module):
            spot.parent[f"{spot.name}_{key}"] = spot.module[key]
        homes[spot.path] = f"{spot.above}.{spot.name}_" if spot.above else f"{spot.name}_"

    def is_fit(spot: Spot) -> bool:
        return len(spot.keys) == 1 and is_composite(spot) and not any(isinstance(value, mx.array) for value in spot.module.values())

    places = at_some(pair, chance, is_fit, change, most=2)
    return (
        Made(", ".join(places), {f"{path}.": homes[path] for path in places} | {path: path.rpartition(".")[0] for path in places})
        if places
        else None
    )


def tail_moved(pair: Any, chance: random.Random) -> Made | None:
    """The last step of a module is taken by its caller, which holds that module instead."""
    return _end_moved(pair, chance, "tail")


def head_moved(pair: Any, chance: random.Random) -> Made | None:
    """The first step of a module is taken by its caller, which holds that module instead."""
    return _end_moved(pair, chance, "head")


def _end_moved(pair: Any, chance: random.Random, end: str) -> Made | None:
    calls = flow(pair.port, pair.run_port)
    ends: dict[str, str] = {}
    for one in calls:
        for inner in calls:
            is_end = inner.result is one.result if end == "tail" else len(one.args) > 0 and inner.x is one.x and len(inner.args) == 1
            if inner.caller == one.path and inner.path != one.path and is_end and len(inner.args) == 1:
                ends[one.path] = inner.path
    homes: dict[str, str] = {}

    def change(spot: Spot) -> None:
        last = next(one for one in spots(spot.module, spot.path) if one.path == ends[spot.path])
        last.take_out()
        last.aside(lambda module, x: x)
        key = f"{spot.name}_{'_'.join(map(str, spot.keys[1:]))}{end}"
        spot.parent[key] = last.module
        homes[last.path] = f"{spot.above}.{key}" if spot.above else key
        if end == "tail":
            spot.aside(lambda module, *args, **kwargs: last.module(module(*args, **kwargs)))
        else:
            spot.aside(lambda module, x, *args, **kwargs: module(last.module(x), *args, **kwargs))

    def is_fit(spot: Spot) -> bool:
        return spot.path in ends and len(_keys_below(spot.path, ends[spot.path])) == 1

    places = at_some(pair, chance, is_fit, change, most=2)
    found = {ends[path]: homes[ends[path]] for path in places}
    return Made(", ".join(found), found) if places else None


def _keys_below(path: str, inner: str) -> list[str]:
    return inner[len(path) + 1 :].split(".")


def identities(pair: Any, chance: random.Random) -> Made | None:
    """Behind some modules stands one that returns what it is handed, as dropout does in a run."""

    def change(spot: Spot) -> None:
        key = f"{spot.name}_{'_'.join(map(str, spot.keys[1:]))}drop"
        spot.parent[key] = nn.Dropout(0.1).eval()
        spot.aside(lambda module, *args, **kwargs: spot.parent[key](module(*args, **kwargs)))

    return made(at_some(pair, chance, lambda spot: True, change))


def inlined(pair: Any, chance: random.Random) -> Made | None:
    """Some linear layers are not called: their caller multiplies by their weight itself."""

    def change(spot: Spot) -> None:
        def product(module: Any, x: mx.array) -> mx.array:
            y = x @ module["weight"].T
            return y + module["bias"] if "bias" in module else y

        spot.aside(product)

    places = at_some(pair, chance, is_linear, change)
    return Made(", ".join(places), {path: path.rpartition(".")[0] for path in places}) if places else None


def called_twice(pair: Any, chance: random.Random) -> Made | None:
    """Some modules are called twice on the same, and the first result is thrown away."""

    def change(spot: Spot) -> None:
        def twice(module: Any, *args: Any, **kwargs: Any) -> Any:
            module(*args, **kwargs)
            return module(*args, **kwargs)

        spot.aside(twice)

    return made(at_some(pair, chance, lambda spot: True, change, most=2))


TRANSFORMATIONS = (
    Transformation("wrapped", wrapped),
    Transformation("lists nested", nested),
    Transformation("moved to another parent", moved),
    Transformation("dissolved into the caller", dissolved),
    Transformation("tail moved to the caller", tail_moved),
    Transformation("head moved to the caller", head_moved),
    Transformation("identities inserted", identities),
    Transformation("linear layers inlined", inlined),
    Transformation("called twice", called_twice),
)
