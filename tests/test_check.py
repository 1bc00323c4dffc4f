"""check: a project's cases against their kept references, and what is new, still there, fixed, accepted or grown."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import tracediff as td
from tracediff import checking
from tracediff.errors import TracediffError, TraceExistsError
from tracediff.project.accepted import Accepted, read_accepted, write_accepted
from tracediff.project.config import find_project
from tracediff.project.outcome import Outcome
from tracediff.show import check as shown
from tracediff.trace import TraceWriter, open_trace
from tracediff.trace.thinning import sample_places, thin

CASES = """
[cases.samples]
reference = "cases.py:reference"
port = "cases.py:port"

[cases.full]
reference = "cases.py:reference"
port = "cases.py:port"
keep = "full"

[cases.file]
reference = "cases.py:reference"
run = '''{python} dump.py'''
dump = "out.npz"
"""
CODE = """
import numpy as np
import tracediff as td

def run(scale):
    def steps():
        x = td.tap("x", np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32))
        hidden = td.tap("hidden", np.tanh(scale * x))
        return td.tap("out", (hidden @ np.random.default_rng(1).standard_normal((40, 8))).astype(np.float32))
    return steps

def reference():
    return None, run(1.0)

def port():
    import json
    scale = json.load(open({scale!r}))
    return None, run(scale)
"""
DUMP = """
import json, numpy as np
scale = json.load(open("scale.json"))
x = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
hidden = np.tanh(scale * x)
out = (hidden @ np.random.default_rng(1).standard_normal((40, 8))).astype(np.float32)
np.savez("out.npz", **{"#x/value": x, "#hidden/value": hidden, "#out/value": out})
"""


class Example:
    """A project of three cases whose port has one number that may be wrong."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "tracediff.toml").write_text(CASES.format(python=sys.executable))
        (root / "cases.py").write_text(CODE.replace("{scale!r}", repr(str(root / "scale.json"))))
        (root / "dump.py").write_text(DUMP)
        self.scale(1.0)

    def scale(self, value: float) -> None:
        (self.root / "scale.json").write_text(str(value))

    def check(self, *names: str, **options: object) -> Outcome:
        return checking.check(names, config=self.root / "tracediff.toml", **options)  # type: ignore[arg-type]

    def update(self, *names: str) -> list[Path]:
        return checking.update(names, config=self.root / "tracediff.toml")

    def accept(self, site: str = "#hidden", because: str = "the checkpoint's own scale", **options: object) -> list[Accepted]:
        return checking.accept(site, because=because, config=self.root / "tracediff.toml", **options)  # type: ignore[arg-type]


def states(outcome: Outcome) -> dict[str, list[str]]:
    return {case.case: [fault.state for fault in case.faults] for case in outcome.cases}


