"""The symptoms that a trace shows by itself, or beside a reference on other inputs, each found by one function.

A symptom counts where it arises: what a call was handed already broken is not its own.
"""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alarms.result import Alarm, Look, Symptom
from tracediff.alarms.thresholds import THRESHOLDS
from tracediff.caveats import caveats
from tracediff.dtype import Array
from tracediff.errors import AlignmentError
from tracediff.site import is_returned, module_of
from tracediff.trace import Record, Trace, schema
from tracediff.trace.fingerprint import Stats

MOST = 3
"""So many alarms of one symptom are told; the others are counted."""


def look(port: Trace, like: Trace | None = None) -> Look:
    """The alarms of a trace; ``like``: a reference's trace, whose inputs may be others, that tells what is usual.

    What the reference shows too is no alarm.
    """
    seen = _Seen(port, like)
    found = [alarm for symptom in _SYMPTOMS for alarm in _told(list(symptom(seen)))]
    return Look(str(port.path), "" if like is None else str(like.path), tuple(found), len(port.records), seen.read)


def _told(alarms: Sequence[Alarm]) -> list[Alarm]:
    """The first few alarms of each kind, the last of these with the number of all that follow."""
    told: dict[str, list[Alarm]] = defaultdict(list)
    for alarm in alarms:
        kept = told[alarm.symptom]
        if len(kept) < MOST:
            kept.append(alarm)
        else:
            kept[-1] = replace(kept[-1], count=kept[-1].count + 1)
    return [alarm for kept in told.values() for alarm in kept]


class _Seen:
    """A trace that is looked at, and the reference beside it; counts whose values were read."""

    def __init__(self, port: Trace, like: Trace | None) -> None:
        self.port, self.like, self.read = port, like, 0

    def made(self) -> Iterator[Record]:
        """What calls returned and taps were given, in execution order."""
        for record in self.port.records:
            if is_returned(record.end) or record.end.startswith("value"):
                yield record

    def inputs(self, record: Record) -> list[Record]:
        """What the call that returned a record was handed."""
        calls = self.port.calls
        return [self.port.records[row] for row in calls.inputs(int(calls.of_row[record.row]))]

    @cached_property
    def results(self) -> list[Record]:
        """What the run returned; what its outermost calls did, where the trace does not say."""
        return [self.port.records[row] for row in self.port.returned or self.port.calls.outermost_outputs]

    def values(self, record: Record) -> Array | None:
        """The values of a record as float64, or as whole numbers; None where they are not stored or no plain numbers."""
        if not record.stored or record.dtype == "text" or dtypes.named(record.dtype).is_complex:
            return None
        self.read += 1
        values = record.read()
        return np.asarray(values) if dtypes.named(record.dtype).is_exact else np.asarray(values, np.float64)

    @cached_property
    def partners(self) -> dict[str, str]:
        """By the port's site the reference's, as far as the two can be paired; by equal names where they cannot."""
        if self.like is None:
            return {}
        from tracediff.alignment import align

        try:
            pairs = align(self.like, self.port).pairs
        except AlignmentError:
            return {site: site for site in self.port.sites if site in self.like.sites}
        return {pair.port: pair.reference for pair in pairs if pair.reference is not None and pair.port is not None}

    def usual(self, record: Record) -> list[Record]:
        """The reference's records of the same end of the paired site."""
        site = self.partners.get(record.site)
        if self.like is None or site is None or site not in self.like.sites:
            return []
        return [one for one in self.like.find(site) if one.end == record.end]

    def alarm(self, symptom: Symptom, record: Record, text: str) -> Alarm:
        return Alarm(symptom, record.site, record.call, record.end, text, self.next(record))

    def next(self, record: Record) -> str:
        """The command that tells more of a record."""
        path = str(self.port.path)
        if self.like is not None:
            recipe = self.port.meta.get("recipe")
            if recipe:
                impl, wanted = str(self.port.meta.get("impl")), ["--stage", record.stage] if record.stage else []
                words = [
                    "tracediff",
                    "capture",
                    "--impl",
                    impl,
                    "--recipe",
                    str(recipe),
                    *wanted,
                    "--feed",
                    str(self.like.path),
                    "-o",
                    "forced.h5",
                ]
                return f"{shlex.join(words)}; then tracediff bisect {shlex.quote(str(self.like.path))} forced.h5"
            return f"capture the port on the reference's inputs, feed={str(self.like.path)!r}; then tracediff bisect {self.like.path} PORT"
        pattern = module_of(record.site) or record.site
        return shlex.join(["tracediff", "show", path, *([pattern] if pattern else [])])


def _is_float(record: Record) -> bool:
    return record.dtype != "text" and not dtypes.named(record.dtype).is_exact and not dtypes.named(record.dtype).is_complex


# ------------------------------------------------------------------------------------------------------------- the symptoms


