"""In which precision a framework multiplies float32 numbers: measured on one product, recorded with each trace, and pinned.

Hardware may cut what it multiplies to the 10 bits of TF32 or the 7 of bfloat16, and adds up in float32: MLX does so by default on M5 Macs
and on CUDA (``MLX_ENABLE_TF32``), PyTorch in convolutions on CUDA. A variable says what was asked for, a product what happens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tracediff.dtype import Array
from tracediff.observe.types import Adapter, Tensor
from tracediff.tensors.mantissa import BFLOAT16_BITS, TF32_BITS, WAYS, shortened
from tracediff.trace.products import KEY, Precision

_SHAPE = (256, 256, 256)
"""Rows, terms and columns of the product: a matrix product on every device, and a few milliseconds on a slow one."""
_CANDIDATES = {"tf32": TF32_BITS, "bfloat16": BFLOAT16_BITS}
FLOAT32_AT_MOST = 3e-5
"""A larger relative error is not float32's. Measured on standard normal numbers: 2e-7 to 4e-7 in float32 (OpenBLAS, MLX, oneDNN)."""
TF32_AT_MOST = 1.35e-3
"""A larger one is bfloat16's. 10 bits leave 2.9e-4 (nearest) and 7.7e-4 (cut off), 7 bits 2.4e-3 and 6.2e-3: the geometric middle."""
_EXPLAINED = 0.05
"""The share of the error that rounded operands may leave, where they are what makes it; 1e-3 is left where they are."""


def probed(adapter: Adapter, like: Tensor | None = None) -> dict[str, Any]:
    """What meta says of products: ``precision``, relative ``error``, ``rounding``, ``device``, ``settings``. {} where nothing multiplies.

    They are those of a matrix product or of a convolution, whichever errs more.

    ``like``: a tensor on the device of interest, else it is the default one. ``rounding`` is "nearest" or "zero" where operands so
    rounded leave next to nothing of the error, "" where they do not, or there is none to explain. No generator is used.
    """
    left, right = _operands()
    made = adapter.products(left, right, like)
    if made is None:
        return {}
    products, device = made
    worst = max((_graded(left, right, product) for product in products), key=lambda graded: float(graded["error"]))
    return {KEY: {**worst, "device": device, "settings": adapter.product_settings(device)}}


def _operands() -> tuple[Array, Array]:
    rows, terms, columns = _SHAPE
    chance = np.random.Generator(np.random.Philox(key=1))
    return chance.standard_normal((rows, terms), np.float32), chance.standard_normal((terms, columns), np.float32)


def _graded(left: Array, right: Array, product: Array) -> dict[str, Any]:
    """The precision of a product of two float32 matrices, its relative L2 error, and how its operands were rounded."""
    exact = left.astype(np.float64) @ right.astype(np.float64)
    size = float(np.linalg.norm(exact))
    error = float(np.linalg.norm(product - exact)) / size
    precision = precision_of(error)
    rounding = ""
    if precision in _CANDIDATES and math.isfinite(error):
        for way in WAYS:
            ours, theirs = (shortened(one, _CANDIDATES[precision], way).astype(np.float64) for one in (left, right))
            if float(np.linalg.norm(product - ours @ theirs)) / size < _EXPLAINED * error:
                rounding = way
    return {"precision": precision, "error": error if math.isfinite(error) else 1.0, "rounding": rounding}


def precision_of(error: float) -> Precision:
    """What a product's relative error says of its precision.

    >>> precision_of(2.9e-7), precision_of(7.7e-4), precision_of(2.4e-3)
    ('float32', 'tf32', 'bfloat16')
    """
    if error <= FLOAT32_AT_MOST:
        return "float32"
    return "tf32" if error <= TF32_AT_MOST else "bfloat16"


@contextmanager
def pinned(adapter: Adapter, *, wanted: bool) -> Iterator[None]:
    """A context in which products are taken in full float32 where they are ``wanted`` so and the framework lets them be."""
    if not wanted:
        yield
        return
    with adapter.full_precision():
        yield


def examined(impl: str) -> list[dict[str, Any]]:
    """What a probe finds on each device of a framework."""
    from tracediff.observe.adapters.registry import named

    adapter = named(impl)
    return [found[KEY] for like in adapter.devices() if (found := probed(adapter, like))]
