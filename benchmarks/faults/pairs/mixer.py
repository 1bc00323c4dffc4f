"""A ConvNeXt stage and an MLP-Mixer behind it: depthwise convolutions, layer scale, and linear layers across patches; NCHW against NHWC."""

from __future__ import annotations

from dataclasses import replace
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

WIDTH, PATCHES, SIDE = 16, 16, 16


class ChannelsFirstNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH)
        self.norm = ChannelsFirstNorm(WIDTH)
        self.pwconv1, self.pwconv2 = nn.Conv2d(WIDTH, 2 * WIDTH, 1), nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(self.dwconv(x)))))
        return x + self.gamma[:, None, None] * y


class FeedForward(nn.Sequential):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class MixerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_token, self.ln_channel = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.token_mix, self.channel_mix = FeedForward(PATCHES, 24), FeedForward(WIDTH, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.token_mix(self.ln_token(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.ln_channel(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.downsample = nn.Sequential(nn.Conv2d(3, WIDTH, 4, stride=4), ChannelsFirstNorm(WIDTH))
        self.stage = nn.Sequential(ConvNeXtBlock(), ConvNeXtBlock())
        self.mixers = nn.ModuleList([MixerBlock(), MixerBlock()])
        self.fc_norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 6)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stage(self.downsample(image)).flatten(2).transpose(1, 2)
        for block in self.mixers:
            x = block(x)
        return self.head(self.fc_norm(x.mean(1)))


class Block(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = mnn.Conv2d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH)
        self.layer_norm = mnn.LayerNorm(WIDTH, eps=1e-6)
        self.expand, self.project = mnn.Linear(WIDTH, 2 * WIDTH), mnn.Linear(2 * WIDTH, WIDTH)
        self.layer_scale = mx.ones((WIDTH,))

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.layer_scale * self.project(mnn.gelu(self.expand(self.layer_norm(self.depthwise(x)))))


class Mlp(mnn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.wi, self.wo = mnn.Linear(width, hidden), mnn.Linear(hidden, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.wo(mnn.gelu(self.wi(x)))


class Mixer(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = [mnn.LayerNorm(WIDTH), mnn.LayerNorm(WIDTH)]
        self.across_patches, self.across_channels = Mlp(PATCHES, 24), Mlp(WIDTH, 40)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.across_patches(mx.swapaxes(self.norms[0](x), 1, 2))
        x = x + mx.swapaxes(y, 1, 2)
        return x + self.across_channels(self.norms[1](x))


class PortNet(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patchify, self.patch_norm = mnn.Conv2d(3, WIDTH, 4, stride=4), mnn.LayerNorm(WIDTH, eps=1e-6)
        self.convs = [Block(), Block()]
        self.blocks = [Mixer(), Mixer()]
        self.norm, self.classifier = mnn.LayerNorm(WIDTH), mnn.Linear(WIDTH, 6)

    def __call__(self, image: mx.array) -> mx.array:
        x = self.patch_norm(self.patchify(image))
        for block in self.convs:
            x = block(x)
        x = x.reshape(x.shape[0], -1, WIDTH)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.norm(mx.mean(x, axis=1)))


def make(seed: int = 0) -> Any:
    truth = {
        "": "", "downsample.0": "patchify", "downsample.1": "patch_norm", "stage.*": "convs.*", "stage.*.dwconv": "convs.*.depthwise",
        "stage.*.norm": "convs.*.layer_norm", "mixers.*": "blocks.*", "mixers.*.ln_token": "blocks.*.norms.0",
        "mixers.*.ln_channel": "blocks.*.norms.1", "mixers.*.token_mix": "blocks.*.across_patches",
        "mixers.*.token_mix.0": "blocks.*.across_patches.wi", "mixers.*.token_mix.2": "blocks.*.across_patches.wo",
        "mixers.*.channel_mix": "blocks.*.across_channels", "mixers.*.channel_mix.0": "blocks.*.across_channels.wi",
        "mixers.*.channel_mix.2": "blocks.*.across_channels.wo", "fc_norm": "norm", "head": "classifier",
    }  # fmt: skip
    wide = {"stage.*.pwconv1": "convs.*.expand", "stage.*.pwconv2": "convs.*.project"}
    reference = perturb(Net(), seed)
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    more = {}
    for block in range(2):
        more[f"convs.{block}.layer_scale"] = state[f"stage.{block}.gamma"]
        for ours, theirs in (("pwconv1", "expand"), ("pwconv2", "project")):
            more[f"convs.{block}.{theirs}.weight"] = state[f"stage.{block}.{ours}.weight"][:, :, 0, 0]
            more[f"convs.{block}.{theirs}.bias"] = state[f"stage.{block}.{ours}.bias"]
    image = np.random.default_rng(seed).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    edits = (
        Edit("scale", "convs.1", "__call__", "self.layer_scale * ", ""),
        Edit(
            "order.channels",
            "blocks.0",
            "__call__",
            "mx.swapaxes(y, 1, 2)",
            "y.reshape(x.shape)",
            also=("weights.layout", "order.reversed"),
        ),
        Edit(
            "norm.placement",
            "blocks.1",
            "__call__",
            "self.across_channels(self.norms[1](x))",
            "self.norms[1](self.across_channels(x))",
            also=("norm.missing",),
        ),
        Edit("length", "", "__call__", "mx.mean(x, axis=1)", "x[:, 0]", also=("unknown", "scale")),
        Edit(
            "order.roles",
            "blocks.0",
            "__call__",
            "return x + self.across_channels(self.norms[1](x))",
            "return x + self.across_channels(self.norms[0](x))",
            also=("norm.placement", "unknown"),
        ),
        Edit("activation", "convs.0", "__call__", "mnn.gelu(", "mnn.gelu_approx("),
    )
    made = pair(
        "mixer", reference, PortNet(), [image], truth, port_inputs=[image.transpose(0, 2, 3, 1)], edits=edits, more=more, without=("gamma",)
    )
    return replace(made, truth=truth | wide)
