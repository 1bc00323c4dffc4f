"""An operation along other axes than the reference's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations

from tracediff.causes.operation_edits.base import MASKS, PRODUCTS, SEEN_OTHERWISE, SOFTMAX, SUMS, Change, redone, ref_at, shape_at
from tracediff.causes.program import Replay
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.replay.arithmetic import axes_of
from tracediff.trace.operations import Node

_ARGUMENT = {
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), (1, "transform")),
    **dict.fromkeys(("var", "std", "var_mean"), (1, "norm.missing")),
    **dict.fromkeys(("linalg_vector_norm", "norm"), (2, "norm.missing")),
    **dict.fromkeys(("sum", "mean", "prod", "amax", "amin", "max", "min", "argmax", "argmin", "logsumexp", "any", "all"), (1, "transform")),
    **dict.fromkeys(("cumsum", "cumprod", "_fft_r2c", "_fft_c2c", "_fft_c2r", "glu"), (1, "transform")),
    **dict.fromkeys(("topk", "roll"), (2, "transform")),
    "flip": (1, "order.reversed"),
}
"""For each operation along axes which of its arguments names these, and what kind of cause other axes are."""


def other_axes(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """The same operation along other axes: another axis, one axis more, one less; the sets that share most with the reference's first."""
    ref = ref_at(node, 0)
    if node.name not in _ARGUMENT or ref is None:
        return
    (place, kind), ndim = _ARGUMENT[node.name], len(shape_at(replay, ref))
    if node.name in SOFTMAX and _is_of_products(replay, ref):
        kind = "heads.layout"
    if place > len(node.args) or not ndim:
        return
    given = node.args[place] if place < len(node.args) else None
    named = axes_of(given)
    own = tuple(range(ndim)) if named is None else tuple(axis % ndim for axis in named)
    for other in _sets(ndim, own, has_one=isinstance(given, int)):
        rest = node.args[place + 1 :] if named is not None else (True,)  # what was reduced to one number keeps its axes
        args = (*node.args[:place], other[0] if isinstance(given, int) else list(other), *rest)
        what = f"the {node.name.strip('_')} of {replay.program.text(ref)}"
        said = f"the port takes {what} along {_text(other)}, the reference along {_text(own)}"
        yield Change(kind, said, {number: redone(replay, node, args)})


def _is_of_products(replay: Replay, node: int) -> bool:
    """Whether a softmax of a node is that of attention: scaled, masked or seen otherwise, it is a product of two tensors, not a layer's."""
    program = replay.program
    whole = dict(enumerate(program.whole)) if program.whole else program.nodes
    for _ in range(THRESHOLDS.farthest_product):
        known = whole.get(node)
        if known is None or not known.refs or known.name not in SEEN_OTHERWISE | PRODUCTS | SUMS | MASKS | _MATRIX_PRODUCTS:
            return False
        if known.name in _MATRIX_PRODUCTS:
            return not any(program.parameter(ref) for ref in known.refs if ref in program.nodes)
        node = known.refs[1] if known.name == "where" and len(known.refs) > 1 else known.refs[0]
    return False


_MATRIX_PRODUCTS = frozenset(("bmm", "baddbmm"))


def _sets(ndim: int, own: Sequence[int], *, has_one: bool) -> list[tuple[int, ...]]:
    """The other sets of axes, in order of how many axes they do not share with the reference's."""
    most = 1 if has_one or ndim > THRESHOLDS.most_axes else ndim
    sets = chain.from_iterable(combinations(range(ndim), size) for size in range(1, most + 1))
    return sorted((one for one in sets if set(one) != set(own)), key=lambda one: len(set(one) ^ set(own)))


def _text(axes: Sequence[int]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes[:-1]))} and {axes[-1]}"
