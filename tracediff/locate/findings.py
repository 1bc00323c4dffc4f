"""What there is to say of an introduced divergence: whose code made it, what arrived there, and who shares it."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.locate.culprit import blamed, may_mask, partners
from tracediff.locate.result import INPUTS, Blame, Finding
from tracediff.locate.verdicts import Judge
from tracediff.site import is_below, module_of, pattern_of


def finding(judge: Judge, i: int) -> Finding:
    """What there is to say of an introduced divergence."""
    comparison = judge.measure(i)
    blame, culprit = blamed(judge, i)
    metrics = comparison.metrics
    last = next((j for j in range(i - 1, -1, -1) if (known := judge.comparison(j)).diverged is False and known.how), None)
    return Finding(
        place=i,
        blame=blame,
        culprit=culprit,
        introduced=metrics.rel_l2 if metrics is not None else comparison.at_least,
        inherited=_inherited(judge, i),
        last_same=last,
        suspects=_suspects(judge, culprit),
    )


def _inherited(judge: Judge, i: int) -> float | None:
    """The worst relative L2 of what arrives; in a forced run 0 where it was all replaced, else None."""
    arriving = judge.flow.predecessors(i)
    if judge.mode == "free" and judge.again is None:
        told = [error for error in map(judge.known_error, arriving) if error is not None]
        return max(told, default=0.0) if len(told) == len(arriving) else None
    errors = [metrics.rel_l2 if (metrics := judge.judged(j).metrics) is not None else None for j in arriving]
    if judge.mode == "forced":
        return 0.0 if all(error == 0 or judge.is_replaced(j) for error, j in zip(errors, arriving, strict=True)) else None
    known = [error for error in errors if error is not None]
    return max(known, default=0.0) if len(known) == len(errors) else None


def _suspects(judge: Judge, culprit: tuple[str, str], most: int = 6) -> tuple[tuple[str, str], ...]:
    """Unpaired sites whose nearest paired module is the culprit, and sites there that one side calls less often."""
    alignment, found = judge.alignment, []
    for pair in alignment.unpaired:
        for side, site, path in (("reference", pair.reference, culprit[0]), ("port", pair.port, culprit[1])):
            if site is not None and module_of(alignment.nearest_paired(site, side) or "") == path:  # type: ignore[arg-type]
                found.append((side, site))
    for side, trace, rows, path in (
        ("reference", judge.reference, alignment.unpaired_reference, culprit[0]),
        ("port", judge.port, alignment.unpaired_port, culprit[1]),
    ):
        known = alignment.port_of if side == "reference" else alignment.reference_of
        ends = {(record.site, record.end) for row in rows if (record := trace.records[row]).site in known and record.module == path}
        found.extend((side, f"{site} {end}") for site, end in sorted(ends))
    return tuple(found[:most])


_FEWEST = 16
_ALIKE = 0.25  # the cosine from which on, chance apart, two errors of one call's code are taken for one
_COUPLE = 2  # so few siblings may go wrong together by chance


def merged(judge: Judge, findings: list[Finding]) -> list[Finding]:
    """The findings, those that all siblings of one role share made one, which blames their common caller where it may come from there."""
    groups: dict[tuple[str, str, Blame], list[Finding]] = defaultdict(list)
    for finding in _without_tied(judge, _without_carried(judge, _without_kept(judge, _distinct(judge, findings)))):
        record = judge.records(finding.place)[0]
        groups[pattern_of(record.site), record.end, finding.blame].append(finding)
    kept: list[Finding] = []
    for (pattern, end, _), group in groups.items():
        sites = {judge.records(finding.place)[0].site for finding in group}
        siblings = _siblings(judge, pattern, end)
        is_shared = len(siblings) > 1 and (sites == siblings or _is_told_by_all(judge, group, pattern))
        if is_shared and (len(siblings) > _COUPLE or _comes_from_above(judge, group, pattern)):
            kept.append(_lifted(judge, group, pattern, siblings))
        else:
            kept.extend(group)
    return sorted(kept, key=lambda finding: finding.place)


def _distinct(judge: Judge, findings: Iterable[Finding]) -> list[Finding]:
    """The findings without those that tell an earlier one again.

    That is: another end of the same call, the same tensor handed to another call, and the same end at a later call, which is counted.
    """
    seen: dict[tuple[Any, ...], int] = {}
    kept: list[Finding] = []
    for finding in findings:
        left, right = judge.records(finding.place)
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


def _without_kept(judge: Judge, findings: Sequence[Finding]) -> list[Finding]:
    """The findings without those in a module's state where the module was found to be wrong already: that is how its state went wrong."""
    kept: list[Finding] = []
    for finding in findings:
        is_state = finding.blame == "module" and judge.flow.kind(finding.place) in INPUTS
        if not (is_state and any(is_below(one.culprit[0], finding.culprit[0]) for one in kept)):
            kept.append(finding)
    return kept


