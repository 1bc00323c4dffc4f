"""A Llama of plain mlx.nn modules, hooked the naive way: what `benchmarks/capture.py` measures in MLX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

Sink = Callable[[str, str, Any], None]


class Rope(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self._frequencies = 10000.0 ** (-mx.arange(0, size, 2) / size)

    def __call__(self, positions: mx.array) -> tuple[mx.array, mx.array]:
        angles = mx.tile(mx.outer(positions.astype(mx.float32), self._frequencies), (1, 2))
        return mx.cos(angles), mx.sin(angles)


def rotated(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    left, right = mx.split(x, 2, axis=-1)
    return x * cos + mx.concatenate([-right, left], axis=-1) * sin


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        q, k, v = (part(x).reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        scale = q.shape[-1] ** -0.5
        mixed = mx.fast.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v, scale=scale, mask="causal")
        return self.o_proj(mixed.swapaxes(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)
        self.act = nn.SiLU()

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(width, heads), Mlp(width, inner)
        self.input_norm, self.post_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)

    def __call__(self, x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        x = x + self.self_attn(self.input_norm(x), cos, sin)
        return x + self.mlp(self.post_norm(x))


class Llama(nn.Module):
    def __init__(self, vocabulary: int, width: int, heads: int, inner: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = [Layer(width, heads, inner) for _ in range(layers)]
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.rope = Rope(width // heads)

    def __call__(self, ids: mx.array) -> mx.array:
        x = self.embed(ids)
        cos, sin = self.rope(mx.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class LanguageModel(nn.Module):
    def __init__(self, vocabulary: int, width: int, heads: int, inner: int, layers: int) -> None:
        super().__init__()
        self.model = Llama(vocabulary, width, heads, inner, layers)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def __call__(self, ids: mx.array) -> mx.array:
        return self.lm_head(self.model(ids))


class Side:
    """The model with its inputs, in MLX."""

    def __init__(self, length: int, **sizes: int) -> None:
        mx.random.seed(0)
        self.model = LanguageModel(**sizes).eval()
        self.ids = mx.random.randint(0, sizes["vocabulary"], (1, length))
        mx.eval(self.ids, self.model.parameters())
        self.threads = None
        self.versions = f"mlx {version('mlx')}"

    def forward(self) -> None:
        mx.eval(self.model(self.ids))

    def count_modules(self) -> int:
        return len(self.model.named_modules())

    def parameters(self) -> list[tuple[str, np.ndarray]]:
        return [(name, np.asarray(value)) for name, value in tree_flatten(self.model.parameters())]

    @contextmanager
    def hooks(self, sink: Sink) -> Iterator[None]:
        """Every module's inputs and outputs, to ``sink(site, end, tensor)``: each instance gets a class with another ``__call__``."""

        def hooked(kind: type, site: str) -> type:
            def called(self: Any, *args: Any, **kwargs: Any) -> Any:
                for value in leaves((args, kwargs)):
                    sink(site, "input", value)
                output = kind.__call__(self, *args, **kwargs)
                for value in leaves(output):
                    sink(site, "output", value)
                return output

            return type(kind.__name__, (kind,), {"__call__": called})

        modules = [(site, module, type(module)) for site, module in self.model.named_modules()]
        for site, module, kind in modules:
            module.__class__ = hooked(kind, site)
        try:
            yield
        finally:
            for _, module, kind in modules:
                module.__class__ = kind

    def snapshot(self, tensor: Any) -> np.ndarray:
        """A copy of a tensor's values, which are computed now if they were not."""
        return np.array(tensor)


def leaves(value: Any) -> Iterator[mx.array]:
    if isinstance(value, mx.array):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))
