"""The same code in another order, and with other containers: calls exchanged, operands commuted, results in tuples and dicts."""

from __future__ import annotations

import ast
import random
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from benchmarks.faults.plant import rewritten, running
from benchmarks.variants.names import is_built_in
from benchmarks.variants.structure import at_some, is_composite, made
from benchmarks.variants.surgery import Spot
from benchmarks.variants.variant import Made, Transformation, Trial
from tracediff.runs.planting import reclassed

# -- order ---------------------------------------------------------------------------------------------------------------------------------


def calls_exchanged(pair: Any, chance: random.Random) -> Made | None:
    """Independent statements beside one another, and the parts of tuples of calls, are in the other order."""
    return _rewritten(pair, _Exchanged)


def operands_commuted(pair: Any, chance: random.Random) -> Made | None:
    """The operands of sums and products have changed sides."""
    return _rewritten(pair, _Commuted)


def _rewritten(pair: Any, kind: type[_Rewriter]) -> Made | None:
    trial, found = Trial(pair), []
    entered = running(pair.port, pair.run_port)
    modules = dict(pair.port.named_modules())
    for path, methods in entered.items():
        for method in methods if not is_built_in(modules[path]) else ():
            rewriter = kind()
            change = rewritten(path, method, rewriter.visit)
            with ExitStack() as undo:
                is_kept = trial.keeps(lambda change=change, undo=undo: change(pair.port, undo))
            if is_kept and rewriter.count:
                found.append(f"{path}.{method}" if path else method)
    return Made(", ".join(found[:3]) + ("..." if len(found) > 3 else "")) if found else None


class _Rewriter(ast.NodeTransformer):
    def __init__(self) -> None:
        self.count = 0


class _Commuted(_Rewriter):
    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Add | ast.Mult) and not any(
            isinstance(one, ast.Constant | ast.List | ast.Tuple) for one in ast.walk(node)
        ):
            node.left, node.right = node.right, node.left
            self.count += 1
        return node


class _Exchanged(_Rewriter):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.body = self._exchanged(node.body)
        return node

    def _exchanged(self, body: list[ast.stmt]) -> list[ast.stmt]:
        found, place = list(body), 0
        while place + 1 < len(found):
            if _is_call(found[place]) and _is_call(found[place + 1]) and _are_independent(found[place], found[place + 1]):
                found[place], found[place + 1] = found[place + 1], found[place]
                self.count += 1
                place += 1
            place += 1
        return found

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        targets = node.targets[0]
        if len(node.targets) > 1 or not isinstance(targets, ast.Tuple) or len(targets.elts) < 2:
            return node
        parts = node.value
        if isinstance(parts, ast.GeneratorExp) and len(parts.generators) == 1:
            parts = parts.generators[0].iter
        if (
            isinstance(parts, ast.Tuple)
            and len(parts.elts) == len(targets.elts)
            and not any(isinstance(one, ast.Starred) for one in targets.elts)
        ):
            parts.elts.reverse()
            targets.elts.reverse()
            self.count += 1
        return node


def _is_call(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(one, ast.Call) for one in ast.walk(node))


def _are_independent(one: ast.stmt, other: ast.stmt) -> bool:
    def names(node: ast.stmt, kind: type) -> set[str]:
        return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, kind)}

    written = names(one, ast.Store), names(other, ast.Store)
    read = names(one, ast.Load), names(other, ast.Load)
    return not (written[0] & (read[1] | written[1]) or written[1] & read[0])


# -- containers ----------------------------------------------------------------------------------------------------------------------------


@dataclass
class Output:
    """What a module returns, as many packages hand it on."""

    hidden_states: mx.array
    attentions: None = None


CONTAINERS = {"tuples": lambda y: (y, None), "dicts": lambda y: {"hidden": y}, "dataclasses": Output}


def _unpacked(value: Any) -> Any:
    if isinstance(value, Output):
        return value.hidden_states
    return value["hidden"] if isinstance(value, dict) else value[0]


def returned_in(name: str) -> Any:
    """A transformation: some modules return their tensor in a container, and their caller takes it out."""
    pack = CONTAINERS[name]

    def change(spot: Spot) -> None:
        plain = type(spot.module).__call__

        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            result = plain(self, *args, **kwargs)
            if not isinstance(result, mx.array):
                raise TypeError("not one tensor")
            return pack(result)

        reclassed(spot.module, __call__=__call__)
        spot.aside(lambda module, *args, **kwargs: _unpacked(module(*args, **kwargs)))

    return lambda pair, chance: made(at_some(pair, chance, is_composite, change))


TRANSFORMATIONS = (
    Transformation("calls exchanged", calls_exchanged),
    Transformation("operands commuted", operands_commuted),
    *(Transformation(f"results in {name}", returned_in(name)) for name in CONTAINERS),
)
