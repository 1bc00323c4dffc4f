"""Observers that run a recorded reference again with its stored values varied: by noise, or by a cast to another dtype.

Each of them compares what arrives at a boundary with what is stored, and lets the run continue with a variation of the stored value.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import Array, DType, is_whole
from tracediff.observe.observer import AsIs, Boundary, Observer, Run
from tracediff.observe.types import Adapter, Args, Call, Casts, Kwargs, Module, Node
from tracediff.runs.forcing import outputs_by_call, rows_by_place
from tracediff.runs.leaves import called_on, error_of_rows, rows_of
from tracediff.runs.noise import with_noise
from tracediff.runs.replacements import Values
from tracediff.runs.thresholds import THRESHOLDS
from tracediff.runs.variation_error import error_of
from tracediff.site import module_of
from tracediff.trace import Trace

CACHE_BYTES = 16 * 1024 * 1024
"""Stored values of up to so many bytes are kept: what a layer hands on, not a model's whole run."""


class Redrawing(Observer):
    """Gives a run the random draws that its trace recorded."""

    def __init__(self, trace: Trace) -> None:
        self._rows, self._values = rows_by_place(trace), Values(trace)

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        row = self._rows.get((boundary.site, boundary.ordinal, "draw")) if boundary.moment == "draw" else None
        drawn = None if row is None else self._values.of(row)
        return None if drawn is None else {"draw": drawn}


@dataclass(slots=True)
class _Handed:
    """A tensor that was handed out: for which stored value, by what a change of it shows, and its error where that was measured."""

    tensor: Callable[[], Any]
    key: bytes
    token: Any
    error: float | None = None
    is_choice: bool = False


class _HandedOut:
    """The tensors that a variation handed out and that are alive; those that take no weak references are not known."""

    def __init__(self) -> None:
        self._known: dict[int, _Handed] = {}

    def note(self, tensor: Any, key: bytes, adapter: Adapter) -> None:
        """Notes a tensor that is handed out for the stored value with this key."""
        if isinstance(tensor, (np.ndarray, AsIs)) or not adapter.is_tensor(tensor):
            return
        with suppress(TypeError):
            own = id(tensor)
            forget = partial(self._known.pop, own)  # in C: an interrupt in a callback of a weak reference would be lost
            self._known[own] = _Handed(weakref.ref(tensor, forget), key, adapter.token(tensor))

    def of(self, tensor: Any, key: bytes, adapter: Adapter) -> _Handed | None:
        """What is known of a tensor that was handed out for the stored value with this key, and that nothing has changed since."""
        found = self._known.get(id(tensor))
        if found is None or found.tensor() is not tensor or found.key != key or adapter.is_changed(tensor, found.token):
            return None
        return found


