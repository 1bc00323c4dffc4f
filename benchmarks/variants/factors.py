"""Factors, gains and offsets folded into the weights of what follows or precedes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
from mlx import nn

from benchmarks.variants import layers
from benchmarks.variants.structure import at_some
from benchmarks.variants.surgery import Spot, flow, spots
from benchmarks.variants.variant import Made, Transformation, Trial
from benchmarks.variants.weights import families, listed

SCALES = ("scale", "scaling", "attn_scale", "softmax_scale")
NORMS = (nn.LayerNorm, nn.RMSNorm)


def scaled_rows(layer: Any, factor: float) -> None:
    layer.weight = layer["weight"] * factor
    if "bias" in layer:
        layer.bias = layer["bias"] * factor


def scale_folded(pair: Any, chance: random.Random) -> Made | None:
    """The scale of some attentions is folded into the projection of the queries."""
    trial, found = Trial(pair), []
    for owner, own in families(pair):
        module = pair.port if owner is None else owner.module
        name = next((name for name in SCALES if isinstance(getattr(module, name, None), float)), "scale")
        scale = getattr(module, name, 1.0)
        if not isinstance(scale, float) or scale == 1.0 or len(found) >= 3:
            continue
        for one in own:
            if trial.keeps(partial(_fold_scale, module, name, one.module)):
                found.append([one.path])
                break
    return listed(found)


def _fold_scale(module: Any, name: str, layer: Any) -> None:
    scaled_rows(layer, getattr(module, name))
    setattr(module, name, 1.0)


def factor_moved(pair: Any, chance: random.Random) -> Made | None:
    """Some layers are larger by a factor, and the layer behind smaller by it."""
    trial, found = Trial(pair), []
    for _, own in families(pair):
        couples = list(itertools.permutations(own, 2))
        for first, second in chance.sample(couples, len(couples)):
            places = [first.path, second.path]
            is_new = places not in found and len(found) < 3
            if is_new and trial.keeps(*_shift(first, second, chance.choice([3.0, 0.3, 5.0]))):
                found.append(places)
                break
    return listed(found)


def _shift(first: Spot, second: Spot, factor: float) -> Iterator[Callable[[], None]]:
    """What makes one layer larger and another smaller, and then either alone."""

    def smaller() -> None:
        second.module.weight = second.module["weight"] / factor

    larger = partial(scaled_rows, first.module, factor)
    yield lambda: (larger(), smaller())[1]
    yield from (larger, smaller)


def gain_folded(pair: Any, chance: random.Random) -> Made | None:
    """The gain and the offset of some norms are folded into the linear layers behind, and are one and zero."""
    trial, found = Trial(pair), []
    calls = flow(pair.port, pair.run_port)
    held = {spot.path: spot for spot in spots(pair.port)}
    callers = {one.caller for one in calls}
    fit = {path for path, spot in held.items() if type(spot.module) in NORMS and "weight" in spot.module}
    norms = {one.path: one.result for one in calls if one.path in fit}
    for path, result in chance.sample(list(norms.items()), len(norms)):
        behind = list(dict.fromkeys(one.path for one in calls if one.x is result and one.path not in callers))
        is_fit = behind and all(one in held and type(held[one].module) is nn.Linear for one in behind)
        if (
            is_fit
            and len(found) < 3
            and trial.keeps(lambda path=path, behind=behind: _fold(held[path].module, [held[one].module for one in behind]))
        ):
            found.append([path, *behind])
    return listed(found)


def _fold(norm: Any, behind: Sequence[Any]) -> None:
    for layer in behind:
        if "bias" in norm:
            offset = layer["weight"] @ norm["bias"]
            layer.bias = layer["bias"] + offset if "bias" in layer else offset
        layer.weight = layer["weight"] * norm["weight"]
    norm.weight = mx.ones_like(norm["weight"])
    if "bias" in norm:
        norm.bias = mx.zeros_like(norm["bias"])


def statistics_folded(pair: Any, chance: random.Random) -> Made | None:
    """Some batch norms are folded into the layer before, and are not there."""
    trial, found = Trial(pair), []
    calls = flow(pair.port, pair.run_port)
    held = {spot.path: spot for spot in spots(pair.port)}
    for one in calls:
        if one.path in held and isinstance(held[one.path].module, nn.BatchNorm) and len(found) < 3:
            made = [other.path for other in calls if other.result is one.x and other.path in held]
            before = next((path for path in made if layers.is_layer(held[path].module)), None)
            if before and trial.keeps(lambda one=one, before=before: _fold_statistics(held[one.path], held[before].module)):
                found.append([before, one.path])
    return listed(found)


def _fold_statistics(spot: Spot, layer: Any) -> None:
    norm = spot.module
    gain = norm["weight"] * mx.rsqrt(norm["running_var"] + norm.eps)
    layer.weight = layer["weight"] * gain.reshape(-1, *[1] * (layer["weight"].ndim - 1))
    before = layer["bias"] if "bias" in layer else mx.zeros_like(gain)
    layer.bias = (before - norm["running_mean"]) * gain + norm["bias"]
    spot.take_out()
    spot.aside(lambda module, x: x)


def biased(pair: Any, chance: random.Random) -> Made | None:
    """Some layers without a bias have one of zeros."""

    def change(spot: Spot) -> None:
        spot.module.bias = mx.zeros(spot.module["weight"].shape[:1])

    places = at_some(pair, chance, lambda spot: layers.is_layer(spot.module) and "bias" not in spot.module, change)
    return listed([[path] for path in places])


TRANSFORMATIONS = (
    Transformation("attention scale folded", scale_folded),
    Transformation("factor moved between layers", factor_moved),
    Transformation("norm gain folded", gain_folded),
    Transformation("batch norm folded", statistics_folded),
    Transformation("zero bias added", biased),
)
