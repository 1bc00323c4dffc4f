"""One run recorded to one trace: recorded, and run again to see whether it repeats."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracediff.observe import adapter_of, observe
from tracediff.observe.blind_spots import note_blind_spots
from tracediff.observe.observer import Observer
from tracediff.observe.options import DEFAULTS, CaptureOptions, Progress, silent
from tracediff.observe.recorder import Recorder
from tracediff.observe.repeat import Digests, repeats_meta
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
    progress: Progress = silent,
) -> Path:
    """Records a run to a new trace and returns its path; with ``options.repeat`` it runs once more and the trace says whether it repeats.

    ``models`` and ``run`` are those of `tracediff.observe.observe`; ``observers`` see each boundary before the recorder does. No noise
    floor is measured. The generators are afterwards as one run leaves them. Raises what the run raises; the trace then holds what was
    recorded until there.
    """
    adapter = adapter_of(models, run, impl=options.impl)
    options = replace(options, impl=adapter.name)
    before = adapter.rng_state()
    with TraceWriter(to, force=force, meta=meta, save=options.save) as writer:
        recorder = Recorder(writer, options)
        observe(models, run, [*observers, recorder], **options.observing())
        progress(f"{recorder.records:,} records")
        if not options.repeat:
            writer.set_meta(repeats=None)
    if not options.repeat:
        note_blind_spots(to)
        return Path(to)
    after = adapter.rng_state()
    adapter.set_rng_state(before)
    progress("running once more to see whether it repeats")
    digests = Digests()
    try:
        observe(models, run, [*observers, digests], **options.observing())
    finally:
        adapter.set_rng_state(after)
    with open_trace(to) as trace:
        first = digests.first_difference(trace)
    note_blind_spots(to, **repeats_meta(first))
    return Path(to)
