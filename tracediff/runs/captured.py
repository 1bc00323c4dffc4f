"""One capture with all that belongs to it: fed by a reference where one is given, run once more, its noise floor measured.

It lies above `tracediff.observe` because feeding a port needs an alignment and a floor needs comparisons.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracediff.errors import CaptureError, TracediffError
from tracediff.interrupts import allowed, held
from tracediff.observe import adapter_of, observe
from tracediff.observe.blind_spots import blind_spots_meta
from tracediff.observe.observer import Observer, Run
from tracediff.observe.options import DEFAULTS, CaptureOptions, Progress, silent
from tracediff.observe.products import pinned
from tracediff.observe.recording import record_run, run_again
from tracediff.observe.repeat import Place, repeats_meta
from tracediff.observe.world import State, World
from tracediff.runs.operations import operations_meta, writing
from tracediff.runs.stubs import feeding
from tracediff.trace import Trace, open_trace, schema
from tracediff.trace.amend import amend
from tracediff.trace.budget import KEY as BUDGET
from tracediff.trace.budget import within
from tracediff.trace.container import new_identity
from tracediff.trace.products import TF32
from tracediff.trace.writer import check_trace_output

if TYPE_CHECKING:
    from tracediff.alignment import Alignment
    from tracediff.runs.forcing import Forcing

ROUNDS = 8
"""How often a port that raises is run to find out what it would do next, each time one call further."""

AGAIN = {"reset": "what differs is let through, all else is fed", "disturbed": "with random errors at these places"}
"""The runs that tell whether what a forced run flagged matters, and how each is made."""


def captured(
    models: Any,
    run: Any,
    to: str | os.PathLike[str],
    *,
    options: CaptureOptions = DEFAULTS,
    feed: str | os.PathLike[str] | Trace | None = None,
    mapping: Mapping[str, Any] | None = None,
    weights_from: Any = None,
    observers: Sequence[Observer] = (),
    meta: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Path:
    """Records a run to a new trace and returns its path.

    With ``feed``, the trace of a reference, the run is *forced*: it goes on at each paired boundary with the reference's tensor.
    ``mapping`` states pairs of sites, as in `tracediff.alignment.mapping`. With ``weights_from``, the weights of a port, the models run
    with these as they are stored (`tracediff.runs.port_weights`). A forced run does not repeat. It is made twice
    or more, fed or disturbed; the last time is no plain one, and nothing is promised of what it leaves behind. With ``options.floor`` the
    port's own noise floor is measured on the free run that it begins with.
    Otherwise the run is *free*. With ``options.floor`` it is run three times more to measure its noise floor, twice more where it may
    choose ids or other values, and once to three times for each further dtype. With ``options.repeat`` it is run once more, last and
    unperturbed, to see whether it repeats; that run, or else one of its own, also writes down the operations of a run with a floor. The
    rest is as in
    `tracediff.observe.recording.record_run`.
    """
    meta = {**(meta or {}), "observed": {"methods": list(options.methods), "functions": list(options.functions)}}
    adapter = adapter_of(models, run, impl=options.impl)
    is_precise = options.precise
    if is_precise is None:
        is_precise = feed is not None or _has_floor(options, adapter.name, meta)
    meta |= {"precise": is_precise, **({"own_floor": True} if options.floor else {})}
    asked = _Capture(models, run, Path(to), options, tuple(observers), meta, force, progress)
    check_trace_output(asked.to, force=force, sources=[] if feed is None else [feed.path if isinstance(feed, Trace) else feed])
    with pinned(adapter, wanted=is_precise), within(asked.to, asked.identity, options.budget):
        if weights_from is not None:
            return _with_port_weights(asked, weights_from, is_forced=feed is not None)
        return _free(asked) if feed is None else _forced(asked, feed, mapping)


def _with_port_weights(asked: _Capture, source: Any, *, is_forced: bool) -> Path:
    """A free run with a port's weights."""
    from tracediff.runs.port_weights import port_weights

    if is_forced:
        raise CaptureError("A run that is fed is a port's, which has its own weights; weights_from is for the capture of its reference.")
    asked.progress("pairing the port's weights with the reference's")
    with port_weights(asked.models, asked.run, source, impl=asked.options.impl) as told:
        return _free(replace(asked, meta={**asked.meta, **told}))


def _has_floor(options: CaptureOptions, framework: str, meta: Mapping[str, Any]) -> bool:
    """Whether the noise floor of a free run is measured."""
    return framework == "torch" and not meta.get("random") if options.floor is None else options.floor


