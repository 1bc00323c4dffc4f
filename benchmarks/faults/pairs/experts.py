"""A decoder of experts with a cache: routed experts and a shared one, fused gate and up projections, queries normed, token by token."""

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

VOCABULARY, WIDTH, HEADS, GROUPS, HEAD, EXPERTS, TOP, HIDDEN = 29, 16, 4, 2, 6, 4, 2, 10


class Norm(nn.Module):
    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    x1, x2 = x.chunk(2, -1)
    return torch.cat((-x2, x1), -1)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(WIDTH, HEADS * HEAD, bias=False), nn.Linear(WIDTH, GROUPS * HEAD, bias=False)
        self.v_proj, self.o_proj = nn.Linear(WIDTH, GROUPS * HEAD, bias=False), nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.q_norm, self.k_norm = Norm(HEAD), Norm(HEAD)

    def forward(self, x: torch.Tensor, past: tuple[torch.Tensor, torch.Tensor] | None) -> tuple[torch.Tensor, Any]:
        batch, length, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(batch, length, HEADS, HEAD)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(batch, length, GROUPS, HEAD)).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, GROUPS, HEAD).transpose(1, 2)
        start = 0 if past is None else past[0].shape[2]
        inverse = 1.0 / 1000.0 ** (torch.arange(0, HEAD, 2).float() / HEAD)
        angles = torch.outer(torch.arange(start, start + length).float(), inverse)
        cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        scores = q @ k.repeat_interleave(HEADS // GROUPS, 1).transpose(2, 3) / HEAD**0.5
        causal = torch.full((length, k.shape[2]), float("-inf")).triu(start + 1)
        weights = F.softmax(scores + causal, -1, dtype=torch.float32)
        y = (weights @ v.repeat_interleave(HEADS // GROUPS, 1)).transpose(1, 2).reshape(batch, length, -1)
        return self.o_proj(y), (k, v)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(WIDTH, 2 * HIDDEN, bias=False), nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class SparseMoE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts, self.shared_expert = nn.ModuleList([Expert() for _ in range(EXPERTS)]), Expert()
        self.shared_expert_gate = nn.Linear(WIDTH, 1, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        x = hidden.reshape(-1, WIDTH)
        probabilities = F.softmax(self.gate(x), -1)
        weights, chosen = torch.topk(probabilities, TOP, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        every = torch.stack([expert(x) for expert in self.experts], 1)
        routed = (every.gather(1, chosen[..., None].expand(-1, -1, WIDTH)) * weights[..., None]).sum(1)
        return (routed + torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)).reshape(hidden.shape)


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(WIDTH), Norm(WIDTH)
        self.self_attn, self.mlp = SelfAttention(), SparseMoE()

    def forward(self, x: torch.Tensor, past: Any) -> tuple[torch.Tensor, Any]:
        y, past = self.self_attn(self.input_layernorm(x), past)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), past


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers, self.norm = nn.ModuleList([DecoderLayer() for _ in range(2)]), Norm(WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        past: list[Any] = [None] * len(self.layers)
        logits = []
        for piece in (ids[:, :5], ids[:, 5:6], ids[:, 6:7]):
            x = self.embed_tokens(piece) * WIDTH**0.5
            for i, layer in enumerate(self.layers):
                x, past[i] = layer(x, past[i])
            logits.append(torch.tanh(self.norm(x) @ self.embed_tokens.weight.T / 30.0) * 30.0)
        return torch.cat(logits, 1)


class Cache:
    def __init__(self) -> None:
        self.keys, self.values, self.offset = None, None, 0

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.keys is not None:
            keys, values = mx.concatenate([self.keys, keys], axis=2), mx.concatenate([self.values, values], axis=2)
        self.keys, self.values, self.offset = keys, values, keys.shape[2]
        return keys, values


class Attention(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk = mnn.Linear(WIDTH, HEADS * HEAD, bias=False), mnn.Linear(WIDTH, GROUPS * HEAD, bias=False)
        self.wv, self.wo = mnn.Linear(WIDTH, GROUPS * HEAD, bias=False), mnn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.q_ln, self.k_ln = mnn.RMSNorm(HEAD, eps=1e-6), mnn.RMSNorm(HEAD, eps=1e-6)

    def __call__(self, x: mx.array, cache: Cache) -> mx.array:
        b, t, _ = x.shape
        q = self.q_ln(self.wq(x).reshape(b, t, HEADS, HEAD)).transpose(0, 2, 1, 3)
        k = self.k_ln(self.wk(x).reshape(b, t, GROUPS, HEAD)).transpose(0, 2, 1, 3)
        v = self.wv(x).reshape(b, t, GROUPS, HEAD).transpose(0, 2, 1, 3)
        offset = cache.offset
        q = mx.fast.rope(q, HEAD, traditional=False, base=1000.0, scale=1.0, offset=offset)
        k = mx.fast.rope(k, HEAD, traditional=False, base=1000.0, scale=1.0, offset=offset)
        k, v = cache.update(k, v)
        mask = "causal" if t > 1 else None
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=HEAD**-0.5, mask=mask)
        return self.wo(y.transpose(0, 2, 1, 3).reshape(b, t, -1))


class GLU(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up, self.down = mnn.Linear(WIDTH, 2 * HIDDEN, bias=False), mnn.Linear(HIDDEN, WIDTH, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        g, u = mx.split(self.gate_up(x), 2, axis=-1)
        return self.down(mnn.silu(g) * u)


class Routed(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = mnn.Linear(WIDTH, EXPERTS, bias=False)
        self.all_experts, self.shared = [GLU() for _ in range(EXPERTS)], GLU()
        self.shared_gate = mnn.Linear(WIDTH, 1, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        probabilities = mx.softmax(self.router(x), axis=-1)
        chosen = mx.argsort(-probabilities, axis=-1)[..., :TOP]
        weights = mx.take_along_axis(probabilities, chosen, axis=-1)
        weights = weights / mx.sum(weights, axis=-1, keepdims=True)
        every = mx.stack([expert(x) for expert in self.all_experts], axis=-2)
        y = mx.sum(mx.take_along_axis(every, chosen[..., None], axis=-2) * weights[..., None], axis=-2)
        return y + mx.sigmoid(self.shared_gate(x)) * self.shared(x)


class Layer(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_attn, self.ln_mlp = mnn.RMSNorm(WIDTH, eps=1e-6), mnn.RMSNorm(WIDTH, eps=1e-6)
        self.attention, self.feed_forward = Attention(), Routed()

    def __call__(self, x: mx.array, cache: Cache) -> mx.array:
        h = x + self.attention(self.ln_attn(x), cache)
        return h + self.feed_forward(self.ln_mlp(h))


class PortExperts(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = mnn.Embedding(VOCABULARY, WIDTH)
        self.h, self.ln_f = [Layer() for _ in range(2)], mnn.RMSNorm(WIDTH, eps=1e-6)

    def __call__(self, ids: mx.array) -> mx.array:
        caches = [Cache() for _ in self.h]
        out = []
        for piece in (ids[:, :5], ids[:, 5:6], ids[:, 6:7]):
            x = self.wte(piece) * WIDTH**0.5
            for layer, cache in zip(self.h, caches, strict=True):
                x = layer(x, cache)
            out.append(mx.tanh(self.wte.as_linear(self.ln_f(x)) / 30.0) * 30.0)
        return mx.concatenate(out, axis=1)


def make(seed: int = 0) -> Any:
    truth = {
        "": "", "embed_tokens": "wte", "norm": "ln_f", "layers.*": "h.*", "layers.*.input_layernorm": "h.*.ln_attn",
        "layers.*.post_attention_layernorm": "h.*.ln_mlp", "layers.*.self_attn": "h.*.attention", "layers.*.mlp": "h.*.feed_forward",
        "layers.*.mlp.gate": "h.*.feed_forward.router", "layers.*.mlp.shared_expert_gate": "h.*.feed_forward.shared_gate",
        "layers.*.self_attn.q_norm": "h.*.attention.q_ln", "layers.*.self_attn.k_norm": "h.*.attention.k_ln",
    }  # fmt: skip
    truth |= {f"layers.*.self_attn.{one}_proj": f"h.*.attention.w{one}" for one in "qkvo"}
    for ours, theirs in (("experts.*", "all_experts.*"), ("shared_expert", "shared")):
        truth |= {
            f"layers.*.mlp.{ours}": f"h.*.feed_forward.{theirs}",
            f"layers.*.mlp.{ours}.gate_up_proj": f"h.*.feed_forward.{theirs}.gate_up",
            f"layers.*.mlp.{ours}.down_proj": f"h.*.feed_forward.{theirs}.down",
        }
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (2, 7))
    edits = (
        Edit("order.roles", "h.0.feed_forward.shared", "__call__", "g, u = mx.split", "u, g = mx.split", also=("order.concat",)),
        Edit("position.offset", "h.0.attention", "__call__", "offset = cache.offset", "offset = 0", also=("cache",)),
        Edit("rope.variant", "h.1.attention", "__call__", "rope(q, HEAD, traditional=False", "rope(q, HEAD, traditional=True"),
        Edit("mask.missing", "h.0.attention", "__call__", "mask=mask", "mask=None"),
        Edit("scale", "h.0.feed_forward", "__call__", "weights = weights / mx.sum(weights, axis=-1, keepdims=True)", "pass",
             also=("branch.missing",)),
        Edit("branch.missing", "h.1.feed_forward", "__call__", "mx.sigmoid(self.shared_gate(x)) * self.shared(x)", "self.shared(x)",
             also=("scale",)),
        Edit("scale", "", "__call__", "x = self.wte(piece) * WIDTH**0.5", "x = self.wte(piece)"),
        Edit("branch.missing", "", "__call__", "mx.tanh(self.wte.as_linear(self.ln_f(x)) / 30.0) * 30.0",
             "self.wte.as_linear(self.ln_f(x))", also=("activation", "clamp")),
        Edit("order.roles", "h.1", "__call__", "self.attention(self.ln_attn(x), cache)", "self.attention(self.ln_mlp(x), cache)",
             also=("norm.placement",)),
        Edit("residual.missing", "h.0", "__call__", "return h + self.feed_forward", "return x + self.feed_forward",
             also=("branch.missing",)),
        Edit("activation", "h.1.feed_forward.shared", "__call__", "mnn.silu(g)", "mnn.gelu(g)"),
        Edit("scale", "h.1.attention", "__call__", "scale=HEAD**-0.5", "scale=WIDTH**-0.5"),
    )  # fmt: skip
    return pair("experts", perturb(Experts(), seed), PortExperts(), [ids], truth, edits=edits)
