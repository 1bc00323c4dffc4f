"""A radiance field: points and directions as Fourier features, a skip into the middle, densities and colours composited along each ray."""

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

RAYS, POINTS, WIDTH, BANDS, VIEWS = 6, 9, 20, 4, 2


def encoded(width: int) -> int:
    return 3 * (1 + 2 * width)


class Embedder(nn.Module):
    def __init__(self, bands: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2.0 ** torch.arange(bands), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, *(f(x * freq) for freq in self.freqs for f in (torch.sin, torch.cos))], -1)


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = [encoded(BANDS), WIDTH, WIDTH + encoded(BANDS), WIDTH]
        self.pts_linears = nn.ModuleList([nn.Linear(size, WIDTH) for size in sizes])
        self.feature_linear, self.alpha_linear = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.views_linear, self.rgb_linear = nn.Linear(WIDTH + encoded(VIEWS), WIDTH // 2), nn.Linear(WIDTH // 2, 3)

    def forward(self, points: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        h = points
        for place, linear in enumerate(self.pts_linears):
            if place == 2:
                h = torch.cat([points, h], -1)
            h = F.relu(linear(h))
        alpha, h = self.alpha_linear(h), torch.cat([self.feature_linear(h), views], -1)
        return torch.cat([self.rgb_linear(F.relu(self.views_linear(h))), alpha], -1)


class Renderer(nn.Module):
    def forward(self, raw: torch.Tensor, z: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        apart = torch.cat([z[:, 1:] - z[:, :-1], torch.full_like(z[:, :1], 1e10)], -1)
        apart = apart * directions.norm(dim=-1, keepdim=True)
        alpha = 1.0 - torch.exp(-F.relu(raw[..., 3]) * apart)
        through = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1.0 - alpha + 1e-10], -1), -1)[:, :-1]
        weights = alpha * through
        colour = (weights[..., None] * torch.sigmoid(raw[..., :3])).sum(-2)
        return torch.cat([colour + (1.0 - weights.sum(-1, keepdim=True)), (weights * z).sum(-1, keepdim=True)], -1)


