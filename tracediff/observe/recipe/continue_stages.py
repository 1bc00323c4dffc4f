"""A recipe's run that goes on after a stage that raises: each stage has inputs of its own, so a failed stage says nothing of the next."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

from tracediff.errors import TracediffError
from tracediff.observe import frames
from tracediff.observe.context import Context
from tracediff.observe.options import Progress, silent
from tracediff.observe.recipe.loading import Models, Recipe


def run_all_stages(recipe: Recipe, models: Models, context: Context, progress: Progress = silent) -> Any:
    """Runs a recipe's wanted stages, also those after a stage that raises, and returns what the recipe returned.

    Raises what the first failing stage raised, after the last stage was run. It raises at once where the recipe does not choose its
    stages by ``context.wants``, since then they cannot be run apart, and for a TracediffError, since then the recipe itself is wrong.
    """
    first: Exception | None = None
    result, entered, known = None, _entered(), -1
    while len(entered) > known:
        known = len(entered)
        try:
            result = recipe.run(models, context)
            break
        except TracediffError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the models' own code raises
            first = first or error
            left = _left(recipe, context, entered) if context.asked else ()
            if not left:
                break
            failed = list(entered)[-1]
            _note(error, failed)
            progress(f"stage {failed!r} raised {type(error).__name__}: {error}; going on with {', '.join(left)}")
            context = copy(context)
            context.stages = left
    if first is not None:
        raise first
    return result


def _entered() -> Mapping[str, str]:
    """The stages that this run has entered so far, each with the stage around it; it grows with the run."""
    current = frames.current()
    return current[0].session.run.stages if current else {}


def _note(error: Exception, stage: str) -> None:
    """Notes, in every session that observes the run, what ended one of its stages."""
    for frame in frames.current():
        frame.session.run.raised.append((error, stage))


def _left(recipe: Recipe, context: Context, entered: Mapping[str, str]) -> tuple[str, ...]:
    """The wanted stages that come after the last one entered; none where none was entered."""
    order = list(recipe.stages)
    places = [place for place, stage in enumerate(order) if stage in entered]
    if not places:
        return ()
    later = (stage for stage in order[max(places) + 1 :] if context.wants(stage))
    return tuple(stage for stage in later if not any(inner.startswith(stage + ".") for inner in entered))
