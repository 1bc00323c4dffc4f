"""The noise floor: how much error floating point explains at each site, measured on the reference.

At every boundary of a forced run of the reference its stored value ``v`` is handed on as ``v * (1 + u*n + u*m)``, with ``n`` standard
normal for each element, ``m`` one for the whole tensor, and ``u`` the unit roundoff of the value's dtype. What then arrives at each
boundary is compared with what is stored: that relative L2, over ``u``, is the site's *noise amplification* (the largest of three
runs). One more run in another dtype gives the error of that dtype's own arithmetic. Both are local: nothing accumulates, which suits a
forced run. For free runs two more are made in which what arrives is handed on with noise, so that it does accumulate.

Where values are exact (ids, masks) the same columns hold the share of them that changes under eight units of noise, or in the other
dtype: such ids are *noise-sensitive*, and a port may choose otherwise there without being wrong. Real tensors may be choices as well: whole
numbers (one-hot vectors, codes, masks in a float dtype), and what a filter keeps or drops, zeros standing for the latter. Eight units of
noise count there too, their error being relative L2.

Code that does not run in the other dtype (an assertion, a cast inside, a constant) is left in the reference's own, and everything that it
calls is measured in the other one all the same. So is code outside of every observed call: that of the run itself, and of a module of
which another method runs than the observed one.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment import RecordPair
from tracediff.compare import compare
from tracediff.dtype import Array, DType
from tracediff.errors import CaptureError
from tracediff.observe import adapter_of, observe
from tracediff.observe.observer import AsIs, Boundary, Observer, Run
from tracediff.observe.provenance import digest_of
from tracediff.observe.tree import discover, path_of
from tracediff.runs.forcing import outputs_by_call, rows_by_place
from tracediff.runs.replacements import Values
from tracediff.site import join, module_of
from tracediff.trace import Record, Trace, schema

NOISE, FREE, SENSITIVE = "noise", "free", "sensitive"
COLUMNS = ("float64", "float16", "bfloat16")
HALF = ("float16", "bfloat16")
DRAWS, FREE_DRAWS = 3, 2
SENSITIVE_FACTOR = 8.0
"""Ids and other choices that the reference itself changes under so many units of noise are noise-sensitive."""
BEYOND_NOISE = 16.0
"""What comes or goes under noise and is so many times larger than it was chosen, not computed."""
ROUNDING = 1e-6
"""Statistics of one tensor, normalised once more perhaps, are as close as this."""
ILL = 8.0
"""Records whose own arithmetic errs by more units than this pass that error on in a free run."""
ROUNDS = 8
"""So often a run in another dtype is made again, each time with what failed in it left in the reference's own."""

Say = Callable[[str], None]


class Redrawing(Observer):
    """Hands a run the random draws that a trace of it recorded."""

    def __init__(self, trace: Trace) -> None:
        self._rows, self._values = rows_by_place(trace), Values(trace)

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        row = self._rows.get((boundary.site, boundary.ordinal, "draw")) if boundary.moment == "draw" else None
        drawn = None if row is None else self._values.of(row)
        return None if drawn is None else {"draw": drawn}


