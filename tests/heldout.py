"""Reference/port pairs that the alignment was not written with: other architectures, boundaries in other places, shared modules.

`mixer`: patches mixed over space and over channels; the reference scales each branch in a module of its own, the port by a parameter of
the block; the port adds positions outside of the patch module and calls independent branches in another order. `shared`: one block called
three times; the embedding is scaled outside in the reference and inside in the port, norms store ``w`` or ``1 + w``, gate and up
projection are one matrix in the reference; the head is tied.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as mnn
import numpy as np
import torch
from pairs import Pair, array, load, perturb
from torch import nn

SIDE, PATCH, WIDTH, LAYERS = 16, 4, 24, 3
PLACES = (SIDE // PATCH) ** 2


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Any) -> Any:
        return x * self.gamma


class PatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.pos = nn.Parameter(torch.zeros(1, PLACES, WIDTH))

    def forward(self, image: Any) -> Any:
        return self.proj(image).flatten(2).transpose(1, 2) + self.pos


class MixerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_space, self.space_in, self.space_out = nn.LayerNorm(WIDTH), nn.Linear(PLACES, 20), nn.Linear(20, PLACES)
        self.scale_space, self.scale_channel = LayerScale(WIDTH), LayerScale(WIDTH)
        self.norm_channel, self.channel_in, self.channel_out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)
        self.local = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.act = nn.GELU()

    def forward(self, x: Any) -> Any:
        mixed = self.space_out(self.act(self.space_in(self.norm_space(x).transpose(1, 2)))).transpose(1, 2)
        near = self.local(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.scale_space(mixed + near)
        return x + self.scale_channel(self.channel_out(self.act(self.channel_in(self.norm_channel(x)))))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stages = PatchEmbed(), nn.Sequential(*[MixerBlock() for _ in range(LAYERS)])
        self.norm, self.classifier = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, image: Any) -> Any:
        return self.classifier(self.norm(self.stages(self.stem(image))).mean(1))


class PortMlp(mnn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w2 = mnn.Linear(width, hidden), mnn.Linear(hidden, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.w2(mnn.gelu(self.w1(x)))


class PortMixerLayer(mnn.Module):
    """Scales by parameters of its own, and computes the local branch first."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_a, self.ln_b = mnn.LayerNorm(WIDTH), mnn.LayerNorm(WIDTH)
        self.across, self.within = PortMlp(PLACES, 20), PortMlp(WIDTH, 40)
        self.depthwise = mnn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.gamma_a, self.gamma_b = mx.ones((WIDTH,)), mx.ones((WIDTH,))

    def __call__(self, x: mx.array) -> mx.array:
        near = self.depthwise(x)
        mixed = self.across(self.ln_a(x).transpose(0, 2, 1)).transpose(0, 2, 1)
        x = x + self.gamma_a * (mixed + near)
        return x + self.gamma_b * self.within(self.ln_b(x))


