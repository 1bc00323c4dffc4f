"""Layers split, fused, and replaced by layers of another kind that do the same."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.variants import layers
from benchmarks.variants.structure import at_some, is_linear, made
from benchmarks.variants.surgery import Spot, flow, spots
from benchmarks.variants.variant import Made, Transformation, Trial


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
        names = _beside(spot, layers.halves(spot.module))
        spot.aside(lambda module, x: mx.concatenate([spot.parent[name](x) for name in names], axis=-1))

    return _made_parts(at_some(pair, chance, lambda spot: is_wide(spot) and len(spot.keys) == 1, change))


def _beside(spot: Spot, parts: list[Any]) -> list[str]:
    """Puts layers in the place of one; their names in the module that holds them."""
    spot.take_out()
    names = [f"{spot.name}_{number}" for number in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        spot.parent[name] = part
    return names


def _made_parts(places: list[str]) -> Made | None:
    return Made(", ".join(places), {path: f"{path}_0" for path in places}, frozenset(places)) if places else None


def summed(pair: Any, chance: random.Random) -> Made | None:
    """Some layers are modules of two, each of half the input's channels, whose outputs are added up."""
    return made(at_some(pair, chance, is_deep, lambda spot: spot.put(layers.Summed(spot.module))))


def summed_in_caller(pair: Any, chance: random.Random) -> Made | None:
    """Some layers are two, each of half the input's channels, whose outputs their caller adds up."""

    def change(spot: Spot) -> None:
        cut, names = spot.module["weight"].shape[-1] // 2, _beside(spot, layers.addends(spot.module))
        spot.aside(lambda module, x: spot.parent[names[0]](x[..., :cut]) + spot.parent[names[1]](x[..., cut:]))

    return _made_parts(at_some(pair, chance, lambda spot: is_deep(spot) and len(spot.keys) == 1, change))


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
    Transformation("split in halves", split),
    Transformation("split in the caller", split_in_caller),
    Transformation("split over the input", summed),
    Transformation("added up in the caller", summed_in_caller),
    Transformation("fused projections", fused),
    Transformation("weights stored transposed", transposed),
    Transformation("linear as convolution", convolutions),
    Transformation("convolution as linear", linears),
    Transformation("channels first", channels_first),
)