class _Handing(Observer):
    """Measures what arrives at each boundary against what is stored, and hands on a variation of what is stored.

    ``errors`` are relative L2, of exact values the share that differs; ``chosen`` marks real choices;
    ``raised`` says where a call failed and its outputs were handed on.
    """

    def __init__(self, trace: Trace) -> None:
        self.errors = np.full(len(trace.records), np.nan)
        self.chosen = np.zeros(len(trace.records), bool)
        self.raised: dict[str, str] = {}
        self._rows = rows_by_place(trace)
        self._calls = outputs_by_call(trace)
        self._values = Values(trace)
        self._entered: dict[int, str] = {}

    def start(self, run: Run) -> None:
        self._run = run

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        if boundary.moment == "enter":
            self._entered[boundary.frame_id] = boundary.site
        elif boundary.moment in ("leave", "raise"):
            self._entered.pop(boundary.frame_id, None)
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
            if not end.startswith("attr["):
                replaced[end] = stored if boundary.moment == "draw" else self.varied(self.base(stored, tensor), row, boundary, tensor)
        return replaced

    def base(self, stored: Array, tensor: Any) -> Array:
        """What is varied: the stored value, so that nothing accumulates."""
        return stored

    def varied(self, stored: Array, row: int, boundary: Boundary, own: Any) -> Any:
        """What is handed on in the place of a stored value; ``own`` is what arrived, None where nothing did."""
        raise NotImplementedError

    def taker(self, boundary: Boundary) -> str:
        """The site of the call whose code goes on with what is handed over at a boundary."""
        return boundary.site if boundary.moment == "enter" else self._entered.get(boundary.parent_id, "")

    def _instead(self, boundary: Boundary) -> Mapping[str, Any] | None:
        """The stored outputs of a call that fails when its values are varied, so that the run goes on."""
        self.raised.setdefault(boundary.site, str(boundary.note.get("error", "")))
        outputs = self._calls.get((boundary.site, boundary.ordinal), {})
        stored = self._values.every(outputs)
        if stored is None:
            return None
        return {end: self.varied(values, outputs[end], boundary, None) for end, values in stored.items()}

    def _measure(self, row: int, stored: Array, arrived: Array) -> None:
        self.chosen[row] |= is_whole(stored)
        if stored.shape != arrived.shape:
            self.errors[row] = math.inf
            return
        metrics = compare(stored, arrived)
        error = metrics.mismatched / max(metrics.count, 1) if metrics.exact else metrics.rel_l2
        self.errors[row] = np.fmax(self.errors[row], error)


