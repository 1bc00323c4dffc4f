"""Ports that arrive as files under names of their own: what is paired, what is said, and what a port is fed."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")

import tracediff as td  # noqa: E402
from benchmarks.file_ports import models, ports  # noqa: E402
from benchmarks.file_ports.ports import Dump, Fault, Key  # noqa: E402
from tracediff import cli  # noqa: E402
from tracediff.alignment.array_files.contents import Contents  # noqa: E402
from tracediff.alignment.structure import Side  # noqa: E402
from tracediff.errors import AlignmentError, TracediffError  # noqa: E402
from tracediff.trace import open_trace  # noqa: E402

ALL = {**models.TUNED, **models.HELD}
NAMERS = {**ports.STYLES["tuned"], **ports.STYLES["held"]}
PLAIN = Dump("short", "leaves", "npz", "same", "float32", extras=False)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any, Path]]:
    """Each model with its input and its trace, captured once."""
    folder = tmp_path_factory.mktemp("references")
    found = {}
    for name in ("encoder", "unet", "speech", "decoder"):
        model, given = ports.seeded(ALL[name], 0)
        td.capture(model, _run(model, given), to=folder / f"{name}.h5", save_params=True)
        found[name] = model, given, folder / f"{name}.h5"
    return found


def _run(model: Any, given: Any) -> Any:
    def run() -> Any:
        with torch.no_grad():
            return model(given)

    return run


def port_of(folder: Path, reference: tuple[Any, Any, Path], dump: Dump, fault: Fault | None = None) -> tuple[Path, dict[str, Key]]:
    """A port's trace, and what each of its arrays is in the reference."""
    model, given, _ = reference
    seen = ports.run_port(model, given, fault, torch.float16 if dump.stored == "float16 run" else torch.float64)
    chosen = ports.planned(model, seen, dump.plan, random.Random(0))
    folder.mkdir(exist_ok=True, parents=True)
    path, truth = ports.write(folder, model, chosen, dump, NAMERS[dump.style], 0)
    return td.convert(path, folder / "port.h5", impl="cpp", force=True), truth


def wrong_pairs(reference: Path, port: Path, truth: dict[str, Key]) -> list[str]:
    """The arrays that are not paired with what they are."""
    with open_trace(reference) as first, open_trace(port) as second:
        contents = Contents(Side(first))
        own = {
            (r.site, r.end.split("[")[0] if r.end.startswith("output") else r.end): contents.of_row.get(r.row)
            for r in reversed(first.records)
        }
        partner = {pair.port[0]: contents.of_row[pair.reference[0]] for pair in td.align(first, second).records}
        names = second.meta["converted"]["arrays"]
        return [name for row, name in enumerate(names) if name in truth and partner.get(row) != own[truth[name]]]


# -- equal ports are the same ------------------------------------------------------------------------------------------------------------

CLEAN = [
    ("encoder", PLAIN),
    ("encoder", Dump("camel", "inputs", "npz", "no batch", "float16", extras=False)),
    ("encoder", Dump("slashes", "sparse", "folder", "reversed", "float32", extras=True)),
    ("unet", Dump("ggml", "all", "safetensors", "channels last", "float32", extras=True)),
    ("unet", Dump("upper", "taps", "numbered", "reversed", "float16 grid", extras=False)),
    ("speech", Dump("one_based", "blocks", "safetensors", "channels last", "bfloat16", extras=True)),
    ("decoder", Dump("anonymous", "leaves", "numbered", "no batch", "float32", extras=True)),
    ("decoder", Dump("rust", "taps", "npz", "same", "float16 run", extras=False)),
]


@pytest.mark.parametrize(("name", "dump"), CLEAN)
def test_an_equal_port_is_the_same_under_whatever_names(tmp_path: Path, references: Any, name: str, dump: Dump) -> None:
    port, truth = port_of(tmp_path, references[name], dump)
    assert wrong_pairs(references[name][2], port, truth) == []
    assert td.bisect(references[name][2], port).verdict == "same"


# -- faults are found where they are -----------------------------------------------------------------------------------------------------

FAULTY = [
    ("encoder", PLAIN, Fault("layers.1.mlp.fc1", "gain")),
    ("encoder", Dump("camel", "all", "safetensors", "no batch", "float16", extras=False), Fault("layers.0.self_attn.v_proj", "transposed")),
    ("unet", Dump("ggml", "leaves", "safetensors", "channels last", "float32", extras=True), Fault("down.0.norm1", "eps")),
    ("unet", Dump("short", "leaves", "numbered", "reversed", "float16", extras=False), Fault("conv_in", "rolled")),
    ("decoder", Dump("anonymous", "all", "numbered", "no batch", "float32", extras=False), Fault("blocks.0.attention.wo", "gain")),
]


