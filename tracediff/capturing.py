"""One capture with all that belongs to it: fed by a reference where one is given, run once more, its noise floor measured.

It lies above `tracediff.capture` because feeding a port needs an alignment and a floor needs comparisons.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracediff.capture import adapter_of
from tracediff.capture.observer import Observer
from tracediff.capture.recording import record_run
from tracediff.errors import TracediffError
from tracediff.trace import Trace, open_trace
from tracediff.trace.amend import amend

ROUNDS = 8
"""A port that raises is run so often to find out what it would do next, each time one call further."""


def captured(
    models: Any,
    run: Any,
    to: str | os.PathLike[str],
    *,
    feed: str | os.PathLike[str] | None = None,
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

    With ``feed``, the trace of a reference, the run is *forced*: it goes on at each paired boundary with the reference's tensor.
    Otherwise it is run once more to see whether it repeats, and, for ``floor`` (by default for a PyTorch run on its own inputs), seven
    times more to measure its noise floor. The rest is as in `tracediff.capture.recording.record_run`.
    """
    given: dict[str, Any] = {"observers": tuple(observers), "save": save, "meta": meta, "force": force, "say": say, **options}
    if feed is not None:
        return _forced(models, run, Path(to), feed, given)
    path = record_run(models, run, to, repeat=repeat, **given)
    if floor is None:
        floor = adapter_of(models, run, impl=options.get("impl")).name == "torch" and not (meta or {}).get("random")
    if floor and save == "full":
        measure_floor(models, run, path, dtypes=floor_dtypes, options=options, say=say)
    return path


def measure_floor(
    models: Any, run: Any, path: Path, *, dtypes: Sequence[str], options: Mapping[str, Any], say: Callable[[str], None] = lambda _: None
) -> None:
    """Adds its noise floor to a closed trace, which must be that of the same models and run; not where it does not repeat."""
    from tracediff.floor import measure

    observed = {name: options[name] for name in ("methods", "functions", "impl") if name in options}
    with open_trace(path) as trace:
        if trace.meta.get("repeats") is False:
            amend(path, meta={"not_seen": [*trace.meta["not_seen"], "noise floor: not measured, since the run does not repeat itself"]})
            return
        table, missed = measure(models, run, trace, dtypes_to_try=tuple(dtypes), observed=observed, say=say)
        not_seen = [*trace.meta.get("not_seen", ()), *missed]
    amend(path, meta={"not_seen": not_seen}, floor=table)


def _forced(models: Any, run: Any, to: Path, feed: str | os.PathLike[str], given: Mapping[str, Any]) -> Path:
    """A run in which each paired boundary is fed the reference's tensor."""
    say = given["say"]
    adapter = adapter_of(models, run, impl=given.get("impl"))
    with open_trace(feed) as reference, tempfile.TemporaryDirectory(prefix=".tracediff-", dir=to.parent) as folder:
        say("a free run first, to find out what corresponds")
        before = adapter.rng_state()
        discovery, forcing = _discovered(models, run, Path(folder), reference, given)
        with discovery:
            adapter.set_rng_state(before)
            say("the forced run: each site is fed the reference's tensors")
            meta = {**(given["meta"] or {}), "mode_run": "forced", "feed": str(reference.path)}
            observers = (*given["observers"], forcing)
            record_run(models, run, to, repeat=False, **{**given, "observers": observers, "meta": meta})
        amend(to, meta={**meta, "forced": forcing.forced, "raised": forcing.failures})
    return to


def _discovered(models: Any, run: Any, folder: Path, reference: Trace, given: Mapping[str, Any]) -> tuple[Trace, Any]:
    """A free run of the port, and the forcing that its alignment allows.

    Where the port raises, the run is made again with what is known so far handed over, so that it comes one failing call further.
    """
    from tracediff.align import align
    from tracediff.force import Forcing

    forcing: Forcing | None = None
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
        forcing = Forcing(reference, trace, align(reference, trace))
        if failed is None:
            break
        if attempt == ROUNDS - 1:
            raise failed
        trace.close()
    return open_trace(path), forcing
