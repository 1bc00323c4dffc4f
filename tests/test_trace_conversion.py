"""trace.convert: arrays by name become a trace and come back, and nothing that is wrong with them passes in silence."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from judging import Run, bumped, inputs, noisy
from safetensors.numpy import load_file, save_file
from test_report import SITES, staged

import tracediff as td
from tracediff import cli
from tracediff.dtype import BY_NAME
from tracediff.errors import TracediffError, TraceExistsError, TraceNotFoundError
from tracediff.site import unescape
from tracediff.trace import TraceWriter, open_trace
from tracediff.trace.conversion import HEADER, Name, convert

FORMS = ("port.npz", "port.safetensors", "port")
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def trace_of(folder: Path, name: str = "ref.h5", **options: Any) -> Path:
    """A toy run of two stages."""
    run = Run(folder / name, **{"stages": {"enc": "", "dec": ""}, **options})
    staged(run, inputs())
    run.close()
    return folder / name


def outputs(path: Path) -> dict[str, np.ndarray]:
    """What another language would have written of a run: what each site gave, by the site's name."""
    with open_trace(path) as trace:
        return {record.site: record.read() for record in trace.records if record.end == "output"}


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def content(path: Path) -> list[tuple[Any, ...]]:
    with open_trace(path) as trace:
        columns = (
            "site",
            "call",
            "ordinal",
            "end",
            "stage",
            "scope",
            "dtype",
            "shape",
            "digest",
            "parent",
            "producer",
            "flags",
            "note",
            "line",
        )
        return [tuple(getattr(record, column) for column in columns) for record in trace.records]


# -- there and back


def every_dtype(folder: Path, *, without: tuple[str, ...] = ()) -> Path:
    """A trace with a record of each dtype, a scalar, an empty array, a text, a stored parameter, an odd name and a note."""
    kinds = {name: kind for name, kind in BY_NAME.items() if name not in ("text", *without)}
    with TraceWriter(folder / "all.h5", meta={"impl": "numpy", "modules": [], "stages": {"b": "a", "a": ""}}) as writer:
        for number, (name, kind) in enumerate(kinds.items()):
            values = np.array([[0, 1], [1, 0]], "u1").astype(kind.view)
            moment: dict[str, Any] = {"call": f"x[0]/.{name}[{number}]", "stage": "b", "scope": "ode=3", "parent": number - 1}
            writer.add(
                values=values, site=f"x.{name}", ordinal=number, end="output[0].key", note='{"mean": 1.5}', line=7, file="a.py", **moment
            )
        writer.add(values=np.float32(2.5), site="", call="[0]", ordinal=0, end="value", producer=0, producer_how=1)
        writer.add(values=np.zeros((0, 3), "f4"), site="a%2Fb:go", call="a%2Fb:go[0]", ordinal=2, end="input[m%5B]")
        writer.add_text(text="Grüße\0 \ud800", site="#text", call="#text[0]", ordinal=0, end="value")
        writer.add_param("x.w.v", X, path="x", kind="buffer", aliases=["y"], store=True)
        writer.add_param("top", X + 1, path="", kind="parameter", store=True)
    return folder / "all.h5"


@pytest.mark.parametrize("form", FORMS)
def test_a_trace_comes_back_as_it_was(tmp_path: Path, form: str) -> None:
    source = every_dtype(tmp_path, without=("complex128",) if form.endswith(".safetensors") else ())
    assert convert(source, tmp_path / form) == tmp_path / form
    back = convert(tmp_path / form, tmp_path / "back.h5")
    assert content(back) == content(source)
    with open_trace(back) as after, open_trace(source) as before:
        assert [str(param.read()) for param in after.params.values()] == [str(param.read()) for param in before.params.values()]
        assert [(p.name, p.path, p.kind, p.aliases) for p in after.params.values()] == [
            ("x.w.v", "x", "buffer", ["y"]),
            ("top", "", "parameter", []),
        ]
        assert after.meta["stages"] == before.meta["stages"]
        assert after.meta["impl"] == "numpy"
        assert after.complete
        assert after.find("#text")[0].text() == "Grüße\0 \ud800"


