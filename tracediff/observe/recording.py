"""One run recorded to one trace: recorded, and run again to see whether it repeats."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tracediff.observe import adapter_of, observe
from tracediff.observe.blind_spots import note_blind_spots
from tracediff.observe.observer import Observer
from tracediff.observe.recorder import Recorder
from tracediff.observe.repeat import Digests
from tracediff.trace import open_trace
from tracediff.trace.writer import TraceWriter

Say = Callable[[str], None]


def record_run(
    models: Any,
    run: Any,
    to: str | os.PathLike[str],
    *,
    observers: Sequence[Observer] = (),
    methods: Iterable[str] = (),
    functions: Iterable[str] = (),
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    calls: Iterable[str] = (),
    stages: Iterable[str] = (),
    save: Literal["full", "stats"] = "full",
    save_params: bool = False,
    repeat: bool = True,
    impl: str | None = None,
    meta: Mapping[str, Any] | None = None,
    force: bool = False,
    say: Say = lambda _: None,
) -> Path:
    """Records a run to a new trace and returns its path; with ``repeat`` it runs once more and the trace says whether it repeats.

    ``models``, ``run``, ``methods``, ``functions`` and ``impl`` are those of `tracediff.observe.observe`; ``observers`` see each
    boundary before the recorder does. The generators are afterwards as one run leaves them. Raises what the run raises; the trace
    then holds what was recorded until there.
    """
    adapter = adapter_of(models, run, impl=impl)
    seen: dict[str, Any] = {"methods": tuple(methods), "functions": tuple(functions), "impl": adapter.name}
    before = adapter.rng_state()
    with TraceWriter(to, force=force, meta=meta, save=save) as writer:
        recorder = Recorder(writer, include=include, exclude=exclude, calls=calls, stages=stages, save=save, save_params=save_params)
        observe(models, run, [*observers, recorder], **seen)
        say(f"{recorder.records:,} records")
        if not repeat:
            writer.set_meta(repeats=None)
    if repeat:
        after = adapter.rng_state()
        adapter.set_rng_state(before)
        say("running once more to see whether it repeats")
        digests = Digests()
        try:
            observe(models, run, [*observers, digests], **seen)
        finally:
            adapter.set_rng_state(after)
        note_blind_spots(to, **_repeats(Path(to), digests))
    else:
        note_blind_spots(to)
    return Path(to)


def _repeats(path: Path, digests: Digests) -> dict[str, Any]:
    """Whether a second run gave the same bits as a closed trace, as the trace says it."""
    with open_trace(path) as trace:
        first = digests.first_difference(trace)
    where = {} if first is None else {"repeats_first": dict(zip(("site", "call", "end"), first, strict=True))}
    return {"repeats": first is None, **where}
