"""The options of a capture: written once, the same everywhere, and never silently without effect."""

from __future__ import annotations

import ast
import inspect
import json
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff import api, cli
from tracediff.errors import CaptureError
from tracediff.observe import options as options_module
from tracediff.observe import record
from tracediff.observe.call_selection import call_test
from tracediff.observe.options import DEFAULTS, CaptureKeywords, CaptureOptions
from tracediff.observe.selection import unmatched_lines

NAMES = {field.name for field in fields(CaptureOptions)}


def loop(to: Path, **options: Any) -> td.Trace:
    """A run that passes one tap six times, in a stage of its own."""
    with record(None, to, force=True, **options):
        for token in range(6):
            with td.scope("token", token), td.stage("loop"):
                td.tap("x", np.full(4, token, "f4"))
    return td.open_trace(to)


# -- calls


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("3", [3]),
        ("0-3", [0, 1, 2, 3]),
        ("0:3", [0, 1, 2, 3]),
        (" 1 : 2 ", [1, 2]),
        ("4-", [4, 5]),
        ("4:", [4, 5]),
        ("*@token=2*", [2]),
        ("*#x?5]", [5]),
    ],
)
def test_a_range_of_calls_is_written_with_a_dash_or_a_colon_and_has_both_ends(tmp_path: Path, text: str, chosen: list[int]) -> None:
    assert [one.ordinal for one in loop(tmp_path / "x.h5", calls=[text]).records] == chosen


@pytest.mark.parametrize("text", ["a:b:c", "-3", ":3", "0-2,5", "1.5", "", "first"])
def test_calls_that_are_no_number_range_or_pattern_are_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(CaptureError) as caught:
        call_test(text)
    assert repr(text) in str(caught.value)
    assert "0-3 or 0:3" in str(caught.value)


@pytest.mark.parametrize("text", ["3-1", "3:1"])
def test_calls_that_end_before_they_begin_are_refused_with_the_range_that_was_meant(text: str) -> None:
    with pytest.raises(CaptureError, match=rf"'{text}' end before they begin; .*'1{text[1]}3'"):
        CaptureOptions.of(calls=text)


# -- what matches nothing


def test_a_pattern_that_matches_nothing_is_said_whatever_option_it_came_from(tmp_path: Path) -> None:
    given: dict[str, list[str]] = {
        "include": ["*", "absent*"],
        "exclude": ["nothing"],
        "stages": ["loop", "encoder"],
        "calls": ["0:3", "7", "*@token=9*"],
        "methods": ["flow:inference"],
        "functions": ["no_such_package.**"],
    }
    with loop(tmp_path / "x.h5", **given) as trace:
        assert len(trace.records) == 4
        said = unmatched_lines(CaptureOptions.of(**given), trace.meta["not_seen"])  # type: ignore[arg-type]
        assert trace.meta["warnings"] == []
    assert said == [
        "method 'flow:inference': there is none",
        "functions 'no_such_package.**': there are none in the modules that were imported when the run began",
        "include 'absent*': matched no site",
        "exclude 'nothing': matched no site",
        "stages 'encoder': matched no stage",
        "calls '7': matched no call of a wanted site",
        "calls '*@token=9*': matched no call of a wanted site",
    ]


def test_a_selection_that_leaves_nothing_to_record_is_warned_of_with_the_selection(tmp_path: Path) -> None:
    def record_nothing() -> None:
        with td.record(None, tmp_path / "x.h5", include=["#x"], calls=["6-"]):
            for token in range(6):
                td.tap("x", np.full(4, token, "f4"))

    with pytest.warns(UserWarning, match=r"nothing was recorded: the selection \(include '#x'; calls '6-'\) left out all 6 boundaries"):
        record_nothing()
    with td.open_trace(tmp_path / "x.h5") as trace:
        assert trace.meta["not_seen"] == ["calls '6-': matched no call of a wanted site"]
        assert len(trace.meta["warnings"]) == 1


def test_parts_of_a_selection_that_match_but_have_nothing_in_common_are_warned_of_too(tmp_path: Path) -> None:
    with loop(tmp_path / "x.h5", include=["#x"], exclude=["#*"]) as trace:
        assert trace.meta["not_seen"] == []
        assert [text.partition(":")[0] for text in trace.meta["warnings"]] == ["nothing was recorded"]


