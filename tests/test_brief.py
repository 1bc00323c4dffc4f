"""brief and skill: what a person or an agent reads first, in few lines, and true."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from judging import Run, inputs, weights
from test_check import CASES, Example, example, kept  # noqa: F401

import tracediff as td
from tracediff import cli
from tracediff.show.brief import MOST_LINES, of_outcome, of_report
from tracediff.show.skill import skill

ROOT = Path(__file__).parents[1]


def chain(path: Path, wrong: str = "") -> Path:
    """Eight layers, one behind the other."""
    run = Run(path, faults={wrong: lambda y: y * np.float32(1.1)} if wrong else {})
    x = inputs()
    for number, weight in enumerate(weights(8)):
        x = run.layer(f"l{number}.{number}", x, weight)
    run.writer.close()
    return path


def test_a_brief_of_two_traces_says_first_what_is_wrong_first(tmp_path: Path) -> None:
    report = td.diff(chain(tmp_path / "ref.h5"), chain(tmp_path / "port.h5", "l3.3"))
    lines = of_report(report)
    assert lines[0] == "DIFFERENT: 1 introduced; 16 of 16 records compared, free."
    assert lines[1].startswith("1. l3.3, output of l3.3: 1.0e-01 where ")
    assert lines[2].startswith("   why: scale (confirmed): ")
    assert lines[-1] == f"Next: mend 1, capture the port again, then tracediff bisect {tmp_path}/ref.h5 {tmp_path}/port.h5"


def test_a_brief_has_forty_lines_at_most_and_ends_with_the_next_command(tmp_path: Path) -> None:
    report = td.diff(chain(tmp_path / "ref.h5"), chain(tmp_path / "port.h5", "l3.3"))
    lines = of_report(replace(report, divergences=60 * report.divergences))
    assert len(lines) == MOST_LINES
    assert re.fullmatch(r"\.\.\. and \d+ more lines", lines[-2])
    assert lines[-1].startswith("Next: ")


def test_a_brief_of_what_is_the_same_says_so(tmp_path: Path) -> None:
    lines = of_report(td.diff(chain(tmp_path / "ref.h5"), chain(tmp_path / "port.h5")))
    assert (lines[0], lines[-1]) == ("SAME; 16 of 16 records compared, free.", "Next: nothing to mend on these inputs.")


def test_a_brief_of_a_check_names_the_line_of_code_and_what_was_not_run(example: Example) -> None:  # noqa: F811
    example.scale(1.1)
    (example.root / "dump.py").write_text("raise SystemExit('no device')")
    lines = of_outcome(example.check())
    assert lines[1].startswith("Case file: not run: ")
    assert "1. the root, value of #hidden: " in "\n".join(lines)
    assert '      hidden = td.tap("hidden", np.tanh(scale * x))' in lines
    assert "Also different: case full, first at #hidden value" in lines
    assert lines[-1].startswith("Next: mend 1, then tracediff check samples; all of it: tracediff bisect ")


def test_the_command_ends_with_the_status_of_the_last_check(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(example.root)
    run = CliRunner().invoke
    assert run(cli.main, ["brief"]).exit_code == 2
    example.scale(1.1)
    example.check("samples")
    shown = run(cli.main, ["brief"])
    assert (shown.exit_code, shown.stdout.splitlines()[0]) == (1, "Different: 1 case; 1 new.")
    example.scale(1.0)
    example.check("samples")
    assert run(cli.main, ["brief"]).exit_code == 0
    assert run(cli.main, ["brief", "ref.h5"]).exit_code == 2


def test_the_page_for_agents_is_one_page_and_names_only_what_there_is() -> None:
    page = skill()
    assert page == (ROOT / "docs" / "skill" / "SKILL.md").read_text(encoding="utf-8")
    assert page.startswith("---\nname: tracediff\ndescription: ")
    assert len(page.splitlines()) < 100
    assert CliRunner().invoke(cli.main, ["skill"]).stdout == page
    for name in re.findall(r"`tracediff ([a-z]+)", page):
        assert isinstance(cli.main.commands[name], click.Command), name


def test_the_keys_that_the_page_for_agents_names_are_in_the_answers(tmp_path: Path, example: Example) -> None:  # noqa: F811
    example.scale(1.1)
    checked = example.check("samples").to_dict()
    fault = checked["cases"][0]["faults"][0]
    assert {"state", "site", "culprit", "size", "cause", "evidence", "source"} <= set(fault)
    answer = td.diff(chain(tmp_path / "ref.h5"), chain(tmp_path / "port.h5", "l3.3")).to_dict()
    first = answer["divergences"][0]
    assert {"verdict", "withheld", "first", "mode", "equivalent", "borderline", "coverage"} <= set(answer)
    assert {"culprit", "site", "introduced", "times", "inherited", "shapes", "layout", "causes"} <= set(first)
    assert {"reference", "port"} == set(first["culprit"]) == set(answer["certificate"]["judged"][0]["source"])
    assert {"not_seen", "unpaired_port"} <= set(answer["coverage"])
    assert CASES.count("[cases.") == 3
