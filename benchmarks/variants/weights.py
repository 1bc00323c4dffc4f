"""The same function by other weights: sets permuted, factors and gains folded into what follows or precedes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from benchmarks.variants import layers
from benchmarks.variants.structure import at_some
from benchmarks.variants.surgery import Spot, flow, spots
from benchmarks.variants.variant import Made, Transformation, Trial

HEADS = ("n_heads", "num_heads", "heads", "n_head", "num_attention_heads", "nhead", "num_head")
GROUPS = ("n_kv_heads", "num_key_value_heads", "num_kv_heads", "kv_heads", "groups")
SCALES = ("scale", "scaling", "attn_scale", "softmax_scale")
NORMS = (nn.LayerNorm, nn.RMSNorm)


def rows(layer: Any, order: np.ndarray) -> None:
    """A layer's outputs in another order."""
    layer.weight = layer["weight"][mx.array(order)]
    if "bias" in layer:
        layer.bias = layer["bias"][mx.array(order)]


def columns(layer: Any, order: np.ndarray) -> None:
    """A layer whose inputs come in another order."""
    layer.weight = mx.take(layer["weight"], mx.array(order), axis=-1)


def scaled_rows(layer: Any, factor: float) -> None:
    layer.weight = layer["weight"] * factor
    if "bias" in layer:
        layer.bias = layer["bias"] * factor


def families(pair: Any) -> Iterator[tuple[Spot | None, list[Spot]]]:
    """Each module with the layers among its children, and among theirs where one of those holds two or more."""
    every = list(spots(pair.port))
    by_parent: dict[str, list[Spot]] = {}
    for spot in every:
        by_parent.setdefault(spot.above, []).append(spot)
    for path, children in by_parent.items():
        own = [spot for spot in children if layers.is_layer(spot.module)]
        below = [inner for spot in children for inner in by_parent.get(spot.path, ()) if layers.is_layer(inner.module)]
        yield next((spot for spot in every if spot.path == path), None), own if len(own) > 1 else [*own, *below]


def _width(spot: Spot) -> int:
    return int(spot.module["weight"].shape[-1])


def _outputs(spot: Spot) -> int:
    return int(spot.module["weight"].shape[0])


def _drawn(chance: random.Random, size: int) -> np.ndarray:
    order = np.arange(size)
    while size > 1 and np.array_equal(order, np.arange(size)):
        order = np.array(chance.sample(range(size), size))
    return order


# -- sets ----------------------------------------------------------------------------------------------------------------------------------


def hidden_permuted(pair: Any, chance: random.Random) -> Made | None:
    """The hidden units of some perceptrons are in another order, in the layers before and in the one behind."""
    trial, found = Trial(pair), []
    for _, own in families(pair):
        for last in own:
            before = [one for one in own if one is not last and _outputs(one) == _width(last)]
            for group in ([before] if len(before) > 1 else []) + [[one] for one in before]:
                order = _drawn(chance, _width(last))
                if trial.keeps(
                    lambda group=group, last=last, order=order: [columns(last.module, order), *(rows(one.module, order) for one in group)]
                ):
                    found.append([*(one.path for one in group), last.path])
                    break
        if len(found) >= 3:
            break
    return _listed(found)


def heads_permuted(pair: Any, chance: random.Random) -> Made | None:
    """The heads of some attentions are in another order, in the projections and in the output's."""
    trial, found = Trial(pair), []
    for owner, own in families(pair):
        inside = [
            pair.port if owner is None else owner.module,
            *(spot.module for spot in spots(pair.port, "") if owner and spot.above == owner.path),
        ]
        stated = next((getattr(one, name) for one in inside for name in HEADS if isinstance(getattr(one, name, None), int)), 0)
        shared = next((getattr(one, name) for one in inside for name in GROUPS if isinstance(getattr(one, name, None), int)), 0)
        counts = [(stated, shared or stated)] if stated else [(4, 4), (4, 2), (2, 2)]
        ways = [(last, *count) for last in reversed(own) for count in counts] if len(own) > (1 if stated else 2) and len(found) < 3 else []
        for last, heads, groups in ways:
            others = [one for one in own if one is not last]
            if (
                heads > 1
                and heads % groups == 0
                and _width(last) % heads == 0
                and _permutes_heads(trial, last, others, heads, groups, chance)
            ):
                found.append([*(one.path for one in others), last.path])
                break
    return _listed(found)


def _permutes_heads(trial: Trial, last: Spot, others: Sequence[Spot], heads: int, groups: int, chance: random.Random) -> bool:
    size, each = _width(last) // heads, heads // groups
    by_group = _drawn(chance, groups) if groups > 1 else np.arange(1)
    within = [_drawn(chance, each) for _ in range(groups)]
    by_head = np.concatenate([group * each + within[group] for group in by_group])
    wide, narrow = _blocks(by_head, size), _blocks(by_group, size)
    orders = {len(wide): wide, len(narrow): narrow, len(wide) + 2 * len(narrow): _one_after_another(wide, narrow, narrow)}
    fit = [one for one in others if _outputs(one) in orders]

    def change() -> None:
        columns(last.module, wide)
        for one in fit:
            rows(one.module, orders[_outputs(one)])

    return bool(fit) and not np.array_equal(wide, np.arange(len(wide))) and trial.keeps(change)


