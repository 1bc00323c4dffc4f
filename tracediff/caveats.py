"""What of a run makes every verdict on it doubtful: what its weights come from, what it left out, how it ran, what became of its file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tracediff.parameters.findings import FRESH, fresh_initialisation
from tracediff.parameters.sources import open_weights
from tracediff.parameters.thresholds import THRESHOLDS
from tracediff.site import is_below, listed, module_of
from tracediff.trace import Param, Trace
from tracediff.trace.operations import readable_graph

_TRAIN_OTHERWISE = ("dropout", "batchnorm", "instancenorm")
"""Modules with these words in their class names work otherwise in training mode."""
_MOST_NAMES = 3


def caveats(trace: Trace, side: str) -> list[str]:
    """Sentences to be said before any verdict on a run; ``side`` is what they call it: "reference", "port", "run".

    Of others than a reference training mode is said only where a module works otherwise in it: modules are in it until `eval` is called.
    """
    return [*_damaged(trace, side), *_from_no_file(trace, side), *_left_out(trace, side), *_mode(trace, side), *_repeats(trace, side)]


def _damaged(trace: Trace, side: str) -> Iterator[str]:
    if damaged := list(trace.damaged.values()):
        yield (
            f"{str(trace.path)!r} is damaged: of {listed(damaged, _MOST_NAMES)} the values are not those that were recorded, so they were "
            f"not compared. Record the {side} again."
        )


# -- weights that no file gave


def _from_no_file(trace: Trace, side: str) -> Iterator[str]:
    """Parameters that another seed changes, or, where the model was built once only, that look as they were initialised."""
    drawn = trace.meta.get("drawn")
    if drawn:
        yield f"{_counted(drawn)} of the {side} came from no file: another seed gives other values of {_named(drawn)}."
    elif drawn is None and (fresh := _fresh(trace)):
        yield f"{_counted(fresh)} of the {side} may have been loaded from nowhere: {_named(fresh)} look freshly initialised."


def _fresh(trace: Trace) -> list[str]:
    """The parameters that have just the bound of an initialisation, where few have it: a model of random numbers has it everywhere."""
    if str(trace.meta.get("weights")).startswith("seeded") or not trace.params:
        return []
    weights = open_weights(trace)
    telling = [weight for weight in weights.values() if weight.kind == "parameter" and not weight.is_constant]
    large = [weight for weight in telling if weight.stats.count >= THRESHOLDS.fresh_alone]
    found = [weight.name for weight in large if fresh_initialisation(weight, weights.get(_beside(weight.name))).endswith(FRESH)]
    return found if len(found) <= THRESHOLDS.fresh_share * len(telling) else []


def _beside(name: str) -> str:
    """The weight of the layer that has a bias of that name."""
    return f"{name.removesuffix('bias')}weight"


# -- what a run leaves out of a module that it enters past its own code


def _left_out(trace: Trace, side: str) -> Iterator[str]:
    """The modules of which the code of the run called a part without them, and left the smaller part of their parameters unread."""
    said: list[str] = []
    bypassed = [one for one in trace.meta.get("bypassed") or () if one["by_run"]]
    read = _read(trace, bypassed) if bypassed else frozenset()
    for one in bypassed:
        path = one["module"]
        own = [param for param in trace.params.values() if param.kind == "parameter" and is_below(param.path, path)]
        unread = [param.name for param in own if param.name not in read]
        if unread and 2 * len(unread) <= len(own) and not any(is_below(other, path) for other in said):
            said.append(path)
            code = f" ({one['code']})" if one.get("code") else ""
            yield (
                f"{one['at']}{code} calls {one['called']!r} of the {side} past {path or 'the root'!r}, and never reads {_named(unread)}: "
                f"is that what {path or 'the model'!r} computes?"
            )


def _read(trace: Trace, bypassed: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The parameters that the run read: those of its operations, or, where these were not written down, all but those of idle modules.

    A bypassed module's own parameters count as read then: the code of the run may have used them.
    """
    graph = readable_graph(trace)
    if graph is not None:
        return frozenset(str(node.args[0]) for node in graph.nodes if node.name == "@param")
    called = {module_of(site) for site in trace.sites if "#" not in site}
    passed = {one["module"] for one in bypassed}

    def is_read(param: Param) -> bool:
        around = [path for path in called if is_below(param.path, path) and not any(is_below(at, path) for at in passed)]
        return bool(around) or param.path in passed

    return frozenset(param.name for param in trace.params.values() if is_read(param))


# -- how it ran


def trains_otherwise(module: Mapping[str, Any]) -> bool:
    """Whether a module, as a trace's meta describes it, was in training mode and works otherwise there (drops values, takes statistics).

    >>> trains_otherwise({"type": "Dropout", "training": True}), trains_otherwise({"type": "Linear", "training": True})
    (True, False)
    """
    attributes = module.get("attrs") or {}
    is_idle = attributes.get("p") == 0 or attributes.get("_p_1") == 1  # PyTorch's and MLX's Dropout
    return bool(module.get("training")) and not is_idle and any(word in str(module.get("type")).lower() for word in _TRAIN_OTHERWISE)


def _mode(trace: Trace, side: str) -> Iterator[str]:
    module = next((module for module in trace.meta.get("modules") or () if trains_otherwise(module)), None)
    if module is not None:
        yield f"The {side} is in training mode, in which {module['path'] or 'the root'!r} ({module['type']}) works otherwise."
    elif side == "reference" and trace.meta.get("mode") == "train":
        yield f"The {side} is in training mode: call eval() before it runs, since training may compute something else."


def _repeats(trace: Trace, side: str) -> Iterator[str]:
    if trace.meta.get("repeats") is False:
        first = trace.meta.get("repeats_first") or {}
        where = f", first at {first['site'] or 'the root'!r} {first['end']} ({first['call']})" if first else ""
        yield f"The {side} does not repeat itself: two runs of it differ{where}."


def _counted(names: list[str]) -> str:
    return f"{len(names):,} parameter{'' if len(names) == 1 else 's'}"


def _named(names: list[str]) -> str:
    """The first few names in quotation marks."""
    return listed([repr(name) for name in names], _MOST_NAMES)
