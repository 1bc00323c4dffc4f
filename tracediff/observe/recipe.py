"""Recipes: the files in ``hooks/`` that load, feed and run one side of a pair, here or in that stack's own Python.

A recipe is one ordinary Python file per model and side, ``hooks/NAME_torch.py`` and ``hooks/NAME_mlx.py``:

    '''My model in PyTorch, the reference.'''          # its first line describes it
    IMPL = "torch"                                      # which framework
    REQUIRES = ["torch>=2.6"]                           # what to install, shown where an import fails
    STAGES = {"encoder": "The encoder", ...}            # the parts that have a verdict each, in order
    METHODS = ["model.encoder:encode"]                  # methods to observe besides modules (optional); also FUNCTIONS
    SOURCES = {"decoder": {"x": "model.decoder/input[0]"}}   # where a whole run is given a stage's inputs (optional), for --from
    def load(context): return {"model": ...}            # named roots; the names begin the module paths
    def run(models, context): ...                       # runs the stages, each in `with td.stage(name)`

It may import files beside it, at its top. `Context` gives it the seed's weights, inputs and draws, or those of a reference trace.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tracediff.errors import RecipeError, TracediffError
from tracediff.observe import observe
from tracediff.observe.adapters import base
from tracediff.observe.context import Context, weights_beside
from tracediff.observe.continue_stages import run_onward
from tracediff.observe.observer import Observer
from tracediff.observe.other_python import run_elsewhere
from tracediff.observe.recipe_template import write_recipes

__all__ = [
    "Context",
    "Recipe",
    "check_stages",
    "find_recipe",
    "folders",
    "known_recipes",
    "load_faults",
    "load_file",
    "load_recipe",
    "observe_recipe",
    "rerun_recipe",
    "run_recipe",
    "write_recipes",
]

Models = Mapping[str, Any]

RECORD = "tracediff.observe.recording:record_run"
MOVED = {
    "tracediff.capturing": "tracediff.runs.captured",
    "tracediff.capture.recording": "tracediff.observe.recording",
    "tracediff.live": "tracediff.runs.live",
}
"""Where the modules are that version 0.1 named in ``how``."""
DEFAULT = "chatterbox"
"""The recipe that is taken where nothing tells which."""


# -- finding one


def folders() -> list[Path]:
    """Where recipes are looked for: ``hooks/`` of the current folder, of the installed package, of the checkout it was installed from."""
    package = Path(__file__).parents[1]
    found = [Path.cwd() / "hooks", package / "hooks"]
    if (package.parent / "pyproject.toml").is_file():
        found.append(package.parent / "hooks")
    return list(dict.fromkeys(folder for folder in found if folder.is_dir()))


def known_recipes() -> list[str]:
    """The names of the recipes that can be found, as ``chatterbox (mlx, torch)``."""
    sides: dict[str, set[str]] = {}
    for path in _recipes():
        name, _, impl = path.stem.rpartition("_")
        sides.setdefault(name, set()).add(impl)
    return [f"{name} ({', '.join(sorted(impls))})" for name, impls in sides.items()]


def _recipes() -> Iterator[Path]:
    for folder in folders():
        yield from sorted(path for path in folder.glob("*_*.py") if path.stem.rpartition("_")[2] in base.FRAMEWORKS)


def find_recipe(what: str | os.PathLike[str] | None, impl: str) -> Path:
    """The file of a recipe for one side.

    ``what`` is a name (``chatterbox``, for ``hooks/chatterbox_torch.py``), a file, or None: then the only recipe for that side in the
    current folder's ``hooks/`` (of several, the only one that has a recipe for the other side too), or else chatterbox. Raises
    RecipeError naming the recipes there are.
    """
    if what is None:
        return _only_recipe(impl)
    name = os.fspath(what)
    if name.endswith(".py") or Path(name).is_file():
        if Path(name).is_file():
            return Path(name).resolve()
        raise RecipeError(f"No recipe file {name!r}. {_known(impl)}")
    for path in _recipes():
        if path.stem in (f"{name}_{impl}", name) and path.stem.endswith(f"_{impl}"):
            return path
    raise RecipeError(f"No recipe {name!r} for {impl!r}. {_known(impl, name)}")


def _only_recipe(impl: str) -> Path:
    own = sorted((Path.cwd() / "hooks").glob(f"*_{impl}.py"))
    pairs = [path for path in own if _has_both_sides(path)]
    if len(pairs) == 1:  # what has one side only is another port of some reference: it is asked for by name
        return pairs[0]
    if len(own) > 1:
        names = ", ".join(path.stem.removesuffix(f"_{impl}") for path in own)
        raise RecipeError(
            f"{os.fspath(Path.cwd() / 'hooks')!r} has {len(own)} recipes for {impl!r}: {names}. Choose one with --recipe NAME."
        )
    return own[0] if own else find_recipe(DEFAULT, impl)


def _has_both_sides(path: Path) -> bool:
    name = path.stem.rpartition("_")[0]
    return all(path.with_name(f"{name}_{impl}.py").is_file() for impl in base.FRAMEWORKS)


def _known(impl: str, name: str = "") -> str:
    names = [path.stem.removesuffix(f"_{impl}") for path in _recipes() if path.stem.endswith(f"_{impl}")]
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    listed = ", ".join(dict.fromkeys(names)) or "none"
    return f"Recipes for {impl!r}: {listed}.{hint} Write a pair of your own with: tracediff init NAME"


# -- loading one


@dataclass(frozen=True, slots=True)
class Recipe:
    """A loaded recipe: its file, and what is written in it."""

    name: str
    path: Path
    impl: str
    description: str
    requires: tuple[str, ...]
    install: str
    stages: Mapping[str, str]
    methods: tuple[str, ...]
    functions: tuple[str, ...]
    sources: Mapping[str, Mapping[str, str]]
    module: ModuleType

    def load(self, context: Context) -> Models:
        """The side's models by the names of their roots."""
        try:
            models = self.module.load(context)
        except ImportError as error:
            raise _missing(self.path, error, self.requires, self.install) from error
        if not isinstance(models, Mapping) or not models or not all(isinstance(name, str) for name in models):
            raise RecipeError(
                f"load() in {os.fspath(self.path)!r} returned {type(models).__name__}; return a dict such as {{'model': model}}."
            )
        return models

    def run(self, models: Models, context: Context) -> Any:
        """Runs the wanted stages and returns what the recipe returned."""
        try:
            return self.module.run(models, context)
        except ImportError as error:
            raise _missing(self.path, error, self.requires, self.install) from error


