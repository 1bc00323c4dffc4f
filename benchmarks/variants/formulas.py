"""The same formulas written otherwise: activations, softmax, attention, norms, rotations, constants, orders of sums.

What a port's code calls by ``mx.`` and ``nn.`` is looked up in its file's globals; there a stand-in is put for the time of a run. So the
call is another one in the port's own code, which is what tracediff sees.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from mlx import nn

from benchmarks.casting import Arrays
from benchmarks.clean import reordered
from benchmarks.variants.variant import Made, Transformation, Trial
from tracediff.runs.planting import reclassed

PACKAGES = ("pairs", "models", "benchmarks.faults.pairs", "mlx_lm.models", "mlx_whisper", "mlx_vlm.models", "mlx_embeddings.models")
Call = Callable[..., Any]


class StandIn:
    """A module of MLX in which some functions, by dotted names, are others; each is told the original and counts its uses."""

    def __init__(self, inner: Any, others: Mapping[str, Call], used: set[str]) -> None:
        self._inner, self._others, self._used = inner, others, used

    def __getattr__(self, name: str) -> Any:
        held = getattr(self._inner, name)
        if name in self._others:
            self._used.add(name)
            return partial(self._others[name], held)
        below = {key.partition(".")[2]: value for key, value in self._others.items() if key.startswith(f"{name}.")}
        return StandIn(held, below, self._used) if below else held


@contextmanager
def instead(others: Mapping[str, Call], used: set[str], packages: tuple[str, ...] = PACKAGES) -> Iterator[None]:
    """Functions of ``mx`` and ``nn``, by names such as ``nn.gelu``, are others for the code of ports. Compilation is off."""
    by_module = {
        prefix: {name.removeprefix(prefix): call for name, call in others.items() if name.startswith(prefix)} for prefix in ("mx.", "nn.")
    }
    with ExitStack() as stack:
        mx.disable_compile()
        stack.callback(mx.enable_compile)
        for name, module in list(sys.modules.items()):
            if isinstance(module, ModuleType) and any(name == one or name.startswith(f"{one}.") for one in packages):
                stand_ins = _stand_ins(vars(module), by_module["mx."], by_module["nn."], used)
                stack.enter_context(patch.dict(vars(module), stand_ins))
        yield


def _stand_ins(space: Mapping[str, Any], core: Mapping[str, Call], layers: Mapping[str, Call], used: set[str]) -> dict[str, Any]:
    """What stands for ``mx``, for ``nn`` and for functions imported from it among the globals of a file."""
    found: dict[str, Any] = {}
    for name, value in space.items():
        if value is mx or isinstance(value, Arrays):
            found[name] = StandIn(value, core, used)
        elif value is nn:
            found[name] = StandIn(value, layers, used)
        elif name in layers and value is getattr(nn, name):
            found[name] = partial(layers[name], value)
    return found


def rewritten(others: Mapping[str, Call], kinds: Mapping[type, Call] | None = None) -> Callable[[Any, random.Random], Made | None]:
    """A transformation: other functions in the port's code, and other calls for modules of these classes of MLX."""

    def make(pair: Any, chance: random.Random) -> Made | None:
        trial, used = Trial(pair), set[str]()
        changed = []
        for path, module in pair.port.named_modules():
            call = (kinds or {}).get(type(module))
            if call is not None and trial.keeps(lambda module=module, call=call: reclassed(module, __call__=call)):
                changed.append(path)
        force = partial(instead, others, used, (*PACKAGES, type(pair.port).__module__))
        with force():
            if not trial.keeps(lambda: None):
                return None
        text = ", ".join([*sorted(used), *changed[:3], *(["..."] if len(changed) > 3 else [])])
        return Made(text, {}, around=(force,)) if text else None

    return make


# -- activations and softmax ---------------------------------------------------------------------------------------------------------------


def gelu(_: Call, x: mx.array) -> mx.array:
    return 0.5 * x + 0.5 * x * mx.erf(x * 0.7071067811865476)


def gelu_by_cube(_: Call, x: mx.array) -> mx.array:
    return x * mx.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


def silu(_: Call, x: mx.array) -> mx.array:
    return x / (1 + mx.exp(-x))


def mish(_: Call, x: mx.array) -> mx.array:
    return x * mx.tanh(mx.log1p(mx.exp(x)))


def leaky(_: Call, x: mx.array, negative_slope: float = 0.01) -> mx.array:
    return mx.where(x > 0, x, negative_slope * x)


def relu(_: Call, x: mx.array) -> mx.array:
    return mx.where(x > 0, x, mx.zeros_like(x))


def softmax(_: Call, x: mx.array, axis: Any = -1, **kwargs: Any) -> mx.array:
    """Without the largest entry being taken away first."""
    powers = mx.exp(x.astype(mx.float32))
    return (powers / powers.sum(axis=axis, keepdims=True)).astype(x.dtype)


def softmax_by_log(_: Call, x: mx.array, axis: Any = -1, **kwargs: Any) -> mx.array:
    wide = x.astype(mx.float32)
    return mx.exp(wide - mx.logsumexp(wide, axis=axis, keepdims=True)).astype(x.dtype)


ACTIVATIONS = {"gelu": gelu, "gelu_approx": gelu_by_cube, "silu": silu, "mish": mish, "leaky_relu": leaky, "relu": relu}


def _of_module(function: Call) -> Call:
    return lambda self, x: function(None, x)


# -- attention -----------------------------------------------------------------------------------------------------------------------------


