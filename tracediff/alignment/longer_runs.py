"""A run of the port that has more rows of a batch, or places of a sequence, than the reference's, which it cuts off behind.

What a port adds at the end, a causal model or a batch never lets back to the front. So where the run's inputs hold the reference's at
their front, all that comes of them does, too: its tensors are cut to the reference's lengths and then read as any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from tracediff.alignment.axes import Shape
from tracediff.alignment.layouts import LayoutChooser
from tracediff.alignment.record_table import PairedSites, Rows
from tracediff.alignment.result import RecordPair
from tracediff.alignment.structure import INPUT, Side
from tracediff.trace.calls import TOP


def cut_to_reference(chooser: LayoutChooser, sites: Sequence[PairedSites], found: Sequence[RecordPair]) -> list[RecordPair]:
    """The pairs of records; those that no layout reconciles are read cut to the reference's lengths, where the run's inputs tell these.

    What the port's run returned is not: it should have been cut.
    """
    lengths = _lengths(chooser.rows, found)
    if not lengths:
        return list(found)
    by_place, returned = {pair.place: pair for pair in sites}, _returned(chooser.rows.sides[1])
    is_cut = (pair.layout is None and returned.isdisjoint(pair.port) for pair in found)
    return [_cut(chooser, by_place[pair.sites], pair, lengths) if cut else pair for pair, cut in zip(found, is_cut, strict=True)]


def _returned(side: Side) -> set[int]:
    """The rows of what a run returned; of what its outermost calls returned where the trace does not say."""
    if side.trace.returned is not None:
        return set(side.trace.returned)
    return {row for call in side.calls.children[TOP] for row in side.calls.outputs(call)}


def _lengths(rows: Rows, found: Sequence[RecordPair]) -> dict[int, int]:
    """By each length of the port's run that is more than the reference's the reference's, as the inputs of the runs show it."""
    lengths: dict[int, int] = {}
    for pair in found:
        if len(pair.reference) == len(pair.port) == 1 and _is_given(rows, pair):
            window = pair.layout.window if pair.layout is not None else None
            if window is not None and all(start == 0 for start, _ in window):
                shapes = zip(rows.shape(0, pair.reference[0]), rows.shape(1, pair.port[0]), strict=True)
                lengths.update((theirs, ours) for ours, theirs in shapes if theirs > ours)
    return lengths


def _is_given(rows: Rows, pair: RecordPair) -> bool:
    """Whether a pair is of inputs that no call of either side made."""
    records = zip(rows.sides, (pair.reference[0], pair.port[0]), strict=True)
    return rows.kind[0][pair.reference[0]] == INPUT and all(int(side.index["producer"][row]) < 0 for side, row in records)


def _cut(chooser: LayoutChooser, sites: PairedSites, pair: RecordPair, lengths: Mapping[int, int]) -> RecordPair:
    """A pair read cut to the reference's lengths; as it is where that reconciles nothing."""
    if len(pair.reference) != 1 or len(pair.port) != 1:
        return pair
    a, b = pair.reference[0], pair.port[0]
    for crop in _crops(chooser.rows.shape(1, b), lengths):
        layout, evidence = chooser.of(sites, a, b, crop)
        if layout is not None:
            return replace(pair, layout=replace(layout, crop=crop), evidence=evidence)
    return pair


def _crops(shape: Shape, lengths: Mapping[int, int]) -> Iterator[Shape]:
    """The shapes that a tensor may be cut to, most axes first: an axis may be as long as another for another reason."""
    longer = [axis for axis, length in enumerate(shape) if length in lengths]
    for count in range(len(longer), 0, -1):
        for axes_cut in combinations(longer, count):
            yield tuple(lengths[length] if axis in axes_cut else length for axis, length in enumerate(shape))
