"""The one place that decides what is said of two runs as a whole: the verdict, what withholds it, and what it leaves open.

Where something diverged the verdict is "different". "same" needs two whole runs of which nothing returned by the port is left out, no
module with parameters that nothing compared depends on, and no weights that differ where the run cannot tell whether that matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment import Alignment
from tracediff.locate import Comparison, Effect, Located
from tracediff.locate.folded import folded
from tracediff.metrics import rounding
from tracediff.parameters.renames import parent
from tracediff.parameters.result import WeightsReport
from tracediff.ranks import ranks_note
from tracediff.site import INPUTS, RETURNED, is_below, is_returned, listed, module_of
from tracediff.trace import Record, Trace

Verdict = Literal["same", "different"] | None
Outputs = Literal["compared", "in part", "not compared", "not recorded"]
Code = Literal[
    "damaged",
    "noise",
    "unfinished",
    "ranks",
    "nothing paired",
    "no values",
    "served",
    "outputs",
    "port outputs",
    "cannot tell",
    "modules",
    "weights",
]
MOST_NAMES = 3
_WITHOUT_EFFECT: tuple[Effect, ...] = ("moved", "no effect", "equivalent")


@dataclass(frozen=True, slots=True)
class Withheld:
    """Why there is no verdict although nothing diverged: a code, the names that it concerns, and the reason as a clause."""

    code: Code
    names: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict; why it is withheld; how much of what the runs returned was compared, and of what only the reference returned the names.

    ``untold``: the places in `Located.comparisons` of what was returned and cannot be told, since rounding alone changes it as much.
    ``outputs`` is "not recorded" where a block or a selection was recorded, or a run returned nothing. ``not_returned``: the names of what
    the reference returned and the port did not, whether or not the same values were compared where the port computed them.
    """

    verdict: Verdict
    withheld: Withheld | None
    outputs: Outputs
    unseen: tuple[str, ...]
    untold: tuple[int, ...] = ()
    not_returned: tuple[str, ...] = ()


def decide(located: Located, alignment: Alignment, reference: Trace, port: Trace, weights: WeightsReport | None) -> Decision:
    """What is said of two runs as a whole, told what was located between them and how their parameters differ."""
    seen = _Seen(located, alignment, reference, port)
    withheld = None if located.findings else next(_reasons(seen, weights), None)
    verdict: Verdict = "different" if located.findings else "same" if withheld is None else None
    ours = seen.sides[0]
    untold, not_returned = seen.places_of(seen.untold_returned), ours.names(seen.not_returned)
    return Decision(verdict, withheld, seen.outputs, ours.names(ours.left_out), untold, not_returned)


def _reasons(seen: _Seen, weights: WeightsReport | None) -> Iterator[Withheld]:
    """What keeps two runs in which nothing diverged from being the same, the gravest first."""
    for name, side in zip(("reference", "port"), seen.sides, strict=True):
        if damaged := tuple(side.trace.damaged.values()):
            yield Withheld("damaged", damaged, f"the {name}'s file is damaged: {few(damaged)} not compared")
    for name, side in zip(("reference", "port"), seen.sides, strict=True):
        if not side.trace.complete and side.compared:
            yield Withheld("unfinished", (name,), f"the {name}'s run did not come to its end")
    for name, side in zip(("reference", "port"), seen.sides, strict=True):
        if said := ranks_note(side.trace, name):
            yield Withheld("ranks", (name,), said[0].lower() + said[1:].removesuffix("."))
    if any(one.effect == "noise" for one in seen.comparisons):
        yield Withheld(
            "noise",
            (),
            "the two runs chose different ids where the reference itself would under noise, and all that differs comes after that; "
            "a forced run (--feed) tells more",
        )
    if not seen.sides[0].compared:
        yield _nothing_compared(seen)
    served = tuple(dict.fromkeys(seen.sides[1].site(one.pair.port[0]) for one in seen.comparisons if one.how == "served"))
    if served:
        yield Withheld("served", served, f"{few(served)} served from a trace, not computed")
    yield from _outputs_missed(seen)
    if untold := seen.sides[0].names(sorted(seen.untold_returned)):
        yield Withheld(
            "cannot tell",
            untold,
            f"cannot tell {_few(untold)}, which the run returned: rounding alone changes it in the reference by as much as its values, "
            "so that no fault would show",
        )
    for name, side in zip(("reference", "port"), seen.sides, strict=True):
        if modules := tuple(side.unreached()):
            yield Withheld(
                "modules",
                modules,
                f"nothing that was compared depends on {_few(modules)}, which the {name} has parameters for",
            )
    if names := tuple(_untold_weights(seen, weights)):
        yield Withheld(
            "weights",
            names,
            f"weights of the port differ ({_few(names)}), and nothing that was compared tells that this has no effect",
        )


