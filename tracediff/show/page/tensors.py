"""What the page draws of one pair of tensors: both and their difference in few cells, the error along each axis, samples, ids, sound."""

from __future__ import annotations

import base64
import io
import math
import wave
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tracediff.alignment import axes as layouts
from tracediff.dtype import Array, named
from tracediff.errors import TracediffError
from tracediff.show.page.pair_data import rounded
from tracediff.show.page.token_texts import texts_of

if TYPE_CHECKING:
    from tracediff.report import Row
    from tracediff.trace import Record, Trace

MOST_VALUES = 2**23
"""Of larger tensors nothing is drawn: reading both would take some hundred megabytes."""
MOST_CELLS = 24_576
"""Cells of one picture, all slices together; three pictures of so many bytes are 100 kB of text."""
TALLEST, WIDEST, MOST_SLICES = 128, 192, 16
MOST_BINS, SAMPLES, WORST = 48, 400, 100
MOST_ALONG = 128
MOST_IDS = 2000
"""So many ids of either side are listed."""
WAVE = 4000
"""A row of so many real numbers, or more, is taken for sound."""
SOUND_RATE = 24_000
"""Samples a second at which sound is played; a trace does not say it."""
SOUND_SECONDS = 4
WINDOW = 512
QUIETEST = 1e-4
"""What is softer than this share of the loudest is shown as silence (80 decibels)."""
_UNKNOWN = 255
"""The cell of what is no number."""


def panel(row: Row, reference: Trace, port: Trace) -> dict[str, Any]:
    """What is drawn of a pair; ``why`` says what keeps it from being drawn. Raises OSError where a file is gone."""
    ours, theirs = (
        [trace.records[number] for number in numbers] for trace, numbers in ((reference, row.pair.reference), (port, row.pair.port))
    )
    try:
        drawn = _drawn(row, ours, theirs)
    except TracediffError as error:
        return {"kind": "none", "why": str(error)}
    if drawn["kind"] == "ids":
        drawn["texts"] = [
            texts_of((one for one in ids if one is not None), site, trace)
            for ids, site, trace in zip(drawn["ids"], (row.where.reference, row.where.port), (reference, port), strict=True)
        ]
    return drawn


def _drawn(row: Row, ours: Sequence[Record], theirs: Sequence[Record]) -> dict[str, Any]:
    if any(not record.stored for record in (*ours, *theirs)):
        return {"kind": "none", "why": "the values were not stored"}
    if "text" in (ours[0].dtype, theirs[0].dtype):
        return {"kind": "text", "reference": _text(ours[0]), "port": _text(theirs[0])}
    if sum(math.prod(record.shape) for record in (*ours, *theirs)) > 2 * MOST_VALUES:
        return {"kind": "none", "why": f"more than {MOST_VALUES:,} values"}
    if row.pair.layout is None:
        left, right = real(ours[0].read()), real(theirs[0].read())
        if _is_ids(ours[0]) and _is_ids(theirs[0]):
            return _ids(left, right)
        return {"kind": "apart", "sides": [pictures([side]) for side in (left, right)]}
    left, right = (real(values) for values in layouts.side_by_side(row.pair.layout, ours, theirs))
    if _is_ids(ours[0]) and left.ndim and left.size <= MOST_IDS * 4:
        return _ids(left, right)
    flat = [side.reshape(-1) for side in (left, right)]
    if max(left.shape, default=0) == left.size >= WAVE and not named(ours[0].dtype).is_exact:
        return {"kind": "wave", **_sound(*flat), **_measures(left, right)}
    return {"kind": _kind(row, left), **pictures([left, right, right - left]), **_measures(left, right)}


def _text(record: Record) -> str:
    return record.text()[:20_000]


def _is_ids(record: Record) -> bool:
    dtype = named(record.dtype)
    return dtype.is_exact and record.dtype != "bool"


def real(array: Array) -> Array:
    """Numbers to draw, in float64: moduli of complex ones; NaN for infinities and for what masks out."""
    wide = np.abs(array) if array.dtype.kind == "c" else array.astype(np.float64)
    return np.where(np.isfinite(wide) & (wide > -1e4), wide, np.nan)


def _kind(row: Row, values: Array) -> str:
    """What a tensor is: rows that each add up to one are attention, and a name may say that it is a spectrogram."""
    name = f"{row.where.reference} {row.where.end} {row.where.port}".lower()
    seen = [size for size in values.shape if size > 1]
    if len(seen) >= 2 and values.ndim >= 3 and values.shape[-1] > 1 and np.nanmin(values, initial=0.0) >= 0:
        sums = np.nansum(values, axis=-1)
        if np.allclose(sums, 1.0, atol=1e-3):
            return "attention"
    if len(seen) == 2 and ("mel" in name or "spec" in name):
        return "mel"
    if values.ndim in (3, 4) and 3 in (values.shape[-1], values.shape[-3]) and min(sorted(seen)[-2:], default=0) >= 16:
        return "image"
    return "tensor"


# --------------------------------------------------------------------------------------------------------------- pictures


