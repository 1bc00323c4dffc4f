"""The frameworks that have an adapter, and the choice of one by name or by type.

No framework is imported to find out whether a value is its own: only those that the process has imported are asked.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tracediff.errors import CaptureError, MissingDependencyError, install
from tracediff.observe.adapters.plain import Plain
from tracediff.observe.types import Adapter


@dataclass(frozen=True, slots=True)
class Framework:
    """A framework: the module whose presence in `sys.modules` tells that it is in use, and the module that has its ``ADAPTER``."""

    module: str
    adapter: str

    @property
    def package(self) -> str:
        """The top-level package, whose classes and functions are the framework's own."""
        return self.module.partition(".")[0]


FRAMEWORKS = {
    "torch": Framework("torch", "tracediff.observe.adapters.torch"),
    "mlx": Framework("mlx.core", "tracediff.observe.adapters.mlx"),
}
"""The one place that lists the frameworks, by name."""

HELD = 3
"""Levels of containers and plain objects in which `of` looks for a tensor or a module."""


def named(name: str) -> Adapter:
    """The adapter of that name, its framework imported; ``plain`` (or ``numpy``) is that of runs without a model.

    Raises CaptureError for an unknown name, MissingDependencyError where the framework cannot be imported.
    """
    if name in ("plain", "numpy"):
        return Plain(loaded())
    if name not in FRAMEWORKS:
        raise CaptureError(f"No adapter {name!r}; there are: {', '.join(FRAMEWORKS)}.")
    try:
        module = import_module(FRAMEWORKS[name].adapter)
    except ImportError as error:
        raise MissingDependencyError(f"{name} cannot be imported here ({error}). Install it with: {install(name)}") from error
    adapter: Adapter = module.ADAPTER
    return adapter


def loaded() -> list[Adapter]:
    """The adapters of the frameworks that this process has imported."""
    return [named(name) for name, framework in FRAMEWORKS.items() if framework.module in sys.modules]


def of(*values: Any) -> Adapter | None:
    """The adapter of the first tensor or module among the values and what they hold; None where there is none."""
    adapters = loaded()
    for value in values:
        for adapter in adapters:
            if _holds(adapter, value, HELD):
                return adapter
    return None


def packages() -> frozenset[str]:
    """The top-level packages of the frameworks."""
    return frozenset(framework.package for framework in FRAMEWORKS.values())


def _holds(adapter: Adapter, value: Any, depth: int) -> bool:
    if adapter.is_model(value) or (adapter.is_tensor(value) and type(value).__module__.partition(".")[0] != "numpy"):
        return True
    if depth == 0 or isinstance(value, (str, bytes, int, float, type)):
        return False
    return any(_holds(adapter, part, depth - 1) for part in _parts(value))


def _parts(value: Any) -> list[Any]:
    """What a container or a plain object holds."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    return list(vars(value).values()) if hasattr(value, "__dict__") and not callable(value) else []
