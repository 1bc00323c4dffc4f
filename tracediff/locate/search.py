"""The first divergence: by scan, by bisection, or from the outermost calls inwards; and what the answer rests on."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from tracediff.alignment import RecordPair
from tracediff.locate.result import Certificate, Comparison, Effect, Method
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.verdicts import Verdicts
from tracediff.trace.calls import TOP


def in_order(pairs: Iterable[RecordPair]) -> list[RecordPair]:
    """Pairs in the reference's execution order."""
    return sorted(pairs, key=lambda pair: (max(pair.reference), pair.port[0]))


def scanned(verdicts: Verdicts, progress: Callable[[int, int], None] | None) -> list[int]:
    """Compares every pair; returns the divergences, inherited ones too."""
    verdicts.comparisons.read_ahead(range(len(verdicts)))
    for i in range(len(verdicts)):
        verdicts.comparisons.measure(i)
        if progress is not None:
            progress(i + 1, len(verdicts))
    return [i for i in range(len(verdicts)) if verdicts.is_dirty(i)]


def introduced(verdicts: Verdicts, dirty: Sequence[int]) -> list[int]:
    """The divergences that no earlier divergence explains. Where the port went on with the reference's tensor, nothing is explained."""
    flow = verdicts.flow
    carriers = {i for i in (*dirty, *verdicts.effects.flipped) if not verdicts.pairs.is_replaced(i)} | _too_long(verdicts, dirty)
    raised, dirty_ones = {i for i in dirty if verdicts.pairs.has_raised(i)}, set(dirty)
    first_carrier: dict[int, int] = {}

    def first_inside(call: int) -> int:
        if call not in first_carrier:
            first_carrier[call] = next((i for i in flow.available(call) if i in carriers), len(verdicts))
        return first_carrier[call]

    def is_own(i: int) -> bool:
        """Whether no call inside raised before: the run went on with a stand-in, and the outer call may have tripped over that.

        What a run returned is not its own where a call had made that tensor and the error shows there.
        """
        if flow.is_made_by_run(i) and not dirty_ones.isdisjoint(flow.comes_from(i)):
            return False
        inside = (j for call in flow.origins(i) for j in flow.available(call)) if i in raised else ()
        return not any(j in raised and j < i for j in inside)

    return [i for i in dirty if all(first_inside(call) >= i for call in flow.origins(i)) and is_own(i)]


def _too_long(verdicts: Verdicts, dirty: Sequence[int]) -> set[int]:
    """The inputs that are read in part, the rest of which a divergence in length made: that rest is in the port also where it is fed."""
    makers = (i for i in dirty if verdicts.comparisons.judged(i).how == "shape")
    takers = (j for i in makers for j in verdicts.flow.recorded_consumers(i, only_later=True, only_last_of_row=False))
    return {j for j in takers if (layout := verdicts.pairs[j].layout) is not None and layout.window is not None}


def bisected(verdicts: Verdicts, probes: int, chance: random.Random) -> tuple[list[int], int]:
    """The place of the first divergence (none where all agree) and the number of probes; reads until the first divergence is known.

    What statistics let expect says where to read. Whether pairs diverged is not monotone along a run. So the answer is walked back to a
    pair whose predecessors all agree; then other pairs before it are probed, and a hit sends the search further back.
    """
    high, probed = _some_dirty(verdicts, probes, chance), 0
    while high is not None:
        high = _walked_back(verdicts, _narrowed(verdicts, high))
        hits, looked = _probed(verdicts, high, probes, chance)
        probed += looked
        if not hits:
            return [high], probed
        high = min(hits)
    return [], probed


def look_into_stages(verdicts: Verdicts) -> None:
    """Settles for each stage whether the first difference that statistics prove is a divergence: a verdict on the stage for little."""
    seen: set[str] = set()
    for i in range(len(verdicts)):
        stage = verdicts.pairs.records(i)[0].stage
        if stage not in seen and verdicts.diverged_unread(i) and verdicts.is_dirty(i):
            seen.add(stage)


