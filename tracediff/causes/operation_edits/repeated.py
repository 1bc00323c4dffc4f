"""An operation applied once more than the reference applies it, or once for each time that a place is named; copies in another order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from tracediff.causes.operation_edits.base import NORMS, PRODUCTS, VIEWS, Change, is_float, is_mask, ref_at, shape_at
from tracediff.causes.program import Replay
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.replay.computed import Compute, Values
from tracediff.trace.operations import Node


def once_more(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A term is added, a factor applied, or a norm taken, of what that gave already."""
    program = replay.program
    if node.name == "@item" and not node.args[1] and program.nodes[node.refs[0]].name in NORMS & _GIVING_MORE:
        node, number = program.nodes[node.refs[0]], node.refs[0]
    elif node.name not in ("add", *PRODUCTS) or not is_float(replay, number):
        return
    first, second = ref_at(node, 0), ref_at(node, 1)
    if first is None or (node.name not in NORMS and (second is None or is_mask(replay, second) or is_mask(replay, first))):
        return
    own = shape_at(replay, number) or shape_at(replay, first)
    for place, ref in enumerate((first, second) if node.name in ("add", "mul") else (first,)):
        if ref is not None and shape_at(replay, ref) == own:
            other = second if place == 0 else first
            what = f"{node.name.strip('_')} by {program.text(other)}" if node.name not in NORMS and other is not None else "the norm"
            said = f"the port applies {what} to {program.text(ref)} twice"
            yield Change("branch.extra", said, {number: _again(replay, node, ref)})


_GIVING_MORE = frozenset(("native_layer_norm", "_fused_rms_norm", "native_group_norm"))
"""Norms that give statistics as well."""


def _again(replay: Replay, node: Node, ref: int) -> Compute:
    def compute(values: Values) -> Any:
        made = replay.apply(node, values)
        return replay.apply(node, {**values, ref: made[0] if isinstance(made, tuple) else made})

    return compute


def for_each_mention(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """What is read from some places, changed and written back there, is so once for each time that a place is named, or twice."""
    program, base = replay.program, ref_at(node, 0)
    if node.name not in ("scatter", "index_put") or base is None or not is_float(replay, number):
        return
    written = node.refs[-1]
    steps = [step for step in program.steps if step != base and step in program.ancestors(written) and base in program.ancestors(step)]
    if not steps:
        return
    counts = _mentions(replay, node)
    for said, times in (("once for each time that it is named", counts), ("twice", 2 * np.minimum(counts, 1))):
        if 1 < times.max(initial=0) <= THRESHOLDS.most_repeated:
            what = ", ".join(dict.fromkeys(program.nodes[step].name for step in steps if program.nodes[step].name not in _READING))
            text = f"the port applies {what} to each place of {program.text(base)} {said}, the reference once"
            yield Change("branch.extra", text, {number: _written(replay, node, base, steps, times)})


_READING = frozenset(("gather", "index"))


def _mentions(replay: Replay, node: Node) -> Array:
    """How often each place of a tensor is written to."""
    base = replay.values[node.refs[0]]
    counts = np.zeros(base.shape, int)
    if node.name == "scatter":
        index = replay.values[node.refs[1]]
        where: list[Any] = list(np.indices(index.shape))
        where[node.args[1]] = index
    else:
        where = [slice(None) if one is None else replay.values[one.node] for one in node.args[1]]
    np.add.at(counts, tuple(where), 1)
    return counts


def _written(replay: Replay, node: Node, base: int, steps: list[int], times: Array) -> Callable[[Values], Array]:
    def compute(values: Values) -> Array:
        made: Array = values[base]
        for turn in range(1, int(times.max()) + 1):
            given = {**values, base: made}
            for step in steps:
                given[step] = replay.apply(replay.program.nodes[step], given)
            made = np.where(times >= turn, replay.apply(node, given), made)
        return made

    return compute


def copied_whole(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A tensor is repeated as a whole (0 1 0 1), where the reference repeats each of its parts in turn (0 0 1 1): heads of keys."""
    program, ref = replay.program, ref_at(node, 0)
    while ref is not None and ref not in program.leaves and program.nodes[ref].name in ("clone", "contiguous"):
        ref = ref_at(program.nodes[ref], 0)
    if node.name not in VIEWS or ref is None or ref in program.leaves or program.nodes[ref].name != "expand":
        return
    source = program.nodes[ref].refs[0]
    before, after = shape_at(replay, source), shape_at(replay, ref)
    axes = [axis for axis, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
    if len(before) != len(after) or len(axes) != 1 or not axes[0]:
        return
    axis, times = axes[0] - 1, after[axes[0]]
    merged = (*before[:axis], before[axis] * times, *before[axis + 2 :])
    if before[axis] > 1 and shape_at(replay, number) == merged:
        said = f"the port repeats {program.text(source)} as a whole, the reference each of its parts in turn"
        yield Change("heads.layout", said, {number: partial(_whole_again, source, axis, times)})


def _whole_again(source: int, axis: int, times: int, values: Values) -> Array:
    return np.concatenate([values[source].squeeze(axis + 1)] * times, axis)
