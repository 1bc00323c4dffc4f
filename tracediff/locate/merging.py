"""Which findings are one: those that repeat an earlier one, and those that all siblings of one role share."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import Array
from tracediff.locate.culprit import paired_callers
from tracediff.locate.masks import may_mask
from tracediff.locate.result import Blame, Finding
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.verdicts import Verdicts
from tracediff.site import INPUTS, is_below, module_of, pattern_of
from tracediff.trace import Param
from tracediff.trace.calls import TOP


def merged(verdicts: Verdicts, findings: list[Finding]) -> list[Finding]:
    """The findings without repetitions. Those that all siblings of a role share become one, which blames their common caller if it can."""
    groups: dict[tuple[str, str, Blame], list[Finding]] = defaultdict(list)
    for without in REPETITIONS:
        findings = without(verdicts, findings)
    for finding in findings:
        record = verdicts.pairs.records(finding.place)[0]
        groups[pattern_of(record.site), record.end, finding.blame].append(finding)
    kept: list[Finding] = []
    for (pattern, end, _), group in groups.items():
        sites = {verdicts.pairs.records(finding.place)[0].site for finding in group}
        siblings = _siblings(verdicts, pattern, end)
        is_shared = len(siblings) > 1 and (sites == siblings or _differs_at_all_siblings(verdicts, group, pattern))
        if is_shared and (len(siblings) > THRESHOLDS.couple or _comes_from_above(verdicts, group, pattern)):
            kept.append(_lifted(verdicts, group, pattern, siblings))
        else:
            kept.extend(group)
    return sorted(kept, key=lambda finding: finding.place)


def _without_repeated(verdicts: Verdicts, findings: Sequence[Finding]) -> list[Finding]:
    """The findings without those that say again what an earlier one says.

    Such a finding is at another end of the same call, of the same tensor handed to another call, or at the same end of a later call, which
    is counted.
    """
    seen: dict[tuple[Hashable, ...], int] = {}
    kept: list[Finding] = []
    for finding in findings:
        left, right = verdicts.pairs.records(finding.place)
        again = (left.site, left.end, finding.blame)
        keys = (again, (left.site, left.call, finding.blame), (finding.culprit, finding.blame, left.digest, right.digest))
        known = next((seen[key] for key in keys if key in seen), None)
        if known is None:
            known = len(kept)
            kept.append(finding)
        elif seen.get(again) == known:
            kept[known] = replace(kept[known], calls=kept[known].calls + 1)
        seen.update((key, known) for key in keys if key not in seen)
    return kept


def _without_kept_state(verdicts: Verdicts, findings: Sequence[Finding]) -> list[Finding]:
    """The findings without those in the state of a module that an earlier finding blames: the module made its state wrong."""
    kept: list[Finding] = []
    for finding in findings:
        is_state = finding.blame == "module" and verdicts.flow.kind(finding.place) in INPUTS
        if not (is_state and any(is_below(one.culprit[0], finding.culprit[0]) for one in kept)):
            kept.append(finding)
    return kept


def _without_tied(verdicts: Verdicts, findings: Sequence[Finding]) -> list[Finding]:
    """The findings without those of code that uses an earlier culprit's wrong table again, as a head tied to the embedding does."""
    kept: list[Finding] = []
    for finding in findings:
        if not any(_uses_table_of(verdicts, one, finding) for one in kept):
            kept.append(finding)
    return kept


def _uses_table_of(verdicts: Verdicts, earlier: Finding, later: Finding) -> bool:
    """Whether the later finding's output is made with the earlier culprit's wrong table.

    The later output is as wide as the table has rows, and the later culprit owns no other table of that shape.
    """
    flow = verdicts.flow
    if any(one.blame != "module" or flow.kind(one.place) != "output" for one in (earlier, later)):
        return False
    if earlier.culprit[1] == later.culprit[1] or not _is_asked_by_ids(verdicts, flow.call(earlier.place)):
        return False
    tables = _wrong_tables(verdicts, earlier, width=verdicts.pairs.records(later.place)[1].shape[-1:])
    shapes = {tuple(sorted(table.shape)) for table in tables}
    own = [param for param in _matrices(verdicts, later.culprit[1]) if tuple(sorted(param.shape)) in shapes]
    return bool(tables) and all(param.digest == tables[0].digest for param in own)


