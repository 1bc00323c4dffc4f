"""What users call. It wires the pieces and computes nothing itself.

Where a trace is meant, a path or an open `Trace` will do. The reference always comes first.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Unpack

from tracediff.caveats import caveats
from tracediff.errors import DamagedRecordError
from tracediff.observe.options import (
    FLOOR_DTYPES,
    BlockKeywords,
    CaptureKeywords,
    CaptureOptions,
    Progress,
    RecipeKeywords,
    lists_options,
    silent,
)
from tracediff.progress import chosen
from tracediff.trace import Trace, open_trace
from tracediff.trace.products import unpinned
from tracediff.trace.stored_weights import stored_weights_note

if TYPE_CHECKING:
    from tracediff.alignment import Alignment
    from tracediff.locate import Located
    from tracediff.locate.workers import Engine
    from tracediff.observe.observer import Observer
    from tracediff.report import Report as PlainReport
    from tracediff.show.drawn import Look, Report, Status, WeightsReport
    from tracediff.trace.listing import Listing

PathLike: TypeAlias = "str | os.PathLike[str]"
TraceLike: TypeAlias = "PathLike | Trace"
T = TypeVar("T")

_MOST_DAMAGED = 100
"""So many damaged records are left out one after the other; a file with more is not worth comparing."""

__all__ = [
    "align",
    "bisect",
    "bisect_live",
    "bisect_recipe",
    "calibrate",
    "calibrate_recipe",
    "capture",
    "capture_recipe",
    "compare",
    "compare_named",
    "convert",
    "diff",
    "listing",
    "look",
    "merge",
    "open_trace",
    "record",
    "recover",
    "status",
    "try_named",
    "try_site",
    "view",
    "weights",
    "write_recipes",
]


@lists_options(CaptureKeywords)
def capture(
    model: Any,
    run: Any,
    *,
    to: PathLike,
    feed: PathLike | None = None,
    random: TraceLike | None = None,
    seed: int | None = None,
    weights_from: Any = None,
    meta: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: Progress | bool = False,
    **options: Unpack[CaptureKeywords],
) -> Trace:
    """Runs a model, records every boundary of the run to the new trace ``to``, and returns that trace.

    ``model``: a PyTorch or MLX module, or a tuple or dict of them. ``run``: its inputs (an array, a tuple of positional or a dict of
    named ones; NumPy arrays will do for either framework), or a callable without arguments that runs it. The last of its runs is an
    unperturbed one, unless ``repeat`` is False; the trace says whether it repeats itself bit for bit.

    ``feed``: a reference's trace. The run is then *forced*: at each paired boundary the model's own tensor is recorded, and the run goes
    on with the reference's, so that each site shows the error that it introduces itself. ``run`` is then called twice or more, fed and
    disturbed, and nothing is promised of its side effects. Without it the run is *free*.
    ``random``: a trace whose recorded random draws are played back; ``seed``: draws come from a seed that serves every framework.
    ``weights_from``: a port's model, its trace with ``save_params``, or a file or folder of its weights. A reference then runs with these
    as they are stored (codes of a few bits, float16, bfloat16), wherever they differ by storage alone; what is left between the two is
    no quantisation. Afterwards the model has its own again, bit for bit.
    ``meta``: what the trace says besides. ``progress``: True says on stderr which run is made, a function is given each line.

    The options, each explained in `tracediff.observe.options.CaptureOptions`:

    - ``include``, ``exclude``: globs on sites; ``stages``: globs on stages; ``calls``: which calls of each site, counted from 0, as ``3``
      or ``0-3`` or ``0:3`` (both ends included);
    - ``methods``: further entrances to observe, such as ``"flow:inference"``; ``functions``: globs on dotted names of functions, such as
      ``"my_package.**"``: what takes or gives arrays or texts and is no module;
    - ``save``: values, or statistics and digests only; ``save_params``: the values of parameters too; ``budget``: the size that the file
      is kept within (bytes, or ``"2GB"``), where need be by 32 values and the statistics of tensors, of repeated calls first;
    - ``repeat``: whether to run twice; ``floor``: whether to measure how much error floating point explains at each site, which takes
      three to six more runs, by default for PyTorch models; ``floor_dtypes``: the dtypes of the ports that will be judged by it, such as
      ``("float64", "bfloat16")``, where float64 serves float32 ports, and "tf32" those whose products are coarser than float32's;
    - ``precise``: True takes products of float32 numbers in full precision where the framework lets them be (MLX's on M5 Macs and on
      CUDA are TF32's otherwise), False as they come; by default in a run that is fed, or whose floor is measured. The trace says what a
      product was in this run;
    - ``impl``: the framework, where nothing tells it; ``compile``: False leaves nothing compiled, True what is compiled.

    What a selection did not match is among the trace's ``not_seen``. A selection that leaves nothing to record is warned of, and so is a
    run in training mode, or one that does not repeat itself. Raises
    CaptureError; before anything runs, TraceExistsError unless ``force`` or the run of the trace that is there failed; and whatever the
    run raises; what was recorded until then is kept.

    >>> import tracediff as td
    >>> td.capture(model, {"tokens": tokens}, to="ref.h5")                       # doctest: +SKIP
    """
    from tracediff.runs.captured import captured

    _check_free(to, force, random, feed)
    path = captured(
        model,
        run,
        to,
        options=CaptureOptions.of(**options),
        feed=feed,
        weights_from=weights_from,
        observers=_draws(random if random is not None else feed, seed),
        meta={**({} if seed is None else {"seed": seed}), **(meta or {})},
        force=force,
        progress=chosen(progress),
    )
    return _warned(open_trace(path))


@contextmanager
@lists_options(BlockKeywords)
def record(
    model: Any,
    to: PathLike,
    *,
    random: TraceLike | None = None,
    seed: int | None = None,
    force: bool = False,
    **options: Unpack[BlockKeywords],
) -> Iterator[None]:
    """Records the code of a ``with`` block, loops included, to the new trace ``to``; the options are those of `capture` for one run.

    >>> with td.record(model, "x.h5"):                                           # doctest: +SKIP
    ...     for step in range(3):
    ...         with td.scope("step", step):
    ...             x = td.tap("x", model(x))
    """
    from tracediff.observe import record as record_block

    _check_free(to, force, random)
    with record_block(model, to, observers=_draws(random, seed), force=force, **options):
        yield
    with open_trace(to) as trace:
        _warned(trace)


def _warned(trace: Trace) -> Trace:
    """The trace, after a Python warning for each thing that its caller is to be told at once."""
    for text in _warnings(trace):
        warnings.warn(f"{trace.path}: {text}", stacklevel=3)
    return trace


def _warnings(trace: Trace) -> list[str]:
    """Why a fresh trace is of doubtful use: nothing was recorded, the run was in training mode, or it does not repeat itself."""
    told = (unpinned(trace),) if unpinned(trace) else ()
    return [*_of_nothing(trace), *caveats(trace, "run" if trace.floor is None else "reference"), *told]


def _of_nothing(trace: Trace) -> Sequence[str]:
    """The warnings of a trace without records, of which one says why it has none."""
    return () if len(trace.records) else trace.meta.get("warnings") or ()


@lists_options(RecipeKeywords)
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
    weights_from: PathLike | None = None,
    start: PathLike | None = None,
    dtype: str | None = None,
    python: PathLike | None = None,
    force: bool = False,
    progress: Progress = silent,
    no_repeat: bool = False,
    no_floor: bool = False,
    **options: Unpack[RecipeKeywords],
) -> Trace:
    """Runs one side of a pair as its recipe says, here or in another environment's ``python``, and returns its trace.

    The keywords are those of `tracediff.observe.recipe.run_recipe`; ``feed`` and the ``options`` those of `capture`, where
    ``floor_dtypes`` come on top of float64. ``weights_from`` as there, or "mlx": the port of the same recipe. ``no_repeat`` and
    ``no_floor`` stand for ``repeat=False`` and ``floor=False``. What the selection did not match is said by ``progress``.
    """
    from tracediff.observe.recipe import run_recipe
    from tracediff.observe.selection import unmatched_lines
    from tracediff.runs.captured import captured

    if output is not None and Path(output).exists():
        _check_free(output, force, random, feed, start)
    asked = CaptureOptions.of(**options)
    asked = replace(
        asked,
        repeat=asked.repeat and not no_repeat,
        floor=False if no_floor else asked.floor,
        floor_dtypes=tuple(dict.fromkeys(("float64", *asked.floor_dtypes))),
    )
    path = run_recipe(
        impl,
        recipe,
        output=output,
        stages=stages,
        weights=weights,
        seed=seed,
        random=random if random is not None else feed,
        start=start,
        dtype=dtype,
        python=python,
        force=force,
        progress=progress,
        job=captured,
        options=asked,
        feed=None if feed is None else os.fspath(feed),
        weights_from=None if weights_from is None else os.fspath(weights_from),
    )
    trace = open_trace(path)
    for line in (*unmatched_lines(asked, trace.meta.get("not_seen") or ()), *_warnings(trace)):
        progress(f"warning: {line}")
    return trace


def calibrate(
    model: Any,
    run: Any,
    trace: PathLike,
    *,
    dtypes: Sequence[str] = FLOOR_DTYPES,
    methods: Iterable[str] | None = None,
    functions: Iterable[str] | None = None,
    impl: str | None = None,
    progress: Progress = silent,
) -> Trace:
    """Adds the noise floor to a reference's trace, or further columns of it, in place; what was measured before is kept.

    ``model`` and ``run`` are those that `capture` recorded to ``trace``. ``dtypes``: those a port may run in, "float64" standing for a
    float32 port; by default all. ``methods``, ``functions``: by default those that the trace was captured with.

    Raises CaptureError where the trace is no complete reference with values that repeats itself, or where the model's parameters or
    what a first run gives are not those of the trace.

    >>> td.calibrate(model, {"tokens": tokens}, "ref.h5", dtypes=["bfloat16"])       # doctest: +SKIP
    """
    from tracediff.runs.captured import calibrated, recorded_options

    options = recorded_options(trace, methods=methods, functions=functions, impl=impl)
    return open_trace(calibrated(model, run, trace, dtypes=tuple(dtypes), options=options, progress=progress))


def calibrate_recipe(
    trace: PathLike, *, recipe: str | None = None, dtypes: Sequence[str] = (), python: PathLike | None = None, progress: Progress = silent
) -> Trace:
    """As `calibrate`, for a trace that a recipe made: the recipe, its seed, weights and stages are those of the trace.

    ``recipe`` names another file for the same recipe; ``dtypes`` are all where empty.
    """
    from tracediff.observe.recipe import rerun_recipe
    from tracediff.runs.captured import calibrated

    chosen = tuple(dtypes) or FLOOR_DTYPES
    rerun_recipe(trace, recipe, job=calibrated, python=python, progress=progress, dtypes=chosen, repeat=False)
    return open_trace(trace)


def align(reference: TraceLike, port: TraceLike, *, mapping: PathLike | Mapping[str, Any] | None = None) -> Alignment:
    """Which sites and records of two traces correspond, each pair with its evidence; ``mapping`` overrides (a file or its content)."""
    from tracediff.alignment import align as align_traces

    with _opened(reference, port) as (first, second):
        return _despite_damage(lambda: align_traces(first, second, mapping=mapping))


def bisect(
    reference: TraceLike,
    port: TraceLike,
    *,
    scan: bool = False,
    mapping: PathLike | Mapping[str, Any] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    strict: bool = False,
    stages: Sequence[str] = (),
    executor: Engine | None = None,
    progress: Progress | bool = False,
) -> Report:
    """Where two traces first part: the report, whose ``first`` is the first divergence.

    A bisection reads few tensors. With ``scan`` all are read, and the report lists every divergence that was introduced. ``mapping``
    overrides the alignment. ``rtol`` and ``atol``, which go together, replace the limits that the noise floor or the dtype gives:
    ``abs(port - reference) <= atol + rtol * abs(reference)`` is allowed. A difference that is little more than noise in size and like
    noise in kind is *borderline* and no divergence, unless ``strict``. ``stages`` restricts the comparison. ``executor``: any
    `concurrent.futures.Executor`, whose workers then read the pairs and take their metrics, or a function without arguments that makes one
    and is asked again where a pool breaks. The report is the same bit for bit; workers open the files under the same paths.
    ``progress``: True says on stderr what is being done, a function is given each line. Raises AlignmentError where the traces share
    nothing; TracediffError where workers cannot read the traces, or die again and again.
    """
    from tracediff.alignment import align as align_traces
    from tracediff.locate import locate
    from tracediff.locate.workers import working
    from tracediff.metrics import tolerance
    from tracediff.ranks import check_ranks
    from tracediff.runs.floor_limits import floor_limits
    from tracediff.show.drawn import Report

    say = chosen(progress)
    tolerance(rtol, atol)

    def compare() -> Report:
        say(f"pairing the sites of {first.path} and {second.path}")
        alignment = align_traces(first, second, mapping=mapping)
        say(f"comparing {len(alignment.records):,} pairs")
        allowed = floor_limits(first, second, alignment.records, stored=alignment.stored)
        limits: dict[str, Any] = {"rtol": rtol, "atol": atol, "strict": strict, "floors": allowed}
        located = locate(alignment, first, second, scan=scan, stages=stages, workers=workers, **limits)
        return Report.of(_explained(located, alignment, first, second))

    with _opened(reference, port) as (first, second):
        first.check_is_reference(second)
        check_ranks(first, second)
        _check_stages(first, stages)
        with working(executor) as workers:
            return _despite_damage(compare)


def _check_stages(reference: Trace, stages: Sequence[str]) -> None:
    """Raises TracediffError, before anything is compared, where a stage is asked for that the reference's run has not."""
    from tracediff.errors import TracediffError
    from tracediff.site import is_in_stage

    outer_of: Mapping[str, str] = reference.meta.get("stages") or {}
    known = {reference.strings[number] for number in set(reference.index["stage"].tolist())} | set(outer_of)
    named = sorted(stage for stage in known if stage)
    for asked in stages:
        if asked and not any(is_in_stage(stage, asked, outer_of) for stage in known):
            has = f"its stages: {', '.join(named)}" if named else "its run has no stages, so leave out --stage"
            raise TracediffError(f"No stage {asked!r} in {str(reference.path)!r}; {has}.")


def _despite_damage(compare: Callable[[], T]) -> T:
    """What comparing gives: a record that it finds damaged counts as not stored from then on, and all is compared again.

    Raises DamagedRecordError where that comes to no end.
    """
    for _ in range(_MOST_DAMAGED):
        with suppress(DamagedRecordError):
            return compare()
    return compare()


def _explained(located: Located, alignment: Alignment, first: Trace, second: Trace) -> PlainReport:
    """The report of what was located, with the causes that weights and tensors show."""
    from tracediff.causes.explanation import explain
    from tracediff.ranks import ranks_note
    from tracediff.report import build
    from tracediff.runs.floor_limits import floor_notes
    from tracediff.trace.budget import budget_note

    explained = explain(located, alignment, first, second)
    told = (
        ranks_note(first, "reference"),
        ranks_note(second, "port"),
        budget_note(first, "reference"),
        budget_note(second, "port"),
        stored_weights_note(first, second),
    )
    return build(
        explained.located,
        alignment,
        first,
        second,
        weights=explained.weights,
        causes=explained.causes,
        notes=[*filter(None, told), *floor_notes(first, second, alignment.stored), *explained.notes],
    )


def bisect_live(
    reference_model: Any,
    reference_run: Any,
    port_model: Any,
    port_run: Any,
    *,
    seed: int | None = None,
    mapping: PathLike | Mapping[str, Any] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    strict: bool = False,
    stages: Sequence[str] = (),
    methods: tuple[Iterable[str], Iterable[str]] = ((), ()),
    functions: tuple[Iterable[str], Iterable[str]] = ((), ()),
    most: int | None = None,
    progress: Progress = silent,
) -> Report:
    """Where two models first part, found by running both again and again; no trace is stored.

    Models and runs are those of `capture`, the reference's first; ``methods`` and ``functions`` are given for each side. Each side runs
    twice, to prove that it repeats itself, and then once a round. A round holds the tensors that one frame sees, so there are about as
    many rounds as calls are nested. More than ``most`` bytes (256 MiB) are held only where one frame needs them. ``seed`` makes both
    sides draw the same numbers. The report's method is "live", and its certificate says how many runs were made. The rest is as in
    `bisect`; no noise floor is measured.

    Raises CaptureError where a side does not repeat itself.

    >>> td.bisect_live(torch_model, {"tokens": tokens}, mlx_model, {"tokens": tokens})       # doctest: +SKIP
    """
    from tracediff.runs.live import of_model

    models = ("reference", reference_model, reference_run), ("port", port_model, port_run)
    sides = [
        of_model(*side, observers=_draws(None, seed), methods=seen, functions=names, meta={} if seed is None else {"seed": seed})
        for side, seen, names in zip(models, methods, functions, strict=True)
    ]
    return _live_report(sides, most, mapping=mapping, rtol=rtol, atol=atol, strict=strict, stages=stages, say=progress)


def bisect_recipe(
    *,
    recipe: str | None = None,
    stages: Sequence[str] = (),
    weights: str = "seeded",
    seed: int = 0,
    dtype: str | None = None,
    python: Mapping[str, PathLike] | None = None,
    mapping: PathLike | Mapping[str, Any] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    strict: bool = False,
    progress: Progress = silent,
) -> Report:
    """As `bisect_live`, for the two sides of a recipe, the PyTorch one being the reference.

    ``python``: by "torch" or "mlx" another environment's Python in which that side runs. ``dtype`` is the port's.
    """
    from tracediff.runs.live import of_recipe

    asked: dict[str, Any] = {"stages": stages, "weights": weights, "seed": seed, "say": progress}
    elsewhere = python or {}
    sides = [
        of_recipe("reference", "torch", recipe, python=elsewhere.get("torch"), **asked),
        of_recipe("port", "mlx", recipe, python=elsewhere.get("mlx"), dtype=dtype, **asked),
    ]
    return _live_report(sides, None, mapping=mapping, rtol=rtol, atol=atol, strict=strict, stages=(), say=progress)


def _live_report(sides: Sequence[Any], most: int | None, **options: Any) -> Report:
    from dataclasses import replace

    from tracediff.runs.live_search import searched
    from tracediff.show.drawn import Report

    with searched(*sides, most=most, **options) as found:
        report = _explained(found.located, found.alignment, found.reference, found.port)
        return Report.of(replace(report, certificate={**report.certificate, **found.certificate()}))


@lists_options(CaptureKeywords)
def compare(
    model: Any,
    first: Any,
    second: Any,
    *,
    second_model: Any = None,
    to: PathLike | None = None,
    seed: int = 0,
    force: bool = False,
    mapping: PathLike | Mapping[str, Any] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    strict: bool = False,
    progress: Progress = silent,
    **options: Unpack[CaptureKeywords],
) -> Report:
    """One model run in two ways, compared: a whole pass against token by token, a batch against singles, padded against plain.

    ``first`` and ``second`` are runs as `capture` takes them: inputs, or callables without arguments. The first is the reference; the
    second takes its draws, which come from ``seed``. Calls of which one way makes several to the other's one are paired: a loop over
    tokens or chunks with the whole pass, masks and caches too, and places that are padded on the left or right are left out.
    ``second_model``: the model of the second way where it is another object: on another device, in another dtype, compiled, rewritten.
    ``to``: a folder that keeps the traces, ``first.h5`` and ``second.h5``. The options are those of `capture`. Raises as `capture` does,
    and AlignmentError where the two ways share nothing.

    >>> td.compare(model, {"tokens": tokens}, lambda: decode(model, tokens))          # doctest: +SKIP
    """
    from tracediff.runs.two_ways import record_two

    with _folder_of_ways(to, force) as paths:
        ways = (model, first), (model if second_model is None else second_model, second)
        record_two(ways, paths, options=CaptureOptions.of(**options), seed=seed, force=force, progress=progress)
        return diff(*paths, mapping=mapping, rtol=rtol, atol=atol, strict=strict, progress=progress)


def compare_named(
    first: str,
    second: str,
    *,
    to: PathLike | None = None,
    seed: int = 0,
    python: PathLike | None = None,
    force: bool = False,
    functions: Sequence[str] = (),
    progress: Progress = silent,
    **options: Any,
) -> Report:
    """As `compare`, for two ways that ``FILE:CALLABLE`` make, each returning a model and its run; ``python`` runs the second way."""
    from tracediff.runs.two_ways import record_two_named

    with _folder_of_ways(to, force) as paths:
        chosen = CaptureOptions.of(functions=functions)
        record_two_named((first, second), paths, options=chosen, seed=seed, python=python, force=force, progress=progress)
        return diff(*paths, progress=progress, **options)


@contextmanager
def _folder_of_ways(to: PathLike | None, force: bool) -> Iterator[tuple[Path, Path]]:
    """The traces of two ways, in a folder that is kept where it has a name."""
    from tempfile import TemporaryDirectory

    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="tracediff-"))) if to is None else Path(to)
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / "first.h5", folder / "second.h5"
        for path in paths:
            _check_free(path, force)
        yield paths


