"""Causes told by where the error lies: at the borders, from some position on, in the first call of many; or by shapes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tracediff.explain.scene import Scene, Suspect

_BORDER = 0.25


def detect(scene: Scene) -> Iterable[Suspect]:
    """An error at the borders of an axis only; keys of earlier calls that the port has not kept; identifiers shifted; masks inverted."""
    yield from _cache(scene)
    yield from _exact(scene)
    if not scene.is_numeric:
        return
    reference, port = scene.tensors()
    error = np.abs(port - reference)
    noise = 1e-3 * float(error.max())
    for axis, length in enumerate(reference.shape):
        if length < 8 or (axis == reference.ndim - 1 and reference.ndim > 2 and not _is_convolution(scene)):
            continue
        along = np.flatnonzero(error.max(tuple(other for other in range(error.ndim) if other != axis)) > noise)
        inside = [place for place in along.tolist() if _BORDER * length <= place < (1 - _BORDER) * length]
        if not inside and len(along) <= _BORDER * length and _is_convolution(scene):
            told = f"only {len(along)} of {length} positions along axis {axis} differ, all near its ends"
            yield Suspect("padding.mode", 0.7, False, told)
            return


def _is_convolution(scene: Scene) -> bool:
    words = (scene.sides[0].type + scene.sides[1].type + scene.site).lower()
    return any(word in words for word in ("conv", "pad", "stft", "pool", "resample", "interp", "upsample"))


def _cache(scene: Scene) -> Iterable[Suspect]:
    """Keys or values of an attention call that are shorter or longer than the reference's, in a call that is not the first."""
    ours, theirs = scene.shapes
    if scene.reference is None and scene.end in ("input[k]", "input[v]") and len(ours) == len(theirs):
        axes = [axis for axis, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        if len(axes) == 1:
            told = f"in call {scene.ordinal + 1} the reference attends to {ours[axes[0]]} positions, the port to {theirs[axes[0]]}"
            yield Suspect("cache" if scene.ordinal else "length", 0.8, False, told)


def _exact(scene: Scene) -> Iterable[Suspect]:
    """Identifiers with a constant offset; masks that are inverted, or let everything through."""
    ours, theirs = scene.reference, scene.port
    if ours is None or theirs is None or not ours.size:
        return
    if ours.dtype.kind in "iu" and theirs.dtype.kind in "iu":
        offset = np.unique(theirs.astype(np.int64) - ours.astype(np.int64))
        if len(offset) == 1 and offset[0]:
            yield Suspect("position.offset", 0.8, True, f"the port's numbers are the reference's plus {int(offset[0])}")
        elif (
            ours.ndim and np.array_equal(np.sort(ours, axis=None), np.sort(theirs, axis=None)) and np.array_equal(np.flip(ours, -1), theirs)
        ):
            yield Suspect("order.reversed", 0.9, True, "the port's numbers are the reference's in reverse")
    if ours.dtype == bool and theirs.dtype == bool:
        if np.array_equal(theirs, ~ours):
            yield Suspect("mask.wrong", 0.95, True, "the port's mask is the reference's inverted")
        elif theirs.all() or not theirs.any():
            yield Suspect("mask.missing", 0.8, False, f"every value of the port's mask is {bool(theirs.flat[0])}")
        else:
            yield Suspect("mask.wrong", 0.7, False, f"{int((ours != theirs).sum()):,} of {ours.size:,} values of the mask differ")
