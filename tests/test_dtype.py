"""The dtype table: bits in are bits out, and each dtype knows how coarse it is."""

import ml_dtypes
import numpy as np
import pytest

from tracediff import dtype
from tracediff.errors import TracediffError


@pytest.mark.parametrize("name", [name for name in dtype.BY_NAME if name != "text"])
def test_bits_and_view_are_inverse_for_every_dtype(name: str) -> None:
    row = dtype.named(name)
    raw = np.random.default_rng(0).integers(0, 2 if name == "bool" else 256, 64 * row.itemsize, dtype=np.uint8)
    values = raw.view(row.view).reshape(8, 8)
    bits = dtype.bits(values)
    assert bits.dtype == row.stored
    assert dtype.view(bits, row).tobytes() == values.tobytes()


@pytest.mark.parametrize("row", [row for row in dtype.BY_NAME.values() if row.roundoff and not row.is_complex])
def test_the_unit_roundoff_is_half_the_spacing_at_one(row: dtype.DType) -> None:
    assert float(ml_dtypes.finfo(row.view).eps) / 2 == row.roundoff


def test_codes_and_names_are_unique() -> None:
    assert len(dtype.BY_CODE) == len(dtype.BY_NAME)


def test_big_endian_values_are_stored_as_the_same_numbers() -> None:
    assert dtype.bits(np.arange(3, dtype=">f4")).tolist() == [0.0, 1.0, 2.0]
    assert dtype.of(np.arange(3, dtype=">i8")).name == "int64"


def test_a_zero_dimensional_array_keeps_its_shape() -> None:
    assert dtype.bits(np.float32(3.0).reshape(())).shape == ()


def test_of_two_dtypes_the_coarser_has_the_larger_roundoff() -> None:
    assert dtype.coarser(dtype.named("float32"), dtype.named("bfloat16")).name == "bfloat16"


def test_an_object_array_is_refused() -> None:
    with pytest.raises(TracediffError, match="cannot be recorded"):
        dtype.of(np.array([object()]))