@dataclass(frozen=True, slots=True)
class _Capture:
    """A capture as it was asked for."""

    models: Any
    run: Any
    to: Path
    options: CaptureOptions
    observers: tuple[Observer, ...]
    meta: Mapping[str, Any]
    force: bool
    progress: Progress
    identity: bytes = field(default_factory=new_identity)

    def aside(self, to: Path, **changes: Any) -> _Capture:
        """The same run with all its values into another file, which it may replace."""
        return replace(self, to=to, options=replace(self.options, save="full"), force=True, identity=new_identity(), **changes)

    def record(self, *, is_noted: bool = True) -> Path:
        """Records one run, without feeding it or measuring its floor."""
        return record_run(
            self.models,
            self.run,
            self.to,
            options=self.options,
            observers=self.observers,
            meta=self.meta,
            force=self.force,
            identity=self.identity,
            progress=self.progress,
            is_noted=is_noted,
        )

    def amend(self, **found: Any) -> None:
        """Adds to the recorded trace, if it is still there."""
        amend(self.to, identity=self.identity, **found)

    def is_recorded(self) -> bool:
        """Whether the trace at the output is this capture's."""
        try:
            with open_trace(self.to) as trace:
                return trace.identity[0] == self.identity
        except TracediffError:
            return False


def _free(asked: _Capture) -> Path:
    """A recorded run, to whose trace is added once, at the end, what is found after it."""
    adapter = adapter_of(asked.models, asked.run, impl=asked.options.impl)
    world = World(asked.models, asked.run, adapter)
    before = world.state()
    path = replace(asked, options=replace(asked.options, repeat=False)).record(is_noted=False)
    noted = blind_spots_meta(path)
    found: dict[str, Any] = {}
    try:
        failed = _found_after(asked, path, world, before, found)
    finally:
        asked.amend(**{**found, "meta": {**noted, **found.get("meta", {})}})
    if failed is not None:
        raise failed
    return path


def _found_after(asked: _Capture, path: Path, world: World, before: State, found: dict[str, Any]) -> CaptureError | None:
    """The runs that measure the noise floor of a recorded one; and last, unperturbed, the one that tells whether it repeats.

    Puts what `amend` is to add into ``found``, and returns what went wrong with the floor.
    """
    options, failed = asked.options, None
    has_floor = _has_floor(options, adapter_of(asked.models, asked.run, impl=options.impl).name, asked.meta)
    if why := world.once(before):
        found |= _missed(path, f"repeat and noise floor: {why}")
        return None
    measured: dict[str, Any] = {}
    if has_floor and options.save == "full":
        with held(), world.as_it_is(before):
            world.back_to(before)
            try:
                with allowed():
                    floor = partial(_floor_of, dtypes=options.floor_dtypes, options=options, progress=asked.progress, begin=before)
                    measured = floor(asked.models, asked.run, path)
            except CaptureError as error:
                failed = error
            world.back_to(before)
            if not options.repeat:
                measured["meta"] = {**measured.get("meta", {}), **operations_meta(asked.models, asked.run, options.observing())}
    if options.repeat:
        first, operations = _repeated(asked, path, before, with_operations=has_floor and options.save == "full")
        if operations:
            measured["meta"] = {**measured.get("meta", {}), **operations}
        if first is not None and (measured or failed):
            measured, failed = _missed(path, "noise floor: not measured, since the run does not repeat itself"), None
        measured["meta"] = {**measured.get("meta", {}), **repeats_meta(first)}
    found |= measured
    return failed


def _repeated(asked: _Capture, path: Path, before: State, *, with_operations: bool) -> tuple[Place | None, dict[str, Any]]:
    """Where a last, unperturbed run first differs from the recorded one, and what meta keeps of its operations.

    That run also writes down what it computes, where operations are asked for. Only if it then differs, or raises, another run tells by
    itself whether the recorded one repeats: code may know that it is looked at.
    """
    again = partial(run_again, asked.models, asked.run, path, before, options=asked.options, observers=asked.observers)
    written = writing(asked.models, asked.run, asked.options.impl) if with_operations else None
    if written is None:
        return again(progress=asked.progress), {}
    try:
        first = again(progress=asked.progress, around=written, beside=[written.observer])
    except TracediffError:
        raise
    except Exception:  # noqa: BLE001 - whatever a run raises that it does not raise by itself
        return again(progress=asked.progress), {}
    return (None if first is None else again(progress=asked.progress)), written.meta()


