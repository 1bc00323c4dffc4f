"""Operations left out: a term, a factor, a function, a mask, a norm, or several in a row."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tracediff.causes.in_hand import InHand
from tracediff.causes.operation_edits.base import (
    COUNTING,
    FUNCTION_OF,
    LOGARITHMS,
    MASKS,
    MIXING,
    MOVES,
    NORMS,
    POWERS,
    PRODUCTS,
    REDUCTIONS,
    SEEN_OTHERWISE,
    SOFTMAX,
    SUMS,
    VIEWS,
    Change,
    is_float,
    is_mask,
    ref_at,
    shape_at,
)
from tracediff.causes.operation_edits.frequencies import are_turned
from tracediff.causes.program import Program, Replay
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.replay.computed import Compute
from tracediff.trace.operations import Node


def left_out(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """One operation, or some in a row, give what they were handed: a term, a factor, a function, a mask or a norm is left out."""
    program, shape = replay.program, shape_at(replay, number)
    if not is_float(replay, number):
        return
    layer, above = [number], {number: number}
    for hop in range(THRESHOLDS.farthest_left_out):
        below = [(ref, one) for one in layer if one not in program.leaves for ref in program.nodes[one].refs]
        layer = []
        for ref, one in below:
            if ref in above:
                continue
            above[ref] = one
            layer.append(ref)
            if is_float(replay, ref) and replay.values[ref].size and _broadcasts(shape_at(replay, ref), shape):
                between = _way(above, ref)
                lost = _lost(replay, ref, between)
                kind, text = _kind_of_left_out(replay, ref, number, between, lost)
                yield Change(kind, text, {number: _broadcast_to(ref, shape)}, (kind, hop, _same_place(program, ref, number, above)), lost)


def limit_left_out(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Whole numbers are not limited; where the tensor of the program is such, also limited to its own largest in the end."""
    program, target = replay.program, replay.program.target
    if node.name not in _LIMITS or not _is_whole(replay, number):
        return
    for ref in node.refs:
        if _is_whole(replay, ref) and shape_at(replay, ref) == shape_at(replay, number) and np.ptp(replay.values[ref]):
            said = f"the port does not limit {program.text(ref)} by {node.name}"
            yield Change("clamp", said, {number: _broadcast_to(ref, shape_at(replay, number))})
            if target != number and _is_whole(replay, target):
                most = {target: _limited(replay, target), number: _broadcast_to(ref, shape_at(replay, number))}
                yield Change("clamp", f"{said}, but what is made of it by its largest number", most)


def comparison_left_out(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """Whole numbers are handed on, where the reference asks which of them are equal to, more or less than others."""
    ref = ref_at(node, 0)
    if node.name in _COMPARISONS and ref is not None and _is_whole(replay, ref) and shape_at(replay, ref) == shape_at(replay, number):
        other = ref_at(node, 1)
        than = _number_of(node) if other is None else replay.program.text(other)
        said = f"the port hands on {replay.program.text(ref)}, the reference asks which are {_COMPARISONS[node.name]} {than}"
        yield Change("branch.missing", said, {number: lambda values: values[ref]})


_COMPARISONS = {"eq": "equal to", "ne": "not equal to", "lt": "less than", "le": "at most", "gt": "more than", "ge": "at least"}
_LIMITS = frozenset(("minimum", "maximum", "clamp", "clamp_min", "clamp_max"))


def _is_whole(replay: Replay, node: int) -> bool:
    values = replay.values[node]
    return isinstance(values, np.ndarray) and values.dtype.kind in "iu" and values.size > 1


def _limited(replay: Replay, node: int) -> Compute:
    most = replay.values[node].max()
    return lambda values: np.minimum(replay.apply(replay.program.nodes[node], values), most)


def _same_place(program: Program, kept: int, end: int, above: Mapping[int, int]) -> Any:
    """What is the same for what is kept when the code runs again: the place in the code that made it.

    Where a function is handed it by its callers, it is where it stands among what the operations take in.
    """
    if kept in program.leaves or len(program.roles[kept]) >= len(program.roles[end]):
        return program.role(kept)
    path, node = [], kept
    while above[node] != node:
        path.append(program.nodes[above[node]].refs.index(node))
        node = above[node]
    return tuple(path)


def _lost(replay: Replay, kept: int, between: Sequence[int]) -> tuple[int, ...]:
    """What the operations between take in besides what is kept, the largest first."""
    inside = set(between) | {kept}
    lost = {ref for node in between for ref in replay.program.nodes[node].refs if ref not in inside}
    return tuple(sorted(lost, key=lambda ref: -replay.values[ref].size if isinstance(replay.values[ref], np.ndarray) else 0))


def _way(above: Mapping[int, int], start: int) -> list[int]:
    """The operations on the shortest way from a node to the last one."""
    found, node = [], start
    while above[node] != node:
        node = above[node]
        found.append(node)
    return found


def _broadcast_to(node: int, shape: tuple[int, ...]) -> Compute:
    return lambda values: np.broadcast_to(values[node], shape)


def _broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) <= len(wanted) and all(a in (1, b) for a, b in zip(shape[::-1], wanted[::-1], strict=False)) and math.prod(shape) > 1


