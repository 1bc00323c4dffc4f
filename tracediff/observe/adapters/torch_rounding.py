"""PyTorch's arithmetic with one more rounding in each operation, as in another library or in another order of the same sums."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from tracediff.dtype import Array
from tracediff.observe.adapters.torch_modes import WatchingMode
from tracediff.observe.adapters.torch_sums import IN_ORDER, in_order
from tracediff.observe.adapters.torch_writes import tensors_in, written

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
_JUMPS = frozenset(
    (
        *("_local_scalar_dense", "ceil", "floor", "floor_divide", "fmod", "frac", "hardshrink", "heaviside", "remainder", "round", "sgn"),
        *("sign", "threshold", "trunc"),
    )
)
"""Operations whose results jump, or become a number of the code's own, although they may be real: a choice, as whatever makes exact values
of real ones is."""
_NUMPY = torch.Tensor.numpy  # as it is while those methods are watched
_OTHERS = frozenset(
    (
        *(
            "_log_softmax",
            "_safe_softmax",
            "_softmax",
            "arange",
            "cumprod",
            "cumsum",
            "linspace",
            "logspace",
            "prod",
            "grid_sampler_2d",
            "grid_sampler_3d",
        ),
        *("upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_bicubic2d_aa"),
        *("_upsample_bilinear2d_aa",),
    )
)
"""Further operations that round their results."""
_BLOCK = 1 << 15
"""Elements a block: with all that is worked out for it, it stays in the processor's cache."""
_FEW_DIGITS = {torch.float16: 0x3FFFF, torch.bfloat16: 0xFFFFF, torch.float32: 0xFFF, torch.float64: (1 << 41) - 1}
"""The digits of a number, written as float32 (float64 as itself), that are zero where it is a short one: the result of an operation that
rounded nothing."""
_HALF_OF_MOST = {kind: torch.finfo(kind).max / 2 for kind in _FEW_DIGITS}
_EPSILON = {kind: max(torch.finfo(kind).eps, 2**-23) for kind in _FEW_DIGITS}


