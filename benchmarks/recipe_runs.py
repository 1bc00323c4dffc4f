"""Runs of a recipe's two sides in this process, with changes made in the port's models before it runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import tracediff as td
from tracediff.observe.recipe import find_recipe, load_file, run_recipe
from tracediff.runs.captured import captured

Errors = dict[tuple[str, str], tuple[float, float]]


def hooks(name: str, recipe: str = "chatterbox") -> ModuleType:
    """A file beside the recipe of a port, such as ``chatterbox_faults``."""
    return load_file(find_recipe(recipe, "mlx").with_name(f"{name}.py"))


def kept(path: Path, capture: Callable[[Path], Any]) -> Path:
    """The trace at a path, captured unless it is there already. A capture that is stopped leaves nothing there."""
    if not path.is_file():
        made = path.with_name(f"unfinished_{os.getpid()}_{path.name}")
        capture(made)
        made.replace(path)
    return path


def reference_of(stage: str, folder: Path) -> Path:
    """The trace of one stage of the Chatterbox reference with its noise floor; captured unless the folder has it already."""
    return kept(
        folder / f"reference_{stage}.h5",
        lambda to: run_recipe("torch", "chatterbox", output=to, stages=[stage], job=captured, force=True),
    )


def run_port(
    to: Path,
    stages: Sequence[str],
    reference: Path,
    *changes: Callable[[Any], AbstractContextManager[None]],
    is_fed: bool = True,
    recipe: str = "chatterbox",
    **options: Any,
) -> Path:
    """The port captured to a new trace on the reference's draws, fed by the reference or free, with changes of its models."""
    with ExitStack() as stack:

        def change(models: Any) -> None:
            for one in changes:
                stack.enter_context(one(models))

        given = {"feed": str(reference)} if is_fed else {}
        given |= {"random": reference, "force": True, "repeat": False, "job": captured, "change": change if changes else None, **options}
        return run_recipe("mlx", recipe, output=to, stages=list(stages), **given)


def errors(reference: Path, port: Path, stages: Sequence[str]) -> Errors:
    """The relative L2 and what is allowed of what is furthest beyond that, by stage and the reference's site, with and without an end."""
    found: Errors = {}
    for row in td.diff(reference, port, stages=list(stages)).rows:
        limit = row.limit or 0.0
        error = row.at_least if row.rel_l2 is None else row.rel_l2
        for site in (row.where.reference, f"{row.where.reference}/{row.where.end}"):
            place = row.where.stage, site
            if place not in found or error - limit > found[place][0] - found[place][1]:
                found[place] = error, limit
    return found