def attention(original: Call, q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **more: Any) -> mx.array:
    """Written out: the product of queries and keys, the mask, softmax in float32, the product with the values."""
    if more:
        return original(q, k, v, scale=scale, mask=mask, **more)
    repeats = q.shape[1] // k.shape[1]
    k, v = (mx.repeat(one, repeats, axis=1) if repeats > 1 else one for one in (k, v))
    scores = (q * scale) @ k.swapaxes(-1, -2)
    mask = lower(q.shape[2], k.shape[2]) if isinstance(mask, str) else mask
    if mask is not None:
        scores = (
            mx.where(mask, scores, mx.array(-1e9 if scores.dtype != mx.float16 else -6e4, scores.dtype))
            if mask.dtype == mx.bool_
            else scores + mask
        )
    return mx.softmax(scores, axis=-1, precise=True) @ v


def lower(rows: int, columns: int) -> mx.array:
    """The causal mask of the last rows: True where a key may be seen."""
    return mx.arange(columns - rows, columns)[:, None] >= mx.arange(columns)[None]


# -- norms and rotations -------------------------------------------------------------------------------------------------------------------


def rms_norm(self: Any, x: mx.array) -> mx.array:
    """The mean of squares taken in another order, in float32."""
    wide = x.astype(mx.float32)
    places = mx.array(np.random.default_rng(0).permutation(x.shape[-1]))
    squares = mx.take(wide * wide, places, axis=-1).sum(-1, keepdims=True) * (1 / x.shape[-1])
    return (self["weight"] * (wide / mx.sqrt(squares + self.eps))).astype(x.dtype)


def layer_norm(self: Any, x: mx.array) -> mx.array:
    """Mean and variance taken one after the other, in float32."""
    wide = x.astype(mx.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    y = centred / mx.sqrt((centred * centred).mean(-1, keepdims=True) + self.eps)
    y = y * self["weight"] if "weight" in self else y
    return (y + self["bias"] if "bias" in self else y).astype(x.dtype)


def batch_norm(self: Any, x: mx.array) -> mx.array:
    """As one factor and one offset a channel."""
    gain = self["weight"] / mx.sqrt(self["running_var"] + self.eps)
    return x * gain + (self["bias"] - self["running_mean"] * gain)


def rope(self: Any, x: mx.array, offset: Any = 0) -> mx.array:
    """Rotations written out, their angles computed in float64."""
    half = self.dims // 2
    angles = (np.arange(int(offset), int(offset) + x.shape[-2])[:, None] * self.scale) * self.base ** (
        -np.arange(half, dtype=np.float64) / half
    )
    cos, sin = (mx.array(one.astype(np.float32)) for one in (np.cos(angles), np.sin(angles)))
    wide, rest = x[..., : self.dims].astype(mx.float32), x[..., self.dims :]
    if self.traditional:
        a, b = wide[..., ::2], wide[..., 1::2]
        turned = mx.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(wide.shape)
    else:
        a, b = wide[..., :half], wide[..., half:]
        turned = mx.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return mx.concatenate([turned.astype(x.dtype), rest], axis=-1)


# -- constants and sums --------------------------------------------------------------------------------------------------------------------


def constants_rounded(pair: Any, chance: random.Random) -> Made | None:
    """Every number that a module keeps (eps, scales) is rounded to float32, every table that is no parameter off by its last bit."""
    trial, found = Trial(pair), []
    draw = np.random.default_rng(chance.randrange(1 << 30))

    def change() -> None:
        for path, module in pair.port.named_modules():
            for name, value in vars(module).items():
                if type(value) is float and value != float(np.float32(value)):
                    object.__setattr__(module, name, float(np.float32(value)))
                    found.append(f"{path}.{name}")
            for name, value in module.items():
                if name.startswith("_") and isinstance(value, mx.array) and value.dtype == mx.float32:
                    near = np.nextafter(np.array(value), np.float32(np.inf) * draw.choice([-1, 1], value.shape).astype(np.float32))
                    module[name] = mx.array(np.where(np.isfinite(near), near, np.array(value)))
                    found.append(f"{path}.{name}")

    return Made(", ".join(found[:4]) + ("..." if len(found) > 4 else "")) if trial.keeps(change) and found else None


def sums(order: str) -> Callable[[Any, random.Random], Made | None]:
    """A transformation: linear layers and convolutions add up their terms in another order."""

    def make(pair: Any, chance: random.Random) -> Made | None:
        trial = Trial(pair)
        with reordered(order):
            is_kept = trial.keeps(lambda: None)
        return Made("all layers", around=(partial(reordered, order),)) if is_kept else None

    return make


TRANSFORMATIONS = (
    Transformation(
        "activations written otherwise",
        rewritten(
            {f"nn.{name}": one for name, one in ACTIVATIONS.items()},
            {nn.GELU: _of_module(gelu), nn.SiLU: _of_module(silu), nn.Mish: _of_module(mish)},
        ),
    ),
    Transformation("softmax without maximum", rewritten({"mx.softmax": softmax, "nn.softmax": softmax}, {nn.Softmax: _of_module(softmax)})),
    Transformation(
        "softmax by logarithms",
        rewritten({"mx.softmax": softmax_by_log, "nn.softmax": softmax_by_log}, {nn.Softmax: _of_module(softmax_by_log)}),
    ),
    Transformation("attention written out", rewritten({"mx.fast.scaled_dot_product_attention": attention})),
    Transformation("norms written out", rewritten({}, {nn.RMSNorm: rms_norm, nn.LayerNorm: layer_norm, nn.BatchNorm: batch_norm})),
    Transformation("rotations written out", rewritten({}, {nn.RoPE: rope})),
    Transformation("constants rounded", constants_rounded),
    Transformation("sums in another order", sums("permuted")),
    Transformation("sums in two halves", sums("split")),
)