def _missed(path: Path, text: str) -> dict[str, Any]:
    """What `amend` is to add to a trace for something more that was not seen."""
    with open_trace(path) as trace:
        return {"meta": {"not_seen": [*(trace.meta.get("not_seen") or ()), text]}}


def _floor_of(
    models: Any,
    run: Any,
    path: Path,
    *,
    dtypes: Sequence[str],
    options: CaptureOptions,
    progress: Progress,
    begin: State | None = None,
) -> dict[str, Any]:
    """What `amend` is to add to a closed trace for its noise floor, or for further columns of the floor that it has.

    The models and the run must be those of the trace, observed as ``options`` say. What could not be measured is added to what the
    trace says was not seen. ``begin``: the state in which the recorded run began, in which the models are.
    """
    from tracediff.runs.coarse_products import measure_products
    from tracediff.runs.floor import METHODS_KEY, measure

    with open_trace(path) as trace:
        not_seen = list(trace.meta.get("not_seen") or ())
        observed = options.observing()
        asked: dict[str, Any] = {"observed": observed, "say": progress, "begin": begin}
        in_dtypes = tuple(name for name in dtypes if name != TF32)
        measured = measure(models, run, trace, known=trace.floor, dtypes_to_try=in_dtypes, **asked)
        found, missed = {schema.FLOOR_TABLE: measured.table}, list(measured.missed)
        found |= {} if measured.free is None else {schema.FREE_TABLE: measured.free}
        if TF32 in dtypes and trace.floor_products is None:
            products, more = measure_products(models, run, trace, **asked)
            missed += more
            found |= {} if products is None else {schema.PRODUCTS_TABLE: products}
    kept = [text for text in not_seen if not text.startswith(tuple(f"floor in {name}:" for name in dtypes))]
    said = [*kept, *(text for text in missed if text not in kept)]
    return {"meta": {"not_seen": said, METHODS_KEY: measured.methods}, **found}


def recorded_options(
    path: str | os.PathLike[str],
    *,
    methods: Iterable[str] | None = None,
    functions: Iterable[str] | None = None,
    impl: str | None = None,
) -> CaptureOptions:
    """How the run of a trace was observed; ``methods`` and ``functions``, where they are given, stand in the place of the trace's."""
    with open_trace(path) as trace:
        recorded = trace.meta.get("observed") or {}
    return CaptureOptions.of(
        methods=recorded.get("methods", ()) if methods is None else methods,
        functions=recorded.get("functions", ()) if functions is None else functions,
        impl=impl,
    )


def calibrated(
    models: Any,
    run: Any,
    to: str | os.PathLike[str],
    *,
    dtypes: Sequence[str],
    options: CaptureOptions = DEFAULTS,
    progress: Progress = silent,
    **_: Any,
) -> Path:
    """Adds the noise floor, or further columns of it, to the reference's trace ``to`` in place, and returns its path.

    ``options`` say how the run is observed (`recorded_options`); the other keywords of a job have no use here. Raises CaptureError where
    the trace cannot have a floor (a forced run, one that was not closed, without values, or that does not repeat itself), or where the
    models' parameters or what a first run gives are not those of the trace.
    """
    path = Path(to)
    with open_trace(path) as trace:
        identity = trace.identity[0]
        _check_can_have_floor(trace)
        _check_parameters(models, run, trace, options.impl)
        is_precise = bool(trace.meta.get("precise"))
    with pinned(adapter_of(models, run, impl=options.impl), wanted=is_precise):
        with open_trace(path) as trace:
            progress("a first run, to see whether it is the one that was captured")
            _check_outputs(models, run, trace, options)
        found = _floor_of(models, run, path, dtypes=dtypes, options=options, progress=progress)
    amend(path, identity=identity, **{**found, "meta": {**found["meta"], "repeats": True}})
    return path


def _check_can_have_floor(trace: Trace) -> None:
    """CaptureError for a trace on which no noise floor can be measured."""
    name = str(trace.path)
    if not trace.complete or trace.was_killed:
        raise CaptureError(f"{name!r} is not complete: its run did not come to its end. Capture the reference anew.")
    if trace.meta.get("mode_run") == "forced":
        raise CaptureError(f"{name!r} is a forced run of a port; a noise floor is measured on its reference.")
    if trace.meta.get("save") == "stats" or not any(record.stored for record in trace.records):
        raise CaptureError(f"{name!r} holds no values, which its noise would be measured against. Capture the reference with --save full.")
    if trace.meta.get(BUDGET):
        raise CaptureError(
            f"{name!r} was kept within a budget, so that it lacks values. Capture it with the dtypes that its floor is to have."
        )
    if trace.meta.get("repeats") is False:
        where = trace.meta.get("repeats_first") or {}
        at = f", first at {where.get('call', '')} {where.get('end', '')}" if where else ""
        raise CaptureError(f"{name!r} does not repeat itself{at}: its second run gave other values, so noise cannot be told from chance.")


