"""A diffusion transformer: patches, fixed sines in two directions, six modulations a block from time and class; NCHW against NHWC."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import torch
import torch.nn.functional as F
from mlx import nn as mnn
from pairs import perturb
from torch import nn

from benchmarks.faults.catalogue import Edit
from benchmarks.faults.pairs.base import pair

SIDE, PATCH, CHANNELS, WIDTH, HEADS, TIMES = 8, 2, 4, 24, 3, 16


def grid_sines(width: int, side: int) -> np.ndarray:
    """(side * side, width): rows and columns, each half of the channels."""
    frequencies = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4))

    def one(places: np.ndarray) -> np.ndarray:
        angles = places.reshape(-1)[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], 1)

    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    return np.concatenate([one(columns), one(rows)], 1).astype(np.float32)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TimestepEmbedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIMES, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        half = TIMES // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        angles = t[:, None].float() * frequencies[None]
        return self.mlp(torch.cat([torch.cos(angles), torch.sin(angles)], -1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))


class DiTBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.attn = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(2 * WIDTH, WIDTH))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, 1)
        x = x + gate_msa.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_msa, scale_msa))
        return x + gate_mlp.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(WIDTH, PATCH * PATCH * CHANNELS)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, 1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x_embedder, self.t_embedder = nn.Conv2d(CHANNELS, WIDTH, PATCH, stride=PATCH), TimestepEmbedder()
        self.y_embedder = nn.Embedding(7, WIDTH)
        self.register_buffer("pos_embed", torch.tensor(grid_sines(WIDTH, SIDE // PATCH))[None], persistent=False)
        self.blocks, self.final_layer = nn.ModuleList([DiTBlock() for _ in range(3)]), FinalLayer()

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        x, side = self.final_layer(x, c), SIDE // PATCH
        x = x.reshape(x.shape[0], side, side, PATCH, PATCH, CHANNELS)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], CHANNELS, SIDE, SIDE)


class TimeMLP(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2 = mnn.Linear(TIMES, WIDTH), mnn.Linear(WIDTH, WIDTH)

    def __call__(self, t: mx.array) -> mx.array:
        half = TIMES // 2
        frequencies = mx.exp(-math.log(10000) * mx.arange(half) / half)
        angles = t.astype(mx.float32)[:, None] * frequencies
        return self.linear2(mnn.silu(self.linear1(mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1))))


class MHA(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (mnn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = mnn.Linear(WIDTH, WIDTH)

    def __call__(self, x: mx.array) -> mx.array:
        b, t, c = x.shape
        q, k, v = (one.reshape(b, t, HEADS, -1).transpose(0, 2, 1, 3) for one in (self.query(x), self.key(x), self.value(x)))
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=(c // HEADS) ** -0.5)
        return self.out(y.transpose(0, 2, 1, 3).reshape(b, t, c))


class TransformerBlock(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ada, self.attention = mnn.Linear(WIDTH, 6 * WIDTH), MHA()
        self.up, self.down = mnn.Linear(WIDTH, 2 * WIDTH), mnn.Linear(2 * WIDTH, WIDTH)

    def __call__(self, x: mx.array, c: mx.array) -> mx.array:
        m = self.ada(mnn.silu(c))[:, None].reshape(x.shape[0], 1, 6, WIDTH)
        y = mx.fast.layer_norm(x, None, None, 1e-6) * (1 + m[:, :, 1]) + m[:, :, 0]
        x = x + m[:, :, 2] * self.attention(y)
        y = mx.fast.layer_norm(x, None, None, 1e-6) * (1 + m[:, :, 4]) + m[:, :, 3]
        return x + m[:, :, 5] * self.down(mnn.gelu_approx(self.up(y)))


class Output(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ada, self.proj = mnn.Linear(WIDTH, 2 * WIDTH), mnn.Linear(WIDTH, PATCH * PATCH * CHANNELS)

    def __call__(self, x: mx.array, c: mx.array) -> mx.array:
        shift, scale = mx.split(self.ada(mnn.silu(c))[:, None], 2, axis=-1)
        return self.proj(mx.fast.layer_norm(x, None, None, 1e-6) * (1 + scale) + shift)


class PortDiT(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patchify, self.time = mnn.Conv2d(CHANNELS, WIDTH, PATCH, stride=PATCH), TimeMLP()
        self.classes = mnn.Embedding(7, WIDTH)
        self.transformer, self.output = [TransformerBlock() for _ in range(3)], Output()
        self._positions = mx.array(grid_sines(WIDTH, SIDE // PATCH))

    def __call__(self, x: mx.array, t: mx.array, y: mx.array) -> mx.array:
        b = x.shape[0]
        x = self.patchify(x).reshape(b, -1, WIDTH) + self._positions
        c = self.time(t) + self.classes(y)
        for block in self.transformer:
            x = block(x, c)
        x, side = self.output(x, c), SIDE // PATCH
        x = x.reshape(b, side, side, PATCH, PATCH, CHANNELS)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, SIDE, SIDE, CHANNELS)


def make(seed: int = 0) -> Any:
    truth = {
        "": "", "x_embedder": "patchify", "t_embedder": "time", "t_embedder.mlp.0": "time.linear1", "t_embedder.mlp.2": "time.linear2",
        "y_embedder": "classes", "blocks.*": "transformer.*", "blocks.*.adaLN_modulation.1": "transformer.*.ada",
        "blocks.*.attn": "transformer.*.attention", "blocks.*.attn.proj": "transformer.*.attention.out",
        "blocks.*.mlp.0": "transformer.*.up", "blocks.*.mlp.2": "transformer.*.down", "final_layer": "output",
        "final_layer.adaLN_modulation.1": "output.ada", "final_layer.linear": "output.proj",
    }  # fmt: skip
    reference = perturb(DiT(), seed)
    more = {}
    for block in range(3):
        qkv = reference.blocks[block].attn.qkv
        for place, name in enumerate(("query", "key", "value")):
            rows = slice(place * WIDTH, (place + 1) * WIDTH)
            more[f"transformer.{block}.attention.{name}.weight"] = qkv.weight.detach().numpy()[rows]
            more[f"transformer.{block}.attention.{name}.bias"] = qkv.bias.detach().numpy()[rows]
    random = np.random.default_rng(seed)
    x = random.standard_normal((2, CHANNELS, SIDE, SIDE)).astype(np.float32)
    t, y = random.uniform(0, 900, 2).astype(np.float32), random.integers(0, 7, 2)
    edits = (
        Edit("scale", "transformer.0", "__call__", "* (1 + m[:, :, 1]) + m", "* m[:, :, 1] + m", also=("branch.missing",)),
        Edit("order.roles", "transformer.1", "__call__", "* (1 + m[:, :, 4]) + m[:, :, 3]", "* (1 + m[:, :, 3]) + m[:, :, 4]"),
        Edit("order.roles", "output", "__call__", "shift, scale = mx.split", "scale, shift = mx.split", also=("order.concat",)),
        Edit("branch.missing", "transformer.2", "__call__", "x = x + m[:, :, 2] * self.attention(y)", "x = x + self.attention(y)"),
        Edit("activation", "transformer.0", "__call__", "mnn.gelu_approx(", "mnn.gelu("),
        Edit("activation", "transformer.1", "__call__", "self.ada(mnn.silu(c))", "self.ada(c)", also=("branch.missing",)),
        Edit("order.concat", "time", "__call__", "[mx.cos(angles), mx.sin(angles)]", "[mx.sin(angles), mx.cos(angles)]"),
        Edit("norm.eps", "transformer.2", "__call__", "x = x + m[:, :, 2]", "x = 1e-2 * x + m[:, :, 2]", also=("scale",)),
        Edit("position.missing", "", "__call__", " + self._positions", ""),
        Edit("order.channels", "", "__call__", "x.transpose(0, 1, 3, 2, 4, 5)", "x.transpose(0, 1, 4, 2, 3, 5)",
             also=("heads.layout", "transform")),
        Edit("time.scale", "time", "__call__", "t.astype(mx.float32)[:, None]", "(t / 1000).astype(mx.float32)[:, None]", also=("scale",)),
        Edit("branch.missing", "", "__call__", "c = self.time(t) + self.classes(y)", "c = self.time(t)", also=("position.missing",)),
        Edit("mask.wrong", "transformer.1.attention", "__call__", " ** -0.5)", ' ** -0.5, mask="causal")'),
    )  # fmt: skip
    return pair(
        "adaln", reference, PortDiT(), [x, t, y], truth, port_inputs=[x.transpose(0, 2, 3, 1), t, y], edits=edits, more=more,
        without=(),
    )  # fmt: skip
