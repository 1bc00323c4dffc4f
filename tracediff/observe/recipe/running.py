"""A recipe's run, here or in another Python, as one job does it: recorded, forced, calibrated, indexed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracediff.errors import RecipeError
from tracediff.observe import observe
from tracediff.observe.adapters.registry import FRAMEWORKS, named
from tracediff.observe.context import Context, weights_beside
from tracediff.observe.jobs import Job, find_job, name_of
from tracediff.observe.observer import Observer
from tracediff.observe.options import DEFAULTS, CaptureOptions, Progress, silent
from tracediff.observe.other_python import run_elsewhere
from tracediff.observe.recipe.continue_stages import run_all_stages
from tracediff.observe.recipe.finding import find_recipe
from tracediff.observe.recipe.loading import Models, Recipe, check_stages, load_recipe
from tracediff.observe.two_builds import digests_under_other_seeds, drawn

if TYPE_CHECKING:
    from tracediff.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeRun:
    """One run of a recipe as it is asked for; plain data, so that it crosses to another Python."""

    impl: str
    """Which side: ``torch`` or ``mlx``."""
    recipe: str
    """The recipe's file."""
    to: str
    """The trace to write."""
    stages: tuple[str, ...]
    """The wanted stages of the recipe; empty: all."""
    weights: str
    """Where the weights come from, as in `Context.weights`."""
    seed: int
    """Seeds weights, inputs and draws."""
    reference: str | None
    """A trace whose inputs and draws are played back instead of the seed's."""
    from_reference: bool
    """Whether what an earlier stage computes is taken from that trace too."""
    dtype: str | None
    """The dtype in which the models run; None: their own."""
    force: bool
    """Whether a trace at ``to`` is replaced."""

    def context(self, reference: Trace | None, sources: Mapping[str, Mapping[str, str]]) -> Context:
        """What the recipe is given; ``reference`` is the open trace."""
        return Context(
            seed=self.seed,
            weights=self.weights,
            dtype=self.dtype,
            stages=tuple(self.stages),
            reference=reference,
            weights_file=weights_beside(Path(self.to)),
            from_reference=self.from_reference,
            sources=sources,
        )

    def meta(self, name: str) -> dict[str, Any]:
        """What the trace says of the run, by which `rerun_recipe` makes it again; ``name`` is the recipe's."""
        return {
            "recipe": name,
            "seed": self.seed,
            "weights": self.weights,
            "random": self.reference,
            "from": self.reference if self.from_reference else None,
            "wanted": list(self.stages),
            "cast": self.dtype,
        }


def run_recipe(
    impl: str,
    recipe: str | os.PathLike[str] | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    stages: Sequence[str] = (),
    weights: str = "seeded",
    seed: int = 0,
    random: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    python: str | os.PathLike[str] | None = None,
    force: bool = False,
    change: Callable[[Models], None] | None = None,
    progress: Progress = silent,
    job: Job | str | None = None,
    how: str | None = None,
    options: CaptureOptions = DEFAULTS,
    **given: Any,
) -> Path:
    """Runs one side as its recipe says, records it to a new trace, and returns that trace's path.

    ``output``: by default ``traces/RECIPE_IMPL.h5``, or the next free number. ``random``: a trace whose inputs and draws are played
    back instead of the seed's. ``start``: such a trace from which each stage also takes the inputs that an earlier stage would compute
    (`Context.given`), so that one stage can be run by itself. ``python``: another environment's interpreter, in which this side runs.
    ``change`` is called with the loaded models before the run: a demonstration plants its fault there.

    ``job``: the function that is done with the run (`tracediff.observe.jobs`), or its name; by default it is recorded, by
    `tracediff.observe.recording.record_run`. ``how`` is the keyword of version 0.1 for the job's name. ``given`` are single fields
    of ``options``, and what the job takes besides.

    Raises RecipeError; TraceExistsError where a named output is there already and not ``force``.
    """
    path = find_recipe(recipe, impl)
    to = Path(output) if output is not None else _free(Path("traces") / f"{path.stem}.h5")
    to.parent.mkdir(parents=True, exist_ok=True)
    options, own = options.updated(given)
    asked = RecipeRun(
        impl=impl,
        recipe=os.fspath(path),
        to=os.fspath(to),
        stages=tuple(stages),
        weights=weights,
        seed=seed,
        reference=_one_reference(random, start),
        from_reference=start is not None,
        dtype=dtype,
        force=force,
    )
    chosen = find_job(job or how or _recording())
    if python is None:
        _run(asked, options, chosen, own, change=change, progress=progress)
    elif change is not None:
        raise RecipeError("Models that are loaded in another Python cannot be changed from here; leave out --python.")
    else:
        progress(f"running {path.name} in {os.fspath(python)}")
        request = {"run": asdict(asked), "options": options.to_json(), "job": name_of(chosen), "own": own}
        run_elsewhere(python, run_request, request)
    return to


