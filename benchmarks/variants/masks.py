"""Masks in other forms: booleans, minus infinity, large negative numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.variants.formulas import Call, lower, rewritten
from benchmarks.variants.surgery import Spot, flow, spots
from benchmarks.variants.variant import Made, Transformation, Trial
from tracediff.runs.planting import reclassed

Form = Callable[[mx.array, mx.Dtype], mx.array]
"""What a mask becomes: told what may be seen, as booleans, and the dtype of the numbers it is for."""


def masked_by(form: Form, touched: set[str]) -> Call:
    """Attention with its mask in another form."""

    def call(original: Call, q: mx.array, k: mx.array, v: mx.array, *, mask: Any = None, **more: Any) -> mx.array:
        if isinstance(mask, str):
            mask = lower(q.shape[2], k.shape[2])
        if mask is not None:
            before, mask = mask, form(mask if mask.dtype == mx.bool_ else mask > -1, q.dtype)
            if before.dtype != mask.dtype or not bool((before == mask).all()):
                touched.add("attention")
        return original(q, k, v, mask=mask, **more)

    return call


def additive(low: float) -> Form:
    return lambda seen, dtype: mx.where(seen, mx.array(0, dtype), mx.array(low, dtype))


def masks(form: Form) -> Callable[[Any, random.Random], Made | None]:
    """A transformation: masks have another form in what attention is called with, and in what modules hand one another."""

    def make(pair: Any, chance: random.Random) -> Made | None:
        touched: set[str] = set()
        inner = rewritten({"mx.fast.scaled_dot_product_attention": masked_by(form, touched)})(pair, chance)
        places = _handed_otherwise(pair, form)
        if not places and not touched:
            return None
        text = ", ".join([*touched, *places[:3], *(["..."] if len(places) > 3 else [])])
        return Made(text, {}, around=inner.around if inner and touched else ())

    return make


def _handed_otherwise(pair: Any, form: Form) -> list[str]:
    """The outermost modules that are handed a mask, and now are handed it in another form."""
    return _at_masked(pair, lambda value: _is_other(value, form), lambda spot: _hand(spot, lambda value: _formed(value, form)))


def _at_masked(pair: Any, is_wanted: Callable[[Any], bool], change: Callable[[Spot], None]) -> list[str]:
    """Makes a change at the outermost modules that are handed such a mask; where it was kept."""
    trial, found = Trial(pair), list[str]()
    calls = flow(pair.port, pair.run_port)
    masked = {one.path for one in calls if any(map(is_wanted, (*one.args, *one.kwargs.values())))}
    for spot in list(spots(pair.port)):
        is_inside = any(spot.path.startswith(f"{path}.") for path in found)
        if spot.path in masked and not is_inside and trial.keeps(partial(change, spot)):
            found.append(spot.path)
    return found


def _hand(spot: Spot, change: Callable[[Any], Any]) -> None:
    """The caller's code changes what it hands to a module."""

    def call(module: Any, *args: Any, **kwargs: Any) -> Any:
        return module(*map(change, args), **{key: change(one) for key, one in kwargs.items()})

    spot.aside(call)


def turned(pair: Any, chance: random.Random) -> Made | None:
    """Modules are handed what must not be seen in the place of what may, and their own code turns it round."""

    def change(spot: Spot) -> None:
        plain = type(spot.module).__call__
        lows: list[float] = []

        def turn(value: Any) -> Any:
            if not is_mask(value):
                return value
            if value.dtype != mx.bool_:
                lows.append(float(value.min()))
            return mx.logical_not(value) if value.dtype == mx.bool_ else value < -1

        def turn_back(value: Any, dtype: mx.Dtype) -> Any:
            if not isinstance(value, mx.array) or value.dtype != mx.bool_:
                return value
            return mx.where(value, mx.array(lows[-1], dtype), mx.array(0, dtype)) if lows else mx.logical_not(value)

        def __call__(self: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            back = partial(turn_back, dtype=x.dtype)
            return plain(self, x, *map(back, args), **{key: back(one) for key, one in kwargs.items()})

        reclassed(spot.module, __call__=__call__)
        _hand(spot, turn)

    places = _at_masked(pair, is_mask, change)
    return Made(", ".join([*places[:3], *(["..."] if len(places) > 3 else [])])) if places else None


def is_mask(value: Any) -> bool:
    """Whether an array says what may be seen: booleans, or zeros and very low numbers."""
    if not isinstance(value, mx.array) or value.ndim < 2:
        return False
    if value.dtype == mx.bool_:
        return True
    is_low = value <= -1e4
    return mx.issubdtype(value.dtype, mx.floating) and bool(((value == 0) | is_low).all()) and bool(is_low.any())


def _formed(value: Any, form: Form) -> Any:
    if not is_mask(value):
        return value
    return form(value, mx.float32) if value.dtype == mx.bool_ else form(value > -1, value.dtype)


def _is_other(value: Any, form: Form) -> bool:
    if not is_mask(value):
        return False
    formed = _formed(value, form)
    return formed.dtype != value.dtype or not bool((formed == value).all())


TRANSFORMATIONS = (
    Transformation("masks of the other polarity", turned),
    Transformation("masks as booleans", masks(lambda seen, dtype: seen)),
    Transformation("masks of minus infinity", masks(additive(-np.inf))),
    Transformation("masks of -1e9", masks(additive(-1e9))),
    Transformation("masks of -1e4", masks(additive(-1e4))),
)
