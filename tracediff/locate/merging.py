"""One fault is one finding: its places are grouped, and what all siblings of a role share is charged to their common caller.

Places are of one fault where the same code made a like error: at another end of the same call, at a later call of its site, in another part
of a fused tensor, at a sibling of its role in another block, or where the code handed on the very same tensor; and where one follows from
another (see `following`). What is worse by far than the rest of a group stands by itself: a harmless difference must not hide a fault
beside it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from tracediff.locate.culprit import Modules, paired_callers
from tracediff.locate.errors import FROM_ABOVE, LIKE, ErrorOf, alike, error_of, is_far_worse, is_like
from tracediff.locate.following import Following
from tracediff.locate.masks import may_mask
from tracediff.locate.result import Blame, Finding
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.verdicts import Verdicts
from tracediff.site import is_below, module_of
from tracediff.trace import Record


def merged(verdicts: Verdicts, findings: Iterable[Finding]) -> list[Finding]:
    """One finding for each fault: its first place, with the number of all."""
    return sorted(_of_roles(verdicts, _of_code(verdicts, findings)), key=lambda finding: finding.place)


# -- one site, and what follows from it ----------------------------------------------------------------------------------------------------


class _Group:
    """The places of one fault at one site: the finding that is told of them, and the error of the worst."""

    def __init__(self, finding: Finding, record: Record, error: ErrorOf) -> None:
        self.finding, self.worst = finding, error
        self._site, self._calls = record.site, {record.call}

    def add(self, record: Record, error: ErrorOf) -> None:
        """Counts another place."""
        if record.site == self._site:
            self._calls.add(record.call)
        self.finding = replace(self.finding, places=self.finding.places + 1, calls=len(self._calls))
        self.worst = max(self.worst, error, key=lambda one: one.gravity)


def _of_code(verdicts: Verdicts, findings: Iterable[Finding]) -> list[_Group]:
    """The findings in groups of the same code at one site, in order; with each group what follows from it."""
    groups: list[_Group] = []
    seen: dict[Hashable, list[_Group]] = defaultdict(list)
    following = Following(verdicts)
    for finding in findings:
        record, error = verdicts.pairs.records(finding.place)[0], error_of(verdicts, finding.place)
        same_tensor, same_end, same_call, same_whole = keys = _keys(verdicts, finding)
        no_worse = (group for group in chain(seen[same_end], seen[same_call]) if not is_far_worse(error, group.worst))
        parts = (group for group in seen[same_whole] if is_like(error, group.worst))
        after = (group for group in groups if following.follows(group.finding, finding))
        group = next(chain(seen[same_tensor], no_worse, parts, after), None)
        if group is None:
            group = _Group(finding, record, error)
            groups.append(group)
        else:
            group.add(record, error)
        for key in keys:
            if group not in seen[key]:
                seen[key].append(group)
    return groups


def _keys(verdicts: Verdicts, finding: Finding) -> tuple[Hashable, Hashable, Hashable, Hashable]:
    """What a finding shares with others of its fault.

    The very same tensors, handed to another call; the end of its site; its call; the port's tensor, of which the pairs are parts.
    """
    left, right = verdicts.pairs.records(finding.place)
    blame = finding.blame
    tensors = finding.culprit, blame, left.digest, right.digest
    return tensors, (left.site, left.end, blame), (left.site, left.call, blame), (right.row, blame)


# -- siblings of one role ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Role:
    """Findings at siblings: the pattern of the role, at how many siblings its end is compared, and whether all of them have the fault.

    ``sites``: the siblings with a finding. An attribute may differ at others too, which then inherited it.
    """

    pattern: str
    siblings: frozenset[str]
    findings: tuple[Finding, ...]
    sites: frozenset[str]
    is_whole: bool


def _of_roles(verdicts: Verdicts, groups: Iterable[_Group]) -> Iterator[Finding]:
    """One finding for what siblings of a role share: all were handed it, or it is wrong alike at more than may be so by chance."""
    roles: dict[tuple[str, str, Blame], list[_Group]] = defaultdict(list)
    for group in groups:
        record = verdicts.pairs.records(group.finding.place)[0]
        roles[verdicts.pairs.role(group.finding.place), record.end, group.finding.blame].append(group)
    siblings = _siblings(verdicts)
    for (pattern, end, _), members in roles.items():
        for part in alike(members, _worst, FROM_ABOVE):
            role = _role(verdicts, pattern, siblings[pattern, end], part)
            alike_in_role = [part] if role.is_whole and _comes_from_above(verdicts, role) else alike(part, _worst, LIKE)
            for like in alike_in_role:
                yield from _told(verdicts, _role(verdicts, pattern, siblings[pattern, end], like))


def _worst(group: _Group) -> ErrorOf:
    return group.worst


def _role(verdicts: Verdicts, pattern: str, siblings: Iterable[str], groups: Iterable[_Group]) -> _Role:
    findings = tuple(group.finding for group in groups)
    sites = frozenset(verdicts.pairs.records(finding.place)[0].site for finding in findings)
    known = frozenset(siblings)
    is_whole = len(known) > 1 and (sites == known or _differs_at_all(verdicts, findings[0].place, known))
    return _Role(pattern, known, findings, sites, is_whole)


def _told(verdicts: Verdicts, role: _Role) -> Sequence[Finding]:
    """The findings at siblings as one where they are one fault, charged to the common caller where what is wrong comes from there."""
    is_from_above = _comes_from_above(verdicts, role)
    if len(role.sites) <= THRESHOLDS.couple and not (role.is_whole and is_from_above):
        return role.findings
    first = min(role.findings, key=lambda finding: finding.place)
    shared = replace(
        first,
        places=sum(finding.places for finding in role.findings),
        shared_by=len(role.siblings if role.is_whole else role.sites),
        siblings=len(role.siblings),
        pattern=role.pattern,
    )
    return [replace(shared, culprit=_common_caller(verdicts, role, first)) if is_from_above else shared]


def _siblings(verdicts: Verdicts) -> dict[tuple[str, str], set[str]]:
    """The sites of each role at which an end is compared, by the role's pattern and the end."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    seen: set[tuple[str, str, str]] = set()
    for i in range(len(verdicts)):
        left, right = verdicts.pairs.records(i)
        if (key := (left.site, right.site, left.end)) not in seen:
            seen.add(key)
            found[verdicts.pairs.role(i), left.end].add(left.site)
    return found


