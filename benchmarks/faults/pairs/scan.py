"""A state space model as Mamba is: a causal depthwise convolution, a selective scan in a loop, gates; RMS norms written by hand."""

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

VOCABULARY, WIDTH, INNER, STATE, RANK, KERNEL = 23, 12, 24, 4, 3, 4


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance = x.float().pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon))


class MambaMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(WIDTH, 2 * INNER, bias=False)
        self.conv1d = nn.Conv1d(INNER, INNER, KERNEL, groups=INNER, padding=KERNEL - 1)
        self.x_proj, self.dt_proj = nn.Linear(INNER, RANK + 2 * STATE, bias=False), nn.Linear(RANK, INNER)
        self.A_log, self.D = nn.Parameter(torch.zeros(INNER, STATE)), nn.Parameter(torch.ones(INNER))
        self.out_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        length = hidden.shape[1]
        x, gate = self.in_proj(hidden).transpose(1, 2).chunk(2, 1)
        x = F.silu(self.conv1d(x)[..., :length])
        time_step, B, C = self.x_proj(x.transpose(1, 2)).split([RANK, STATE, STATE], -1)
        delta = F.softplus(self.dt_proj(time_step)).transpose(1, 2)
        A = -torch.exp(self.A_log.float())
        discrete_A = torch.exp(A[None, :, None] * delta[..., None])
        deltaB_x = delta[..., None] * B[:, None] * x[..., None]
        state = torch.zeros(x.shape[0], INNER, STATE)
        outputs = []
        for i in range(length):
            state = discrete_A[:, :, i] * state + deltaB_x[:, :, i]
            outputs.append((state @ C[:, i, :, None])[..., 0])
        y = torch.stack(outputs, -1) + x * self.D[None, :, None]
        return self.out_proj((y * F.silu(gate)).transpose(1, 2))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mixer = RMSNorm(WIDTH), MambaMixer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mixer(self.norm(x))


class Scan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([Layer() for _ in range(3)])
        self.norm_f, self.lm_head = RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm_f(x)).float()


class DepthwiseConv(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = mx.zeros((INNER, KERNEL, 1)), mx.zeros((INNER,))

    def __call__(self, x: mx.array) -> mx.array:
        x = mx.pad(x, ((0, 0), (KERNEL - 1, 0), (0, 0)))
        return mx.conv_general(x, self.weight, groups=INNER) + self.bias


class SSM(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.conv = mnn.Linear(WIDTH, 2 * INNER, bias=False), DepthwiseConv()
        self.params, self.dt = mnn.Linear(INNER, RANK + 2 * STATE, bias=False), mnn.Linear(RANK, INNER)
        self.log_a, self.d = mx.zeros((INNER, STATE)), mx.zeros((INNER,))
        self.contract = mnn.Linear(INNER, WIDTH, bias=False)

    def step(self, u: mx.array, state: mx.array | None, dt: mx.array, b: mx.array, c: mx.array) -> tuple[mx.array, mx.array]:
        new = mx.expand_dims(dt * u, -1) * mx.expand_dims(b, 1)
        if state is not None:
            new = new + state * mx.exp(mx.expand_dims(dt, -1) * -mx.exp(self.log_a))
        y = (new @ mx.expand_dims(c, -1)).squeeze(-1)
        return y + self.d * u, new

    def __call__(self, h: mx.array) -> mx.array:
        u, z = mx.split(self.expand(h), 2, axis=-1)
        u = mnn.silu(self.conv(u))
        dt, b, c = mx.split(self.params(u), [RANK, RANK + STATE], axis=-1)
        dt = mnn.softplus(self.dt(dt))
        state, ys = None, []
        for t in range(h.shape[1]):
            y, state = self.step(u[:, t], state, dt[:, t], b[:, t], c[:, t])
            ys.append(y)
        return self.contract(mx.stack(ys, axis=1) * mnn.silu(z))


class Residual(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln, self.ssm = mnn.RMSNorm(WIDTH, eps=1e-5), SSM()

    def __call__(self, x: mx.array) -> mx.array:
        return self.ssm(self.ln(x)) + x


class PortScan(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = mnn.Embedding(VOCABULARY, WIDTH)
        self.blocks = [Residual() for _ in range(3)]
        self.ln_f, self.head = mnn.RMSNorm(WIDTH, eps=1e-5), mnn.Linear(WIDTH, VOCABULARY, bias=False)

    def __call__(self, ids: mx.array) -> mx.array:
        x = self.wte(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


def make(seed: int = 0) -> Any:
    truth = {
        "": "", "embeddings": "wte", "layers.*": "blocks.*", "layers.*.norm": "blocks.*.ln", "layers.*.mixer": "blocks.*.ssm",
        "layers.*.mixer.in_proj": "blocks.*.ssm.expand", "layers.*.mixer.conv1d": "blocks.*.ssm.conv",
        "layers.*.mixer.x_proj": "blocks.*.ssm.params", "layers.*.mixer.dt_proj": "blocks.*.ssm.dt",
        "layers.*.mixer.out_proj": "blocks.*.ssm.contract", "norm_f": "ln_f", "lm_head": "head",
    }  # fmt: skip
    reference = perturb(Scan(), seed)
    more = {}
    for layer in range(3):
        mixer = reference.layers[layer].mixer
        more[f"blocks.{layer}.ssm.log_a"], more[f"blocks.{layer}.ssm.d"] = mixer.A_log.detach().numpy(), mixer.D.detach().numpy()
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (2, 9))
    edits = (
        Edit("order.roles", "blocks.0.ssm", "__call__", "u, z = mx.split", "z, u = mx.split", also=("order.concat",)),
        Edit("activation", "blocks.1.ssm", "__call__", "mnn.silu(z)", "mx.sigmoid(z)"),
        Edit("branch.missing", "blocks.0.ssm", "step", "y + self.d * u", "y", also=("residual.missing",)),
        Edit("scale", "blocks.2.ssm", "step", "-mx.exp(self.log_a)", "mx.exp(self.log_a)", also=("ode.sign",)),
        Edit("activation", "blocks.2.ssm", "__call__", "dt = mnn.softplus(self.dt(dt))", "dt = self.dt(dt)"),
        Edit("order.roles", "blocks.1.ssm", "__call__", "dt, b, c = mx.split", "dt, c, b = mx.split", also=("order.concat",)),
        Edit("padding.shift", "blocks.0.ssm.conv", "__call__", "((0, 0), (KERNEL - 1, 0), (0, 0))", "((0, 0), (1, 2), (0, 0))"),
        Edit("residual.missing", "blocks.1", "__call__", "self.ssm(self.ln(x)) + x", "self.ssm(self.ln(x))"),
        Edit("norm.placement", "blocks.2", "__call__", "self.ssm(self.ln(x)) + x", "self.ln(self.ssm(x)) + x", also=("norm.missing",)),
        Edit("branch.missing", "blocks.2.ssm", "__call__", "mx.stack(ys, axis=1) * mnn.silu(z)", "mx.stack(ys, axis=1)"),
        Edit("cache", "blocks.1.ssm", "__call__", "y, state = self.step", "y, _ = self.step", also=("branch.missing", "residual.missing")),
    )
    return pair("scan", reference, PortScan(), [ids], truth, edits=edits, more=more, without=("A_log", "D"))
