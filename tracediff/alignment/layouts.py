"""In which layout the tensor of one side is read as its partner's, where a mapping or the shapes say so.

Where shapes leave several, all tensors are decided together: see `joint_layouts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tracediff.alignment import axes, channels, partial_layouts
from tracediff.alignment.axes import Layout, Shape
from tracediff.alignment.partial_layouts import Choice, CutOutputs, OnePosition, unreadable
from tracediff.alignment.record_table import PairedSites, Rows
from tracediff.alignment.structure import INPUT
from tracediff.trace.reads import Reads

OPEN = "shapes leave the layout open"
"""The evidence of a pair of records until its layout is settled."""

Key = tuple[int, int, int, int, int]
"""What records that are read in one layout have in common: their pair of sites, their boundaries, their shapes."""


@dataclass(frozen=True, slots=True)
class Tensors:
    """Two records whose layout is wanted, row ``a`` of the reference and ``b`` of the port, of two paired sites."""

    sites: PairedSites
    a: int
    b: int
    shape_a: Shape
    shape_b: Shape
    candidates: tuple[Layout, ...]  # the layouts that the two shapes allow, the plainest first
    crop: Shape | None = None  # the lengths to which the port's tensor is cut first; ``shape_b`` has them
    crop_from: Shape | None = None  # where along each axis that cut begins; None: at the front


class LayoutChooser:
    """The layouts of pairs of records. ``options``: the layouts among which shapes leave a choice, the plainest first."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.one_position, self.cut_outputs, self.reads = OnePosition(rows), CutOutputs(rows), Reads(rows.sides[0].trace)
        self.options: dict[Key, Sequence[Layout]] = {}

    def of(self, sites: PairedSites, a: int, b: int, crop: Shape | None = None, crop_from: Shape | None = None) -> Choice:
        """The layout of a pair of records, and the evidence for it: what the first of `CASCADE` says that says anything.

        ``crop``: the lengths to which the port's tensor is cut first, at the front or from ``crop_from`` on.
        """
        shapes = self.rows.shape(0, a), crop or self.rows.shape(1, b)
        tensors = Tensors(sites, a, b, *shapes, axes.layouts(*shapes), crop, crop_from)
        for step in CASCADE:
            choice = step(self, tensors)
            if choice is not None:
                return choice
        return self.among(tensors, axes.readings(tensors.shape_a, tensors.shape_b), "shapes")

    def among(self, tensors: Tensors, ways: Sequence[Sequence[Layout]], evidence: str) -> Choice:
        """The plainest of the layouts that shapes allow, given by what they do to the values; open where there are several ways."""
        options = [channels.of_layers(self.rows.channels, tensors.a, tensors.b, same) for same in ways]
        if tensors.crop is not None:
            options = [replace(one, crop=tensors.crop, crop_from=tensors.crop_from) for one in options]
        if not options:
            return None, unreadable(tensors.shape_a, tensors.shape_b)
        if len(options) > 1:
            self.options[self.key(tensors.sites.place, tensors.a, tensors.b)] = options
        return options[0], OPEN if len(options) > 1 else evidence

    def key(self, place: int, a: int, b: int) -> Key:
        """What two records have in common with all that are read in one layout."""
        return place, self.rows.end[0][a], self.rows.end[1][b], self.rows.shape_codes[0][a], self.rows.shape_codes[1][b]


# -- the steps of the cascade --------------------------------------------------------------------------------------------------


def of_fused_part(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """Outputs of a fused projection and of one of its parts."""
    sites = tensors.sites
    if sites.part is None or chooser.rows.kind[0][tensors.a] == INPUT:
        return None
    ways = partial_layouts.of_fused_part(sites.part, sites.whole, tensors.shape_a, tensors.shape_b)
    if not ways:
        return None, f"no part of {tensors.shape_b if sites.whole == 'port' else tensors.shape_a} holds the other"
    return chooser.among(tensors, ways, partial_layouts.FUSED)


def as_given(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """The permutation that a mapping states, wherever it fits."""
    order = tensors.sites.permutation
    if order is None or not _fits(order, tensors.shape_a, tensors.shape_b):
        return None
    return Layout(tensors.shape_a, permutation=order), "given"


def of_grouped_heads(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """Keys or values that one side repeats for the heads of a group before attention, and the other side leaves to attention."""
    rows, shape_a, shape_b = chooser.rows, tensors.shape_a, tensors.shape_b
    if shape_a == shape_b or rows.kind[0][tensors.a] != INPUT or not rows.are_of_functions(tensors.a, tensors.b):
        return None
    if (rows.key(0, tensors.a).keys, rows.key(1, tensors.b).keys) not in ((("k",), ("k",)), (("v",), ("v",))):
        return None
    if min(len(shape_a), len(shape_b)) < 3 or shape_a[-2:] != shape_b[-2:]:
        return None
    layout = axes.shared(shape_a, shape_b)
    return None if layout is None else (layout, "heads of one group share it")


def of_one_position(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """A single position of a sequence on one side, all positions on the other."""
    if tensors.crop is not None or tensors.shape_a == tensors.shape_b:
        return None
    return chooser.one_position.of(tensors.a, tensors.b)


def of_cut_output(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """Outputs of which one side cuts an end off inside the module and the other side outside."""
    return chooser.cut_outputs.of(tensors.a, tensors.b) if not tensors.candidates and tensors.crop is None else None


def of_padded_or_repeated(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """Inputs that one side pads, or repeats along an axis (a mask), before the call."""
    candidates = tensors.candidates
    if not candidates or tensors.crop is not None or not (candidates[0].repeat or candidates[0].window is not None):
        return None
    return partial_layouts.padded_or_repeated(chooser.rows, tensors.a, tensors.b, candidates)


def of_read_part(chooser: LayoutChooser, tensors: Tensors) -> Choice | None:
    """Tensors of which the port has what the reference's code reads, and the reference more."""
    if tensors.shape_a == tensors.shape_b or tensors.crop is not None:
        return None
    ways = partial_layouts.of_read_part(chooser.reads, tensors.a, tensors.shape_b)
    return chooser.among(tensors, ways, partial_layouts.READ_PART) if ways else None


CASCADE: tuple[Callable[[LayoutChooser, Tensors], Choice | None], ...] = (
    of_fused_part,
    as_given,
    of_grouped_heads,
    of_read_part,
    of_one_position,
    of_cut_output,
    of_padded_or_repeated,
)
"""Steps in order; the first that says anything decides. An ablation leaves one out by its name."""


def _fits(permutation: tuple[int, ...], reference: Shape, port: Shape) -> bool:
    return len(permutation) == len(port) and tuple(port[axis] for axis in permutation) == reference
