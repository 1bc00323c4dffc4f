"""The noise floor: how much error floating point explains at each site, measured on the reference.

*Local noise.* At every boundary of a forced run of the reference, the run continues with its stored value ``v`` as
``v * (1 + u*n + u*m)``: ``n`` is standard normal for each element, ``m`` one for the whole tensor (`tracediff.runs.noise`), ``u`` the unit
roundoff of the dtype. What arrives at each boundary is compared with what is stored. The relative L2, over ``u``, is the site's
*noise amplification*. One more run in another dtype gives the error of that dtype's own arithmetic. Both are local, nothing accumulates,
which suits a forced run.

*Every operation.* In the run in another dtype each elementary operation's result is off by a rounding as well
(`Adapter.rounding`). So the floor sees what no boundary varies: whole numbers used as numbers (the phase of a large
time), a solver's coefficients, sums taken one after the other, tables that the run itself computes, and code that keeps its dtype.

*Accumulated noise.* For free runs one more is made which continues with what arrives, and noise; there too every operation is off. In
half precision that is a run in the dtype itself: what is stored in few digits errs by less than its roundoff, in the same way for all.

*Choices.* Where values are exact (ids, masks), the same columns hold the share of them that changes under eight units of noise, one way or
the opposite, or in the other dtype. Such ids are *noise-sensitive*: a port may choose otherwise without being wrong. Real tensors may be
choices too: whole numbers (one-hot vectors, codes, masks in a float dtype), and what a filter keeps or drops, where zeros stand for what
it drops. Eight units of noise count there too, and the error is relative L2. A reference of which every operation is known, and none makes
exact values of real ones or jumps, chooses nothing, and needs no such runs.

*Weights* are in the other dtype while their module is called, so that those of one module are held twice. Where code fails so, since it
takes a weight of another module, all are, at once.

*Code that does not run in the other dtype* (an assertion, a cast inside, a constant) keeps the reference's own, and everything that the
code calls is measured in the other dtype all the same. So does code outside of every observed call: that of the run itself, and of a
module of which another method runs than the observed one.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import Array
from tracediff.errors import CaptureError
from tracediff.interrupts import held
from tracediff.observe import adapter_of, observe
from tracediff.observe.observer import Observer
from tracediff.observe.patching.places import quiet
from tracediff.observe.provenance import digest_of
from tracediff.observe.tree import discover, path_of
from tracediff.observe.world import State, World
from tracediff.runs.floor_limits import DTYPES, FREE, HALF, NOISE, SENSITIVE, measured_dtypes
from tracediff.runs.leaves import LeafWatch
from tracediff.runs.thresholds import THRESHOLDS
from tracediff.runs.variations import AccumulatedNoise, Cast, FreeCast, LocalNoise, Variation
from tracediff.site import join, module_of
from tracediff.trace import Record, Trace, schema

BY_ROWS, BY_RUN = "rows", "run"
METHODS = {
    BY_ROWS: "the calls of a stateless leaf, on some of the rows of their inputs; what is not an output of such a call, by a run",
    BY_RUN: "a run in which it is called on all that it was called on",
}
"""How a site's floor is measured."""
METHODS_KEY = "floor_methods"
"""Where meta keeps by which method each site was measured."""

_LOCAL, _CHOICES, _ACCUMULATED = range(3)
"""The draws of noise, one for each kind of run."""

Say = Callable[[str], None]


def measure(
    models: Any,
    run: Any,
    trace: Trace,
    *,
    dtypes_to_try: Sequence[str] = ("float64",),
    known: Array | None = None,
    observed: Mapping[str, Any] | None = None,
    begin: State | None = None,
    say: Say = lambda _: None,
) -> Measured:
    """The floor of a recorded reference.

    ``models`` and ``run`` are those that ``trace`` recorded, ``observed`` the further arguments of `tracediff.observe.observe`. ``known``
    is a floor that was measured before, whose columns are kept. The columns of local and of accumulated noise are in units of the
    roundoff of the record's dtype, those of dtypes are relative L2, and of exact values all are the share that changed; NaN where not
    measured. ``sensitive`` marks ids and other choices that noise changes. Raises CaptureError for a dtype without column.
    ``begin``: the state in which each run begins, the present one by default.
    """
    for name in dtypes_to_try:
        if name not in DTYPES:
            raise CaptureError(f"There is no floor in {name!r}; a floor is measured in {', '.join(DTYPES)}.")
    floor = _Floor(_Reruns(models, run, observed or {}, begin), trace, say, known)
    if known is None:
        floor.measure_accumulated_noise()
        floor.measure_noise()
    for name in dtypes_to_try:
        if name not in measured_dtypes(floor.table):
            floor.measure_dtype(name)
    return Measured(floor.finished(), floor.free, floor.missed, floor.methods())


