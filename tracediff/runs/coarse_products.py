"""The floor of coarse products: what becomes of the reference where its products multiply numbers of TF32's 10 bits.

Hardware that takes float32 products so cuts their operands, either to the nearest number or towards zero, and adds up in float32. Both are
tried, and the larger error counts. Nothing but products errs: at a norm or an activation the column is zero, and what float32's own
rounding explains holds there as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tracediff.dtype import Array
from tracediff.interrupts import held
from tracediff.observe import adapter_of, observe
from tracediff.observe.observer import Boundary
from tracediff.observe.patching.places import quiet
from tracediff.observe.world import State, World
from tracediff.runs.variations import Variation
from tracediff.site import RETURNED
from tracediff.tensors.mantissa import TF32_BITS, WAYS, Way
from tracediff.trace import Trace, schema
from tracediff.trace.products import TF32

Say = Callable[[str], None]


def measure_products(
    models: Any,
    run: Any,
    trace: Trace,
    *,
    observed: Mapping[str, Any] | None = None,
    begin: State | None = None,
    say: Say = lambda _: None,
) -> tuple[Array | None, list[str]]:
    """One row of `schema.FLOOR_PRODUCTS` a record of a reference, and what could not be measured; None where a framework has none.

    The arguments are those of `tracediff.runs.floor.measure`. Errors are relative L2, of exact values the share that changed.
    """
    adapter = adapter_of(models, run, impl=(observed or {}).get("impl"))
    if adapter.coarse_products(TF32_BITS, "nearest", lambda: False) is None:
        return None, [f"floor in {TF32}: not measured, since the operands of {adapter.name}'s products cannot be cut"]
    world = World(models, run, adapter)
    begin = begin or world.state()
    table = np.full(len(trace.records), np.nan, schema.FLOOR_PRODUCTS)
    missed: list[str] = []
    for way in WAYS:
        say(f"measuring the noise floor in {TF32} ({'to the nearest' if way == 'nearest' else 'towards zero'})")
        for column, kind in (("tf32", _Reset), ("tf32_free", _GoesOn)):
            seen = kind(trace)
            failed = _again(models, run, adapter, world, begin, seen, way, observed or {})
            table[column] = np.fmax(table[column], np.where(np.isfinite(seen.errors), seen.errors, np.nan))
            if failed is not None:
                missed.append(f"floor in {TF32}: the run ended early ({type(failed).__name__}: {failed})")
    _as_where_made(trace, table)
    return table, list(dict.fromkeys(missed))


def _as_where_made(trace: Trace, table: Array) -> None:
    """What the run returned has the error of where it was made: a port's own tensor is recorded there, not what it was handed for it."""
    codes = [digest.tobytes() for digest in trace.index["digest"]]
    for row, record in enumerate(trace.records):
        if record.site == RETURNED:
            alike = [other for other, code in enumerate(codes) if code == codes[row]]
            for column in table.dtype.names or ():
                table[column][row] = np.fmax.reduce(table[column][alike])


def _again(
    models: Any, run: Any, adapter: Any, world: World, begin: State, seen: Variation, way: Way, observed: Mapping[str, Any]
) -> Exception | None:
    """A run with coarse products; returns what the model raises. What the run changes is put back."""
    with held():
        try:
            with adapter.coarse_products(TF32_BITS, way, lambda: bool(quiet.now)):
                observe(models, run, [seen], **observed)
        except Exception as error:  # noqa: BLE001 - whatever a model raises on values that are slightly off
            return error
        finally:
            world.back_to(begin)
    return None


class _Reset(Variation):
    """Lets the run continue with the stored values, so that nothing accumulates."""

    def varied(self, stored: Array, row: int, boundary: Boundary, own: Any) -> Any:
        return stored


class _GoesOn(_Reset):
    """Lets the run continue with what arrives, so that errors accumulate; ids and draws are the stored ones."""

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        found = super().see(boundary) or {}
        goes_on = {end for end, tensor in boundary.leaves if boundary.moment != "draw" and self._is_real(tensor)}
        return {end: value for end, value in found.items() if end not in goes_on}

    def _is_real(self, tensor: Any) -> bool:
        """Whether a tensor is one of numbers that are rounded, by its dtype."""
        return not isinstance(tensor, str) and self._run.adapter.describe(tensor)[0].startswith(("float", "bfloat", "complex"))
