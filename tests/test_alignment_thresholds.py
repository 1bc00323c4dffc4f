"""What the alignment decides with: every number is in one table, every pass in a list, and both are looked up when needed."""

from __future__ import annotations

import ast
import importlib
from contextlib import ExitStack
from pathlib import Path

import pytest
from synthetic import stack

import tracediff.alignment
from tracediff.alignment import align
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.errors import AlignmentError
from tracediff.thresholds import changed, described
from tracediff.trace import open_trace

FOLDER = Path(tracediff.alignment.__file__).parent
LISTS = {
    "voices.VOICES": 11,
    "records.PASSES": 6,
    "layouts.CASCADE": 7,
    "layout_evidence.SOURCES": 6,
    "layout_ties.SOURCES": 3,
    "arguments.INPUT_PASSES": 2,
    "functions.EVIDENCE": 3,
    "functions.TERMS": 2,
}
ROUNDING = 1e-8  # numbers below it only keep rounding and divisions by zero out
NO_DECISIONS = {2.0, 0.5}  # twice the shared of all (Dice), a square root


def passes(name):
    module, attribute = name.split(".")
    return importlib.import_module(f"tracediff.alignment.{module}"), attribute


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    reference, port, _ = stack(tmp_path_factory.mktemp("stack"), 3)
    return open_trace(reference), open_trace(port)


@pytest.fixture
def change():
    with ExitStack() as stack:
        yield lambda name, value: stack.enter_context(changed(THRESHOLDS, name, value))


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_number_decides_outside_of_the_table(path):
    if path.name == "thresholds.py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    numbers = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, float)}
    assert {number for number in numbers if abs(number) > ROUNDING} <= {0.0, 1.0, *NO_DECISIONS}


def test_every_number_says_what_it_decides_and_where_its_value_comes_from():
    for name, _, means, measured_on in described(THRESHOLDS):
        assert means, name
        assert measured_on, name
        if "tests/" in measured_on:
            assert (Path(__file__).parent / Path(measured_on.split(";")[1].split()[0]).name).exists(), name


def test_every_number_is_used():
    text = "".join(path.read_text(encoding="utf-8") for path in FOLDER.rglob("*.py") if path.name != "thresholds.py")
    made_up = {f"{name}_{end}" for name in passes("voices.PROPERTIES")[0].PROPERTIES for end in ("equal", "different")}
    unused = {name for name, *_ in described(THRESHOLDS) if f"THRESHOLDS.{name}" not in text} - made_up
    assert unused - {"confidence_unsure_call"} == set()


def test_a_number_counts_from_the_moment_it_is_changed(stacked, change):
    assert align(*stacked).paired
    change("worth_pairing", 1e9)
    with pytest.raises(AlignmentError, match="share nothing"):
        align(*stacked)


@pytest.mark.parametrize("name", LISTS)
def test_each_pass_says_which_case_it_is_for_and_can_be_left_out_by_its_name(name, stacked, monkeypatch):
    module, attribute = passes(name)
    every = getattr(module, attribute)
    assert len(every) == LISTS[name] == len({one.__name__ for one in every})
    for one in every:
        assert one.__doc__, one
        monkeypatch.setattr(module, attribute, tuple(other for other in every if other.__name__ != one.__name__))
        try:
            align(*stacked)
        finally:
            monkeypatch.setattr(module, attribute, every)
