"""A front end of speech with a small encoder behind it: pre-emphasis, frames, a power spectrum, a mel bank, decibels, normalised; GRU."""

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

FFT, HOP, MELS, WIDTH, RATE = 64, 16, 10, 12, 8000


def bank() -> np.ndarray:
    """(MELS, FFT // 2 + 1): triangles of equal width on the mel scale."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    centres = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)
    bins = np.linspace(0, RATE / 2, FFT // 2 + 1)
    up = (bins - centres[:-2, None]) / (centres[1:-1] - centres[:-2])[:, None]
    down = (centres[2:, None] - bins) / (centres[2:] - centres[1:-1])[:, None]
    return np.maximum(0, np.minimum(up, down)).astype(np.float32)


class LogMel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(FFT), persistent=False)
        self.register_buffer("filters", torch.tensor(bank()), persistent=False)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        audio = torch.cat([audio[:, :1], audio[:, 1:] - 0.97 * audio[:, :-1]], 1)
        spectrum = torch.stft(audio, FFT, HOP, window=self.window, center=True, pad_mode="reflect", return_complex=True)
        mel = self.filters @ spectrum.abs() ** 2
        decibels = 10 * torch.log10(torch.clamp(mel, min=1e-10))
        decibels = torch.maximum(decibels, decibels.amax((1, 2), keepdim=True) - 80.0)
        return (decibels - decibels.mean(-1, keepdim=True)) / (decibels.std(-1, keepdim=True) + 1e-5)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean(2)))))[:, :, None]


class ConvBlock(nn.Module):
    def __init__(self, inner: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inner, WIDTH, 3, padding=dilation, dilation=dilation)
        self.norm, self.se = nn.GroupNorm(3, WIDTH), SqueezeExcite()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.se(F.leaky_relu(self.norm(self.conv(x)), 0.2))
        return x + y if x.shape == y.shape else y


class StatsPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Conv1d(WIDTH, 1, 1)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        mask = torch.arange(x.shape[2])[None] < lengths[:, None]
        scores = self.attention(x).squeeze(1).masked_fill(~mask, float("-inf"))
        weights = torch.softmax(scores, 1)[:, None]
        mean = (weights * x).sum(2)
        variance = (weights * (x - mean[:, :, None]) ** 2).sum(2)
        plain = (x * mask[:, None]).sum(2) / lengths[:, None]
        return torch.cat([mean, torch.sqrt(variance.clamp(min=1e-9)), plain], 1)


class Mels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frontend = LogMel()
        self.blocks = nn.ModuleList([ConvBlock(MELS, 1), ConvBlock(WIDTH, 2)])
        self.pool, self.fc = StatsPool(), nn.Linear(3 * WIDTH, 6)

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x = self.frontend(audio)
        for block in self.blocks:
            x = block(x)
        return F.normalize(self.fc(self.pool(x, lengths)), dim=1)


class Features(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._window = mx.array(np.hanning(FFT + 1)[:-1].astype(np.float32))
        self._bank = mx.array(bank())

    def padded(self, audio: mx.array) -> mx.array:
        left, right = audio[:, 1 : FFT // 2 + 1][:, ::-1], audio[:, -FFT // 2 - 1 : -1][:, ::-1]
        return mx.concatenate([left, audio, right], axis=1)

    def __call__(self, audio: mx.array) -> mx.array:
        audio = mx.concatenate([audio[:, :1], audio[:, 1:] - 0.97 * audio[:, :-1]], axis=1)
        audio = self.padded(audio)
        count = 1 + (audio.shape[1] - FFT) // HOP
        frames = mx.stack([audio[:, i * HOP : i * HOP + FFT] for i in range(count)], axis=1)
        power = mx.abs(mx.fft.rfft(frames * self._window, axis=-1)) ** 2
        mel = power @ self._bank.T
        db = 10 * mx.log10(mx.maximum(mel, 1e-10))
        db = mx.maximum(db, mx.max(db, axis=(1, 2), keepdims=True) - 80.0)
        mean = mx.mean(db, axis=1, keepdims=True)
        return (db - mean) / (mx.std(db, axis=1, keepdims=True, ddof=1) + 1e-5)


class SE(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = mnn.Linear(WIDTH, 4), mnn.Linear(4, WIDTH)

    def __call__(self, x: mx.array) -> mx.array:
        return x * mx.sigmoid(self.fc2(mnn.relu(self.fc1(mx.mean(x, axis=1)))))[:, None]


class Block(mnn.Module):
    def __init__(self, inner: int, dilation: int) -> None:
        super().__init__()
        self.conv = mnn.Conv1d(inner, WIDTH, 3, padding=dilation, dilation=dilation)
        self.gn, self.excite = mnn.GroupNorm(3, WIDTH, pytorch_compatible=True), SE()

    def __call__(self, x: mx.array) -> mx.array:
        y = self.excite(mnn.leaky_relu(self.gn(self.conv(x)), 0.2))
        return x + y if x.shape == y.shape else y


class Pooling(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = mnn.Linear(WIDTH, 1)

    def __call__(self, x: mx.array, lengths: mx.array) -> mx.array:
        mask = (mx.arange(x.shape[1])[None] < lengths[:, None])[..., None]
        weights = mx.softmax(mx.where(mask, self.score(x), -mx.inf), axis=1)
        mean = mx.sum(weights * x, axis=1)
        variance = mx.sum(weights * mx.square(x - mean[:, None]), axis=1)
        plain = mx.sum(x * mask, axis=1) / lengths[:, None]
        return mx.concatenate([mean, mx.sqrt(mx.maximum(variance, 1e-9)), plain], axis=1)


class PortMels(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = Features()
        self.layers = [Block(MELS, 1), Block(WIDTH, 2)]
        self.pooling, self.embedding = Pooling(), mnn.Linear(3 * WIDTH, 6)

    def __call__(self, audio: mx.array, lengths: mx.array) -> mx.array:
        x = self.features(audio)
        for layer in self.layers:
            x = layer(x)
        x = self.embedding(self.pooling(x, lengths))
        return x / mx.maximum(mx.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def make(seed: int = 0) -> Any:
    truth = {
        "": "", "frontend": "features", "blocks.*": "layers.*", "blocks.*.conv": "layers.*.conv", "blocks.*.norm": "layers.*.gn",
        "blocks.*.se": "layers.*.excite", "blocks.*.se.reduce": "layers.*.excite.fc1", "blocks.*.se.expand": "layers.*.excite.fc2",
        "pool": "pooling", "fc": "embedding",
    }  # fmt: skip
    reference = perturb(Mels(), seed)
    attention = reference.pool.attention
    more = {"pooling.score.weight": attention.weight.detach().numpy()[:, :, 0], "pooling.score.bias": attention.bias.detach().numpy()}
    audio = np.random.default_rng(seed).standard_normal((2, 400)).astype(np.float32)
    lengths = np.array([26, 17])
    edits = (
        Edit("padding.mode", "features", "padded", "mx.concatenate([left, audio, right], axis=1)",
             "mx.concatenate([0 * left, audio, 0 * right], axis=1)"),
        Edit("activation", "features", "__call__", "** 2", "** 1", also=("scale", "branch.missing")),
        Edit("units.log", "features", "__call__", "mx.log10(", "mx.log(", also=("scale",)),
        Edit("norm.missing", "features", "__call__", "ddof=1", "ddof=0", also=("scale", "transform")),
        Edit("scale", "features", "__call__", "0.97", "0.95", also=("branch.missing",)),
        Edit("norm.missing", "layers.0", "__call__", "self.gn(self.conv(x))", "self.conv(x)", also=("branch.missing",)),
        Edit("activation", "layers.1", "__call__", ", 0.2)", ", 0.01)"),
        Edit("mask.missing", "pooling", "__call__", "mx.where(mask, self.score(x), -mx.inf)", "self.score(x)"),
        Edit("scale", "pooling", "__call__", "mx.sum(x * mask, axis=1) / lengths[:, None]", "mx.mean(x * mask, axis=1)",
             also=("transform",)),
        Edit("heads.layout", "pooling", "__call__", "-mx.inf), axis=1)", "-1e9), axis=-1)", also=("transform", "norm.missing")),
        Edit("order.concat", "pooling", "__call__", "[mean, mx.sqrt(mx.maximum(variance, 1e-9)), plain]",
             "[plain, mean, mx.sqrt(mx.maximum(variance, 1e-9))]"),
        Edit("branch.missing", "pooling", "__call__", "mx.sqrt(mx.maximum(variance, 1e-9))", "variance", also=("activation", "transform")),
        Edit("norm.missing", "", "__call__", "axis=1, keepdims=True", "axis=0, keepdims=True", also=("transform",)),
        Edit("mask.missing", "pooling", "__call__", "mx.sum(x * mask, axis=1)", "mx.sum(x, axis=1)"),
    )  # fmt: skip
    made = pair("mels", reference, PortMels(), [audio, lengths], truth, edits=edits, more=more)
    made.truth["pool.attention"] = "pooling.score"
    return made
