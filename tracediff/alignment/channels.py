"""Which axis of a tensor holds the channels, by the layers that take it in or return it.

Where two lengths of a tensor are equal, its shape does not tell a transposed tensor from a plain one. After a fault its values do not
either. A convolution does: PyTorch's have their channels on axis 1, MLX's on the last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from tracediff.alignment.axes import Layout
from tracediff.alignment.structure import INPUT, OUTPUT, Side
from tracediff.site import End

_FIRST = re.compile(
    r"(Conv|ConvTranspose|BatchNorm|InstanceNorm|(Max|Avg|LPool|AdaptiveMax|AdaptiveAvg)Pool)[123]d|SyncBatchNorm|GroupNorm"
)
_LAST = re.compile(r"Linear|LayerNorm|RMSNorm|LSTM|GRU|RNN|Embedding")
_LAST_IN_MLX = re.compile(r"(Conv|ConvTranspose)[123]d|BatchNorm|InstanceNorm|GroupNorm|(Max|Avg)Pool[123]d")


class Channels:
    """The axis of the channels of one side's rows."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._is_mlx = str(side.trace.meta.get("impl", "")) == "mlx"
        self._is_torch = str(side.trace.meta.get("impl", "")) == "torch"

    def of_layer(self, row: int) -> int | None:
        """The axis, where the row's own module is a layer of the framework and the row its main tensor; None elsewhere."""
        return self._layers.get(row)

    def of(self, row: int) -> int | None:
        """The axis, where a layer takes in or returns that very tensor anywhere, and no other layer contradicts."""
        known = self._groups.get(self._side.tensor[row], ())
        return next(iter(known)) if len(set(known)) == 1 else None

    @cached_property
    def _layers(self) -> dict[int, int]:
        calls = self._side.calls
        found: dict[int, int] = {}
        conventions = [self._convention(name) for name in self._side.type]
        for row, call in enumerate(calls.of_row.tolist()):
            convention = conventions[int(calls.site[call])]
            rank = len(self._side.shapes[row])
            if convention and rank > 2 and self._is_main(row):
                found[row] = 1 if convention == "first" else rank - 1
        return found

    def _convention(self, name: str) -> str:
        """Where a layer of that class has its channels, "first" or "last"; empty for any other class."""
        if self._is_mlx and (_LAST_IN_MLX.fullmatch(name) or _LAST.fullmatch(name)):
            return "last"
        if self._is_torch:
            return "first" if _FIRST.fullmatch(name) else "last" if _LAST.fullmatch(name) else ""
        return ""

    def _is_main(self, row: int) -> bool:
        kind = int(self._side.end_kind[row])
        keys = End.parse(self._side.text("end", row)).keys
        return (kind == INPUT and keys == (0,)) or (kind == OUTPUT and keys in ((), (0,)))

    @cached_property
    def _groups(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for row, axis in self._layers.items():
            found.setdefault(self._side.tensor[row], []).append(axis)
        return found


def of_layers(sides: tuple[Channels, Channels], a: int, b: int, same: Sequence[Layout]) -> Layout:
    """Of layouts that do the same to the values the one that lays channels on channels where two rows are of layers, else the plainest."""
    return keeping(same, sides[0].of_layer(a), sides[1].of_layer(b))[0]


def keeping(candidates: Sequence[Layout], ours: int | None, theirs: int | None) -> list[Layout]:
    """The layouts that lay the port's channels (axis ``theirs``) on the reference's (``ours``); all where either is unknown."""
    if ours is None or theirs is None:
        return list(candidates)
    found = [layout for layout in candidates if _lays(layout, ours, theirs)]
    return found or list(candidates)


def _lays(layout: Layout, ours: int, theirs: int) -> bool:
    """Whether a layout lays axis ``theirs`` of the port on axis ``ours`` of the reference, and cuts a part from these axes only."""
    if layout.split is not None or layout.window is not None:
        return False
    is_cut_there = all(part is None or part.axis == axis for part, axis in ((layout.part_reference, ours), (layout.part, theirs)))
    return is_cut_there and (ours if layout.permutation is None else layout.permutation[ours]) == theirs
