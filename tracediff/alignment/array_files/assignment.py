"""Which content of the reference each content of the port is: one assignment from values, names, siblings and order.

Values come first. Where they single two tensors out, these are a pair, and they tell of the rest: of what lies between them in the order
of execution, and of what their numbered siblings are. After a fault no value agrees, and shapes, names, siblings and order carry it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment import order
from tracediff.alignment.array_files.agreement import Agreement
from tracediff.alignment.array_files.contents import Content, Contents
from tracediff.alignment.array_files.thresholds import THRESHOLDS
from tracediff.alignment.array_files.wording import Wording, WordLikeness, numbers_alike

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_NO_PLACE = -(1 << 30)
Partner = dict[int, int]
"""The reference's content of each content of the port."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """The reference's content of a port's content, what speaks for it in words, and whether values alone pair the two."""

    reference: int
    evidence: str
    confidence: float
    by_values: bool


class Evidence:
    """What is known of two sides' contents. ``wordings``: of each row; ``is_ordered``: whether the file says in which order it was made."""

    def __init__(
        self,
        sides: tuple[Contents, Contents],
        agreement: Agreement,
        wordings: tuple[Sequence[Wording], Sequence[Wording]],
        *,
        is_ordered: bool,
    ) -> None:
        self.sides, self.agreement, self.wordings, self.is_ordered = sides, agreement, wordings, is_ordered
        self._likeness = WordLikeness(*wordings)
        self.trust = 1.0
        self.values = self._by_values()
        self.names = self._by_names()

    def texts(self, side: int, number: int) -> list[Wording]:
        """What the names of a content's rows say."""
        return [self.wordings[side][row] for row in self.sides[side].all[number].rows]

    def _by_values(self) -> Floats:
        """What values say of every two contents: digits that agree, or that the two follow one another."""
        error = np.maximum(self.agreement.error, THRESHOLDS.least_error)
        digits = np.where(np.isfinite(error), np.maximum(-np.log10(np.where(np.isfinite(error), error, 1.0)), 0.0), 0.0)
        worth = THRESHOLDS.digit * digits + THRESHOLDS.alike * self.agreement.likeness
        worth = np.where((self.agreement.likeness == 0) & (error > THRESHOLDS.agrees), worth - THRESHOLDS.unlike, worth)
        few = np.array([[THRESHOLDS.per_value * self._telling(content)] for content in self.sides[0].all]) if self.sides[0].all else worth
        worth_of_few: Floats = np.minimum(worth, few)
        return worth_of_few

    def _telling(self, content: Content) -> float:
        return 1.0 if content.is_constant else float(content.count)

    def _by_names(self) -> Floats:
        """What names say of every two contents that fit; the best of the names that each content has."""
        table = np.zeros(self.agreement.fits.shape)
        known: dict[tuple[frozenset[Wording], frozenset[Wording]], float] = {}
        ours, theirs = ([frozenset(self.texts(side, number)) for number in range(len(self.sides[side].all))] for side in (0, 1))
        for a, b in np.argwhere(self.agreement.fits).tolist():
            key = ours[a], theirs[b]
            if key not in known:
                known[key] = max(self.named(one, other) for one in key[0] for other in key[1])
            table[a, b] = known[key]
        return table

    def learn_numbers(self, partner: Mapping[int, int]) -> None:
        """Trusts the numbers of names as far as they agree where values pair: some names count something of their own."""
        found = [self._in_numbers(a, b) for b, a in partner.items()]
        agreeing, others = found.count(1), found.count(-1)
        self.trust = (agreeing + 1) / (agreeing + others + 1)
        self.names = self._by_names()

    def _in_numbers(self, a: int, b: int) -> int:
        """1 where the numbers of some names of two contents agree, -1 where those of none do, 0 where they have none."""
        found = [numbers_alike(one, other) for one in self.texts(0, a) for other in self.texts(1, b)]
        return 1 if max(found) == 1 else -1 if max(found) < 0 else 0

    def named(self, ours: Wording, theirs: Wording) -> float:
        """What two names say."""
        words = self._likeness.of(ours, theirs)
        return THRESHOLDS.words * words + THRESHOLDS.numbers * self.trust * numbers_alike(ours, theirs) * min(
            1.0, THRESHOLDS.number_alone + words
        )