def _blocks(order: np.ndarray, size: int) -> np.ndarray:
    return (order[:, None] * size + np.arange(size)).reshape(-1)


def _one_after_another(*orders: np.ndarray) -> np.ndarray:
    ends = np.cumsum([0, *map(len, orders)])
    return np.concatenate([order + start for order, start in zip(orders, ends, strict=False)])


def experts_permuted(pair: Any, chance: random.Random) -> Made | None:
    """The experts of some mixtures are in another order, and the router's outputs with them."""
    trial, found = Trial(pair), []
    for owner, own in families(pair):
        inside = list(spots(pair.port if owner is None else owner.module))
        for router in (one for one in own if type(one.module) is nn.Linear):
            experts = _outputs(router)
            stacked = [
                one.module
                for one in inside
                if "weight" in one.module and one.module["weight"].ndim == 3 and len(one.module["weight"]) == experts
            ]
            lists = [one for one in _lists(pair.port if owner is None else owner.module) if len(one) == experts]
            order = _drawn(chance, experts)

            def change(router: Spot = router, stacked: list[Any] = stacked, lists: list[Any] = lists, order: np.ndarray = order) -> None:
                rows(router.module, order)
                for module in stacked:
                    rows(module, order)
                for one in lists:
                    one[:] = [one[place] for place in order.tolist()]

            if (stacked or lists) and len(found) < 3 and [router.path] not in found and trial.keeps(change):
                found.append([router.path])
    return _listed(found)


def _lists(module: nn.Module) -> list[list[Any]]:
    return [value for value in module.values() if isinstance(value, list) and all(isinstance(one, nn.Module) for one in value)]


def channels_exchanged(pair: Any, chance: random.Random) -> Made | None:
    """Some layers give their channels in another order, which their caller's code puts right."""

    def change(spot: Spot) -> None:
        order = _drawn(chance, _outputs(spot))
        rows(spot.module, order)
        spot.aside(lambda module, x: mx.take(module(x), mx.array(np.argsort(order)), axis=-1))

    places = at_some(pair, chance, lambda spot: layers.is_layer(spot.module) and _outputs(spot) > 1, change)
    return _listed([[path] for path in places])


def channels_taken_in_otherwise(pair: Any, chance: random.Random) -> Made | None:
    """Some layers are handed their channels in another order, their weights with them."""

    def change(spot: Spot) -> None:
        order = _drawn(chance, _width(spot))
        columns(spot.module, order)
        spot.aside(lambda module, x: module(mx.take(x, mx.array(order), axis=-1)))

    places = at_some(pair, chance, lambda spot: layers.is_layer(spot.module) and _width(spot) > 1, change)
    return _listed([[path] for path in places])


# -- factors -------------------------------------------------------------------------------------------------------------------------------


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
    return _listed(found)


def _fold_scale(module: Any, name: str, layer: Any) -> None:
    scaled_rows(layer, getattr(module, name))
    setattr(module, name, 1.0)


def factor_moved(pair: Any, chance: random.Random) -> Made | None:
    """Some layers are larger by a factor, and the layer behind smaller by it."""
    trial, found = Trial(pair), []
    for _, own in families(pair):
        couples = list(itertools.permutations(own, 2))
        for first, second in chance.sample(couples, len(couples)):
            factor = chance.choice([3.0, 0.3, 5.0])
            if len(found) < 3 and trial.keeps(lambda first=first, second=second, factor=factor: _shift(first, second, factor)):
                found.append([first.path, second.path])
                break
    return _listed(found)


def _shift(first: Spot, second: Spot, factor: float) -> None:
    scaled_rows(first.module, factor)
    second.module.weight = second.module["weight"] / factor


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
    return _listed(found)


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
    return _listed(found)


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
    return _listed([[path] for path in places])


def _listed(found: Sequence[Sequence[str]]) -> Made | None:
    if not found:
        return None
    return Made("; ".join(" + ".join(group) for group in found), {}, frozenset(path for group in found for path in group))


TRANSFORMATIONS = (
    Transformation("hidden units permuted", hidden_permuted),
    Transformation("heads permuted", heads_permuted),
    Transformation("experts permuted", experts_permuted),
    Transformation("channels exchanged behind", channels_exchanged),
    Transformation("channels exchanged before", channels_taken_in_otherwise),
    Transformation("attention scale folded", scale_folded),
    Transformation("factor moved between layers", factor_moved),
    Transformation("norm gain folded", gain_folded),
    Transformation("batch norm folded", statistics_folded),
    Transformation("zero bias added", biased),
)
