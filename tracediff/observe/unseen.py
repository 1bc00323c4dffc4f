"""What a run did not show of its modules: those that are hidden, were bypassed, never called, or made during the run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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


def uncalled(nodes: Sequence[Node], sites: set[str], adapter: Adapter) -> Iterator[str]:
    """The topmost modules that were never called; ``sites`` are those that were seen."""
    called = _called(sites)
    reached = called.keys() | _first_inside(called).keys()
    parents = {child: node.path for node in nodes for child in node.children}
    for node in nodes:
        if _can_be_called(node, adapter) and node.path not in reached and (node.path not in parents or parents[node.path] in reached):
            yield f"module {_named(node.path)}: never called ({type(node.module).__name__})"


@dataclass(frozen=True, slots=True)
class Entrance:
    """The code that called a module first: ``place`` is its file and line, ``code`` its name.

    ``holders``: the ids of what the functions that were then running were handed first, if no call was; a method is handed its object.
    """

    place: str
    code: str
    holders: frozenset[int]
    is_outermost: bool


def bypassed(
    nodes: Sequence[Node], entrances: Mapping[str, Entrance], adapter: Adapter, called_inside: Collection[str]
) -> Iterator[dict[str, Any]]:
    """The modules whose own code did not run while a module inside of them was called, the innermost first; as meta holds them.

    ``entrances``: for each site how it was called first, in the order in which that happened. ``by_run``: the call came from the code of
    the run, which no method of such a module's had called. ``called_inside``: the sites that other calls called too, at any time; the run
    then only does what the models' own code does.
    """
    called = _called(entrances)
    first_inside = _first_inside(called)
    for node in reversed(nodes):
        inner = first_inside.get(node.path)
        if inner is None or node.path in called or not _can_be_called(node, adapter) or type(node.module).__name__ == "Sequential":
            continue  # a Sequential may be used as a list
        entrance = entrances[called[inner]]
        by_run = entrance.is_outermost and called[inner] not in called_inside and id(node.module) not in entrance.holders
        yield {"module": node.path, "called": inner, "at": entrance.place, "code": entrance.code, "by_run": by_run}


def _called(sites: Iterable[str]) -> dict[str, str]:
    """The modules that were called, themselves or by a method, each with a site of it."""
    return {module_of(site): site for site in sites if "#" not in site and "!" not in site}


def _first_inside(called: Iterable[str]) -> dict[str, str]:
    """For each path the first module that was called below it."""
    first: dict[str, str] = {}
    for path in called:
        around = path
        while around:
            around = around.rpartition(".")[0]
            first.setdefault(around, path)
    return first


def _can_be_called(node: Node, adapter: Adapter) -> bool:
    return node.is_model and not node.is_inside and adapter.entry(node.module) is not None


def made_later(models: Any, nodes: Sequence[Node], adapter: Adapter) -> Iterator[str]:
    """The topmost modules that a run added to its models; ``nodes`` are those that were there before."""
    known = {id(node.module) for node in nodes}
    new: set[str] = set()
    for node in modules_below(models, adapter):
        if id(node.module) not in known:
            new.add(node.path)
            if not any(is_below(node.path, other) for other in new - {node.path}) and node.is_model:
                yield f"module {_named(node.path)}: made during the run ({type(node.module).__name__})"


def _named(path: str) -> str:
    return repr(path) if path else "the root"