def _kind_of_left_out(replay: Replay, kept: int, end: int, between: Sequence[int], others: Sequence[int]) -> tuple[str, str]:
    program = replay.program
    every = {program.nodes[node].name for node in between} - {"@item"}
    names = every - SEEN_OTHERWISE - {"t"} or every  # beside arithmetic what moves values at most says nothing
    other = others[0] if others else None
    own = [ref for ref in others if _is_made_of(replay, ref, kept)]
    made = frozenset().union(*(program.operations(ref) for ref in [*others, *between]))
    what = " and ".join(program.text(one) for one in others[:2])
    last = program.nodes[end].name
    if (choice := _choice(replay, between)) is not None:
        kind = "rope.variant" if are_turned(replay, end) else "branch.missing"
        return kind, f"the port takes {program.text(kept)}, the reference chooses {program.text(choice)} by one condition"
    if names == {"where"} and (other_branch := _other_branch(replay, end, kept)) is not None:
        return "branch.missing", f"the port hands on {program.text(kept)} everywhere, the reference {program.text(other_branch)} in places"
    is_made_mask = is_mask(replay, end) and not np.ptp(replay.values[kept])
    if names & MASKS or is_made_mask or any(is_mask(replay, ref) for ref in others):
        return "mask.missing", f"the port leaves out the mask ({program.text(end)})"
    if (
        names & NORMS
        or (names & PRODUCTS and made & (NORMS | {"rsqrt"}) and own)
        or (names <= (PRODUCTS | {"sub"}) and _is_statistic(replay, own))
    ):
        return "norm.missing", f"the port hands on {program.text(kept)} where the reference normalises it"
    if _is_put_together(replay, kept, end):
        return "order.concat", f"the port hands on {program.text(kept)} where the reference puts its parts in another order"
    if other is not None and {"sin", "cos"} & made and names & {"mul", "cat"} and names & {"add", "cat", "sub"}:
        return "rope.missing", f"the port does not rotate {program.text(kept)}"
    if names <= {"t", "transpose", "permute"}:
        return ("weights.layout" if kept in program.names else "transform"), f"the port does not transpose {program.text(kept)}"
    if names <= SUMS and other is not None:
        return _kind_of_term(replay, kept, other), f"the port leaves out {what}: the reference adds it to {program.text(kept)}"
    if names <= {*PRODUCTS, "neg"} and other is None:
        return "scale", f"the port does not apply {program.nodes[end].name} by {_number_of(program.nodes[end])} to {program.text(kept)}"
    if names <= PRODUCTS:
        kind = "scale" if other is not None and (replay.values[other].size == 1 or _is_parameter(replay, other)) else "branch.missing"
        return kind, f"the port leaves out {what}, which the reference {'divides by' if last == 'div' else 'multiplies with'}"
    if names <= MOVES:
        return "padding.shift" if "roll" in names else "order.reversed", f"the port does not {last} {program.text(kept)}"
    if names & set(LOGARITHMS) and len(names) == 1:
        return "units.log", f"the port leaves out the {last} of {program.text(kept)}"
    if names & SOFTMAX:
        return "activation", f"the port leaves out the softmax of {program.text(kept)}"
    if names <= {"minimum", "maximum"} and other is not None:
        return "clamp", f"the port does not limit {program.text(kept)} by {what}"
    if names <= {*FUNCTION_OF, *POWERS, "pow", "neg", "clamp", "clamp_min", "clamp_max", *PRODUCTS} and not others:
        return ("clamp" if names <= {"clamp", "clamp_min", "clamp_max", "hardtanh"} else "activation"), (
            f"the port leaves out {', '.join(program.nodes[node].name for node in between)} of {program.text(kept)}"
        )
    return "branch.missing", f"the port hands on {program.text(kept)} in the place of {program.text(end)}" + (
        f", without {what}" if what else ""
    )


def _choice(replay: Replay, between: Sequence[int]) -> int | None:
    """The tensor that a `where` between chose as a whole, by a condition of one value, which hides nothing; None where there is none."""
    for node in (replay.program.nodes[number] for number in between):
        if node.name == "where" and len(node.refs) == len(node.args) and replay.values[node.refs[0]].size == 1:
            return node.refs[1 if replay.values[node.refs[0]].all() else 2]
    return None


