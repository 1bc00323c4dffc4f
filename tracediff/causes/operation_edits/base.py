"""What a change of recorded operations is, and what all families of changes know of operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracediff.causes.program import Replay
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import MASKED, Array
from tracediff.replay.computed import Compute, Values
from tracediff.trace.operations import Node, Ref


@dataclass(frozen=True, slots=True)
class Change:
    """What some nodes give instead; ``kind`` and ``text`` say what the port would do then.

    ``key``: the same for what is the same change of another operation that the same place in the code asks for. ``lost``: what the port
    would leave out.
    """

    kind: str
    text: str
    at: Mapping[int, Compute]
    key: Any = None
    lost: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Dial:
    """A number that an operation is given: the node gives ``compute(values, number)``; ``text`` has a place for the number.

    ``tries``: what is tried before one is fitted, where that is known of what the number means.
    """

    kind: str
    text: str
    node: int
    start: float
    compute: Callable[[Values, float], Any]
    tries: tuple[float, ...] = ()


FUNCTION_OF = {
    "relu": "ReLU",
    "silu": "SiLU",
    "mish": "Mish",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "softplus": "softplus",
    "elu": "ELU",
    "gelu": "GELU (exact)",
    "leaky_relu": "leaky ReLU (0.01)",
    "hardswish": "hard swish",
    "hardsigmoid": "hard sigmoid",
    "abs": "absolute value",
    "square": "square",
    "sin": "sine",
    "cos": "cosine",
    "erf": "",
    "log_sigmoid_forward": "",
    "hardtanh": "",
}


LOGARITHMS: dict[str, Callable[[Array], Array]] = {
    "log": np.log,
    "log10": np.log10,
    "log2": np.log2,
    "log1p": np.log1p,
    "exp": np.exp,
    "expm1": np.expm1,
}


POWERS: dict[str, Callable[[Array], Array]] = {"sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "reciprocal": lambda x: 1 / x}


NORMS = frozenset(
    (
        *("native_layer_norm", "_fused_rms_norm", "native_group_norm", "native_batch_norm", "_native_batch_norm_legit"),
        *("_native_batch_norm_legit_no_training", "var", "std", "var_mean", "linalg_vector_norm", "norm"),
    )
)


SUMS = frozenset(("add", "sub", "rsub"))


PRODUCTS = frozenset(("mul", "div"))


COUNTING = frozenset(("arange", "cumsum"))
"""What numbers places."""


REARRANGING = frozenset(("unsqueeze", "squeeze", "transpose", "permute", "flip", "cat", "stack"))
"""What only rearranges: a whole number that such an operation is given is an axis."""


MASKS = frozenset(("where", "masked_fill"))


MOVES = frozenset(("roll", "flip"))


MIXING = frozenset(("mm", "bmm", "addmm", "baddbmm", "mv", "convolution", "_grouped_mm"))
"""What mixes channels or places: what such an operation gives is no longer what entered it, moved or scaled."""


SOFTMAX = frozenset(("_softmax", "_safe_softmax", "_log_softmax"))


REDUCTIONS: dict[str, Callable[..., Array]] = {"sum": np.sum, "mean": np.mean, "amax": np.max, "amin": np.min}


VIEWS = frozenset(("view", "_unsafe_view", "reshape"))


SEEN_OTHERWISE = VIEWS | frozenset(("expand", "transpose", "permute", "clone", "_to_copy", "unsqueeze", "squeeze"))
"""What gives the same values, seen or stored otherwise."""


Family = Callable[[Replay, int, Node], Iterator[Change]]


def ref_at(node: Node, place: int) -> int | None:
    """The node that an argument is; None where it is a number or not given."""
    value = node.args[place] if place < len(node.args) else None
    return value.node if isinstance(value, Ref) else None


def shape_at(replay: Replay, node: int) -> tuple[int, ...]:
    """The shape of what a node gives; () where that is no tensor."""
    value = replay.values[node]
    return value.shape if isinstance(value, np.ndarray) else ()


def is_float(replay: Replay, node: int) -> bool:
    """Whether a node gives a tensor of real numbers."""
    value = replay.values[node]
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def is_mask(replay: Replay, node: int) -> bool:
    """Whether a tensor hides: it is of truth values, of zeros and ones, or of zeros and what hides."""
    values = replay.values[node]
    if not isinstance(values, np.ndarray) or values.size < 2:
        return False
    if values.dtype.kind == "b":
        return True
    if values.dtype.kind in "iu":
        return bool(np.isin(values, (0, 1)).all()) and bool(values.any()) and not bool(values.all())
    if values.dtype.kind != "f":
        return False
    low = values <= max(MASKED, THRESHOLDS.mask_hides)
    is_hiding = bool(low.any()) and not bool(low.all()) and not np.any(values[~low])
    soft = values == values.min()
    is_soft = bool(values.min() <= SOFT_MASK and not np.any(values[~soft]) and not soft.all())
    return is_hiding or is_soft or (bool(np.isin(values, (0, 1)).all()) and bool(values.any()) and not bool(values.all()))


SOFT_MASK = -50.0


"""What hides in a softmax although it is no large number."""


def applied_to(function: Callable[[Array], Any], ref: int) -> Compute:
    """A function of what a node gives."""
    return lambda values: function(values[ref])


def redone(replay: Replay, node: Node, args: Iterable[Any] | None = None, *, name: str = "", **kwargs: Any) -> Compute:
    """An operation with other arguments, or by another name, where these are given."""
    given = None if args is None else tuple(args)
    return lambda values: replay.apply(node, values, args=given, name=name, **kwargs)


def item_of(node: int, place: int) -> Compute:
    """One of the results of a node."""
    return lambda values: values[node][place]


def value_before(replay: Replay, node: int) -> Compute:
    """What a node gives where nothing is changed."""
    return lambda values: replay.values[node]


def own_value(replay: Replay, node: int, values: Values) -> Any:
    """What a node gives by itself: what is recorded of a leaf."""
    return replay.values[node] if node in replay.program.leaves else replay.apply(replay.program.nodes[node], values)