class Measured(NamedTuple):
    """A floor: one row of `schema.FLOOR` a record, what could not be measured, and by which methods the rest was (`_Floor.methods`).

    ``free``: one row of `schema.FLOOR_FREE` a record; None where no half precision was asked for.
    """

    table: Array
    free: Array | None
    missed: list[str]
    methods: list[dict[str, Any]]


class _Reruns:
    """Runs the reference again, with an observer that varies its values; what a run changes is put back after each.

    ``chose``: whether the last run to its end may have made exact values of real ones, or jumped. Only a rounded run can tell.
    """

    def __init__(self, models: Any, run: Any, observed: Mapping[str, Any], begin: State | None) -> None:
        self._models, self._run, self._observed = models, run, observed
        self._adapter = adapter_of(models, run, impl=observed.get("impl"))
        self.chose = True
        self._world = World(models, run, self._adapter)
        self._begin = begin or self._world.state()

    def again(self, observer: Variation, *beside: Observer, rounded: bool = False) -> None:
        """One run, ``rounded`` with every operation's result off by a rounding; what the model raises is raised."""
        with held():
            try:
                with self._adapter.rounding(THRESHOLDS.operation_units, lambda: bool(quiet.now)) if rounded else nullcontext() as rounding:
                    observe(self._models, self._run, [*beside, observer], **self._observed)
            finally:
                self._world.back_to(self._begin)
        self.chose = rounding is None or rounding.chooses or observer.is_seen_elsewhere or bool(observer.raised)

    def in_dtype(self, cast: Cast, name: str, kept: Iterable[str]) -> Exception | None:
        """One run with the modules in a dtype, but for those of the sites in ``kept``; returns what the models raise.

        Raises CaptureError where a run to its end leaves the models other than bit for bit what they were.
        """
        nodes = [node for node in discover(self._models, self._adapter) if node.is_model]
        before = self._digests(nodes)
        try:
            nodes_cast = [node for node in nodes if node.path not in {module_of(site) for site in kept}]
            with held(), cast.casting(self._adapter, nodes_cast):
                self.again(cast, rounded=True)
        except CaptureError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises in another dtype
            return error
        after = self._digests(nodes)
        changed = [key for key, code in before.items() if after.get(key) != code]
        if changed:
            raise CaptureError(
                f"After a run in {name} {changed[0]!r} is not what it was ({len(changed)} tensors differ); load the model anew."
            )
        return None

    def failed_code(self, failed: Exception, kept: Mapping[str, str]) -> dict[str, str]:
        """Whose code failed outside of every observed call, and why: the innermost module on the traceback, or the run's own code ("").

        Empty where both are in ``kept`` already.
        """
        paths = {id(node.module): node.path for node in discover(self._models, self._adapter)}
        owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(failed.__traceback__)]
        inside = [paths[id(owner)] for owner in owners if id(owner) in paths]
        why = f"{type(failed).__name__}: {failed}"
        return next(({path: why} for path in (*inside[-1:], "") if path not in kept), {})

    def _digests(self, nodes: Sequence[Any]) -> dict[str, bytes]:
        """The digest of every parameter and buffer."""
        adapter, digests = self._adapter, {}
        for node in nodes:
            for keys, tensor, _ in adapter.parameters(node.module):
                if not adapter.unreadable([tensor]):
                    digests[join(node.path, path_of(keys))] = digest_of(adapter.view(tensor)) + str(tensor.dtype).encode()
        return digests


