"""What PyTorch's sums give where another library adds up one term after the other in float32.

PyTorch adds up in pairs, in several strands, or in a wider dtype. A sum of n terms of one sign that is taken in order is off by the root
of n roundings or more. Where it is the variance of a normalisation or the total of a softmax, all values that it divides are off together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tracediff.dtype import Array

_ROUNDING = 0.2 * 2**-23
"""The standard deviation of one rounding to float32 relative to the number: uniform over a spacing, which is 2**-23 / 1.44 on average."""
_BLOCK = 1 << 22
"""Elements whose running sums are held at once."""


def in_order(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], made: Any) -> Any:
    """What an ATen operation gives whose sums are taken in order; ``made``, what PyTorch gives, for every other operation."""
    values = args[0] if args else None
    taken = IN_ORDER.get(name)
    if taken is None or not isinstance(values, torch.Tensor) or not _is_summed(values, made):
        return made
    return taken(args, kwargs, made)


def _is_summed(values: torch.Tensor, made: Any) -> bool:
    """Whether another library might take an operation's sums in float32."""
    result = made[0] if isinstance(made, (tuple, list)) else made
    are_real = values.is_floating_point() and result.is_floating_point()
    return bool(are_real and values.layout == torch.strided and values.numel() > 0 and values.ndim > 0)


# -- running sums --------------------------------------------------------------------------------------------------------------------------


def _running(accumulate: np.ufunc) -> Callable[..., torch.Tensor]:
    """A running sum or product, which PyTorch takes in a wider dtype."""

    def taken(args: Sequence[Any], kwargs: Mapping[str, Any], made: torch.Tensor) -> torch.Tensor:
        axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        return _like(accumulate.accumulate(_values(args[0]), axis=axis, dtype=np.float32), made)

    return taken