def _caveats(seen: _Seen) -> Iterator[Alarm]:
    for text in caveats(seen.port, "run"):
        yield Alarm("caveat", "", "", "", text, shlex.join(["tracediff", "show", str(seen.port.path)]))


def _raised(seen: _Seen) -> Iterator[Alarm]:
    for record in seen.port.records:
        if record.flags & schema.RAISED:
            yield seen.alarm("raised", record, f"the call raised {record.text().splitlines()[0] if record.stored else 'an error'}")


def _not_finite(seen: _Seen) -> Iterator[Alarm]:
    """NaN, or an infinity that is no mask, in what a call returned whose inputs had neither."""
    for record in seen.made():
        stats = record.stats
        if not (stats.nan or stats.inf) or not _is_float(record) or any(_is_broken(seen, one) for one in seen.inputs(record)):
            continue
        if _is_broken(seen, record) and not any(one.stats.nan or one.stats.inf for one in seen.usual(record)):
            what = (
                f"{stats.nan:,} of {stats.count:,} values are NaN" if stats.nan else f"{stats.inf:,} of {stats.count:,} values are infinite"
            )
            yield seen.alarm("not finite", record, f"{what}; what the call was handed is finite")


def _is_broken(seen: _Seen, record: Record) -> bool:
    """Whether a tensor holds NaN, or infinities that are not all negative as a mask's are; without stored values NaN alone counts."""
    if record.stats.nan or not record.stats.inf:
        return bool(record.stats.nan)
    values = seen.values(record)
    return values is not None and bool(np.isposinf(values).any())


def _constant(seen: _Seen) -> Iterator[Alarm]:
    """One number throughout, out of a module with parameters that was handed more than one."""
    owners = {param.path for param in seen.port.params.values()}
    for record in seen.made():
        if not _is_float(record) or module_of(record.site) not in owners or not _is_flat(record):
            continue
        handed = [one for one in seen.inputs(record) if one.stats.count > 1 and one.dtype != "text"]
        if handed and not any(map(_is_flat, handed)) and not any(map(_is_flat, seen.usual(record))):
            yield seen.alarm(
                "constant",
                record,
                f"all {record.stats.count:,} values are {record.stats.min:.4g}; what the call was handed is not constant",
            )


def _is_flat(record: Record) -> bool:
    stats = record.stats
    return stats.count >= THRESHOLDS.fewest_values and not stats.nan and not stats.inf and stats.min == stats.max


def _same_everywhere(seen: _Seen) -> Iterator[Alarm]:
    """The same at every place along an axis along which what the call was handed changes."""
    owners = {param.path for param in seen.port.params.values()}
    looked: set[str] = set()
    for record in seen.made():
        if module_of(record.site) not in owners or record.site in looked or not _is_float(record) or _is_flat(record):
            continue
        looked.add(record.site)
        axes = [axis for axis, length in enumerate(record.shape[:-1]) if length > 1]
        handed = [one for one in seen.inputs(record) if len(one.shape) >= 2 and one.dtype != "text" and one.stored]
        if not axes or not handed or record.stats.nan or record.stats.inf or (values := seen.values(record)) is None:
            continue
        for axis in axes:
            if _changes(values, axis) or not any(_changes_at(seen, one, axis, record.shape[axis]) for one in handed[:1]):
                continue
            yield seen.alarm(
                "same everywhere", record, f"the same at all {record.shape[axis]} places of axis {axis}; what the call was handed is not"
            )


def _changes(values: Array, axis: int) -> bool:
    """Whether values differ along an axis by more than rounding."""
    wide = np.asarray(values, np.float64)
    first = np.take(wide, [0], axis)
    scale = float(np.max(np.abs(wide), initial=0.0))
    return bool(np.max(np.abs(wide - first), initial=0.0) > THRESHOLDS.same_everywhere * scale)


def _changes_at(seen: _Seen, record: Record, axis: int, length: int) -> bool:
    if axis >= len(record.shape) or record.shape[axis] != length or record.stats.nan or record.stats.inf:
        return False
    values = seen.values(record)
    return values is not None and _changes(values, axis)


def _ids(seen: _Seen) -> Iterator[Alarm]:
    """Ids that go round in a loop, and many more ids than the reference chose."""
    like = {end: len(ids) for end, ids in _chosen(seen.like)} if seen.like is not None else {}
    told: set[tuple[int, ...]] = set()  # what one call chooses, others are handed
    for (site, end), (records, ids) in _sequences(seen.port):
        loop = _loop(ids)
        there = like.get((seen.partners.get(site, site), end), 0)
        if loop and tuple(sorted(ids[-loop[0] :])) in told:
            continue
        if loop and not (seen.like is not None and _loops_too(seen, site, end)):
            period, rounds = loop
            told.add(tuple(sorted(ids[-period:])))
            what = ", ".join(map(str, ids[-period:]))
            which = f"id {what} repeats" if period == 1 else f"the ids {what} repeat"
            yield seen.alarm("looping ids", records[0], f"{which}: {rounds} times in a row at the end of {len(ids)}")
        elif there and len(ids) > THRESHOLDS.too_long * there:
            yield seen.alarm("endless ids", records[0], f"{len(ids)} ids, where the reference has {there}")


