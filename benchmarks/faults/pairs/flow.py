"""Flow matching: an Euler solver with guidance over a U-Net, the time embedded by sines; the U-Net is that of the shared pairs."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx import nn as mnn
from pairs import MlxUnet, TorchUnet, perturb, unet
from torch import nn

from benchmarks.faults.catalogue import Edit
from benchmarks.faults.pairs.base import pair

STEPS, TIMES, CHANNELS = 3, 12, 4


class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.condition = nn.Conv1d(6, CHANNELS, 3, padding=1)
        self.estimator = TorchUnet(ins=2 * CHANNELS, times=TIMES)
        self.to_velocity = nn.Conv1d(2 * CHANNELS, CHANNELS, 1)

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        frequencies = torch.exp(-np.log(10000.0) * torch.arange(TIMES // 2) / (TIMES // 2 - 1))
        angles = 1000 * t[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)

    def velocity(self, x: torch.Tensor, condition: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.to_velocity(self.estimator(torch.cat([x, condition], 1), self.embed(t)))

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        condition = self.condition(mel)
        both = torch.cat([condition, torch.zeros_like(condition)])
        x = torch.randn(condition.shape)
        times = 1 - torch.cos(torch.linspace(0, 1, STEPS + 1) * 0.5 * torch.pi)
        for step in range(STEPS):
            t, dt = times[step], times[step + 1] - times[step]
            guided, free = self.velocity(torch.cat([x, x]), both, t.expand(2 * len(x))).chunk(2)
            x = x + dt * (1.7 * guided - 0.7 * free)
        return x


class Estimator(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unet = MlxUnet(ins=2 * CHANNELS, times=TIMES)
        self.project = mnn.Conv1d(2 * CHANNELS, CHANNELS, 1)

    def __call__(self, x: mx.array, t: mx.array) -> mx.array:
        return self.project(self.unet(x, t))


class PortFlow(mnn.Module):
    """Channels-last; a method solves, another embeds the time."""

    def __init__(self) -> None:
        super().__init__()
        self.cond = mnn.Conv1d(6, CHANNELS, 3, padding=1)
        self.net = Estimator()

    def sines(self, t: mx.array) -> mx.array:
        frequencies = mx.exp(-np.log(10000.0) * mx.arange(TIMES // 2) / (TIMES // 2 - 1))
        angles = 1000 * t[:, None] * frequencies
        return mx.concatenate([mx.sin(angles), mx.cos(angles)], axis=-1)

    def solve(self, x: mx.array, condition: mx.array) -> mx.array:
        times = 1 - mx.cos(mx.linspace(0, 1, STEPS + 1) * 0.5 * np.pi)
        both = mx.concatenate([condition, mx.zeros_like(condition)], axis=0)
        for step in range(STEPS):
            t = times[step]
            dt = times[step + 1] - times[step]
            inputs = mx.concatenate([mx.concatenate([x, x], axis=0), both], axis=-1)
            embedded = self.sines(mx.broadcast_to(t, (inputs.shape[0],))).astype(x.dtype)
            guided, free = mx.split(self.net(inputs, embedded), 2, axis=0)
            x = x + dt.astype(x.dtype) * (1.7 * guided - 0.7 * free)
        return x

    def __call__(self, mel: mx.array) -> mx.array:
        condition = self.cond(mel)
        noise = mx.random.normal((condition.shape[0], condition.shape[2], condition.shape[1]))
        return self.solve(noise.swapaxes(1, 2).astype(condition.dtype), condition)


def make(seed: int = 0) -> Any:
    truth = {"": "", "condition": "cond", "to_velocity": "net.project"}
    truth |= {f"estimator.{a}" if a else "estimator": f"net.unet.{b}" if b else "net.unet" for a, b in unet(seed).truth.items()}
    mel = np.random.default_rng(seed).standard_normal((1, 6, 10)).astype(np.float32)
    edits = (
        Edit("ode.sign", "", "solve", "x + dt.", "x - dt."),
        Edit(
            "ode.schedule",
            "",
            "solve",
            "times = 1 - mx.cos(mx.linspace(0, 1, STEPS + 1) * 0.5 * np.pi)",
            "times = mx.linspace(0, 1, STEPS + 1)",
        ),
        Edit("ode.schedule", "", "solve", "dt = times[step + 1] - times[step]", "dt = mx.array(1 / STEPS)"),
        Edit("cfg.formula", "", "solve", "1.7 * guided - 0.7 * free", "0.7 * guided - 1.7 * free", also=("order.roles",)),
        Edit("cfg.formula", "", "solve", "1.7 * guided - 0.7 * free", "guided"),
        Edit("order.concat", "", "solve", "[mx.concatenate([x, x], axis=0), both]", "[both, mx.concatenate([x, x], axis=0)]"),
        Edit("time.scale", "", "sines", "1000 * t", "t"),
        Edit("order.concat", "", "sines", "mx.sin(angles), mx.cos(angles)", "mx.cos(angles), mx.sin(angles)"),
        Edit("random", "", "__call__", ".astype(condition.dtype)", ".astype(condition.dtype) * 0.9", also=("scale",)),
    )
    return pair("flow", perturb(Flow(), seed), PortFlow(), [mel], truth, port_inputs=[mel.transpose(0, 2, 1)], edits=edits)
