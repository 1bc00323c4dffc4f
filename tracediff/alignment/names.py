"""What names say: tokens of module paths, and the role that a type's name suggests. Always the weakest evidence.

The vocabulary below is the field's own, shared by all frameworks; nothing here knows a particular model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache

from tracediff.alignment.thresholds import THRESHOLDS

_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_SYNONYMS = {
    "attention": "attn",
    "selfattn": "attn",
    "mha": "attn",
    "feedforward": "mlp",
    "ffn": "mlp",
    "ff": "mlp",
    "ln": "norm",
    "layernorm": "norm",
    "rmsnorm": "norm",
    "bn": "norm",
    "gn": "norm",
    "batchnorm": "norm",
    "groupnorm": "norm",
    "embedding": "embed",
    "embeddings": "embed",
    "emb": "embed",
    "embd": "embed",
    "embedder": "embed",
    "tok": "token",
    "tokens": "token",
    "wte": "token",
    "word": "token",
    "words": "token",
    "pos": "position",
    "positional": "position",
    "positions": "position",
    "pe": "position",
    "wpe": "position",
    "query": "q",
    "key": "k",
    "value": "v",
    "wq": "q",
    "wk": "k",
    "wv": "v",
    "wo": "out",
    "o": "out",
    "output": "out",
    "input": "in",
    "projection": "proj",
    "dense": "linear",
    "lin": "linear",
    "fc": "linear",
    "layers": "layer",
    "blocks": "layer",
    "block": "layer",
    "h": "layer",
    "resnet": "res",
    "resnets": "res",
    "residual": "res",
    "encoder": "enc",
    "decoder": "dec",
    "convolution": "conv",
    "activation": "act",
    "downsample": "down",
    "downsampler": "down",
    "upsample": "up",
    "upsampler": "up",
}

# What a type's name says its modules do; the first that fits counts.
_ROLES = tuple(
    (role, re.compile(pattern))
    for role, pattern in (
        ("container", r"modulelist|moduledict|sequential|layerlist|parameterlist|^list$|^dict$"),
        ("weight norm", r"^parametrizationlist$|weightnorm$"),
        ("linear", r"linear|dense|^Conv1D$"),
        ("norm", r"norm"),
        ("transposed convolution", r"conv\w*transpose|transpose\w*conv|deconv"),
        ("convolution", r"conv(olution)?\d?d?$"),
        ("rope", r"rotary|rope"),
        ("position", r"position"),
        ("embedding", r"embedding$|^embed$"),
        ("recurrent", r"lstm|gru|rnn"),
        ("identity", r"dropout|droppath|identity|stochasticdepth"),
        ("leaky_relu", r"leaky_?relu"),
        ("softmax", r"softmax"),
        ("gelu", r"gelu"),
        ("silu", r"silu|swish"),
        ("relu", r"relu"),
        ("elu", r"elu$"),
        ("tanh", r"tanh"),
        ("sigmoid", r"sigmoid"),
        ("softplus", r"softplus"),
        ("mish", r"mish"),
        ("snake", r"snake"),
        ("transpose", r"transpose|permute|rearrange"),
        ("pool", r"pool"),
        ("pad", r"pad(\d?d)?$"),
        ("upsample", r"upsample|interpolate"),
        ("flatten", r"flatten"),
        ("attention", r"attention$|attn$"),
    )
)


@lru_cache(maxsize=1 << 16)
def tokens(name: str) -> tuple[str, ...]:
    """The words and numbers of a name, lower-cased, with the field's synonyms made one.

    >>> tokens("layers.3.selfAttention.q_proj"), tokens("h.3.attn.query")
    (('layer', '3', 'self', 'attn', 'q', 'proj'), ('layer', '3', 'attn', 'q'))
    """
    words = (word.lower() for word in _WORD.findall(name))
    return tuple(_SYNONYMS.get(word, word) for word in words)


@lru_cache(maxsize=1 << 16)
def normalised(name: str) -> str:
    """A name with its spelling evened out; names that normalise alike are probably, not surely, the same.

    >>> normalised("encoder.layers.0.selfAttn") == normalised("encoder_layer.0.self_attention")
    True
    """
    return ".".join(tokens(name))


@lru_cache(maxsize=1 << 12)
def role(type_name: str) -> str:
    """What modules of that type do, as their type's name suggests; empty where it suggests nothing.

    >>> role("LlamaRMSNorm"), role("Conv1d"), role("TransformerBlock")
    ('norm', 'convolution', '')
    """
    for found, pattern in _ROLES:
        if pattern.search(type_name) or pattern.search(type_name.lower()):
            return found
    return ""


def likeness(reference: Iterable[str], port: Iterable[str]) -> float:
    """How alike two names' tokens are, 0 to 1: twice the shared over all (Dice).

    >>> likeness(("q", "proj"), ("q",))
    0.6666666666666666
    """
    a, b = set(reference), set(port)
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 0.0


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names most like ``name``, for an error message."""
    known = list(names)
    spelt_alike = get_close_matches(name, known, count, THRESHOLDS.spelling)
    wanted = tokens(name)
    alike = sorted(known, key=lambda other: -likeness(wanted, tokens(other)))
    return list(dict.fromkeys([*spelt_alike, *(other for other in alike[:count] if likeness(wanted, tokens(other)) > 0)]))[:count]


def lists(paths: Iterable[str]) -> dict[str, frozenset[str]]:
    """The indices in a set of paths, by the path above them."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in dict.fromkeys(paths):
        above, _, last = path.rpartition(".")
        if last.isdigit():
            found[above].add(last)
    return {above: frozenset(indices) for above, indices in found.items()}


def indices(path: str, known: Mapping[str, frozenset[str]]) -> list[frozenset[str]]:
    """The indices beside each index of a path: where these differ between two sides, equal indices do not mean the same."""
    segments = path.split(".")
    return [known.get(".".join(segments[:place]), frozenset()) for place, segment in enumerate(segments) if segment.isdigit()]


@lru_cache(maxsize=1 << 18)
def ordered_likeness(reference: str, port: str) -> tuple[float, float]:
    """How alike the words and how alike the numbers of two tensors' names are, 0 to 1, both in order (Ratcliff and Obershelp).

    `likeness` takes words as a set, which suits the short names of modules. Tensors' names share most words with their siblings'
    names, so the order of words and the numbers must tell.

    >>> ordered_likeness("h.3.attn.query.weight", "layers.3.attn.q.weight"), ordered_likeness("h.3.attn.q", "h.4.attn.q")
    ((1.0, 1.0), (1.0, 0.0))
    """
    words = _likeness_of_words(_NUMBER.sub(".", reference), _NUMBER.sub(".", port))
    numbers_a, numbers_b = (tuple(map(int, _NUMBER.findall(name))) for name in (reference, port))
    return words, _in_order(numbers_a, numbers_b)


@lru_cache(maxsize=1 << 16)
def _likeness_of_words(a: str, b: str) -> float:
    return _in_order(tokens(a), tokens(b))


def _in_order(a: Sequence[object], b: Sequence[object]) -> float:
    return SequenceMatcher(None, a, b, autojunk=False).ratio() if a or b else 1.0
