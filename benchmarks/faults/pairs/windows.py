"""A vision transformer in windows: shifted windows with a mask, a table of relative biases, patches merged; q, k and v projected as one."""

from __future__ import annotations

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

SIDE, WINDOW, WIDTH, HEADS = 8, 4, 16, 2


def relative_index() -> np.ndarray:
    """For every two places of a window the row of the table of biases."""
    places = np.stack(np.meshgrid(np.arange(WINDOW), np.arange(WINDOW), indexing="ij"), -1).reshape(-1, 2)
    apart = places[:, None] - places[None] + WINDOW - 1
    return apart[..., 0] * (2 * WINDOW - 1) + apart[..., 1]


def partition(x: torch.Tensor) -> torch.Tensor:
    batch, height, width, channels = x.shape
    x = x.view(batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW * WINDOW, channels)


def shift_mask(side: int, shift: int) -> torch.Tensor:
    regions = torch.zeros(1, side, side, 1)
    count = 0
    for rows in (slice(0, -WINDOW), slice(-WINDOW, -shift), slice(-shift, None)):
        for columns in (slice(0, -WINDOW), slice(-WINDOW, -shift), slice(-shift, None)):
            regions[:, rows, columns] = count
            count += 1
    own = partition(regions).squeeze(-1)
    return (own[:, None] != own[:, :, None]).float() * -100.0


class WindowAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, HEADS))
        self.register_buffer("index", torch.tensor(relative_index()), persistent=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        count, length, width = x.shape
        q, k, v = self.qkv(x).reshape(count, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        scores = (q * (width // HEADS) ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.relative_position_bias_table[self.index].permute(2, 0, 1)
        if mask is not None:
            scores = scores.view(-1, mask.shape[0], HEADS, length, length) + mask[None, :, None]
            scores = scores.view(count, HEADS, length, length)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(count, length, width))


class SwinBlock(nn.Module):
    def __init__(self, width: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, _, width = x.shape
        y = self.norm1(x)
        mask = None
        if self.shift:
            y, mask = torch.roll(y, (-self.shift, -self.shift), (1, 2)), shift_mask(height, self.shift)
        y = self.attn(partition(y), mask)
        y = y.view(batch, height // WINDOW, height // WINDOW, WINDOW, WINDOW, width).permute(0, 1, 3, 2, 4, 5).reshape(x.shape)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(self.norm(x))


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed, self.embed_norm = nn.Conv2d(3, WIDTH, 2, stride=2), nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList([SwinBlock(WIDTH, 0), SwinBlock(WIDTH, WINDOW // 2)])
        self.downsample = Merging(WIDTH)
        self.last = SwinBlock(2 * WIDTH, 0)
        self.norm, self.head = nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.embed_norm(self.patch_embed(image).permute(0, 2, 3, 1))
        for block in self.blocks:
            x = block(x)
        x = self.norm(self.last(self.downsample(x)))
        return self.head(F.adaptive_avg_pool1d(x.flatten(1, 2).transpose(1, 2), 1).flatten(1))


class Attention(mnn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = mnn.Linear(width, 3 * width), mnn.Linear(width, width)
        self.bias_table = mx.zeros(((2 * WINDOW - 1) ** 2, HEADS))
        self._index = mx.array(relative_index())

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        n, t, c = x.shape
        q, k, v = mx.split(self.in_proj(x).reshape(n, t, 3 * HEADS, c // HEADS).transpose(0, 2, 1, 3), 3, axis=1)
        bias = self.bias_table[self._index].transpose(2, 0, 1)[None]
        if mask is not None:
            bias = bias + mx.tile(mask, (n // mask.shape[0], 1, 1))[:, None]
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=(c // HEADS) ** -0.5, mask=bias)
        return self.out_proj(out.transpose(0, 2, 1, 3).reshape(n, t, c))


class Block(mnn.Module):
    def __init__(self, width: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.ln_1, self.ln_2 = mnn.LayerNorm(width), mnn.LayerNorm(width)
        self.attention = Attention(width)
        self.fc1, self.fc2 = mnn.Linear(width, 2 * width), mnn.Linear(2 * width, width)

    def windows(self, x: mx.array) -> mx.array:
        b, h, w, c = x.shape
        x = x.reshape(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW * WINDOW, c)

    def unwindows(self, y: mx.array, shape: tuple[int, ...]) -> mx.array:
        b, h, w, c = shape
        return y.reshape(b, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c).transpose(0, 1, 3, 2, 4, 5).reshape(shape)

    def mask(self, side: int) -> mx.array:
        where = np.zeros(side, np.int64)
        where[side - WINDOW :], where[side - self.shift :] = 1, 2
        region = mx.array((where[:, None] * 3 + where[None]).astype(np.float32))
        own = self.windows(region[None, :, :, None]).squeeze(-1)
        return mx.where(own[:, None] != own[:, :, None], -100.0, 0.0)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.ln_1(x)
        if self.shift:
            y = mx.roll(y, (-self.shift, -self.shift), axis=(1, 2))
        y = self.attention(self.windows(y), self.mask(x.shape[1]) if self.shift else None)
        y = self.unwindows(y, x.shape)
        if self.shift:
            y = mx.roll(y, (self.shift, self.shift), axis=(1, 2))
        x = x + y
        return x + self.fc2(mnn.gelu(self.fc1(self.ln_2(x))))


class Merge(mnn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln, self.linear = mnn.LayerNorm(4 * width), mnn.Linear(4 * width, 2 * width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)
        return self.linear(self.ln(x))


class PortWindows(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = mnn.Conv2d(3, WIDTH, 2, stride=2), mnn.LayerNorm(WIDTH)
        self.stages = [Block(WIDTH, 0), Block(WIDTH, WINDOW // 2)]
        self.merge = Merge(WIDTH)
        self.top = Block(2 * WIDTH, 0)
        self.ln_out, self.classifier = mnn.LayerNorm(2 * WIDTH), mnn.Linear(2 * WIDTH, 5)

    def __call__(self, image: mx.array) -> mx.array:
        x = self.stem_norm(self.stem(image))
        for block in self.stages:
            x = block(x)
        x = self.ln_out(self.top(self.merge(x)))
        return self.classifier(mx.mean(x, axis=(1, 2)))


def make(seed: int = 0) -> Any:
    truth = {
        "": "", "patch_embed": "stem", "embed_norm": "stem_norm", "blocks.*": "stages.*", "last": "top", "downsample": "merge",
        "downsample.norm": "merge.ln", "downsample.reduction": "merge.linear", "norm": "ln_out", "head": "classifier",
    }  # fmt: skip
    for ours, theirs in (("blocks.*", "stages.*"), ("last", "top")):
        truth |= {
            f"{ours}.norm1": f"{theirs}.ln_1", f"{ours}.norm2": f"{theirs}.ln_2", f"{ours}.attn": f"{theirs}.attention",
            f"{ours}.attn.qkv": f"{theirs}.attention.in_proj", f"{ours}.attn.proj": f"{theirs}.attention.out_proj",
            f"{ours}.mlp.0": f"{theirs}.fc1", f"{ours}.mlp.2": f"{theirs}.fc2",
        }  # fmt: skip
    reference = perturb(Windows(), seed)
    more = {
        f"{theirs}.attention.bias_table": reference.get_submodule(f"{ours}.attn").relative_position_bias_table.detach().numpy()
        for ours, theirs in (("blocks.0", "stages.0"), ("blocks.1", "stages.1"), ("last", "top"))
    }
    image = np.random.default_rng(seed).standard_normal((2, 3, 2 * SIDE, 2 * SIDE)).astype(np.float32)
    edits = (
        Edit("mask.missing", "stages.1", "__call__", "self.mask(x.shape[1]) if self.shift else None", "None"),
        Edit("scale", "stages.0.attention", "__call__", "scale=(c // HEADS) ** -0.5", "scale=c ** -0.5"),
        Edit("branch.missing", "stages.0.attention", "__call__", "mask=bias", "mask=None", also=("mask.missing", "position.missing")),
        Edit(
            "position.offset",
            "stages.1",
            "__call__",
            "y = mx.roll(y, (self.shift, self.shift), axis=(1, 2))",
            "y = mx.roll(y, (-self.shift, -self.shift), axis=(1, 2))",
            also=("padding.shift", "order.concat", "scale"),
        ),
        Edit("activation", "top", "__call__", "mnn.gelu(", "mnn.gelu_approx("),
        Edit("residual.missing", "stages.0", "__call__", "x = x + y", "x = y"),
        Edit("order.concat", "merge", "__call__", "transpose(0, 1, 3, 4, 2, 5)", "transpose(0, 1, 3, 2, 4, 5)", also=("order.channels",)),
        Edit("transform", "", "__call__", "mx.mean(x, axis=(1, 2))", "mx.max(x, axis=(1, 2))"),
        Edit(
            "heads.layout", "top.attention", "__call__",
            "self.out_proj(out.transpose(0, 2, 1, 3).reshape(n, t, c))", "self.out_proj(out.reshape(n, t, c))",
            also=("order.channels",),
        ),
        Edit("norm.placement", "stages.0", "__call__", "y = self.ln_1(x)", "y = x", also=("norm.missing", "branch.missing")),
    )  # fmt: skip
    return pair(
        "windows", reference, PortWindows(), [image], truth, port_inputs=[image.transpose(0, 2, 3, 1)], edits=edits, more=more,
        without=("relative_position_bias_table",),
    )  # fmt: skip