def weights(reference: Any, port: Any, *, checkpoint: Any = None) -> WeightsReport:
    """How the weights of two sides differ, without running either.

    Each side is a trace, a live model, a .safetensors, .pt or .npz file, or a folder of them; ``checkpoint`` is a third that tells
    which side is wrong.
    """
    from tracediff.parameters.diagnosis import weights as compare_weights
    from tracediff.show.drawn import WeightsReport

    return WeightsReport.of(compare_weights(reference, port, checkpoint=checkpoint))


def diff(reference: TraceLike, port: TraceLike, **options: Any) -> Report:
    """Every pair of two traces compared, in execution order; the options are those of `bisect`."""
    return bisect(reference, port, scan=True, **options)


def status(
    reference: TraceLike,
    *ports: TraceLike,
    full: TraceLike | None = None,
    mapping: PathLike | Mapping[str, Any] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    strict: bool = False,
    stages: Sequence[str] = (),
    progress: Progress | bool = False,
) -> Status:
    """How far a port is, stage by stage; ``ports`` are a forced run, a free run, or both, in any order.

    ``full``: where the reference ran with the port's weights (``weights_from``), its trace with its own; each stage then says what the
    storage of weights costs it, introduced by one layer at most and at its end.
    The verdict is "same" only where every stage is the same in both; "different" where one differs in either; else None, and ``why``
    says what was not shown. The options are those of `bisect`. Raises TracediffError for two runs of one mode.

    >>> print(td.status("ref.h5", "forced.h5", "free.h5"))                       # doctest: +SKIP
    """
    from tracediff.show.drawn import Status
    from tracediff.stage_table import build, modes_of

    with _opened(reference, *ports) as (first, *runs):
        modes_of(runs)
        options: dict[str, Any] = {"mapping": mapping, "rtol": rtol, "atol": atol, "strict": strict, "stages": stages, "progress": progress}
        reports = [(port, diff(first, port, **options)) for port in runs]
        if full is None:
            return Status.of(build(first, reports, stages=stages))
        with _opened(full) as (whole,):
            return Status.of(build(first, reports, stages=stages, full=whole))