def test_a_port_of_which_a_selection_leaves_nothing_cannot_be_fed_and_the_selection_is_named(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model, x = torch.nn.Linear(4, 4), np.ones((1, 4), "f4")
    td.capture(model, x, to=tmp_path / "ref.h5", floor=False).close()
    with pytest.raises(CaptureError, match=r"cannot be fed by .*ref\.h5': nothing was recorded: the selection \(calls '9'\)"):
        td.capture(model, x, to=tmp_path / "port.h5", feed=tmp_path / "ref.h5", calls=["9"])


# -- one set of options


def test_options_cross_to_another_python_as_plain_json() -> None:
    given = CaptureOptions.of(
        include=(text for text in ["a*", "b"]), calls="0:3", functions=["f.**"], save="stats", repeat=False, floor=False, floor_dtypes=[]
    )
    assert given.include == ("a*", "b")
    assert CaptureOptions.of(**json.loads(json.dumps(given.to_json()))) == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"include": "encoder*"}, r"include is a list of patterns, not one text; write include=\['encoder\*'\]"),
        ({"calls": [3]}, r"calls is a list of texts, and 3 is none; write for instance calls=\['3'\]"),
        ({"exclude": 7}, "exclude is a list of texts, and 7 is none"),
        ({"save": "some"}, "save='some' is not known; choose one of 'full', 'stats'"),
        ({"floor_dtypes": ["int8"]}, "no floor in 'int8'; a floor is measured in float64, float16, bfloat16"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_before_anything_runs(given: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        CaptureOptions.of(**given)


def test_a_block_takes_no_options_of_a_second_run(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="'repeat' does not apply"), td.record(None, tmp_path / "x.h5", repeat=True):  # type: ignore[call-arg]
        pass
    assert not (tmp_path / "x.h5").exists()


def test_a_keyword_that_is_no_option_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="inclde"), td.record(None, tmp_path / "x.h5", inclde=["a"]):  # type: ignore[call-arg]
        pass


def test_every_option_is_a_keyword_and_is_explained() -> None:
    assert set(CaptureKeywords.__annotations__) == NAMES
    (body,) = [node.body for node in ast.parse(inspect.getsource(CaptureOptions)).body if isinstance(node, ast.ClassDef)]
    explained = [field for field, text in pairwise(body) if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)]
    assert len(explained) == len(NAMES)


@pytest.mark.parametrize(
    ("function", "keywords"),
    [
        (
            td.capture,
            "to feed random seed floor floor_dtypes methods functions include exclude calls save save_params repeat impl meta force",
        ),
        (record, "to observers force methods functions include exclude calls stages save save_params impl compile"),
        (td.record, "to random seed force methods functions include exclude calls stages save save_params impl compile"),
        (
            api.capture_recipe,
            "impl recipe output stages weights seed random feed start dtype include exclude functions calls save save_params no_repeat "
            "no_floor floor_dtypes python force progress",
        ),
    ],
)
def test_public_calls_name_the_keywords_that_they_always_took(function: Any, keywords: str) -> None:
    parameters = inspect.signature(function).parameters
    assert set(keywords.split()) <= set(parameters)
    assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values())


def test_the_command_line_has_the_options_of_python_with_their_defaults() -> None:
    command = cli.main.commands["capture"]
    given = command.make_context("capture", ["--impl", "torch"], **cli.main.context_settings).params
    shared = {name: value for name, value in given.items() if name in NAMES - {"impl", "stages"}}
    asked = CaptureOptions.of(**shared)
    of_recipes = {"methods", "stages", "impl"}  # a recipe's METHODS, its STAGES and its side
    assert NAMES - set(shared) == of_recipes | {"compile"}
    for name in set(shared) - {"floor_dtypes"}:  # float64 is added by the recipe's capture
        assert getattr(asked, name) == getattr(DEFAULTS, name), name


def test_the_command_line_offers_the_values_that_python_takes() -> None:
    offered = {option.name: option.type.to_info_dict().get("choices") for option in cli.main.commands["capture"].params}
    assert tuple(offered["save"]) == options_module.get_args(options_module.Save)
    assert ("float64", *offered["floor_dtypes"]) == options_module.FLOOR_DTYPES
