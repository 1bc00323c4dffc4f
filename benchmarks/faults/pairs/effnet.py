"""A mobile network: inverted bottlenecks with depthwise convolutions, batch norms and squeeze-and-excitation; NCHW against NHWC."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx import nn as mnn
from pairs import perturb
from torch import nn

from benchmarks.faults.catalogue import Edit
from benchmarks.faults.pairs.base import pair

BLOCKS = ((8, 8, 1, 3, 1), (8, 12, 4, 3, 2), (12, 12, 4, 5, 1), (12, 16, 4, 5, 2))
SIDE, CLASSES = 16, 7


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation, self.scale_activation = nn.SiLU(), nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return scale * x


def conv_norm(ins: int, outs: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(ins, outs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outs, eps=1e-3)]
    return nn.Sequential(*layers, *([nn.SiLU()] if act else []))


class MBConv(nn.Module):
    def __init__(self, ins: int, outs: int, ratio: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = ins * ratio
        layers = [conv_norm(ins, wide, 1)] if ratio != 1 else []
        layers += [
            conv_norm(wide, wide, kernel, stride, groups=wide),
            SqueezeExcitation(wide, max(1, ins // 4)),
            conv_norm(wide, outs, 1, act=False),
        ]
        self.block = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and ins == outs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.block(x)
        return result + x if self.use_res_connect else result


class EfficientNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_norm(3, 8, 3, 2), *[MBConv(*one) for one in BLOCKS], conv_norm(16, 32, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class ConvBN(mnn.Module):
    def __init__(self, ins: int, outs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = mnn.Conv2d(ins, outs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = mnn.BatchNorm(outs, eps=1e-3)

    def __call__(self, x: mx.array) -> mx.array:
        return self.bn(self.conv(x))


class SE(mnn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand = mnn.Linear(channels, squeezed), mnn.Linear(squeezed, channels)

    def __call__(self, x: mx.array) -> mx.array:
        s = mx.mean(x, axis=(1, 2))
        s = mx.sigmoid(self.expand(mnn.silu(self.reduce(s))))
        return x * s[:, None, None, :]


class InvertedResidual(mnn.Module):
    def __init__(self, ins: int, outs: int, ratio: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = ins * ratio
        if ratio != 1:
            self.expansion = ConvBN(ins, wide, 1)
        self.depthwise = ConvBN(wide, wide, kernel, stride, groups=wide)
        self.se = SE(wide, max(1, ins // 4))
        self.project = ConvBN(wide, outs, 1)
        self.has_skip = stride == 1 and ins == outs

    def __call__(self, x: mx.array) -> mx.array:
        y = x
        if "expansion" in self:
            y = mnn.silu(self.expansion(y))
        y = mnn.silu(self.depthwise(y))
        y = self.project(self.se(y))
        return x + y if self.has_skip else y


class PortNet(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBN(3, 8, 3, 2)
        self.blocks = [InvertedResidual(*one) for one in BLOCKS]
        self.top = ConvBN(16, 32, 1)
        self.fc = mnn.Linear(32, CLASSES)

    def __call__(self, x: mx.array) -> mx.array:
        x = mnn.silu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = mnn.silu(self.top(x))
        return self.fc(x.mean(axis=(1, 2)))


def make(seed: int = 0) -> Any:
    truth = {"": "", "features.0.0": "stem.conv", "features.0.1": "stem.bn", "features.5.0": "top.conv", "features.5.1": "top.bn",
             "classifier.1": "fc"}  # fmt: skip
    for place, (_, _, ratio, _, _) in enumerate(BLOCKS):
        ours, theirs, first = f"features.{place + 1}", f"blocks.{place}", int(ratio != 1)
        truth[ours] = theirs
        parts = ([("0", "expansion")] if ratio != 1 else []) + [(str(first), "depthwise"), (str(first + 2), "project")]
        for number, part in parts:
            truth |= {f"{ours}.block.{number}.0": f"{theirs}.{part}.conv", f"{ours}.block.{number}.1": f"{theirs}.{part}.bn"}
        truth |= {f"{ours}.block.{first + 1}{a}": f"{theirs}.se{b}" for a, b in (("", ""), (".fc1", ".reduce"), (".fc2", ".expand"))}
    wraps = {ours.removesuffix(".1"): theirs.removesuffix(".bn") for ours, theirs in truth.items() if theirs.endswith(".bn")}
    reference = perturb(EfficientNet(), seed)
    more = {}
    for name, value in reference.state_dict().items():
        if ".fc" in name and value.ndim == 4:
            from pairs import matched

            module, _, kind = name.rpartition(".")
            more[f"{matched(truth, module)}.{kind}"] = value.numpy()[..., 0, 0]
    truth |= wraps
    image = np.random.default_rng(seed).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    edits = (
        Edit("activation", "blocks.2.se", "__call__", "mx.sigmoid(", "mnn.hardswish(", also=()),
        Edit("activation", "blocks.1.se", "__call__", "mnn.silu(self.reduce(s))", "mnn.relu(self.reduce(s))"),
        Edit("transform", "blocks.2.se", "__call__", "mx.mean(x, axis=(1, 2))", "mx.max(x, axis=(1, 2))"),
        Edit("scale", "blocks.3.se", "__call__", "mx.mean(x, axis=(1, 2))", "mx.sum(x, axis=(1, 2))"),
        Edit("branch.missing", "blocks.2.se", "__call__", "x * s[:, None, None, :]", "x + 0 * s[:, None, None, :]"),
        Edit(
            "branch.extra",
            "blocks.2.se",
            "__call__",
            "x * s[:, None, None, :]",
            "x + x * s[:, None, None, :]",
            also=("scale", "residual.missing"),
        ),
        Edit("activation", "blocks.2", "__call__", "self.project(self.se(y))", "mnn.silu(self.project(self.se(y)))"),
        Edit("activation", "blocks.1", "__call__", "mnn.silu(self.depthwise(y))", "self.depthwise(y)"),
        Edit("residual.missing", "blocks.2", "__call__", "x + y if self.has_skip else y", "y"),
        Edit(
            "order.roles",
            "blocks.2",
            "__call__",
            "y = self.project(self.se(y))",
            "y = self.project(mnn.silu(self.se(y)))",
            also=("activation",),
        ),
        Edit("activation", "", "__call__", "mnn.silu(self.top(x))", "mnn.relu6(self.top(x))"),
        Edit("transform", "", "__call__", "x.mean(axis=(1, 2))", "x.max(axis=(1, 2))"),
        Edit("scale", "", "__call__", "x.mean(axis=(1, 2))", "x.sum(axis=(1, 2))"),
    )
    return pair("effnet", reference, PortNet(), [image], truth, port_inputs=[image.transpose(0, 2, 3, 1)], edits=edits, more=more)
