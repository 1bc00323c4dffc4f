"""Whose code made an introduced divergence: a module's own, a caller's between its calls, or that of whoever withheld a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tracediff import dtype as dtypes
from tracediff.alignment import Alignment
from tracediff.locate.masks import may_mask
from tracediff.locate.result import Blame
from tracediff.locate.verdicts import Verdicts
from tracediff.site import INPUTS, End, module_of, pattern_of
from tracediff.trace import Record, Trace
from tracediff.trace.calls import TOP

Modules = tuple[str, str]
"""The module paths of reference and port."""


def blamed(verdicts: Verdicts, i: int) -> tuple[Blame, Modules]:
    """Who introduced a divergence: the module whose output it is, or the caller whose code made it; the nearest that is paired."""
    withheld = _withheld(verdicts, i)
    if withheld is not None:
        keeper = next((modules for _, modules in paired_callers(verdicts, withheld)), None)
        return _outside(verdicts, i) if keeper is None else ("caller", keeper)
    kind = verdicts.flow.kind(i)
    if verdicts.flow.is_made_by_run(i):
        maker = _uncompared_maker(verdicts, i)
        return ("module", maker) if maker is not None else ("run", ("", ""))
    if kind == "draw" and verdicts.pairs[i].layout is None:  # numbers of another shape: the code asked for them
        return "caller", _own_modules(verdicts, i)
    if kind in ("output", "draw"):
        return ("module" if kind == "output" else "random"), _own_modules(verdicts, i)
    owner = _state_keeper(verdicts, i) or _uncompared_maker(verdicts, i)
    if owner is not None:
        return "module", owner
    caller = _author(verdicts, i)
    return _outside(verdicts, i) if caller is None else ("caller", _makers(verdicts, i, caller))


def _outside(verdicts: Verdicts, i: int) -> tuple[Blame, Modules]:
    """Who is blamed where no paired module is around: the code outside of all modules, or whoever gave the run its input."""
    pairs = verdicts.pairs
    stage = pairs.records(i)[0].stage
    is_in_stage = any(pairs.records(j)[0].stage == stage for j in verdicts.flow.predecessors(i))
    if not is_in_stage:
        return "input", _own_modules(verdicts, i)
    is_outermost = verdicts.flow.calls.outer[verdicts.flow.call(i)] == TOP
    return ("run" if is_outermost else "caller"), ("", "")


def _own_modules(verdicts: Verdicts, i: int) -> Modules:
    """The modules that a pair belongs to. Where one side raised, its partner's tensor may be of another module: then the site's partner."""
    alignment, (left, right) = verdicts.pairs.alignment, verdicts.pairs.records(i)
    own = left.module, right.module
    if verdicts.pairs.has_raised(i) and alignment.port_of.get(left.module) != right.module:
        return partners(alignment, left.site) or own
    return own


def paired_callers(verdicts: Verdicts, call: int) -> Iterator[tuple[int, Modules]]:
    """The calls around a call of the reference whose modules are paired, innermost first, each with its modules."""
    calls = verdicts.flow.calls
    for outer in calls.above(call):
        modules = partners(verdicts.pairs.alignment, calls.site_of(outer))
        if modules is not None:
            yield outer, modules


def _author(verdicts: Verdicts, i: int) -> Modules | None:
    """The paired caller whose code made an input: the innermost caller that may have, else the outermost caller."""
    modules = None
    for call, modules in paired_callers(verdicts, verdicts.flow.call(i)):
        if not _only_hands_on(verdicts, i, call) and _may_have_made(verdicts, i, modules[1]):
            break
    return modules


# -- what the port's calls did


def _port_calls_around(verdicts: Verdicts, i: int) -> Iterator[int]:
    """The port's calls around the call of a pair, innermost first; calls of which nothing was recorded are passed over."""
    calls = verdicts.flow.port_calls
    return filter(calls.is_recorded, calls.above(int(calls.of_row[verdicts.pairs.records(i)[1].row])))