def view(reference: TraceLike, *ports: TraceLike, to: PathLike, sites: Sequence[str] = (), force: bool = False, **options: Any) -> Path:
    """Writes the interactive page of a comparison to ``to`` and returns its path; ``ports`` are one run, or a forced and a free one.

    The page is one HTML file that fetches nothing: findings, stages, a heat map of the modules, the error in execution order, both models
    side by side, all pairs, and the tensors of those that tell most; ``sites`` adds all tensors of these. A page that is there is
    replaced, another file only with ``force``. The options are those of `bisect`. Raises TraceExistsError and TraceFileError before
    anything is compared, SiteError for a site that no pair has.

    >>> td.view("ref.h5", "forced.h5", "free.h5", to="port.html")                # doctest: +SKIP
    """
    from tracediff.outputs import check_output, write_output
    from tracediff.show.page import is_page, page

    force = force or is_page(to)
    check_output(to, force=force)
    if len(ports) == 1:
        return write_output(to, page(diff(reference, *ports, **options), sites=sites), force=force)
    told = status(reference, *ports, **options)
    return write_output(to, page(*told.reports.values(), status=told, sites=sites), force=force)


def try_site(
    reference: TraceLike,
    site: str,
    module: Any,
    *,
    calls: Sequence[int] = (),
    arguments: Mapping[str, str] | None = None,
    impl: str | None = None,
    to: PathLike | None = None,
    force: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    progress: Progress | bool = False,
) -> Report:
    """The report of one module of a port, run on the inputs that a reference's trace holds of a site; this takes seconds.

    ``site``: the reference's. ``module``: a live module with its weights, or another callable. It is called as the site was at each
    recorded call, or at those of ``calls`` (counted from 0). The modules inside it are paired with those inside the site and fed the
    reference's tensors, as in a forced run. Inputs go to parameters of the same name, else in order; ``arguments`` maps the reference's
    names to the module's. ``impl``: the framework of a callable that does not tell it. ``to``: where to keep the module's trace.
    ``rtol``, ``atol`` and ``progress`` as in `bisect`.

    Raises SiteError for an unknown site or call, TraceFileError where the inputs were not stored, CaptureError where they cannot be
    bound to the module's parameters. What the module raises is a divergence.

    >>> report = td.try_site("ref.h5", "flow.decoder.mid_blocks.0", MyBlock())   # doctest: +SKIP
    """
    from tempfile import TemporaryDirectory

    from tracediff.runs.single_site import run_site

    say = chosen(progress)
    with _opened(reference) as (whole,), TemporaryDirectory(prefix="tracediff-") as folder:
        path = Path(folder) / "tried.h5" if to is None else Path(to)
        part, mapping = run_site(whole, site, module, path, calls=calls, arguments=arguments, impl=impl, force=force, say=say)
        return bisect(part, path, scan=True, mapping=mapping, rtol=rtol, atol=atol, progress=say)


