"""Weight norms: when one tensor is ``gain * direction / |direction|``, the norm taken over all axes but the gain's.

Of each row of the merged tensor the norm is the gain. So the norm of the whole is the gain's norm. A vector that contracts every other
axis (a sketch's) is ``gain / |row|`` times the direction's, which gives the norm of each row, and so the direction's norm.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tracediff.tensors.thresholds import THRESHOLDS

Floats = NDArray[np.float64]
Shape = tuple[int, ...]


def gain_axis(gain: Shape, direction: Shape) -> int | None:
    """The direction's axis along which its gain varies, -1 where the gain is one number; None where the shapes fit no weight norm."""
    rank = len(direction)
    if len(gain) != rank or rank < 2 or math.prod(gain) >= math.prod(direction):
        return None
    long_axes = [axis for axis, size in enumerate(gain) if size != 1]
    if len(long_axes) > 1 or any(gain[axis] != direction[axis] for axis in long_axes):
        return None
    return long_axes[0] if long_axes else -1


def norm_axes(rank: int, axis: int) -> tuple[int, ...]:
    """The axes over which a weight norm's norm is taken: all but the gain's."""
    return tuple(other for other in range(rank) if other != axis)


def has_norm_of(gain: float, merged: float) -> bool:
    """Whether a tensor's norm is its gain's norm."""
    return abs(merged - gain) <= THRESHOLDS.merged_norm * gain


def is_merged(gain: Floats, direction: Floats, merged: Floats, direction_norm: float) -> bool:
    """Whether a tensor's rows are the direction's times the gain over one norm each, which together make the direction's norm.

    ``gain``: (rows,) the gain itself. ``direction``, ``merged``: (rows,) both contracted over every other axis by the same vectors.
    ``direction_norm``: the norm of the whole direction.
    """
    if not gain.size == direction.size == merged.size or not direction.all() or not merged.all():
        return False
    row_norms = gain * direction / merged
    implied = float(np.linalg.norm(row_norms))
    return bool(np.all(row_norms > 0)) and abs(implied - direction_norm) < THRESHOLDS.direction_norm * direction_norm