class Variation(Observer):
    """Measures what arrives at each boundary against the stored value, and lets the run continue with a variation of that value.

    All results have one entry a record. ``errors``: relative L2, of exact values the share that differs, NaN where nothing was measured.
    ``sampled``: whether some rows were measured for all, of calls at the sites in ``leaves`` (`tracediff.runs.leaves`). ``chosen``: whether
    a real tensor is a choice. ``is_seen_elsewhere``: whether a real array of NumPy was varied, with which any code may
    go on. ``raised``: by site, the message of a call that failed and whose stored outputs
    were used instead.
    """

    leaves: Collection[str] = ()
    goes_on_with_handed = True
    """Whether the run goes on with a tensor that arrives as it was handed out for the same stored value: it is that value varied."""

    def __init__(self, trace: Trace) -> None:
        self.errors = np.full(len(trace.records), np.nan)
        self.sampled = np.zeros(len(trace.records), bool)
        self.chosen = np.zeros(len(trace.records), bool)
        self.raised: dict[str, str] = {}
        self.is_seen_elsewhere = False
        self._rows = rows_by_place(trace)
        self._calls = outputs_by_call(trace)
        self._values = Values(trace, CACHE_BYTES)
        self._handed = _HandedOut()
        self._trace = trace

    def start(self, run: Run) -> None:
        self._run = run

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        if boundary.moment == "raise":
            return self._stored_outputs(boundary)
        if boundary.moment == "enter" and boundary.site in self.leaves and boundary.site == boundary.path:
            self._sample(boundary)
        replaced = {}
        is_draw = boundary.moment == "draw"
        for end, tensor in boundary.leaves:
            row = self._rows.get((boundary.site, boundary.ordinal, end))
            if row is None or isinstance(tensor, str):
                continue
            key = self._key(row, boundary)
            handed = None if is_draw else self._handed.of(tensor, key, self._run.adapter)
            is_measured = is_draw or (boundary.moment == "leave" and bool(self.sampled[row]))
            if handed is not None and not is_measured:
                self._measure_handed(row, handed)
            if handed is not None and self.goes_on_with_handed and not end.startswith("attr["):
                continue
            stored = self._values.of(row)
            if stored is None:
                continue
            if handed is None and not is_measured:
                self._measure(row, stored, self._run.adapter.view(tensor))
            if not end.startswith("attr["):
                self.is_seen_elsewhere |= isinstance(tensor, np.ndarray) and not dtypes.of(stored).is_exact
                replaced[end] = stored if is_draw else self.varied(self.base(stored, tensor), row, boundary, tensor)
                if not is_draw:
                    self._handed.note(replaced[end], key, self._run.adapter)
        return replaced

    def _key(self, row: int, boundary: Boundary) -> bytes:
        """What tells the variation of a record's content from others."""
        return self._values.key(row)

    def _measure_handed(self, row: int, handed: _Handed) -> None:
        """Measures a tensor that arrives as it was handed out for the same content: once for all records at which it does."""
        before = self.errors[row]
        if handed.error is None:
            stored = self._values.of(row)
            assert stored is not None  # it has the content of a value that was read
            self.errors[row] = np.nan
            self._measure(row, stored, self._run.adapter.view(handed.tensor()))
            handed.error, handed.is_choice = float(self.errors[row]), bool(self.chosen[row])
        self.errors[row] = np.fmax(before, handed.error)
        self.chosen[row] |= handed.is_choice

    def base(self, stored: Array, tensor: Any) -> Array:
        """The value that is varied: the stored one, so that nothing accumulates."""
        return stored

    def varied(self, stored: Array, row: int, boundary: Boundary, own: Any) -> Any:
        """The variation of a value; ``own`` is the tensor that arrived, None where a call failed and nothing did."""
        raise NotImplementedError

    def _stored_outputs(self, boundary: Boundary) -> Mapping[str, Any] | None:
        """The stored outputs of a call that fails when its inputs are varied, so that the run continues."""
        self.raised.setdefault(boundary.site, str(boundary.note.get("error", "")))
        rows = self._calls.get((boundary.site, boundary.ordinal), {})
        stored = self._values.every(rows)
        if stored is None:
            return None
        return {end: self.varied(values, rows[end], boundary, None) for end, values in stored.items()}

    def _sample(self, entered: Boundary) -> None:
        """Has some rows of a leaf's call measured, where they tell of all; the run then goes on with what is stored, not computed."""
        row = self._rows.get((entered.site, entered.ordinal, "output"))
        stored = None if row is None or len(self._calls[entered.site, entered.ordinal]) > 1 else self._values.of(row)
        if row is None or stored is None or not self._may_sample(row):
            return
        adapter, record = self._run.adapter, self._values.record(row)
        rows = rows_of(record, stored)
        if rows is None:
            return

        def some_rows(call: Call, args: Args, kwargs: Kwargs) -> Any:
            made = called_on(rows, stored.shape, call, args, kwargs, adapter)
            if adapter.is_tensor(made):
                error = error_of_rows(stored, rows, adapter.view(made), record, self._unit(dtypes.of(stored)))
                if not math.isnan(error):
                    self.errors[row], self.sampled[row] = np.fmax(self.errors[row], error), True
                    return adapter.beside(stored, made)
            return call(*args, **kwargs)

        entered.instead = some_rows

    def _may_sample(self, row: int) -> bool:
        """Whether some rows of a record may tell of it, as far as the variation goes; values that are choices are needed all."""
        return not self._values.is_whole(row)

    def _is_whole(self, values: Array, row: int) -> bool:
        """Whether values with which a record's place goes on are whole numbers only; of the stored ones it is known."""
        return self._values.is_whole(row) if values is self._values.of(row) else is_whole(values)

    def _unit(self, kind: DType) -> float:
        """The roundoff by which a record of this dtype is off."""
        return kind.roundoff

    def _measure(self, row: int, stored: Array, arrived: Array) -> None:
        self.chosen[row] |= self._values.is_whole(row)
        if stored.shape != arrived.shape:
            self.errors[row] = math.inf
            return
        self.errors[row] = np.fmax(self.errors[row], error_of(stored, arrived, self._values.record(row).stats))


