"""PyTorch's products of float32 numbers: what rules their precision, the pin of full precision, and products of cut operands."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from tracediff.observe.adapters.torch_modes import DispatchMode

_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
_SWITCHES: tuple[tuple[str, str], ...] = (
    ("cuda.matmul", "allow_tf32"),
    ("cudnn", "allow_tf32"),
    ("cuda.matmul", "allow_bf16_reduced_precision_reduction"),
    ("cuda.matmul", "allow_fp16_reduced_precision_reduction"),
)
"""What lets products be coarser, below `torch.backends`."""
_PRECISIONS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
"""What has a ``fp32_precision`` of its own in newer versions; the switches cannot be read once these were set."""
_FULL = "ieee"

_PRODUCTS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "_grouped_mm", "convolution", "_convolution", "convolution_overrideable"), (0, 1)),
    **dict.fromkeys(("addmm", "addbmm", "addmv", "baddbmm"), (1, 2)),
    **dict.fromkeys(("_scaled_dot_product_attention_math", "_scaled_dot_product_efficient_attention"), (0, 1, 2)),
    **dict.fromkeys(("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"), (0, 1, 2)),
    "mkldnn_rnn_layer": (0, 1, 2, 5),
    "_native_multi_head_attention": (0, 1, 2, 5, 7),
    "_transformer_encoder_layer_fwd": (3, 5, 14, 16),
}
"""The operations that multiply and add up, with the places of what they multiply; the probabilities inside attention stay whole."""


def settings(device: str) -> dict[str, str]:
    """What rules the precision of products on a device: switches and variables, as texts; those that this version lacks are left out."""
    found = {"torch.get_float32_matmul_precision()": _matmul_precision()}
    is_cuda = device.startswith("cuda")
    for owner, name in _SWITCHES if is_cuda else ():
        found[f"torch.backends.{owner}.{name}"] = _read(owner, name)
    for owner in _PRECISIONS:
        if owner.startswith(("cuda", "cudnn") if is_cuda else "mkldnn"):
            found[f"torch.backends.{owner}.fp32_precision"] = _read(owner, "fp32_precision")
    found |= {name: os.environ[name] for name in _VARIABLES if is_cuda and name in os.environ}
    return {name: value for name, value in found.items() if value not in ("", "none")}


def _read(owner: str, name: str) -> str:
    """A setting as a text; "" where this version has none, or it cannot be read beside newer ones."""
    try:
        return str(getattr(_backend(owner), name))
    except (AttributeError, RuntimeError):
        return ""


def _matmul_precision() -> str:
    """The precision that was asked for by the oldest of the switches; "" where it cannot be read beside newer ones."""
    try:
        return str(torch.get_float32_matmul_precision())
    except RuntimeError:
        return ""


def _backend(path: str) -> Any:
    found: Any = torch.backends
    for name in path.split("."):
        found = getattr(found, name)
    return found


@contextmanager
def full_precision() -> Iterator[None]:
    """A context in which products are taken in full float32 and added up so; what was set before holds again afterwards."""
    with ExitStack() as undo:
        before = _matmul_precision()
        if before not in ("", "highest"):
            undo.callback(torch.set_float32_matmul_precision, before)
            torch.set_float32_matmul_precision("highest")
        for owner, name in _SWITCHES:
            if _read(owner, name) == "True":
                undo.callback(setattr, _backend(owner), name, True)
                setattr(_backend(owner), name, False)
        for owner in _PRECISIONS:
            value = _read(owner, "fp32_precision")
            if value not in ("", "none", _FULL):  # nobody used the older switches for these
                undo.callback(setattr, _backend(owner), "fp32_precision", value)
                _backend(owner).fp32_precision = _FULL
        yield


class CoarseProducts(DispatchMode):
    """What products and convolutions multiply is cut to ``bits`` explicit bits of mantissa, as hardware does; float32 alone.

    ``way`` as in `tracediff.tensors.mantissa`. What is computed while ``is_quiet`` is left alone.
    """

    def __init__(self, bits: int, way: str, is_quiet: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self._gone, self._way, self._is_quiet = 23 - bits, way, is_quiet

    def dispatched(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        places = () if self._is_quiet() else _PRODUCTS.get(func.overloadpacket.__name__, ())
        return func(*(self._cut(arg) if place in places else arg for place, arg in enumerate(args)), **kwargs)

    def _cut(self, values: Any) -> Any:
        if not isinstance(values, torch.Tensor) or values.dtype != torch.float32 or values.layout != torch.strided:
            return values
        whole = values.detach().contiguous().view(torch.int32)
        if self._way == "nearest":
            whole = whole + ((1 << (self._gone - 1)) - 1) + ((whole >> self._gone) & 1)
        made = (whole & -(1 << self._gone)).view(torch.float32)
        return torch.where(torch.isfinite(values), made, values)
