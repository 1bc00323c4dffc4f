"""Message passing on a graph, and attention pooling of its nodes: gathers and scattered sums, edges in a table, nothing convolved."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx import nn as mnn
from pairs import perturb
from torch import nn

from benchmarks.faults.catalogue import Edit
from benchmarks.faults.pairs.base import pair

NODES, WIDTH, EDGE, ROUNDS = 14, 20, 6, 3


def mlp(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inner, 2 * WIDTH), nn.SiLU(), nn.Linear(2 * WIDTH, outer))


class MessageLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.edge_mlp, self.node_mlp = mlp(2 * WIDTH + EDGE, WIDTH), mlp(2 * WIDTH, WIDTH)
        self.gate = nn.Linear(WIDTH, 1)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, h: torch.Tensor, source: torch.Tensor, target: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        message = self.edge_mlp(torch.cat([h[target], h[source], edges], -1))
        message = message * torch.sigmoid(self.gate(message))
        total = torch.zeros_like(h).index_add_(0, target, message)
        return self.norm(h + self.node_mlp(torch.cat([h, total], -1)))


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.atom_embedding = nn.Embedding(9, WIDTH)
        self.charge = nn.Linear(1, WIDTH, bias=False)
        self.layers = nn.ModuleList([MessageLayer() for _ in range(ROUNDS)])
        self.pool_key, self.pool_value = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, WIDTH)
        self.readout = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))

    def forward(
        self, atoms: torch.Tensor, charges: torch.Tensor, source: torch.Tensor, target: torch.Tensor, edges: torch.Tensor
    ) -> torch.Tensor:
        h = self.atom_embedding(atoms) + self.charge(charges[:, None])
        for layer in self.layers:
            h = layer(h, source, target, edges)
        weights = torch.softmax(self.pool_key(h), 0)
        return self.readout((weights * self.pool_value(h)).sum(0))


class Dense(mnn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.first, self.second = mnn.Linear(inner, 2 * WIDTH), mnn.Linear(2 * WIDTH, outer)

    def __call__(self, x: mx.array) -> mx.array:
        return self.second(mnn.silu(self.first(x)))


class Interaction(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phi_e, self.phi_h = Dense(2 * WIDTH + EDGE, WIDTH), Dense(2 * WIDTH, WIDTH)
        self.attention = mnn.Linear(WIDTH, 1)
        self.ln = mnn.LayerNorm(WIDTH)

    def __call__(self, x: mx.array, senders: mx.array, receivers: mx.array, features: mx.array) -> mx.array:
        m = self.phi_e(mx.concatenate([x[receivers], x[senders], features], axis=-1))
        m = m * mx.sigmoid(self.attention(m))
        received = mx.zeros(x.shape, x.dtype).at[receivers].add(m)
        return self.ln(x + self.phi_h(mx.concatenate([x, received], axis=-1)))


class PortGraph(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = mnn.Embedding(9, WIDTH)
        self.embed_charge = mnn.Linear(1, WIDTH, bias=False)
        self.interactions = [Interaction() for _ in range(ROUNDS)]
        self.score, self.value = mnn.Linear(WIDTH, 1), mnn.Linear(WIDTH, WIDTH)
        self.out_in, self.out = mnn.Linear(WIDTH, WIDTH), mnn.Linear(WIDTH, 2)

    def __call__(self, atoms: mx.array, charges: mx.array, senders: mx.array, receivers: mx.array, features: mx.array) -> mx.array:
        x = self.embed(atoms) + self.embed_charge(mx.expand_dims(charges, -1))
        for interaction in self.interactions:
            x = interaction(x, senders, receivers, features)
        weights = mx.softmax(self.score(x), axis=0)
        return self.out(mnn.relu(self.out_in(mx.sum(weights * self.value(x), axis=0))))


def make(seed: int = 0) -> Any:
    truth = {
        "": "", "atom_embedding": "embed", "charge": "embed_charge", "layers.*": "interactions.*",
        "layers.*.gate": "interactions.*.attention",
        "layers.*.edge_mlp": "interactions.*.phi_e", "layers.*.edge_mlp.0": "interactions.*.phi_e.first",
        "layers.*.edge_mlp.2": "interactions.*.phi_e.second", "layers.*.node_mlp": "interactions.*.phi_h",
        "layers.*.node_mlp.0": "interactions.*.phi_h.first", "layers.*.node_mlp.2": "interactions.*.phi_h.second",
        "layers.*.norm": "interactions.*.ln", "pool_key": "score", "pool_value": "value", "readout.0": "out_in", "readout.2": "out",
    }  # fmt: skip
    random = np.random.default_rng(seed)
    source, target = random.integers(0, NODES, (2, 40))
    inputs = [
        random.integers(0, 9, NODES),
        random.standard_normal(NODES).astype(np.float32),
        source,
        target,
        random.standard_normal((40, EDGE)).astype(np.float32),
    ]
    edits = (
        Edit(
            "order.roles",
            "interactions.0",
            "__call__",
            "[x[receivers], x[senders], features]",
            "[x[senders], x[receivers], features]",
            also=("order.channels", "unknown"),
        ),
        Edit("order.roles", "interactions.1", "__call__", ".at[receivers].add(m)", ".at[senders].add(m)", also=("unknown",)),
        Edit(
            "branch.missing", "interactions.2", "__call__", "m = m * mx.sigmoid(self.attention(m))", "pass", also=("activation", "unknown")
        ),
        Edit(
            "order.roles",
            "interactions.2",
            "__call__",
            "mx.concatenate([x, received], axis=-1)",
            "mx.concatenate([received, x], axis=-1)",
            also=("order.channels",),
        ),
        Edit("scale", "", "__call__", "mx.sum(weights * self.value(x), axis=0)", "mx.mean(weights * self.value(x), axis=0)"),
        Edit(
            "activation",
            "",
            "__call__",
            "mx.softmax(self.score(x), axis=0)",
            "mx.softmax(self.score(x), axis=-1)",
            also=("order.channels", "unknown"),
        ),
        Edit(
            "norm.placement",
            "interactions.1",
            "__call__",
            "self.ln(x + self.phi_h(mx.concatenate([x, received], axis=-1)))",
            "x + self.ln(self.phi_h(mx.concatenate([x, received], axis=-1)))",
            also=("residual.missing",),
        ),
    )
    return pair("graph", perturb(Graph(), seed), PortGraph(), inputs, truth, edits=edits)
