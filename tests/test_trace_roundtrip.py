"""What goes into a trace comes out of it, bit for bit."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tracediff import dtype as dtypes
from tracediff.dtype import Array
from tracediff.errors import SiteError, TracediffError, TraceFileError
from tracediff.trace import Trace, TraceWriter, open_trace, schema
from tracediff.trace.links import link_name

AT: dict[str, Any] = {"site": "enc", "call": "enc[0]", "ordinal": 0, "end": "output"}


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def written(path: Path, *arrays: Array, **options: Any) -> Trace:
    with TraceWriter(path, **options) as writer:
        for array in arrays:
            writer.add(values=array, **AT)
    return open_trace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.h5"


SHAPES = [(), (0,), (3, 0, 2), (1,), (5,), (2, 3, 4), (200, 300), (1,) * 40]


@pytest.mark.parametrize("name", [name for name in dtypes.BY_NAME if name != "text"])
def test_every_dtype_and_shape_comes_back_bit_for_bit(path: Path, name: str) -> None:
    kind = dtypes.named(name)
    random = np.random.default_rng(0)
    arrays = []
    for shape in SHAPES:
        raw = random.integers(0, 2 if name == "bool" else 256, (*shape, kind.itemsize), np.uint8)
        arrays.append(raw.view(kind.view).reshape(shape))
    with written(path, *arrays) as trace:
        for record, array in zip(trace.records, arrays, strict=True):
            assert same_bits(record.read(), array)
            assert (record.dtype, record.shape, record.nbytes) == (name, array.shape, array.nbytes)
            blocks = [np.empty(0, kind.view), *record.blocks(7000)]
            assert same_bits(np.concatenate(blocks), array.reshape(-1))


def test_bits_with_a_dtype_are_the_values_of_that_dtype(path: Path) -> None:
    values = np.linspace(-2, 2, 50).astype(ml_dtypes.bfloat16).reshape(5, 10)
    with TraceWriter(path) as writer:
        writer.add(values=values.view(np.uint16), dtype="bfloat16", **AT)
        writer.add(values=values, dtype="bfloat16", **AT)
    bits, seen = open_trace(path).records
    assert same_bits(bits.read(), values)
    assert same_bits(seen.read(), values)
    assert bits.stats.min == -2


def test_big_endian_and_strided_arrays_are_stored_as_plain_ones(path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    trace = written(path, values.astype(">f4"), values[::2, ::-1], np.asfortranarray(values))
    for record, expected in zip(trace.records, (values, values[::2, ::-1], values), strict=True):
        np.testing.assert_array_equal(record.read(), expected)
        assert record.read().dtype == np.float32


@pytest.mark.parametrize("values", [np.array(["a"], object), np.array(["a"]), np.zeros(2, np.longdouble), np.zeros(2, "M8[s]")])
def test_what_no_trace_can_hold_is_refused_by_name(path: Path, values: Array) -> None:
    with TraceWriter(path) as writer, pytest.raises(TracediffError, match="cannot be recorded"):
        writer.add(values=values, **AT)
    with TraceWriter(path, force=True) as writer, pytest.raises(TracediffError, match="neither values nor bits of 'bfloat16'"):
        writer.add(values=np.zeros(3, np.float32), dtype="bfloat16", **AT)


NAMES = ["", ".", "..", "a/b", "/", "x\0y", "ünïcödé.日本.🙂", "lone \ud800 surrogate", "s p a c e", "a" * 70_000, "%2F", "\n\t", "C:\\x"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_comes_back(path: Path, name: str) -> None:
    with TraceWriter(path) as writer:
        row = writer.add(site=name, call=name, ordinal=3, end=name, stage=name, scope=name, file=name, line=7, values=np.ones(3))
        writer.add_param(name, np.ones(3), path=name, kind="buffer", aliases=[name])
        writer.add_text(text=name, **AT)
    trace = open_trace(path)
    record = trace.records[row]
    assert [record.site, record.call, record.end, record.stage, record.scope, record.file] == [name] * 6
    assert (record.ordinal, record.line) == (3, 7)
    assert (trace.params[name].path, trace.params[name].aliases, trace.params[name].kind) == (name, [name], "buffer")
    assert trace.records[1].text() == name


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            hnp.arrays(st.sampled_from(["f4", "f2", "i8", "?", "c8"]), hnp.array_shapes(min_dims=0, min_side=0, max_side=6)),
            st.text(st.characters(codec=None), max_size=8),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_records_come_back_in_order_with_their_names(tmp_path: Path, entries: list[tuple[Array, str, bool]]) -> None:
    path = tmp_path / "a.h5"
    with TraceWriter(path, force=True) as writer:
        for number, (values, name, again) in enumerate(entries):
            writer.add(site=name, call="", ordinal=number, end="output", values=values)
            if again:
                writer.add_again(writer.add(site="x", call="", ordinal=0, end="value", values=values), **AT)
    with open_trace(path) as trace:
        kept = [record for record in trace.records if record.site not in ("x", "enc") or (record.end == "output" and record.call == "")]
        assert [record.order for record in trace.records] == list(range(len(trace.records)))
        for record, (values, name, _) in zip(kept, entries, strict=True):
            assert record.site == name
            assert same_bits(record.read(), values)


def test_rows_keep_where_and_when_they_were_recorded(path: Path) -> None:
    with TraceWriter(path) as writer:
        first = writer.add(values=np.ones(3, np.float32), **AT)
        second = writer.add(
            **{**AT, "end": "output[1]"},
            values=np.zeros(2, np.float32),
            parent=first,
            producer=first,
            producer_how=schema.PRODUCER_IDENTITY,
            flags=schema.MUTATED | schema.REPLACED,
            note='{"heads": 8}',
        )
        third = writer.add_again(second, **{**AT, "site": "dec:run"}, flags=schema.CONSTANT)
    trace = open_trace(path)
    record, again = trace.records[second], trace.records[third]
    assert (record.parent, record.producer, record.producer_how, record.flags, record.note) == (0, 0, 1, 3, {"heads": 8})
    assert (again.module, again.digest, again.stats, again.shape, again.flags) == ("dec", record.digest, record.stats, (2,), 4)
    assert (again.parent, again.note) == (-1, {})
    np.testing.assert_array_equal(again.read(), record.read())


@pytest.mark.parametrize("wrong", [{"parent": 1}, {"producer": 5}, {"line": -1}, {"ordinal": 2**40}, {"flags": 2**33}])
def test_a_number_out_of_range_is_refused_and_the_next_record_is_whole(path: Path, wrong: dict[str, int]) -> None:
    with TraceWriter(path) as writer:
        writer.add(values=np.ones(1), **AT)
        with pytest.raises(TracediffError, match=r"[Rr]ow 1"):
            writer.add(values=np.ones(2), **{**AT, "site": "new", **wrong})
        with pytest.raises(TracediffError, match="No row 7"):
            writer.add_again(7, **AT)
        writer.add(values=np.ones(2), **{**AT, "site": "new"})
    assert [record.site for record in open_trace(path).records] == ["enc", "new"]


def test_equal_content_is_stored_once(path: Path) -> None:
    big, small = np.random.default_rng(0).normal(size=(300, 300)), np.ones(100)
    with written(path, big, small, big.copy(), small.copy(), big.reshape(-1), big.view(np.int64)) as trace:
        assert len({(row["segment"], row["offset"]) for row in trace.index}) == 2
        assert path.stat().st_size < big.nbytes + schema.FIRST_SEGMENT_BYTES + 64 * 1024
        assert trace.records[5].stats != trace.records[0].stats
        assert same_bits(trace.records[5].read(), big.view(np.int64))


def test_statistics_only_traces_hold_no_values_and_say_so(path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(100, 300))
    trace = written(path, values, save="stats")
    assert path.stat().st_size < 64 * 1024
    assert trace.records[0].stats.l2 == pytest.approx(np.linalg.norm(values))
    assert not trace.records[0].stored
    with pytest.raises(TraceFileError, match="without its values"):
        trace.records[0].read()


def test_one_record_can_be_left_out_and_stored_later(path: Path) -> None:
    with TraceWriter(path) as writer:
        writer.add(values=np.arange(5), store=False, **AT)
        writer.add(values=np.arange(5), **AT)
    without, stored = open_trace(path).records
    assert (without.stored, stored.stored) == (False, True)
    np.testing.assert_array_equal(stored.read(), np.arange(5))


def test_parameters_keep_their_fingerprint_and_only_on_request_their_values(path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    with TraceWriter(path) as writer:
        writer.add_param("enc.weight", weight, path="enc", kind="parameter", aliases=["dec.weight"])
        writer.add_param("enc.mean", weight[0], path="enc", kind="buffer", store=True)
        writer.add(values=weight, **AT)
    trace = open_trace(path)
    param, mean = trace.params["enc.weight"], trace.params["enc.mean"]
    assert (param.path, param.kind, param.dtype, param.shape, param.aliases) == ("enc", "parameter", "float32", (20, 30), ["dec.weight"])
    assert not param.stored
    assert param.digest == trace.records[0].digest
    assert [axis.size for axis in param.sketch.axes] == [20, 30]
    assert param.sketch.quantiles.shape == (33,)
    np.testing.assert_allclose(mean.sketch.axes[0], weight[0])
    np.testing.assert_array_equal(mean.read(), weight[0])
    assert list(trace.params) == ["enc.weight", "enc.mean"]


def test_meta_is_merged_and_must_be_json(path: Path) -> None:
    with TraceWriter(path, meta={"impl": "torch", "modules": [{"path": "a", "attrs": {"eps": 1e-5}}]}) as writer:
        writer.set_meta(dtype="float32", impl="mlx", name="\ud800 ü")
        for wrong in (float("nan"), {1, 2}, np.float32(1)):
            with pytest.raises(TracediffError, match="meta item 'seed'"):
                writer.set_meta(seed=wrong)
    trace = open_trace(path)
    assert trace.meta["impl"] == "mlx"
    assert trace.meta["modules"][0]["attrs"]["eps"] == 1e-5
    assert (trace.meta["name"], trace.meta["format_version"], trace.complete) == ("\ud800 ü", 1, True)
    with pytest.raises(TracediffError, match="meta item 'bad'"):
        TraceWriter(path.with_name("b.h5"), meta={"bad": float("inf")})
    assert not path.with_name("b.h5").exists()


def test_memory_is_bounded_however_much_is_recorded(path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)
    tracemalloc.start()
    try:
        with TraceWriter(path) as writer:
            for number in range(600):
                writer.add(values=values + number, **AT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 600 * values.nbytes > 150e6
    assert peak < 40e6


def test_people_can_browse_the_values_with_any_hdf5_viewer(path: Path) -> None:
    big = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
    with TraceWriter(path) as writer:
        writer.add(values=big, **{**AT, "site": "enc.layers.0"})
        writer.add(values=np.arange(4, dtype=np.float32), **{**AT, "site": "enc.layers.0", "end": "input[0]"})
        writer.add(values=big + 1, **{**AT, "site": "a/b\0.."})
    with h5py.File(path) as file:
        layer = file["sites/enc/layers/0"]
        np.testing.assert_array_equal(layer["000000 output"][...], big)
        np.testing.assert_array_equal(layer["000000 input[0] (float32 4 at 0)"][:16].view(np.float32), np.arange(4))
        assert len(file["sites"]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_link_names_are_one_step_of_a_path_and_short(name: str) -> None:
    found = link_name(name)
    assert found
    assert "/" not in found
    assert "\0" not in found
    assert found not in (".", "..")
    assert len(found) <= 80
    found.encode()


def test_find_gives_records_by_site_call_and_end_or_the_nearest_names(path: Path) -> None:
    with TraceWriter(path) as writer:
        for number in range(3):
            for end in ("input[0]", "output"):
                writer.add(site="encoder.0", call=f"encoder[0]/.0[{number}]", ordinal=number, end=end, values=np.ones(2))
    trace = open_trace(path)
    assert len(trace.find("encoder.0")) == 6
    assert [record.row for record in trace.find("encoder.0", end="output")] == [1, 3, 5]
    assert [record.row for record in trace.find("encoder.0", "encoder[0]/.0[2]", "output")] == [5]
    with pytest.raises(SiteError, match=r"No site 'encoder.1' .*nearest: 'encoder.0'.*tracediff show"):
        trace.find("encoder.1")
    with pytest.raises(SiteError, match=r"No end 'outputs' of site 'encoder.0' .*'output'"):
        trace.find("encoder.0", end="outputs")


def test_tensors_larger_than_one_write_or_read_are_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracediff.trace.container._AT_ONCE", 1000)
    values = np.random.default_rng(0).normal(size=(123, 77))
    assert same_bits(written(path, values).records[0].read(), values)


def test_a_trace_is_read_only(path: Path) -> None:
    trace = written(path, np.ones(3))
    with pytest.raises(ValueError, match="read-only"):
        trace.index["site"][0] = 1
    assert trace.records[0] == trace.records[0]
    assert len({trace.records[0], trace.records[0]}) == 1
    assert trace.records[0] != open_trace(path).records[0]


def test_records_are_a_sequence(path: Path) -> None:
    trace = written(path, *(np.full(2, number) for number in range(4)))
    assert len(trace.records) == 4
    assert trace.records[-1].read().tolist() == [3, 3]
    assert [record.row for record in trace.records[1:3]] == [1, 2]
    with pytest.raises(IndexError, match="No record 4"):
        trace.records[4]


def test_a_trace_shows_itself_as_a_frame_and_as_a_table(path: Path) -> None:
    trace = written(path, np.ones((2, 3), np.float32), *(np.full(2, number) for number in range(30)), meta={"impl": "<b>"})
    frame = trace.to_frame()
    assert list(frame.index) == list(range(31))
    assert frame.loc[0, ["site", "dtype", "shape", "mean"]].tolist() == ["enc", "float32", (2, 3), 1.0]
    html = trace._repr_html_()
    assert "&lt;b&gt;, 31 records of 1 sites" in html
    assert html.count("<tr>") == 21
    assert "and 11 more" in html


def test_open_traces_pass_through_and_pickle_by_path(path: Path) -> None:
    trace = written(path, np.arange(3))
    assert open_trace(trace) is trace
    assert pickle.loads(pickle.dumps(trace)).records[0].read().tolist() == [0, 1, 2]
    trace.close()
    with pytest.raises(TraceFileError, match="was closed"):
        trace.records[0].read()


def test_only_text_is_read_as_text(path: Path) -> None:
    with pytest.raises(TracediffError, match="not text"):
        written(path, np.ones(3)).records[0].text()


def test_an_empty_trace_is_a_trace(path: Path) -> None:
    trace = written(path)
    assert len(trace.records) == 0
    assert trace.params == {}
    assert trace.to_frame().empty
    assert path.stat().st_size < 16 * 1024


def test_a_text_that_was_forgotten_keeps_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracediff.trace.writer._LATEST_TEXTS", 2)
    with TraceWriter(tmp_path / "a.h5") as writer:
        for row in range(40):
            writer.add(site=f"enc.{row % 20}", call="enc[0]", ordinal=row, end="output", values=np.ones(1))
    with open_trace(tmp_path / "a.h5") as trace:
        assert [record.site for record in trace.records] == [f"enc.{row % 20}" for row in range(40)]
        assert len(trace.strings) == len(set(trace.strings))