def rerun_recipe(
    trace: str | os.PathLike[str],
    recipe: str | os.PathLike[str] | None = None,
    *,
    python: str | os.PathLike[str] | None = None,
    **given: Any,
) -> Path:
    """Runs what a trace recorded once more, as that trace says: its recipe, side, seed, weights, stages, inputs, methods and functions.

    ``recipe`` names its file where that lies elsewhere. ``given`` are keywords of `run_recipe`, first of all ``job``. Raises RecipeError
    for a trace that no recipe made.
    """
    from tracediff.trace import open_trace

    with open_trace(trace) as opened:
        meta = opened.meta
    observed = meta.get("observed") or {}
    if "recipe" not in meta:
        raise RecipeError(
            f"{os.fspath(trace)!r} was not made by a recipe, so it does not say how to run its model again; in Python: "
            "td.calibrate(model, run, trace)."
        )
    return run_recipe(
        meta["impl"],
        recipe if recipe is not None else meta["recipe"],
        output=trace,
        stages=meta.get("wanted", ()),
        weights=meta["weights"],
        seed=meta["seed"],
        random=meta.get("random"),
        start=meta.get("from"),
        dtype=meta.get("cast"),
        methods=observed.get("methods", ()),
        functions=observed.get("functions", ()),
        python=python,
        **given,
    )


def run_request(*, run: dict[str, Any], options: dict[str, Any], job: str, own: Mapping[str, Any]) -> None:
    """The part of `run_recipe` that happens in the other Python; all arguments are plain data."""
    _run(RecipeRun(**run), CaptureOptions.of(**options), find_job(job), own)


def _run(
    asked: RecipeRun,
    options: CaptureOptions,
    job: Job,
    own: Mapping[str, Any],
    *,
    change: Callable[[Models], None] | None = None,
    progress: Progress = silent,
) -> None:
    """Loads the recipe's models and does the job with their run; ``own`` are keywords of this job alone."""
    from tracediff.trace import open_trace

    recipe = load_recipe(asked.recipe, asked.impl)
    check_stages(recipe, asked.stages)
    with ExitStack() as stack:
        reference = None if asked.reference is None else stack.enter_context(open_trace(asked.reference))
        context = asked.context(reference, recipe.sources)
        stack.enter_context(redirect_stdout(sys.stderr))
        is_precise = own.get("feed") is not None if options.precise is None else options.precise
        if is_precise:  # MLX asks once, perhaps while a model is made
            stack.enter_context(named(asked.impl).full_precision())
        progress(f"loading {recipe.description}")
        other = None
        if options.repeat and not asked.weights.startswith("seeded"):
            otherwise = replace(asked, seed=asked.seed + 1).context(reference, recipe.sources)
            other = digests_under_other_seeds(lambda: recipe.load(otherwise))
        models = recipe.load(context)
        say_once = cache(progress)  # each further run would say the same of the stages that raise
        told = {} if other is None else {"drawn": drawn(models, other)}
        if change is not None:
            change(models)
        if own.get("weights_from") in FRAMEWORKS:
            own = {**own, "weights_from": _models_of_side(recipe, own["weights_from"], context, progress)}
        job(
            dict(models),
            lambda: run_all_stages(recipe, models, context, say_once),
            asked.to,
            options=replace(
                options,
                impl=asked.impl,
                methods=tuple(dict.fromkeys((*_of_roots(recipe.methods, models), *options.methods))),
                functions=tuple(dict.fromkeys((*recipe.functions, *options.functions))),
            ),
            observers=[context.draws],
            meta=asked.meta(recipe.name) | {"tokenizers": dict(recipe.tokenizers)} | told,
            force=asked.force,
            progress=progress,
            **own,
        )


def _models_of_side(recipe: Recipe, impl: str, context: Context, progress: Progress) -> Models:
    """The models that the recipe of another side loads, which lies beside this one."""
    other = load_recipe(recipe.path.with_name(f"{recipe.name}_{impl}.py"), impl)
    progress(f"loading {other.description}, for its weights")
    return other.load(context)


def observe_recipe(recipe: Recipe, context: Context, observers: Sequence[Observer] = (), *, models: Models | None = None) -> Any:
    """Runs a recipe's wanted stages with every boundary shown to the observers, and returns what the recipe returned.

    ``models``: those of an earlier `Recipe.load`, so that they are not loaded again. What they print goes to stderr.
    """
    check_stages(recipe, context.stages)
    with redirect_stdout(sys.stderr):
        loaded = recipe.load(context) if models is None else models
        return observe(
            dict(loaded),
            lambda: recipe.run(loaded, context),
            [context.draws, *observers],
            methods=_of_roots(recipe.methods, loaded),
            functions=recipe.functions,
            impl=recipe.impl,
        )


def load_quietly(recipe: Recipe, context: Context) -> Models:
    """The recipe's models; what loading prints goes to stderr."""
    with redirect_stdout(sys.stderr):
        return recipe.load(context)


def _recording() -> Job:
    """The job that is done where no other is named."""
    from tracediff.observe.recording import record_run

    return record_run


def _free(path: Path) -> Path:
    """The path, or the first numbered one after it that is not there yet: ``x.h5``, ``x-2.h5``..."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def _one_reference(random: str | os.PathLike[str] | None, start: str | os.PathLike[str] | None) -> str | None:
    """The trace that inputs, draws and (with ``start``) what earlier stages compute are taken from; RecipeError where two are named."""
    named = [os.fspath(trace) for trace in (random, start) if trace is not None]
    if len({os.path.realpath(trace) for trace in named}) > 1:
        raise RecipeError(
            f"A run takes its inputs and draws from one trace, not from both {named[0]!r} and {named[1]!r}; --from is enough."
        )
    return named[0] if named else None


def _of_roots(methods: Sequence[str], models: Models) -> list[str]:
    """The methods of the models that were loaded: a run of one stage may need only some of the models."""
    return [method for method in methods if re.split(r"[.:]", method, maxsplit=1)[0] in models or method.startswith(("*", ":"))]
