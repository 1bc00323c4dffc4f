"""One capture with all that belongs to it: fed by a reference where one is given, run once more, its noise floor measured.

It lies above `tracediff.observe` because feeding a port needs an alignment and a floor needs comparisons.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracediff.errors import CaptureError, TracediffError
from tracediff.observe import adapter_of, observe
from tracediff.observe.observer import Observer, Run
from tracediff.observe.recording import record_run
from tracediff.runs.stubs import feeding
from tracediff.trace import Trace, open_trace, schema
from tracediff.trace.amend import amend

if TYPE_CHECKING:
    from tracediff.runs.forcing import Forcing

ROUNDS = 8
"""A port that raises is run so often to find out what it would do next, each time one call further."""


def captured(
    models: Any,
    run: Any,
    to: str | os.PathLike[str],
    *,
    feed: str | os.PathLike[str] | Trace | None = None,
    mapping: Mapping[str, Any] | None = None,
    floor: bool | None = None,
    floor_dtypes: Sequence[str] = ("float64",),
    observers: Sequence[Observer] = (),
    repeat: bool = True,
    save: str = "full",
    meta: Mapping[str, Any] | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Path:
    """Records a run to a new trace and returns its path.

    With ``feed``, the trace of a reference, the run is *forced*: it goes on at each paired boundary with the reference's tensor;
    ``mapping`` states pairs of sites, as in `tracediff.alignment.mapping`.
    Otherwise it is run once more to see whether it repeats, and, for ``floor`` (by default for a PyTorch run on its own inputs), seven
    times more to measure its noise floor, and once or twice for each further one of ``floor_dtypes``. The rest is as in
    `tracediff.observe.recording.record_run`.
    """
    meta = {**(meta or {}), "observed": {name: list(options.get(name, ())) for name in ("methods", "functions")}}
    given: dict[str, Any] = {"observers": tuple(observers), "save": save, "meta": meta, "force": force, "say": say, **options}
    if feed is not None:
        return _forced(models, run, Path(to), feed, given, mapping)
    path = record_run(models, run, to, repeat=repeat, **given)
    if floor is None:
        floor = adapter_of(models, run, impl=options.get("impl")).name == "torch" and not (meta or {}).get("random")
    if floor and save == "full":
        measure_floor(models, run, path, dtypes=floor_dtypes, options=options, say=say)
    return path


def measure_floor(
    models: Any, run: Any, path: Path, *, dtypes: Sequence[str], options: Mapping[str, Any], say: Callable[[str], None] = lambda _: None
) -> None:
    """Adds its noise floor to a closed trace, or further columns to the floor that it has; not where its run does not repeat itself.

    The models and the run must be those of the trace. What could not be measured is added to what the trace says was not seen.
    """
    from tracediff.runs.floor import measure

    observed = {name: options[name] for name in ("methods", "functions", "impl") if name in options}
    with open_trace(path) as trace:
        not_seen = list(trace.meta.get("not_seen") or ())
        if trace.meta.get("repeats") is False:
            amend(path, meta={"not_seen": [*not_seen, "noise floor: not measured, since the run does not repeat itself"]})
            return
        table, missed = measure(models, run, trace, dtypes_to_try=tuple(dtypes), known=trace.floor, observed=observed, say=say)
    kept = [text for text in not_seen if not text.startswith(tuple(f"floor in {name}:" for name in dtypes))]
    amend(path, meta={"not_seen": [*kept, *(text for text in missed if text not in kept)]}, floor=table)


def calibrated(
    models: Any,
    run: Any,
    to: str | os.PathLike[str],
    *,
    dtypes: Sequence[str],
    methods: Sequence[str] | None = None,
    functions: Sequence[str] | None = None,
    impl: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    **_: Any,
) -> Path:
    """Adds the noise floor, or further columns of it, to the reference's trace ``to`` in place, and returns its path.

    ``methods`` and ``functions`` are by default those that the trace was captured with. Raises CaptureError where the trace cannot have a
    floor (a forced run, one that was not closed, without values, or that does not repeat itself), or where the models' parameters or
    what a first run gives are not those of the trace.
    """
    path = Path(to)
    with open_trace(path) as trace:
        _check_can_have_floor(trace)
        recorded = trace.meta.get("observed") or {}
        options = {
            "methods": recorded.get("methods", ()) if methods is None else methods,
            "functions": recorded.get("functions", ()) if functions is None else functions,
            "impl": impl,
        }
        _check_parameters(models, run, trace, impl)
        say("a first run, to see whether it is the one that was captured")
        _check_outputs(models, run, trace, options)
    if trace.meta.get("repeats") is not True:
        amend(path, meta={"repeats": True})
    measure_floor(models, run, path, dtypes=dtypes, options=options, say=say)
    return path


def _check_can_have_floor(trace: Trace) -> None:
    """CaptureError for a trace on which no floor can be measured."""
    name = str(trace.path)
    if not trace.complete or trace.was_killed:
        raise CaptureError(f"{name!r} is not complete: its run did not come to its end. Capture the reference anew.")
    if trace.meta.get("mode_run") == "forced":
        raise CaptureError(f"{name!r} is a forced run of a port; a noise floor is measured on its reference.")
    if trace.meta.get("save") == "stats" or not any(record.stored for record in trace.records):
        raise CaptureError(f"{name!r} holds no values, which its noise would be measured against. Capture the reference with --save full.")
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
    found = {one.name: one.tensor for one in describe.parameters(Run(adapter, tuple(discover(models, adapter))))}
    for name, param in trace.params.items():
        if name not in found:
            raise CaptureError(f"This model has no parameter {name!r}, which {str(trace.path)!r} has: it is another model.")
        if digest_of(adapter.view(found[name])) != param.digest:
            raise CaptureError(
                f"The parameter {name!r} is not the one that {str(trace.path)!r} was captured with. Give the same weights, "
                "in the same dtype and conversion."
            )


def _check_outputs(models: Any, run: Any, trace: Trace, options: Mapping[str, Any]) -> None:
    """CaptureError where a run, on the draws that the trace holds, does not give bit for bit what the trace holds."""
    from tracediff.observe.repeat import Digests
    from tracediff.runs.variations import Redrawing

    adapter = adapter_of(models, run, impl=options.get("impl"))
    digests, state = Digests(), adapter.rng_state()
    try:
        observe(models, run, [Redrawing(trace), digests], **options)
    finally:
        adapter.set_rng_state(state)
    first = digests.first_difference(trace)
    if first is None:
        return
    site, call, end = first
    what = "gives other values than" if first in digests.seen else "does not come by what is in"
    raise CaptureError(
        f"At {site or 'the root'} {end} (call {call}) this run {what} {str(trace.path)!r}. Calibrate with the inputs, the methods and "
        "functions, the versions, the device and the number of threads that it was captured with; or capture the reference anew."
    )


def _forced(
    models: Any, run: Any, to: Path, feed: str | os.PathLike[str] | Trace, given: Mapping[str, Any], mapping: Mapping[str, Any] | None
) -> Path:
    """A run in which each paired boundary is fed the reference's tensor."""
    say = given["say"]
    adapter = adapter_of(models, run, impl=given.get("impl"))
    with ExitStack() as stack:
        reference = feed if isinstance(feed, Trace) else stack.enter_context(open_trace(feed))
        stack.enter_context(feeding(reference))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".tracediff-", dir=to.parent))
        say("a free run first, to find out what corresponds")
        before = adapter.rng_state()
        discovery, forcing = _discovered(models, run, Path(folder), reference, given, mapping)
        with discovery:
            adapter.set_rng_state(before)
            say("the forced run: each site is fed the reference's tensors")
            meta = {**(given["meta"] or {}), "mode_run": "forced", "feed": str(reference.path)}
            options = {**given, "observers": (*given["observers"], forcing), "meta": meta}
            try:
                if not _gets_along(models, run, to, forcing, discovery, options):
                    say("once more: the port raises where it is handed a tensor of another shape than its own")
                    forcing.keep_shapes()
                    adapter.set_rng_state(before)
                    record_run(models, run, to, repeat=False, **{**options, "force": True})
            finally:
                if to.is_file():
                    amend(to, meta={**meta, "forced": forcing.forced, "raised": forcing.failures})
    return to


