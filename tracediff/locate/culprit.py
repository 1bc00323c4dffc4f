"""Whose code made an introduced divergence: a module's own, a caller's between its calls, or that of whoever withheld a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tracediff import dtype as dtypes
from tracediff.alignment import Alignment
from tracediff.dtype import MASKED
from tracediff.locate.calls import Frame
from tracediff.locate.result import INPUTS, Blame
from tracediff.locate.verdicts import Judge
from tracediff.site import End, around, module_of, pattern_of
from tracediff.trace import Record


def blamed(judge: Judge, i: int) -> tuple[Blame, tuple[str, str]]:
    """Who introduced it: the module whose output it is, or the caller whose code made it; the nearest that is paired."""
    left, right = judge.records(i)
    own, kind = (left.module, right.module), judge.flow.kind(i)
    if judge.has_raised(i) and judge.alignment.port_of.get(left.module) != right.module:
        own = partners(judge.alignment, left.site) or own
    withheld = _withheld(judge, i)
    if kind in ("output", "draw") and withheld is None:
        return ("module" if kind == "output" else "random"), own
    keeper = (_keeper(judge, i) or _giver(judge, i)) if withheld is None else None
    if keeper is not None:
        return "module", keeper
    frame, caller = (withheld or judge.flow.frame(i)).up, None
    while frame is not None and frame is not judge.flow.top:
        here = partners(judge.alignment, frame.site)
        caller = here or caller
        if here is not None and (withheld or (not _only_hands_on(judge, i, frame) and _may_have_made(judge, i, here))):
            break
        frame = frame.up
    if caller is not None:
        return "caller", caller if withheld else (caller[0], _maker(judge, i, caller[1]))
    same_stage = any(judge.records(j)[0].stage == left.stage for j in judge.flow.predecessors(i))
    return ("caller", ("", "")) if same_stage else ("input", own)


def _may_have_made(judge: Judge, i: int, caller: tuple[str, str]) -> bool:
    """Whether an input was made inside the port's call of a module, and that did not merely hand on what it was given and nobody compared.

    So where a block normalises what its attention is given in the port, and the attention does that itself in the reference.
    """
    port, right = judge.port, judge.records(i)[1]
    if judge.flow.kind(i) not in INPUTS:
        return True
    made = []
    for rows in _calls_around(judge, right.call):
        given = [row for row in rows if row < right.row and port.records[row].digest == right.digest and row not in judge.pairs_of_port_row]
        if not any(End.parse(port.records[row].end).kind == "input" for row in given):
            made.append(port.records[rows[0]].module)
    return not made or caller[1] in made or not caller[1]


def _maker(judge: Judge, i: int, caller: str) -> str:
    """The port's module whose code made an input, where that is none of the reference's own levels; else the caller that is known.

    So where a port wraps a layer to pad what it is given, or writes a part of the reference's one module as a module of its own: the one
    that returned the input, else the innermost one around the call, if it did not merely hand on what it was given.
    """
    port, right = judge.port, judge.records(i)[1]
    row = int(port.index["producer"][right.row])
    while row >= 0 and row not in judge.pairs_of_port_row and End.parse(port.records[row].end).kind == "output":
        made = port.records[row]
        given = [one for one in judge.rows_of_port_call[made.call] if one < row and port.records[one].digest == made.digest]
        if not given:
            return made.module if judge.alignment.reference_of.get(made.site) is None else caller
        row = int(port.index["producer"][given[0]])
    makers = [
        port.records[rows[0]].module
        for rows in _calls_around(judge, right.call)
        if not any(one < right.row and port.records[one].digest == right.digest for one in rows)
    ]
    inner = makers[: makers.index(caller)] if caller in makers else makers
    return inner[0] if inner and (caller in makers or inner[0] not in judge.alignment.reference_of) else caller


def _calls_around(judge: Judge, call: str) -> Iterator[list[int]]:
    """The rows of each call of the port around one, innermost first; calls of which nothing was recorded are passed over."""
    while call := around(call):
        rows = judge.rows_of_port_call.get(call)
        if rows:
            yield rows


def _only_hands_on(judge: Judge, i: int, frame: Frame) -> bool:
    """Whether both sides' calls merely hand on a tensor, and the port's had no choice among what it should have been handed.

    So where a layer picks one of two masks that it is handed, and in the port the model hands each layer its own; and where a call is
    handed apart in the port what is one tensor in the reference.
    """
    left, right = judge.records(i)
    ours = [row for row in frame.inputs if judge.reference.records[row].digest == left.digest]
    partner = judge.alignment.port_of.get(frame.site)
    if not ours or partner is None:
        return False
    call = right.call
    while (call := around(call)) and judge.port_handed.get(call, ("", ()))[0] != partner:
        pass
    theirs = [row for row in judge.port_handed.get(call, ("", ()))[1] if judge.port.records[row].digest == right.digest]
    had_it = any(not judge.judged(j).diverged for row in ours for j in judge.flow.pairs_of_row.get(row, ()))
    is_right = any(not judge.judged(j).diverged for row in theirs for j in judge.pairs_of_port_row.get(row, ()))
    return bool(theirs) and not (had_it and is_right)


def _withheld(judge: Judge, i: int) -> Frame | None:
    """The outermost call that the reference hands something down to, for what diverged inside without it, and the port does not.

    That is a mask, for attention that diverged without one, or for the code of any call a tensor that it was handed. Only calls count
    whose likes the port does hand such a thing: a port that makes its masks further inside hands none to any.
    """
    frame = judge.flow.frame(i)
    is_function = module_of(frame.site) != frame.site
    if judge.flow.kind(i) == "output" and is_function:
        rows = [
            row
            for row in frame.inputs
            if row not in judge.flow.pairs_of_row and End.parse(judge.reference.records[row].end).keys == ("mask",)
        ]
    elif judge.flow.kind(i) == "input" and frame.up not in (None, judge.flow.top) and not is_function:
        frame = frame.up
        rows = [row for row in frame.inputs if row not in judge.flow.pairs_of_row and judge.flow.kind_of_row[row] == "input"]
        rows = [row for row in rows if not dtypes.named(judge.reference.records[row].dtype).is_exact and _likes_are_handed(judge, [row])]
    else:
        return None
    found, digests = (None if is_function else frame), {judge.reference.records[row].digest for row in rows}
    while rows and (frame := frame.up or judge.flow.top) is not judge.flow.top:
        rows = [row for row in frame.inputs if judge.reference.records[row].digest in digests]
        if not rows or any(row in judge.flow.pairs_of_row for row in rows) or (is_function and not _likes_are_handed(judge, rows)):
            break
        found = frame
    return found if digests else None


def _likes_are_handed(judge: Judge, rows: Sequence[int]) -> bool:
    """Whether the port hands such an end as these to another call: of the same site, or of another one of the same role or class."""
    wanted = {(like, one.end) for row in rows for one in [judge.reference.records[row]] for like in _likes(judge, one.site)}
    return any((like, end) in wanted for site, end in judge.handed_ends for like in _likes(judge, site))


def _likes(judge: Judge, site: str) -> tuple[str, ...]:
    """What a site shares with its likes: its path without numbers, and its class."""
    kind = judge.types.get(site)
    return (pattern_of(site), *([f"class {kind}"] if kind else []))


def _giver(judge: Judge, i: int) -> tuple[str, str] | None:
    """The paired modules that returned an input as it is, where their outputs were not compared: then it is they who made it."""
    rows = [record.producer for record in judge.records(i)]
    if min(rows) < 0 or rows[0] in judge.flow.pairs_of_row:
        return None
    ours, theirs = (trace.records[row] for trace, row in zip((judge.reference, judge.port), rows, strict=True))
    if theirs.producer in judge.pairs_of_port_row:  # only handed on what was compared inside: the caller should have gone on from there
        return None
    is_output = all(End.parse(record.end).kind == "output" for record in (ours, theirs))
    return (ours.module, theirs.module) if is_output and judge.alignment.port_of.get(ours.site) == theirs.site else None


def _keeper(judge: Judge, i: int) -> tuple[str, str] | None:
    """The innermost module that keeps its state in a container that it is handed (a cache): an earlier call left there what is wrong.

    So it is where the same tensor is handed further down in the same container, and the module was called before.
    """
    left, frame = judge.records(i)[0], judge.flow.frame(i)
    if not left.ordinal or left.end.count("[") < 2 or may_mask(left):
        return None
    found = frame.site
    while (inner := next((child for child in frame.children if _is_handed(judge, child, left.digest)), None)) is not None:
        frame, found = inner, inner.site
    return partners(judge.alignment, found)


def _is_handed(judge: Judge, frame: Frame, digest: Any) -> bool:
    """Whether a module's call is handed the tensor of a digest inside a container."""
    records = (judge.reference.records[row] for row in frame.inputs)
    return module_of(frame.site) == frame.site and any(one.digest == digest and one.end.count("[") > 1 for one in records)


def partners(alignment: Alignment, site: str) -> tuple[str, str] | None:
    """The module paths of a site and its partner, where it, or its module, has one."""
    partner = alignment.port_of.get(site, alignment.port_of.get(module_of(site)))
    return None if partner is None else (module_of(site), module_of(partner))


def may_mask(record: Record) -> bool:
    """Whether something that a call was handed may be a mask, by its name or its values."""
    return "mask" in record.end or "causal" in record.end or record.dtype == "bool" or record.stats.min <= MASKED