def load_recipe(what: str | os.PathLike[str] | None, impl: str) -> Recipe:
    """The recipe of that name or file for one side; RecipeError where it cannot be found, imported, or is no recipe."""
    path = find_recipe(what, impl)
    module = load_file(path)
    _check(module, path, impl)
    return Recipe(
        name=path.stem.removesuffix(f"_{impl}"),
        path=path,
        impl=module.IMPL,
        description=(module.__doc__ or "").strip().partition("\n")[0],
        requires=tuple(getattr(module, "REQUIRES", ())),
        install=getattr(module, "INSTALL", ""),
        stages=dict(module.STAGES),
        methods=tuple(getattr(module, "METHODS", ())),
        functions=tuple(getattr(module, "FUNCTIONS", ())),
        sources=getattr(module, "SOURCES", {}),
        module=module,
    )


def load_file(path: Path) -> ModuleType:
    """A Python file of a ``hooks/`` folder, imported anew, with the files beside it importable by name while it is."""
    name = f"tracediff_hooks_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{os.fspath(path)!r} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except ImportError as error:
        raise _missing(path, error, tuple(getattr(module, "REQUIRES", ())), getattr(module, "INSTALL", "")) from error
    except TracediffError:
        raise
    except Exception as error:
        raise RecipeError(f"{os.fspath(path)!r} cannot be loaded: {type(error).__name__}: {error} (line {_line(error, path)}).") from error
    return module