class Rounding(WatchingMode):
    """Each elementary operation's result is off by ``units`` unit roundoffs, or by half of them at least.

    The unit is that of float32, also where the dtype is wider. In half precision it is the dtype's own, and one of them at most: there is
    computed wider and rounded once.

    How far is drawn from the value itself, so that equal results are off equally, as they are in any arithmetic. Results of few digits
    (whole numbers, halves, zeros, infinities) are exact and stay as they are, and so does what only moves or chooses values. No generator
    is used. What is computed while ``is_quiet`` is left alone.

    ``chooses``: whether any operation so far made exact values of real ones, or jumped, or real values went to other code than PyTorch's.
    """

    def __init__(self, units: float, is_quiet: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self.chooses = False
        self._units, self._is_quiet = units, is_quiet

    def handed_out(self, tensor: torch.Tensor) -> None:
        self.chooses = self.chooses or (_is_real(tensor) and not self._is_quiet())

    def dispatched(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self._is_quiet():
            return func(*args, **kwargs)
        name, key, is_sum, is_rounded, is_mutable = _facts(func)
        if is_sum:
            args = _first_off(args, key)
        before = (args[0].clone(), *args[1:]) if is_mutable and name in IN_ORDER else args
        made = func(*args, **kwargs)
        self.chooses = self.chooses or _is_choice(name, args, made)
        if not is_rounded:
            return made

        if is_mutable:
            for tensor in written(func, args, kwargs):
                if _rounds(tensor):
                    tensor.copy_(_off(in_order(name, before, kwargs, tensor), key + 1, self._units))
            return made
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors_in([*args, *kwargs.values()]) if tensor.layout == torch.strided}

        def off(tensor: torch.Tensor) -> torch.Tensor:
            is_own = not _rounds(tensor) or tensor.untyped_storage().data_ptr() not in given
            return _off(tensor, key + 1, self._units, in_place=is_own)

        made = in_order(name, args, kwargs, made)
        return off(made) if isinstance(made, torch.Tensor) else tree_map_only(torch.Tensor, off, made)


class _Facts(NamedTuple):
    """What is to be known of an operation: its name without the underscore of what works in place, and a number drawn from it."""

    name: str
    key: int
    is_sum: bool
    is_rounded: bool
    is_mutable: bool


@cache
def _facts(func: Any) -> _Facts:
    name = func.overloadpacket.__name__.removesuffix("_")
    is_rounded = name in _SUMS or name in _OTHERS or (torch.Tag.pointwise in func.tags and name not in _EXACT)
    return _Facts(name, zlib.crc32(name.encode()), name in _SUMS, is_rounded, bool(func._schema.is_mutable))


def _is_choice(name: str, args: Sequence[Any], made: Any) -> bool:
    """Whether an operation makes exact values of real ones, or real ones that jump."""
    makes_exact = name in _JUMPS or any(not _is_real(tensor) for tensor in tensors_in([made]))
    return makes_exact and any(_is_real(tensor) for tensor in tensors_in(args))


def _is_real(tensor: torch.Tensor) -> bool:
    return bool(tensor.is_floating_point() or tensor.is_complex())


def _first_off(args: Sequence[Any], key: int) -> tuple[Any, ...]:
    """The arguments, the first tensor of rounded numbers off by a unit."""
    first = next((place for place, arg in enumerate(args) if isinstance(arg, torch.Tensor) and _rounds(arg)), None)
    return tuple(_off(arg, key, 1.0) if place == first else arg for place, arg in enumerate(args))


def _off(values: torch.Tensor, key: int, units: float, *, in_place: bool = False) -> torch.Tensor:
    """The values, each off by its own error; ``in_place`` where nobody else has them."""
    if not _rounds(values):
        return values
    made = values if in_place else values.clone()
    parts = torch.view_as_real(made) if made.is_complex() else made
    flat = parts.view(-1) if parts.is_contiguous() else _in_memory(parts)
    unit = _EPSILON[flat.dtype] / 2 * (units if flat.dtype.itemsize > 2 else 1.0)
    blocks = [flat] if flat.numel() <= _BLOCK or not flat.is_cpu else flat.split(_BLOCK)
    with torch.no_grad():
        for block in blocks:
            _put_off(block, key, unit)
    if flat.data_ptr() != parts.data_ptr():
        parts.copy_(flat.view(parts.shape))
    return made


def _in_memory(values: torch.Tensor) -> torch.Tensor:
    """The values one after the other as they lie in memory; a copy in their own order where they have gaps or overlap."""
    order = sorted(range(values.ndim), key=lambda axis: (values.stride(axis), values.shape[axis]), reverse=True)
    return values.permute(order).reshape(-1)


def _put_off(block: torch.Tensor, key: int, unit: float) -> None:
    """Moves each of the values by 0.5 to 1 times ``unit`` of itself, the same for equal values; those of few digits stay."""
    is_huge = not _largest(block) < _HALF_OF_MOST[block.dtype]
    before = block.clone() if is_huge else block
    drawn = _drawn(block, key)
    if block.dtype.itemsize > 2:
        block.addcmul_(block, drawn if block.dtype == torch.float32 else drawn.to(block.dtype), value=unit)
    else:
        wide = block.to(torch.float32)
        block.copy_(wide.addcmul_(wide, drawn, value=unit))
    if is_huge:  # masks and infinities stay as they are
        block.copy_(torch.where(before.abs() < _HALF_OF_MOST[block.dtype], block, before))


def _largest(values: torch.Tensor) -> float:
    """The size of the largest of the values; NaN where one is NaN."""
    if values.is_cpu and values.dtype in (torch.float32, torch.float64):
        own = _NUMPY(values.detach())
        return float(np.maximum(-own.min(), own.max()))
    low, high = torch.aminmax(values)
    return float(torch.maximum(-low, high))


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
    """A number of size 0.5 to 1 and of either sign for each value, float32, the same for equal values; 0 for a value of few digits.

    On the host it lies in a buffer that the next call fills anew.
    """
    few, key = _FEW_DIGITS[values.dtype], _as_int32(key)
    bits = values if values.dtype == torch.float32 else values.to(torch.float32)
    own = values if values.dtype == torch.float64 else bits
    if values.is_cpu:
        return torch.from_numpy(_mixed_on_host(_NUMPY(bits.detach()), _NUMPY(own.detach()), few, key))
    return _mixed(bits.view(torch.int32), own.view(torch.int64 if own.dtype == torch.float64 else torch.int32), few, key)


class _Scratch(threading.local):
    """Buffers of one block, kept for the next."""

    def __init__(self) -> None:
        self.mixed, self.other = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.int32)
        self.wide = np.empty(_BLOCK, np.int64)


