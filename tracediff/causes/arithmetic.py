"""The arithmetic of ATen's operations in NumPy, so that recorded operations can be computed again with one of them changed.

Each takes the arguments that PyTorch gives the operation of its name. Floats are float64, whatever the run computed in. An operation that
is not here cannot be computed again; nothing is then said of what depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from tracediff.causes.functions import FUNCTIONS
from tracediff.dtype import Array

Compute = Callable[..., Any]

DTYPES: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "bool": np.bool_,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "complex64": np.complex128,
    "complex128": np.complex128,
}


def in_dtype(given: Any, dtype: str | None) -> Array:
    """Values cast to a dtype, those of half precision rounded and then wide again."""
    x: Array = np.asarray(given)
    if dtype is None or dtype not in DTYPES:
        return x
    made: Array = x.astype(DTYPES[dtype])
    return made.astype(np.float64) if dtype in ("float16", "bfloat16") else made


# -- reductions ----------------------------------------------------------------------------------------------------------------------------


def axes_of(dim: Any) -> tuple[int, ...] | None:
    """The axes that PyTorch's ``dim`` names; None for all."""
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return None
    return tuple(dim) if isinstance(dim, (list, tuple)) else (dim,)


def _reduction(reduce: Callable[..., Any]) -> Compute:
    def compute(x: Array, dim: Any = None, keepdim: bool = False, *_: Any, **__: Any) -> Array:
        return np.asarray(reduce(x, axis=axes_of(dim), keepdims=bool(keepdim)))

    return compute


def _extreme(reduce: Callable[..., Any], where: Callable[..., Any]) -> Compute:
    """The largest or smallest value; along one axis also where it is."""

    def compute(x: Array, dim: Any = None, keepdim: bool = False) -> Any:
        if dim is None:
            return np.asarray(reduce(x))
        return np.asarray(reduce(x, axis=dim, keepdims=keepdim)), np.asarray(where(x, axis=dim, keepdims=keepdim))

    return compute


def _var(x: Array, dim: Any = None, *more: Any, correction: Any = None, unbiased: Any = None, keepdim: bool = False) -> Array:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if more:
        unbiased, keepdim = more[0], more[1] if len(more) > 1 else keepdim
    less = (1 if unbiased else 0) if unbiased is not None else 1 if correction is None else correction
    return np.asarray(np.var(x, axis=axes_of(dim), ddof=less, keepdims=bool(keepdim)))


