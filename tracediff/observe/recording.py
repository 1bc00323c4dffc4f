"""One run recorded to one trace: recorded, and run again to see whether it repeats."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracediff.interrupts import held
from tracediff.observe import adapter_of, observe
from tracediff.observe.blind_spots import note_blind_spots
from tracediff.observe.observer import Observer
from tracediff.observe.options import DEFAULTS, CaptureOptions, Progress, silent
from tracediff.observe.recorder import Recorder
from tracediff.observe.repeat import Digests, Place, repeats_meta
from tracediff.observe.world import State, World
from tracediff.trace import open_trace
from tracediff.trace.writer import TraceWriter


def record_run(
    models: Any,
    run: Any,
    to: str | os.PathLike[str],
    *,
    options: CaptureOptions = DEFAULTS,
    observers: Sequence[Observer] = (),
    meta: Mapping[str, Any] | None = None,
    force: bool = False,
    identity: bytes | None = None,
    progress: Progress = silent,
    is_noted: bool = True,
) -> Path:
    """Records a run to a new trace and returns its path; with ``options.repeat`` it runs once more and the trace says whether it repeats.

    ``models`` and ``run`` are those of `tracediff.observe.observe`; ``observers`` see each boundary before the recorder does. No noise
    floor is measured. ``identity`` is the trace's, by which its caller knows it again. Without ``is_noted`` the caller amends the trace
    himself, once, with what `blind_spots_meta` says and with what else is found. Models and generators are afterwards as one run leaves
    them. Raises what the run raises; the trace then holds what was recorded until there.
    """
    adapter = adapter_of(models, run, impl=options.impl)
    options = replace(options, impl=adapter.name)
    before = World(models, run, adapter).state() if options.repeat else None
    with held(), TraceWriter(to, force=force, meta=meta, save=options.save, identity=identity) as writer:
        recorder = Recorder(writer, options)
        observe(models, run, [*observers, recorder], **options.observing())
        progress(f"{recorder.records:,} records")
        writer.set_meta(repeats=None)
    found = {}
    if before is not None:
        found = repeats_meta(run_again(models, run, Path(to), before, options=options, observers=observers, progress=progress))
    if is_noted or found:
        note_blind_spots(to, writer.identity, **found)
    return Path(to)


def run_again(
    models: Any,
    run: Any,
    recorded: Path,
    before: State,
    *,
    options: CaptureOptions,
    observers: Sequence[Observer] = (),
    progress: Progress = silent,
    around: AbstractContextManager[None] | None = None,
    beside: Sequence[Observer] = (),
) -> Place | None:
    """Runs once more, unperturbed, and returns the first place that differs from the closed trace ``recorded``; None where it repeats.

    ``before`` is the state of models and generators in which the recorded run began; they are afterwards as before this call. ``around``
    is a context for the run, and ``beside`` are observers of it; both must only look on.
    """
    world = World(models, run, adapter_of(models, run, impl=options.impl))
    progress("running once more to see whether it repeats")
    digests = Digests()
    with held(), world.as_it_is(before):
        world.back_to(before)
        with around or nullcontext():
            observe(models, run, [*observers, *beside, digests], **options.observing())
    with open_trace(recorded) as trace:
        return digests.first_difference(trace)