def _is_asked_by_ids(verdicts: Verdicts, call: int) -> bool:
    """Whether all that a call of the reference was handed is exact, as what is looked up in a table is."""
    asked = [verdicts.pairs.reference.records[row] for row in verdicts.flow.calls.inputs(call)]
    return bool(asked) and all(dtypes.named(record.dtype).is_exact for record in asked)


def _wrong_tables(verdicts: Verdicts, finding: Finding, width: tuple[int, ...]) -> list[Param]:
    """The matrices with ``width`` rows that a culprit owns in the port and not in the reference."""
    reference = verdicts.pairs.reference.params.values()
    right = {param.digest for param in reference if param.path == finding.culprit[0]}
    return [param for param in _matrices(verdicts, finding.culprit[1]) if param.shape[:1] == width and param.digest not in right]


def _matrices(verdicts: Verdicts, path: str) -> list[Param]:
    """The matrices among the parameters of a module of the port."""
    return [param for param in verdicts.pairs.port.params.values() if param.path == path and len(param.shape) == 2]


def _without_carried(verdicts: Verdicts, findings: Sequence[Finding]) -> list[Finding]:
    """The findings of a forced run without those that a call's code only carries on.

    What the code hands a call is replaced there, not in the code's own variable: what it makes of the variable later has a like error.
    """
    kept: list[Finding] = []
    for finding in findings:
        earlier = (one.place for one in kept if verdicts.flow.kind(one.place) == "input" and verdicts.pairs.is_replaced(one.place))
        if not any(_is_carried(verdicts, place, finding.place) for place in earlier):
            kept.append(finding)
    return kept


def _is_carried(verdicts: Verdicts, earlier: int, later: int) -> bool:
    """Whether two errors were made by the code of one call, and are alike."""
    origins = [{call for call in verdicts.flow.origins(i) if call != TOP} for i in (earlier, later)]
    if not origins[0] & origins[1]:
        return False
    first, second = _error(verdicts, earlier), _error(verdicts, later)
    return first is not None and second is not None and _are_alike(first, second)


def _are_alike(first: Array, second: Array) -> bool:
    """Whether two errors, flat, point the same way; of a batch that holds a state twice only the first is likened."""
    size = min(first.size, second.size)
    if size < THRESHOLDS.fewest_error_values or max(first.size, second.size) % size:
        return False
    first, second = first[:size], second[:size]
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    cosine = float(np.vdot(first, second)) / scale if scale else 0.0
    return cosine > max(THRESHOLDS.alike, THRESHOLDS.alike_by_chance / math.sqrt(size))


def _error(verdicts: Verdicts, i: int) -> Array | None:
    """The port's values minus the reference's, flat float64, zero where not finite; None where not stored, too many, or no numbers."""
    pairs = verdicts.pairs
    is_large = pairs.records(i)[0].nbytes > THRESHOLDS.most_error_bytes
    if pairs[i].layout is None or pairs.is_exact(i) or is_large or not pairs.is_stored(i):
        return None
    reference, port = pairs.values(i)
    with np.errstate(invalid="ignore"):
        error = port.astype(np.float64) - reference.astype(np.float64)
    return np.nan_to_num(error.reshape(-1), posinf=0.0, neginf=0.0)


REPETITIONS = (_without_repeated, _without_kept_state, _without_carried, _without_tied)
"""What leaves out findings that an earlier finding explains, in this order."""