def pictures(arrays: Sequence[Array]) -> dict[str, Any]:
    """Tensors of one shape as slices of few cells each: reference, port and difference, or one alone.

    Reference and port are means of what a cell covers, and have one scale; of the difference a cell has the largest, with its sign.
    """
    shape = arrays[0].shape
    kept = [axis for axis, size in enumerate(shape) if size > 1] or list(range(len(shape)))[-1:]
    squeezed = [array.reshape([shape[axis] for axis in kept] or [1]) for array in arrays]
    while squeezed[0].ndim < 2:
        squeezed, kept = [array[None] for array in squeezed], [-1, *kept]
    height, width = squeezed[0].shape[-2:]
    stacked = [array.reshape(-1, height, width) for array in squeezed]
    tall, wide = min(height, TALLEST), min(width, WIDEST)
    slices = _slices(stacked[-1], max(1, min(MOST_SLICES, MOST_CELLS // (tall * wide))))
    means = [np.stack([_means(array[one], tall, wide) for one in slices]) for array in stacked[:2]]
    low, high = _ends(means)
    drawn = {
        "height": tall,
        "width": wide,
        "axes": kept[-2:],
        "slices": _labels(slices, squeezed[0].shape[:-2], kept),
        "low": rounded(low),
        "high": rounded(high),
        "values": [_bytes(array, low, high) for array in means],
    }
    if len(arrays) == 3:
        extremes = np.stack([_extremes(stacked[2][one], tall, wide) for one in slices])
        largest = float(np.nanmax(np.abs(extremes), initial=0.0)) or 1.0
        drawn |= {"largest": rounded(largest), "difference": _bytes(extremes, -largest, largest)}
    return drawn


def _slices(last: Array, most: int) -> list[int]:
    """Which slices are drawn: all, or those evenly spread with the one whose values are largest."""
    count = last.shape[0]
    if count <= most:
        return list(range(count))
    worst = int(np.nan_to_num(np.abs(last)).reshape(count, -1).max(axis=1).argmax())
    spread = np.linspace(0, count - 1, max(1, most - 1)).astype(int).tolist() if most > 1 else []
    return sorted({worst, *spread})


def _labels(slices: Sequence[int], outer: tuple[int, ...], kept: Sequence[int]) -> list[str]:
    """The index of each slice, along the axes that are not drawn."""
    if not outer:
        return [""] * len(slices)
    found = (np.unravel_index(one, outer) for one in slices)
    return [", ".join(f"axis {axis}: {int(index)}" for axis, index in zip(kept, indices, strict=False)) for indices in found]


def _means(array: Array, tall: int, wide: int) -> Array:
    """A matrix in ``tall`` by ``wide`` cells, each the mean of the numbers that it covers, NaN where it covers none."""
    known = np.isfinite(array)
    total, count = (_reduced(np.add, values, tall, wide) for values in (np.where(known, array, 0.0), known.astype(float)))
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def _extremes(array: Array, tall: int, wide: int) -> Array:
    """The same with the largest number of each cell, by its magnitude."""
    known = np.isfinite(array)
    high = _reduced(np.maximum, np.where(known, array, -np.inf), tall, wide)
    low = _reduced(np.minimum, np.where(known, array, np.inf), tall, wide)
    return np.asarray(np.where(np.isinf(high), np.nan, np.where(high >= -low, high, low)))


def _reduced(how: np.ufunc, array: Array, tall: int, wide: int) -> Array:
    """A matrix in ``tall`` by ``wide`` cells, each made of what it covers."""
    rows, columns = (np.linspace(0, size, cells + 1).astype(int)[:-1] for size, cells in zip(array.shape, (tall, wide), strict=True))
    return np.asarray(how.reduceat(how.reduceat(array, rows, axis=0), columns, axis=1))


def _ends(arrays: Sequence[Array]) -> tuple[float, float]:
    """The scale of values: from the least to the largest, or all but a thousandth where few lie far out."""
    values = np.concatenate([array[np.isfinite(array)] for array in arrays]) if arrays else np.zeros(1)
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    inner = np.quantile(values, (0.001, 0.999))
    if inner[1] > inner[0] and high - low > 4 * (inner[1] - inner[0]):
        low, high = map(float, inner)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _bytes(array: Array, low: float, high: float) -> str:
    """Values as bytes from 0 (``low``) to 254 (``high``), in base64."""
    share = np.clip((array - low) / (high - low), 0.0, 1.0)
    cells = np.where(np.isfinite(share), np.rint(np.nan_to_num(share) * 254), _UNKNOWN).astype(np.uint8)
    return base64.b64encode(cells.tobytes()).decode("ascii")


# --------------------------------------------------------------------------------------------------------------- measures


def _measures(reference: Array, port: Array) -> dict[str, Any]:
    """The error along each axis, a histogram of both sides, samples of difference against reference, and the worst value."""
    difference = port - reference
    flat = [array.reshape(-1) for array in (reference, port, difference)]
    known = np.isfinite(flat[2])
    if not known.any():
        return {}
    worst = int(np.nanargmax(np.abs(flat[2])))
    low, high = _ends([flat[0], flat[1]])
    bins = int(np.clip(math.sqrt(known.sum()), 6, MOST_BINS))
    counts = [np.histogram(array[np.isfinite(array)], bins, (low, high))[0].tolist() for array in flat[:2]]
    return {
        "along": [_along(reference, difference, axis) for axis in range(reference.ndim) if reference.shape[axis] > 1],
        "histogram": {"low": rounded(low), "high": rounded(high), "counts": counts},
        "samples": _samples(flat[0], flat[2], known),
        "worst": {
            "index": [int(place) for place in np.unravel_index(worst, reference.shape)],
            "reference": float(f"{flat[0][worst]:.6g}"),
            "port": float(f"{flat[1][worst]:.6g}"),
        },
    }


def _along(reference: Array, difference: Array, axis: int) -> dict[str, Any]:
    """The RMS of the reference and of the difference for each index of an axis, several in one where it is long."""
    others = tuple(other for other in range(reference.ndim) if other != axis)
    with np.errstate(all="ignore"):
        squares = [np.nan_to_num(array**2).mean(axis=others) if others else np.nan_to_num(array**2) for array in (reference, difference)]
    edges = np.linspace(0, squares[0].size, min(MOST_ALONG, squares[0].size) + 1).astype(int)
    shown = [[rounded(math.sqrt(float(square[a:b].mean()))) for a, b in pairwise(edges)] for square in squares]
    return {"axis": axis, "size": reference.shape[axis], "reference": shown[0], "difference": shown[1]}


def _samples(reference: Array, difference: Array, known: Array) -> list[list[float | None]]:
    """Some values of the reference with their differences: drawn at random, and those that differ most."""
    places = np.flatnonzero(known)
    chosen = np.random.default_rng(0).choice(places, SAMPLES, replace=False) if places.size > SAMPLES else places
    most = places[np.argsort(-np.abs(difference[places]), kind="stable")[:WORST]] if places.size > SAMPLES else places[:0]
    kept = np.concatenate([chosen, most])
    return [[rounded(float(value)) for value in array[kept]] for array in (reference, difference)]


# ----------------------------------------------------------------------------------------------------------- ids and sound


def _ids(reference: Array, port: Array) -> dict[str, Any]:
    """Ids of both sides by their place, and the first place at which they differ (-1: none); of longer ones what lies around it."""
    left, right = reference.reshape(-1), port.reshape(-1)
    common = min(left.size, right.size)
    unequal = np.flatnonzero(left[:common] != right[:common])
    first = int(unequal[0]) if unequal.size else common if left.size != right.size else -1
    start = max(0, first - MOST_IDS // 2) if max(left.size, right.size) > MOST_IDS else 0
    ids = [[None if math.isnan(value) else int(value) for value in side[start : start + MOST_IDS]] for side in (left, right)]
    return {"kind": "ids", "ids": ids, "start": start, "first": first, "unequal": int(unequal.size), "sizes": [left.size, right.size]}


def _sound(reference: Array, port: Array) -> dict[str, Any]:
    """Sound of both sides: its outline, its spectrogram in decibels, and what an audio player plays."""
    outline = [_outline(side) for side in (reference, port, port - reference)]
    magnitudes = [_spectrogram(np.nan_to_num(side)) for side in (reference, port)]
    quiet = max(float(side.max(initial=0.0)) for side in magnitudes) * QUIETEST or 1.0
    spectra = [20 * np.log10(np.maximum(side, quiet)) for side in magnitudes]
    loudest = max(float(np.nanmax(np.abs(side), initial=0.0)) for side in (reference, port)) or 1.0
    players = [_player(np.nan_to_num(side) / max(1.0, loudest)) for side in (reference, port)]
    return {"outline": outline, "players": players, "rate": SOUND_RATE, **pictures([*spectra, spectra[1] - spectra[0]])}


def _outline(values: Array) -> list[list[float | None]]:
    """The least and largest of each stretch."""
    edges = np.linspace(0, values.size, WIDEST + 1).astype(int)
    parts = [values[a:b] for a, b in pairwise(edges)]
    return [[rounded(float(of(np.nan_to_num(part)))) for part in parts] for of in (np.min, np.max)]


def _spectrogram(values: Array) -> Array:
    """Magnitudes of Hann windows of `WINDOW` samples, a quarter of that apart, high frequencies first."""
    windows = np.lib.stride_tricks.sliding_window_view(values, WINDOW)[:: WINDOW // 4]
    return np.asarray(np.abs(np.fft.rfft(windows * np.hanning(WINDOW), axis=1)).T[::-1])


def _player(values: Array) -> str:
    """The first seconds of a sound between -1 and 1 as a WAV file in a data URI."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SOUND_RATE)
        file.writeframes((np.clip(values[: SOUND_RATE * SOUND_SECONDS], -1, 1) * 32767).astype("<i2").tobytes())
    return "data:audio/wav;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
