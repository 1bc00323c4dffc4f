"""A translator with relative positions: bias of T5's buckets, keys and values of the memory kept, greedy decoding, a scaled tied head."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx import nn as mnn
from pairs import perturb
from torch import nn

from benchmarks.faults.catalogue import Edit
from benchmarks.faults.pairs.base import pair

WIDTH, HEADS, HEAD, LAYERS, VOCABULARY, FEED, BUCKETS, FARTHEST, STEPS = 32, 4, 6, 2, 40, 56, 8, 16, 4


class T5Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def bucket(distance: torch.Tensor, both: bool) -> torch.Tensor:
    """The bucket of each (key position - query position)."""
    count, found = BUCKETS, torch.zeros_like(distance)
    if both:
        count //= 2
        found = (distance > 0).long() * count
        distance = distance.abs()
    else:
        distance = -torch.minimum(distance, torch.zeros_like(distance))
    exact = count // 2
    far = exact + (torch.log(distance.clamp(min=1).float() / exact) / math.log(FARTHEST / exact) * (count - exact)).long()
    return found + torch.where(distance < exact, distance, far.clamp(max=count - 1))


class Attention(nn.Module):
    def __init__(self, has_bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * HEAD, bias=False) for _ in range(3))
        self.o = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(BUCKETS, HEADS)

    def bias(self, rows: torch.Tensor, columns: torch.Tensor, both: bool) -> torch.Tensor:
        return self.relative_attention_bias(bucket(columns[None] - rows[:, None], both)).permute(2, 0, 1)[None]

    def forward(self, x: torch.Tensor, memory: torch.Tensor, bias: Any = None, past: Any = None, is_cross: bool = False) -> torch.Tensor:
        def heads(part: torch.Tensor) -> torch.Tensor:
            return part.view(part.shape[0], -1, HEADS, HEAD).transpose(1, 2)

        q = heads(self.q(x))
        if is_cross and past is not None and "k" in past:
            k, v = past["k"], past["v"]
        else:
            k, v = heads(self.k(memory)), heads(self.v(memory))
            if past is not None and "k" in past:
                k, v = torch.cat([past["k"], k], 2), torch.cat([past["v"], v], 2)
            if past is not None:
                past.update(k=k, v=v)
        scores = q @ k.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Feed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wi, self.wo = nn.Linear(WIDTH, FEED, bias=False), nn.Linear(FEED, WIDTH, bias=False)
        self.dropout = nn.Dropout(0.1)
        self.layer_norm = T5Norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(self.wo(torch.relu(self.wi(self.layer_norm(x)))))


class Around(nn.Module):
    """Attention with its norm and its residual."""

    def __init__(self, has_bias: bool, name: str) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, Attention(has_bias))
        self.layer_norm = T5Norm()

    def forward(self, x: torch.Tensor, memory: Any = None, bias: Any = None, past: Any = None) -> torch.Tensor:
        h = self.layer_norm(x)
        return x + getattr(self, self.name)(h, h if memory is None else memory, bias, past, memory is not None)


class Block(nn.Module):
    def __init__(self, is_first: bool, is_decoder: bool) -> None:
        super().__init__()
        parts = [Around(is_first, "SelfAttention"), *([Around(False, "EncDecAttention")] if is_decoder else []), Feed()]
        self.layer = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor, bias: Any, memory: Any = None, pasts: Any = (None, None)) -> torch.Tensor:
        x = self.layer[0](x, None, bias, pasts[0])
        if memory is not None:
            x = self.layer[1](x, memory, None, pasts[1])
        return self.layer[-1](x)


class Stack(nn.Module):
    def __init__(self, embed: nn.Embedding, is_decoder: bool) -> None:
        super().__init__()
        self.is_decoder, self.embed_tokens = is_decoder, embed
        self.block = nn.ModuleList([Block(i == 0, is_decoder) for i in range(LAYERS)])
        self.final_layer_norm = T5Norm()

    def forward(self, ids: torch.Tensor, memory: Any = None, pasts: Any = None) -> torch.Tensor:
        start = pasts[0][0]["k"].shape[2] if pasts and pasts[0][0] else 0
        rows, columns = torch.arange(start, start + ids.shape[1]), torch.arange(start + ids.shape[1])
        bias = self.block[0].layer[0].SelfAttention.bias(rows, columns, not self.is_decoder)
        if self.is_decoder:
            bias = bias + torch.where(columns[None] <= rows[:, None], 0.0, -1e9)
        x = self.embed_tokens(ids)
        for i, block in enumerate(self.block):
            x = block(x, bias, memory, pasts[i] if pasts else (None, None))
        return self.final_layer_norm(x)


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(VOCABULARY, WIDTH)
        self.encoder, self.decoder = Stack(self.shared, False), Stack(self.shared, True)

    def forward(self, source: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        memory = self.encoder(source)
        pasts: Any = [({}, {}) for _ in range(LAYERS)]
        ids, made = start, []
        for _ in range(STEPS):
            hidden = self.decoder(ids, memory, pasts)[:, -1:] * WIDTH**-0.5
            ids = (hidden @ self.shared.weight.T).argmax(-1)
            made.append(ids)
        return torch.cat(made, 1)


class RelativeBias(mnn.Module):
    def __init__(self, bidirectional: bool) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.embeddings = mnn.Embedding(BUCKETS, HEADS)

    def buckets(self, relative: mx.array) -> mx.array:
        n = BUCKETS
        result = mx.zeros_like(relative)
        if self.bidirectional:
            n = n // 2
            result = result + (relative > 0).astype(mx.int32) * n
            relative = mx.abs(relative)
        else:
            relative = -mx.minimum(relative, 0)
        half = n // 2
        scale = (n - half) / math.log(FARTHEST / half)
        large = half + (mx.log(mx.maximum(relative, 1).astype(mx.float32) / half) * scale).astype(mx.int32)
        return result + mx.where(relative < half, relative, mx.minimum(large, n - 1))

    def __call__(self, queries: int, keys: int, offset: int = 0) -> mx.array:
        relative = mx.arange(keys)[None, :] - mx.arange(offset, offset + queries)[:, None]
        return self.embeddings(self.buckets(relative)).transpose(2, 0, 1)


class MultiHead(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_proj, self.key_proj, self.value_proj = (mnn.Linear(WIDTH, HEADS * HEAD, bias=False) for _ in range(3))
        self.out_proj = mnn.Linear(HEADS * HEAD, WIDTH, bias=False)

    def split(self, x: mx.array) -> mx.array:
        return x.reshape(x.shape[0], x.shape[1], HEADS, HEAD).transpose(0, 2, 1, 3)

    def __call__(self, queries: mx.array, keys: Any, values: Any, mask: Any = None, cache: Any = None) -> tuple[mx.array, Any]:
        q = self.split(self.query_proj(queries))
        if keys is None:
            k, v = cache
        else:
            k, v = self.split(self.key_proj(keys)), self.split(self.value_proj(values))
            if cache is not None:
                k, v = mx.concatenate([cache[0], k], axis=2), mx.concatenate([cache[1], v], axis=2)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=None if mask is None else mask.astype(q.dtype))
        return self.out_proj(y.transpose(0, 2, 1, 3).reshape(queries.shape[0], -1, HEADS * HEAD)), (k, v)


class Dense(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wi, self.wo = mnn.Linear(WIDTH, FEED, bias=False), mnn.Linear(FEED, WIDTH, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.wo(mnn.relu(self.wi(x)))


class EncoderLayer(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.dense = MultiHead(), Dense()
        self.ln1, self.ln2 = mnn.RMSNorm(WIDTH, eps=1e-6), mnn.RMSNorm(WIDTH, eps=1e-6)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        y = self.ln1(x)
        x = x + self.attention(y, y, y, mask=mask)[0]
        return x + self.dense(self.ln2(x))


class DecoderLayer(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attention, self.cross_attention, self.dense = MultiHead(), MultiHead(), Dense()
        self.ln1, self.ln2, self.ln3 = (mnn.RMSNorm(WIDTH, eps=1e-6) for _ in range(3))

    def __call__(self, x: mx.array, memory: mx.array, mask: mx.array, cache: Any) -> tuple[mx.array, Any]:
        own, cross = cache
        y = self.ln1(x)
        y, own = self.self_attention(y, y, y, mask, own)
        x = x + y
        y = self.ln2(x)
        if cross is None:
            y, cross = self.cross_attention(y, memory, memory)
        else:
            y, _ = self.cross_attention(y, None, None, cache=cross)
        x = x + y
        return x + self.dense(self.ln3(x)), (own, cross)


class Encoder(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [EncoderLayer() for _ in range(LAYERS)]
        self.ln = mnn.RMSNorm(WIDTH, eps=1e-6)
        self.relative_attention_bias = RelativeBias(True)

    def __call__(self, x: mx.array) -> mx.array:
        bias = self.relative_attention_bias(x.shape[1], x.shape[1])
        for layer in self.layers:
            x = layer(x, bias)
        return self.ln(x)


class Decoder(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [DecoderLayer() for _ in range(LAYERS)]
        self.ln = mnn.RMSNorm(WIDTH, eps=1e-6)
        self.relative_attention_bias = RelativeBias(False)

    def __call__(self, x: mx.array, memory: mx.array, cache: list[Any]) -> mx.array:
        offset = cache[0][0][0].shape[2] if cache[0][0] is not None else 0
        length = x.shape[1]
        bias = self.relative_attention_bias(length, offset + length, offset)
        bias = bias + mx.where(mx.arange(offset + length)[None] <= mx.arange(offset, offset + length)[:, None], 0.0, -1e9)
        for i, layer in enumerate(self.layers):
            x, cache[i] = layer(x, memory, bias, cache[i])
        return self.ln(x)


class PortTranslator(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = mnn.Embedding(VOCABULARY, WIDTH)
        self.encoder, self.decoder = Encoder(), Decoder()

    def __call__(self, source: mx.array, start: mx.array) -> mx.array:
        memory = self.encoder(self.wte(source))
        cache, token, made = [(None, None)] * LAYERS, start, []
        for _ in range(STEPS):
            y = self.decoder(self.wte(token), memory, cache)
            token = mx.argmax(self.wte.as_linear(y[:, -1:] * WIDTH**-0.5), axis=-1)
            made.append(token)
        return mx.concatenate(made, axis=1)


def make(seed: int = 0) -> Any:
    truth = {"": "", "shared": "wte"}
    for stack in ("encoder", "decoder"):
        truth |= {stack: stack, f"{stack}.block.*": f"{stack}.layers.*", f"{stack}.final_layer_norm": f"{stack}.ln"}
        truth[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"] = f"{stack}.relative_attention_bias.embeddings"
        parts = [(0, "SelfAttention", "attention" if stack == "encoder" else "self_attention", "ln1")]
        parts += [(1, "EncDecAttention", "cross_attention", "ln2")] if stack == "decoder" else []
        for place, ours, theirs, norm in parts:
            truth[f"{stack}.block.*.layer.{place}.layer_norm"] = f"{stack}.layers.*.{norm}"
            truth[f"{stack}.block.*.layer.{place}.{ours}"] = f"{stack}.layers.*.{theirs}"
            for one, other in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
                truth[f"{stack}.block.*.layer.{place}.{ours}.{one}"] = f"{stack}.layers.*.{theirs}.{other}_proj"
        last, norm = (1, "ln2") if stack == "encoder" else (2, "ln3")
        truth |= {f"{stack}.block.*.layer.{last}.{one}": f"{stack}.layers.*.dense.{one}" for one in ("wi", "wo")}
        truth |= {f"{stack}.block.*.layer.{last}.layer_norm": f"{stack}.layers.*.{norm}"}
    fused = {}
    for stack, last in (("encoder", 1), ("decoder", 2)):
        fused |= {f"{stack}.block.*.layer.{place}": f"{stack}.layers.*" for place in range(last + 1)}
    reference = perturb(Translator(), seed)
    with torch.no_grad():
        reference.shared.weight *= 2
    random = np.random.default_rng(seed)
    inputs = [random.integers(0, VOCABULARY, (2, 11)), np.zeros((2, 1), np.int64)]
    E, D = "encoder.layers.1", "decoder.layers.1"
    edits = (
        Edit(
            "position.offset",
            "encoder.relative_attention_bias",
            "__call__",
            "mx.arange(keys)[None, :] - mx.arange(offset, offset + queries)[:, None]",
            "mx.arange(offset, offset + queries)[:, None] - mx.arange(keys)[None, :]",
            also=("order.reversed", "order.roles", "position", "heads.layout"),
        ),
        Edit("position.offset", "encoder.relative_attention_bias", "buckets", "relative < half", "relative <= half", also=("position",)),
        Edit(
            "position.missing", "encoder", "__call__", "x = layer(x, bias)", "x = layer(x, None)", also=("mask.missing", "branch.missing")
        ),
        Edit(
            "position.offset",
            "decoder",
            "__call__",
            "self.relative_attention_bias(length, offset + length, offset)",
            "self.relative_attention_bias(length, offset + length, offset + 1)",
            also=("cache",),
        ),
        Edit(
            "position.offset",
            "decoder",
            "__call__",
            "offset = cache[0][0][0].shape[2] if cache[0][0] is not None else 0",
            "offset = 0",
            also=("cache", "shape"),
        ),
        Edit(
            "order.roles",
            E,
            "__call__",
            "self.attention(y, y, y, mask=mask)",
            "self.attention(y, y, x, mask=mask)",
            also=("norm.missing", "norm.placement"),
        ),
        Edit("order.roles", D, "__call__", "self.cross_attention(y, memory, memory)", "self.cross_attention(y, memory, self.ln2(memory))"),
        Edit(
            "norm.missing",
            D,
            "__call__",
            "self.cross_attention(y, memory, memory)",
            "self.cross_attention(x, memory, memory)",
            also=("norm.placement", "order.roles"),
        ),
        Edit("cache", D, "__call__", "(own, cross)\n", "(own, None)\n", also=("unknown",)),
        Edit(
            "cache",
            f"{D}.self_attention",
            "__call__",
            "mx.concatenate([cache[0], k], axis=2), mx.concatenate([cache[1], v], axis=2)",
            "mx.concatenate([k, cache[0]], axis=2), mx.concatenate([cache[1], v], axis=2)",
            also=("order.roles",),
        ),
        Edit(
            "order.roles",
            f"{D}.cross_attention",
            "__call__",
            "return self.out_proj(y.transpose(0, 2, 1, 3).reshape(queries.shape[0], -1, HEADS * HEAD)), (k, v)",
            "return self.out_proj(y.transpose(0, 2, 1, 3).reshape(queries.shape[0], -1, HEADS * HEAD)), (v, k)",
            also=("cache",),
        ),
        Edit("order.roles", f"{D}.cross_attention", "__call__", "k, v = cache\n", "v, k = cache\n", also=("cache",)),
        Edit("scale", f"{E}.attention", "__call__", "scale=1.0", "scale=HEAD**-0.5", also=("attention.scale",)),
        Edit("activation", f"{D}.dense", "__call__", "mnn.relu", "mnn.gelu"),
        Edit("branch.missing", E, "__call__", "return x + self.dense(self.ln2(x))", "return x"),
        Edit("branch.missing", D, "__call__", "x = x + y\n    return x +", "x = x\n    return x +", also=("residual",)),
        Edit("norm.placement", D, "__call__", "x + self.dense(self.ln3(x))", "self.ln3(x + self.dense(x))"),
        Edit("branch.missing", D, "__call__", "x + self.dense(self.ln3(x)), (", "self.dense(self.ln3(x)), (", also=("residual",)),
        Edit("scale", "", "__call__", " * WIDTH**-0.5", "", also=("unknown",)),
        Edit("mask.missing", "", "__call__", "self.wte(source)", "self.wte(source) * WIDTH**0.5", also=("scale",)),
        Edit("norm.missing", "encoder", "__call__", "return self.ln(x)", "return x"),
        Edit(
            "order.roles",
            "",
            "__call__",
            "self.decoder(self.wte(token), memory, cache)",
            "self.decoder(self.wte(token), self.wte(source), cache)",
            also=("branch.missing",),
        ),
        Edit(
            "heads.layout",
            f"{E}.attention",
            "split",
            "x.reshape(x.shape[0], x.shape[1], HEADS, HEAD).transpose(0, 2, 1, 3)",
            "x.reshape(x.shape[0], x.shape[1], HEAD, HEADS).transpose(0, 3, 1, 2)",
        ),
    )
    return pair("translator", reference, PortTranslator(), inputs, truth, edits=edits, fused=fused)
