"""A speech encoder of conformer blocks: strided subsampling, relative positions, a convolution module with GLU and batch norm."""

from __future__ import annotations

import math
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

MELS, WIDTH, HEADS, BLOCKS, KERNEL, FRAMES = 10, 16, 4, 2, 5, 30


def rel_positions(length: int) -> torch.Tensor:
    position = torch.arange(length - 1, -length, -1, dtype=torch.float32)[:, None]
    div = torch.exp(torch.arange(0, WIDTH, 2, dtype=torch.float32) * -(math.log(10000.0) / WIDTH))
    pe = torch.zeros(2 * length - 1, WIDTH)
    pe[:, 0::2], pe[:, 1::2] = torch.sin(position * div), torch.cos(position * div)
    return pe[None]


class Subsampling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 6, 3, 2), nn.ReLU())
        self.out = nn.Linear(6 * (((MELS - 1) // 2 - 1) // 2), WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x[:, None])
        b, c, t, f = x.shape
        return self.out(x.transpose(1, 2).reshape(b, t, c * f))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear1, self.linear2 = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(self.act(self.linear1(self.norm(x))))


class RelAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear_q, self.linear_k, self.linear_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.linear_pos = nn.Linear(WIDTH, WIDTH, bias=False)
        self.linear_out = nn.Linear(WIDTH, WIDTH)
        self.pos_bias_u = nn.Parameter(torch.zeros(HEADS, WIDTH // HEADS))
        self.pos_bias_v = nn.Parameter(torch.zeros(HEADS, WIDTH // HEADS))

    @staticmethod
    def rel_shift(x: torch.Tensor) -> torch.Tensor:
        b, h, t, p = x.shape
        x = F.pad(x, (1, 0)).view(b, h, p + 1, t)
        return x[:, :, 1:].view(b, h, t, p)[..., : p // 2 + 1]

    def forward(self, x: torch.Tensor, pos: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        x = self.norm(x)
        q = self.linear_q(x).view(b, t, HEADS, -1)
        k = self.linear_k(x).view(b, t, HEADS, -1).transpose(1, 2)
        v = self.linear_v(x).view(b, t, HEADS, -1).transpose(1, 2)
        p = self.linear_pos(pos).view(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
        content = (q + self.pos_bias_u).transpose(1, 2) @ k.transpose(-2, -1)
        position = self.rel_shift((q + self.pos_bias_v).transpose(1, 2) @ p.transpose(-2, -1))
        scores = (content + position) / math.sqrt(WIDTH // HEADS)
        weights = torch.softmax(scores.masked_fill(~mask[:, None, None, :], -1e9), dim=-1)
        return self.linear_out((weights @ v).transpose(1, 2).reshape(b, t, -1))


class ConvModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.pointwise_conv1 = nn.Conv1d(WIDTH, 2 * WIDTH, 1)
        self.depthwise_conv = nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL // 2, groups=WIDTH)
        self.batch_norm = nn.BatchNorm1d(WIDTH)
        self.pointwise_conv2 = nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(x).transpose(1, 2)
        x = F.glu(self.pointwise_conv1(x), dim=1).masked_fill(~mask[:, None], 0.0)
        x = F.silu(self.batch_norm(self.depthwise_conv(x)))
        return self.pointwise_conv2(x).transpose(1, 2)


class ConformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ffn1, self.ffn2 = FeedForward(), FeedForward()
        self.mhsa, self.conv = RelAttention(), ConvModule()
        self.final_norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor, pos: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + 0.5 * self.ffn1(x)
        x = x + self.mhsa(x, pos, mask)
        x = x + self.conv(x, mask)
        x = x + 0.5 * self.ffn2(x)
        return self.final_norm(x)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.subsample = Subsampling()
        self.blocks = nn.ModuleList([ConformerBlock() for _ in range(BLOCKS)])
        self.ctc = nn.Linear(WIDTH, 9)

    def forward(self, mel: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x = self.subsample(mel) * math.sqrt(WIDTH)
        pos = rel_positions(x.shape[1])
        mask = torch.arange(x.shape[1])[None] < lengths[:, None]
        for block in self.blocks:
            x = block(x, pos, mask)
        return F.log_softmax(self.ctc(x), -1)


# -- the port ------------------------------------------------------------------------------------------------------------------------------


class Macaron(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln = mnn.LayerNorm(WIDTH)
        self.w1, self.w2 = mnn.Linear(WIDTH, 3 * WIDTH), mnn.Linear(3 * WIDTH, WIDTH)

    def __call__(self, x: mx.array) -> mx.array:
        return self.w2(mnn.silu(self.w1(self.ln(x))))


class RelPosAttention(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = mnn.Linear(WIDTH, 3 * WIDTH)
        self.pos = mnn.Linear(WIDTH, WIDTH, bias=False)
        self.out = mnn.Linear(WIDTH, WIDTH)
        self.u, self.v = mx.zeros((HEADS, 1, WIDTH // HEADS)), mx.zeros((HEADS, 1, WIDTH // HEADS))

    def shift(self, x: mx.array) -> mx.array:
        b, h, t, p = x.shape
        x = mx.pad(x, ((0, 0), (0, 0), (0, 0), (1, 0))).reshape(b, h, p + 1, t)
        return x[:, :, 1:].reshape(b, h, t, p)[..., :t]

    def heads(self, x: mx.array) -> mx.array:
        return x.reshape(x.shape[0], x.shape[1], HEADS, -1).transpose(0, 2, 1, 3)

    def __call__(self, x: mx.array, pos: mx.array, mask: mx.array) -> mx.array:
        q, k, v = (self.heads(one) for one in mx.split(self.qkv(x), 3, axis=-1))
        p = self.heads(self.pos(pos))
        scale = 1 / math.sqrt(q.shape[-1])
        bias = self.shift(((q + self.v) * scale) @ p.swapaxes(-1, -2))
        bias = bias + mx.where(mask, 0.0, -1e9).astype(x.dtype)[:, None, None, :]
        y = mx.fast.scaled_dot_product_attention(q + self.u, k, v, scale=scale, mask=bias)
        return self.out(y.transpose(0, 2, 1, 3).reshape(x.shape))


class Convolution(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pw1, self.pw2 = mnn.Linear(WIDTH, 2 * WIDTH), mnn.Linear(WIDTH, WIDTH)
        self.dw = mnn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL // 2, groups=WIDTH)
        self.bn = mnn.BatchNorm(WIDTH)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        a, b = mx.split(self.pw1(x), 2, axis=-1)
        x = a * mx.sigmoid(b)
        x = mx.where(mask[..., None], x, 0)
        return self.pw2(mnn.silu(self.bn(self.dw(x))))


class Block(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ff_in, self.ff_out = Macaron(), Macaron()
        self.attn_norm, self.conv_norm, self.norm = mnn.LayerNorm(WIDTH), mnn.LayerNorm(WIDTH), mnn.LayerNorm(WIDTH)
        self.attention, self.convolution = RelPosAttention(), Convolution()

    def __call__(self, x: mx.array, pos: mx.array, mask: mx.array) -> mx.array:
        x = x + 0.5 * self.ff_in(x)
        x = x + self.attention(self.attn_norm(x), pos, mask)
        x = x + self.convolution(self.conv_norm(x), mask)
        x = x + 0.5 * self.ff_out(x)
        return self.norm(x)


class SpeechEncoder(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = mnn.Conv2d(1, 6, 3, 2), mnn.Conv2d(6, 6, 3, 2)
        self.proj = mnn.Linear(6 * (((MELS - 1) // 2 - 1) // 2), WIDTH)
        self.layers = [Block() for _ in range(BLOCKS)]
        self.head = mnn.Linear(WIDTH, 9)

    def subsample(self, x: mx.array) -> mx.array:
        x = mnn.relu(self.conv2(mnn.relu(self.conv1(x[..., None]))))
        x = x.transpose(0, 1, 3, 2)
        return self.proj(x.reshape(x.shape[0], x.shape[1], -1))

    def positions(self, length: int) -> mx.array:
        position = mx.arange(length - 1, -length, -1)[:, None].astype(mx.float32)
        div = mx.exp(mx.arange(0, WIDTH, 2) * -(math.log(10000.0) / WIDTH))
        angles = position * div
        return mx.stack([mx.sin(angles), mx.cos(angles)], axis=-1).reshape(1, 2 * length - 1, WIDTH)

    def __call__(self, mel: mx.array, lengths: mx.array) -> mx.array:
        x = self.subsample(mel) * math.sqrt(WIDTH)
        pos = self.positions(x.shape[1]).astype(x.dtype)
        mask = mx.arange(x.shape[1])[None] < lengths[:, None]
        for layer in self.layers:
            x = layer(x, pos, mask)
        return mnn.log_softmax(self.head(x), axis=-1)


def make(seed: int = 0) -> Any:
    truth = {
        "": "",
        "subsample.conv.0": "conv1",
        "subsample.conv.2": "conv2",
        "subsample.out": "proj",
        "ctc": "head",
        "blocks.*": "layers.*",
        "blocks.*.mhsa": "layers.*.attention",
        "blocks.*.mhsa.norm": "layers.*.attn_norm",
        "blocks.*.mhsa.linear_pos": "layers.*.attention.pos",
        "blocks.*.mhsa.linear_out": "layers.*.attention.out",
        "blocks.*.conv": "layers.*.convolution",
        "blocks.*.conv.norm": "layers.*.conv_norm",
        "blocks.*.conv.pointwise_conv1": "layers.*.convolution.pw1",
        "blocks.*.conv.pointwise_conv2": "layers.*.convolution.pw2",
        "blocks.*.conv.depthwise_conv": "layers.*.convolution.dw",
        "blocks.*.conv.batch_norm": "layers.*.convolution.bn",
        "blocks.*.final_norm": "layers.*.norm",
    }
    for ours, theirs in (("ffn1", "ff_in"), ("ffn2", "ff_out")):
        for a, b in (("", ""), (".norm", ".ln"), (".linear1", ".w1"), (".linear2", ".w2")):
            truth[f"blocks.*.{ours}{a}"] = f"layers.*.{theirs}{b}"
    reference = perturb(Encoder(), seed)
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    more = {}
    for i in range(BLOCKS):
        ours, theirs = f"blocks.{i}", f"layers.{i}"
        for kind in ("weight", "bias"):
            more[f"{theirs}.attention.qkv.{kind}"] = np.concatenate([state[f"{ours}.mhsa.linear_{one}.{kind}"] for one in "qkv"])
        for kind in "uv":
            more[f"{theirs}.attention.{kind}"] = state[f"{ours}.mhsa.pos_bias_{kind}"][:, None]
        for number in (1, 2):
            more[f"{theirs}.convolution.pw{number}.weight"] = state[f"{ours}.conv.pointwise_conv{number}.weight"][..., 0]
    mel = np.random.default_rng(seed).standard_normal((2, FRAMES, MELS)).astype(np.float32)
    lengths = np.array([6, 4])
    att, conv, block = "layers.1.attention", "layers.0.convolution", "layers.1"
    edits = (
        Edit(
            "position.offset",
            att,
            "shift",
            "x[:, :, 1:].reshape(b, h, t, p)[..., :t]",
            "x[:, :, 1:].reshape(b, h, t, p)[..., 1 : t + 1]",
            also=("mask.wrong", "padding.shift", "position.missing", "scale"),
        ),
        Edit(
            "position.missing",
            att,
            "__call__",
            "bias = self.shift(((q + self.v) * scale) @ p.swapaxes(-1, -2))",
            "bias = 0 * self.shift(((q + self.v) * scale) @ p.swapaxes(-1, -2))",
            also=("mask.wrong", "mask.missing"),
        ),
        Edit("scale", att, "__call__", "((q + self.v) * scale)", "(q + self.v)", also=("mask.wrong", "position.missing")),
        Edit(
            "position.offset",
            att,
            "__call__",
            "self.shift(((q + self.v) * scale) @ p.swapaxes(-1, -2))",
            "(((q + self.v) * scale) @ p.swapaxes(-1, -2))[..., :x.shape[1]]",
            also=("mask.wrong", "position.missing", "scale"),
        ),
        Edit("weights.missing_bias", att, "__call__", "q + self.u", "q", also=("branch.missing", "position.missing")),
        Edit("order.roles", att, "__call__", "q + self.u", "q + self.v"),
        Edit("heads.layout", att, "__call__", "y.transpose(0, 2, 1, 3).reshape(x.shape)", "y.reshape(x.shape)"),
        Edit("order.roles", conv, "__call__", "a, b = ", "b, a = ", also=("order.channels", "activation")),
        Edit("activation", conv, "__call__", "a * mx.sigmoid(b)", "a * mnn.silu(b)"),
        Edit("mask.missing", conv, "__call__", "mx.where(mask[..., None], x, 0)", "x"),
        Edit("norm.placement", conv, "__call__", "mnn.silu(self.bn(self.dw(x)))", "self.bn(mnn.silu(self.dw(x)))", also=("activation",)),
        Edit("scale", block, "__call__", "x + 0.5 * self.ff_in(x)", "x + self.ff_in(x)", also=("branch.extra",)),
        Edit(
            "residual.missing",
            block,
            "__call__",
            "x = x + self.convolution(self.conv_norm(x), mask)",
            "x = self.convolution(self.conv_norm(x), mask)",
        ),
        Edit("norm.missing", block, "__call__", "return self.norm(x)", "return x"),
        Edit(
            "norm.placement",
            block,
            "__call__",
            "self.attention(self.attn_norm(x), pos, mask)",
            "self.attention(x, pos, mask)",
            also=("norm.missing",),
        ),
        Edit(
            "order.channels",
            "",
            "subsample",
            "x = x.transpose(0, 1, 3, 2)",
            "x = x + 0",
            also=("order.concat", "heads.layout", "weights.layout"),
        ),
        Edit("scale", "", "__call__", " * math.sqrt(WIDTH)", ""),
        Edit(
            "order.reversed",
            "",
            "positions",
            "mx.arange(length - 1, -length, -1)",
            "mx.arange(-length + 1, length)",
            also=("order.roles", "position.offset"),
        ),
        Edit(
            "order.concat",
            "",
            "positions",
            "mx.stack([mx.sin(angles), mx.cos(angles)], axis=-1).reshape(1, 2 * length - 1, WIDTH)",
            "mx.concatenate([mx.sin(angles), mx.cos(angles)], axis=-1)[None]",
            also=("order.channels", "heads.layout"),
        ),
        Edit("mask.wrong", "", "__call__", "< lengths[:, None]", "<= lengths[:, None]"),
    )
    fused = {f"blocks.*.mhsa.linear_{one}": "layers.*.attention.qkv" for one in "qkv"}
    without = ("pos_bias_u", "pos_bias_v")
    return pair("conformer", reference, SpeechEncoder(), [mel, lengths], truth, edits=edits, more=more, without=without, fused=fused)