class _Noise(_Handing):
    """Hands on stored values with relative noise of ``factor`` units of roundoff: of the value's dtype, or ``unit`` if that is more."""

    def __init__(self, trace: Trace, draw: int, factor: float = 1.0, unit: float = 0.0) -> None:
        super().__init__(trace)
        self._draw, self._factor, self._unit = draw, factor, unit

    def varied(self, stored: Array, row: int, boundary: Boundary, own: Any) -> Any:
        kind = dtypes.of(stored)
        if kind.is_exact or is_whole(stored):
            return stored
        size = self._size(kind, row)
        generator = np.random.Generator(np.random.Philox(key=(self._draw << 64) + row))
        wide = stored.astype(np.complex128 if kind.is_complex else np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            wide *= 1 + size * generator.standard_normal(stored.shape) + size * generator.standard_normal()
            return wide.astype(kind.view)

    def base(self, stored: Array, tensor: Any) -> Array:
        """The stored value; under several units of noise what arrives, where that was chosen otherwise, so that what comes of it shows."""
        is_other = not isinstance(tensor, str) and self._moved(stored, self._run.adapter.view(tensor)) > 0
        return self._run.adapter.view(tensor) if is_other else stored

    def _measure(self, row: int, stored: Array, arrived: Array) -> None:
        """Under several units of noise the error of what was kept or dropped otherwise counts, not that of the noise itself."""
        moved = self._moved(stored, arrived)
        if not moved:
            super()._measure(row, stored, arrived)
            return
        self.chosen[row], self.errors[row] = True, np.fmax(self.errors[row], moved)

    def _moved(self, stored: Array, arrived: Array) -> float:
        if self._factor == 1 or dtypes.of(stored).is_exact or is_whole(stored):
            return 0.0
        return kept_or_dropped(stored, arrived, self._factor * max(dtypes.of(stored).roundoff, self._unit))

    def _size(self, kind: DType, row: int) -> float:
        return self._factor * max(kind.roundoff, self._unit)


class _FreeNoise(_Noise):
    """As `_Noise`, but what arrives is handed on, so that errors accumulate as they do between two free runs.

    ``own`` is the error of the arithmetic that makes each record: where it is far beyond one rounding (the sine of a large phase), that is
    what is passed on.
    """

    def __init__(self, trace: Trace, draw: int, own: Array) -> None:
        super().__init__(trace, draw)
        self._own = own

    def _size(self, kind: DType, row: int) -> float:
        own = float(self._own[row])
        return own if ILL * kind.roundoff < own < math.inf else kind.roundoff

    def base(self, stored: Array, tensor: Any) -> Array:
        return stored if dtypes.of(stored).is_exact else self._run.adapter.view(tensor)


class _Cast(_Handing):
    """Hands on stored values in another dtype, but in their own to the code of the sites in ``kept``."""

    def __init__(self, trace: Trace, kind: DType, kept: Iterable[str]) -> None:
        super().__init__(trace)
        self._kind, self._kept = kind, frozenset(kept)

    def varied(self, stored: Array, row: int, boundary: Boundary, own: Any) -> Any:
        kind = dtypes.of(stored)
        if kind.is_exact or kind.is_complex:
            return stored
        is_host = isinstance(own, np.ndarray)
        if self.taker(boundary) in self._kept or (is_host and self._kind.view.kind != "f"):  # NumPy itself has no bfloat16
            return stored if is_host else self._run.adapter.from_numpy(stored, None)
        with np.errstate(over="ignore"):
            cast = stored.astype(self._kind.view)
        return AsIs(cast) if is_host else self._run.adapter.from_numpy(cast, None)


def is_made_at(site: str, end: str) -> bool:
    """Whether a record is of what a function returned, or a tap was given.

    >>> is_made_at("a!softmax", "output"), is_made_at("a#probs", "value"), is_made_at("a!softmax", "input[0]"), is_made_at("a", "output")
    (True, True, False, False)
    """
    return end.startswith("value") or ("!" in site and end.startswith("output"))


def is_alike(first: Record, second: Record) -> bool:
    """Whether two records hold one tensor, to within rounding: as far as their statistics tell."""
    sides = first.stats, second.stats
    ours, theirs = (np.array([one.l2, one.min, one.max, one.std]) for one in sides)
    is_close = np.allclose(ours, theirs, rtol=ROUNDING, atol=0.0)
    return (first.shape, first.dtype, sides[0].zero) == (second.shape, second.dtype, sides[1].zero) and bool(is_close)


def kept_or_dropped(stored: Array, arrived: Array, noise: float) -> float:
    """The relative L2 of what one of two tensors holds and the other has zeros or infinities for, as after a filter; 0 without any.

    Of a ramp that is cut at zero (a rectifier) what comes or goes is as small as the relative ``noise`` that moved it: that is no choice.

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
    wide = stored.astype(np.complex128 if stored.dtype.kind == "c" else np.float64)
    norm = float(np.linalg.norm(np.where(np.isfinite(wide), wide, 0)))
    sizes = np.abs(arrived[differs] - wide[differs])
    sizes = sizes[sizes > BEYOND_NOISE * noise * norm / math.sqrt(stored.size)]
    return float(np.linalg.norm(sizes)) / norm if norm else 0.0


def is_whole(values: Array) -> bool:
    """Whether a real tensor holds whole numbers only: ids, lengths and masks in a float dtype, which no rounding touches.

    >>> is_whole(np.float32([3, 0])), is_whole(np.float32([3, 0.5]))
    (True, False)
    """
    if values.dtype.kind == "c":
        return False
    first = values.reshape(-1)[:64].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return bool((first == np.rint(first)).all()) and bool((values == np.rint(values)).all())


# ---------------------------------------------------------------------------------------------------------------- measuring


def measure(
    models: Any,
    run: Any,
    trace: Trace,
    *,
    dtypes_to_try: Sequence[str] = ("float64",),
    known: Array | None = None,
    observed: Mapping[str, Any] | None = None,
    say: Say = lambda _: None,
) -> tuple[Array, list[str]]:
    """The floor of a recorded reference: one row of `schema.FLOOR` a record, and what could not be measured.

    ``models`` and ``run`` are those that ``trace`` recorded, ``observed`` the further arguments of `tracediff.observe.observe`; ``known``
    is a floor measured before, whose columns are kept. ``noise`` (local) and ``free`` (accumulated) are in units of the roundoff of the
    record's dtype, the columns of dtypes are relative L2; of exact values all are the share that changed; NaN where not measured.
    ``sensitive`` marks ids and other choices that noise changes. Raises CaptureError for a dtype without column.
    """
    for name in dtypes_to_try:
        if name not in COLUMNS:
            raise CaptureError(f"There is no floor in {name!r}; a floor is measured in {', '.join(COLUMNS)}.")
    measuring = _Measuring(models, run, trace, observed or {}, say)
    if known is None:
        measuring.noise()
    else:
        measuring.table = known.copy()
    for name in dtypes_to_try:
        if name not in measured(measuring.table):
            measuring.column(name)
    if known is None:
        measuring.accumulated()
    table = measuring.table
    measuring.share()
    for name in (NOISE, *HALF):
        table[SENSITIVE] |= measuring.is_chosen & (np.nan_to_num(table[name]) > 0)
    return table, measuring.missed


def measured(table: Array) -> list[str]:
    """The dtypes of which a floor holds anything."""
    return [name for name in COLUMNS if np.isfinite(table[name]).any()]


class _Measuring:
    """One measurement under way: its runs, the table so far, and what was missed."""

    def __init__(self, models: Any, run: Any, trace: Trace, observed: Mapping[str, Any], say: Say) -> None:
        self.table = np.zeros(len(trace.records), schema.FLOOR)
        for column in (NOISE, FREE, *COLUMNS):
            self.table[column] = np.nan
        self.missed: list[str] = []
        self._models, self._run, self._trace, self._observed, self._say = models, run, trace, observed, say
        self._adapter = adapter_of(models, run, impl=observed.get("impl"))
        kinds = [dtypes.named(record.dtype) for record in trace.records]
        self.is_exact = np.array([kind.is_exact for kind in kinds], bool)
        self.is_chosen = self.is_exact.copy()
        self._roundoff = np.array([kind.roundoff for kind in kinds])

    def noise(self) -> None:
        """The column of local noise; of ids what eight units of it change."""
        for draw in range(DRAWS):
            self._say(f"measuring the noise floor, run {draw + 1} of {DRAWS}")
            self._note(NOISE, self._in_units(self._noisy(_Noise(self._trace, draw)).errors))
        self._note(NOISE, self._in_units(self._chosen(self._noisy(_Noise(self._trace, DRAWS, SENSITIVE_FACTOR)))))

    def accumulated(self) -> None:
        """The column of accumulated noise; after that of float64, which tells what each record's own arithmetic adds."""
        for draw in range(FREE_DRAWS):
            self._say(f"measuring how noise accumulates, run {draw + 1} of {FREE_DRAWS}")
            self._note(FREE, self._in_units(self._noisy(_FreeNoise(self._trace, DRAWS + 1 + draw, self.table["float64"])).errors))

    def column(self, name: str) -> None:
        """The error of a run in that dtype; of ids also what noise of eight of its units changes."""
        self._say(f"measuring the noise floor in {name}")
        self._note(name, self._cast(name))
        if name in HALF and self.is_chosen.any():
            noise = _Noise(self._trace, DRAWS, SENSITIVE_FACTOR, dtypes.named(name).roundoff)
            self._note(name, self._chosen(self._noisy(noise)))

    def share(self) -> None:
        """Gives what a call takes from a function, or sees at a tap, and sees once more the floor of where it was made.

        A port may come to the second by another way than by the first, and errs there by all of what leads up to both.
        """
        index, records = self._trace.index, self._trace.records
        latest: dict[int, int] = {}
        for row, parent in enumerate(index["parent"].tolist()):
            record = records[row]
            if self.is_exact[row] or not is_made_at(record.site, record.end):
                continue
            before = latest.get(parent)
            if before is not None and record.end.startswith("value") and is_alike(records[before], record):
                for column in (NOISE, FREE, *COLUMNS):
                    self.table[column][row] = np.fmax(self.table[column][row], self.table[column][before])
                self.is_chosen[row] |= self.is_chosen[before]
            latest[parent] = row

    def _note(self, column: str, errors: Array) -> None:
        self.table[column] = np.fmax(self.table[column], errors)

    def _in_units(self, errors: Array) -> Array:
        """Errors in units of roundoff, of exact values the share that changed."""
        units: Array = np.divide(errors, self._roundoff, where=~self.is_exact, out=errors.copy())
        return units

    def _chosen(self, noise: _Noise) -> Array:
        """The errors of ids and of other choices."""
        return np.where(self.is_chosen, noise.errors, np.nan)

    def _noisy(self, noise: _Noise) -> _Noise:
        """A run with noise; where it fails although what failed was bridged, what it measured until there counts."""
        try:
            self._again(noise)
        except Exception as error:  # noqa: BLE001 - whatever a model raises on values that are slightly off
            self._miss(f"noise floor: not measured after {_last(noise.raised)}, which fails under noise ({type(error).__name__}: {error})")
        self.is_chosen |= noise.chosen
        return noise

    def _cast(self, name: str) -> Array:
        """The errors of a run in a dtype: made again and again, what fails in it being left in the reference's own.

        What a run measured until something failed in it counts besides what the last one measured.
        """
        kept: dict[str, str] = {}
        errors = np.full(len(self.table), np.nan)
        for _ in range(ROUNDS):
            cast = _Cast(self._trace, dtypes.named(name), kept)
            failed: Exception | None = None
            try:
                self._in_dtype(cast, name, kept)
            except CaptureError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a model raises in another dtype
                failed = error
            self.is_chosen |= cast.chosen
            new = {site: why for site, why in cast.raised.items() if site not in kept}
            if failed is not None and not new:
                new = self._outside(failed, kept)
            if not new:
                break
            errors = np.fmax(errors, np.where(np.isfinite(cast.errors), cast.errors, np.nan))
            kept |= new
        for site, why in kept.items():
            if site in cast.raised:
                self._miss(f"floor in {name}: not measured at {site or 'the root'} ({why}), which does not run in it")
            else:
                self._miss(f"floor in {name}: the code of {site or 'the root'} itself ran in its own dtype, since in this one: {why}")
        if failed is not None:
            self._miss(f"floor in {name}: not measured after {_last(cast.raised)} ({type(failed).__name__}: {failed})")
        worst: Array = np.fmax(errors, cast.errors)
        return worst

    def _outside(self, failed: Exception, kept: Mapping[str, str]) -> dict[str, str]:
        """Whose code failed outside of every observed call, and why: the innermost module that the traceback comes by, or the run's own.

        Nothing where both are in ``kept`` already.
        """
        paths = {id(node.module): node.path for node in discover(self._models, self._adapter)}
        frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(failed.__traceback__)]
        inside = [paths[id(module)] for module in frames if id(module) in paths]
        why = f"{type(failed).__name__}: {failed}"
        return next(({path: why} for path in (*inside[-1:], "") if path not in kept), {})

    def _in_dtype(self, cast: _Cast, name: str, kept: Iterable[str]) -> None:
        """One run with the models in a dtype, which are afterwards bit for bit what they were."""
        nodes = [node for node in discover(self._models, self._adapter) if node.is_model]
        own = {module_of(site) for site in kept}
        before = self._digests(nodes)
        try:
            with self._adapter.cast([node.module for node in nodes if node.path not in own], name):
                self._again(cast)
        finally:
            after = self._digests(nodes)
        changed = [key for key, code in before.items() if after.get(key) != code]
        if changed:
            raise CaptureError(
                f"After a run in {name} {changed[0]!r} is not what it was ({len(changed)} tensors differ); load the model anew."
            )

    def _digests(self, nodes: Sequence[Any]) -> dict[str, bytes]:
        """The digest of every parameter and buffer."""
        adapter, found = self._adapter, {}
        for node in nodes:
            for keys, tensor, _ in adapter.parameters(node.module):
                if not adapter.unreadable([tensor]):
                    found[join(node.path, path_of(keys))] = digest_of(adapter.view(tensor)) + str(tensor.dtype).encode()
        return found

    def _again(self, observer: Observer) -> None:
        """Runs once more with the generators put back afterwards."""
        state = self._adapter.rng_state()
        try:
            observe(self._models, self._run, [observer], **self._observed)
        finally:
            self._adapter.set_rng_state(state)

    def _miss(self, text: str) -> None:
        if text not in self.missed:
            self.missed.append(text)


