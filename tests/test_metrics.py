"""compare: the metrics agree with a naive NumPy implementation, and what is allowed follows the rules."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tracediff import dtype as dtypes
from tracediff.alignment.axes import Join, Layout
from tracediff.errors import TracediffError
from tracediff.metrics import BLOCK, Metrics, allowed, compare

F32, F16, BF16, I64 = (dtypes.named(name) for name in ("float32", "float16", "bfloat16", "int64"))


def naive(r: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    """The metrics of finite, unmasked tensors, by whole-array NumPy in float64."""
    a, b = r.astype(np.float64).ravel(), p.astype(np.float64).ravel()
    error = np.abs(b - a)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return {
        "max_abs": error.max(),
        "mean_abs": error.mean(),
        "rms": math.sqrt((error**2).mean()),
        "rel_l2": np.linalg.norm(b - a) / np.linalg.norm(a) if a.any() else (math.inf if b.any() else 0.0),
        "cosine": float(a @ b) / norms if norms else float(not (a.any() or b.any())),
    }


def ulp_between(x: float, y: float, dtype: np.dtype) -> int:
    """How many steps of ``nextafter`` apart two numbers are, from their ordered bit patterns."""

    def rank(value: float) -> int:
        bits = int(np.array(value, dtype).view(f"u{dtype.itemsize}"))
        sign = 1 << (8 * dtype.itemsize - 1)
        return -(bits - sign) if bits & sign else bits

    return abs(rank(x) - rank(y))


def record(array: np.ndarray, *, digest: bytes = b"", reads: list[str] | None = None) -> Any:
    """A stand-in for a trace's record, which notes that it was read."""
    flat = array.astype(np.float64).ravel()
    finite = flat[np.isfinite(flat)]
    stats = SimpleNamespace(
        count=flat.size,
        nan=int(np.isnan(flat).sum()),
        inf=int(np.isinf(flat).sum()),
        min=finite.min(initial=math.inf),
        max=finite.max(initial=-math.inf),
        l2=float(np.linalg.norm(finite)),
    )

    def blocks(size: int) -> Any:
        if reads is not None:
            reads.append("blocks")
        return (array.reshape(-1)[start : start + size] for start in range(0, array.size, size))

    return SimpleNamespace(
        shape=array.shape, dtype=dtypes.of(array).name, stats=stats, digest=digest or array.tobytes(), blocks=blocks, read=lambda: array
    )


finite = st.floats(-9e3, 9e3, width=32)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=7)


class TestMetricsAgreeWithNaiveNumpy:
    @given(st.data(), st.sampled_from(["f4", "f8", "f2", ml_dtypes.bfloat16]), shapes)
    @settings(max_examples=80, deadline=None)
    def test_for_every_float_dtype_and_shape(self, data: st.DataObject, kind: Any, shape: tuple[int, ...]) -> None:
        r, p = (data.draw(hnp.arrays(np.float32, shape, elements=finite)).astype(kind) for _ in range(2))
        metrics = compare(r, p)
        for name, value in naive(r, p).items():
            assert getattr(metrics, name) == pytest.approx(value, rel=1e-6, abs=1e-6 if name == "cosine" else 1e-12), name
        errors = np.abs(p.astype(np.float64) - r.astype(np.float64))
        assert errors[metrics.argmax] == pytest.approx(errors.max(), rel=1e-6)
        assert metrics.max_ulp == max(ulp_between(x, y, r.dtype) for x, y in zip(r.ravel(), p.ravel(), strict=True))

    @pytest.mark.parametrize("size", [1, 1023, 1025, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 77])
    @pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-3, 10.0])
    def test_across_block_borders(self, size: int, noise: float) -> None:
        rng = np.random.default_rng(size)
        r = rng.standard_normal(size).astype("f4")
        p = (r + noise * rng.standard_normal(size)).astype("f4")
        metrics = compare(r, p)
        for name, value in naive(r, p).items():
            assert getattr(metrics, name) == pytest.approx(value, rel=2e-6, abs=1e-13), name
        assert metrics.argmax == (int(np.abs(p.astype("f8") - r).argmax()),) or metrics.max_abs == 0

    @pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-13, 1e13, 1e16, 1e37])
    def test_at_scales_whose_squares_float32_cannot_hold(self, scale: float) -> None:
        rng = np.random.default_rng(0)
        r = (np.abs(rng.standard_normal(5000)) * scale).astype("f4")
        p = (r * (1 + 0.01 * rng.standard_normal(5000))).astype("f4")
        metrics = compare(r, p)
        for name, value in naive(r, p).items():
            assert getattr(metrics, name) == pytest.approx(value, rel=1e-6), name

    def test_where_one_block_is_ordinary_and_the_next_is_not(self) -> None:
        r = np.ones(2 * BLOCK, "f4")
        r[BLOCK:] = 1e20
        p = r * np.float32(1.001)
        assert compare(r, p).rel_l2 == pytest.approx(1e-3, rel=1e-3)

    def test_for_a_port_whose_axes_are_permuted(self) -> None:
        rng = np.random.default_rng(0)
        r = rng.standard_normal((7, 300, 90)).astype("f4")
        p = r + np.float32(1e-3)
        permuted = np.ascontiguousarray(p.transpose(0, 2, 1))
        metrics = compare(r, permuted, layout=Layout(r.shape, permutation=(0, 2, 1)))
        assert metrics == compare(r, p)

    def test_for_calls_that_the_layout_joins(self) -> None:
        r = np.arange(12, dtype="f4").reshape(1, 3, 4)
        steps = [r[:, i] + np.float32(i == 2) for i in range(3)]
        metrics = compare(r, steps, layout=Layout(r.shape, join=Join(1, "stack")))
        assert (metrics.max_abs, metrics.mismatched, metrics.argmax[1]) == (1.0, 4, 2)

    def test_for_records_as_for_arrays(self) -> None:
        rng = np.random.default_rng(0)
        r = rng.standard_normal((3, BLOCK)).astype("f4")
        p = r + (1e-5 * rng.standard_normal(r.shape)).astype("f4")
        of_arrays, of_records = compare(r, p), compare(record(r), record(p))
        assert of_records.rel_l2 == of_arrays.rel_l2
        assert of_records.argmax == of_arrays.argmax


