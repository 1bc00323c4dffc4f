"""Functions of single values that code applies to tensors, by the names that reports give them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tracediff.dtype import Array

Function = Callable[[Array], Array]


def _sigmoid(x: Array) -> Array:
    made: Array = 0.5 * (1 + np.tanh(0.5 * x))
    return made


def _erf_gelu(x: Array) -> Array:
    from scipy.special import erf

    made: Array = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    return made


FUNCTIONS: dict[str, Function] = {
    "identity": lambda x: x,
    "ReLU": lambda x: np.maximum(x, 0),
    "leaky ReLU (0.01)": lambda x: np.where(x > 0, x, 0.01 * x),
    "leaky ReLU (0.1)": lambda x: np.where(x > 0, x, 0.1 * x),
    "leaky ReLU (0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
    "GELU (exact)": _erf_gelu,
    "GELU (tanh)": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "GELU (sigmoid)": lambda x: x * _sigmoid(1.702 * x),
    "SiLU": lambda x: x * _sigmoid(x),
    "Mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "SELU": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "softplus": lambda x: np.logaddexp(0, x),
    "squared ReLU": lambda x: np.maximum(x, 0) ** 2,
    "hard swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "ReLU6": lambda x: np.clip(x, 0, 6),
    "absolute value": np.abs,
    "square": np.square,
    "exp": lambda x: np.exp(np.minimum(x, 60)),
    "exp of half": lambda x: np.exp(np.minimum(0.5 * x, 60)),
    "log": lambda x: np.log(np.maximum(x, 1e-30)),
    "square root": lambda x: np.sqrt(np.maximum(x, 0)),
    "sine": np.sin,
    "cosine": np.cos,
}
