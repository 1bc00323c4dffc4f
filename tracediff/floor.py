"""The local noise floor: how much error floating point explains at each site, measured on the reference.

At every boundary of a forced run of the reference its stored value ``v`` is handed on as ``v * (1 + u*n + u*m)``, with ``n`` standard
normal for each element, ``m`` one for the whole tensor, and ``u`` the unit roundoff of the value's dtype. What then arrives at each
boundary is compared with what is stored: that relative L2, over ``u``, is the site's *noise amplification* (the largest of three
runs). One more run in another dtype gives the error of that dtype's own arithmetic. Both are local: nothing accumulates, which suits a
forced run. For free runs two more are made in which what arrives is handed on with noise, so that it does accumulate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.capture import adapter_of, observe
from tracediff.capture.observer import Boundary, Observer, Run
from tracediff.capture.tree import discover
from tracediff.compare import compare
from tracediff.dtype import Array, DType
from tracediff.force import Values, outputs_by_call, rows_by_place
from tracediff.trace import Trace, schema

NOISE, FREE = "noise", "free"
COLUMNS = ("float64", "float16", "bfloat16")
DRAWS, FREE_DRAWS = 3, 2
SENSITIVE_FACTOR = 8.0
"""Ids that the reference itself changes under so many units of noise are noise-sensitive."""


class _Handing(Observer):
    """Measures what arrives at each boundary against what is stored, and hands on a variation of what is stored."""

    def __init__(self, trace: Trace) -> None:
        self.errors = np.full(len(trace.records), np.nan)
        self.differs = np.zeros(len(trace.records), bool)
        self.raised: list[str] = []
        self._rows = rows_by_place(trace)
        self._calls = outputs_by_call(trace)
        self._values = Values(trace)

    def start(self, run: Run) -> None:
        self._run = run

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        if boundary.moment == "raise":
            return self._instead(boundary)
        replaced = {}
        for end, tensor in boundary.leaves:
            row = self._rows.get((boundary.site, boundary.ordinal, end))
            stored = self._values.of(row) if row is not None else None
            if row is None or stored is None or isinstance(tensor, str):
                continue
            if boundary.moment != "draw":
                self._measure(row, stored, self._run.adapter.view(tensor))
            replaced[end] = stored if boundary.moment == "draw" else self.varied(self.base(stored, tensor), row)
        return replaced

    def base(self, stored: Array, tensor: Any) -> Array:
        """What is varied: the stored value, so that nothing accumulates."""
        return stored

    def varied(self, stored: Array, row: int) -> Any:
        """What is handed on in the place of a stored value."""
        raise NotImplementedError

    def _instead(self, boundary: Boundary) -> Mapping[str, Any] | None:
        """The stored outputs of a call that fails when its values are varied, so that the run goes on."""
        outputs = self._calls.get((boundary.site, boundary.ordinal), {})
        stored = self._values.every(outputs)
        if stored is None:
            return None
        self.raised.append(f"{boundary.site or 'the root'} ({boundary.note.get('error', '')})")
        return {end: self.varied(values, outputs[end]) for end, values in stored.items()}

    def _measure(self, row: int, stored: Array, arrived: Array) -> None:
        if stored.shape != arrived.shape:
            self.errors[row] = math.inf
            return
        metrics = compare(stored, arrived)
        if metrics.exact:
            self.differs[row] |= metrics.mismatched > 0
        else:
            self.errors[row] = np.nanmax([self.errors[row], metrics.rel_l2])


class _Noise(_Handing):
    """Hands on stored values with relative noise of ``factor`` units of roundoff."""

    def __init__(self, trace: Trace, draw: int, factor: float = 1.0) -> None:
        super().__init__(trace)
        self._draw, self._factor = draw, factor

    def varied(self, stored: Array, row: int) -> Any:
        kind = dtypes.of(stored)
        if kind.is_exact:
            return stored
        size = self._factor * kind.roundoff
        generator = np.random.Generator(np.random.Philox(key=(self._draw << 64) + row))
        wide = stored.astype(np.complex128 if kind.is_complex else np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            wide *= 1 + size * generator.standard_normal(stored.shape) + size * generator.standard_normal()
            return wide.astype(kind.view)


class _FreeNoise(_Noise):
    """As `_Noise`, but what arrives is handed on, so that errors accumulate as they do between two free runs."""

    def base(self, stored: Array, tensor: Any) -> Array:
        return self._run.adapter.view(tensor)


class _Cast(_Handing):
    """Hands on stored values in another dtype."""

    def __init__(self, trace: Trace, kind: DType) -> None:
        super().__init__(trace)
        self._kind = kind

    def varied(self, stored: Array, row: int) -> Any:
        kind = dtypes.of(stored)
        if kind.is_exact or kind.is_complex:
            return stored
        return self._run.adapter.from_numpy(stored.astype(self._kind.view), None)


def measure(
    models: Any,
    run: Any,
    trace: Trace,
    *,
    dtypes_to_try: tuple[str, ...] = ("float64",),
    observed: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Array, list[str]]:
    """The floor of a recorded reference: one row of `schema.FLOOR` a record, and what could not be measured.

    ``models`` and ``run`` are those that ``trace`` recorded, ``observed`` the further arguments of `tracediff.capture.observe`.
    ``noise`` (local) and ``free`` (accumulated) are in units of the roundoff of the record's dtype, the columns of dtypes are relative L2;
    NaN where not measured. ``sensitive`` marks ids that noise changes.
    """
    table = np.zeros(len(trace.records), schema.FLOOR)
    for column in (NOISE, FREE, *COLUMNS):
        table[column] = np.nan
    missed: list[str] = []
    roundoff = np.array([dtypes.named(record.dtype).roundoff for record in trace.records])
    for draw in range(DRAWS):
        say(f"measuring the noise floor, run {draw + 1} of {DRAWS}")
        noise = _Noise(trace, draw)
        _again(models, run, noise, observed)
        table[NOISE] = np.fmax(table[NOISE], _in_units(noise.errors, roundoff))
        table["sensitive"] |= noise.differs
    shaken = _Noise(trace, DRAWS, SENSITIVE_FACTOR)
    _again(models, run, shaken, observed)
    table["sensitive"] |= shaken.differs
    for draw in range(FREE_DRAWS):
        say(f"measuring how noise accumulates, run {draw + 1} of {FREE_DRAWS}")
        noise = _FreeNoise(trace, DRAWS + 1 + draw)
        _again(models, run, noise, observed)
        table[FREE] = np.fmax(table[FREE], _in_units(noise.errors, roundoff))
    for name in dtypes_to_try:
        say(f"measuring the noise floor in {name}")
        try:
            cast = _in_dtype(models, run, trace, name, observed)
            table[name] = cast.errors
            missed += [f"floor in {name}: not measured at {site}, which does not run in it" for site in dict.fromkeys(cast.raised)]
        except Exception as error:  # noqa: BLE001 - whatever a model raises in another dtype
            missed.append(f"floor in {name}: not measured, the reference does not run in it ({type(error).__name__}: {error})")
    return table, missed


def _in_units(errors: Array, roundoff: Array) -> Array:
    """Errors in units of roundoff; NaN for exact dtypes."""
    units: Array = np.divide(errors, roundoff, where=roundoff > 0, out=np.full(len(roundoff), np.nan))
    return units


def _in_dtype(models: Any, run: Any, trace: Trace, name: str, observed: Mapping[str, Any] | None) -> _Cast:
    adapter = adapter_of(models, run)
    cast = _Cast(trace, dtypes.named(name))
    modules = [node.module for node in discover(models, adapter) if node.is_model]
    with adapter.cast(modules, name):
        _again(models, run, cast, observed)
    return cast


def _again(models: Any, run: Any, observer: Observer, observed: Mapping[str, Any] | None) -> None:
    """Runs once more with the generators put back afterwards."""
    adapter = adapter_of(models, run)
    state = adapter.rng_state()
    try:
        observe(models, run, [observer], **(observed or {}))
    finally:
        adapter.set_rng_state(state)


def floors(table: Array, reference: Trace, port_dtype: str, *, is_forced: bool) -> dict[int, float]:
    """What noise explains at each of the reference's records for a port of that dtype: relative L2 by row, where it was measured.

    For a forced run the amplification times the unit roundoff of the coarser dtype, or the error of a run in the port's dtype (float64 for
    a float32 port) if that is larger; for a free run the accumulated amplification if that is larger still.
    """
    column = port_dtype if port_dtype in ("float16", "bfloat16") else "float64"
    unit = dtypes.named(port_dtype).roundoff if port_dtype in dtypes.BY_NAME else 0.0
    roundoff = np.array([max(dtypes.named(record.dtype).roundoff, unit) for record in reference.records])
    units = table[NOISE] if is_forced else np.fmax(table[NOISE], table[FREE])
    worst = np.fmax(units * roundoff, table[column])
    return {int(row): float(worst[row]) for row in np.flatnonzero(np.isfinite(worst))}
