"""The arrays that a pair's runs have in hand, so that a benchmark can give both sides others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CellType
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Held:
    """An array that a run's code has in hand: in a cell of its closure, or in a list there."""

    cell: CellType
    index: int | None

    @property
    def value(self) -> np.ndarray:
        held = self.cell.cell_contents
        found: np.ndarray = held if self.index is None else held[self.index]
        return found

    def set(self, value: np.ndarray) -> None:
        if self.index is None:
            self.cell.cell_contents = value
        else:
            self.cell.cell_contents[self.index] = value


def held_arrays(run: Callable[[], Any]) -> list[Held]:
    """The arrays that a run's code holds."""
    found = []
    for cell in run.__closure__ or ():
        held = cell.cell_contents
        if isinstance(held, np.ndarray):
            found.append(Held(cell, None))
        elif isinstance(held, list):
            found += [Held(cell, index) for index, one in enumerate(held) if isinstance(one, np.ndarray)]
    return found


def found_in(value: np.ndarray, known: Sequence[np.ndarray]) -> tuple[int, tuple[int, ...]]:
    """Which of the arrays this one is, and in which order of axes. LookupError for an array of the port's own."""
    for place, one in enumerate(known):
        for order in itertools.permutations(range(one.ndim)) if one.ndim == value.ndim else ():
            if one.transpose(order).shape == value.shape and np.array_equal(one.transpose(order), value):
                return place, order
    raise LookupError("an input that only the port has")