def certified(
    verdicts: Verdicts, comparisons: Sequence[Comparison], method: Method, first: int | None, probed: int, seed: int
) -> Certificate:
    """What the answer rests on. ``first`` is the place of the first divergence, None where there is none."""

    def places(effect: Effect) -> tuple[int, ...]:
        return tuple(i for i, comparison in enumerate(comparisons) if comparison.effect == effect)

    unread = [i for i, comparison in enumerate(comparisons[:first]) if comparison.diverged is None]
    unseen = sum(not verdicts.expected.is_sampled(i) for i in unread)
    return Certificate(
        method,
        verdicts.limits.rtol,
        verdicts.limits.atol,
        predecessors=0 if first is None else len(verdicts.flow.predecessors(first)),
        probes=probed,
        unread_before=len(unread),
        unseen_before=unseen,
        sampled=sum(map(verdicts.expected.is_sampled, range(len(verdicts)))),
        missed=(1 - THRESHOLDS.rare) ** probed if unseen else 0.0,
        by_digest=sum(comparison.how == "digest" for comparison in comparisons),
        by_statistics=sum(comparison.how == "statistics" for comparison in comparisons),
        moved=places("moved"),
        without_effect=places("no effect"),
        sensitive=verdicts.effects.flipped,
        seed=seed,
    )


def _some_dirty(verdicts: Verdicts, probes: int, chance: random.Random) -> int | None:
    """Some divergence: what statistics prove or let expect, else what the run returned and its end, else what probes meet, else any."""
    proved = next(_known(verdicts, len(verdicts)), None)
    if proved is not None:
        return proved
    clear = (i for i in range(len(verdicts)) if verdicts.diverged_unread(i) is None and verdicts.expected.seems_different(i))
    expected = next((i for i in clear if verdicts.is_dirty(i)), None)
    if expected is not None:
        return expected
    ends: list[int] = [*verdicts.flow.returned, *range(len(verdicts))[-1:]]
    for end in ends:
        if verdicts.is_dirty(end):
            return end
    hits, _ = _probed(verdicts, len(verdicts), probes, chance)
    if hits:
        return min(hits)
    verdicts.comparisons.read_ahead(range(len(verdicts)))
    return next((i for i in range(len(verdicts)) if verdicts.is_dirty(i)), None)


def _narrowed(verdicts: Verdicts, high: int) -> int:
    """An earlier divergence than ``high``, or ``high``: one that diverged after pairs that did not, as far as statistics tell.

    Few doubtful pairs are read in order. Of many the first far beyond what is allowed is read, and what is left is halved.
    """
    while True:
        high = next(_known(verdicts, high), high)
        doubtful = [i for i in range(high) if verdicts.diverged_unread(i) is None and not verdicts.expected.seems_same(i, sample=False)]
        clear = next((i for i in doubtful if verdicts.expected.seems_different(i)), None)
        if clear is None:
            break
        verdicts.comparisons.judged(clear)
    if len(doubtful) <= _few(verdicts):
        verdicts.comparisons.read_ahead(doubtful)
        return next((i for i in doubtful if verdicts.is_dirty(i)), high)
    return _halved(verdicts, [*doubtful, high])


def _halved(verdicts: Verdicts, places: Sequence[int]) -> int:
    """Of some pairs, the last of which diverged: a pair that diverged and whose neighbour before it did not."""
    low, top = -1, len(places) - 1
    while top - low > 1:
        middle = (low + top) // 2
        if verdicts.is_dirty(places[middle]):
            top = middle
        else:
            low = middle
    return places[top]


