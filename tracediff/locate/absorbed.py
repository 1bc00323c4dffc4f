"""Differences from which nothing follows: the same said in another way, absorbed before any code outside can see it.

The order of a set, padded places, channels exchanged in code and weights, rows looked up in another order and put right later: such a
tensor differs, and all numbers that a call around it goes on to return agree. This call is the *absorber*; the difference is *acquitted*.

A call that discards a difference by the very values that differ proves nothing. An argmax returns ids, so an absorber must return
numbers. A normalisation takes out a gain and an offset, and a ReLU whatever a unit has that rests. So a difference that is a gain and an
offset, or one made by other weights, is acquitted only where what takes it in is made for it (`companions`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

from tracediff.alignment import Alignment
from tracediff.locate.companions import has_other_weights, is_proved, is_put_right, is_reordered
from tracediff.locate.replayed import would_go_wrong
from tracediff.locate.result import Comparison, Mode
from tracediff.locate.search import in_order, introduced, scanned
from tracediff.locate.structure import is_affine
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.verdicts import Verdicts, verdicts_of
from tracediff.site import INPUTS
from tracediff.trace import Trace
from tracediff.trace.calls import TOP


def acquitted(verdicts: Verdicts, places: Iterable[int], flagged: Collection[int] | None = None) -> dict[int, int]:
    """Of introduced divergences those from which nothing follows, each with the call that absorbs it.

    ``flagged``: the reference's rows at which a forced run of the port diverged; None where there was none. Two files alone then have to
    show that an error of that size would be seen. A run that was reset to the reference wherever it agreed proves less by what agrees:
    there whatever takes a difference in has to be made for it. In a free run the reference's operations show that, computed again with what
    differs (`replayed`).
    """
    absorbers = {i: call for i in places if (call := absorber(verdicts, i)) is not None and not _chooses_by(verdicts, i)}
    goes_wrong = cache(partial(_goes_wrong, verdicts))
    if flagged is None:
        ways = (partial(is_proved, verdicts), partial(_would_show, verdicts), goes_wrong)
        absorbers = {i: call for i, call in absorbers.items() if any(way(i, call) for way in ways)}
    needs = {i for i in absorbers if verdicts.mode == "forced" or _may_be_taken_out(verdicts, i)}
    return {i: call for i, call in absorbers.items() if i not in needs or is_put_right(verdicts, i, call, flagged) or goes_wrong(i, call)}


def _goes_wrong(verdicts: Verdicts, i: int, call: int) -> bool:
    """Whether a free run shows that the port's code is made for its form of a tensor: the reference's would go wrong with it."""
    return verdicts.mode == "free" and would_go_wrong(verdicts, i, call)


def _may_be_taken_out(verdicts: Verdicts, i: int) -> bool:
    """Whether a difference is a gain and an offset, or of other weights: right or wrong, what follows may take such out."""
    return (is_affine(verdicts.pairs, i) or has_other_weights(verdicts, i)) and not is_reordered(verdicts, i)


def acquit(verdicts: Verdicts, places: Sequence[int], flagged: Collection[int] | None = None) -> dict[int, int]:
    """Acquits what nothing follows from among all introduced divergences, and what it carries on inside the absorber; returns `acquitted`.

    Another introduced divergence inside the same absorber stays: it has to be acquitted by itself.
    """
    forms = acquitted(verdicts, places, flagged)
    behind = {j for i, call in forms.items() for j in (i, *inside(verdicts, i, call))}
    verdicts.effects.excuse(behind - (set(places) - set(forms)), "equivalent")
    return forms


def absorber(verdicts: Verdicts, i: int, *, is_reached: bool = True) -> int | None:
    """The innermost call around a divergence that goes on to return numbers, all of which agree; None where there is none.

    `TOP` where only what the run returned does. With ``is_reached`` some of the numbers may have been computed from the pair's tensor:
    that they agree says nothing of a dead end.
    """
    if verdicts.pairs.has_raised(i) or verdicts.comparisons.judged(i).how in ("raised", "served", "shape"):
        return None
    calls = verdicts.flow.calls
    call = verdicts.flow.call(i) if verdicts.flow.kind(i) in INPUTS else calls.outer[verdicts.flow.call(i)]
    made = max(verdicts.pairs[i].port)
    while True:
        outputs = [j for j in returned(verdicts, call) if j > i and min(verdicts.pairs[j].port) > made]
        if not all(map(verdicts.pairs.is_exact, outputs)) and all(map(verdicts.expected.vouches, outputs)):
            return call if not is_reached or may_reach(verdicts, i, outputs) else None
        if call == TOP:
            return None
        call = calls.outer[call]


def may_reach(verdicts: Verdicts, i: int, outputs: Iterable[int]) -> bool:
    """Whether some of the outputs may have been computed from a pair's tensor: one that reaches none of them is a dead end."""
    reads, sources = verdicts.pairs.reads, verdicts.pairs[i].reference
    goal = {row for j in outputs for row in verdicts.pairs[j].reference if any(reads.may_come_from(row, own) for own in sources)}
    return bool(goal) and verdicts.flow.calls.may_reach(sources, goal)


