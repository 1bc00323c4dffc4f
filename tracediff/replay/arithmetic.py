"""The arithmetic of ATen's operations in NumPy, so that recorded operations can be computed again with one of them changed.

Each takes the arguments that PyTorch gives the operation of its name. Floats are float64, whatever the run computed in. An operation that
is not here cannot be computed again; nothing is then said of what depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from tracediff.dtype import Array
from tracediff.replay.functions import FUNCTIONS
from tracediff.replay.resampling import OF_OPERATION, OUTSIDE, Sampling, Way, resampled, sampled

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
    def compute(x: Array, dim: Any = None, keepdim: bool = False, *_: Any, dtype: Any = None, **__: Any) -> Array:
        return np.asarray(reduce(in_dtype(x, dtype), axis=axes_of(dim), keepdims=bool(keepdim)))

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


def _grouped(a: Array, b: Array, offs: Array | None = None, bias: Any = None, *_: Any, **__: Any) -> Array:
    """The rows of a (T, K) up to each offset times one of b (E, K, N); with a (E, T, K) one product each."""
    if offs is None or a.ndim == 3 or b.ndim == 2:
        if offs is not None:
            raise ValueError("groups along another axis")
        return np.asarray(a @ b)
    made, start = np.zeros((len(a), b.shape[-1])), 0
    for group, end in enumerate(offs):
        made[start:end] = a[start:end] @ b[group]
        start = int(end)
    return made if bias is None else made + bias


def _solved(a: Array, b: Array, *, upper: bool, left: bool = True, unitriangular: bool = False, **_: Any) -> Array:
    """What a triangular matrix times it, or it times the matrix, gives b."""
    known = np.triu(a) if upper else np.tril(a)
    if unitriangular:
        known = known - known * np.eye(known.shape[-1]) + np.eye(known.shape[-1])
    if left:
        return np.linalg.solve(known, b)
    turned = np.linalg.solve(np.swapaxes(known, -1, -2), np.swapaxes(b, -1, -2))
    return np.swapaxes(turned, -1, -2)


def _weight_norm(v: Array, g: Array, dim: int = 0) -> tuple[Array, Array]:
    """v with the length that g says along each place of one axis; then the lengths that v has."""
    size = np.sqrt((v * v).sum(tuple(axis for axis in range(v.ndim) if axis != dim % v.ndim), keepdims=True))
    return v * (g / size), size


# -- windows -------------------------------------------------------------------------------------------------------------------------------


def _windows(x: Array, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Array:
    """(..., places along the last axes, places in the window)."""
    rank = len(size)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, size, strict=True)]
    seen = np.lib.stride_tricks.sliding_window_view(x, reach, tuple(range(x.ndim - rank, x.ndim)))
    taken: Any = (..., *(slice(None, None, s) for s in stride), *(slice(None, None, d) for d in dilation))
    return np.asarray(seen[taken])


def _each(value: Any, rank: int) -> list[int]:
    given = [value] if isinstance(value, int) else list(value)
    return given * rank if len(given) == 1 else given


def _pooled(
    x: Array, size: Any, stride: Any, reduce: Callable[..., Any], outside: float, padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> Array:
    """Windows along the last axes, reduced; what lies outside counts as ``outside``, and a last window may reach over the end."""
    size = list(size)
    rank = len(size)
    stride, padding, dilation = _each(stride or size, rank), _each(padding, rank), _each(dilation, rank)
    widths = []
    for place in range(rank):
        long = x.shape[x.ndim - rank + place] + 2 * padding[place]
        left = (long - dilation[place] * (size[place] - 1) - 1) % stride[place]
        more = stride[place] - left if ceil and left else 0
        starts = long - dilation[place] * (size[place] - 1) - 1 + more
        more = 0 if starts >= x.shape[x.ndim - rank + place] + padding[place] else more
        widths.append((padding[place], padding[place] + more))
    seen = _windows(padded(x, widths, value=outside), size, stride, dilation)
    return np.asarray(reduce(seen, tuple(range(seen.ndim - rank, seen.ndim))))


def _averaged(x: Array, size: Any, stride: Any, padding: Any, ceil: bool, counts: bool, divisor: int | None = None) -> Array:
    """The means of windows; ``counts``: whether padded places count."""
    total = _pooled(x, size, stride, np.sum, 0.0, padding, 1, ceil)
    if divisor:
        return total / divisor
    if counts and not ceil:
        return np.asarray(total / math.prod(size))
    rank = len(size)
    around = _each(padding, rank)
    inside = np.ones(x.shape[-rank:])
    if counts:
        inside = padded(inside, [(one, one) for one in around], value=1.0)
        around = [0] * rank
    return total / _pooled(inside, size, stride, np.sum, 0.0, around, 1, ceil)


def _adaptive(x: Array, sizes: Sequence[int]) -> Array:
    """Means over parts of the last axes that begin at floor(i n / m) and end at ceil((i + 1) n / m)."""
    for place, length in enumerate(sizes):
        axis = x.ndim - len(sizes) + place
        own = x.shape[axis]
        parts = [np.take(x, range(i * own // length, -(-(i + 1) * own // length)), axis).mean(axis) for i in range(length)]
        x = np.stack(parts, axis)
    return x


def _columns(x: Array, size: Any, dilation: Any, padding: Any, stride: Any) -> Array:
    """(B, C, H, W) as (B, C x window, places)."""
    seen = _windows(padded(x, [(p, p) for p in padding]), size, stride, dilation)
    turned = np.moveaxis(seen, (-2, -1), (2, 3))
    return turned.reshape(len(x), x.shape[1] * math.prod(size), -1)


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


def _masked_scatter(x: Array, mask: Array, source: Array) -> Array:
    made = np.array(x)
    where = np.broadcast_to(mask, x.shape)
    made[where] = source.reshape(-1)[: int(where.sum())]
    return made


def _scatter_reduced(x: Array, dim: int, index: Array, source: Array, reduce: str, *, include_self: bool = True, **_: Any) -> Array:
    ways = {"sum": np.add, "prod": np.multiply, "amax": np.maximum, "amin": np.minimum}
    if reduce not in ways or not include_self:
        raise ValueError(f"no arithmetic for scatter_reduce by {reduce}")
    made = np.array(x)
    where: list[Any] = list(np.indices(index.shape))
    where[dim] = index
    ways[reduce].at(made, tuple(where), source[tuple(slice(0, size) for size in index.shape)])
    return made


def _histogram(x: Array, bins: int = 100, least: float = 0, most: float = 0) -> Array:
    """How many values lie in each of so many equal parts, as floats; by default between the extremes."""
    if least == most:
        least, most = float(x.min()), float(x.max())
    made, _ = np.histogram(x, bins, (least, most) if least != most else (least - 1, most + 1))
    return made.astype(np.float64)


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


def _folded_back(seen: Array, sizes: Sequence[int], dim: int, size: int, step: int) -> Array:
    """Windows along an axis added up where they overlap."""
    made = np.zeros(tuple(sizes))
    turned, windows = np.moveaxis(made, dim, -1), np.moveaxis(seen, dim, -2)
    for place in range(windows.shape[-2]):
        turned[..., place * step : place * step + size] += windows[..., place, :]
    return made


def _strided(x: Array, shape: Sequence[int], strides: Sequence[int], offset: int | None = None) -> Array:
    return _read(np.ascontiguousarray(x).reshape(-1), offset or 0, shape, strides)


def _repeat_interleave(x: Array, repeats: Any = None, dim: Any = None, **_: Any) -> Array:
    return np.repeat(np.arange(len(x)), x) if repeats is None else np.repeat(x, repeats, dim)


def _resampling(way: Way, rank: int, *, has_flag: bool) -> Compute:
    """ATen's resampling along the last ``rank`` axes: (x, sizes, align_corners where there is a flag, scales)."""

    def compute(x: Array, sizes: Any, *given: Any) -> Array:
        flag = has_flag and bool(given[0])
        scales: Sequence[Any] = given[1:] if has_flag else given
        if scales and isinstance(scales[0], list):  # the ``vec`` overloads: factors in one list, sizes where there are none
            scales = scales[0]
        if not sizes:
            sizes = [int(size * factor) for size, factor in zip(x.shape[-rank:], scales, strict=True)]
        return resampled(x, sizes, replace(way, is_aligned=flag), scales)

    return compute


