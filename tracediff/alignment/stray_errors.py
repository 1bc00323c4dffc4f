"""Errors that the port raised in calls without partner: each is compared with the record of the reference that it prevented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tracediff.alignment.record_plans import RAISED
from tracediff.alignment.record_table import PairedSites, Rows
from tracediff.alignment.result import RecordPair
from tracediff.alignment.thresholds import THRESHOLDS


class StrayErrors:
    """Pairs stray errors. ``sites``: all pairs of sites; ``partner``: the reference's call of each paired call of the port."""

    def __init__(self, rows: Rows, sites: Sequence[PairedSites], partner: Mapping[int, int]) -> None:
        self.rows, self.sites, self.partner = rows, sites, partner

    def paired(self, found: Sequence[RecordPair]) -> list[RecordPair]:
        """The errors in calls without partner, each with what the nearest paired caller returns in the reference.

        Outside of all paired calls an error goes with the first record of the reference that the port did not come to in its stage. An
        error that also left a paired call is paired there already.
        """
        used = {row for pair in found for row in pair.port}
        taken = {row for pair in found for row in pair.reference}
        known = {self._error(row) for row in used if self.rows.raised[1][row]}
        pairs = []
        for row, is_raised in enumerate(self.rows.raised[1]):
            if not is_raised or row in used or self._error(row) in known:
                continue
            place = self._prevented(row, taken)
            if place is not None:
                known.add(self._error(row))
                taken.add(place)
                pairs.append(RecordPair((place,), (row,), None, RAISED, THRESHOLDS.confidence_stray, self._sites_of(place)))
        return pairs

    def _error(self, row: int) -> bytes:
        """What two records of the same error in the port share."""
        digest: bytes = self.rows.sides[1].index["digest"][row].tobytes()
        return digest

    def _prevented(self, row: int, taken: set[int]) -> int | None:
        """The row of the reference that an error is compared with; None where all rows are taken."""
        calls = self.rows.sides[1].calls
        call = int(calls.parent[calls.of_row[row]])
        while call >= 0:
            partner = self.partner.get(call)
            outputs = [] if partner is None else self.rows.sides[0].ends_of(partner)[1]
            free = next((output for output in outputs if output not in taken), None)
            if free is not None:
                return free
            call = int(calls.parent[call])
        return self._next_in_stage(row, taken)

    def _next_in_stage(self, row: int, taken: set[int]) -> int | None:
        """The first free record of the reference behind all that are paired in the stage of a row; None where there is none."""
        reference, rows = self.rows.sides[0], range(len(self.rows.kind[0]))
        stage = self.rows.sides[1].text("stage", row)
        in_stage = [place for place in rows if reference.text("stage", place) == stage]
        before_stage = in_stage[0] - 1 if in_stage else max(taken, default=-1)
        last = max((place for place in in_stage if place in taken), default=before_stage)
        return next((place for place in rows[last + 1 :] if place not in taken), None)

    def _sites_of(self, row: int) -> int:
        """The place in the alignment of the site of a row of the reference; that of the first pair where the site has none."""
        calls = self.rows.sides[0].calls
        site = int(calls.site[calls.of_row[row]])
        return next((pair.place for pair in self.sites if pair.reference == site), self.sites[0].place)
