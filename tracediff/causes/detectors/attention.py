"""Causes inside an attention call: it is computed again from q, k, v and the mask, under one change at a time.

softmax(q k^T * scale + mask) v, with q (B, H, T, D), k and v (B, G, S, D), H a multiple of G.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, permutations

import numpy as np

from tracediff.causes.proof import Claim, Edit
from tracediff.causes.scene import Scene
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array

_MOST_NEGATIVE = -1e30
"""What an additive mask is raised to, so that no infinity times 0 arises."""


_BLIND = {"mean": "the mean of the values", "zero": "zero", "unmasked": "what it would without a mask"}
"""What may come of a query from which every key is hidden: all scores are one huge number, or the softmax is left out, or shifts them."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One attention call: q (B, H, T, D), k and v (B, G, S, D), an additive mask, and the axis of the scores that the softmax runs over.

    ``blind``: what a query gives from which the mask hides every key, one of `_BLIND`.
    """

    q: Array
    k: Array
    v: Array
    mask: Array | None
    scale: float
    axis: int = -1
    blind: str = "mean"


@dataclass(frozen=True, slots=True)
class _Change:
    """One change to a call: the kind of cause that it is, the change in words, and the changed call."""

    kind: str
    text: str
    call: _Call


def detect(scene: Scene) -> Iterable[Claim]:
    """The one change to the call that turns the reference's output into the port's."""
    if not scene.is_numeric:
        return
    if scene.blame != "module" or not scene.site.endswith("!attention"):
        yield from _written_out(scene)
        return
    shape = scene.tensors()[0].shape
    for call in _calls(scene):
        made = _computed(call, shape)
        if made is not None and scene.is_reference(made):
            yield from _edited(scene, call, made, tuple(range(len(shape))), "output")
            return


def _written_out(scene: Scene) -> Iterable[Claim]:
    """As `detect` for attention that a module's own code computes from its projections: (B, T, C), or (B, C, T) with the channels first."""
    reference, _ = scene.tensors()
    if reference.ndim != 3:
        return
    for order in ((0, 1, 2), (0, 2, 1)):
        shape = tuple(reference.shape[axis] for axis in order)
        for call in _written_out_calls(scene, shape, order):
            made = _computed(call, shape)
            if made is None or not scene.is_reference(np.transpose(made, order)):
                continue
            found = list(_edited(scene, call, made, order, "values"))
            yield from found
            if found:
                return