def _seen_before(trace: Trace, call: int, record: Record) -> list[int]:
    """The rows before a record of a trace at which a call of it saw the very same tensor."""
    rows = trace.calls.rows_of(call).tolist()
    return [row for row in rows if row < record.row and trace.records[row].digest == record.digest]


def _may_have_made(verdicts: Verdicts, i: int, caller: str) -> bool:
    """Whether the code of a module of the port may have made an input: some call of the module did more than hand it on.

    So where a block normalises what its attention is given in the port, and the attention does that itself in the reference. A tensor that
    was compared on its way is no sign of handing on.
    """
    flow, right = verdicts.flow, verdicts.pairs.records(i)[1]
    if flow.kind(i) not in INPUTS or not caller:
        return True
    makers = []
    for call in _port_calls_around(verdicts, i):
        uncompared = [row for row in _seen_before(verdicts.pairs.port, call, right) if row not in flow.pairs_of_port_row]
        if not any(flow.port_calls.kinds[row] == "input" for row in uncompared):
            makers.append(module_of(flow.port_calls.site_of(call)))
    return not makers or caller in makers


def _makers(verdicts: Verdicts, i: int, caller: Modules) -> Modules:
    """The modules whose code made an input: where a part of the port that has no partner did, the reference's innermost such part too.

    Where the port's caller itself did, it may have written out what is a module of its own in the reference.
    """
    port = _port_maker(verdicts, i, caller[1])
    return (_written_out(verdicts, i, caller[0]) if port == caller[1] else _reference_maker(verdicts, i, caller[0])), port


def _written_out(verdicts: Verdicts, i: int, caller: str) -> str:
    """The innermost module of the reference without a partner around an input, to which a caller handed nothing wrong; else the caller.

    What the caller was handed itself is none of its making.
    """
    calls, records = verdicts.flow.calls, verdicts.pairs.reference.records
    around = list(calls.above(verdicts.flow.call(i)))
    outer = next((call for call in around if calls.site_of(call) == caller), None)
    if outer is None:
        return caller
    handed = {records[row].digest for row in calls.inputs(outer)}
    for call in around[: around.index(outer)]:
        site = calls.site_of(call)
        own = [row for row in calls.inputs(call) if records[row].digest not in handed]
        if site == module_of(site) and site not in verdicts.pairs.alignment.port_of and all(_agrees(verdicts, row) for row in own):
            return site
    return caller


def _agrees(verdicts: Verdicts, row: int) -> bool:
    """Whether a tensor of the reference, or that of the call that returned it, was compared and is the port's."""
    producer = verdicts.flow.calls.producers[row]
    pairs = verdicts.flow.pairs_at([row, *([producer] if producer >= 0 else [])])
    return any(_is_right(verdicts, j) for j in pairs)


def _reference_maker(verdicts: Verdicts, i: int, caller: str) -> str:
    """The innermost module of the reference around an input, inside a caller, that was not handed the very tensor; else the caller."""
    left, calls = verdicts.pairs.records(i)[0], verdicts.flow.calls
    for call in calls.above(verdicts.flow.call(i)):
        module = module_of(calls.site_of(call))
        if module == caller:
            break
        if not _seen_before(verdicts.pairs.reference, call, left):
            return module
    return caller


def _port_maker(verdicts: Verdicts, i: int, caller: str) -> str:
    """The port's module whose code made an input, where no module of the reference stands for it; else the caller that is known.

    So where a port wraps a layer to pad what it is given, or writes a part of the reference's one module as a module of its own.
    """
    returned_by = _unpaired_return(verdicts, i)
    if returned_by is not None:
        alignment, (site, module) = verdicts.pairs.alignment, returned_by
        return module if alignment.reference_of.get(site) is None else caller
    right, calls = verdicts.pairs.records(i)[1], verdicts.flow.port_calls
    around = [call for call in _port_calls_around(verdicts, i) if not _seen_before(verdicts.pairs.port, call, right)]
    makers = [module_of(calls.site_of(call)) for call in around]
    if caller in makers:
        makers = makers[: makers.index(caller)]
        return makers[0] if makers else caller
    return makers[0] if makers and makers[0] not in verdicts.pairs.alignment.reference_of else caller