class LocalNoise(Variation):
    """Multiplies stored values by noise of ``units`` units of roundoff: of the value's dtype, or of ``roundoff`` if that is larger.

    ``is_opposite`` moves every value the other way than the same draw does. With several units the noise tells choices: what a filter
    keeps or drops otherwise then is what counts at a record, and the run continues with the other choice, so that what comes of it shows.
    """

    def __init__(self, trace: Trace, draw: int, units: float = 1.0, roundoff: float = 0.0, *, is_opposite: bool = False) -> None:
        super().__init__(trace)
        self._draw, self._units, self._roundoff = draw, units, roundoff
        self._sign = -1.0 if is_opposite else 1.0

    def varied(self, stored: Array, row: int, boundary: Boundary, own: Any) -> Any:
        kind = dtypes.of(stored)
        if kind.is_exact or self._is_whole(stored, row):
            return stored
        noisy = with_noise(stored, self._sign * self._noise(kind), (self._draw, row))
        adapter = self._run.adapter
        if own is None or isinstance(own, (str, np.ndarray)) or adapter.describe(own)[:2] != (kind.name, noisy.shape):
            return noisy
        return adapter.owning(noisy, own)

    def base(self, stored: Array, tensor: Any) -> Array:
        is_other_choice = not isinstance(tensor, str) and self._changed_choice(stored, self._run.adapter.view(tensor)) > 0
        return self._run.adapter.view(tensor) if is_other_choice else stored

    def _measure(self, row: int, stored: Array, arrived: Array) -> None:
        error = self._changed_choice(stored, arrived)
        if not error:
            super()._measure(row, stored, arrived)
            return
        self.chosen[row], self.errors[row] = True, np.fmax(self.errors[row], error)

    def _may_sample(self, row: int) -> bool:
        return self._units == 1 and super()._may_sample(row)  # a filter drops single values, which may be in any row

    def _changed_choice(self, stored: Array, arrived: Array) -> float:
        """The relative L2 of what was kept or dropped otherwise; 0 under one unit of noise, and for values that are no real ones."""
        kind = dtypes.of(stored)
        return 0.0 if self._units == 1 or kind.is_exact or is_whole(stored) else kept_or_dropped(stored, arrived, self._noise(kind))

    def _noise(self, kind: DType) -> float:
        return self._units * max(kind.roundoff, self._roundoff)


class AccumulatedNoise(LocalNoise):
    """Multiplies what arrives by noise, so that errors accumulate as they do between two free runs."""

    goes_on_with_handed = False

    def base(self, stored: Array, tensor: Any) -> Array:
        return stored if dtypes.of(stored).is_exact else self._run.adapter.view(tensor)

    def _may_sample(self, row: int) -> bool:
        return False


