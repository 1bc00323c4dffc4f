"""How a fault gets into a port: one instance's code or weights are exchanged at run time, and put back afterwards.

Nothing is added that a tool could read as a flag: an instance whose code is changed is of a class of the same name, whose method is the
original's source with one expression rewritten, or calls the original and spoils what goes in or comes out.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, FunctionType
from typing import Any

import mlx.core as mx
from mlx import nn

Call = Callable[..., Any]
Plant = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Fault:
    """One planted fault: its culprit is the module ``path`` of the port, its cause is of ``kind`` (or one of ``also``).

    ``plant`` is given the whole port. ``others`` are modules that are wrong too (two whose weights change places).
    """

    name: str
    kind: str
    path: str
    plant: Plant
    also: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of cause that name it rightly."""
        return (self.kind, *self.also)

    @property
    def text(self) -> str:
        return f"{self.name} at {self.path or 'the root'}"


def module_at(model: nn.Module, path: str) -> Any:
    """The module of a port at a dotted path; "" is the port itself."""
    return dict(model.named_modules())[path]


@contextmanager
def planted(model: nn.Module, *faults: Fault) -> Iterator[None]:
    """The port with these faults inside the block; afterwards every module is what it was, bit for bit."""
    modules = list(model.modules())
    before = [(module, type(module), dict(module), dict(vars(module))) for module in modules]
    try:
        for fault in faults:
            fault.plant(model)
        yield
    finally:
        for module, kind, items, attributes in before:
            module.__class__ = kind
            module.clear()
            dict.update(module, items)
            vars(module).clear()
            vars(module).update(attributes)


# -- changed weights -----------------------------------------------------------------------------------------------------------------------


def edited(path: str, name: str, change: Callable[[mx.array], mx.array]) -> Plant:
    """One parameter changed; the rest stays."""

    def plant(model: nn.Module) -> None:
        module = module_at(model, path)
        module[name] = change(module[name]).astype(module[name].dtype)

    return plant


# -- changed code --------------------------------------------------------------------------------------------------------------------------


def reclassed(module: nn.Module, **methods: Call) -> None:
    """Gives one instance other methods, in a class of the same name."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__, **methods})


def around(path: str, spoil: Callable[..., Any]) -> Plant:
    """The module's call becomes ``spoil(call, module, *args, **kwargs)``, where ``call`` is the original."""

    def plant(model: nn.Module) -> None:
        module = module_at(model, path)
        original = type(module).__call__

        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            return spoil(lambda *given, **named: original(self, *given, **named), self, *args, **kwargs)

        reclassed(module, __call__=__call__)

    return plant


def rewritten(path: str, method: str, change: Callable[[ast.AST], ast.AST]) -> Plant:
    """The module's method compiled anew from its source after ``change``."""

    def plant(model: nn.Module) -> None:
        module = module_at(model, path)
        function = getattr(type(module), method)
        reclassed(module, **{method: compiled(function, change(source_tree(function)))})

    return plant


def replaced(path: str, method: str, old: str, new: str) -> Plant:
    """The module's method compiled anew with one piece of its source replaced, which must be there once."""

    def plant(model: nn.Module) -> None:
        module = module_at(model, path)
        function = getattr(type(module), method)
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(old) != 1:
            raise ValueError(f"{old!r} is {source.count(old)} times in {type(module).__name__}.{method}, not once.")
        reclassed(module, **{method: compiled(function, ast.parse(source.replace(old, new)))})

    return plant


def source_tree(function: Call) -> ast.Module:
    """The parsed source of a function. Raises OSError or SyntaxError where there is none that stands alone."""
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def compiled(function: Call, tree: ast.AST) -> Call:
    """A function made of a tree, in the original's globals."""
    definition = tree.body[0]  # type: ignore[attr-defined]
    definition.decorator_list = []
    made: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(tree), inspect.getsourcefile(function) or "<port>", "exec"), function.__globals__, made)
    changed = made[definition.name]
    changed.__qualname__ = function.__qualname__
    return changed  # type: ignore[no-any-return]


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