def _unpaired_return(verdicts: Verdicts, i: int) -> tuple[str, str] | None:
    """Site and module of the port's call that made and returned an input, where nobody compared what it returned.

    Calls that merely hand on what they were given are followed back to whoever gave it.
    """
    flow, records = verdicts.flow, verdicts.pairs.port.records
    calls = flow.port_calls
    row = calls.producers[verdicts.pairs.records(i)[1].row]
    while row >= 0 and row not in flow.pairs_of_port_row and calls.kinds[row] == "output":
        returned = records[row]
        before = _seen_before(verdicts.pairs.port, int(calls.of_row[row]), returned)
        if not before:
            return returned.site, returned.module
        row = calls.producers[before[0]]
    return None


def _only_hands_on(verdicts: Verdicts, i: int, call: int) -> bool:
    """Whether the calls of both sides merely hand on a tensor, so that an outer caller made it.

    They do not where the port's call picked the wrong one of several tensors: the right tensor was among what both calls were handed. They
    do where a layer picks one of two masks in the reference, while the port's model hands each layer its own mask, or hands in parts what
    is one tensor in the reference.
    """
    flow, pairs, (left, right) = verdicts.flow, verdicts.pairs, verdicts.pairs.records(i)
    ours = [row for row in flow.calls.inputs(call) if pairs.reference.records[row].digest == left.digest]
    partner = pairs.alignment.port_of.get(flow.calls.site_of(call))
    if not ours or partner is None:
        return False
    theirs = [row for row in _handed_to_site(verdicts, i, partner) if pairs.port.records[row].digest == right.digest]
    had_it = any(_is_right(verdicts, j) for j in flow.pairs_at(ours))
    is_right = any(_is_right(verdicts, j) for row in theirs for j in flow.pairs_of_port_row.get(row, ()))
    return bool(theirs) and not (had_it and is_right)


def _is_right(verdicts: Verdicts, i: int) -> bool:
    return not verdicts.comparisons.judged(i).diverged


def _handed_to_site(verdicts: Verdicts, i: int, site: str) -> list[int]:
    """The rows of the tensors that the port's innermost call of a site around a pair was handed; none where no such call was."""
    calls = verdicts.flow.port_calls
    for call in _port_calls_around(verdicts, i):
        tensors = [row for row in calls.inputs(call) if calls.kinds[row] == "input"]
        if tensors and calls.site_of(call) == site:
            return tensors
    return []


# -- what the port did not hand down


def _withheld(verdicts: Verdicts, i: int) -> int | None:
    """The outermost call to which the reference, and not the port, hands down a tensor that the diverged code had to do without.

    The tensor is a mask, for an attention function that diverged without a mask, or any tensor that a module's call was handed.
    """
    flow = verdicts.flow
    call = flow.call(i)
    is_function = module_of(flow.calls.site_of(call)) != flow.calls.site_of(call)
    if flow.kind(i) == "output" and is_function:
        return _withheld_mask(verdicts, call)
    if flow.kind(i) == "input" and not is_function and flow.calls.outer[call] != TOP:
        return _withheld_tensor(verdicts, flow.calls.outer[call])
    return None


def _withheld_mask(verdicts: Verdicts, call: int) -> int | None:
    """The outermost call around a function from which the reference's mask is handed down, and to whose like the port hands a mask.

    Only such calls count: a port that makes its masks further inside hands a mask to none of them.
    """
    flow, records = verdicts.flow, verdicts.pairs.reference.records
    rows = [row for row in flow.calls.inputs(call) if not flow.is_paired(row) and End.parse(records[row].end).keys == ("mask",)]
    outermost = None
    for outer, handed in _handed_down(verdicts, call, rows):
        if not _alike_is_handed(verdicts, handed):
            break
        outermost = outer
    return outermost


