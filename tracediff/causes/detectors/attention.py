"""Causes inside an attention call: it is computed again from q, k, v and the mask, under one change at a time.

softmax(q k^T * scale + mask) v, with q (B, H, T, D), k and v (B, G, S, D), H a multiple of G.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from tracediff.causes.scene import Scene, Suspect
from tracediff.dtype import Array

_MOST = 2**24  # scores
_PROJECTIONS = 6  # of what is in hand, the latest, among which queries, keys and values are looked for
_HEADS = 16


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
    if not scene.is_numeric:
        return
    if scene.blame != "module" or not scene.site.endswith("!attention"):
        yield from _written_out(scene)
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


def _written_out(scene: Scene) -> Iterable[Suspect]:
    """As `detect` for attention that a module's own code computes from its projections: (B, T, C), or (B, C, T) with the channels first."""
    reference, _ = scene.tensors()
    if reference.ndim != 3:
        return
    for order in ((0, 1, 2), (0, 2, 1)):
        batch, length, width = np.transpose(reference, order).shape
        found = [part for one in scene.in_hand[-_PROJECTIONS:] for part in _projections(one.values, order, batch, width)]
        for q, k, v in permutations(found[-4:], 3):
            if q.shape[1] != length or k.shape != v.shape or batch * length * k.shape[1] > _MOST:
                continue
            for heads in (number for number in range(1, min(width, _HEADS) + 1) if width % number == 0):
                call = _Call(_split(q, heads), _split(k, heads), _split(v, heads), None, (width // heads) ** -0.5)
                for whole in (call, replace(call, mask=_causal(length, k.shape[1]))):
                    told = list(_edited(scene, whole, (batch, length, width), order))
                    yield from told
                    if told:
                        return


def _edited(scene: Scene, call: _Call, shape: tuple[int, ...], order: tuple[int, ...]) -> Iterator[Suspect]:
    made = _computed(call, shape)
    if made is None or not scene.is_reference(np.transpose(made, order)):
        return
    for kind, told, edit in _edits(call):
        values = _computed(edit, shape)
        if values is not None and scene.reproduces(np.transpose(values, order)):
            yield Suspect(kind, 0.95, True, f"attention computed again {told} gives the port's values")
            return


def _projections(values: Array, order: tuple[int, ...], batch: int, width: int) -> Iterator[Array]:
    """A tensor in hand as (B, S, C), or the two or three of them that a fused projection gave."""
    if values.ndim != 3 or values.dtype.kind != "f":
        return
    seen = np.transpose(values, order)
    if seen.shape[0] == batch and seen.shape[2] % width == 0 and seen.shape[2] // width <= 3:
        yield from np.split(seen, seen.shape[2] // width, 2)


def _split(x: Array, heads: int) -> Array:
    """(B, T, C) as (B, H, T, D)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


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