def _without_tied(judge: Judge, findings: Sequence[Finding]) -> list[Finding]:
    """The findings without those of code that uses an earlier culprit's wrong table again, as a head tied to the embedding does."""
    kept: list[Finding] = []
    for finding in findings:
        if not any(_uses_table_of(judge, one, finding) for one in kept):
            kept.append(finding)
    return kept


def _uses_table_of(judge: Judge, earlier: Finding, later: Finding) -> bool:
    """Whether a later output is as wide as an earlier culprit's table has rows, the table is wrong, and the later one owns no other.

    A table is what is asked by ids.
    """
    if any(one.blame != "module" or judge.flow.kind(one.place) != "output" for one in (earlier, later)):
        return False
    asked = [judge.reference.records[row] for row in judge.flow.frame(earlier.place).inputs]
    if not asked or not all(dtypes.named(one.dtype).is_exact for one in asked):
        return False
    width = judge.records(later.place)[1].shape[-1:]
    theirs = {param.digest for param in judge.reference.params.values() if param.path == earlier.culprit[0]}
    params = [param for param in judge.port.params.values() if len(param.shape) == 2]
    tables = [one for one in params if one.path == earlier.culprit[1] and one.shape[:1] == width and one.digest not in theirs]
    shapes = {tuple(sorted(one.shape)) for one in tables}
    own = [one for one in params if one.path == later.culprit[1] and tuple(sorted(one.shape)) in shapes]
    return bool(tables) and earlier.culprit[1] != later.culprit[1] and all(one.digest == tables[0].digest for one in own)


def _without_carried(judge: Judge, findings: Sequence[Finding]) -> list[Finding]:
    """The findings of a forced run without those that a call's code only carries on.

    What it hands a call is replaced there, not in its own variable: what it makes of that later has the same error, or one like it.
    """
    kept: list[Finding] = []
    for finding in findings:
        earlier = (one.place for one in kept if judge.flow.kind(one.place) == "input" and judge.is_replaced(one.place))
        if not any(_is_carried(judge, place, finding.place) for place in earlier):
            kept.append(finding)
    return kept


def _is_carried(judge: Judge, earlier: int, later: int) -> bool:
    """Whether two errors were made by the code of one call, and are alike."""
    made = [{id(frame) for frame in judge.flow.origins(i) if frame is not judge.flow.top} for i in (earlier, later)]
    if not made[0] & made[1]:
        return False
    errors = [judge.error(i) for i in (earlier, later)]
    if errors[0] is None or errors[1] is None or min(one.size for one in errors if one is not None) < _FEWEST:
        return False
    first, second = (one for one in errors if one is not None)
    size = min(first.size, second.size)
    if max(first.size, second.size) % size:
        return False
    first, second = first[:size], second[:size]  # of a batch that holds a state twice, once
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    likeness = float(np.vdot(first, second)) / scale if scale else 0.0
    return likeness > max(_ALIKE, 8 / math.sqrt(size))