def _nothing_compared(seen: _Seen) -> Withheld:
    if not seen.comparisons:
        return Withheld("nothing paired", (), "no record of the one side could be paired with one of the other, so nothing was compared")
    most = max(one.at_least for one in seen.comparisons)
    least = f", and these differ by no more than {most:.1e}" if most else ", and these do not differ"
    return Withheld("no values", (), f"no values were compared: only statistics were stored{least} (capture with --save full)")


def _outputs_missed(seen: _Seen) -> Iterator[Withheld]:
    """What the runs returned and nothing was compared with."""
    ours, theirs = seen.sides
    for name, side in (("reference", ours), ("port", theirs)):
        if side.is_opaque:
            kind = str(side.trace.meta["returned"]["type"])
            yield Withheld("outputs", (kind,), f"nothing that the {name}'s run returned could be recorded (its type is {kind!r})")
    if seen.outputs == "not compared":
        names = ours.names(ours.left_out)
        hint = "; let the port's run return what it computes" if theirs.returned == () and not theirs.is_opaque else ""
        said = f"nothing that the run returned was compared ({_few(names)}), so nothing is said of the whole{hint}"
        yield Withheld("outputs", names, said)
    elif theirs.left_out:
        names = theirs.names(theirs.left_out)
        yield Withheld("port outputs", names, f"of what the port returned {few(names)} not compared")


def free_notes(located: Located, port: Trace) -> Iterator[str]:
    """What there is to say where a forced run differs, and the free run that its capture began with does not."""
    free = port.meta.get("free") or {}
    if located.mode == "forced" and located.findings and free.get("compared") and not free.get("diverged"):
        yield (
            f"Free, the port agrees: when it was captured it first ran without being fed, and of {free['compared']:,} compared records "
            "none diverged. What differs here shows only where the port is fed the reference's tensors: it may say the same in another way "
            "(a factor, an order or a padding of its own), or the error is within what a free run is allowed."
        )


