"""Speech to text with a memory: a convolutional stem, fixed sines, cross-attention whose keys are kept, greedy decoding with a cache."""

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

MELS, WIDTH, HEADS, VOCABULARY, FRAMES, TEXT = 8, 16, 2, 21, 24, 12


def sinusoids(length: int, width: int) -> np.ndarray:
    rates = np.exp(-np.log(10000) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


class MultiHeadAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.key = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, xa: torch.Tensor | None = None, kept: Any = None, mask: torch.Tensor | None = None) -> Any:
        q = self.query(x)
        if xa is None:
            k, v = self.key(x), self.value(x)
            if kept is not None:
                k, v = torch.cat([kept[0], k], 1), torch.cat([kept[1], v], 1)
        else:
            k, v = (self.key(xa), self.value(xa)) if kept is None else kept
        scale = (WIDTH // HEADS) ** -0.25
        heads = [one.view(one.shape[0], one.shape[1], HEADS, -1).transpose(1, 2) for one in (q, k, v)]
        qk = (heads[0] * scale) @ (heads[1] * scale).transpose(-1, -2)
        if mask is not None:
            qk = qk + mask
        w = F.softmax(qk.float(), dim=-1)
        return self.out((w @ heads[2]).permute(0, 2, 1, 3).flatten(2)), (k, v)


class AttentionBlock(nn.Module):
    def __init__(self, *, cross: bool) -> None:
        super().__init__()
        self.attn, self.attn_ln = MultiHeadAttention(), nn.LayerNorm(WIDTH)
        self.cross_attn = MultiHeadAttention() if cross else None
        self.cross_attn_ln = nn.LayerNorm(WIDTH) if cross else None
        self.mlp, self.mlp_ln = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)), nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor, xa: Any = None, kept: Any = (None, None), mask: Any = None) -> Any:
        y, own = self.attn(self.attn_ln(x), kept=kept[0], mask=mask)
        x, memory = x + y, None
        if self.cross_attn is not None and self.cross_attn_ln is not None:
            y, memory = self.cross_attn(self.cross_attn_ln(x), xa, kept=kept[1])
            x = x + y
        return x + self.mlp(self.mlp_ln(x)), (own, memory)


class AudioEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(MELS, WIDTH, 3, padding=1), nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.register_buffer("positional_embedding", torch.tensor(sinusoids(FRAMES // 2, WIDTH)), persistent=False)
        self.blocks, self.ln_post = nn.ModuleList([AttentionBlock(cross=False) for _ in range(2)]), nn.LayerNorm(WIDTH)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).permute(0, 2, 1) + self.positional_embedding
        for block in self.blocks:
            x, _ = block(x)
        return self.ln_post(x)


class TextDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_embedding, self.positional_embedding = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.zeros(TEXT, WIDTH))
        self.blocks, self.ln = nn.ModuleList([AttentionBlock(cross=True) for _ in range(2)]), nn.LayerNorm(WIDTH)

    def forward(self, ids: torch.Tensor, xa: torch.Tensor, kept: Any) -> Any:
        start = 0 if kept is None else kept[0][0][0].shape[1]
        x = self.token_embedding(ids) + self.positional_embedding[start : start + ids.shape[1]]
        mask = torch.full((ids.shape[1], start + ids.shape[1]), float("-inf")).triu(1 + start)
        new = []
        for place, block in enumerate(self.blocks):
            x, own = block(x, xa, (None, None) if kept is None else kept[place], mask)
            new.append(own)
        return self.ln(x) @ self.token_embedding.weight.T, new


class Listener(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = AudioEncoder(), TextDecoder()

    def forward(self, mel: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        xa = self.encoder(mel)
        logits, kept = self.decoder(ids, xa, None)
        every = [logits]
        for _ in range(3):
            logits, kept = self.decoder(every[-1][:, -1:].argmax(-1), xa, kept)
            every.append(logits)
        return torch.cat(every, 1)


class Heads(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj, self.out_proj = (mnn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.k_proj = mnn.Linear(WIDTH, WIDTH, bias=False)

    def __call__(self, x: mx.array, memory: mx.array | None = None, cache: Any = None, mask: Any = None) -> Any:
        q = self.q_proj(x)
        if memory is None:
            k, v = self.k_proj(x), self.v_proj(x)
            if cache is not None:
                k, v = mx.concatenate([cache[0], k], axis=1), mx.concatenate([cache[1], v], axis=1)
        elif cache is None:
            k, v = self.k_proj(memory), self.v_proj(memory)
        else:
            k, v = cache
        q, kh, vh = (one.reshape(*one.shape[:2], HEADS, -1).transpose(0, 2, 1, 3) for one in (q, k, v))
        y = mx.fast.scaled_dot_product_attention(q, kh, vh, scale=(WIDTH // HEADS) ** -0.5, mask=mask)
        return self.out_proj(y.transpose(0, 2, 1, 3).reshape(x.shape)), (k, v)


class EncoderLayer(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.norm1, self.norm2 = Heads(), mnn.LayerNorm(WIDTH), mnn.LayerNorm(WIDTH)
        self.fc1, self.fc2 = mnn.Linear(WIDTH, 4 * WIDTH), mnn.Linear(4 * WIDTH, WIDTH)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.self_attn(self.norm1(x))[0]
        return x + self.fc2(mnn.gelu(self.fc1(self.norm2(x))))


class DecoderLayer(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.cross, self.norm1, self.norm2, self.norm3 = Heads(), Heads(), *(mnn.LayerNorm(WIDTH) for _ in range(3))
        self.fc1, self.fc2 = mnn.Linear(WIDTH, 4 * WIDTH), mnn.Linear(4 * WIDTH, WIDTH)

    def __call__(self, x: mx.array, memory: mx.array, cache: Any, mask: Any) -> Any:
        own, given = cache if cache is not None else (None, None)
        y, own = self.self_attn(self.norm1(x), cache=own, mask=mask)
        x = x + y
        y, given = self.cross(self.norm2(x), memory, cache=given)
        x = x + y
        return x + self.fc2(mnn.gelu(self.fc1(self.norm3(x)))), (own, given)


class PortEncoder(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = mnn.Conv1d(MELS, WIDTH, 3, padding=1), mnn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.layers, self.norm = [EncoderLayer() for _ in range(2)], mnn.LayerNorm(WIDTH)
        self._sines = mx.array(sinusoids(FRAMES // 2, WIDTH))

    def __call__(self, mel: mx.array) -> mx.array:
        x = mnn.gelu(self.conv2(mnn.gelu(self.conv1(mel)))) + self._sines
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class PortDecoder(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = mnn.Embedding(VOCABULARY, WIDTH), mx.zeros((TEXT, WIDTH))
        self.layers, self.norm = [DecoderLayer() for _ in range(2)], mnn.LayerNorm(WIDTH)

    def __call__(self, ids: mx.array, memory: mx.array, cache: Any) -> Any:
        offset = 0 if cache is None else cache[0][0][0].shape[1]
        x = self.embed(ids) + self.positions[offset : offset + ids.shape[1]]
        mask = "causal" if ids.shape[1] > 1 else None
        new = []
        for i, layer in enumerate(self.layers):
            x, own = layer(x, memory, None if cache is None else cache[i], mask)
            new.append(own)
        return self.embed.as_linear(self.norm(x)), new


class PortListener(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.audio, self.text = PortEncoder(), PortDecoder()

    def __call__(self, mel: mx.array, ids: mx.array) -> mx.array:
        memory = self.audio(mel)
        logits, cache = self.text(ids, memory, None)
        every = [logits]
        for _ in range(3):
            logits, cache = self.text(mx.argmax(every[-1][:, -1:], axis=-1), memory, cache)
            every.append(logits)
        return mx.concatenate(every, axis=1)


def make(seed: int = 0) -> Any:
    truth = {"": "", "encoder": "audio", "decoder": "text", "encoder.conv1": "audio.conv1", "encoder.conv2": "audio.conv2",
             "encoder.ln_post": "audio.norm", "decoder.ln": "text.norm", "decoder.token_embedding": "text.embed"}  # fmt: skip
    for ours, theirs, norms in (("encoder", "audio", ("attn", "mlp")), ("decoder", "text", ("attn", "cross_attn", "mlp"))):
        layer, other = f"{ours}.blocks.*", f"{theirs}.layers.*"
        truth |= {layer: other, f"{layer}.mlp.0": f"{other}.fc1", f"{layer}.mlp.2": f"{other}.fc2"}
        truth |= {f"{layer}.{one}_ln": f"{other}.norm{place + 1}" for place, one in enumerate(norms)}
        for one, name in (("attn", "self_attn"), ("cross_attn", "cross"))[: len(norms) - 1]:
            truth |= {f"{layer}.{one}": f"{other}.{name}"}
            truth |= {f"{layer}.{one}.{part}": f"{other}.{name}.{part[:1]}_proj" for part in ("query", "key", "value")}
            truth |= {f"{layer}.{one}.out": f"{other}.{name}.out_proj"}
    reference = perturb(Listener(), seed)
    random = np.random.default_rng(seed)
    mel, ids = random.standard_normal((2, MELS, FRAMES)).astype(np.float32), random.integers(0, VOCABULARY, (2, 4))
    more = {"text.positions": reference.decoder.positional_embedding.detach().numpy()}
    edits = (
        Edit("position.offset", "text", "__call__", "offset = 0 if cache is None else cache[0][0][0].shape[1]", "offset = 0",
             also=("cache",)),
        Edit("mask.missing", "text", "__call__", '"causal" if ids.shape[1] > 1 else None', "None"),
        Edit("cache", "text.layers.0.self_attn", "__call__",
             "k, v = mx.concatenate([cache[0], k], axis=1), mx.concatenate([cache[1], v], axis=1)", "pass", also=("length",)),
        Edit("scale", "audio.layers.0.self_attn", "__call__", "scale=(WIDTH // HEADS) ** -0.5", "scale=(WIDTH // HEADS) ** -0.25"),
        Edit("activation", "audio.layers.1", "__call__", "mnn.gelu(", "mnn.gelu_approx("),
        Edit("branch.missing", "audio", "__call__", "mnn.gelu(self.conv2(mnn.gelu(self.conv1(mel))))",
             "mnn.gelu(self.conv2(self.conv1(mel)))", also=("activation",)),
        Edit("position.missing", "audio", "__call__", " + self._sines", "", also=("branch.missing", "residual.missing")),
        Edit("order.roles", "text.layers.1", "__call__", "self.cross(self.norm2(x), memory", "self.cross(self.norm1(x), memory",
             also=("norm.placement",)),
        Edit("residual.missing", "text.layers.0", "__call__", "y, given = self.cross(self.norm2(x), memory, cache=given)\n    x = x + y",
             "y, given = self.cross(self.norm2(x), memory, cache=given)\n    x = y"),
        Edit("norm.missing", "", "__call__", "self.text(ids, memory, None)", "self.text(ids, memory * 1.1, None)", also=("scale",)),
        Edit("order.roles", "text.layers.1.cross", "__call__", "k, v = self.k_proj(memory), self.v_proj(memory)",
             "k, v = self.v_proj(memory), self.k_proj(memory)"),
        Edit("heads.layout", "audio.layers.0.self_attn", "__call__", "y.transpose(0, 2, 1, 3).reshape(x.shape)", "y.reshape(x.shape)",
             also=("order.channels",)),
    )  # fmt: skip
    return pair("listener", reference, PortListener(), [mel, ids], truth, port_inputs=[mel.transpose(0, 2, 1), ids], edits=edits, more=more,
                without=("positional_embedding",))  # fmt: skip
