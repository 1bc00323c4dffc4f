"""A perceiver: learned latents read a long input by cross-attention, then attend to themselves; a pooled head."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx import nn as mnn
from pairs import perturb
from torch import nn
from torch.nn import functional as F

from benchmarks.faults.catalogue import Edit
from benchmarks.faults.pairs.base import pair

WIDTH, HEADS, LATENTS, BLOCKS = 24, 3, 5, 2


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_q, self.norm_kv = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_kv = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        def heads(part: torch.Tensor) -> torch.Tensor:
            return part.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        q = heads(self.to_q(self.norm_q(x)))
        k, v = map(heads, self.to_kv(self.norm_kv(context)).chunk(2, -1))
        return x + self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Feed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class Perceiver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(LATENTS, WIDTH))
        self.embed = nn.Linear(7, WIDTH)
        self.pos_emb = nn.Embedding(40, WIDTH)
        self.layers = nn.ModuleList([nn.ModuleList([Reader(), Feed(), Reader(), Feed()]) for _ in range(BLOCKS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        context = self.embed(x) + self.pos_emb(torch.arange(x.shape[1]))
        z = self.latents.expand(len(x), -1, -1)
        for cross, feed, own, feed_own in self.layers:
            z = feed(cross(z, context))
            z = feed_own(own(z, z))
        return self.head(self.norm(z).mean(1))


class CrossReader(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kv = mnn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.q = mnn.Linear(WIDTH, WIDTH, bias=False)
        self.proj = mnn.Linear(WIDTH, WIDTH)
        self.ln_context, self.ln_query = mnn.LayerNorm(WIDTH), mnn.LayerNorm(WIDTH)

    def heads(self, x: mx.array) -> mx.array:
        return x.reshape(x.shape[0], x.shape[1], HEADS, -1).transpose(0, 2, 1, 3)

    def __call__(self, x: mx.array, context: mx.array) -> mx.array:
        q = self.heads(self.q(self.ln_query(x)))
        k, v = mx.split(self.kv(self.ln_context(context)), 2, axis=-1)
        y = mx.fast.scaled_dot_product_attention(q, self.heads(k), self.heads(v), scale=(WIDTH // HEADS) ** -0.5)
        return x + self.proj(y.transpose(0, 2, 1, 3).reshape(x.shape))


class MlpBlock(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln = mnn.LayerNorm(WIDTH)
        self.wide, self.narrow = mnn.Linear(WIDTH, 3 * WIDTH), mnn.Linear(3 * WIDTH, WIDTH)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.narrow(mnn.gelu(self.wide(self.ln(x))))


class LatentBlock(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.read_mlp = CrossReader(), MlpBlock()
        self.think, self.think_mlp = CrossReader(), MlpBlock()

    def __call__(self, z: mx.array, context: mx.array) -> mx.array:
        z = self.read_mlp(self.read(z, context))
        return self.think_mlp(self.think(z, z))


class PortPerceiver(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_tokens = mx.zeros((LATENTS, WIDTH))
        self.input_proj = mnn.Linear(7, WIDTH)
        self.position = mnn.Embedding(40, WIDTH)
        self.blocks = [LatentBlock() for _ in range(BLOCKS)]
        self.final_norm = mnn.LayerNorm(WIDTH)
        self.classifier = mnn.Linear(WIDTH, 11)

    def __call__(self, x: mx.array) -> mx.array:
        context = self.input_proj(x) + self.position(mx.arange(x.shape[1]))
        z = mx.broadcast_to(self.query_tokens, (x.shape[0], LATENTS, WIDTH))
        for block in self.blocks:
            z = block(z, context)
        return self.classifier(self.final_norm(z).mean(axis=1))


def make(seed: int = 0) -> Any:
    truth = {"": "", "embed": "input_proj", "pos_emb": "position", "norm": "final_norm", "head": "classifier"}
    for places, (reader, feed) in (((0, 1), ("read", "read_mlp")), ((2, 3), ("think", "think_mlp"))):
        names = (
            ("", ""),
            (".norm_q", ".ln_query"),
            (".norm_kv", ".ln_context"),
            (".to_q", ".q"),
            (".to_kv", ".kv"),
            (".to_out.0", ".proj"),
        )
        truth |= {f"layers.*.{places[0]}{ours}": f"blocks.*.{reader}{theirs}" for ours, theirs in names}
        names = (("", ""), (".0", ".ln"), (".1", ".wide"), (".3", ".narrow"))
        truth |= {f"layers.*.{places[1]}{ours}": f"blocks.*.{feed}{theirs}" for ours, theirs in names}
    reference = perturb(Perceiver(), seed)
    x = np.random.default_rng(seed).standard_normal((2, 9, 7)).astype(np.float32)
    more = {"query_tokens": reference.latents.detach().numpy()}
    edits = (
        Edit("position.missing", "", "__call__", " + self.position(mx.arange(x.shape[1]))", "", also=("branch.missing",)),
        Edit("branch.missing", "blocks.1", "__call__", "self.read_mlp(self.read(z, context))", "self.read(z, context)"),
        Edit("order.roles", "blocks.0", "__call__", "self.think(z, z)", "self.think(z, context)"),
    )
    return pair("perceiver", reference, PortPerceiver(), [x], truth, edits=edits, more=more, without=("latents",))
