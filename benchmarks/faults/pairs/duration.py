"""Speech of the FastSpeech kind: convolutional blocks, a duration predictor, a length regulator, a postnet with batch norms."""

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

WIDTH, HEADS, MELS, TEXT = 24, 2, 10, 9


class FFTBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w_qs, self.w_ks, self.w_vs = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.fc = nn.Linear(WIDTH, WIDTH)
        self.attention_norm, self.conv_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.w_1, self.w_2 = nn.Conv1d(WIDTH, 2 * WIDTH, 5, padding=2), nn.Conv1d(2 * WIDTH, WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        q, k, v = (project(x).view(b, t, HEADS, -1).transpose(1, 2) for project in (self.w_qs, self.w_ks, self.w_vs))
        scores = torch.matmul(q, k.transpose(-1, -2)) / (WIDTH // HEADS) ** 0.5
        y = torch.matmul(torch.softmax(scores, -1), v).transpose(1, 2).reshape(b, t, -1)
        x = self.attention_norm(x + self.fc(y))
        y = self.w_2(torch.relu(self.w_1(x.transpose(1, 2)))).transpose(1, 2)
        return self.conv_norm(x + y)


class DurationPredictor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2))).squeeze(-1)


class Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_emb = nn.Embedding(30, WIDTH)
        self.encoder = nn.ModuleList([FFTBlock(), FFTBlock()])
        self.duration = DurationPredictor()
        self.decoder = nn.ModuleList([FFTBlock()])
        self.mel_linear = nn.Linear(WIDTH, MELS)
        self.postnet = nn.Sequential(
            nn.Conv1d(MELS, 16, 5, padding=2), nn.BatchNorm1d(16), nn.Tanh(), nn.Conv1d(16, MELS, 5, padding=2), nn.BatchNorm1d(MELS)
        )

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        x = self.word_emb(text) + positions(text.shape[1])
        for block in self.encoder:
            x = block(x)
        durations = torch.clamp(torch.round(self.duration(x).abs() * 2), 1, 4).long()
        x = torch.repeat_interleave(x[0], durations[0], dim=0)[None]
        x = x + positions(x.shape[1])
        for block in self.decoder:
            x = block(x)
        mel = self.mel_linear(x)
        return mel + self.postnet(mel.transpose(1, 2)).transpose(1, 2)


def positions(length: int) -> torch.Tensor:
    angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, WIDTH, 2) / WIDTH)
    return torch.stack([angles.sin(), angles.cos()], -1).reshape(1, length, WIDTH)


class Layer(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (mnn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.ln1, self.ln2 = mnn.LayerNorm(WIDTH), mnn.LayerNorm(WIDTH)
        self.conv1, self.conv2 = mnn.Conv1d(WIDTH, 2 * WIDTH, 5, padding=2), mnn.Conv1d(2 * WIDTH, WIDTH, 1)

    def __call__(self, x: mx.array) -> mx.array:
        B, T, _ = x.shape
        q, k, v = (project(x).reshape(B, T, HEADS, -1).transpose(0, 2, 1, 3) for project in (self.query, self.key, self.value))
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5)
        x = self.ln1(x + self.out(y.transpose(0, 2, 1, 3).reshape(B, T, -1)))
        return self.ln2(x + self.conv2(mnn.relu(self.conv1(x))))


class Durations(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1d, self.layer_norm, self.proj = mnn.Conv1d(WIDTH, WIDTH, 3, padding=1), mnn.LayerNorm(WIDTH), mnn.Linear(WIDTH, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.proj(self.layer_norm(mnn.relu(self.conv1d(x))))[..., 0]


class Postnet(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = [mnn.Conv1d(MELS, 16, 5, padding=2), mnn.Conv1d(16, MELS, 5, padding=2)]
        self.norms = [mnn.BatchNorm(16), mnn.BatchNorm(MELS)]

    def __call__(self, x: mx.array) -> mx.array:
        return self.norms[1](self.convs[1](mx.tanh(self.norms[0](self.convs[0](x)))))


class PortSpeech(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = mnn.Embedding(30, WIDTH)
        self.encoder_layers, self.decoder_layers = [Layer(), Layer()], [Layer()]
        self.duration_predictor, self.to_mel, self.post = Durations(), mnn.Linear(WIDTH, MELS), Postnet()

    def __call__(self, text: mx.array) -> mx.array:
        x = self.embedding(text) + self.sinusoid(text.shape[1])
        for layer in self.encoder_layers:
            x = layer(x)
        counts = mx.clip(mx.round(mx.abs(self.duration_predictor(x)) * 2), 1, 4).astype(mx.int32)
        index = np.repeat(np.arange(x.shape[1]), np.array(counts[0]))
        x = x[:, mx.array(index)]
        x = x + self.sinusoid(x.shape[1])
        for layer in self.decoder_layers:
            x = layer(x)
        mel = self.to_mel(x)
        return mel + self.post(mel)

    def sinusoid(self, length: int) -> mx.array:
        angles = mx.arange(length)[:, None] / mx.power(10000, mx.arange(0, WIDTH, 2) / WIDTH)
        return mx.stack([mx.sin(angles), mx.cos(angles)], axis=-1).reshape(1, length, WIDTH)


def make(seed: int = 0) -> Any:
    layer = {
        "": "", ".w_qs": ".query", ".w_ks": ".key", ".w_vs": ".value", ".fc": ".out", ".attention_norm": ".ln1", ".conv_norm": ".ln2",
        ".w_1": ".conv1", ".w_2": ".conv2",
    }  # fmt: skip
    truth = {
        "": "", "word_emb": "embedding", "duration": "duration_predictor", "duration.conv": "duration_predictor.conv1d",
        "duration.norm": "duration_predictor.layer_norm", "duration.linear": "duration_predictor.proj", "mel_linear": "to_mel",
        "postnet": "post",
        "postnet.0": "post.convs.0", "postnet.1": "post.norms.0", "postnet.3": "post.convs.1", "postnet.4": "post.norms.1",
    }  # fmt: skip
    for ours, theirs in (("encoder.*", "encoder_layers.*"), ("decoder.*", "decoder_layers.*")):
        truth |= {ours + one: theirs + other for one, other in layer.items()}
    text = np.random.default_rng(seed).integers(0, 30, (1, TEXT))
    edits = (
        Edit("position.offset", "", "sinusoid", "mx.arange(length)[:, None]", "mx.arange(1, length + 1)[:, None]"),
        Edit("position.missing", "", "__call__", "x = x + self.sinusoid(x.shape[1])", "pass", also=("branch.missing",)),
        Edit("length", "", "__call__", "mx.round(mx.abs(", "mx.ceil(mx.abs(", also=("unknown", "dtype")),
        Edit("scale", "encoder_layers.1", "__call__", "scale=q.shape[-1] ** -0.5", "scale=WIDTH ** -0.5"),
        Edit(
            "norm.placement",
            "decoder_layers.0",
            "__call__",
            "self.ln1(x + self.out(y.transpose(0, 2, 1, 3).reshape(B, T, -1)))",
            "x + self.out(self.ln1(y.transpose(0, 2, 1, 3).reshape(B, T, -1)))",
            also=("residual.missing", "norm.missing"),
        ),
        Edit(
            "order.roles",
            "",
            "__call__",
            "return mel + self.post(mel)",
            "return x[..., :MELS] + self.post(mel)",
            also=("residual.missing", "unknown"),
        ),
        Edit("activation", "post", "__call__", "mx.tanh(self.norms[0]", "mnn.relu(self.norms[0]"),
    )
    return pair("duration", perturb(Speech(), seed), PortSpeech(), [text], truth, edits=edits)