def _gets_along(models: Any, run: Any, to: Path, forcing: Forcing, discovery: Trace, options: Mapping[str, Any]) -> bool:
    """Records the forced run; False where the port was handed tensors of other shapes than its own and raises as it did not by itself.

    That may end the run, or a call in it for which the reference's outputs were handed on: all that it would have called went unseen then.
    """
    try:
        record_run(models, run, to, repeat=False, **options)
    except TracediffError:
        raise
    except Exception:
        if forcing.reshaped:
            return False
        raise
    by_itself = {record.call for record in discovery.records if record.flags & schema.RAISED}
    return not forcing.reshaped or by_itself.issuperset(forcing.failures)


def _discovered(
    models: Any, run: Any, folder: Path, reference: Trace, given: Mapping[str, Any], mapping: Mapping[str, Any] | None
) -> tuple[Trace, Any]:
    """A free run of the port, and the forcing that its alignment allows.

    Where the port raises, the run is made again with what is known so far handed over, so that it comes one failing call further; no
    more where it comes no further: the forced run will end there too.
    """
    from tracediff.alignment import align
    from tracediff.runs.forcing import Forcing

    forcing: Forcing | None = None
    came = 0
    for attempt in range(ROUNDS):
        path = folder / f"{attempt}.h5"
        observers = (*given["observers"], *([forcing] if forcing else ()))
        failed: Exception | None = None
        try:
            record_run(models, run, path, repeat=False, **{**given, "observers": observers, "save": "full", "force": True})
        except TracediffError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the port raises is what is being looked for
            failed = error
        trace = open_trace(path)
        forcing = Forcing(reference, trace, align(reference, trace, mapping=mapping))
        comes_further, came = len(trace.records) > came, len(trace.records)
        if failed is None or not comes_further or attempt == ROUNDS - 1:
            break
        trace.close()
    return open_trace(path), forcing
