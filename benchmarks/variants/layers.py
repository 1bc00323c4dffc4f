"""Linear layers and convolutions of MLX taken apart and put together."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
LAYERS = (nn.Linear, *CONVOLUTIONS)


def is_layer(module: Any) -> bool:
    """Whether a module is exactly a linear layer or a convolution without groups, with no other code in it."""
    return type(module) in LAYERS and getattr(module, "groups", 1) == 1


def with_weights(like: Any, weight: mx.array, bias: mx.array | None) -> Any:
    """A layer like another one with these weights: (out, in) for a linear layer, (out, *kernel, in) for a convolution."""
    if type(like) is nn.Linear:
        made: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    else:
        settings = {name: getattr(like, name) for name in ("stride", "padding", "dilation")}
        made = type(like)(
            weight.shape[-1], weight.shape[0], weight.shape[1:-1] if weight.ndim > 3 else weight.shape[1], **settings, bias=bias is not None
        )
    made.weight = weight
    if bias is not None:
        made.bias = bias
    made.eval()
    return made


def bias_of(layer: Any) -> mx.array | None:
    return layer.get("bias")


def halves(layer: Any) -> list[Any]:
    """Two layers whose outputs, concatenated along the last axis, are the layer's."""
    cut, bias = layer["weight"].shape[0] // 2, bias_of(layer)
    return [
        with_weights(layer, layer["weight"][part], None if bias is None else bias[part]) for part in (slice(None, cut), slice(cut, None))
    ]


def addends(layer: Any) -> list[Any]:
    """Two layers, of either half of the input's channels, whose outputs sum up to the layer's; the first has the bias."""
    cut = layer["weight"].shape[-1] // 2
    return [with_weights(layer, layer["weight"][..., :cut], bias_of(layer)), with_weights(layer, layer["weight"][..., cut:], None)]


class Concatenated(nn.Module):
    """A layer in two halves of its output channels."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.parts = halves(layer)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.concatenate([part(x) for part in self.parts], axis=-1)


class Summed(nn.Module):
    """A layer in two halves of its input channels."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.cut = layer["weight"].shape[-1] // 2
        self.parts = addends(layer)

    def __call__(self, x: mx.array) -> mx.array:
        return self.parts[0](x[..., : self.cut]) + self.parts[1](x[..., self.cut :])


class Transposed(nn.Module):
    """A linear layer that stores its weight as (in, out)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer["weight"].T
        if "bias" in layer:
            self.bias = layer["bias"]

    def __call__(self, x: mx.array) -> mx.array:
        y = x @ self.weight
        return y + self.bias if "bias" in self else y


class ChannelsFirst(nn.Module):
    """A module that is handed its channels on axis 1, and hands them on there."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def __call__(self, x: mx.array) -> mx.array:
        return mx.moveaxis(self.inner(mx.moveaxis(x, 1, -1)), -1, 1)


def as_convolution(layer: nn.Linear) -> nn.Conv1d:
    """A convolution of kernel 1 that does what a linear layer does on (batch, length, channels)."""
    made = nn.Conv1d(layer["weight"].shape[1], layer["weight"].shape[0], 1, bias="bias" in layer)
    made.weight = layer["weight"][:, None]
    if "bias" in layer:
        made.bias = layer["bias"]
    return made


def as_linear(layer: Any) -> nn.Linear:
    """A linear layer that does what a convolution of kernel 1 and stride 1 does, channels last."""
    weight = layer["weight"]
    made = nn.Linear(weight.shape[-1], weight.shape[0], bias="bias" in layer)
    made.weight = weight.reshape(weight.shape[0], weight.shape[-1])
    if "bias" in layer:
        made.bias = layer["bias"]
    return made


def is_pointwise(layer: Any) -> bool:
    """Whether a convolution sees one place at a time."""
    if type(layer) not in CONVOLUTIONS or getattr(layer, "groups", 1) != 1:
        return False
    settings = [layer.stride, layer.padding, layer.dilation]
    flat = [number for one in settings for number in (one if isinstance(one, tuple) else (one,))]
    half = len(flat) // 3
    return all(size == 1 for size in layer["weight"].shape[1:-1]) and flat[:half] == [1] * half and flat[half : 2 * half] == [0] * half