def test_a_run_that_did_not_come_to_its_end_stays_so(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "cut.h5", meta={"impl": "numpy"})
    writer.add(values=X, site="a", call="a[0]", ordinal=0, end="output")
    writer.close(complete=False)
    convert(tmp_path / "cut.h5", tmp_path / "cut.npz")
    with open_trace(convert(tmp_path / "cut.npz", tmp_path / "back.h5")) as trace:
        assert not trace.complete


@pytest.mark.parametrize("form", FORMS)
def test_other_programs_read_what_is_written(tmp_path: Path, form: str) -> None:
    convert(trace_of(tmp_path), tmp_path / form)
    values = outputs(tmp_path / "ref.h5")["enc.a"]
    if form.endswith(".npz"):
        read = dict(np.load(tmp_path / form, allow_pickle=False))
    elif form.endswith(".safetensors"):
        read = load_file(tmp_path / form)
    else:
        read = {"enc.a/output": np.load(tmp_path / form / "enc.a" / "output.npy", allow_pickle=False)}
    np.testing.assert_array_equal(read["enc.a/output"], values)


# -- arrays that somebody else wrote


def write_foreign(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        save_file(arrays, path)
    else:
        for name, values in arrays.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(path / f"{name}.npy", values)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_port_in_another_language_is_compared_by_its_names_and_values(tmp_path: Path, form: str) -> None:
    reference = trace_of(tmp_path)
    quiet = dict.fromkeys(SITES, noisy())
    wrong = outputs(trace_of(tmp_path, "wrong.h5", faults={**quiet, "dec.a": bumped}))
    right = outputs(trace_of(tmp_path, "right.h5", faults=quiet))
    for name, arrays in (("wrong", wrong), ("right", right)):
        convert(
            write_foreign(tmp_path / name / form, arrays) if form == "port" else _beside(tmp_path / name, form, arrays),
            tmp_path / f"{name}2.h5",
            impl="swift",
        )
    told = td.diff(reference, tmp_path / "wrong2.h5")
    assert told.first is not None
    assert told.first.site.port == "dec.a"
    assert told.port["impl"] == "swift"
    assert td.bisect(reference, tmp_path / "wrong2.h5").verdict == "different"
    same = td.diff(reference, tmp_path / "right2.h5")
    assert same.verdict == "same"
    assert same.coverage.compared == len(right)


def _beside(folder: Path, form: str, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    return write_foreign(folder / form, arrays)


def test_a_site_named_alike_is_paired_though_nothing_in_it_agrees(tmp_path: Path) -> None:
    reference = trace_of(tmp_path)
    arrays = {name: np.random.default_rng(5).standard_normal(values.shape, "f4") for name, values in outputs(reference).items()}
    npz(tmp_path / "port.npz", **arrays)
    pairs = td.align(reference, convert(tmp_path / "port.npz", tmp_path / "port.h5")).pairs
    assert {pair.reference: pair.port for pair in pairs if pair.port} == {name: name for name in arrays}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("encoder.0", Name("encoder.0", 0, "output")),
        ("encoder.0/input[0]", Name("encoder.0", 0, "input[0]")),
        ("encoder.0/3/output[1].key", Name("encoder.0", 3, "output[1].key")),
        ("(root)/output", Name("", 0, "output")),
        ("flow:inference/2/input[mask]", Name("flow:inference", 2, "input[mask]")),
        ("flow#mel/value", Name("flow#mel", 0, "value")),
        ("a%2Fb", Name("a%2Fb", 0, "output")),
    ],
)
def test_a_name_says_site_call_and_end(text: str, name: Name) -> None:
    assert Name.parse(text) == name
    assert Name.parse(str(name)) == name


@pytest.mark.parametrize(
    "text",
    ["", "/", "a/b", "a/x/output", "a/1/2/output", "a/output/", "/output", "a[0]", "..", "../output", "a/-1/output", "a/outputs", "a\n"],
)
def test_what_is_no_name_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(TracediffError, match=r"is SITE, SITE/END or SITE/CALL/END"):
        Name.parse(text)


