"""Pairs the records of paired sites: which tensor of a call is which on the other side, and in which layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tracediff.alignment.arguments import Arguments
from tracediff.alignment.boundaries import without_moved
from tracediff.alignment.calls import CallPairs
from tracediff.alignment.joint_layouts import settled
from tracediff.alignment.longer_runs import cut_to_reference
from tracediff.alignment.record_plans import RecordPlans
from tracediff.alignment.record_table import CallPair, PairedSites, Rows
from tracediff.alignment.result import RecordPair
from tracediff.alignment.split_calls import SplitCalls
from tracediff.alignment.stray_errors import StrayErrors
from tracediff.alignment.structure import OUTPUT, Side


class RecordPairs:
    """Pairs the records of two sides, given the pairs of sites. ``found``: the pairs of records so far."""

    def __init__(self, sides: tuple[Side, Side], sites: Sequence[PairedSites]) -> None:
        self.rows = Rows(sides, {pair.reference: pair.port for pair in reversed(sites)})
        self.sites = sites
        self.calls = CallPairs(sides, self.rows.tables, self.rows.partner)
        self.arguments = Arguments(self.rows)
        self.plans, self.split_calls = RecordPlans(self.rows, self.arguments), SplitCalls(self.rows, self.arguments)
        callers_first = sorted(sites, key=lambda pair: (len(sides[0].callers(pair.reference)), pair.reference))
        self.paired_calls: list[tuple[PairedSites, list[CallPair]]] = [
            (pair, self.calls.pair(pair.reference, pair.port)) for pair in callers_first
        ]
        self.found: list[RecordPair] = []

    def run(self) -> list[RecordPair]:
        """All pairs of records after all `PASSES`, in the reference's execution order."""
        for run in PASSES:
            run(self)
        return sorted(self.found, key=lambda pair: (pair.reference[0], pair.port[0]))

    def of_calls(self, sites: PairedSites, calls: CallPair) -> list[RecordPair]:
        """The pairs of records of paired calls, one of each side or several."""
        is_split = len(calls.reference) > 1 or len(calls.port) > 1
        return self.split_calls.of(sites, calls) if is_split else self.plans.of(sites, calls)


def learn_boundaries(records: RecordPairs) -> None:
    """Finds the calls in which values best say which boundary is which; their pairs hold for all calls with these boundaries."""
    for sites, calls in records.paired_calls:
        records.arguments.learn(sites, calls)


def pair_boundaries(records: RecordPairs) -> None:
    """Pairs the records of all paired calls."""
    for sites, calls in records.paired_calls:
        for pair in calls:
            found = records.of_calls(sites, pair)
            records.found.extend(one for one in found if not sites.outputs_only or records.rows.kind[0][one.reference[0]] == OUTPUT)


def cut_longer_runs(records: RecordPairs) -> None:
    """Reads what holds the reference's rows and more as these rows."""
    records.found = cut_to_reference(records.plans.layouts, records.sites, records.found)


def settle_layouts(records: RecordPairs) -> None:
    """Decides the layouts that shapes leave open, all together."""
    records.found = settled(records.plans.layouts, records.found)


def leave_out_moved(records: RecordPairs) -> None:
    """Leaves out boundaries that lie in different places: a module that ends in its activation on one side only."""
    records.found = without_moved(records.rows, records.found)


def add_stray_errors(records: RecordPairs) -> None:
    """Adds the errors that the port raised in calls without partner."""
    strays = StrayErrors(records.rows, records.sites, records.calls.groups.partner[1])
    records.found = [*records.found, *strays.paired(records.found)]


PASSES: tuple[Callable[[RecordPairs], None], ...] = (
    learn_boundaries,
    pair_boundaries,
    cut_longer_runs,
    settle_layouts,
    leave_out_moved,
    add_stray_errors,
)
"""The passes in order. An ablation leaves one out by its name."""
