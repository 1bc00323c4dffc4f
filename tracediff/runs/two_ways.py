"""One model run in two ways: the first is recorded as a reference, the second as a port of it, on the same draws."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracediff.errors import CaptureError
from tracediff.observe.observer import Observer
from tracediff.observe.options import CaptureOptions, Progress, silent
from tracediff.observe.other_python import run_elsewhere
from tracediff.observe.randomness import Playback, SeededDraws, Tape
from tracediff.observe.recipe import importable
from tracediff.observe.two_builds import digests_under_other_seeds, drawn
from tracediff.runs.captured import calibrated, captured, recorded_options
from tracediff.runs.single_site import find_object, make_object
from tracediff.trace import open_trace
from tracediff.trace.budget import fit

HALVES = ("float16", "bfloat16")


def record_two(
    ways: tuple[tuple[Any, Any], tuple[Any, Any]],
    paths: tuple[Path, Path],
    *,
    options: CaptureOptions,
    seed: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> None:
    """Records two ways, each a model and its run, to two traces; raises as a capture does.

    The first measures the noise floor that the second is judged by, also in the second's dtype where that is half precision.
    """
    progress("the first way")
    budget, options = options.budget, replace(options, budget=None)
    record_one(*ways[0], paths[0], options=options, seed=seed, force=force)
    progress("the second way")
    record_one(*ways[1], paths[1], options=options, random=paths[0], force=force)
    with open_trace(paths[0]) as first, open_trace(paths[1]) as second:
        dtype = str(second.meta.get("dtype"))
        needs_more = first.floor is not None and dtype in HALVES and dtype != first.meta.get("dtype")
    if needs_more:
        progress(f"the noise floor in {dtype}")
        calibrated(*ways[0], paths[0], dtypes=(dtype,), options=recorded_options(paths[0], impl=options.impl), progress=progress)
    if budget is not None:
        for path in paths:
            fit(path, budget)


def record_one(
    model: Any,
    run: Any,
    to: Path,
    *,
    options: CaptureOptions,
    seed: int = 0,
    random: Path | None = None,
    meta: Mapping[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Records one way, which takes its draws from the trace ``random``, or else from the seed; ``meta`` is what the trace says besides."""
    meta, observers = dict(meta or {}), list[Observer]()
    if random is None:
        observers = [SeededDraws(Tape(seed))]
        captured(model, run, to, options=options, observers=observers, meta={"seed": seed, **meta}, force=force)
        return
    with open_trace(random) as first:
        observers, meta = [Playback(first)], {"random": os.fspath(random), **meta}
        captured(model, run, to, options=replace(options, floor=False), observers=observers, meta=meta, force=force)


def way_of(name: str, *, repeat: bool = True) -> tuple[Any, Any, Mapping[str, Any]]:
    """The model and the run that ``FILE:CALLABLE`` returns; CaptureError where it returns something else.

    With ``repeat`` it is asked twice, under other seeds and then as it is; the last item is what meta says of parameters that differ.
    """
    found = find_object(name)

    def way() -> tuple[Any, Any]:
        made = make_object(name, found)
        if not isinstance(made, tuple) or len(made) != 2:
            raise CaptureError(f"{name!r} returns {type(made).__name__}; it returns (model, run), as td.capture takes them.")
        return made

    other = digests_under_other_seeds(lambda: way()[0]) if repeat else None
    model, run = way()
    return model, run, {} if other is None else {"drawn": drawn(model, other)}


def record_named(*, name: str, to: str, options: Mapping[str, Any], seed: int, random: str | None, force: bool) -> None:
    """As `record_one`, for a way that ``FILE:CALLABLE`` makes; all arguments are plain data, so that another Python can be asked."""
    with redirect_stdout(sys.stderr), importable(Path(name.rpartition(":")[0]).absolute().parent):  # also for what is called in the run
        chosen = CaptureOptions.of(**options)
        model, run, told = way_of(name, repeat=chosen.repeat)
        first = None if random is None else Path(random)
        record_one(model, run, Path(to), options=chosen, seed=seed, random=first, meta=told, force=force)


def record_two_named(
    names: tuple[str, str],
    paths: tuple[Path, Path],
    *,
    options: CaptureOptions,
    seed: int = 0,
    python: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> None:
    """Records two ways that ``FILE:CALLABLE`` make; the second in another environment's ``python`` where one is given."""
    for place, (name, path) in enumerate(zip(names, paths, strict=True)):
        progress(f"{name}: recording the {'second' if place else 'first'} way")
        given: dict[str, Any] = {
            "name": name,
            "to": os.fspath(path),
            "options": options.to_json(),
            "seed": seed,
            "random": os.fspath(paths[0]) if place else None,
            "force": force,
        }
        if place and python is not None:
            run_elsewhere(python, record_named, given)
        else:
            record_named(**given)
