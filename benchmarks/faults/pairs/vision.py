"""A vision transformer behind a convolutional stem with batch normalisation: NCHW in PyTorch, NHWC in MLX."""

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

WIDTH, HEADS, LAYERS, SIDE = 24, 4, 2, 12


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        return self.act(x + self.bn2(self.conv2(x)))


class EncoderBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH))
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        x = x + self.gamma * self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        self.patch_embed = nn.Conv2d(8, WIDTH, 4, stride=4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 10, WIDTH))
        self.blocks = nn.ModuleList([EncoderBlock() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(self.stem(image)).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class ConvStem(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [mnn.Conv2d(3, 8, 3, padding=1, bias=False), mnn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)]
        self.norms = [mnn.BatchNorm(8), mnn.BatchNorm(8)]

    def __call__(self, x: mx.array) -> mx.array:
        x = mnn.relu(self.norms[0](self.layers[0](x)))
        return mnn.relu(x + self.norms[1](self.layers[1](x)))


class Attention(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = mnn.Linear(WIDTH, 3 * WIDTH)
        self.proj = mnn.Linear(WIDTH, WIDTH)

    def __call__(self, x: mx.array) -> mx.array:
        batch, length, _ = x.shape
        parts = mx.split(self.qkv(x), 3, axis=-1)
        q, k, v = (part.reshape(batch, length, HEADS, -1).transpose(0, 2, 1, 3) for part in parts)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=(WIDTH // HEADS) ** -0.5)
        return self.proj(y.transpose(0, 2, 1, 3).reshape(batch, length, -1))


class Block(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.before, self.after = mnn.LayerNorm(WIDTH, eps=1e-6), mnn.LayerNorm(WIDTH, eps=1e-6)
        self.fc1, self.fc2 = mnn.Linear(WIDTH, 3 * WIDTH), mnn.Linear(3 * WIDTH, WIDTH)
        self.layer_scale = mx.ones((WIDTH,))

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.layer_scale * self.attention(self.before(x))
        return x + self.fc2(mnn.gelu(self.fc1(self.after(x))))


class PortVision(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = ConvStem()
        self.patches = mnn.Conv2d(8, WIDTH, 4, stride=4)
        self.class_embedding = mx.zeros((1, 1, WIDTH))
        self.position_embedding = mx.zeros((1, 10, WIDTH))
        self.encoder = [Block() for _ in range(LAYERS)]
        self.layernorm = mnn.LayerNorm(WIDTH, eps=1e-6)
        self.classifier = mnn.Linear(WIDTH, 7)

    def __call__(self, image: mx.array) -> mx.array:
        x = self.patches(self.conv_stem(image))
        x = x.reshape(x.shape[0], -1, WIDTH)
        x = mx.concatenate([mx.broadcast_to(self.class_embedding, (x.shape[0], 1, WIDTH)), x], axis=1) + self.position_embedding
        for block in self.encoder:
            x = block(x)
        return self.classifier(self.layernorm(x)[:, 0])


def make(seed: int = 0) -> Any:
    truth = {
        "": "", "stem": "conv_stem", "stem.conv1": "conv_stem.layers.0", "stem.conv2": "conv_stem.layers.1",
        "stem.bn1": "conv_stem.norms.0", "stem.bn2": "conv_stem.norms.1",
        "patch_embed": "patches", "norm": "layernorm", "head": "classifier", "blocks.*": "encoder.*",
        "blocks.*.attn": "encoder.*.attention", "blocks.*.norm1": "encoder.*.before", "blocks.*.norm2": "encoder.*.after",
        "blocks.*.mlp.0": "encoder.*.fc1", "blocks.*.mlp.2": "encoder.*.fc2",
    }  # fmt: skip
    reference = perturb(Vision(), seed)
    state = reference.state_dict()
    more = {"class_embedding": state["cls_token"].numpy(), "position_embedding": state["pos_embed"].numpy()}
    for layer in range(LAYERS):
        source, target = f"blocks.{layer}", f"encoder.{layer}"
        more[f"{target}.layer_scale"] = state[f"{source}.gamma"].numpy()
        for kind in ("weight", "bias"):
            more[f"{target}.attention.qkv.{kind}"] = state[f"{source}.attn.in_proj_{kind}"].numpy()
            more[f"{target}.attention.proj.{kind}"] = state[f"{source}.attn.out_proj.{kind}"].numpy()
    image = np.random.default_rng(seed).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    edits = (
        Edit("position.missing", "", "__call__", " + self.position_embedding", "", also=("branch.missing",)),
        Edit(
            "heads.layout",
            "encoder.0.attention",
            "__call__",
            "reshape(batch, length, HEADS, -1).transpose(0, 2, 1, 3)",
            "reshape(batch, length, -1, HEADS).transpose(0, 3, 1, 2)",
        ),
        Edit(
            "order.channels",
            "",
            "__call__",
            "x.reshape(x.shape[0], -1, WIDTH)",
            "x.swapaxes(1, 2).reshape(x.shape[0], -1, WIDTH)",
            also=("order.reversed", "weights.layout"),
        ),
        Edit(
            "length",
            "",
            "__call__",
            "self.layernorm(x)[:, 0]",
            "self.layernorm(x)[:, -1]",
            also=("order.reversed", "position.offset", "unknown"),
        ),
        Edit(
            "norm.placement",
            "encoder.1",
            "__call__",
            "self.fc1(self.after(x))",
            "self.after(x) @ self.fc1.weight.T + self.fc1.bias * 0",
            also=("weights.missing_bias", "branch.missing"),
        ),
        Edit("scale", "encoder.1", "__call__", "self.layer_scale * ", ""),
    )
    return pair(
        "vision", reference, PortVision(), [image], truth, port_inputs=[image.transpose(0, 2, 3, 1)], edits=edits, more=more,
        without=("gamma", "cls_token", "pos_embed", "in_proj_weight", "in_proj_bias"),
    )  # fmt: skip
