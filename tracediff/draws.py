"""Random draws as standard variates, so that the draws of two sides can be compared and handed over.

One side's function may scale what it draws, where on the other side the caller does. The arguments noted with each draw tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import prod
from typing import Any

import numpy as np

from tracediff.dtype import Array

Shape = tuple[int, ...]


def standard(name: str, values: Array, arguments: Mapping[str, Any]) -> Array:
    """The standard variates of a draw, in its shape: what the call made of them undone, where its noted arguments tell.

    ``name`` is the draw's canonical name. A draw of another distribution is returned as it is.

    >>> standard("random.uniform", np.float32([-3.0, 3.0]), {"low": -3.0, "high": 3.0}).tolist()
    [0.0, 1.0]
    """
    affine = affine_of(name, arguments)
    return values if affine is None else affine.shrink(values)


@dataclass(frozen=True, slots=True)
class Affine:
    """What a call makes of standard variates: ``offset + factor * variate``, in float32 as a framework does it."""

    offset: np.float32
    factor: np.float32

    @property
    def is_identity(self) -> bool:
        """Whether the call leaves the variates as they are."""
        return bool(self.offset == 0 and self.factor == 1)

    def stretch(self, variates: Array) -> Array:
        """Standard variates as the call returns them."""
        return variates if self.is_identity else variates * self.factor + self.offset

    def shrink(self, values: Array) -> Array:
        """What the call returned as standard variates."""
        return values if self.is_identity or self.factor == 0 else (values - self.offset) / self.factor


_ARGUMENTS = {"random.normal": (("mean", 0.0), ("std", 1.0)), "random.uniform": (("low", 0.0), ("high", 1.0))}
"""The two arguments, with their defaults, that scale a draw of each distribution."""


def affine_of(name: str, arguments: Mapping[str, Any]) -> Affine | None:
    """What a call makes of standard variates; None for another distribution, and where the call's arguments are no numbers."""
    if name not in _ARGUMENTS:
        return None
    first, second = (arguments.get(key, default) for key, default in _ARGUMENTS[name])
    if not isinstance(first, (int, float)) or not isinstance(second, (int, float)):
        return None
    factor = np.float32(second) - np.float32(first) if name == "random.uniform" else np.float32(second)
    return Affine(np.float32(first), np.float32(factor))


def laid_out(values: Array, shape: Shape) -> Array | None:
    """Values in another shape of the same size: axes permuted where the sizes say so, else reshaped; None where the sizes differ.

    Axes of size 1 do not count. Of several permutations the one that moves the fewest axes is taken.

    >>> laid_out(np.zeros((1, 80, 7)), (1, 7, 80)).shape
    (1, 7, 80)
    """
    if values.shape == shape:
        return values
    if values.size != prod(shape):
        return None
    inner, wanted = values.squeeze(), [size for size in shape if size != 1]
    if sorted(inner.shape) == sorted(wanted) and list(inner.shape) != wanted:
        fitting = [order for order in permutations(range(inner.ndim)) if [inner.shape[axis] for axis in order] == wanted]
        inner = inner.transpose(min(fitting, key=_moved))
    return inner.reshape(shape)


def _moved(order: Sequence[int]) -> int:
    """How many axes a permutation moves."""
    return sum(place != axis for place, axis in enumerate(order))