def _last(raised: Mapping[str, str]) -> str:
    """The call that failed last, as it is told."""
    return (list(raised)[-1] or "the root") if raised else "the first call"


# -------------------------------------------------------------------------------------------------------------- what it says


def floors(reference: Trace, port: Trace, records: Iterable[RecordPair], *, is_forced: bool | None = None) -> dict[int, float]:
    """What noise explains at each of the reference's records: relative L2 by row, where it was measured.

    ``is_forced`` is by default what the port's trace says. For a forced run it is the amplification times the unit roundoff of the
    coarser dtype, or the error of a run in the port's dtype (float64 for a float32 port) if that is larger; for a free run the accumulated
    amplification if that is larger still. Of exact values it is the share that noise changes, where it changes any. A record without
    partner is taken to run in the dtype of the paired one before it.
    """
    if reference.floor is None:
        return {}
    is_forced = port.meta.get("mode_run") == "forced" if is_forced is None else is_forced
    run_in = port_dtypes(port)
    stages = port.index["stage"].tolist()
    names = {row: run_in[port.strings[stages[pair.port[0]]]] for pair in records for row in pair.reference}
    name = next(iter(names.values()), "float32")
    kinds = [dtypes.BY_CODE[code] for code in reference.index["dtype"].tolist()]
    columns = {column: reference.floor[column].tolist() for column in ("float64", *HALF)}
    noise = reference.floor[NOISE]
    units = (noise if is_forced else np.fmax(noise, reference.floor[FREE])).tolist()
    found: dict[int, float] = {}
    for row, kind in enumerate(kinds):
        name = names.get(row, name)
        column = columns[name if name in HALF else "float64"][row]
        if kind.is_exact:
            share = _larger(float(noise[row]), column if name in HALF else 0.0)
            if share > 0:
                found[row] = share
            continue
        worst = _larger(units[row] * _unit(kind, name), column)
        if math.isfinite(worst):
            found[row] = worst
    return found


