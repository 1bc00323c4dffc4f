"""What a recorded noise floor says of a port: the error that noise explains at each record, and what the floor lacks. Runs no model."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment import RecordPair
from tracediff.alignment.result import Stored
from tracediff.dtype import Array, DType
from tracediff.runs.thresholds import THRESHOLDS
from tracediff.site import module_of
from tracediff.trace import Trace
from tracediff.trace.products import ROUNDOFF, TF32, Precision, products_of, told

NOISE, FREE, SENSITIVE = "noise", "free", "sensitive"
"""The columns of `schema.FLOOR` beside those of dtypes: local noise, accumulated noise, and whether noise changes a choice."""
DTYPES = ("float64", "float16", "bfloat16")
"""The columns of dtypes: what the arithmetic of each makes of the reference; float64 serves ports in float32."""
HALF = ("float16", "bfloat16")


def measured_dtypes(floor: Array) -> list[str]:
    """The dtypes of which a floor holds anything."""
    return [name for name in DTYPES if np.isfinite(floor[name]).any()]


def floor_limits(
    reference: Trace, port: Trace, records: Iterable[RecordPair], *, is_forced: bool | None = None, stored: Stored | None = None
) -> dict[int, float]:
    """The error that noise explains at each of the reference's records, as relative L2 by row; only where it was measured.

    ``is_forced`` is by default what the port's trace says. For a forced run the limit is the larger of two errors: the local noise times
    the unit roundoff of the coarser dtype, and the error of a run in the port's dtype (float64 for a float32 port). Where a side says
    that it multiplied coarser numbers, the error that this makes of the reference counts too, as does the port's own floor where that was
    asked for. For a free run accumulated noise counts too, and in a forced run up to where the port is first fed something that was
    computed, and after the first value that the reference lacks and could not feed. Of exact values the limit is the share that noise
    changes, where it changes any. A record without partner is taken to run in the dtype of the paired record before it. ``stored``: how a
    port that ran in float32 was stored (`Alignment.stored`).
    """
    floor = reference.floor
    if floor is None:
        return {}
    is_forced = _is_forced(port) if is_forced is None else is_forced
    records = list(records)
    name_of = _port_dtype_by_row(port, records, stored)
    name = next(iter(name_of.values()), "float32")
    noise = floor[NOISE]
    adds_up = _adds_up(reference, records) if is_forced else np.ones(len(noise), bool)
    units = np.where(adds_up, np.fmax(noise, floor[FREE]), noise).tolist()
    columns = {column: floor[column].tolist() for column in DTYPES}
    free = _free_by_row(reference, adds_up)
    products = _Products(reference, port, adds_up)
    limits: dict[int, float] = {}
    for row, code in enumerate(reference.index["dtype"].tolist()):
        kind = dtypes.BY_CODE[code]
        name = name_of.get(row, name)
        own = columns[name if name in HALF else "float64"][row]
        coarse = math.nan if name in HALF else products.error(row)
        if kind.is_exact:
            share = _larger(_larger(float(noise[row]), own if name in HALF else 0.0), coarse)
            if share > 0:
                limits[row] = share
            continue
        unit = _unit(kind, name) if name in HALF else max(_unit(kind, name), products.unit)
        accumulated = free[name][row] if name in free else math.nan
        amplified = units[row] * unit if math.isnan(accumulated) else _larger(float(noise[row]) * unit, accumulated)
        error = _larger(_larger(amplified, own), coarse)
        if math.isfinite(error):
            limits[row] = error
    for row, error in _of_port(port, records, is_forced=is_forced).items():
        limits[row] = max(error, limits.get(row, 0.0))
    return limits


def _free_by_row(reference: Trace, adds_up: Array) -> dict[str, list[float]]:
    """What free runs in half precision explain, by dtype and row, where errors accumulate and such a run tells; NaN elsewhere.

    Where it leaves next to no error, code kept the reference's own dtype (a table that it computes); a port's may do otherwise.
    """
    table = reference.floor_free
    if table is None:
        return {}
    least = {name: THRESHOLDS.rounded_at_all * dtypes.named(name).roundoff for name in HALF}
    return {name: np.where(adds_up & (table[name] > least[name]), table[name], np.nan).tolist() for name in HALF}


def _of_port(port: Trace, records: Iterable[RecordPair], *, is_forced: bool) -> dict[int, float]:
    """What a port's own floor explains, by the reference's row; nothing where none was measured on it.

    A port may compute the same otherwise, and lose more digits by it. Only real values that it did not choose count. What accumulates
    counts in a free run.
    """
    floor = port.floor if port.meta.get("own_floor") else None
    if floor is None:
        return {}
    found: dict[int, float] = {}
    codes = port.index["dtype"].tolist()
    for pair in records:
        for row in pair.port:
            kind = dtypes.BY_CODE[codes[row]]
            units = float(floor[NOISE][row])
            if not is_forced:
                units = _larger(units, float(floor[FREE][row]))
            error = _larger(units * kind.roundoff, float(floor["float64"][row]))
            if not kind.is_exact and not floor[SENSITIVE][row] and math.isfinite(error):
                found.update({ours: max(error, found.get(ours, 0.0)) for ours in pair.reference})
    return found


class _Products:
    """What coarse products of either side explain; nothing where both multiplied in float32.

    ``unit``: the roundoff by which noise is measured where the reference's floor does not say what such products make of it, else 0.
    ``adds_up``: the rows at which errors accumulate.
    """

    def __init__(self, reference: Trace, port: Trace, adds_up: Array) -> None:
        self.precision = coarse_products(reference, port)
        table = reference.floor_products if self.precision == TF32 else None
        self.unit = 0.0 if self.precision == "float32" or table is not None else ROUNDOFF[self.precision]
        self._errors: list[float] = []
        if table is not None:
            self._errors = np.where(adds_up, np.fmax(table[TF32], table["tf32_free"]), table[TF32]).tolist()

    def error(self, row: int) -> float:
        """The error that coarse products make of a record of the reference; NaN where it was not measured."""
        return self._errors[row] if self._errors else math.nan


def coarse_products(*traces: Trace) -> Precision:
    """The coarser precision in which runs multiplied float32 numbers."""
    return max((products_of(trace) for trace in traces), key=lambda name: ROUNDOFF[name])


def _adds_up(reference: Trace, records: Iterable[RecordPair]) -> Array:
    """The rows of a forced run at which errors accumulate as in a free one: before it was fed, and after what was not stored."""
    rows = np.arange(len(reference.records))
    bare = np.flatnonzero((reference.index["segment"] < 0) & (reference.index["nbytes"] > 0))
    lacking = int(bare[0]) if bare.size else len(rows)
    adds_up: Array = (rows < _unfed_until(reference, records)) | (rows > lacking)
    return adds_up


def _unfed_until(reference: Trace, records: Iterable[RecordPair]) -> int:
    """The row from which on a forced run was fed: that after the call's records with the first computed tensor that has a partner.

    What the run was given, in which no noise accumulates, is the same on both sides: handing it over resets nothing.
    """
    free = np.nan_to_num(reference.floor[FREE]) if reference.floor is not None else np.zeros(len(reference.records))
    first = min((row for pair in records for row in pair.reference if free[row] > 0), default=0)
    calls = reference.calls.of_row
    return next((row for row in range(first, len(free)) if calls[row] != calls[first]), len(free))


def _is_forced(port: Trace) -> bool:
    return bool(port.meta.get("mode_run") == "forced")


def _port_dtype_by_row(port: Trace, records: Iterable[RecordPair], stored: Stored | None) -> dict[int, str]:
    """The dtype in which the port runs the stage of each paired record, by the reference's row."""
    run_in = port_dtypes(port, stored)
    stages = port.index["stage"].tolist()
    return {row: run_in[port.strings[stages[pair.port[0]]]] for pair in records for row in pair.reference}


