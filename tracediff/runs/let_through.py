"""Whether anything follows from what a forced run flags.

A forced run feeds each site the reference's tensor. Where the port says the same in another way (a factor in its weights, another order of
a set, other padding), this tensor is not what the port's next call needs, and places are flagged. Two runs let every such tensor through:
the free run that came first, and one that is *reset*: it goes on with the reference's tensor wherever its own agrees, and with its own
where it differs. So no rounding accumulates, and no choice goes another way. A flagged place is *acquitted* if a call around it absorbed
the difference in one of the two (`tracediff.locate.absorbed`).

A difference that is absorbed is put right or discarded: what follows is as right as it is with the reference's own tensor. A fault dwindles
instead. It stays below what noise allows, and yet the forced run, which had the reference's tensor, is clearly better at some place behind.
Such a place is a finding.

An acquittal needs power, unless weights prove it (`tracediff.locate.orders`). So the port runs once more, with a random error of equal
size at each candidate. Where this error does not change the absorber's outputs by more than is allowed there, and by clearly more than they
differ as it is, nothing is known, and the place stays a finding. A call on which nothing depends (the queries of a first token, which sees
itself alone) is judged by its site's other calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment import Alignment, align
from tracediff.dtype import Array
from tracediff.locate import Comparison, Located, locate
from tracediff.locate.absorbed import Absorber, ThroughRun
from tracediff.metrics import compare
from tracediff.observe.observer import Boundary, InPart, Observer, Run
from tracediff.runs.floor_limits import floor_limits
from tracediff.runs.forcing import Forcing, Where, place_of, rows_by_place
from tracediff.trace import Trace, open_trace, schema

Again = Callable[[Observer, str], Path | None]
"""Records the port once more, seen and changed by an observer, to a file of a name; returns the trace, or None where the port raised."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A flagged pair of a forced run: the reference's first row, the port's rows, the error (relative L2), and what absorbed it.

    ``outputs``: the places of the absorber's outputs of numbers, each with what a random error must exceed there.
    """

    row: int
    rows: tuple[int, ...]
    error: float
    absorber: Absorber
    outputs: tuple[tuple[Where, float], ...]


def let_through(
    reference: Trace,
    discovery: Trace,
    alignment: Alignment,
    forced: Trace,
    *,
    mapping: Mapping[str, Any] | None,
    forcing: Forcing,
    again: Again,
) -> dict[str, Any]:
    """What is to be added to a forced trace: nothing where the forced run flags nothing.

    Else ``meta`` says under ``free`` how the free run compares (`ThroughRun.to_meta`), and ``through`` is what became of each record of the
    forced run, one row of `schema.THROUGH` each, unless nothing is acquitted.

    ``discovery`` is the free run before the forced one, ``alignment`` pairs the reference with it, ``forcing`` fed the forced run.
    ``again`` is called once where several places are flagged or the free run absorbs one, and once where something may be acquitted.
    """
    pairs = align(reference, forced, mapping=mapping)
    floors = floor_limits(reference, forced, pairs.records)
    located = locate(pairs, reference, forced, floors=floors)
    if not located.findings:
        return {}
    diverged = {row for one in located.comparisons if one.diverged for row in one.pair.reference}
    free = ThroughRun(alignment, reference, discovery, floor_limits(reference, discovery, alignment.records), diverged)
    found: dict[str, Any] = {"meta": {"free": free.to_meta()}}
    candidates, before = [list(_candidates(located, free, discovery))], discovery
    is_worth_it = bool(candidates[0]) or sum(one.places for one in located.findings) > 1
    reset = Reset(forcing, _limits(located.comparisons, forced)) if is_worth_it else None
    with ExitStack() as stack:
        if reset is not None and (path := again(reset, "reset")) is not None:
            before = stack.enter_context(open_trace(path))
            through = ThroughRun(_at(pairs, forced, before), reference, before, floors, diverged, "forced")
            candidates.append(list(_candidates(located, through, before)))
            fed = dict(_errors(located.comparisons))
            candidates = [[one for one in of_run if not through.leaves_more(one.row, one.absorber.returned, fed)] for of_run in candidates]
        errors = {place_of(forced.records[row]): one.error for one in chain(*candidates) for row in one.rows}
        path = again(Disturbing(errors, None if before is discovery else reset), "disturbed") if errors else None
        if path is not None:
            table = _acquitted(candidates, before, stack.enter_context(open_trace(path)), forced)
            found |= {} if table is None else {"through": table}
    return found


def _limits(comparisons: Sequence[Comparison], forced: Trace) -> dict[Where, float]:
    """What is allowed at each place of the port, as relative L2: the limit, or the error of what did not diverge if that is larger."""
    found: dict[Where, float] = {}
    for one in comparisons:
        if one.judgement is None:
            continue
        error = 0.0 if one.diverged or one.metrics is None or not math.isfinite(one.metrics.rel_l2) else one.metrics.rel_l2
        for row in one.pair.port:
            place = place_of(forced.records[row])
            found[place] = max(found.get(place, 0.0), one.judgement.limit, error)
    return found


def _errors(comparisons: Sequence[Comparison]) -> Iterator[tuple[int, float]]:
    """The error of a run's pairs of numbers, as relative L2, by the reference's row."""
    for one in comparisons:
        if one.metrics is not None and not one.metrics.exact:
            yield from ((row, one.metrics.rel_l2) for row in one.pair.reference)


def _at(alignment: Alignment, one: Trace, other: Trace) -> Alignment:
    """An alignment with one run of a port, as that with another of its runs: what is not there has no partner."""
    rows = rows_by_place(other)
    found = ([rows.get(place_of(one.records[row])) for row in pair.port] for pair in alignment.records)
    records = (
        replace(pair, port=tuple(row for row in own if row is not None))
        for pair, own in zip(alignment.records, found, strict=True)
        if None not in own
    )
    return replace(alignment, records=tuple(records))


def _candidates(located: Located, through: ThroughRun, trace: Trace) -> Iterator[Candidate]:
    """The flagged pairs whose difference a run absorbed that let it through, whose trace is given."""
    for one in located.comparisons:
        row = one.pair.reference[0]
        if not one.diverged or one.effect or one.metrics is None or through.chooses_by(row):
            continue
        if (absorber := through.absorber(row)) is not None:
            outputs = tuple((place_of(trace.records[output]), limit) for output, limit in absorber.outputs)
            yield Candidate(row, one.pair.port, one.metrics.rel_l2, absorber, outputs)


def _acquitted(candidates: Sequence[Sequence[Candidate]], before: Trace, disturbed: Trace, forced: Trace) -> Array | None:
    """The candidates, those of each run, whose absorbers show an error of equal size, and what these returned: it agreed in that run."""
    table, here = np.zeros(len(forced.records), schema.THROUGH), rows_by_place(forced)
    table["absorber"] = -1
    behind: dict[int, float] = {}
    effects = Effects(before, disturbed)
    for one, effect in chain(*(zip(of_run, _powers(of_run, effects, forced), strict=True) for of_run in candidates)):
        if effect > 1:
            table[list(one.rows)] = (schema.ACQUITTED, one.absorber.row, effect)
            behind.update((here[place], effect) for place, _ in one.outputs if place in here)
    for row, effect in behind.items():
        if not table["state"][row]:
            table[row] = (schema.ACQUITTED, -1, effect)
    return table if table["state"].any() else None


def _powers(candidates: Sequence[Candidate], effects: Effects, forced: Trace) -> Iterator[float]:
    """By how many times what it must exceed each candidate's absorber shows an error of equal size; infinite where weights prove it.

    Where an absorber shows none, it is the least by which those of the same tensor do in other calls of the site.
    """
    shown = ((effects.at(place, limit) for place, limit in one.outputs) for one in candidates)
    own = [
        math.inf if one.absorber.is_proved else max(found, default=0.0) if one.absorber.is_reached else 0.0
        for one, found in zip(candidates, shown, strict=True)
    ]
    elsewhere: dict[tuple[str, str], float] = {}
    ends = [(forced.records[one.rows[0]].site, forced.records[one.rows[0]].end) for one in candidates]
    for end, effect in zip(ends, own, strict=True):
        if effect > 1:
            elsewhere[end] = min(effect, elsewhere.get(end, math.inf))
    for end, effect in zip(ends, own, strict=True):
        yield effect if effect > 1 else elsewhere.get(end, effect)


class Effects:
    """What the random errors of one run changed in another."""

    def __init__(self, before: Trace, disturbed: Trace) -> None:
        self._sides = (before, rows_by_place(before)), (disturbed, rows_by_place(disturbed))

    def at(self, place: Where, limit: float) -> float:
        """How many times the limit a tensor changed; 0 where that cannot be told."""
        found = [trace.records[rows[place]] for trace, rows in self._sides if place in rows]
        if len(found) < len(self._sides):
            return 0.0
        before, after = found
        if before.shape != after.shape or before.dtype != after.dtype or not (before.stored and after.stored):
            return 0.0
        error = compare(before, after).rel_l2
        return error / limit if limit else float(error > 0) * np.inf


class Reset(Observer):
    """Hands a port the reference's tensors wherever its own agree with them, and lets through what differs.

    ``forcing`` hands over what a forced run is fed; ``limits`` are what is allowed at each place, as relative L2.
    """

    def __init__(self, forcing: Forcing, limits: Mapping[Where, float]) -> None:
        self._forcing, self._limits = forcing, limits

    def start(self, run: Run) -> None:
        self._run = run
        self._forcing.start(run)

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        handed = self._forcing.see(boundary)
        if not handed or boundary.moment == "raise":
            return handed
        own = dict(boundary.leaves)
        places = {end: (boundary.site, boundary.ordinal, end) for end in handed}
        found = ((end, self._reset(given, own[end], self._limits.get(places[end]))) for end, given in handed.items())
        return {end: tensor for end, tensor in found if tensor is not None}

    def _reset(self, given: Any, own: Any, limit: float | None) -> Any:
        """What a port's tensor goes on as: what it would be handed, its own (None), or row by row whichever fits.

        Rows lie along the last axis. Where padding differs, the rows of the other places are reset, so that no rounding adds up in them.
        Where it cannot be told whether a tensor agrees, it is reset.
        """
        if limit is None or isinstance(own, str) or not isinstance(given, np.ndarray):
            return given
        values = self._run.adapter.view(own)
        if values.shape != given.shape:
            return given
        metrics = compare(given, values, ulp=False)
        if metrics.mismatched == 0 if metrics.exact else metrics.rel_l2 <= limit:
            return given
        agree = None if metrics.exact or metrics.lone_nonfinite or given.ndim < 2 else _rows_agree(given, values, limit)
        return InPart(np.where(agree, given, values)) if agree is not None and agree.any() else None


def _rows_agree(given: Array, own: Array, limit: float) -> Array:
    """Which rows along the last axis err by a limit at most, relative to their own RMS or, if that is larger, to the tensor's."""
    wide = given.astype(dtypes.wide_type(given))
    size, error = (np.mean(np.abs(values) ** 2, axis=-1, keepdims=True) for values in (wide, wide - own.astype(wide.dtype)))
    agree: Array = error <= limit * limit * np.maximum(size, size.mean())
    return agree