class _Seen:
    """What was compared of two runs, and of what they returned."""

    def __init__(self, located: Located, alignment: Alignment, reference: Trace, port: Trace) -> None:
        self.alignment, self.comparisons, self.skips_some = alignment, located.comparisons, located.method != "scan"
        self.sides = (
            _Side(
                reference, [(one, one.pair.reference) for one in located.comparisons], [pair.reference for pair in alignment.records], self
            ),
            _Side(port, [(one, one.pair.port) for one in located.comparisons], [pair.port for pair in alignment.records], self),
        )

    @property
    def outputs(self) -> Outputs:
        """How much of what the runs returned was compared; by the outermost calls where a trace does not say what was returned."""
        ours, theirs = self.sides
        returned = ours.returned or ours.by_outermost_calls
        missed = ours.missed(returned)
        if returned and len(missed) == len(returned):
            return "not compared"
        if missed and ours.returned:
            return "in part"
        is_unknown = ours.returned == () or (theirs.returned == () and not ours.returned)
        return "not recorded" if is_unknown else "compared"

    @property
    def not_returned(self) -> list[int]:
        """The rows of what only the reference returned: they, or the same values elsewhere, are paired with nothing that the port returned.

        None where a run returned nothing that was recorded.
        """
        ours, theirs = self.sides
        if not ours.returned or not theirs.returned:
            return []
        returned = {*theirs.returned, *(theirs.trace.calls.producers[row] for row in theirs.returned)}
        values = theirs.digests(theirs.returned)
        pairs = (one.pair for one in self.comparisons)
        both = {row for pair in pairs if not returned.isdisjoint(pair.port) or values & theirs.digests(pair.port) for row in pair.reference}
        known = ours.digests(both)
        return [row for row in ours.returned if row not in both and not ours.digests([row]) & known]

    @property
    def untold_returned(self) -> set[int]:
        """The rows of what the reference returned that cannot be told, there or where the same values were compared."""
        ours = self.sides[0]
        untold = (one for one in self.comparisons if one.judgement is not None and one.judgement.by == "cannot tell")
        digests = {ours.trace.records[row].digest for one in untold for row in one.pair.reference}
        return {row for row in ours.returned or ours.by_outermost_calls if ours.trace.records[row].digest in digests}

    def places_of(self, rows: Set[int]) -> tuple[int, ...]:
        """The places of the pairs of some rows of the reference."""
        return tuple(i for i, one in enumerate(self.comparisons) if not rows.isdisjoint(one.pair.reference))


class _Side:
    """What was compared of one run, told its rows that are compared, each with its comparison, and all that are paired.

    ``returned``: the rows of what it returned, as `Trace.returned`, without those that are paired and left out by choice of stages.
    """

    def __init__(
        self, trace: Trace, rows: Sequence[tuple[Comparison, tuple[int, ...]]], paired: Iterable[tuple[int, ...]], seen: _Seen
    ) -> None:
        self.trace = trace
        self.compared = {row for one, own in rows if one.diverged is not None for row in own}
        self._reached = {row for one, own in rows if _is_known(one, skips_some=seen.skips_some) for row in own}
        here = {row for _, own in rows for row in own}
        elsewhere = {row for own in paired for row in own} - here
        self._stages = {trace.records[row].stage for row in here} if elsewhere else None
        self.returned = None if trace.returned is None else tuple(row for row in trace.returned if row not in elsewhere)
        self.left_out = self.missed(self.returned or ())

    @property
    def is_opaque(self) -> bool:
        """Whether the run returned something, and nothing in it could be recorded."""
        said = self.trace.meta.get("returned") or {}
        return said.get("call") == "" and said.get("type") not in ("", "NoneType", None)

    @property
    def by_outermost_calls(self) -> list[int]:
        """The rows of what the outermost calls returned."""
        return self.trace.calls.outermost_outputs

    def missed(self, rows: Iterable[int]) -> list[int]:
        """The rows that were not compared, neither themselves nor as the same values elsewhere."""
        return not_compared(self.trace, rows, self.compared)

    def digests(self, rows: Iterable[int]) -> set[Any]:
        """The digests of the values of some rows."""
        return {self.trace.records[row].digest for row in rows}

    def site(self, row: int) -> str:
        return self.trace.records[row].site

    def names(self, rows: Iterable[int]) -> tuple[str, ...]:
        """Sites and ends of some rows."""
        return tuple(name_of(self.trace.records[row]) for row in rows)

    def unreached(self) -> Iterator[str]:
        """The modules with parameters that were called, of which nothing was compared, and on which nothing that was compared depends."""
        trace, calls = self.trace, self.trace.calls
        if "input" not in calls.kinds:  # nothing was recorded of what depends on what
            return
        owners = {param.path for param in trace.params.values() if param.kind == "parameter"}
        rows: dict[str, list[int]] = {}
        for site, number in trace.sites.items():
            if module_of(site) in owners:
                rows.setdefault(module_of(site), []).extend(np.flatnonzero(trace.index["site"] == number).tolist())
        for module, own in rows.items():
            asked = any(self._stages is None or trace.records[row].stage in self._stages for row in own)
            made = [row for row in own if calls.kinds[row] not in INPUTS]
            if asked and self._reached.isdisjoint(own) and self.missed(made) == made and not calls.may_reach(made, self._reached):
                yield module


