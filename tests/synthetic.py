"""Made-up traces of any size, without a framework: a stack of transformer blocks run by a reference and by a port with other names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tracediff.trace import TraceWriter


@dataclass
class Run:
    """Writes the records of one run: calls are entered and left, inputs and outputs recorded."""

    writer: TraceWriter
    noise: np.random.Generator | None = None
    counts: dict[str, int] = field(default_factory=dict)
    modules: list[dict[str, Any]] = field(default_factory=list)
    frames: list[tuple[str, int]] = field(default_factory=list)
    known: dict[bytes, np.ndarray] = field(default_factory=dict)

    def seen(self, values: np.ndarray) -> np.ndarray:
        """The values as this run sees them: a port's are a rounding error off."""
        if self.noise is None or values.dtype.kind != "f":
            return values
        key = values.tobytes()
        if key not in self.known:
            self.known[key] = (values * (1 + 6e-8 * self.noise.standard_normal(values.shape))).astype(values.dtype)
        return self.known[key]

    def module(self, path: str, kind: str, params: dict[str, np.ndarray] | None = None, **attributes: Any) -> None:
        self.modules.append({"path": path, "type": kind, "attrs": attributes, "aliases": [], "children": [], "training": False})
        for name, values in (params or {}).items():
            self.writer.add_param(f"{path}.{name}" if path else name, values, path=path, kind="parameter")

    def enter(self, site: str, inputs: dict[str, np.ndarray]) -> tuple[str, int]:
        number = self.counts.get(site, 0)
        self.counts[site] = number + 1
        first = -1
        for end, values in inputs.items():
            row = self.add(site, number, f"input[{end}]", values)
            first = row if first < 0 else first
        self.frames.append((site, first))
        return site, number

    def leave(self, entered: tuple[str, int], outputs: dict[str, np.ndarray]) -> None:
        self.frames.pop()
        for end, values in outputs.items():
            self.add(*entered, end, values)

    def call(self, site: str, output: np.ndarray, **inputs: np.ndarray) -> np.ndarray:
        entered = self.enter(site, {key.lstrip("_"): value for key, value in inputs.items()})
        self.leave(entered, {"output": output})
        return output

    def add(self, site: str, number: int, end: str, values: np.ndarray) -> int:
        parent = self.frames[-1][1] if self.frames else -1
        return self.writer.add(
            site=site, call=f"{site}[{number}]", ordinal=number, end=end, values=self.seen(values), parent=parent, store=False
        )


def stack(folder: Path, layers: int, *, width: int = 16, seed: int = 0, different: bool = False) -> tuple[Path, Path, dict[str, str]]:
    """Two traces of a stack of ``layers`` blocks, 12 sites each, and which of the reference's sites is which of the port's.

    With ``different`` the port has other weights and so other values: nothing but structure and order is left.
    """
    paths = folder / "reference.h5", folder / "port.h5"
    truth: dict[str, str] = {}
    for side, path in enumerate(paths):
        with TraceWriter(path, force=True) as writer:
            run = Run(writer, np.random.default_rng(1) if side else None)
            _stack(run, side, layers, width, np.random.default_rng(seed + side * different), truth)
            writer.set_meta(modules=run.modules, impl="numpy")
    return *paths, truth


_NAMES = (
    ("layers", "norm1", "attn", "q", "k", "v", "o", "norm2", "mlp", "up", "down"),
    ("h", "ln_a", "mixer", "query", "key", "value", "out", "ln_b", "ffn", "fc", "proj"),
)


def _stack(run: Run, side: int, layers: int, width: int, random: np.random.Generator, truth: dict[str, str]) -> None:
    list_name, norm1, attn, q, k, v, o, norm2, mlp, up, down = _NAMES[side]

    def drawn(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    run.module("", "Model")
    x = drawn(1, 6, width)
    entered = run.enter("", {"0": x})
    for layer in range(layers):
        block = f"{list_name}.{layer}"
        run.module(block, "Block")
        paths = {name: f"{block}.{name}" for name in (norm1, attn, norm2, mlp)}
        paths |= {name: f"{block}.{attn}.{name}" for name in (q, k, v, o)} | {name: f"{block}.{mlp}.{name}" for name in (up, down)}
        for name in (norm1, norm2):
            run.module(paths[name], "LayerNorm", {"weight": 1 + 0.1 * drawn(width), "bias": 0.1 * drawn(width)}, eps=1e-5)
        for name, outs, ins in (
            (q, width, width),
            (k, width, width),
            (v, width, width),
            (o, width, width),
            (up, 2 * width, width),
            (down, width, 2 * width),
        ):
            run.module(paths[name], "Linear", {"weight": drawn(outs, ins)})
        run.module(paths[attn], "Attention")
        run.module(paths[mlp], "FeedForward")
        _block(run, block, paths, _NAMES[side], x, drawn, width)
        x = drawn(1, 6, width)
        truth.update(_truth(layer) if side else {})
    run.leave(entered, {"output": x})


def _block(run: Run, block: str, paths: dict[str, str], names: tuple[str, ...], x: np.ndarray, drawn: Any, width: int) -> None:
    _, norm1, attn, q, k, v, o, norm2, mlp, up, down = names
    entered = run.enter(block, {"0": x})
    normed = run.call(paths[norm1], drawn(1, 6, width), _0=x)
    inner = run.enter(paths[attn], {"0": normed})
    parts = [run.call(paths[name], drawn(1, 6, width), _0=normed) for name in (q, k, v)]
    mixed = run.call(paths[attn] + "!attention", drawn(1, 6, width), q=parts[0], k=parts[1], v=parts[2])
    given = run.call(paths[o], drawn(1, 6, width), _0=mixed)
    run.leave(inner, {"output": given})
    added = drawn(1, 6, width)
    normed = run.call(paths[norm2], drawn(1, 6, width), _0=added)
    inner = run.enter(paths[mlp], {"0": normed})
    wide = run.call(paths[up], drawn(1, 6, 2 * width), _0=normed)
    given = run.call(paths[down], drawn(1, 6, width), _0=np.maximum(wide, 0))
    run.leave(inner, {"output": given})
    run.leave(entered, {"output": drawn(1, 6, width)})


def _truth(layer: int) -> dict[str, str]:
    ours, theirs = _NAMES
    blocks = f"{ours[0]}.{layer}", f"{theirs[0]}.{layer}"
    found = {blocks[0]: blocks[1]}
    for place in (1, 2, 7, 8):
        found[f"{blocks[0]}.{ours[place]}"] = f"{blocks[1]}.{theirs[place]}"
    for place in (3, 4, 5, 6):
        found[f"{blocks[0]}.{ours[2]}.{ours[place]}"] = f"{blocks[1]}.{theirs[2]}.{theirs[place]}"
    for place in (9, 10):
        found[f"{blocks[0]}.{ours[8]}.{ours[place]}"] = f"{blocks[1]}.{theirs[8]}.{theirs[place]}"
    return found
