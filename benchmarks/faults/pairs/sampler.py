"""A LLaMA-like token model that generates: rotary positions, grouped heads, a cache of keys and values, guidance by two prompts."""

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

WIDTH, HEADS, GROUPS, LAYERS, VOCABULARY, STEPS = 24, 4, 2, 2, 40, 4
HEAD = WIDTH // HEADS


def rotated(x: torch.Tensor, start: int) -> torch.Tensor:
    """Rotary positions over halves of the channels; ``x``: (batch, heads, length, channels)."""
    frequencies = 10000 ** (-torch.arange(0, HEAD, 2) / HEAD)
    angles = torch.arange(start, start + x.shape[2])[:, None] * frequencies
    one, other = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)


class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Linear(WIDTH, WIDTH, bias=False)
        self.wk = nn.Linear(WIDTH, GROUPS * HEAD, bias=False)
        self.wv = nn.Linear(WIDTH, GROUPS * HEAD, bias=False)
        self.wo = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, cache: list[torch.Tensor]) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in (self.wq(x), self.wk(x), self.wv(x)))
        start = cache[0].shape[2] if cache else 0
        q, k = rotated(q, start), rotated(k, start)
        if cache:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        cache[:] = [k, v]
        k, v = (part.repeat_interleave(HEADS // GROUPS, 1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=start == 0)
        return self.wo(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.attention = RmsNorm(), SelfAttention()
        self.ffn_norm = RmsNorm()
        self.feed_forward = nn.ModuleDict(
            {name: nn.Linear(*sizes, bias=False) for name, sizes in (("w1", (WIDTH, 48)), ("w3", (WIDTH, 48)), ("w2", (48, WIDTH)))}
        )

    def forward(self, x: torch.Tensor, cache: list[torch.Tensor]) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), cache)
        feed, h = self.feed_forward, self.ffn_norm(x)
        return x + feed["w2"](F.silu(feed["w1"](h)) * feed["w3"](h))


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([Layer() for _ in range(LAYERS)])
        self.norm = RmsNorm()
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """``ids``: (2, length), the prompt with and without its condition."""
        caches: list[list[torch.Tensor]] = [[] for _ in self.layers]
        tokens = []
        for _ in range(STEPS):
            x = self.tok_embeddings(ids)
            for layer, cache in zip(self.layers, caches, strict=True):
                x = layer(x, cache)
            logits = self.output(self.norm(x[:, -1:]))
            guided = logits[1:] + 1.5 * (logits[:1] - logits[1:])
            tokens.append(torch.argmax(guided / 0.8, -1))
            ids = tokens[-1].expand(2, 1)
        return torch.cat(tokens, 1)


class Attention(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = mnn.Linear(WIDTH, WIDTH, bias=False)
        self.k_proj = mnn.Linear(WIDTH, GROUPS * HEAD, bias=False)
        self.v_proj = mnn.Linear(WIDTH, GROUPS * HEAD, bias=False)
        self.o_proj = mnn.Linear(WIDTH, WIDTH, bias=False)
        self.rope = mnn.RoPE(HEAD, traditional=False, base=10000)

    def __call__(self, x: mx.array, mask: Any, cache: dict[str, mx.array]) -> mx.array:
        batch, length, _ = x.shape
        q = self.q_proj(x).reshape(batch, length, HEADS, HEAD).transpose(0, 2, 1, 3)
        k = self.k_proj(x).reshape(batch, length, GROUPS, HEAD).transpose(0, 2, 1, 3)
        v = self.v_proj(x).reshape(batch, length, GROUPS, HEAD).transpose(0, 2, 1, 3)
        offset = cache["k"].shape[2] if cache else 0
        q, k = self.rope(q, offset=offset), self.rope(k, offset=offset)
        if cache:
            k, v = mx.concatenate([cache["k"], k], axis=2), mx.concatenate([cache["v"], v], axis=2)
        cache.update(k=k, v=v)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=HEAD**-0.5, mask=mask)
        return self.o_proj(y.transpose(0, 2, 1, 3).reshape(batch, length, -1))


class Mlp(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = mnn.Linear(WIDTH, 48, bias=False)
        self.up_proj = mnn.Linear(WIDTH, 48, bias=False)
        self.down_proj = mnn.Linear(48, WIDTH, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(mnn.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), Mlp()
        self.input_layernorm, self.post_attention_layernorm = mnn.RMSNorm(WIDTH), mnn.RMSNorm(WIDTH)

    def __call__(self, x: mx.array, mask: Any, cache: dict[str, mx.array]) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = mnn.Embedding(VOCABULARY, WIDTH)
        self.layers = [DecoderLayer() for _ in range(LAYERS)]
        self.norm = mnn.RMSNorm(WIDTH)

    def __call__(self, ids: mx.array, caches: list[dict[str, mx.array]]) -> mx.array:
        x = self.embed_tokens(ids)
        mask = "causal" if ids.shape[1] > 1 else None
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, mask, cache)
        return self.norm(x)


class PortGenerator(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Backbone()
        self.lm_head = mnn.Linear(WIDTH, VOCABULARY, bias=False)

    def guided(self, logits: mx.array) -> mx.array:
        conditional, unconditional = mx.split(logits, 2, axis=0)
        return unconditional + 1.5 * (conditional - unconditional)

    def __call__(self, ids: mx.array) -> mx.array:
        caches: list[dict[str, mx.array]] = [{} for _ in range(LAYERS)]
        tokens = []
        for _ in range(STEPS):
            hidden = self.model(ids, caches)
            logits = self.lm_head(hidden[:, -1:])
            tokens.append(mx.argmax(self.guided(logits) / 0.8, axis=-1))
            ids = mx.broadcast_to(tokens[-1], (2, 1))
        return mx.concatenate(tokens, axis=1)


def make(seed: int = 0) -> Any:
    truth = {"": "", "tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head", "layers.*": "model.layers.*"}
    for ours, theirs in (
        ("attention", "self_attn"), ("attention.wq", "self_attn.q_proj"), ("attention.wk", "self_attn.k_proj"),
        ("attention.wv", "self_attn.v_proj"), ("attention.wo", "self_attn.o_proj"), ("attention_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"), ("feed_forward.w1", "mlp.gate_proj"), ("feed_forward.w3", "mlp.up_proj"),
        ("feed_forward.w2", "mlp.down_proj"),
    ):  # fmt: skip
        truth[f"layers.*.{ours}"] = f"model.layers.*.{theirs}"
    ids = np.repeat(np.random.default_rng(seed).integers(0, VOCABULARY, (1, 6)), 2, 0)
    ids[1, :3] = 0
    edits = (
        Edit("cfg.formula", "", "guided", "unconditional + 1.5 *", "conditional + 1.5 *"),
        Edit(
            "order.roles",
            "",
            "guided",
            "conditional, unconditional = mx",
            "unconditional, conditional = mx",
            also=("cfg.formula", "order.channels"),
        ),
        Edit("cache", "model.layers.1.self_attn", "__call__", "cache.update(k=k, v=v)", "cache.update(k=k, v=v[:, :, ::-1])"),
        Edit(
            "cache",
            "model.layers.0.self_attn",
            "__call__",
            "cache.update(k=k, v=v)",
            "cache.update(k=k, v=v) if not cache else None",
            also=("position.offset",),
        ),
        Edit(
            "position.offset",
            "model.layers.1.self_attn",
            "__call__",
            'offset = cache["k"].shape[2] if cache else 0',
            "offset = 0",
            also=("cache",),
        ),
        Edit("mask.missing", "model", "__call__", '"causal" if ids.shape[1] > 1 else None', "None"),
        Edit("length", "", "__call__", "hidden[:, -1:]", "hidden[:, -2:][:, :1]", also=("cfg.formula", "position.offset", "unknown")),
    )
    return pair("sampler", perturb(Generator(), seed), PortGenerator(), [ids], truth, edits=edits)