def _chosen(trace: Trace) -> Iterator[tuple[tuple[str, str], list[int]]]:
    for key, (_, ids) in _sequences(trace):
        yield key, ids


def _loops_too(seen: _Seen, site: str, end: str) -> bool:
    assert seen.like is not None
    partner = seen.partners.get(site, site)
    return any(key == (partner, end) and _loop(ids) for key, ids in _chosen(seen.like))


def _sequences(trace: Trace) -> Iterator[tuple[tuple[str, str], tuple[list[Record], list[int]]]]:
    """Ids that a run chose: one a call of a site, or all in one tensor that a call returned and nobody handed in."""
    single: dict[tuple[str, str], list[Record]] = defaultdict(list)
    brought = {record.digest for record in trace.records if record.end.startswith("input")}
    for record in trace.records:
        is_whole = record.dtype not in ("text", "bool") and dtypes.named(record.dtype).is_exact
        if not is_whole or record.stats.count == 0:
            continue
        if record.stats.count == 1:
            single[record.site, record.end].append(record)
        elif is_returned(record.end) and record.stored and record.stats.count >= THRESHOLDS.fewest_ids and record.digest not in brought:
            rows = np.asarray(record.read()).reshape(-1, record.shape[-1])
            if rows.shape[0] == 1:
                yield (record.site, record.end), ([record], rows[0].tolist())
    for key, records in single.items():
        if len(records) >= THRESHOLDS.fewest_ids:
            yield key, (records, [int(record.stats.min) for record in records])


def _loop(ids: Sequence[int]) -> tuple[int, int] | None:
    """How long the loop at the end of some ids is, and how often it goes round; None where there is none, or the ids are switches.

    >>> _loop([5, 9, 3] + [7, 8] * 12), _loop(list(range(40)))
    ((2, 12), None)
    """
    if len(ids) < THRESHOLDS.fewest_ids or max(ids) <= 1:
        return None
    for period in range(1, THRESHOLDS.longest_loop + 1):
        stop = len(ids)
        while stop - period > 0 and ids[stop - 1] == ids[stop - 1 - period]:
            stop -= 1
        rounds = (len(ids) - stop) // period + 1
        if rounds >= THRESHOLDS.fewest_rounds and rounds * period >= THRESHOLDS.looping * len(ids):
            return period, rounds
    return None


def _tone(seen: _Seen) -> Iterator[Alarm]:
    """A signal that the run returned, nearly all of whose energy lies at one frequency."""
    for record in seen.results:
        signal = _signal(seen, record)
        if signal is None:
            continue
        share, frequency = tone(signal)
        if share < THRESHOLDS.tone or any(_is_tone(seen, one) for one in seen.usual(record)):
            continue
        rate = seen.port.meta.get("sample_rate")
        share_of_rate = f"{frequency:.3f} of the sampling rate ({24_000 * frequency:,.0f} Hz at 24 kHz)"
        where = f"{frequency * rate:,.0f} Hz" if isinstance(rate, int | float) else share_of_rate
        yield seen.alarm("tone", record, f"{share:.0%} of the energy is at {where}")


def _signal(seen: _Seen, record: Record) -> Array | None:
    """The first channel of a signal of at most two channels and enough values; None where a record is none."""
    long, stats = max(record.shape, default=0), record.stats
    is_signal = long >= THRESHOLDS.fewest_samples and stats.count <= 2 * long
    if not is_signal or not _is_float(record) or stats.nan or stats.inf or (values := seen.values(record)) is None:
        return None
    return np.asarray(np.moveaxis(values, int(np.argmax(record.shape)), -1).reshape(-1, long)[0])


def _is_tone(seen: _Seen, record: Record) -> bool:
    signal = _signal(seen, record)
    return signal is not None and tone(signal)[0] >= THRESHOLDS.tone


def tone(signal: Array) -> tuple[float, float]:
    """The largest share of a signal's energy in one narrow band, its mean left out, and that band's frequency over the sampling rate.

    >>> share, frequency = tone(np.sin(np.arange(4096) * 2 * np.pi / 4))
    >>> round(share, 2), round(frequency, 2)
    (1.0, 0.25)
    """
    wave = np.asarray(signal, np.float64)
    wave = (wave - wave.mean()) * np.hanning(wave.size)
    energy = np.abs(np.fft.rfft(wave)) ** 2
    total = float(energy.sum())
    if not total:
        return 0.0, 0.0
    half = max(2, int(THRESHOLDS.band * wave.size))
    sums = np.cumsum(np.concatenate([[0.0], energy]))
    peak = int(np.argmax(energy))
    low, high = max(0, peak - half), min(energy.size, peak + half + 1)
    return float((sums[high] - sums[low]) / total), peak / wave.size


