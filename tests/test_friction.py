"""What a person meets on the way: mistakes are told before the work begins, objects print short, tables come out whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from judging import bumped
from test_report import compared
from test_show_text import DIFFERENT

import tracediff as td
from tracediff import cli
from tracediff.errors import TracediffError, TraceExistsError
from tracediff.show import answer


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ref.h5 and port.h5, in which nothing can be compared."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the comparison began")

    compared(tmp_path, faults={"dec.a": bumped})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tracediff.alignment.align", never)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plot", "ref.h5", "port.h5", "-o", "x.txt"], "'x.txt'; the suffixes are .png, .svg and .pdf"),
        (["report", "ref.h5", "port.h5", "-o", "x.docx"], "'x.docx'; the suffixes are .html"),
        (["report", "ref.h5", "port.h5", "-o", "nowhere/x.html"], "there is no folder 'nowhere'"),
        (["view", "ref.h5", "port.h5", "-o", "nowhere/x.html"], "there is no folder 'nowhere'"),
        (["bisect", "ref.h5", "port.h5", "--rtol", "1"], "together"),
        (["diff", "ref.h5", "port.h5", "--stage", "foo"], "No stage 'foo' in 'ref.h5'; its stages: "),
    ],
)
def test_a_mistake_is_told_before_anything_is_compared(traces: Path, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_reference_without_stages_says_so(tmp_path: Path) -> None:
    def plainly(run: object, x: object) -> None:
        with run("enc", x=x) as leave:  # type: ignore[operator]
            leave(x)

    compared(tmp_path, run=plainly)  # type: ignore[arg-type]
    with pytest.raises(TracediffError, match="has no stages, so leave out --stage"):
        td.diff(tmp_path / "ref.h5", tmp_path / "port.h5", stages=["foo"])


def test_a_report_prints_its_answer_and_not_all_its_data(tmp_path: Path) -> None:
    report = compared(tmp_path, faults={"dec.a": bumped})
    assert repr(report).startswith("<Report: First divergence: dec.a")
    assert len(repr(report)) < 200


def test_a_plot_that_there_is_not_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TracediffError, match="no plot 'layers'; the plots are 'sites' and 'culprit'"):
        compared(tmp_path).plot("layers")  # type: ignore[arg-type]


def test_all_pairs_can_be_had_as_a_table(tmp_path: Path) -> None:
    report = compared(tmp_path, faults={"dec.a": bumped})
    table = pd.read_csv(report.save(tmp_path / "pairs.csv"))
    assert len(table) == len(report.rows)
    assert table.loc[table["introduced"], "port"].tolist() == ["dec.a"]


def test_progress_says_how_long_it_has_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.main, ["diff", "ref.h5", "port.h5"])
    assert [line.split()[1] for line in done.stderr.splitlines() if "pairing" in line] == ["s"]


def test_the_answer_and_its_details_are_two_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared(tmp_path, faults={"dec.a": bumped})
    monkeypatch.chdir(tmp_path)
    short, long = (CliRunner().invoke(cli.main, ["bisect", "ref.h5", "port.h5", *more]).stdout for more in ([], ["-v"]))
    assert len(short.splitlines()) <= 15
    assert long.startswith("First divergence: dec.a")
    assert "Blame" in long


def test_what_is_compared_without_keeping_its_traces_says_how_to_keep_them(tmp_path: Path) -> None:
    first, second = (str(tmp_path / "gone" / f"{name}.h5") for name in ("first", "second"))
    gone = replace(DIFFERENT, reference={"path": first}, port={"path": second})
    assert answer.next_command(gone, 0) == "keep the traces with -o ways, then: tracediff view ways/first.h5 ways/second.h5"


def test_what_is_tried_without_keeping_its_trace_says_how_to_keep_it(tmp_path: Path) -> None:
    from tracediff.show import answer

    report = compared(tmp_path, faults={"dec.a": bumped})
    (tmp_path / "port.h5").unlink()
    assert answer.next_command(report, 0).startswith("keep its trace with -o tried.h5")
    assert "See it" not in str(report)


def test_json_holds_all_pairs_where_all_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = compared(tmp_path, faults={"dec.a": bumped})
    monkeypatch.chdir(tmp_path)
    plain, every = (
        json.loads(CliRunner().invoke(cli.main, ["diff", "ref.h5", "port.h5", "--json", *more]).stdout) for more in ([], ["--all"])
    )
    assert "pairs" not in plain
    assert [pair["port"] for pair in every["pairs"]] == [row.where.port for row in report.rows]
    assert [pair["port"] for pair in every["pairs"] if pair["introduced"]] == ["dec.a"]


@pytest.mark.parametrize(
    ("typed", "incomplete", "offered"),
    [
        (["bisect", "ref.h5", "port.h5", "--stage"], "de", ["dec"]),
        (["align", "ref.h5", "port.h5", "--why"], "dec.", ["dec.a", "dec.b"]),
        (["try", "ref.h5"], "dec.", ["dec.a", "dec.b"]),
        (["try", "absent.h5"], "dec.", []),
        (["capture", "--recipe"], "chatterbox", ["chatterbox", "chatterbox-mlx"]),
        (["demo", "--fault"], "dropped_b", ["dropped_bias"]),
    ],
)
def test_the_shell_completes_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], incomplete: str, offered: list[str]
) -> None:
    compared(tmp_path)
    if "--fault" not in typed and "--recipe" not in typed:
        monkeypatch.chdir(tmp_path)
    found = ShellComplete(cli.main, {}, "tracediff", "_TRACEDIFF_COMPLETE").get_completions(typed, incomplete)
    assert sorted(item.value for item in found) == offered


def test_python_says_its_progress_too_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared(tmp_path)
    sides = (tmp_path / "ref.h5", tmp_path / "port.h5")
    td.diff(*sides)
    assert capsys.readouterr().err == ""
    td.diff(*sides, progress=True)
    assert "s  pairing the sites of" in capsys.readouterr().err
    said: list[str] = []
    td.diff(*sides, progress=said.append)
    assert said[0].startswith("pairing the sites of")


def test_any_divergence_can_be_drawn_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared(tmp_path, faults={"enc": bumped, "dec.a": bumped}, port_meta={"mode_run": "forced"})
    monkeypatch.chdir(tmp_path)
    count = len(td.diff("ref.h5", "port.h5").divergences)
    arguments = ["plot", "ref.h5", "port.h5", "--culprit", "--force", "-o", "x.png", "--number"]
    assert CliRunner().invoke(cli.main, [*arguments, str(count)]).exit_code == 0
    for number in (0, count + 1):
        refused = CliRunner().invoke(cli.main, [*arguments, str(number)])
        assert refused.exit_code == 2
        assert f"no divergence {number} to draw" in refused.stderr


def test_a_report_for_model_explorer_is_two_graphs_their_errors_and_what_belongs_together(tmp_path: Path) -> None:
    folder = compared(tmp_path, faults={"dec.a": bumped}).save(tmp_path / "both.modelexplorer")
    read = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    assert sorted(read) == ["pairs.json", "port.json", "port_errors.json", "reference.json", "reference_errors.json"]
    ids = {side: {node["id"] for node in read[f"{side}.json"]["graphs"][0]["nodes"]} for side in ("reference", "port")}
    for side in ("reference", "port"):
        nodes = read[f"{side}.json"]["graphs"][0]["nodes"]
        assert {edge["sourceNodeId"] for node in nodes for edge in node["incomingEdges"]} <= ids[side]
        assert any(node["incomingEdges"] for node in nodes)
        errors = read[f"{side}_errors.json"][side]["results"]
        assert errors.keys() <= ids[side]
        wrong = {node["namespace"] for node in nodes if errors.get(node["id"], {"value": 0})["value"] > 1}
        assert "dec/a" in wrong
    for entry in read["pairs.json"]["mappingEntries"]:
        assert set(entry["leftNodeIds"]) <= ids["reference"]
        assert set(entry["rightNodeIds"]) <= ids["port"]
    with pytest.raises(TraceExistsError):
        compared(tmp_path, faults={"dec.a": bumped}).save(folder)


def test_a_report_in_json_holds_all_pairs_and_can_be_read_again(tmp_path: Path) -> None:
    report = compared(tmp_path, faults={"dec.a": bumped})
    text = report.save(tmp_path / "report.json").read_text()
    assert len(json.loads(text)["pairs"]) == len(report.rows)
    assert td.Report.from_json(text).verdict == "different"
