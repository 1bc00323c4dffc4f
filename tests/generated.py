"""Models drawn at random: one description, built on both sides with the same seeded weights.

A description is a tuple of steps, each a tuple that begins with its kind. Steps take and give (batch, length, channels) in the port, and
the same in the reference but for convolutions, which it runs channels first. An activation that is no module is a function of the
port's own code alone; "twice" is one linear layer called two times.

    ("linear", out)  ("conv", out, kernel)  ("norm", "layer" | "rms")  ("act", name, is_module)  ("attention", heads)  ("twice",)
    ("residual", steps)  ("gate", steps, steps)  ("concat", steps, steps)  ("split", steps, steps)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from hypothesis import strategies as st
from mlx import nn as mnn
from pairs import Pair
from torch import nn

Step = tuple[Any, ...]
Steps = tuple[Step, ...]
ACTIVATIONS = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU", "tanh": "Tanh"}
BRANCHES = {"residual": 1, "gate": 2, "concat": 2, "split": 2}


# -- descriptions --------------------------------------------------------------------------------------------------------------------------


def sequences(depth: int = 2, most: int = 4) -> st.SearchStrategy[Steps]:
    """Sequences of steps, nested at most so deep."""
    return st.lists(steps(depth), min_size=1, max_size=most).map(tuple)


def steps(depth: int) -> st.SearchStrategy[Step]:
    widths = st.sampled_from((4, 6, 8))
    kinds = [
        st.tuples(st.just("linear"), widths),
        st.tuples(st.just("conv"), widths, st.sampled_from((1, 3))),
        st.tuples(st.just("norm"), st.sampled_from(("layer", "rms"))),
        st.tuples(st.just("act"), st.sampled_from(tuple(ACTIVATIONS)), st.booleans()),
        st.just(("twice",)),
        st.tuples(st.just("attention"), st.sampled_from((1, 2))),
    ]
    if depth:
        inner = sequences(depth - 1, 3)
        kinds += [
            st.tuples(st.just("residual"), inner),
            *(st.tuples(st.just(kind), inner, inner) for kind in ("gate", "concat", "split")),
        ]
    return st.one_of(*kinds)


def width_after(steps: Steps, width: int) -> int:
    """How many channels a sequence gives."""
    for step in steps:
        kind = step[0]
        if kind in ("linear", "conv"):
            width = step[1]
        elif kind == "gate":
            width = width_after(step[1], width)
        elif kind in ("concat", "split"):
            taken = (width, width) if kind == "concat" else (width // 2, width - width // 2)
            width = sum(width_after(inner, one) for inner, one in zip(step[1:], taken, strict=True))
    return width


def heads_of(step: Step, width: int) -> int:
    """How many heads an attention has: those it asks for, where they divide the channels."""
    heads: int = step[1]
    return heads if width % heads == 0 else 1


# -- the reference -------------------------------------------------------------------------------------------------------------------------


class Sequence(nn.Module):
    def __init__(self, steps: Steps, width: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        for step in steps:
            self.steps.append(_reference(step, width))
            width = width_after((step,), width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Conv(nn.Conv1d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Twice(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fit = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fit(torch.tanh(self.fit(x)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (one(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (self.q, self.k, self.v))
        return self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Branches(nn.Module):
    def __init__(self, kind: str, branches: list[Steps], width: int) -> None:
        super().__init__()
        self.kind, self.cut = kind, width // 2
        widths = (self.cut, width - self.cut) if kind == "split" else (width, width)
        self.branches = nn.ModuleList(Sequence(steps, one) for steps, one in zip(branches, widths, strict=False))
        given = [width_after(steps, one) for steps, one in zip(branches, widths, strict=False)]
        self.fit = nn.Linear(given[0], width) if kind == "residual" else nn.Linear(given[1], given[0]) if kind == "gate" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "split":
            return torch.cat([self.branches[0](x[..., : self.cut]), self.branches[1](x[..., self.cut :])], -1)
        made = [branch(x) for branch in self.branches]
        if self.kind == "residual":
            return x + self.fit(made[0])
        return torch.cat(made, -1) if self.kind == "concat" else made[0] * torch.sigmoid(self.fit(made[1]))


def _reference(step: Step, width: int) -> nn.Module:
    kind = step[0]
    if kind in BRANCHES:
        return Branches(kind, list(step[1:]), width)
    if kind == "linear":
        return nn.Linear(width, step[1])
    if kind == "conv":
        return Conv(width, step[1], step[2], padding=step[2] // 2)
    if kind == "norm":
        return nn.LayerNorm(width) if step[1] == "layer" else nn.RMSNorm(width, eps=1e-5)
    if kind == "twice":
        return Twice(width)
    return getattr(nn, ACTIVATIONS[step[1]])() if kind == "act" else Attention(width, heads_of(step, width))


# -- the port ------------------------------------------------------------------------------------------------------------------------------


class PortSequence(mnn.Module):
    def __init__(self, steps: Steps, width: int) -> None:
        super().__init__()
        self.layers = []
        for step in steps:
            self.layers.append(_port(step, width))
            width = width_after((step,), width)

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return x


class PortTwice(mnn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = mnn.Linear(width, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.project(mx.tanh(self.project(x)))


class PortAttention(mnn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.query, self.key, self.value, self.out = (mnn.Linear(width, width) for _ in range(4))

    def __call__(self, x: mx.array) -> mx.array:
        parts = (one(x).reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2) for one in (self.query, self.key, self.value))
        q, k, v = parts
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5)
        return self.out(y.swapaxes(1, 2).reshape(x.shape))


class PortBranches(mnn.Module):
    def __init__(self, kind: str, branches: list[Steps], width: int) -> None:
        super().__init__()
        self.kind, self.cut = kind, width // 2
        widths = (self.cut, width - self.cut) if kind == "split" else (width, width)
        self.parts = [PortSequence(steps, one) for steps, one in zip(branches, widths, strict=False)]
        given = [width_after(steps, one) for steps, one in zip(branches, widths, strict=False)]
        if kind in ("residual", "gate"):
            self.project = mnn.Linear(given[0], width) if kind == "residual" else mnn.Linear(given[1], given[0])

    def __call__(self, x: mx.array) -> mx.array:
        if self.kind == "split":
            return mx.concatenate([self.parts[0](x[..., : self.cut]), self.parts[1](x[..., self.cut :])], axis=-1)
        made = [part(x) for part in self.parts]
        if self.kind == "residual":
            return x + self.project(made[0])
        return mx.concatenate(made, axis=-1) if self.kind == "concat" else made[0] * mx.sigmoid(self.project(made[1]))


def _port(step: Step, width: int) -> Any:
    kind = step[0]
    if kind in BRANCHES:
        return PortBranches(kind, list(step[1:]), width)
    if kind == "linear":
        return mnn.Linear(width, step[1])
    if kind == "conv":
        return mnn.Conv1d(width, step[1], step[2], padding=step[2] // 2)
    if kind == "norm":
        return mnn.LayerNorm(width) if step[1] == "layer" else mnn.RMSNorm(width, eps=1e-5)
    if kind == "twice":
        return PortTwice(width)
    if kind == "act":
        return getattr(mnn, ACTIVATIONS[step[1]])() if step[2] else mx.tanh if step[1] == "tanh" else getattr(mnn, step[1])
    return PortAttention(width, heads_of(step, width))


# -- pairs -------------------------------------------------------------------------------------------------------------------------------

_NAMES = {"steps": "layers", "branches": "parts", "fit": "project", "q": "query", "k": "key", "v": "value", "o": "out"}


def port_path(path: str) -> str:
    """The port's name of a module of the reference."""
    return ".".join(_NAMES.get(name, name) for name in path.split("."))