def _larger(first: float, second: float) -> float:
    """The larger of two numbers; where one is NaN, the other."""
    return second if math.isnan(first) or second > first else first


def _unit(kind: DType, run_in: str) -> float:
    """The unit roundoff of the coarser of a record's dtype and the port's."""
    other = dtypes.BY_NAME[run_in].roundoff if run_in in dtypes.BY_NAME else 0.0
    return max(kind.roundoff, other)


def port_dtypes(port: Trace, stored: Stored | None = None) -> dict[str, str]:
    """The dtype in which each stage of a port runs: the coarsest of its records and of the parameters of the modules called in it.

    What a run in float32 stored in half precision is float32.
    """
    names: dict[str, set[str]] = {}
    paths: dict[str, set[str]] = {}
    columns = np.stack([port.index[column] for column in ("stage", "dtype", "site")], 1)
    for stage_text, code, site in np.unique(columns, axis=0).tolist():
        kind = dtypes.BY_CODE[code].name
        names.setdefault(port.strings[stage_text], set()).add(_computed_in(kind, stored))
        paths.setdefault(port.strings[stage_text], set()).add(module_of(port.strings[site]))
    for stage, called in paths.items():
        names[stage] |= {param.dtype for param in port.params.values() if param.path in called}
    return {stage: max(seen, key=lambda name: dtypes.named(name).roundoff) for stage, seen in names.items()}


