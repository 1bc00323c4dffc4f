"""Statistics, digests and sketches of single arrays."""

from __future__ import annotations

import math
import time
from dataclasses import astuple
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tracediff import dtype as dtypes
from tracediff.dtype import Array
from tracediff.trace import TraceWriter, fingerprint, open_trace, writer
from tracediff.trace import known as known_parameters
from tracediff.trace.fingerprint import BLOCK, FEW, Sketch, Stats, _histogram_quantiles, digest, probe, sketch, statistics
from tracediff.trace.known import FOLDER_VARIABLE, KnownParameters


def stats_of(array: Array) -> Stats:
    return statistics(array, dtypes.of(array))


def sketch_of(array: Array) -> Sketch:
    return sketch(array, dtypes.of(array))


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_describes(stats: Stats, values: Array) -> None:
    wide = values.astype(np.float64).reshape(-1)
    finite = wide[np.isfinite(wide)]
    assert (stats.count, stats.nan) == (wide.size, np.isnan(wide).sum())
    assert (stats.inf, stats.zero) == (np.isinf(wide).sum(), (wide == 0).sum())
    if finite.size:
        assert (stats.min, stats.max) == (finite.min(), finite.max())
        expected = (finite.mean(), finite.std(), np.linalg.norm(finite), np.abs(finite).mean(), (finite**3).mean())
        scale = np.abs(finite).max()
        for found, value, power in zip(
            (stats.mean, stats.std, stats.l2, stats.absmean, stats.cube), expected, (1, 1, 1, 1, 3), strict=True
        ):
            assert found == pytest.approx(value, rel=1e-9, abs=1e-9 * scale**power)


@pytest.mark.parametrize("size", [1, 7, 8192, 8193, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
def test_statistics_are_those_of_all_blocks_together(size: int) -> None:
    values = normal(size) * 3 + 1
    values[::5] = 0
    assert_describes(stats_of(values), values)


@pytest.mark.parametrize("name", [name for name in dtypes.BY_NAME if name != "text"])
def test_statistics_of_every_dtype(name: str) -> None:
    kind = dtypes.named(name)
    values = (normal(1000) * 2).astype(np.float32).astype(kind.view)
    as_floats = values.view(values.real.dtype) if kind.is_complex else values
    assert_describes(statistics(values, kind), as_floats)
    assert statistics(dtypes.bits(values), kind) == statistics(values, kind)


def test_statistics_leave_nan_and_infinities_out_but_count_them() -> None:
    values = normal(BLOCK + 100)
    values[[3, 5, BLOCK + 7]] = [np.nan, np.inf, -np.inf]
    assert_describes(stats_of(values), values)


@pytest.mark.parametrize("values", [np.empty((0, 3), np.float32), np.full(4, np.nan), np.array([np.inf, -np.inf])])
def test_statistics_without_a_finite_value_are_zeros(values: Array) -> None:
    stats = stats_of(values)
    assert (stats.min, stats.max, stats.mean, stats.std, stats.l2, stats.absmean, stats.cube) == (0.0,) * 7
    assert stats.count == values.size


def test_the_deviation_survives_a_mean_a_million_times_larger() -> None:
    values = 1e6 + np.random.default_rng(0).normal(size=2 * BLOCK + 5)
    assert stats_of(values).std == pytest.approx(values.std(), rel=1e-6)


def test_values_near_the_end_of_float64_give_no_infinity() -> None:
    stats = stats_of(np.array([1e300, -1e300, 1e308]))
    assert all(math.isfinite(number) for number in (stats.mean, stats.std, stats.l2, stats.absmean, stats.cube))
    assert stats.max == 1e308


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e6, 1e6, width=32)), st.randoms())
def test_statistics_do_not_depend_on_the_order_of_elements(values: Array, chance: object) -> None:
    shuffled = values.copy()
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = stats_of(values), stats_of(shuffled)
    scale = float(np.abs(values).max())
    for name, power in (("mean", 1), ("std", 1), ("l2", 1), ("absmean", 1), ("cube", 3)):
        assert getattr(first, name) == pytest.approx(getattr(second, name), rel=1e-9, abs=1e-6 * scale**power)


def test_digests_are_equal_only_for_equal_bits() -> None:
    values = normal(100, 3)
    assert len(digest(values)) == 16
    assert digest(values) == digest(values.copy()) == digest(np.asfortranarray(values))
    assert digest(values) != digest(values.T)
    assert digest(np.array([0.0])) != digest(np.array([-0.0]))