class _Floor:
    """A floor under way: ``table`` so far, and ``missed``, what could not be measured. All arrays have one entry a record."""

    def __init__(self, runs: _Reruns, trace: Trace, say: Say, known: Array | None) -> None:
        self.missed: list[str] = []
        self.table = empty_floor(len(trace.records)) if known is None else known.copy()
        self.free = None if trace.floor_free is None else trace.floor_free.copy()
        self._runs, self._trace, self._say = runs, trace, say
        kinds = [dtypes.named(record.dtype) for record in trace.records]
        self._is_exact = np.array([kind.is_exact for kind in kinds], bool)
        self._is_choice = self._is_exact.copy()
        self._chooses = True
        said = [] if known is None else trace.meta.get(METHODS_KEY) or []
        self._known = {site: row for row in said for site in row["sites"]}
        self._leaves = frozenset(site for site, row in self._known.items() if BY_ROWS in row.values())
        self._by_rows: dict[str, Array] = {}
        self._roundoff = np.array([kind.roundoff for kind in kinds])

    def measure_noise(self) -> None:
        """The column of local noise; of choices what several units of noise change, where the reference chooses anything."""
        self._say("measuring the noise floor")
        noise = self._noise_by_rows() or self._run_with(LocalNoise(self._trace, _LOCAL))
        self._enter(NOISE, self._in_units(noise.errors))
        self._by_rows[NOISE] = noise.sampled
        if self._chooses:
            self._enter(NOISE, self._in_units(self._choices_under_noise()))

    def measure_dtype(self, name: str) -> None:
        """The column of a dtype: the error of a run in it; of choices also what noise of several of its units changes."""
        self._say(f"measuring the noise floor in {name}")
        self._enter(name, self._errors_in(name))
        if name in HALF:
            self._say(f"measuring how {name} accumulates")
            self.free = np.full(len(self.table), np.nan, schema.FLOOR_FREE) if self.free is None else self.free
            self.free[name] = self._errors_in(name, FreeCast)
        if name in HALF and self._is_choice.any() and self._chooses:
            self._enter(name, self._choices_under_noise(dtypes.named(name).roundoff))

    def measure_accumulated_noise(self) -> None:
        """The column of accumulated noise. It is also learnt whether the reference chooses anything."""
        self._say("measuring how noise accumulates")
        watch = LeafWatch()
        self._enter(FREE, self._in_units(self._run_with(AccumulatedNoise(self._trace, _ACCUMULATED), watch, rounded=True).errors))
        self._leaves = watch.sites

    def finished(self) -> Array:
        """The table, in which a repeated value has the floor of where it was made too, and noise-sensitive choices are marked.

        A port may make the repeated value in another way than the first, and then errs by all that leads up to both.
        """
        for row, before in _repeated_values(self._trace, self._is_exact):
            for table in (self.table,) if self.free is None else (self.table, self.free):
                for column in set(table.dtype.names or ()) - {SENSITIVE}:
                    table[column][row] = np.fmax(table[column][row], table[column][before])
            self._is_choice[row] |= self._is_choice[before]
        for name in (NOISE, *HALF):
            self.table[SENSITIVE] |= self._is_choice & (np.nan_to_num(self.table[name]) > 0)
        return self.table

    def methods(self) -> list[dict[str, Any]]:
        """By which method each site was measured, as plain data: each row has one for each column, and the sites of which it is true.

        The methods are those of `METHODS`, None where nothing was measured.
        """
        rows: dict[str, list[int]] = {}
        for record in self._trace.records:
            rows.setdefault(record.site, []).append(record.row)
        groups: dict[tuple[str | None, ...], list[str]] = {}
        for site, own in rows.items():
            by = tuple(self._method(column, own, self._known.get(site, {})) for column in (NOISE, FREE, *DTYPES))
            groups.setdefault(by, []).append(site)
        return [{**dict(zip((NOISE, FREE, *DTYPES), by, strict=True)), "sites": sites} for by, sites in groups.items()]

    def _method(self, column: str, rows: Sequence[int], known: Mapping[str, Any]) -> str | None:
        """The method by which a column was measured at some records of a site; ``known`` says how before, where it was."""
        before = known.get(column) == BY_ROWS
        if bool(self._by_rows[column][rows].any()) if column in self._by_rows else before:
            return BY_ROWS
        return BY_RUN if np.isfinite(self.table[column][rows]).any() else None

    def _enter(self, column: str, errors: Array) -> None:
        """Enters errors into a column; the larger one stays."""
        self.table[column] = np.fmax(self.table[column], errors)

    def _in_units(self, errors: Array) -> Array:
        """Errors in units of roundoff; of exact values the share that changed."""
        units: Array = np.divide(errors, self._roundoff, where=~self._is_exact, out=errors.copy())
        return units

    def _choices_under_noise(self, roundoff: float = 0.0) -> Array:
        """The errors of choices under several units of noise, the larger of two runs in which values move in opposite ways; else NaN.

        Two scores that are as good as equal change places in one of the two.
        """
        say = f" in units of {roundoff:g}" if roundoff else ""
        errors = np.full(len(self.table), np.nan)
        for is_opposite in (False, True):
            self._say(f"measuring what noise{say} chooses, run {1 + is_opposite} of 2")
            noise = LocalNoise(self._trace, _CHOICES, THRESHOLDS.sensitive_units, roundoff, is_opposite=is_opposite)
            errors = np.fmax(errors, self._run_with(noise).errors)
        return np.where(self._is_choice, errors, np.nan)

    def _run_with(self, noise: LocalNoise, *beside: Observer, rounded: bool = False) -> LocalNoise:
        """A run with noise, as `_Reruns.again`.

        Where the run ends early although failed calls were bridged, what was measured until then counts.
        """
        try:
            self._runs.again(noise, *beside, rounded=rounded)
        except Exception as error:  # noqa: BLE001 - whatever a model raises on values that are slightly off
            last = _last_call(noise.raised)
            self._miss(f"noise floor: not measured after {last}, which fails under noise ({type(error).__name__}: {error})")
        else:
            self._chooses &= self._runs.chose
        self._is_choice |= noise.chosen
        return noise

    def _noise_by_rows(self) -> LocalNoise | None:
        """Local noise with stateless leaves called on some of their rows; None where there are none, or a call failed, perhaps for that."""
        if not self._leaves:
            return None
        noise = LocalNoise(self._trace, _LOCAL)
        noise.leaves = self._leaves
        try:
            self._runs.again(noise)
            has_failed = bool(noise.raised)
        except Exception:  # noqa: BLE001 - whatever a model raises
            has_failed = True
        if has_failed:
            self._leaves = frozenset()
            return None
        self._is_choice |= noise.chosen
        return noise

    def _errors_in(self, name: str, kind: type[Cast] = Cast) -> Array:
        """The errors of a run in a dtype, repeated with what fails in that dtype left in the reference's own.

        What an earlier run measured until something failed counts besides what the last run measured.
        """
        kept: dict[str, str] = {}
        at_once, leaves = False, self._leaves
        errors = np.full(len(self.table), np.nan)
        for _ in range(1 + THRESHOLDS.cast_rounds):
            cast = kind(self._trace, dtypes.named(name), kept, at_once=at_once)
            cast.leaves = leaves
            failed = self._runs.in_dtype(cast, name, kept)
            self._is_choice |= cast.chosen
            new = {site: why for site, why in cast.raised.items() if site not in kept}
            if failed is not None and not new:
                new = self._runs.failed_code(failed, kept)
            if not new:
                break
            if not at_once:  # perhaps it was handed a weight of a module that is not called, or some rows only
                at_once, leaves = True, frozenset()
                continue
            leaves = self._leaves
            errors = np.fmax(errors, np.where(np.isfinite(cast.errors), cast.errors, np.nan))
            kept |= new
        if kind is Cast:
            self._by_rows[name] = cast.sampled
        self._miss_in(name, kept, cast.raised, failed)
        self._chooses &= failed is not None or self._runs.chose
        worst: Array = np.fmax(errors, cast.errors)
        return worst

    def _miss_in(self, name: str, kept: Mapping[str, str], raised: Mapping[str, str], failed: Exception | None) -> None:
        """Notes what the last run in a dtype left in the reference's own, and where the run ended early."""
        for site, why in kept.items():
            if site in raised:
                self._miss(f"floor in {name}: not measured at {site or 'the root'} ({why}), which does not run in it")
            else:
                self._miss(f"floor in {name}: the code of {site or 'the root'} itself ran in its own dtype, since in this one: {why}")
        if failed is not None:
            self._miss(f"floor in {name}: not measured after {_last_call(raised)} ({type(failed).__name__}: {failed})")

    def _miss(self, text: str) -> None:
        if text not in self.missed:
            self.missed.append(text)


