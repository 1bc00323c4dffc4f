"""Noise on a tensor and the error of what arrives: fast ways to numbers that the slow ways give too."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tracediff import dtype as dtypes
from tracediff.metrics import compare
from tracediff.runs.noise import with_noise
from tracediff.runs.variation_error import error_of
from tracediff.trace.fingerprint import statistics

UNIT = 2.0**-24


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "complex64", ml_dtypes.bfloat16])
def test_noise_has_the_size_that_is_asked_for_in_every_dtype(dtype: object) -> None:
    x = values(300, 400).astype(dtype)
    unit = dtypes.of(x).roundoff
    off = with_noise(x, 64 * unit, (0, 3))
    assert (off.dtype, off.shape) == (x.dtype, x.shape)
    wide = np.complex128 if x.dtype.kind == "c" else np.float64
    error = np.linalg.norm(off.astype(wide) - x.astype(wide)) / np.linalg.norm(x.astype(wide)) / unit
    assert 0.9 < error / (64 * np.hypot(1, 1.33)) < 1.1


def test_the_same_draw_and_record_have_the_same_noise_and_others_other_noise() -> None:
    x = values(1000)
    assert np.array_equal(with_noise(x, UNIT, (0, 3)), with_noise(x, UNIT, (0, 3)))
    assert not np.array_equal(with_noise(x, 8 * UNIT, (0, 3)), with_noise(x, 8 * UNIT, (0, 4)))
    assert not np.array_equal(with_noise(x, 8 * UNIT, (0, 3)), with_noise(x, 8 * UNIT, (1, 3)))


def test_opposite_noise_moves_every_value_the_other_way() -> None:
    x = values(1000)
    one, other = (with_noise(x, sign * 64 * UNIT, (0, 3)) - x for sign in (1, -1))
    assert np.allclose(one, -other, atol=4 * UNIT * float(np.abs(x).max()))


def test_even_a_single_number_moves() -> None:
    for record in range(50):
        assert with_noise(np.float32([1.7]), 4 * UNIT, (0, record))[0] != np.float32(1.7)


def test_what_is_not_finite_stays_and_no_shape_is_too_small() -> None:
    x = np.float32([np.inf, -np.inf, np.nan, 0.0, 1.0])
    assert np.array_equal(with_noise(x, UNIT, (0, 0))[:4], x[:4], equal_nan=True)
    assert with_noise(np.empty((0, 3), np.float32), UNIT, (0, 0)).shape == (0, 3)
    assert with_noise(np.float32(1.5), UNIT, (0, 0)).shape == ()


@pytest.mark.parametrize(
    ("stored", "arrived"),
    [
        (values(300, 400), values(300, 400) * np.float32(1 + 1e-6)),
        (values(300, 400).T, (values(300, 400).astype(np.float64) * (1 + 1e-9)).T),
        (values(5), values(5)),
        (np.float32([1e-25, 2e-25]), np.float32([1e-25, 3e-25])),
        (np.float32([0, 0]), np.float32([0, 1])),
        (np.float32([1, 2]), np.float32([1, np.nan])),
        (np.float32([1, -1e30]), np.float32([1, -np.inf])),
        (np.float32([1, 2]), np.float32([1, -2e4])),
        (np.float32([1, np.inf]), np.float32([2, np.inf])),
        (np.float32([1e20, 2]), np.float32([1.1e20, 2])),
        (values(50).astype(np.float16), values(50).astype(np.float16) * np.float16(1.01)),
        (np.int64([1, 2, 3, 4]), np.int64([1, 2, 3, 5])),
    ],
)
def test_the_error_is_the_one_that_all_metrics_together_tell(stored: np.ndarray, arrived: np.ndarray) -> None:
    metrics = compare(stored, arrived)
    expected = metrics.mismatched / metrics.count if metrics.exact else metrics.rel_l2
    assert error_of(stored, arrived, statistics(stored, dtypes.of(stored))) == pytest.approx(expected, rel=1e-5)