class Cast(Variation):
    """Casts stored values to another dtype, but not where the code of a site in ``kept`` takes them.

    ``at_once``: whether the modules are cast for the length of the run, instead of each while it is called.
    """

    def __init__(self, trace: Trace, kind: DType, kept: Iterable[str], *, at_once: bool) -> None:
        super().__init__(trace)
        self._kind, self._kept, self._at_once = kind, frozenset(kept), at_once
        self._entered: dict[int, str] = {}
        self._casts: Casts | None = None
        self._modules: dict[str, list[Module]] = {}
        self._cast_for: dict[int, list[Module]] = {}

    @contextmanager
    def casting(self, adapter: Adapter, nodes: Sequence[Node]) -> Iterator[None]:
        """A context for the run, in which these modules come to have the dtype."""
        one_by_one = None if self._at_once else adapter.casts(self._kind.name)
        with one_by_one or adapter.cast([node.module for node in nodes], self._kind.name) as casts:
            self._casts, self._modules = casts, _with_uncalled(nodes, self._trace)
            uncalled = self._modules.pop(_NO_CALL, [])
            if casts is not None:
                for module in uncalled:
                    casts.cast(module)
            yield

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        if boundary.moment == "enter":
            self._entered[boundary.frame_id] = boundary.site
            self._cast(boundary)
        elif boundary.moment in ("leave", "raise"):
            self._entered.pop(boundary.frame_id, None)
            for module in self._cast_for.pop(boundary.frame_id, ()):
                assert self._casts is not None
                self._casts.release(module)
        return super().see(boundary)

    def _cast(self, boundary: Boundary) -> None:
        """Casts what a call needs that begins."""
        if self._casts is None or "!" in boundary.site:
            return
        self._cast_for[boundary.frame_id] = self._modules.get(boundary.path, [])
        for module in self._cast_for[boundary.frame_id]:
            self._casts.cast(module)

    def varied(self, stored: Array, row: int, boundary: Boundary, own: Any) -> Any:
        kind = dtypes.of(stored)
        if kind.is_exact or kind.is_complex:
            return stored
        is_host = isinstance(own, np.ndarray)
        if self._taker(boundary) in self._kept or (is_host and self._kind.view.kind != "f"):  # NumPy itself has no bfloat16
            return stored if is_host else self._run.adapter.beside(stored, own)
        with np.errstate(over="ignore"):
            cast = stored.astype(self._kind.view)
        return AsIs(cast) if is_host else self._run.adapter.owning(cast, own)

    def _unit(self, kind: DType) -> float:
        return max(kind.roundoff, self._kind.roundoff)

    def _key(self, row: int, boundary: Boundary) -> bytes:
        return super()._key(row, boundary) + (b"kept" if self._taker(boundary) in self._kept else b"")

    def _taker(self, boundary: Boundary) -> str:
        """The site of the call whose code takes the tensors of a boundary."""
        return boundary.site if boundary.moment == "enter" else self._entered.get(boundary.parent_id, "")


class FreeCast(Cast):
    """Casts what arrives in place of what is stored, so that errors accumulate as in a free run in that dtype; ids are the stored ones."""

    def base(self, stored: Array, tensor: Any) -> Array:
        if dtypes.of(stored).is_exact:
            return stored
        with np.errstate(over="ignore"):
            arrived: Array = self._run.adapter.view(tensor).astype(stored.dtype)
        return arrived

    def _may_sample(self, row: int) -> bool:
        return False


_NO_CALL = "!"
"""Stands for the modules that are in no call: no module has such a path."""


def _with_uncalled(nodes: Sequence[Node], trace: Trace) -> dict[str, list[Module]]:
    """The modules that each call needs, by path: its own, and those below that are not called, of whose weights its code makes use.

    Modules that neither are called nor lie below one that is, are under `_NO_CALL`.
    """
    called = {module_of(site) for site in set(trace.sites) if "!" not in site and "#" not in site}
    found: dict[str, list[Module]] = {}
    for node in nodes:
        parts = node.path.split(".")
        above = (".".join(parts[:depth]) for depth in range(len(parts), -1, -1))
        found.setdefault(next((path for path in above if path in called), _NO_CALL), []).append(node.module)
    return found


def kept_or_dropped(stored: Array, arrived: Array, noise: float) -> float:
    """The relative L2 of the values that are zero or infinite in only one of two tensors, as after a filter; 0 without any.

    A ramp that is cut at zero (a rectifier) is no choice: what comes or goes there is as small as the relative ``noise`` that moved it.

    >>> kept_or_dropped(np.float32([3, 4, 0]), np.float32([3.0001, 0, 0]), 1e-4)
    0.8
    >>> kept_or_dropped(np.float32([3, 1e-4, 0]), np.float32([3.0001, 0, 0]), 1e-4)
    0.0
    >>> kept_or_dropped(np.float32([3, 2, -np.inf]), np.float32([3.0001, -np.inf, -np.inf]), 1e-4)
    inf
    """
    if stored.shape != arrived.shape or not stored.size:
        return 0.0
    if (np.isinf(stored) != np.isinf(arrived)).any():
        return math.inf
    differs = (stored == 0) != (arrived == 0)
    if not differs.any():
        return 0.0
    wide = stored.astype(dtypes.wide_type(stored))
    norm = float(np.linalg.norm(np.where(np.isfinite(wide), wide, 0)))
    sizes = np.abs(arrived[differs] - wide[differs])
    sizes = sizes[sizes > THRESHOLDS.beyond_noise * noise * norm / math.sqrt(stored.size)]
    return float(np.linalg.norm(sizes)) / norm if norm else 0.0
