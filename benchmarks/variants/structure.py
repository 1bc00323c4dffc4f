"""The same port cut into other modules: wrapped, nested, moved, dissolved, split, fused."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from benchmarks.variants import layers
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


# -- split and fused -----------------------------------------------------------------------------------------------------------------------


def is_wide(spot: Spot) -> bool:
    return layers.is_layer(spot.module) and spot.module["weight"].shape[0] > 1


def is_deep(spot: Spot) -> bool:
    return layers.is_layer(spot.module) and spot.module["weight"].shape[-1] > 1


def split(pair: Any, chance: random.Random) -> Made | None:
    """Some layers are modules of two halves, whose outputs are concatenated."""
    return made(at_some(pair, chance, is_wide, lambda spot: spot.put(layers.Concatenated(spot.module))))


def split_in_caller(pair: Any, chance: random.Random) -> Made | None:
    """Some layers are two, whose outputs their caller concatenates."""

    def change(spot: Spot) -> None:
        parts = layers.halves(spot.module)
        spot.take_out()
        stem = f"{spot.name}_{'_'.join(map(str, spot.keys[1:]))}"
        for number, part in enumerate(parts):
            spot.parent[f"{stem}{number}"] = part
        names = [f"{stem}{number}" for number in range(2)]
        spot.aside(lambda module, x: mx.concatenate([spot.parent[name](x) for name in names], axis=-1))

    places = at_some(pair, chance, lambda spot: is_wide(spot) and len(spot.keys) == 1, change)
    return Made(", ".join(places), {path: f"{path}_0" for path in places}, frozenset(places)) if places else None


def summed(pair: Any, chance: random.Random) -> Made | None:
    """Some layers are modules of two, each of half the input's channels, whose outputs are added up."""
    return made(at_some(pair, chance, is_deep, lambda spot: spot.put(layers.Summed(spot.module))))


def fused(pair: Any, chance: random.Random) -> Made | None:
    """Linear layers that take in the same are one, whose output their caller splits: queries, keys and values; gate and up."""
    trial, found = Trial(pair), []
    together: dict[tuple[str, int], list[str]] = defaultdict(list)
    for one in flow(pair.port, pair.run_port):
        group = together[one.caller, id(one.x)]
        if one.x is not None and len(one.args) == 1 and one.path not in group:
            group.append(one.path)
    for (caller, _), paths in together.items():
        held = {spot.path: spot for spot in spots(pair.port)}
        group = [
            held[path]
            for path in paths
            if path in held and is_linear(held[path]) and len(held[path].keys) == 1 and held[path].above == caller
        ]
        if len(group) > 1 and trial.keeps(lambda group=group: _fuse(group)):
            found.append([spot.path for spot in group])
    kept = {path: f"{group[0]}_fused" for group in found for path in group}
    return Made("; ".join(" + ".join(group) for group in found), kept, frozenset(kept)) if found else None


def _fuse(group: list[Spot]) -> None:
    parent, key = group[0].parent, f"{group[0].name}_fused"
    weights = [spot.module["weight"] for spot in group]
    biases = [layers.bias_of(spot.module) for spot in group]
    bias = None
    if any(one is not None for one in biases):
        bias = mx.concatenate([mx.zeros(w.shape[:1], w.dtype) if b is None else b for b, w in zip(biases, weights, strict=True)])
    parent[key] = layers.with_weights(group[0].module, mx.concatenate(weights), bias)
    ends = np.cumsum([weight.shape[0] for weight in weights])
    memory: list[Any] = [None, None]

    def whole(x: Any) -> Any:
        if memory[0] is not x:
            memory[:] = [x, parent[key](x)]
        return memory[1]

    for spot, end, weight in zip(group, ends.tolist(), weights, strict=True):
        spot.take_out()
        spot.aside(lambda module, x, part=slice(end - weight.shape[0], end): whole(x)[..., part])


def transposed(pair: Any, chance: random.Random) -> Made | None:
    """Some linear layers store their weight as (in, out), in a module of another class."""
    return made(at_some(pair, chance, is_linear, lambda spot: spot.put(layers.Transposed(spot.module))))


def convolutions(pair: Any, chance: random.Random) -> Made | None:
    """Some linear layers are convolutions of kernel 1."""
    return made(at_some(pair, chance, is_linear, lambda spot: spot.put(layers.as_convolution(spot.module))))


def linears(pair: Any, chance: random.Random) -> Made | None:
    """Some convolutions of kernel 1 are linear layers."""
    return made(at_some(pair, chance, lambda spot: layers.is_pointwise(spot.module), lambda spot: spot.put(layers.as_linear(spot.module))))


def channels_first(pair: Any, chance: random.Random) -> Made | None:
    """Some layers are handed their channels on axis 1, in a module that turns them, and their caller turns them back."""

    def change(spot: Spot) -> None:
        spot.put(layers.ChannelsFirst(spot.module))
        inner = spot.parent
        for key in spot.keys:
            inner = inner[key]
        spot.aside(lambda module, x: mx.moveaxis(inner(mx.moveaxis(x, -1, 1)), 1, -1))

    return made(at_some(pair, chance, lambda spot: layers.is_layer(spot.module), change), lambda path: f"{path}.inner")


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
    Transformation("split in halves", split),
    Transformation("split in the caller", split_in_caller),
    Transformation("split over the input", summed),
    Transformation("fused projections", fused),
    Transformation("weights stored transposed", transposed),
    Transformation("linear as convolution", convolutions),
    Transformation("convolution as linear", linears),
    Transformation("channels first", channels_first),
)