def _common_caller(verdicts: Verdicts, role: _Role, first: Finding) -> Modules:
    """The nearest paired module around the findings' culprits and all siblings."""
    paths = (*(finding.culprit[0] for finding in role.findings), *map(module_of, role.siblings))
    common = _common_prefix([path.split(".") for path in paths])
    around = (modules for _, modules in paired_callers(verdicts, verdicts.flow.call(first.place)))
    return next((modules for modules in around if is_below(common, modules[0])), ("", ""))


def _comes_from_above(verdicts: Verdicts, role: _Role) -> bool:
    """Whether the siblings were handed what is wrong: the very same tensor, or a mask (the masks of attention come from its callers)."""
    places = [finding.place for finding in role.findings]
    records = [verdicts.pairs.records(place)[0] for place in places]
    kind = verdicts.flow.kind(places[0])
    if kind == "input":
        return len(role.sites) > 1 and len({record.digest for record in records}) == 1
    if not role.is_whole or verdicts.pairs.has_raised(places[0]):
        return False
    if kind == "attr":
        return "causal" in records[0].end or "mask" in records[0].end
    is_common = len(places) > THRESHOLDS.couple or any(_is_handed_a_mask(verdicts, place) for place in places)
    return is_common and _is_attention(verdicts, records[0].site)


def _is_attention(verdicts: Verdicts, site: str) -> bool:
    """Whether a site is attention by the name of its function or class, or by its own where nobody knows its class."""
    known = verdicts.pairs.types.get(site)
    return re.search(r"att(entio)?n", known or re.split(r"[.!]", site)[-1], re.IGNORECASE) is not None


def _is_handed_a_mask(verdicts: Verdicts, i: int) -> bool:
    """Whether a mask is an argument of the call that a pair belongs to, on either side: only then may it come from above."""
    pairs = verdicts.pairs
    for trace, row in ((pairs.reference, pairs[i].reference[0]), (pairs.port, pairs[i].port[0])):
        arguments = trace.calls.inputs(int(trace.calls.of_row[row]))
        if any(may_mask(trace.records[argument]) for argument in arguments):
            return True
    return False


def _differs_at_all(verdicts: Verdicts, place: int, siblings: frozenset[str]) -> bool:
    """Whether an attribute that differs at a call differs at all siblings: it comes from no tensor, so none of them inherited it."""
    if verdicts.flow.kind(place) != "attr":
        return False
    end = verdicts.pairs.records(place)[0].end
    attributes = [i for i in range(len(verdicts)) if verdicts.flow.kind(i) == "attr" and verdicts.pairs.records(i)[0].end == end]
    wrong = [i for i in attributes if verdicts.comparisons.judged(i).diverged and verdicts.effects.of(i) != "no effect"]
    return siblings <= {verdicts.pairs.records(i)[0].site for i in wrong}


def _common_prefix(paths: list[list[str]]) -> str:
    """The module path that all paths, given by their segments, lie below."""
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


# -- after a bisection ---------------------------------------------------------------------------------------------------------------------


def sharing(verdicts: Verdicts, first: int) -> list[int]:
    """After a bisection: where the siblings of the first divergence's site introduced it too, or nothing unless all of them did."""
    record = verdicts.pairs.records(first)[0]
    role = verdicts.pairs.role(first)
    places: dict[str, list[int]] = defaultdict(list)
    for i in range(len(verdicts)):
        other = verdicts.pairs.records(i)[0]
        if other.site != record.site and other.end == record.end and verdicts.pairs.role(i) == role:
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
