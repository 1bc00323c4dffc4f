"""The one table of dtypes: the bits stored, the NumPy view of them, the unit roundoff, the default tolerance.

A dtype is named as PyTorch and MLX print it without their prefix: ``float32``, ``bfloat16``, ``float8_e4m3fn``, ``bool``.
Values are stored as bits that every HDF5 reader understands (bfloat16 as uint16, float8 as uint8), with the name in the index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tracediff.errors import TracediffError

Array = NDArray[Any]

MASKED = -1e4
"""Values at or below this are a mask's, whatever number a side takes for it; they drown what else a tensor holds."""


@dataclass(frozen=True, slots=True)
class DType:
    """One dtype: its name, its stable code in trace files, and how its bits are stored and viewed.

    ``roundoff`` is the unit roundoff u (half the spacing at 1, so float32's is 2**-24) and 0 where values are exact.
    ``rtol`` is the relative L2 error allowed at a site for which no noise floor was measured. ``safetensors`` is the name that the
    .safetensors format has for the stored bits, "" where it has none.
    """

    name: str
    code: int
    stored: np.dtype[Any]
    view: np.dtype[Any]
    roundoff: float
    rtol: float
    safetensors: str

    @property
    def is_exact(self) -> bool:
        """Whether values compare exactly: integers, booleans and text."""
        return self.roundoff == 0.0

    @property
    def is_complex(self) -> bool:
        return self.view.kind == "c"

    @property
    def itemsize(self) -> int:
        """Bytes a value."""
        return int(self.stored.itemsize)


def _row(name: str, code: int, stored: str, safetensors: str, view: Any = None, roundoff: float = 0.0, rtol: float = 0.0) -> DType:
    return DType(name, code, np.dtype(stored), np.dtype(stored if view is None else view), roundoff, rtol, safetensors)


# The codes are part of the file format: never renumber, only append.
_ROWS = (
    _row("bool", 1, "|b1", "BOOL"),
    _row("uint8", 2, "|u1", "U8"),
    _row("int8", 3, "|i1", "I8"),
    _row("uint16", 4, "<u2", "U16"),
    _row("int16", 5, "<i2", "I16"),
    _row("uint32", 6, "<u4", "U32"),
    _row("int32", 7, "<i4", "I32"),
    _row("uint64", 8, "<u8", "U64"),
    _row("int64", 9, "<i8", "I64"),
    _row("float16", 10, "<f2", "F16", None, 2.0**-11, 3e-2),
    _row("bfloat16", 11, "<u2", "BF16", ml_dtypes.bfloat16, 2.0**-8, 3e-2),
    _row("float32", 12, "<f4", "F32", None, 2.0**-24, 1e-4),
    _row("float64", 13, "<f8", "F64", None, 2.0**-53, 1e-4),
    _row("complex64", 14, "<c8", "C64", None, 2.0**-24, 1e-4),
    _row("complex128", 15, "<c16", "", None, 2.0**-53, 1e-4),
    _row("float8_e4m3fn", 16, "|u1", "F8_E4M3", ml_dtypes.float8_e4m3fn, 2.0**-4, 1e-1),
    _row("float8_e5m2", 17, "|u1", "F8_E5M2", ml_dtypes.float8_e5m2, 2.0**-3, 2e-1),
    _row("float8_e4m3fnuz", 18, "|u1", "F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz, 2.0**-4, 1e-1),
    _row("float8_e5m2fnuz", 19, "|u1", "F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz, 2.0**-3, 2e-1),
    _row("text", 20, "|u1", "U8"),  # UTF-8 bytes, one dimension
)

BY_NAME: dict[str, DType] = {row.name: row for row in _ROWS}
BY_CODE: dict[int, DType] = {row.code: row for row in _ROWS}
BY_SAFETENSORS: dict[str, DType] = {row.safetensors: row for row in _ROWS if row.safetensors and row.name != "text"}
_BY_VIEW: dict[np.dtype[Any], DType] = {row.view: row for row in reversed(_ROWS) if row.name != "text"}


def named(name: str) -> DType:
    """The dtype of that name.

    >>> named("bfloat16").itemsize
    2
    """
    try:
        return BY_NAME[name]
    except KeyError:
        raise TracediffError(f"No dtype {name!r} in the table ({', '.join(BY_NAME)}).") from None


def of(array: Array) -> DType:
    """The dtype of a NumPy array (ml_dtypes' bfloat16 and float8 included), whatever its byte order.

    >>> import numpy as np
    >>> of(np.zeros(3, "float32")).name
    'float32'
    """
    try:
        return _BY_VIEW[array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype]
    except KeyError:
        raise TracediffError(f"Arrays of dtype {array.dtype!r} cannot be recorded; convert them first.") from None


def coarser(a: DType, b: DType) -> DType:
    """Of two dtypes the one with the larger unit roundoff (the first where they are equal)."""
    return b if b.roundoff > a.roundoff else a


def view(bits: Array, dtype: DType) -> Array:
    """Stored bits seen as values of ``dtype``; shares memory."""
    return bits.view(dtype.view) if bits.dtype != dtype.view else bits


def bits(array: Array) -> Array:
    """An array's values as the bits that are stored, C-contiguous and little-endian; copies only where it must."""
    dtype = of(array)
    flat = np.ascontiguousarray(array, dtype=dtype.view).reshape(array.shape)
    return flat.view(dtype.stored) if dtype.stored != dtype.view else flat


def wide_type(values: Array) -> type[np.float64] | type[np.complex128]:
    """The dtype in which values are computed with: complex128 for complex values, float64 for all others."""
    return np.complex128 if values.dtype.kind == "c" else np.float64


def is_whole(values: Array) -> bool:
    """Whether a real tensor holds whole numbers only: ids, lengths and masks in a float dtype, which no rounding changes.

    >>> is_whole(np.float32([3, 0])), is_whole(np.float32([3, 0.5]))
    (True, False)
    """
    if values.dtype.kind == "c":
        return False
    first = values.reshape(-1)[:64].astype(np.float64)  # most tensors show in a few values that they are not
    with np.errstate(invalid="ignore"):
        return bool((first == np.rint(first)).all()) and bool((values == np.rint(values)).all())
