"""The order in which a set is listed: what a top-k chose may come in any order, so that two lists of it are compared in one order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracediff.causes.program import Replay
from tracediff.dtype import Array


@dataclass(frozen=True, slots=True, eq=False)
class SetOrder:
    """An order of the rows of a tensor along ``axis``; ``ranks``, of the tensor's shape, are 0 at the smallest value of each row."""

    axis: int
    ranks: Array

    @property
    def key(self) -> bytes:
        """The same for the same order."""
        return self.ranks.tobytes()

    def arranged(self, values: Array) -> Array:
        """The values of each row, the smallest where the order has its smallest."""
        return np.take_along_axis(np.sort(values, axis=self.axis), self.ranks, self.axis)


def order_of_set(replay: Replay, values: Array) -> SetOrder | None:
    """The order of a tensor that holds one value for each that a top-k of the program chose; None where it does not."""
    program = replay.program
    for step in program.steps:
        node = program.nodes[step]
        if node.name == "topk" and step not in program.leaves:
            chosen = replay.values[step][0]
            axis = (node.args[2] if len(node.args) > 2 else -1) % chosen.ndim - chosen.ndim
            if -axis <= values.ndim and chosen.shape[axis:] == values.shape[axis:] and chosen.shape[axis] > 1:
                return SetOrder(axis, np.argsort(np.argsort(values, axis=axis, kind="stable"), axis=axis, kind="stable"))
    return None
