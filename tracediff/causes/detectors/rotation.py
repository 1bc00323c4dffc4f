"""Causes in rotary position embeddings: left out, of the other variant, with other frequencies, or at other positions.

A rotary embedding turns pairs of channels of q and k, (i, i + R/2) or (2i, 2i + 1), by an angle that depends on the position and on i; R is
the number of channels that it turns, often all, the others being left as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np

from tracediff.causes.scene import InHand, Scene, Suspect
from tracediff.dtype import Array

_OFFSETS = tuple(range(-8, 9))
_FEWER = 0.75  # so many times as many channels that differ are fewer that are turned, not some that turn too slowly to see


def detect(scene: Scene) -> Iterable[Suspect]:
    """What turns the reference's q or k, against what turns the port's."""
    if not scene.is_numeric:
        return
    reference, port = scene.tensors()
    if reference.ndim < 3 or reference.shape[-1] < 4 or reference.shape[-1] % 2:
        return
    for source, x in _sources(scene):
        for turned, variant in product(dict.fromkeys((x.shape[-1], _turned(x, reference))), ("halves", "neighbours")):
            ours = _angles(x, reference, variant, turned)
            if ours is not None:
                yield from _told(scene, source, x, port, variant, ours, turned)
                return


def _sources(scene: Scene) -> Iterator[tuple[InHand, Array]]:
    """What may have been turned: tensors in hand of that shape, or with their heads still merged (B, T, H * D)."""
    reference, _ = scene.tensors()
    for one in reversed(scene.in_hand):
        values = one.values
        if values.dtype.kind != "f" or values.size != reference.size or not np.isfinite(values).all():
            continue
        if values.shape == reference.shape:
            yield one, values
        if reference.ndim == 4 and values.ndim >= 3:
            batch, first, second, width = reference.shape
            if values.shape[:2] == (batch, second):
                yield one, np.swapaxes(values.reshape(batch, second, first, width), 1, 2)
            if values.shape[:2] == (batch, first) and values.shape != reference.shape:
                yield one, values.reshape(batch, first, second, width)


def _pairs(x: Array, variant: str) -> Array:
    half = x.shape[-1] // 2
    made: Array = x[..., :half] + 1j * x[..., half:] if variant == "halves" else x[..., 0::2] + 1j * x[..., 1::2]
    return made


def _turned(x: Array, y: Array) -> int:
    """How many of the first channels differ: the others are not turned, or too little to see. All, if it is an odd number or below four."""
    others = tuple(range(x.ndim - 1))
    differ = np.flatnonzero(np.abs(x - y).max(others) > 1e-6 * np.abs(x).max())
    count = int(differ[-1]) + 1 if len(differ) else 0
    return count if count >= 4 and count % 2 == 0 else x.shape[-1]


def _angles(x: Array, y: Array, variant: str, count: int) -> Array | None:
    """The unit complex numbers (T, R/2) by which the first R = ``count`` channels of ``x`` were turned in pairs; None where they were not.

    They are the same in every batch and head.
    """
    before, after = _pairs(x[..., :count], variant), _pairs(y[..., :count], variant)
    axis = _position_axis(before)
    others = tuple(other for other in range(before.ndim - 1) if other != axis)
    with np.errstate(all="ignore"):
        turned = (after * before.conj()).sum(others) / (np.abs(before) ** 2).sum(others)
    if not np.isfinite(turned).all() or np.abs(np.abs(turned) - 1).max() > 1e-3:
        return None
    shape = [1] * before.ndim
    shape[axis], shape[-1] = turned.shape
    error = np.linalg.norm(before * turned.reshape(shape) - after)
    return turned if error <= 1e-3 * np.linalg.norm(after) else None


def _position_axis(x: Array) -> int:
    return x.ndim - 2


def _told(scene: Scene, source: InHand, x: Array, port: Array, variant: str, ours: Array, turned: int) -> Iterable[Suspect]:
    if np.abs(ours - 1).max() < 1e-4:
        return  # nothing is turned in the reference
    if scene.reproduces(x):
        yield Suspect("rope.missing", 0.95, True, f"the port has {source.name} here without the rotation that the reference applies")
        return
    counts = _turned(x, scene.tensors()[0]), _turned(x, port)
    is_other = min(counts) <= _FEWER * max(counts)
    if is_other and any(_angles(x, port, one, counts[1]) is not None for one in ("halves", "neighbours")):
        told = f"the reference turns {counts[0]} of {x.shape[-1]} channels of a head, the port {counts[1]}"
        yield Suspect("rope.variant", 0.95, True, told)
        return
    same = _angles(x, port, variant, turned)
    if same is not None:
        yield from _other_angles(variant, ours, same)
        return
    other = "neighbours" if variant == "halves" else "halves"
    if _angles(x, port, other, turned) is not None:
        yield Suspect("rope.variant", 0.95, True, f"the reference turns pairs of {variant}, the port pairs of {other}")


def _other_angles(variant: str, ours: Array, theirs: Array) -> Iterable[Suspect]:
    for offset in _OFFSETS:
        start, stop = max(0, offset), min(len(ours), len(ours) + offset)
        if offset and stop - start >= 2 and np.abs(theirs[start - offset : stop - offset] - ours[start:stop]).max() < 1e-3:
            yield Suspect("position.offset", 0.95, True, f"the port turns each position as the reference turns the one {offset} further on")
            return
    if np.abs(theirs - ours.conj()).max() < 1e-3:
        yield Suspect("rope.variant", 0.9, True, "the port turns the other way round")
    elif np.abs(theirs - 1).max() < 1e-4:
        yield Suspect("rope.missing", 0.95, True, "the port does not turn what the reference turns")
    else:
        step = theirs[1:] * theirs[:-1].conj() * (ours[1:] * ours[:-1].conj()).conj() if len(ours) > 1 else np.ones(1)
        constant = np.abs(step - 1).max() < 1e-3
        kind = "position.offset" if constant else "rope.variant"
        told = "each position by another constant angle" if constant else "by other frequencies (another base or scaling)"
        yield Suspect(kind, 0.9, True, f"both turn pairs of {variant}, the port {told}")