_scratch = _Scratch()


def _mixed_on_host(values: Array, own: Array, few: int, key: int) -> Array:
    """As `_mixed`, of float32 values and the ``own`` ones, float32 or float64, in a buffer; the result as float32.

    NumPy takes a third of PyTorch's time here, and constants of its own half of what Python's numbers take for a small tensor.
    """
    size, bits = values.size, values.view(np.int32)
    is_kept = size <= _BLOCK
    mixed = _scratch.mixed[:size] if is_kept else np.empty(size, np.int32)
    other = _scratch.other[:size] if is_kept else np.empty(size, np.int32)
    np.multiply(bits, _FIRST, out=mixed)
    np.add(mixed, np.array(key, np.int32), out=mixed)
    np.right_shift(mixed, _HALF, out=other)
    np.bitwise_xor(mixed, other, out=mixed)
    np.multiply(mixed, _SECOND, out=mixed)
    np.bitwise_and(mixed, _SIGN_AND_DIGITS, out=mixed)
    np.bitwise_or(mixed, _EXPONENT, out=mixed)
    if own.dtype == np.float32:
        digits = np.bitwise_and(bits, _int32(few), out=other)
        np.add(digits, _ALL_BUT_SIGN, out=digits)
        np.right_shift(digits, _SIGN, out=digits)
    else:
        wide = _scratch.wide[:size] if is_kept else np.empty(size, np.int64)
        np.bitwise_and(own.view(np.int64), np.int64(few), out=wide)
        np.add(wide, np.int64(2**63 - 1), out=wide)
        np.right_shift(wide, np.int64(63), out=wide)
        np.copyto(other, wide, casting="unsafe")
    np.bitwise_and(mixed, other, out=mixed)
    found: Array = mixed.view(np.float32)
    return found


def _mixed(bits: torch.Tensor, own: torch.Tensor, few: int, key: int) -> torch.Tensor:
    """Float32 numbers of size 0.5 to 1 and of either sign, drawn from ``bits``, those of float32 numbers; zeros where ``own`` has no digit
    among ``few``.

    All are signed whole numbers. Choosing by their bits takes a tenth of the time of comparing.
    """
    mixed = bits * _FIRST.item()
    mixed += key
    mixed ^= mixed >> _HALF.item()
    mixed *= _SECOND.item()
    mixed &= _SIGN_AND_DIGITS.item()
    mixed |= _EXPONENT.item()
    width = 8 * own.itemsize
    digits = own & few
    digits += 2 ** (width - 1) - 1
    digits >>= width - 1  # all bits where any digit is set, none otherwise
    mixed &= digits.to(torch.int32)
    return mixed.view(torch.float32)


def _as_int32(number: int) -> int:
    """The lower 32 bits of a number, as a signed one."""
    return (number + 2**31) % 2**32 - 2**31


@cache
def _int32(number: int) -> Array:
    """A number as an array without axes, with which NumPy computes soonest."""
    return np.array(_as_int32(number), np.int32)


_FIRST, _SECOND = _int32(0x9E3779B1), _int32(0x85EBCA77)
_HALF, _SIGN = _int32(15), _int32(31)
_SIGN_AND_DIGITS, _EXPONENT = _int32(0x807FFFFF), _int32(0x3F000000)
"""What is kept of mixed bits: the sign and digits of a float32 number, which the exponent puts between 0.5 and 1."""
_ALL_BUT_SIGN = _int32(2**31 - 1)