def inside(verdicts: Verdicts, i: int, call: int) -> Iterator[int]:
    """The pairs of a call and of all calls inside it, from a place on, without what the call returns."""
    calls, stack, ends = verdicts.flow.calls, [call], set(verdicts.flow.calls.outputs(call))
    while stack:
        inner = stack.pop()
        stack.extend(calls.children[inner])
        rows = (row for row in (*calls.inputs(inner), *calls.outputs(inner)) if row not in ends)
        yield from (j for j in verdicts.flow.pairs_at(rows) if j >= i)


def returned(verdicts: Verdicts, call: int) -> list[int]:
    """The pairs of what a call returned; of `TOP`, what the run did."""
    if call == TOP:
        return verdicts.flow.returned
    calls = verdicts.flow.calls
    return verdicts.flow.pairs_at(row for row in calls.outputs(call) if calls.kinds[row] == "output")


def _would_show(verdicts: Verdicts, i: int, call: int) -> bool:
    """Whether what a difference became inside the call that absorbs it is large enough to show in what this call returns.

    A branch that is small beside what it is added to hides whatever is wrong in it. So something that differs, and that the absorber's own
    code has in hand, has to err, as RMS, by more than must be left at an output to be told; or a call that takes it in returns what agrees,
    where a relative error of its size would be told. An output that no noise in the reference moves (it is clamped) tells nothing.
    """
    outputs = [j for j in returned(verdicts, call) if j > i and not verdicts.pairs.is_exact(j) and not _is_unmoved(verdicts, j)]
    if not outputs:
        return False
    least = min(map(partial(_least_error, verdicts), outputs))
    carried = [j for j in verdicts.flow.available(call) if j >= i and not verdicts.expected.agrees(j)] or [i]
    return any(_would_show_behind(verdicts, j, call, least) for j in carried)


def _is_unmoved(verdicts: Verdicts, i: int) -> bool:
    """Whether noise in all that the reference computed left a tensor as it was, to the last bit; False where that was not measured."""
    floor = verdicts.pairs.reference.floor
    return floor is not None and all(floor[column][row] == 0 for column in ("noise", "free") for row in verdicts.pairs[i].reference)


def _would_show_behind(verdicts: Verdicts, i: int, call: int, least: float) -> bool:
    """Whether a difference in the hands of a call's own code would show: in what takes it in there, else as an RMS above ``least``."""
    calls = verdicts.flow.calls
    takers = {int(calls.of_row[row]) for own in verdicts.pairs[i].reference for row in calls.takers.get(own, ())} - {call}
    outputs = [j for taker in takers for j in verdicts.flow.pairs_at(calls.outputs(taker)) if j > i and not verdicts.pairs.is_exact(j)]
    metrics = verdicts.comparisons.measure(i).metrics
    is_untold = metrics is None or metrics.exact or metrics.lone_nonfinite
    rms, rel_l2 = (math.inf, math.inf) if metrics is None or is_untold else (metrics.rms, metrics.rel_l2)
    if not outputs:
        return rms > least
    return any(verdicts.expected.agrees(j) and rel_l2 > verdicts.least_shown(j) for j in outputs)


def _least_error(verdicts: Verdicts, i: int) -> float:
    """The RMS of an error that is told at a pair from what is allowed there, and from what the port's own difference may have left."""
    metrics = verdicts.comparisons.measure(i).metrics
    return 0.0 if metrics is None else verdicts.least_shown(i) * metrics.reference_rms


def _chooses_by(verdicts: Verdicts, i: int) -> bool:
    """Whether the call that takes in a tensor returns ids or truth values alone: it chose by what differs."""
    outputs = returned(verdicts, verdicts.flow.call(i)) if verdicts.flow.kind(i) in INPUTS else []
    return bool(outputs) and all(map(verdicts.pairs.is_exact, outputs))


def let_through(verdicts: Verdicts, comparisons: Sequence[Comparison]) -> dict[int, str]:
    """The equivalent forms that the capture of a forced run acquitted, each with the reference's site that absorbed the difference.

    What differs only because the forced run took away what the port needs is acquitted too, and is no form of its own.
    """
    through = verdicts.pairs.port.through
    if through is None:
        return {}
    places = (i for i, one in enumerate(comparisons) if one.diverged and one.effect == "equivalent")
    rows = {i: int(through["absorber"][verdicts.pairs[i].port[0]]) for i in places}
    records = verdicts.pairs.reference.records
    return {i: records[row].site for i, row in rows.items() if 0 <= row < len(records)}


