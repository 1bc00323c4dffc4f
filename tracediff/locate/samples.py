"""A sample of a pair: a few values, taken here and there and compared place by place.

A sample shows what statistics cannot see: values that changed places. Neither sees a few values that changed places among many, and neither
is a proof: what rests on them is counted apart.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tracediff.alignment.axes import Layout, apply, apply_reference, places_in_part, places_in_port
from tracediff.dtype import MASKED, Array, named
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.trace import Record
from tracediff.trace.thinning import drawn_places


def can_sample(references: Sequence[Record], ports: Sequence[Record], layout: Layout) -> bool:
    """Whether a few values of a pair's records can be compared place by place: plain numbers, and enough of them."""
    is_joined = len(references) > 1 or len(ports) > 1 or layout.repeat or layout.window_reference is not None
    if not _count(layout) or (is_joined and _size(references) + _size(ports) > THRESHOLDS.most_joined_values):
        return False
    return all(map(_is_plain, (*references, *ports)))


def sampled(references: Sequence[Record], ports: Sequence[Record], layout: Layout, chance: random.Random) -> tuple[float, int]:
    """The relative L2 of a few values of a pair that `can_sample`, place by place, and how many these are.

    The error is over the RMS of the whole reference, so that small values weigh as little as they do in the whole.
    """
    total, count = math.prod(layout.shape), _count(layout)
    places = drawn_places(total, count, chance)
    if len(references) == len(ports) == 1 and not layout.repeat and layout.window_reference is None:
        ours = references[0].at(places_in_part(places, layout.part_reference, references[0].shape))
        theirs = ports[0].at(places_in_port(places, layout, ports[0].shape))
    else:
        ours = _taken(references, apply_reference(_numbered(references), layout).reshape(-1)[places])
        theirs = _taken(ports, apply(_numbered(ports), layout).reshape(-1)[places])
    if named(references[0].dtype).is_exact:
        return (0.0 if np.array_equal(ours, theirs) else math.inf), count
    wide = np.complex128 if ours.dtype.kind == "c" or theirs.dtype.kind == "c" else np.float64
    error = float(np.linalg.norm(theirs.astype(wide) - ours.astype(wide))) / math.sqrt(count)
    rms = math.hypot(*(record.stats.l2 for record in references)) / math.sqrt(_size(references))
    return (error / rms if rms else math.inf if error else 0.0), count


def _numbered(records: Sequence[Record]) -> list[Array]:
    """Arrays of the records' shapes that number the values of all of them, one record behind another."""
    starts = np.cumsum([0, *(math.prod(record.shape) for record in records)])
    return [np.arange(start, stop).reshape(record.shape) for record, (start, stop) in zip(records, pairwise(starts.tolist()), strict=True)]


def _taken(records: Sequence[Record], places: Array) -> Array:
    """The values at the places that `_numbered` counts."""
    starts = np.cumsum([0, *(math.prod(record.shape) for record in records)])
    owner = np.searchsorted(starts, places, "right") - 1
    return np.concatenate([records[which].at(np.array([place - starts[which]])) for which, place in zip(owner, places, strict=True)])


def _size(records: Sequence[Record]) -> int:
    return sum(math.prod(record.shape) for record in records)


def _count(layout: Layout) -> int:
    return min(THRESHOLDS.most_sampled_values, int(math.prod(layout.shape) * THRESHOLDS.most_sampled_share))


def _is_plain(record: Record) -> bool:
    """Whether a record holds finite numbers and no additive masks."""
    return not (record.stats.nan or record.stats.inf) and record.stats.min > MASKED and record.dtype != "text"
