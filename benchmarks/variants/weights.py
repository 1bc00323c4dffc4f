"""The same function by other weights: hidden units, heads, experts and channels in another order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from benchmarks.variants import layers
from benchmarks.variants.structure import at_some
from benchmarks.variants.surgery import Spot, spots
from benchmarks.variants.variant import Made, Transformation, Trial

HEADS = ("n_heads", "num_heads", "heads", "n_head", "num_attention_heads", "nhead", "num_head")
GROUPS = ("n_kv_heads", "num_key_value_heads", "num_kv_heads", "kv_heads", "groups")


def rows(layer: Any, order: np.ndarray) -> None:
    """A layer's outputs in another order."""
    layer.weight = layer["weight"][mx.array(order)]
    if "bias" in layer:
        layer.bias = layer["bias"][mx.array(order)]


def columns(layer: Any, order: np.ndarray) -> None:
    """A layer whose inputs come in another order."""
    layer.weight = mx.take(layer["weight"], mx.array(order), axis=-1)


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
                places = [*(one.path for one in group), last.path]
                order = _drawn(chance, _width(last))
                is_new = places not in found and len(found) < 3
                alone = partial(columns, last.module, order)
                if is_new and trial.keeps(partial(_permute, [one.module for one in group], last.module, order), alone):
                    found.append(places)
                    break
    return listed(found)


def _permute(before: Sequence[Any], last: Any, order: np.ndarray) -> None:
    columns(last, order)
    for layer in before:
        rows(layer, order)


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
    return listed(found)


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

    return bool(fit) and not np.array_equal(wide, np.arange(len(wide))) and trial.keeps(change, lambda: columns(last.module, wide))


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
    return listed(found)


def _lists(module: nn.Module) -> list[list[Any]]:
    return [value for value in module.values() if isinstance(value, list) and all(isinstance(one, nn.Module) for one in value)]


def channels_exchanged(pair: Any, chance: random.Random) -> Made | None:
    """Some layers give their channels in another order, which their caller's code puts right."""

    def change(spot: Spot) -> None:
        order = _drawn(chance, _outputs(spot))
        rows(spot.module, order)
        spot.aside(lambda module, x: mx.take(module(x), mx.array(np.argsort(order)), axis=-1))

    places = at_some(pair, chance, lambda spot: layers.is_layer(spot.module) and _outputs(spot) > 1, change)
    return listed([[path] for path in places])


def channels_taken_in_otherwise(pair: Any, chance: random.Random) -> Made | None:
    """Some layers are handed their channels in another order, their weights with them."""

    def change(spot: Spot) -> None:
        order = _drawn(chance, _width(spot))
        columns(spot.module, order)
        spot.aside(lambda module, x: module(mx.take(x, mx.array(order), axis=-1)))

    places = at_some(pair, chance, lambda spot: layers.is_layer(spot.module) and _width(spot) > 1, change)
    return listed([[path] for path in places])


def listed(found: Sequence[Sequence[str]]) -> Made | None:
    if not found:
        return None
    return Made("; ".join(" + ".join(group) for group in found), {}, frozenset(path for group in found for path in group))


TRANSFORMATIONS = (
    Transformation("hidden units permuted", hidden_permuted),
    Transformation("heads permuted", heads_permuted),
    Transformation("experts permuted", experts_permuted),
    Transformation("channels exchanged behind", channels_exchanged),
    Transformation("channels exchanged before", channels_taken_in_otherwise),
)
