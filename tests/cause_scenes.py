"""For each kind of cause a scene in which it must be named, and a look-alike in which it must not: `SCENES`.

The rows of `tracediff.causes.catalogue` say in words what stands here in arrays and runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import weights_pairs
from judging import Run, aligned, bumped, inputs
from judging import weights as layer_weights

from tracediff.causes import from_pair, from_weights
from tracediff.causes.cause import one_of_each_kind
from tracediff.causes.from_tensors import causes_of_scene
from tracediff.causes.in_hand import InHand
from tracediff.causes.scene import CulpritSide, Scene
from tracediff.dtype import Array
from tracediff.locate import locate
from tracediff.parameters.diagnosis import weights as compare_weights
from tracediff.replay.functions import FUNCTIONS
from tracediff.site import frame_text
from tracediff.trace import schema

Kinds = Callable[[Path], list[str]]
"""Runs a scene, in a folder, and returns the kinds of its causes, best first."""


@dataclass(frozen=True)
class Pair:
    """A scene of a kind and its look-alike."""

    scene: Kinds
    look_alike: Kinds


# -- tensors ------------------------------------------------------------------------------------------------------------

B, T, C, H, D = 2, 12, 16, 4, 8


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def given(values: Array, name: str = "x", *, end: str = "input[0]", kind: str = "", is_input: bool = True) -> InHand:
    return InHand(name, end, kind, is_input, values)


def returned(values: Array, name: str, kind: str = "Linear", calls: int = 1) -> InHand:
    return InHand(name, "output", kind, False, values, calls=calls)


def scene(reference: Any, port: Any, *in_hand: InHand, blame: str = "caller", **more: Any) -> Scene:
    further: dict[str, Any] = {
        "site": "block.part",
        "end": "output",
        "sides": (CulpritSide("block"), CulpritSide("block")),
        "limit": 1e-6,
        "dtypes": ("float32", "float32"),
        "run_dtypes": ("float32", "float32"),
        **more,
    }
    return Scene(blame=blame, reference=np.asarray(reference), port=np.asarray(port), in_hand=in_hand, **further)


def kinds(made: Scene) -> list[str]:
    return [cause.kind for cause in one_of_each_kind(causes_of_scene(made))]


def layer_norm(values: Array, eps: float = 1e-5) -> Array:
    gain, offset = 1 + 0.2 * draw(C, seed=7), 0.2 * draw(C, seed=8)
    return (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + eps) * gain + offset


def attend(q: Array, k: Array, v: Array, mask: Any = 0.0, scale: float = D**-0.5) -> Array:
    scores = scale * q @ k.swapaxes(-1, -2) + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def rope(values: Array, *, base: float = 10000.0, offset: int = 0, in_turn: bool = False) -> Array:
    half = values.shape[-1] // 2
    angles = (np.arange(values.shape[-2]) + offset)[:, None] * base ** (-np.arange(half) / half)
    pairs = values[..., 0::2] + 1j * values[..., 1::2] if in_turn else values[..., :half] + 1j * values[..., half:]
    turned = pairs * np.exp(1j * angles)
    if in_turn:
        return np.stack([turned.real, turned.imag], -1).reshape(values.shape)
    return np.concatenate([turned.real, turned.imag], -1)


def embedded(t: Array, scale: float = 1.0, *, cosine_first: bool = False) -> Array:
    angles = scale * t[:, None] * 10000.0 ** (-np.arange(8) / 8)
    parts = [np.sin(angles), np.cos(angles)]
    return np.concatenate(parts[::-1] if cosine_first else parts, -1)


def coarse(values: Array) -> Array:
    return values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


x, branch, other = draw(B, T, C), draw(B, T, C, seed=1), draw(B, T, C, seed=2)
q, k, v = draw(B, H, T, D), draw(B, H, T, D, seed=1), draw(B, H, T, D, seed=2)
causal = np.where(np.tri(T, dtype=bool), 0.0, -np.inf)
conditional, free = np.split(draw(2 * B, T, C, seed=4), 2)
times = np.array([0.1, 0.5, 0.9])
unexplained = x + 0.3 * branch * other
NORMS = (CulpritSide("norm", "LayerNorm", attributes={"eps": 1e-5}), CulpritSide("norm", "LayerNorm"))
CONVOLUTIONS = (CulpritSide("conv", "Conv1d"), CulpritSide("conv", "Conv1d"))


def summed(port: Array, kind: str = "Linear", *, calls: int = 1, step: float = 1.0) -> Scene:
    """A block that returns x + step * branch."""
    return scene(x + step * branch, port, given(x), returned(branch, "mlp", kind, calls=calls))


def guided(port: Array) -> Scene:
    return scene(1.7 * conditional - 0.7 * free, port, given(x), returned(np.concatenate([conditional, free]), "estimator"))


def normalised(port: Array) -> Scene:
    return scene(layer_norm(x), port, given(x), blame="module", sides=NORMS)


def attended(port: Array, mask: Array | None = causal) -> Scene:
    tensors = {"q": q, "k": k, "v": v} | ({} if mask is None else {"mask": mask})
    in_hand = [InHand(name, f"input[{name}]", "", True, values) for name, values in tensors.items()]
    return scene(attend(q, k, v, 0.0 if mask is None else mask), port, *in_hand, blame="module", site="attn!attention")


def rotated(port: Array) -> Scene:
    return scene(rope(q), port, returned(q.swapaxes(1, 2).reshape(B, T, H * D), "q_proj"), end="input[q]", site="attn!attention")


def applied(ours: str, port: Array) -> Scene:
    return scene(FUNCTIONS[ours](x), port, returned(x, "up"))


def calling(ours: tuple[str, ...], theirs: tuple[str, ...]) -> Scene:
    """A block whose code makes these calls; no edit explains its values."""
    types = {"b.norm": "LayerNorm", "b.attn": "Attention", "b.mlp": "Mlp"}
    sides = (CulpritSide("b", calls=ours), CulpritSide("b", calls=theirs))
    chained = frozenset((*pairwise(ours), *pairwise(theirs)))
    return scene(x, unexplained, sides=sides, types=types, paired=frozenset(types), altered=frozenset(types), chained=chained)


def training(*modes: bool) -> Scene:
    sides = tuple(CulpritSide("bn", "BatchNorm", is_training=mode, trains="bn" if mode else "") for mode in modes)
    return scene(x, unexplained, sides=sides)


def shorter_keys(ordinal: int) -> Scene:
    sides = (CulpritSide("a"), CulpritSide("a"))
    return Scene("attn!attention", "input[k]", "caller", None, None, 0.0, (), sides, shapes=((1, 4, 9, 8), (1, 4, 1, 8)), ordinal=ordinal)


def at_ends(sides: tuple[CulpritSide, CulpritSide]) -> Scene:
    port = draw(1, 8, 40)
    reference = port.copy()
    reference[..., :2] += draw(1, 8, 2, seed=4)
    return scene(reference, port, blame="module", sides=sides)


def reduced(ours: Array, theirs: Array) -> Scene:
    return scene(ours, theirs, returned(HIDDEN, "conv"))


HIDDEN = draw(2, 12, 9)
KEPT = np.random.default_rng(3).random(x.shape)


def later(values: Array) -> Array:
    return np.concatenate([np.zeros((B, 1, C)), values[:, :-1]], 1)


def tensors(make: Callable[[], Scene], alike: Callable[[], Scene]) -> Pair:
    return Pair(lambda _: kinds(make()), lambda _: kinds(alike()))


# -- weights ------------------------------------------------------------------------------------------------------------

MODULE = "layers.2.attn1.to_q"
WEIGHT, BIAS = f"{MODULE}.weight", f"{MODULE}.bias"


def of_weights(
    changed: Mapping[str, Array], *, alike: Mapping[str, Array] | None = None, all_coarse: bool = False, module: str = MODULE
) -> Kinds:
    """The causes of a module where the port has the tensors ``changed``, and both sides have those of ``alike``."""

    def run(_: Path) -> list[str]:
        reference = weights_pairs.transformer() | dict(alike or {})
        port = weights_pairs.port(reference, weights_pairs.same_names) | dict(changed)
        if all_coarse:
            port = {name: values.astype(ml_dtypes.bfloat16) for name, values in port.items()}
        return [cause.kind for cause in from_weights.causes(compare_weights(reference, port).findings, module)]

    return run


OURS = weights_pairs.transformer()
NEIGHBOUR = WEIGHT.replace("to_q", "to_k")
FRESH = np.random.default_rng(3).uniform(-1, 1, OURS[WEIGHT].shape).astype(np.float32) / np.float32(np.sqrt(OURS[WEIGHT].shape[1]))
ROUNDED = OURS[WEIGHT].astype(ml_dtypes.bfloat16).astype(np.float32)
NO_BIAS = np.zeros_like(OURS[BIAS])


# -- runs ---------------------------------------------------------------------------------------------------------------


def of_runs(run: Callable[[Run, Array, bool], None]) -> Kinds:
    """The causes that the first divergent pair of two toy runs shows by itself; ``run`` is told whether it is the port."""

    def causes(folder: Path) -> list[str]:
        traces = []
        for is_port in (False, True):
            recorder = Run(folder / f"{is_port}.h5")
            run(recorder, inputs(), is_port)
            traces.append(recorder.close())
        located = locate(aligned(*traces), *traces, scan=True)
        assert located.first is not None
        return [cause.kind for cause in from_pair.causes(located.first, located.comparisons[located.first.place], *traces)]

    return causes


def one_layer(change: Callable[[Array], Array], reference: Callable[[Array], Array] = lambda values: values) -> Kinds:
    """A layer whose output ``change`` makes another in the port."""

    def run(recorder: Run, values: Array, is_port: bool) -> None:
        with recorder("enc", x=values) as leave:
            leave(change(values) if is_port else reference(values))

    return of_runs(run)


def raising(recorder: Run, values: Array, is_port: bool) -> None:
    if not is_port:
        with recorder("enc", x=values) as leave:
            leave(values)
        return
    moment = {"site": "enc", "call": frame_text("enc", 0, ""), "ordinal": 0, "stage": ""}
    recorder.writer.add(values=values, end="input[x]", **moment)
    recorder.writer.add_text(text="ValueError: no such axis", end="output", flags=schema.RAISED, **moment)


def fed_in_reverse(recorder: Run, values: Array, is_port: bool) -> None:
    recorder.layer("enc", values[::-1].copy() if is_port else values, layer_weights(1)[0])


# -- the registry -------------------------------------------------------------------------------------------------------

SCENES: dict[str, Pair] = {
    "weights.unloaded": Pair(of_weights({WEIGHT: FRESH}), of_weights({WEIGHT: 0.5 * OURS[WEIGHT]})),
    "weights.missing_bias": Pair(of_weights({BIAS: NO_BIAS}), of_weights({}, alike={BIAS: NO_BIAS})),
    "weights.swapped": Pair(
        of_weights({WEIGHT: OURS[NEIGHBOUR], NEIGHBOUR: OURS[WEIGHT]}),
        of_weights({}, alike={WEIGHT: OURS[NEIGHBOUR], NEIGHBOUR: OURS[NEIGHBOUR]}),
    ),
    "weights.layout": Pair(of_weights({WEIGHT: OURS[WEIGHT].T.copy()}), of_weights({}, module="layers.2.conv")),
    "weights.value": Pair(of_weights({WEIGHT: 0.5 * OURS[WEIGHT]}), of_weights({WEIGHT: ROUNDED})),
    "weights.precision": Pair(of_weights({WEIGHT: ROUNDED}), of_weights({}, all_coarse=True)),
    "norm.eps": tensors(lambda: normalised(layer_norm(x, 1e-2)), lambda: normalised(1.1 * layer_norm(x))),
    "norm.missing": tensors(lambda: normalised(x), lambda: normalised(layer_norm(x, 1e-2))),
    "norm.placement": tensors(
        lambda: calling(("b.norm", "b.mlp"), ("b.mlp", "b.norm")), lambda: calling(("b.norm", "b.mlp"), ("b.norm", "b.mlp"))
    ),
    "residual.missing": tensors(lambda: summed(branch), lambda: summed(x)),
    "branch.missing": tensors(lambda: summed(x), lambda: summed(branch)),
    "branch.extra": tensors(lambda: summed(x + 2 * branch), lambda: summed(x + 1.5 * branch)),
    "position.missing": tensors(lambda: summed(x, "Embedding"), lambda: summed(x, "Linear")),
    "scale": tensors(lambda: scene(x, 4.0 * x), lambda: scene(x, x / np.log(10))),
    "cfg.formula": tensors(lambda: guided(0.7 * conditional + 0.3 * free), lambda: summed(0.6 * x + 0.2 * branch, step=0.7)),
    "ode.schedule": tensors(lambda: summed(x + 0.2 * branch, calls=10, step=0.1), lambda: summed(x - 0.1 * branch, calls=10, step=0.1)),
    "ode.sign": tensors(lambda: summed(x - 0.1 * branch, calls=10, step=0.1), lambda: summed(x + 0.2 * branch, calls=10, step=0.1)),
    "activation": tensors(lambda: applied("GELU (exact)", FUNCTIONS["SiLU"](x)), lambda: applied("SiLU", 0.9 * FUNCTIONS["SiLU"](x))),
    "clamp": tensors(lambda: applied("identity", np.clip(x, -1, 1)), lambda: applied("identity", np.tanh(x))),
    "units.log": tensors(lambda: scene(x, x / np.log(10)), lambda: scene(x, x / 2.2)),
    "transform": tensors(lambda: reduced(HIDDEN.mean(2), HIDDEN.max(2)), lambda: reduced(HIDDEN[:, :, -1], HIDDEN[:, :, 0])),
    "mask.missing": tensors(lambda: attended(attend(q, k, v)), lambda: attended(attend(q, k, v, causal, 1.0))),
    "mask.wrong": tensors(lambda: attended(attend(q, k, v, causal), None), lambda: attended(attend(q, k, v))),
    "heads.layout": tensors(
        lambda: scene(q.swapaxes(1, 2).reshape(B, T, H * D), q.reshape(B, T, H * D)),
        lambda: scene(q, q[..., np.random.default_rng(1).permutation(D)]),
    ),
    "rope.missing": tensors(lambda: rotated(q), lambda: rotated(rope(q, base=500000.0))),
    "rope.variant": tensors(lambda: rotated(rope(q, in_turn=True)), lambda: rotated(rope(q, offset=1))),
    "position.offset": tensors(lambda: scene(np.arange(T), np.arange(T) + 1), lambda: scene(np.arange(T), np.arange(T)[::-1])),
    "time.scale": tensors(
        lambda: scene(embedded(times, 1000.0), embedded(times), given(times, "t"), blame="module"),
        lambda: scene(embedded(times), embedded(times, cosine_first=True), given(times, "t"), blame="module"),
    ),
    "order.concat": tensors(
        lambda: scene(x, np.concatenate(np.split(x, 2, -1)[::-1], -1)), lambda: scene(x, x[..., np.random.default_rng(1).permutation(C)])
    ),
    "order.channels": tensors(lambda: scene(x, x[..., np.random.default_rng(1).permutation(C)]), lambda: scene(x, x[..., ::-1])),
    "order.reversed": tensors(lambda: scene(x, x[:, ::-1]), lambda: scene(x, np.concatenate(np.split(x, 2, -1)[::-1], -1))),
    "order.roles": tensors(
        lambda: scene(x, branch, end="input[q]", beside=(given(branch, "the input [k]"),)),
        lambda: scene(x, other, end="input[q]", beside=(given(branch, "the input [k]"),)),
    ),
    "padding.shift": tensors(
        lambda: scene(x, later(x)), lambda: scene(x, later(x), sides=(CulpritSide("p", "Embedding"), CulpritSide("p", "Embedding")))
    ),
    "padding.mode": tensors(lambda: at_ends(CONVOLUTIONS), lambda: at_ends((CulpritSide("fc", "Linear"), CulpritSide("fc", "Linear")))),
    "dropout": tensors(lambda: scene(x, x * (KEPT > 0.1) / 0.9), lambda: scene(x, x * (KEPT > 0.5))),
    "mode.train": tensors(lambda: training(False, True), lambda: training(True, True)),
    "random": tensors(
        lambda: scene(draw(2, 400), draw(2, 400, seed=9)),
        lambda: scene(FUNCTIONS["SiLU"](draw(2, 400)), FUNCTIONS["SiLU"](draw(2, 400, seed=9))),
    ),
    "precision": tensors(
        lambda: scene(x.astype(np.float32).astype(np.float64), coarse(x)), lambda: scene(coarse(x), coarse(x + 0.1 * branch * other))
    ),
    "cache": tensors(lambda: shorter_keys(3), lambda: shorter_keys(0)),
    "length": Pair(one_layer(lambda values: values[:-1]), one_layer(bumped)),
    "nonfinite": Pair(
        one_layer(lambda values: np.where(values > 0.5, np.float32(np.nan), values)),
        one_layer(lambda values: values, lambda values: np.where(values > 0.5, np.float32(-np.inf), values)),
    ),
    "raised": Pair(of_runs(raising), one_layer(lambda values: values[:-1])),
    "input": Pair(of_runs(fed_in_reverse), one_layer(bumped)),
}