def _probed(verdicts: Verdicts, high: int, probes: int, chance: random.Random) -> tuple[list[int], int]:
    """The divergences met by looking at unknown pairs before ``high``, and how many pairs were looked at.

    Of most unknown pairs, and of those just before ``high``, a sample is looked at; the doubtful ones and a few others are read. Of the
    pairs that no sample can tell of, up to ``probes`` are read.
    """
    expected = verdicts.expected
    unknown = [i for i in range(high) if verdicts.diverged_unread(i) is None]
    telling = [i for i in unknown if expected.tells(i)]
    sampled = sorted({*_spread(telling, THRESHOLDS.samples, chance), *telling[-THRESHOLDS.samples_nearest :]})
    doubtful = [i for i in sampled if not expected.seems_same(i)]
    read = sorted(doubtful, key=lambda i: -(expected.suspicion(i) or math.inf))[: _few(verdicts)]
    read += _spread(telling, len(telling) // THRESHOLDS.sampled_one_in, chance)
    silent = sorted(set(unknown) - set(telling))
    if len(silent) <= len(telling):
        probes = min(probes, math.ceil(len(silent) / THRESHOLDS.silent_one_in))
    silent = _probe_places(verdicts, silent, probes, chance)
    verdicts.comparisons.read_ahead(sorted({*read, *silent}))
    hits = [i for i in sorted({*read, *silent}) if verdicts.is_dirty(i)]
    return hits or list(_known(verdicts, high)), len(sampled) + len(silent)


def _few(verdicts: Verdicts) -> int:
    """How many doubtful pairs are read one by one."""
    return max(THRESHOLDS.few_doubtful, len(verdicts) // THRESHOLDS.few_doubtful_one_in)


def _known(verdicts: Verdicts, high: int) -> Iterator[int]:
    """The divergences before a pair that are known without reading, in order: what was read for another pair's sake may be one."""
    return (i for i in range(high) if verdicts.diverged_unread(i) and verdicts.is_dirty(i))


def descended(verdicts: Verdicts, probes: int, chance: random.Random) -> tuple[list[int], int]:
    """The first divergence found from the outermost calls inwards, one call at a time, and the number of probes.

    Inside a call whose inputs agree and whose output does not, the next to look into is the first that diverged there. What statistics
    prove to lie before the answer, and probes, send the search there. Where the outermost calls agree, everything is looked at.
    """
    high = _innermost(verdicts, verdicts.flow.level(TOP))
    if high is None:
        batches = verdicts.comparisons.batches(range(len(verdicts)))
        high = next((i for batch in batches for i in _gathered(verdicts, batch)), None)
    probed = 0
    while high is not None:
        high = _walked_back(verdicts, high)
        proved = next(_known(verdicts, high), None)
        if proved is None:
            unknown = [i for i in range(high) if verdicts.diverged_unread(i) is None]
            places = next(iter(verdicts.comparisons.batches(_probe_places(verdicts, unknown, probes, chance))), [])
            probed += len(places)
            proved = next(iter(_gathered(verdicts, places)), None)
        if proved is None:
            return [high], probed
        high = proved
    return [], probed


def _innermost(verdicts: Verdicts, places: Sequence[int]) -> int | None:
    """The first of some pairs that diverged, looked for further inside the call that returned it; None where all agree."""
    found: int | None = None
    while (first := next(iter(_gathered(verdicts, places)), None)) is not None:
        found = first
        if verdicts.flow.kind(first) != "output":
            break
        inside = {i for call in verdicts.flow.origins(first) for i in verdicts.flow.level(call)}
        places = sorted(i for i in inside if i < first)
    return found


def _gathered(verdicts: Verdicts, places: Sequence[int]) -> Iterable[int]:
    """Those of some pairs that are divergences, in order, after all were fetched together."""
    verdicts.comparisons.gather(places)
    return (i for i in places if verdicts.is_dirty(i))


def _walked_back(verdicts: Verdicts, i: int) -> int:
    """From a divergence back to a divergence whose predecessors all agree.

    Of the predecessors, what the call was handed and what was made just before are read; the others only where statistics and a sample
    leave a doubt.
    """
    while True:
        before = verdicts.flow.predecessors(i)
        direct = _direct(verdicts, i, before)
        verdicts.comparisons.read_ahead(sorted(direct))
        bad = [j for j in before if (j in direct or not verdicts.expected.seems_same(j)) and verdicts.is_dirty(j)]
        if not bad:
            return i
        i = min(bad)


def _direct(verdicts: Verdicts, i: int, before: Sequence[int]) -> set[int]:
    """The pairs that a pair most likely comes from: the last pair made before it, and for an output what its call was handed."""
    flow = verdicts.flow
    handed = flow.pairs_at(flow.calls.inputs(flow.call(i))) if flow.kind(i) == "output" else []
    return {*handed, *before[-1:]}


def _probe_places(verdicts: Verdicts, unknown: Sequence[int], probes: int, chance: random.Random) -> list[int]:
    """Some of the places that nobody has looked at: half of them the most suspicious by their statistics, half spread at random."""
    suspicious = sorted(unknown, key=lambda i: -(verdicts.expected.suspicion(i) or 0.0))[: probes // 2]
    rest = [i for i in unknown if i not in set(suspicious)]
    return sorted([*suspicious, *_spread(rest, probes - len(suspicious), chance)])


def _spread(places: Sequence[int], count: int, chance: random.Random) -> list[int]:
    """``count`` of the places, at random: one from each of ``count`` equal stretches."""
    count = min(count, len(places))
    return [chance.choice(places[k * len(places) // count : (k + 1) * len(places) // count]) for k in range(count)]