def sharing(verdicts: Verdicts, first: int) -> list[int]:
    """After a bisection: where the siblings of the first divergence's site introduced it too, or nothing unless all of them did."""
    record = verdicts.pairs.records(first)[0]
    pattern = pattern_of(record.site)
    places: dict[str, list[int]] = defaultdict(list)
    for i in range(len(verdicts)):
        other = verdicts.pairs.records(i)[0]
        if other.site != record.site and other.end == record.end and pattern_of(other.site) == pattern:
            places[other.site].append(i)
    if verdicts.is_live:
        wanted = {j for calls in places.values() for i in calls for j in (i, *verdicts.flow.predecessors(i))}
        verdicts.comparisons.gather(next(verdicts.comparisons.batches(sorted(wanted)), []))
    found = []
    for calls in places.values():
        place = next((i for i in calls if _seems_introduced(verdicts, i)), None)
        if place is None:
            return []
        found.append(place)
    return found


def _seems_introduced(verdicts: Verdicts, i: int) -> bool:
    """Whether a pair is a divergence and nothing that it can come from seems to be."""
    return verdicts.seems_dirty(i) and not any(map(verdicts.seems_dirty, verdicts.flow.predecessors(i)))


def _differs_at_all_siblings(verdicts: Verdicts, group: Sequence[Finding], pattern: str) -> bool:
    """Whether an attribute that differs at a call differs at all siblings: it comes from no tensor, so none of them inherited it."""
    left = verdicts.pairs.records(group[0].place)[0]
    if verdicts.flow.kind(group[0].place) != "attr":
        return False
    siblings = _siblings(verdicts, pattern, left.end)
    attributes = [i for i in range(len(verdicts)) if verdicts.flow.kind(i) == "attr" and verdicts.pairs.records(i)[0].end == left.end]
    wrong = [i for i in attributes if verdicts.comparisons.judged(i).diverged and verdicts.effects.of(i) != "no effect"]
    sites = {verdicts.pairs.records(i)[0].site for i in wrong}
    return {site for site in sites if pattern_of(site) == pattern} == siblings


def _siblings(verdicts: Verdicts, pattern: str, end: str) -> set[str]:
    """The sites of one role at which this end is compared."""
    records = (verdicts.pairs.records(i)[0] for i in range(len(verdicts)))
    return {record.site for record in records if record.end == end and pattern_of(record.site) == pattern}


def _lifted(verdicts: Verdicts, group: list[Finding], pattern: str, siblings: set[str]) -> Finding:
    """One finding for all, charged to the common caller where what is wrong comes from there."""
    first = min(group, key=lambda finding: finding.place)
    shared = replace(first, shared_by=len(siblings), pattern=pattern)
    if not _comes_from_above(verdicts, group, pattern):
        return shared
    common = _common_prefix([path.split(".") for path in (*(finding.culprit[0] for finding in group), *map(module_of, siblings))])
    for _, caller in paired_callers(verdicts, verdicts.flow.call(first.place)):
        if is_below(common, caller[0]):
            return replace(shared, culprit=caller)
    return replace(shared, culprit=("", ""))


def _comes_from_above(verdicts: Verdicts, group: list[Finding], pattern: str) -> bool:
    """Whether all siblings were handed what is wrong: the very same tensor, or a mask (the masks of attention come from its callers)."""
    records = [verdicts.pairs.records(finding.place)[0] for finding in group]
    kind = verdicts.flow.kind(group[0].place)
    if kind == "input":
        return len({record.digest for record in records}) == 1
    if kind == "attr":
        return "causal" in records[0].end or "mask" in records[0].end
    is_attention = re.search(r"att(entio)?n", re.split(r"[.!]", pattern)[-1], re.IGNORECASE) is not None
    return is_attention and (len(group) > THRESHOLDS.couple or any(_is_handed_a_mask(verdicts, finding.place) for finding in group))


def _is_handed_a_mask(verdicts: Verdicts, i: int) -> bool:
    """Whether a mask is an argument of the call that a pair belongs to, on either side: only then may it come from above."""
    pairs = verdicts.pairs
    for trace, row in ((pairs.reference, pairs[i].reference[0]), (pairs.port, pairs[i].port[0])):
        arguments = trace.calls.inputs(int(trace.calls.of_row[row]))
        if any(may_mask(trace.records[argument]) for argument in arguments):
            return True
    return False


def _common_prefix(paths: list[list[str]]) -> str:
    """The module path that all paths, given by their segments, lie below."""
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