def _check_parameters(models: Any, run: Any, trace: Trace, impl: str | None) -> None:
    """CaptureError where a parameter is not the one that the trace saw."""
    from tracediff.observe import describe
    from tracediff.observe.provenance import digest_of
    from tracediff.observe.tree import discover

    adapter = adapter_of(models, run, impl=impl)
    live = {parameter.name: parameter.tensor for parameter in describe.parameters(Run(adapter, tuple(discover(models, adapter))))}
    for name, param in trace.params.items():
        if name not in live:
            raise CaptureError(f"This model has no parameter {name!r}, which {str(trace.path)!r} has: it is another model.")
        if digest_of(adapter.view(live[name])) != param.digest:
            raise CaptureError(
                f"The parameter {name!r} is not the one that {str(trace.path)!r} was captured with. Give the same weights, "
                "in the same dtype and conversion."
            )


def _check_outputs(models: Any, run: Any, trace: Trace, options: CaptureOptions) -> None:
    """CaptureError where a run, on the draws that the trace holds, does not give bit for bit what the trace holds."""
    from tracediff.observe.repeat import Digests
    from tracediff.runs.variations import Redrawing

    adapter = adapter_of(models, run, impl=options.impl)
    world = World(models, run, adapter)
    before = world.state()
    if why := world.once(before):
        raise CaptureError(f"No floor can be measured of this model, which takes several runs: {why}.")
    digests = Digests()
    with held(), world.as_it_is(before):
        observe(models, run, [Redrawing(trace), digests], **options.observing())
    first = digests.first_difference(trace)
    if first is None:
        return
    site, call, end = first
    what = "gives other values than" if first in digests.seen else "does not come by what is in"
    raise CaptureError(
        f"At {site or 'the root'} {end} (call {call}) this run {what} {str(trace.path)!r}. Calibrate with the inputs, the methods and "
        "functions, the versions, the device and the number of threads that it was captured with; or capture the reference anew."
    )


def _forced(asked: _Capture, feed: str | os.PathLike[str] | Trace, mapping: Mapping[str, Any] | None) -> Path:
    """A run in which each paired boundary is fed the reference's tensor."""
    to = asked.to
    adapter = adapter_of(asked.models, asked.run, impl=asked.options.impl)
    asked = replace(asked, options=replace(asked.options, repeat=False))
    with held(), ExitStack() as stack:
        reference = feed if isinstance(feed, Trace) else stack.enter_context(open_trace(feed))
        reference.check_is_reference()
        stack.enter_context(feeding(reference))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".tracediff-", dir=to.parent))
        asked.progress("a free run first, to find out what corresponds")
        world = World(asked.models, asked.run, adapter)
        before = world.state()
        if why := world.once(before):
            raise CaptureError(f"This model cannot be fed, which takes several runs: {why}.")
        discovery, forcing, alignment = _discovered(asked, Path(folder), reference, mapping, lambda: world.back_to(before))
        with discovery:
            stack.enter_context(world.as_it_is(before))
            world.back_to(before)
            asked.progress("the forced run: each site is fed the reference's tensors")
            meta = {**asked.meta, "mode_run": "forced", "feed": str(reference.path)}
            forced = replace(asked, observers=(*asked.observers, forcing), meta=meta)
            try:
                if not _gets_along(forced, forcing, discovery):
                    asked.progress("once more: the port raises where it is handed a tensor of another shape than its own")
                    forcing.keep_shapes()
                    world.back_to(before)
                    replace(forced, force=True).record()
            finally:
                if asked.is_recorded():
                    asked.amend(meta={**meta, "forced": forcing.forced, "raised": forcing.failures})
            _add_let_through(asked, reference, discovery, alignment, mapping, forcing, Path(folder), lambda: world.back_to(before))
            if asked.options.floor:
                world.back_to(before)
                asked.amend(**_own_floor(asked, discovery, before))
    return to


