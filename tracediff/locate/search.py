"""The first divergence: by scan, by bisection, or from the outermost calls inwards; and what the answer rests on."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from tracediff.locate.calls import Frame
from tracediff.locate.result import Certificate, Comparison, Effect, Method
from tracediff.locate.verdicts import Judge

_FEW = 4  # doubtful pairs are read one by one
_ONE_IN = 64  # pairs before the answer that only a sample was looked at: one is read
_SILENT = 8  # pairs before the answer that samples do not tell of: one is read
_SHARE = 0.01  # of the pairs before the answer, for which the certificate says how likely probes are to miss them all
_NEAREST = 32  # pairs just before the answer at a sample of which is looked at in any case
_SAMPLES = 256  # pairs before the answer at a sample of which is looked at


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

    What statistics let expect says where to read. Whether pairs diverged is not monotone along a run, so the answer is walked back to
    a pair that everything it can come from agrees with, and then others before it are probed; a hit sends the search before it.
    """
    high, probed = _some_dirty(judge, probes, chance), 0
    while high is not None:
        high = _walked_back(judge, _narrowed(judge, high))
        hits, looked = _probed(judge, high, probes, chance)
        probed += looked
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

    unread = [i for i, comparison in enumerate(comparisons[:first]) if comparison.diverged is None]
    unseen = sum(not judge.is_sampled(i) for i in unread)
    return Certificate(
        method,
        judge.rtol,
        judge.atol,
        predecessors=0 if first is None else len(judge.flow.predecessors(first)),
        probes=probed,
        unread_before=len(unread),
        unseen_before=unseen,
        sampled=sum(map(judge.is_sampled, range(len(judge)))),
        missed=(1 - _SHARE) ** probed if unseen else 0.0,
        by_digest=sum(comparison.how == "digest" for comparison in comparisons),
        by_statistics=sum(comparison.how == "statistics" for comparison in comparisons),
        moved=places("moved"),
        without_effect=places("no effect"),
        sensitive=judge.flipped,
        seed=seed,
    )


def _some_dirty(judge: Judge, probes: int, chance: random.Random) -> int | None:
    """Some divergence: what statistics prove or let expect, else the end of the run, else what probes meet, else by reading everything."""
    if (proved := next(_known(judge, len(judge)), None)) is not None:
        return proved
    clear = (i for i in range(len(judge)) if judge.is_dirty_for_free(i) is None and judge.seems_different(i))
    expected = next((i for i in clear if judge.is_dirty(i)), None)
    if expected is not None:
        return expected
    if len(judge) and judge.is_dirty(len(judge) - 1):
        return len(judge) - 1
    hits, _ = _probed(judge, len(judge), probes, chance)
    return min(hits) if hits else next((i for i in range(len(judge)) if judge.is_dirty(i)), None)


def _narrowed(judge: Judge, high: int) -> int:
    """Of a divergence and the pairs before it that do not look the same by their statistics, one that diverged after others that did not.

    Few are read in order; among many the first by far beyond what is allowed is read, and what is left is halved.
    """
    while True:
        high = next(_known(judge, high), high)
        doubtful = [i for i in range(high) if judge.is_dirty_for_free(i) is None and not judge.seems_same(i, sample=False)]
        clear = next((i for i in doubtful if judge.seems_different(i)), None)
        if clear is None:
            break
        judge.judged(clear)
    if len(doubtful) <= _few(judge):
        return next((i for i in doubtful if judge.is_dirty(i)), high)
    return _halved(judge, [*doubtful, high])


def _halved(judge: Judge, places: Sequence[int]) -> int:
    """Of some pairs, the last a divergence, one that diverged just after one that did not."""
    low, top = -1, len(places) - 1
    while top - low > 1:
        middle = (low + top) // 2
        if judge.is_dirty(places[middle]):
            top = middle
        else:
            low = middle
    return places[top]


def _probed(judge: Judge, high: int, probes: int, chance: random.Random) -> tuple[list[int], int]:
    """The divergences met by looking at pairs before one that nobody has looked at, and how many were looked at.

    Of most, and of those just before it, a sample is looked at, and one in `_ONE_IN` of these is read; of those that samples do not tell
    of, ``probes`` are read.
    """
    unknown = [i for i in range(high) if judge.is_dirty_for_free(i) is None]
    telling = [i for i in unknown if judge.tells(i)]
    sampled = sorted({*_spread(telling, _SAMPLES, chance), *telling[-_NEAREST:]})
    doubtful = [i for i in sampled if not judge.seems_same(i)]
    places = sorted(doubtful, key=lambda i: -(judge.suspicion(i) or math.inf))[: _few(judge)]
    places += _spread(telling, len(telling) // _ONE_IN, chance)
    silent = sorted(set(unknown) - set(telling))
    silent = _probe_places(judge, silent, probes if len(silent) > len(telling) else min(probes, math.ceil(len(silent) / _SILENT)), chance)
    hits = [i for i in sorted({*places, *silent}) if judge.is_dirty(i)]
    return hits or list(_known(judge, high)), len(sampled) + len(silent)


def _few(judge: Judge) -> int:
    """How many doubtful pairs are read one by one."""
    return max(_FEW, len(judge) // _ONE_IN)


def _known(judge: Judge, high: int) -> Iterator[int]:
    """The divergences before a pair that are known without reading, in order: what was read for another pair's sake may be one."""
    return (i for i in range(high) if judge.is_dirty_for_free(i) and judge.is_dirty(i))


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
        proved = next(_known(judge, high), None)
        if proved is None:
            unknown = [i for i in range(high) if judge.is_dirty_for_free(i) is None]
            places = next(iter(judge.batches(_probe_places(judge, unknown, probes, chance))), [])
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
    """From a divergence back to one that everything it can come from agrees with.

    What its call was handed and what was made just before it are read; the others where statistics and a sample leave a doubt.
    """
    while True:
        before = judge.flow.predecessors(i)
        direct = _direct(judge, i, before)
        bad = [j for j in before if (j in direct or not judge.seems_same(j)) and judge.is_dirty(j)]
        if not bad:
            return i
        i = min(bad)


def _direct(judge: Judge, i: int, before: Sequence[int]) -> set[int]:
    """Of what a pair can come from, what it most likely does: the last made before it, and of an output what the call was handed."""
    handed = judge.flow.frame(i).inputs if judge.flow.kind(i) == "output" else ()
    return {j for row in handed for j in judge.flow.pairs_of_row.get(row, ())} | set(before[-1:])


def _probe_places(judge: Judge, unknown: Sequence[int], probes: int, chance: random.Random) -> list[int]:
    """Some of the places that nobody has looked at: half of them the most suspicious by their statistics, half spread at random."""
    suspicious = sorted(unknown, key=lambda i: -(judge.suspicion(i) or 0.0))[: probes // 2]
    rest = [i for i in unknown if i not in set(suspicious)]
    return sorted([*suspicious, *_spread(rest, probes - len(suspicious), chance)])


def _spread(places: Sequence[int], count: int, chance: random.Random) -> list[int]:
    """So many of the places, one from each of as many equal stretches."""
    count = min(count, len(places))
    return [chance.choice(places[k * len(places) // count : (k + 1) * len(places) // count]) for k in range(count)]
