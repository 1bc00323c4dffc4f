"""Causes told by where the error lies (at the borders, in masked places), by integers and masks that differ, or by shapes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tracediff.causes.proof import Claim, Edit
from tracediff.causes.scene import Scene
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import MASKED, Array

_WORDS_OF_CONVOLUTIONS = ("conv", "pad", "stft", "pool", "resample", "interp", "upsample")


def detect(scene: Scene) -> Iterable[Claim]:
    """An error at the borders of an axis only; keys of earlier calls that the port has not kept; identifiers shifted; masks inverted."""
    yield from _keys_not_kept(scene)
    ours, theirs = scene.reference, scene.port
    if ours is not None and theirs is not None and ours.size:
        if ours.dtype.kind in "iu" and theirs.dtype.kind in "iu":
            yield from _integers(ours, theirs)
        if ours.dtype == bool and theirs.dtype == bool:
            yield from _masks(ours, theirs)
    yield from _masked_scores(scene)
    if scene.is_numeric and _is_convolution(scene):
        yield from _at_borders(*scene.tensors())


def _at_borders(reference: Array, port: Array) -> Iterable[Claim]:
    """Only positions near the ends of one axis differ."""
    error = np.abs(port - reference)
    counted = THRESHOLDS.counts_as_error * float(error.max())
    border = THRESHOLDS.border
    for axis, length in enumerate(reference.shape):
        if length < THRESHOLDS.least_bordered:
            continue
        differ = np.flatnonzero(error.max(tuple(other for other in range(error.ndim) if other != axis)) > counted)
        is_inside = any(border * length <= place < (1 - border) * length for place in differ.tolist())
        if not is_inside and len(differ) <= border * length:
            evidence = f"only {len(differ)} of {length} positions along axis {axis} differ, all near its ends"
            yield Claim("padding.mode", THRESHOLDS.sure_at_border, evidence)
            return


def _is_convolution(scene: Scene) -> bool:
    words = (scene.sides[0].type + scene.sides[1].type + scene.site).lower()
    return any(word in words for word in _WORDS_OF_CONVOLUTIONS)


def _keys_not_kept(scene: Scene) -> Iterable[Claim]:
    """Keys or values of an attention call that are shorter or longer than the reference's; in a later call their cache was not kept."""
    ours, theirs = scene.shapes
    if scene.reference is None and scene.end in ("input[k]", "input[v]") and len(ours) == len(theirs):
        axes = [axis for axis, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        if len(axes) == 1:
            lengths = f"the reference attends to {ours[axes[0]]} positions, the port to {theirs[axes[0]]}"
            kind = "cache" if scene.ordinal else "length"
            yield Claim(kind, THRESHOLDS.sure_other_keys, f"in call {scene.ordinal + 1} {lengths}")


def _integers(ours: Array, theirs: Array) -> Iterable[Claim]:
    """Identifiers with a constant offset, in reverse, or with the first ones last."""
    offset = np.unique(theirs.astype(np.int64) - ours.astype(np.int64))
    if len(offset) == 1 and offset[0]:
        evidence = f"the port's numbers are the reference's plus {int(offset[0])}"
        yield Claim("position.offset", THRESHOLDS.sure_numbers_offset, evidence, Edit(ours + offset[0]))
    elif ours.ndim and np.array_equal(turned := np.flip(ours, -1), theirs):
        yield Claim("order.reversed", THRESHOLDS.sure_numbers_reversed, "the port's numbers are the reference's in reverse", Edit(turned))
    elif turn := _turn(ours, theirs):
        evidence = f"the port's numbers are the reference's, of which the first {turn} come last"
        yield Claim("order.concat", THRESHOLDS.sure_numbers_turned, evidence, Edit(np.roll(ours, -turn, -1)))


def _turn(ours: Array, theirs: Array) -> int:
    """How many of the reference's numbers along the last axis come last in the port, the others as before; 0 where that is not so."""
    if ours.shape != theirs.shape or not ours.ndim or np.array_equal(ours, theirs):
        return 0
    length = ours.shape[-1]
    starts = np.flatnonzero((ours.reshape(-1, length) == theirs.reshape(-1, length)[:, :1]).all(0))
    return next((start for start in starts.tolist() if np.array_equal(np.roll(ours, -start, -1), theirs)), 0)


def _masks(ours: Array, theirs: Array) -> Iterable[Claim]:
    """Boolean masks that are inverted, let everything through, or differ somewhere."""
    if np.array_equal(theirs, ~ours):
        yield Claim("mask.wrong", THRESHOLDS.sure_mask_inverted, "the port's mask is the reference's inverted", Edit(~ours))
    elif theirs.all() or not theirs.any():
        evidence = f"every value of the port's mask is {bool(theirs.flat[0])}"
        yield Claim("mask.missing", THRESHOLDS.sure_mask_constant, evidence)
    else:
        evidence = f"{int((ours != theirs).sum()):,} of {ours.size:,} values of the mask differ"
        yield Claim("mask.wrong", THRESHOLDS.sure_mask_differs, evidence)


def _masked_scores(scene: Scene) -> Iterable[Claim]:
    """Scores, or a mask that is added to them: the port masks other places, or the same ones and multiplies the rest."""
    ours, theirs = scene.reference, scene.port
    if ours is None or theirs is None or ours.dtype.kind != "f" or theirs.dtype.kind != "f" or ours.shape != theirs.shape:
        return
    hidden, their_hidden = ours <= MASKED, theirs <= MASKED
    seen = ~(hidden | their_hidden)
    reference, port = ours[seen], theirs[seen]
    if seen.all() or not (np.isfinite(reference).all() and np.isfinite(port).all()):
        return
    if np.array_equal(hidden, their_hidden):
        yield from _seen_scaled(ours, theirs, seen)
        return
    limit = max(THRESHOLDS.hidden_agree, scene.limit) * float(np.linalg.norm(reference))
    agrees = bool(np.linalg.norm(port - reference) <= limit)
    evidence = f"{int((hidden != their_hidden).sum()):,} of {ours.size:,} values are masked on one side only"
    edit = Edit(np.where(seen, ours, theirs)) if agrees else None
    if not their_hidden.any():
        yield Claim("mask.missing", THRESHOLDS.sure_nothing_masked, f"nothing is masked in the port; {evidence}", edit)
    elif np.array_equal(hidden, ~their_hidden):
        inverted = "what the reference masks the port does not, and the other way round"
        yield Claim("mask.wrong", THRESHOLDS.sure_mask_inverted, inverted)
    else:
        rest = "; all others agree" if agrees else ""
        yield Claim("mask.wrong", THRESHOLDS.sure_masked_elsewhere, evidence + rest, edit)


def _seen_scaled(ours: Array, theirs: Array, seen: Array) -> Iterable[Claim]:
    """The values that neither side masks (``seen``) are a multiple."""
    reference, port = ours[seen], theirs[seen]
    size = float(np.linalg.norm(reference))
    factor = float(np.vdot(reference, port)) / size**2 if size else 1.0
    error = float(np.linalg.norm(port - reference))
    if error and np.linalg.norm(port - factor * reference) < THRESHOLDS.reproduced * error:
        evidence = f"where nothing is masked, the port's values are the reference's times {factor:.6g}"
        yield Claim("scale", THRESHOLDS.sure_seen_scaled, evidence, Edit(np.where(seen, factor * ours, theirs), is_fitted=True))