def _larger(first: float, second: float) -> float:
    """The larger of two numbers; where one is NaN, the other."""
    return second if math.isnan(first) or second > first else first


def _unit(kind: DType, run_in: str) -> float:
    other = dtypes.BY_NAME[run_in].roundoff if run_in in dtypes.BY_NAME else 0.0
    return max(kind.roundoff, other)


def port_dtypes(port: Trace) -> dict[str, str]:
    """In which dtype each stage of a port runs: the coarsest of its records and of the parameters of the modules called in it."""
    names: dict[str, set[str]] = {}
    paths: dict[str, set[str]] = {}
    seen = np.stack([port.index[column] for column in ("stage", "dtype", "site")], 1)
    for stage_text, code, site in np.unique(seen, axis=0).tolist():
        names.setdefault(port.strings[stage_text], set()).add(dtypes.BY_CODE[code].name)
        paths.setdefault(port.strings[stage_text], set()).add(module_of(port.strings[site]))
    for stage, called in paths.items():
        names[stage] |= {param.dtype for param in port.params.values() if param.path in called}
    return {stage: max(found, key=lambda name: dtypes.named(name).roundoff) for stage, found in names.items()}


def notes(reference: Trace, port: Trace) -> list[str]:
    """What is to be said of judging a port in half precision by this reference: what its floor lacks, what a free run hides."""
    halves = [name for name in HALF if name in port_dtypes(port).values()]
    told = []
    if halves and port.meta.get("mode_run") != "forced":
        told.append(
            f"This is a free run in {halves[0]}: errors are judged by what rounding amounts to over the whole run, which hides small "
            "faults; a forced run (--feed) shows them."
        )
    known = [] if reference.floor is None else measured(reference.floor)
    lacking = [name for name in halves if name not in known]
    by = "by amplified rounding alone" if known else "without a noise floor"
    return told + [
        f"The reference's noise floor in {name} was not measured, so the port is judged {by}, which may raise false alarms or hide "
        f"faults. Measure it with: tracediff calibrate {reference.path} --dtype {name}"
        for name in lacking
    ]