class Siblings:
    """What the pairs of numbered siblings say: names of one pattern pair with names of one pattern, and number by number."""

    def __init__(self, evidence: Evidence, partner: Mapping[int, int]) -> None:
        self._evidence = evidence
        self._votes: dict[str, Counter[str]] = defaultdict(Counter)
        self._total: Counter[str] = Counter()
        for b, a in partner.items():
            ours = {one.pattern for one in evidence.texts(0, a)}
            for theirs in {one.pattern for one in evidence.texts(1, b)}:
                self._total[theirs] += 1
                self._votes[theirs].update(ours)

    def has_say(self, theirs: Wording) -> bool:
        """Whether enough siblings of a port's name are paired, and alike: names that count all arrays have no siblings."""
        total = self._total[theirs.pattern]
        return total >= THRESHOLDS.sibling_votes and max(self._votes[theirs.pattern].values()) >= THRESHOLDS.sibling_share * total

    def say(self, ours: Wording, theirs: Wording) -> float:
        """From -1, no sibling pairs so, to 1, all do and the numbers agree; 0 where too few are paired."""
        if not self.has_say(theirs):
            return 0.0
        share = self._votes[theirs.pattern][ours.pattern] / self._total[theirs.pattern]
        return share if numbers_alike(ours, theirs) > 0 else -1.0 if share < 0.5 else -share

    def table(self, rows: Sequence[int], columns: Sequence[int]) -> Floats:
        """What siblings say of contents of the reference and of the port: (rows, columns)."""
        found = np.zeros((len(rows), len(columns)))
        for j, b in enumerate(columns):
            theirs = [one for one in self._evidence.texts(1, b) if self.has_say(one)]
            for i, a in enumerate(rows if theirs else ()):
                if self._evidence.agreement.fits[a, b]:
                    found[i, j] = max(self.say(one, other) for one in self._evidence.texts(0, a) for other in theirs)
        return found


class Scopes:
    """What the pairs of one scope say: names that stand in one module of the port pair with names that stand in one of the reference's."""

    def __init__(self, evidence: Evidence, partner: Mapping[int, int]) -> None:
        self._evidence = evidence
        self._paired: dict[str, list[set[str]]] = defaultdict(list)
        for b, a in partner.items():
            for scope in {one.scope for one in evidence.texts(1, b)} - {""}:
                self._paired[scope].append({one.scope for one in evidence.texts(0, a)} - {""})

    def _of(self, scope: str) -> set[str]:
        """The reference's scopes that all pairs of the port's scope have; none where too few are paired."""
        paired = self._paired.get(scope, [])
        return set.intersection(*paired) if len(paired) >= THRESHOLDS.sibling_votes else set()

    def table(self, rows: Sequence[int], columns: Sequence[int]) -> Floats:
        """1 where contents of the reference and of the port stand in scopes that pair, else 0: (rows, columns)."""
        found = np.zeros((len(rows), len(columns)))
        for j, b in enumerate(columns):
            scopes = set().union(*(self._of(one.scope) for one in self._evidence.texts(1, b)))
            for i, a in enumerate(rows if scopes else ()):
                found[i, j] = any(one.scope in scopes for one in self._evidence.texts(0, a))
        return found


def anchors(evidence: Evidence) -> Partner:
    """The pairs that values single out: each other's nearest, and clearly nearer than any other, or nearest by name among the near."""
    error = evidence.agreement.error
    if not error.size:
        return {}
    worth = evidence.values + THRESHOLDS.names_beside_values * evidence.names
    near = error <= THRESHOLDS.agrees
    found: Partner = {}
    best_a, best_b = np.where(near, worth, -np.inf).argmax(0), np.where(near, worth, -np.inf).argmax(1)
    for b, a in enumerate(best_a.tolist()):
        is_telling = not evidence.sides[0].all[a].is_constant and evidence.sides[0].all[a].count >= THRESHOLDS.fewest_values
        is_mutual = bool(near[a, b]) and best_b[a] == b
        if is_telling and is_mutual and (_is_clear(error, near, a, b) or _is_clear_by_name(evidence, near, a, b)):
            found[b] = a
    return found


def _is_clear(error: Floats, near: NDArray[np.bool_], a: int, b: int) -> bool:
    """Whether no other tensor is nearly as near as the nearest, on either side."""
    others = [*np.delete(error[:, b], a)[np.delete(near[:, b], a)].tolist(), *np.delete(error[a], b)[np.delete(near[a], b)].tolist()]
    return bool(max(error[a, b], THRESHOLDS.least_error) < THRESHOLDS.clearly_nearest * min(others, default=math.inf))


def _is_clear_by_name(evidence: Evidence, near: NDArray[np.bool_], a: int, b: int) -> bool:
    """Whether of the tensors that are near this pair has the names that are most alike."""
    rivals = [evidence.names[i, b] for i in np.flatnonzero(near[:, b]) if i != a] + [
        evidence.names[a, j] for j in np.flatnonzero(near[a]) if j != b
    ]
    own = float(evidence.names[a, b])
    return own > THRESHOLDS.like_names and own >= max(rivals, default=0.0) + THRESHOLDS.clearly_named


