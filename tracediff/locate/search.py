"""The first divergence: by scan, by bisection, or from the outermost calls inwards; and what the answer rests on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from tracediff.locate.flow import Frame
from tracediff.locate.judge import Judge
from tracediff.locate.result import Certificate, Comparison, Effect, Method


def scanned(judge: Judge, progress: Callable[[int, int], None] | None) -> list[int]:
    """Compares every pair; returns the divergences, inherited ones too."""
    for i in range(len(judge)):
        judge.measure(i)
        if progress is not None:
            progress(i + 1, len(judge))
    return [i for i in range(len(judge)) if judge.is_dirty(i)]


def introduced(judge: Judge, dirty: Sequence[int]) -> list[int]:
    """Of all divergences those that nothing they can come from explains. What the port was handed instead explains nothing."""
    carriers = {i for i in (*dirty, *judge.flipped) if not judge.is_replaced(i)}
    raised = {i for i in dirty if judge.has_raised(i)}
    first: dict[int, int] = {}

    def first_inside(frame: Frame) -> int:
        if id(frame) not in first:
            first[id(frame)] = next((i for i in judge.flow.within(frame) if i in carriers), len(judge))
        return first[id(frame)]

    def is_own(i: int) -> bool:
        """Whether nothing inside raised before a call raised, which may be what it tripped over: the run went on with a stand-in."""
        inside = (j for frame in judge.flow.origins(i) for j in judge.flow.within(frame)) if i in raised else ()
        return not any(j in raised and j < i for j in inside)

    return [i for i in dirty if all(first_inside(frame) >= i for frame in judge.flow.origins(i)) and is_own(i)]


def bisected(judge: Judge, probes: int, chance: random.Random) -> tuple[list[int], int]:
    """Reads until the first divergence is known, or everything where there is none; returns it and the number of probes.

    Whether pairs diverged is not monotone along a run, so the answer of a bisection is walked back to a pair that everything it can come
    from agrees with, and then others before it are probed; a hit sends the bisection below it.
    """
    high, probed = _some_dirty(judge, probes, chance), 0
    while high is not None:
        high = _walked_back(judge, _halved(judge, high))
        places = _probe_places(judge, high, probes, chance)
        probed += len(places)
        hits = [i for i in places if judge.is_dirty(i)]
        if not hits:
            return [high], probed
        high = min(hits)
    return [], probed


def look_into_stages(judge: Judge) -> None:
    """Settles for each stage whether what its statistics prove first is a divergence, so that the stage has a verdict for little."""
    seen: set[str] = set()
    for i in range(len(judge)):
        stage = judge.records(i)[0].stage
        if stage not in seen and judge.is_dirty_for_free(i) and judge.is_dirty(i):
            seen.add(stage)


def certified(judge: Judge, comparisons: Sequence[Comparison], method: Method, first: int | None, probed: int, seed: int) -> Certificate:
    """What the answer rests on; ``first`` is the place of the first divergence."""

    def places(effect: Effect) -> tuple[int, ...]:
        return tuple(i for i, comparison in enumerate(comparisons) if comparison.effect == effect)

    before = comparisons if first is None else comparisons[:first]
    return Certificate(
        method,
        judge.rtol,
        judge.atol,
        predecessors=0 if first is None else len(judge.flow.predecessors(first)),
        probes=probed,
        unread_before=sum(comparison.diverged is None for comparison in before),
        by_digest=sum(comparison.how == "digest" for comparison in comparisons),
        by_statistics=sum(comparison.how == "statistics" for comparison in comparisons),
        moved=places("moved"),
        without_effect=places("no effect"),
        sensitive=judge.flipped,
        seed=seed,
    )


def _some_dirty(judge: Judge, probes: int, chance: random.Random) -> int | None:
    """Some divergence: what statistics prove, else the end of the run, else what probes meet, else what reading everything finds."""
    for i in range(len(judge)):
        if judge.is_dirty_for_free(i) and judge.is_dirty(i):
            return i
    if len(judge) and judge.is_dirty(len(judge) - 1):
        return len(judge) - 1
    hits = [i for i in _probe_places(judge, len(judge), probes, chance) if judge.is_dirty(i)]
    return min(hits) if hits else next((i for i in range(len(judge)) if judge.is_dirty(i)), None)


def _halved(judge: Judge, high: int) -> int:
    """Of the pairs up to a divergence one that diverged just after one that did not, among those that only reading can tell."""
    open_places = [i for i in range(high) if judge.is_dirty_for_free(i) is None] + [high]
    low, top = -1, len(open_places) - 1
    while top - low > 1:
        middle = (low + top) // 2
        if judge.is_dirty(open_places[middle]):
            top = middle
        else:
            low = middle
    return open_places[top]


def descended(judge: Judge, probes: int, chance: random.Random) -> tuple[list[int], int]:
    """The first divergence found from the outermost calls inwards, one frame at a time, and the number of probes.

    Inside a call whose inputs agree and whose output does not, the next to look into is the first that diverged there. What statistics
    prove to lie before the answer, and probes, send the search there. Where the outermost calls agree, everything is looked at.
    """
    high = _innermost(judge, judge.flow.level(judge.flow.top))
    high = next((i for batch in judge.batches(range(len(judge))) for i in _gathered(judge, batch)), None) if high is None else high
    probed = 0
    while high is not None:
        high = _walked_back(judge, high)
        proved = next((i for i in range(high) if judge.is_dirty_for_free(i) and judge.is_dirty(i)), None)
        if proved is None:
            places = next(iter(judge.batches(_probe_places(judge, high, probes, chance))), [])
            probed += len(places)
            proved = next(iter(_gathered(judge, places)), None)
        if proved is None:
            return [high], probed
        high = proved
    return [], probed


def _innermost(judge: Judge, places: Sequence[int]) -> int | None:
    """The first of some pairs that diverged, looked for further inside the call that gave it out; None where all agree."""
    found: int | None = None
    while (first := next(iter(_gathered(judge, places)), None)) is not None:
        found = first
        if judge.flow.kind(first) != "output":
            break
        inside = {i for frame in judge.flow.origins(first) for i in judge.flow.level(frame)}
        places = sorted(i for i in inside if i < first)
    return found


def _gathered(judge: Judge, places: Sequence[int]) -> Iterable[int]:
    """Those of some pairs that are divergences, in order, after all were fetched together."""
    judge.gather(places)
    return (i for i in places if judge.is_dirty(i))


def _walked_back(judge: Judge, i: int) -> int:
    """From a divergence back to one that everything it can come from agrees with."""
    while True:
        bad = [j for j in judge.flow.predecessors(i) if judge.is_dirty(j)]
        if not bad:
            return i
        i = min(bad)


def _probe_places(judge: Judge, end: int, probes: int, chance: random.Random) -> list[int]:
    """Places before ``end`` that nobody has looked at: half of them the most suspicious by their statistics, half spread at random."""
    unknown = [i for i in range(end) if judge.is_dirty_for_free(i) is None]
    suspicious = sorted(unknown, key=lambda i: -judge.suspicion(i))[: probes // 2]
    rest = [i for i in unknown if i not in set(suspicious)]
    count = min(probes - len(suspicious), len(rest))
    strata = [rest[k * len(rest) // count : (k + 1) * len(rest) // count] for k in range(count)]
    return sorted([*suspicious, *(chance.choice(stratum) for stratum in strata)])