def name_of(record: Record) -> str:
    """The site and end of a record; of the reserved tap ``returned.key``."""
    return record.end.replace("value", "returned", 1) if record.site == RETURNED else f"{record.site} {record.end}".strip()


def _is_known(one: Comparison, *, skips_some: bool) -> bool:
    """Whether a pair was compared, or was left unread by a search that did not need it."""
    return one.diverged is not None or (skips_some and not one.how and one.pair.layout is not None)


def not_compared(trace: Trace, rows: Iterable[int], compared: Set[int]) -> list[int]:
    """The rows that were not compared, neither themselves nor as the same values elsewhere; ``compared``: rows of the same trace."""
    left = [row for row in rows if row not in compared]
    digests = {trace.records[row].digest for row in compared} if left else set()
    return [row for row in left if trace.records[row].digest not in digests]


# -- weights ---------------------------------------------------------------------------------------------------------------


def _untold_weights(seen: _Seen, weights: WeightsReport | None) -> Iterator[str]:
    """The port's weights that differ by more than rounding, where no compared output tells that this has no effect.

    The nearest module around a weight tells of which something was compared; the root stands for too much to tell.
    Nor do codes count that explain what their layers give, or weights that make up for each other: a gain that is in the layers behind
    (`folded`).
    A module that is handed ids alone looks some of its weights up. Its outputs say nothing of the others, unless one change of the whole
    tensor gives the port's.
    """
    params = seen.sides[1].trace.params
    found = [] if weights is None else [finding for finding in weights.different if not finding.expected]
    told = _told(seen) if found else {}
    by_codes = {seen.sides[1].trace.records[one.pair.port[0]].module for one in seen.comparisons if one.effect == "quantised"}
    moved = frozenset[str]().union(*folded(seen.alignment, *(side.trace for side in seen.sides)).values()) if found else frozenset()
    for finding in found:
        size, param = finding.numbers.get("rel_l2", math.inf), params.get(finding.port)
        around = [path for path in told if path and is_below(parent(finding.port), path)]
        module = told.get(max(around, key=len) if around else parent(finding.port))
        if finding.kind == "weights.precision" and parent(finding.port) in by_codes:
            continue
        if finding.port in moved or (param is not None and size <= rounding(dtypes.named(param.dtype))):
            continue
        if module is None or size <= module.limit or (module.looks_up and not finding.confirmed):
            yield finding.port


@dataclass(frozen=True, slots=True)
class _Told:
    """What the outputs of a module tell of its weights: errors beyond ``limit`` would have shown, or have shown and changed nothing."""

    limit: float
    looks_up: bool


def _told(seen: _Seen) -> Mapping[str, _Told]:
    """What is told of the weights of the port's modules that returned what agrees, or what differs and has no effect."""
    calls, records = seen.sides[1].trace.calls, seen.sides[1].trace.records
    found: dict[str, _Told] = {}
    for one in seen.comparisons:
        row = one.pair.port[0]
        record, handed = records[row], calls.inputs(int(calls.of_row[row]))
        is_harmless = not one.diverged or one.effect in _WITHOUT_EFFECT
        if not handed or one.judgement is None or not is_returned(record.end) or not is_harmless:
            continue
        if _is_known(one, skips_some=seen.skips_some):
            limit = 0.0 if one.diverged else one.judgement.limit
            before = found.get(record.module)
            limit = limit if before is None else min(limit, before.limit)
            found[record.module] = _Told(limit, all(dtypes.named(records[given].dtype).is_exact for given in handed))
    return found


def _few(names: Sequence[str]) -> str:
    return listed(names, MOST_NAMES)


def few(names: Sequence[str]) -> str:
    """The first few names with their verb in the past."""
    return f"{_few(names)} {'was' if len(names) == 1 else 'were'}"
