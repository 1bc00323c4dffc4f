"""Two towers that meet in one space: patches with a class token and registers, text pooled at its last token, a temperature."""

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

WIDTH, HEADS, LAYERS, VOCABULARY, SPACE, REGISTERS = 24, 3, 2, 30, 16, 2


class QuickGelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), QuickGelu(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class VisionTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 4, stride=4, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(WIDTH))
        self.register_tokens = nn.Parameter(torch.zeros(REGISTERS, WIDTH))
        self.positional_embedding = nn.Parameter(torch.zeros(10, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.resblocks = nn.ModuleList([EncoderLayer() for _ in range(LAYERS)])
        self.proj = nn.Linear(WIDTH, SPACE, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
        x = self.ln_pre(x)
        for block in self.resblocks:
            x = block(x)
        return self.proj(self.ln_post(x[:, 0]))


class TextTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_embedding, self.positional_embedding = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(12, WIDTH)
        self.resblocks = nn.ModuleList([EncoderLayer() for _ in range(LAYERS)])
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Linear(WIDTH, SPACE, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        x = self.token_embedding(ids) + self.positional_embedding(torch.arange(length))
        mask = torch.full((length, length), float("-inf")).triu(1)
        for block in self.resblocks:
            x = block(x, mask)
        return self.text_projection(self.ln_final(x)[torch.arange(len(ids)), ids.argmax(-1)])


class Clip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual, self.text = VisionTower(), TextTower()
        self.logit_scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        one, other = (nn.functional.normalize(x, dim=-1) for x in (self.visual(image), self.text(ids)))
        return self.logit_scale.exp() * one @ other.T


class Attention(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (mnn.Linear(WIDTH, WIDTH) for _ in range(4))

    def __call__(self, x: mx.array, mask: Any = None) -> mx.array:
        B, L, _ = x.shape
        q, k, v = (p(x).reshape(B, L, HEADS, -1).transpose(0, 2, 1, 3) for p in (self.q_proj, self.k_proj, self.v_proj))
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=(WIDTH // HEADS) ** -0.5, mask=mask)
        return self.out_proj(y.transpose(0, 2, 1, 3).reshape(B, L, -1))


class Mlp(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = mnn.Linear(WIDTH, 4 * WIDTH), mnn.Linear(4 * WIDTH, WIDTH)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(mnn.gelu_fast_approx(self.fc1(x)))


class Layer(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), Mlp()
        self.layer_norm1, self.layer_norm2 = mnn.LayerNorm(WIDTH), mnn.LayerNorm(WIDTH)

    def __call__(self, x: mx.array, mask: Any = None) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class PortVision(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = mnn.Conv2d(3, WIDTH, 4, stride=4, bias=False)
        self.cls, self.registers, self.positions = mx.zeros((WIDTH,)), mx.zeros((REGISTERS, WIDTH)), mx.zeros((10, WIDTH))
        self.pre_layrnorm, self.post_layernorm = mnn.LayerNorm(WIDTH), mnn.LayerNorm(WIDTH)
        self.layers = [Layer() for _ in range(LAYERS)]

    def __call__(self, image: mx.array) -> mx.array:
        x = self.patch_embedding(image)
        B = x.shape[0]
        x = x.reshape(B, -1, WIDTH)
        x = mx.concatenate([mx.broadcast_to(self.cls, (B, 1, WIDTH)), x], axis=1) + self.positions
        registers = mx.broadcast_to(self.registers, (B, REGISTERS, WIDTH))
        x = mx.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
        x = self.pre_layrnorm(x)
        for layer in self.layers:
            x = layer(x)
        return self.post_layernorm(x[:, 0])


class PortText(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_embedding, self.position_embedding = mnn.Embedding(VOCABULARY, WIDTH), mnn.Embedding(12, WIDTH)
        self.layers = [Layer() for _ in range(LAYERS)]
        self.final_layer_norm = mnn.LayerNorm(WIDTH)

    def __call__(self, ids: mx.array) -> mx.array:
        x = self.token_embedding(ids) + self.position_embedding(mx.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x, "causal")
        return self.final_layer_norm(x)[mx.arange(ids.shape[0]), mx.argmax(ids, axis=-1)]


class PortClip(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_model, self.text_model = PortVision(), PortText()
        self.visual_projection, self.text_projection = mnn.Linear(WIDTH, SPACE, bias=False), mnn.Linear(WIDTH, SPACE, bias=False)
        self.logit_scale = mx.zeros(())

    def __call__(self, image: mx.array, ids: mx.array) -> mx.array:
        one = self.visual_projection(self.vision_model(image))
        other = self.text_projection(self.text_model(ids))
        one = one / mx.linalg.norm(one, axis=-1, keepdims=True)
        other = other / mx.linalg.norm(other, axis=-1, keepdims=True)
        return mx.exp(self.logit_scale) * one @ other.T


def make(seed: int = 0) -> Any:
    truth = {
        "": "",
        "visual": "vision_model",
        "text": "text_model",
        "visual.conv1": "vision_model.patch_embedding",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "visual.proj": "visual_projection",
        "text.text_projection": "text_projection",
        "text.token_embedding": "text_model.token_embedding",
        "text.positional_embedding": "text_model.position_embedding",
        "text.ln_final": "text_model.final_layer_norm",
    }
    for ours, theirs in (("visual", "vision_model"), ("text", "text_model")):
        for one, other in (
            ("", ""),
            (".ln_1", ".layer_norm1"),
            (".ln_2", ".layer_norm2"),
            (".attn", ".self_attn"),
            (".mlp", ".mlp"),
            (".mlp.0", ".mlp.fc1"),
            (".mlp.2", ".mlp.fc2"),
        ):
            truth[f"{ours}.resblocks.*{one}"] = f"{theirs}.layers.*{other}"
    reference = perturb(Clip(), seed)
    state = {name: value.detach().numpy() for name, value in reference.state_dict().items()}
    more = {
        "logit_scale": state["logit_scale"],
        "vision_model.cls": state["visual.class_embedding"],
        "vision_model.registers": state["visual.register_tokens"],
        "vision_model.positions": state["visual.positional_embedding"],
    }
    for ours, theirs in (("visual", "vision_model"), ("text", "text_model")):
        for layer in range(LAYERS):
            for kind in ("weight", "bias"):
                parts = np.split(state[f"{ours}.resblocks.{layer}.attn.in_proj_{kind}"], 3)
                more |= {f"{theirs}.layers.{layer}.self_attn.{one}_proj.{kind}": part for one, part in zip("qkv", parts, strict=True)}
                more[f"{theirs}.layers.{layer}.self_attn.out_proj.{kind}"] = state[f"{ours}.resblocks.{layer}.attn.out_proj.{kind}"]
    random = np.random.default_rng(seed)
    image = random.standard_normal((2, 3, 12, 12)).astype(np.float32)
    ids = random.integers(0, VOCABULARY - 1, (2, 7))
    ids[0, 4] = ids[1, 6] = VOCABULARY - 1
    V, T = "vision_model", "text_model"
    edits = (
        Edit("mask.missing", T, "__call__", 'layer(x, "causal")', "layer(x)"),
        Edit("length", T, "__call__", "mx.argmax(ids, axis=-1)]", "-1]", also=("position.offset", "unknown")),
        Edit("position.missing", T, "__call__", " + self.position_embedding(mx.arange(ids.shape[1]))", "", also=("branch.missing",)),
        Edit("position.missing", V, "__call__", " + self.positions", "", also=("branch.missing",)),
        Edit("order.concat", V, "__call__", "[x[:, :1], registers, x[:, 1:]]", "[x, registers]", also=("order.roles", "order.reversed")),
        Edit("norm.missing", V, "__call__", "x = self.pre_layrnorm(x)\n", "x = x\n"),
        Edit("norm.missing", V, "__call__", "self.post_layernorm(x[:, 0])", "x[:, 0]"),
        Edit(
            "length", V, "__call__", "self.post_layernorm(x[:, 0])", "self.post_layernorm(x.mean(axis=1))", also=("unknown", "order.roles")
        ),
        Edit("activation", f"{V}.layers.1.mlp", "__call__", "gelu_fast_approx", "gelu"),
        Edit("activation", f"{T}.layers.0.mlp", "__call__", "gelu_fast_approx", "silu"),
        Edit(
            "norm.placement",
            f"{T}.layers.1",
            "__call__",
            "self.mlp(self.layer_norm2(x))",
            "self.mlp(self.layer_norm1(x))",
            also=("order.roles",),
        ),
        Edit("residual.missing", f"{V}.layers.0", "__call__", "return x + self.mlp", "return self.mlp", also=("branch.missing",)),
        Edit(
            "heads.layout",
            f"{V}.layers.1.self_attn",
            "__call__",
            "p(x).reshape(B, L, HEADS, -1).transpose(0, 2, 1, 3)",
            "p(x).reshape(B, L, -1, HEADS).transpose(0, 3, 1, 2)",
        ),
        Edit("scale", f"{T}.layers.1.self_attn", "__call__", "(WIDTH // HEADS) ** -0.5", "WIDTH ** -0.5", also=("attention.scale",)),
        Edit("scale", "", "__call__", "mx.exp(self.logit_scale)", "self.logit_scale", also=("units.log",)),
        Edit("norm.missing", "", "__call__", "other / mx.linalg.norm(other, axis=-1, keepdims=True)", "other", also=("scale",)),
        Edit("order.roles", "", "__call__", "one @ other.T", "other @ one.T", also=("layout", "weights.layout", "order.axes")),
        Edit(
            "order.axes",
            V,
            "__call__",
            "x.reshape(B, -1, WIDTH)",
            "x.swapaxes(1, 2).reshape(B, -1, WIDTH)",
            also=("order.channels", "order.reversed", "weights.layout", "order.roles"),
        ),
    )
    without = ("class_embedding", "register_tokens", "positional_embedding", "logit_scale", "in_proj_weight", "in_proj_bias")
    return pair(
        "clip",
        reference,
        PortClip(),
        [image, ids],
        truth,
        port_inputs=[image.transpose(0, 2, 3, 1), ids],
        edits=edits,
        more=more,
        without=without,
    )
