"""What is planted into the port of one pair, made of the changes of `tracediff.runs.planting`; and which methods a run enters.

The models of those changes are here the port alone: the path "" is the port itself.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType, FunctionType
from typing import Any

import mlx.core as mx
from mlx import nn

from tracediff.runs import planting
from tracediff.runs.planting import Assign, Change, Rewrite, module_at, planted, reclassed, replacement, source_of

__all__ = ["Call", "Change", "Fault", "around", "edited", "module_at", "planted", "replacement", "rewritten", "running", "source_tree"]

Call = Callable[..., Any]


@dataclass(frozen=True)
class Fault(planting.Fault):
    """One planted fault. ``others`` are modules that are wrong too (two whose weights change places)."""

    others: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.name} at {self.port or 'the root'}"


def edited(path: str, name: str, change: Callable[[mx.array], mx.array]) -> Change:
    """One parameter changed, in the dtype that it has; the rest stays."""
    return Assign(path, name, lambda models, module, old: change(old).astype(old.dtype))


def around(path: str, spoil: Callable[..., Any]) -> Change:
    """The module's call becomes ``spoil(call, module, *args, **kwargs)``, where ``call`` is the original."""

    def plant(port: nn.Module, undo: ExitStack) -> None:
        module = module_at(port, path)
        original = type(module).__call__

        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            return spoil(lambda *given, **named: original(self, *given, **named), self, *args, **kwargs)

        reclassed(module, __call__=__call__)

    return plant


def rewritten(path: str, method: str, change: Callable[[ast.Module], ast.Module]) -> Change:
    """The module's method compiled anew from its source tree after ``change``."""
    return Rewrite(path, method, lambda source, name: change(ast.parse(source)))


def source_tree(function: Call) -> ast.Module:
    """The parsed source of a function. Raises OSError or SyntaxError where there is none that compiles by itself."""
    return ast.parse(source_of(function))


# -- what runs -----------------------------------------------------------------------------------------------------------------------------


def running(model: nn.Module, run: Callable[[], Any]) -> dict[str, list[str]]:
    """The methods of each module that a run enters and that can be rewritten, by the module's path."""
    paths = {id(module): path for path, module in reversed(list(model.named_modules()))}
    found: dict[str, list[str]] = {}

    def see(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or "self" not in frame.f_code.co_varnames:
            return
        module = frame.f_locals.get("self")
        path = paths.get(id(module)) if isinstance(module, nn.Module) else None
        if path is not None and (name := frame.f_code.co_name) not in found.setdefault(path, []):
            found[path].append(name)

    sys.setprofile(see)
    try:
        run()
    finally:
        sys.setprofile(None)
    return {path: [name for name in names if is_rewritable(module_at(model, path), name)] for path, names in found.items()}


def is_rewritable(module: nn.Module, method: str) -> bool:
    """Whether a method's source can be compiled anew: a plain function that closes over nothing."""
    function = inspect.getattr_static(type(module), method, None)
    if not isinstance(function, FunctionType) or function.__closure__:
        return False
    try:
        source_tree(function)
    except (OSError, TypeError, SyntaxError):
        return False
    return True
