"""A HiFi-GAN vocoder: a harmonic source, upsampling, residual blocks with snake activations, an inverse STFT at the end."""

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

MELS, CHANNELS, RATES, FFT, HOP = 6, 16, (2, 2), 8, 2


class Snake(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alpha = self.alpha[:, None]
        return x + torch.sin(x * alpha).pow(2) / (alpha + 1e-9)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList([nn.Conv1d(channels, channels, 3, dilation=d, padding=d) for d in (1, 3)])
        self.convs2 = nn.ModuleList([nn.Conv1d(channels, channels, 3, padding=1) for _ in (1, 3)])
        self.acts = nn.ModuleList([Snake(channels) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place, (one, other) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            x = x + other(self.acts[2 * place + 1](one(self.acts[2 * place](x))))
        return x


class Vocoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f0 = nn.Sequential(nn.Conv1d(MELS, 8, 3, padding=1), nn.ELU(), nn.Conv1d(8, 1, 1))
        self.source = nn.Linear(3, 1)
        self.conv_pre = nn.Conv1d(MELS, CHANNELS, 7, padding=3)
        self.ups = nn.ModuleList([nn.ConvTranspose1d(CHANNELS >> i, CHANNELS >> i + 1, 4, stride=2, padding=1) for i in range(2)])
        self.source_downs = nn.ModuleList([nn.Conv1d(1, CHANNELS >> i + 1, (4, 1)[i], stride=2 - i, padding=1 - i) for i in range(2)])
        self.resblocks = nn.ModuleList([Residual(CHANNELS >> 1 + i // 2) for i in range(4)])
        self.conv_post = nn.Conv1d(CHANNELS >> 2, FFT + 2, 7, padding=3)
        self.register_buffer("window", torch.hann_window(FFT), persistent=False)

    def harmonics(self, f0: torch.Tensor) -> torch.Tensor:
        f0 = f0.repeat_interleave(4, -1)
        phase = torch.cumsum(f0 * torch.arange(1, 4)[:, None] / 50, -1) * 2 * torch.pi
        return torch.tanh(self.source(torch.sin(phase).transpose(1, 2))).transpose(1, 2)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        source = self.harmonics(F.softplus(self.f0(mel)))
        x = self.conv_pre(mel)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1)) + self.source_downs[i](source)
            x = (self.resblocks[2 * i](x) + self.resblocks[2 * i + 1](x)) / 2
        x = self.conv_post(F.leaky_relu(x))
        magnitude, phase = torch.exp(x[:, : FFT // 2 + 1]).clamp(max=1e2), torch.sin(x[:, FFT // 2 + 1 :])
        spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
        return torch.istft(spectrum, FFT, HOP, FFT, window=self.window).clamp(-0.99, 0.99)


class SnakeBeta(mnn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = mx.ones((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        return x + mx.square(mx.sin(x * self.a)) / (self.a + 1e-9)


class Stack(mnn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.snakes = [SnakeBeta(channels), SnakeBeta(channels)]
        self.dilated = mnn.Conv1d(channels, channels, 3, dilation=dilation, padding=dilation)
        self.plain = mnn.Conv1d(channels, channels, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.plain(self.snakes[1](self.dilated(self.snakes[0](x))))


class ResStack(mnn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stacks = [Stack(channels, 1), Stack(channels, 3)]

    def __call__(self, x: mx.array) -> mx.array:
        for stack in self.stacks:
            x = stack(x)
        return x


class PortVocoder(mnn.Module):
    """Channels-last between modules."""

    def __init__(self) -> None:
        super().__init__()
        self.pitch = [mnn.Conv1d(MELS, 8, 3, padding=1), mnn.Conv1d(8, 1, 1)]
        self.merge = mnn.Linear(3, 1)
        self.pre, self.post = mnn.Conv1d(MELS, CHANNELS, 7, padding=3), mnn.Conv1d(CHANNELS >> 2, FFT + 2, 7, padding=3)
        self.upsamplers = [mnn.ConvTranspose1d(CHANNELS >> i, CHANNELS >> i + 1, 4, stride=2, padding=1) for i in range(2)]
        self.noise_convs = [mnn.Conv1d(1, CHANNELS >> i + 1, (4, 1)[i], stride=2 - i, padding=1 - i) for i in range(2)]
        self.stacks = [ResStack(CHANNELS >> 1 + i // 2) for i in range(4)]

    def harmonic_source(self, f0: mx.array) -> mx.array:
        f0 = mx.repeat(f0, 4, axis=1)
        phase = mx.cumsum(f0 * mx.arange(1, 4) / 50, axis=1) * 2 * np.pi
        return mx.tanh(self.merge(mx.sin(phase).astype(f0.dtype)))

    def inverse_stft(self, magnitude: mx.array, phase: mx.array) -> mx.array:
        window = mx.array((0.5 * (1 - np.cos(2 * np.pi * np.arange(FFT) / FFT))).astype(np.float32))
        frames = mx.fft.irfft(magnitude * mx.exp(1j * phase), n=FFT, axis=-1) * window
        length = FFT + HOP * (frames.shape[1] - 1)
        signal, weight = mx.zeros((frames.shape[0], length)), mx.zeros((length,))
        for place in range(frames.shape[1]):
            signal[:, place * HOP : place * HOP + FFT] += frames[:, place]
            weight[place * HOP : place * HOP + FFT] += window * window
        return (signal / mx.maximum(weight, 1e-11))[:, FFT // 2 : length - FFT // 2]

    def __call__(self, mel: mx.array) -> mx.array:
        source = self.harmonic_source(mnn.softplus(self.pitch[1](mnn.elu(self.pitch[0](mel)))))
        x = self.pre(mel)
        for i in range(2):
            x = self.upsamplers[i](mnn.leaky_relu(x, 0.1)) + self.noise_convs[i](source)
            x = (self.stacks[2 * i](x) + self.stacks[2 * i + 1](x)) / 2
        x = self.post(mnn.leaky_relu(x))
        magnitude = mx.clip(mx.exp(x[..., : FFT // 2 + 1]), None, 1e2)
        wave = self.inverse_stft(magnitude.astype(mx.float32), mx.sin(x[..., FFT // 2 + 1 :]).astype(mx.float32))
        return mx.clip(wave, -0.99, 0.99).astype(mel.dtype)


def make(seed: int = 0) -> Any:
    truth = {
        "": "", "f0.0": "pitch.0", "f0.2": "pitch.1", "source": "merge", "conv_pre": "pre", "conv_post": "post", "ups.*": "upsamplers.*",
        "source_downs.*": "noise_convs.*", "resblocks.*": "stacks.*",
        "resblocks.*.convs1.*": "stacks.*.stacks.*.dilated", "resblocks.*.convs2.*": "stacks.*.stacks.*.plain",
    }  # fmt: skip
    truth |= {f"resblocks.*.acts.{2 * place + one}": f"stacks.*.stacks.{place}.snakes.{one}" for place in range(2) for one in range(2)}
    reference = perturb(Vocoder(), seed)
    more = {}
    for block in range(4):
        for place in range(4):
            name = f"stacks.{block}.stacks.{place // 2}.snakes.{place % 2}"
            more[f"{name}.a"] = reference.state_dict()[f"resblocks.{block}.acts.{place}.alpha"].numpy()
    mel = np.random.default_rng(seed).standard_normal((1, MELS, 7)).astype(np.float32)
    edits = (
        Edit("activation", "", "__call__", "mnn.leaky_relu(x, 0.1)", "mnn.leaky_relu(x, 0.01)"),
        Edit("activation", "", "__call__", "self.post(mnn.leaky_relu(x))", "self.post(mnn.leaky_relu(x, 0.1))"),
        Edit("transform", "", "inverse_stft", "np.arange(FFT) / FFT", "np.arange(FFT) / (FFT - 1)"),
        Edit("transform", "", "inverse_stft", "(signal / mx.maximum(weight, 1e-11))", "signal"),
        Edit(
            "transform", "", "harmonic_source", "mx.repeat(f0, 4, axis=1)", "mx.tile(f0, (1, 4, 1))", also=("order.channels", "time.scale")
        ),
        Edit("scale", "", "harmonic_source", "/ 50", "/ 48", also=("time.scale", "transform")),
        Edit("clamp", "", "__call__", "mx.clip(wave, -0.99, 0.99)", "mx.clip(wave, -0.5, 0.5)"),
        Edit("units.log", "", "__call__", "mx.exp(x[", "mx.power(10.0, x["),
        Edit("order.roles", "", "inverse_stft", "1j * phase", "-1j * phase", also=("transform", "scale")),
        Edit("scale", "", "__call__", "self.stacks[2 * i + 1](x)) / 2", "self.stacks[2 * i + 1](x))"),
        Edit("branch.missing", "", "__call__", " + self.noise_convs[i](source)", ""),
    )
    return pair(
        "vocoder", reference, PortVocoder(), [mel], truth, port_inputs=[mel.transpose(0, 2, 1)], edits=edits,
        transposed=("ups.",), more=more, without=("alpha",),
    )  # fmt: skip