def _norm(x: Array, ord: Any = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Array:
    ord = 2 if ord is None else ord
    axes = axes_of(dim)
    if math.isinf(ord):
        return np.asarray(np.abs(x).max(axis=axes, keepdims=bool(keepdim)))
    return np.asarray((np.abs(x) ** ord).sum(axis=axes, keepdims=bool(keepdim)) ** (1 / ord))


def _softmax(x: Array, dim: int, *_: Any, **__: Any) -> Array:
    top = x.max(dim, keepdims=True)
    raised = np.exp(x - np.where(np.isfinite(top), top, 0))
    total = raised.sum(dim, keepdims=True)
    return np.asarray(raised / np.where(total > 0, total, 1))


def _log_softmax(x: Array, dim: int, *_: Any, **__: Any) -> Array:
    top = x.max(dim, keepdims=True)
    return np.asarray(x - top - np.log(np.exp(x - top).sum(dim, keepdims=True)))


def _topk(x: Array, k: int, dim: int = -1, largest: bool = True, *_: Any, **__: Any) -> tuple[Array, Array]:
    order = np.argsort(-x if largest else x, axis=dim, kind="stable")
    places = np.take(order, np.arange(k), axis=dim)
    return np.take_along_axis(x, places, dim), places


def _sort(x: Array, *args: Any, dim: int = -1, descending: bool = False, **_: Any) -> tuple[Array, Array]:
    given = [one for one in args if not isinstance(one, bool)]
    flags = [one for one in args if isinstance(one, bool)]
    dim = given[0] if given else dim
    descending = flags[-1] if flags else descending
    order = np.argsort(-x if descending else x, axis=dim, kind="stable")
    return np.take_along_axis(x, order, dim), order


# -- normalisation -------------------------------------------------------------------------------------------------------------------------


def layer_norm(x: Array, shape: Sequence[int], weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, Array, Array]:
    """The norm over the last axes, of ``shape``; then the mean and the reciprocal of the deviation."""
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    mean, scale = x.mean(axes, keepdims=True), 1 / np.sqrt(x.var(axes, keepdims=True) + eps)
    made = (x - mean) * scale
    return _affine(made, weight, bias), mean, scale


def rms_norm(x: Array, shape: Sequence[int], weight: Array | None, eps: float | None) -> tuple[Array, Array]:
    """The norm over the last axes, of ``shape``, without a mean; then the reciprocal of the root mean square."""
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    scale = 1 / np.sqrt((x * x).mean(axes, keepdims=True) + (1.1920929e-07 if eps is None else eps))
    return _affine(x * scale, weight, None), scale


def _affine(made: Array, weight: Array | None, bias: Array | None) -> Array:
    made = made if weight is None else made * weight
    return made if bias is None else made + bias


def along_channels(values: Array | None, ndim: int) -> Array | None:
    """What there is for each channel, as it broadcasts to (B, C, ...)."""
    return None if values is None else np.reshape(values, (1, -1, *(1 for _ in range(ndim - 2))))


def group_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    batch: int,
    channels: int,
    _: int,
    groups: int,
    eps: float,
    *,
    is_spread: bool = False,
) -> tuple[Array, None, None]:
    """Groups of neighbouring channels; ``is_spread``: every so-many-th channel instead."""
    order = (batch, channels // groups, groups) if is_spread else (batch, groups, channels // groups)
    seen = x.reshape(*order, -1)
    axes = (1, 3) if is_spread else (2, 3)
    made = (seen - seen.mean(axes, keepdims=True)) / np.sqrt(seen.var(axes, keepdims=True) + eps)
    made = made.reshape(x.shape)
    return _affine(made, along_channels(weight, x.ndim), along_channels(bias, x.ndim)), None, None


def batch_norm(x: Array, weight: Any, bias: Any, mean: Any, var: Any, training: bool, _: float, eps: float) -> tuple[Array, None, None]:
    """(B, C, ...) by the statistics of each channel, or in training those of the batch."""
    axes = (0, *range(2, x.ndim))
    if training or mean is None:
        mean, var = x.mean(axes), x.var(axes)
    middle, spread = (np.reshape(one, (1, -1, *(1 for _ in range(x.ndim - 2)))) for one in (mean, var))
    made = (x - middle) / np.sqrt(spread + eps)
    return _affine(made, along_channels(weight, x.ndim), along_channels(bias, x.ndim)), None, None


# -- products ------------------------------------------------------------------------------------------------------------------------------


def attention(
    q: Array, k: Array, v: Array, *, mask: Array | None = None, is_causal: bool = False, scale: float | None = None, axis: int = -1
) -> Array:
    """softmax(q k^T scale + mask) v."""
    if k.shape[1] != q.shape[1]:
        k, v = (np.repeat(one, q.shape[1] // one.shape[1], 1) for one in (k, v))
    scores = q @ np.swapaxes(k, -1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=np.bool_), scores, -np.inf)
    return np.asarray(_softmax(scores, axis) @ v)


def _flash(q: Array, k: Array, v: Array, _: float = 0.0, is_causal: bool = False, **named: Any) -> tuple[Any, ...]:
    return attention(q, k, v, mask=named.get("attn_mask"), is_causal=is_causal, scale=named.get("scale")), None


def _plain_attention(
    q: Array, k: Array, v: Array, mask: Any = None, _: float = 0.0, is_causal: bool = False, *__: Any, **named: Any
) -> Any:
    return attention(q, k, v, mask=mask, is_causal=is_causal, scale=named.get("scale")), None


def padded(x: Array, widths: Sequence[tuple[int, int]], mode: str = "constant", value: float = 0.0) -> Array:
    """Longer, or where a width is negative shorter, along the last axes."""
    every = [(0, 0)] * (x.ndim - len(widths)) + list(widths)
    cut = x[tuple(slice(max(0, -before), size - max(0, -after)) for (before, after), size in zip(every, x.shape, strict=True))]
    grown = [(max(0, before), max(0, after)) for before, after in every]
    more: dict[str, Any] = {"constant_values": value} if mode == "constant" else {}
    made: Array = np.pad(cut, grown, mode, **more)  # type: ignore[call-overload]
    return made


def widths_of(pad: Sequence[int]) -> list[tuple[int, int]]:
    """PyTorch's padding, the last axis first, as widths in order of the axes."""
    return list(zip(pad[::2], pad[1::2], strict=True))[::-1]


def convolution(
    x: Array, w: Array, b: Array | None, stride: Any, padding: Any, dilation: Any, transposed: bool, output_padding: Any, groups: int
) -> Array:
    """(B, C, ...) with (O, C / groups, ...); transposed with (C, O / groups, ...)."""
    rank = w.ndim - 2
    stride, padding, dilation, output_padding = (
        list(one) * rank if len(one) == 1 else list(one) for one in (stride, padding, dilation, output_padding)
    )
    if transposed:
        spread = np.zeros((*x.shape[:2], *((size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True))))
        spread[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
        reach = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
        around = [(r - p, r - p + o) for r, p, o in zip(reach, padding, output_padding, strict=True)]
        parts = np.split(np.flip(w, tuple(range(2, w.ndim))), groups)
        w = np.concatenate([np.swapaxes(part, 0, 1) for part in parts])
        x, stride = padded(spread, around), [1] * rank
    else:
        x = padded(x, [(p, p) for p in padding])
    made = _correlated(x, w, stride, dilation, groups)
    return made if b is None else made + along_channels(b, made.ndim)


def _correlated(x: Array, w: Array, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Array:
    window = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape[2:], strict=True)]
    seen = np.lib.stride_tricks.sliding_window_view(x, window, tuple(range(2, x.ndim)))
    seen = seen[(slice(None), slice(None), *(slice(None, None, s) for s in stride), *(slice(None, None, d) for d in dilation))]
    rank, made = len(stride), []
    for part, weights in zip(np.split(seen, groups, 1), np.split(w, groups), strict=True):
        inside = (1, *range(2 + rank, 2 + 2 * rank))
        made.append(np.moveaxis(np.tensordot(part, weights, (inside, tuple(range(1, 2 + rank)))), -1, 1))
    return np.concatenate(made, 1)


# -- places --------------------------------------------------------------------------------------------------------------------------------


def _slice(x: Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Array:
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]


def _split(x: Array, size: Any, dim: int = 0) -> tuple[Array, ...]:
    ends = np.cumsum(size)[:-1] if isinstance(size, list) else np.arange(size, x.shape[dim], size)
    return tuple(np.split(x, ends, dim))


def _index(x: Array, indices: Sequence[Any]) -> Array:
    return np.asarray(x[tuple(slice(None) if one is None else one for one in indices)])


def _index_put(x: Array, indices: Sequence[Any], values: Array, accumulate: bool = False, *_: Any) -> Array:
    made = np.array(x)
    where: Any = tuple(slice(None) if one is None else one for one in indices)
    if accumulate:
        np.add.at(made, where, values)
    else:
        made[where] = values
    return made


def _scattered(way: str) -> Compute:
    def compute(x: Array, dim: int, index: Array, values: Any, *_: Any, **__: Any) -> Array:
        made = np.array(x)
        where: list[Any] = list(np.indices(index.shape))
        where[dim] = index
        values = values[tuple(slice(0, size) for size in index.shape)] if isinstance(values, np.ndarray) and values.ndim else values
        if way == "add":
            np.add.at(made, tuple(where), values)
        else:
            made[tuple(where)] = values
        return made

    return compute


def _index_add(x: Array, dim: int, index: Array, values: Array, alpha: float = 1, **_: Any) -> Array:
    made = np.array(x)
    where: Any = (slice(None),) * (dim % x.ndim) + (index,)
    np.add.at(made, where, alpha * values)
    return made


def _expand(x: Array, shape: Sequence[int], **_: Any) -> Array:
    own = (1,) * (len(shape) - x.ndim) + x.shape
    return np.broadcast_to(x, tuple(had if wanted == -1 else wanted for wanted, had in zip(shape, own, strict=True)))


def _unfold(x: Array, dim: int, size: int, step: int) -> Array:
    seen = np.lib.stride_tricks.sliding_window_view(x, size, axis=dim)
    return seen[(slice(None),) * (dim % x.ndim) + (slice(None, None, step),)]


def _as_strided(flat: Array, offset: int, shape: Sequence[int], strides: Sequence[int]) -> Array:
    step = flat.itemsize
    return np.lib.stride_tricks.as_strided(flat[offset:], tuple(shape), tuple(step * one for one in strides))


def _read(flat: Array, offset: int, shape: Sequence[int], strides: Sequence[int]) -> Array:
    return np.array(_as_strided(np.ascontiguousarray(flat), offset, shape, strides))


def _write(flat: Array, offset: int, shape: Sequence[int], strides: Sequence[int], values: Array) -> Array:
    kind = np.result_type(flat, np.asarray(values)) if np.asarray(values).dtype.kind == flat.dtype.kind else flat.dtype
    made = np.array(flat, kind)
    _as_strided(made, offset, shape, strides)[...] = values
    return made


def _strided(x: Array, shape: Sequence[int], strides: Sequence[int], offset: int | None = None) -> Array:
    return _read(np.ascontiguousarray(x).reshape(-1), offset or 0, shape, strides)


def _repeat_interleave(x: Array, repeats: Any = None, dim: Any = None, **_: Any) -> Array:
    return np.repeat(np.arange(len(x)), x) if repeats is None else np.repeat(x, repeats, dim)


def _interpolated(x: Array, size: Any, is_aligned: bool, *_: Any, **__: Any) -> Array:
    """Linear interpolation along the last axes."""
    for place, length in enumerate(size if size is not None else ()):
        axis = x.ndim - len(size) + place
        own = x.shape[axis]
        places = np.arange(length)
        at = places * (own - 1) / max(length - 1, 1) if is_aligned else np.clip((places + 0.5) * own / length - 0.5, 0, own - 1)
        low = np.minimum(at.astype(int), own - 1)
        share = (at - low).reshape([-1 if other == axis else 1 for other in range(x.ndim)])
        x = np.take(x, low, axis) * (1 - share) + np.take(x, np.minimum(low + 1, own - 1), axis) * share
    return x


def _nearest(x: Array, size: Any, *_: Any, **__: Any) -> Array:
    for place, length in enumerate(size if size is not None else ()):
        axis = x.ndim - len(size) + place
        x = np.take(x, np.arange(length) * x.shape[axis] // length, axis)
    return x


def _clamp(x: Array, least: Any = None, most: Any = None) -> Array:
    x = x if least is None else np.maximum(x, least)
    return x if most is None else np.minimum(x, most)


def _gelu(x: Array, approximate: str = "none") -> Array:
    return FUNCTIONS["GELU (tanh)" if approximate == "tanh" else "GELU (exact)"](x)


def _softplus(x: Array, beta: float = 1.0, *_: Any) -> Array:
    return np.logaddexp(0, beta * x) / beta


def _elu(x: Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Array:
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x * input_scale, 0)))


def _arange(*args: Any, dtype: Any = None, **_: Any) -> Array:
    return in_dtype(np.arange(*args), dtype or ("float64" if any(isinstance(one, float) for one in args) else "int64"))


def _to_copy(x: Array, dtype: Any = None, **_: Any) -> Array:
    return in_dtype(x, dtype)


def _filled(value: float | None) -> Compute:
    def compute(shape: Sequence[int], *given: Any, dtype: Any = None, **_: Any) -> Array:
        return in_dtype(np.full(tuple(shape), given[0] if value is None else value), dtype or "float64")

    return compute


def _filled_like(value: float | None) -> Compute:
    def compute(x: Array, *given: Any, dtype: Any = None, **_: Any) -> Array:
        return in_dtype(np.full(x.shape, given[0] if value is None else value, x.dtype), dtype)

    return compute


def _new_filled(value: float | None) -> Compute:
    def compute(x: Array, shape: Sequence[int], *given: Any, dtype: Any = None, **_: Any) -> Array:
        return in_dtype(np.full(tuple(shape), given[0] if value is None else value, x.dtype), dtype)

    return compute


def _divided(a: Any, b: Any, rounding_mode: str | None = None) -> Any:
    made = np.asarray(a) / b
    return np.floor(made) if rounding_mode == "floor" else np.trunc(made) if rounding_mode == "trunc" else made


def _same(x: Array, *_: Any, **__: Any) -> Array:
    return x


def _complex_parts(x: Array) -> Array:
    return np.stack([x.real, x.imag], -1)


def _fft(x: Array, dim: Sequence[int], normalization: int, onesided: bool) -> Array:
    made = np.fft.rfftn(x, axes=dim) if onesided else np.fft.fftn(x, axes=dim)
    size = math.prod(x.shape[axis] for axis in dim)
    return made / (math.sqrt(size) if normalization == 1 else size if normalization == 2 else 1)


OPERATIONS: Mapping[str, Compute] = {
    # sums, products, comparisons
    "add": lambda a, b, alpha=1: np.add(a, alpha * b if alpha != 1 else b),
    "sub": lambda a, b, alpha=1: np.subtract(a, alpha * b if alpha != 1 else b),
    "rsub": lambda a, b, alpha=1: np.subtract(b, alpha * a if alpha != 1 else a),
    "mul": np.multiply,
    "div": _divided,
    "floor_divide": np.floor_divide,
    "remainder": np.mod,
    "fmod": np.fmod,
    "pow": lambda a, b: np.power(np.asarray(a, np.float64), b),
    "maximum": np.maximum,
    "minimum": np.minimum,
    "atan2": np.arctan2,
    "lerp": lambda a, b, weight: a + weight * (b - a),
    "addcmul": lambda a, b, c, value=1: a + value * b * c,
    "addcdiv": lambda a, b, c, value=1: a + value * b / c,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_not": np.logical_not,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "bitwise_not": np.invert,
    "mm": np.matmul,
    "bmm": np.matmul,
    "mv": np.matmul,
    "dot": np.dot,
    "addmm": lambda c, a, b, beta=1, alpha=1: beta * c + alpha * (a @ b),
    "baddbmm": lambda c, a, b, beta=1, alpha=1: beta * c + alpha * (a @ b),
    "convolution": convolution,
    # functions of single values
    "abs": np.abs,
    "neg": np.negative,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / np.asarray(x, np.float64),
    "square": np.square,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "atan": np.arctan,
    "tanh": np.tanh,
    "sigmoid": FUNCTIONS["sigmoid"],
    "silu": FUNCTIONS["SiLU"],
    "mish": FUNCTIONS["Mish"],
    "relu": FUNCTIONS["ReLU"],
    "gelu": _gelu,
    "softplus": _softplus,
    "elu": _elu,
    "leaky_relu": lambda x, slope=0.01: np.where(x > 0, x, slope * x),
    "hardtanh": lambda x, least=-1.0, most=1.0: np.clip(x, least, most),
    "hardswish": FUNCTIONS["hard swish"],
    "hardsigmoid": FUNCTIONS["hard sigmoid"],
    "glu": lambda x, dim=-1: np.split(x, 2, dim)[0] * FUNCTIONS["sigmoid"](np.split(x, 2, dim)[1]),
    "erf": lambda x: 2 * FUNCTIONS["GELU (exact)"](np.sqrt(2) * x) / np.where(x == 0, 1, np.sqrt(2) * x) - 1,
    "log_sigmoid_forward": lambda x: (-np.logaddexp(0, -x), None),
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": lambda x, decimals=0: np.round(x, decimals),
    "trunc": np.trunc,
    "isfinite": np.isfinite,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "nan_to_num": lambda x, *_: np.nan_to_num(x),
    "clamp": _clamp,
    "clamp_min": np.maximum,
    "clamp_max": np.minimum,
    # reductions
    "sum": _reduction(np.sum),
    "mean": _reduction(np.mean),
    "amax": _reduction(np.max),
    "amin": _reduction(np.min),
    "any": _reduction(np.any),
    "all": _reduction(np.all),
    "prod": _reduction(np.prod),
    "max": _extreme(np.max, np.argmax),
    "min": _extreme(np.min, np.argmin),
    "argmax": lambda x, dim=None, keepdim=False: np.asarray(np.argmax(x, axis=dim, keepdims=keepdim and dim is not None)),
    "argmin": lambda x, dim=None, keepdim=False: np.asarray(np.argmin(x, axis=dim, keepdims=keepdim and dim is not None)),
    "var": _var,
    "std": lambda *args, **named: np.sqrt(_var(*args, **named)),
    "var_mean": lambda x, dim=None, *more, **named: (
        _var(x, dim, *more, **named),
        _reduction(np.mean)(x, dim, named.get("keepdim", False)),
    ),
    "linalg_vector_norm": _norm,
    "norm": _norm,
    "logsumexp": lambda x, dim, keepdim=False: np.asarray(np.logaddexp.reduce(x, axis=dim[0], keepdims=keepdim)),
    "_softmax": _softmax,
    "_safe_softmax": _softmax,
    "_log_softmax": _log_softmax,
    "cumsum": lambda x, dim, **_: np.cumsum(x, dim),
    "cumprod": lambda x, dim, **_: np.cumprod(x, dim),
    "topk": _topk,
    "sort": _sort,
    "argsort": lambda x, *args, **named: _sort(x, *args, **named)[1],
    # normalisation, attention
    "native_layer_norm": layer_norm,
    "_fused_rms_norm": rms_norm,
    "native_group_norm": group_norm,
    "native_batch_norm": batch_norm,
    "_native_batch_norm_legit": batch_norm,
    "_native_batch_norm_legit_no_training": lambda x, w, b, mean, var, momentum, eps: batch_norm(x, w, b, mean, var, False, momentum, eps),
    "_scaled_dot_product_flash_attention_for_cpu": _flash,
    "_scaled_dot_product_attention_math": _plain_attention,
    "_scaled_dot_product_efficient_attention": lambda q, k, v, mask, _, __=0.0, is_causal=False, **named: (
        attention(q, k, v, mask=mask, is_causal=is_causal, scale=named.get("scale")),
    ),
    # views and places
    "view": np.reshape,
    "_unsafe_view": np.reshape,
    "reshape": np.reshape,
    "_reshape_alias": lambda x, shape, *_: np.reshape(x, shape),
    "permute": np.transpose,
    "transpose": np.swapaxes,
    "t": lambda x: x.T,
    "numpy_T": lambda x: x.T,
    "squeeze": lambda x, dim=None: np.squeeze(x, tuple(a for a in axes_of(dim) or () if x.shape[a] == 1) if dim is not None else None),
    "unsqueeze": np.expand_dims,
    "expand": _expand,
    "slice": _slice,
    "select": lambda x, dim, index: np.take(x, index, dim),
    "split": _split,
    "split_with_sizes": _split,
    "unbind": lambda x, dim=0: tuple(np.moveaxis(x, dim, 0)),
    "cat": lambda parts, dim=0: np.concatenate([one for one in parts if one.size or one.ndim > 1], dim),
    "stack": lambda parts, dim=0: np.stack(parts, dim),
    "unfold": _unfold,
    "as_strided": _strided,
    "flip": lambda x, dims: np.flip(x, tuple(dims)),
    "roll": lambda x, shifts, dims=(): np.roll(x, tuple(shifts), tuple(dims)) if dims else np.roll(x, shifts[0]),
    "repeat": np.tile,
    "repeat_interleave": _repeat_interleave,
    "index": _index,
    "index_put": _index_put,
    "_unsafe_index": _index,
    "index_select": lambda x, dim, index: np.take(x, index, dim),
    "index_add": _index_add,
    "gather": lambda x, dim, index, **_: np.take_along_axis(
        x[tuple(slice(None) if a == dim % x.ndim else slice(0, n) for a, n in enumerate(index.shape))], index, dim
    ),
    "scatter": _scattered("put"),
    "scatter_add": _scattered("add"),
    "embedding": lambda table, ids, *_: table[ids],
    "where": np.where,
    "masked_fill": lambda x, mask, value: np.where(mask, value, x),
    "tril": lambda x, diagonal=0: np.tril(x, diagonal),
    "triu": lambda x, diagonal=0: np.where(np.triu(np.ones(x.shape[-2:], bool), diagonal), x, np.zeros((), x.dtype)),
    "diagonal": lambda x, offset=0, a=0, b=1: np.diagonal(x, offset, a, b),
    "constant_pad_nd": lambda x, pad, value=0.0: padded(x, widths_of(pad), value=value),
    "reflection_pad1d": lambda x, pad: padded(x, widths_of(pad), "reflect"),
    "reflection_pad2d": lambda x, pad: padded(x, widths_of(pad), "reflect"),
    "replication_pad1d": lambda x, pad: padded(x, widths_of(pad), "edge"),
    "replication_pad2d": lambda x, pad: padded(x, widths_of(pad), "edge"),
    "upsample_nearest1d": _nearest,
    "upsample_nearest2d": _nearest,
    "upsample_linear1d": _interpolated,
    "upsample_bilinear2d": _interpolated,
    # what makes tensors
    "arange": _arange,
    "linspace": lambda a, b, steps, dtype=None, **_: np.linspace(a, b, steps),
    "full": _filled(None),
    "zeros": _filled(0.0),
    "ones": _filled(1.0),
    "empty": _filled(0.0),
    "full_like": _filled_like(None),
    "zeros_like": _filled_like(0.0),
    "ones_like": _filled_like(1.0),
    "empty_like": _filled_like(0.0),
    "new_full": _new_filled(None),
    "new_zeros": _new_filled(0.0),
    "new_ones": _new_filled(1.0),
    "new_empty": _new_filled(0.0),
    "hann_window": lambda size, is_periodic=True, **_: np.hanning(size + is_periodic)[:size],
    "hamming_window": lambda size, is_periodic=True, **_: np.hamming(size + is_periodic)[:size],
    "blackman_window": lambda size, is_periodic=True, **_: np.blackman(size + is_periodic)[:size],
    "scalar_tensor": lambda value, **_: np.asarray(value, np.float64),
    "eye": lambda n, m=None, **_: np.eye(n, m),
    "fill": lambda x, value: np.full(x.shape, value, x.dtype),
    "zero": lambda x: np.zeros(x.shape, x.dtype),
    "copy": lambda x, source, *_: np.broadcast_to(source, x.shape),
    "_to_copy": _to_copy,
    "clone": _same,
    "detach": _same,
    "alias": _same,
    "contiguous": _same,
    "lift_fresh": _same,
    "lift_fresh_copy": _same,
    "dropout": lambda x, *_: x,
    "native_dropout": lambda x, *_: (x, None),
    # complex numbers
    "view_as_real": _complex_parts,
    "view_as_complex": lambda x: x[..., 0] + 1j * x[..., 1],
    "complex": lambda a, b: a + 1j * b,
    "polar": lambda size, angle: size * np.exp(1j * angle),
    "real": np.real,
    "imag": np.imag,
    "angle": np.angle,
    "_conj": np.conj,
    "resolve_conj": _same,
    "_fft_r2c": _fft,
    # memory that is written to
    "@item": lambda made, place: made[place],
    "@flat": lambda x: np.ascontiguousarray(x).reshape(-1),
    "@read": _read,
    "@write": _write,
}