@pytest.mark.parametrize("text", ["a/b", "layers[0]/attn", "model::enc::0", "a@b^c", "enc 0", "x/outputs"])
def test_a_name_of_the_ports_own_is_a_site_as_a_whole(text: str) -> None:
    name = Name.read(text)
    assert (name.ordinal, name.end) == (0, "output")
    assert unescape(name.site) == text
    assert Name.parse(str(name)) == name


def test_the_names_of_the_file_are_kept_without_their_numbers(tmp_path: Path) -> None:
    npz(tmp_path / "port.npz", **{"0001-enc/0": X, "0000-model::in": X, "0002-w/param[weight]": X})
    with open_trace(convert(tmp_path / "port.npz", tmp_path / "t.h5")) as trace:
        assert trace.meta["converted"]["arrays"] == ["model::in", "enc/0"]
        assert [record.site for record in trace.records] == ["model%3A%3Ain", "enc%2F0"]


@pytest.mark.parametrize(
    ("arrays", "stored"),
    [
        ({"a": np.float16([0.1, 0.2])}, {"dtype": "float16", "by": "dtype"}),
        ({"a": np.float32(np.float16([0.1, 0.2])), "n": np.arange(3)}, {"dtype": "float16", "by": "grid"}),
        ({"a": np.float32(np.float32([0.1, 3e38]).astype(ml_dtypes.bfloat16))}, {"dtype": "bfloat16", "by": "grid"}),
        ({"a": np.float32([0.1, 0.2])}, None),
        ({"a": np.float32([1, 2, 3])}, None),  # whole numbers are on every grid
        ({"a": np.float32(np.float16([0.1, 0.2])), "b": np.float32([0.1])}, None),
    ],
)
def test_half_precision_is_seen_by_dtype_and_by_grid(tmp_path: Path, arrays: dict[str, Any], stored: Any) -> None:
    npz(tmp_path / "port.npz", **arrays)
    with open_trace(convert(tmp_path / "port.npz", tmp_path / "t.h5")) as trace:
        assert trace.meta.get("stored") == stored


def sites(path: Path) -> list[str]:
    with open_trace(path) as trace:
        return [record.site for record in trace.records]


@pytest.mark.parametrize(
    ("form", "names", "order"),
    [
        ("port.npz", ["b", "a", "c"], ["b", "a", "c"]),  # as the file holds them
        ("port.safetensors", ["layer.10", "layer.9", "a"], ["a", "layer.9", "layer.10"]),  # that format keeps no order
        ("port", ["layer.10", "layer.9", "a"], ["a", "layer.9", "layer.10"]),
        ("port", ["10-a", "9-b", "11-a.b"], ["b", "a", "a.b"]),  # a number before every name
        ("port", ["10-a", "9-b", "c"], ["9-b", "10-a", "c"]),  # before some only, so it belongs to them
    ],
)
def test_the_order_is_the_files_the_numbers_or_the_names(tmp_path: Path, form: str, names: list[str], order: list[str]) -> None:
    write_foreign(tmp_path / form, {name: X + number for number, name in enumerate(names)})
    assert sites(convert(tmp_path / form, tmp_path / "t.h5")) == order


def test_a_header_gives_order_stages_and_meta(tmp_path: Path) -> None:
    header = {
        "meta": {"impl": "cpp", "dtype": "bfloat16", "mode_run": "forced"},
        "records": [{"name": "b", "stage": "decoder"}, {"name": "a", "dtype": "bfloat16"}],
    }
    bits = np.array([0x3F80], "<u2")
    save_file({"a": bits, "b": X}, tmp_path / "p.safetensors", metadata={"tracediff": json.dumps(header)})
    npz(tmp_path / "p.npz", **{"a": bits, "b": X, HEADER: np.frombuffer(json.dumps(header).encode(), "u1")})
    for form in ("p.safetensors", "p.npz"):
        with open_trace(convert(tmp_path / form, tmp_path / "t.h5", force=True)) as trace:
            assert [(record.site, record.stage) for record in trace.records] == [("b", "decoder"), ("a", "")]
            assert trace.records[1].read().astype("f4").tolist() == [1.0]
            assert (trace.meta["impl"], trace.meta["mode_run"], trace.meta["stages"]) == ("cpp", "forced", {"decoder": ""})