class Disturbing(Observer):
    """Adds a random error to the tensors at some places; of exact values it exchanges the places.

    ``errors`` gives each place's relative L2. Entries that mask, and infinities, stay as they are. ``reset`` resets everything else.
    """

    def __init__(self, errors: Mapping[Where, float], reset: Reset | None = None, seed: int = 0) -> None:
        self._errors, self._reset = errors, reset
        self._random = np.random.default_rng(seed)

    def start(self, run: Run) -> None:
        self._run = run
        if self._reset is not None:
            self._reset.start(run)

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        given = self._reset.see(boundary) if self._reset is not None else None
        if boundary.moment in ("draw", "raise"):
            return given
        replaced = dict(given or {})
        for end, tensor in boundary.leaves:
            error = self._errors.get((boundary.site, boundary.ordinal, end))
            if error is not None and not isinstance(tensor, str) and not end.startswith("attr["):
                replaced[end] = self._disturbed(self._run.adapter.view(tensor), error)
        return replaced

    def _disturbed(self, values: Array, error: float) -> Array:
        if dtypes.of(values).is_exact:
            return self._random.permutation(values.reshape(-1)).reshape(values.shape)
        wide = values.astype(dtypes.wide_type(values))
        plain = np.isfinite(wide) & (wide.real > dtypes.MASKED)
        noise = np.where(plain, self._random.standard_normal(wide.shape), 0.0)
        norm, length = float(np.linalg.norm(np.where(plain, wide, 0.0))), float(np.linalg.norm(noise))
        return (wide + noise * (error * norm / length if length else 0.0)).astype(values.dtype)