def _written_out_calls(scene: Scene, shape: tuple[int, ...], order: tuple[int, ...]) -> Iterator[_Call]:
    """The calls that could give values of the shape (B, T, C): every order of the projections in hand, every number of heads."""
    batch, length, width = shape
    in_hand = scene.in_hand[-THRESHOLDS.projections_tried :]
    found = [part for one in in_hand for part in _projections(one.values, order, batch, width)]
    for q, k, v in permutations(found[-THRESHOLDS.projections_kept :], 3):
        if q.shape[1] != length or k.shape != v.shape or batch * length * k.shape[1] > THRESHOLDS.most_scores:
            continue
        for heads in range(1, min(width, THRESHOLDS.most_heads) + 1):
            if width % heads == 0:
                call = _Call(_split(q, heads), _split(k, heads), _split(v, heads), None, (width // heads) ** -0.5)
                yield call
                yield replace(call, mask=_causal(length, k.shape[1]))


def _edited(scene: Scene, call: _Call, made: Array, order: tuple[int, ...], what: str) -> Iterator[Claim]:
    """The first edit of a call that reproduces the port; the call gives ``made``, of which ``order`` are the axes in the reference's."""
    for edit in chain(_edits(call), _windows(scene, call, made, order)):
        values = _computed(edit.call, made.shape)
        if values is not None and scene.reproduces(theirs := np.transpose(values, order)):
            evidence = f"attention computed again {edit.text} gives the port's {what}"
            yield Claim(edit.kind, THRESHOLDS.sure_attention_recomputed, evidence, Edit(theirs, np.transpose(made, order)))
            return


def _projections(values: Array, order: tuple[int, ...], batch: int, width: int) -> Iterator[Array]:
    """A tensor in hand as (B, S, C), or the two or three such tensors that a fused projection gave."""
    if values.ndim != 3 or values.dtype.kind != "f":
        return
    seen = np.transpose(values, order)
    if seen.shape[0] == batch and seen.shape[2] % width == 0 and seen.shape[2] // width <= 3:
        yield from np.split(seen, seen.shape[2] // width, 2)


def _split(x: Array, heads: int) -> Array:
    """(B, T, C) as (B, H, T, D)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _calls(scene: Scene) -> Iterator[_Call]:
    """The recorded call, first as it was recorded, then causal."""
    named = {one.end: one.values for one in scene.in_hand}
    q, k, v = (named.get(f"input[{name}]") for name in "qkv")
    if q is None or k is None or v is None or q.ndim != 4 or k.ndim != 4 or q.shape[-1] != k.shape[-1]:
        return
    if q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] > THRESHOLDS.most_scores:
        return
    mask, scale = named.get("input[mask]"), named.get("attr[scale]")
    factor = float(scale.reshape(-1)[0]) if scale is not None and scale.size else q.shape[-1] ** -0.5
    given = None if mask is None else _additive(mask)
    call = _Call(q, k, v, given, factor)
    yield call
    yield from (other for other, _ in _otherwise_blind(call))
    yield replace(call, mask=_causal(q.shape[2], k.shape[2]) + (0 if given is None else given))


def _additive(mask: Array) -> Array:
    return np.where(mask, 0.0, -np.inf) if mask.dtype == bool else np.maximum(mask.astype(np.float64), _MOST_NEGATIVE)


def _is_blind(call: _Call) -> Array:
    """Which rows of the mask hide every key, as a mask for the scores with one key; False where there is no mask."""
    return np.zeros(1, bool) if call.mask is None else np.asarray((call.mask < THRESHOLDS.mask_hides).all(-1, keepdims=True))


def _otherwise_blind(call: _Call) -> Iterator[tuple[_Call, str]]:
    """The call with something else for queries that see no key, in words; nothing where there are none."""
    if _is_blind(call).any():
        yield from ((replace(call, blind=blind), text) for blind, text in _BLIND.items() if blind != call.blind)


def _causal(queries: int, keys: int) -> Array:
    """The additive mask (T, S) that shows each query the keys up to its own position."""
    seen = np.arange(keys)[None, :] <= np.arange(queries)[:, None] + keys - queries
    return np.where(seen, 0.0, -np.inf)


def _edits(call: _Call) -> Iterator[_Change]:
    """Every change that is tried, the likelier first."""
    yield from _edits_of_mask(call)
    yield from _edits_of_scale(call)
    yield _Change("order.roles", "with q and k exchanged", replace(call, q=call.k, k=call.q))
    yield _Change("order.roles", "with k and v exchanged", replace(call, k=call.v, v=call.k))
    yield _Change("heads.layout", "with the softmax over the queries", replace(call, axis=-2))
    heads, groups = call.q.shape[1], call.k.shape[1]
    if heads != groups and groups > 1:
        order = np.argsort(np.arange(heads).reshape(heads // groups, groups).T.reshape(-1))
        regrouped = replace(call, k=_repeated(call.k, heads)[:, order], v=_repeated(call.v, heads)[:, order])
        yield _Change("heads.layout", "with keys and values repeated in the other order", regrouped)


def _edits_of_mask(call: _Call) -> Iterator[_Change]:
    causal = _causal(call.q.shape[2], call.k.shape[2])
    if call.mask is None:
        yield _Change("mask.wrong", "with a causal mask", replace(call, mask=causal))
        return
    yield _Change("mask.missing", "without the mask", replace(call, mask=None))
    inverted = np.where(call.mask < THRESHOLDS.mask_hides, 0.0, -np.inf)
    yield _Change("mask.wrong", "with the mask inverted", replace(call, mask=inverted))
    yield _Change("mask.wrong", "with a causal mask besides", replace(call, mask=call.mask + causal))
    yield _Change("mask.wrong", "with a causal mask instead", replace(call, mask=causal))
    if call.mask.shape[-1] == call.mask.shape[-2]:
        yield _Change("mask.wrong", "with the mask transposed", replace(call, mask=np.swapaxes(call.mask, -1, -2)))
    for other, text in _otherwise_blind(call):
        yield _Change("mask.wrong", f"where a query sees no key: {text}", other)
    for shift in (1, -1):
        yield _Change("mask.wrong", f"with the mask shifted by {shift}", replace(call, mask=np.roll(call.mask, shift, -1)))


def _windows(scene: Scene, call: _Call, made: Array, order: tuple[int, ...]) -> Iterator[_Change]:
    """Causal windows of as many keys as the first query has before it whose output differs, or of one more (the port shows a key more)."""
    queries, keys = call.q.shape[2], call.k.shape[2]
    if queries != keys:
        return
    port = np.transpose(scene.tensors()[1], np.argsort(order))
    along = 2 if made.shape == (*call.q.shape[:3], call.v.shape[3]) else 1
    if port.shape != made.shape or made.shape[along] != queries:
        return
    rest = tuple(axis for axis in range(made.ndim) if axis != along)
    errors, sizes = (np.sqrt((values**2).sum(rest)) for values in (port - made, made))
    first = int(np.argmax(errors > THRESHOLDS.same_form * sizes))
    for width in (first, first + 1):
        if 0 < width < keys:
            near = np.arange(keys)[None, :] > np.arange(queries)[:, None] - width
            mask = np.where(near, _causal(queries, keys), -np.inf)
            yield _Change("mask.wrong", f"with a causal window of {width} keys", replace(call, mask=mask))


def _edits_of_scale(call: _Call) -> Iterator[_Change]:
    width = call.q.shape[3]
    scales = {"1/sqrt(D)": width**-0.5, "1": 1.0, "1/D": 1 / width, "D**-0.25": width**-0.25, "sqrt(D)": width**0.5}
    for text, scale in scales.items():
        if abs(scale / call.scale - 1) > THRESHOLDS.same_attention_scale:
            yield _Change("scale", f"with a scale of {text} in the place of {call.scale:.6g}", replace(call, scale=scale))
    yield _Change("scale", f"with the scale applied twice ({call.scale**2:.6g})", replace(call, scale=call.scale**2))


def _of_blind(call: _Call, weights: Array) -> Array:
    """The weights of the keys, with those of the queries from which every key is hidden."""
    blind = _is_blind(call)
    if not blind.any() or call.axis != -1:
        return weights
    if call.blind == "unmasked":
        scores = call.scale * (call.q @ np.swapaxes(_repeated(call.k, call.q.shape[1]), -1, -2))
        given = np.exp(scores - scores.max(-1, keepdims=True))
        return np.where(blind, given / given.sum(-1, keepdims=True), weights)
    return np.where(blind, 0.0 if call.blind == "zero" else 1 / weights.shape[-1], weights)


def _repeated(x: Array, heads: int) -> Array:
    """(B, G, S, D) as (B, H, S, D)."""
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
            weights = _of_blind(call, weights / weights.sum(call.axis, keepdims=True))
            made = weights @ v
    except ValueError:
        return None
    if made.shape == shape:
        return np.asarray(made)
    swapped = np.swapaxes(made, 1, 2)
    if swapped.size == int(np.prod(shape)):
        return np.asarray(swapped.reshape(shape))
    return None