# -- what a run that let differences through says of a forced one --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Absorber:
    """A call that absorbed a difference: the reference's row of its first output of numbers, -1 where the run had no difference there.

    ``outputs`` has (the port's row, what a random error must exceed there) of each output of numbers that is one record of the port,
    ``returned`` the reference's rows of all of them.
    ``is_reached``: whether these may have been computed from what differs. ``is_proved``: whether weights prove that the difference is
    put right, so that no random error has to show that it would matter.
    """

    row: int
    outputs: tuple[tuple[int, float], ...]
    returned: frozenset[int] = frozenset()
    is_reached: bool = True
    is_proved: bool = False


class ThroughRun:
    """Which differences a run of a port absorbed that let them through, by the reference's rows.

    ``mode``: "free", or "forced" where the run was reset to the reference's tensor wherever it agreed. ``flagged``: the reference's rows at
    which the forced run diverged, in which everything was reset.
    """

    def __init__(
        self,
        alignment: Alignment,
        reference: Trace,
        port: Trace,
        floors: Mapping[int, float],
        flagged: Collection[int],
        mode: Mode = "free",
    ) -> None:
        pairs = in_order(alignment.records)
        verdicts = verdicts_of(pairs, alignment, reference, port, mode=mode, tolerance=(None, None), floors=floors, compared={}, again=None)
        dirty = scanned(verdicts, None)
        while acquit(verdicts, introduced(verdicts, dirty), flagged):
            dirty = [i for i in dirty if verdicts.is_dirty(i)]
        self._verdicts, self._dirty = verdicts, frozenset(dirty)

    def to_meta(self) -> dict[str, int]:
        """How many records of the reference were compared with the run's, and how many of these diverged."""
        pairs, comparisons = self._verdicts.pairs, self._verdicts.comparisons
        judged = [i for i in range(len(self._verdicts)) if comparisons.judged(i).diverged is not None]
        rows, wrong = ({row for i in places for row in pairs[i].reference} for places in (judged, self._dirty))
        return {"compared": len(rows), "diverged": len(wrong)}

    def absorber(self, row: int) -> Absorber | None:
        """What absorbs a difference at a row of the reference, where nothing inside diverged from there on; None where nothing does."""
        verdicts = self._verdicts
        for i in verdicts.flow.pairs_at([row]):
            call = absorber(verdicts, i, is_reached=False)
            if call is None or not self._dirty.isdisjoint(inside(verdicts, i, call)):
                continue
            numbers = [j for j in returned(verdicts, call) if j > i and not verdicts.pairs.is_exact(j)]
            outputs = tuple((verdicts.pairs[j].port[0], verdicts.least_shown(j)) for j in numbers if len(verdicts.pairs[j].port) == 1)
            if outputs:
                differs = verdicts.comparisons.judged(i).diverged
                absorbing = verdicts.pairs[numbers[0]].reference[0] if differs else -1
                rows = frozenset(row for j in numbers for row in verdicts.pairs[j].reference)
                return Absorber(absorbing, outputs, rows, may_reach(verdicts, i, numbers), is_proved(verdicts, i, call))
        return None

    def leaves_more(self, row: int, returned: Collection[int], fed: Mapping[int, float]) -> bool:
        """Whether what differs at a row leaves clearly more behind it than the reference's tensor in its place does.

        Looked at are places that agree, and what the absorber ``returned``; ``fed`` are the errors of the forced run, both by the
        reference's rows. In a run that was reset to the reference wherever it agreed both differ in nothing else.
        """
        verdicts = self._verdicts
        worse = [j for j in self._worse(fed) if not verdicts.comparisons.judged(j).diverged or verdicts.pairs[j].reference[0] in returned]
        return any(may_reach(verdicts, i, [j]) for i in verdicts.flow.pairs_at([row]) for j in worse if j > i)

    def _worse(self, fed: Mapping[int, float]) -> Iterator[int]:
        """The pairs of numbers that are clearly worse than in the forced run, and by more than noise."""
        for j in range(len(self._verdicts)):
            comparison, error = self._verdicts.comparisons.measure(j), fed.get(self._verdicts.pairs[j].reference[0])
            metrics, judgement = comparison.metrics, comparison.judgement
            if error is None or metrics is None or metrics.exact or judgement is None:
                continue
            if metrics.rel_l2 > max(THRESHOLDS.leaves_more * error, THRESHOLDS.leaves_more_of_allowed * judgement.limit):
                yield j

    def chooses_by(self, row: int) -> bool:
        """Whether what takes in a row's tensor returns ids alone: it chose by the values that differ."""
        return any(_chooses_by(self._verdicts, i) for i in self._verdicts.flow.pairs_at([row]))
