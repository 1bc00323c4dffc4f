"""Causes inside an attention call: it is computed again from q, k, v and the mask, under one change at a time.

softmax(q k^T * scale + mask) v, with q (B, H, T, D), k and v (B, G, S, D), H a multiple of G.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from tracediff.dtype import Array
from tracediff.explain.scene import Scene, Suspect

_MOST = 2**24  # scores


@dataclass(frozen=True, slots=True)
class _Call:
    """One attention call: what it is computed from, and over which axis the softmax runs."""

    q: Array
    k: Array
    v: Array
    mask: Array | None
    scale: float
    axis: int = -1


def detect(scene: Scene) -> Iterable[Suspect]:
    """The one change to the call that turns the reference's output into the port's."""
    if scene.blame != "module" or not scene.site.endswith("!attention") or not scene.is_numeric:
        return
    reference, _ = scene.tensors()
    for call in _calls(scene):
        made = _computed(call, reference.shape)
        if made is None or not scene.is_reference(made):
            continue
        for kind, told, edit in _edits(call):
            values = _computed(edit, reference.shape)
            if values is not None and scene.reproduces(values):
                yield Suspect(kind, 0.95, True, f"attention computed again {told} gives the port's output")
                return
        return


def _calls(scene: Scene) -> Iterator[_Call]:
    """The call as its records tell it, causal or not."""
    named = {one.end: one.values for one in scene.in_hand}
    q, k, v = (named.get(f"input[{name}]") for name in "qkv")
    if q is None or k is None or v is None or q.ndim != 4 or k.ndim != 4 or q.shape[-1] != k.shape[-1]:
        return
    if q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] > _MOST:
        return
    mask, scale = named.get("input[mask]"), named.get("attr[scale]")
    factor = float(scale.reshape(-1)[0]) if scale is not None and scale.size else q.shape[-1] ** -0.5
    given = None if mask is None else _additive(mask)
    call = _Call(q, k, v, given, factor)
    yield call
    yield replace(call, mask=_causal(q.shape[2], k.shape[2]) + (0 if given is None else given))


def _additive(mask: Array) -> Array:
    return np.where(mask, 0.0, -np.inf) if mask.dtype == bool else np.maximum(mask.astype(np.float64), -1e30)


def _causal(queries: int, keys: int) -> Array:
    seen = np.arange(keys)[None, :] <= np.arange(queries)[:, None] + keys - queries
    return np.where(seen, 0.0, -np.inf)


def _edits(call: _Call) -> Iterator[tuple[str, str, _Call]]:
    length, width = call.q.shape[2], call.q.shape[3]
    causal = _causal(length, call.k.shape[2])
    if call.mask is not None:
        yield "mask.missing", "without the mask", replace(call, mask=None)
        inverted = np.where(call.mask < -1e3, 0.0, -np.inf)
        yield "mask.wrong", "with the mask inverted", replace(call, mask=inverted)
        yield "mask.wrong", "with a causal mask besides", replace(call, mask=call.mask + causal)
        yield "mask.wrong", "with a causal mask instead", replace(call, mask=causal)
        if call.mask.shape[-1] == call.mask.shape[-2]:
            yield "mask.wrong", "with the mask transposed", replace(call, mask=np.swapaxes(call.mask, -1, -2))
        for shift in (1, -1):
            yield "mask.wrong", f"with the mask shifted by {shift}", replace(call, mask=np.roll(call.mask, shift, -1))
    else:
        yield "mask.wrong", "with a causal mask", replace(call, mask=causal)
    for told, scale in (("1/sqrt(D)", width**-0.5), ("1", 1.0), ("1/D", 1 / width), ("D**-0.25", width**-0.25), ("sqrt(D)", width**0.5)):
        if abs(scale / call.scale - 1) > 1e-4:
            yield "scale", f"with a scale of {told} in the place of {call.scale:.6g}", replace(call, scale=scale)
    yield "scale", f"with the scale applied twice ({call.scale**2:.6g})", replace(call, scale=call.scale**2)
    yield "order.roles", "with q and k exchanged", replace(call, q=call.k, k=call.q)
    yield "order.roles", "with k and v exchanged", replace(call, k=call.v, v=call.k)
    yield "heads.layout", "with the softmax over the queries", replace(call, axis=-2)
    heads, groups = call.q.shape[1], call.k.shape[1]
    if heads != groups and groups > 1:
        order = np.arange(heads).reshape(heads // groups, groups).T.reshape(-1)
        told = "with keys and values repeated in the other order"
        inverse = np.argsort(order)
        yield "heads.layout", told, replace(call, k=_repeated(call.k, heads)[:, inverse], v=_repeated(call.v, heads)[:, inverse])


def _repeated(x: Array, heads: int) -> Array:
    return np.repeat(x, heads // x.shape[1], 1)


def _computed(call: _Call, shape: tuple[int, ...]) -> Array | None:
    """The output of a call in the shape asked for; None where it cannot have that shape."""
    if call.q.shape[1] % call.k.shape[1] or call.k.shape[2] != call.v.shape[2]:
        return None
    k, v = _repeated(call.k, call.q.shape[1]), _repeated(call.v, call.q.shape[1])
    try:
        scores = call.scale * (call.q @ np.swapaxes(k, -1, -2))
        scores = scores if call.mask is None else scores + call.mask
        with np.errstate(all="ignore"):
            top = scores.max(call.axis, keepdims=True)
            weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
            made = weights / weights.sum(call.axis, keepdims=True) @ v
    except ValueError:
        return None
    if made.shape == shape:
        return np.asarray(made)
    swapped = np.swapaxes(made, 1, 2)
    if swapped.size == int(np.prod(shape)):
        return np.asarray(swapped.reshape(shape))
    return None
