"""A detector as DETR is: boxes asked for by learned queries, positions added to queries and keys but not to values."""

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

WIDTH, HEADS, LAYERS, QUERIES, PIXELS, FEED = 24, 3, 2, 5, 7, 40


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)

        q, k, v = heads(self.q_proj(query)) * (WIDTH // HEADS) ** -0.5, heads(self.k_proj(key)), heads(self.v_proj(value))
        return self.out_proj(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = MultiHead()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.linear1, self.linear2 = nn.Linear(WIDTH, FEED), nn.Linear(FEED, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
        q = k = x + pos
        x = self.norm1(x + self.dropout(self.self_attn(q, k, x)))
        return self.norm2(x + self.linear2(self.dropout(torch.relu(self.linear1(x)))))


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.multihead_attn = MultiHead(), MultiHead()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.linear1, self.linear2 = nn.Linear(WIDTH, FEED), nn.Linear(FEED, WIDTH)

    def forward(self, x: torch.Tensor, memory: torch.Tensor, pos: torch.Tensor, query_pos: torch.Tensor) -> torch.Tensor:
        q = k = x + query_pos
        x = self.norm1(x + self.self_attn(q, k, x))
        x = self.norm2(x + self.multihead_attn(x + query_pos, memory + pos, memory))
        return self.norm3(x + self.linear2(torch.relu(self.linear1(x))))


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_proj = nn.Linear(9, WIDTH)
        self.encoder = nn.ModuleList([EncoderLayer() for _ in range(LAYERS)])
        self.decoder = nn.ModuleList([DecoderLayer() for _ in range(LAYERS)])
        self.decoder_norm = nn.LayerNorm(WIDTH)
        self.query_embed = nn.Embedding(QUERIES, WIDTH)
        self.class_embed = nn.Linear(WIDTH, 4)
        self.bbox_embed = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        frequencies = 100 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
        angles = torch.arange(x.shape[1])[:, None] * frequencies
        pos = torch.cat([angles.sin(), angles.cos()], -1)[None]
        memory = self.input_proj(x)
        for layer in self.encoder:
            memory = layer(memory, pos)
        query_pos = self.query_embed.weight[None].expand(len(x), -1, -1)
        y, found = torch.zeros_like(query_pos), []
        for layer in self.decoder:
            y = layer(y, memory, pos, query_pos)
            found.append(self.decoder_norm(y))
        return {"logits": self.class_embed(found[-1]), "boxes": self.bbox_embed(found[-1]).sigmoid(), "hidden": torch.stack(found)}


class Attention(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (mnn.Linear(WIDTH, WIDTH) for _ in range(4))

    def __call__(self, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        q, k, v = (one.reshape(one.shape[0], one.shape[1], HEADS, -1).transpose(0, 2, 1, 3) for one in (self.wq(q), self.wk(k), self.wv(v)))
        y = mx.softmax(q @ k.transpose(0, 1, 3, 2) * (WIDTH // HEADS) ** -0.5, axis=-1) @ v
        return self.wo(y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1))


class Mlp(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = mnn.Linear(WIDTH, FEED), mnn.Linear(FEED, WIDTH)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(mnn.relu(self.fc1(x)))


class EncoderBlock(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(), Mlp()
        self.ln_attention, self.ln_mlp = mnn.LayerNorm(WIDTH), mnn.LayerNorm(WIDTH)

    def __call__(self, x: mx.array, positions: mx.array) -> mx.array:
        asked = x + positions
        x = self.ln_attention(x + self.attention(asked, asked, x))
        return self.ln_mlp(x + self.mlp(x))


class DecoderBlock(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.cross, self.mlp = Attention(), Attention(), Mlp()
        self.ln_attention, self.ln_cross, self.ln_mlp = (mnn.LayerNorm(WIDTH) for _ in range(3))

    def __call__(self, x: mx.array, memory: mx.array, positions: mx.array, queries: mx.array) -> mx.array:
        asked = x + queries
        x = self.ln_attention(x + self.attention(asked, asked, x))
        x = self.ln_cross(x + self.cross(x + queries, memory + positions, memory))
        return self.ln_mlp(x + self.mlp(x))


class PortDetector(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = mnn.Linear(9, WIDTH)
        self.encoder_blocks = [EncoderBlock() for _ in range(LAYERS)]
        self.decoder_blocks = [DecoderBlock() for _ in range(LAYERS)]
        self.ln_out = mnn.LayerNorm(WIDTH)
        self.queries = mx.zeros((QUERIES, WIDTH))
        self.classes = mnn.Linear(WIDTH, 4)
        self.box1, self.box2 = mnn.Linear(WIDTH, WIDTH), mnn.Linear(WIDTH, 4)

    def positions(self, length: int) -> mx.array:
        angles = mx.arange(length)[:, None] * mx.power(100.0, -mx.arange(0, WIDTH, 2) / WIDTH)
        return mx.concatenate([mx.sin(angles), mx.cos(angles)], axis=-1)[None].astype(self.queries.dtype)

    def __call__(self, x: mx.array) -> dict[str, mx.array]:
        positions = self.positions(x.shape[1])
        memory = self.project(x)
        for block in self.encoder_blocks:
            memory = block(memory, positions)
        queries = mx.broadcast_to(self.queries[None], (x.shape[0], QUERIES, WIDTH))
        y, hidden = mx.zeros_like(queries), []
        for block in self.decoder_blocks:
            y = block(y, memory, positions, queries)
            hidden.append(self.ln_out(y))
        boxes = mx.sigmoid(self.box2(mnn.relu(self.box1(hidden[-1]))))
        return {"logits": self.classes(hidden[-1]), "boxes": boxes, "hidden": mx.stack(hidden)}


def make(seed: int = 0) -> Any:
    truth = {
        "": "",
        "input_proj": "project",
        "decoder_norm": "ln_out",
        "class_embed": "classes",
        "bbox_embed.0": "box1",
        "bbox_embed.2": "box2",
    }
    for ours, theirs, parts in (
        ("encoder.*", "encoder_blocks.*", {"self_attn": "attention", "norm1": "ln_attention", "norm2": "ln_mlp"}),
        (
            "decoder.*",
            "decoder_blocks.*",
            {"self_attn": "attention", "multihead_attn": "cross", "norm1": "ln_attention", "norm2": "ln_cross", "norm3": "ln_mlp"},
        ),
    ):
        truth |= {ours: theirs, f"{ours}.linear1": f"{theirs}.mlp.fc1", f"{ours}.linear2": f"{theirs}.mlp.fc2"}
        truth |= {f"{ours}.{one}": f"{theirs}.{other}" for one, other in parts.items()}
        for one, other in parts.items():
            if "attn" in one:
                truth |= {
                    f"{ours}.{one}.{p}": f"{theirs}.{other}.{q}"
                    for p, q in (("q_proj", "wq"), ("k_proj", "wk"), ("v_proj", "wv"), ("out_proj", "wo"))
                }
    reference = perturb(Detector(), seed)
    x = np.random.default_rng(seed).standard_normal((2, PIXELS, 9)).astype(np.float32)
    E, D = "encoder_blocks.1", "decoder_blocks.1"
    edits = (
        Edit("order.roles", E, "__call__", "self.attention(asked, asked, x)", "self.attention(asked, x, asked)"),
        Edit(
            "order.roles",
            D,
            "__call__",
            "self.cross(x + queries, memory + positions, memory)",
            "self.cross(x + queries, memory, memory + positions)",
        ),
        Edit(
            "order.roles", D, "__call__", "self.attention(asked, asked, x)", "self.attention(asked, asked, asked)", also=("branch.extra",)
        ),
        Edit("position.missing", D, "__call__", "memory + positions, memory", "memory, memory", also=("branch.missing",)),
        Edit("position.missing", E, "__call__", "asked = x + positions", "asked = x", also=("branch.missing",)),
        Edit(
            "position.missing",
            "",
            "__call__",
            "y = block(y, memory, positions, queries)",
            "y = block(y, memory, positions * 0, queries)",
            also=("branch.missing", "scale"),
        ),
        Edit(
            "order.roles",
            "",
            "__call__",
            "y = block(y, memory, positions, queries)",
            "y = block(y, memory, positions[:, ::-1], queries)",
            also=("order.reversed", "position.offset"),
        ),
        Edit(
            "order.channels",
            "",
            "positions",
            "mx.sin(angles), mx.cos(angles)",
            "mx.cos(angles), mx.sin(angles)",
            also=("order.concat", "order.roles"),
        ),
        Edit("position.offset", "", "positions", "mx.arange(length)[:, None]", "(mx.arange(length) + 1)[:, None]", also=("unknown",)),
        Edit("norm.placement", E, "__call__", "self.ln_mlp(x + self.mlp(x))", "x + self.mlp(self.ln_mlp(x))"),
        Edit(
            "branch.missing",
            D,
            "__call__",
            "self.ln_cross(x + self.cross(",
            "self.ln_cross(0 * x + self.cross(",
            also=("residual", "scale"),
        ),
        Edit("norm.missing", "", "__call__", "hidden.append(self.ln_out(y))", "hidden.append(y)"),
        Edit("length", "", "__call__", "self.classes(hidden[-1])", "self.classes(hidden[0])", also=("order.roles",)),
        Edit("activation", "", "__call__", "mx.sigmoid(self.box2", "mx.tanh(self.box2", also=("unknown",)),
        Edit(
            "order.roles",
            "",
            "__call__",
            "y, hidden = mx.zeros_like(queries), []",
            "y, hidden = queries, []",
            also=("branch.extra", "position"),
        ),
        Edit("scale", f"{D}.cross", "__call__", " * (WIDTH // HEADS) ** -0.5", " * WIDTH ** -0.5", also=("attention.scale",)),
        Edit("axis", f"{E}.attention", "__call__", "axis=-1) @ v", "axis=-2) @ v", also=("attention.axis",)),
    )
    more = {"queries": reference.query_embed.weight.detach().numpy()}
    return pair("detector", reference, PortDetector(), [x], truth, edits=edits, more=more)