def _own_floor(asked: _Capture, free: Trace, begin: State) -> dict[str, Any]:
    """What `amend` is to add to a forced trace for the port's own floor, which is measured on its free run.

    It is relative to the values, and so it holds for those of the reference too. What only one of the two runs reached has none.
    """
    from tracediff.runs.floor import empty_floor

    try:
        if not free.complete or any(record.flags & schema.RAISED for record in free.records):
            raise CaptureError("the port raises where it is not fed")
        with allowed():
            floor = partial(_floor_of, dtypes=asked.options.floor_dtypes, options=asked.options, progress=asked.progress, begin=begin)
            measured = floor(asked.models, asked.run, free.path)[schema.FLOOR_TABLE]
    except CaptureError as error:
        return _missed(asked.to, f"the port's own noise floor: {error}")
    row_of = {(record.site, record.ordinal, record.end): record.row for record in free.records}
    with open_trace(asked.to) as forced:
        table = empty_floor(len(forced.records))
        for record in forced.records:
            row = row_of.get((record.site, record.ordinal, record.end))
            if row is not None:
                table[record.row] = measured[row]
    return {schema.FLOOR_TABLE: table}


def _add_let_through(
    asked: _Capture,
    reference: Trace,
    discovery: Trace,
    alignment: Alignment,
    mapping: Mapping[str, Any] | None,
    forcing: Forcing,
    folder: Path,
    begin: Callable[[], None],
) -> None:
    """Adds to a forced trace what became of the records that it flags; where that fails they stay findings, and the trace says why.

    ``begin`` puts the port and the generators into the state in which each run begins.
    """
    from tracediff.runs.let_through import let_through

    def again(observer: Observer, name: str) -> Path | None:
        asked.progress(f"once more, to see whether what was flagged matters: {AGAIN[name]}")
        begin()
        aside = asked.aside(folder / f"{name}.h5", observers=(*asked.observers, observer))
        return aside.to if _raised_by(aside) is None else None

    with open_trace(asked.to) as forced:
        try:
            with allowed():
                found = let_through(reference, discovery, alignment, forced, mapping=mapping, forcing=forcing, again=again)
        except TracediffError as error:
            found = _missed(asked.to, f"what was flagged was not let through: {error}")
    if found:
        asked.amend(**found)


def _gets_along(forced: _Capture, forcing: Forcing, discovery: Trace) -> bool:
    """Records the forced run; False where the port was handed tensors of other shapes than its own and raises only for that reason.

    Such an exception may end the run, or a call in it for which the reference's outputs were handed on. Everything that this call would
    have called went unseen then.
    """
    try:
        forced.record()
    except TracediffError:
        raise
    except Exception:
        if forcing.reshaped:
            return False
        raise
    by_itself = {record.call for record in discovery.records if record.flags & schema.RAISED}
    return not forcing.reshaped or by_itself.issuperset(forcing.failures)


def _discovered(
    asked: _Capture, folder: Path, reference: Trace, mapping: Mapping[str, Any] | None, begin: Callable[[], None]
) -> tuple[Trace, Forcing, Alignment]:
    """A free run of the port, the forcing that its alignment allows, and that alignment.

    Where the port raises, the run is made again with everything handed over that is known so far, so that it comes one failing call
    further. It is not made again once it comes no further: the forced run will end there too. ``begin`` puts the port and the generators
    into the state in which each run begins.
    """
    from tracediff.alignment import align
    from tracediff.runs.forcing import Forcing

    observers = asked.observers
    reached = 0
    for attempt in range(ROUNDS):
        begin()
        path = folder / f"{attempt}.h5"
        error = _raised_by(asked.aside(path, observers=observers))
        trace = open_trace(path)
        if not len(trace.records) and trace.meta.get("warnings"):
            raise CaptureError(f"This run cannot be fed by {str(reference.path)!r}: {'; '.join(trace.meta['warnings'])}.")
        with allowed():
            alignment = align(reference, trace, mapping=mapping)
            forcing = Forcing(reference, trace, alignment)
        comes_further, reached = len(trace.records) > reached, len(trace.records)
        if error is None or not comes_further or attempt == ROUNDS - 1:
            break
        trace.close()
        observers = (*asked.observers, forcing)
    return open_trace(path), forcing, alignment


def _raised_by(free: _Capture) -> Exception | None:
    """Records a run of the port, and returns what the port raised."""
    try:
        free.record()
    except TracediffError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the port raises is what is being looked for
        return error
    return None
