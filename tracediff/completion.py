"""What the shell completes besides commands and options: traces, stages, sites, recipes and faults, each looked up when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

Names = Callable[[click.Context], Iterable[str]]
MOST = 200
"""So many names are offered at most."""


def completing(names: Names) -> Callable[..., list[CompletionItem]]:
    """A ``shell_complete`` that offers those of some names that go on as what was typed; none where they cannot be looked up."""

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            found = [name for name in dict.fromkeys(names(context)) if name.startswith(incomplete)]
        except Exception:  # noqa: BLE001 - a shell that is asked for names has no place for an error
            return []
        return [CompletionItem(name) for name in found[:MOST]]

    return complete


def _trace(context: click.Context) -> Any:
    """The trace that the command line names first; click leaves it among the rest where an option lacks its value."""
    from tracediff.trace import open_trace

    return open_trace(context.params.get("reference") or context.params.get("trace") or next(iter(context.args), ""))


def _stages(context: click.Context) -> Iterable[str]:
    with _trace(context) as trace:
        yield from (trace.strings[number] for number in dict.fromkeys(trace.index["stage"].tolist()))
        yield from trace.meta.get("stages") or ()


def _sites(context: click.Context) -> Iterable[str]:
    with _trace(context) as trace:
        yield from list(trace.sites)


def _recipes(_: click.Context) -> Iterable[str]:
    from tracediff.observe.recipe.finding import known_recipes

    return (name.partition(" ")[0] for name in known_recipes())  # "chatterbox (mlx, torch)"


def _faults(_: click.Context) -> Iterable[str]:
    from tracediff.demo import faults

    return faults()


stages, sites, recipes, faults = (completing(names) for names in (_stages, _sites, _recipes, _faults))
