"""Writes down which operations a reference computes, so that causes can be looked for among them."""

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
    """Tells what writes down operations which tensors the run shows at its boundaries, and when calls begin and end."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def see(self, boundary: Boundary) -> None:
        if boundary.moment == "leave":
            self._operations.end(boundary.site, boundary.ordinal)
        for end, tensor in boundary.leaves:
            self._operations.name(tensor, boundary.site, boundary.ordinal, end)
        if boundary.moment == "enter":
            self._operations.begin(boundary.site, boundary.ordinal)


class Written:
    """What writes down the operations of one run: a context for the run, beside whose observers `observer` stands.

    It only looks on, so that the run computes what it computes by itself.
    """

    def __init__(self, operations: Operations) -> None:
        self.observer: Observer = _Naming(operations)
        self._operations = operations

    def __enter__(self) -> None:
        self._operations.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._operations.__exit__(*error)

    def meta(self) -> dict[str, Any]:
        """What meta keeps of the operations; nothing where the run was too long."""
        return {KEY: packed(self._operations.graph())} if self._operations.is_whole else {}


def writing(models: Any, run: Any, impl: str | None) -> Written | None:
    """What is to write down the operations of a run; None where the framework shows none."""
    adapter = adapter_of(models, run, impl=impl)
    live = Run(adapter, tuple(discover(models, adapter)))
    named = ((parameter.name, parameter.tensor) for parameter in describe.parameters(live))
    operations = adapter.operations(named, lambda: bool(quiet.now))
    return None if operations is None else Written(operations)


def operations_meta(models: Any, run: Any, observed: Mapping[str, Any]) -> dict[str, Any]:
    """What meta keeps of the operations of a run of its own; nothing where a framework shows none, the run raises, or is too long.

    ``observed``: further arguments of `tracediff.observe.observe`. What the run leaves behind is the caller's to put back.
    """
    written = writing(models, run, observed.get("impl"))
    if written is None:
        return {}
    try:
        with held(), written:
            observe(models, run, [written.observer], **observed)
    except Exception:  # noqa: BLE001 - a run that raises is recorded up to there; causes then do without its operations
        return {}
    return written.meta()
