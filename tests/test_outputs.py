"""Writing changes only what it made: what is there is refused before anything runs, and what belongs to another run is never touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tracediff as td
from tracediff import cli
from tracediff.errors import TracediffError, TraceExistsError, TraceFileError
from tracediff.outputs import check_output, write_output
from tracediff.trace import TraceWriter, open_trace
from tracediff.trace.amend import amend
from tracediff.trace.journal import journal_of

torch = pytest.importorskip("torch")

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


class Counting:
    """A run that counts how often it is called, in its class: what an object holds is put back before each further run."""

    runs = 0

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()).eval()
        type(self).runs = 0

    def __call__(self) -> Any:
        type(self).runs += 1
        return self.model(torch.tensor(X))


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    counting = Counting()
    td.capture(counting.model, counting, to=tmp_path / "ref.h5", floor=False).close()
    return tmp_path / "ref.h5"


@pytest.mark.parametrize("feed", [False, True])
def test_an_output_that_is_there_is_refused_before_anything_runs(feed: bool, reference: Path) -> None:
    counting, before = Counting(), reference.read_bytes()
    other = shutil.copy(reference, reference.with_name("other.h5"))
    with pytest.raises(TraceExistsError, match="exists already"):
        td.capture(counting.model, counting, to=reference, feed=other if feed else None)
    assert counting.runs == 0
    assert reference.read_bytes() == before


@pytest.mark.parametrize("keyword", ["feed", "random"])
def test_what_a_run_is_fed_from_is_never_its_output(keyword: str, reference: Path) -> None:
    counting, before = Counting(), reference.read_bytes()
    given: dict[str, Any] = {keyword: reference}
    with pytest.raises(TracediffError, match="is fed from, so it cannot be its output"):
        td.capture(counting.model, counting, to=reference, force=True, **given)
    assert counting.runs == 0
    assert reference.read_bytes() == before


def test_a_refused_command_leaves_the_reference_a_reference(reference: Path) -> None:
    before = reference.read_bytes()
    for options in ([], ["--force"]):
        ran = CliRunner().invoke(cli.main, ["capture", "--impl", "torch", "--feed", str(reference), "-o", str(reference), *options])
        assert ran.exit_code == 2
    assert reference.read_bytes() == before


def test_the_trace_of_a_failed_run_is_replaced_by_the_next_try(tmp_path: Path) -> None:
    counting, to = Counting(), tmp_path / "ref.h5"

    def fails() -> None:
        counting()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        td.capture(counting.model, fails, to=to)
    assert not open_trace(to).complete
    with td.capture(counting.model, counting, to=to) as trace:
        assert trace.complete
    with pytest.raises(TraceExistsError):
        td.capture(counting.model, counting, to=to)


def test_a_killed_capture_is_not_replaced_by_the_next_try(tmp_path: Path) -> None:
    """Its records can still be recovered."""
    counting, to = Counting(), tmp_path / "ref.h5"
    writer = TraceWriter(to)
    writer.add(site="enc", call="enc[0]", ordinal=0, end="output", values=X)
    writer._abandon()
    with pytest.raises(TraceExistsError):
        td.capture(counting.model, counting, to=to)
    assert journal_of(to).exists()
    assert len(open_trace(to).records) == 1


@pytest.mark.parametrize("further", [{"repeat": True, "floor": False}, {"repeat": False, "floor": True}])
def test_a_trace_that_was_replaced_during_further_runs_is_not_amended(further: dict[str, bool], tmp_path: Path, reference: Path) -> None:
    counting, to, other = Counting(), tmp_path / "new.h5", reference.read_bytes()

    def run() -> Any:
        if to.exists() and counting.runs:
            to.unlink()
            to.write_bytes(other)
        return counting()

    with pytest.raises(TracediffError, match="replaced meanwhile"):
        td.capture(counting.model, run, to=to, **further)
    assert to.read_bytes() == other


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.unlink(), "removed, renamed or replaced"),
        (lambda path: path.rename(path.with_name("moved.h5")), "removed, renamed or replaced"),
        (lambda path: os.replace(_beside(path), path), "removed, renamed or replaced"),
        (lambda path: path.write_bytes(b"another program's" * 100), "overwritten"),
    ],
    ids=["removed", "renamed", "replaced", "overwritten"],
)
def test_a_file_that_changes_hands_while_it_is_written_is_noticed(change: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "a.h5")
    writer.add(site="enc", call="enc[0]", ordinal=0, end="output", values=X)
    writer.flush()
    change(writer.path)
    with pytest.raises(TraceFileError, match=said):
        writer.close()


def _beside(path: Path) -> Path:
    other = path.with_name("other")
    other.write_bytes(b"another file")
    return other


def test_only_the_trace_that_is_meant_is_amended(reference: Path) -> None:
    before = reference.read_bytes()
    with pytest.raises(TraceFileError, match="it was replaced meanwhile"):
        amend(reference, identity=b"x" * 16, meta={"repeats": True})
    assert reference.read_bytes() == before


def test_an_output_is_whole_or_not_there(tmp_path: Path) -> None:
    to = tmp_path / "report.md"

    def fails(part: Path) -> None:
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(TraceFileError, match="No space left"):
        write_output(to, fails)
    assert not list(tmp_path.iterdir())
    write_output(to, "whole")
    with pytest.raises(TraceFileError, match="No space left"):
        write_output(to, fails, force=True)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("report.md", "whole")]


def test_a_folder_a_device_and_a_missing_folder_are_no_outputs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path, "a folder"), (tmp_path / "pipe", "a device"), (tmp_path / "no" / "a.md", "there is no folder")):
        with pytest.raises(TraceFileError, match=said):
            check_output(path, force=True)


@pytest.mark.parametrize(
    "command",
    [
        ["report", "REF", "PORT", "-o", "OUT.html"],
        ["plot", "REF", "PORT", "-o", "OUT.png"],
        ["status", "REF", "PORT", "-o", "OUT.md"],
        ["align", "REF", "PORT", "--write-map", "OUT.json"],
        ["weights", "REF", "PORT", "--write-rules", "OUT.py"],
        ["convert", "REF", "OUT.npz"],
        ["recover", "REF", "-o", "OUT.h5"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_refuses_an_output_that_is_there(command: list[str], reference: Path, tmp_path: Path) -> None:
    port = tmp_path / "port.h5"
    counting = Counting()
    td.capture(counting.model, counting, to=port, floor=False).close()
    names = {"REF": str(reference), "PORT": str(port)}
    arguments = [names.get(word, str(tmp_path / word) if word.startswith("OUT") else word) for word in command]
    output = Path(next(word for word in arguments if Path(word).name.startswith("OUT")))
    output.write_text("mine")
    ran = CliRunner().invoke(cli.main, arguments)
    assert (ran.exit_code, output.read_text()) == (2, "mine")
    if command[0] != "recover":
        CliRunner().invoke(cli.main, [*arguments, "--force"])
        assert output.read_bytes() != b"mine"


def test_a_saved_report_is_not_written_over(reference: Path, tmp_path: Path) -> None:
    port = tmp_path / "port.h5"
    counting = Counting()
    td.capture(counting.model, counting, to=port, floor=False).close()
    report = td.bisect(reference, port)
    to = report.save(tmp_path / "report.md")
    with pytest.raises(TraceExistsError):
        report.save(to)
    report.save(to, force=True)