def _growing(seen: _Seen) -> Iterator[Alarm]:
    """A loop's tensor whose norm grows at every step, and does not grow more slowly."""
    loops: dict[tuple[str, str, str, tuple[int, ...]], list[Record]] = defaultdict(list)
    for record in seen.made():
        if _is_float(record) and record.stats.count >= THRESHOLDS.fewest_values:
            loops[record.site, record.end, record.stage, record.shape].append(record)
    for (site, _, _, _), records in loops.items():
        rms = [record.stats.l2 / math.sqrt(record.stats.count) for record in records]
        if _runs_away(rms) and not _usual_growth(seen, site, records[0]):
            yield seen.alarm("growing", records[0], f"its RMS grows at each of {len(rms)} steps, from {rms[0]:.2g} to {rms[-1]:.2g}")


def _usual_growth(seen: _Seen, site: str, record: Record) -> bool:
    usual = [one for one in seen.usual(record) if one.stats.count]
    return _runs_away([one.stats.l2 / math.sqrt(one.stats.count) for one in usual])


def _runs_away(rms: Sequence[float]) -> bool:
    """Whether numbers grow at every step, by much in the end, and as fast in the end as in the mean.

    >>> _runs_away([1, 2, 4, 8, 16]), _runs_away([1, 10, 11, 12, 13]), _runs_away([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    (True, False, False)
    """
    if len(rms) < THRESHOLDS.fewest_steps or min(rms) <= 0 or rms[-1] < THRESHOLDS.growth * rms[0]:
        return False
    steps = np.diff(np.log(rms))
    last = steps[len(steps) // 2 :]
    return bool((steps > 0).all() and last.mean() >= THRESHOLDS.steady * steps.mean())


def _unlike(seen: _Seen) -> Iterator[Alarm]:
    """Signs, spread and range of what a paired site returned that are not those of the reference, whose inputs may be others."""
    if seen.like is None:
        return
    ours: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in seen.made():
        ours[record.site, record.end].append(record)
    for records in ours.values():
        first, usual = records[0], seen.usual(records[0])
        if not _is_float(first) or not usual or not _is_float(usual[0]):
            continue
        port, reference = _joined(records), _joined(usual)
        if port is None or reference is None:
            continue
        yield from _unlike_in(seen, first, port, reference)


def _unlike_in(seen: _Seen, first: Record, port: Stats, reference: Stats) -> Iterator[Alarm]:
    (sign, usual_sign), (std, usual_std) = (_sign(port), _sign(reference)), (port.std, reference.std)
    size, usual_size = (max(abs(one.min), abs(one.max)) for one in (port, reference))
    if abs(sign - usual_sign) > THRESHOLDS.signs:
        yield seen.alarm("signs", first, f"mean over mean size is {sign:+.2f}, in the reference {usual_sign:+.2f}")
    if not 1 / THRESHOLDS.spread <= _ratio(std, usual_std) <= THRESHOLDS.spread:
        yield seen.alarm("spread", first, f"its standard deviation is {std:.2g}, in the reference {usual_std:.2g}")
    elif not 1 / THRESHOLDS.reach <= _ratio(size, usual_size) <= THRESHOLDS.reach:
        yield seen.alarm("range", first, f"its largest size is {size:.2g}, in the reference {usual_size:.2g}")


def _sign(stats: Stats) -> float:
    return stats.mean / stats.absmean if stats.absmean else 0.0


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else (1.0 if not ours else math.inf)


def _joined(records: Iterable[Record]) -> Stats | None:
    """The statistics of a site's records together; None where these are too few numbers, or not finite."""
    found = [record.stats for record in records if record.dtype != "text"]
    count = sum(one.count for one in found)
    if count < THRESHOLDS.fewest_values or any(one.nan or one.inf or one.min <= dtypes.MASKED for one in found):
        return None
    mean, absmean = (sum(getattr(one, name) * one.count for one in found) / count for name in ("mean", "absmean"))
    square = sum(one.l2**2 for one in found) / count
    return replace(
        found[0],
        count=count,
        min=min(one.min for one in found),
        max=max(one.max for one in found),
        mean=mean,
        absmean=absmean,
        std=math.sqrt(max(square - mean**2, 0.0)),
        l2=math.sqrt(square * count),
    )


_SYMPTOMS = (_caveats, _raised, _not_finite, _constant, _same_everywhere, _ids, _tone, _growing, _unlike)
"""In the order in which a person would look."""
