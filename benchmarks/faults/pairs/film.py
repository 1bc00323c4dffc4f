"""A U-Net over time conditioned by FiLM: strided and transposed convolutions, group norms, skips joined, linear attention at the bottom."""

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

CHANNELS, WIDTH, CONDITION, HEADS = 3, 8, 10, 2


class FiLM(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_cond = nn.Linear(CONDITION, 2 * width)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        gamma, beta = self.to_cond(F.mish(condition)).unsqueeze(-1).chunk(2, 1)
        return gamma * x + beta


class ResBlock(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.block1, self.block2 = nn.Conv1d(inner, outer, 5, padding=2), nn.Conv1d(outer, outer, 5, padding=2)
        self.norm1, self.norm2, self.film = nn.GroupNorm(4, outer), nn.GroupNorm(4, outer), FiLM(outer)
        self.residual_conv = nn.Conv1d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        y = F.mish(self.norm1(self.block1(x)))
        y = F.mish(self.norm2(self.block2(self.film(y, condition))))
        return y + self.residual_conv(x)


class LinearAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_qkv, self.to_out = nn.Conv1d(width, 3 * width, 1, bias=False), nn.Conv1d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, width, length = x.shape
        q, k, v = (one.view(batch, HEADS, -1, length) for one in self.to_qkv(x).chunk(3, 1))
        q, k = q.softmax(-2) * (width // HEADS) ** -0.5, k.softmax(-1)
        context = torch.einsum("bhdn,bhen->bhde", k, v)
        return self.to_out(torch.einsum("bhde,bhdn->bhen", context, q).reshape(batch, width, length)) + x


class Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cond = nn.Linear(5, CONDITION)
        self.down1, self.pool1 = ResBlock(CHANNELS, WIDTH), nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.down2, self.pool2 = ResBlock(WIDTH, 2 * WIDTH), nn.Conv1d(2 * WIDTH, 2 * WIDTH, 3, stride=2, padding=1)
        self.mid, self.attn = ResBlock(2 * WIDTH, 2 * WIDTH), LinearAttention(2 * WIDTH)
        self.up2, self.dec2 = nn.ConvTranspose1d(2 * WIDTH, 2 * WIDTH, 4, stride=2, padding=1), ResBlock(4 * WIDTH, WIDTH)
        self.dec1, self.final = ResBlock(2 * WIDTH, WIDTH), nn.Conv1d(WIDTH, CHANNELS, 1)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        c = self.cond(torch.log1p(condition.abs()))
        h1 = self.down1(x, c)
        h2 = self.down2(self.pool1(h1), c)
        h = self.attn(self.mid(self.pool2(h2), c))
        h = self.dec2(torch.cat((self.up2(h), h2), 1), c)
        h = F.interpolate(h, scale_factor=2, mode="nearest")
        h = self.dec1(torch.cat((h, h1), 1), c)
        return self.final(h).clamp(-3, 3)


class Modulation(mnn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = mnn.Linear(CONDITION, 2 * width)

    def __call__(self, x: mx.array, c: mx.array) -> mx.array:
        g, b = mx.split(mx.expand_dims(self.linear(mnn.mish(c)), 1), 2, axis=-1)
        return g * x + b


class Residual(mnn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv_a, self.conv_b = mnn.Conv1d(inner, outer, 5, padding=2), mnn.Conv1d(outer, outer, 5, padding=2)
        self.gn_a, self.gn_b = (mnn.GroupNorm(4, outer, pytorch_compatible=True) for _ in range(2))
        self.modulation = Modulation(outer)
        if inner != outer:
            self.skip = mnn.Conv1d(inner, outer, 1)

    def __call__(self, x: mx.array, c: mx.array) -> mx.array:
        y = mnn.mish(self.gn_a(self.conv_a(x)))
        y = mnn.mish(self.gn_b(self.conv_b(self.modulation(y, c))))
        return y + (self.skip(x) if "skip" in self else x)


class Context(mnn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = mnn.Linear(width, 3 * width, bias=False), mnn.Linear(width, width)

    def __call__(self, x: mx.array) -> mx.array:
        b, n, w = x.shape
        q, k, v = (one.reshape(b, n, HEADS, -1) for one in mx.split(self.qkv(x), 3, axis=-1))
        q, k = mx.softmax(q, axis=-1) * (w // HEADS) ** -0.5, mx.softmax(k, axis=1)
        context = mx.einsum("bnhd,bnhe->bhde", k, v)
        return self.out(mx.einsum("bhde,bnhd->bnhe", context, q).reshape(b, n, w)) + x


class PortUnet(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.condition = mnn.Linear(5, CONDITION)
        self.enc = [Residual(CHANNELS, WIDTH), Residual(WIDTH, 2 * WIDTH)]
        self.strided = [mnn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1), mnn.Conv1d(2 * WIDTH, 2 * WIDTH, 3, stride=2, padding=1)]
        self.bottom, self.context = Residual(2 * WIDTH, 2 * WIDTH), Context(2 * WIDTH)
        self.upsample = mnn.ConvTranspose1d(2 * WIDTH, 2 * WIDTH, 4, stride=2, padding=1)
        self.dec, self.out = [Residual(4 * WIDTH, WIDTH), Residual(2 * WIDTH, WIDTH)], mnn.Conv1d(WIDTH, CHANNELS, 1)

    def __call__(self, x: mx.array, condition: mx.array) -> mx.array:
        c = self.condition(mx.log1p(mx.abs(condition)))
        first = self.enc[0](x, c)
        second = self.enc[1](self.strided[0](first), c)
        h = self.context(self.bottom(self.strided[1](second), c))
        h = self.dec[0](mx.concatenate([self.upsample(h), second], axis=-1), c)
        h = mx.repeat(h, 2, axis=1)
        h = self.dec[1](mx.concatenate([h, first], axis=-1), c)
        return mx.clip(self.out(h), -3, 3)


def make(seed: int = 0) -> Any:
    truth = {
        "": "", "cond": "condition", "down1": "enc.0", "down2": "enc.1", "pool1": "strided.0", "pool2": "strided.1", "mid": "bottom",
        "attn": "context", "up2": "upsample", "dec2": "dec.0", "dec1": "dec.1", "final": "out",
    }  # fmt: skip
    for ours, theirs in (("down1", "enc.0"), ("down2", "enc.1"), ("mid", "bottom"), ("dec2", "dec.0"), ("dec1", "dec.1")):
        names = {"block1": "conv_a", "block2": "conv_b", "norm1": "gn_a", "norm2": "gn_b", "film": "modulation",
                 "film.to_cond": "modulation.linear", "residual_conv": "skip"}  # fmt: skip
        truth |= {f"{ours}.{one}": f"{theirs}.{other}" for one, other in names.items()}
    reference = perturb(Unet(), seed)
    attention = reference.attn
    more = {"context.qkv.weight": attention.to_qkv.weight.detach().numpy()[:, :, 0],
            "context.out.weight": attention.to_out.weight.detach().numpy()[:, :, 0],
            "context.out.bias": attention.to_out.bias.detach().numpy()}  # fmt: skip
    random = np.random.default_rng(seed)
    x, condition = random.standard_normal((2, CHANNELS, 16)).astype(np.float32), random.standard_normal((2, 5)).astype(np.float32)
    edits = (
        Edit("order.roles", "enc.0.modulation", "__call__", "g, b = mx.split", "b, g = mx.split", also=("order.concat",)),
        Edit("scale", "enc.1.modulation", "__call__", "g * x + b", "(1 + g) * x + b", also=("residual.missing", "branch.extra")),
        Edit("activation", "bottom", "__call__", "y = mnn.mish(self.gn_a", "y = mnn.silu(self.gn_a"),
        Edit("heads.layout", "context", "__call__", "mx.softmax(k, axis=1)", "mx.softmax(k, axis=-1)", also=("transform",)),
        Edit("scale", "context", "__call__", " * (w // HEADS) ** -0.5", ""),
        Edit("order.concat", "", "__call__", "[self.upsample(h), second]", "[second, self.upsample(h)]", also=("order.roles",)),
        Edit("transform", "", "__call__", "mx.repeat(h, 2, axis=1)", "mx.tile(h, (1, 2, 1))"),
        Edit("clamp", "", "__call__", "mx.clip(self.out(h), -3, 3)", "mx.clip(self.out(h), -1, 1)"),
        Edit("units.log", "", "__call__", "mx.log1p(mx.abs(condition))", "mx.log(mx.abs(condition))", also=("activation", "scale")),
        Edit("residual.missing", "dec.0", "__call__", 'y + (self.skip(x) if "skip" in self else x)', "y", also=("branch.missing",)),
        Edit("residual.missing", "context", "__call__", ".reshape(b, n, w)) + x", ".reshape(b, n, w))"),
        Edit("norm.placement", "dec.1", "__call__", "mnn.mish(self.gn_a(self.conv_a(x)))", "self.gn_a(mnn.mish(self.conv_a(x)))",
             also=("activation",)),
        Edit("order.roles", "context", "__call__", "q, k, v = (", "k, q, v = (", also=("order.concat",)),
    )  # fmt: skip
    made = pair("film", reference, PortUnet(), [x, condition], truth, port_inputs=[x.transpose(0, 2, 1), condition], edits=edits, more=more,
                transposed=("up2",))  # fmt: skip
    made.truth.update({"attn.to_qkv": "context.qkv", "attn.to_out": "context.out"})
    return made