@pytest.mark.parametrize(("name", "dump", "fault"), FAULTY)
def test_a_fault_is_found_at_the_array_that_it_spoils(tmp_path: Path, references: Any, name: str, dump: Dump, fault: Fault) -> None:
    port, _ = port_of(tmp_path, references[name], dump, fault)
    first = td.bisect(references[name][2], port).first
    assert first is not None
    assert first.culprit.reference == fault.path


def test_a_fault_that_was_not_stored_lies_in_the_stretch_that_is_named(tmp_path: Path, references: Any) -> None:
    dump = Dump("short", "all", "npz", "same", "float32", extras=False)
    _, truth = port_of(tmp_path, references["unet"], dump, Fault("mid.conv1", "gain"))
    with np.load(tmp_path / "port.npz") as stored:
        kept = {name: stored[name] for name in stored.files if not truth[name][0].startswith("mid.")}
    np.savez(tmp_path / "kept.npz", **kept)
    report = td.bisect(references["unet"][2], td.convert(tmp_path / "kept.npz", tmp_path / "kept.h5"))
    assert report.first is not None
    assert report.first.last_same is not None
    assert (report.first.last_same.reference, report.first.culprit.reference) == ("down.1", "mid")


@pytest.mark.parametrize("kept", [["", "conv_in", "down.1.conv2"], ["", "down.0.norm1"]])
def test_where_what_arrives_was_not_stored_the_report_says_so(tmp_path: Path, references: Any, kept: list[str]) -> None:
    dump = Dump("short", "all", "npz", "same", "float32", extras=False)
    _, truth = port_of(tmp_path, references["unet"], dump, Fault("down.1.conv1", "gain"))
    with np.load(tmp_path / "port.npz") as stored:
        few = {name: stored[name] for name in stored.files if truth[name][0] in kept}
    np.savez(tmp_path / "few.npz", **few)
    report = td.bisect(references["unet"][2], td.convert(tmp_path / "few.npz", tmp_path / "few.h5"))
    assert report.first is not None
    assert report.certificate["judged"][0]["arrives"] in ("not recorded", "in part") or report.first.culprit.reference == ""


