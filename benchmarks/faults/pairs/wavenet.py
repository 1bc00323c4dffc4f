"""A WaveNet-like filter conditioned by FiLM: gated dilated convolutions, skip sums, a speaker who scales and shifts every layer."""

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

CHANNELS, SKIPS, CONDITION, LAYERS, FRAMES = 10, 12, 6, 3, 20


class Film(nn.Module):
    def __init__(self, outs: int) -> None:
        super().__init__()
        self.to_gamma, self.to_beta = nn.Linear(CONDITION, outs), nn.Linear(CONDITION, outs)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return x * (1 + self.to_gamma(c).unsqueeze(-1)) + self.to_beta(c).unsqueeze(-1)


class Layer(nn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.filter_gate = nn.Conv1d(CHANNELS, 2 * CHANNELS, 3, dilation=dilation)
        self.film = Film(2 * CHANNELS)
        self.res, self.skip = nn.Conv1d(CHANNELS, CHANNELS, 1), nn.Conv1d(CHANNELS, SKIPS, 1)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.film(self.filter_gate(F.pad(x, (2 * self.dilation, 0))), c)
        value, gate = h.chunk(2, dim=1)
        z = torch.tanh(value) * torch.sigmoid(gate)
        return (x + self.res(z)) * math.sqrt(0.5), self.skip(z)


class Filter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.speaker = nn.Sequential(nn.Embedding(4, CONDITION), nn.Linear(CONDITION, CONDITION), nn.Tanh())
        self.inlet = nn.Conv1d(1, CHANNELS, 1)
        self.layers = nn.ModuleList([Layer(2**i) for i in range(LAYERS)])
        self.post = nn.Sequential(nn.ReLU(), nn.Conv1d(SKIPS, SKIPS, 1), nn.ReLU(), nn.Conv1d(SKIPS, 2, 1))

    def forward(self, wave: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        c = F.normalize(self.speaker(speaker), dim=-1)
        x = self.inlet(wave)
        total = torch.zeros(())
        for layer in self.layers:
            x, skip = layer(x, c)
            total = total + skip
        mean, log_scale = self.post(total / math.sqrt(LAYERS)).chunk(2, dim=1)
        return mean + torch.exp(log_scale.clamp(min=-7.0)) * wave


class CausalConv1d(mnn.Module):
    def __init__(self, ins: int, outs: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.conv = mnn.Conv1d(ins, outs, kernel_size, dilation=dilation)
        self._left = (kernel_size - 1) * dilation

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv(mx.pad(x, ((0, 0), (self._left, 0), (0, 0))))


class GatedResidual(mnn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.causal = CausalConv1d(CHANNELS, 2 * CHANNELS, 3, dilation)
        self.modulation = mnn.Linear(CONDITION, 4 * CHANNELS)
        self.out = mnn.Conv1d(CHANNELS, CHANNELS + SKIPS, 1)

    def modulate(self, h: mx.array, c: mx.array) -> mx.array:
        gamma, beta = mx.split(self.modulation(c)[:, None, :], 2, axis=-1)
        return h * (1 + gamma) + beta

    def __call__(self, x: mx.array, c: mx.array) -> tuple[mx.array, mx.array]:
        h = self.modulate(self.causal(x), c)
        v, u = mx.split(h, 2, axis=-1)
        z = mx.tanh(v) * mx.sigmoid(u)
        y = self.out(z)
        return (x + y[..., :CHANNELS]) * math.sqrt(0.5), y[..., CHANNELS:]


class WaveFilter(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.speaker_table, self.speaker_proj = mnn.Embedding(4, CONDITION), mnn.Linear(CONDITION, CONDITION)
        self.first = mnn.Conv1d(1, CHANNELS, 1)
        self.stack = [GatedResidual(2**i) for i in range(LAYERS)]
        self.last = [mnn.Conv1d(SKIPS, SKIPS, 1), mnn.Conv1d(SKIPS, 2, 1)]

    def condition(self, speaker: mx.array) -> mx.array:
        c = mx.tanh(self.speaker_proj(self.speaker_table(speaker)))
        return c / mx.maximum(mx.linalg.norm(c, axis=-1, keepdims=True), 1e-12)

    def __call__(self, wave: mx.array, speaker: mx.array) -> mx.array:
        c = self.condition(speaker)
        x = self.first(wave)
        skips = []
        for layer in self.stack:
            x, skip = layer(x, c)
            skips.append(skip)
        y = sum(skips) * (1 / math.sqrt(LAYERS))
        y = self.last[1](mnn.relu(self.last[0](mnn.relu(y))))
        return y[..., :1] + mx.exp(mx.maximum(y[..., 1:], -7.0)) * wave


def make(seed: int = 0) -> Any:
    truth = {"": "", "speaker.0": "speaker_table", "speaker.1": "speaker_proj", "inlet": "first", "layers.*": "stack.*",
             "layers.*.filter_gate": "stack.*.causal.conv", "post.1": "last.0", "post.3": "last.1"}  # fmt: skip
    reference = perturb(Filter(), seed)
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    more = {}
    for i in range(LAYERS):
        for kind in ("weight", "bias"):
            more[f"stack.{i}.modulation.{kind}"] = np.concatenate([state[f"layers.{i}.film.to_{one}.{kind}"] for one in ("gamma", "beta")])
            both = np.concatenate([state[f"layers.{i}.{one}.{kind}"] for one in ("res", "skip")])
            more[f"stack.{i}.out.{kind}"] = both.transpose(0, 2, 1) if kind == "weight" else both
    wave = np.random.default_rng(seed).standard_normal((2, 1, FRAMES)).astype(np.float32)
    layer = "stack.1"
    edits = (
        Edit("scale", layer, "modulate", "(1 + gamma)", "gamma", also=("branch.missing", "residual.missing")),
        Edit("order.roles", layer, "modulate", "gamma, beta = ", "beta, gamma = ", also=("order.channels",)),
        Edit("branch.missing", layer, "modulate", " + beta", ""),
        Edit("order.roles", layer, "__call__", "v, u = ", "u, v = ", also=("order.channels", "activation")),
        Edit("activation", layer, "__call__", "mx.tanh(v) * mx.sigmoid(u)", "v * mx.sigmoid(u)"),
        Edit("branch.missing", layer, "__call__", "mx.tanh(v) * mx.sigmoid(u)", "mx.tanh(v)", also=("activation",)),
        Edit("scale", layer, "__call__", " * math.sqrt(0.5)", ""),
        Edit("residual.missing", layer, "__call__", "(x + y[..., :CHANNELS])", "y[..., :CHANNELS]"),
        Edit(
            "residual.missing",
            layer,
            "__call__",
            "(x + y[..., :CHANNELS])",
            "(z + y[..., :CHANNELS])",
            also=("order.roles", "branch.extra"),
        ),
        Edit(
            "order.channels",
            layer,
            "__call__",
            "(x + y[..., :CHANNELS]) * math.sqrt(0.5), y[..., CHANNELS:]",
            "(x + y[..., SKIPS:]) * math.sqrt(0.5), y[..., :SKIPS]",
            also=("order.roles", "padding.shift", "order.concat"),
        ),
        Edit("padding.shift", "stack.2.causal", "__call__", "(self._left, 0)", "(self._left // 2, self._left // 2)"),
        Edit(
            "padding.mode",
            "stack.0.causal",
            "__call__",
            "mx.pad(x, ((0, 0), (self._left, 0), (0, 0)))",
            "mx.pad(x, ((0, 0), (self._left, 0), (0, 0)), mode='edge')",
        ),
        Edit("norm.missing", "", "condition", "c / mx.maximum(mx.linalg.norm(c, axis=-1, keepdims=True), 1e-12)", "c", also=("scale",)),
        Edit("norm.missing", "", "condition", "axis=-1, keepdims=True", "axis=0, keepdims=True", also=("scale",)),
        Edit("scale", "", "__call__", "(1 / math.sqrt(LAYERS))", "(1 / LAYERS)"),
        Edit("branch.missing", "", "__call__", "sum(skips)", "sum(skips[1:])"),
        Edit("branch.missing", "", "__call__", "sum(skips)", "skips[-1]"),
        Edit("activation", "", "__call__", "self.last[0](mnn.relu(y))", "self.last[0](y)"),
        Edit("units.log", "", "__call__", "mx.exp(mx.maximum(y[..., 1:], -7.0))", "mx.maximum(y[..., 1:], -7.0)", also=("activation",)),
        Edit("clamp", "", "__call__", "mx.maximum(y[..., 1:], -7.0)", "mx.maximum(y[..., 1:], 0.0)"),
        Edit("order.roles", "", "__call__", "x, skip = layer(x, c)", "_, skip = layer(x, c)", also=("residual.missing", "branch.missing")),
    )
    fused = {"layers.*.res": "stack.*.out", "layers.*.skip": "stack.*.out"}
    fused |= {f"layers.*.film{one}": "stack.*.modulation" for one in ("", ".to_gamma", ".to_beta")}
    speaker = np.array([2, 1])
    ours, theirs = [wave, speaker], [wave.transpose(0, 2, 1), speaker]
    return pair("wavenet", reference, WaveFilter(), ours, truth, port_inputs=theirs, edits=edits, more=more, fused=fused)
