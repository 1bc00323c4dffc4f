"""Float32 numbers cut to a shorter mantissa, as hardware does to what it multiplies: 10 bits for TF32, 7 for bfloat16."""

from __future__ import annotations

from typing import Literal

import numpy as np

from tracediff.dtype import Array

Way = Literal["nearest", "zero"]
"""Rounded to the nearest, ties to even; or cut off, towards zero."""
WAYS: tuple[Way, ...] = ("nearest", "zero")
FLOAT32_BITS, TF32_BITS, BFLOAT16_BITS = 23, 10, 7
"""The explicit bits of the mantissa."""


def shortened(values: Array, bits: int, way: Way) -> Array:
    """The values as float32 numbers of so many explicit bits of mantissa; infinities and NaN stay. The result is float32.

    >>> shortened(np.float32([1 + 2**-10, 1 + 2**-11 + 2**-12]), 10, "nearest") - 1
    array([0.00097656, 0.00097656], dtype=float32)
    >>> shortened(np.float32([1 + 2**-11 + 2**-12, -1 - 2**-11]), 10, "zero")
    array([ 1., -1.], dtype=float32)
    """
    narrow = np.ascontiguousarray(values, np.float32).reshape(values.shape)
    gone = FLOAT32_BITS - bits
    if gone <= 0:
        return narrow
    whole = narrow.view(np.uint32)
    if way == "nearest":
        whole = whole + np.uint32((1 << (gone - 1)) - 1) + ((whole >> np.uint32(gone)) & np.uint32(1))
    made: Array = (whole & np.uint32(0xFFFFFFFF << gone & 0xFFFFFFFF)).view(np.float32)
    return np.where(np.isfinite(narrow), made, narrow)