def _computed_in(kind: str, stored: Stored | None) -> str:
    """The dtype in which a port computed what its records hold in a dtype."""
    if stored is None or not stored.holds(kind):
        return kind
    return "float32" if stored.in_float32 else stored.dtype


def floor_notes(reference: Trace, port: Trace, stored: Stored | None = None) -> list[str]:
    """What a reader has to know of a port in half precision: what a free run hides, and which dtypes the reference's floor lacks."""
    halves = [name for name in HALF if name in port_dtypes(port, stored).values()]
    notes = [] if stored is None else [_storage_note(port, stored)]
    if halves and not _is_forced(port):
        notes.append(
            f"This is a free run in {halves[0]}: errors are judged by what rounding amounts to over the whole run, which hides small "
            "faults; a forced run (--feed) shows them."
        )
    notes += _products_notes(reference, port)
    known = [] if reference.floor is None else measured_dtypes(reference.floor)
    by = "by amplified rounding alone" if known else "without a noise floor"
    return notes + [
        f"The reference's noise floor in {name} was not measured, so the port is judged {by}, which may raise false alarms or hide "
        f"faults. Measure it with: tracediff calibrate {reference.path} --dtype {name}"
        for name in halves
        if name not in known
    ]


def _products_notes(reference: Trace, port: Trace) -> list[str]:
    """What a reader has to know of sides that multiplied coarser numbers than float32's."""
    notes = []
    for side, trace in (("reference", reference), ("port", port)):
        precision = products_of(trace)
        if precision == "float32":
            continue
        text = f"The {side}'s float32 products were {told(trace.meta)}: hardware cut what it multiplied."
        if precision == TF32 and reference.floor_products is not None:
            notes.append(f"{text} What this makes of the reference was measured, and is allowed.")
            continue
        remedy = "take its products in full precision: tracediff capture --precise"
        if precision == TF32 and reference.floor is not None:
            remedy += f"; or measure what they make of the reference: tracediff calibrate {reference.path} --dtype {TF32}"
        notes.append(f"{text} It is judged by amplified rounding alone, which may raise false alarms or hide faults. Better {remedy}")
    return notes


def _storage_note(port: Trace, stored: Stored) -> str:
    """What the port's arrays in half precision are taken for, and how to say what they are."""
    if not stored.in_float32:
        return (
            f"The port's arrays are in {stored.dtype}, and none that agrees tells whether its run was too: it is judged as one in "
            f"{stored.dtype}. Where a run in float32 was only stored so, say so: tracediff convert --stored {stored.dtype}"
        )
    by = (port.meta.get("stored") or {}).get("by")
    why = "as was stated" if by == "stated" else "since what agrees holds the reference's numbers rounded"
    return (
        f"The port's arrays are taken as those of a float32 run that were stored in {stored.dtype}, {why}: each number stands for all that "
        "round to it, and is judged as float32."
    )
