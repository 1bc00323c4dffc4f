"""What a run did not show of its modules: those that are hidden, were bypassed, never called, or made during the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tracediff.observe.tree import modules_below
from tracediff.observe.types import Adapter, Node
from tracediff.site import is_below, module_of


def hidden_regions(nodes: Sequence[Node]) -> Iterator[str]:
    """The modules inside of which nothing can be seen, with the reason."""
    for node in nodes:
        if node.hidden and not node.is_inside and node.children:
            yield f"modules below {_named(node.path)}: {node.hidden}"


def changed_later(nodes: Sequence[Node], adapter: Adapter) -> Iterator[str]:
    """The modules whose outputs somebody else's code may change after they were seen."""
    for node in nodes:
        if node.is_model and (why := adapter.changed_later(node.module)):
            yield f"output of {_named(node.path)}: {why}"


def uncalled(nodes: Sequence[Node], sites: set[str], adapter: Adapter, entered_from: Mapping[str, str]) -> Iterator[str]:
    """The topmost modules that were never called, and those that were passed by while modules inside them were called.

    ``sites`` are those that were seen; ``entered_from`` tells for each the code that called it first.
    """
    entered = {module_of(site): site for site in sites if "#" not in site and "!" not in site}
    first_inside = _first_inside(nodes, entered)
    reached = entered.keys() | first_inside.keys()
    parents = {child: node.path for node in nodes for child in node.children}
    for node in nodes:
        if not node.is_model or node.is_inside or node.path in entered or adapter.entry(node.module) is None:
            continue
        kind = type(node.module).__name__
        inner = first_inside.get(node.path)
        if inner is None:
            if node.path not in parents or parents[node.path] in reached:
                yield f"module {_named(node.path)}: never called ({kind})"
        elif kind != "Sequential":  # which may be used as a list
            source = entered_from.get(inner)
            yield f"module {_named(node.path)}: bypassed; {inner!r} inside it was called{f' by {source}' if source else ''}"


def made_later(models: Any, nodes: Sequence[Node], adapter: Adapter) -> Iterator[str]:
    """The topmost modules that a run added to its models; ``nodes`` are those that were there before."""
    known = {id(node.module) for node in nodes}
    new: set[str] = set()
    for node in modules_below(models, adapter):
        if id(node.module) not in known:
            new.add(node.path)
            if not any(is_below(node.path, other) for other in new - {node.path}) and node.is_model:
                yield f"module {_named(node.path)}: made during the run ({type(node.module).__name__})"


def _first_inside(nodes: Sequence[Node], entered: Mapping[str, str]) -> dict[str, str]:
    """For each path the first site, in tree order, that was called below it; ``entered`` has a site for each path called."""
    first: dict[str, str] = {}
    for node in reversed(nodes):
        for child in reversed(node.children):
            site = entered.get(child) or first.get(child)
            if site is not None:
                first[node.path] = site
    return first


def _named(path: str) -> str:
    return repr(path) if path else "the root"
