"""The golden answers: what counts as a change of an answer, and that the frozen file holds what it should."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("mlx.core")

from benchmarks.golden.__main__ import FROZEN, read
from benchmarks.golden.answers import differences

ANSWER = {"verdict": "same", "divergences": [], "weights": [], "pairs": ["a | b | same"]}


def test_an_answer_that_is_as_frozen_is_no_difference():
    assert differences({"x": ANSWER}, {"x": dict(ANSWER)}) == {}


def test_a_changed_verdict_and_a_lost_pair_are_both_told():
    now = {**ANSWER, "verdict": "different", "pairs": []}
    assert differences({"x": ANSWER}, {"x": now}) == {"x": ["verdict: 'same' -> 'different'", "pairs: - a | b | same"]}


def test_findings_in_another_order_are_a_difference():
    was, now = {**ANSWER, "weights": ["a", "b"]}, {**ANSWER, "weights": ["b", "a"]}
    assert differences({"x": was}, {"x": now}) == {"x": ["weights: in another order"]}


def test_a_case_that_only_one_side_has_is_left_out():
    assert differences({"x": ANSWER}, {"y": ANSWER}) == {}


def test_the_frozen_file_holds_each_group_and_no_clean_pair_of_models_alarms():
    frozen = read(FROZEN)
    assert {name.partition("/")[0] for name in frozen} == {"models", "chatterbox", "cases"}
    clean = [answer for name, answer in frozen.items() if name.startswith("models/") and ": clean: " in name]
    assert len(clean) > 100
    assert all(answer["verdict"] == "same" for answer in clean)
