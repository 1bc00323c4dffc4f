"""A language model that is fed its prompt in pieces and then generates: a cache, sliding windows, normalised queries, a tied head."""

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

WIDTH, HEADS, GROUPS, HEAD, LAYERS, VOCABULARY, FEED, WINDOW, STEPS = 32, 4, 2, 8, 3, 50, 48, 4, 3
CHUNK, SOFTCAP = 5, 5.0


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class RotaryTable(nn.Module):
    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions[:, None] * 10000 ** (-torch.arange(0, HEAD, 2) / HEAD)
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    one, other = x.chunk(2, -1)
    return torch.cat([-other, one], -1)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.k_proj = nn.Linear(WIDTH, GROUPS * HEAD, bias=False)
        self.v_proj = nn.Linear(WIDTH, GROUPS * HEAD, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.q_norm, self.k_norm = Norm(HEAD), Norm(HEAD)

    def forward(self, x: torch.Tensor, table: Any, mask: torch.Tensor, cache: list[torch.Tensor]) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in (self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = table
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        if cache:
            k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
        cache[:] = [k, v]
        k, v = (part.repeat_interleave(HEADS // GROUPS, 1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class GatedMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, FEED, bias=False)
        self.up_proj = nn.Linear(WIDTH, FEED, bias=False)
        self.down_proj = nn.Linear(FEED, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, is_sliding: bool) -> None:
        super().__init__()
        self.is_sliding = is_sliding
        self.self_attn, self.mlp = SelfAttention(), GatedMlp()
        self.input_layernorm, self.post_attention_layernorm = Norm(WIDTH), Norm(WIDTH)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = Norm(WIDTH), Norm(WIDTH)

    def forward(self, x: torch.Tensor, table: Any, masks: Any, cache: list[torch.Tensor]) -> torch.Tensor:
        h = self.self_attn(self.input_layernorm(x), table, masks[self.is_sliding], cache)
        x = x + self.post_attention_layernorm(h)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class ChatModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.rotary_emb = RotaryTable()
        self.layers = nn.ModuleList([DecoderLayer(i % 2 == 0) for i in range(LAYERS)])
        self.norm = Norm(WIDTH)

    def forward(self, ids: torch.Tensor, caches: list[list[torch.Tensor]]) -> torch.Tensor:
        start = caches[0][0].shape[2] if caches[0] else 0
        positions = torch.arange(start, start + ids.shape[1])
        x = self.embed_tokens(ids) * WIDTH**0.5
        past = positions[:, None] - torch.arange(start + ids.shape[1])[None]
        masks = [torch.where(seen, 0.0, torch.finfo(x.dtype).min).to(x.dtype) for seen in (past >= 0, (past >= 0) & (past < WINDOW))]
        table = self.rotary_emb(positions)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, table, masks, cache)
        return self.norm(x)


class Chat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = ChatModel()
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return SOFTCAP * torch.tanh(self.lm_head(hidden) / SOFTCAP)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        caches: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]
        self.model(ids[:, :CHUNK], caches)
        hidden, tokens = self.model(ids[:, CHUNK:], caches), []
        for step in range(STEPS):
            tokens.append(self.logits(hidden[:, -1:]).argmax(-1))
            if step + 1 < STEPS:
                hidden = self.model(tokens[-1], caches)
        return torch.cat(tokens, 1)


class KVCache:
    def __init__(self) -> None:
        self.keys, self.values, self.offset = None, None, 0

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        self.keys = k if self.keys is None else mx.concatenate([self.keys, k], axis=2)
        self.values = v if self.values is None else mx.concatenate([self.values, v], axis=2)
        self.offset += k.shape[2]
        return self.keys, self.values


class Attention(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wqkv = mnn.Linear(WIDTH, (HEADS + 2 * GROUPS) * HEAD, bias=False)
        self.wo = mnn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.norm_q, self.norm_k = mnn.RMSNorm(HEAD, eps=1e-6), mnn.RMSNorm(HEAD, eps=1e-6)
        self.rope = mnn.RoPE(HEAD, traditional=False, base=10000)
        self.scale = HEAD**-0.5

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        B, L, _ = x.shape
        q, k, v = mx.split(self.wqkv(x), [HEADS * HEAD, (HEADS + GROUPS) * HEAD], axis=-1)
        q = self.norm_q(q.reshape(B, L, HEADS, HEAD)).transpose(0, 2, 1, 3)
        k = self.norm_k(k.reshape(B, L, GROUPS, HEAD)).transpose(0, 2, 1, 3)
        v = v.reshape(B, L, GROUPS, HEAD).transpose(0, 2, 1, 3)
        q = self.rope(q, offset=cache.offset)
        k = self.rope(k, offset=cache.offset)
        k, v = cache.update_and_fetch(k, v)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=mask)
        return self.wo(y.transpose(0, 2, 1, 3).reshape(B, L, -1))


class FeedForward(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w13 = mnn.Linear(WIDTH, 2 * FEED, bias=False)
        self.w2 = mnn.Linear(FEED, WIDTH, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        gate, up = mx.split(self.w13(x), 2, axis=-1)
        return self.w2(mnn.gelu_approx(gate) * up)


class Block(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(), FeedForward()
        self.pre_attn, self.post_attn = mnn.RMSNorm(WIDTH, eps=1e-6), mnn.RMSNorm(WIDTH, eps=1e-6)
        self.pre_ffn, self.post_ffn = mnn.RMSNorm(WIDTH, eps=1e-6), mnn.RMSNorm(WIDTH, eps=1e-6)

    def __call__(self, x: mx.array, mask: Any, cache: Any) -> mx.array:
        h = x + self.post_attn(self.attention(self.pre_attn(x), mask, cache))
        return h + self.post_ffn(self.feed_forward(self.pre_ffn(h)))


class Trunk(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = mnn.Embedding(VOCABULARY, WIDTH)
        self.blocks = [Block() for _ in range(LAYERS)]
        self.norm = mnn.RMSNorm(WIDTH, eps=1e-6)

    def masks(self, length: int, offset: int) -> tuple[mx.array, mx.array]:
        rows, columns = mx.arange(offset, offset + length)[:, None], mx.arange(offset + length)[None]
        causal = rows >= columns
        return causal, causal & (rows < columns + WINDOW)

    def __call__(self, ids: mx.array, caches: list[Any]) -> mx.array:
        h = self.tok_embeddings(ids) * WIDTH**0.5
        full, sliding = self.masks(ids.shape[1], caches[0].offset)
        for i, (block, cache) in enumerate(zip(self.blocks, caches, strict=True)):
            h = block(h, sliding if i % 2 == 0 else full, cache)
        return self.norm(h)


class PortChat(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()

    def logits(self, h: mx.array) -> mx.array:
        return mx.tanh(self.trunk.tok_embeddings.as_linear(h) / SOFTCAP) * SOFTCAP

    def __call__(self, prompt: mx.array) -> mx.array:
        caches = [KVCache() for _ in range(LAYERS)]
        self.trunk(prompt[:, :CHUNK], caches)
        hidden, made = self.trunk(prompt[:, CHUNK:], caches), []
        for step in range(STEPS):
            token = mx.argmax(self.logits(hidden[:, -1:]), axis=-1)
            made.append(token)
            if step + 1 < STEPS:
                hidden = self.trunk(token, caches)
        return mx.concatenate(made, axis=1)


def make(seed: int = 0) -> Any:
    truth = {
        "": "",
        "model": "trunk",
        "model.embed_tokens": "trunk.tok_embeddings",
        "model.norm": "trunk.norm",
        "model.layers.*": "trunk.blocks.*",
    }
    for ours, theirs in (
        ("self_attn", "attention"),
        ("self_attn.o_proj", "attention.wo"),
        ("self_attn.q_norm", "attention.norm_q"),
        ("self_attn.k_norm", "attention.norm_k"),
        ("mlp", "feed_forward"),
        ("mlp.down_proj", "feed_forward.w2"),
        ("input_layernorm", "pre_attn"),
        ("post_attention_layernorm", "post_attn"),
        ("pre_feedforward_layernorm", "pre_ffn"),
        ("post_feedforward_layernorm", "post_ffn"),
    ):
        truth[f"model.layers.*.{ours}"] = f"trunk.blocks.*.{theirs}"
    fused = {f"model.layers.*.self_attn.{one}_proj": "trunk.blocks.*.attention.wqkv" for one in "qkv"}
    fused |= {f"model.layers.*.mlp.{one}_proj": "trunk.blocks.*.feed_forward.w13" for one in ("gate", "up")}
    reference = perturb(Chat(), seed)
    state = {name: value.detach().numpy() for name, value in reference.state_dict().items()}
    more = {}
    for i in range(LAYERS):
        source, target = f"model.layers.{i}", f"trunk.blocks.{i}"
        more[f"{target}.attention.wqkv.weight"] = np.concatenate([state[f"{source}.self_attn.{one}_proj.weight"] for one in "qkv"])
        more[f"{target}.feed_forward.w13.weight"] = np.concatenate([state[f"{source}.mlp.{one}_proj.weight"] for one in ("gate", "up")])
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (2, 9))
    A, M = "trunk.blocks.1.attention", "trunk.blocks.2.feed_forward"
    edits = (
        Edit("scale", A, "__call__", "scale=self.scale", "scale=1.0", also=("attention.scale",)),
        Edit(
            "scale",
            "trunk.blocks.2.attention",
            "__call__",
            "self.rope(q, offset=cache.offset)",
            "self.rope(q, offset=cache.offset) * self.scale",
            also=("attention.scale",),
        ),
        Edit(
            "heads.layout",
            A,
            "__call__",
            "self.norm_q(q.reshape(B, L, HEADS, HEAD)).transpose(0, 2, 1, 3)",
            "self.norm_q(q.reshape(B, L, HEADS, HEAD)[:, :, [0, 2, 1, 3]]).transpose(0, 2, 1, 3)",
            also=("order.channels",),
        ),
        Edit(
            "position.offset",
            A,
            "__call__",
            "q = self.rope(q, offset=cache.offset)",
            "q = self.rope(q, offset=cache.offset + 1)",
            also=("rope.offset", "cache"),
        ),
        Edit("position.offset", A, "__call__", "k = self.rope(k, offset=cache.offset)", "k = self.rope(k)", also=("rope.offset", "cache")),
        Edit("norm.missing", A, "__call__", "self.norm_k(k.reshape(B, L, GROUPS, HEAD))", "k.reshape(B, L, GROUPS, HEAD)"),
        Edit("mask.missing", "trunk", "__call__", "sliding if i % 2 == 0 else full", "full", also=("mask.polarity", "mask")),
        Edit("mask", "trunk", "masks", "rows < columns + WINDOW", "rows <= columns + WINDOW", also=("mask.missing", "mask.shift")),
        Edit("mask.missing", "trunk.blocks.1", "__call__", "self.pre_attn(x), mask, cache", "self.pre_attn(x), None, cache"),
        Edit("activation", M, "__call__", "gelu_approx(gate)", "silu(gate)"),
        Edit("activation", M, "__call__", "gelu_approx(gate)", "gelu(gate)"),
        Edit("order.roles", M, "__call__", "gate, up = mx", "up, gate = mx", also=("order.channels", "activation")),
        Edit(
            "norm.placement",
            "trunk.blocks.1",
            "__call__",
            "x + self.post_attn(self.attention(self.pre_attn(x), mask, cache))",
            "self.post_attn(x + self.attention(self.pre_attn(x), mask, cache))",
        ),
        Edit(
            "norm.missing",
            "trunk.blocks.1",
            "__call__",
            "self.post_ffn(self.feed_forward(self.pre_ffn(h)))",
            "self.feed_forward(self.pre_ffn(h))",
        ),
        Edit(
            "residual",
            "trunk.blocks.1",
            "__call__",
            "return h + self.post_ffn",
            "return x + self.post_ffn",
            also=("branch.missing", "order.roles"),
        ),
        Edit("norm.placement", "trunk.blocks.1", "__call__", "self.pre_ffn(h)", "self.pre_ffn(x)", also=("order.roles", "residual")),
        Edit("scale", "trunk", "__call__", " * WIDTH**0.5", "", also=("scale.missing",)),
        Edit("length", "", "__call__", "hidden[:, -1:]", "hidden[:, :1]", also=("position.offset", "order.reversed", "unknown")),
        Edit(
            "scale",
            "",
            "logits",
            "mx.tanh(self.trunk.tok_embeddings.as_linear(h) / SOFTCAP) * SOFTCAP",
            "self.trunk.tok_embeddings.as_linear(h)",
            also=("clamp", "activation"),
        ),
        Edit(
            "cache",
            "",
            "__call__",
            "self.trunk(token, caches)",
            "self.trunk(token, [KVCache() for _ in range(LAYERS)])",
            also=("position.offset",),
        ),
        Edit(
            "position.offset",
            "trunk",
            "__call__",
            "self.masks(ids.shape[1], caches[0].offset)",
            "tuple(mx.pad(m, [(0, 0), (caches[0].offset, 0)], constant_values=True) for m in self.masks(ids.shape[1], 0))",
            also=("mask", "mask.missing", "cache"),
        ),
        Edit(
            "order.heads",
            A,
            "__call__",
            "k, v = cache.update_and_fetch(k, v)",
            "k, v = cache.update_and_fetch(k, v); k, v = mx.tile(k, (1, 2, 1, 1)), mx.tile(v, (1, 2, 1, 1))",
            also=("heads.layout", "order.channels"),
        ),
        Edit(
            "precision", "trunk.blocks.0", "__call__", "h = x + self", "h = x.astype(mx.bfloat16).astype(x.dtype) + self", also=("dtype",)
        ),
        Edit("order.roles", A, "__call__", "k, v = cache.update_and_fetch(k, v)", "k, v = cache.update_and_fetch(v, k)"),
    )
    return pair("chat", reference, PortChat(), [ids], truth, edits=edits, more=more, fused=fused)