def load_faults(name: str, impl: str) -> Mapping[str, Any]:
    """The faults that can be planted in a recipe's models, by name: ``FAULTS`` of ``NAME_faults.py`` beside the recipe.

    Each has ``announcement``, ``stage``, ``kind``, the culprits ``port`` and ``reference``, and ``planted(models)``, a context manager.
    """
    path = find_recipe(name, impl).with_name(f"{name}_faults.py")
    if not path.is_file():
        raise RecipeError(f"No faults are written for {name!r}: there is no {os.fspath(path)!r}.")
    faults: Mapping[str, Any] = load_file(path).FAULTS
    return faults


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """For a while the modules in a folder can be imported; afterwards their names are free for those of another folder."""
    sys.path.insert(0, os.fspath(folder))
    before = set(sys.modules)
    try:
        yield
    finally:
        sys.path.remove(os.fspath(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == folder and "." not in name:
                del sys.modules[name]


def _line(error: BaseException, path: Path) -> int:
    if isinstance(error, SyntaxError):
        return error.lineno or 0
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == os.fspath(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _missing(path: Path, error: ImportError, requires: Sequence[str], install: str) -> RecipeError:
    command = install or "pip install " + " ".join(f"'{requirement}'" for requirement in requires)
    needs = f"It requires {', '.join(requires)}. Install with: {command}" if requires else "Install what it imports"
    return RecipeError(
        f"{os.fspath(path)!r} cannot import what it needs: {error}. {needs}. Or run this side in another environment: --python PATH"
    )


def _check(module: ModuleType, path: Path, impl: str) -> None:
    faults = [fault for fault in _faults(module, impl) if fault]
    if faults:
        raise RecipeError(f"{os.fspath(path)!r} is no recipe: {'; '.join(faults)}. See a working pair with: tracediff init NAME")


def _faults(module: ModuleType, impl: str) -> Iterator[str]:
    yield from (f"it has no function {name}" for name in ("load", "run") if not callable(getattr(module, name, None)))
    given = getattr(module, "IMPL", None)
    if given != impl:
        yield f"IMPL is {given!r}, not {impl!r}" if given is not None else f"it does not say IMPL = {impl!r}"
    stages = getattr(module, "STAGES", None)
    if not isinstance(stages, Mapping) or not stages or not all(isinstance(text, str) for pair in stages.items() for text in pair):
        yield "STAGES is no dict of names and descriptions"
    for name in ("REQUIRES", "METHODS", "FUNCTIONS"):
        listed = getattr(module, name, [])
        if isinstance(listed, str) or not isinstance(listed, Sequence) or not all(isinstance(text, str) for text in listed):
            yield f"{name} is no list of texts"
    if not _is_sources(getattr(module, "SOURCES", {})):
        yield "SOURCES is no dict of stages, each a dict of inputs and where they are found, such as 'model.decoder/input[0]'"
    wrong = [text for text in getattr(module, "METHODS", ()) if isinstance(text, str) and not re.fullmatch(r"[^:]*:[^:]+", text)]
    if wrong:
        yield f"METHODS names {wrong[0]!r}, which is not of the form 'path:method'"


def _is_sources(sources: Any) -> bool:
    if not isinstance(sources, Mapping) or not all(isinstance(inputs, Mapping) for inputs in sources.values()):
        return False
    return all(isinstance(place, str) and "/" in place for inputs in sources.values() for place in inputs.values())


# -- running one


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
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    functions: Sequence[str] = (),
    calls: str | Sequence[str] | None = None,
    save: Literal["full", "stats"] = "full",
    save_params: bool = False,
    repeat: bool = True,
    python: str | os.PathLike[str] | None = None,
    force: bool = False,
    change: Callable[[Models], None] | None = None,
    progress: Callable[[str], None] = lambda _: None,
    how: str = RECORD,
    **further: Any,
) -> Path:
    """Runs one side as its recipe says, records it to a new trace, and returns that trace's path.

    ``output``: by default ``traces/RECIPE_IMPL.h5``, or the next free number. ``random``: a trace whose inputs and draws are played
    back instead of the seed's. ``start``: a trace from which, besides, each stage takes the inputs that an earlier stage would compute
    (`Context.given`), so that one stage can be run by itself. ``python``: another environment's interpreter, in which this side runs.
    ``change`` is called with the loaded models before the run: a demonstration plants its fault there. ``how`` names the function that
    records (``module:name``, since it may have to be found in another Python), and ``further`` are its own options. The rest as in
    `tracediff.observe.recording.record_run`. Raises RecipeError; TraceExistsError where a named output is there already and not ``force``.
    """
    path = find_recipe(recipe, impl)
    random = _one_reference(random, start)
    to = Path(output) if output is not None else _free(Path("traces") / f"{path.stem}.h5")
    to.parent.mkdir(parents=True, exist_ok=True)
    request: dict[str, Any] = {
        "impl": impl,
        "recipe": os.fspath(path),
        "to": os.fspath(to),
        "stages": list(stages),
        "weights": weights,
        "seed": seed,
        "random": random,
        "from_reference": start is not None,
        "dtype": dtype,
        "include": list(include),
        "exclude": list(exclude),
        "functions": list(functions),
        "calls": _ranges(calls),
        "save": save,
        "save_params": save_params,
        "repeat": repeat,
        "force": force,
        "how": how,
        **further,
    }
    if python is None:
        _record(**request, change=change, progress=progress)
    elif change is not None:
        raise RecipeError("Models that are loaded in another Python cannot be changed from here; leave out --python.")
    else:
        progress(f"running {path.name} in {os.fspath(python)}")
        run_elsewhere(python, "tracediff.observe.recipe:_record", request)
    return to


def rerun_recipe(
    trace: str | os.PathLike[str],
    recipe: str | os.PathLike[str] | None = None,
    *,
    python: str | os.PathLike[str] | None = None,
    **further: Any,
) -> Path:
    """Runs what a trace recorded once more, as that trace says: its recipe, side, seed, weights, stages, inputs and functions.

    ``recipe`` names its file where that lies elsewhere. ``further`` are options of `run_recipe`, first of all ``how``. Raises RecipeError
    for a trace that no recipe made.
    """
    from tracediff.trace import open_trace

    with open_trace(trace) as opened:
        meta = opened.meta
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
        functions=(meta.get("observed") or {}).get("functions", ()),
        python=python,
        **further,
    )


def _record(
    *,
    impl: str,
    recipe: str,
    to: str,
    stages: Sequence[str],
    weights: str,
    seed: int,
    random: str | None,
    from_reference: bool,
    dtype: str | None,
    how: str,
    functions: Sequence[str] = (),
    change: Callable[[Models], None] | None = None,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> None:
    """The part of `run_recipe` that can as well happen in another Python."""
    from tracediff.trace import open_trace

    loaded = load_recipe(recipe, impl)
    check_stages(loaded, stages)
    with ExitStack() as stack:
        reference = None if random is None else stack.enter_context(open_trace(random))
        context = Context(seed, weights, dtype, tuple(stages), reference, weights_beside(Path(to)), from_reference, loaded.sources)
        stack.enter_context(redirect_stdout(sys.stderr))
        progress(f"loading {loaded.description}")
        models = loaded.load(context)
        if change is not None:
            change(models)
        _function(how)(
            dict(models),
            lambda: run_onward(loaded, models, context, progress),
            to,
            observers=[context.draws],
            methods=_of_roots(loaded.methods, models),
            functions=list(dict.fromkeys((*loaded.functions, *functions))),
            impl=impl,
            meta={
                "recipe": loaded.name,
                "seed": seed,
                "weights": weights,
                "random": random,
                "from": random if from_reference else None,
                "wanted": list(stages),
                "cast": dtype,
            },
            say=progress,
            **options,
        )


def observe_recipe(recipe: Recipe, context: Context, observers: Sequence[Observer] = (), *, models: Models | None = None) -> Any:
    """Runs a recipe's wanted stages with every boundary shown to the observers, and returns what the recipe returned.

    ``models``: those of an earlier `Recipe.load`, so that they are not loaded again. What they print goes to stderr.
    """
    check_stages(recipe, context.stages)
    with redirect_stdout(sys.stderr):
        loaded = recipe.load(context) if models is None else models
        methods = _of_roots(recipe.methods, loaded)
        work = dict(loaded), lambda: recipe.run(loaded, context), [context.draws, *observers]
        return observe(*work, methods=methods, functions=recipe.functions, impl=recipe.impl)


def load_quietly(recipe: Recipe, context: Context) -> Models:
    """The recipe's models; what loading prints goes to stderr."""
    with redirect_stdout(sys.stderr):
        return recipe.load(context)


def _function(how: str) -> Callable[..., Any]:
    module, _, name = how.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(MOVED.get(module, module)), name)
    return function


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


def _ranges(calls: str | Sequence[str] | None) -> list[str]:
    if calls is None:
        return []
    return [calls] if isinstance(calls, str) else list(calls)


def check_stages(recipe: Recipe, wanted: Sequence[str]) -> None:
    """RecipeError where a wanted stage is none of the recipe's."""
    for stage in wanted:
        if not any(stage == known or known.startswith(stage + ".") for known in recipe.stages):
            raise RecipeError(f"No stage {stage!r} in {os.fspath(recipe.path)!r}. Its stages: {', '.join(recipe.stages)}.")


def _of_roots(methods: Sequence[str], models: Models) -> list[str]:
    """The methods of the models that were loaded: a run of one stage may need but one of them."""
    return [method for method in methods if re.split(r"[.:]", method, maxsplit=1)[0] in models or method.startswith(("*", ":"))]
