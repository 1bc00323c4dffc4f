"""Pairs the sites of two traces: anchors from parameters and values, then the tree of calls from the top down, then what is left over.

The score of two sites mixes what their parameters, values, shapes, roles, attributes, neighbours and names say. A fault may silence any
of these (weights that were not loaded, values after an early error), so none decides alone. The sites that two paired callers call are
aligned in the order of their calls, and assigned out of order only where the scores clearly say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tracediff.alignment.passes.corrections import apply_anchors, follow_class, follow_siblings
from tracediff.alignment.passes.descent import descend, descend_again
from tracediff.alignment.passes.fused import fill_gaps, fuse_by_parameters
from tracediff.alignment.passes.levels import enter_wrappers, pair_chains, pair_containers, pair_dissolved
from tracediff.alignment.passes.state import Match, State
from tracediff.alignment.scores import Scores
from tracediff.alignment.structure import Side

PASSES: tuple[Callable[[State], None], ...] = (
    fuse_by_parameters,
    fill_gaps,
    descend,
    apply_anchors,
    descend_again,
    follow_siblings,
    follow_class,
    pair_dissolved,
    pair_chains,
    enter_wrappers,
    pair_containers,
)
"""The passes in order; each adds, moves or removes pairs. An ablation leaves one out by its name."""


def paired_sites(
    reference: Side, port: Side, given: Iterable[Match] = (), ignored: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
) -> State:
    """The pairs of sites after all `PASSES`; ``given`` and ``ignored`` are what a mapping states."""
    state = State(Scores(reference, port), ignored)
    for match in given:
        if match.part is None:
            state.pair(match)
        else:
            state.fuse(match)
    for run in PASSES:
        run(state)
    return state
