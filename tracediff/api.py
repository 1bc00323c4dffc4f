"""What users call. It wires the pieces and computes nothing itself.

Where a trace is meant, a path or an open `Trace` will do. The reference always comes first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tracediff.trace import Trace, open_trace

if TYPE_CHECKING:
    from tracediff.align import Alignment
    from tracediff.capture.observer import Observer
    from tracediff.explain.weights import WeightsReport
    from tracediff.report import Report, Weights
    from tracediff.trace.listing import Listing

PathLike: TypeAlias = "str | os.PathLike[str]"
TraceLike: TypeAlias = "PathLike | Trace"
Say = Callable[[str], None]

__all__ = ["align", "bisect", "capture", "capture_recipe", "diff", "listing", "open_trace", "record", "recover", "weights", "write_recipes"]


def _silent(_: str) -> None:
    """Says nothing."""


def capture(
    model: Any,
    run: Any,
    *,
    to: PathLike,
    feed: PathLike | None = None,
    random: TraceLike | None = None,
    seed: int | None = None,
    floor: bool | None = None,
    methods: Iterable[str] = (),
    functions: Iterable[str] = (),
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    calls: Iterable[str] = (),
    save: Literal["full", "stats"] = "full",
    save_params: bool = False,
    repeat: bool = True,
    impl: str | None = None,
    meta: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Trace:
    """Runs a model, records every boundary of the run to the new trace ``to``, and returns that trace.

    ``model``: a PyTorch or MLX module, or a tuple or dict of them. ``run``: its inputs (an array, a tuple of positional or a dict of
    named ones; NumPy arrays will do for either framework), or a callable without arguments that runs it. It runs twice unless
    ``repeat`` is False, and the trace says whether it repeats itself bit for bit.

    ``feed``: a reference's trace. The run is then *forced*: at each paired boundary the model's own tensor is recorded, and the run goes
    on with the reference's, so that each site shows the error that it introduces itself. Without it the run is *free*. ``floor``: whether
    to measure how much error floating point explains at each site, which takes seven more runs; by default for PyTorch models.

    ``random``: a trace whose recorded random draws are played back; ``seed``: draws come from a seed that serves every framework.
    ``methods``: further entrances to observe, such as ``"flow:inference"``. ``functions``: globs on dotted names of functions.
    ``include``, ``exclude``: globs on sites. ``calls``: numbers or ranges (``"0-2"``) of a site's calls. ``save``: values, or
    statistics and digests only.

    Raises CaptureError, TraceExistsError unless ``force``, and whatever the run raises; what was recorded until then is kept.

    >>> import tracediff as td
    >>> td.capture(model, {"tokens": tokens}, to="ref.h5")                       # doctest: +SKIP
    """
    from tracediff.capturing import captured

    path = captured(
        model,
        run,
        to,
        feed=feed,
        floor=floor,
        observers=_draws(random if random is not None else feed, seed),
        methods=methods,
        functions=functions,
        include=include,
        exclude=exclude,
        calls=calls,
        save=save,
        save_params=save_params,
        repeat=repeat,
        impl=impl,
        meta={**({} if seed is None else {"seed": seed}), **(meta or {})},
        force=force,
    )
    return open_trace(path)


@contextmanager
def record(
    model: Any,
    to: PathLike,
    *,
    random: TraceLike | None = None,
    seed: int | None = None,
    force: bool = False,
    **options: Any,
) -> Iterator[None]:
    """Records the code of a ``with`` block, loops included, to the new trace ``to``; the options are those of `capture`.

    >>> with td.record(model, "x.h5"):                                           # doctest: +SKIP
    ...     for step in range(3):
    ...         with td.scope("step", step):
    ...             x = td.tap("x", model(x))
    """
    from tracediff.capture import record as record_block

    with record_block(model, to, observers=_draws(random, seed), force=force, **options):
        yield


def capture_recipe(
    *,
    impl: str,
    recipe: str | None = None,
    output: PathLike | None = None,
    stages: Sequence[str] = (),
    weights: str = "seeded",
    seed: int = 0,
    random: PathLike | None = None,
    feed: PathLike | None = None,
    dtype: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    calls: str | None = None,
    save: Literal["full", "stats"] = "full",
    save_params: bool = False,
    no_repeat: bool = False,
    no_floor: bool = False,
    python: PathLike | None = None,
    force: bool = False,
    progress: Say = _silent,
) -> Trace:
    """Runs one side of a pair as its recipe says, here or in another environment's ``python``, and returns its trace."""
    from tracediff.capture import recipe as recipes

    path = recipes.run_recipe(
        impl,
        recipe,
        output=output,
        stages=stages,
        weights=weights,
        seed=seed,
        random=random if random is not None else feed,
        dtype=dtype,
        include=include,
        exclude=exclude,
        calls=calls,
        save=save,
        save_params=save_params,
        repeat=not no_repeat,
        python=python,
        force=force,
        progress=progress,
        how="tracediff.capturing:captured",
        feed=None if feed is None else os.fspath(feed),
        floor=False if no_floor else None,
    )
    return open_trace(path)


