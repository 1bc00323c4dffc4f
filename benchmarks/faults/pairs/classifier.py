"""A text classifier: linear biases in the place of positions, projections fused head by head, experts, the last real token pooled."""

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

WIDTH, HEADS, HEAD, LAYERS, VOCABULARY, FEED, EXPERTS, CHOSEN, LABELS = 32, 4, 8, 2, 45, 40, 4, 2, 3


class BloomAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, alibi: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        fused = self.query_key_value(x).view(*x.shape[:2], HEADS, 3, HEAD)
        q, k, v = (fused[..., place, :].transpose(1, 2) for place in range(3))
        scores = (alibi + q @ k.transpose(-1, -2) * HEAD**-0.5).masked_fill(mask, torch.finfo(x.dtype).min)
        return self.dense((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (
            nn.Linear(WIDTH, FEED, bias=False),
            nn.Linear(FEED, WIDTH, bias=False),
            nn.Linear(WIDTH, FEED, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class SparseFeed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList([Expert() for _ in range(EXPERTS)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, WIDTH)
        weights, chosen = self.gate(flat).softmax(-1).topk(CHOSEN, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        made = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows, places = torch.where(chosen == number)
            made.index_add_(0, rows, expert(flat[rows]) * weights[rows, places, None])
        return made.view_as(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attention, self.moe = BloomAttention(), SparseFeed()

    def forward(self, x: torch.Tensor, alibi: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attention(self.input_layernorm(x), alibi, mask)
        return x + self.moe(self.post_attention_layernorm(x))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.word_embeddings_layernorm = nn.LayerNorm(WIDTH)
        self.h = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.ln_f = nn.LayerNorm(WIDTH)
        self.score = nn.Linear(WIDTH, LABELS, bias=False)

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        slopes = 2.0 ** (-8.0 * torch.arange(1, HEADS + 1) / HEADS)
        places = (attention_mask.cumsum(-1) - 1) * attention_mask
        alibi = slopes[None, :, None, None] * places[:, None, None, :]
        length = ids.shape[1]
        mask = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)[None, None] | (attention_mask == 0)[:, None, None]
        x = self.word_embeddings_layernorm(self.word_embeddings(ids))
        for block in self.h:
            x = block(x, alibi, mask)
        logits = self.score(self.ln_f(x))
        return logits[torch.arange(len(ids)), attention_mask.sum(-1) - 1]


class Attention(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = mnn.Linear(WIDTH, 3 * WIDTH), mnn.Linear(WIDTH, WIDTH)
        self.scale = HEAD**-0.5

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        B, L, _ = x.shape
        q, k, v = mx.split(self.qkv(x).reshape(B, L, HEADS, 3 * HEAD).transpose(0, 2, 1, 3), 3, axis=-1)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=bias)
        return self.out(y.transpose(0, 2, 1, 3).reshape(B, L, -1))


class Experts(mnn.Module):
    """All experts' weights in one, each token's own taken out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.router = mnn.Linear(WIDTH, EXPERTS, bias=False)
        self.gate_proj, self.up_proj, self.down_proj = (
            mx.zeros((EXPERTS, FEED, WIDTH)),
            mx.zeros((EXPERTS, FEED, WIDTH)),
            mx.zeros((EXPERTS, WIDTH, FEED)),
        )

    def __call__(self, x: mx.array) -> mx.array:
        scores = mx.softmax(self.router(x), axis=-1)
        chosen = mx.argpartition(-scores, kth=CHOSEN - 1, axis=-1)[..., :CHOSEN]
        weights = mx.take_along_axis(scores, chosen, axis=-1)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        x = x[..., None, :, None]
        gate, up = self.gate_proj[chosen] @ x, self.up_proj[chosen] @ x
        made = (self.down_proj[chosen] @ (mnn.silu(gate) * up))[..., 0]
        return (made * weights[..., None]).sum(axis=-2)


class Layer(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = mnn.LayerNorm(WIDTH), mnn.LayerNorm(WIDTH)
        self.attention, self.experts = Attention(), Experts()

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        x = x + self.attention(self.ln_1(x), bias)
        return x + self.experts(self.ln_2(x))


class PortClassifier(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.ln_in = mnn.Embedding(VOCABULARY, WIDTH), mnn.LayerNorm(WIDTH)
        self.layers = [Layer() for _ in range(LAYERS)]
        self.ln_out = mnn.LayerNorm(WIDTH)
        self.labels = mnn.Linear(WIDTH, LABELS, bias=False)

    def bias(self, mask: mx.array, dtype: mx.Dtype) -> mx.array:
        slopes = 2.0 ** (-8.0 * mx.arange(1, HEADS + 1) / HEADS)
        places = (mx.cumsum(mask, axis=-1) - 1) * mask
        causal = mx.tril(mx.ones((mask.shape[1], mask.shape[1]), mx.bool_))
        allowed = causal[None, None] & (mask == 1)[:, None, None]
        return mx.where(allowed, slopes[None, :, None, None] * places[:, None, None, :], -1e9).astype(dtype)

    def __call__(self, ids: mx.array, mask: mx.array) -> mx.array:
        h = self.ln_in(self.wte(ids))
        bias = self.bias(mask, h.dtype)
        for layer in self.layers:
            h = layer(h, bias)
        last = mask.sum(axis=-1) - 1
        return self.labels(self.ln_out(h)[mx.arange(ids.shape[0]), last])


def make(seed: int = 0) -> Any:
    truth = {"": "", "word_embeddings": "wte", "word_embeddings_layernorm": "ln_in", "ln_f": "ln_out", "score": "labels", "h.*": "layers.*"}
    for ours, theirs in (
        ("input_layernorm", "ln_1"),
        ("post_attention_layernorm", "ln_2"),
        ("self_attention", "attention"),
        ("self_attention.query_key_value", "attention.qkv"),
        ("self_attention.dense", "attention.out"),
        ("moe", "experts"),
        ("moe.gate", "experts.router"),
    ):
        truth[f"h.*.{ours}"] = f"layers.*.{theirs}"
    fused = {"h.*.moe.experts.*": "layers.*.experts", "h.*.moe.experts.*.w1": "layers.*.experts"}
    reference = perturb(Classifier(), seed)
    state, more = reference.state_dict(), {}
    for layer in range(LAYERS):
        for ours, theirs in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
            more[f"layers.{layer}.experts.{theirs}"] = np.stack(
                [state[f"h.{layer}.moe.experts.{n}.{ours}.weight"].numpy() for n in range(EXPERTS)]
            )
    random = np.random.default_rng(seed)
    ids, mask = random.integers(1, VOCABULARY, (3, 9)), np.ones((3, 9), np.int64)
    mask[1, 6:] = 0
    mask[2, 7:] = 0
    ids = ids * mask
    E = "layers.1.experts"
    edits = (
        Edit("position.missing", "", "bias", "slopes[None, :, None, None] * places[:, None, None, :]", "0.0", also=("branch.missing",)),
        Edit("position", "", "bias", "-8.0 * mx.arange(1, HEADS + 1)", "-8.0 * mx.arange(HEADS)", also=("scale", "position.offset")),
        Edit("mask.missing", "", "bias", "causal[None, None] & (mask == 1)[:, None, None]", "causal[None, None]", also=("mask",)),
        Edit("mask", "", "bias", "mx.tril(", "mx.triu(", also=("mask.missing", "mask.polarity", "mask.wrong")),
        Edit(
            "heads.layout",
            "layers.0.attention",
            "__call__",
            "mx.split(self.qkv(x).reshape(B, L, HEADS, 3 * HEAD).transpose(0, 2, 1, 3), 3, axis=-1)",
            "mx.split(self.qkv(x).reshape(B, L, 3 * HEADS, HEAD).transpose(0, 2, 1, 3), 3, axis=1)",
            also=("order.channels", "weights.layout"),
        ),
        Edit("scale", "layers.1.attention", "__call__", "scale=self.scale", "scale=self.scale * self.scale", also=("attention.scale",)),
        Edit(
            "mask.missing",
            "layers.1",
            "__call__",
            "self.attention(self.ln_1(x), bias)",
            "self.attention(self.ln_1(x), None)",
            also=("position.missing",),
        ),
        Edit(
            "scale", E, "__call__", "weights = weights / weights.sum(axis=-1, keepdims=True)", "weights = weights", also=("norm.missing",)
        ),
        Edit("order", E, "__call__", "mx.argpartition(-scores", "mx.argpartition(scores", also=("order.roles",)),
        Edit("order.roles", E, "__call__", "mnn.silu(gate) * up", "mnn.silu(up) * gate"),
        Edit("activation", E, "__call__", "mnn.silu(gate)", "mnn.gelu(gate)"),
        Edit(
            "length",
            "",
            "__call__",
            "last = mask.sum(axis=-1) - 1",
            "last = mask.sum(axis=-1) * 0 + ids.shape[1] - 1",
            also=("position.offset", "unknown"),
        ),
        Edit("length", "", "__call__", "self.ln_out(h)[mx.arange(ids.shape[0]), last]", "self.ln_out(h).mean(axis=1)", also=("unknown",)),
        Edit("norm.missing", "", "__call__", "self.ln_in(self.wte(ids))", "self.wte(ids)"),
        Edit("norm.placement", "layers.0", "__call__", "self.experts(self.ln_2(x))", "self.experts(x)", also=("norm.missing",)),
        Edit("residual.missing", "layers.0", "__call__", "return x + self.experts", "return self.experts", also=("branch.missing",)),
        Edit(
            "precision",
            "layers.1.attention",
            "__call__",
            "q, k, v, scale",
            "q.astype(mx.bfloat16).astype(x.dtype), k, v, scale",
            also=("dtype",),
        ),
    )
    skipped = tuple({name.rpartition(".")[2] for name in ()})
    return pair("classifier", reference, PortClassifier(), [ids, mask], truth, edits=edits, more=more, fused=fused, without=skipped)