def assigned(evidence: Evidence, given: Mapping[int, int]) -> dict[int, Assigned]:
    """The partners of the port's contents that have one. ``given``: pairs that are stated, by the port's content."""
    found = anchors(evidence)
    evidence.learn_numbers(found)
    fixed = {**{b: a for b, a in found.items() if b not in given and a not in given.values()}, **given}
    partner: Partner = dict(fixed)
    for _ in range(THRESHOLDS.rounds):
        before, partner = partner, fixed | _rest(evidence, fixed, partner)
        if partner == before:
            break
    siblings = Siblings(evidence, fixed)
    return {b: _described(evidence, siblings, b, a, b in fixed) for b, a in partner.items() if b not in given}


def _rest(evidence: Evidence, fixed: Partner, partner: Partner) -> Partner:
    """The pairs of what is not fixed, given what is paired so far."""
    taken = set(fixed.values())
    rows = [a for a in range(len(evidence.sides[0].all)) if a not in taken]
    columns = [b for b in range(len(evidence.sides[1].all)) if b not in fixed]
    if not rows or not columns:
        return {}
    cells = np.ix_(rows, columns)
    scores = THRESHOLDS.fits + evidence.values[cells] + evidence.names[cells]
    scores += THRESHOLDS.siblings * Siblings(evidence, partner).table(rows, columns)
    scores += THRESHOLDS.scope * Scopes(evidence, fixed).table(rows, columns)
    held = _held(evidence, fixed, rows)
    scores += _returned(evidence, rows, evidence.agreement.fits[cells]) + held[:, None]
    if evidence.is_ordered:
        scores += _places(fixed, rows, columns)
        scores += _in_step(fixed, partner, dict(zip(rows, held.tolist(), strict=True)), rows, columns)
    scores = np.where(evidence.agreement.fits[cells], scores, 0.0)
    matched = order.matched(scores) if evidence.is_ordered else order.assigned(scores)
    return {columns[j]: rows[i] for i, j in matched if scores[i, j] >= THRESHOLDS.worth_pairing}


def _held(evidence: Evidence, fixed: Partner, rows: Sequence[int]) -> Floats:
    """What speaks for the port's holding each content at all: that it holds the siblings, else others of its kind. (rows,)

    Contents count up to the last that values pair: behind it nothing is known.
    """
    contents, taken = evidence.sides[0], set(fixed.values())
    counts: dict[Hashable, Counter[bool]] = defaultdict(Counter)
    for a in range(max(taken, default=-1) + 1):
        for key in (*_patterns(evidence, a), _kind_of(contents, a)):
            counts[key][a in taken] += 1
    found = []
    for a in rows:
        own = [counts[key] for key in _patterns(evidence, a) if counts[key].total()] or [counts[_kind_of(contents, a)]]
        found.append(max((vote[True] - vote[False]) / vote.total() if vote.total() else 0.0 for vote in own))
    worth: Floats = THRESHOLDS.habit * np.array(found)
    return worth


def _patterns(evidence: Evidence, a: int) -> set[str]:
    """The patterns of a content's names that have siblings."""
    return {one.pattern for one in evidence.texts(0, a) if "*" in one.pattern}


def _kind_of(contents: Contents, a: int) -> tuple[str, bool]:
    """What makes a content: a module that calls no other, one that does, a function, or code; and whether a norm takes it in."""
    side, calls = contents.side, contents.side.trace.calls
    sites = [int(calls.site[calls.of_row[row]]) for row in contents.all[a].rows]
    made = [site for site, row in zip(sites, contents.all[a].rows, strict=True) if calls.kinds[row] == "output"]
    to_norm = any(side.role[site] == "norm" for site, row in zip(sites, contents.all[a].rows, strict=True) if calls.kinds[row] == "input")
    if not made:
        return "code", to_norm
    modules = [site for site in made if side.kind[site] == "module"]
    if not modules:
        return "function", to_norm
    return ("layer" if any(not side.children[site] for site in modules) else "module"), False


def _in_step(fixed: Partner, partner: Partner, held: Mapping[int, float], rows: Sequence[int], columns: Sequence[int]) -> Floats:
    """What speaks for contents that follow one another on both sides without one between them that the port may hold. (rows, columns)"""
    likely = sorted({*fixed.values(), *(a for a, worth in held.items() if worth > 0)})
    rank = {a: place for place, a in enumerate(likely)}
    table = np.zeros((len(rows), len(columns)))
    places = np.array([rank.get(a, _NO_PLACE) for a in rows])
    for j, b in enumerate(columns):
        for step in (-1, 1):
            beside = partner.get(b + step)
            if beside in rank:
                table[:, j] += 0.5 * (places == rank[beside] - step)
    steps: Floats = THRESHOLDS.in_step * table
    return steps