def align(reference: TraceLike, port: TraceLike, *, mapping: PathLike | Mapping[str, Any] | None = None) -> Alignment:
    """Which sites and records of two traces correspond, each pair with its evidence; ``mapping`` overrides (a file or its content)."""
    from tracediff.align import align as align_traces

    with _opened(reference, port) as (first, second):
        return align_traces(first, second, mapping=mapping)


def bisect(
    reference: TraceLike,
    port: TraceLike,
    *,
    scan: bool = False,
    mapping: PathLike | Mapping[str, Any] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    stages: Sequence[str] = (),
    progress: Say = _silent,
) -> Report:
    """Where two traces first part: the report, whose ``first`` is the first divergence.

    Few tensors are read; with ``scan`` all are, and all introduced divergences are listed. ``mapping`` overrides the alignment.
    ``rtol`` and ``atol``, together, allow ``abs(port - reference) <= atol + rtol * abs(reference)`` in the place of what is
    allowed by itself. ``stages`` restricts the comparison. Raises AlignmentError where the two share nothing.
    """
    from tracediff.align import align as align_traces
    from tracediff.floor import floors
    from tracediff.locate import locate
    from tracediff.report import build

    with _opened(reference, port) as (first, second):
        progress(f"pairing the sites of {first.path} and {second.path}")
        alignment = align_traces(first, second, mapping=mapping)
        progress(f"comparing {len(alignment.records):,} pairs")
        is_forced = second.meta.get("mode_run") == "forced"
        allowed = {} if first.floor is None else floors(first.floor, first, str(second.meta.get("dtype")), is_forced=is_forced)
        located = locate(alignment, first, second, scan=scan, rtol=rtol, atol=atol, stages=stages, floors=allowed)
        found = _compared_weights(first, second)
        culprits = {finding.culprit for finding in located.findings}
        return build(
            located,
            alignment,
            first,
            second,
            weights=_weight_lines(found) if found is not None else None,
            causes=_weight_causes(found, culprits) if found is not None else None,
        )


def _compared_weights(reference: Trace, port: Trace) -> WeightsReport | None:
    """What the recorded parameters say; None where a side has none, or the two share nothing."""
    from tracediff.errors import WeightsError
    from tracediff.explain.weights import weights as compare_weights

    try:
        return compare_weights(reference, port) if reference.params and port.params else None
    except WeightsError:
        return None


def _weight_lines(found: WeightsReport) -> Weights:
    """The findings on weights as a report tells them: counted patterns of names."""
    from tracediff.report import Weights

    def lines(category: str) -> tuple[str, ...]:
        return tuple(
            f"{group.count} x {group.pattern}" + (f" ({group.label})" if group.label else "")
            for group in found.groups
            if group.category == category
        )

    return Weights(found.equal, lines("different"), lines("missing"), lines("unexpected"))


def _weight_causes(found: WeightsReport, culprits: Iterable[tuple[str, str]]) -> dict[str, list[Any]]:
    """What the weights explain, by the culprit's path in the reference."""
    from tracediff.explain.weights import causes_for
    from tracediff.report import Cause

    return {reference: [Cause(**cause) for cause in causes_for(found.findings, [port])] for reference, port in culprits}


def weights(reference: Any, port: Any, *, checkpoint: Any = None) -> WeightsReport:
    """How the weights of two sides differ, without running either.

    Each side is a trace, a live model, a .safetensors, .pt or .npz file, or a folder of them; ``checkpoint`` is a third that tells
    which side is wrong.
    """
    from tracediff.explain.weights import weights as compare_weights

    return compare_weights(reference, port, checkpoint=checkpoint)


def diff(reference: TraceLike, port: TraceLike, **options: Any) -> Report:
    """Every pair of two traces compared, in execution order; the options are those of `bisect`."""
    return bisect(reference, port, scan=True, **options)


def listing(trace: TraceLike, pattern: str = "", **options: Any) -> Listing:
    """What a trace holds, as a table: see `tracediff.trace.listing.listing`."""
    from tracediff.trace.listing import listing as list_trace

    with _opened(trace) as (opened,):
        return list_trace(opened, pattern, **options)


def summary(trace: TraceLike) -> dict[str, Any]:
    """What a trace is, as one JSON object."""
    from tracediff.trace.listing import summary as summarise

    with _opened(trace) as (opened,):
        return summarise(opened)


def recover(path: PathLike, to: PathLike | None = None) -> Trace:
    """Makes a trace whose capture was killed an ordinary file again, in place or at ``to``, and returns it."""
    from tracediff.trace.recovery import recover as recover_trace

    return open_trace(recover_trace(path, to))


def write_recipes(name: str, folder: PathLike) -> list[Path]:
    """Writes the pair of recipes to start from, and returns their paths."""
    from tracediff.capture import recipe as recipes

    return recipes.write_recipes(folder, name)


def _draws(random: TraceLike | None, seed: int | None) -> list[Observer]:
    from tracediff.capture.randomness import Playback, SeededDraws, Tape

    if random is not None:
        return [Playback(open_trace(random))]
    return [] if seed is None else [SeededDraws(Tape(seed))]


@contextmanager
def _opened(*given: TraceLike) -> Iterator[list[Trace]]:
    """The traces, open; those that were given as paths are closed afterwards."""
    with ExitStack() as stack:
        yield [trace if isinstance(trace, Trace) else stack.enter_context(open_trace(trace)) for trace in given]