def _resamplings() -> Iterator[tuple[str, Compute]]:
    for name, way in OF_OPERATION.items():
        stem = name.removesuffix("_aa")
        ranks = (2,) if stem.endswith(("bilinear", "bicubic")) else (1,) if stem.endswith("linear") else (1, 2, 3)
        for rank in ranks:
            yield f"{stem}{rank}d{name[len(stem) :]}", _resampling(way, rank, has_flag="nearest" not in name)


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


def _fft_complex(x: Array, dim: Sequence[int], normalization: int, forward: bool) -> Array:
    made = np.fft.fftn(x, axes=dim) if forward else np.fft.ifftn(x, axes=dim, norm="forward")
    size = math.prod(x.shape[axis] for axis in dim)
    return made / (math.sqrt(size) if normalization == 1 else size if normalization == 2 else 1)


def _fft_back(x: Array, dim: Sequence[int], normalization: int, last: int) -> Array:
    lengths = [x.shape[axis] for axis in dim[:-1]] + [last]
    made = np.fft.irfftn(x, lengths, axes=dim, norm="forward")
    size = math.prod(lengths)
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
    "_grouped_mm": _grouped,
    "linalg_solve_triangular": _solved,
    "convolution": convolution,
    "im2col": _columns,
    "max_pool2d_with_indices": lambda x, size, stride=(), *more: (_pooled(x, size, stride, np.max, -np.inf, *more), None),
    "avg_pool1d": lambda x, size, stride=(), padding=0, ceil=False, counts=True: _averaged(x, size, stride, padding, ceil, counts),
    "avg_pool2d": lambda x, size, stride=(), padding=0, ceil=False, counts=True, divisor=None: _averaged(
        x, size, stride, padding, ceil, counts, divisor
    ),
    "_adaptive_avg_pool2d": _adaptive,
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
    "acos": np.arccos,
    "asin": np.arcsin,
    "sinh": np.sinh,
    "cosh": np.cosh,
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
    "histc": _histogram,
    "aminmax": lambda x, *, dim=None, keepdim=False: (_reduction(np.min)(x, dim, keepdim), _reduction(np.max)(x, dim, keepdim)),
    "scatter_reduce": _scatter_reduced,
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
    "cumsum": lambda x, dim, dtype=None, **_: np.cumsum(in_dtype(x, dtype), dim),
    "cumprod": lambda x, dim, **_: np.cumprod(x, dim),
    "topk": _topk,
    "sort": _sort,
    "argsort": lambda x, *args, **named: _sort(x, *args, **named)[1],
    # normalisation, attention
    "_weight_norm_interface": _weight_norm,
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
    "unfold_backward": _folded_back,
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
    "nonzero": lambda x: np.stack(np.nonzero(x), -1),
    "masked_scatter": _masked_scatter,
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
    **dict(_resamplings()),
    "grid_sampler_2d": lambda x, grid, mode, outside, flag: sampled(x, grid, Sampling(mode == 1, OUTSIDE[outside], bool(flag))),
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
    "_fft_c2c": _fft_complex,
    "_fft_c2r": _fft_back,
    # memory that is written to
    "@item": lambda made, place: made[place],
    "@flat": lambda x: np.ascontiguousarray(x).reshape(-1),
    "@read": _read,
    "@write": _write,
}
