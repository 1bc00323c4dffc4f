"""Which module of the reference made a tensor that is wrong, where the port has no boundary for what that module returned."""

from __future__ import annotations

from tracediff.locate.verdicts import Verdicts
from tracediff.site import module_of


def maker(verdicts: Verdicts, i: int) -> str | None:
    """The path of the reference's module that made and returned the very tensor of a pair; None where that is not known.

    The port wrote the module's code into a caller, or splits it into several modules, so that nobody compared what it returned. All
    that the module was handed must agree: otherwise the error may be older.
    """
    row = _returned_inside(verdicts, i)
    if row is None:
        return None
    calls = verdicts.flow.calls
    call = int(calls.of_row[row])
    path = module_of(calls.site_of(call))
    handed = [one for one in calls.inputs(call) if calls.kinds[one] == "input"]
    is_module = path == calls.site_of(call) and bool(path)
    return path if is_module and handed and all(_is_right(verdicts, one) for one in handed) else None


def _returned_inside(verdicts: Verdicts, i: int) -> int | None:
    """The innermost uncompared output of the reference that is the very tensor of a pair."""
    flow, rows = verdicts.flow, verdicts.pairs[i].reference
    if len(rows) > 1 or flow.is_made_by_run(i):
        return None
    found, row = None, flow.calls.producers[rows[0]]
    while row >= 0 and flow.calls.kinds[row] == "output":
        if flow.is_paired(row):
            return None
        found, row = row, flow.calls.producers[row]
    return found


def _is_right(verdicts: Verdicts, row: int) -> bool:
    """Whether a tensor of the reference was compared, here or where it came from, and agrees."""
    flow = verdicts.flow
    while row >= 0:
        if pairs := flow.pairs_at([row]):
            return not any(verdicts.comparisons.judged(j).diverged for j in pairs)
        row = flow.calls.producers[row]
    return False
