"""Causes among the reference's own operations: what is changed in them, what proves it, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cause_scenes import draw

from tracediff.causes.cause import Cause
from tracediff.causes.detectors import operations
from tracediff.causes.from_tensors import causes_of_scene
from tracediff.causes.in_hand import InHand
from tracediff.causes.program import Program, Replay, program_of
from tracediff.causes.proof import judged
from tracediff.causes.scene import CulpritSide, Scene
from tracediff.replay.computed import CannotComputeError
from tracediff.replay.resampling import Sampling, Way, resampled, sampled
from tracediff.trace.operations import Graph, Node, Ref

Array = np.ndarray
B, T, C = 3, 6, 8
X, GATE, BOTH = draw(B, T, C), draw(B, T, C, seed=1), draw(B, T, 2 * C, seed=2)
KERNEL, GRID = draw(2, 1, 3, 3, seed=3), np.tanh(draw(B, 4, 5, 2, seed=4))
MASK = np.arange(T)[None, :, None] < np.array([6, 4, 5])[:, None, None]


def node(name: str, *args: Any, role: int = -1, **kwargs: Any) -> Node:
    flat = [one for arg in args for one in (arg if isinstance(arg, list) else [arg])]
    return Node(name, args, kwargs, role=role, refs=tuple(one.node for one in flat if isinstance(one, Ref)))


def constant(values: Array) -> Node:
    return Node("@constant", values=values)


def program(leaves: list[Array], *operations_: Node) -> Program:
    """Operations that follow on leaves; node 0 is the first leaf."""
    seen = {number: InHand(f"tensor {number}", "output", "", is_input=False, values=np.asarray(one)) for number, one in enumerate(leaves)}
    nodes = dict(enumerate([*(Node("@seen") for _ in leaves), *operations_]))
    return Program(nodes, tuple(range(len(leaves), len(nodes))), seen)


def causes(made: Program, port: Array | Callable[[Array], Array]) -> list[Cause]:
    reference = Replay(made).values[made.target]
    values = port(reference) if callable(port) else port
    scene = Scene("block", "output", "module", reference, values, 1e-6, (), (CulpritSide("block"), CulpritSide("block")), program=made)
    with np.errstate(all="ignore"):
        return list(judged(scene, operations.detect))


def softmax(x: Array, axis: int = -1) -> Array:
    raised = np.exp(x - x.max(axis, keepdims=True))
    return raised / raised.sum(axis, keepdims=True)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


GATED = (node("split", Ref(0), C, 2), node("@item", Ref(1), 0), node("@item", Ref(1), 1), node("silu", Ref(2)), node("mul", Ref(4), Ref(3)))
POOLED = (node("mul", Ref(0), Ref(1)), node("sum", Ref(2), [1]), node("sum", Ref(1), [1]), node("div", Ref(3), Ref(4)))
GROUPED = (node("native_group_norm", Ref(0), None, None, B, T, C, 2, 1e-5), node("@item", Ref(1), 0))
ROTATED = (
    node("mul", Ref(0), Ref(1)), node("slice", Ref(0), 2, 0, C // 2), node("slice", Ref(0), 2, C // 2, C), node("neg", Ref(5)),
    node("cat", [Ref(6), Ref(4)], -1), node("mul", Ref(7), Ref(2)), node("add", Ref(3), Ref(8)),
)  # fmt: skip
PAIRS_ROTATED = (
    node("mul", Ref(0), Ref(1)), node("slice", Ref(0), 2, 0, C, 2), node("slice", Ref(0), 2, 1, C, 2), node("neg", Ref(5)),
    node("stack", [Ref(6), Ref(4)], -1), node("view", Ref(7), [B, T, C]), node("mul", Ref(8), Ref(2)), node("add", Ref(3), Ref(9)),
)  # fmt: skip
COMPLEX_ROTATED = (
    node("view", Ref(0), [B, T, C // 2, 2]), node("view_as_complex", Ref(2)), node("mul", Ref(3), Ref(1)), node("view_as_real", Ref(4)),
    node("view", Ref(5), [B, T, C]),
)  # fmt: skip
JOINED_ROTATED = (
    node("slice", Ref(0), 2, 0, C, 2), node("slice", Ref(0), 2, 1, C, 2), node("mul", Ref(3), Ref(1)), node("mul", Ref(4), Ref(2)),
    node("sub", Ref(5), Ref(6)), node("mul", Ref(4), Ref(1)), node("mul", Ref(3), Ref(2)), node("add", Ref(8), Ref(9)),
    node("cat", [Ref(7), Ref(10)], -1),
)  # fmt: skip
OFFSET_CHOICE = (
    node("sigmoid", Ref(0)), node("add", Ref(2), Ref(1)), node("topk", Ref(3), 3, -1, True, False), node("@item", Ref(4), 1),
    node("gather", Ref(2), 1, Ref(5)),
)  # fmt: skip
ANGLES = np.concatenate([np.arange(T)[:, None] / 10.0 ** np.arange(C // 2)] * 2, -1)


def routing(scores: int, chosen_by: int, start: int) -> tuple[Node, ...]:
    """Two experts for each token, as groups of rows: nodes from ``start`` on; tokens are node 0, the experts' matrices node 2."""
    at = [Ref(start + place) for place in range(20)]
    return (
        node("topk", Ref(chosen_by), 2), node("@item", at[0], 1), node("gather", Ref(scores), 1, at[1]), node("view", at[1], [-1]),
        node("argsort", at[3]), node("index", at[3], [at[4]]), node("floor_divide", at[4], 2), node("index", Ref(0), [at[6]]),
        node("histc", at[5], 4, 0, 3), node("cumsum", at[8], 0, dtype="int32"), node("_grouped_mm", at[7], Ref(2), at[9]),
        node("view", at[2], [-1]), node("index", at[11], [at[4]]), node("unsqueeze", at[12], -1), node("mul", at[10], at[13]),
        node("zeros", [T, C]), node("index_add", at[15], 0, at[6], at[14]),
    )  # fmt: skip