def test_a_probe_is_part_of_the_format_and_never_changes() -> None:
    assert probe(1).tolist() == [1.0]
    np.testing.assert_allclose(probe(3), [-1.4045928106526893, 0.5746120470425721, 0.313958934799428], rtol=1e-15)
    assert abs(probe(4096).mean()) < 0.1
    assert probe(4096).std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("shape", [(3, 4), (6, 5, 4), (2, 3, 4, 5), (5, 1, 7)])
def test_axis_vectors_follow_their_axes_through_a_permutation(shape: tuple[int, ...]) -> None:
    values = normal(*shape)
    order = np.roll(np.arange(len(shape)), 1)
    before, after = sketch_of(values), sketch_of(values.transpose(order))
    for place, axis in enumerate(order):
        np.testing.assert_allclose(after.axes[place], before.axes[axis], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(after.quantiles, before.quantiles)


def test_slices_too_large_for_one_pass_give_the_same_sketch() -> None:
    values = normal(3, 1100, 1000)
    whole, moved = sketch_of(values), sketch_of(values.transpose(1, 2, 0))
    for place, axis in enumerate((1, 2, 0)):
        np.testing.assert_allclose(moved.axes[place], whole.axes[axis], rtol=1e-7, atol=1e-7)


def test_an_axis_of_length_one_changes_nothing() -> None:
    values = normal(8, 6)
    plain, squeezed = sketch_of(values), sketch_of(values.reshape(8, 6, 1))
    np.testing.assert_allclose(squeezed.axes[0], plain.axes[0])
    np.testing.assert_allclose(squeezed.axes[1], plain.axes[1])


def test_a_fused_projection_is_the_concatenation_of_its_parts_along_the_split_axis() -> None:
    parts = [normal(16, 32, seed=seed) for seed in range(3)]
    fused = sketch_of(np.concatenate(parts))
    np.testing.assert_allclose(fused.axes[0], np.concatenate([sketch_of(part).axes[0] for part in parts]))


def test_rounding_moves_a_sketch_by_rounding_only() -> None:
    values = normal(64, 48)
    exact, rounded = sketch_of(values), sketch_of(values.astype(ml_dtypes.bfloat16))
    for before, after in zip(exact.axes, rounded.axes, strict=True):
        assert np.linalg.norm(after - before) < 2**-8 * np.linalg.norm(before)
    assert np.abs(rounded.quantiles - exact.quantiles).max() < 2**-7 * np.abs(values).max()


def test_sketches_tell_different_weights_apart() -> None:
    a, b = sketch_of(normal(64, 48)), sketch_of(normal(64, 48, seed=1))
    assert np.linalg.norm(a.axes[0] - b.axes[0]) > 0.5 * np.linalg.norm(a.axes[0])


def test_quantiles_are_those_of_the_finite_values() -> None:
    values = normal(1000)
    values[:3] = [np.nan, np.inf, -np.inf]
    expected = np.quantile(values[3:].astype(np.float64), np.linspace(0, 1, 33))
    np.testing.assert_allclose(sketch_of(values).quantiles, expected, rtol=1e-6)
    assert all(np.isfinite(axis).all() for axis in sketch_of(values.reshape(10, 100)).axes)


def test_quantiles_off_a_histogram_are_as_good_as_its_bins() -> None:
    values = normal(200_000)
    found = _histogram_quantiles(values, dtypes.of(values))
    assert np.abs(found - np.quantile(values, np.linspace(0, 1, 33))).max() < 2e-3
    np.testing.assert_array_equal(found, _histogram_quantiles(values[::-1].copy(), dtypes.of(values)))


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (5, 0), (1,), (2, 0, 3)])
def test_a_sketch_has_a_vector_as_long_as_each_axis(shape: tuple[int, ...]) -> None:
    assert tuple(axis.size for axis in sketch_of(np.ones(shape, np.float32)).axes) == shape


@pytest.mark.parametrize("dtype", [np.complex64, np.bool_, np.int64, np.float16])
def test_sketches_of_other_dtypes_are_permutation_proof_too(dtype: type) -> None:
    values = (normal(6, 4) * 3).astype(dtype)
    np.testing.assert_allclose(sketch_of(values).axes[0], sketch_of(values.T).axes[1], rtol=1e-12, atol=1e-12)


