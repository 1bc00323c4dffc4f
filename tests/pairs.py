"""Small reference/port pairs for tests and benchmarks: PyTorch on one side, MLX on the other, with the truth about their names.

Each pair is written twice in different naming schemes and layouts; the port's weights are converted from the reference's. The truth is
given by patterns: what a ``*`` stands for on the reference's side is filled in on the port's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as mnn
import numpy as np
import torch
from torch import nn

Rules = dict[str, str]


@dataclass(frozen=True)
class Pair:
    """Two models, how to run each, and which sites correspond (patterns)."""

    name: str
    reference: Any
    port: Any
    run_reference: Callable[[], Any]
    run_port: Callable[[], Any]
    truth: Rules
    fused: Rules = field(default_factory=dict)  # reference part -> port's whole, or reference's whole -> port part: any of them is right

    def expected(self, reference_sites: list[str], port_sites: list[str]) -> dict[str, str]:
        """The truth, spelled out for the sites that both runs have."""
        known = set(port_sites)
        partners = {site: matched(self.truth, site) for site in reference_sites}
        return {site: partner for site, partner in partners.items() if partner in known}


def matched(rules: Mapping[str, str], name: str) -> str | None:
    """What the rules make of a name; None where none fits."""
    for pattern, target in rules.items():
        match = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+)"), name)
        if match:
            groups = iter(match.groups())
            return re.sub(r"\*", lambda _, groups=groups: next(groups), target)
    return None


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Makes every parameter and statistic telling: no bias zero, no scale one. Tables that are no part of the state stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    kept = set(model.state_dict(keep_vars=True))
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point() or name not in kept:
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(1 + 0.3 * noise.abs())
            elif value.ndim <= 1:
                value.copy_((1 if value.mean() > 0.5 else 0) + 0.2 * noise)
            else:
                value.copy_(noise / value[0].numel() ** 0.5)
    return model.eval()


def load(port: mnn.Module, weights: Mapping[str, np.ndarray]) -> mnn.Module:
    """Loads weights into a port strictly and puts it into eval mode."""
    port.load_weights([(name, mx.array(value)) for name, value in weights.items()], strict=True)
    port.eval()
    return port


def array(value: torch.Tensor) -> np.ndarray:
    return value.detach().numpy()


def unloaded(pair: Pair, pattern: str, seed: int = 5) -> Pair:
    """The pair with the port's parameters that match ``pattern`` as if they had never been loaded."""
    random = np.random.default_rng(seed)
    flat = mlx_flat(pair.port.parameters())
    fresh = [(name, fresh_like(value, random)) for name, value in flat if re.search(pattern, name)]
    assert fresh, pattern
    pair.port.load_weights(fresh, strict=False)
    return pair


def fresh_like(value: mx.array, random: np.random.Generator) -> mx.array:
    shape = tuple(value.shape)
    scale = 0.2 if len(shape) <= 1 else 1 / np.sqrt(np.prod(shape[1:]))
    offset = 1.0 if len(shape) <= 1 and float(value.mean()) > 0.5 else 0.0
    drawn = offset + scale * random.standard_normal(shape)
    return mx.array((np.abs(drawn) + 0.5 if len(shape) <= 1 and offset else drawn).astype(np.float32))


def mlx_flat(tree: Any) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return list(tree_flatten(tree))


# -- a GPT: fused and split projections, activations as modules and as functions -------------------------


class GptAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.resid_dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(width, dim=2))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(batch, length, width)))


class GptBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = GptAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "act": nn.GELU(), "c_proj": nn.Linear(4 * width, width), "dropout": nn.Dropout(0.1)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        mlp = self.mlp
        return x + mlp["dropout"](mlp["c_proj"](mlp["act"](mlp["c_fc"](self.ln_2(x)))))


class Gpt(nn.Module):
    def __init__(self, vocabulary: int = 60, width: int = 32, heads: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {"wte": nn.Embedding(vocabulary, width), "wpe": nn.Embedding(32, width), "drop": nn.Dropout(0.1), "ln_f": nn.LayerNorm(width)}
        )
        self.h = nn.ModuleList([GptBlock(width, heads) for _ in range(layers)])
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        parts = self.transformer
        x = parts["drop"](parts["wte"](ids) + parts["wpe"](torch.arange(ids.shape[1])))
        for block in self.h:
            x = block(x)
        return self.lm_head(parts["ln_f"](x))