def empty_floor(records: int) -> Array:
    """A floor of so many records of which nothing is measured."""
    table = np.zeros(records, schema.FLOOR)
    for column in (NOISE, FREE, *DTYPES):
        table[column] = np.nan
    return table


def _repeated_values(trace: Trace, is_exact: Array) -> Iterator[tuple[int, int]]:
    """The rows of tensors that a call sees at a tap just after it made them in a function or saw them at a tap, each with that row."""
    records = trace.records
    latest: dict[int, int] = {}
    for row, parent in enumerate(trace.index["parent"].tolist()):
        record = records[row]
        if is_exact[row] or not is_made_at(record.site, record.end):
            continue
        before = latest.get(parent)
        if before is not None and record.end.startswith("value") and is_alike(records[before], record):
            yield row, before
        latest[parent] = row


def _last_call(raised: Mapping[str, str]) -> str:
    """The site of the call that failed last, in words."""
    return (list(raised)[-1] or "the root") if raised else "the first call"


def is_made_at(site: str, end: str) -> bool:
    """Whether a record is of what a function returned, or of what a tap was given.

    >>> is_made_at("a!softmax", "output"), is_made_at("a#probs", "value"), is_made_at("a!softmax", "input[0]"), is_made_at("a", "output")
    (True, True, False, False)
    """
    return end.startswith("value") or ("!" in site and end.startswith("output"))


def is_alike(first: Record, second: Record) -> bool:
    """Whether two records hold one tensor to within rounding, as far as their statistics tell."""
    sides = first.stats, second.stats
    ours, theirs = (np.array([stats.l2, stats.min, stats.max, stats.std]) for stats in sides)
    is_close = np.allclose(ours, theirs, rtol=THRESHOLDS.same_statistics, atol=0.0)
    return (first.shape, first.dtype, sides[0].zero) == (second.shape, second.dtype, sides[1].zero) and bool(is_close)
