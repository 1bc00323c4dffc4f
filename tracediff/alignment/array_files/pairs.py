"""Puts the alignment with a file of arrays together: pairs of sites in words, and pairs of records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment.array_files.agreement import agreement
from tracediff.alignment.array_files.assignment import Assigned, Evidence, Siblings, assigned, by_own_name
from tracediff.alignment.array_files.contents import Contents
from tracediff.alignment.array_files.effects import Consequences
from tracediff.alignment.array_files.readings import Readings
from tracediff.alignment.array_files.rows import Rows, told_otherwise
from tracediff.alignment.array_files.stated import by_content, stated_rows
from tracediff.alignment.array_files.storage import stored_in
from tracediff.alignment.array_files.thresholds import THRESHOLDS
from tracediff.alignment.array_files.wording import Wording, wordings
from tracediff.alignment.mapping import StatedMap
from tracediff.alignment.result import Alignment, RecordPair, SitePair, as_kind
from tracediff.alignment.structure import Side

ROOT = "(root)"
"""How the root of a model is named in files of arrays and in mappings of them."""
NAMED, MAPPED = "named so in a converted file", "given by the mapping"


def is_array_file(side: Side) -> bool:
    """Whether a side was converted from arrays that somebody named, so that it has no calls of its own."""
    return (side.trace.meta.get("converted") or {}).get("names") == "stated"


def align_arrays(reference: Side, port: Side, mapped: StatedMap) -> Alignment:
    """The alignment of a reference and a file of arrays; it has no pairs where nothing corresponds."""
    return _Paired((Contents(reference, _ignored(reference, mapped, 0)), Contents(port, _ignored(port, mapped, 1))), mapped).alignment()


def _ignored(side: Side, mapped: StatedMap, number: int) -> frozenset[str]:
    return frozenset(side.names[site] for site in mapped.ignored[number])


class _Paired:
    """The decisions, in order."""

    def __init__(self, sides: tuple[Contents, Contents], mapped: StatedMap) -> None:
        self.sides, self.mapped = sides, mapped
        found = agreement(*sides)
        port = sides[1].side
        is_ordered = (port.trace.meta.get("converted") or {}).get("order") != "names"
        self.evidence = Evidence(sides, found, (_wordings(sides[0].side), _wordings(port)), is_ordered=is_ordered)
        self.stated = stated_rows(sides, found, mapped)
        given = by_content(sides, self.stated)
        proposed = assigned(self.evidence, given)
        self.stored = stored_in(sides, {b: one.reference for b, one in proposed.items() if one.by_values})
        self.settled = [a for b, a in _partners(proposed, given).items() if found.error[a, b] <= self._allowed(b)]
        self.consequences = self._consequences(proposed, given)
        self.siblings = Siblings(self.evidence, {b: one.reference for b, one in proposed.items() if one.by_values})
        self.assigned = {b: one for b, one in proposed.items() if one.by_values or self._may_differ(b, one)}
        self.rows = self._chosen(given)
        self.confidences = {b: one.confidence for b, one in self.assigned.items()}

    def _allowed(self, b: int) -> float:
        """The error of a content of the port up to which it is settled."""
        row = self.sides[1].all[b].rows[0]
        kind = dtypes.BY_CODE[int(self.sides[1].side.index["dtype"][row])]
        if self.stored is None or not self.stored.holds(kind.name):
            return max(THRESHOLDS.settled, kind.rtol)
        half = dtypes.named(self.stored.dtype)
        return max(THRESHOLDS.settled, half.roundoff if self.stored.in_float32 else half.rtol)

    def _consequences(self, proposed: Mapping[int, Assigned], given: Mapping[int, int]) -> Consequences:
        error = self.evidence.agreement.error
        doubtful = [one.reference for one in proposed.values() if not one.by_values]
        doubtful += [a for b, a in given.items() if error[a, b] > self._allowed(b)]
        return Consequences(self.sides[0], self.settled, doubtful)

    def _may_differ(self, b: int, one: Assigned) -> bool:
        """Whether a pair that values do not support is one: siblings say so, or something that differs follows from it."""
        texts = self.evidence.texts(0, one.reference), self.evidence.texts(1, b)
        told = max(self.siblings.say(ours, theirs) for ours in texts[0] for theirs in texts[1])
        return told > THRESHOLDS.told or not self.consequences.agree(one.reference)

    def _chosen(self, given: Mapping[int, int]) -> dict[int, int]:
        """The reference's row of each paired row of the port."""
        partner = _partners(self.assigned, given)
        rows = Rows(self.evidence, partner)
        found = rows.chosen()
        free = {a for a in range(len(self.sides[0].all)) if self.consequences.differ(a)} - set(partner.values())
        by_values = {b: one.reference for b, one in self.assigned.items() if one.by_values}
        for row, a in told_otherwise(self.evidence, self.siblings, by_values, free).items():
            found[row] = rows.row_of(a, row)
        free -= {self.sides[0].of_row[row] for row in found.values()}
        doubtful = {b: one.reference for b, one in self.assigned.items() if not one.by_values}
        for row, named in by_own_name(self.evidence, doubtful, sorted(free)).items():
            found.pop(row, None)
            if named is not None:
                found[row] = rows.row_of(named, row)
        return {row: other for row, other in {**found, **self.stated}.items() if row in self.stated or self._is_own(row, given)}

    def _is_own(self, row: int, given: Mapping[int, int]) -> bool:
        """Whether a row is paired for itself, and not because another row of its content is stated with other values."""
        b = self.sides[1].of_row[row]
        return b in self.assigned or self.evidence.agreement.error[given[b], b] <= THRESHOLDS.agrees

    def alignment(self) -> Alignment:
        """The alignment."""
        pairs = sorted((other, row) for row, other in self.rows.items())
        readings = Readings(self.sides, pairs, lambda row: self.consequences.all_differ(self.sides[0].of_row[row]))
        places: dict[tuple[str, str], int] = {}
        first: dict[tuple[str, str], int] = {}
        records: list[RecordPair] = []
        permutations = {(entry.reference, entry.port): entry.permutation for entry in self.mapped.pairs}
        for a, b in pairs:
            sites = self._site(0, a), self._site(1, b)
            numbers = self.sides[0].side.number[sites[0]], self.sides[1].side.number[sites[1]]
            layout, evidence = readings.of((a, b), permutations.get(numbers))
            place = places.setdefault(sites, len(places))
            first.setdefault(sites, b)
            records.append(RecordPair((a,), (b,), layout, evidence, self._confidence(b), place))
        counts = tuple(Counter(self._site(side, pair[side]) for pair in pairs) for side in (0, 1))
        return Alignment(
            (
                *(self._pair(sites, row) for sites, row in first.items()),
                *self._alone(0, {one for one, _ in places}),
                *self._alone(1, {one for _, one in places}),
            ),
            tuple(records),
            self._left_over(0, {a for a, _ in pairs}),
            self._left_over(1, {b for _, b in pairs}),
            stored=self.stored,
            names=tuple(self._names(a, b, counts) for a, b in pairs),
        )

    def _names(self, a: int, b: int, counts: Sequence[Mapping[str, int]]) -> tuple[str, str]:
        """How a mapping names two records: by their sites, with ends where a site has other pairs or the two ends differ.

        ``counts``: how many pairs each site has, of either side.
        """
        records = self.sides[0].side.trace.records[a], self.sides[1].side.trace.records[b]
        sites = [record.site or ROOT for record in records]
        is_alone = [counts[side][record.site] == 1 for side, record in enumerate(records)]
        is_alike = (records[0].ordinal, records[0].end) == (records[1].ordinal, records[1].end)
        ours, theirs = (f"{site}/{record.ordinal}/{record.end}" for site, record in zip(sites, records, strict=True))
        return sites[0] if is_alike and all(is_alone) else ours, sites[1] if is_alone[1] else theirs

    def _site(self, side: int, row: int) -> str:
        return self.sides[side].side.text("site", row)

    def _confidence(self, row: int) -> float:
        return 1.0 if row in self.stated else self.confidences.get(self.sides[1].of_row[row], THRESHOLDS.confidence_single)

    def _pair(self, sites: tuple[str, str], row: int) -> SitePair:
        """A pair of sites in words, by what speaks for its first pair of records, of which the port's is in this row."""
        kind = as_kind(self.sides[0].side.kind[self.sides[0].side.number[sites[0]]])
        return SitePair(sites[0], sites[1], kind, self._words(row), self._confidence(row))

    def _words(self, row: int) -> str:
        side = self.sides[1].side
        if row in self.stated:
            return MAPPED if side.number[side.text("site", row)] in {entry.port for entry in self.mapped.pairs} else NAMED
        one = self.assigned.get(self.sides[1].of_row[row])
        return one.evidence if one is not None else "values agree"

    def _alone(self, number: int, paired: Iterable[str]) -> list[SitePair]:
        """The sites of a side without partner, each with those that come nearest."""
        side, known = self.sides[number].side, set(paired)
        found = []
        for site in range(side.called):
            name = side.names[site]
            if name not in known:
                ends: tuple[str | None, str | None] = (name, None) if number == 0 else (None, name)
                reason = self._reason(number, site)
                found.append(SitePair(*ends, as_kind(side.kind[site]), reason, 0.0, self._nearest(number, name)))
        return found

    def _reason(self, number: int, site: int) -> str:
        """Why a site has no partner."""
        if site in self.mapped.ignored[number]:
            return "ignored by the mapping"
        contents = self.sides[number]
        own = {a for row in self._rows_of(number, contents.side.names[site]) if (a := contents.of_row.get(row)) is not None}
        used = {contents.of_row[row] for row in (self.rows.values() if number == 0 else self.rows)}
        return "holds what is compared at another site" if own and own <= used else "no counterpart found"

    def _rows_of(self, number: int, name: str) -> list[int]:
        side = self.sides[number].side
        rows: list[int] = np.flatnonzero(side.index["site"] == side.trace.sites[name]).tolist()
        return rows

    def _nearest(self, number: int, name: str) -> tuple[str, ...]:
        """The port's arrays have their nearest sites named, for whoever states a pair; so many as there are, three at most."""
        if number == 0:
            return ()
        contents = self.sides[1]
        numbers = [contents.of_row[row] for row in self._rows_of(1, name) if row in contents.of_row]
        if not numbers or not self.sides[0].all:
            return ()
        scores = np.where(
            self.evidence.agreement.fits[:, numbers], self.evidence.values[:, numbers] + self.evidence.names[:, numbers], 0.0
        ).max(1)
        best = [a for a in np.argsort(-scores, kind="stable")[:3].tolist() if scores[a] > 0]
        return tuple(dict.fromkeys(self._site(0, self.sides[0].all[a].rows[0]) for a in best))

    def _left_over(self, number: int, used: set[int]) -> tuple[int, ...]:
        return tuple(row for row in range(len(self.sides[number].side.index)) if row not in used)


def _partners(found: Mapping[int, Assigned], given: Mapping[int, int]) -> dict[int, int]:
    return {**{b: one.reference for b, one in found.items()}, **given}


def _wordings(side: Side) -> list[Wording]:
    """What the names of all rows of a side say; the number of a call is one of its numbers."""
    rows = range(len(side.index))
    return wordings([(side.text("site", row), int(side.index["ordinal"][row]), side.text("end", row)) for row in rows])
