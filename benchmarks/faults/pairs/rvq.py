"""A codec of speech: strided convolutions, residual quantisation with small codebooks of unit length, a mirrored decoder."""

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

WIDTH, STRIDES, LEVELS, CODES, INNER = 8, (2, 4), 3, 16, 4


class CausalConv(nn.Module):
    def __init__(self, ins: int, outs: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(ins, outs, kernel, stride, dilation=dilation)
        self.pad = (kernel - 1) * dilation + 1 - stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (self.pad, 0)))


class CausalConvTranspose(nn.Module):
    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.convtr = nn.ConvTranspose1d(ins, outs, 2 * stride, stride)
        self.trim = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convtr(x)[..., : -self.trim]


class ResidualUnit(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ELU(), CausalConv(width, width // 2, 3, dilation=dilation), nn.ELU(), CausalConv(width // 2, width, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x)


class Quantizer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Conv1d(width, INNER, 1), nn.Conv1d(INNER, width, 1)
        self.codebook = nn.Embedding(CODES, INNER)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        e = F.normalize(self.in_proj(z).transpose(1, 2), dim=-1)
        codes = (e @ F.normalize(self.codebook.weight, dim=-1).T).argmax(-1)
        return self.out_proj(self.codebook(codes).transpose(1, 2)), codes


class Codec(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        encoder: list[nn.Module] = [CausalConv(1, WIDTH, 7)]
        for i, stride in enumerate(STRIDES):
            encoder += [ResidualUnit(WIDTH << i, 1), nn.ELU(), CausalConv(WIDTH << i, WIDTH << i + 1, 2 * stride, stride)]
        width = WIDTH << len(STRIDES)
        self.encoder = nn.Sequential(*encoder, nn.ELU(), CausalConv(width, width, 3))
        self.quantizers = nn.ModuleList([Quantizer(width) for _ in range(LEVELS)])
        decoder: list[nn.Module] = [CausalConv(width, width, 7)]
        for i, stride in reversed(list(enumerate(STRIDES))):
            decoder += [nn.ELU(), CausalConvTranspose(WIDTH << i + 1, WIDTH << i, stride), ResidualUnit(WIDTH << i, 3)]
        self.decoder = nn.Sequential(*decoder, nn.ELU(), CausalConv(WIDTH, 1, 7))

    def forward(self, wave: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loudness = wave.pow(2).mean(-1, keepdim=True).sqrt() + 1e-8
        z = self.encoder(wave / loudness)
        quantized, residual, codes = torch.zeros_like(z), z, []
        for quantizer in self.quantizers:
            q, c = quantizer(residual)
            quantized, residual = quantized + q, residual - q
            codes.append(c)
        return self.decoder(quantized) * loudness, torch.stack(codes, 1)


# -- the port ------------------------------------------------------------------------------------------------------------------------------


class PaddedConv1d(mnn.Module):
    def __init__(self, ins: int, outs: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = mnn.Conv1d(ins, outs, kernel, stride=stride, dilation=dilation)
        self.left_pad = (kernel - 1) * dilation - (stride - 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv(mx.pad(x, [(0, 0), (self.left_pad, 0), (0, 0)]))


class EncoderBlock(mnn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.unit = Bottleneck(width, 1)
        self.down = PaddedConv1d(width, 2 * width, 2 * stride, stride)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(mnn.elu(self.unit(x)))


class Bottleneck(mnn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.squeeze, self.widen = PaddedConv1d(width, width // 2, 3, dilation=dilation), mnn.Conv1d(width // 2, width, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.widen(mnn.elu(self.squeeze(mnn.elu(x))))


class DecoderBlock(mnn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.up = mnn.ConvTranspose1d(2 * width, width, 2 * stride, stride=stride)
        self.unit = Bottleneck(width, 3)
        self._stride = stride

    def __call__(self, x: mx.array) -> mx.array:
        x = self.up(mnn.elu(x))
        x = x[:, : x.shape[1] - self._stride]
        return self.unit(x)


class VectorQuantize(mnn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.project_in, self.project_out = mnn.Linear(width, INNER), mnn.Linear(INNER, width)
        self.embed = mnn.Embedding(CODES, INNER)

    def normalize(self, x: mx.array) -> mx.array:
        return x / mx.maximum(mx.sqrt(mx.sum(x * x, axis=-1, keepdims=True)), 1e-12)

    def encode(self, z: mx.array) -> mx.array:
        e = self.normalize(self.project_in(z))
        codebook = self.normalize(self.embed.weight)
        return mx.argmax(e @ codebook.T, axis=-1)

    def __call__(self, z: mx.array) -> tuple[mx.array, mx.array]:
        codes = self.encode(z)
        return self.project_out(self.embed(codes)), codes


class ResidualVQ(mnn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = [VectorQuantize(width) for _ in range(LEVELS)]

    def __call__(self, z: mx.array) -> tuple[mx.array, mx.array]:
        total, codes = 0, []
        for layer in self.layers:
            q, c = layer(z)
            z = z - q
            total = total + q
            codes.append(c)
        return total, mx.stack(codes, axis=1)


class SpeechCodec(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = WIDTH << len(STRIDES)
        self.enc_in, self.enc_out = PaddedConv1d(1, WIDTH, 7), PaddedConv1d(width, width, 3)
        self.enc_blocks = [EncoderBlock(WIDTH << i, stride) for i, stride in enumerate(STRIDES)]
        self.rvq = ResidualVQ(width)
        self.dec_in, self.dec_out = PaddedConv1d(width, width, 7), PaddedConv1d(WIDTH, 1, 7)
        self.dec_blocks = [DecoderBlock(WIDTH << i, stride) for i, stride in reversed(list(enumerate(STRIDES)))]

    def analyse(self, x: mx.array) -> mx.array:
        x = self.enc_in(x)
        for block in self.enc_blocks:
            x = block(x)
        return self.enc_out(mnn.elu(x))

    def synthesise(self, x: mx.array) -> mx.array:
        x = self.dec_in(x)
        for block in self.dec_blocks:
            x = block(x)
        return self.dec_out(mnn.elu(x))

    def __call__(self, wave: mx.array) -> tuple[mx.array, mx.array]:
        volume = mx.sqrt(mx.mean(mx.square(wave), axis=1, keepdims=True)) + 1e-8
        z = self.analyse(wave / volume)
        z, codes = self.rvq(z)
        return self.synthesise(z) * volume, codes


def make(seed: int = 0) -> Any:
    unit = {"": "", ".block.1": ".squeeze", ".block.1.conv": ".squeeze.conv", ".block.3": ".widen", ".block.3.conv": ".widen"}
    truth = {"": "", "encoder.0": "enc_in", "encoder.0.conv": "enc_in.conv", "encoder.8": "enc_out", "encoder.8.conv": "enc_out.conv",
             "decoder.0": "dec_in", "decoder.0.conv": "dec_in.conv", "decoder.8": "dec_out", "decoder.8.conv": "dec_out.conv",
             "quantizers.*": "rvq.layers.*", "quantizers.*.in_proj": "rvq.layers.*.project_in",
             "quantizers.*.out_proj": "rvq.layers.*.project_out", "quantizers.*.codebook": "rvq.layers.*.embed"}  # fmt: skip
    for i in range(2):
        truth |= {f"encoder.{3 * i + 1}{a}": f"enc_blocks.{i}.unit{b}" for a, b in unit.items()}
        truth |= {f"encoder.{3 * i + 3}": f"enc_blocks.{i}.down", f"encoder.{3 * i + 3}.conv": f"enc_blocks.{i}.down.conv"}
        truth |= {f"decoder.{3 * i + 3}{a}": f"dec_blocks.{i}.unit{b}" for a, b in unit.items()}
        truth |= {f"decoder.{3 * i + 2}": f"dec_blocks.{i}.up", f"decoder.{3 * i + 2}.convtr": f"dec_blocks.{i}.up"}
    reference = perturb(Codec(), seed)
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    more = {
        f"rvq.layers.{i}.project_{way}.weight": state[f"quantizers.{i}.{way}_proj.weight"][..., 0]
        for i in range(LEVELS)
        for way in ("in", "out")
    }
    wave = np.random.default_rng(seed).standard_normal((1, 1, 96)).astype(np.float32).cumsum(-1) * 0.3
    vq = "rvq.layers.1"
    edits = (
        Edit("norm.missing", vq, "encode", "e = self.normalize(self.project_in(z))", "e = self.project_in(z)", also=("scale", "unknown")),
        Edit("norm.missing", vq, "encode", "self.normalize(self.embed.weight)", "self.embed.weight", also=("unknown",)),
        Edit("order.reversed", vq, "encode", "mx.argmax(e @ codebook.T, axis=-1)", "mx.argmin(e @ codebook.T, axis=-1)", also=("unknown",)),
        Edit("order.roles", "rvq", "__call__", "z = z - q", "z = z + q", also=("scale", "ode.sign", "branch.missing")),
        Edit("residual.missing", "rvq", "__call__", "z = z - q", "z = z", also=("branch.missing",)),
        Edit("order.roles", "rvq", "__call__", "z = z - q", "z = q - z", also=("scale",)),
        Edit("branch.missing", "rvq", "__call__", "total = total + q", "total = q"),
        Edit("branch.missing", "rvq", "__call__", "for layer in self.layers", "for layer in self.layers[:2]", also=("length",)),
        Edit("activation", "enc_blocks.0", "__call__", "self.down(mnn.elu(self.unit(x)))", "self.down(self.unit(x))"),
        Edit("activation", "enc_blocks.1", "__call__", "mnn.elu(self.unit(x))", "mnn.leaky_relu(self.unit(x))"),
        Edit(
            "padding.shift",
            "enc_blocks.1.down",
            "__call__",
            "(self.left_pad, 0)",
            "(self.left_pad - self.left_pad // 2, self.left_pad // 2)",
        ),
        Edit("padding.shift", "dec_blocks.0", "__call__", "x[:, : x.shape[1] - self._stride]", "x[:, self._stride :]"),
        Edit(
            "padding.shift",
            "dec_blocks.1",
            "__call__",
            "x[:, : x.shape[1] - self._stride]",
            "x[:, self._stride // 2 : x.shape[1] - self._stride // 2]",
        ),
        Edit("residual.missing", "dec_blocks.0.unit", "__call__", "return x + ", "return "),
        Edit(
            "residual.missing",
            "dec_blocks.0.unit",
            "__call__",
            "return x + self.widen(mnn.elu(self.squeeze(mnn.elu(x))))",
            "x = mnn.elu(x)\n    return x + self.widen(mnn.elu(self.squeeze(x)))",
            also=("activation", "order.roles"),
        ),
        Edit(
            "scale",
            "",
            "__call__",
            "mx.sqrt(mx.mean(mx.square(wave), axis=1, keepdims=True))",
            "mx.mean(mx.square(wave), axis=1, keepdims=True)",
        ),
        Edit("scale", "", "__call__", "self.synthesise(z) * volume", "self.synthesise(z)"),
        Edit("scale", "", "__call__", "mx.mean(mx.square(wave), axis=1, keepdims=True)", "mx.sum(mx.square(wave), axis=1, keepdims=True)"),
        Edit("activation", "", "synthesise", "self.dec_out(mnn.elu(x))", "self.dec_out(x)"),
        Edit(
            "order.roles",
            "",
            "__call__",
            "z, codes = self.rvq(z)",
            "_, codes = self.rvq(z)",
            also=("branch.missing", "branch.extra", "residual.missing"),
        ),
    )
    return pair("rvq", reference, SpeechCodec(), [wave], truth, port_inputs=[wave.transpose(0, 2, 1)], edits=edits, more=more,
                transposed=("decoder.2.convtr", "decoder.5.convtr"))  # fmt: skip
