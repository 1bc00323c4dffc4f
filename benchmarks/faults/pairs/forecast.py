"""A forecaster of time series: reversible normalisation, a moving average split off, patches, gated residual networks, quantiles."""

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

SERIES, LENGTH, PATCH, STRIDE, WIDTH, AHEAD, QUANTILES = 3, 32, 8, 4, 12, 5, 3


class RevIN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.affine_weight, self.affine_bias = nn.Parameter(torch.ones(SERIES)), nn.Parameter(torch.zeros(SERIES))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean = x.mean(1, keepdim=True)
        deviation = torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
        return (x - mean) / deviation * self.affine_weight + self.affine_bias, mean, deviation


class Decomposition(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        padded = torch.cat([x[:, :1].repeat(1, 2, 1), x, x[:, -1:].repeat(1, 2, 1)], 1)
        trend = F.avg_pool1d(padded.transpose(1, 2), 5, 1).transpose(1, 2)
        return x - trend, trend


class GRN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin1, self.lin2, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + F.glu(self.gate(self.lin2(F.elu(self.lin1(x)))), -1))


class TimeMix(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.BatchNorm1d(WIDTH), nn.Linear(count, count)
        self.decay = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x.transpose(1, 2))
        y = torch.relu(self.mix(y)).transpose(1, 2)
        keep = torch.sigmoid(self.decay)
        return keep * x + (1 - keep) * y


class Forecast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        count = (LENGTH - PATCH) // STRIDE + 1
        self.revin, self.split = RevIN(), Decomposition()
        self.embedding, self.W_pos = nn.Linear(PATCH, WIDTH), nn.Parameter(torch.zeros(count, WIDTH))
        self.mixers = nn.ModuleList([TimeMix(count) for _ in range(2)])
        self.grns = nn.ModuleList([GRN() for _ in range(2)])
        self.head, self.trend_linear = nn.Linear(WIDTH * count, AHEAD * QUANTILES), nn.Linear(LENGTH, AHEAD)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, mean, deviation = self.revin(x)
        season, trend = self.split(x)
        patches = season.transpose(1, 2).unfold(-1, PATCH, STRIDE).flatten(0, 1)
        h = self.embedding(patches) + self.W_pos
        for mixer, grn in zip(self.mixers, self.grns, strict=True):
            h = grn(mixer(h))
        y = self.head(h.flatten(1)).view(x.shape[0], SERIES, AHEAD, QUANTILES)
        y = y + self.trend_linear(trend.transpose(1, 2)).unsqueeze(-1)
        y = (y - self.revin.affine_bias[:, None, None]) / (self.revin.affine_weight[:, None, None] + 1e-10)
        return y * deviation.transpose(1, 2).unsqueeze(-1) + mean.transpose(1, 2).unsqueeze(-1)


