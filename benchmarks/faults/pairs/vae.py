"""An autoencoder with a drawn latent: group norms, attention over positions, bilinear upsampling; NCHW against NHWC."""

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

WIDTH, LATENT, SIDE, SCALING = 8, 4, 12, 0.18215


class ResnetBlock(nn.Module):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, ins, eps=1e-6), nn.Conv2d(ins, outs, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, outs, eps=1e-6), nn.Conv2d(outs, outs, 3, padding=1)
        self.nonlinearity = nn.SiLU()
        self.conv_shortcut = nn.Conv2d(ins, outs, 1) if ins != outs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(self.nonlinearity(self.norm1(x)))
        h = self.conv2(self.nonlinearity(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(4, channels, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels), nn.Dropout(0.0)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        y = self.group_norm(x.view(b, c, h * w)).transpose(1, 2)
        y = F.scaled_dot_product_attention(*(one(y)[:, None] for one in (self.to_q, self.to_k, self.to_v)))[:, 0]
        return x + self.to_out[0](y).transpose(1, 2).reshape(b, c, h, w)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.down = nn.ModuleList([ResnetBlock(WIDTH, WIDTH), Downsample(WIDTH), ResnetBlock(WIDTH, 2 * WIDTH)])
        self.mid_attn = Attention(2 * WIDTH)
        self.norm_out, self.conv_out = nn.GroupNorm(4, 2 * WIDTH, eps=1e-6), nn.Conv2d(2 * WIDTH, 2 * LATENT, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for layer in self.down:
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_attn(x))))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(LATENT, 2 * WIDTH, 3, padding=1)
        self.mid_attn = Attention(2 * WIDTH)
        self.up = nn.ModuleList([ResnetBlock(2 * WIDTH, WIDTH), Upsample(WIDTH), ResnetBlock(WIDTH, WIDTH)])
        self.norm_out, self.conv_out = nn.GroupNorm(4, WIDTH, eps=1e-6), nn.Conv2d(WIDTH, 3, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.mid_attn(self.conv_in(z))
        for layer in self.up:
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.quant_conv, self.post_quant_conv = nn.Conv2d(2 * LATENT, 2 * LATENT, 1), nn.Conv2d(LATENT, LATENT, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mean, logvar = self.quant_conv(self.encoder(image * 2 - 1)).chunk(2, dim=1)
        std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
        z = (mean + std * torch.randn(std.shape)) * SCALING
        image = self.decoder(self.post_quant_conv(z / SCALING))
        return (image / 2 + 0.5).clamp(0, 1)


# -- the port ------------------------------------------------------------------------------------------------------------------------------


class Residual(mnn.Module):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.n1, self.n2 = (mnn.GroupNorm(4, size, eps=1e-6, pytorch_compatible=True) for size in (ins, outs))
        self.c1, self.c2 = mnn.Conv2d(ins, outs, 3, padding=1), mnn.Conv2d(outs, outs, 3, padding=1)
        self.proj = mnn.Linear(ins, outs) if ins != outs else None

    def __call__(self, x: mx.array) -> mx.array:
        h = self.c1(mnn.silu(self.n1(x)))
        h = self.c2(mnn.silu(self.n2(h)))
        if self.proj is not None:
            x = self.proj(x)
        return x + h


class AttentionBlock(mnn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        self.norm = mnn.GroupNorm(4, dims, eps=1e-6, pytorch_compatible=True)
        self.q, self.k, self.v, self.o = (mnn.Linear(dims, dims) for _ in range(4))

    def __call__(self, x: mx.array) -> mx.array:
        b, h, w, c = x.shape
        y = self.norm(x).reshape(b, h * w, c)
        weights = mx.softmax((self.q(y) * c**-0.5) @ self.k(y).swapaxes(1, 2), axis=-1)
        return x + self.o(weights @ self.v(y)).reshape(b, h, w, c)


class VaeEncoder(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = mnn.Conv2d(3, WIDTH, 3, padding=1)
        self.res = [Residual(WIDTH, WIDTH), Residual(WIDTH, 2 * WIDTH)]
        self.downsample = mnn.Conv2d(WIDTH, WIDTH, 3, stride=2)
        self.attention = AttentionBlock(2 * WIDTH)
        self.norm = mnn.GroupNorm(4, 2 * WIDTH, eps=1e-6, pytorch_compatible=True)
        self.out = mnn.Conv2d(2 * WIDTH, 2 * LATENT, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.res[0](self.stem(x))
        x = mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])
        x = self.res[1](self.downsample(x))
        x = self.attention(x)
        return self.out(mnn.silu(self.norm(x)))


class VaeDecoder(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = mnn.Conv2d(LATENT, 2 * WIDTH, 3, padding=1)
        self.attention = AttentionBlock(2 * WIDTH)
        self.res = [Residual(2 * WIDTH, WIDTH), Residual(WIDTH, WIDTH)]
        self.upsample_conv = mnn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.norm = mnn.GroupNorm(4, WIDTH, eps=1e-6, pytorch_compatible=True)
        self.out = mnn.Conv2d(WIDTH, 3, 3, padding=1)

    def lerp(self, x: mx.array, axis: int) -> mx.array:
        """Twice as long along an axis, between the centres of neighbours."""
        size = x.shape[axis]
        before = mx.take(x, mx.maximum(mx.arange(size) - 1, 0), axis=axis)
        after = mx.take(x, mx.minimum(mx.arange(size) + 1, size - 1), axis=axis)
        both = mx.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis + 1)
        return both.flatten(axis, axis + 1)

    def __call__(self, z: mx.array) -> mx.array:
        x = self.attention(self.stem(z))
        x = self.res[0](x)
        x = self.upsample_conv(self.lerp(self.lerp(x, 1), 2))
        x = self.res[1](x)
        return self.out(mnn.silu(self.norm(x)))


class KlAutoencoder(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = VaeEncoder(), VaeDecoder()
        self.quant_proj, self.post_quant_proj = mnn.Linear(2 * LATENT, 2 * LATENT), mnn.Linear(LATENT, LATENT)

    def encode(self, image: mx.array) -> mx.array:
        moments = self.quant_proj(self.enc(image * 2 - 1))
        mean, logvar = mx.split(moments, 2, axis=-1)
        std = mx.exp(0.5 * mx.clip(logvar, -30.0, 20.0))
        b, h, w, c = mean.shape
        noise = mx.random.normal((b, c, h, w)).transpose(0, 2, 3, 1).astype(std.dtype)
        return (mean + std * noise) * SCALING

    def decode(self, z: mx.array) -> mx.array:
        image = self.dec(self.post_quant_proj(z / SCALING))
        return mx.clip(image / 2 + 0.5, 0, 1)

    def __call__(self, image: mx.array) -> mx.array:
        return self.decode(self.encode(image))


def make(seed: int = 0) -> Any:
    res = {"": "", ".norm1": ".n1", ".conv1": ".c1", ".norm2": ".n2", ".conv2": ".c2", ".conv_shortcut": ".proj"}
    attn = {"": "", ".group_norm": ".norm", ".to_q": ".q", ".to_k": ".k", ".to_v": ".v", ".to_out.0": ".o"}
    truth = {"": "", "encoder": "enc", "decoder": "dec", "quant_conv": "quant_proj", "post_quant_conv": "post_quant_proj",
             "encoder.down.1": "enc.downsample", "encoder.down.1.conv": "enc.downsample", "decoder.up.1": "dec.upsample_conv",
             "decoder.up.1.conv": "dec.upsample_conv"}  # fmt: skip
    for ours, theirs in (("encoder", "enc"), ("decoder", "dec")):
        truth |= {f"{ours}.conv_in": f"{theirs}.stem", f"{ours}.norm_out": f"{theirs}.norm", f"{ours}.conv_out": f"{theirs}.out"}
        truth |= {f"{ours}.mid_attn{a}": f"{theirs}.attention{b}" for a, b in attn.items()}
        for i in range(2):
            truth |= {f"{ours}.{'down' if ours == 'encoder' else 'up'}.{2 * i}{a}": f"{theirs}.res.{i}{b}" for a, b in res.items()}
    reference = perturb(Autoencoder(), seed)
    with torch.no_grad():
        reference.quant_conv.weight[LATENT:] *= 0.3
        reference.encoder.conv_out.weight *= 0.4
        reference.decoder.conv_out.weight *= 0.5
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    more = {f"{theirs}.weight": state[f"{ours}.weight"][..., 0, 0] for ours, theirs in (
        ("quant_conv", "quant_proj"), ("post_quant_conv", "post_quant_proj"), ("encoder.down.2.conv_shortcut", "enc.res.1.proj"),
        ("decoder.up.0.conv_shortcut", "dec.res.0.proj"))}  # fmt: skip
    image = np.random.default_rng(seed).random((2, 3, SIDE, SIDE)).astype(np.float32)
    block = "dec.res.0"
    edits = (
        Edit(
            "scale",
            "",
            "encode",
            "mx.exp(0.5 * mx.clip(logvar, -30.0, 20.0))",
            "mx.exp(mx.clip(logvar, -30.0, 20.0))",
            also=("activation", "units.log", "random"),
        ),
        Edit("order.roles", "", "encode", "mean, logvar = ", "logvar, mean = ", also=("order.channels",)),
        Edit("scale", "", "encode", "image * 2 - 1", "image", also=("units.log", "branch.missing")),
        Edit("random", "", "encode", "(mean + std * noise)", "mean", also=("branch.missing",)),
        Edit("random", "", "encode", "(mean + std * noise)", "(mean + noise)", also=("scale", "branch.missing")),
        Edit("scale", "", "encode", "(mean + std * noise) * SCALING", "mean + std * noise"),
        Edit("scale", "", "decode", "image / 2 + 0.5", "image / 2"),
        Edit("clamp", "", "decode", "mx.clip(image / 2 + 0.5, 0, 1)", "image / 2 + 0.5"),
        Edit("clamp", "", "decode", "0, 1)", "-1, 1)"),
        Edit(
            "padding.shift",
            "enc",
            "__call__",
            "mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])",
            "mx.pad(x, [(0, 0), (1, 0), (1, 0), (0, 0)])",
            also=("padding.mode",),
        ),
        Edit("activation", "enc", "__call__", "self.out(mnn.silu(self.norm(x)))", "self.out(self.norm(x))"),
        Edit("branch.missing", "enc", "__call__", "x = self.attention(x)", "pass"),
        Edit("transform", "dec", "__call__", "self.lerp(self.lerp(x, 1), 2)", "mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)"),
        Edit(
            "transform",
            "dec",
            "lerp",
            "mx.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis + 1)",
            "mx.stack([x, 0.5 * x + 0.5 * after], axis=axis + 1)",
        ),
        Edit("activation", block, "__call__", "self.c1(mnn.silu(self.n1(x)))", "self.c1(self.n1(mnn.silu(x)))", also=("norm.placement",)),
        Edit("residual.missing", "dec.res.1", "__call__", "return x + h", "return h"),
        Edit("branch.extra", "dec.res.1", "__call__", "return x + h", "return x + x + h", also=("scale",)),
        Edit("order.roles", block, "__call__", "x = self.proj(x)", "x = self.proj(self.n1(x))", also=("norm.placement",)),
        Edit("scale", "enc.attention", "__call__", "(self.q(y) * c**-0.5)", "self.q(y)"),
        Edit("heads.layout", "dec.attention", "__call__", "axis=-1)", "axis=1)"),
        Edit("norm.missing", "dec.attention", "__call__", "self.norm(x).reshape(b, h * w, c)", "x.reshape(b, h * w, c)"),
        Edit(
            "order.channels",
            "dec.attention",
            "__call__",
            ".reshape(b, h, w, c)",
            ".swapaxes(1, 2).reshape(b, c, h, w).transpose(0, 3, 2, 1)",
            also=("heads.layout", "order.reversed"),
        ),
    )
    return pair("vae", reference, KlAutoencoder(), [image], truth, port_inputs=[image.transpose(0, 2, 3, 1)], edits=edits, more=more)