class Rays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.embed_views = Embedder(BANDS), Embedder(VIEWS)
        self.field, self.render = Field(), Renderer()

    def forward(self, origins: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        z = torch.linspace(0.5, 2.0, POINTS).expand(origins.shape[0], POINTS)
        points = origins[:, None] + directions[:, None] * z[..., None]
        views = (directions / directions.norm(dim=-1, keepdim=True))[:, None].expand(points.shape)
        return self.render(self.field(self.embed(points), self.embed_views(views)), z, directions)


class Fourier(mnn.Module):
    def __init__(self, bands: int) -> None:
        super().__init__()
        self._bands = mx.array(2.0 ** np.arange(bands, dtype=np.float32))

    def __call__(self, x: mx.array) -> mx.array:
        angles = x[..., None, :] * self._bands[:, None]
        both = mx.stack([mx.sin(angles), mx.cos(angles)], axis=-2)
        return mx.concatenate([x, both.reshape(*x.shape[:-1], -1)], axis=-1)


class MLP(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = [encoded(BANDS), WIDTH, WIDTH + encoded(BANDS), WIDTH]
        self.layers = [mnn.Linear(size, WIDTH) for size in sizes]
        self.bottleneck, self.sigma = mnn.Linear(WIDTH, WIDTH), mnn.Linear(WIDTH, 1)
        self.view, self.colour = mnn.Linear(WIDTH + encoded(VIEWS), WIDTH // 2), mnn.Linear(WIDTH // 2, 3)

    def __call__(self, x: mx.array, d: mx.array) -> tuple[mx.array, mx.array]:
        h = x
        for i, layer in enumerate(self.layers):
            h = mx.concatenate([x, h], axis=-1) if i == 2 else h
            h = mnn.relu(layer(h))
        sigma = self.sigma(h)
        h = mx.concatenate([self.bottleneck(h), d], axis=-1)
        return mx.concatenate([self.colour(mnn.relu(self.view(h))), sigma], axis=-1)


class Composite(mnn.Module):
    def __call__(self, raw: mx.array, z: mx.array, directions: mx.array) -> mx.array:
        rgb, sigma = raw[..., :3], raw[..., 3]
        dt = mx.concatenate([z[:, 1:] - z[:, :-1], mx.full(z[:, :1].shape, 1e10)], axis=-1)
        dt = dt * mx.linalg.norm(directions, axis=-1, keepdims=True)
        alpha = 1 - mx.exp(-mnn.relu(sigma) * dt)
        light = mx.cumprod(1 - alpha + 1e-10, axis=-1, inclusive=False)
        w = alpha * light
        colour = mx.sum(w[..., None] * mx.sigmoid(rgb), axis=-2)
        depth = mx.sum(w * z, axis=-1, keepdims=True)
        return mx.concatenate([colour + (1 - mx.sum(w, axis=-1, keepdims=True)), depth], axis=-1)


class PortRays(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.points, self.angles, self.mlp, self.composite = Fourier(BANDS), Fourier(VIEWS), MLP(), Composite()

    def __call__(self, origins: mx.array, directions: mx.array) -> mx.array:
        z = mx.broadcast_to(mx.linspace(0.5, 2.0, POINTS), (origins.shape[0], POINTS))
        points = origins[:, None] + directions[:, None] * z[..., None]
        d = directions / mx.linalg.norm(directions, axis=-1, keepdims=True)
        views = mx.broadcast_to(d[:, None], points.shape)
        return self.composite(self.mlp(self.points(points), self.angles(views)), z, directions)


def make(seed: int = 0) -> Any:
    truth = {
        "": "", "embed": "points", "embed_views": "angles", "field": "mlp", "field.pts_linears.*": "mlp.layers.*",
        "field.feature_linear": "mlp.bottleneck", "field.alpha_linear": "mlp.sigma", "field.views_linear": "mlp.view",
        "field.rgb_linear": "mlp.colour", "render": "composite",
    }  # fmt: skip
    random = np.random.default_rng(seed)
    origins, directions = (random.standard_normal((RAYS, 3)).astype(np.float32) for _ in range(2))
    edits = (
        Edit("order.concat", "points", "__call__", "[mx.sin(angles), mx.cos(angles)]", "[mx.cos(angles), mx.sin(angles)]"),
        Edit("order.channels", "points", "__call__", "axis=-2)", "axis=-3)", also=("order.concat", "heads.layout")),
        Edit("scale", "points", "__call__", "x[..., None, :] * self._bands[:, None]", "x[..., None, :] * np.pi * self._bands[:, None]",
             also=("time.scale",)),
        Edit("order.concat", "mlp", "__call__", "mx.concatenate([x, h], axis=-1) if i == 2", "mx.concatenate([h, x], axis=-1) if i == 2"),
        Edit("activation", "mlp", "__call__", "self.colour(mnn.relu(self.view(h)))", "self.colour(self.view(h))", also=("branch.missing",)),
        Edit("scale", "composite", "__call__", "dt = dt * mx.linalg.norm(directions, axis=-1, keepdims=True)", "pass",
             also=("branch.missing",)),
        Edit("position.offset", "composite", "__call__", "inclusive=False", "inclusive=True", also=("padding.shift",)),
        Edit("activation", "composite", "__call__", "mnn.relu(sigma)", "mnn.softplus(sigma)"),
        Edit("branch.missing", "composite", "__call__", "colour + (1 - mx.sum(w, axis=-1, keepdims=True))", "colour",
             also=("residual.missing",)),
        Edit("norm.missing", "", "__call__", "directions / mx.linalg.norm(directions, axis=-1, keepdims=True)", "directions",
             also=("branch.missing", "scale")),
        Edit("order.roles", "mlp", "__call__", "sigma = self.sigma(h)\n", "sigma = self.sigma(self.bottleneck(h))\n"),
        Edit("activation", "composite", "__call__", "mx.sigmoid(rgb)", "rgb", also=("branch.missing",)),
        Edit("transform", "composite", "__call__", "depth = mx.sum(w * z", "depth = mx.mean(w * z", also=("scale",)),
    )  # fmt: skip
    return pair("rays", perturb(Rays(), seed), PortRays(), [origins, directions], truth, edits=edits)