class Scaler(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = mx.ones((SERIES,)), mx.zeros((SERIES,))

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        mu, sigma = mx.mean(x, axis=1, keepdims=True), mx.sqrt(mx.var(x, axis=1, keepdims=True) + 1e-5)
        return (x - mu) / sigma * self.w + self.b, mu, sigma


class MovingAverage(mnn.Module):
    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        padded = mx.pad(x, ((0, 0), (2, 2), (0, 0)), mode="edge")
        trend = sum(padded[:, i : i + x.shape[1]] for i in range(5)) / 5
        return x - trend, trend


class GatedResidual(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.g = mnn.Linear(WIDTH, WIDTH), mnn.Linear(WIDTH, WIDTH), mnn.Linear(WIDTH, 2 * WIDTH)
        self.ln = mnn.LayerNorm(WIDTH, eps=1e-3)

    def __call__(self, x: mx.array) -> mx.array:
        y, gate = mx.split(self.g(self.b(mnn.elu(self.a(x)))), 2, axis=-1)
        return self.ln(x + y * mx.sigmoid(gate))


class Mixing(mnn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.bn, self.dense, self.decay = mnn.BatchNorm(WIDTH), mnn.Linear(count, count), mx.zeros((WIDTH,))

    def __call__(self, x: mx.array) -> mx.array:
        y = mnn.relu(self.dense(self.bn(x).swapaxes(1, 2))).swapaxes(1, 2)
        keep = mx.sigmoid(self.decay)
        return y + keep * (x - y)


class PortForecast(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        count = (LENGTH - PATCH) // STRIDE + 1
        self.scaler, self.average = Scaler(), MovingAverage()
        self.patch, self.positions = mnn.Linear(PATCH, WIDTH), mx.zeros((count, WIDTH))
        self.mixing, self.residual = [Mixing(count) for _ in range(2)], [GatedResidual() for _ in range(2)]
        self.out, self.trend = mnn.Linear(WIDTH * count, AHEAD * QUANTILES), mnn.Linear(LENGTH, AHEAD)

    def __call__(self, x: mx.array) -> mx.array:
        b = x.shape[0]
        x, mu, sigma = self.scaler(x)
        season, trend = self.average(x)
        starts = mx.arange(0, LENGTH - PATCH + 1, STRIDE)
        patches = season[:, starts[:, None] + mx.arange(PATCH)].transpose(0, 3, 1, 2).reshape(b * SERIES, -1, PATCH)
        h = self.patch(patches) + self.positions
        for mixing, residual in zip(self.mixing, self.residual, strict=True):
            h = residual(mixing(h))
        y = self.out(h.reshape(h.shape[0], -1)).reshape(b, SERIES, AHEAD, QUANTILES)
        y = y + self.trend(trend.swapaxes(1, 2))[..., None]
        y = (y - self.scaler.b[:, None, None]) / (self.scaler.w[:, None, None] + 1e-10)
        return y * sigma.swapaxes(1, 2)[..., None] + mu.swapaxes(1, 2)[..., None]


def make(seed: int = 0) -> Any:
    truth = {
        "": "", "revin": "scaler", "split": "average", "embedding": "patch", "mixers.*": "mixing.*", "mixers.*.norm": "mixing.*.bn",
        "mixers.*.mix": "mixing.*.dense", "grns.*": "residual.*", "grns.*.lin1": "residual.*.a", "grns.*.lin2": "residual.*.b",
        "grns.*.gate": "residual.*.g", "grns.*.norm": "residual.*.ln", "head": "out", "trend_linear": "trend",
    }  # fmt: skip
    reference = perturb(Forecast(), seed)
    more = {
        "scaler.w": reference.revin.affine_weight.detach().numpy(), "scaler.b": reference.revin.affine_bias.detach().numpy(),
        "positions": reference.W_pos.detach().numpy(),
    }  # fmt: skip
    for place in range(2):
        more[f"mixing.{place}.decay"] = reference.mixers[place].decay.detach().numpy()
    x = np.cumsum(np.random.default_rng(seed).standard_normal((2, LENGTH, SERIES)), 1).astype(np.float32)
    edits = (
        Edit("order.roles", "residual.0", "__call__", "y, gate = mx.split", "gate, y = mx.split", also=("order.concat",)),
        Edit("activation", "residual.1", "__call__", "y * mx.sigmoid(gate)", "y * mx.tanh(gate)"),
        Edit("activation", "residual.0", "__call__", "mnn.elu(", "mnn.relu("),
        Edit("norm.missing", "scaler", "__call__", "mx.var(x, axis=1, keepdims=True)", "mx.var(x, axis=1, keepdims=True, ddof=1)",
             also=("scale", "transform", "norm.eps")),
        Edit("norm.missing", "scaler", "__call__", "mx.mean(x, axis=1, keepdims=True), mx.sqrt", "x[:, -1:], mx.sqrt", also=("transform",)),
        Edit("padding.mode", "average", "__call__", ', mode="edge"', ""),
        Edit("scale", "average", "__call__", "for i in range(5)) / 5", "for i in range(5)) / 4"),
        Edit("order.roles", "mixing.0", "__call__", "y + keep * (x - y)", "x + keep * (y - x)", also=("scale",)),
        Edit("residual.missing", "residual.1", "__call__", "self.ln(x + y * mx.sigmoid(gate))", "self.ln(y * mx.sigmoid(gate))"),
        Edit("scale", "", "__call__", " / (self.scaler.w[:, None, None] + 1e-10)", "", also=("branch.missing",)),
        Edit("branch.missing", "", "__call__", " + mu.swapaxes(1, 2)[..., None]", "", also=("residual.missing", "position.missing")),
        Edit("position.missing", "", "__call__", "self.patch(patches) + self.positions", "self.patch(patches)",
             also=("branch.missing", "residual.missing")),
        Edit("norm.placement", "residual.0", "__call__", "self.ln(x + y * mx.sigmoid(gate))", "x + self.ln(y * mx.sigmoid(gate))",
             also=("residual.missing",)),
        Edit("transform", "", "__call__", "season[:, starts[:, None] + mx.arange(PATCH)]", "x[:, starts[:, None] + mx.arange(PATCH)]",
             also=("order.roles", "branch.extra")),
    )  # fmt: skip
    return pair("forecast", reference, PortForecast(), [x], truth, edits=edits, more=more,
                without=("affine_weight", "affine_bias", "W_pos", "decay"))  # fmt: skip
