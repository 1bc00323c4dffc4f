"""PyTorch's arithmetic with one more rounding in each operation, as in another library or in another order of the same sums."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tracediff.observe.adapters.torch_writes import written

_EXACT = frozenset(
    (
        *("abs", "ceil", "clamp", "clamp_max", "clamp_min", "clip", "clone", "conj_physical", "copysign", "floor", "fmax", "fmin"),
        *("frac", "frexp", "hardtanh", "heaviside", "ldexp", "masked_fill", "maximum", "minimum", "nan_to_num", "neg", "positive"),
        *("relu", "relu6", "round", "sgn", "sign", "threshold", "trunc", "where"),
    )
)
"""Pointwise operations that round nothing, and none of whose results is new."""
_SUMS = frozenset(
    (
        *("_fft_c2c", "_fft_c2r", "_fft_r2c", "_scaled_dot_product_attention_math", "_scaled_dot_product_efficient_attention"),
        *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu", "_thnn_fused_gru_cell"),
        *("_thnn_fused_lstm_cell", "addbmm", "addmm", "addmv", "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d"),
        *("_adaptive_avg_pool3d", "baddbmm", "bmm", "convolution", "_convolution", "convolution_overrideable", "dot"),
        *("linalg_vector_norm", "logsumexp", "mean", "mkldnn_rnn_layer", "mm", "mv", "native_batch_norm", "native_group_norm"),
        *("native_layer_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "norm", "std", "sum", "var"),
        *("var_mean", "vdot"),
    )
)
"""Operations that add up many terms: each term is off as well, so that what cancels shows."""
_RUNNING = {"cumsum": np.add, "cumprod": np.multiply}
"""Running sums and products, which PyTorch takes in a wider dtype, and another library one term after the other in float32."""
_OTHERS = frozenset(
    (
        *("_log_softmax", "_softmax", "arange", "linspace", "logspace", "prod", "grid_sampler_2d", "grid_sampler_3d"),
        *("upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_bicubic2d_aa"),
        *("_upsample_bilinear2d_aa",),
    )
)
"""Further operations that round their results."""
_FEW_DIGITS = {torch.float16: 0x3FFFF, torch.bfloat16: 0xFFFFF, torch.float32: 0xFFF, torch.float64: 0xFFF}
"""The digits of a number, written as float32, that are zero where it is a short one: the result of an operation that rounded nothing."""


class Rounding(TorchDispatchMode):
    """Each elementary operation's result is off by ``units`` unit roundoffs, or by half of them at least.

    The unit is that of float32, also where the dtype is wider. In half precision it is the dtype's own, and one of them at most: there is
    computed wider and rounded once.

    How far is drawn from the value itself, so that equal results are off equally, as they are in any arithmetic. Results of few digits
    (whole numbers, halves, zeros, infinities) are exact and stay as they are, and so does what only moves or chooses values. No generator
    is used.
    """

    def __init__(self, units: float) -> None:
        super().__init__()
        self._units = units

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.removesuffix("_")
        key = zlib.crc32(name.encode())
        if name in _SUMS:
            args = _first_off(args, key)
        running = _running(name, args, kwargs)
        made = func(*args, **kwargs)
        if not (name in _SUMS or name in _RUNNING or name in _OTHERS or (torch.Tag.pointwise in func.tags and name not in _EXACT)):
            return made

        def off(tensor: torch.Tensor) -> torch.Tensor:
            return _off(tensor if running is None else running.to(tensor.dtype), key + 1, self._units)

        if func._schema.is_mutable:
            for tensor in written(func, args, kwargs):
                if _rounds(tensor):
                    tensor.copy_(off(tensor))
            return made
        return tree_map_only(torch.Tensor, off, made)


def _first_off(args: Sequence[Any], key: int) -> tuple[Any, ...]:
    """The arguments, the first tensor of rounded numbers off by a unit."""
    first = next((place for place, arg in enumerate(args) if isinstance(arg, torch.Tensor) and _rounds(arg)), None)
    return tuple(_off(arg, key, 1.0) if place == first else arg for place, arg in enumerate(args))


def _running(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """A running sum or product taken one term after the other in the dtype itself; None for anything else."""
    values = args[0] if args else None
    if name not in _RUNNING or not isinstance(values, torch.Tensor) or not _rounds(values) or values.is_complex() or not values.ndim:
        return None
    axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    terms = values.detach().to(torch.float32).numpy(force=True)
    return torch.from_numpy(_RUNNING[name].accumulate(terms, axis=axis, dtype=terms.dtype)).to(values.device)


def _off(values: torch.Tensor, key: int, units: float) -> torch.Tensor:
    """The values, each off by its own error."""
    if not _rounds(values):
        return values
    parts = torch.view_as_real(values) if values.is_complex() else values
    unit = max(torch.finfo(parts.dtype).eps, 2**-23) / 2
    off = parts + parts * (_drawn(parts, key) * ((units if parts.dtype.itemsize > 2 else 1.0) * unit))
    off = torch.where(parts.abs() < torch.finfo(parts.dtype).max / 2, off, parts)  # masks and infinities stay as they are
    return torch.view_as_complex(off) if values.is_complex() else off


def _rounds(values: torch.Tensor) -> bool:
    """Whether a tensor holds numbers that are rounded."""
    return bool(
        (values.is_floating_point() or values.is_complex())
        and values.dtype.itemsize > 1
        and values.dtype != torch.complex32
        and values.layout == torch.strided
        and values.device.type != "meta"
        and values.numel() > 0
    )


def _drawn(values: torch.Tensor, key: int) -> torch.Tensor:
    """A number of size 0.5 to 1 and of either sign for each value, the same for equal values; 0 for a value of few digits."""
    narrow = values.to(torch.float32).contiguous()
    bits = narrow.view(torch.int32)
    mixed = (bits * _as_int32(0x9E3779B1)).add_(_as_int32(key))
    mixed.bitwise_xor_(mixed >> 15).mul_(_as_int32(0x85EBCA77))
    drawn = mixed.to(torch.float32).mul_(0.5 * 2.0**-31)
    drawn.add_(torch.copysign(drawn.new_tensor(0.5), drawn))
    is_short = bits.bitwise_and(_FEW_DIGITS[values.dtype]) == 0
    if values.dtype == torch.float64:
        is_short &= narrow == values
    return drawn.masked_fill_(is_short, 0.0).to(values.dtype)


def _as_int32(number: int) -> int:
    """The lower 32 bits of a number, as a signed one."""
    return (number + 2**31) % 2**32 - 2**31
