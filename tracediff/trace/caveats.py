"""What of a run makes every verdict on it doubtful: its file is damaged, it ran in training mode, or it does not repeat itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracediff.site import listed
from tracediff.trace.reader import Trace

_TRAIN_OTHERWISE = ("dropout", "batchnorm", "instancenorm")
"""Modules with these words in their class names work otherwise in training mode."""
_MOST_NAMES = 3


def trains_otherwise(module: Mapping[str, Any]) -> bool:
    """Whether a module, as a trace's meta describes it, was in training mode and works otherwise there (drops values, takes statistics).

    >>> trains_otherwise({"type": "Dropout", "training": True}), trains_otherwise({"type": "Linear", "training": True})
    (True, False)
    """
    attributes = module.get("attrs") or {}
    is_idle = attributes.get("p") == 0 or attributes.get("_p_1") == 1  # PyTorch's and MLX's Dropout
    return bool(module.get("training")) and not is_idle and any(word in str(module.get("type")).lower() for word in _TRAIN_OTHERWISE)


def caveats(trace: Trace, side: str) -> list[str]:
    """Sentences to be said before any verdict on a run; ``side`` is what they call it: "reference", "port", "run".

    Of others than a reference training mode is said only where a module works otherwise in it: modules are in it until `eval` is called.
    """
    meta, said = trace.meta, []
    if damaged := list(trace.damaged.values()):
        said.append(
            f"{str(trace.path)!r} is damaged: of {listed(damaged, _MOST_NAMES)} the values are not those that were recorded, so they were "
            f"not compared. Record the {side} again."
        )
    module = next((module for module in meta.get("modules") or () if trains_otherwise(module)), None)
    if module is not None:
        said.append(f"The {side} is in training mode, in which {module['path'] or 'the root'!r} ({module['type']}) works otherwise.")
    elif side == "reference" and meta.get("mode") == "train":
        said.append(f"The {side} is in training mode: call eval() before it runs, since training may compute something else.")
    if meta.get("repeats") is False:
        first = meta.get("repeats_first") or {}
        where = f", first at {first['site'] or 'the root'!r} {first['end']} ({first['call']})" if first else ""
        said.append(f"The {side} does not repeat itself: two runs of it differ{where}.")
    return said