def _off(rows: Array) -> Array:
    """How far the sum of each row is off if it is taken in order: at least the standard deviation of its roundings. ``rows``: (rows, n)."""
    found = np.empty(len(rows), np.float64)
    block = max(1, _BLOCK // max(rows.shape[1], 1))
    for start in range(0, len(rows), block):
        part = rows[start : start + block].astype(np.float32, copy=False)
        running = np.add.accumulate(part, axis=1, dtype=np.float32)
        error = running[:, -1] - part.sum(1, dtype=np.float64)
        likely = _ROUNDING * np.sqrt(np.einsum("ij,ij->i", running, running, dtype=np.float64))
        found[start : start + block] = np.where(np.abs(error) > likely, error, np.copysign(likely, error))
    return found


def _sums(values: Array, axes: Sequence[int]) -> Array:
    """The sums of values over some axes as if they were taken in order in float32, as float64, these axes kept with length 1."""
    kept = [axis for axis in range(values.ndim) if axis not in axes]
    rows = np.ascontiguousarray(values.transpose(*kept, *axes).reshape(math.prod(values.shape[axis] for axis in kept), -1))
    shape = [1 if axis in axes else length for axis, length in enumerate(values.shape)]
    return np.asarray((rows.sum(1, dtype=np.float64) + _off(rows)).reshape(shape))


def _moments(values: Array, axes: Sequence[int]) -> tuple[Array, Array, int]:
    """Mean and mean square deviation over some axes by sums taken in order, these axes kept, and of how many values."""
    count = math.prod(values.shape[axis] for axis in axes)
    mean = _sums(values, axes) / count
    return mean, _sums(np.square(values - mean.astype(values.dtype)), axes) / count, count


# -- reductions ----------------------------------------------------------------------------------------------------------------------------


def _axes(values: torch.Tensor, given: Any) -> list[int]:
    """The axes that a reduction was asked for, counted from the front; all of them where none was named."""
    named = [] if given is None else [given] if isinstance(given, int) else list(given)
    return sorted(axis % values.ndim for axis in named) or list(range(values.ndim))


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _sum(args: Sequence[Any], kwargs: Mapping[str, Any], made: torch.Tensor) -> torch.Tensor:
    return _like(_sums(_values(args[0]), _axes(args[0], _argument(args, kwargs, 1, "dim"))), made)


def _mean(args: Sequence[Any], kwargs: Mapping[str, Any], made: torch.Tensor) -> torch.Tensor:
    axes = _axes(args[0], _argument(args, kwargs, 1, "dim"))
    return _like(_sums(_values(args[0]), axes) / math.prod(args[0].shape[axis] for axis in axes), made)


def _variance(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Array, Array]:
    """Mean and variance as `torch.var_mean` with a correction is asked for them."""
    mean, square, count = _moments(_values(args[0]), _axes(args[0], _argument(args, kwargs, 1, "dim")))
    correction = kwargs.get("correction")
    return mean, square * (count / max(count - (1 if correction is None else correction), 1))


def _var(args: Sequence[Any], kwargs: Mapping[str, Any], made: torch.Tensor) -> torch.Tensor:
    return _like(_variance(args, kwargs)[1], made)


def _std(args: Sequence[Any], kwargs: Mapping[str, Any], made: torch.Tensor) -> torch.Tensor:
    return _like(np.sqrt(_variance(args, kwargs)[1]), made)


def _var_mean(args: Sequence[Any], kwargs: Mapping[str, Any], made: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    mean, variance = _variance(args, kwargs)
    return _like(variance, made[0]), _like(mean, made[1])


def _vector_norm(args: Sequence[Any], kwargs: Mapping[str, Any], made: torch.Tensor) -> torch.Tensor:
    if _argument(args, kwargs, 1, "ord", 2) not in (2, None):
        return made
    axes = _axes(args[0], _argument(args, kwargs, 2, "dim"))
    return _like(np.sqrt(_sums(np.square(_values(args[0])), axes)), made)


# -- normalisations ------------------------------------------------------------------------------------------------------------------------


def _normalised(values: Array, axes: Sequence[int], eps: float, gain: Any, offset: Any, shape: Sequence[int]) -> Array:
    """Values normalised over some axes by statistics taken in order. ``shape`` is that of gain and offset beside the values."""
    mean, square, _ = _moments(values, axes)
    made = (values - mean.astype(values.dtype)) * (1 / np.sqrt(square + eps)).astype(values.dtype)
    made = made if gain is None else made * _values(gain).reshape(shape)
    return np.asarray(made if offset is None else made + _values(offset).reshape(shape))


def _layer_norm(args: Sequence[Any], kwargs: Mapping[str, Any], made: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    values, lengths, gain, offset, eps = args
    axes = range(values.ndim - len(lengths), values.ndim)
    return _like(_normalised(_values(values), axes, eps, gain, offset, lengths), made[0]), *made[1:]


def _group_norm(args: Sequence[Any], kwargs: Mapping[str, Any], made: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    values, gain, offset, batch, channels, _, groups, eps = args
    grouped = _values(values).reshape(batch, groups, channels // groups, -1)
    return _like(_normalised(grouped, (2, 3), eps, gain, offset, (1, groups, channels // groups, 1)), made[0]), *made[1:]


def _batch_norm(args: Sequence[Any], kwargs: Mapping[str, Any], made: Sequence[torch.Tensor]) -> Any:
    values, gain, offset, _, _, is_training, _, eps = args
    if not is_training or values.ndim < 2:
        return made
    axes = [axis for axis in range(values.ndim) if axis != 1]
    shape = [1, -1, *[1] * (values.ndim - 2)]
    return _like(_normalised(_values(values), axes, eps, gain, offset, shape), made[0]), *made[1:]


def _softmax(args: Sequence[Any], kwargs: Mapping[str, Any], made: torch.Tensor) -> torch.Tensor:
    weights = _values(made)
    total = _sums(weights, [_argument(args, kwargs, 1, "dim", -1) % made.ndim])
    return _like(weights / np.where(total > 0, total, 1.0), made)  # a row of which all is masked is zero


def _log_softmax(args: Sequence[Any], kwargs: Mapping[str, Any], made: torch.Tensor) -> torch.Tensor:
    logs = _values(made)
    return _like(logs - np.log(_sums(np.exp(logs), [_argument(args, kwargs, 1, "dim", -1) % made.ndim])), made)


IN_ORDER: dict[str, Callable[..., Any]] = {
    "cumsum": _running(np.add),
    "cumprod": _running(np.multiply),
    "sum": _sum,
    "mean": _mean,
    "var": _var,
    "std": _std,
    "var_mean": _var_mean,
    "linalg_vector_norm": _vector_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "native_batch_norm": _batch_norm,
    "_softmax": _softmax,
    "_safe_softmax": _softmax,
    "_log_softmax": _log_softmax,
}
"""The operations whose sums are taken in order, by name."""


def _values(tensor: torch.Tensor) -> Array:
    """A tensor's values as float32, or as float64 where that is its dtype."""
    wide = tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)
    return np.asarray(wide.numpy(force=True))


def _like(values: Array, other: torch.Tensor) -> torch.Tensor:
    """Values as a tensor of the shape, dtype and device of another."""
    return torch.from_numpy(np.ascontiguousarray(values).reshape(tuple(other.shape))).to(other.device, other.dtype)