class Stem(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.out = torch.nn.Conv1d(6, 8, 3, padding=1), torch.nn.Conv1d(8, 8, 3, padding=1), torch.nn.Linear(8, 12)

    def forward(self, x: Any) -> Any:
        return self.out(torch.relu(self.conv2(torch.relu(self.conv1(x)))).transpose(1, 2))


class Stemmed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pre_encode, self.mid, self.norm = Stem(), torch.nn.Linear(12, 12), torch.nn.LayerNorm(12)

    def forward(self, x: Any) -> Any:
        return self.norm(self.mid(self.pre_encode(x)))


def test_what_stands_in_one_module_with_arrays_that_agree_pairs_there(tmp_path: Path) -> None:
    """No word of ``subsample.proj`` is the reference's, and no value agrees: what stands beside it says what it is."""
    model, x = Stemmed().eval(), torch.randn(1, 6, 20, generator=torch.Generator().manual_seed(1))
    td.capture(model, _run(model, x), to=tmp_path / "ref.h5")
    with torch.no_grad():
        one = model.pre_encode.conv1(x)
        two = model.pre_encode.conv2(torch.relu(one))
        wrong = model.pre_encode.out(torch.relu(two).transpose(1, 2).flip(-1))
        mid = model.mid(wrong)
        seen = {"subsample.conv0": one, "subsample.conv1": two, "subsample.proj": wrong, "fc": mid, "finalNorm": model.norm(mid)}
    save_file({name: np.ascontiguousarray(value[0].numpy()) for name, value in seen.items()}, tmp_path / "port.safetensors")
    td.convert(tmp_path / "port.safetensors", tmp_path / "port.h5", impl="swift")
    found = td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5")
    assert found.divergences[0].culprit.reference in ("pre_encode", "pre_encode.out")


def test_arrays_that_the_reference_has_not_are_left_out(tmp_path: Path, references: Any) -> None:
    port, truth = port_of(tmp_path, references["encoder"], Dump("short", "leaves", "safetensors", "same", "float32", extras=True))
    with open_trace(port) as trace:
        further = {record.site for record in trace.records} - set(truth)
    alone = {pair.port for pair in td.align(references["encoder"][2], port).unpaired if pair.port}
    assert further
    assert alone == further


# -- half precision as storage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["float16", "float16 grid", "bfloat16"])
def test_a_small_fault_shows_although_the_float32_run_was_stored_in_half(tmp_path: Path, references: Any, stored: str) -> None:
    dump = Dump("short", "leaves", "npz", "same", stored, extras=False)
    port, _ = port_of(tmp_path, references["unet"], dump, Fault("mid.conv1", "noise"))
    report = td.bisect(references["unet"][2], port)
    assert report.first is not None
    assert report.first.culprit.reference == "mid.conv1"
    assert "a float32 run that were stored in" in " ".join(report.certificate["notes"])


def test_a_run_in_half_precision_is_not_taken_for_stored(tmp_path: Path, references: Any) -> None:
    port, _ = port_of(tmp_path, references["unet"], Dump("short", "leaves", "npz", "same", "float16 run", extras=False))
    stored = td.align(references["unet"][2], port).stored
    assert stored is not None
    assert not stored.in_float32


def test_what_a_run_was_stored_in_can_be_stated(tmp_path: Path, references: Any) -> None:
    dump = Dump("short", "leaves", "npz", "same", "float16", extras=False)
    port_of(tmp_path, references["unet"], dump, Fault("conv_in", "noise"))
    assert td.bisect(references["unet"][2], tmp_path / "port.h5").verdict != "different"
    td.convert(tmp_path / "port.npz", tmp_path / "stated.h5", stored="float16")
    first = td.bisect(references["unet"][2], tmp_path / "stated.h5").first
    assert first is not None
    assert first.culprit.reference == "conv_in"
    with pytest.raises(TracediffError, match="float16 or bfloat16, not in 'int8'"):
        td.convert(tmp_path / "port.npz", tmp_path / "other.h5", stored="int8")


# -- what is stated ----------------------------------------------------------------------------------------------------------------------


def test_stated_ends_count_and_a_written_mapping_can_be_read_again(tmp_path: Path, references: Any) -> None:
    port, _ = port_of(tmp_path, references["encoder"], Dump("short", "taps", "npz", "same", "float32", extras=False))
    mapping = {"pairs": [{"reference": "layers.1.norm1/input[0]", "port": "blk.0.ln.1"}]}
    stated = td.align(references["encoder"][2], port, mapping=mapping)
    with open_trace(references["encoder"][2]) as first, open_trace(port) as second:
        pairs = [
            (first.records[pair.reference[0]], second.records[pair.port[0]].site, stated.pairs[pair.sites].evidence)
            for pair in stated.records
        ]
    assert [(one.site, one.end, why) for one, site, why in pairs if site == "blk.0.ln.1"] == [
        ("layers.1.norm1", "input[0]", "given by the mapping")
    ]
    alignment = td.align(references["encoder"][2], port)
    alignment.write_map(tmp_path / "map.json")
    again = td.align(references["encoder"][2], port, mapping=tmp_path / "map.json")
    assert [(pair.reference, pair.port) for pair in again.records] == [(pair.reference, pair.port) for pair in alignment.records]


def test_an_end_is_stated_for_files_only_and_must_be_one(tmp_path: Path, references: Any) -> None:
    path = references["encoder"][2]
    with pytest.raises(AlignmentError, match="here name the two sites alone"):
        td.align(path, path, mapping={"pairs": [{"reference": "final_norm/input[0]", "port": "final_norm"}]})
    with pytest.raises(AlignmentError, match="'final_norm/inputs' in the mapping is no name"):
        td.align(path, path, mapping={"pairs": [{"reference": "final_norm/inputs", "port": "final_norm"}]})


def test_a_mapping_to_edit_is_written_though_nothing_is_paired(tmp_path: Path, references: Any) -> None:
    save_file({"alien": np.arange(7, dtype=np.float32)}, tmp_path / "alien.safetensors")
    td.convert(tmp_path / "alien.safetensors", tmp_path / "alien.h5")
    skeleton = str(tmp_path / "map.json")
    result = CliRunner().invoke(cli.main, ["align", str(references["encoder"][2]), str(tmp_path / "alien.h5"), "--write-map", skeleton])
    assert result.exit_code == 2
    assert "share nothing" in result.output
    assert "map.json" in result.output
    written = json.loads(Path(skeleton).read_text())
    assert written["pairs"] == []
    assert list(written["unpaired"]["port"]) == ["alien"]
    assert "final_norm" in written["unpaired"]["reference"]


# -- a port that feeds itself ------------------------------------------------------------------------------------------------------------


def feed_of(folder: Path, references: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """A feed for a port of the U-Net that stores channels last, and one parameter; and what the port stored."""
    model = references["unet"][0]
    port_of(folder, references["unet"], Dump("camel", "leaves", "safetensors", "channels last", "float32", extras=False))
    arrays = load_file(folder / "port.safetensors")
    arrays["convIn/param[weight]"] = np.ascontiguousarray(model.conv_in.weight.detach().numpy().transpose(0, 2, 3, 1))
    save_file(arrays, folder / "whole.safetensors")
    td.convert(folder / "whole.safetensors", folder / "whole.h5")
    result = CliRunner().invoke(
        cli.main, ["convert", str(references["unet"][2]), "--like", str(folder / "whole.h5"), "-o", str(folder / "feed.safetensors")]
    )
    assert result.exit_code == 0, result.output
    return folder / "feed.safetensors", arrays


def test_a_feed_holds_the_reference_under_the_ports_names_in_its_axes_and_dtype(tmp_path: Path, references: Any) -> None:
    path, arrays = feed_of(tmp_path, references)
    fed = load_file(path)
    assert set(arrays) <= set(fed)
    for name, own in arrays.items():
        assert (fed[name].shape, fed[name].dtype) == (own.shape, own.dtype)
        np.testing.assert_allclose(fed[name], own, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(fed["(root)/input[0]"], references["unet"][1].numpy())


def test_a_feed_names_the_numbered_arrays_of_a_port_without_their_numbers(tmp_path: Path, references: Any) -> None:
    port, truth = port_of(tmp_path, references["unet"], Dump("slashes", "leaves", "numbered", "reversed", "float16", extras=False))
    td.convert(references["unet"][2], tmp_path / "feed.npz", like=port)
    with np.load(tmp_path / "feed.npz") as fed:
        assert set(truth) <= set(fed.files)
        assert {fed[name].dtype for name in truth} == {np.dtype(np.float16)}


def test_nothing_to_feed_is_an_error_that_says_what_to_do(tmp_path: Path, references: Any) -> None:
    save_file({"alien": np.arange(7, dtype=np.float32)}, tmp_path / "alien.safetensors")
    td.convert(tmp_path / "alien.safetensors", tmp_path / "alien.h5")
    with pytest.raises(AlignmentError, match="--map FILE"):
        td.convert(references["encoder"][2], tmp_path / "feed.npz", like=tmp_path / "alien.h5")
    port, _ = port_of(tmp_path, references["encoder"], PLAIN)
    with pytest.raises(TracediffError, match="is a trace's name"):
        td.convert(references["encoder"][2], tmp_path / "feed.h5", like=port)
    result = CliRunner().invoke(cli.main, ["convert", str(port)])
    assert result.exit_code == 2
    assert "Name the file to write once" in result.output


MAIN = """
#include <cstdio>
int main(int, char** path) {
    Feed feed(path[1]);
    Dump dump;
    for (const char* name : {"convIn", "convIn/param[weight]", "(root)/input[0]"}) {
        Array array = feed.at(name);
        std::printf("%s %zu %zu %.9g %d\\n", name, array.shape.size(), array.values.size(), array.values[5], feed.has(name));
        dump.add(name, array);
    }
    std::printf("%d\\n", feed.has("conv"));
    dump.write(path[2]);
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_lines_of_the_guide_read_a_feed_and_write_a_dump_in_cpp(tmp_path: Path, references: Any) -> None:
    page = (Path(__file__).parent.parent / "docs" / "array-files.md").read_text()
    code = re.search(r"<!-- feed\.cpp -->\n```cpp\n(.*?)```", page, re.DOTALL)
    assert code is not None
    (tmp_path / "main.cpp").write_text(code[1] + MAIN)
    subprocess.run(["g++", "-std=c++17", "-o", str(tmp_path / "main"), str(tmp_path / "main.cpp")], check=True)
    path, _ = feed_of(tmp_path, references)
    told = subprocess.run(
        [str(tmp_path / "main"), str(path), str(tmp_path / "dump.safetensors")], check=True, capture_output=True, text=True
    )
    fed = load_file(path)
    lines = told.stdout.splitlines()
    assert lines.pop() == "0"
    for line in lines:
        name, rank, count, value, has = line.rsplit(" ", 4)
        assert (int(rank), int(count), has) == (fed[name].ndim, fed[name].size, "1")
        assert float(value) == pytest.approx(float(fed[name].reshape(-1)[5]))
    with open_trace(td.convert(tmp_path / "dump.safetensors", tmp_path / "dump.h5")) as trace:
        assert [(record.site, record.end) for record in trace.records] == [("convIn", "output"), ("", "input[0]")]
        assert list(trace.params) == ["convIn.weight"]
