"""Whether what arrives at a divergence was compared, and which sites to record where it was not."""

from __future__ import annotations

from collections.abc import Iterator

from tracediff.locate.result import Arrives, Blame
from tracediff.locate.verdicts import Verdicts
from tracediff.site import is_below, module_of
from tracediff.trace.calls import TOP


def arrives(verdicts: Verdicts, i: int, blame: Blame) -> Arrives:
    """How much of what a blamed module was handed, or blamed code had in hand, was compared."""
    if blame in ("weights", "random") or verdicts.pairs.has_raised(i):
        return "compared"
    is_module = blame == "module" and verdicts.flow.kind(i) == "output"
    if not is_module and any(trace.meta.get("left_out") for trace in (verdicts.pairs.reference, verdicts.pairs.port)):
        return "not recorded"  # a selection left out what else the code had in hand
    found = {_taken_in(verdicts, call, is_module=is_module) for call in verdicts.flow.origins(i) if call != TOP}
    return next(iter(found)) if len(found) == 1 else "in part" if found else "compared"


def _taken_in(verdicts: Verdicts, call: int, *, is_module: bool) -> Arrives:
    """How much of what a call was handed was compared, here or as the same values elsewhere; all where it was handed no tensor.

    Where code around calls is in question, what was not compared is as good as what the code of the outer call could have made it of.
    """
    calls, flow = verdicts.flow.calls, verdicts.flow
    rows = [row for row in calls.inputs(call) if calls.kinds[row] == "input"]
    if not rows:
        return "compared" if calls.is_recorded(call) and "input" in calls.kinds else "not recorded"
    known = [flow.is_paired(row) or verdicts.pairs.reference.records[row].digest in verdicts.pairs.digests for row in rows]
    if all(known):
        return "compared"
    outer = calls.outer[call]
    around: Arrives = "not recorded" if is_module or outer == TOP else _taken_in(verdicts, outer, is_module=False)
    return "in part" if any(known) and around == "not recorded" else around


def to_record(verdicts: Verdicts, last_same: int | None, i: int) -> tuple[str, ...]:
    """What to record of the reference to narrow the stretch between two pairs: unrecorded modules there, the topmost ones.

    Modules are taken in the order of the tree. Where none is known there, it is the inputs of the site, or of what is around it.
    """
    reference, here = verdicts.pairs.reference, verdicts.pairs.records(i)[0].site
    seen = {module_of(site) for site in reference.sites}
    paths = [str(module["path"]) for module in reference.meta.get("modules") or ()]
    start = "" if last_same is None else verdicts.pairs.records(last_same)[0].module
    between = _between(paths, start if last_same is not None else None, module_of(here))
    unseen = [path for path in between if path and path not in seen]
    topmost = [path for path in unseen if not any(is_below(path, other) for other in unseen if other != path)]
    if topmost:
        return tuple(topmost)
    around = here if verdicts.flow.kind(i) == "output" else module_of(here).rpartition(".")[0]
    return (f"the inputs of {around or 'the root'}",)


def _between(paths: list[str], start: str | None, end: str) -> Iterator[str]:
    """The modules after one, and after all below it, up to another, in the order of the tree."""
    first = 0 if start not in paths else paths.index(start) + 1
    last = paths.index(end) if end in paths else len(paths)
    yield from (path for path in paths[first:last] if not start or not is_below(path, start))
