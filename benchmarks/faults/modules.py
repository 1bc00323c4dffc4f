"""Faults of single modules: their weights, their constants, what they do to what comes in and goes out.

`FAULTS` lists them; each says to which modules it applies. Where it applies the change is real: whether it shows is measured, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from benchmarks.faults.plant import Call, Change, Fault, around, edited
from tracediff.runs.planting import Assign, Swap

LINEAR = (nn.Linear,)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
LAYERS = (*LINEAR, *CONVOLUTIONS)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm)


@dataclass(frozen=True)
class ModuleFault:
    """A way in which a module can be wrong: ``applies`` to a module at a path, and how it is then planted there."""

    name: str
    kind: str
    applies: Callable[[str, nn.Module], bool]
    plant: Callable[[str, nn.Module], Change]
    also: tuple[str, ...] = ()

    def at(self, path: str, module: nn.Module) -> Iterator[Fault]:
        if self.applies(path, module):
            yield Fault(self.name, self.kind, path, self.plant(path, module), also=self.also)


def of(*kinds: type, where: Callable[[str, nn.Module], bool] = lambda path, module: True) -> Callable[[str, nn.Module], bool]:
    """Applies to modules of these kinds for which ``where`` holds."""
    return lambda path, module: isinstance(module, kinds) and where(path, module)


def has(name: str) -> Callable[[str, nn.Module], bool]:
    return lambda path, module: name in module


def is_rope(path: str, module: nn.Module) -> bool:
    return "rope" in type(module).__name__.lower() or "rotary" in type(module).__name__.lower()


def is_positions(path: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) and any(word in path.rpartition(".")[2] for word in ("pos", "wpe"))


def is_norm(path: str, module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not list(module.children())


# -- weights -------------------------------------------------------------------------------------------------------------------------------


def drawn_anew(values: mx.array) -> mx.array:
    """As an initialiser would leave it."""
    array = np.array(values.astype(mx.float32))
    if array.ndim <= 1:
        return mx.array(np.full_like(array, 1.0 if array.mean() > 0.5 else 0.0))
    bound = 1 / np.sqrt(np.prod(array.shape[1:]))
    return mx.array(np.random.default_rng(11).uniform(-bound, bound, array.shape).astype(np.float32))


def coarse(values: mx.array) -> mx.array:
    """As four bits in groups of the last axis keep it."""
    step = mx.abs(values).max(-1, keepdims=True) / 7
    return mx.round(values / mx.maximum(step, 1e-12)) * step


def one_row(values: mx.array) -> mx.array:
    return mx.concatenate([values[:1] * 3 + 0.5, values[1:]])


def last_rows(values: mx.array) -> mx.array:
    """The second half takes the place of the first, as where a fused weight is cut wrongly."""
    half = values.shape[0] // 2
    return mx.concatenate([values[half:], values[:half]])


def weight(change: Callable[[mx.array], mx.array], name: str = "weight") -> Callable[[str, nn.Module], Change]:
    return lambda path, module: edited(path, name, change)


def _is_square(path: str, module: nn.Module) -> bool:
    return module["weight"].ndim == 2 and module["weight"].shape[0] == module["weight"].shape[1]


# -- code of the module itself -------------------------------------------------------------------------------------------------------------


def constant(name: str, change: Callable[[Any], Any]) -> Callable[[str, nn.Module], Change]:
    """A constant that the module was built with is another one."""
    return lambda path, _: Assign(path, name, lambda models, module, old: change(old))


def code(spoil: Callable[..., Any]) -> Callable[[str, nn.Module], Change]:
    return lambda path, module: around(path, spoil)


def _on_output(change: Callable[[mx.array], mx.array]) -> Callable[..., Any]:
    """What the module returns is changed, its first tensor where there are several."""

    def spoil(call: Call, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        made = call(*args, **kwargs)
        if isinstance(made, tuple):
            return (change(made[0]), *made[1:])
        return change(made) if isinstance(made, mx.array) else made

    return spoil


def _on_input(change: Callable[[mx.array], mx.array]) -> Callable[..., Any]:
    def spoil(call: Call, module: nn.Module, x: Any, *args: Any, **kwargs: Any) -> Any:
        return call(change(x) if isinstance(x, mx.array) else x, *args, **kwargs)

    return spoil


def _identity(call: Call, module: nn.Module, x: Any, *args: Any, **kwargs: Any) -> Any:
    return x


def _shifted(x: mx.array) -> mx.array:
    """One position late, as a causal padding makes it where a symmetric one was meant: channels are last."""
    return mx.concatenate([mx.zeros_like(x[:, :1]), x[:, :-1]], axis=1)


def _padded_by_edge(call: Call, module: Any, x: mx.array) -> mx.array:
    """The borders are padded with their own values in the place of zeros."""
    pad = module.padding if isinstance(module.padding, int) else module.padding[0]
    kept, module.padding = module.padding, 0
    try:
        return call(mx.pad(x, [(0, 0), (pad, pad), (0, 0)], mode="edge"))  # type: ignore[no-any-return]
    finally:
        module.padding = kept


def _some_dropped(x: mx.array) -> mx.array:
    keep = mx.array(np.random.default_rng(5).random(x.shape) > 0.1)
    return mx.where(keep, x / 0.9, 0).astype(x.dtype)


def _coarser(x: mx.array) -> mx.array:
    """Computed in a dtype of fewer bits."""
    return (x.astype(mx.float32).view(mx.uint32) & 0xFFF80000).view(mx.float32).astype(x.dtype)


def _overflown(x: mx.array) -> mx.array:
    flat = x.reshape(-1)
    return mx.concatenate([flat[:-1], mx.full((1,), float("inf"), x.dtype)]).reshape(x.shape)


def _raise(call: Call, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    raise ValueError(
        f"[matmul] Last dimension of first input with shape {[one.shape for one in args if isinstance(one, mx.array)]} must match"
    )


def _clamped(x: mx.array) -> mx.array:
    limit = 1.2 * mx.sqrt((x.astype(mx.float32) ** 2).mean()).astype(x.dtype)
    return mx.clip(x, -limit, limit)


def _is_sequence_conv(path: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d) and not isinstance(module.padding, tuple) and module.padding > 0


def _is_conv1d(path: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d)


def _is_float_leaf(path: str, module: nn.Module) -> bool:
    return isinstance(module, (*LAYERS, *NORMS)) or is_norm(path, module)


def _is_composite(path: str, module: nn.Module) -> bool:
    return bool(path) and bool(list(module.leaf_modules()))


FAULTS: tuple[ModuleFault, ...] = (
    ModuleFault("weight never loaded", "weights.unloaded", of(*LAYERS, nn.Embedding), weight(drawn_anew)),
    ModuleFault(
        "scale never loaded", "weights.unloaded", lambda path, module: is_norm(path, module) and "weight" in module, weight(drawn_anew)
    ),
    ModuleFault(
        "bias left at zero",
        "weights.missing_bias",
        of(*LAYERS, where=has("bias")),
        weight(mx.zeros_like, "bias"),
        also=("weights.unloaded",),
    ),
    ModuleFault("square weight transposed", "weights.layout", of(*LINEAR, where=_is_square), weight(mx.transpose)),
    ModuleFault(
        "halves of the weight swapped",
        "weights.layout",
        of(*LINEAR),
        weight(last_rows),
        also=("order.channels", "weights.value", "weights.swapped"),
    ),
    ModuleFault("one row of the weight wrong", "weights.value", of(*LAYERS), weight(one_row)),
    ModuleFault("weight a little larger", "weights.value", of(*LAYERS), weight(lambda w: w * 1.05), also=("scale",)),
    ModuleFault("weight of four bits", "weights.precision", of(*LAYERS, nn.Embedding), weight(coarse), also=("weights.value",)),
    ModuleFault(
        "kernel turned round",
        "weights.layout",
        of(*CONVOLUTIONS, where=lambda _, m: m["weight"].shape[1] > 1),
        weight(lambda w: w[:, ::-1]),
    ),
    ModuleFault(
        "eps a hundred times",
        "norm.eps",
        lambda path, module: is_norm(path, module) and hasattr(module, "eps"),
        constant("eps", lambda e: e * 1e4),
    ),
    ModuleFault("norm left out", "norm.missing", is_norm, code(_identity)),
    ModuleFault("statistics of the batch", "mode.train", of(nn.BatchNorm), constant("_training", lambda _: True)),
    ModuleFault(
        "groups laid out otherwise",
        "norm.missing",
        of(nn.GroupNorm, where=lambda _, m: m.pytorch_compatible),
        constant("pytorch_compatible", lambda _: False),
        also=("unknown", "order.channels"),
    ),
    ModuleFault(
        "activation left out",
        "activation",
        lambda path, module: type(module).__name__ in ("GELU", "SiLU", "ReLU", "Mish", "Snake", "ELU"),
        code(_identity),
        also=("branch.missing",),
    ),
    ModuleFault("rotation left out", "rope.missing", is_rope, code(_identity), also=("position.missing",)),
    ModuleFault(
        "pairs of channels chosen otherwise",
        "rope.variant",
        lambda path, module: is_rope(path, module) and hasattr(module, "traditional"),
        constant("traditional", lambda t: not t),
    ),
    ModuleFault(
        "base ten times",
        "rope.variant",
        lambda path, module: is_rope(path, module) and isinstance(getattr(module, "base", None), float | int),
        constant("base", lambda b: b * 10),
    ),
    ModuleFault("positions off by one", "position.offset", is_positions, code(_on_input(lambda ids: ids + 1))),
    ModuleFault(
        "no positions", "position.missing", is_positions, code(_on_output(mx.zeros_like)), also=("branch.missing", "weights.unloaded")
    ),
    ModuleFault("one frame late", "padding.shift", _is_conv1d, code(_on_input(_shifted)), also=("time.scale",)),
    ModuleFault("edges repeated", "padding.mode", _is_sequence_conv, code(_padded_by_edge)),
    ModuleFault("channels backwards", "order.channels", of(*LAYERS), code(_on_output(lambda y: y[..., ::-1])), also=("order.reversed",)),
    ModuleFault(
        "sequence backwards",
        "order.reversed",
        of(*LAYERS, where=lambda path, m: True),
        code(_on_output(lambda y: y[:, ::-1] if y.ndim > 2 else y)),
    ),
    ModuleFault("twice as large", "scale", _is_float_leaf, code(_on_output(lambda y: y * 2))),
    ModuleFault("gain of one per cent", "scale", _is_float_leaf, code(_on_output(lambda y: y * 1.01))),
    ModuleFault("clamped", "clamp", of(*LAYERS), code(_on_output(_clamped))),
    ModuleFault("a tenth dropped", "dropout", of(*LAYERS), code(_on_output(_some_dropped)), also=("mode.train",)),
    ModuleFault("computed coarsely", "precision", _is_float_leaf, code(_on_output(_coarser))),
    ModuleFault("one value overflows", "nonfinite", _is_float_leaf, code(_on_output(_overflown))),
    ModuleFault("raises", "raised", _is_float_leaf, code(_raise)),
    ModuleFault("output of a composite scaled", "scale", _is_composite, code(_on_output(lambda y: y * 1.3))),
)


def swaps(modules: dict[str, Any]) -> Iterator[Fault]:
    """Siblings whose weights are of one shape; the culprit is the first, the other is found too."""
    known: dict[tuple[str, type, tuple[int, ...]], str] = {}
    for path, module in modules.items():
        if isinstance(module, LAYERS):
            key = (path.rpartition(".")[0], type(module), tuple(module["weight"].shape))
            if key in known:
                yield Fault(
                    f"weights swapped with {path}",
                    "weights.swapped",
                    known[key],
                    Swap((known[key], "weight"), (path, "weight")),
                    others=(path,),
                )
            known.setdefault(key, path)
