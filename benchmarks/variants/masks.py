"""Masks in other forms: booleans, minus infinity, large negative numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.variants.formulas import Call, lower, rewritten
from benchmarks.variants.surgery import Spot, flow, spots
from benchmarks.variants.variant import Made, Transformation, Trial

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
    trial, found = Trial(pair), []
    calls = flow(pair.port, pair.run_port)
    masked = {one.path for one in calls if any(_is_other(value, form) for value in (*one.args, *one.kwargs.values()))}
    for spot in list(spots(pair.port)):
        if (
            spot.path in masked
            and not any(spot.path.startswith(f"{path}.") for path in found)
            and trial.keeps(lambda spot=spot: _hand(spot, form))
        ):
            found.append(spot.path)
    return found


def _hand(spot: Spot, form: Form) -> None:
    def call(module: Any, *args: Any, **kwargs: Any) -> Any:
        return module(*(_formed(one, form) for one in args), **{key: _formed(one, form) for key, one in kwargs.items()})

    spot.aside(call)


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
    Transformation("masks as booleans", masks(lambda seen, dtype: seen)),
    Transformation("masks of minus infinity", masks(additive(-np.inf))),
    Transformation("masks of -1e9", masks(additive(-1e9))),
    Transformation("masks of -1e4", masks(additive(-1e4))),
)