def test_what_is_known_of_parameters_is_that_of_their_contents_and_stays_within_its_limit() -> None:
    known = KnownParameters(limit=3 * (33 + 8) * 8)
    arrays = [normal(8, seed=seed) for seed in range(5)]
    for array in arrays:
        known.keep(digest(array), dtypes.of(array), array.shape, sketch_of(array), bytes(array[:1]))
    first, last = arrays[0], arrays[-1]
    assert known.get(digest(first), dtypes.of(first), first.shape) is None
    assert known.get(digest(last), dtypes.of(last), (2, 4)) is None
    found = known.get(digest(last), dtypes.of(last), last.shape)
    assert found is not None
    assert np.array_equal(found[0].quantiles, sketch_of(last).quantiles)
    assert found[1] == bytes(last[:1])


class TestFingerprintsOnDisk:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "kept"))
        return tmp_path / "kept"

    def keep(self, array: Array) -> None:
        KnownParameters().keep(digest(array), dtypes.of(array), array.shape, sketch_of(array), bytes(range(88)))

    def test_another_process_finds_those_of_large_parameters_again(self, folder: Path) -> None:
        large, small = normal(160, 128), normal(8, 8)
        for array in (large, small):
            self.keep(array)
        found = KnownParameters().get(digest(large), dtypes.of(large), large.shape)
        assert found is not None
        assert found[1] == bytes(range(88))
        assert np.array_equal(found[0].quantiles, sketch_of(large).quantiles)
        assert [np.array_equal(ours, theirs) for ours, theirs in zip(found[0].axes, sketch_of(large).axes, strict=True)] == [True, True]
        assert KnownParameters().get(digest(large), dtypes.of(large), (128, 160)) is None
        assert KnownParameters().get(digest(small), dtypes.of(small), small.shape) is None
        assert len(list(folder.iterdir())) == 1

    def test_a_file_that_is_damaged_is_taken_for_none(self, folder: Path) -> None:
        large = normal(160, 128)
        self.keep(large)
        (file,) = folder.iterdir()
        whole = file.read_bytes()
        flipped = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
        for blob in (b"", whole[:-1], flipped, b"x" + whole):
            file.write_bytes(blob)
            assert KnownParameters().get(digest(large), dtypes.of(large), large.shape) is None

    def test_nothing_is_written_where_the_folder_is_named_empty_or_cannot_be_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(FOLDER_VARIABLE, "")
        monkeypatch.chdir(tmp_path)
        self.keep(normal(160, 128))
        (tmp_path / "file").write_text("")
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "file" / "inside"))
        self.keep(normal(160, 128, seed=1))
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_the_folder_keeps_its_size_and_what_was_used_last(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(known_parameters, "LARGEST_FOLDER", 8100)
        arrays = [normal(160, 128, seed=seed) for seed in range(6)]
        for array in arrays:
            monkeypatch.setattr(known_parameters, "_room", known_parameters._Room())  # looks at the folder at each file
            self.keep(array)
            time.sleep(0.01)
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 8100
        is_known = [KnownParameters().get(digest(array), dtypes.of(array), array.shape) is not None for array in arrays]
        assert is_known == [False, False, False, True, True, True]

    def test_a_second_trace_of_the_same_weights_says_of_them_what_the_first_says(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        weight, tables = normal(160, 128), []
        for name in ("first", "second"):
            monkeypatch.setattr(writer, "KNOWN", KnownParameters())
            with TraceWriter(tmp_path / f"{name}.h5") as made:
                made.add_param("weight", weight, path="", kind="parameter")
            with open_trace(tmp_path / f"{name}.h5") as trace:
                tables.append((trace.tables.params.tobytes(), trace.tables.sketches.tobytes()))
            monkeypatch.setattr(writer, "sketch", None)  # is not worked out again
        assert tables[0] == tables[1]


@pytest.mark.parametrize("size", [1, 4, FEW])
@pytest.mark.parametrize("name", [name for name in dtypes.BY_NAME if name != "text"])
def test_a_few_values_have_the_statistics_of_the_blocked_pass(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = (normal(size) * 3).astype(np.float32).astype(dtypes.named(name).view)
    found = astuple(stats_of(values))
    monkeypatch.setattr(fingerprint, "FEW", -1)
    assert found == pytest.approx(astuple(stats_of(values)), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_quantiles_are_those_of_the_sorted_values(kind: str) -> None:
    values = np.concatenate([normal(5000), [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40], np.repeat(np.float32(0.25), 999)])
    values = values.astype(np.float32).astype(dtypes.named(kind).view)
    for some in (values, values[:1], values[5000:5003], values[5003:5004], -np.abs(values[:99])):
        wide = some.astype(np.float64)
        finite = np.sort(wide[np.isfinite(wide)])
        expected = np.quantile(finite, np.linspace(0, 1, 33)) if finite.size else np.zeros(33)
        assert sketch_of(some).quantiles == pytest.approx(expected, rel=1e-12, abs=1e-45)
