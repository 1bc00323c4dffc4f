"""A neural codec: a strided convolutional encoder, residual vector quantisation, a transposed convolutional decoder."""

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

CHANNELS, CODES, LEVELS = (8, 16, 24), 32, 3


class Unit(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels // 2, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(channels // 2, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.elu(self.conv1(F.elu(x))))


class Quantizer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj = nn.Conv1d(width, 6, 1)
        self.codebook = nn.Embedding(CODES, 6)
        self.out_proj = nn.Conv1d(6, width, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = F.normalize(self.in_proj(x).transpose(1, 2), dim=-1)
        book = F.normalize(self.codebook.weight, dim=-1)
        ids = (z @ book.T).argmax(-1)
        return self.out_proj(self.codebook(ids).transpose(1, 2)), ids


class Codec(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        first, *rest = CHANNELS
        encoder: list[nn.Module] = [nn.Conv1d(1, first, 7, padding=3)]
        for ins, outs in zip(CHANNELS, rest, strict=False):
            encoder += [Unit(ins, 1), Unit(ins, 3), nn.ELU(), nn.Conv1d(ins, outs, 4, stride=2, padding=1)]
        decoder: list[nn.Module] = []
        for ins, outs in zip(reversed(rest), reversed(CHANNELS[:-1]), strict=True):
            decoder += [nn.ELU(), nn.ConvTranspose1d(ins, outs, 4, stride=2, padding=1), Unit(outs, 1), Unit(outs, 3)]
        self.encoder = nn.Sequential(*encoder)
        self.quantizers = nn.ModuleList([Quantizer(CHANNELS[-1]) for _ in range(LEVELS)])
        self.decoder = nn.Sequential(*decoder)
        self.head = nn.Conv1d(first, 1, 7, padding=3)

    def forward(self, wav: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        residual = self.encoder(wav)
        total, codes = torch.zeros_like(residual), []
        for quantizer in self.quantizers:
            part, ids = quantizer(residual)
            residual, total = residual - part, total + part
            codes.append(ids)
        return torch.tanh(self.head(self.decoder(total))), torch.stack(codes, 1)


class ResidualUnit(mnn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilated = mnn.Conv1d(channels, channels // 2, 3, padding=dilation, dilation=dilation)
        self.pointwise = mnn.Conv1d(channels // 2, channels, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.pointwise(mnn.elu(self.dilated(mnn.elu(x))))


class Down(mnn.Module):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.units = [ResidualUnit(ins, 1), ResidualUnit(ins, 3)]
        self.stride_conv = mnn.Conv1d(ins, outs, 4, stride=2, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        for unit in self.units:
            x = unit(x)
        return self.stride_conv(mnn.elu(x))


class Up(mnn.Module):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.stride_conv = mnn.ConvTranspose1d(ins, outs, 4, stride=2, padding=1)
        self.units = [ResidualUnit(outs, 1), ResidualUnit(outs, 3)]

    def __call__(self, x: mx.array) -> mx.array:
        x = self.stride_conv(mnn.elu(x))
        for unit in self.units:
            x = unit(x)
        return x


def unit_length(x: mx.array) -> mx.array:
    return x / mx.maximum(mx.linalg.norm(x.astype(mx.float32), axis=-1, keepdims=True), 1e-12).astype(x.dtype)


class Level(mnn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.project_in = mnn.Linear(width, 6)
        self.embed = mnn.Embedding(CODES, 6)
        self.project_out = mnn.Linear(6, width)

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        ids = mx.argmax(unit_length(self.project_in(x)) @ unit_length(self.embed.weight).T, axis=-1)
        return self.project_out(self.embed(ids)), ids


class PortCodec(mnn.Module):
    """Channels-last throughout."""

    def __init__(self) -> None:
        super().__init__()
        first, *rest = CHANNELS
        self.stem = mnn.Conv1d(1, first, 7, padding=3)
        self.down = [Down(ins, outs) for ins, outs in zip(CHANNELS, rest, strict=False)]
        self.levels = [Level(CHANNELS[-1]) for _ in range(LEVELS)]
        self.up = [Up(ins, outs) for ins, outs in zip(reversed(rest), reversed(CHANNELS[:-1]), strict=True)]
        self.final = mnn.Conv1d(first, 1, 7, padding=3)

    def __call__(self, wav: mx.array) -> tuple[mx.array, mx.array]:
        residual = self.stem(wav)
        for block in self.down:
            residual = block(residual)
        total, codes = mx.zeros_like(residual), []
        for level in self.levels:
            part, ids = level(residual)
            residual = residual - part
            total = total + part
            codes.append(ids)
        for block in self.up:
            total = block(total)
        return mx.tanh(self.final(total)), mx.stack(codes, axis=1)


def make(seed: int = 0) -> Any:
    truth = {"": "", "encoder.0": "stem", "head": "final"}
    for block in range(2):
        truth |= {f"encoder.{4 * block + 4}": f"down.{block}.stride_conv", f"decoder.{4 * block + 1}": f"up.{block}.stride_conv"}
        for place in range(2):
            for ours, theirs in (("", ""), (".conv1", ".dilated"), (".conv2", ".pointwise")):
                truth[f"encoder.{4 * block + 1 + place}{ours}"] = f"down.{block}.units.{place}{theirs}"
                truth[f"decoder.{4 * block + 2 + place}{ours}"] = f"up.{block}.units.{place}{theirs}"
    for ours, theirs in (("", ""), (".in_proj", ".project_in"), (".codebook", ".embed"), (".out_proj", ".project_out")):
        truth[f"quantizers.*{ours}"] = f"levels.*{theirs}"
    reference = perturb(Codec(), seed)
    more = {}
    for level in range(LEVELS):
        for ours, theirs in (("in_proj", "project_in"), ("out_proj", "project_out")):
            weight = reference.state_dict()[f"quantizers.{level}.{ours}.weight"]
            more[f"levels.{level}.{theirs}.weight"] = weight.numpy()[:, :, 0]
    wav = np.random.default_rng(seed).standard_normal((2, 1, 48)).astype(np.float32)
    edits = (
        Edit("order.roles", "", "__call__", "residual = residual - part", "residual = part - residual", also=("residual.missing", "scale")),
        Edit("residual.missing", "", "__call__", "total = total + part", "total = part", also=("branch.missing",)),
        Edit("norm.missing", "levels.1", "__call__", "unit_length(self.embed.weight)", "self.embed.weight"),
    )
    return pair(
        "codec", reference, PortCodec(), [wav], truth, port_inputs=[wav.transpose(0, 2, 1)], edits=edits,
        transposed=("decoder.1.", "decoder.5."), more=more,
    )  # fmt: skip
