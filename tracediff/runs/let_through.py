"""Whether anything follows from what a forced run flags.

A forced run feeds each site the reference's tensor. Where the port says the same in another way (a factor in its weights, another order of
a set, other padding), this tensor is not what the port's next call needs, and places are flagged. The free run that came first let every
tensor through. A flagged place is *acquitted* if a call around it absorbed the difference in the free run (`tracediff.locate.absorbed`).

An acquittal needs power. So the port runs once more, free, with a random error of equal size at each candidate. Where this error does
not change the absorber's outputs by more than is allowed there, nothing is known, and the place stays a finding. A call on which nothing
depends (the queries of a first token, which sees itself alone) is judged by its site's other calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment import Alignment, align
from tracediff.compare import compare
from tracediff.dtype import Array
from tracediff.locate import Located, locate
from tracediff.locate.absorbed import Absorber, FreeRun
from tracediff.observe.observer import Boundary, Observer, Run
from tracediff.runs.floor_limits import floor_limits
from tracediff.runs.forcing import Where, place_of, rows_by_place
from tracediff.trace import Trace, open_trace, schema


@dataclass(frozen=True, slots=True)
class Candidate:
    """A flagged pair of a forced run: the port's rows, the error (relative L2), and what absorbed it in the free run."""

    rows: tuple[int, ...]
    error: float
    absorber: Absorber


def let_through(
    reference: Trace,
    discovery: Trace,
    alignment: Alignment,
    forced: Trace,
    *,
    mapping: Mapping[str, Any] | None,
    run: Callable[[Observer], Path | None],
) -> dict[str, Any]:
    """What is to be added to a forced trace: nothing where the forced run flags nothing.

    Else ``meta`` says under ``free`` how the free run compares (`FreeRun.to_meta`), and ``through`` is what became of each record of the
    forced run, one row of `schema.THROUGH` each, unless nothing is acquitted.

    ``discovery`` is the free run before the forced one, ``alignment`` pairs the reference with it. ``run`` records the port once more, seen
    and changed by an observer, and returns the trace, or None where the port raised. It is called only where something may be acquitted.
    """
    pairs = align(reference, forced, mapping=mapping)
    located = locate(pairs, reference, forced, floors=floor_limits(reference, forced, pairs.records))
    if not located.findings:
        return {}
    diverged = {row for one in located.comparisons if one.diverged for row in one.pair.reference}
    free = FreeRun(alignment, reference, discovery, floor_limits(reference, discovery, alignment.records), diverged)
    found: dict[str, Any] = {"meta": {"free": free.to_meta()}}
    candidates = list(_candidates(located, free))
    if not candidates:
        return found
    errors = {place_of(forced.records[row]): one.error for one in candidates for row in one.rows}
    path = run(Disturbing(errors))
    if path is not None:
        with open_trace(path) as disturbed:
            table = _acquitted(candidates, discovery, disturbed, forced)
        found |= {} if table is None else {"through": table}
    return found


def _candidates(located: Located, free: FreeRun) -> Iterator[Candidate]:
    """The flagged pairs whose difference the free run absorbed."""
    for one in located.comparisons:
        row = one.pair.reference[0]
        if not one.diverged or one.effect or one.metrics is None or free.chooses_by(row):
            continue
        if (absorber := free.absorber(row)) is not None:
            yield Candidate(one.pair.port, one.metrics.rel_l2, absorber)


def _acquitted(candidates: Sequence[Candidate], discovery: Trace, disturbed: Trace, forced: Trace) -> Array | None:
    """The candidates whose absorbers show an error of equal size, and what these absorbers returned: it agreed in the free run."""
    table, rows, here = np.zeros(len(forced.records), schema.THROUGH), rows_by_place(disturbed), rows_by_place(forced)
    table["absorber"] = -1
    behind: dict[int, float] = {}
    for one, effect in zip(candidates, _powers(candidates, discovery, disturbed, rows, forced), strict=True):
        if effect > 1:
            table[list(one.rows)] = (schema.ACQUITTED, one.absorber.row, effect)
            outputs = (here.get(place_of(discovery.records[row])) for row, _ in one.absorber.outputs)
            behind.update((row, effect) for row in outputs if row is not None)
    for row, effect in behind.items():
        if not table["state"][row]:
            table[row] = (schema.ACQUITTED, -1, effect)
    return table if table["state"].any() else None


def _powers(
    candidates: Sequence[Candidate], discovery: Trace, disturbed: Trace, rows: Mapping[Where, int], forced: Trace
) -> Iterator[float]:
    """By how many times what is allowed each candidate's absorber shows an error of equal size; where it does not show one, the least by
    which those of the same tensor do in other calls of the site.
    """
    effects = ((_effect(discovery, row, disturbed, rows, limit) for row, limit in one.absorber.outputs) for one in candidates)
    own = [max(found, default=0.0) if one.absorber.is_reached else 0.0 for one, found in zip(candidates, effects, strict=True)]
    elsewhere: dict[tuple[str, str], float] = {}
    ends = [(forced.records[one.rows[0]].site, forced.records[one.rows[0]].end) for one in candidates]
    for end, effect in zip(ends, own, strict=True):
        if effect > 1:
            elsewhere[end] = min(effect, elsewhere.get(end, math.inf))
    for end, effect in zip(ends, own, strict=True):
        yield effect if effect > 1 else elsewhere.get(end, effect)


def _effect(discovery: Trace, row: int, disturbed: Trace, rows: Mapping[Where, int], limit: float) -> float:
    """How many times what is allowed an output changed by the errors that were put in; 0 where that cannot be told."""
    other = rows.get(place_of(discovery.records[row]))
    if other is None:
        return 0.0
    before, after = discovery.records[row], disturbed.records[other]
    if before.shape != after.shape or before.dtype != after.dtype or not (before.stored and after.stored):
        return 0.0
    error = compare(before, after).rel_l2
    return error / limit if limit else float(error > 0) * np.inf


class Disturbing(Observer):
    """Adds a random error to the tensors at some places; of exact values it exchanges the places.

    ``errors`` gives each place's relative L2. Entries that mask, and infinities, stay as they are.
    """

    def __init__(self, errors: Mapping[Where, float], seed: int = 0) -> None:
        self._errors = errors
        self._random = np.random.default_rng(seed)

    def start(self, run: Run) -> None:
        self._run = run

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        if boundary.moment in ("draw", "raise"):
            return None
        replaced = {}
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