def generated(steps: Steps, shape: tuple[int, int, int], seed: int = 0) -> Pair:
    """The pair of a description, its input of this shape (batch, length, channels)."""
    draw = np.random.default_rng(seed)
    reference, port = Sequence(steps, shape[-1]).eval(), PortSequence(steps, shape[-1])
    weights = []
    for name, value in reference.named_parameters():
        spread = value[0].numel() ** -0.5 if value.ndim > 1 else 0.2
        offset = 1.0 if value.ndim == 1 and isinstance(reference.get_submodule(name.rpartition(".")[0]), nn.LayerNorm | nn.RMSNorm) else 0.0
        drawn = (offset * name.endswith("weight") + spread * draw.standard_normal(tuple(value.shape))).astype(np.float32)
        value.data = torch.tensor(drawn)
        weights.append((port_path(name), mx.array(drawn.transpose(0, 2, 1) if drawn.ndim == 3 else drawn)))
    port.load_weights(weights, strict=True)
    port.eval()
    x = draw.standard_normal(shape).astype(np.float32)
    truth = {name: port_path(name) for name, _ in reference.named_modules()}
    return Pair("generated", reference, port, lambda: reference(torch.tensor(x)), lambda: mx.eval(port(mx.array(x))), truth)


def leaves(port: mnn.Module) -> Iterator[tuple[str, mnn.Module]]:
    """The layers of a port that hold no other, in order of their definition."""
    return ((path, module) for path, module in sorted(port.named_modules()) if path and not module.children())
