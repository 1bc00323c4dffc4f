"""A recipe's run that goes on behind a stage that raises: stages have inputs of their own, so one that fails says nothing of the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

from tracediff.errors import TracediffError
from tracediff.observe import frames

if TYPE_CHECKING:
    from tracediff.observe.context import Context
    from tracediff.observe.recipe import Models, Recipe

Say = Callable[[str], None]


def run_onward(recipe: Recipe, models: Models, context: Context, say: Say = lambda _: None) -> Any:
    """Runs a recipe's wanted stages, those behind a stage that raises too, and returns what the recipe returned.

    Raises what the first stage raised, after the last one was run; at once where the recipe does not choose its stages by
    ``context.wants``, so that they cannot be run apart, and what is wrong in the recipe itself (a TracediffError).
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
            _note(error, list(entered)[-1])
            say(f"stage {list(entered)[-1]!r} raised {type(error).__name__}: {error}; going on with {', '.join(left)}")
            context = copy(context)
            context.stages = left
    if first is not None:
        raise first
    return result


def _entered() -> Mapping[str, str]:
    """The stages that this run has entered so far, each with the one around it; it grows with the run."""
    current = frames.current()
    return current[0].session.run.stages if current else {}


def _note(error: Exception, stage: str) -> None:
    """Tells those who observe the run what ended one of its stages."""
    for frame in frames.current():
        frame.session.run.raised.append((error, stage))


def _left(recipe: Recipe, context: Context, entered: Mapping[str, str]) -> tuple[str, ...]:
    """The wanted stages that stand behind the last one entered; none where none was."""
    order = list(recipe.stages)
    places = [place for place, stage in enumerate(order) if stage in entered]
    if not places:
        return ()
    behind = (stage for stage in order[max(places) + 1 :] if context.wants(stage))
    return tuple(stage for stage in behind if not any(one.startswith(stage + ".") for one in entered))
