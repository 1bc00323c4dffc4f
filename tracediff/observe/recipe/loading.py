"""A recipe's file, imported and checked."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tracediff.errors import RecipeError, TracediffError
from tracediff.observe.context import Context
from tracediff.observe.recipe.finding import find_recipe

Models = Mapping[str, Any]
"""A side's models by the names of their roots, which begin the module paths."""


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
    tokenizers: Mapping[str, str]
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


def load_recipe(recipe: str | os.PathLike[str] | None, impl: str) -> Recipe:
    """The recipe of that name or file for one side; RecipeError where it cannot be found, imported, or is no recipe."""
    path = find_recipe(recipe, impl)
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
        tokenizers={glob: os.fspath(path.parent.absolute() / file) for glob, file in getattr(module, "TOKENIZERS", {}).items()},
        module=module,
    )


def check_stages(recipe: Recipe, wanted: Sequence[str]) -> None:
    """RecipeError where a wanted stage is none of the recipe's."""
    for stage in wanted:
        if not any(stage == known or known.startswith(stage + ".") for known in recipe.stages):
            raise RecipeError(f"No stage {stage!r} in {os.fspath(recipe.path)!r}. Its stages: {', '.join(recipe.stages)}.")


def load_file(path: Path) -> ModuleType:
    """A Python file of a ``hooks/`` folder, imported anew, with the files beside it importable by name while it is."""
    name = f"tracediff_hooks_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{os.fspath(path)!r} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with importable(path.parent):
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
def importable(folder: Path) -> Iterator[None]:
    """Inside the block the modules in a folder can be imported; afterwards their names are free for the modules of another folder."""
    place = os.fspath(folder)
    sys.path.insert(0, place)
    before = set(sys.modules)
    try:
        yield
    finally:
        if place in sys.path:
            sys.path.remove(place)
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
    defects = list(_defects(module, impl))
    if defects:
        raise RecipeError(f"{os.fspath(path)!r} is no recipe: {'; '.join(defects)}. See a working pair with: tracediff init NAME")


def _defects(module: ModuleType, impl: str) -> Iterator[str]:
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
    tokenizers = getattr(module, "TOKENIZERS", {})
    if not isinstance(tokenizers, Mapping) or not all(isinstance(text, str) for pair in tokenizers.items() for text in pair):
        yield "TOKENIZERS is no dict of globs on sites, each with the file of a tokenizer"
    wrong = [text for text in getattr(module, "METHODS", ()) if isinstance(text, str) and not re.fullmatch(r"[^:]*:[^:]+", text)]
    if wrong:
        yield f"METHODS names {wrong[0]!r}, which is not of the form 'path:method'"


def _is_sources(sources: Any) -> bool:
    if not isinstance(sources, Mapping) or not all(isinstance(inputs, Mapping) for inputs in sources.values()):
        return False
    return all(isinstance(place, str) and "/" in place for inputs in sources.values() for place in inputs.values())