@pytest.mark.parametrize(
    "record",
    [
        {"name": "c"},
        {},
        {"name": "a", "parent": 5},
        {"name": "a", "stage": 3},
        {"name": "a", "line": -7},
        {"name": "a", "dtype": "int64"},
        7,
    ],
)
def test_a_header_that_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path, record: Any) -> None:
    blob = np.frombuffer(json.dumps({"records": [record]}).encode(), "u1")
    npz(tmp_path / "p.npz", **{"a": X, HEADER: blob})
    with pytest.raises(TracediffError):
        convert(tmp_path / "p.npz", tmp_path / "t.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.npz"]


def test_bfloat16_is_read_as_numpy_and_safetensors_write_it(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5], ml_dtypes.bfloat16)
    npz(tmp_path / "a.npz", a=values)
    head = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + values.tobytes())
    for form in ("a.npz", "a.safetensors"):
        with open_trace(convert(tmp_path / form, tmp_path / "t.h5", force=True)) as trace:
            assert trace.records[0].dtype == "bfloat16"
            assert trace.meta["dtype"] == "bfloat16"
            np.testing.assert_array_equal(trace.records[0].read(), values)


def test_byte_orders_orders_of_axes_and_texts_are_understood(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", big=X.astype(">f4"), fortran=np.asfortranarray(X), **{"#text/value": np.array("Hallo")})
    with open_trace(convert(tmp_path / "a.npz", tmp_path / "t.h5")) as trace:
        np.testing.assert_array_equal(trace.find("big")[0].read(), X)
        np.testing.assert_array_equal(trace.find("fortran")[0].read(), X)
        assert trace.find("#text")[0].text() == "Hallo"


# -- what is refused


def pickled(folder: Path) -> Path:
    np.savez(folder / "a.npz", a=np.array([{"x": 1}], object))
    return folder / "a.npz"


def twice_in_an_npz(folder: Path) -> Path:
    npz(folder / "a.npz", a=X, b=X)
    blob = (folder / "a.npz").read_bytes()
    (folder / "a.npz").write_bytes(blob.replace(b"b.npy", b"a.npy"))
    return folder / "a.npz"


def twice_in_a_safetensors(folder: Path) -> Path:
    entry = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    head = f"{{{entry}, {entry}}}".encode()
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))
    return folder / "a.safetensors"


def beyond_the_file(folder: Path) -> Path:
    head = json.dumps({"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}}).encode()
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))
    return folder / "a.safetensors"


def long_header(folder: Path) -> Path:
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    return folder / "a.safetensors"


def text_file(folder: Path) -> Path:
    (folder / "a.npz").write_text("hello", encoding="utf-8")
    return folder / "a.npz"


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def unknown_suffix(folder: Path) -> Path:
    (folder / "a.pt").write_bytes(b"x")
    return folder / "a.pt"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (pickled, "pickled Python objects, which are not read"),
        (twice_in_an_npz, "holds 'a' twice"),
        (twice_in_a_safetensors, "holds 'a' twice"),
        (lambda folder: npz(folder / "a.npz", **{"a": X, "a/output": X}), "more than once: 'a', 'a/output'"),
        (lambda folder: npz(folder / "a.npz", **{"a": X, "-/-": X}), "'-/-' is no name"),
        (lambda folder: npz(folder / "a.npz"), "holds no arrays"),
        (lambda folder: npz(folder / "a.npz", a=np.array(["2020"], "datetime64[D]")), "cannot be recorded: it is of dtype datetime64"),
        (empty_folder, "holds no arrays"),
        (beyond_the_file, "does not fit into the file"),
        (long_header, "is no .safetensors file"),
        (text_file, "is no .npz file"),
        (unknown_suffix, "of no known form: known are .h5"),
        (lambda folder: folder / "absent.npz", "There is no"),
    ],
)
def test_bad_inputs_are_refused_and_leave_nothing(tmp_path: Path, make: Callable[[Path], Path], why: str) -> None:
    source = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(TracediffError, match=why):
        convert(source, tmp_path / "t.h5")
    assert sorted(tmp_path.iterdir()) == before