def _returned(evidence: Evidence, rows: Sequence[int], fits: NDArray[np.bool_]) -> Floats:
    """What speaks for contents that the reference's run returned; ``fits``: (rows, columns), as what is given."""
    side = evidence.sides[0]
    returned = {side.of_row.get(row) for row in side.side.trace.returned or ()}
    chosen = np.array([a in returned for a in rows])[:, None]
    alone = chosen & fits & (fits.sum(1) == 1)[:, None] & (fits.sum(0) == 1)[None, :]
    worth: Floats = THRESHOLDS.returned * chosen + THRESHOLDS.only_left * alone
    return worth


def _places(fixed: Partner, rows: Sequence[int], columns: Sequence[int]) -> Floats:
    """What the order of execution says: contents between the same fixed neighbours, or not. (rows, columns)"""
    chain = order.rising([(b, a) for b, a in fixed.items()])
    before = np.array([-1, *(b for b, _ in chain)]), np.array([-1, *(a for _, a in chain)])
    places = np.searchsorted(before[0], columns, "right") - 1
    low = before[1][places]
    high = np.append(before[1], np.iinfo(np.int64).max)[places + 1]
    own = np.array(rows)[:, None]
    inside = (own > low[None, :]) & (own < high[None, :])
    return np.where(inside, THRESHOLDS.in_place, -THRESHOLDS.out_of_place)


def by_own_name(evidence: Evidence, partner: Mapping[int, int], free: Sequence[int]) -> dict[int, int | None]:
    """The rows of the port that are another content than their tensor's, by their own names: (row, content); None where nothing tells.

    ``partner``: pairs that values do not support. One tensor under two names is two of the reference's where a fault made them equal.
    """
    found: dict[int, int | None] = {}
    left = list(free)
    for b, a in partner.items():
        rows = [row for row in evidence.sides[1].all[b].rows if evidence.sides[1].side.trace.calls.kinds[row] != "input"]
        if len(rows) < 2:
            continue
        worth = {row: _by_row(evidence, a, b, row) for row in rows}
        for row in rows:
            if worth[row] + THRESHOLDS.other_name < max(worth.values()):
                best = max(
                    ((_by_row(evidence, other, b, row), other) for other in left if evidence.agreement.fits[other, b]), default=(0.0, -1)
                )
                found[row] = best[1] if best[0] >= max(THRESHOLDS.words, worth[row] + THRESHOLDS.other_name) else None
    return found


def _by_row(evidence: Evidence, a: int, b: int, row: int) -> float:
    """What values and the name of one row of the port say of a content of the reference."""
    named = max(evidence.named(one, evidence.wordings[1][row]) for one in evidence.texts(0, a))
    return float(evidence.values[a, b]) + named


def _described(evidence: Evidence, siblings: Siblings, b: int, a: int, is_fixed: bool) -> Assigned:
    """A pair with what speaks for it."""
    error, names = float(evidence.agreement.error[a, b]), float(evidence.names[a, b])
    told = max((siblings.say(one, other) for one in evidence.texts(0, a) for other in evidence.texts(1, b)), default=0.0)
    by_values = is_fixed or error <= THRESHOLDS.agrees
    parts = [f"values agree to {max(error, THRESHOLDS.least_error):.0e}" if by_values else "shapes"]
    if not by_values and evidence.agreement.likeness[a, b] > THRESHOLDS.told:
        parts.append("values alike")
    parts += (
        ["as its siblings are"] * (told > THRESHOLDS.told)
        + ["like names"] * (names > THRESHOLDS.like_names)
        + ["order"] * (evidence.is_ordered and not by_values)
    )
    confidence = _confidence(is_fixed, by_values, told > THRESHOLDS.told, names > THRESHOLDS.like_names)
    return Assigned(a, ", ".join(parts), confidence, by_values)


def _confidence(is_fixed: bool, by_values: bool, is_told: bool, is_named: bool) -> float:
    """The confidence in a pair, by the strongest of what speaks for it."""
    if is_fixed:
        return THRESHOLDS.confidence_single
    if by_values:
        return THRESHOLDS.confidence_values
    if is_told:
        return THRESHOLDS.confidence_siblings
    return THRESHOLDS.confidence_names if is_named else THRESHOLDS.confidence_order