def each(state: str) -> dict[str, list[str]]:
    return {"samples": [state], "full": [state], "file": [state]}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its references."""
    example = Example(tmp_path_factory.mktemp("kept"))
    example.update()
    return example.root


@pytest.fixture
def example(kept: Path, tmp_path: Path) -> Example:
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    return Example(tmp_path)


def test_a_fault_is_new_then_still_there_and_mended_it_is_fixed(example: Example) -> None:
    assert example.check().verdict == "same"
    example.scale(1.1)
    outcome = example.check()
    assert (outcome.verdict, states(outcome)) == ("different", each("new"))
    assert {fault.site for case in outcome.cases for fault in case.faults} == {"#hidden"}
    assert states(example.check()) == each("still")
    example.scale(1.0)
    outcome = example.check()
    assert (outcome.verdict, states(outcome)) == ("same", each("fixed"))
    assert states(example.check()) == {name: [] for name in each("")}


def test_an_accepted_fault_is_quiet_and_loud_when_it_grows(example: Example) -> None:
    example.scale(1.1)
    example.check()
    assert {one.case for one in example.accept()} == set(each(""))
    outcome = example.check()
    assert (outcome.verdict, states(outcome)) == ("same", each("accepted"))
    assert all(fault.because == "the checkpoint's own scale" for case in outcome.cases for fault in case.faults)
    example.scale(1.12)
    assert example.check().verdict == "same"
    example.scale(1.4)
    outcome = example.check()
    assert (outcome.verdict, states(outcome)) == ("different", each("grown"))
    example.scale(1.0)
    assert states(example.check()) == each("fixed")
    example.accept(forget=True)
    assert states(example.check()) == {name: [] for name in each("")}


def test_what_lies_behind_an_accepted_difference_of_a_free_run_is_said_not_to_be_judged(example: Example) -> None:
    example.scale(1.1)
    example.check()
    example.accept()
    told = {case.case: any("accepted difference" in line for line in case.caveats) for case in example.check().cases}
    assert told == {"samples": True, "full": False, "file": True}


def test_a_baseline_tells_new_from_old_where_no_check_was_made(example: Example, tmp_path: Path) -> None:
    example.scale(1.1)
    (tmp_path / "main.json").write_text(json.dumps(example.check(keep_state=False).to_dict()))
    assert states(example.check(keep_state=False)) == each("new")
    assert states(example.check(baseline=tmp_path / "main.json", keep_state=False)) == each("still")


def test_a_dump_that_was_not_renewed_is_not_run(example: Example) -> None:
    example.check("file")
    (example.root / "dump.py").write_text("")
    [case] = example.check("file").cases
    assert (case.state, example.check("file").verdict) == ("not run", None)
    assert "was not renewed" in case.why


def test_a_command_that_fails_is_not_run_and_what_was_known_stays_known(example: Example) -> None:
    example.scale(1.1)
    assert states(example.check("file")) == {"file": ["new"]}
    (example.root / "dump.py").write_text("raise SystemExit('no device')")
    [case] = example.check("file").cases
    assert (case.state, case.faults) == ("not run", ())
    assert "status 1: no device" in case.why
    (example.root / "dump.py").write_text(DUMP)
    assert states(example.check("file")) == {"file": ["still"]}


def test_a_port_that_raises_before_its_run_is_not_run_and_a_case_without_reference_says_how_to_keep_one(example: Example) -> None:
    (example.root / "scale.json").write_text("no number")
    [case] = example.check("samples").cases
    assert case.state == "not run"
    assert "JSONDecodeError" in case.why
    (example.root / "golden" / "samples.h5").unlink()
    [case] = example.check("samples").cases
    assert "tracediff check --update samples" in case.why


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "declares no case"),
        ("golden = 3\n[cases.a]\nrecipe = 'x'", "golden in .* is a text"),
        ("cases = 3", "declares no case"),
        ("[cases.a]\nrecip = 'x'", "Did you mean 'recipe'"),
        ("[cases.a]\nport = 'c.py:p'", "one of recipe"),
        ("[cases.a]\nreference = 'c.py:r'", "how its port is run"),
        ("[cases.a]\nrecipe = 'x'\nrun = 'make'", "run and dump go together"),
        ("[cases.a]\nrecipe = 'x'\nkeep = 'some'", "keep is one of"),
        ("[cases.a]\nrecipe = 'x'\nmode = 'forced'", 'keep = "full"'),
        ("[cases.a]\nrecipe = 'x'\nstages = 'enc'", "stages is a list"),
        ("[cases.a]\nrecipe = 'x'\nseed = '1'", "whole number"),
        ("[cases.'a/b']\nrecipe = 'x'", "names a file"),
        ("[cases", "no TOML"),
    ],
)
def test_a_wrong_declaration_says_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tracediff.toml").write_text(text)
    with pytest.raises(TracediffError, match=message):
        find_project(tmp_path / "tracediff.toml")


def test_the_nearest_declaration_upwards_counts_and_a_foreign_pyproject_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[tool.tracediff.cases.x]\nrecipe = "x"\n')
    (inner / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    monkeypatch.chdir(inner)
    assert find_project().root == tmp_path.resolve()
    (tmp_path / "pyproject.toml").unlink()
    with pytest.raises(TracediffError, match="No tracediff"):
        find_project()
    (inner / "tracediff.toml").write_text('[cases.x]\nrecipe = "x"\n')
    project = find_project()
    with pytest.raises(TracediffError, match=r"No case 'y' .* its cases are x"):
        project.chosen(("y",))


def test_accepting_needs_a_reason_a_check_and_a_difference(example: Example) -> None:
    with pytest.raises(TracediffError, match="no last check"):
        example.accept()
    example.scale(1.1)
    example.check()
    with pytest.raises(TracediffError, match="reason"):
        example.accept(because=" ")
    with pytest.raises(TracediffError, match="no difference at '#out'"):
        example.accept("#out")
    with pytest.raises(TracediffError, match="Nothing is accepted at '#out'"):
        example.accept("#out", forget=True)


def test_what_is_accepted_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [
        Accepted("b", 'a"\\\n', "output", "a \u2028 reason\x01", float("inf"), 3, "2026-01-01"),
        Accepted("a", "", "output", "why", 1e-3),
    ]
    assert read_accepted(write_accepted(tmp_path / "a.toml", rows)) == sorted(rows, key=lambda one: one.key)
    (tmp_path / "a.toml").write_text('[[accepted]]\ncase = "a"\nsite = "b"\nend = "output"\nbecause = ""\nsize = 1.0\n')
    with pytest.raises(TracediffError, match="no file of accepted differences"):
        read_accepted(tmp_path / "a.toml")


def test_every_format_says_each_difference_and_its_state(example: Example) -> None:
    example.scale(1.1)
    outcome = example.check("samples", "full")
    (example.root / "golden" / "full.h5").unlink()
    outcome = Outcome(outcome.project, (outcome.cases[0], *example.check("full").cases))
    lines = shown.github(outcome).splitlines()
    assert lines[0].startswith("::error file=")
    assert "title=tracediff%3A samples%3A new%3A #hidden value::" in lines[0]
    assert lines[1].startswith("::error title=tracediff%3A full%3A not run::no reference is kept")
    assert "| samples | new | #hidden value |" in shown.markdown(outcome)
    suites = ElementTree.fromstring(shown.junit(outcome))
    assert [(suite.get("name"), suite.get("failures"), suite.get("errors")) for suite in suites] == [
        ("samples", "1", "0"),
        ("full", "0", "1"),
    ]


def test_names_and_messages_cannot_write_commands_of_the_workflow(example: Example) -> None:
    example.scale(1.1)
    outcome = example.check("samples")
    [case] = outcome.cases
    evil = Outcome(
        outcome.project, (type(case)(**{**{n: getattr(case, n) for n in case.__slots__}, "state": "not run", "why": "a\n::error::b"}),)
    )
    assert all(line.startswith("::") and "\n" not in line for line in shown.github(evil).splitlines())
    assert "::error::b" not in [line for line in shown.github(evil).splitlines() if line.startswith("::error::b")]


# -- thin references


def write(path: Path, values: np.ndarray, *, complete: bool = True, site: str = "enc") -> Path:
    writer = TraceWriter(path, meta={"impl": "numpy", "modules": []})
    writer.add(site=site, call=f"{site}[0]", ordinal=0, end="input[0]", values=np.arange(400, dtype=np.float32))
    writer.add(site=site, call=f"{site}[0]", ordinal=0, end="output", values=values)
    writer.close(complete=complete)
    return path


def test_a_thin_trace_is_small_and_keeps_the_statistics_and_a_few_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((100, 1000)).astype(np.float32)
    whole = write(tmp_path / "whole.h5", values)
    kept = thin(whole, tmp_path / "thin.h5")
    assert kept.stat().st_size < whole.stat().st_size / 10
    with open_trace(whole) as first, open_trace(kept) as second:
        assert [(r.digest, r.stats, r.shape) for r in first.records] == [(r.digest, r.stats, r.shape) for r in second.records]
        assert second.samples is not None
        assert second.samples["values"][1].tolist() == values.reshape(-1)[sample_places(values.size)].tolist()
        assert not second.records[1].stored
    with pytest.raises(TraceExistsError):
        thin(whole, kept)
    with pytest.raises(TracediffError, match="does not hold all values"):
        thin(kept, tmp_path / "thinner.h5")
    with pytest.raises(TracediffError, match="not complete"):
        thin(write(tmp_path / "cut.h5", values, complete=False), tmp_path / "x.h5")


@pytest.mark.parametrize("kind", ["float32", "float16", "int32", "bool"])
def test_a_thin_reference_tells_equal_changed_and_reordered_values(kind: str, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).standard_normal((40, 50)) * 3
    values = (drawn > 0) if kind == "bool" else drawn.astype(kind)
    reference = thin(write(tmp_path / "whole.h5", values), tmp_path / "thin.h5")
    changed = np.roll(values, 1, axis=1)
    verdicts = {
        name: td.diff(reference, write(tmp_path / f"{name}.h5", port)).verdict for name, port in {"same": values, "moved": changed}.items()
    }
    assert verdicts == {"same": "same", "moved": "different"}


def test_a_thin_reference_allows_rounding_and_no_more(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    reference = thin(write(tmp_path / "whole.h5", values), tmp_path / "thin.h5")
    rounded = td.diff(reference, write(tmp_path / "rounded.h5", values * np.float32(1 + 1e-6)))
    assert (rounded.verdict, {row.how for row in rounded.rows}) == ("same", {"digest", "samples"})
    assert td.diff(reference, write(tmp_path / "scaled.h5", values * np.float32(1.001))).verdict == "different"
    one = values.copy()
    one[3, 4] = np.nan
    assert td.diff(reference, write(tmp_path / "nan.h5", one)).verdict == "different"


def test_a_thin_reference_is_read_in_the_ports_order_of_axes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    reference = thin(write(tmp_path / "whole.h5", values), tmp_path / "thin.h5")
    report = td.diff(reference, write(tmp_path / "turned.h5", np.ascontiguousarray(values.T) * np.float32(1 + 1e-6)))
    assert report.verdict == "same"
    assert {row.how for row in report.rows if row.where.end == "output"} == {"samples"}


# -- the command line


def tracediff(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "NO_COLOR": "1", "COLUMNS": "160"}
    return subprocess.run([sys.executable, "-m", "tracediff", *arguments], capture_output=True, text=True, cwd=cwd, env=given, check=False)


@pytest.mark.slow
def test_the_exit_status_is_0_1_2_and_for_git_bisect_125(example: Example) -> None:
    def status(*arguments: str) -> int:
        return tracediff("check", *arguments, cwd=example.root).returncode

    assert status("samples") == 0
    example.scale(1.1)
    assert (status("samples"), status("samples", "--bisect-run")) == (1, 1)
    assert tracediff("accept", "#hidden", "--because", "so", cwd=example.root).returncode == 0
    assert status("samples", "--junit", "tracediff.xml") == 0
    assert ElementTree.parse(example.root / "tracediff.xml").getroot().tag == "testsuites"
    (example.root / "scale.json").write_text("no number")
    assert (status("samples"), status("samples", "--bisect-run")) == (2, 125)
    (example.root / "tracediff.toml").write_text("[cases")
    assert (status(), status("--bisect-run")) == (2, 125)


@pytest.mark.slow
def test_git_bisect_run_names_the_commit(example: Example, tmp_path: Path) -> None:
    """Of 30 commits the 17th is at fault, and the 9th and the 10th cannot be run."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("cases.py", "tracediff.toml", "golden"):
        copy = shutil.copytree if (example.root / name).is_dir() else shutil.copy
        copy(example.root / name, repository / name)
    (repository / "cases.py").write_text((repository / "cases.py").read_text().replace(str(example.root), str(repository)))

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *arguments], cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    git("init", "-q")
    for number in range(1, 31):
        (repository / "scale.json").write_text("no number" if number in (9, 10) else "1.0" if number < 17 else "1.1")
        (repository / "notes.txt").write_text(f"{number}\n")
        git("add", ".")
        git("commit", "-qm", f"commit {number}")
    git("bisect", "start", "HEAD", "HEAD~29")
    told = git("bisect", "run", sys.executable, "-m", "tracediff", "check", "samples", "--bisect-run")
    assert "is the first bad commit" in told
    assert git("log", "-1", "--format=%s", "refs/bisect/bad").strip() == "commit 17"