def try_named(
    reference: TraceLike,
    site: str,
    name: str | None = None,
    *,
    impl: str = "mlx",
    recipe: str | None = None,
    module: str | None = None,
    weights: PathLike | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Report:
    """As `try_site`, for the module that ``name`` (``FILE:CLASS`` or ``FILE:FACTORY``) makes, or that a port's recipe loads.

    Without ``name`` the port's recipe loads its models with the seed and weights of the reference's run. The module is then the one at
    the path ``module``, else at the site's path, else the one that holds parameters of the same sizes. ``weights``: a .safetensors or
    .npz file that the module loads itself.
    """
    from tracediff.runs.single_site import port_module

    with _opened(reference) as (whole,):
        path, made = port_module(whole, site, name, impl=impl, recipe=recipe, path=module, weights=weights)
        if name is None:
            progress(f"the port's module: {path or 'the root'} ({type(made).__name__})")
        return try_site(whole, site, made, progress=progress, **options)


def listing(trace: TraceLike, pattern: str = "", **options: Any) -> Listing:
    """What a trace holds, as a table: see `tracediff.trace.listing.listing`."""
    from tracediff.trace.listing import listing as list_trace

    with _opened(trace) as (opened,):
        return list_trace(opened, pattern, **options)


def look(port: TraceLike, *, like: TraceLike | None = None) -> Look:
    """What looks wrong in one trace, by itself or beside a reference whose inputs may be others: alarms, never a verdict.

    Looked for are calls that raised, NaN and infinities, constants, the same at every place, ids that loop or do not end, a pure tone, a
    loop whose norm runs away, and with ``like`` signs, spread and range unlike the reference's.
    """
    from tracediff.alarms import look as look_at
    from tracediff.show.drawn import Look

    with _opened(port, *([] if like is None else [like])) as (first, *others):
        return Look.of(look_at(first, others[0] if others else None))


def summary(trace: TraceLike) -> dict[str, Any]:
    """What a trace is, as one JSON object."""
    from tracediff.trace.listing import summary as summarise

    with _opened(trace) as (opened,):
        return summarise(opened)


def recover(path: PathLike, to: PathLike | None = None) -> Trace:
    """Makes a trace whose capture was killed an ordinary file again, in place or at ``to``, and returns it."""
    from tracediff.trace.recovery import recover as recover_trace

    return open_trace(recover_trace(path, to))


def merge(traces: Sequence[TraceLike], to: PathLike, *, table: PathLike | Mapping[str, Any] | None = None, force: bool = False) -> Trace:
    """Makes one trace of those of all ranks of a run, each captured by its own process, and returns it: see `tracediff.ranks`.

    Parts of tensors are joined, partial sums added, replicas compared. The traces say their ranks, or come in their order. ``table`` (a
    TOML file or its content) says of what is no DTensor how it is placed: ``{"mesh": {"tp": 2}, "records": {"*.up": "tp: shard(-1)"},
    "parameters": {...}}``. Ranks that differ from their replicas are in ``meta["merged"]["differ"]``, and no verdict on them is "same".

    >>> td.merge(["ref.rank0.h5", "ref.rank1.h5"], to="ref.h5")                  # doctest: +SKIP
    """
    from tracediff.ranks import merge as merge_ranks

    return open_trace(merge_ranks(traces, to, table=table, force=force))


def convert(
    source: PathLike,
    target: PathLike,
    *,
    impl: str = "",
    stored: str = "",
    like: PathLike | None = None,
    mapping: PathLike | Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Turns arrays by name (.npz, .safetensors, a folder of .npy) into a trace, or a trace into those: `tracediff.trace.conversion`.

    ``stored``: "float16" or "bfloat16" where a port that ran in float32 stored its arrays so. ``like``: a port's trace, as whose arrays a
    reference's tensors are written: under its names, in its axis order and dtype (`tracediff.runs.feed_file`); ``mapping`` then overrides
    what is paired.
    """
    from tracediff.trace.conversion import convert as convert_arrays

    if like is None:
        return convert_arrays(source, target, impl=impl, stored=stored, force=force)
    from tracediff.runs.feed_file import write_feed

    with _opened(source, like) as (reference, port):
        return write_feed(reference, port, target, mapping=mapping, force=force)


def map_skeleton(
    reference: TraceLike, port: TraceLike, to: PathLike, *, mapping: PathLike | Mapping[str, Any] | None = None, force: bool = False
) -> Alignment:
    """As `align`, and writes the pairs as a mapping file to edit; where nothing could be paired, it lists the sites of both sides.

    Raises AlignmentError as `align` does, after the file was written.
    """
    from tracediff.errors import AlignmentError

    try:
        alignment = align(reference, port, mapping=mapping)
    except AlignmentError as error:
        if error.skeleton is None:
            raise
        error.skeleton.write_map(to, force=force)
        raise AlignmentError(f"{error} A mapping without pairs, to be filled in, is in {os.fspath(to)!r}.") from error
    alignment.write_map(to, force=force)
    return alignment


def write_recipes(name: str, folder: PathLike) -> list[Path]:
    """Writes the pair of recipes to start from, and returns their paths."""
    from tracediff.observe import recipe as recipes

    return recipes.write_recipes(folder, name)


def _draws(random: TraceLike | None, seed: int | None) -> list[Observer]:
    from tracediff.observe.randomness import Playback, SeededDraws, Tape

    if random is not None:
        return [Playback(open_trace(random))]
    return [] if seed is None else [SeededDraws(Tape(seed))]


def _check_free(to: PathLike, force: bool, *sources: TraceLike | None) -> None:
    """Raises, before anything runs, where the output is there already, or is one of the traces that the run reads."""
    from tracediff.trace.writer import check_trace_output

    read = [source.path if isinstance(source, Trace) else source for source in sources if source is not None]
    check_trace_output(Path(to), force=force, sources=read)


@contextmanager
def _opened(*given: TraceLike) -> Iterator[list[Trace]]:
    """The traces, open; those that were given as paths are closed afterwards."""
    with ExitStack() as stack:
        yield [trace if isinstance(trace, Trace) else stack.enter_context(open_trace(trace)) for trace in given]
