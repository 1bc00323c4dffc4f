"""A Llama of plain torch.nn modules, hooked the naive way: what `benchmarks/capture.py` measures in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

Sink = Callable[[str, str, Any], None]


class Rope(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, size, 2) / size), persistent=False)

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = torch.outer(positions.float(), self.inv_freq).repeat(1, 2)
        return angles.cos(), angles.sin()


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(width, heads), Mlp(width, inner)
        self.input_norm, self.post_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_norm(x), cos, sin)
        return x + self.mlp(self.post_norm(x))


class Llama(nn.Module):
    def __init__(self, vocabulary: int, width: int, heads: int, inner: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.rope = Rope(width // heads)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        cos, sin = self.rope(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class LanguageModel(nn.Module):
    def __init__(self, vocabulary: int, width: int, heads: int, inner: int, layers: int) -> None:
        super().__init__()
        self.model = Llama(vocabulary, width, heads, inner, layers)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.model(ids))


class Side:
    """The model with its inputs, in PyTorch."""

    def __init__(self, length: int, **sizes: int) -> None:
        torch.manual_seed(0)
        self.model = LanguageModel(**sizes).eval()
        self.ids = torch.randint(0, sizes["vocabulary"], (1, length))
        self.threads = torch.get_num_threads()
        self.versions = f"torch {torch.__version__.partition('+')[0]}"

    def forward(self) -> None:
        with torch.no_grad():
            self.model(self.ids)

    def count_modules(self) -> int:
        return sum(1 for _ in self.model.modules())

    def parameters(self) -> list[tuple[str, np.ndarray]]:
        return [(name, value.detach().numpy()) for name, value in self.model.named_parameters()]

    @contextmanager
    def hooks(self, sink: Sink) -> Iterator[None]:
        """Every module's inputs and outputs, to ``sink(site, end, tensor)``."""

        def hook(site: str) -> Callable[..., None]:
            def called(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                for value in leaves((args, kwargs)):
                    sink(site, "input", value)
                for value in leaves(output):
                    sink(site, "output", value)

            return called

        handles = [module.register_forward_hook(hook(site), with_kwargs=True) for site, module in self.model.named_modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def snapshot(self, tensor: Any) -> np.ndarray:
        """A copy of a tensor's values."""
        return tensor.detach().clone(memory_format=torch.contiguous_format).numpy()


def leaves(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))