class SplitAttention(mnn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n_heads = heads
        self.query_proj = mnn.Linear(width, width)
        self.key_proj = mnn.Linear(width, width)
        self.value_proj = mnn.Linear(width, width)
        self.out_proj = mnn.Linear(width, width)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        batch, length, _ = x.shape
        q, k, v = (
            project(x).reshape(batch, length, self.n_heads, -1).transpose(0, 2, 1, 3)
            for project in (self.query_proj, self.key_proj, self.value_proj)
        )
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        return self.out_proj(y.transpose(0, 2, 1, 3).reshape(batch, length, -1))


class SplitMlp(mnn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = mnn.Linear(width, 4 * width)
        self.down = mnn.Linear(4 * width, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down(mnn.gelu(self.up(x)))


class SplitLayer(mnn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = SplitAttention(width, heads)
        self.feed_forward = SplitMlp(width)
        self.attn_norm = mnn.LayerNorm(width)
        self.ffn_norm = mnn.LayerNorm(width)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        x = x + self.self_attn(self.attn_norm(x), mask)
        return x + self.feed_forward(self.ffn_norm(x))


class SplitGpt(mnn.Module):
    def __init__(self, vocabulary: int = 60, width: int = 32, heads: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.token_embedding = mnn.Embedding(vocabulary, width)
        self.position_embedding = mnn.Embedding(32, width)
        self.layers = [SplitLayer(width, heads) for _ in range(layers)]
        self.final_norm = mnn.LayerNorm(width)

    def __call__(self, ids: mx.array) -> mx.array:
        x = self.token_embedding(ids) + self.position_embedding(mx.arange(ids.shape[1]))
        mask = mnn.MultiHeadAttention.create_additive_causal_mask(ids.shape[1], x.dtype)
        for layer in self.layers:
            x = layer(x, mask)
        return self.token_embedding.as_linear(self.final_norm(x))


def gpt(seed: int = 0, layers: int = 4, *, length: int = 9) -> Pair:
    reference = perturb(Gpt(layers=layers), seed)
    state = {name: array(value) for name, value in reference.state_dict().items()}
    weights = {
        "token_embedding.weight": state["transformer.wte.weight"],
        "position_embedding.weight": state["transformer.wpe.weight"],
        "final_norm.weight": state["transformer.ln_f.weight"],
        "final_norm.bias": state["transformer.ln_f.bias"],
    }
    for layer in range(layers):
        source, target = f"h.{layer}", f"layers.{layer}"
        for kind in ("weight", "bias"):
            for name, part in zip(("query", "key", "value"), np.split(state[f"{source}.attn.c_attn.{kind}"], 3), strict=True):
                weights[f"{target}.self_attn.{name}_proj.{kind}"] = part
            for theirs, ours in (
                ("self_attn.out_proj", "attn.c_proj"),
                ("feed_forward.up", "mlp.c_fc"),
                ("feed_forward.down", "mlp.c_proj"),
                ("attn_norm", "ln_1"),
                ("ffn_norm", "ln_2"),
            ):
                weights[f"{target}.{theirs}.{kind}"] = state[f"{source}.{ours}.{kind}"]
    port = load(SplitGpt(layers=layers), weights)
    ids = np.random.default_rng(seed).integers(0, 60, (2, length))
    truth = {
        "": "",
        "transformer.wte": "token_embedding",
        "transformer.wpe": "position_embedding",
        "transformer.ln_f": "final_norm",
        "h.*": "layers.*",
        "h.*.ln_1": "layers.*.attn_norm",
        "h.*.attn": "layers.*.self_attn",
        "h.*.attn!attention": "layers.*.self_attn!attention",
        "h.*.attn.c_proj": "layers.*.self_attn.out_proj",
        "h.*.ln_2": "layers.*.ffn_norm",
        "h.*.mlp.c_fc": "layers.*.feed_forward.up",
        "h.*.mlp.c_proj": "layers.*.feed_forward.down",
    }
    fused = {"h.*.attn.c_attn": "layers.*.self_attn.(query|key|value)_proj"}
    return Pair("gpt", reference, port, lambda: reference(torch.tensor(ids)), lambda: mx.eval(port(mx.array(ids))), truth, fused)


# -- a convolutional net: channels-first against channels-last, with wrappers ----------------------------


class ResBlock(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.GroupNorm(4, channels),
            nn.SiLU(),
            nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation),
            nn.Dropout(0.1),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x)


class ConvNet(nn.Module):
    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.conv_pre = nn.Conv1d(10, channels, 7, padding=3)
        self.ups = nn.ModuleList(
            [
                nn.ConvTranspose1d(channels, channels // 2, 4, stride=2, padding=1),
                nn.ConvTranspose1d(channels // 2, channels // 4, 4, stride=2, padding=1),
            ]
        )
        self.resblocks = nn.ModuleList([ResBlock(channels // 2 ** (1 + i // 2), 1 + 2 * (i % 2)) for i in range(4)])
        self.bn = nn.BatchNorm1d(channels // 4)
        self.conv_post = nn.Conv1d(channels // 4, 1, 7, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_pre(x)
        for i, up in enumerate(self.ups):
            x = up(nn.functional.leaky_relu(x, 0.1))
            x = self.resblocks[2 * i](x) + self.resblocks[2 * i + 1](x)
        return torch.tanh(self.conv_post(self.bn(x)))


class WrappedConv(mnn.Module):
    """Channels-first outside, channels-last inside."""

    def __init__(self, *args: Any, transpose: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self.conv = (mnn.ConvTranspose1d if transpose else mnn.Conv1d)(*args, **kwargs)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv(x.swapaxes(1, 2)).swapaxes(1, 2)


class PortBlock(mnn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.norm = mnn.GroupNorm(4, channels, pytorch_compatible=True)
        self.conv1 = WrappedConv(channels, channels, 3, padding=dilation, dilation=dilation)
        self.conv2 = WrappedConv(channels, channels, 1)

    def __call__(self, x: mx.array) -> mx.array:
        h = self.norm(x.swapaxes(1, 2)).swapaxes(1, 2)
        return x + self.conv2(self.conv1(mnn.silu(h)))


class PortConvNet(mnn.Module):
    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.first = WrappedConv(10, channels, 7, padding=3)
        self.up0 = WrappedConv(channels, channels // 2, 4, stride=2, padding=1, transpose=True)
        self.up1 = WrappedConv(channels // 2, channels // 4, 4, stride=2, padding=1, transpose=True)
        self.blocks = [PortBlock(channels // 2 ** (1 + i // 2), 1 + 2 * (i % 2)) for i in range(4)]
        self.norm = mnn.BatchNorm(channels // 4)
        self.last = WrappedConv(channels // 4, 1, 7, padding=3)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.first(x)
        for i, up in enumerate((self.up0, self.up1)):
            x = up(mnn.leaky_relu(x, 0.1))
            x = self.blocks[2 * i](x) + self.blocks[2 * i + 1](x)
        return mx.tanh(self.last(self.norm(x.swapaxes(1, 2)).swapaxes(1, 2)))


def conv(seed: int = 0, *, length: int = 12) -> Pair:
    reference = perturb(ConvNet(), seed)
    state = {name: array(value) for name, value in reference.state_dict().items()}
    renames = {"conv_pre": "first.conv", "conv_post": "last.conv", "bn": "norm", "ups.0": "up0.conv", "ups.1": "up1.conv"}
    for i in range(4):
        renames |= {
            f"resblocks.{i}.block.0": f"blocks.{i}.norm",
            f"resblocks.{i}.block.2": f"blocks.{i}.conv1.conv",
            f"resblocks.{i}.block.4": f"blocks.{i}.conv2.conv",
        }
    weights = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked":
            continue
        if value.ndim == 3:
            value = value.transpose(1, 2, 0) if module.startswith("ups") else value.transpose(0, 2, 1)
        weights[f"{renames[module]}.{kind}"] = value
    port = load(PortConvNet(), weights)
    x = np.random.default_rng(seed).standard_normal((2, 10, length)).astype(np.float32)
    truth = {"": "", "resblocks.*": "blocks.*", **renames}
    return Pair("conv", reference, port, lambda: reference(torch.tensor(x)), lambda: mx.eval(port(mx.array(x))), truth)


# -- recurrent: a sequence in one call against a loop of cells -------------------------------------------


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 12)
        self.lstm = nn.LSTM(12, 16, batch_first=True)
        self.inner = nn.Linear(16, 16)
        self.outer = nn.Linear(16, 7)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.lstm(self.embedding(ids))
        return self.outer(torch.relu(self.inner(hidden)))


class PortTagger(mnn.Module):
    """Embeds and classifies one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = mnn.Embedding(40, 12)
        self.rnn = mnn.LSTM(12, 16)
        self.fc = [mnn.Linear(16, 16), mnn.Linear(16, 7)]

    def __call__(self, ids: mx.array) -> mx.array:
        steps = mx.stack([self.emb(ids[:, t]) for t in range(ids.shape[1])], axis=1)
        hidden, _ = self.rnn(steps)
        return mx.stack([self.fc[1](mnn.relu(self.fc[0](hidden[:, t]))) for t in range(ids.shape[1])], axis=1)


def recurrent(seed: int = 0, *, length: int = 6) -> Pair:
    reference = perturb(Tagger(), seed)
    state = {name: array(value) for name, value in reference.state_dict().items()}
    weights = {
        "emb.weight": state["embedding.weight"],
        "rnn.Wx": state["lstm.weight_ih_l0"],
        "rnn.Wh": state["lstm.weight_hh_l0"],
        "rnn.bias": state["lstm.bias_ih_l0"] + state["lstm.bias_hh_l0"],
        **{f"fc.{i}.{kind}": state[f"{name}.{kind}"] for i, name in enumerate(("inner", "outer")) for kind in ("weight", "bias")},
    }
    port = load(PortTagger(), weights)
    ids = np.random.default_rng(seed).integers(0, 40, (2, length))
    truth = {"": "", "embedding": "emb", "lstm": "rnn", "inner": "fc.0", "outer": "fc.1"}
    return Pair("recurrent", reference, port, lambda: reference(torch.tensor(ids)), lambda: mx.eval(port(mx.array(ids))), truth)


# -- encoder and decoder that share their embedding ------------------------------------------------------


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.o = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        def heads(part: torch.Tensor) -> torch.Tensor:
            return part.view(*part.shape[:2], self.heads, -1).transpose(1, 2)

        q, k, v = heads(self.q(x)), heads(self.k(context)), heads(self.v(context))
        weights = nn.functional.softmax(q @ k.transpose(-1, -2), dim=-1)
        return self.o((weights @ v).transpose(1, 2).reshape(x.shape))


class T5Block(nn.Module):
    def __init__(self, width: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [
                nn.ModuleDict({"attention": CrossAttention(width, heads), "layer_norm": nn.LayerNorm(width)})
                for _ in range(2 if cross else 1)
            ]
        )
        self.ff = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        for place, part in enumerate(self.layer):
            normed = part["layer_norm"](x)
            x = x + part["attention"](normed, normed if place == 0 else context)
        return x + self.ff(x)


class T5(nn.Module):
    def __init__(self, width: int = 24, heads: int = 3, layers: int = 2) -> None:
        super().__init__()
        self.shared = nn.Embedding(50, width)
        self.encoder = nn.ModuleList([T5Block(width, heads, False) for _ in range(layers)])
        self.decoder = nn.ModuleList([T5Block(width, heads, True) for _ in range(layers)])
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder_norm = nn.LayerNorm(width)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        context = self.shared(source)
        for block in self.encoder:
            context = block(context)
        context = self.encoder_norm(context)
        x = self.shared(target)
        for block in self.decoder:
            x = block(x, context)
        return self.decoder_norm(x) @ self.shared.weight.T


class PortAttention(mnn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.key_proj = mnn.Linear(width, width, bias=False)
        self.value_proj = mnn.Linear(width, width, bias=False)
        self.query_proj = mnn.Linear(width, width, bias=False)
        self.out_proj = mnn.Linear(width, width, bias=False)

    def __call__(self, x: mx.array, memory: mx.array) -> mx.array:
        def heads(part: mx.array) -> mx.array:
            return part.reshape(*part.shape[:2], self.num_heads, -1).transpose(0, 2, 1, 3)

        k, v, q = heads(self.key_proj(memory)), heads(self.value_proj(memory)), heads(self.query_proj(x))
        weights = mx.softmax(q @ k.swapaxes(-1, -2), axis=-1)
        return self.out_proj((weights @ v).transpose(0, 2, 1, 3).reshape(x.shape))


class PortEncoderLayer(mnn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = PortAttention(width, heads)
        self.ln1 = mnn.LayerNorm(width)
        self.ln2 = mnn.LayerNorm(width)
        self.dense1 = mnn.Linear(width, 2 * width)
        self.dense2 = mnn.Linear(2 * width, width)

    def feed(self, x: mx.array) -> mx.array:
        return x + self.dense2(mnn.relu(self.dense1(self.ln2(x))))

    def __call__(self, x: mx.array) -> mx.array:
        normed = self.ln1(x)
        return self.feed(x + self.attention(normed, normed))


class PortDecoderLayer(mnn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attention = PortAttention(width, heads)
        self.cross_attention = PortAttention(width, heads)
        self.ln1 = mnn.LayerNorm(width)
        self.ln2 = mnn.LayerNorm(width)
        self.ln3 = mnn.LayerNorm(width)
        self.dense1 = mnn.Linear(width, 2 * width)
        self.dense2 = mnn.Linear(2 * width, width)

    def __call__(self, x: mx.array, memory: mx.array) -> mx.array:
        normed = self.ln1(x)
        x = x + self.self_attention(normed, normed)
        x = x + self.cross_attention(self.ln2(x), memory)
        return x + self.dense2(mnn.relu(self.dense1(self.ln3(x))))


class PortStack(mnn.Module):
    def __init__(self, layers: list[mnn.Module], width: int) -> None:
        super().__init__()
        self.layers = layers
        self.ln = mnn.LayerNorm(width)

    def __call__(self, x: mx.array, *memory: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x, *memory)
        return self.ln(x)


class PortT5(mnn.Module):
    def __init__(self, width: int = 24, heads: int = 3, layers: int = 2) -> None:
        super().__init__()
        self.wte = mnn.Embedding(50, width)
        self.encoder = PortStack([PortEncoderLayer(width, heads) for _ in range(layers)], width)
        self.decoder = PortStack([PortDecoderLayer(width, heads) for _ in range(layers)], width)

    def __call__(self, source: mx.array, target: mx.array) -> mx.array:
        memory = self.encoder(self.wte(source))
        return self.wte.as_linear(self.decoder(self.wte(target), memory))


_T5_ATTENTION = {".q": ".query_proj", ".k": ".key_proj", ".v": ".value_proj", ".o": ".out_proj", "": "", "!softmax": "!softmax"}


def encoder_decoder(seed: int = 0, *, length: int = 8) -> Pair:
    reference = perturb(T5(), seed)
    state = {name: array(value) for name, value in reference.state_dict().items()}
    truth: Rules = {
        "": "",
        "shared": "wte",
        "encoder_norm": "encoder.ln",
        "decoder_norm": "decoder.ln",
        "encoder.*": "encoder.layers.*",
        "decoder.*": "decoder.layers.*",
    }
    parts = {("encoder", 0): ("attention", "ln1"), ("decoder", 0): ("self_attention", "ln1"), ("decoder", 1): ("cross_attention", "ln2")}
    for (stack, place), (attention, norm) in parts.items():
        truth[f"{stack}.*.layer.{place}.layer_norm"] = f"{stack}.layers.*.{norm}"
        for ours, theirs in _T5_ATTENTION.items():
            truth[f"{stack}.*.layer.{place}.attention{ours}"] = f"{stack}.layers.*.{attention}{theirs}"
    for stack, norm in (("encoder", "ln2"), ("decoder", "ln3")):
        truth |= {
            f"{stack}.*.ff.0": f"{stack}.layers.*.{norm}",
            f"{stack}.*.ff.1": f"{stack}.layers.*.dense1",
            f"{stack}.*.ff.3": f"{stack}.layers.*.dense2",
        }
    weights = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        weights[f"{matched(truth, module)}.{kind}"] = value
    port = load(PortT5(), weights)
    random = np.random.default_rng(seed)
    source, target = random.integers(0, 50, (2, length)), random.integers(0, 50, (2, 5))
    return Pair(
        "encoder-decoder",
        reference,
        port,
        lambda: reference(torch.tensor(source), torch.tensor(target)),
        lambda: mx.eval(port(mx.array(source), mx.array(target))),
        truth,
    )


# -- a U-Net with time embedding, skips, and attention; another nesting on each side ---------------------


class TorchResnet(nn.Module):
    def __init__(self, ins: int, outs: int, times: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(times, outs))
        self.block1 = nn.Sequential(nn.Conv1d(ins, outs, 3, padding=1), nn.GroupNorm(4, outs), nn.Mish())
        self.block2 = nn.Sequential(nn.Conv1d(outs, outs, 3, padding=1), nn.GroupNorm(4, outs), nn.Mish())
        self.res_conv = nn.Conv1d(ins, outs, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.block1(x) + self.mlp(t)[..., None]
        return self.block2(h) + self.res_conv(x)


class TorchTransformer(nn.Module):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = CrossAttention(width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = nn.ModuleDict(
            {"net": nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * width, width))}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.norm1(x)
        x = x + self.attn1(n, n)
        return x + self.ff["net"](self.norm3(x))


class TorchUnet(nn.Module):
    def __init__(self, ins: int = 8, width: int = 16, times: int = 12) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(times, times), nn.SiLU(), nn.Linear(times, times))
        self.down_blocks = nn.ModuleList(
            [
                nn.ModuleList(
                    [
                        TorchResnet(ins, width, times),
                        nn.ModuleList([TorchTransformer(width) for _ in range(2)]),
                        nn.Conv1d(width, width, 3, padding=1),
                    ]
                )
            ]
        )
        self.mid_blocks = nn.ModuleList(
            [
                nn.ModuleList([TorchResnet(width, width, times), nn.ModuleList([TorchTransformer(width) for _ in range(2)])])
                for _ in range(3)
            ]
        )
        self.up_blocks = nn.ModuleList(
            [
                nn.ModuleList(
                    [
                        TorchResnet(2 * width, width, times),
                        nn.ModuleList([TorchTransformer(width) for _ in range(2)]),
                        nn.Conv1d(width, width, 3, padding=1),
                    ]
                )
            ]
        )
        self.final_proj = nn.Conv1d(width, ins, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = self.time_mlp(t)
        skips = []
        for resnet, transformers, down in self.down_blocks:
            x = self.through(resnet, transformers, x, t)
            skips.append(x)
            x = down(x)
        for resnet, transformers in self.mid_blocks:
            x = self.through(resnet, transformers, x, t)
        for resnet, transformers, up in self.up_blocks:
            x = up(self.through(resnet, transformers, torch.cat([x, skips.pop()], 1), t))
        return self.final_proj(x)

    @staticmethod
    def through(resnet: nn.Module, transformers: Any, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = resnet(x, t).transpose(1, 2)
        for transformer in transformers:
            x = transformer(x)
        return x.transpose(1, 2)


class MlxResnet(mnn.Module):
    """Channels-last throughout."""

    def __init__(self, ins: int, outs: int, times: int) -> None:
        super().__init__()
        self.shortcut = mnn.Conv1d(ins, outs, 1)
        self.conv_in = mnn.Conv1d(ins, outs, 3, padding=1)
        self.norm_in = mnn.GroupNorm(4, outs, pytorch_compatible=True)
        self.time = mnn.Linear(times, outs)
        self.conv_out = mnn.Conv1d(outs, outs, 3, padding=1)
        self.norm_out = mnn.GroupNorm(4, outs, pytorch_compatible=True)

    def __call__(self, x: mx.array, t: mx.array) -> mx.array:
        skip = self.shortcut(x)
        h = mnn.mish(self.norm_in(self.conv_in(x))) + self.time(mnn.mish(t))[:, None]
        return mnn.mish(self.norm_out(self.conv_out(h))) + skip


class MlxTransformer(mnn.Module):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.attention = PortAttention(width, heads)
        self.norms = [mnn.LayerNorm(width), mnn.LayerNorm(width)]
        self.linear1 = mnn.Linear(width, 4 * width)
        self.linear2 = mnn.Linear(4 * width, width)

    def __call__(self, x: mx.array) -> mx.array:
        n = self.norms[0](x)
        x = x + self.attention(n, n)
        return x + self.linear2(mnn.gelu(self.linear1(self.norms[1](x))))


class MlxStage(mnn.Module):
    def __init__(self, ins: int, width: int, times: int, sample: bool) -> None:
        super().__init__()
        self.resnet = MlxResnet(ins, width, times)
        self.transformers = [MlxTransformer(width) for _ in range(2)]
        if sample:
            self.sample = mnn.Conv1d(width, width, 3, padding=1)

    def __call__(self, x: mx.array, t: mx.array) -> mx.array:
        x = self.resnet(x, t)
        for transformer in self.transformers:
            x = transformer(x)
        return x


class MlxUnet(mnn.Module):
    def __init__(self, ins: int = 8, width: int = 16, times: int = 12) -> None:
        super().__init__()
        self.out = mnn.Conv1d(width, ins, 1)
        self.down = MlxStage(ins, width, times, True)
        self.middle = [MlxStage(width, width, times, False) for _ in range(3)]
        self.up = MlxStage(2 * width, width, times, True)
        self.time_in = mnn.Linear(times, times)
        self.time_out = mnn.Linear(times, times)

    def __call__(self, x: mx.array, t: mx.array) -> mx.array:
        t = self.time_out(mnn.silu(self.time_in(t)))
        x = self.down(x, t)
        skip = x
        x = self.down.sample(x)
        for stage in self.middle:
            x = stage(x, t)
        return self.out(self.up.sample(self.up(mx.concatenate([x, skip], -1), t)))


_RESNET = {
    ".block1.0": ".conv_in",
    ".block1.1": ".norm_in",
    ".block2.0": ".conv_out",
    ".block2.1": ".norm_out",
    ".res_conv": ".shortcut",
    ".mlp.1": ".time",
    "": "",
}
_TRANSFORMER = {".norm1": ".norms.0", ".norm3": ".norms.1", ".ff.net.0": ".linear1", ".ff.net.3": ".linear2", "": ""}


def unet(seed: int = 0, *, length: int = 10) -> Pair:
    reference = perturb(TorchUnet(), seed)
    truth: Rules = {
        "": "",
        "time_mlp.0": "time_in",
        "time_mlp.2": "time_out",
        "final_proj": "out",
        "down_blocks.0.2": "down.sample",
        "up_blocks.0.2": "up.sample",
    }
    for ours, theirs in (("down_blocks.0", "down"), ("mid_blocks.*", "middle.*"), ("up_blocks.0", "up")):
        truth |= {f"{ours}.0{a}": f"{theirs}.resnet{b}" for a, b in _RESNET.items()}
        truth |= {f"{ours}.1.*{a}": f"{theirs}.transformers.*{b}" for a, b in _TRANSFORMER.items()}
        truth |= {f"{ours}.1.*.attn1{a}": f"{theirs}.transformers.*.attention{b}" for a, b in _T5_ATTENTION.items()}
    weights = {}
    for name, value in reference.state_dict().items():
        module, _, kind = name.rpartition(".")
        weights[f"{matched(truth, module)}.{kind}"] = array(value).transpose(0, 2, 1) if value.ndim == 3 else array(value)
    port = load(MlxUnet(), weights)
    random = np.random.default_rng(seed)
    x, t = random.standard_normal((2, 8, length)).astype(np.float32), random.standard_normal((2, 12)).astype(np.float32)
    return Pair(
        "unet",
        reference,
        port,
        lambda: reference(torch.tensor(x), torch.tensor(t)),
        lambda: mx.eval(port(mx.array(x.transpose(0, 2, 1)), mx.array(t))),
        truth,
    )


PAIRS: dict[str, Callable[..., Pair]] = {"gpt": gpt, "conv": conv, "recurrent": recurrent, "encoder-decoder": encoder_decoder, "unet": unet}