def _other_branch(replay: Replay, end: int, kept: int) -> int | None:
    """What `where` takes in the other places, where that is computed of what is kept's operands too; None where it hides or fills."""
    program, node = replay.program, replay.program.nodes[end]
    if node.name != "where" or len(node.refs) != len(node.args) or kept not in node.refs[1:]:
        return None
    other = node.refs[1] if kept == node.refs[2] else node.refs[2]
    is_of_both = not (program.ancestors(other) & program.ancestors(kept)).isdisjoint((*program.leaves, *program.steps))
    return other if is_of_both and kept != other and np.ptp(replay.values[other]) else None


def _is_put_together(replay: Replay, kept: int, end: int) -> bool:
    """Whether an operation joins parts of a tensor, and nothing else, which are as many numbers as the tensor has."""
    program = replay.program
    if program.nodes[end].name != "cat" or shape_at(replay, end) != shape_at(replay, kept):
        return False
    below = {ref for ref in program.ancestors(end) if ref != kept and ref > kept and kept in program.ancestors(ref)}
    return all(program.nodes[ref].name in _TAKEN and set(program.nodes[ref].refs) <= {kept, *below} for ref in (*below, end))


_TAKEN = frozenset(("slice", "split", "split_with_sizes", "chunk", "unbind", "@item", "cat", "flip", "clone"))
"""What takes parts of a tensor or joins them."""


def _number_of(node: Node) -> str:
    return next((f"{value:.6g}" for value in node.args if isinstance(value, (int, float))), "a number")


def _is_statistic(replay: Replay, nodes: Sequence[int]) -> bool:
    """Whether what is left out, made of the tensor, was reduced from it: a mean, a sum, a largest value."""
    program = replay.program
    for node in nodes:
        inner, seen = node, 0
        while inner not in program.leaves and seen < THRESHOLDS.farthest_left_out:
            name = program.nodes[inner].name
            if name in REDUCTIONS or name in NORMS:
                return True
            refs = list(program.nodes[inner].refs)
            if len(refs) != 1:
                break
            inner, seen = refs[0], seen + 1
    return False


def _kind_of_term(replay: Replay, kept: int, lost: int) -> str:
    """The kind of cause that it is to leave out a term of a sum, told what it was added to."""
    program = replay.program
    known = {**program.seen, **program.leaves}
    leaf = next((known[one] for one in _plain(replay, lost) if one in known), None)
    words = re.findall("[a-z]+", program.text(lost).lower())
    made = program.operations(lost)
    is_wave = bool({"sin", "cos"} & made) and not made & MIXING
    is_said = any(word in ("pos", "wpe") or word.startswith("posit") for word in words)
    if is_wave or is_said or _is_numbered(replay, lost) or _is_counted(program, lost):
        return "position.missing"
    if leaf is not None:
        return leaf.kind_if_left_out(is_stream=_is_stream(replay, leaf, kept, lost))
    return "branch.missing"


def _is_stream(replay: Replay, leaf: InHand, kept: int, lost: int) -> bool:
    """Whether of two terms of a sum the one left out was a stream, and is what the other was made of, as far as that is known."""
    behind = [replay.program.behind(node) for node in (kept, lost)]
    if not leaf.is_stream or not all(behind):
        return leaf.is_stream
    return not behind[0].isdisjoint(_plain(replay, lost)) and behind[1].isdisjoint(_plain(replay, kept))


def _is_counted(program: Program, node: int) -> bool:
    """Whether a tensor was made of counted places alone: no weight mixed channels in it, and nothing was looked up."""
    made = {program.whole[one].name for one in program.behind(node)}
    return not made.isdisjoint(COUNTING) and made.isdisjoint(MIXING | {"embedding"})


def _is_made_of(replay: Replay, node: int, source: int) -> bool:
    """Whether a tensor was computed from another, or from what that is a mere view of."""
    return not replay.program.ancestors(node).isdisjoint(_plain(replay, source))


def _is_numbered(replay: Replay, node: int) -> bool:
    """Whether a tensor was looked up by numbers that count upwards."""
    program = replay.program
    if node in program.leaves or program.nodes[node].name != "embedding":
        return False
    numbers = replay.values[program.nodes[node].refs[1]]
    return bool(numbers.size > 1 and numbers.shape[-1] > 1 and (np.diff(numbers, axis=-1) == 1).all())


def _is_parameter(replay: Replay, node: int) -> bool:
    return any(replay.program.nodes[one].name == "@param" for one in _plain(replay, node))


def _plain(replay: Replay, node: int) -> Iterator[int]:
    """A node and what it is a mere view of."""
    program = replay.program
    while True:
        yield node
        if node in program.leaves or program.nodes[node].name not in (
            *VIEWS,
            "clone",
            "permute",
            "transpose",
            "_to_copy",
            "unsqueeze",
            "squeeze",
        ):
            return
        node = next(iter(program.nodes[node].refs))
