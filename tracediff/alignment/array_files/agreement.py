"""What values say: how well each tensor of the port agrees with each of the reference's, in the order of axes in which they agree best.

Tensors of as many values are compared at the same few places, all pairs at once, in every order of axes that their shapes allow.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment import axes
from tracediff.alignment.array_files.contents import Contents, Shape, plain, sample_places
from tracediff.alignment.array_files.thresholds import THRESHOLDS
from tracediff.dtype import Array, named, view

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Agreement:
    """What values say of every content of the reference and every content of the port; all of the shape (reference, port).

    ``fits``: some order of axes reads one as the other. ``error``: the relative L2 in the best order, infinite where none fits.
    ``likeness``: the correlation in the order in which it is best, 0 where it may be chance.
    """

    fits: Flags
    error: Floats
    likeness: Floats


def agreement(reference: Contents, port: Contents) -> Agreement:
    """How well all contents of two sides agree."""
    shape = len(reference.all), len(port.all)
    found = Agreement(np.zeros(shape, bool), np.full(shape, np.inf), np.zeros(shape))
    ours, theirs = _by_size(reference), _by_size(port)
    for count in ours.keys() & theirs.keys():
        for part in _portions(theirs[count], count):
            _compare(found, reference, port, ours[count], part)
    return found


Member = tuple[int, int, Shape]
"""A content, a row that holds it, and the row's shape."""


def _by_size(contents: Contents) -> dict[int, list[Member]]:
    """The contents whose values were stored, by their number of values."""
    found: dict[int, list[Member]] = defaultdict(list)
    for number, content in enumerate(contents.all):
        if content.count and contents.side.trace.records[content.rows[0]].stored:
            found[content.count].extend((number, row, shape) for row, shape in contents.shapes(number))
    return found


def _portions(members: Sequence[Member], count: int) -> Iterator[Sequence[Member]]:
    """The port's tensors of one size, as many at once as memory allows."""
    step = max(1, THRESHOLDS.group_bytes // (8 * count))
    for start in range(0, len(members), step):
        yield members[start : start + step]


def _compare(found: Agreement, reference: Contents, port: Contents, ours: Sequence[Member], theirs: Sequence[Member]) -> None:
    """Adds what values say of tensors of as many values."""
    places = sample_places(reference.all[ours[0][0]].count)
    flat = {row: _values(port, row) for _, row, _ in theirs}
    for shape, some in _by_shape(ours).items():
        left = np.stack([_values(reference, row)[places] for _, row, _ in some])
        rows = np.array([number for number, _, _ in some])
        for other, others in _by_shape(theirs).items():
            columns = np.array([number for number, _, _ in others])
            for same in axes.readings(shape, other):
                seen = axes.places_in_port(places, same[0], other)
                right = np.stack([flat[row][seen] for _, row, _ in others])
                _add(found, np.ix_(rows, columns), *_measured(left, right))


def _by_shape(members: Sequence[Member]) -> dict[Shape, list[Member]]:
    found: dict[Shape, list[Member]] = defaultdict(list)
    for member in members:
        found[member[2]].append(member)
    return found


def _values(contents: Contents, row: int) -> Array:
    record = contents.side.trace.records[row]
    return plain(view(record.read(), named(record.dtype)))


def _add(found: Agreement, cells: tuple[Array, ...], error: Floats, likeness: Floats) -> None:
    found.fits[cells] = True
    found.error[cells] = np.minimum(found.error[cells], error)
    found.likeness[cells] = np.maximum(found.likeness[cells], likeness)


def _measured(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """The relative error and the correlation of every two rows; ``left``: (reference, values), ``right``: (port, values)."""
    count = left.shape[1]
    squares = (left * left).sum(1), (right * right).sum(1)
    products = left @ right.T
    gap = np.maximum(squares[0][:, None] + squares[1][None, :] - 2 * products, 0.0)
    rounding = 1e-15 * count * np.maximum(squares[0][:, None], squares[1][None, :])
    scale = squares[0][:, None]
    error = np.sqrt(np.divide(np.where(gap <= rounding, 0.0, gap), scale, out=np.where(gap > rounding, np.inf, 0.0), where=scale > 0))
    means = left.mean(1), right.mean(1)
    spread = np.sqrt(np.maximum(squares[0] / count - means[0] ** 2, 0)), np.sqrt(np.maximum(squares[1] / count - means[1] ** 2, 0))
    scale = spread[0][:, None] * spread[1][None, :]
    covariance = products / count - means[0][:, None] * means[1][None, :]
    correlation = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)
    return error, np.where(correlation * math.sqrt(count) > THRESHOLDS.alike_deviations, np.minimum(correlation, 1.0), 0.0)
