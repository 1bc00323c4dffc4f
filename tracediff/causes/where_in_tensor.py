"""Causes told by where the error lies: at the borders, from some position on, in the first call of many; or by shapes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tracediff.causes.scene import Scene, Suspect
from tracediff.dtype import MASKED, Array

_BORDER = 0.25


def detect(scene: Scene) -> Iterable[Suspect]:
    """An error at the borders of an axis only; keys of earlier calls that the port has not kept; identifiers shifted; masks inverted."""
    yield from _cache(scene)
    yield from _exact(scene)
    yield from _hidden(scene)
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
        elif turn := _turn(ours, theirs):
            yield Suspect("order.concat", 0.85, True, f"the port's numbers are the reference's, of which the first {turn} come last")
    if ours.dtype == bool and theirs.dtype == bool:
        if np.array_equal(theirs, ~ours):
            yield Suspect("mask.wrong", 0.95, True, "the port's mask is the reference's inverted")
        elif theirs.all() or not theirs.any():
            yield Suspect("mask.missing", 0.8, False, f"every value of the port's mask is {bool(theirs.flat[0])}")
        else:
            yield Suspect("mask.wrong", 0.7, False, f"{int((ours != theirs).sum()):,} of {ours.size:,} values of the mask differ")


def _turn(ours: Array, theirs: Array) -> int:
    """How many of the reference's numbers along the last axis come last in the port, the others as before; 0 where that is not so."""
    if ours.shape != theirs.shape or not ours.ndim or np.array_equal(ours, theirs):
        return 0
    length = ours.shape[-1]
    starts = np.flatnonzero((ours.reshape(-1, length) == theirs.reshape(-1, length)[:, :1]).all(0))
    return next((start for start in starts.tolist() if np.array_equal(np.roll(ours, -start, -1), theirs)), 0)


def _hidden(scene: Scene) -> Iterable[Suspect]:
    """Scores, or a mask that is added to them, of which other places are hidden; or the same ones, and the rest is a multiple."""
    ours, theirs = scene.reference, scene.port
    if ours is None or theirs is None or ours.dtype.kind != "f" or theirs.dtype.kind != "f" or ours.shape != theirs.shape:
        return
    hidden = ours <= MASKED, theirs <= MASKED
    seen = ~(hidden[0] | hidden[1])
    reference, port = ours[seen], theirs[seen]
    if not (hidden[0].any() or hidden[1].any()) or not (np.isfinite(reference).all() and np.isfinite(port).all()):
        return
    size = float(np.linalg.norm(reference))
    if np.array_equal(*hidden):
        factor = float(np.vdot(reference, port)) / size**2 if size else 1.0
        error = float(np.linalg.norm(port - reference))
        if error and np.linalg.norm(port - factor * reference) < 0.02 * error:
            yield Suspect("scale", 0.8, True, f"where nothing is masked, the port's values are the reference's times {factor:.6g}")
        return
    agrees = bool(np.linalg.norm(port - reference) <= max(1e-4, scene.limit) * size)
    told = f"{int((hidden[0] != hidden[1]).sum()):,} of {ours.size:,} values are masked on one side only"
    if not hidden[1].any():
        yield Suspect("mask.missing", 0.9, agrees, f"nothing is masked in the port; {told}")
    elif np.array_equal(hidden[0], ~hidden[1]):
        yield Suspect("mask.wrong", 0.95, True, "what the reference masks the port does not, and the other way round")
    else:
        yield Suspect("mask.wrong", 0.85, agrees, told + ("; all others agree" if agrees else ""))