ROUTED = (node("_softmax", Ref(1), 1, False), *routing(3, 3, 4))
ROUTED_OFFSET = (node("add", Ref(1), Ref(3)), *routing(1, 4, 5))


def routed(x: Array, logits: Array, experts: Array, *, is_normalised: bool = False) -> Array:
    shares = softmax(logits)
    made = np.zeros_like(x)
    for token, own in enumerate(shares):
        chosen = np.argsort(-own)[:2]
        for expert in chosen:
            made[token] += x[token] @ experts[expert] * own[expert] / (own[chosen].sum() if is_normalised else 1)
    return made


def interpolated(x: Array, at: Array) -> Array:
    low = np.minimum(np.floor(at).astype(int), x.shape[-1] - 2)
    return x[..., low] + (x[..., low + 1] - x[..., low]) * (at - low)


def groups_spread(x: Array) -> Array:
    seen = x.reshape(B, T // 2, 2, C)
    return ((seen - seen.mean((1, 3), keepdims=True)) / np.sqrt(seen.var((1, 3), keepdims=True) + 1e-5)).reshape(x.shape)


def rotated_pairs(x: Array) -> Array:
    cos, sin = np.cos(ANGLES[:, : C // 2]), np.sin(ANGLES[:, : C // 2])
    even, odd = x[..., ::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, odd * cos + even * sin], -1).reshape(x.shape)


def rotated_halves(x: Array) -> Array:
    cos, sin = np.cos(ANGLES[:, : C // 2]), np.sin(ANGLES[:, : C // 2])
    first, second = np.split(x, 2, -1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


LOGITS, OFFSET = draw(40, C, seed=5), draw(C, seed=6) / 10
SHARES = 1 / (1 + np.exp(-LOGITS))
CHOSEN = np.sort(np.argsort(-(SHARES + OFFSET), -1)[:, :3], -1)  # listed by number, which a top-k does not do


SEEN = np.array([[0, 1, 0, 2, 1, 0, 3]] * 3)
PENALISED = (node("gather", Ref(0), 1, Ref(1)), node("div", Ref(2), 1.4), node("scatter", Ref(0), 1, Ref(1), Ref(3)))
SLOPES_OF_SIX = 2.0 ** -np.array([2, 4, 6, 8, 1, 3])
QUERIES = draw(2, 1, T, C, seed=4)


def normed(x: Array, gain: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * gain


def ramped(low: float, high: float) -> Array:
    """Frequencies that are divided by 8 from channel ``high`` on, and whole up to ``low``."""
    return 1e4 ** -(np.arange(16) / 16) * (1 - 7 / 8 * np.clip((np.arange(16) - low) / (high - low), 0, 1))


TURNED_BY_RAMP = (
    constant(ramped(3.4, 11.3)), node("arange", 0, T), node("unsqueeze", Ref(2), -1), node("mul", Ref(3), Ref(1)),
    node("cos", Ref(4)), node("mul", Ref(0), Ref(5)),
)  # fmt: skip


def halves_rotated(start: int, source: int, cos: int, sin: int) -> tuple[Node, ...]:
    """The rotation of halves of node ``source``, as nodes from ``start`` on."""
    return (
        node("mul", Ref(source), Ref(cos)), node("slice", Ref(source), 3, 0, C // 2), node("slice", Ref(source), 3, C // 2, C),
        node("neg", Ref(start + 2)), node("cat", [Ref(start + 3), Ref(start + 1)], -1), node("mul", Ref(start + 4), Ref(sin)),
        node("add", Ref(start), Ref(start + 5)),
    )  # fmt: skip


ROTATED_BOTH = (
    constant(10.0 ** -np.arange(C // 2)), node("arange", 0, T), node("unsqueeze", Ref(3), -1), node("mul", Ref(4), Ref(2)),
    node("cat", [Ref(5), Ref(5)], -1), node("cos", Ref(6)), node("sin", Ref(6)), *halves_rotated(9, 0, 7, 8), *halves_rotated(16, 1, 7, 8),
    node("transpose", Ref(22), 2, 3), node("bmm", Ref(15), Ref(23)),
)  # fmt: skip


def scores(q: Array, k: Array, queries_further: int = 0, keys_further: int = 0) -> Array:
    def turned(x: Array, further: int) -> Array:
        angles = ANGLES + further / 10.0 ** np.arange(C)[None, np.arange(C) % (C // 2)]
        return x * np.cos(angles) + np.concatenate([-x[..., C // 2 :], x[..., : C // 2]], -1) * np.sin(angles)

    return turned(q, queries_further) @ np.swapaxes(turned(k, keys_further), -1, -2)


CASES: dict[str, tuple[str, Program, Array]] = {
    "the halves of a gate are exchanged": ("order.roles", program([BOTH], *GATED), silu(BOTH[..., C:]) * BOTH[..., :C]),
    "a mask is forgotten": (
        "mask.missing",
        program([X, ~MASK], node("masked_fill", Ref(0), Ref(1), -np.inf), node("_softmax", Ref(2), 1, False)),
        softmax(X, 1),
    ),
    "an additive mask is forgotten": (
        "mask.missing",
        program([X, np.where(MASK, 0.0, -1e4)], node("add", Ref(0), Ref(1)), node("_softmax", Ref(2), 1, False)),
        softmax(X, 1),
    ),
    "a mask has its border one place further": (
        "mask.wrong",
        program([X, np.arange(T)[:, None], np.array([[2]])], node("lt", Ref(1), Ref(2)), node("where", Ref(3), Ref(0), Ref(0)),
                node("mul", Ref(4), Ref(3))),
        X * (np.arange(T) <= 2)[:, None],
    ),
    "GELU is approximated": ("activation", program([X], node("gelu", Ref(0))), gelu(X)),
    "a tanh is left out of a gate": ("activation", program([X, GATE], node("tanh", Ref(1)), node("mul", Ref(0), Ref(2))), X * GATE),
    "groups are taken as MLX does": ("norm.missing", program([X], *GROUPED), groups_spread(X)),
    "a mean divides by all places": ("scale", program([X, MASK.astype(float)], *POOLED), (X * MASK).mean(1)),
    "another eps": ("norm.eps", program([X], node("native_layer_norm", Ref(0), [C], None, None, 1e-6), node("@item", Ref(1), 0)),
                    (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 3e-2)),
    "a residual is left out": ("residual.missing",
                               Program({0: Node("@seen"), 1: Node("@seen"), 2: node("add", Ref(0), Ref(1))}, (2,), {
                                   0: InHand("x", "input[0]", "", is_input=True, values=X),
                                   1: InHand("branch", "output", "", is_input=False, values=GATE)}), GATE),
    "softmax runs along another axis": ("transform", program([X], node("_softmax", Ref(0), 2, False)), softmax(X, 1)),
    "the softmax of attention runs along the queries": (
        "heads.layout",
        program([X, GATE], node("transpose", Ref(1), 1, 2), node("bmm", Ref(0), Ref(2)), node("mul", Ref(3), 0.5),
                node("_softmax", Ref(4), 2, False), node("bmm", Ref(5), Ref(0))),
        softmax(X @ GATE.transpose(0, 2, 1) / 2, 1) @ X,
    ),
    "the last place stands for a mean": (
        "transform", program([X, GATE[:, 0]], node("mean", Ref(0), [1]), node("mul", Ref(2), Ref(1))), X[:, -1] * GATE[:, 0]
    ),
    "a mean stands for the first place": ("transform", program([X], node("select", Ref(0), 1, 0), node("sin", Ref(1))), np.sin(X.mean(1))),
    "a mean stands for the last place of each row": (
        "transform",
        program([X, np.arange(B), np.array([3, 5, 1])], node("index", Ref(0), [Ref(1), Ref(2)]), node("sin", Ref(3))),
        np.sin(X.mean(1)),
    ),
    "a mean stands for the largest": (
        "transform", program([X], node("max", Ref(0), 1), node("@item", Ref(1), 0), node("sin", Ref(2))), np.sin(X.mean(1))
    ),
    "a mean of the places that are not padded is the last place": (
        "transform", program([X, MASK.astype(float)], *POOLED, node("sin", Ref(5))), np.sin(X[:, -1])
    ),
    "a mask that is written out as ones and zeros is forgotten": (
        "mask.missing",
        program([X, (np.arange(T)[:, None] > 2).astype(int)], node("ones_like", Ref(0)), node("mul", Ref(2), Ref(1)),
                node("mul", Ref(0), Ref(3))),
        X,
    ),
    "a mean of the places that are not padded is one of all": ("mask.missing", program([X, MASK.astype(float)], *POOLED), X.mean(1)),
    "exp for softplus": ("activation", program([X], node("softplus", Ref(0)), node("neg", Ref(1))), -np.exp(X)),
    "softplus for exp": ("activation", program([X], node("exp", Ref(0)), node("mul", Ref(1), -0.5)), -0.5 * np.logaddexp(0, X)),
    "shares of a router are sigmoids": ("activation", program([X, GATE], node("_softmax", Ref(0), -1, False), node("mul", Ref(2), Ref(1))),
                                        GATE / (1 + np.exp(-X))),
    "sigmoids of a router are shares": ("activation", program([X, GATE], node("sigmoid", Ref(0)), node("mul", Ref(2), Ref(1))),
                                        GATE * softmax(X)),
    "scores below 0 are divided, too": (
        "branch.missing",
        program([X], node("lt", Ref(0), 0), node("mul", Ref(0), 1.4), node("div", Ref(0), 1.4), node("where", Ref(1), Ref(2), Ref(3))),
        X / 1.4,
    ),
    "scores of a token are divided for each time that it was seen": (
        "branch.extra", program([LOGITS[:3], SEEN], *PENALISED), LOGITS[:3] / 1.4 ** np.array([[3, 2, 1, 1, 0, 0, 0, 0]] * 3)
    ),
    "scores are divided twice": (
        "branch.extra", program([LOGITS[:3], SEEN], *PENALISED), LOGITS[:3] / 1.4 ** np.array([[2, 2, 2, 2, 0, 0, 0, 0]] * 3)
    ),
    "rows are divided for each time that they are named": (
        "branch.extra",
        program([X, np.array([4, 1, 4, 4])], node("index", Ref(0), [None, Ref(1)]), node("mul", Ref(2), 0.5),
                node("index_put", Ref(0), [None, Ref(1)], Ref(3))),
        X * (0.5 ** np.array([0, 1, 0, 0, 3, 0]))[:, None],
    ),
    "an offset is added twice": (
        "branch.extra", program([X, GATE[0, 0]], node("add", Ref(0), Ref(1)), node("tanh", Ref(2))), np.tanh(X + 2 * GATE[0, 0])
    ),
    "a norm with a gain is applied twice": (
        "branch.extra",
        program([X, 1 + np.abs(GATE[0, 0])], node("_fused_rms_norm", Ref(0), [C], Ref(1), 1e-6), node("@item", Ref(2), 0)),
        normed(normed(X, 1 + np.abs(GATE[0, 0])), 1 + np.abs(GATE[0, 0])),
    ),
    "a bias is added behind the weight of an expert": (
        "branch.missing",
        program([X, GATE[0, 0], GATE[..., :1]], node("add", Ref(0), Ref(1)), node("mul", Ref(3), Ref(2)), node("sum", Ref(4), [1])),
        (X * GATE[..., :1] + GATE[0, 0]).sum(1),
    ),
    "the biases of experts are summed without their weights": (
        "branch.missing",
        program([X, draw(T, C, seed=9), draw(B, 1, T, seed=4)], node("add", Ref(0), Ref(1)), node("bmm", Ref(2), Ref(3))),
        draw(B, 1, T, seed=4) @ X + draw(T, C, seed=9).sum(0),
    ),
    "numbers of buckets are not limited": (
        "clamp",
        program([draw(T, C, seed=5)], node("mul", Ref(0), 9.0), node("_to_copy", Ref(1), dtype="int64"), node("clamp_max", Ref(2), 7),
                node("add", Ref(3), 4)),
        (draw(T, C, seed=5) * 9).astype(int) + 4,
    ),
    "numbers of buckets are limited at the end of the table": (
        "clamp",
        program([np.arange(40)[None] - 20, np.arange(4)[:, None] % 2 * 8], node("abs", Ref(0)), node("full_like", Ref(2), 7),
                node("minimum", Ref(2), Ref(3)), node("add", Ref(1), Ref(4))),
        np.minimum(np.abs(np.arange(40)[None] - 20) + np.arange(4)[:, None] % 2 * 8, 15),
    ),
    "a window lies at the start of its frame": (
        "padding.shift",
        program([draw(B, 16)], node("hann_window", 8, False), node("zeros", [16]), node("@flat", Ref(2)),
                node("@write", Ref(3), 4, [8], [1], Ref(1)), node("@read", Ref(4), 0, [16], [1]), node("mul", Ref(0), Ref(5))),
        draw(B, 16) * np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(8) / 7), (0, 8)),
    ),
    "slopes of heads are of one ratio": (
        "scale",
        program([X], constant(SLOPES_OF_SIX), node("mul", Ref(0), 1.0), node("transpose", Ref(2), 1, 2),
                node("slice", Ref(3), 1, 0, 6), node("unsqueeze", Ref(1), -1), node("mul", Ref(4), Ref(5))),
        X.transpose(0, 2, 1)[:, :6] * 2.0 ** (-8 / 6 * np.arange(1, 7))[:, None],
    ),
    "slopes of heads have another ratio": (
        "scale",
        program([X], node("arange", 1, C + 1), node("pow", 0.5, Ref(1)), node("add", Ref(2), 0.0), node("mul", Ref(0), Ref(3))),
        X * 0.7 ** np.arange(1, C + 1),
    ),
    "frequencies that are powers of a number have another": (
        "rope.variant",
        program([X], node("arange", 0, C), node("div", Ref(1), C), node("pow", 1e4, Ref(2)), node("reciprocal", Ref(3)),
                node("arange", 0, T), node("unsqueeze", Ref(5), -1), node("mul", Ref(6), Ref(4)), node("cos", Ref(7)),
                node("mul", Ref(0), Ref(8))),
        X * np.cos(np.arange(T)[:, None] / 5e5 ** (np.arange(C) / C)),
    ),
    "the ramp of frequencies has whole channels as its ends": (
        "rope.variant", program([draw(B, T, 16)], *TURNED_BY_RAMP), draw(B, T, 16) * np.cos(np.arange(T)[:, None] * ramped(3, 12))
    ),
    "the frequencies are not scaled": (
        "rope.variant", program([draw(B, T, 16)], *TURNED_BY_RAMP), draw(B, T, 16) * np.cos(np.arange(T)[:, None] * ramped(20, 21))
    ),
    "queries are rotated by the length further": (
        "position.offset", program([QUERIES, draw(2, 1, T, C, seed=5)], *ROTATED_BOTH), scores(QUERIES, draw(2, 1, T, C, seed=5), T)
    ),
    "keys are rotated one place less": (
        "position.offset", program([QUERIES, draw(2, 1, T, C, seed=5)], *ROTATED_BOTH), scores(QUERIES, draw(2, 1, T, C, seed=5), 0, -1)
    ),
    "a Fourier transform runs over one axis": (
        "transform",
        program([X], node("_fft_r2c", Ref(0), [1, 2], 0, False), node("view_as_real", Ref(1)), node("select", Ref(2), 3, 0)),
        np.fft.fft(X, axis=-1).real,
    ),
    "lengths are taken over one axis": (
        "norm.missing",
        program([X], node("linalg_vector_norm", Ref(0), 2, [1, 2], True), node("div", Ref(0), Ref(1))),
        X / np.sqrt((X**2).sum(1, keepdims=True)),
    ),
    "a mean over all is one of each part": (
        "transform", program([X], node("mean", Ref(0)), node("sub", Ref(0), Ref(1))), X - X.mean((1, 2), keepdims=True)),
    "halves are rotated": (
        "rope.variant",
        program([X, np.cos(ANGLES[:, [0, 0, 1, 1, 2, 2, 3, 3]]), np.sin(ANGLES[:, [0, 0, 1, 1, 2, 2, 3, 3]])], *PAIRS_ROTATED),
        rotated_halves(X),
    ),
    "halves are rotated as complex numbers": (
        "rope.variant", program([X, np.exp(1j * ANGLES[:, : C // 2])], *COMPLEX_ROTATED), rotated_halves(X)
    ),
    "halves are rotated, where neighbours give halves": (
        "rope.variant", program([X, np.cos(ANGLES[:, : C // 2]), np.sin(ANGLES[:, : C // 2])], *JOINED_ROTATED), rotated_halves(X)
    ),
    "queries and keys are thirds of the whole, not of each head": (
        "heads.layout",
        program([draw(B, T, 4 * 6)], node("view", Ref(0), [B, T, 4, 6]), node("split", Ref(1), 2, -1), node("@item", Ref(2), 1)),
        draw(B, T, 4 * 6).reshape(B, T, 3, 4, 2)[:, :, 1],
    ),
    "a softmax has no place for what nothing is seen by": (
        "branch.missing",
        program([X, GATE[..., :1]], node("cat", [Ref(0), Ref(1)], -1), node("_softmax", Ref(2), -1, False), node("slice", Ref(3), 2, 0, C)),
        softmax(X),
    ),
    "the weights of what is chosen have the offset": (
        "order.roles", program([LOGITS, OFFSET], *OFFSET_CHOICE), np.take_along_axis(SHARES + OFFSET, CHOSEN, -1)
    ),
    "the weights of what is chosen are not scaled": (
        "scale", program([LOGITS, OFFSET], *OFFSET_CHOICE, node("mul", Ref(6), 2.5)), np.take_along_axis(SHARES, CHOSEN, -1)
    ),
    "the weights of what is chosen are scaled by another number": (
        "scale", program([LOGITS, OFFSET], *OFFSET_CHOICE, node("mul", Ref(6), 2.5)), 1.7 * np.take_along_axis(SHARES, CHOSEN, -1)
    ),
    "neighbouring channels are rotated": ("rope.variant", program([X, np.cos(ANGLES), np.sin(ANGLES)], *ROTATED), rotated_pairs(X)),
    "positions count from 0": (
        "position.offset",
        program([X], node("arange", 5, 5 + T), node("unsqueeze", Ref(1), -1), node("mul", Ref(0), Ref(2)), node("cos", Ref(3))),
        np.cos(X * np.arange(T)[:, None]),
    ),
    "a border is not reflected": (
        "padding.mode",
        program([X], node("reflection_pad1d", Ref(0), [2, 2]), node("unfold", Ref(1), -1, 3, 1), node("sum", Ref(2), [-1])),
        np.lib.stride_tricks.sliding_window_view(np.pad(X, ((0, 0), (0, 0), (2, 2))), 3, -1).sum(-1),
    ),
    "times are in other units": (
        "scale", program([X], node("mul", Ref(0), 1.0), node("sin", Ref(1))), np.sin(1000 * X),
    ),
    "a ReLU too much": ("activation", program([X, GATE], node("add", Ref(0), Ref(1))), np.maximum(X + GATE, 0)),
    "coordinates lie in the middles of parts": (
        "position.offset",
        program([X[0].T], node("arange", 0, 9), node("mul", Ref(1), (T - 1) / 8), node("floor", Ref(2)), node("sub", Ref(2), Ref(3)),
                node("_to_copy", Ref(3), dtype="int64"), node("clamp", Ref(5), None, T - 2), node("add", Ref(6), 1),
                node("index", Ref(0), [None, Ref(6)]), node("index", Ref(0), [None, Ref(7)]), node("sub", Ref(9), Ref(8)),
                node("sub", Ref(2), Ref(6)), node("mul", Ref(10), Ref(11)), node("add", Ref(8), Ref(12))),
        interpolated(X[0].T, np.clip((np.arange(9) + 0.5) * T / 9 - 0.5, 0, T - 1)),
    ),
    "a table is resampled by another filter": (
        "transform",
        program([X[None]], node("upsample_bilinear2d", Ref(0), [9, 5], False, None, None), node("sin", Ref(1))),
        np.sin(resampled(X[None], [9, 5], Way("cubic"))),
    ),
    "rotary frequencies have another base": (
        "rope.variant",
        program([X, 1e4 ** -np.linspace(0, 1, C)], node("arange", 0, T), node("unsqueeze", Ref(2), -1), node("mul", Ref(3), Ref(1)),
                node("cos", Ref(4)), node("mul", Ref(0), Ref(5))),
        X * np.cos(np.arange(T)[:, None] * 5e5 ** -np.linspace(0, 1, C)),
    ),
    "a branch that was rotated somewhere is left out": (
        "branch.missing",
        program([X[0], ANGLES, draw(C, C, seed=8), GATE[0]], node("cos", Ref(1)), node("mul", Ref(0), Ref(4)), node("mm", Ref(5), Ref(2)),
                node("add", Ref(3), Ref(6))),
        GATE[0],
    ),
    "a factor that was normalised somewhere is left out": (
        "branch.missing",
        program([X[0], GATE[0]], node("native_layer_norm", Ref(1), [C], None, None, 1e-5), node("@item", Ref(2), 0),
                node("sigmoid", Ref(3)), node("mul", Ref(0), Ref(4))),
        X[0],
    ),
    "chosen weights are normalised": (
        "branch.extra",
        program([X[0], draw(T, 4, seed=5), draw(4, C, C, seed=6)], *ROUTED),
        routed(X[0], draw(T, 4, seed=5), draw(4, C, C, seed=6), is_normalised=True),
    ),
    "experts are chosen without the router's offset": (
        "branch.missing",
        program([X[0], softmax(draw(T, 4, seed=5)), draw(4, C, C, seed=6), np.array([0.0, 0.9, -0.4, 0.3])], *ROUTED_OFFSET),
        routed(X[0], draw(T, 4, seed=5), draw(4, C, C, seed=6)),
    ),
    "halves that the reference exchanges are not exchanged": (
        "order.concat",
        program([X], node("slice", Ref(0), 2, C // 2, C), node("slice", Ref(0), 2, 0, C // 2), node("cat", [Ref(1), Ref(2)], -1)),
        X,
    ),
    "a surplus is cut off at the other end": (
        "padding.shift",
        program([X], node("constant_pad_nd", Ref(0), [2, 2]), node("slice", Ref(1), 2, 0, C + 1)),
        np.pad(X, ((0, 0), (0, 0), (2, 2)))[..., 3:],
    ),
    "more than half is taken from the other end": (
        "position.offset",
        program([X], node("slice", Ref(0), 2, 1, C), node("sin", Ref(1))),
        np.sin(X[..., :-1]),
    ),
    "an axis is rolled by the shift of another": (
        "padding.shift", program([X], node("roll", Ref(0), [2, 3], [1, 2])), np.roll(X, (2, 2), (1, 2)),
    ),
    "a kernel lies turned": (
        "weights.layout",
        program([X[:, None], KERNEL], node("convolution", Ref(0), Ref(1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)),
        Replay(program([X[:, None], np.swapaxes(KERNEL, 2, 3)],
                       node("convolution", Ref(0), Ref(1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1))).values[2],
    ),
    "coordinates are read as (y, x)": (
        "position.offset",
        program([X[:, None], GRID], node("grid_sampler_2d", Ref(0), Ref(1), 0, 0, False)),
        sampled(X[:, None], GRID[..., ::-1], Sampling()),
    ),
    "channels are flattened behind the places": (
        "order.channels", program([X], node("view", Ref(0), [B, T * C]), node("sin", Ref(1))),
        np.sin(X.transpose(0, 2, 1).reshape(B, -1)),
    ),
    "each part is repeated in turn": (
        "heads.layout",
        program([X], node("unsqueeze", Ref(0), 1), node("expand", Ref(1), [B, 2, T, C]), node("view", Ref(2), [2 * B, T, C])),
        np.tile(X, (2, 1, 1)),
    ),
    "one condition chooses between two tensors": (
        "branch.missing",
        program([X, GATE], constant(np.array(True)), node("where", Ref(2), Ref(0), Ref(1)), node("tanh", Ref(3))),
        np.tanh(GATE),
    ),
    "one condition chooses between two frequencies": (
        "rope.variant",
        program([X, GATE], constant(np.array(True)), node("where", Ref(2), Ref(0), Ref(1)), node("cos", Ref(3))),
        np.cos(GATE),
    ),
    "log for log10": ("units.log", program([np.abs(X) + 1], node("log10", Ref(0)), node("add", Ref(1), 1.0)), np.log(np.abs(X) + 1) + 1),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_change_of_the_operations_names_the_cause_and_is_proven(name: str) -> None:
    kind, made, port = CASES[name]
    found = causes(made, port)
    assert [cause.kind for cause in found] == [kind]
    assert found[0].confirmed


@pytest.mark.parametrize("name", CASES)
def test_no_change_explains_an_error_by_chance(name: str) -> None:
    _, made, port = CASES[name]
    error = np.random.default_rng(7).standard_normal(port.shape) * np.std(port[np.isfinite(port)])
    assert causes(made, lambda reference: reference + error) == []


def test_a_factor_of_what_was_in_hand_is_found_although_what_made_that_is_not_known() -> None:
    nodes = {2: node("mul", Ref(0), Ref(1)), 3: node("tanh", Ref(2))}
    made = Program(nodes, (3,), {2: InHand("x", "input", "", is_input=True, values=X)})
    assert [cause.kind for cause in causes(made, np.tanh(1.3 * X))] == ["scale"]


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize(("leaves", "steps"), [([BOTH], GATED), ([X, GATE], POOLED)])
def test_no_change_explains_a_value_that_overflows(leaves: list[Array], steps: tuple[Node, ...], value: float) -> None:
    def overflowing(reference: Array) -> Array:
        port = reference.copy()
        port.reshape(-1)[3] = value
        return port

    assert causes(program(leaves, *steps), overflowing) == []


@pytest.mark.parametrize(("wrong", "kinds"), [((), ["scale"]), (("norm.weight",), []), (("other.weight",), ["scale"])])
@pytest.mark.parametrize("factor", [None, 1.3])
def test_what_weights_show_already_is_no_change_of_operations(wrong: tuple[str, ...], kinds: list[str], factor: float | None) -> None:
    gain = draw(C, seed=9)
    nodes = {0: Node("@seen"), 1: Node("@param", ("norm.weight",), values=gain), 2: node("mul", Ref(0), Ref(1))}
    made = Program(nodes, (1, 2), {0: InHand("x", "input", "", is_input=True, values=X)}, {1: "norm.weight"})
    port = X if factor is None else X * gain * factor
    sides = (CulpritSide("norm"), CulpritSide("norm"))
    scene = Scene("norm", "output", "module", X * gain, port, 1e-6, (), sides, program=made, wrong_weights=frozenset(wrong))
    assert [cause.kind for cause in judged(scene, operations.detect)] == kinds


def added(made: Node, other: Node | None = None) -> Program:
    """A sum of two tensors in hand, of which the second was made by an operation outside of what the code did; both were handed in."""
    whole = [Node("@seen"), made if other is None else other, made]
    seen = {0: InHand("the stream", "input", "", is_input=True, values=X), 2: InHand("the rest", "input", "", is_input=True, values=GATE)}
    nodes = {0: whole[0], 2: made, 3: node("add", Ref(0), Ref(2))}
    return Program(nodes, (3,), seen, whole=(*whole, nodes[3]))


@pytest.mark.parametrize(("port", "kind"), [(X, "branch.missing"), (GATE, "residual.missing")])
def test_of_two_terms_the_residual_is_the_one_that_the_other_was_made_of(port: Array, kind: str) -> None:
    assert [cause.kind for cause in causes(added(node("silu", Ref(0))), port)] == [kind]


def test_a_term_made_of_counted_places_alone_is_a_position() -> None:
    assert [cause.kind for cause in causes(added(node("mul", Ref(1), 0.5), node("arange", T)), X)] == ["position.missing"]
    assert [cause.kind for cause in causes(added(node("embedding", Ref(0), Ref(1)), node("arange", T)), X)] == ["branch.missing"]


def test_another_of_two_guided_tensors_is_another_formula_of_guidance() -> None:
    steps = (node("sub", Ref(0), Ref(1)), node("mul", Ref(2), 1.5), node("add", Ref(1), Ref(3)))
    assert [cause.kind for cause in causes(program([X, GATE], *steps), X + 1.5 * (X - GATE))] == ["cfg.formula"]


def test_another_axis_of_what_only_rearranges_is_another_layout_and_no_scale() -> None:
    heads = X[:, :2]
    steps = (node("unsqueeze", Ref(0), 2), node("expand", Ref(1), [B, 2, 2, C]), node("reshape", Ref(2), [B, 4, C]))
    assert [cause.kind for cause in causes(program([heads], *steps), np.tile(heads, (1, 2, 1)))] == ["heads.layout"]


def test_a_change_in_a_loop_is_made_in_every_turn() -> None:
    decay = np.full((B, C), 0.5)
    turns = [node("select", Ref(0), 1, 0, role=0)]
    state = 2
    for turn in range(1, T):
        turns += [node("mul", Ref(1), Ref(state), role=1), node("select", Ref(0), 1, turn, role=0)]
        state = 2 + len(turns)
        turns.append(node("add", Ref(state - 2), Ref(state - 1), role=2))
    made = program([X, decay], *turns)
    found = causes(made, X[:, -1])  # no state is carried
    assert [cause.confirmed for cause in found] == [True]
    assert found[0].kind in ("branch.missing", "residual.missing")


def test_of_two_proven_edits_one_that_leaves_far_more_fits_by_chance() -> None:
    """A solver's step errs by one number, which some of many edits nearly give."""
    state, velocity = (InHand(name, "output", "", is_input=False, values=values) for name, values in (("state", X), ("velocity", GATE)))
    steps = (node("tanh", Ref(2)), node("mul", Ref(1), Ref(3)), node("add", Ref(0), Ref(4)))
    nodes = {0: Node("@seen"), 1: Node("@seen"), 2: Node("@constant", values=np.array(1.3)), **dict(enumerate(steps, 3))}
    made, sides = Program(nodes, (2, 3, 4, 5), {0: state, 1: velocity}), (CulpritSide("block"), CulpritSide("block"))

    def port(step: float) -> Array:
        return X + step * GATE

    nearly = np.sin(1.3) + 1e-3  # the sine leaves 1 % of the difference
    scene = Scene("block", "output", "module", port(np.tanh(1.3)), port(nearly), 1e-6, (state, velocity), sides, program=made)
    with np.errstate(all="ignore"):
        found = [cause.kind for cause in causes_of_scene(scene) if cause.confirmed]
    assert [cause.kind for cause in causes(made, port(nearly))] == ["activation"]
    assert found == ["scale"]


def test_one_slip_in_two_places_of_the_code_is_one_change() -> None:
    first, second, whole = draw(3, C), draw(3, C, seed=1), draw(6, C, seed=2)
    copied = [
        step
        for leaf, start in ((0, 3), (1, 6))
        for step in (node("unsqueeze", Ref(leaf), 1), node("expand", Ref(start), [3, 2, C]), node("view", Ref(start + 1), [6, C]))
    ]
    made = program([first, second, whole], *copied, node("mul", Ref(5), Ref(8)), node("sin", Ref(9)), node("mul", Ref(10), Ref(2)))
    (found,) = causes(made, np.sin(np.tile(first * second, (2, 1))) * whole)
    assert (found.kind, found.confirmed) == ("heads.layout", True)
    (alone,) = causes(made, np.sin(np.tile(first, (2, 1)) * np.repeat(second, 2, 0)) * whole)
    assert "(each of 2 times)" in found.evidence
    assert "times)" not in alone.evidence


IDS = np.array([[7, 4, 9, 5, 1, 1], [7, 9, 1, 1, 1, 1]])
COUNTED = (
    node("ne", Ref(0), 1), node("_to_copy", Ref(1), dtype="int32"), node("cumsum", Ref(2), 1), node("mul", Ref(3), Ref(2)),
    node("add", Ref(4), 1),
)  # fmt: skip


def test_places_that_are_counted_with_padding_have_another_position() -> None:
    (found,) = causes(program([IDS], *COUNTED), np.broadcast_to(np.arange(T), IDS.shape))
    assert (found.kind, found.confirmed) == ("position.offset", True)
    assert "the port numbers every place from 0" in found.evidence


def test_numbers_that_are_handed_on_uncompared_are_named() -> None:
    (found,) = causes(program([IDS], node("eq", Ref(0), 9), node("_to_copy", Ref(1), dtype="int32")), IDS)
    assert (found.kind, found.confirmed) == ("branch.missing", True)
    assert "the reference asks which are equal to 9" in found.evidence


def test_a_scalar_that_a_rounding_makes_a_round_number_is_not_known_to_be_rounded() -> None:
    alpha = np.array(0.99915)
    assert "precision" not in [cause.kind for cause in causes(program([X, alpha], node("mul", Ref(0), Ref(1))), X)]
    several = np.linspace(0.9, 0.99, C)
    rounded = several.astype(ml_dtypes.bfloat16).astype(np.float64)
    made = program([X, several], node("add", Ref(1), 0.0), node("mul", Ref(0), Ref(2)))
    assert [cause.kind for cause in causes(made, X * rounded)] == ["precision"]


@pytest.mark.parametrize("hidden", [-1e9, float(np.finfo(np.float32).min)])
def test_what_hides_does_not_drown_what_the_shown_scores_tell(hidden: float) -> None:
    mask = np.where(np.tri(T, dtype=bool), 0.0, hidden)
    scores = draw(B, T, T)
    made = program([scores, mask], node("mul", Ref(0), 2.0), node("add", Ref(2), Ref(1)))
    port = np.where(np.tri(T, dtype=bool), scores * 2.5, -1e9)
    assert [cause.kind for cause in causes(made, port) if cause.confirmed] == ["scale"]
    assert causes(made, np.where(np.tri(T, dtype=bool), draw(B, T, T, seed=5), -1e9)) == []


def test_what_is_chosen_in_another_order_is_no_change_of_operations() -> None:
    assert causes(program([LOGITS, OFFSET], *OFFSET_CHOICE), np.take_along_axis(SHARES, CHOSEN, -1)) == []


def test_operations_that_do_not_give_the_reference_say_nothing() -> None:
    made = program([X], node("gelu", Ref(0)))
    scene = Scene("block", "output", "module", X, gelu(X), 1e-6, (), (CulpritSide("block"), CulpritSide("block")), program=made)
    assert list(operations.detect(scene)) == []


def test_an_operation_without_arithmetic_cannot_be_computed() -> None:
    with pytest.raises(CannotComputeError, match="no arithmetic for fancy"):
        Replay(program([X], node("fancy", Ref(0)))).values  # noqa: B018


def test_a_program_begins_at_what_was_seen_and_lacks_where_nothing_was() -> None:
    graph = Graph((Node("@seen"), node("fancy", Ref(0)), node("gelu", Ref(1))), {}, {})
    seen = InHand("what fancy gives", "output", "", is_input=False, values=X)
    assert program_of(graph, 2, lambda number, must: None) is None
    begun = program_of(graph, 2, lambda number, must: seen if number == 1 and must else None)
    assert begun is not None
    assert (begun.steps, list(begun.leaves)) == ((2,), [1])


@pytest.mark.parametrize(("values", "kinds"), [(3, []), (48, ["scale"])])
def test_a_number_fitted_to_a_few_values_has_to_give_them_more_exactly(values: int, kinds: list[str]) -> None:
    x, other = draw(values), draw(values, seed=3)
    other -= x * np.vdot(x, other) / np.vdot(x, x)
    off = 0.01 * 0.6 * np.linalg.norm(x) / np.linalg.norm(other) * other
    found = causes(program([x], node("mul", Ref(0), 2.0)), 2.6 * x + off)
    assert [cause.kind for cause in found if cause.confirmed] == kinds