def sharing(judge: Judge, first: int) -> list[int]:
    """After a bisection: where all siblings of one role introduced what the first one did; nothing where one of them did not."""
    record = judge.records(first)[0]
    pattern = pattern_of(record.site)
    places: dict[str, list[int]] = defaultdict(list)
    for i in range(len(judge)):
        other = judge.records(i)[0]
        if other.site != record.site and other.end == record.end and pattern_of(other.site) == pattern:
            places[other.site].append(i)
    wanted = {j for calls in places.values() for i in calls for j in (i, *judge.flow.predecessors(i))} if judge.again is not None else set()
    judge.gather(next(iter(judge.batches(sorted(wanted))), []))
    found = []
    for calls in places.values():
        place = next((i for i in calls if judge.diverges(i) and not any(map(judge.diverges, judge.flow.predecessors(i)))), None)
        if place is None:
            return []
        found.append(place)
    return found


def _is_told_by_all(judge: Judge, group: Sequence[Finding], pattern: str) -> bool:
    """Whether an attribute that differs at a call differs at its siblings too: it comes from no tensor, so none of them inherited it."""
    left = judge.records(group[0].place)[0]
    if judge.flow.kind(group[0].place) != "attr":
        return False
    named = [(i, judge.records(i)[0]) for i in range(len(judge)) if judge.flow.kind(i) == "attr"]
    wrong = {record.site for i, record in named if record.end == left.end and judge.judged(i).diverged and judge.effect(i) != "no effect"}
    return {site for site in wrong if pattern_of(site) == pattern} == _siblings(judge, pattern, left.end)


def _siblings(judge: Judge, pattern: str, end: str) -> set[str]:
    """The sites of one role at which this end is compared."""
    records = (judge.records(i)[0] for i in range(len(judge)))
    return {record.site for record in records if record.end == end and pattern_of(record.site) == pattern}


def _lifted(judge: Judge, group: list[Finding], pattern: str, siblings: set[str]) -> Finding:
    """One finding for all, charged to the common caller where what is wrong comes from there."""
    first = min(group, key=lambda finding: finding.place)
    shared = replace(first, shared_by=len(siblings), pattern=pattern)
    if not _comes_from_above(judge, group, pattern):
        return shared
    common = _common_prefix([path.split(".") for path in (*(finding.culprit[0] for finding in group), *map(module_of, siblings))])
    frame = judge.flow.frame(first.place).up
    while frame is not None and frame is not judge.flow.top:
        caller = partners(judge.alignment, frame.site)
        if caller is not None and is_below(common, caller[0]):
            return replace(shared, culprit=caller)
        frame = frame.up
    return replace(shared, culprit=("", ""))


def _comes_from_above(judge: Judge, group: list[Finding], pattern: str) -> bool:
    """Whether all siblings were handed it: the very same tensor, or a mask (the masks of attention come from its callers)."""
    records = [judge.records(finding.place)[0] for finding in group]
    kind = judge.flow.kind(group[0].place)
    if kind == "input":
        return len({record.digest for record in records}) == 1
    if kind == "attr":
        return "causal" in records[0].end or "mask" in records[0].end
    is_attention = re.search(r"att(entio)?n", re.split(r"[.!]", pattern)[-1], re.IGNORECASE) is not None
    return is_attention and (len(group) > _COUPLE or any(_is_handed_a_mask(judge, finding.place) for finding in group))


def _is_handed_a_mask(judge: Judge, i: int) -> bool:
    """Whether a mask is an argument of the call that a pair belongs to, on either side: only then may it come from above."""
    pair = judge.pairs[i]
    for trace, row in ((judge.reference, pair.reference[0]), (judge.port, pair.port[0])):
        site, ordinal = trace.index["site"], trace.index["ordinal"]
        call = np.flatnonzero((site == site[row]) & (ordinal == ordinal[row])).tolist()
        if any(may_mask(trace.records[other]) for other in call if trace.records[other].end.startswith(INPUTS)):
            return True
    return False


def _common_prefix(paths: list[list[str]]) -> str:
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