class TestComplex:
    def test_errors_are_moduli(self) -> None:
        r = np.array([1 + 1j, 2 - 1j], "c8")
        metrics = compare(r, r + np.array([0, 3 + 4j], "c8"))
        assert (metrics.max_abs, metrics.argmax) == (5.0, (1,))
        assert metrics.rel_l2 == pytest.approx(5 / math.sqrt(7))
        assert metrics.max_ulp is None

    def test_a_lone_nan_diverges(self) -> None:
        r = np.array([1 + 1j, np.nan], "c8")
        assert compare(r, r).lone_nonfinite == 0
        assert compare(r, np.array([1 + 1j, 0], "c8")).lone_nonfinite == 1


class TestNanAndInfinity:
    def test_nan_equals_nan_and_infinity_the_same_infinity(self) -> None:
        r = np.array([np.nan, np.inf, -np.inf, 1.0], "f4")
        metrics = compare(r, r.copy())
        assert (metrics.rel_l2, metrics.max_abs, metrics.mismatched) == (0.0, 0.0, 0)
        assert (metrics.nan_reference, metrics.nan_port) == (1, 1)

    @pytest.mark.parametrize("lone", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("side", [0, 1])
    def test_a_lone_one_diverges_whatever_the_tolerance(self, lone: float, side: int) -> None:
        pair = [np.ones(BLOCK + 5, "f4"), np.ones(BLOCK + 5, "f4")]
        pair[side][BLOCK + 2] = lone
        metrics = compare(*pair, rtol=1e30, atol=1e30)
        assert (metrics.lone_nonfinite, metrics.mismatched, metrics.argmax) == (1, 1, (BLOCK + 2,))
        assert metrics.rel_l2 == metrics.max_abs == metrics.needed_atol == math.inf
        assert allowed(metrics, F32, F32, rtol=1e30, atol=1e30).diverged
        assert allowed(compare(*pair), F32, F32, floor=1.0).diverged

    def test_the_other_values_are_still_measured(self) -> None:
        r, p = np.ones(4, "f4"), np.array([1, 1.5, 1, np.nan], "f4")
        assert compare(r, p).mean_abs == pytest.approx(0.5 / 3)

    def test_opposite_infinities_differ(self) -> None:
        assert compare(np.array([np.inf], "f4"), np.array([-np.inf], "f4")).lone_nonfinite == 1


class TestAdditiveMasks:
    @pytest.mark.parametrize("never", [-1e10, -6e4, -1e4, float(np.finfo("f4").min)])
    def test_every_spelling_of_never_is_equal(self, never: float) -> None:
        r = np.array([0, -np.inf, 0, -np.inf], "f4")
        metrics = compare(r, np.array([0, never, 0, -np.inf], "f4"))
        assert (metrics.rel_l2, metrics.mismatched, metrics.max_ulp) == (0.0, 0, 0)

    def test_a_masked_place_that_is_open_in_the_port_diverges(self) -> None:
        metrics = compare(np.array([0, -1e10, 0], "f4"), np.zeros(3, "f4"))
        assert (metrics.max_abs, metrics.masked_reference, metrics.masked_port) == (1e4, 1, 0)
        assert compare(np.zeros(3, "f4"), np.array([0, -np.inf, 0], "f4")).masked_port == 1
        assert allowed(metrics, F32, F32).diverged

    def test_masked_scores_are_judged_by_what_is_left(self) -> None:
        r = np.array([1.0, 2.0, -1e10, -1e10], "f4")
        p = np.array([1.0, 2.2, -6e4, -np.inf], "f4")
        assert compare(r, p).rel_l2 == pytest.approx(0.2 / math.sqrt(5))

    def test_a_signal_of_large_amplitude_is_no_mask(self) -> None:
        r = np.array([-20000.0, 15000.0], "f4")
        assert compare(r, np.array([-30000.0, 15000.0], "f4")).max_abs == 10000.0


class TestExactDtypes:
    def test_different_widths_compare_by_value(self) -> None:
        r = np.array([1, 2, 200], "i8")
        assert compare(r, r.astype("u1")).mismatched == 0
        assert compare(r, np.array([1, 2, 201], "i4")).max_abs == 1.0
        assert compare(np.array([True, False]), np.array([1, 0], "i4")).rel_l2 == 0.0

    @pytest.mark.parametrize(("a", "b"), [(2**53, 2**53 + 1), (2**63 - 1, 2**63 - 2), (-1, 2**64 - 1)])
    def test_integers_that_floats_confuse_are_told_apart(self, a: int, b: int) -> None:
        r = np.array([a], "i8")
        p = np.array([b], "u8")
        assert compare(r, p).mismatched == 1
        assert allowed(compare(r, p), I64, I64).diverged

    def test_one_wrong_id_diverges_whatever_the_tolerance(self) -> None:
        r = np.arange(10_000)
        p = r.copy()
        p[777] += 1
        metrics = compare(r, p, rtol=1.0, atol=1e9)
        assert (metrics.mismatched, metrics.argmax, metrics.exact) == (1, (777,), True)
        assert allowed(metrics, I64, I64, rtol=1.0, atol=1e9).by == "exact"
        assert allowed(metrics, I64, I64, rtol=1.0, atol=1e9).diverged

    def test_integers_against_floats_compare_by_value(self) -> None:
        metrics = compare(np.arange(5), np.arange(5, dtype="f4"))
        assert (metrics.rel_l2, metrics.exact) == (0.0, False)

    def test_texts_of_different_lengths_differ_where_they_part(self) -> None:
        def text(words: str) -> Any:
            data = np.frombuffer(words.encode(), "u1")
            return SimpleNamespace(shape=data.shape, dtype="text", digest=words.encode(), read=lambda: data)

        metrics = compare(text("a mel"), text("a male"))
        assert (metrics.mismatched, metrics.argmax) == (2, (3,))
        assert compare(text("same"), text("same")).mismatched == 0


class TestTolerance:
    def test_rtol_and_atol_come_together(self) -> None:
        ones = np.ones(3, "f4")
        with pytest.raises(TracediffError, match="rtol and atol together"):
            compare(ones, ones, rtol=1e-3)
        with pytest.raises(TracediffError, match="not negative"):
            compare(ones, ones, rtol=-1.0, atol=0.0)

    @given(hnp.arrays(np.float32, 40, elements=finite), hnp.arrays(np.float32, 40, elements=finite), st.floats(0, 1), st.floats(0, 10))
    @settings(max_examples=60, deadline=None)
    def test_is_element_by_element(self, r: np.ndarray, p: np.ndarray, rtol: float, atol: float) -> None:
        a, b = r.astype(np.float64), p.astype(np.float64)
        metrics = compare(r, p, rtol=rtol, atol=atol)
        beyond = int((np.abs(b - a) > atol + rtol * np.abs(a)).sum())
        assert metrics.mismatched == beyond
        assert allowed(metrics, F32, F32, rtol=rtol, atol=atol).diverged == (beyond > 0)

    def test_the_atol_that_would_have_passed_is_kept(self) -> None:
        r, p = np.array([1.0, 10.0], "f4"), np.array([1.5, 10.25], "f4")
        needed = compare(r, p, rtol=0.01, atol=1e-6).needed_atol
        assert needed == pytest.approx(0.49)
        assert compare(r, p, rtol=0.01, atol=needed).mismatched == 0
        assert compare(r, p, rtol=0.01, atol=0.99 * needed).mismatched == 1

    def test_without_one_values_beyond_the_dtypes_own_are_counted(self) -> None:
        r = np.ones(1000, "f4")
        p = r.copy()
        p[:3] += np.float32(0.1)
        assert compare(r, p).mismatched == 3


class TestAllowed:
    def metrics(self, rel_l2: float, **more: float) -> Metrics:
        return Metrics(count=10, rel_l2=rel_l2, **{"reference_rms": 1.0, "port_rms": 1.0, **more})  # type: ignore[arg-type]

    def test_five_times_the_floor_or_eight_roundoffs(self) -> None:
        assert allowed(self.metrics(4e-5), F32, F32, floor=1e-5).limit == pytest.approx(5e-5)
        assert allowed(self.metrics(4e-5), F32, F32, floor=0.0).limit == 8 * 2.0**-24
        assert allowed(self.metrics(4e-5), F32, BF16, floor=0.0).limit == 8 * 2.0**-8
        assert allowed(self.metrics(6e-5), F32, F32, floor=1e-5).diverged

    @pytest.mark.parametrize(("pair", "limit"), [((F32, F32), 1e-4), ((F32, F16), 3e-2), ((BF16, F32), 3e-2)])
    def test_without_a_floor_the_coarser_dtypes_default(self, pair: Any, limit: float) -> None:
        judgement = allowed(self.metrics(limit * 0.99), *pair)
        assert (judgement.limit, judgement.by, judgement.diverged) == (limit, "no floor", False)
        assert allowed(self.metrics(limit * 1.01), *pair).diverged

    def test_a_zero_reference_allows_nothing_but_the_absolutely_tiny(self) -> None:
        zero = np.zeros(100, "f4")
        assert compare(zero, zero).rel_l2 == 0.0
        assert compare(zero, zero + 1).rel_l2 == math.inf
        assert allowed(compare(zero, zero + 1), F32, F32).diverged
        assert allowed(compare(zero, zero + np.float32(1e-9)), F32, F32).by == "rounding"

    def test_pure_cancellation_noise_is_judged_against_what_arrived(self) -> None:
        rng = np.random.default_rng(0)
        r, p = (1e-7 * rng.standard_normal(100).astype("f4") for _ in range(2))
        metrics = compare(r, p)
        assert metrics.rel_l2 > 1
        assert not allowed(metrics, F32, F32, scale=1.0).diverged
        assert allowed(metrics, F32, F32, scale=1e-3).diverged
        assert allowed(metrics, F32, F32).diverged

    def test_a_small_reference_that_the_port_blew_up_diverges(self) -> None:
        r = np.full(100, 1e-9, "f4")
        assert allowed(compare(r, r + 1), F32, F32, scale=1.0).diverged


class TestReading:
    def test_equal_bits_are_not_read(self) -> None:
        reads: list[str] = []
        values = np.random.default_rng(0).standard_normal((4, 5)).astype("f4")
        metrics = compare(record(values, reads=reads), record(values, reads=reads))
        assert reads == []
        assert metrics.reference_rms == pytest.approx(compare(values, values).reference_rms)
        assert (metrics.count, metrics.rel_l2, metrics.cosine, metrics.max_ulp) == (20, 0.0, 1.0, 0)

    def test_equal_bytes_of_another_dtype_are_read(self) -> None:
        bits = np.array([1, 2, 3], "i4")
        assert compare(record(bits), record(bits.view("f4"))).rel_l2 > 0.9

    def test_shapes_that_nothing_reconciles_are_refused(self) -> None:
        with pytest.raises(TracediffError, match=r"\(2, 3\) and \(3, 2\)"):
            compare(np.zeros((2, 3)), np.zeros((3, 2)))

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
    def test_scalars_and_empty_tensors_compare(self, shape: tuple[int, ...]) -> None:
        metrics = compare(np.zeros(shape, "f4"), np.zeros(shape, "f4"))
        assert (metrics.count, metrics.rel_l2, metrics.argmax) == (math.prod(shape), 0.0, ())

    def test_signed_zeros_are_no_distance_apart(self) -> None:
        assert compare(np.array([0.0], "f4"), np.array([-0.0], "f4")).max_ulp == 0

    def test_ulps_are_those_of_the_coarser_dtype(self) -> None:
        r = np.ones(3, "f4")
        assert compare(r, (r + np.float32(2**-7)).astype(ml_dtypes.bfloat16)).max_ulp == 1
