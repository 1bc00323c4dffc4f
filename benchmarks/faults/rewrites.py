"""Faults in the code between modules: one expression of a method rewritten, wherever an expression has that shape.

Each `Rewrite` finds expressions in the source of a method and says what they become; the kind of its cause may depend on what is there.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.faults.plant import Fault, rewritten, source_tree

Change = Callable[[ast.AST], str | None]
"""What an expression becomes, as source; None where it is not of the shape."""
ACTIVATIONS = {"silu": "gelu", "gelu": "silu", "relu": "gelu", "gelu_approx": "relu", "mish": "silu", "leaky_relu": "relu", "elu": "relu"}


@dataclass(frozen=True)
class Rewrite:
    """One way to get an expression wrong."""

    name: str
    kind: str
    change: Change
    also: tuple[str, ...] = ()


def _called(node: ast.AST) -> str:
    """The last name of what is called; "" where the expression is no call."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _has_constant(node: ast.AST) -> bool:
    """Whether an expression is about sizes or places rather than tensors."""
    return any(isinstance(one, ast.Constant) and isinstance(one.value, int) for one in ast.walk(node)) or any(
        isinstance(one, ast.Name | ast.Attribute) and _name(one) in ("offset", "shape", "length", "start", "end", "step", "eps")
        for one in ast.walk(node)
    )


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _sum(node: ast.AST) -> tuple[ast.expr, ast.expr] | None:
    """The two operands of a sum of tensors, as far as the source tells."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and not _has_constant(node):
        return node.left, node.right
    return None


def _without_left(node: ast.AST) -> str | None:
    operands = _sum(node)
    return ast.unparse(operands[1]) if operands and isinstance(operands[0], ast.Name) else None


def _without_right(node: ast.AST) -> str | None:
    operands = _sum(node)
    return ast.unparse(operands[0]) if operands and isinstance(operands[1], ast.Call | ast.Name) else None


def _other_activation(node: ast.AST) -> str | None:
    name = _called(node)
    if name not in ACTIVATIONS or not isinstance(node, ast.Call) or not node.args:
        return None
    return f"__import__('mlx.nn').nn.{ACTIVATIONS[name]}({ast.unparse(node.args[0])})"


def _concatenated_backwards(node: ast.AST) -> str | None:
    if _called(node) not in ("concatenate", "concat", "stack") or not isinstance(node, ast.Call) or not node.args:
        return None
    parts = node.args[0]
    if not isinstance(parts, ast.List | ast.Tuple) or len(parts.elts) < 2:
        return None
    turned = copy.deepcopy(node)
    turned.args[0] = ast.List(elts=list(reversed(parts.elts)), ctx=ast.Load())
    return ast.unparse(turned)


def _keyword(name: str, becomes: str) -> Change:
    """A call's argument of that name becomes something else; ``{}`` is replaced by what it is."""

    def change(node: ast.AST) -> str | None:
        if not isinstance(node, ast.Call):
            return None
        changed = copy.deepcopy(node)
        for keyword in changed.keywords:
            if keyword.arg == name and not isinstance(keyword.value, ast.Constant):
                keyword.value = ast.parse(becomes.format(f"({ast.unparse(keyword.value)})"), mode="eval").body
                return ast.unparse(changed)
        return None

    return change


def _positional_mask(node: ast.AST) -> str | None:
    """A mask that is a positional argument, or is added, becomes none."""
    if isinstance(node, ast.Call) and any(isinstance(one, ast.Name) and one.id.endswith("mask") for one in node.args):
        changed = copy.deepcopy(node)
        changed.args = [
            ast.Constant(None) if isinstance(one, ast.Name) and one.id.endswith("mask") else one  # type: ignore[misc]
            for one in changed.args
        ]
        return ast.unparse(changed)
    operands = _sum(node)
    return ast.unparse(operands[0]) if operands and "mask" in _name(operands[1]) else None


def _reshaped_heads(node: ast.AST) -> str | None:
    """A transposition of heads and positions becomes a reshape to the same shape."""
    if _called(node) != "transpose" or not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    if [getattr(one, "value", None) for one in node.args] != [0, 2, 1, 3]:
        return None
    return f"(lambda t: t.reshape(t.shape[0], t.shape[2], t.shape[1], t.shape[3]))({ast.unparse(node.func.value)})"


def _swapped_roles(node: ast.AST) -> str | None:
    """The first two tensors among a call's arguments change places."""
    if (
        not isinstance(node, ast.Call)
        or len(node.args) < 2
        or _called(node) in ("split", "reshape", "transpose", "range", "zip", "isinstance")
    ):
        return None
    first, second = node.args[:2]
    if not all(isinstance(one, ast.Name) for one in (first, second)) or ast.unparse(first) == ast.unparse(second):
        return None
    if any(_has_constant(one) or "mask" in _name(one) or "cache" in _name(one) for one in (first, second)):
        return None
    changed = copy.deepcopy(node)
    changed.args[:2] = [second, first]
    return ast.unparse(changed)


