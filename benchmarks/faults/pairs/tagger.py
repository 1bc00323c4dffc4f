"""A tagger of sentences: characters convolved and pooled into words, an LSTM in both directions over padded rows, biaffine scores."""

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

WORDS, CHARS, WIDTH, HIDDEN, TAGS, ARC = 31, 17, 10, 8, 5, 6


class CharCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(CHARS, 6, padding_idx=0)
        self.conv = nn.Conv1d(6, 8, 3, padding=1)

    def forward(self, chars: torch.Tensor) -> torch.Tensor:
        batch, words, length = chars.shape
        x = self.conv(self.embed(chars.reshape(-1, length)).transpose(1, 2))
        x = x.masked_fill((chars.reshape(-1, 1, length) == 0), -1e4)
        return torch.tanh(x.max(-1).values).reshape(batch, words, -1)


class Highway(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.transform, self.gate = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = torch.sigmoid(self.gate(x))
        return t * F.relu(self.transform(x)) + (1 - t) * x


class Biaffine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp_head, self.mlp_dep = nn.Linear(2 * HIDDEN, ARC), nn.Linear(2 * HIDDEN, ARC)
        self.arc_weight = nn.Parameter(torch.zeros(ARC + 1, ARC))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        head, dep = F.leaky_relu(self.mlp_head(x), 0.1), F.leaky_relu(self.mlp_dep(x), 0.1)
        dep = torch.cat([dep, torch.ones_like(dep[..., :1])], -1)
        scores = torch.einsum("bxi,ij,byj->bxy", dep, self.arc_weight, head)
        return scores.masked_fill(~mask[:, None], float("-inf")).log_softmax(-1)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word, self.chars = nn.Embedding(WORDS, WIDTH, padding_idx=0), CharCNN()
        self.highway = Highway(WIDTH + 8)
        self.lstm = nn.LSTM(WIDTH + 8, HIDDEN, batch_first=True, bidirectional=True)
        self.norm, self.tags, self.arcs = nn.LayerNorm(2 * HIDDEN), nn.Linear(2 * HIDDEN, TAGS), Biaffine()

    def forward(self, words: torch.Tensor, chars: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mask = words != 0
        x = self.highway(torch.cat([self.word(words), self.chars(chars)], -1)) * mask[..., None]
        x, (last, _) = self.lstm(x)
        x = self.norm(x * mask[..., None])
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return self.tags(x), self.arcs(x, mask), torch.cat([pooled, last[0]], -1)


class Characters(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.filters = mnn.Embedding(CHARS, 6), mnn.Conv1d(6, 8, 3, padding=1)

    def __call__(self, c: mx.array) -> mx.array:
        b, w, t = c.shape
        c = c.reshape(b * w, t)
        x = mx.where((c == 0)[..., None], -1e4, self.filters(self.table(c)))
        return mx.tanh(mx.max(x, axis=1)).reshape(b, w, -1)


class Gated(mnn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.h, self.t = mnn.Linear(width, width), mnn.Linear(width, width)

    def __call__(self, x: mx.array) -> mx.array:
        t = mx.sigmoid(self.t(x))
        return x + t * (mnn.relu(self.h(x)) - x)


class BiLSTM(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.forward, self.backward = mnn.LSTM(WIDTH + 8, HIDDEN), mnn.LSTM(WIDTH + 8, HIDDEN)

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        ahead, _ = self.forward(x)
        back, _ = self.backward(x[:, ::-1])
        return mx.concatenate([ahead, back[:, ::-1]], axis=-1), ahead[:, -1]


class Arcs(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.deps, self.u = mnn.Linear(2 * HIDDEN, ARC), mnn.Linear(2 * HIDDEN, ARC), mx.zeros((ARC + 1, ARC))

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        head, dep = mnn.leaky_relu(self.heads(x), 0.1), mnn.leaky_relu(self.deps(x), 0.1)
        dep = mx.concatenate([dep, mx.ones((*dep.shape[:-1], 1))], axis=-1)
        scores = dep @ self.u @ head.swapaxes(-1, -2)
        scores = mx.where(mask[:, None], scores, -mx.inf)
        return scores - mx.logsumexp(scores, axis=-1, keepdims=True)


class PortTagger(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.characters, self.gated = mnn.Embedding(WORDS, WIDTH), Characters(), Gated(WIDTH + 8)
        self.rnn, self.ln, self.tag_head, self.arc_head = BiLSTM(), mnn.LayerNorm(2 * HIDDEN), mnn.Linear(2 * HIDDEN, TAGS), Arcs()

    def __call__(self, words: mx.array, chars: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        mask = words != 0
        x = mx.concatenate([self.words(words), self.characters(chars)], axis=-1)
        x, last = self.rnn(self.gated(x) * mask[..., None])
        x = self.ln(x * mask[..., None])
        pooled = mx.sum(x * mask[..., None], axis=1) / mx.maximum(mx.sum(mask, axis=1, keepdims=True), 1)
        return self.tag_head(x), self.arc_head(x, mask), mx.concatenate([pooled, last], axis=-1)


def make(seed: int = 0) -> Any:
    truth = {
        "": "", "word": "words", "chars": "characters", "chars.embed": "characters.table", "chars.conv": "characters.filters",
        "highway": "gated", "highway.transform": "gated.h", "highway.gate": "gated.t", "lstm": "rnn", "norm": "ln", "tags": "tag_head",
        "arcs": "arc_head", "arcs.mlp_head": "arc_head.heads", "arcs.mlp_dep": "arc_head.deps",
    }  # fmt: skip
    reference = perturb(Tagger(), seed)
    state = {name: value.detach().numpy() for name, value in reference.lstm.named_parameters()}
    more = {"arc_head.u": reference.arcs.arc_weight.detach().numpy()}
    for ours, theirs in (("", "forward"), ("_reverse", "backward")):
        more[f"rnn.{theirs}.Wx"], more[f"rnn.{theirs}.Wh"] = state[f"weight_ih_l0{ours}"], state[f"weight_hh_l0{ours}"]
        more[f"rnn.{theirs}.bias"] = state[f"bias_ih_l0{ours}"] + state[f"bias_hh_l0{ours}"]
    random = np.random.default_rng(seed)
    words, chars = random.integers(1, WORDS, (3, 7)), random.integers(1, CHARS, (3, 7, 5))
    words[1, 5:], words[2, 3:] = 0, 0
    chars[:, :, 4] *= random.integers(0, 2, (3, 7))
    chars[words == 0] = 0
    edits = (
        Edit("mask.missing", "characters", "__call__", "mx.where((c == 0)[..., None], -1e4, self.filters(self.table(c)))",
             "self.filters(self.table(c))"),
        Edit("transform", "characters", "__call__", "mx.tanh(mx.max(x, axis=1))", "mx.tanh(mx.mean(x, axis=1))"),
        Edit("order.roles", "gated", "__call__", "x + t * (mnn.relu(self.h(x)) - x)", "mnn.relu(self.h(x)) + t * (x - mnn.relu(self.h(x)))",
             also=("scale",)),
        Edit("order.reversed", "rnn", "__call__", "[ahead, back[:, ::-1]]", "[ahead, back]"),
        Edit("order.reversed", "rnn", "__call__", "self.backward(x[:, ::-1])", "self.backward(x)", also=("unknown",)),
        Edit("order.concat", "rnn", "__call__", "[ahead, back[:, ::-1]]", "[back[:, ::-1], ahead]"),
        Edit("mask.missing", "arc_head", "__call__", "scores = mx.where(mask[:, None], scores, -mx.inf)", "pass"),
        Edit("mask.wrong", "arc_head", "__call__", "mx.where(mask[:, None]", "mx.where(mask[:, :, None]"),
        Edit("scale", "", "__call__", "mx.maximum(mx.sum(mask, axis=1, keepdims=True), 1)", "x.shape[1]", also=("transform",)),
        Edit("mask.missing", "", "__call__", "x = self.ln(x * mask[..., None])", "x = self.ln(x)"),
        Edit("activation", "arc_head", "__call__", "mnn.leaky_relu(self.heads(x), 0.1)", "mnn.leaky_relu(self.heads(x))"),
        Edit("position.offset", "rnn", "__call__", "ahead[:, -1]", "ahead[:, 0]", also=("transform", "order.roles")),
        Edit("order.concat", "", "__call__", "[self.words(words), self.characters(chars)]", "[self.characters(chars), self.words(words)]"),
        Edit("heads.layout", "arc_head", "__call__", "mx.logsumexp(scores, axis=-1, keepdims=True)",
             "mx.logsumexp(scores, axis=-2, keepdims=True)", also=("transform",)),
    )  # fmt: skip
    return pair("tagger", reference, PortTagger(), [words, chars], truth, edits=edits, more=more, without=(
        "arc_weight", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0",
        "weight_ih_l0_reverse", "weight_hh_l0_reverse", "bias_ih_l0_reverse",
        "bias_hh_l0_reverse"))  # fmt: skip
