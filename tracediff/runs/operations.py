"""Writes down which operations a reference computes, in a run of its own, so that causes can be looked for among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracediff.interrupts import held
from tracediff.observe import adapter_of, describe, observe
from tracediff.observe.observer import Boundary, Observer, Run
from tracediff.observe.patching.places import quiet
from tracediff.observe.tree import discover
from tracediff.observe.types import Operations
from tracediff.trace.operations import KEY, packed


class _Naming(Observer):
    """Tells what writes down operations which tensors the run shows at its boundaries."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def see(self, boundary: Boundary) -> None:
        for end, tensor in boundary.leaves:
            self._operations.name(tensor, boundary.site, boundary.ordinal, end)


def operations_meta(models: Any, run: Any, observed: Mapping[str, Any]) -> dict[str, Any]:
    """What meta keeps of the operations of a run; nothing where a framework shows none, the run raises, or is too long.

    ``observed``: further arguments of `tracediff.observe.observe`. What the run leaves behind is the caller's to put back.
    """
    adapter = adapter_of(models, run, impl=observed.get("impl"))
    live = Run(adapter, tuple(discover(models, adapter)))
    named = ((parameter.name, parameter.tensor) for parameter in describe.parameters(live))
    operations = adapter.operations(named, lambda: bool(quiet.now))
    if operations is None:
        return {}
    try:
        with held(), operations:
            observe(models, run, [_Naming(operations)], **observed)
    except Exception:  # noqa: BLE001 - a run that raises is recorded up to there; causes then do without its operations
        return {}
    return {KEY: packed(operations.graph())} if operations.is_whole else {}