def _scaled(node: ast.AST) -> str | None:
    """A factor that scales a tensor is taken twice."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
        right = node.right
        is_factor = isinstance(right, ast.Constant) and isinstance(right.value, float)
        if is_factor or "scale" in _name(right):
            return f"({ast.unparse(node)}) * 1.7"
    return None


def _gate_left_out(node: ast.AST) -> str | None:
    """A product of two tensors loses its second factor."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult) or _has_constant(node):
        return None
    return ast.unparse(node.left) if isinstance(node.left, ast.Call) and isinstance(node.right, ast.Call) else None


def _unclamped(node: ast.AST) -> str | None:
    if _called(node) not in ("clip", "clamp") or not isinstance(node, ast.Call) or not node.args:
        return None
    return ast.unparse(node.args[0])


def _logarithm(node: ast.AST) -> str | None:
    names = {"log": "log10", "log10": "log", "log2": "log", "log1p": "log"}
    if _called(node) not in names or not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    changed = copy.deepcopy(node)
    changed.func.attr = names[_called(node)]  # type: ignore[attr-defined]
    return ast.unparse(changed)


REWRITES = (
    Rewrite("left operand of a sum dropped", "residual.missing", _without_left, also=("branch.missing", "position.missing")),
    Rewrite(
        "right operand of a sum dropped", "branch.missing", _without_right, also=("position.missing", "residual.missing", "mask.missing")
    ),
    Rewrite("another activation", "activation", _other_activation),
    Rewrite("parts concatenated backwards", "order.concat", _concatenated_backwards, also=("cfg.formula",)),
    Rewrite("mask left out", "mask.missing", _keyword("mask", "None")),
    Rewrite("mask left out", "mask.missing", _positional_mask),
    Rewrite("attention scaled otherwise", "scale", _keyword("scale", "{} * 1.7")),
    Rewrite("heads reshaped instead of transposed", "heads.layout", _reshaped_heads),
    Rewrite("two arguments change places", "order.roles", _swapped_roles),
    Rewrite("scaled twice", "scale", _scaled, also=("time.scale",)),
    Rewrite("gate left out", "branch.missing", _gate_left_out),
    Rewrite("not clamped", "clamp", _unclamped),
    Rewrite("another logarithm", "units.log", _logarithm),
    Rewrite("positions off by one", "position.offset", _keyword("offset", "{} + 1")),
)


class _At(ast.NodeTransformer):
    """Rewrites the expression of one number, counted in the order of `ast.walk`."""

    def __init__(self, target: ast.AST, source: str) -> None:
        self.target, self.source = target, source

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self.target:
            return ast.copy_location(ast.parse(f"({self.source})", mode="eval").body, node)
        return self.generic_visit(node)


def _rewritten(tree: ast.Module, rewrite: Rewrite, number: int) -> ast.Module:
    fits = [(node, source) for node in ast.walk(tree) if (source := rewrite.change(node)) is not None]
    _At(*fits[number]).visit(tree)
    return tree


def _swapped_parts(tree: ast.Module) -> Iterator[ast.Assign]:
    """Assignments that name two parts of a split."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _called(node.value) in ("split", "chunk") and isinstance(node.targets[0], ast.Tuple):
            yield node


def _with_swapped_parts(tree: ast.Module, number: int) -> ast.Module:
    assignment = list(_swapped_parts(tree))[number]
    names = assignment.targets[0]
    assert isinstance(names, ast.Tuple)
    names.elts[:2] = names.elts[1::-1]
    return tree


def rewrites_of(kind: type, path: str, method: str) -> Iterator[Fault]:
    """Every fault that some rewrite makes of a method of the module at ``path``, which is of class ``kind``."""
    tree = source_tree(getattr(kind, method))
    for rewrite in REWRITES:
        for number, node in enumerate([node for node in ast.walk(tree) if rewrite.change(node) is not None]):
            text = " ".join(ast.unparse(node).split())[:60]
            plant = rewritten(path, method, lambda tree, rewrite=rewrite, number=number: _rewritten(tree, rewrite, number))
            yield Fault(f"{rewrite.name}: {text}", rewrite.kind, path, plant, also=rewrite.also)
    for number, node in enumerate(_swapped_parts(tree)):
        plant = rewritten(path, method, lambda tree, number=number: _with_swapped_parts(tree, number))
        yield Fault(f"parts of a split change places: {ast.unparse(node)[:60]}", "order.channels", path, plant, also=("order.roles",))
