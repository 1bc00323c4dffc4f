"""Causes in rotary position embeddings: left out, of the other variant, with other frequencies, or at other positions.

A rotary embedding turns pairs of channels of q and k, (i, i + R/2) or (2i, 2i + 1), by an angle that depends on the position and on i; R is
the number of channels that it turns, often all, the others being left as they are. Rotations are unit complex numbers (T, R/2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from tracediff.causes.in_hand import InHand
from tracediff.causes.proof import Claim, Edit
from tracediff.causes.scene import Scene
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array

_OFFSETS = tuple(range(-8, 9))
_VARIANTS = ("halves", "neighbours")


def detect(scene: Scene) -> Iterable[Claim]:
    """What turns the reference's q or k, against what turns the port's: (..., T, D), or (B, T, H, D) before the heads are in front."""
    if not scene.is_numeric:
        return
    reference, port = scene.tensors()
    if reference.ndim < 3 or reference.shape[-1] < THRESHOLDS.least_rotated or reference.shape[-1] % 2:
        return
    found = list(_turned_otherwise(scene))
    yield from found
    if not found and reference.ndim == 4:
        turned = replace(scene, reference=np.swapaxes(reference, 1, 2), port=np.swapaxes(port, 1, 2))
        yield from (replace(claim, edit=_swapped(claim.edit)) for claim in _turned_otherwise(turned))


def _swapped(edit: Edit | None) -> Edit | None:
    """An edit of tensors whose second and third axes are exchanged."""
    if edit is None or edit.reference is None:
        return edit
    return replace(edit, port=np.swapaxes(edit.port, 1, 2), reference=np.swapaxes(edit.reference, 1, 2))


def _turned_otherwise(scene: Scene) -> Iterable[Claim]:
    """As `detect`, where the positions are the last axis but one."""
    reference, _ = scene.tensors()
    for source, x in _sources(scene):
        for turned, variant in product(dict.fromkeys((x.shape[-1], _turned(x, reference))), _VARIANTS):
            ours = _angles(x, reference, variant, turned)
            if ours is not None:
                yield from _compared(scene, source, x, variant, ours)
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
            if values.shape == (batch, second, first, width):
                yield one, np.swapaxes(values, 1, 2)
            if values.shape[:2] == (batch, first) and values.shape != reference.shape:
                yield one, values.reshape(batch, first, second, width)


def _pairs(x: Array, variant: str) -> Array:
    """Pairs of channels as complex numbers: (..., R) as (..., R/2)."""
    half = x.shape[-1] // 2
    made: Array = x[..., :half] + 1j * x[..., half:] if variant == "halves" else x[..., 0::2] + 1j * x[..., 1::2]
    return made


def _turned(x: Array, y: Array) -> int:
    """How many of the first channels differ: the others are not turned, or too little to see. All, if it is an odd number or below four."""
    others = tuple(range(x.ndim - 1))
    differ = np.flatnonzero(np.abs(x - y).max(others) > THRESHOLDS.channel_differs * np.abs(x).max())
    count = int(differ[-1]) + 1 if len(differ) else 0
    return count if count >= THRESHOLDS.least_rotated and count % 2 == 0 else x.shape[-1]


def _angles(x: Array, y: Array, variant: str, count: int) -> Array | None:
    """The unit complex numbers (T, R/2) by which the first R = ``count`` channels of ``x`` were turned in pairs; None where they were not.

    They are the same in every batch and head.
    """
    before, after = _pairs(x[..., :count], variant), _pairs(y[..., :count], variant)
    others = tuple(range(before.ndim - 2))
    with np.errstate(all="ignore"):
        turned = (after * before.conj()).sum(others) / (np.abs(before) ** 2).sum(others)
    fit = THRESHOLDS.rotation_fit
    if not np.isfinite(turned).all() or np.abs(np.abs(turned) - 1).max() > fit:
        return None
    turned = turned / np.abs(turned)  # a rotation, which changes no size: a factor near 1 is none
    error = np.linalg.norm(before * turned - after)
    return turned if error <= fit * np.linalg.norm(after) else None


def _compared(scene: Scene, source: InHand, x: Array, variant: str, ours: Array) -> Iterable[Claim]:
    """What the port does with ``x``, which the reference turns by ``ours``."""
    reference, port = scene.tensors()
    if _is_same(ours, 1, THRESHOLDS.no_angle):
        yield from _turned_in_port_alone(scene, source, x)
        return
    before = _rotated(x, ours, variant)
    if scene.reproduces(x):
        evidence = f"the port has {source.name} here without the rotation that the reference applies"
        yield Claim("rope.missing", THRESHOLDS.sure_rotation_missing, evidence, Edit(x, before))
        return
    counts = _turned(x, reference), _turned(x, port)
    if min(counts) <= THRESHOLDS.fewer_channels * max(counts):
        found = ((one, _angles(x, port, one, counts[1])) for one in _VARIANTS)
        made = next((_rotated(x, angles, one) for one, angles in found if angles is not None), None)
        if made is not None:
            evidence = f"the reference turns {counts[0]} of {x.shape[-1]} channels of a head, the port {counts[1]}"
            yield Claim("rope.variant", THRESHOLDS.sure_rotation_variant, evidence, Edit(made, before))
            return
    turned = 2 * ours.shape[-1]
    theirs = _angles(x, port, variant, turned)
    if theirs is not None:
        kind, sure, evidence = _other_angles(variant, ours, theirs)
        yield Claim(kind, sure, evidence, Edit(_rotated(x, theirs, variant), before))
        return
    other = next(one for one in _VARIANTS if one != variant)
    theirs = _angles(x, port, other, turned)
    if theirs is not None:
        evidence = f"the reference turns pairs of {variant}, the port pairs of {other}"
        yield Claim("rope.variant", THRESHOLDS.sure_rotation_variant, evidence, Edit(_rotated(x, theirs, other), before))


def _turned_in_port_alone(scene: Scene, source: InHand, x: Array) -> Iterable[Claim]:
    """The claim that the port turns ``x``, which the reference has as it is."""
    _, port = scene.tensors()
    for count, variant in product(dict.fromkeys((x.shape[-1], _turned(x, port))), _VARIANTS):
        theirs = _angles(x, port, variant, count)
        if theirs is not None and not _is_same(theirs, 1, THRESHOLDS.no_angle):
            evidence = f"the port has {source.name} turned here in pairs of {variant}, the reference as it is"
            yield Claim("rope.variant", THRESHOLDS.sure_rotation_variant, evidence, Edit(_rotated(x, theirs, variant), x))
            return


def _rotated(x: Array, angles: Array, variant: str) -> Array:
    """A tensor with its first pairs of channels turned by unit complex numbers (T, R/2)."""
    count = 2 * angles.shape[-1]
    turned = _pairs(x[..., :count], variant) * angles
    parts = (turned.real, turned.imag)
    made = np.concatenate(parts, -1) if variant == "halves" else np.stack(parts, -1).reshape(*x.shape[:-1], count)
    return np.concatenate([made, x[..., count:]], -1)


def _other_angles(variant: str, ours: Array, theirs: Array) -> tuple[str, float, str]:
    """Kind, likelihood and evidence where both sides turn the same pairs, by different angles (T, R/2)."""
    for offset in _OFFSETS:
        start, stop = max(0, offset), min(len(ours), len(ours) + offset)
        if offset and stop - start >= 2 and _is_same(theirs[start - offset : stop - offset], ours[start:stop], THRESHOLDS.same_angle):
            evidence = f"the port turns each position as the reference turns the one {offset} further on"
            return "position.offset", THRESHOLDS.sure_rotation_offset, evidence
    if _is_same(theirs, ours.conj(), THRESHOLDS.same_angle):
        return "rope.variant", THRESHOLDS.sure_other_angles, "the port turns the other way round"
    if _is_same(theirs, 1, THRESHOLDS.no_angle):
        return "rope.missing", THRESHOLDS.sure_rotation_missing, "the port does not turn what the reference turns"
    steps = theirs[1:] * theirs[:-1].conj(), ours[1:] * ours[:-1].conj()
    if len(ours) < 2 or _is_same(steps[0] * steps[1].conj(), 1, THRESHOLDS.same_angle):
        kind, difference = "position.offset", "each position by another constant angle"
    else:
        kind, difference = "rope.variant", "by other frequencies (another base or scaling)"
    return kind, THRESHOLDS.sure_other_angles, f"both turn pairs of {variant}, the port {difference}"


def _is_same(turns: Array, others: Array | complex, tolerance: float) -> bool:
    return bool(np.abs(turns - others).max() < tolerance)