def _withheld_tensor(verdicts: Verdicts, call: int) -> int | None:
    """The outermost call from which a tensor is handed down to a call in the reference, but not in the port; the call itself at least."""
    flow, records = verdicts.flow, verdicts.pairs.reference.records
    rows = [row for row in flow.calls.inputs(call) if not flow.is_paired(row) and flow.calls.kinds[row] == "input"]
    rows = [row for row in rows if not dtypes.named(records[row].dtype).is_exact and _alike_is_handed(verdicts, [row])]
    if not rows:
        return None
    return [call, *(outer for outer, _ in _handed_down(verdicts, call, rows))][-1]


def _handed_down(verdicts: Verdicts, call: int, rows: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """The calls around a call that were handed the tensors of some rows too, innermost first, each with its own rows of these tensors.

    The first call that was not handed any, or of which such a row is paired, ends them.
    """
    flow, records = verdicts.flow, verdicts.pairs.reference.records
    digests = {records[row].digest for row in rows}
    for outer in flow.calls.above(call) if digests else ():
        handed = [row for row in flow.calls.inputs(outer) if records[row].digest in digests]
        if not handed or any(map(flow.is_paired, handed)):
            return
        yield outer, handed


def _alike_is_handed(verdicts: Verdicts, rows: Sequence[int]) -> bool:
    """Whether the port hands such ends as those of some rows to another call: of the same site, or of a site of the same role or class."""
    records = verdicts.pairs.reference.records
    wanted = {(role, records[row].end) for row in rows for role in _roles(verdicts, records[row].site)}
    return any((role, end) in wanted for site, end in verdicts.pairs.handed_ends for role in _roles(verdicts, site))


def _roles(verdicts: Verdicts, site: str) -> tuple[str, ...]:
    """What a site shares with the sites of its role: its path without numbers, and its class."""
    kind = verdicts.pairs.types.get(site)
    return (pattern_of(site), *([f"class {kind}"] if kind else []))


# -- whose tensor an input is


def _uncompared_maker(verdicts: Verdicts, i: int) -> Modules | None:
    """The paired modules that returned an input as it is, where nobody compared their outputs: then these modules made it."""
    flow, pairs = verdicts.flow, verdicts.pairs
    left, right = pairs.records(i)
    if min(left.producer, right.producer) < 0 or flow.is_paired(left.producer):
        return None
    ours, theirs = pairs.reference.records[left.producer], pairs.port.records[right.producer]
    if theirs.producer in flow.pairs_of_port_row:  # only handed on what was compared inside: the caller should have gone on from there
        return None
    are_outputs = flow.calls.kinds[ours.row] == flow.port_calls.kinds[theirs.row] == "output"
    return (ours.module, theirs.module) if are_outputs and pairs.alignment.port_of.get(ours.site) == theirs.site else None


def _state_keeper(verdicts: Verdicts, i: int) -> Modules | None:
    """The innermost module that keeps its state in a container that it is handed (a cache): an earlier call left there what is wrong.

    A module keeps its state so if it was called before and the container is handed no further down.
    """
    left, call, calls = verdicts.pairs.records(i)[0], verdicts.flow.call(i), verdicts.flow.calls
    if not left.ordinal or not _is_in_container(left) or may_mask(left):
        return None
    while (inner := next((child for child in calls.children[call] if _is_handed(verdicts, child, left)), None)) is not None:
        call = inner
    return partners(verdicts.pairs.alignment, calls.site_of(call))


def _is_handed(verdicts: Verdicts, call: int, record: Record) -> bool:
    """Whether a module's call is handed the tensor of a record inside a container."""
    site = verdicts.flow.calls.site_of(call)
    given = (verdicts.pairs.reference.records[row] for row in verdicts.flow.calls.inputs(call))
    return module_of(site) == site and any(one.digest == record.digest and _is_in_container(one) for one in given)


def _is_in_container(record: Record) -> bool:
    """Whether an input lies in a container that its call was handed: its end has a key below the argument's."""
    return record.end.count("[") > 1


def partners(alignment: Alignment, site: str) -> Modules | None:
    """The module paths of a site and its partner, where it, or its module, has one."""
    partner = alignment.port_of.get(site, alignment.port_of.get(module_of(site)))
    return None if partner is None else (module_of(site), module_of(partner))