def test_an_absent_source_is_a_file_that_was_not_found(tmp_path: Path) -> None:
    with pytest.raises(TraceNotFoundError):
        convert(tmp_path / "absent", tmp_path / "t.h5")


def test_two_traces_or_none_cannot_be_converted(tmp_path: Path) -> None:
    reference = trace_of(tmp_path)
    with pytest.raises(TracediffError, match="both are traces"):
        convert(reference, tmp_path / "t.h5")
    with pytest.raises(TracediffError, match="neither is a trace"):
        convert(npz(tmp_path / "a.npz", a=X), tmp_path / "b.safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_an_existing_output_is_kept_unless_forced(tmp_path: Path, form: str) -> None:
    reference = trace_of(tmp_path)
    convert(reference, tmp_path / form)
    with pytest.raises(TraceExistsError, match="--force"):
        convert(reference, tmp_path / form)
    convert(reference, tmp_path / form, force=True)
    convert(tmp_path / form, tmp_path / "t.h5")
    before = (tmp_path / "t.h5").read_bytes()
    with pytest.raises(TraceExistsError, match="--force"):
        convert(tmp_path / form, tmp_path / "t.h5")
    with pytest.raises(TracediffError, match="no arrays"):
        convert(npz(tmp_path / "empty.npz"), tmp_path / "t.h5", force=True)
    assert (tmp_path / "t.h5").read_bytes() == before


def test_a_folder_with_other_files_in_it_is_never_replaced(tmp_path: Path) -> None:
    reference = trace_of(tmp_path)
    (tmp_path / "home" / "deep").mkdir(parents=True)
    (tmp_path / "home" / "deep" / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(TraceExistsError, match=r"holds 'thesis.txt', which is no array"):
        convert(reference, tmp_path / "home", force=True)
    assert (tmp_path / "home" / "deep" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("site", "end"), [("../../x", "output"), ("..", "output"), ("/etc/x", "output"), ("a", "output/../../x"), ("a\n", "output")]
)
@pytest.mark.parametrize("form", FORMS)
def test_a_hostile_trace_writes_nothing_outside_of_its_folder(tmp_path: Path, form: str, site: str, end: str) -> None:
    (tmp_path / "in").mkdir()
    with TraceWriter(tmp_path / "in" / "t.h5") as writer:
        writer.add(values=X, site=site, call="x[0]", ordinal=0, end=end)
    with pytest.raises(TracediffError, match="which is no name that a capture gives"):
        convert(tmp_path / "in" / "t.h5", tmp_path / "in" / form)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "t.h5"]


def test_a_trace_of_statistics_cannot_give_arrays(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "stats.h5", save="stats") as writer:
        writer.add(values=X, site="a", call="a[0]", ordinal=0, end="output")
    with pytest.raises(TracediffError, match=r"1 of 1 records.*--save full"):
        convert(tmp_path / "stats.h5", tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()


def test_what_safetensors_cannot_hold_is_said(tmp_path: Path) -> None:
    with pytest.raises(TracediffError, match=r"complex128, which .safetensors files cannot hold; write an .npz"):
        convert(every_dtype(tmp_path), tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_the_command_converts_and_answers_with_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trace_of(tmp_path)
    done = CliRunner().invoke(cli.main, ["convert", "ref.h5", "ref.npz"])
    assert (done.exit_code, done.stdout) == (0, "ref.npz\n")
    done = CliRunner().invoke(cli.main, ["convert", "ref.npz", "back.h5", "--impl", "swift"])
    assert (done.exit_code, done.stdout) == (0, "back.h5\n")
    with open_trace(tmp_path / "back.h5") as trace:
        assert trace.meta["impl"] == "swift"
    refused = CliRunner().invoke(cli.main, ["convert", "ref.npz", "back.h5"])
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
