"""A run of the port that has more rows of a batch, or places of a sequence, than the reference's, which it cuts off behind.

What a port adds at the end, a causal model or a batch never lets back to the front. So where code hands a call an input that holds the
reference's at its front, all that comes of it does, too: the tensors of the calls that this code makes are cut to the reference's lengths
and then read as any other. Of the run's own inputs the reference's may also be what is behind: padding on the left, which masks keep apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from tracediff.alignment.axes import Layout, Shape
from tracediff.alignment.layouts import LayoutChooser
from tracediff.alignment.partial_layouts import is_picked
from tracediff.alignment.record_table import PairedSites, Rows
from tracediff.alignment.result import RecordPair
from tracediff.alignment.structure import INPUT, Side
from tracediff.trace.calls import TOP

Lengths = dict[int, tuple[int, int]]
"""By each length of the port's tensors that is more than the reference's, the reference's, and where in the port's it begins."""


def cut_to_reference(chooser: LayoutChooser, sites: Sequence[PairedSites], found: Sequence[RecordPair]) -> list[RecordPair]:
    """The pairs of records; those that no layout reconciles are read cut to the reference's lengths, where inputs around tell these.

    What the port's run returned is not: it should have been cut.
    """
    lengths = _lengths(chooser.rows, found)
    if not lengths:
        return list(found)
    by_place, returned = {pair.place: pair for pair in sites}, _returned(chooser.rows.sides[1])
    cut: list[RecordPair] = []
    for pair in found:
        known = _known(chooser.rows.sides[1], pair, lengths) if returned.isdisjoint(pair.port) else {}
        known = known if pair.layout is None or _is_elsewhere(chooser.rows, pair, known) else {}
        one = _cut(chooser, by_place[pair.sites], pair, known) if known else pair
        cut.extend([] if one is None else [one])
    return cut


def _is_elsewhere(rows: Rows, pair: RecordPair, lengths: Lengths) -> bool:
    """Whether a pair is read in a window that begins elsewhere than what the run's inputs say of tensors of that length."""
    layout = pair.layout
    if layout is None or layout.window is None or len(pair.port) != 1:
        return False
    ends = zip(layout.turned(rows.shape(1, pair.port[0])), layout.window, strict=True)
    return any(lengths.get(length, (stop - start, start)) != (stop - start, start) for length, (start, stop) in ends)


def _returned(side: Side) -> set[int]:
    """The rows of what a run returned; of what its outermost calls returned where the trace does not say."""
    return set(side.calls.outermost_outputs if side.trace.returned is None else side.trace.returned)


def _lengths(rows: Rows, found: Sequence[RecordPair]) -> dict[int, Lengths]:
    """The lengths by the port's call whose code made inputs longer that it hands on; TOP where the run's own inputs are."""
    lengths: dict[int, Lengths] = defaultdict(dict)
    for pair in found:
        if len(pair.reference) != 1 or len(pair.port) != 1 or pair.layout is None:
            continue
        cuts = _cuts(pair.layout, rows.shape(1, pair.port[0]))
        maker = _maker(rows.sides[1], pair.port[0]) if cuts and rows.kind[0][pair.reference[0]] == INPUT else None
        if maker is None or (maker != TOP and any(start for _, start in cuts.values())):  # a layer's own padding ends with the layer
            continue
        for other, (own, start) in cuts.items():
            # the first input tells: ids have one place in others, where positions that count from 0 would be at the front
            lengths[maker].setdefault(other, (own, start))
    return lengths


def _cuts(layout: Layout, shape: Shape) -> Lengths:
    """The lengths of a port's tensor that a layout cuts, in a window, or to the first row where the reference has one."""
    part = layout.part
    if layout.window is not None:
        ends = zip(layout.turned(shape), layout.window, strict=True)
        return {length: (stop - start, start) for length, (start, stop) in ends if length > stop - start}
    is_first_row = part is not None and (part.axis, part.start, part.stop, part.groups) == (0, 0, 1, 1)
    return {shape[0]: (1, 0)} if is_first_row else {}


def _maker(side: Side, row: int) -> int | None:
    """The call whose own code made an input, whatever calls hand it on; TOP for the run's code, None where another call returned it."""
    producers = side.index["producer"]
    while int(producers[row]) >= 0:
        row = int(producers[row])
        if side.end_kind[row] != INPUT:
            return None
    return int(side.calls.parent[side.calls.of_row[row]])


def _known(side: Side, pair: RecordPair, lengths: Mapping[int, Lengths]) -> Lengths:
    """The lengths that hold for a pair: those of all calls around the port's."""
    call, known = int(side.calls.parent[side.calls.of_row[pair.port[0]]]), dict(lengths.get(TOP, {}))
    while call >= 0:
        known = {**lengths.get(call, {}), **known}
        call = int(side.calls.parent[call])
    return known


def _cut(chooser: LayoutChooser, sites: PairedSites, pair: RecordPair, lengths: Lengths) -> RecordPair | None:
    """A pair read cut to the reference's lengths; as it is where that reconciles nothing. None where it is no pair then."""
    if len(pair.reference) != 1 or len(pair.port) != 1:
        return pair
    a, b = pair.reference[0], pair.port[0]
    for crop, start in _crops(chooser.rows.shape(1, b), lengths):
        layout, evidence = chooser.of(sites, a, b, crop, start)
        if layout is not None:
            return replace(pair, layout=replace(layout, crop=crop, crop_from=start), evidence=evidence)
        if is_picked(chooser.rows, a, b, crop):
            return None
    return pair


def _crops(shape: Shape, lengths: Lengths) -> Iterator[tuple[Shape, Shape | None]]:
    """The shapes that a tensor may be cut to, and where the cuts begin (None: at the front), most axes first.

    An axis may be as long as another for another reason.
    """
    longer = [axis for axis, length in enumerate(shape) if length in lengths]
    for count in range(len(longer), 0, -1):
        for axes_cut in combinations(longer, count):
            cuts = [lengths[length] if axis in axes_cut else (length, 0) for axis, length in enumerate(shape)]
            starts = tuple(start for _, start in cuts)
            yield tuple(length for length, _ in cuts), starts if any(starts) else None