class PortMixer(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = mnn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.positions = mx.zeros((1, PLACES, WIDTH))
        self.layers = [PortMixerLayer() for _ in range(LAYERS)]
        self.ln, self.out = mnn.LayerNorm(WIDTH), mnn.Linear(WIDTH, 10)

    def __call__(self, image: mx.array) -> mx.array:
        x = self.patches(image)
        x = x.reshape(x.shape[0], -1, WIDTH) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.out(self.ln(x).mean(1))


_MIXER = {
    "norm_space": "ln_a",
    "norm_channel": "ln_b",
    "space_in": "across.w1",
    "space_out": "across.w2",
    "channel_in": "within.w1",
    "channel_out": "within.w2",
    "local": "depthwise",
}


def mixer(seed: int = 0) -> Pair:
    """Patches mixed over space and channels."""
    reference = perturb(Mixer(), seed)
    state = {name: array(value) for name, value in reference.state_dict().items()}
    weights = {"patches.weight": state["stem.proj.weight"].transpose(0, 2, 3, 1), "patches.bias": state["stem.proj.bias"]}
    weights |= {"positions": state["stem.pos"]}
    for ours, theirs in (("norm", "ln"), ("classifier", "out")):
        weights |= {f"{theirs}.{leaf}": state[f"{ours}.{leaf}"] for leaf in ("weight", "bias")}
    for layer in range(LAYERS):
        for ours, theirs in _MIXER.items():
            for leaf in ("weight", "bias"):
                value = state[f"stages.{layer}.{ours}.{leaf}"]
                weights[f"layers.{layer}.{theirs}.{leaf}"] = value.transpose(0, 2, 1) if value.ndim == 3 else value
        weights[f"layers.{layer}.gamma_a"] = state[f"stages.{layer}.scale_space.gamma"]
        weights[f"layers.{layer}.gamma_b"] = state[f"stages.{layer}.scale_channel.gamma"]
    port = load(PortMixer(), weights)
    image = np.random.default_rng(seed).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    truth = {"": "", "stem.proj": "patches", "stages.*": "layers.*", "norm": "ln", "classifier": "out"}
    return Pair(
        "mixer",
        reference,
        port,
        lambda: reference(torch.tensor(image)),
        lambda: mx.eval(port(mx.array(image.transpose(0, 2, 3, 1)))),
        truth | {f"stages.*.{ours}": f"layers.*.{theirs}" for ours, theirs in _MIXER.items()},
    )


# -- one block called again and again ---------------------------------------------------------------------

MODEL, HIDDEN, VOCABULARY, TIMES, KERNEL = 20, 28, 40, 3, 4


class UnitNorm(nn.Module):
    """RMS normalisation that stores how far its scale is from one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(MODEL))

    def forward(self, x: Any) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class Recurrence(nn.Module):
    """A gated linear recurrence behind a short causal convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(MODEL, MODEL, KERNEL, padding=KERNEL - 1, groups=MODEL)
        self.gates, self.out_proj = nn.Linear(MODEL, 2 * MODEL), nn.Linear(MODEL, MODEL, bias=False)

    def forward(self, x: Any) -> Any:
        x = self.conv1d(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        keep, given = torch.sigmoid(self.gates(x)).chunk(2, -1)
        state, states = torch.zeros_like(x[:, 0]), []
        for step in range(x.shape[1]):
            state = keep[:, step] * state + given[:, step] * x[:, step]
            states.append(state)
        return self.out_proj(torch.stack(states, 1))


class GatedMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(MODEL, 2 * HIDDEN, bias=False), nn.Linear(HIDDEN, MODEL, bias=False)

    def forward(self, x: Any) -> Any:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(nn.functional.silu(gate) * up)


class SharedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_norm, self.recurrence, self.post_norm, self.mlp = UnitNorm(), Recurrence(), UnitNorm(), GatedMlp()

    def forward(self, x: Any) -> Any:
        x = x + self.recurrence(self.input_norm(x))
        return x + self.mlp(self.post_norm(x))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.block, self.final_norm = nn.Embedding(VOCABULARY, MODEL), SharedBlock(), UnitNorm()
        self.adapters = nn.ModuleList([nn.Linear(MODEL, MODEL) for _ in range(TIMES)])

    def forward(self, ids: Any) -> Any:
        x = self.embed_tokens(ids) * MODEL**0.5
        for adapter in self.adapters:
            x = x + adapter(self.block(x))
        return nn.functional.linear(self.final_norm(x), self.embed_tokens.weight)


class ScaledEmbedding(mnn.Embedding):
    def __call__(self, ids: mx.array) -> mx.array:
        return super().__call__(ids) * self.weight.shape[-1] ** 0.5


class PortRecurrence(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.short, self.keep, self.give = (
            mnn.Conv1d(MODEL, MODEL, KERNEL, groups=MODEL),
            mnn.Linear(MODEL, MODEL),
            mnn.Linear(MODEL, MODEL),
        )
        self.o = mnn.Linear(MODEL, MODEL, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.short(mx.pad(x, [(0, 0), (KERNEL - 1, 0), (0, 0)]))
        keep, given = mx.sigmoid(self.keep(x)), mx.sigmoid(self.give(x))
        state, states = mx.zeros_like(x[:, 0]), []
        for step in range(x.shape[1]):
            state = keep[:, step] * state + given[:, step] * x[:, step]
            states.append(state)
        return self.o(mx.stack(states, 1))


class PortGated(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g, self.u, self.d = (
            mnn.Linear(MODEL, HIDDEN, bias=False),
            mnn.Linear(MODEL, HIDDEN, bias=False),
            mnn.Linear(HIDDEN, MODEL, bias=False),
        )

    def __call__(self, x: mx.array) -> mx.array:
        up = self.u(x)
        return self.d(mnn.silu(self.g(x)) * up)


class PortShared(mnn.Module):
    """The block's parts hang on the model itself, so that one level is missing."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.n1, self.n2, self.nf = ScaledEmbedding(VOCABULARY, MODEL), *(mnn.RMSNorm(MODEL, eps=1e-6) for _ in range(3))
        self.rec, self.ff, self.mix = PortRecurrence(), PortGated(), [mnn.Linear(MODEL, MODEL) for _ in range(TIMES)]

    def __call__(self, ids: mx.array) -> mx.array:
        x = self.wte(ids)
        for mix in self.mix:
            h = x + self.rec(self.n1(x))
            x = x + mix(h + self.ff(self.n2(h)))
        return self.wte.as_linear(self.nf(x))


def shared(seed: int = 0) -> Pair:
    """A block called three times, whose level the port lacks."""
    reference = perturb(Shared(), seed)
    state = {name: array(value) for name, value in reference.state_dict().items()}
    weights = {
        "wte.weight": state["embed_tokens.weight"],
        "nf.weight": 1 + state["final_norm.weight"],
        "n1.weight": 1 + state["block.input_norm.weight"],
        "n2.weight": 1 + state["block.post_norm.weight"],
        "rec.short.weight": state["block.recurrence.conv1d.weight"].transpose(0, 2, 1),
        "rec.short.bias": state["block.recurrence.conv1d.bias"],
        "rec.o.weight": state["block.recurrence.out_proj.weight"],
        "ff.d.weight": state["block.mlp.down_proj.weight"],
    }
    for leaf in ("weight", "bias"):
        weights[f"rec.keep.{leaf}"], weights[f"rec.give.{leaf}"] = np.split(state[f"block.recurrence.gates.{leaf}"], 2)
        weights |= {f"mix.{place}.{leaf}": state[f"adapters.{place}.{leaf}"] for place in range(TIMES)}
    weights["ff.g.weight"], weights["ff.u.weight"] = np.split(state["block.mlp.gate_up_proj.weight"], 2)
    port = load(PortShared(), weights)
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (2, 9))
    truth = {
        "": "",
        "embed_tokens": "wte",
        "block.input_norm": "n1",
        "block.post_norm": "n2",
        "final_norm": "nf",
        "block.recurrence": "rec",
        "block.recurrence.conv1d": "rec.short",
        "block.recurrence.out_proj": "rec.o",
        "block.mlp": "ff",
        "block.mlp.down_proj": "ff.d",
        "adapters.*": "mix.*",
    }
    return Pair("shared", reference, port, lambda: reference(torch.tensor(ids)), lambda: mx.eval(port(mx.array(ids))), truth)


PAIRS = {"mixer": mixer, "shared": shared}
