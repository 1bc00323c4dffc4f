"""Small reference and port weights in several naming schemes, for the tests of the comparison of weights."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from tracediff.dtype import Array

Named = dict[str, Array]

LAYERS, WIDTH, HIDDEN = 4, 24, 40


def values(name: str, *shape: int) -> Array:
    """Seeded float32 values of one tensor; none is constant, no bias is zero."""
    generator = np.random.default_rng(list(name.encode()))
    drawn = generator.standard_normal(shape).astype(np.float32) * np.float32(0.3)
    return drawn + np.float32(1) if "norm" in name and name.endswith("weight") else drawn


def transformer() -> Named:
    """A torch-like transformer with convolutions: the reference."""
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (50, WIDTH), "head.weight": (50, WIDTH)}
    for layer in range(LAYERS):
        block = f"layers.{layer}"
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes[f"{block}.attn1.{part}.weight"] = (WIDTH, WIDTH)
            shapes[f"{block}.attn1.{part}.bias"] = (WIDTH,)
        shapes[f"{block}.ff.net.0.proj.weight"] = (HIDDEN, WIDTH)
        shapes[f"{block}.ff.net.2.weight"] = (WIDTH, HIDDEN)
        shapes[f"{block}.conv.weight"] = (WIDTH, HIDDEN, 5)
        for norm in ("norm1", "norm2"):
            shapes[f"{block}.{norm}.weight"] = (WIDTH,)
            shapes[f"{block}.{norm}.bias"] = (WIDTH,)
    return {name: values(name, *shape) for name, shape in shapes.items()}


def same_names(name: str) -> str:
    return name


def mlx_names(name: str) -> str:
    """Names as a hand-written port has them."""
    for old, new in {
        r"layers\.(\d+)\.": r"blocks_\1.",
        r"attn1\.to_q": "attn.query_proj",
        r"attn1\.to_k": "attn.key_proj",
        r"attn1\.to_v": "attn.value_proj",
        r"attn1\.to_out\.0": "attn.out_proj",
        r"ff\.net\.0\.proj": "ff.layers.0",
        r"ff\.net\.2": "ff.layers.1",
    }.items():
        name = re.sub(old, new, name)
    return name


def flat_names(name: str) -> str:
    """Names that share few words with the reference's, their layers counted from one."""
    for old, new in {
        r"layers\.(\d+)\.": lambda m: f"h{int(m[1]) + 1}/",
        r"attn1\.to_q": "wq",
        r"attn1\.to_k": "wk",
        r"attn1\.to_v": "wv",
        r"attn1\.to_out\.0": "wo",
        r"ff\.net\.0\.proj": "up",
        r"ff\.net\.2": "down",
    }.items():
        name = re.sub(old, new, name)  # type: ignore[call-overload]
    return name


SCHEMES: dict[str, Callable[[str], str]] = {"same names": same_names, "mlx": mlx_names, "flat": flat_names}


def port(reference: Named, rename: Callable[[str], str] = mlx_names) -> Named:
    """The reference as a channels-last port holds it."""
    arranged = {name: value.transpose(0, 2, 1) if value.ndim == 3 else value for name, value in reference.items()}
    return {rename(name): np.array(value, order="C") for name, value in arranged.items()}
